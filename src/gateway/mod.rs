//! The embedded gateway: a stand-in for the cloud's tunnel service, for tests, labs and private
//! networks.
//!
//! Devices connect to `/tunnel/<id>/dest`, access sides to `/tunnel/<id>/source`, each with its
//! own token in the header `tunnel-access-token`. The gateway assigns session ids and relays.
//!
//! An accept thread hands each connection to a short-lived thread for its handshakes, which
//! hands it to the tunnel's hub: one thread for each tunnel that has a connection.

mod handshake;
mod hub;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use native_tls::{Identity, Protocol, TlsAcceptor};
use parking_lot::Mutex;
use tungstenite::http::StatusCode;
use zeroize::Zeroizing;

use crate::cloud::websocket::Role;
use crate::config::{Token, TunnelId};
use crate::error::{Error, Result};
use crate::peer::{Peer, Socket, Stream};
use crate::sys::{poll, PollFd, Waker};
use handshake::Opening;
use hub::{Hub, Order};

const TARGET: &str = "aiot_tunnel::gateway";
/// TLS and WebSocket handshake together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Handshakes at a time; connections over it are closed at once.
const MAX_HANDSHAKES: usize = 64;
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
    tls: Option<TlsAcceptor>,
    tunnels: Vec<TunnelConfig>,
    session_limit: usize,
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
        self.session_limit = limit;
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
        let stop = Waker::new().map_err(|e| Error::io("create an eventfd", e))?;
        let shared = Arc::new(Shared {
            tls: self.tls,
            session_limit: self.session_limit,
            registry: Mutex::default(),
            stop: Arc::new(stop),
            handshakes: AtomicUsize::new(0),
        });
        for tunnel in self.tunnels {
            shared.add(tunnel)?;
        }
        let accept = {
            let shared = shared.clone();
            thread::Builder::new()
                .name("gateway-accept".into())
                .spawn(move || shared.accept(&listener))
                .map_err(|e| Error::io("create the accept thread", e))?
        };
        Ok(Gateway { shared, local_addr, accept: Some(accept) })
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
        Builder { tls: None, tunnels: Vec::new(), session_limit: 10 }
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
        self.shared.add(tunnel)
    }

    /// Replaces the token of one side, for handshakes from now on. False for an unknown tunnel.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when the token is empty or the other side's.
    pub fn set_token(&self, id: &TunnelId, side: Side, token: Token) -> Result<bool> {
        let mut registry = self.shared.registry.lock();
        let Some(entry) = registry.tunnels.get_mut(id.as_str()) else { return Ok(false) };
        let mut config = entry.config.clone();
        match side {
            Side::Device => config.device_token = token,
            Side::Access => config.access_token = token,
        }
        check_tokens(&config)?;
        entry.config = config;
        Ok(true)
    }

    /// Expires a tunnel: its connections are closed with code 4001, its tokens answered with
    /// 401, until [`add_tunnel`](Gateway::add_tunnel) renews it. False for an unknown tunnel.
    pub fn expire(&self, id: &TunnelId) -> bool {
        let mut registry = self.shared.registry.lock();
        let Some(entry) = registry.tunnels.get_mut(id.as_str()) else { return false };
        entry.config.expires = Some(Instant::now());
        entry.order(Order::ExpireAt(entry.config.expires));
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
    /// Hubs that have ended, to be joined.
    ended: Vec<JoinHandle<()>>,
    hubs_created: u64,
}

struct Entry {
    config: TunnelConfig,
    hub: Option<HubHandle>,
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
            let _ = hub.orders.send(order);
            hub.waker.wake();
        }
    }

    fn admits(&self, side: Side, token: &[u8]) -> bool {
        let expected = match side {
            Side::Device => &self.config.device_token,
            Side::Access => &self.config.access_token,
        };
        let expected = expected.expose().as_bytes();
        let expired = self.config.expires.is_some_and(|at| Instant::now() >= at);
        !expired && expected.len() == token.len() && openssl::memcmp::eq(expected, token)
    }
}

struct Shared {
    tls: Option<TlsAcceptor>,
    session_limit: usize,
    registry: Mutex<Registry>,
    /// Woken once, to stop; never reset.
    stop: Arc<Waker>,
    handshakes: AtomicUsize,
}

