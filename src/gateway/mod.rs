//! The embedded gateway: a stand-in for the cloud's tunnel service, for tests, labs and private
//! networks.
//!
//! Devices connect to `/tunnel/<id>/dest`, access sides to `/tunnel/<id>/source`, each with its
//! own token in the header `tunnel-access-token`. The gateway assigns session ids and relays.
//!
//! An accept thread hands each connection to a short-lived thread for its handshakes, which
//! hands it to the tunnel's hub: one thread for each tunnel that has a connection.
//!
//! What strangers and tunnels may take is limited; [`Builder`] has the settings. An access
//! connection for which 256 KiB wait stops what its tunnel's device sends, for the protocol
//! has no finer flow control; when it has taken less than 4 KiB within
//! [`stall_timeout`](Builder::stall_timeout) it is closed with code 1008, its sessions are
//! released towards the device (code 2), and the tunnel's other access connections go on.

mod admission;
mod handshake;
mod hub;
#[cfg(any(test, fuzzing))]
pub(crate) mod property;
mod tunnel;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod, SslOptions};
use openssl::x509::X509;
use parking_lot::Mutex;
use tungstenite::http::StatusCode;

use crate::cloud::read_ahead::ReadAhead;
use crate::cloud::tls;
use crate::cloud::websocket::Role;
use crate::config::{Token, TunnelId};
use crate::error::{Error, Result};
use crate::peer::{Peer, Socket, Stream, Throttle};
use crate::sys::{poll, PollFd, Waker};
use admission::{Digest, Digester, Handshake, Handshakes, Places, Seat};
use handshake::{refusal, Opening};
use hub::{Hub, Order};
use tunnel::{Limits, Tunnel};

const TARGET: &str = "aiot_tunnel::gateway";
/// A tunnel's device connections: the one in use, and older ones in their closing handshake.
const MAX_DEVICE_CONNECTIONS: usize = 8;
/// After a failed accept (out of descriptors), until the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One of the two ends of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `/tunnel/<id>/dest`
    Device,
    /// `/tunnel/<id>/source`
    Access,
}

/// A tunnel that the gateway serves.
#[derive(Debug, Clone)]
pub struct TunnelConfig {
    /// Its id, as it stands in the path.
    pub id: TunnelId,
    /// Lets the device in.
    pub device_token: Token,
    /// Lets access sides in.
    pub access_token: Token,
    /// When both tokens cease to be valid; `None`: never.
    pub expires: Option<Instant>,
}

/// Collects what a [`Gateway`] needs.
pub struct Builder {
    tls: Option<SslAcceptor>,
    tunnels: Vec<TunnelConfig>,
    settings: Settings,
}

#[derive(Clone, Copy)]
struct Settings {
    tunnel: Limits,
    connections: usize,
    access_connections: usize,
    handshakes: usize,
    handshake_timeout: Duration,
}

impl Builder {
    /// Serves `wss`: `chain` in PEM, the server's own certificate first; `key` in PEM, PKCS#8 or
    /// the traditional RSA and EC forms, not encrypted. Without it the gateway serves `ws`.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when they cannot be read or do not belong together.
    pub fn tls_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self> {
        self.tls = Some(acceptor(chain, key)?);
        Ok(self)
    }

    /// Serves a tunnel; more can be added later.
    pub fn tunnel(mut self, tunnel: TunnelConfig) -> Self {
        self.tunnels.push(tunnel);
        self
    }

    /// Sessions of one tunnel at once; default 10, the platform's limit.
    pub fn session_limit(mut self, limit: usize) -> Self {
        self.settings.tunnel.sessions = limit;
        self
    }

    /// Open connections in all; default 1024. One more is answered with 503.
    pub fn connection_limit(mut self, limit: usize) -> Self {
        self.settings.connections = limit;
        self
    }

    /// Access connections of one tunnel at once; default 32. One more is answered with 503.
    pub fn access_limit(mut self, limit: usize) -> Self {
        self.settings.access_connections = limit;
        self
    }

    /// Handshakes at a time; default 64, at least 1. When one more begins, the oldest of the
    /// address that has most of them is cut off.
    pub fn handshake_limit(mut self, limit: usize) -> Self {
        self.settings.handshakes = limit;
        self
    }

