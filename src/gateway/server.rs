//! The state that all threads of the gateway share: the tokens that admit clients, and the hubs
//! that serve the tunnels.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime};

use aiot_tunnel_proto::connection::Connection;
use aiot_tunnel_proto::gateway::{self, Tunnel};
use aiot_tunnel_proto::handshake::server::{expired, refusal, Opening};
use aiot_tunnel_proto::handshake::StatusCode;
use aiot_tunnel_proto::proxies::{Proxies, Source};
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::{LogLimiter, Side};
use crossbeam_channel::{Receiver, Sender};
use openssl::ssl::SslAcceptor;
use parking_lot::Mutex;

use super::activity::{Activity, Record};
use super::admission::{Handshake, Handshakes, Next, Permit, Permits, MAX_WAITING};
use super::audit::{Audit, AuditEvent, Refusal, Way};
use super::front::{client_of_request, has_header, read_header, Client, Header, NoHeader};
use super::hub::{Hub, Order};
use super::log::{LogLimits, TunnelLog};
use super::pipe::PipeEnd;
use super::published::{Origins, Publisher, Why};
use super::tokens::{TokenDigest, TokenKey};
use super::{MemberEnd, MemberStream, Settings, StoredTunnel, TunnelConfig, ACCEPT_PAUSE, TARGET};
use crate::config::{Token, TunnelId};
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

/// Why a client is not admitted.
const NO_TUNNEL: &str = "there is no such tunnel";
const EXPIRED: &str = "the tunnel has expired";
const SUSPENDED: &str = "the store of the tunnel has been away for too long";

#[derive(Default)]
pub(super) struct Registry {
    pub(super) tunnels: HashMap<String, Entry>,
    /// The threads of hubs that have ended or are about to end. They are still to be joined.
    pub(super) ended: Vec<JoinHandle<()>>,
    pub(super) hubs_created: u64,
    /// The gateway stops: there are no more hubs.
    pub(super) is_closed: bool,
    /// Of [`Keys`]: counted for all tunnels, because one may be removed and added again.
    keys_given: u64,
}

impl Registry {
    fn key(&mut self, token: TokenDigest) -> Key {
        self.keys_given += 1;
        Key { token, serial: self.keys_given }
    }
}

/// What opens one side of a tunnel.
#[derive(Clone, Copy)]
pub(super) struct Key {
    pub(super) token: TokenDigest,
    /// Differs from that of every other key. A client whose key was replaced during its handshake is not
    /// admitted.
    serial: u64,
}

pub(super) struct Entry {
    pub(super) id: TunnelId,
    pub(super) device: Key,
    pub(super) access: Key,
    pub(super) expires: Option<Instant>,
    /// The same, on the system's clock.
    expires_at: Option<SystemTime>,
    /// Nobody knows whether the tokens are still valid.
    pub(super) is_suspended: bool,
    activity: Arc<Record>,
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

    fn key(&self, side: Side) -> &Key {
        match side {
            Side::Device => &self.device,
            Side::Access => &self.access,
        }
    }

    pub(super) fn expire(&mut self) {
        (self.expires, self.expires_at) = (Some(Instant::now()), Some(SystemTime::now()));
        self.order(Order::ExpireAt(self.expires));
    }

    fn activity(&self) -> Activity {
        self.activity.activity(self.id.clone(), self.expires_at, self.is_expired())
    }
}

pub(super) struct Shared {
    pub(super) tls: Mutex<Option<SslAcceptor>>,
    pub(super) settings: Mutex<Settings>,
    /// The proxies in front of the listener.
    pub(super) proxies: Mutex<Arc<Proxies>>,
    pub(super) token_key: TokenKey,
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
    pub(super) audit: Audit,
}

