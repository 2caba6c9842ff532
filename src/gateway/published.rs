//! Published ports: plain TCP clients of the gateway reach a service of a device, without an access
//! process.
//!
//! Each port is an access side of its tunnel. Its connection to the tunnel's hub is a [`pipe`] in this
//! process and needs no token. It is made when a client comes, and closed when there has been none for a
//! while.
//!
//! A port without a connection has a thread of its own, which waits for clients. A port with a connection
//! is away: the hub's thread serves it, so that a client's bytes pass through one thread. Its own thread
//! waits until the hub sends it home.
//!
//! A stream of this process ([`open_session`]) is served in the same way: as a port without a listener,
//! which has one client and ends with it.
//!
//! [`pipe`]: super::pipe

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::{AccessLimits, AccessRelay, AccessSide, Pending};
use aiot_tunnel_proto::connection::{Connection, Upkeep};
use aiot_tunnel_proto::frame::Extensions;
use aiot_tunnel_proto::gateway;
use aiot_tunnel_proto::observer::{Event, Observer};
use aiot_tunnel_proto::proxies;
use aiot_tunnel_proto::relay::RelayLimits;
use aiot_tunnel_proto::session::{Lingering, LocalStream, Session, SessionLimits, WindowLimits};
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::{LogLimiter, Ready};
use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::admission::{Permit, Permits};
use super::audit::{AuditEvent, Refusal, Way};
use super::pipe::{self, PipeEnd};
use super::server::Shared;
use super::{ACCEPT_PAUSE, TARGET};
use crate::config::{Port, Service, TunnelId, FIRST_WINDOW};
use crate::error::{Error, Result};
use crate::net::LocalSocket;
use crate::sys::{self, PollSet, Waker};

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
/// Why sessions end whose port is taken away.
const NOT_PUBLISHED: &str = "the port is no longer published";
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
        check_service_type(service_type)?;
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

/// Checks that the protocol can carry the service type.
fn check_service_type(service_type: &str) -> Result<()> {
    // The same rule holds for a device's services. Host and port do not matter here.
    Service::new(service_type, "localhost", Port::try_from(1)?).map(drop)
}

/// A session between a stream of this process and a service of a device: see
/// [`Gateway::open_session`](super::Gateway::open_session). Dropping it does not end the session; closing
/// the stream does.
#[derive(Debug)]
pub struct LocalSession {
    origin: Arc<Origin>,
}

impl LocalSession {
    /// Why the session has ended, or why there never was one. `None`: it is open or being opened.
    #[must_use]
    pub fn end(&self) -> Option<String> {
        self.origin.end.lock().clone()
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

/// Where a session without an access side of its own comes from.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) address: String,
    pub(super) way: Way,
    has_session: AtomicBool,
    /// Why it has none yet.
    refusal: Mutex<Option<Why>>,
    /// Why it is over.
    end: Mutex<Option<String>>,
}

impl Origin {
    fn new(address: String, way: Way) -> Arc<Self> {
        let has_session = AtomicBool::new(false);
        let (refusal, end) = (Mutex::default(), Mutex::default());
        Arc::new(Origin { address, way, has_session, refusal, end })
    }

    /// The hub has made a session for it, and reports its end.
    pub(super) fn has_session(&self) {
        self.has_session.store(true, Ordering::Relaxed);
    }

    /// The hub has refused a session for now.
    pub(super) fn is_refused(&self, reason: Refusal, why: &str) {
        *self.refusal.lock() = Some((reason, why.to_owned()));
    }

