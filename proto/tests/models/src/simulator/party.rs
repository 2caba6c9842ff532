//! The device and the access sides: what their threads do around the state machines.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::{AccessLimits, AccessRelay, AccessSide, Pending};
use aiot_tunnel_proto::connection::{Connection, Ping, Upkeep};
use aiot_tunnel_proto::device::{Connect, DeviceLimits, DeviceRelay, DeviceSide, DialError};
use aiot_tunnel_proto::frame::{reason, Extensions};
use aiot_tunnel_proto::gateway::UPKEEP;
use aiot_tunnel_proto::relay::{Relay, RelayLimits, RelaySide};
use aiot_tunnel_proto::session::{Lingering, SessionLimits, WindowLimits};
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::Ready;

use super::program::{Program, ProgramStream, Script, SharedProgram};
use super::wire::{Clock, LinkEnd};

const RETRY: Duration = Duration::from_secs(1);
/// What may wait for one local stream.
const MAX_WINDOW: usize = 2 * 1024 * 1024 + 64 * 1024;
const MAX_SEND: usize = 2 * 128 * 1024 + 64 * 1024;

fn upkeep(high_water: usize) -> Upkeep {
    Upkeep { ping: Ping::Every(Duration::from_secs(20)), high_water, ..UPKEEP }
}

fn limits(half_close_timeout: Option<Duration>) -> RelayLimits {
    let session = SessionLimits {
        session_buffer: 256 * 1024,
        stall_timeout: Some(Duration::from_secs(10)),
        half_close_timeout,
        idle_timeout: None,
        window: WindowLimits { first: 64 * 1024, session: 2 << 20, growth: 3 << 20 },
    };
    RelayLimits { session, log_window: Duration::from_secs(20) }
}

/// What `poll` would report for a relay: for its connection and for its sessions.
fn poll<D: RelaySide<Stream = ProgramStream>>(
    relay: &Relay<LinkEnd, D, ()>,
    now: Instant,
) -> (Ready, Vec<Ready>, bool) {
    let (wants_input, wants_local) = (relay.wants_input(), relay.wants_local());
    let transport = relay.connection().transport();
    let connection = Ready {
        read: wants_input && transport.is_readable(),
        write: relay.connection().wants_room(now) && transport.is_writable(),
    };
    let sessions = relay.sessions().iter().map(|session| {
        let stream = session.stream();
        stream.map_or(Ready::default(), |stream| Ready {
            read: wants_local && session.wants_read() && stream.is_readable(),
            write: session.wants_write() && stream.is_writable(),
        })
    });
    (connection, sessions.collect(), !wants_input && transport.is_closed())
}

/// Does a turn if there is something to do.
fn turn<D: RelaySide<Stream = ProgramStream>>(
    relay: &mut Relay<LinkEnd, D, ()>,
    now: Instant,
) -> bool {
    let (connection, sessions, hung_up) = poll(relay, now);
    let lingers = relay.lingering().iter().any(is_ready);
    let is_quiet = sessions.iter().chain([&connection]).all(|ready| *ready == Ready::default());
    if is_quiet && !hung_up && !lingers && relay.deadline(now) > now {
        return false;
    }
    relay.connection_mut().ready(connection.read, connection.write);
    if hung_up {
        relay.connection_mut().hang_up();
    }
    relay.turn(now, &sessions);
    for session in relay.sessions() {
        assert!(session.waiting() <= MAX_WINDOW, "{} bytes wait", session.waiting());
    }
    let is_due = relay.deadline(now) <= now;
    let left = relay.sessions().iter().filter(|session| session.is_finished()).count();
    let waits = left > 0 && D::RELEASES_FINISHED && !is_due;
    assert!(!waits, "{left} finished sessions wait for the next event");
    let waiting = relay.connection().waiting();
    assert!(waiting <= MAX_SEND, "{waiting} bytes wait for the gateway");
    true
}

fn is_ready(lingering: &Lingering<ProgramStream>) -> bool {
    let stream = lingering.stream();
    lingering.wants_read() && stream.is_readable()
        || lingering.wants_write() && stream.is_writable()
}

/// The streams of lost connections.
#[derive(Default)]
struct Lingerers(Vec<Lingering<ProgramStream>>);

impl Lingerers {
    fn step(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain_mut(|lingering| !lingering.step(now, &mut [0; 4096]));
        self.0.len() < before
    }

    fn next_event(&self, now: Instant) -> Option<Instant> {
        self.0.iter().map(|lingering| lingering.deadline(now)).min()
    }
}

/// What a service does, the salts of its bytes, and the programs that it became.
type ServiceScript = (Script, (u64, u64), Rc<RefCell<Vec<SharedProgram>>>);

struct ServiceTable {
    scripts: HashMap<String, ServiceScript>,
    clock: Clock,
}

/// The services of the device, one for each client.
#[derive(Clone)]
pub(super) struct Services(Rc<RefCell<ServiceTable>>);

impl Services {
    pub(super) fn new(clock: Clock) -> Self {
        Services(Rc::new(RefCell::new(ServiceTable { scripts: HashMap::new(), clock })))
    }

    /// Adds the service of the next client. Returns the list of its programs, one a session.
    pub(super) fn add(&self, script: Script, salts: (u64, u64)) -> Rc<RefCell<Vec<SharedProgram>>> {
        let programs = Rc::new(RefCell::new(Vec::new()));
        let table = &mut self.0.borrow_mut().scripts;
        let name = format!("c{}", table.len());
        table.insert(name, (script, salts, programs.clone()));
        programs
    }
}

impl Connect for Services {
    type Dial = SharedProgram;
    type Stream = ProgramStream;

