//! A relay whose cloud and local services are in memory and cost next to nothing.

use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::connection::{Connection, Ping, Transport, Upkeep};
use aiot_tunnel_proto::device::{Connect, DeviceLimits, DeviceRelay, DeviceSide, DialError};
use aiot_tunnel_proto::relay::RelayLimits;
use aiot_tunnel_proto::session::{LocalStream, SessionLimits, WindowLimits};
use aiot_tunnel_proto::websocket::{Role, Sender};
use aiot_tunnel_proto::Ready;

/// The default times and limits of the library.
const UPKEEP: Upkeep = Upkeep {
    ping: Ping::Every(Duration::from_secs(20)),
    silence_limit: Duration::from_secs(60),
    shrink_interval: Duration::from_secs(20),
    high_water: 128 * 1024,
    flood_limit: usize::MAX,
};
const LIMITS: RelayLimits = RelayLimits {
    session: SessionLimits {
        session_buffer: 256 * 1024,
        stall_timeout: Some(Duration::from_secs(10)),
        half_close_timeout: None,
        idle_timeout: None,
        window: WindowLimits { first: 64 * 1024, session: 2 << 20, growth: 3 << 20 },
    },
    log_window: Duration::from_secs(20),
};
const DEVICE_LIMITS: DeviceLimits =
    DeviceLimits { max_sessions: 10, connect_timeout: Duration::from_secs(5) };

/// The number of turns until every buffer has its final size.
const BUFFERS_GROW: usize = 16;

/// The id of session number `n`.
fn session(n: usize) -> String {
    format!("0f8c8a1e5d9b4c6fa1b2c3d4e5f6071{n}")
}

/// Data frames as the cloud sends them: the sessions take turns, each frame has `payload` bytes,
/// and there are as many as fit into `room` bytes.
pub(crate) fn wire(room: usize, payload: usize, sessions: usize) -> Vec<u8> {
    let (mut sender, mut wire) = (Sender::new(Role::Server), Vec::new());
    for n in 0.. {
        let id = session(n % sessions);
        let header = format!(r#"{{"frame_type":4,"session_id":"{id}","frame_id":{}}}"#, 100 + n);
        put(&mut sender, &header, payload);
        if wire.len() + sender.len() > room {
            break;
        }
        sender.flush(&mut wire).unwrap();
    }
    wire
}

fn put(sender: &mut Sender, header: &str, payload: usize) {
    let length = (header.len() as u16).to_be_bytes();
    sender.binary(&[&length[..], header.as_bytes()].concat(), &vec![7; payload]);
}

/// The cloud. It sends the same bytes in each turn, and takes everything.
#[derive(Default)]
struct Cloud {
    says: Vec<u8>,
    read: usize,
}

#[derive(Clone, Default)]
struct Wire(Rc<RefCell<Cloud>>);

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut cloud = self.0.borrow_mut();
        let unread = &cloud.says[cloud.read..];
        let length = unread.len().min(buffer.len());
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        buffer[..length].copy_from_slice(&unread[..length]);
        cloud.read += length;
        Ok(length)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Wire {
    fn written(&self) -> u64 {
        0
    }
    fn unacked(&self) -> usize {
        0
    }
}

/// How many bytes each local service sends for each read, and how many bytes were moved to or from
/// the services.
#[derive(Default)]
struct Services {
    each: usize,
    moved: usize,
}

/// A local service. It sends a fixed number of bytes in each turn, and takes everything.
struct Stream(Rc<RefCell<Services>>);

impl LocalStream for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut services = self.0.borrow_mut();
        let length = services.each.min(buffer.len());
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        // The old content of the buffer is good enough. Writing new bytes would be most of a turn's
        // cost.
        services.moved += length;
        Ok(length)
    }
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.0.borrow_mut().moved += length;
        Ok(length)
    }
    fn shut_down(&mut self) {}
    fn reset_on_close(&mut self, _: bool) {}
    fn unacked(&self) -> usize {
        0
    }
}

struct Connector(Rc<RefCell<Services>>);

impl Connect for Connector {
    type Dial = ();
    type Stream = Stream;

    fn dial(&mut self, _: &str) -> Result<(), DialError> {
        Ok(())
    }
    fn step(&mut self, _: &mut (), _: bool) -> Option<io::Result<Stream>> {
        Some(Ok(Stream(self.0.clone())))
    }
    fn address(&self, _: &str) -> String {
        String::new()
    }
}

/// A relay with open sessions, and what happens in each turn.
pub(crate) struct Rig {
    relay: DeviceRelay<Wire, Connector, ()>,
    cloud: Wire,
    services: Rc<RefCell<Services>>,
    now: Instant,
    ready: Vec<Ready>,
    /// The number of bytes that the services receive and send in each turn.
    pub(crate) bytes_a_turn: usize,
}

impl Rig {
    /// In each turn the cloud sends `cloud_says`, and each service sends `each` bytes.
    pub(crate) fn new(sessions: usize, cloud_says: Vec<u8>, each: usize) -> Self {
        let (cloud, services) = (Wire::default(), Rc::<RefCell<Services>>::default());
        let now = Instant::now();
        let connection = Connection::new(cloud.clone(), Role::Client, b"", UPKEEP, now);
        let side = DeviceSide::new(Connector(services.clone()), DEVICE_LIMITS);
        let relay = DeviceRelay::new(connection, side, LIMITS, (), Vec::new());
        let mut rig = Rig { relay, cloud, services, now, ready: Vec::new(), bytes_a_turn: 0 };

        let (mut sender, mut creates) = (Sender::new(Role::Server), Vec::new());
        for n in 0..sessions {
            let id = session(n);
            let fields = format!(r#""frame_type":2,"frame_id":{n},"service_type":"v""#);
            put(&mut sender, &format!(r#"{{{fields},"session_id":"{id}"}}"#), 0);
        }
        sender.flush(&mut creates).unwrap();
        rig.cloud.0.borrow_mut().says = creates;
        rig.step();
        assert_eq!(rig.relay.sessions().len(), sessions);

        rig.ready = vec![Ready { read: each > 0, write: false }; sessions];
        rig.services.borrow_mut().each = each;
        rig.cloud.0.borrow_mut().says = cloud_says;
        for _ in 0..BUFFERS_GROW {
            rig.bytes_a_turn = rig.step();
        }
        assert_ne!(rig.bytes_a_turn, 0);
        rig
    }

    /// One turn in the steady state. It is a function of its own so that callgrind can tell it from
    /// the rest (docs/performance.md).
    #[inline(never)]
    pub(crate) fn turn(&mut self) -> usize {
        self.step()
    }

    /// Does what the worker does after its `poll`.
    fn step(&mut self) -> usize {
        self.services.borrow_mut().moved = 0;
        self.cloud.0.borrow_mut().read = 0;
        self.relay.connection_mut().ready(true, false);
        self.relay.turn(self.now, &self.ready);
        assert!(self.relay.end().is_none());
        self.services.borrow().moved
    }
}
