//! An embedded gateway. It stands in for the cloud's tunnel service in tests, laboratories and
//! private networks.
//!
//! Devices connect to `/tunnel/<id>/dest` and access sides to `/tunnel/<id>/source`. Each sends its
//! own token in the header `tunnel-access-token`. The gateway assigns session ids and relays the
//! sessions.
//!
//! An accept thread passes each connection to a short-lived thread for its handshakes. That thread
//! passes the connection to the tunnel's hub. A hub is a thread; each tunnel that has a connection
//! has one.
//!
//! The gateway limits what clients and tunnels may use; [`GatewayBuilder`] has the settings. The
//! protocol has no flow control per session. So when 256 KiB wait for an access connection, the
//! gateway stops reading the device of its tunnel. When such a connection takes nothing
//! for [`stall_timeout`](GatewayBuilder::stall_timeout), the gateway closes it with code 1008
//! and releases its sessions towards the device (code 2). The other access connections of the
//! tunnel go on.

mod activity;
mod admission;
mod audit;
mod front;
mod hub;
mod log;
mod pipe;
mod published;
mod server;
mod tokens;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use aiot_tunnel_proto::connection::{Connection, Transport};
use aiot_tunnel_proto::gateway::TunnelLimits;
use aiot_tunnel_proto::LogLimiter;
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod, SslOptions};
use openssl::x509::X509;
use parking_lot::Mutex;

use crate::config::{validity_problem, Token, TunnelId};
use crate::error::{Error, Result};
use crate::net::Stream;
use crate::sys::{self, Waker};
use admission::{Handshakes, Permit, Permits};
use audit::Audit;
use hub::Order;
use pipe::PipeEnd;
use published::{Publication, Publisher};
use server::{check_id, check_not_empty, descriptors, Shared};

pub use activity::{Activity, Peer};
pub use aiot_tunnel_proto::proxies::{Proxies, Subnet};
pub use audit::{AuditEvent, Refusal, Way};
pub use published::{LocalSession, PublishedPort};
pub use tokens::{TokenDigest, TokenKey};

const TARGET: &str = "aiot_tunnel::gateway";
/// How long to wait after a failed accept, for example when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many clients may wait in the kernel until they are accepted. All devices come at once when the
/// gateway or its network was away. (The kernel's own limit is net.core.somaxconn.)
const BACKLOG: i32 = 4096;

/// One of the two ends of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end at the device. Its path is `/tunnel/<id>/dest`.
    Device,
    /// The operator's end. Its path is `/tunnel/<id>/source`.
    Access,
}

/// The stream of a connection, with its permit. Both are dropped together.
struct MemberStream {
    stream: MemberEnd,
    permit: Permit,
    /// The address that it came from, or the name of the published port.
    peer: String,
}

/// Where a connection leads.
enum MemberEnd {
    Network(Stream),
    /// To a published port, which the same thread serves.
    Port(PipeEnd),
}

impl MemberStream {
    fn is_port(&self) -> bool {
        matches!(self.stream, MemberEnd::Port(_))
    }
}

type GatewayConnection = Connection<MemberStream>;

/// Calls the same method of either stream.
macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match &$self.stream {
            MemberEnd::Network($stream) => $call,
            MemberEnd::Port($stream) => $call,
        }
    };
    (mut $self:ident, $stream:ident => $call:expr) => {
        match &mut $self.stream {
            MemberEnd::Network($stream) => $call,
            MemberEnd::Port($stream) => $call,
        }
    };
}

impl Read for MemberStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        either!(mut self, stream => stream.read(buffer))
    }
}

impl Write for MemberStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        either!(mut self, stream => stream.write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        either!(mut self, stream => stream.flush())
    }
}