    /// The session has ended, or the device has refused it.
    pub(super) fn has_ended(&self, why: &str) {
        self.end.lock().get_or_insert_with(|| why.to_owned());
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
    /// Such as "the published port 192.0.2.1:22".
    port: String,
    tunnel: TunnelId,
    service_type: Arc<str>,
}

impl Client {
    fn new(
        socket: LocalSocket,
        header: Vec<u8>,
        origin: Arc<Origin>,
        permit: Permit,
        of: &Publisher,
    ) -> Self {
        let (port, shared) = (of.names.clone(), of.shared.clone());
        Client { socket, header, origin, port, shared, _permit: permit }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.origin.has_session.load(Ordering::Relaxed) {
            let why = self.origin.refusal.lock().take();
            let lost = || (Refusal::Other, "the tunnel's connection was lost".to_owned());
            let (reason, why) = why.unwrap_or_else(lost);
            self.origin.has_ended(&why);
            refuse(&self.shared, &self.port, (&self.origin.address, self.origin.way), reason, &why);
        }
    }
}

/// Why a client gets no session.
pub(super) type Why = (Refusal, String);

/// Reports a client that gets no session.
fn refuse(shared: &Shared, names: &Names, (client, way): (&str, Way), reason: Refusal, why: &str) {
    let Names { port, tunnel, service_type } = names;
    shared.complain(format_args!(
        "tunnel {:?}: client {client} of {port} is refused: {why}",
        tunnel.as_str()
    ));
    shared.audit.refused(&AuditEvent::Refused {
        tunnel: tunnel.as_str(),
        service: Some(service_type),
        client,
        way,
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

type PortRelay = AccessRelay<PipeEnd, Client, Quiet>;

/// A published port as the gateway keeps it.
pub(super) struct Publication {
    address: SocketAddr,
    control: Arc<Control>,
    work: Work,
}

enum Work {
    Prepared(Box<Publisher>),
    Started(JoinHandle<Option<TcpListener>>),
}

/// What the gateway tells a port that is at work.
struct Control {
    /// Woken once, to end the port. Never reset.
    end: Waker,
    limits: Mutex<(Duration, usize)>,
}

impl Publication {
    /// # Errors
    /// The listener cannot be made non-blocking, or has no address; there is no descriptor left.
    pub(super) fn prepare(port: PublishedPort, shared: &Arc<Shared>) -> Result<Self> {
        let failed = |e| Error::io("prepare a published port", e);
        let address = port.local_addr().map_err(failed)?;
        let publisher = Publisher::new(port, address, shared.clone()).map_err(failed)?;
        let control = publisher.control.clone();
        Ok(Publication { address, control, work: Work::Prepared(Box::new(publisher)) })
    }

    /// # Errors
    /// Its thread cannot be created.
    pub(super) fn start(mut self) -> Result<Self> {
        if let Work::Prepared(publisher) = self.work {
            let builder = thread::Builder::new().name("gateway-port".into());
            let thread = sys::spawn(builder, || publisher.run())
                .map_err(|e| Error::io("create the thread of a published port", e))?;
            self.work = Work::Started(thread);
        }
        Ok(self)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// For clients from now on.
    pub(super) fn set_limits(&self, queue_timeout: Duration, clients: usize) {
        *self.control.limits.lock() = (queue_timeout, clients);
    }

    /// Ends its sessions, then the thread. Returns the listener.
    pub(super) fn end(self) -> Option<TcpListener> {
        self.control.end.wake();
        self.join()
    }

    /// Waits for the end of the thread.
    pub(super) fn join(self) -> Option<TcpListener> {
        match self.work {
            Work::Prepared(publisher) => publisher.port.listener(),
            Work::Started(thread) => thread.join().ok().flatten(),
        }
    }
}

/// What the clients come from.
enum Source {
    Port(PublishedPort),
    /// One stream, which is there from the beginning.
    Stream,
}

impl Source {
    fn listener(&self) -> Option<TcpListener> {
        match self {
            Source::Port(port) => port.listener.try_clone().ok(),
            Source::Stream => None,
        }
    }
}

/// A published port at work.
pub(super) struct Publisher {
    port: Arc<Source>,
    control: Arc<Control>,
    names: Arc<Names>,
    shared: Arc<Shared>,
    clients: Permits,
    relay: Option<PortRelay>,
    /// The clients that wait for the next connection.
    pending: Vec<Pending<Client>>,
    /// The clients of lost connections that still have bytes to receive.
    lingering: Vec<Lingering<Client>>,
    /// Since when the connection has had no client.
    idle_since: Option<Instant>,
    /// Until when nothing is accepted.
    paused: Option<Instant>,
    /// The port is no longer published.
    is_ended: bool,
    /// The way back to the port's own thread.
    home: Option<Sender<Box<Publisher>>>,
    ready: Vec<Ready>,
}

impl Publisher {
    /// # Errors
    /// The listener cannot be made non-blocking; there is no descriptor left.
    fn new(port: PublishedPort, address: SocketAddr, shared: Arc<Shared>) -> io::Result<Self> {
        port.listener.set_nonblocking(true)?;
        let names = Names {
            port: format!("the published port {address}"),
            tunnel: port.tunnel.clone(),
            service_type: port.service_type.clone(),
        };
        let limits = Mutex::new((port.queue_timeout, port.client_limit));
        let control = Arc::new(Control { end: Waker::new()?, limits });
        let (port, names) = (Arc::new(Source::Port(port)), Arc::new(names));
        Ok(Publisher::begin(port, control, names, shared, Permits::default()))
    }

    /// Asks for a session between a stream and a service of a device. The session does not wait: neither
    /// for a place nor for the device.
    ///
    /// # Errors
    /// The protocol cannot carry the service type; there is no descriptor left.
    pub(super) fn open_session(
        shared: &Arc<Shared>,
        stream: UnixStream,
        (tunnel, service_type): (&TunnelId, &str),
        client: &str,
    ) -> Result<LocalSession> {
        check_service_type(service_type)?;
        let failed = |e| Error::io("prepare a session", e);
        stream.set_nonblocking(true).map_err(failed)?;
        let names = Arc::new(Names {
            port: "a terminal".to_owned(),
            tunnel: tunnel.clone(),
            service_type: service_type.into(),
        });
        let origin = Origin::new(client.to_owned(), Way::Terminal);
        let session = LocalSession { origin: origin.clone() };
        let permits = Permits::default();
        let Some(permit) = shared.published_permit(&permits, 1) else {
            let why = "the gateway has as many connections as it may have";
            origin.has_ended(why);
            refuse(shared, &names, (client, Way::Terminal), Refusal::Limit, why);
            return Ok(session);
        };
        let end = Waker::new().map_err(failed)?;
        let control = Arc::new(Control { end, limits: Mutex::new((Duration::ZERO, 1)) });
        let port = Arc::new(Source::Stream);
        let mut publisher = Publisher::begin(port, control, names, shared.clone(), permits);
        let socket = LocalSocket::Unix(stream);
        publisher.ask(Client::new(socket, Vec::new(), origin, permit, &publisher), None);
        // If there is no connection, dropping the client reports it.
        drop(Box::new(publisher).connect());
        Ok(session)
    }

    fn begin(
        port: Arc<Source>,
        control: Arc<Control>,
        names: Arc<Names>,
        shared: Arc<Shared>,
        clients: Permits,
    ) -> Self {
        Publisher {
            port,
            control,
            names,
            shared,
            clients,
            relay: None,
            pending: Vec::new(),
            lingering: Vec::new(),
            idle_since: None,
            paused: None,
            is_ended: false,
            home: None,
            ready: Vec::new(),
        }
    }

    /// Serves until the gateway stops or the port is ended. Returns the listener.
    fn run(self) -> Option<TcpListener> {
        let mut at_home = Box::new(self);
        let (port, control) = (at_home.port.clone(), at_home.control.clone());
        let (names, shared) = (at_home.names.clone(), at_home.shared.clone());
        let clients = at_home.clients.clone();
        let anew = || {
            let (port, control, names) = (port.clone(), control.clone(), names.clone());
            Publisher::begin(port, control, names, shared.clone(), clients.clone()).into()
        };
        let mut polled = PollSet::default();
        while !at_home.is_ended {
            if !at_home.pending.is_empty() {
                let (home, back) = crossbeam_channel::bounded(1);
                at_home.home = Some(home);
                at_home = match at_home.connect() {
                    // Nothing comes back if the hub's thread has panicked.
                    Ok(()) => back.recv().unwrap_or_else(|_| anew()),
                    Err(stays) => stays,
                };
                continue;
            }
            match at_home.turn(&mut polled, false) {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => {
                    log::error!(target: TARGET, "{}: poll: {e}", names.port);
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
        at_home.stop(&mut polled);
        port.listener()
    }

    /// Gives the clients a moment for their last bytes.
    fn stop(&mut self, polled: &mut PollSet) {
        let begun = Instant::now();
        while begun.elapsed() < LAST_BYTES && !self.lingering.is_empty() {
            if self.turn(polled, true).is_err() {
                return;
            }
        }
    }

    /// At home: waits for something to do and does it. Returns whether the gateway stops; once that is
    /// known (`stopping`), clients are no longer accepted.
    fn turn(&mut self, polled: &mut PollSet, stopping: bool) -> io::Result<bool> {
        let now = Instant::now();
        let shared = self.shared.clone();
        polled.clear();
        polled.push(shared.stop.as_fd(), !stopping, false);
        self.register(polled, now, stopping);
        // Without a client, this is only the time after which it looks again.
        let longest = if stopping { LAST_BYTES / 10 } else { IDLE };
        let ready =
            polled.poll(self.deadline(now).map_or(now + longest, |at| at.min(now + longest)))?;
        let stops = ready[0].read;
        self.serve(&ready[1..], Instant::now(), stops || stopping);
        Ok(stops)
    }

    /// Adds what [`serve`](Self::serve) expects. Returns how many descriptors that is.
    pub(super) fn register(&self, set: &mut PollSet, now: Instant, stopping: bool) -> usize {
        let (is_open, paused) = (!stopping && !self.is_ended, self.paused);
        let accepts = is_open && paused.is_none_or(|until| now >= until);
        let end = self.control.end.as_fd();
        match &*self.port {
            Source::Port(port) => set.push(port.listener.as_fd(), accepts, false),
            Source::Stream => set.push(end, false, false),
        }
        set.push(end, is_open, false);
        let mut count = 2;
        let mut add_lingering = |one: &Lingering<Client>| {
            set.push(one.stream().as_fd(), one.wants_read(), one.wants_write());
            count += 1;
        };
        self.lingering.iter().for_each(&mut add_lingering);
        let Some(relay) = &self.relay else { return count };
        relay.lingering().iter().for_each(&mut add_lingering);
        let wants_local = relay.wants_local();
        for session in relay.sessions() {
            match session.stream() {
                Some(client) => {
                    let reads = wants_local && session.wants_read();
                    set.push(client.as_fd(), reads, session.wants_write());
                }
                None => set.push(end, false, false),
            }
            count += 1;
        }
        count
    }

    /// When [`serve`](Self::serve) has to be called even if no descriptor is ready.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let lingering = self.lingering.iter().map(|one| one.deadline(now));
        let idle = self.idle_since.map(|since| since + self.longest_idle());
        let own = lingering.chain(self.paused).chain(idle);
        let Some(relay) = &self.relay else { return own.min() };
        if self.has_input() || relay.connection().wants_room(now) && self.has_room() {
            return Some(now);
        }
        let wants_local = relay.wants_local();
        if relay.sessions().iter().any(|one| wants_local && has_header(one)) {
            return Some(now);
        }
        own.chain([relay.deadline(now)]).min()
    }

    /// Whether the hub has sent something.
    pub(super) fn has_input(&self) -> bool {
        self.relay.as_ref().is_some_and(|relay| {
            let pipe = relay.connection().transport();
            relay.wants_input() && pipe.is_readable() || relay.watches_end() && pipe.has_ended()
        })
    }

    fn has_room(&self) -> bool {
        self.relay.as_ref().is_some_and(|relay| relay.connection().transport().is_writable())
    }

    /// Does what there is to do. `ready` is what `poll` has reported for the descriptors of
    /// [`register`](Self::register).
    pub(super) fn serve(&mut self, ready: &[Ready], now: Instant, stopping: bool) {
        self.paused = self.paused.filter(|until| now < *until);
        let [has_clients, ends] = [0, 1].map(|at| ready.get(at).is_some_and(|one| one.read));
        if ends && !self.is_ended {
            self.end(now);
        }
        self.exchange(ready, now);
        self.lingering.retain_mut(|lingering| !lingering.step(now, &mut [0; 4096]));
        if has_clients && !stopping && !self.is_ended {
            self.accept();
            if let Some(relay) = &mut self.relay {
                // Its session is asked for at once.
                relay.turn(now, &[]);
            }
        }
        self.close_idle(now);
    }

    /// The port is no longer published: ends the sessions.
    fn end(&mut self, now: Instant) {
        self.is_ended = true;
        for one in self.pending.drain(..) {
            one.stream().origin.is_refused(Refusal::Other, NOT_PUBLISHED);
        }
        if let Some(relay) = self.relay.as_mut().filter(|relay| relay.connection().is_open()) {
            relay.close_gently(NOT_PUBLISHED, now);
        }
    }

    /// Moves bytes between the clients and the hub. `ready` is as for [`serve`](Self::serve), or empty.
    pub(super) fn exchange(&mut self, ready: &[Ready], now: Instant) {
        let (has_input, has_room) = (self.has_input(), self.has_room());
        let Some(relay) = &mut self.relay else { return };
        if has_input && relay.watches_end() {
            relay.connection_mut().hang_up();
        }
        let wants_room = relay.connection().wants_room(now);
        relay.connection_mut().ready(has_input, wants_room && has_room);
        let others = 2 + self.lingering.len() + relay.lingering().len();
        let sessions = relay.sessions().iter().zip(ready.get(others..).unwrap_or_default());
        // A header is there without the client having sent anything.
        self.ready.clear();
        self.ready.extend(sessions.map(|(session, ready)| Ready {
            read: ready.read || has_header(session),
            write: ready.write,
        }));
        relay.turn(now, &self.ready);
    }

    /// Whether the connection to the hub is over, or clients wait for another one.
    pub(super) fn wants_home(&self) -> bool {
        let is_over = |relay: &PortRelay| relay.end().is_some();
        !self.pending.is_empty() || self.relay.as_ref().is_none_or(is_over)
    }

    /// Ends the connection to the hub and goes back to the port's own thread. Sessions are cut; clients
    /// that have none yet wait for the next connection.
    pub(super) fn go_home(mut self: Box<Self>, now: Instant) {
        if let Some(mut relay) = self.relay.take() {
            self.pending.splice(0..0, relay.side_mut().take_pending());
            self.lingering.extend(relay.take_lingering(now));
        }
        self.idle_since = None;
        if let Some(home) = self.home.take() {
            // Its thread waits for it.
            let _ = home.send(self);
        }
    }

    fn accept(&mut self) {
        let source = self.port.clone();
        let Source::Port(port) = &*source else { return };
        for _ in 0..BATCH {
            let accepted = port.listener.accept();
            match accepted.and_then(|(tcp, from)| Ok((sys::beyond_standard(tcp)?, from))) {
                Ok((tcp, from)) => {
                    // What is dropped before it has a session is reset.
                    if let Err((reason, why)) = self.open(port, tcp, from) {
                        let client = from.to_string();
                        let client = (&*client, Way::Published);
                        refuse(&self.shared, &self.names, client, reason, &why);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    self.shared.complain(format_args!("{}: accept: {e}", self.names.port));
                    self.paused = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Asks for a session for a client, or has it wait for a connection to the hub.
    ///
    /// # Errors
    /// Why it gets none.
    fn open(
        &mut self,
        port: &PublishedPort,
        tcp: TcpStream,
        from: SocketAddr,
    ) -> std::result::Result<(), Why> {
        let (queue_timeout, limit) = *self.control.limits.lock();
        let permit = self.shared.published_permit(&self.clients, limit);
        let permit = permit.ok_or_else(|| {
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
        let header = if port.proxy_protocol { proxies::header(from, to) } else { Vec::new() };
        let origin = Origin::new(from.to_string(), Way::Published);
        let client = Client::new(socket, header, origin, permit, self);
        self.ask(client, Some(Instant::now() + queue_timeout));
        Ok(())
    }

    fn ask(&mut self, client: Client, until: Option<Instant>) {
        let pending = Pending::new(client, self.names.service_type.clone(), until);
        match self.relay.as_mut().filter(|relay| relay.connection().is_open()) {
            Some(relay) => relay.open(pending, Instant::now()),
            None => self.pending.push(pending),
        }
        self.idle_since = None;
    }

    /// Connects to the tunnel's hub, which serves the port from then on, and asks for sessions for the
    /// clients that wait.
    ///
    /// # Errors
    /// The port itself, if there is no connection. Its clients are told why.
    fn connect(mut self: Box<Self>) -> std::result::Result<(), Box<Self>> {
        let now = Instant::now();
        let origins = Arc::new(Origins::default());
        let [own, hub] = pipe::pair();
        let mut relay = self.relay(own, origins.clone(), now);
        std::mem::take(&mut self.pending).into_iter().for_each(|one| relay.open(one, now));
        self.relay = Some(relay);
        let (shared, names) = (self.shared.clone(), self.names.clone());
        shared.attach(&names.tunnel, names.port.clone(), hub, origins, self).map_err(
            |(mut port, (reason, why))| {
                if let Some(mut relay) = port.relay.take() {
                    let pending = relay.side_mut().take_pending();
                    pending.iter().for_each(|one| one.stream().origin.is_refused(reason, &why));
                }
                port
            },
        )
    }

    fn relay(&mut self, pipe: PipeEnd, origins: Arc<Origins>, now: Instant) -> PortRelay {
        let connection = Connection::new(pipe, Role::Client, &[], UPKEEP, now);
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
        PortRelay::new(connection, side, limits, Quiet, lingering)
    }

    fn longest_idle(&self) -> Duration {
        match &*self.port {
            Source::Port(_) => IDLE,
            Source::Stream => Duration::ZERO,
        }
    }

    /// Ends a connection that has had no client for a while, or that will have none. The hub ends with its
    /// last connection.
    pub(super) fn close_idle(&mut self, now: Instant) {
        let is_open = |relay: &PortRelay| relay.connection().is_open() && relay.is_idle();
        if !self.relay.as_ref().is_some_and(is_open) {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        if now >= since + self.longest_idle() {
            if let Some(relay) = &mut self.relay {
                relay.close_gently("idle", now);
            }
        }
    }
}

/// Whether a client still has its header in front of it.
fn has_header(session: &Session<Client>) -> bool {
    session.wants_read() && session.stream().is_some_and(|client| !client.header.is_empty())
}