    /// Time for TLS and WebSocket handshake together; default 15 s.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.settings.handshake_timeout = timeout;
        self
    }

    /// How long an access connection whose buffer is full may take less than 4 KiB before it is
    /// closed, since it holds up its siblings; default 10 s.
    pub fn stall_timeout(mut self, timeout: Duration) -> Self {
        self.settings.tunnel.stall = timeout;
        self
    }

    /// Binds the address (port 0: a free one) and serves.
    ///
    /// # Errors
    /// [`Error::Io`] when the address cannot be bound or a thread cannot be created;
    /// [`Error::InvalidInput`] for two tokens of a tunnel that are the same or empty.
    pub fn start(self, address: SocketAddr) -> Result<Gateway> {
        let bind = |e| Error::io(format!("listen on {address}"), e);
        let listener = TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let local_addr = listener.local_addr().map_err(bind)?;
        let shared = Arc::new(self.shared()?);
        let accept = {
            let shared = shared.clone();
            thread::Builder::new()
                .name("gateway-accept".into())
                .spawn(move || shared.accept(&listener))
                .map_err(|e| Error::io("create the accept thread", e))?
        };
        Ok(Gateway { shared, local_addr, accept: Some(accept) })
    }

    fn shared(self) -> Result<Shared> {
        let stop = Waker::new().map_err(|e| Error::io("create an eventfd", e))?;
        let shared = Shared {
            tls: self.tls,
            settings: self.settings,
            digester: Digester::new(),
            registry: Mutex::default(),
            stop: Arc::new(stop),
            handshakes: Arc::new(Handshakes::new(self.settings.handshakes)),
            connections: Places::default(),
            throttle: Mutex::default(),
        };
        for tunnel in &self.tunnels {
            shared.add(tunnel)?;
        }
        Ok(shared)
    }
}

/// A running gateway. Dropping it ends its connections and threads, as [`shutdown`] does.
///
/// [`shutdown`]: Gateway::shutdown
///
/// ```no_run
/// use aiot_tunnel::gateway::{Gateway, TunnelConfig};
/// use aiot_tunnel::{Token, TunnelId};
///
/// let gateway = Gateway::builder()
///     .tunnel(TunnelConfig {
///         id: TunnelId::new("t1")?,
///         device_token: Token::new("for-the-device")?,
///         access_token: Token::new("for-the-operator")?,
///         expires: None,
///     })
///     .start("127.0.0.1:0".parse().unwrap())?;
/// println!("listening on {}", gateway.local_addr());
/// gateway.shutdown();
/// # Ok::<(), aiot_tunnel::Error>(())
/// ```
pub struct Gateway {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    accept: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Starts with no tunnel, without TLS, with 10 sessions a tunnel.
    pub fn builder() -> Builder {
        let settings = Settings {
            tunnel: Limits { sessions: 10, stall: Duration::from_secs(10) },
            connections: 1024,
            access_connections: 32,
            handshakes: 64,
            handshake_timeout: Duration::from_secs(15),
        };
        Builder { tls: None, tunnels: Vec::new(), settings }
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves one more tunnel, or gives an existing one new tokens and a new expiry; its
    /// connections stay.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for two tokens that are the same or empty.
    pub fn add_tunnel(&self, tunnel: TunnelConfig) -> Result<()> {
        self.shared.add(&tunnel)
    }

    /// Replaces the token of one side, for handshakes from now on. False for an unknown tunnel.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when the token is empty or the other side's.
    pub fn set_token(&self, id: &TunnelId, side: Side, token: Token) -> Result<bool> {
        let mut registry = self.shared.registry.lock();
        let Some(entry) = registry.tunnels.get_mut(id.as_str()) else { return Ok(false) };
        check_not_empty(&token)?;
        let new = self.shared.digester.of_token(&token);
        let (own, other) = match side {
            Side::Device => (&mut entry.device_token, &entry.access_token),
            Side::Access => (&mut entry.access_token, &entry.device_token),
        };
        check_different(&new, other)?;
        *own = new;
        Ok(true)
    }

    /// Expires a tunnel: its connections are closed with code 4001, its tokens answered with
    /// 401, until [`add_tunnel`](Gateway::add_tunnel) renews it. False for an unknown tunnel.
    pub fn expire(&self, id: &TunnelId) -> bool {
        let mut registry = self.shared.registry.lock();
        let Some(entry) = registry.tunnels.get_mut(id.as_str()) else { return false };
        entry.expires = Some(Instant::now());
        entry.order(Order::ExpireAt(entry.expires));
        true
    }

    /// Serves a tunnel no more: its connections are closed with code 1001, its tokens answered
    /// with 401. False for an unknown tunnel.
    pub fn remove_tunnel(&self, id: &TunnelId) -> bool {
        let mut registry = self.shared.registry.lock();
        let Some(mut entry) = registry.tunnels.remove(id.as_str()) else { return false };
        entry.order(Order::Stop);
        registry.ended.extend(entry.hub.take().map(|hub| hub.thread));
        true
    }

    /// Closes every connection (code 1001) and joins all threads; a peer that does not answer
    /// its close frame is waited for 2 s.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(accept) = self.accept.take() else { return };
        self.shared.stop.wake();
        // Joins the handshakes, so that no hub is created after the next line.
        let _ = accept.join();
        let mut threads = Vec::new();
        {
            let mut registry = self.shared.registry.lock();
            threads.append(&mut registry.ended);
            for entry in registry.tunnels.values_mut() {
                entry.order(Order::Stop);
                threads.extend(entry.hub.take().map(|hub| hub.thread));
            }
        }
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Default)]
struct Registry {
    tunnels: HashMap<String, Entry>,
    /// Hubs that have ended, or will soon, to be joined.
    ended: Vec<JoinHandle<()>>,
    hubs_created: u64,
}