impl Transport for MemberStream {
    fn written(&self) -> u64 {
        either!(self, stream => stream.written())
    }
    fn unacked(&self) -> usize {
        either!(self, stream => stream.unacked())
    }
    fn unsent(&self) -> usize {
        either!(self, stream => stream.unsent())
    }
    fn round_trip(&self) -> Option<Duration> {
        either!(self, stream => stream.round_trip())
    }
    fn limit_unsent(&mut self, bytes: usize) {
        either!(mut self, stream => stream.limit_unsent(bytes));
    }
    fn peer(&self) -> String {
        self.peer.clone()
    }
    fn arm(&mut self) {
        either!(mut self, stream => stream.arm());
    }
    fn has_paused(&self) -> bool {
        either!(self, stream => stream.has_paused())
    }
    fn is_near(&self) -> bool {
        self.is_port()
    }
    fn take_buffer(&mut self, buffer: &mut Vec<u8>, waiting: Range<usize>) -> bool {
        either!(mut self, stream => stream.take_buffer(buffer, waiting))
    }
    fn give_buffer(&mut self, buffer: &mut Vec<u8>) -> Option<Range<usize>> {
        either!(mut self, stream => stream.give_buffer(buffer))
    }
    fn shrink(&mut self) {
        either!(mut self, stream => stream.shrink());
    }
    fn shut_down(&mut self) {
        either!(mut self, stream => stream.shut_down());
    }
}

/// A tunnel that the gateway serves. `Debug` hides the tokens.
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use]
pub struct TunnelConfig {
    /// The tunnel id, as it appears in the path.
    pub id: TunnelId,
    /// The token that admits the device. It must not be empty.
    pub device_token: Token,
    /// The token that admits access sides. It must not be empty, and must differ from the device
    /// token.
    pub access_token: Token,
    /// The time from which neither token is valid. `None`, the default: both are valid until the
    /// tunnel is removed.
    ///
    /// The gateway reads the system's clock once, when it gets this value. Setting the clock later
    /// does not move the expiry. A time in the past expires the tunnel at once.
    pub expires: Option<SystemTime>,
}

impl TunnelConfig {
    /// A tunnel that never expires. [`Gateway::add_tunnel`] and [`GatewayBuilder::start`] check
    /// the tokens.
    pub fn new(id: TunnelId, device_token: Token, access_token: Token) -> Self {
        TunnelConfig { id, device_token, access_token, expires: None }
    }

    /// Checks that a request's path can name the tunnel, as [`GatewayBuilder::start`] and
    /// [`Gateway::add_tunnel`] do. The gateway compares the path as it is written and decodes nothing,
    /// so an id is visible ASCII without `/`, `?` and `#`, and is neither `.` nor `..`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`].
    pub fn check_id(&self) -> Result<()> {
        check_id(&self.id)
    }

    /// Sets [`expires`](Self::expires).
    pub fn with_expires(mut self, at: impl Into<Option<SystemTime>>) -> Self {
        self.expires = at.into();
        self
    }
}

/// A tunnel whose tokens the gateway knows by their digests only, because they come from a store. See
/// [`Gateway::put_tunnel`].
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use]
pub struct StoredTunnel {
    /// The tunnel id, as it appears in the path.
    pub id: TunnelId,
    /// The digest of the token that admits the device.
    pub device_token: TokenDigest,
    /// The digest of the token that admits access sides. It must differ from the device's.
    pub access_token: TokenDigest,
    /// As [`TunnelConfig::expires`].
    pub expires: Option<SystemTime>,
}

impl StoredTunnel {
    /// A tunnel that never expires. The digests are those of the gateway's
    /// [key](GatewayBuilder::token_key).
    pub fn new(id: TunnelId, device_token: TokenDigest, access_token: TokenDigest) -> Self {
        StoredTunnel { id, device_token, access_token, expires: None }
    }

    /// Sets [`expires`](Self::expires).
    pub fn with_expires(mut self, at: impl Into<Option<SystemTime>>) -> Self {
        self.expires = at.into();
        self
    }
}

/// Converts a time of the system's clock to the monotonic clock, which cannot be set. Returns
/// `None` if there is no expiry, or if it is too far away for the clock.
fn deadline(expires: Option<SystemTime>) -> Option<Instant> {
    let now = Instant::now();
    // For a time in the past, `duration_since` fails. Then no time is left.
    let left = expires?.duration_since(SystemTime::now()).unwrap_or_default();
    now.checked_add(left)
}

