//! Published ports: plain TCP clients of the gateway reach a service of a device, without an access
//! process.
//!
//! Each port has a thread, which is an access side of its tunnel. Its connection to the tunnel's hub is a
//! pair of sockets in this process and needs no token. It is made when a client comes, and closed when
//! there has been none for a while.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::{AccessLimits, AccessRelay, AccessSide, Pending};
use aiot_tunnel_proto::connection::{Connection, Upkeep};
use aiot_tunnel_proto::frame::Extensions;
use aiot_tunnel_proto::gateway;
use aiot_tunnel_proto::observer::{Event, Observer};
use aiot_tunnel_proto::proxies;
use aiot_tunnel_proto::relay::RelayLimits;
use aiot_tunnel_proto::session::{Lingering, LocalStream, SessionLimits, WindowLimits};
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::{LogLimiter, Ready};
use parking_lot::Mutex;

use super::admission::{Permit, Permits};
use super::audit::{AuditEvent, Refusal, Way};
use super::server::Shared;
use super::{ACCEPT_PAUSE, TARGET};
use crate::config::{Port, Service, TunnelId, FIRST_WINDOW};
use crate::error::Result;
use crate::net::{LocalSocket, Stream};
use crate::sys::{self, PollSet};

/// Size limit of a client's buffer, in bytes.
const SESSION_BUFFER: usize = 256 * 1024;
/// The high-water mark of the connection to the hub, in bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// How long a client may take nothing while its full buffer holds up the others.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a session without half-close goes on after its client has ended its stream, while no byte
/// comes or goes.
const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Most sessions whose first windows are set aside from [`TUNNEL_WINDOW`].
const SESSIONS: u64 = 16;
/// The largest window of a session, and the sum of all windows, in bytes.
const SESSION_WINDOW: u64 = 2 * 1024 * 1024;
const TUNNEL_WINDOW: u64 = 4 * 1024 * 1024;
/// After how long without traffic the kernel probes a client.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long the connection to the hub stays open without a client.
const IDLE: Duration = Duration::from_secs(60);
/// How long the last bytes may take when the gateway stops.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// Clients that are accepted at a time, before the others are served.
const BATCH: usize = 16;

const UPKEEP: Upkeep = Upkeep { high_water: SEND_BUFFER, ..gateway::UPKEEP };

/// A port of the gateway whose connections become sessions of a tunnel. Anybody who reaches the port
/// reaches the service.
#[derive(Debug)]
#[must_use]
pub struct PublishedPort {
    listener: TcpListener,
    tunnel: TunnelId,
    service_type: Arc<str>,
    proxy_protocol: bool,
    queue_timeout: Duration,
    client_limit: usize,
}

impl PublishedPort {
    /// Each connection to `listener` becomes a session of the tunnel's service, such as `_SSH`. The
    /// gateway need not know the tunnel yet. Sets the listener's `SO_LINGER`, so that an accepted
    /// connection ends in a reset if this process dies.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) if the protocol cannot carry the service
    /// type.
    pub fn new(listener: TcpListener, tunnel: TunnelId, service_type: &str) -> Result<Self> {
        // The same rule holds for a device's services. Host and port do not matter here.
        Service::new(service_type, "localhost", Port::try_from(1)?)?;
        sys::reset_on_close(&listener, true);
        Ok(PublishedPort {
            listener,
            tunnel,
            service_type: service_type.into(),
            proxy_protocol: false,
            queue_timeout: Duration::from_secs(30),
            client_limit: 64,
        })
    }

    /// The address on which the port listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Sets whether a session begins with a header of the PROXY protocol, version 2, which tells the
    /// service the addresses of the client and of the port; default false.
    pub fn with_proxy_protocol(mut self, tells: bool) -> Self {
        self.proxy_protocol = tells;
        self
    }

    /// Sets how long a client may wait for a session: while the tunnel has as many as it may have, and
    /// while the device is not connected. Then its connection is reset. Default 30 s.
    pub fn with_queue_timeout(mut self, time: Duration) -> Self {
        self.queue_timeout = time;
        self
    }

    /// Sets how many clients may be connected at once, including those that wait; default 64. One more
    /// is reset.
    pub fn with_client_limit(mut self, limit: usize) -> Self {
        self.client_limit = limit;
        self
    }
}

/// The clients of a port that a session was asked for, by the frame ids of the session_creates. The hub
/// takes them out.
#[derive(Default)]
pub(super) struct Origins(Mutex<HashMap<u64, Arc<Origin>>>);

