//! The state that all threads of the gateway share: the tokens that admit clients, and the hubs
//! that serve the tunnels.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use aiot_tunnel_proto::connection::Connection;
use aiot_tunnel_proto::gateway::{self, Tunnel};
use aiot_tunnel_proto::handshake::server::{expired, refusal, Opening};
use aiot_tunnel_proto::handshake::StatusCode;
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::{LogLimiter, Side};
use crossbeam_channel::{Receiver, Sender};
use openssl::ssl::SslAcceptor;
use parking_lot::Mutex;

use super::admission::{
    Client, Digest, Digester, Handshake, Handshakes, Next, Permit, Permits, MAX_WAITING,
};
use super::hub::{Hub, Order};
use super::log::{LogLimits, TunnelLog};
use super::{GatewayConnection, MemberStream, Settings, TunnelConfig, ACCEPT_PAUSE, TARGET};
use crate::config::Token;
use crate::error::{Error, Result};
use crate::net::{accept, UntilStopped};
use crate::sys::{self, poll, PollFd, Waker};

/// Device connections of one tunnel: the one in use, and older ones in their closing handshake. The
/// oldest of these is dropped for a new one.
const MAX_DEVICE_CONNECTIONS: usize = 8;

/// Descriptors that the program needs besides those of its clients.
const OWN_DESCRIPTORS: usize = 64;
/// What a handshake needs, also while it is cut off and another one has its place.
const HANDSHAKE_DESCRIPTORS: usize = 4;
/// The connection, and the waker of its tunnel's thread.
const CONNECTION_DESCRIPTORS: usize = 2;
/// As many clients may wait however few descriptors there are.
const LEAST_WAITING: usize = 16;

/// How many descriptors so many connections and handshakes need.
pub(super) fn descriptors(connections: usize, handshakes: usize) -> usize {
    let of_handshakes = handshakes.saturating_mul(HANDSHAKE_DESCRIPTORS);
    let of_connections = connections.saturating_mul(CONNECTION_DESCRIPTORS);
    OWN_DESCRIPTORS.saturating_add(of_handshakes).saturating_add(of_connections)
}

/// How many clients may wait for a handshake, each with a descriptor. They leave enough for the
/// connections, and for the handshakes that run.
fn most_waiting(limit: usize, connections: usize, handshakes: usize) -> usize {
    let spare = limit.saturating_sub(descriptors(connections, handshakes));
    spare.clamp(LEAST_WAITING, MAX_WAITING)
}

/// Why a client with the right token is refused after the end of a tunnel.
const EXPIRED: &str = "the tunnel has expired";

#[derive(Default)]
pub(super) struct Registry {
    pub(super) tunnels: HashMap<String, Entry>,
    /// The threads of hubs that have ended or are about to end. They are still to be joined.
    pub(super) ended: Vec<JoinHandle<()>>,
    pub(super) hubs_created: u64,
}

pub(super) struct Entry {
    pub(super) device_token: Digest,
    pub(super) access_token: Digest,
    pub(super) expires: Option<Instant>,
    pub(super) hub: Option<HubHandle>,
    /// When a device was last connected, as long as there is no hub.
    pub(super) device_left: Option<Instant>,
    pub(super) log: LogLimits,
    pub(super) devices: Permits,
    pub(super) accesses: Permits,
}

pub(super) struct HubHandle {
    pub(super) serial: u64,
    pub(super) orders: Sender<Order>,
    pub(super) waker: Arc<Waker>,
    pub(super) thread: JoinHandle<()>,
}

impl Entry {
    pub(super) fn order(&self, order: Order) {
        if let Some(hub) = &self.hub {
            if hub.orders.send(order).is_err() {
                log::error!(target: TARGET, "a tunnel's thread has ended: an order is lost");
            }
            hub.waker.wake();
        }
    }

    fn is_expired(&self) -> bool {
        self.expires.is_some_and(|at| Instant::now() >= at)
    }
}

pub(super) struct Shared {
    pub(super) tls: Option<SslAcceptor>,
    pub(super) settings: Settings,
    pub(super) digester: Digester,
    pub(super) registry: Mutex<Registry>,
    /// Woken once, to stop the gateway. Never reset.
    pub(super) stop: Arc<Waker>,
    pub(super) handshakes: Arc<Handshakes>,
    /// The connections that are past their handshakes.
    pub(super) connections: Permits,
    /// How many descriptors the process may have.
    pub(super) descriptors: usize,
    /// Limits the lines about clients that are not admitted.
    pub(super) limiter: Mutex<LogLimiter>,
}