/// Configures and starts a [`Gateway`]; made by [`Gateway::builder`].
#[must_use]
pub struct GatewayBuilder {
    tls: Option<SslAcceptor>,
    tunnels: Vec<TunnelConfig>,
    stored: Vec<StoredTunnel>,
    published: Vec<PublishedPort>,
    audit: Audit,
    token_key: TokenKey,
    proxies: Proxies,
    settings: Settings,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    tunnel: TunnelLimits,
    connections: usize,
    access_connections: usize,
    handshakes: usize,
    handshake_timeout: Duration,
}

impl fmt::Debug for GatewayBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayBuilder")
            .field("tls", &self.tls.is_some())
            .field("tunnels", &self.tunnels)
            .field("settings", &self.settings)
            .finish()
    }
}

impl GatewayBuilder {
    /// Serves `wss`. `chain` is PEM text, the server's own certificate first. `key` is PEM text,
    /// PKCS#8 or the traditional RSA and EC forms, not encrypted. Without this call the gateway
    /// serves `ws`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when certificate and key cannot be read or do not belong together.
    pub fn tls_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self> {
        self.tls = Some(acceptor(chain, key, &[])?);
        Ok(self)
    }

    /// Serves `wss`, as [`tls_pem`](Self::tls_pem) does, also to devices that offer nothing but TLS 1.2
    /// with RSA key exchange, such as those with the vendor's C SDK and its mbedTLS. The certificate must
    /// have an RSA key. A client that can do better is served better.
    ///
    /// RSA key exchange has no forward secrecy: whoever gets hold of the server's key later can read
    /// every recorded connection of such a device, its tokens included. Use a certificate of its own for
    /// this gateway, and take this away when the devices have a newer SDK.
    ///
    /// # Errors
    /// As for [`tls_pem`](Self::tls_pem).
    pub fn legacy_tls_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self> {
        self.tls = Some(acceptor(chain, key, LEGACY_CIPHERS)?);
        Ok(self)
    }

    /// Serves a tunnel. [`Gateway::add_tunnel`] adds more later.
    pub fn tunnel(mut self, tunnel: TunnelConfig) -> Self {
        self.tunnels.push(tunnel);
        self
    }

    /// Serves a tunnel of a store. [`Gateway::put_tunnel`] adds more later.
    pub fn stored_tunnel(mut self, tunnel: StoredTunnel) -> Self {
        self.stored.push(tunnel);
        self
    }

    /// Serves a published port.
    pub fn publish(mut self, port: PublishedPort) -> Self {
        self.published.push(port);
        self
    }

    /// Calls `sink` at the end of each session and at each refusal, from several threads. It must return
    /// soon, because sessions wait meanwhile. Refusals are limited to 1000 in 30 s; further ones are
    /// counted.
    pub fn audit(mut self, sink: impl Fn(&AuditEvent<'_>) + Send + Sync + 'static) -> Self {
        self.audit = Audit::new(sink);
        self
    }

    /// Sets the key of token digests; by default a random one. A program that keeps
    /// [`StoredTunnel`]s keeps the key, too.
    pub fn token_key(mut self, key: TokenKey) -> Self {
        self.token_key = key;
        self
    }

    /// Sets the proxies in front of the gateway; default none. From a trusted one, the gateway takes over
    /// the address of the client, which then appears in the log, in the audit and in [`Activity`], and
    /// counts for the limits:
    ///
    /// - With [`send_header`](Proxies::send_header), a connection of theirs must begin with a header of
    ///   the PROXY protocol, version 1 or 2. A connection of anybody else that does is refused.
    /// - Without TLS, the client is the last address in `X-Forwarded-For` that is not a trusted proxy's.
    pub fn proxies(mut self, proxies: Proxies) -> Self {
        self.proxies = proxies;
        self
    }

    /// Sets how many sessions one tunnel may have at once; default 10, the platform's limit.
    pub fn session_limit(mut self, limit: usize) -> Self {
        self.settings.tunnel.sessions = limit;
        self
    }

    /// Sets how many bytes of sessions each direction of a tunnel may carry in a second; default `None`,
    /// as many as it can. What is over the rate is delayed, never dropped. Where both ends have flow
    /// control, a session with little to say does not wait behind one with much.
    pub fn rate_limit(mut self, bytes_per_second: Option<u64>) -> Self {
        self.settings.tunnel.rate = bytes_per_second;
        self
    }

    /// Sets how many connections may be open in all; default 1024. One more is answered with
    /// HTTP 503, except a device that replaces its own connection.
    pub fn connection_limit(mut self, limit: usize) -> Self {
        self.settings.connections = limit;
        self
    }

    /// Sets how many access connections one tunnel may have at once; default 32. One more is
    /// answered with HTTP 503.
    pub fn access_limit(mut self, limit: usize) -> Self {
        self.settings.access_connections = limit;
        self
    }

    /// Sets how many handshakes may run at a time; default 64, at least 1. Further clients wait for
    /// a place; the next one is a client of the address (or the IPv6 network) that has the fewest, and
    /// of those the one that was served longest ago. While clients wait, a handshake is cut off when
    /// it takes longer than 5 s, and longer than 1 s if its address has more places than its share.
    pub fn handshake_limit(mut self, limit: usize) -> Self {
        self.settings.handshakes = limit;
        self
    }

    /// Sets the time for TLS and WebSocket handshake together; default 15 s.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.settings.handshake_timeout = timeout;
        self
    }

