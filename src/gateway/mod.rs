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
mod hub;
mod server;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel_proto::connection::{Connection, Transport};
use aiot_tunnel_proto::gateway::TunnelLimits;
use aiot_tunnel_proto::LogLimiter;
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod, SslOptions};
use openssl::x509::X509;
use parking_lot::Mutex;

use crate::config::{Token, TunnelId};
use crate::error::{Error, Result};
use crate::net::Stream;
use crate::sys::Waker;
use admission::{Digester, Handshakes, Permit, Places};
use hub::Order;
use server::{check_different, check_not_empty, Shared};

const TARGET: &str = "aiot_tunnel::gateway";
/// After a failed accept (out of descriptors), until the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub use aiot_tunnel_proto::Side;

/// The byte stream of a connection, and its permit, which is given back with it.
struct MemberStream {
    stream: Stream,
    _permit: Permit,
}

type GatewayConnection = Connection<MemberStream>;

impl Read for MemberStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for MemberStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Transport for MemberStream {
    fn written(&self) -> u64 {
        self.stream.written()
    }
    fn unacked(&self) -> usize {
        self.stream.unacked()
    }
    fn arm(&mut self) {
        self.stream.arm();
    }
    fn shrink(&mut self) {
        self.stream.shrink();
    }
    fn shut_down(&mut self) {
        self.stream.shut_down();
    }
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
    tunnel: TunnelLimits,
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
            limiter: Mutex::new(LogLimiter::default()),
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
            tunnel: TunnelLimits { sessions: 10, stall: Duration::from_secs(10) },
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