impl Shared {
    pub(super) fn add(&self, config: &TunnelConfig) -> Result<()> {
        // An access token must never open the device's end. A missing token must never open either
        // end.
        check_not_empty(&config.device_token)?;
        check_not_empty(&config.access_token)?;
        let device_token = self.digester.of_token(&config.device_token);
        let access_token = self.digester.of_token(&config.access_token);
        check_different(&device_token, &access_token)?;
        config.check_id()?;
        let mut registry = self.registry.lock();
        let id = config.id.as_str().to_owned();
        let entry = registry.tunnels.entry(id).or_insert_with(|| Entry {
            device_token,
            access_token,
            expires: None,
            hub: None,
            device_left: None,
            log: LogLimits::default(),
            devices: Permits::default(),
            accesses: Permits::default(),
        });
        (entry.device_token, entry.access_token) = (device_token, access_token);
        entry.expires = super::deadline(config.expires);
        entry.order(Order::ExpireAt(entry.expires));
        Ok(())
    }

    /// How many descriptors clients that wait do not take: those whose turn it is need more.
    fn reserve(&self) -> usize {
        (2 * self.settings.handshakes).min(self.descriptors / 4)
    }

    /// The accept thread. When the gateway stops, it ends after all handshake threads.
    pub(super) fn accept(self: Arc<Self>, listener: &TcpListener) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        // When to accept again after a failure. The clients wait in the backlog until then.
        let mut pause: Option<Instant> = None;
        loop {
            let next = self.begin_handshakes(&mut threads);
            let mut fds = [
                PollFd::new(self.stop.as_fd(), true, false),
                PollFd::new(self.handshakes.freed.as_fd(), true, false),
                PollFd::new(listener.as_fd(), pause.is_none(), false),
            ];
            let limiter = self.limiter.lock().deadline();
            let deadline = [limiter, next, pause].into_iter().flatten().min();
            if poll(&mut fds, deadline).is_err() || fds[0].ready().read {
                break;
            }
            if fds[1].ready().read {
                self.handshakes.freed.reset();
            }
            let now = Instant::now();
            if let Some(count) = self.limiter.lock().tick(now) {
                log::warn!(target: TARGET, "{count} more such lines were left out");
            }
            pause = pause.filter(|until| now < *until);
            threads.retain(|thread| !thread.is_finished());
            if pause.is_some() || !fds[2].ready().read {
                continue;
            }
            let accepted = listener.accept();
            match accepted.and_then(|(tcp, from)| Ok((sys::beyond_standard(tcp)?, from))) {
                Ok(client) => {
                    // The kernel gives the smallest free number, so a large one says that few are left.
                    let is_near =
                        client.0.as_raw_fd() as usize >= self.descriptors - self.reserve();
                    let (taken, handshakes) = (self.connections.taken(), self.settings.handshakes);
                    let most = most_waiting(self.descriptors, taken, handshakes);
                    if let Some(address) = self.handshakes.add(client, most) {
                        self.complain(format_args!("{address}: dropped: too many clients wait"));
                    } else if is_near {
                        self.handshakes.drop_one_of_several();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => {
                    self.complain(format_args!("accept: {e}"));
                    let is_full = matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                    // One of the largest network gives way to the next client at once. Otherwise those
                    // of that network in the backlog would hold up the others.
                    if !(is_full && self.handshakes.drop_one()) {
                        pause = Some(now + ACCEPT_PAUSE);
                    }
                }
            }
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Begins the handshakes for which there are places. Returns when to call this again.
    fn begin_handshakes(self: &Arc<Self>, threads: &mut Vec<JoinHandle<()>>) -> Option<Instant> {
        let now = Instant::now();
        loop {
            match self.handshakes.next(now) {
                Ok(Next::Begin(handshake, client)) => threads.extend(self.begin(handshake, client)),
                Ok(Next::CutOff(ip)) => self.complain(format_args!(
                    "{ip}: a handshake is cut off: it takes too long, and others wait"
                )),
                Ok(Next::Wait(until)) => return until,
                Err(e) => self.complain(format_args!("begin a handshake: {e}")),
            }
        }
    }

    fn begin(self: &Arc<Self>, handshake: Handshake, client: Client) -> Option<JoinHandle<()>> {
        let (stream, address) = client;
        let shared = self.clone();
        let run = move || {
            if let Err(e) = shared.handshake(stream, address, &handshake) {
                shared.complain(format_args!("{address}: handshake: {e}"));
            }
        };
        let thread = sys::spawn(thread::Builder::new().name("gateway-shake".into()), run);
        if let Err(e) = &thread {
            self.complain(format_args!("create a handshake thread: {e}"));
        }
        thread.ok()
    }

    fn handshake(
        self: &Arc<Self>,
        tcp: TcpStream,
        address: SocketAddr,
        handshake: &Handshake,
    ) -> io::Result<()> {
        let deadline = Instant::now() + self.settings.handshake_timeout;
        let wait = UntilStopped { stop: &self.stop, lookups: None };
        let mut stream = accept::secure(tcp, self.tls.as_ref(), &wait, deadline)?;
        let refuse = |stream, status| accept::refuse(stream, &refusal(status), &wait, deadline);
        let refuse_expired = |stream| accept::refuse(stream, &expired(), &wait, deadline);
        let request = match accept::read_request(&mut stream, &wait, deadline) {
            Ok(request) => request,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                self.complain(format_args!("{address}: a request is refused: {e}"));
                return refuse(stream, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            }
            Err(e) => return Err(e),
        };
        let opening = match Opening::parse(&request.head) {
            Ok(opening) => opening,
            Err(status) => {
                let what = match status {
                    StatusCode::NOT_FOUND => "its path is not a path of a tunnel",
                    StatusCode::UPGRADE_REQUIRED => "it does not ask for a WebSocket",
                    _ => "it is not a valid request for a WebSocket",
                };
                self.complain(format_args!("{address}: a request is refused: {status}: {what}"));
                return refuse(stream, status);
            }
        };
        let permit = match self.permit(&opening) {
            Ok(permit) => permit,
            Err((status, why)) => {
                let (tunnel, side) = (opening.tunnel, opening.side);
                self.complain(format_args!(
                    "tunnel {tunnel:?}: {side:?} at {address} is refused: {status}: {why}"
                ));
                return match &*why {
                    EXPIRED => refuse_expired(stream),
                    _ => refuse(stream, status),
                };
            }
        };
        if !handshake.succeeds() {
            return Err(io::Error::other("cut off: it took too long, and others waited"));
        }
        // The hub sends the answer. So when the client sees it, the hub already knows the
        // connection.
        let member = MemberStream { stream, permit };
        let now = Instant::now();
        let mut member = Connection::new(member, Role::Server, &request.rest, gateway::UPKEEP, now);
        member.sender().raw(&opening.answer());
        self.join(&opening, Box::new(member))
    }

    /// Logs a message that any client can cause as often as it likes.
    fn complain(&self, what: std::fmt::Arguments<'_>) {
        if self.limiter.lock().permits(Instant::now()) {
            log::warn!(target: TARGET, "{what}");
        }
    }

    /// Takes a permit for a client that presents the right token.
    ///
    /// # Errors
    /// The HTTP status to answer with, and the reason for the log: 404 if the gateway has no such
    /// tunnel, 401 if the token is wrong or the tunnel has expired, 503 if there is no place left.
    pub(super) fn permit(
        &self,
        opening: &Opening<'_>,
    ) -> std::result::Result<Permit, (StatusCode, String)> {
        let presented = self.digester.of(opening.token);
        let registry = self.registry.lock();
        // Not 401: a device would drop a tunnel that the gateway only does not know yet.
        let unknown = || (StatusCode::NOT_FOUND, "there is no such tunnel".to_owned());
        let entry = registry.tunnels.get(opening.tunnel).ok_or_else(unknown)?;
        let expected = match opening.side {
            Side::Device => &entry.device_token,
            Side::Access => &entry.access_token,
        };
        let unauthorized = |why: &str| Err((StatusCode::UNAUTHORIZED, why.to_owned()));
        if !expected.matches(&presented) {
            return unauthorized("wrong token");
        }
        if entry.is_expired() {
            return unauthorized(EXPIRED);
        }
        let (permits, limit) = match opening.side {
            Side::Device => (&entry.devices, MAX_DEVICE_CONNECTIONS),
            Side::Access => (&entry.accesses, self.settings.access_connections),
        };
        let all = &self.connections;
        let permit = match opening.side {
            Side::Device => permits.replace(limit, all, self.settings.connections),
            Side::Access => permits.take(limit, all, self.settings.connections),
        };
        permit.ok_or_else(|| {
            let all = self.settings.connections;
            let why = format!("the limit of {limit} such connections, or of {all} in all");
            (StatusCode::SERVICE_UNAVAILABLE, why)
        })
    }

    /// Passes a connection to the tunnel's hub. Creates the hub if there is none.
    fn join(
        self: &Arc<Self>,
        opening: &Opening<'_>,
        member: Box<GatewayConnection>,
    ) -> io::Result<()> {
        let mut registry = self.registry.lock();
        let threads = std::mem::take(&mut registry.ended).into_iter();
        let (mut ended, running) = threads.partition::<Vec<_>, _>(JoinHandle::is_finished);
        registry.ended = running;
        registry.hubs_created += 1;
        let serial = registry.hubs_created;
        let Some(entry) = registry.tunnels.get_mut(opening.tunnel) else { return Ok(()) };
        // A hub that panicked is still registered, because it did not remove itself.
        let dead = entry.hub.take_if(|hub| hub.thread.is_finished());
        ended.extend(dead.map(|hub| hub.thread));
        if entry.hub.is_none() {
            let (log, left) = (entry.log.clone(), entry.device_left);
            entry.hub = Some(self.spawn_hub(opening.tunnel, serial, log, left)?);
        }
        entry.order(Order::Join(opening.side, member, entry.expires));
        drop(registry);
        for thread in ended {
            if thread.join().is_err() {
                log::error!(target: TARGET, "a tunnel's thread has panicked");
            }
        }
        Ok(())
    }

    fn spawn_hub(
        self: &Arc<Self>,
        tunnel: &str,
        serial: u64,
        limits: LogLimits,
        device_left: Option<Instant>,
    ) -> io::Result<HubHandle> {
        let waker = Arc::new(Waker::new()?);
        let (orders, receiver) = crossbeam_channel::unbounded();
        let log = TunnelLog { name: tunnel.to_owned(), limits: limits.clone() };
        let mut core = Tunnel::new(self.settings.tunnel, log);
        core.set_device_left(device_left);
        let hub = Hub::new(tunnel.to_owned(), core, limits, receiver, waker.clone());
        let (shared, tunnel) = (self.clone(), tunnel.to_owned());
        let retire = move |orders: &_, left| shared.retire(&tunnel, (serial, left), orders);
        let run = move || hub.run(retire);
        let thread = sys::spawn(thread::Builder::new().name("gateway-hub".into()), run)?;
        Ok(HubHandle { serial, orders, waker, thread })
    }

    /// Removes an idle hub from its tunnel, unless a new order has come. Returns whether the hub
    /// may end.
    fn retire(
        &self,
        tunnel: &str,
        (serial, device_left): (u64, Option<Instant>),
        orders: &Receiver<Order>,
    ) -> bool {
        let mut registry = self.registry.lock();
        if !orders.is_empty() {
            return false;
        }
        let entry = registry.tunnels.get_mut(tunnel);
        let hub = entry.and_then(|entry| {
            let hub = entry.hub.take_if(|hub| hub.serial == serial)?;
            entry.device_left = device_left;
            Some(hub)
        });
        registry.ended.extend(hub.map(|hub| hub.thread));
        true
    }
}

pub(super) fn check_not_empty(token: &Token) -> Result<()> {
    match token.expose() {
        "" => Err(Error::invalid("token", "empty")),
        _ => Ok(()),
    }
}

pub(super) fn check_different(own: &Digest, other: &Digest) -> Result<()> {
    if own.matches(other) {
        return Err(Error::invalid("token", "device side and access side need different tokens"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use super::*;
    use crate::config::TunnelId;
    use crate::gateway::Gateway;

    #[test]
    fn clients_that_wait_leave_descriptors_to_those_whose_turn_it_is() {
        // The usual soft limit, and the usual hard one.
        assert_eq!(most_waiting(1024, 0, 64), 704);
        assert_eq!(most_waiting(1024, 300, 64), 104);
        assert_eq!(most_waiting(1024, 1024, 64), LEAST_WAITING);
        assert_eq!(most_waiting(20_000, 1024, 64), MAX_WAITING);
        assert_eq!(most_waiting(usize::MAX, usize::MAX, usize::MAX), LEAST_WAITING);
    }

    #[test]
    fn a_tunnel_whose_thread_has_panicked_gets_another_with_the_next_connection() {
        let token = |text| Token::new(text).unwrap();
        let id = TunnelId::new("t1").unwrap();
        let tunnel = TunnelConfig::new(id, token("hush-device"), token("hush-access"));
        let gateway = Gateway::builder().tunnel(tunnel);
        let gateway = gateway.start("127.0.0.1:0".parse().unwrap()).unwrap();
        // Simulates a hub whose thread ended without removing itself.
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
            "GET /tunnel/t1/dest HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       tunnel-access-token: hush-device\r\n\r\n";
        device.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 13];
        device.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101 ");
    }
}