    /// Sets how long an access connection whose buffer is full may take nothing; default 10 s. Then the
    /// gateway closes it, because it holds up the others. One that took much before has up to 9.6
    /// times as long.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.settings.tunnel.stall = timeout;
        self
    }

    /// Binds the address (port 0: a free one), starts the threads and returns.
    ///
    /// # Errors
    /// [`Error::Io`] when the address cannot be bound or a thread cannot be created;
    /// [`Error::InvalidInput`] when a token is empty, a tunnel's two tokens are the same, or its id
    /// cannot be a part of a URL's path.
    pub fn start(mut self, address: SocketAddr) -> Result<Gateway> {
        let bind = |e| Error::io(format!("listen on {address}"), e);
        let listener = TcpListener::bind(address).and_then(sys::beyond_standard).map_err(bind)?;
        sys::set_backlog(&listener, BACKLOG).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let local_addr = listener.local_addr().map_err(bind)?;
        let ports = std::mem::take(&mut self.published);
        let shared = Arc::new(self.shared()?);
        let mut published = Vec::new();
        for port in ports {
            published.push(Publication::prepare(port, &shared)?);
        }
        let accept = {
            let shared = shared.clone();
            let run = move || shared.accept(&listener);
            sys::spawn(thread::Builder::new().name("gateway-accept".into()), run)
                .map_err(|e| Error::io("create the accept thread", e))?
        };
        // From here on, an error stops what has been started.
        let gateway = Gateway {
            shared,
            local_addr,
            accept: Mutex::new(Some(accept)),
            publications: Mutex::default(),
        };
        for publication in published {
            gateway.publications.lock().push(publication.start()?);
        }
        Ok(gateway)
    }

    fn shared(self) -> Result<Shared> {
        let limit = sys::descriptor_limit();
        let needed = descriptors(self.settings.connections, self.settings.handshakes);
        if limit < needed {
            ::log::warn!(
                target: TARGET,
                "the gateway's limits need {needed} file descriptors and it may have {limit}: clients \
                 beyond that are refused; raise the limit of open files (ulimit -n, LimitNOFILE=), or \
                 lower the limit of connections"
            );
        }
        let eventfd = |e| Error::io("create an eventfd", e);
        let stop = Waker::new().map_err(eventfd)?;
        let handshakes = Handshakes::new(self.settings.handshakes).map_err(eventfd)?;
        let shared = Shared {
            tls: Mutex::new(self.tls),
            settings: Mutex::new(self.settings),
            proxies: Mutex::new(Arc::new(self.proxies)),
            token_key: self.token_key,
            registry: Mutex::default(),
            stop: Arc::new(stop),
            handshakes: Arc::new(handshakes),
            connections: Permits::default(),
            descriptors: limit,
            limiter: Mutex::new(LogLimiter::default()),
            audit: self.audit,
        };
        for tunnel in &self.tunnels {
            shared.put(&shared.stored(tunnel)?, false)?;
        }
        for tunnel in &self.stored {
            shared.put(tunnel, false)?;
        }
        Ok(shared)
    }
}