impl Origins {
    pub(super) fn take(&self, frame_id: u64) -> Option<Arc<Origin>> {
        self.0.lock().remove(&frame_id)
    }
}

/// Where a session of a published port comes from.
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    has_session: AtomicBool,
    /// Why it has none yet.
    refusal: Mutex<Option<Why>>,
}

impl Origin {
    /// The hub has made a session for it, and reports its end.
    pub(super) fn has_session(&self) {
        self.has_session.store(true, Ordering::Relaxed);
    }

    /// The hub has refused a session for now.
    pub(super) fn is_refused(&self, reason: Refusal, why: &str) {
        *self.refusal.lock() = Some((reason, why.to_owned()));
    }
}

/// A client's connection.
struct Client {
    socket: LocalSocket,
    /// What the session begins with.
    header: Vec<u8>,
    origin: Arc<Origin>,
    port: Arc<Names>,
    shared: Arc<Shared>,
    _permit: Permit,
}

/// How a port is named in the log.
struct Names {
    address: SocketAddr,
    tunnel: TunnelId,
    service_type: Arc<str>,
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.origin.has_session.load(Ordering::Relaxed) {
            let why = self.origin.refusal.lock().take();
            let lost = || (Refusal::Other, "the tunnel's connection was lost".to_owned());
            let (reason, why) = why.unwrap_or_else(lost);
            refuse(&self.shared, &self.port, self.origin.address, reason, &why);
        }
    }
}

/// Why a client gets no session.
type Why = (Refusal, String);

/// Reports a client that gets no session.
fn refuse(shared: &Shared, port: &Names, client: SocketAddr, reason: Refusal, why: &str) {
    let Names { address, tunnel, service_type } = port;
    shared.complain(format_args!(
        "tunnel {:?}: client {client} of the published port {address} is refused: {why}",
        tunnel.as_str()
    ));
    shared.audit.refused(&AuditEvent::Refused {
        tunnel: tunnel.as_str(),
        service: Some(service_type),
        client: &client.to_string(),
        way: Way::Published,
        reason,
        why,
    });
}

impl LocalStream for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.header.is_empty() {
            return self.socket.read(buffer);
        }
        let length = self.header.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.header[..length]);
        self.header.drain(..length);
        Ok(length)
    }
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.socket.write(slices)
    }
    fn shut_down(&mut self) {
        self.socket.shut_down();
    }
    fn reset_on_close(&mut self, resets: bool) {
        self.socket.reset_on_close(resets);
    }
    fn unacked(&self) -> usize {
        self.socket.unacked()
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The failures of sessions stand in the hub's log, with the client's address.
struct Quiet;

impl Observer for Quiet {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Dropped(what) = event {
            log::warn!(target: TARGET, "{what}");
        }
    }
}

type PortRelay = AccessRelay<Stream, Client, Quiet>;

/// A published port at work.
pub(super) struct Publisher {
    port: PublishedPort,
    names: Arc<Names>,
    shared: Arc<Shared>,
    clients: Permits,
    relay: Option<PortRelay>,
    /// The clients of lost connections that still have bytes to receive.
    lingering: Vec<Lingering<Client>>,
    /// Since when the connection has had no client.
    idle_since: Option<Instant>,
    /// Until when nothing is accepted.
    paused: Option<Instant>,
    polled: PollSet,
}

impl Publisher {
    /// # Errors
    /// The listener cannot be made non-blocking, or has no address.
    pub(super) fn new(port: PublishedPort, shared: Arc<Shared>) -> io::Result<Self> {
        port.listener.set_nonblocking(true)?;
        let names = Names {
            address: port.listener.local_addr()?,
            tunnel: port.tunnel.clone(),
            service_type: port.service_type.clone(),
        };
        Ok(Publisher {
            port,
            names: Arc::new(names),
            shared,
            clients: Permits::default(),
            relay: None,
            lingering: Vec::new(),
            idle_since: None,
            paused: None,
            polled: PollSet::default(),
        })
    }