struct Entry {
    device_token: Digest,
    access_token: Digest,
    expires: Option<Instant>,
    hub: Option<HubHandle>,
    devices: Places,
    accesses: Places,
}

struct HubHandle {
    serial: u64,
    orders: Sender<Order>,
    waker: Arc<Waker>,
    thread: JoinHandle<()>,
}

impl Entry {
    fn order(&self, order: Order) {
        if let Some(hub) = &self.hub {
            if hub.orders.send(order).is_err() {
                log::error!(target: TARGET, "a tunnel's thread is gone: an order is lost");
            }
            hub.waker.wake();
        }
    }

    fn is_expired(&self) -> bool {
        self.expires.is_some_and(|at| Instant::now() >= at)
    }
}

struct Shared {
    tls: Option<SslAcceptor>,
    settings: Settings,
    digester: Digester,
    registry: Mutex<Registry>,
    /// Woken once, to stop; never reset.
    stop: Arc<Waker>,
    handshakes: Arc<Handshakes>,
    /// Those past their handshakes.
    connections: Places,
    /// About strangers.
    throttle: Mutex<Throttle>,
}

impl Shared {
    fn add(&self, config: &TunnelConfig) -> Result<()> {
        // An access token must never open the device's end, nor an absent one either end.
        check_not_empty(&config.device_token)?;
        check_not_empty(&config.access_token)?;
        let device_token = self.digester.of_token(&config.device_token);
        let access_token = self.digester.of_token(&config.access_token);
        check_different(&device_token, &access_token)?;
        let mut registry = self.registry.lock();
        let id = config.id.as_str().to_owned();
        let entry = registry.tunnels.entry(id).or_insert_with(|| Entry {
            device_token,
            access_token,
            expires: None,
            hub: None,
            devices: Places::default(),
            accesses: Places::default(),
        });
        (entry.device_token, entry.access_token) = (device_token, access_token);
        entry.expires = config.expires;
        entry.order(Order::ExpireAt(config.expires));
        Ok(())
    }