/// A running gateway. Its methods may be called from any thread. Dropping it closes its
/// connections and ends its threads, as [`shutdown`] does.
///
/// [`shutdown`]: Gateway::shutdown
///
/// ```no_run
/// use aiot_tunnel::gateway::{Gateway, TunnelConfig};
/// use aiot_tunnel::{Token, TunnelId};
///
/// let gateway = Gateway::builder()
///     .tunnel(TunnelConfig::new(
///         TunnelId::new("t1")?,
///         Token::new("for-the-device")?,
///         Token::new("for-the-operator")?,
///     ))
///     .start("127.0.0.1:0".parse().unwrap())?;
/// println!("listening on {}", gateway.local_addr());
/// gateway.shutdown();
/// # Ok::<(), aiot_tunnel::Error>(())
/// ```
#[must_use = "dropping a gateway shuts it down"]
pub struct Gateway {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    accept: Mutex<Option<JoinHandle<()>>>,
    publications: Mutex<Vec<Publication>>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Gateway {
    /// A builder with no tunnel, without TLS, and with the default limits.
    pub fn builder() -> GatewayBuilder {
        let settings = Settings {
            tunnel: TunnelLimits { sessions: 10, stall: Duration::from_secs(10), rate: None },
            connections: 1024,
            access_connections: 32,
            handshakes: 64,
            handshake_timeout: Duration::from_secs(15),
        };
        GatewayBuilder {
            tls: None,
            tunnels: Vec::new(),
            stored: Vec::new(),
            published: Vec::new(),
            audit: Audit::default(),
            token_key: TokenKey::random(),
            proxies: Proxies::default(),
            settings,
        }
    }

    /// The address on which the gateway listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves one more tunnel. A tunnel that exists gets the new tokens and the new expiry; its
    /// connections stay open.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when a token is empty, both are the same, or the id cannot be a part of a
    /// URL's path.
    pub fn add_tunnel(&self, tunnel: TunnelConfig) -> Result<()> {
        self.shared.put(&self.shared.stored(&tunnel)?, false)
    }

    /// Serves a tunnel of a store, or changes it. Connections whose token has changed are closed with
    /// code 4001, and so are all connections if the tunnel has expired; the others stay open.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when both tokens are the same, or the id cannot be a part of a URL's path.
    pub fn put_tunnel(&self, tunnel: &StoredTunnel) -> Result<()> {
        self.shared.put(tunnel, true)
    }

    /// Admits no new connection to a tunnel, until [`put_tunnel`](Self::put_tunnel) is called for it: its
    /// tokens are answered with HTTP 503, and clients try again. Open connections stay open.
    ///
    /// For a store that cannot be reached, so that nobody knows whether the tokens are still valid.
    ///
    /// # Errors
    /// [`Error::UnknownTunnel`].
    pub fn suspend_tunnel(&self, id: &TunnelId) -> Result<()> {
        let mut registry = self.shared.registry.lock();
        let unknown = || Error::UnknownTunnel(id.clone());
        registry.tunnels.get_mut(id.as_str()).ok_or_else(unknown)?.is_suspended = true;
        Ok(())
    }

    /// What a tunnel does. `None`: there is no such tunnel.
    #[must_use]
    pub fn activity(&self, id: &TunnelId) -> Option<Activity> {
        self.shared.activity(id)
    }

    /// What all tunnels do, in no particular order.
    #[must_use]
    pub fn activities(&self) -> Vec<Activity> {
        self.shared.activities()
    }

    /// Replaces certificate and key, as [`GatewayBuilder::tls_pem`] takes them. Handshakes from now on
    /// show the new certificate; open connections stay open. After an error, the old one stays.
    ///
    /// # Errors
    /// As for [`GatewayBuilder::tls_pem`].
    pub fn set_tls_pem(&self, chain: &[u8], key: &[u8]) -> Result<()> {
        *self.shared.tls.lock() = Some(acceptor(chain, key, &[])?);
        Ok(())
    }

    /// As [`set_tls_pem`](Self::set_tls_pem), for a gateway with
    /// [`legacy_tls_pem`](GatewayBuilder::legacy_tls_pem).
    ///
    /// # Errors
    /// As for [`GatewayBuilder::tls_pem`].
    pub fn set_legacy_tls_pem(&self, chain: &[u8], key: &[u8]) -> Result<()> {
        *self.shared.tls.lock() = Some(acceptor(chain, key, LEGACY_CIPHERS)?);
        Ok(())
    }

    /// Takes over the limits of a builder: those of sessions, rate, connections, access connections and
    /// handshakes, and the times for handshakes and stalls. They hold from now on. What is open stays open,
    /// even if it is more than there may be now.
    pub fn set_limits(&self, of: &GatewayBuilder) {
        self.shared.set_settings(of.settings);
    }

    /// Serves one more published port.
    ///
    /// # Errors
    /// [`Error::Io`] when the port's thread cannot be created.
    pub fn publish(&self, port: PublishedPort) -> Result<()> {
        let publication = Publication::prepare(port, &self.shared)?;
        let mut publications = self.publications.lock();
        // What the gateway has stopped stays so.
        if self.accept.lock().is_some() {
            publications.push(publication.start()?);
        }
        Ok(())
    }

    /// Ends the published port at this address, and its sessions. Blocks for a second at most, in which its
    /// clients may get their last bytes. Returns the listener, which still listens. `None`: there is no such
    /// port.
    pub fn unpublish(&self, address: SocketAddr) -> Option<TcpListener> {
        let mut publications = self.publications.lock();
        let at = publications.iter().position(|one| one.address() == address)?;
        let publication = publications.remove(at);
        drop(publications);
        publication.end()
    }

    /// Sets queue timeout and client limit of the published port at this address, as
    /// [`PublishedPort::with_queue_timeout`] and [`PublishedPort::with_client_limit`] do, for clients from
    /// now on.
    pub fn set_port_limits(&self, address: SocketAddr, queue_timeout: Duration, clients: usize) {
        let publications = self.publications.lock();
        let port = publications.iter().find(|one| one.address() == address);
        if let Some(port) = port {
            port.set_limits(queue_timeout, clients);
        }
    }

    /// Asks for a session between a stream and a service of a device, such as `_SSH`, without an access
    /// process and without a token: for a program that has let its own user in. `stream` is one end of a
    /// socket pair, or a connection that the program has accepted. The tunnel's thread serves it from now
    /// on, and closes it when the session ends or when there is none.
    ///
    /// `client` says for whom the session is, for example by an address. Log and audit name it, with
    /// [`Way::Terminal`], so it must be one line. The session takes a place of
    /// [`connection_limit`](GatewayBuilder::connection_limit) and one of
    /// [`session_limit`](GatewayBuilder::session_limit), and waits for neither, nor for the device.
    /// [`LocalSession::end`] says why there is none.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the protocol cannot carry the service type; [`Error::Io`] when there is no
    /// descriptor left.
    pub fn open_session(
        &self,
        stream: UnixStream,
        tunnel: &TunnelId,
        service_type: &str,
        client: &str,
    ) -> Result<LocalSession> {
        Publisher::open_session(&self.shared, stream, (tunnel, service_type), client)
    }

    /// Replaces the proxies, as [`GatewayBuilder::proxies`] takes them, for connections from now on.
    pub fn set_proxies(&self, proxies: Proxies) {
        *self.shared.proxies.lock() = Arc::new(proxies);
    }

    /// Replaces the token of one side. Handshakes from now on need the new one; connections that
    /// are open stay open.
    ///
    /// # Errors
    /// [`Error::UnknownTunnel`]; [`Error::InvalidInput`] when the token is empty or is the other
    /// side's.
    pub fn set_token(&self, id: &TunnelId, side: Side, token: Token) -> Result<()> {
        check_not_empty(&token)?;
        let side = match side {
            Side::Device => aiot_tunnel_proto::Side::Device,
            Side::Access => aiot_tunnel_proto::Side::Access,
        };
        self.shared.set_token(id, side, self.shared.token_key.digest(&token))
    }

    /// Expires a tunnel now. Its connections are closed with code 4001, and its tokens are
    /// answered with HTTP 401, until [`add_tunnel`](Gateway::add_tunnel) renews the tunnel.
    ///
    /// # Errors
    /// [`Error::UnknownTunnel`].
    pub fn expire(&self, id: &TunnelId) -> Result<()> {
        let mut registry = self.shared.registry.lock();
        let unknown = || Error::UnknownTunnel(id.clone());
        let entry = registry.tunnels.get_mut(id.as_str()).ok_or_else(unknown)?;
        entry.expire();
        Ok(())
    }

    /// Removes a tunnel. Its connections are closed with code 1001, and new ones are answered with
    /// HTTP 404. A device takes that for a failure and tries again.
    ///
    /// # Errors
    /// [`Error::UnknownTunnel`].
    pub fn remove_tunnel(&self, id: &TunnelId) -> Result<()> {
        let mut registry = self.shared.registry.lock();
        let unknown = || Error::UnknownTunnel(id.clone());
        let mut entry = registry.tunnels.remove(id.as_str()).ok_or_else(unknown)?;
        entry.order(Order::Remove);
        registry.ended.extend(entry.hub.take().map(|hub| hub.thread));
        Ok(())
    }

    /// Releases every session (code 4), closes every connection (code 1001) and joins all threads. Blocks: the gateway waits up to
    /// 2 s for a peer that does not answer the close frame.
    pub fn shutdown(self) {
        self.stop();
    }

    /// Like [`shutdown`](Self::shutdown), for a gateway that several threads use. From then on its
    /// methods change nothing.
    pub fn stop(&self) {
        let Some(accept) = self.accept.lock().take() else { return };
        self.shared.stop.wake();
        // The handshake threads end first, so that no hub is created after the next line.
        let _ = accept.join();
        let mut threads = Vec::new();
        {
            let mut registry = self.shared.registry.lock();
            registry.is_closed = true;
            threads.append(&mut registry.ended);
            for entry in registry.tunnels.values_mut() {
                entry.order(Order::Stop);
                threads.extend(entry.hub.take().map(|hub| hub.thread));
            }
        }
        // Their connections end with the hubs, which tell both ends why.
        let publications = std::mem::take(&mut *self.publications.lock());
        for thread in threads {
            let _ = thread.join();
        }
        for publication in publications {
            publication.join();
        }
        self.shared.audit.end();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the acceptor offers for TLS 1.2 by itself: forward secrecy, and authenticated encryption.
const MODERN_CIPHERS: &[&str] = &[
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "DHE-RSA-AES128-GCM-SHA256",
    "DHE-RSA-AES256-GCM-SHA384",
];
/// RSA key exchange, for devices that know nothing else.
const LEGACY_CIPHERS: &[&str] =
    &["AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA256", "AES256-SHA256"];

/// Accepts TLS 1.2 and 1.3, with the ciphers of version 5 of Mozilla's recommendation. The acceptor
/// of native-tls stops at TLS 1.2. It also prefers ChaCha20, which costs both ends much time on
/// processors with AES instructions.
///
/// `more_ciphers` are offered behind those.
fn acceptor(chain: &[u8], key: &[u8], more_ciphers: &[&str]) -> Result<SslAcceptor> {
    // The callback refuses encrypted keys. Without it, OpenSSL would ask for a password on the
    // terminal.
    let key = PKey::private_key_from_pem_callback(key, |_| Ok(0))
        .map_err(|_| Error::invalid("server key", "not a key in PEM form, or encrypted"))?;
    let invalid = |e: ErrorStack| Error::invalid("server certificate", e.to_string());
    let chain = X509::stack_from_pem(chain).map_err(invalid)?;
    let Some((own, others)) = chain.split_first() else {
        return Err(Error::invalid("server certificate", "the PEM text holds no certificate"));
    };
    if let Some(problem) = validity_problem(own) {
        ::log::warn!(target: TARGET, "the server certificate {problem}; clients refuse it");
    }
    let mut acceptor =
        SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).map_err(invalid)?;
    acceptor.set_options(SslOptions::NO_RENEGOTIATION);
    if !more_ciphers.is_empty() {
        let ciphers = [MODERN_CIPHERS, more_ciphers].concat().join(":");
        acceptor.set_cipher_list(&ciphers).map_err(invalid)?;
        // Otherwise a device could choose a legacy cipher although it knows a better one.
        acceptor.set_options(SslOptions::CIPHER_SERVER_PREFERENCE);
    }
    acceptor.set_certificate(own).map_err(invalid)?;
    for certificate in others {
        acceptor.add_extra_chain_cert(certificate.clone()).map_err(invalid)?;
    }
    acceptor.set_private_key(&key).map_err(invalid)?;
    Ok(acceptor.build())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use openssl::asn1::Asn1Time;
    use openssl::hash::MessageDigest;
    use openssl::rsa::Rsa;
    use openssl::ssl::{SslConnector, SslVerifyMode, SslVersion};

    use super::*;

    /// The cipher that a client with TLS 1.2 and this list gets. `None` if the handshake fails.
    fn cipher(more_ciphers: &[&str], client_offers: &str) -> Option<String> {
        let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let mut certificate = X509::builder().unwrap();
        certificate.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        certificate.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        certificate.set_pubkey(&key).unwrap();
        certificate.sign(&key, MessageDigest::sha256()).unwrap();
        let chain = certificate.build().to_pem().unwrap();
        let key = key.private_key_to_pem_pkcs8().unwrap();
        let acceptor = acceptor(&chain, &key, more_ciphers).unwrap();

        let (client, server) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || drop(acceptor.accept(server)));
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector.set_verify(SslVerifyMode::NONE);
        connector.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
        connector.set_cipher_list(client_offers).unwrap();
        let session = connector.build().connect("localhost", client);
        let chosen = session.ok().and_then(|s| Some(s.ssl().current_cipher()?.name().to_owned()));
        server.join().unwrap();
        chosen
    }

    #[test]
    fn rsa_key_exchange_is_accepted_only_when_asked_for() {
        for legacy in LEGACY_CIPHERS {
            assert_eq!(cipher(&[], legacy), None);
            assert_eq!(cipher(LEGACY_CIPHERS, legacy).as_deref(), Some(*legacy));
        }
        let both = "AES128-SHA256:ECDHE-RSA-AES128-GCM-SHA256";
        assert!(cipher(LEGACY_CIPHERS, both).unwrap().starts_with("ECDHE"));
        assert_eq!(cipher(LEGACY_CIPHERS, "AES128-SHA"), None);
    }

    #[test]
    fn an_expiry_holds_for_every_time_that_the_clock_can_show() {
        let now = SystemTime::now();
        let from_now = |at| {
            let deadline = deadline(Some(at)).map(|at| at.checked_duration_since(Instant::now()));
            deadline.map(Option::unwrap_or_default)
        };
        let hour = Duration::from_secs(3600);
        let in_an_hour = from_now(now + hour).unwrap();
        assert!(in_an_hour <= hour && in_an_hour > hour / 2);
        for past in [now, now - hour, SystemTime::UNIX_EPOCH] {
            assert_eq!(from_now(past), Some(Duration::ZERO));
        }
        assert_eq!(deadline(None), None);
        // The latest time that the system's clock can represent. The monotonic clock may not reach
        // so far.
        let mut step = Duration::from_secs(1 << 62);
        let mut furthest = now;
        while !step.is_zero() {
            furthest = furthest.checked_add(step).unwrap_or(furthest);
            step /= 2;
        }
        assert!(from_now(furthest).is_none_or(|left| left > 1_000_000 * hour));
    }

    #[test]
    fn the_defaults_are_those_of_the_documents() {
        let settings = Gateway::builder().settings;
        assert_eq!(settings.tunnel.sessions, 10);
        assert_eq!(settings.tunnel.stall, Duration::from_secs(10));
        assert_eq!(settings.handshake_timeout, Duration::from_secs(15));
        assert_eq!(settings.handshakes, 64);
        assert_eq!(settings.connections, 1024);
        assert_eq!(settings.access_connections, 32);
    }
}