impl Shared {
    fn add(&self, config: TunnelConfig) -> Result<()> {
        check_tokens(&config)?;
        let mut registry = self.registry.lock();
        let id = config.id.as_str().to_owned();
        match registry.tunnels.get_mut(&id) {
            Some(entry) => {
                entry.order(Order::ExpireAt(config.expires));
                entry.config = config;
            }
            None => drop(registry.tunnels.insert(id, Entry { config, hub: None })),
        }
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
            if poll(&mut fds, None).is_err() || fds[0].ready().read {
                break;
            }
            handshakes.retain(|thread| !thread.is_finished());
            match listener.accept() {
                Ok((stream, address)) => handshakes.extend(self.admit(stream, address)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => {
                    log::warn!(target: TARGET, "accept: {e}");
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
        if self.handshakes.load(Ordering::Relaxed) >= MAX_HANDSHAKES {
            log::warn!(target: TARGET, "{address}: too many handshakes at a time");
            return None;
        }
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        let shared = self.clone();
        let run = move || {
            if let Err(e) = shared.handshake(stream) {
                log::warn!(target: TARGET, "{address}: handshake: {e}");
            }
            shared.handshakes.fetch_sub(1, Ordering::Relaxed);
        };
        let thread = thread::Builder::new().name("gateway-shake".into()).spawn(run);
        if let Err(e) = &thread {
            log::warn!(target: TARGET, "create a handshake thread: {e}");
            self.handshakes.fetch_sub(1, Ordering::Relaxed);
        }
        thread.ok()
    }

    fn handshake(self: &Arc<Self>, tcp: TcpStream) -> io::Result<()> {
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let socket = Socket::patient(tcp, deadline, self.stop.clone())?;
        let mut stream = match &self.tls {
            None => Stream::Plain(socket),
            Some(tls) => match tls.accept(socket) {
                Ok(stream) => Stream::Tls(Box::new(stream)),
                Err(native_tls::HandshakeError::Failure(e)) => return Err(io::Error::other(e)),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            },
        };
        let opening = match Opening::read(&mut stream)? {
            Ok(opening) => opening,
            Err(status) => return handshake::refuse(&mut stream, status),
        };
        if !self.is_admitted(&opening) {
            let (tunnel, side) = (&opening.tunnel, opening.side);
            log::warn!(target: TARGET, "tunnel {tunnel:?}: {side:?} refused: 401");
            return handshake::refuse(&mut stream, StatusCode::UNAUTHORIZED);
        }
        opening.accept(&mut stream)?;
        let peer = Peer::new(stream, Role::Server, &opening.rest);
        self.join(&opening, Box::new(peer))
    }

    fn is_admitted(&self, opening: &Opening) -> bool {
        let registry = self.registry.lock();
        let entry = registry.tunnels.get(&opening.tunnel);
        entry.is_some_and(|entry| entry.admits(opening.side, opening.token()))
    }

    /// Hands a connection to its tunnel's hub, which is created if there is none.
    fn join(self: &Arc<Self>, opening: &Opening, peer: Box<Peer>) -> io::Result<()> {
        let mut registry = self.registry.lock();
        let ended = std::mem::take(&mut registry.ended);
        registry.hubs_created += 1;
        let serial = registry.hubs_created;
        let Some(entry) = registry.tunnels.get_mut(&opening.tunnel) else { return Ok(()) };
        if entry.hub.is_none() {
            entry.hub = Some(self.spawn_hub(&opening.tunnel, serial)?);
        }
        entry.order(Order::Join(opening.side, peer, entry.config.expires));
        drop(registry);
        // They were at their last instruction when they put themselves there.
        for thread in ended {
            let _ = thread.join();
        }
        Ok(())
    }

    fn spawn_hub(self: &Arc<Self>, tunnel: &str, serial: u64) -> io::Result<HubHandle> {
        let waker = Arc::new(Waker::new()?);
        let (orders, receiver) = crossbeam_channel::unbounded();
        let hub = Hub::new(tunnel.to_owned(), receiver, waker.clone(), self.session_limit);
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

/// An access token must never open the device's end, nor an absent one either end.
fn check_tokens(config: &TunnelConfig) -> Result<()> {
    if config.device_token.expose().is_empty() || config.access_token.expose().is_empty() {
        return Err(Error::invalid("token", "empty"));
    }
    if config.device_token == config.access_token {
        return Err(Error::invalid("token", "the same for device and access side"));
    }
    Ok(())
}

fn acceptor(chain: &[u8], key: &[u8]) -> Result<TlsAcceptor> {
    // The callback refuses encrypted keys; without it OpenSSL would ask on the terminal.
    let key = openssl::pkey::PKey::private_key_from_pem_callback(key, |_| Ok(0))
        .map_err(|_| Error::invalid("server key", "not a PEM private key, or encrypted"))?;
    let pkcs8 = key.private_key_to_pem_pkcs8().map(Zeroizing::new);
    let pkcs8 = pkcs8.map_err(|e| Error::invalid("server key", e.to_string()))?;
    let invalid = |e: native_tls::Error| Error::invalid("server certificate", e.to_string());
    let identity = Identity::from_pkcs8(chain, &pkcs8).map_err(invalid)?;
    TlsAcceptor::builder(identity)
        .min_protocol_version(Some(Protocol::Tlsv12))
        .build()
        .map_err(invalid)
}