    /// The accept thread: ends when stopped, after all handshakes.
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        let mut handshakes: Vec<JoinHandle<()>> = Vec::new();
        loop {
            let mut fds = [
                PollFd::new(self.stop.as_fd(), true, false),
                PollFd::new(listener.as_fd(), true, false),
            ];
            let deadline = self.throttle.lock().deadline();
            if poll(&mut fds, deadline).is_err() || fds[0].ready().read {
                break;
            }
            self.throttle.lock().tick(Instant::now());
            handshakes.retain(|thread| !thread.is_finished());
            match listener.accept() {
                Ok((stream, address)) => handshakes.extend(self.admit(stream, address)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => {
                    self.complain(format_args!("accept: {e}"));
                    let mut stop = [PollFd::new(self.stop.as_fd(), true, false)];
                    let _ = poll(&mut stop, Some(Instant::now() + ACCEPT_PAUSE));
                }
            }
        }
        for thread in handshakes {
            let _ = thread.join();
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) -> Option<JoinHandle<()>> {
        let handshake = match self.handshakes.begin(address.ip(), &stream) {
            Ok((handshake, None)) => handshake,
            Ok((handshake, Some(ip))) => {
                self.complain(format_args!("{ip}: a handshake gives way to newer ones"));
                handshake
            }
            Err(e) => {
                self.complain(format_args!("{address}: {e}"));
                return None;
            }
        };
        let shared = self.clone();
        let run = move || {
            if let Err(e) = shared.handshake(stream, &handshake) {
                shared.complain(format_args!("{address}: handshake: {e}"));
            }
        };
        let thread = thread::Builder::new().name("gateway-shake".into()).spawn(run);
        if let Err(e) = &thread {
            self.complain(format_args!("create a handshake thread: {e}"));
        }
        thread.ok()
    }

    fn handshake(self: &Arc<Self>, tcp: TcpStream, handshake: &Handshake) -> io::Result<()> {
        let deadline = Instant::now() + self.settings.handshake_timeout;
        let socket = Socket::patient(tcp, deadline, self.stop.clone())?;
        let mut stream = match &self.tls {
            None => Stream::Plain(socket),
            Some(tls) => match tls.accept(ReadAhead::new(socket)).into() {
                tls::Handshake::Done(stream) => Stream::Tls(Box::new(stream)),
                tls::Handshake::Failed(why) => return Err(io::Error::other(why)),
                tls::Handshake::Waits(_) => return Err(io::ErrorKind::TimedOut.into()),
            },
        };
        let Some((head, rest)) = stream.read_head()? else {
            return stream.part(&refusal(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        };
        let opening = match Opening::parse(&head) {
            Ok(opening) => opening,
            Err(status) => return stream.part(&refusal(status)),
        };
        let seat = match self.seat(&opening) {
            Ok(seat) => seat,
            Err(status) => {
                let (tunnel, side) = (opening.tunnel, opening.side);
                self.complain(format_args!("tunnel {tunnel:?}: {side:?} refused: {status}"));
                return stream.part(&refusal(status));
            }
        };
        if !handshake.succeeds() {
            return Err(io::Error::other("gave way to newer ones"));
        }
        // The answer is the hub's to send: it knows of the connection by then.
        let peer = Peer::new(stream, Role::Server, &rest, Instant::now());
        let peer = peer.greet(opening.answer(), Box::new(seat));
        self.join(&opening, Box::new(peer))
    }

    /// Logs what a stranger can cause as often as he likes.
    fn complain(&self, what: std::fmt::Arguments<'_>) {
        self.throttle.lock().complain(Instant::now(), what);
    }

    /// A place for whoever has the token.
    fn seat(&self, opening: &Opening<'_>) -> std::result::Result<Seat, StatusCode> {
        let presented = self.digester.of(opening.token);
        let registry = self.registry.lock();
        let entry = registry.tunnels.get(opening.tunnel);
        let expected = entry.map(|entry| match opening.side {
            Side::Device => &entry.device_token,
            Side::Access => &entry.access_token,
        });
        let has_token = expected.unwrap_or(self.digester.nobody()).matches(&presented);
        let entry = entry.filter(|entry| has_token && !entry.is_expired());
        let entry = entry.ok_or(StatusCode::UNAUTHORIZED)?;
        let (places, limit) = match opening.side {
            Side::Device => (&entry.devices, MAX_DEVICE_CONNECTIONS),
            Side::Access => (&entry.accesses, self.settings.access_connections),
        };
        let seat = places.take(limit, &self.connections, self.settings.connections);
        seat.ok_or(StatusCode::SERVICE_UNAVAILABLE)
    }

    /// Hands a connection to its tunnel's hub, which is created if there is none.
    fn join(self: &Arc<Self>, opening: &Opening<'_>, peer: Box<Peer>) -> io::Result<()> {
        let mut registry = self.registry.lock();
        let threads = std::mem::take(&mut registry.ended).into_iter();
        let (mut ended, running) = threads.partition::<Vec<_>, _>(JoinHandle::is_finished);
        registry.ended = running;
        registry.hubs_created += 1;
        let serial = registry.hubs_created;
        let Some(entry) = registry.tunnels.get_mut(opening.tunnel) else { return Ok(()) };
        // One that has panicked has not taken itself off.
        let dead = entry.hub.take_if(|hub| hub.thread.is_finished());
        ended.extend(dead.map(|hub| hub.thread));
        if entry.hub.is_none() {
            entry.hub = Some(self.spawn_hub(opening.tunnel, serial)?);
        }
        entry.order(Order::Join(opening.side, peer, entry.expires));
        drop(registry);
        for thread in ended {
            if thread.join().is_err() {
                log::error!(target: TARGET, "a tunnel's thread has panicked");
            }
        }
        Ok(())
    }

    fn spawn_hub(self: &Arc<Self>, tunnel: &str, serial: u64) -> io::Result<HubHandle> {
        let waker = Arc::new(Waker::new()?);
        let (orders, receiver) = crossbeam_channel::unbounded();
        let core = Tunnel::new(tunnel.to_owned(), self.settings.tunnel);
        let hub = Hub::new(core, receiver, waker.clone());
        let (shared, tunnel) = (self.clone(), tunnel.to_owned());
        let thread = thread::Builder::new()
            .name("gateway-hub".into())
            .spawn(move || hub.run(|orders| shared.retire(&tunnel, serial, orders)))?;
        Ok(HubHandle { serial, orders, waker, thread })
    }

    /// Takes an idle hub off its tunnel, unless an order has come meanwhile.
    fn retire(&self, tunnel: &str, serial: u64, orders: &Receiver<Order>) -> bool {
        let mut registry = self.registry.lock();
        if !orders.is_empty() {
            return false;
        }
        let entry = registry.tunnels.get_mut(tunnel);
        let hub = entry.and_then(|entry| entry.hub.take_if(|hub| hub.serial == serial));
        registry.ended.extend(hub.map(|hub| hub.thread));
        true
    }
}

fn check_not_empty(token: &Token) -> Result<()> {
    match token.expose() {
        "" => Err(Error::invalid("token", "empty")),
        _ => Ok(()),
    }
}

fn check_different(own: &Digest, other: &Digest) -> Result<()> {
    if own.matches(other) {
        return Err(Error::invalid("token", "the same for device and access side"));
    }
    Ok(())
}

/// TLS 1.2 and 1.3, with the ciphers of Mozilla's recommendation 5. native-tls's acceptor stops at
/// TLS 1.2 and prefers ChaCha20, which costs both ends much on processors with AES.
fn acceptor(chain: &[u8], key: &[u8]) -> Result<SslAcceptor> {
    // The callback refuses encrypted keys; without it OpenSSL would ask on the terminal.
    let key = PKey::private_key_from_pem_callback(key, |_| Ok(0))
        .map_err(|_| Error::invalid("server key", "not a PEM private key, or encrypted"))?;
    let invalid = |e: ErrorStack| Error::invalid("server certificate", e.to_string());
    let chain = X509::stack_from_pem(chain).map_err(invalid)?;
    let Some((own, others)) = chain.split_first() else {
        return Err(Error::invalid("server certificate", "the PEM text holds none"));
    };
    let mut acceptor =
        SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).map_err(invalid)?;
    acceptor.set_options(SslOptions::NO_RENEGOTIATION);
    acceptor.set_certificate(own).map_err(invalid)?;
    for certificate in others {
        acceptor.add_extra_chain_cert(certificate.clone()).map_err(invalid)?;
    }
    acceptor.set_private_key(&key).map_err(invalid)?;
    Ok(acceptor.build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn a_tunnel_whose_thread_has_panicked_gets_another_with_the_next_connection() {
        let token = |text| Token::new(text).unwrap();
        let tunnel = TunnelConfig {
            id: TunnelId::new("t1").unwrap(),
            device_token: token("hush-device"),
            access_token: token("hush-access"),
            expires: None,
        };
        let gateway = Gateway::builder().tunnel(tunnel);
        let gateway = gateway.start("127.0.0.1:0".parse().unwrap()).unwrap();
        // As a hub leaves it that ends without a word.
        let (orders, _) = crossbeam_channel::unbounded();
        let thread = thread::spawn(|| {});
        while !thread.is_finished() {
            thread::yield_now();
        }
        let waker = Arc::new(Waker::new().unwrap());
        let dead = HubHandle { serial: u64::MAX, orders, waker, thread };
        gateway.shared.registry.lock().tunnels.get_mut("t1").unwrap().hub = Some(dead);

        let mut device = TcpStream::connect(gateway.local_addr()).unwrap();
        device.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let request =
            "GET /tunnel/t1/dest HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       tunnel-access-token: hush-device\r\n\r\n";
        device.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 13];
        device.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101 ");
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