impl Shared {
    /// Serves a tunnel, or changes it. With `revokes`, connections whose token has changed are closed.
    pub(super) fn put(&self, tunnel: &StoredTunnel, revokes: bool) -> Result<()> {
        // An access token must never open the device's end.
        check_different(&tunnel.device_token, &tunnel.access_token)?;
        check_id(&tunnel.id)?;
        let expires = super::deadline(tunnel.expires);
        let mut registry = self.registry.lock();
        let device = registry.key(tunnel.device_token);
        let access = registry.key(tunnel.access_token);
        let id = tunnel.id.as_str().to_owned();
        let entry = registry.tunnels.entry(id).or_insert_with(|| Entry {
            id: tunnel.id.clone(),
            device,
            access,
            expires,
            expires_at: tunnel.expires,
            is_suspended: false,
            activity: Arc::default(),
            hub: None,
            device_left: None,
            log: LogLimits::default(),
            devices: Permits::default(),
            accesses: Permits::default(),
        });
        // The access side first: it is told that its token is no longer valid, not that the device is lost.
        for (side, new) in [(Side::Access, access), (Side::Device, device)] {
            if entry.key(side).token != new.token {
                match side {
                    Side::Device => entry.device = new,
                    Side::Access => entry.access = new,
                }
                if revokes {
                    entry.order(Order::Revoke(side));
                }
            }
        }
        (entry.expires, entry.expires_at) = (expires, tunnel.expires);
        entry.is_suspended = false;
        entry.order(Order::ExpireAt(entry.expires));
        Ok(())
    }

    /// The tunnel with the digests of its tokens.
    pub(super) fn stored(&self, config: &TunnelConfig) -> Result<StoredTunnel> {
        // A missing token must never open either end.
        check_not_empty(&config.device_token)?;
        check_not_empty(&config.access_token)?;
        Ok(StoredTunnel {
            id: config.id.clone(),
            device_token: self.token_key.digest(&config.device_token),
            access_token: self.token_key.digest(&config.access_token),
            expires: config.expires,
        })
    }

    pub(super) fn set_token(&self, id: &TunnelId, side: Side, token: TokenDigest) -> Result<()> {
        let mut registry = self.registry.lock();
        let new = registry.key(token);
        let unknown = || Error::UnknownTunnel(id.clone());
        let entry = registry.tunnels.get_mut(id.as_str()).ok_or_else(unknown)?;
        check_different(&token, &entry.key(side.other()).token)?;
        match side {
            Side::Device => entry.device = new,
            Side::Access => entry.access = new,
        }
        Ok(())
    }

    pub(super) fn activity(&self, id: &TunnelId) -> Option<Activity> {
        self.registry.lock().tunnels.get(id.as_str()).map(Entry::activity)
    }

    pub(super) fn activities(&self) -> Vec<Activity> {
        self.registry.lock().tunnels.values().map(Entry::activity).collect()
    }