    /// Serves until the gateway stops.
    pub(super) fn run(mut self) {
        loop {
            match self.turn(false) {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => {
                    log::error!(target: TARGET, "published port {}: poll: {e}", self.names.address);
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
            let now = Instant::now();
            self.replace_lost(now);
            self.close_idle(now);
        }
        self.stop();
    }

    /// Waits until the hub, which stops too, has ended the connection; then gives the clients a moment for
    /// their last bytes.
    fn stop(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < LAST_BYTES {
            let now = Instant::now();
            if self.relay.as_ref().is_some_and(|relay| relay.end().is_some()) {
                self.lose(now);
            }
            let is_over = self.relay.is_none() && self.lingering.is_empty();
            if is_over || self.turn(true).is_err() {
                return;
            }
        }
    }

    /// Waits for something to do and does it. Returns whether the gateway stops; once that is known
    /// (`stopping`), clients are no longer accepted.
    fn turn(&mut self, stopping: bool) -> io::Result<bool> {
        let now = Instant::now();
        self.paused = self.paused.filter(|until| now < *until);
        let set = &mut self.polled;
        set.clear();
        set.push(self.shared.stop.as_fd(), !stopping, false);
        let accepts = !stopping && self.paused.is_none();
        set.push(self.port.listener.as_fd(), accepts, false);
        for lingering in &self.lingering {
            let (read, write) = (lingering.wants_read(), lingering.wants_write());
            set.push(lingering.stream().as_fd(), read, write);
        }
        let from = 2 + self.lingering.len();
        // Without a connection and clients, this is only the time after which it looks again.
        let mut deadline = now + IDLE;
        if stopping {
            deadline = now + LAST_BYTES / 10;
        }
        let mut wants_input = false;
        let mut has_header = false;
        if let Some(relay) = &self.relay {
            wants_input = relay.wants_input();
            let (wants_local, hub) = (relay.wants_local(), relay.connection().transport().as_fd());
            let wants_room = relay.connection().wants_room(now);
            match relay.watches_end() {
                true => set.push_until_closed(hub, wants_room),
                false => set.push(hub, wants_input, wants_room),
            }
            for session in relay.sessions() {
                let Some(client) = session.stream() else {
                    set.push(self.shared.stop.as_fd(), false, false);
                    continue;
                };
                let reads = wants_local && session.wants_read();
                has_header |= reads && !client.header.is_empty();
                set.push(client.as_fd(), reads, session.wants_write());
            }
            for lingering in relay.lingering() {
                let (read, write) = (lingering.wants_read(), lingering.wants_write());
                set.push(lingering.stream().as_fd(), read, write);
            }
            deadline = deadline.min(relay.deadline(now));
        }
        let lingering = self.lingering.iter().map(|one| one.deadline(now));
        let deadline = lingering.chain(self.paused).fold(deadline, Instant::min);
        let ready = set.poll(if has_header { now } else { deadline })?;
        let (stops, has_clients) = (ready[0].read, ready[1].read);
        let now = Instant::now();
        if let Some(relay) = &mut self.relay {
            let hub = ready[from];
            if relay.watches_end() && hub.read {
                relay.connection_mut().hang_up();
            }
            relay.connection_mut().ready(wants_input && hub.read, hub.write);
            let sessions = relay.sessions().iter().zip(&ready[from + 1..]);
            // A header is there without the client having sent anything.
            let is_ready = |(session, ready): (&Box<_>, &Ready)| {
                let session: &aiot_tunnel_proto::session::Session<Client> = session;
                let has_header = session.stream().is_some_and(|one| !one.header.is_empty());
                Ready { read: ready.read || has_header && session.wants_read(), ..*ready }
            };
            let ready: Vec<Ready> = sessions.map(is_ready).collect();
            relay.turn(now, &ready);
        }
        self.lingering.retain_mut(|lingering| !lingering.step(now, &mut [0; 4096]));
        if has_clients && !stops && !stopping {
            self.accept();
        }
        Ok(stops)
    }

    fn accept(&mut self) {
        for _ in 0..BATCH {
            let accepted = self.port.listener.accept();
            match accepted.and_then(|(tcp, from)| Ok((sys::beyond_standard(tcp)?, from))) {
                Ok((tcp, from)) => {
                    // What is dropped before it has a session is reset.
                    if let Err((reason, why)) = self.open(tcp, from) {
                        refuse(&self.shared, &self.names, from, reason, &why);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    let address = self.names.address;
                    self.shared.complain(format_args!("published port {address}: accept: {e}"));
                    self.paused = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Asks for a session for a client.
    ///
    /// # Errors
    /// Why it gets none.
    fn open(&mut self, tcp: TcpStream, from: SocketAddr) -> std::result::Result<(), Why> {
        let permit = self.shared.published_permit(&self.clients, self.port.client_limit);
        let permit = permit.ok_or_else(|| {
            let limit = self.port.client_limit;
            let why =
                format!("the limit of {limit} clients of the port, or that of connections in all");
            (Refusal::Limit, why)
        })?;
        let prepared = tcp.set_nonblocking(true).and_then(|()| tcp.set_nodelay(true));
        let to = prepared
            .and_then(|()| tcp.local_addr())
            .map_err(|e| (Refusal::Other, e.to_string()))?;
        let socket = LocalSocket::Tcp(tcp);
        socket.keep_alive(Some(KEEPALIVE));
        let header = if self.port.proxy_protocol { proxies::header(from, to) } else { Vec::new() };
        self.connect()?;
        let origin = Origin {
            address: from,
            has_session: AtomicBool::new(false),
            refusal: Mutex::new(None),
        };
        let client = Client {
            socket,
            header,
            origin: Arc::new(origin),
            port: self.names.clone(),
            shared: self.shared.clone(),
            _permit: permit,
        };
        let now = Instant::now();
        let until = Some(now + self.port.queue_timeout);
        if let Some(relay) = &mut self.relay {
            relay.open(Pending::new(client, self.port.service_type.clone(), until), now);
        }
        self.idle_since = None;
        Ok(())
    }

    /// Connects to the tunnel's hub, unless it is connected. Clients of the former connection that have
    /// no session yet ask again.
    ///
    /// # Errors
    /// Why it cannot connect.
    fn connect(&mut self) -> std::result::Result<(), Why> {
        if self.relay.as_ref().is_some_and(|relay| relay.connection().is_open()) {
            return Ok(());
        }
        let now = Instant::now();
        let pending = self.lose(now);
        let mut relay = self.attach(now).inspect_err(|(reason, why)| {
            pending.iter().for_each(|one| one.stream().origin.is_refused(*reason, why));
        })?;
        pending.into_iter().for_each(|one| relay.open(one, now));
        self.relay = Some(relay);
        Ok(())
    }

    fn attach(&mut self, now: Instant) -> std::result::Result<PortRelay, Why> {
        let origins = Arc::new(Origins::default());
        let name = format!("the published port {}", self.names.address);
        let stream = self.shared.attach(&self.port.tunnel, name, origins.clone())?;
        let connection = Connection::new(stream, Role::Client, &[], UPKEEP, now);
        let mut side = AccessSide::new(AccessLimits { extensions: Extensions::ALL }, now);
        side.tell_of_requests(Box::new(move |frame_id, client: &Client| {
            origins.0.lock().insert(frame_id, client.origin.clone());
        }));
        let session = SessionLimits {
            session_buffer: SESSION_BUFFER,
            stall_timeout: Some(STALL_TIMEOUT),
            half_close_timeout: Some(HALF_CLOSE_TIMEOUT),
            idle_timeout: None,
            window: WindowLimits {
                first: FIRST_WINDOW,
                session: SESSION_WINDOW,
                growth: TUNNEL_WINDOW - SESSIONS * FIRST_WINDOW,
            },
        };
        let limits = RelayLimits { session, log_window: LogLimiter::WINDOW };
        let lingering = std::mem::take(&mut self.lingering);
        Ok(PortRelay::new(connection, side, limits, Quiet, lingering))
    }

    /// Drops a connection that has ended. Its sessions are cut; clients that have none yet wait for the
    /// next connection.
    fn replace_lost(&mut self, now: Instant) {
        let Some(relay) = self.relay.as_ref().filter(|relay| relay.end().is_some()) else { return };
        if relay.side().is_opening() {
            // The clients themselves report an error.
            let _ = self.connect();
        } else {
            self.lose(now);
        }
    }

    fn lose(&mut self, now: Instant) -> Vec<Pending<Client>> {
        let Some(mut relay) = self.relay.take() else { return Vec::new() };
        let pending = relay.side_mut().take_pending();
        self.lingering.extend(relay.take_lingering(now));
        pending
    }

    /// Ends a connection that has had no client for a while. The hub ends with its last connection.
    fn close_idle(&mut self, now: Instant) {
        if self.relay.as_ref().is_none_or(|relay| !relay.is_idle()) {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        if now >= since + IDLE {
            if let Some(relay) = &mut self.relay {
                relay.close_gently("idle", now);
            }
        }
    }
}