    fn dial(&mut self, service_type: &str) -> Result<SharedProgram, DialError> {
        let table = self.0.borrow();
        let (script, salts, programs) =
            table.scripts.get(service_type).ok_or(DialError::NoService)?;
        let program = Program::new(script.clone(), *salts, table.clock.get());
        programs.borrow_mut().push(program.clone());
        Ok(program)
    }

    fn step(&mut self, dial: &mut SharedProgram, _: bool) -> Option<io::Result<ProgramStream>> {
        Some(Ok(ProgramStream::new(dial.clone())))
    }

    fn address(&self, service_type: &str) -> String {
        service_type.to_owned()
    }
}

/// The device.
pub(super) struct Device {
    services: Services,
    relay: Option<DeviceRelay<LinkEnd, Services, ()>>,
    lingering: Lingerers,
    connect_at: Instant,
}

impl Device {
    pub(super) fn new(services: Services, now: Instant) -> Self {
        Device { services, relay: None, lingering: Lingerers::default(), connect_at: now }
    }

    pub(super) fn wants_connection(&self, now: Instant) -> bool {
        self.relay.is_none() && now >= self.connect_at
    }

    pub(super) fn connects(&mut self, end: LinkEnd, now: Instant) {
        let connection = Connection::new(end, Role::Client, b"", upkeep(128 * 1024), now);
        let limits_of_side =
            DeviceLimits { max_sessions: 32, connect_timeout: Duration::from_secs(5) };
        let side = DeviceSide::new(self.services.clone(), limits_of_side);
        let lingering = std::mem::take(&mut self.lingering.0);
        self.relay = Some(DeviceRelay::new(connection, side, limits(None), (), lingering));
    }

    /// Its process is killed: everything it holds is closed at once.
    pub(super) fn is_killed(&mut self, back_at: Instant) {
        self.relay = None;
        self.lingering = Lingerers::default();
        self.connect_at = back_at;
    }

    /// The tunnel gets other connection data.
    pub(super) fn is_directed(&mut self, now: Instant) {
        if let Some(mut relay) = self.relay.take() {
            relay.close(reason::TUNNEL_CLOSED, now);
            self.lingering = Lingerers(relay.into_lingering(now));
            self.connect_at = now;
        }
    }

    pub(super) fn work(&mut self, now: Instant) -> bool {
        let Some(relay) = &mut self.relay else { return self.lingering.step(now) };
        let worked = turn(relay, now);
        if let Some(relay) = self.relay.take_if(|relay| relay.end().is_some()) {
            self.lingering = Lingerers(relay.into_lingering(now));
            self.connect_at = now + RETRY;
        }
        worked
    }

    pub(super) fn next_event(&self, now: Instant, has_gateway: bool) -> Option<Instant> {
        match &self.relay {
            Some(relay) => Some(relay.deadline(now)),
            None if has_gateway => {
                self.lingering.next_event(now).into_iter().chain([self.connect_at]).min()
            }
            None => self.lingering.next_event(now),
        }
    }
}

/// One access side.
pub(super) struct Access {
    extensions: bool,
    relay: Option<AccessRelay<LinkEnd, ProgramStream, ()>>,
    /// Local streams without a session, while there is no connection.
    waiting: Vec<Pending<ProgramStream>>,
    lingering: Lingerers,
    connect_at: Instant,
}

impl Access {
    pub(super) fn new(extensions: bool, now: Instant) -> Self {
        let lingering = Lingerers::default();
        Access { extensions, relay: None, waiting: Vec::new(), lingering, connect_at: now }
    }

    pub(super) fn offer(&mut self, pending: Pending<ProgramStream>) {
        self.waiting.push(pending);
    }

    pub(super) fn wants_connection(&self, now: Instant) -> bool {
        self.relay.is_none() && now >= self.connect_at
    }

    pub(super) fn connects(&mut self, end: LinkEnd, now: Instant) {
        let connection = Connection::new(end, Role::Client, b"", upkeep(64 * 1024), now);
        let extensions = if self.extensions { Extensions::ALL } else { Extensions::NONE };
        let side = AccessSide::new(AccessLimits { extensions }, now);
        let limits = limits(Some(Duration::from_secs(60)));
        let lingering = std::mem::take(&mut self.lingering.0);
        self.relay = Some(AccessRelay::new(connection, side, limits, (), lingering));
    }

    pub(super) fn is_killed(&mut self, back_at: Instant) {
        self.relay = None;
        self.waiting.clear();
        self.lingering = Lingerers::default();
        self.connect_at = back_at;
    }

    pub(super) fn work(&mut self, now: Instant) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|pending| !pending.is_late(now));
        let mut worked = self.waiting.len() < before;
        let Some(relay) = &mut self.relay else { return worked | self.lingering.step(now) };
        for pending in self.waiting.drain(..) {
            relay.open(pending, now);
            worked = true;
        }
        worked |= turn(relay, now);
        if let Some(mut relay) = self.relay.take_if(|relay| relay.end().is_some()) {
            self.waiting = relay.side_mut().take_pending();
            self.lingering = Lingerers(relay.into_lingering(now));
            self.connect_at = now + RETRY;
        }
        worked
    }

    pub(super) fn next_event(&self, now: Instant, has_gateway: bool) -> Option<Instant> {
        if let Some(relay) = &self.relay {
            return Some(relay.deadline(now));
        }
        let late = self.waiting.iter().filter_map(Pending::until);
        let connect_at = has_gateway.then_some(self.connect_at);
        late.chain(self.lingering.next_event(now)).chain(connect_at).min()
    }
}