    /// How many descriptors clients that wait do not take: those whose turn it is need more.
    fn reserve(&self) -> usize {
        (2 * self.settings().handshakes).min(self.descriptors / 4)
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
            let audit = self.audit.deadline();
            let deadline = [limiter, audit, next, pause].into_iter().flatten().min();
            if poll(&mut fds, deadline).is_err() || fds[0].ready().read {
                break;
            }
            if fds[1].ready().read {
                self.handshakes.freed.reset();
            }
            let now = Instant::now();
            self.audit.tick(now);
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
                Ok((tcp, from)) => {
                    // The kernel gives the smallest free number, so a large one says that few are left.
                    let is_near = tcp.as_raw_fd() as usize >= self.descriptors - self.reserve();
                    let address = from.into();
                    let header = Header::of(address, &self.proxies());
                    if !self.admit(Client { tcp, address, header }) {
                        // One was dropped, which has freed a descriptor.
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

    pub(super) fn settings(&self) -> Settings {
        *self.settings.lock()
    }

    /// Replaces the limits, for all tunnels.
    pub(super) fn set_settings(&self, settings: Settings) {
        // Under the registry's lock: a hub gets either these or the order.
        let registry = self.registry.lock();
        *self.settings.lock() = settings;
        for entry in registry.tunnels.values() {
            entry.order(Order::Limits(settings.tunnel));
        }
        drop(registry);
        self.handshakes.set_limit(settings.handshakes);
    }

    pub(super) fn proxies(&self) -> Arc<Proxies> {
        self.proxies.lock().clone()
    }

    /// Lets a client wait for a place. Returns whether nobody had to be dropped for it.
    fn admit(&self, client: Client) -> bool {
        let (taken, handshakes) = (self.connections.taken(), self.settings().handshakes);
        let most = most_waiting(self.descriptors, taken, handshakes);
        let dropped = self.handshakes.add(client, most);
        if let Some(address) = dropped {
            self.complain(format_args!("{address}: dropped: too many clients wait"));
        }
        dropped.is_none()
    }

    /// Begins the handshakes for which there are places. Returns when to call this again.
    fn begin_handshakes(self: &Arc<Self>, threads: &mut Vec<JoinHandle<()>>) -> Option<Instant> {
        let now = Instant::now();
        loop {
            match self.handshakes.next(now) {
                Ok(Next::Begin(handshake, client)) => threads.extend(self.begin(handshake, client)),
                Ok(Next::CutOff(address)) => self.complain(format_args!(
                    "{address}: a handshake is cut off: it takes too long, and others wait"
                )),
                Ok(Next::Wait(until)) => return until,
                Err(e) => self.complain(format_args!("begin a handshake: {e}")),
            }
        }
    }

    fn begin(self: &Arc<Self>, handshake: Handshake, client: Client) -> Option<JoinHandle<()>> {
        let shared = self.clone();
        let run = move || {
            let (address, header) = (client.address, client.header);
            let failed = match header {
                Header::Awaited => shared.read_header(client, &handshake),
                _ => shared.handshake(client, &handshake),
            };
            match failed {
                Ok(()) => {}
                // A proxy looks whether the gateway is there, as often as it likes.
                Err(e) if header == Header::Local => {
                    log::debug!(target: TARGET, "{address}: handshake: {e}");
                }
                Err(e) => shared.complain(format_args!("{address}: handshake: {e}")),
            }
        };
        let thread = sys::spawn(thread::Builder::new().name("gateway-shake".into()), run);
        if let Err(e) = &thread {
            self.complain(format_args!("create a handshake thread: {e}"));
        }
        thread.ok()
    }

    /// Reads what a proxy tells in front of a connection. Then the client waits for a place of its own,
    /// so that the proxy's other clients do not count as its neighbours.
    fn read_header(&self, client: Client, handshake: &Handshake) -> io::Result<()> {
        let deadline = Instant::now() + self.settings().handshake_timeout;
        let wait = UntilStopped { stop: &self.stop, lookups: None };
        let Client { tcp, address: proxy, .. } = client;
        let (address, header) = match read_header(&tcp, &wait, deadline) {
            Ok(Source::Client(client)) => (client.into(), Header::Read),
            Ok(Source::Unknown) => (proxy, Header::Unknown),
            Ok(Source::Local) => (proxy, Header::Local),
            Err(NoHeader::Nothing) => {
                log::debug!(target: TARGET, "{proxy}: it closed the connection before its first byte");
                return Ok(());
            }
            Err(NoHeader::Wrong(why)) => {
                self.complain(format_args!("{proxy}: the trusted proxy is refused: {why}"));
                return Ok(());
            }
            Err(NoHeader::Io(e)) => {
                let what = "read the header of the PROXY protocol from a trusted proxy";
                return Err(io::Error::new(e.kind(), format!("{what}: {e}")));
            }
        };
        if handshake.succeeds() {
            self.admit(Client { tcp, address, header });
        }
        Ok(())
    }

    fn handshake(self: &Arc<Self>, client: Client, handshake: &Handshake) -> io::Result<()> {
        let deadline = Instant::now() + self.settings().handshake_timeout;
        let wait = UntilStopped { stop: &self.stop, lookups: None };
        let Client { tcp, mut address, header } = client;
        if header == Header::Refused && has_header(&tcp, &wait, deadline)? {
            self.complain(format_args!(
                "{address}: refused: it sends a header of the PROXY protocol and is not a trusted proxy"
            ));
            return Ok(());
        }
        let tls = self.tls.lock().clone();
        let mut stream = accept::secure(tcp, tls.as_ref(), &wait, deadline)?;
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
        // What has not read the request vouches for nothing in it: what passes on TLS, and a proxy that
        // does not know its client.
        if tls.is_none() && header != Header::Unknown {
            let client = client_of_request(address, &request.head, &self.proxies());
            if client != address {
                handshake.is_of(client);
                address = client;
            }
        }
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
        let (permit, serial) = match self.permit(&opening) {
            Ok(permit) => permit,
            Err((status, reason, why)) => {
                let (tunnel, side) = (opening.tunnel, opening.side);
                self.audit.refused(&AuditEvent::Refused {
                    tunnel,
                    service: None,
                    client: &address.to_string(),
                    way: match side {
                        Side::Device => Way::Device,
                        Side::Access => Way::Access,
                    },
                    reason,
                    why: &why,
                });
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
        let stream = MemberEnd::Network(stream);
        let member = MemberStream { stream, permit, peer: address.to_string() };
        let now = Instant::now();
        let mut member = Connection::new(member, Role::Server, &request.rest, gateway::UPKEEP, now);
        member.sender().raw(&opening.answer());
        let admits = |entry: &Entry| entry.key(opening.side).serial == serial;
        // Without, its token is no longer valid. The answer is not sent, and the next attempt is refused.
        let (side, member) = (opening.side, Box::new(member));
        let order = |expires| Order::Join { side, member, expires, port: None };
        self.join(opening.tunnel, admits, order).map(drop)
    }

    /// Connects a published port to its tunnel's hub, which serves it from then on.
    ///
    /// # Errors
    /// The port, and why there is no connection.
    pub(super) fn attach(
        self: &Arc<Self>,
        tunnel: &TunnelId,
        peer: String,
        stream: PipeEnd,
        origins: Arc<Origins>,
        port: Box<Publisher>,
    ) -> std::result::Result<(), (Box<Publisher>, Why)> {
        // It takes no place of a client.
        let (permits, others) = (Permits::default(), Permits::default());
        let permit = permits.take_anyway(1, &others, 1);
        let member = MemberStream { stream: MemberEnd::Port(stream), permit, peer };
        let member = Connection::new(member, Role::Server, &[], gateway::UPKEEP, Instant::now());
        let mut why = (Refusal::UnknownTunnel, NO_TUNNEL.to_owned());
        let admits = |entry: &Entry| {
            if entry.is_expired() {
                why = (Refusal::Expired, EXPIRED.to_owned());
            } else if entry.is_suspended {
                why = (Refusal::Other, SUSPENDED.to_owned());
            }
            !entry.is_expired() && !entry.is_suspended
        };
        // It stays here if it is not admitted.
        let mut port = Some(port);
        let order = |expires| Order::Join {
            side: Side::Access,
            member: Box::new(member),
            expires,
            port: port.take().map(|port| (port, origins)),
        };
        let joined = self.join(tunnel.as_str(), admits, order);
        let Some(port) = port else { return Ok(()) };
        Err(match joined {
            Err(e) => (port, (Refusal::Other, format!("connect to the tunnel's thread: {e}"))),
            Ok(_) if self.registry.lock().is_closed => {
                (port, (Refusal::Other, "the gateway ends".to_owned()))
            }
            Ok(_) => (port, why),
        })
    }

    /// Takes a permit for a client of a published port.
    pub(super) fn published_permit(&self, clients: &Permits, limit: usize) -> Option<Permit> {
        let _registry = self.registry.lock();
        clients.take(limit, &self.connections, self.settings().connections)
    }

    /// Logs a message that any client can cause as often as it likes.
    pub(super) fn complain(&self, what: std::fmt::Arguments<'_>) {
        if self.limiter.lock().permits(Instant::now()) {
            log::warn!(target: TARGET, "{what}");
        }
    }

    /// Takes a permit for a client that presents the right token. Also returns the number of its key.
    ///
    /// # Errors
    /// The HTTP status to answer with, and the reason for the log: 404 if the gateway has no such
    /// tunnel, 401 if the token is wrong or the tunnel has expired, 503 if there is no
    /// place left or the tunnel is suspended.
    pub(super) fn permit(
        &self,
        opening: &Opening<'_>,
    ) -> std::result::Result<(Permit, u64), (StatusCode, Refusal, String)> {
        let presented = self.token_key.of(opening.token);
        let registry = self.registry.lock();
        // Not 401: a device would drop a tunnel that the gateway only does not know yet.
        let unknown = || (StatusCode::NOT_FOUND, Refusal::UnknownTunnel, NO_TUNNEL.to_owned());
        let entry = registry.tunnels.get(opening.tunnel).ok_or_else(unknown)?;
        let key = entry.key(opening.side);
        let unauthorized =
            |reason, why: &str| Err((StatusCode::UNAUTHORIZED, reason, why.to_owned()));
        if key.token != presented {
            return unauthorized(Refusal::WrongToken, "wrong token");
        }
        if entry.is_expired() {
            return unauthorized(Refusal::Expired, EXPIRED);
        }
        if entry.is_suspended {
            let why = SUSPENDED.to_owned();
            return Err((StatusCode::SERVICE_UNAVAILABLE, Refusal::Other, why));
        }
        let (permits, limit) = match opening.side {
            Side::Device => (&entry.devices, MAX_DEVICE_CONNECTIONS),
            Side::Access => (&entry.accesses, self.settings().access_connections),
        };
        let all = &self.connections;
        let permit = match opening.side {
            Side::Device => permits.replace(limit, all, self.settings().connections),
            Side::Access => permits.take(limit, all, self.settings().connections),
        };
        permit.map(|permit| (permit, key.serial)).ok_or_else(|| {
            let all = self.settings().connections;
            let why = format!("the limit of {limit} such connections, or of {all} in all");
            (StatusCode::SERVICE_UNAVAILABLE, Refusal::Limit, why)
        })
    }

    /// Passes a connection to the tunnel's hub. Creates the hub if there is none. Returns false if there
    /// is no such tunnel or `admits` says so. `order` is told when the tunnel expires.
    fn join(
        self: &Arc<Self>,
        tunnel: &str,
        admits: impl FnOnce(&Entry) -> bool,
        order: impl FnOnce(Option<Instant>) -> Order,
    ) -> io::Result<bool> {
        let mut registry = self.registry.lock();
        if registry.is_closed {
            return Ok(false);
        }
        let threads = std::mem::take(&mut registry.ended).into_iter();
        let (mut ended, running) = threads.partition::<Vec<_>, _>(JoinHandle::is_finished);
        registry.ended = running;
        registry.hubs_created += 1;
        let serial = registry.hubs_created;
        let entry = registry.tunnels.get_mut(tunnel);
        let Some(entry) = entry.filter(|entry| admits(entry)) else { return Ok(false) };
        // A hub that panicked is still registered, because it did not remove itself.
        let dead = entry.hub.take_if(|hub| hub.thread.is_finished());
        ended.extend(dead.map(|hub| hub.thread));
        if entry.hub.is_none() {
            let (log, activity) = (entry.log.clone(), entry.activity.clone());
            let left = entry.device_left;
            entry.hub = Some(self.spawn_hub(tunnel, serial, log, activity, left)?);
        }
        entry.order(order(entry.expires));
        drop(registry);
        for thread in ended {
            if thread.join().is_err() {
                log::error!(target: TARGET, "a tunnel's thread has panicked");
            }
        }
        Ok(true)
    }

    fn spawn_hub(
        self: &Arc<Self>,
        tunnel: &str,
        serial: u64,
        limits: LogLimits,
        activity: Arc<Record>,
        device_left: Option<Instant>,
    ) -> io::Result<HubHandle> {
        let waker = Arc::new(Waker::new()?);
        let (orders, receiver) = crossbeam_channel::unbounded();
        // A hub that has panicked leaves its members behind.
        activity.hub_ended();
        let (limits_of_log, seen) = (limits.clone(), activity.clone());
        let log = TunnelLog::new(tunnel.to_owned(), limits_of_log, seen, self.audit.clone());
        let mut core = Tunnel::new(self.settings().tunnel, log);
        core.set_device_left(device_left);
        let hub = Hub::new(tunnel.to_owned(), core, limits, activity, receiver, waker.clone());
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

/// Checks that a request's path can name a tunnel.
pub(super) fn check_id(id: &TunnelId) -> Result<()> {
    let id = id.as_str();
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#');
    if !id.bytes().all(is_plain) || matches!(id, "." | "..") {
        let why =
            "it cannot be a part of a URL's path: only visible ASCII without '/', '?' and '#' can";
        return Err(Error::invalid("tunnel id", why));
    }
    Ok(())
}

pub(super) fn check_not_empty(token: &Token) -> Result<()> {
    match token.expose() {
        "" => Err(Error::invalid("token", "empty")),
        _ => Ok(()),
    }
}

pub(super) fn check_different(own: &TokenDigest, other: &TokenDigest) -> Result<()> {
    if own == other {
        return Err(Error::invalid("token", "device side and access side need different tokens"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
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
