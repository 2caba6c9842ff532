//! A proxy that does to TCP connections what failing networks do, on a seeded schedule.
//!
//! Each direction of a connection has random numbers of its own, drawn from the seed, the route and
//! the connection's number, and its faults happen at byte offsets. So what a seed does to a stream
//! does not depend on the machine's speed. The proxy may know nothing of the protocol inside.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::RngExt;
use rustix::net::sockopt::set_socket_recv_buffer_size;

use crate::random::{self, magnitude, permille, Generator};
use crate::sockets::{is_temporary, ready, reset_on_close, Interest};

/// The most bytes of one direction that the proxy holds.
const HIGH_WATER_MARK: usize = 64 * 1024;
/// How long a coalescing proxy waits for more bytes.
const COALESCE_FOR: Duration = Duration::from_millis(15);
/// Receive buffers while a window is to be zero, and afterwards.
const SMALL_BUFFER: usize = 4096;
const LARGE_BUFFER: usize = 256 * 1024;

/// More bytes than either side of a TLS handshake sends.
const HANDSHAKE: u64 = 3_000;

/// What happens to one direction of a connection at one byte offset. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Bytes are passed on later.
    Delay(u64),
    /// So many bytes are passed on one by one.
    Split(u64),
    /// Nothing is passed on before so many bytes have come.
    Coalesce(u64),
    /// Nothing is read and nothing is passed on.
    Stall(u64),
    /// Nothing is read, and the receive buffer is small.
    ZeroWindow(u64),
    /// Both ends receive a RST.
    Reset,
    /// The receiver gets a FIN; further bytes are dropped.
    HalfClose,
    /// A byte is changed.
    Corrupt,
}

pub const KINDS: [&str; 8] =
    ["delay", "split", "coalesce", "stall", "zero window", "reset", "half-close", "corrupt"];

impl Fault {
    fn kind(self) -> usize {
        match self {
            Fault::Delay(_) => 0,
            Fault::Split(_) => 1,
            Fault::Coalesce(_) => 2,
            Fault::Stall(_) => 3,
            Fault::ZeroWindow(_) => 4,
            Fault::Reset => 5,
            Fault::HalfClose => 6,
            Fault::Corrupt => 7,
        }
    }
}

/// The faults of one route's connections.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub name: &'static str,
    /// Most bytes between two faults of one direction.
    pub gap: u64,
    /// Longest stall and zero window, in milliseconds.
    pub stall: u64,
    /// How many of a thousand faults end the connection.
    pub fatal: u32,
    /// The number of connections, the first ones, that may have such faults.
    pub fatal_connections: usize,
    /// Whether bytes may be changed. TLS must notice it, so only for TLS.
    pub corrupt: bool,
}

impl Profile {
    /// The next fault, and the number of bytes before it.
    fn draw(&self, random: &mut Generator, fatal: bool) -> (u64, Fault) {
        let gap = magnitude(random, self.gap);
        if permille(random, self.fatal) && fatal {
            return match random.random_range(0..if self.corrupt { 3 } else { 2 }) {
                0 => (gap, Fault::Reset),
                1 => (gap, Fault::HalfClose),
                _ => (gap, Fault::Corrupt),
            };
        }
        let fault = match random.random_range(0..100) {
            0..30 => Fault::Delay(random.random_range(1..=20)),
            30..55 => Fault::Split(magnitude(random, 200)),
            55..80 => Fault::Coalesce(magnitude(random, 30_000)),
            80..92 => Fault::Stall(magnitude(random, self.stall)),
            _ => Fault::ZeroWindow(magnitude(random, self.stall)),
        };
        (gap, fault)
    }
}

/// The next fault of a direction without faults.
const NEVER: (u64, Fault) = (u64::MAX, Fault::Delay(1));

/// What faults have done to one connection. Direction 0 leads from the client to the target.
#[derive(Debug, Default)]
pub struct Damage {
    /// A fault has dropped bytes of this direction.
    pub cut: [AtomicBool; 2],
    /// It did so in a way that looks like an orderly end.
    pub half_closed: [AtomicBool; 2],
    /// A byte was changed where TLS must notice.
    pub corrupted: AtomicBool,
    /// Both ends are closed.
    pub closed: AtomicBool,
}

impl Damage {
    pub fn is_cut(&self, direction: usize) -> bool {
        self.cut[direction].load(Ordering::SeqCst)
    }
}

type Connect = Box<dyn FnMut(&Arc<Damage>) -> io::Result<TcpStream> + Send>;

struct Route {
    profile: Profile,
    only: Option<(u64, Fault)>,
    index: u64,
    listener: TcpListener,
    connect: Connect,
    accepted: usize,
}

/// What the proxy's value and its thread share.
#[derive(Default)]
struct Common {
    calm: AtomicBool,
    stop: AtomicBool,
    inbox: Mutex<Vec<Route>>,
    routes: AtomicUsize,
    counts: [AtomicU64; KINDS.len()],
    damages: Mutex<Vec<Arc<Damage>>>,
}

/// A running proxy: one thread for all its routes and connections.
pub struct Proxy {
    shared: Arc<Common>,
    waker: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// `trace` prints every fault as it happens.
    pub fn start(seed: u64, trace: bool) -> Self {
        let (waker, woken) = UnixStream::pair().unwrap();
        woken.set_nonblocking(true).unwrap();
        let shared = Arc::new(Common::default());
        let engine = Engine {
            seed,
            trace: trace.then(Instant::now),
            shared: shared.clone(),
            woken,
            routes: Vec::new(),
            connections: Vec::new(),
        };
        let thread = thread::Builder::new().name("faults".into()).spawn(|| engine.run()).unwrap();
        Proxy { shared, waker, thread: Some(thread) }
    }

    /// Connections to the returned address are joined with those that `connect` makes.
    pub fn route(
        &self,
        profile: Profile,
        connect: impl FnMut(&Arc<Damage>) -> io::Result<TcpStream> + Send + 'static,
    ) -> SocketAddr {
        self.route_with(profile, None, connect)
    }

    /// As [`route`](Self::route). `only` is the offset and the only fault of direction 1; direction 0
    /// has none.
    pub fn route_with(
        &self,
        profile: Profile,
        only: Option<(u64, Fault)>,
        connect: impl FnMut(&Arc<Damage>) -> io::Result<TcpStream> + Send + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let index = self.shared.routes.fetch_add(1, Ordering::SeqCst) as u64;
        let connect = Box::new(connect);
        let route = Route { profile, only, index, listener, connect, accepted: 0 };
        self.shared.inbox.lock().unwrap().push(route);
        self.wake();
        address
    }

    /// Stops all faults from now on, and passes on what they hold back.
    pub fn calm(&self, calm: bool) {
        self.shared.calm.store(calm, Ordering::SeqCst);
        self.wake();
    }

    /// Faults so far, in the order of [`KINDS`].
    pub fn counts(&self) -> [u64; KINDS.len()] {
        std::array::from_fn(|kind| self.shared.counts[kind].load(Ordering::SeqCst))
    }

    /// The number of connections whose bytes were changed and that are still open.
    pub fn open_and_corrupted(&self) -> usize {
        let damages = self.shared.damages.lock().unwrap();
        let wrong = |damage: &&Arc<Damage>| {
            damage.corrupted.load(Ordering::SeqCst) && !damage.closed.load(Ordering::SeqCst)
        };
        damages.iter().filter(wrong).count()
    }

    fn wake(&self) {
        let _ = (&self.waker).write(&[1]);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The proxy's thread.
struct Engine {
    seed: u64,
    /// When tracing began, if it did.
    trace: Option<Instant>,
    shared: Arc<Common>,
    woken: UnixStream,
    routes: Vec<Route>,
    connections: Vec<Connection>,
}

impl Engine {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            self.routes.append(&mut self.shared.inbox.lock().unwrap());
            let now = Instant::now();
            let calm = self.shared.calm.load(Ordering::SeqCst);
            let mut nearest: Option<Instant> = None;
            let wants: Vec<_> = self
                .connections
                .iter_mut()
                .map(|connection| connection.wants(now, calm, &mut nearest))
                .collect();
            let mut interests: Vec<Interest<'_>> = vec![(self.woken.as_fd(), true, false)];
            interests.extend(self.routes.iter().map(|r| (r.listener.as_fd(), true, false)));
            for (connection, wants) in self.connections.iter().zip(wants) {
                for (side, [read, write]) in connection.sides.iter().zip(wants) {
                    interests.push((side.as_fd(), read, write));
                }
            }
            let ready = ready(&interests, nearest);
            let _ = (&self.woken).read(&mut [0; 64]);

            let (ready_routes, ready_sides) = ready[1..].split_at(self.routes.len());
            let (shared, trace) = (&self.shared, self.trace);
            for (connection, ready) in self.connections.iter_mut().zip(ready_sides.chunks(2)) {
                connection.turn([ready[0], ready[1]], shared, trace);
            }
            self.connections.retain(|each| !each.damage.closed.load(Ordering::SeqCst));
            for (index, ready) in ready_routes.iter().enumerate() {
                if *ready {
                    self.accept(index);
                }
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let route = &mut self.routes[index];
        let Ok((accepted, _)) = route.listener.accept() else { return };
        let damage = Arc::new(Damage::default());
        // Without a connection to join it with, it is closed.
        let Ok(connected) = (route.connect)(&damage) else { return };
        for side in [&accepted, &connected] {
            let _ = side.set_nonblocking(true);
            let _ = side.set_nodelay(true);
        }
        let number = route.accepted as u64;
        route.accepted += 1;
        let may_fail = route.accepted <= route.profile.fatal_connections;
        let flow = |direction: u64| {
            let part = 1 + 2 * (number << 16 | route.index) + direction;
            let mut random = random::part(self.seed, part);
            let next = match route.only {
                None => route.profile.draw(&mut random, may_fail),
                Some(fault) if direction == 1 => fault,
                Some(_) => NEVER,
            };
            Flow::new(random, next)
        };
        let flows = [flow(0), flow(1)];
        let mut damages = self.shared.damages.lock().unwrap();
        damages.retain(|damage| !damage.closed.load(Ordering::SeqCst));
        damages.push(damage.clone());
        drop(damages);
        self.connections.push(Connection {
            profile: route.profile,
            name: format!("{}.{} connection {number}", route.profile.name, route.index),
            may_fail,
            once: route.only.is_some(),
            sides: [accepted, connected],
            flows,
            damage,
            reset_by_peer: [false; 2],
        });
    }
}

/// Two TCP connections that the proxy has joined.
struct Connection {
    profile: Profile,
    name: String,
    may_fail: bool,
    /// It has one fault only.
    once: bool,
    sides: [TcpStream; 2],
    /// Direction 0 reads side 0 and writes side 1.
    flows: [Flow; 2],
    damage: Arc<Damage>,
    /// A write has shown that the peer of this side has reset it. A read says end of file then.
    reset_by_peer: [bool; 2],
}

/// One direction of a connection.
struct Flow {
    random: Generator,
    /// Offset and kind of the next fault.
    next: (u64, Fault),
    passed: u64,
    pending: VecDeque<u8>,
    /// Nothing is written before this time.
    hold: Option<Instant>,
    /// Nothing is read before this time.
    stop: Option<Instant>,
    small_window: bool,
    split: u64,
    coalesce: Option<(usize, Instant)>,
    state: FlowState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlowState {
    Open,
    /// End of file was read: a FIN follows the pending bytes.
    Ending,
    /// A RST was read: it follows the pending bytes.
    Aborting,
    /// Further bytes are dropped.
    Discarding,
    Over,
}

impl Flow {
    fn new(random: Generator, next: (u64, Fault)) -> Self {
        Flow {
            random,
            next,
            passed: 0,
            pending: VecDeque::new(),
            hold: None,
            stop: None,
            small_window: false,
            split: 0,
            coalesce: None,
            state: FlowState::Open,
        }
    }

    fn reads(&self) -> bool {
        match self.state {
            FlowState::Open => self.stop.is_none() && self.pending.len() < HIGH_WATER_MARK,
            FlowState::Discarding => true,
            _ => false,
        }
    }

    fn writes(&self) -> bool {
        self.hold.is_none() && self.coalesce.is_none() && !self.pending.is_empty()
    }

    /// Ends the holds whose time has come; all of them when the proxy is calm.
    fn release(&mut self, now: Instant, calm: bool) {
        let over = |time: &mut Instant| calm || now >= *time;
        self.hold.take_if(|time| over(time));
        self.stop.take_if(|time| over(time));
        let enough = |(least, time): &mut (usize, Instant)| {
            calm || now >= *time || self.pending.len() >= *least || self.state != FlowState::Open
        };
        self.coalesce.take_if(enough);
        if calm {
            self.split = 0;
        }
    }
}

impl Connection {
    /// For each side, whether to read and to write it. `nearest` becomes no later than the next
    /// time at which this changes on its own.
    fn wants(&mut self, now: Instant, calm: bool, nearest: &mut Option<Instant>) -> [[bool; 2]; 2] {
        let mut wants = [[false; 2]; 2];
        for (direction, flow) in self.flows.iter_mut().enumerate() {
            flow.release(now, calm);
            if flow.small_window && flow.stop.is_none() {
                flow.small_window = false;
                set_receive_buffer(&self.sides[direction], LARGE_BUFFER);
            }
            let times = [flow.hold, flow.stop, flow.coalesce.map(|(_, time)| time)];
            // Split bytes are written one each turn, without further waiting.
            let at_once = (flow.writes() && flow.split > 0).then_some(now);
            *nearest = times.into_iter().flatten().chain(at_once).chain(*nearest).min();
            wants[direction][0] = flow.reads();
            wants[1 - direction][1] = flow.writes();
        }
        wants
    }

    fn turn(&mut self, ready: [bool; 2], shared: &Common, trace: Option<Instant>) {
        for direction in [0, 1] {
            if ready[direction] && self.flows[direction].reads() {
                self.read(direction);
            }
            self.write(direction, shared, trace);
        }
        if self.flows.iter().all(|flow| flow.state == FlowState::Over) {
            self.damage.closed.store(true, Ordering::SeqCst);
        }
    }

    fn read(&mut self, direction: usize) {
        let flow = &mut self.flows[direction];
        let mut buffer = [0; 16 * 1024];
        match (&self.sides[direction]).read(&mut buffer) {
            Ok(0) if flow.state == FlowState::Discarding => flow.state = FlowState::Over,
            Ok(0) if self.reset_by_peer[direction] => flow.state = FlowState::Aborting,
            Ok(0) => flow.state = FlowState::Ending,
            Ok(_) if flow.state == FlowState::Discarding => {}
            Ok(length) => flow.pending.extend(&buffer[..length]),
            Err(e) if is_temporary(&e) => {}
            Err(_) if flow.state == FlowState::Discarding => flow.state = FlowState::Over,
            Err(_) => flow.state = FlowState::Aborting,
        }
    }

    fn write(&mut self, direction: usize, shared: &Common, trace: Option<Instant>) {
        let calm = shared.calm.load(Ordering::SeqCst);
        loop {
            let flow = &mut self.flows[direction];
            if !flow.writes() {
                break;
            }
            let mut most = HIGH_WATER_MARK;
            if !calm {
                let (offset, fault) = flow.next;
                most = offset.saturating_sub(flow.passed) as usize;
                if most == 0 {
                    self.fire(direction, fault, shared, trace);
                    continue;
                }
            }
            if flow.split > 0 {
                most = 1;
            }
            let (front, _) = flow.pending.as_slices();
            match (&self.sides[1 - direction]).write(&front[..front.len().min(most)]) {
                Ok(written) => {
                    flow.pending.drain(..written);
                    flow.passed += written as u64;
                    if flow.split > 0 {
                        flow.split -= 1;
                        break;
                    }
                }
                Err(e) if is_temporary(&e) => break,
                Err(e) => {
                    // EPIPE means that it had closed in order before it sent the RST.
                    self.reset_by_peer[1 - direction] |= e.kind() != io::ErrorKind::BrokenPipe;
                    flow.pending.clear();
                    flow.state = match flow.state {
                        FlowState::Open => FlowState::Discarding,
                        _ => FlowState::Over,
                    };
                }
            }
        }
        let flow = &mut self.flows[direction];
        if !flow.pending.is_empty() {
            return;
        }
        match flow.state {
            FlowState::Ending => {
                let _ = self.sides[1 - direction].shutdown(Shutdown::Write);
                flow.state = FlowState::Over;
            }
            FlowState::Aborting => self.reset(),
            _ => {}
        }
    }

    fn fire(&mut self, direction: usize, fault: Fault, shared: &Common, trace: Option<Instant>) {
        let now = Instant::now();
        if let Some(start) = trace {
            let (arrow, at) = (["->", "<-"][direction], self.flows[direction].passed);
            let time = start.elapsed().as_millis();
            println!("{time:6} ms  {} {arrow} byte {at}: {fault:?}", self.name);
        }
        shared.counts[fault.kind()].fetch_add(1, Ordering::SeqCst);
        let flow = &mut self.flows[direction];
        let (gap, next) = self.profile.draw(&mut flow.random, self.may_fail);
        // Long streams have fewer faults for their length, or they would not end in time.
        let gap = gap.max(flow.passed / 64);
        flow.next = if self.once { NEVER } else { (flow.passed + gap, next) };
        let after = |ms| Some(now + Duration::from_millis(ms));
        match fault {
            Fault::Delay(ms) => flow.hold = after(ms),
            Fault::Split(count) => flow.split = count,
            Fault::Coalesce(least) => flow.coalesce = Some((least as usize, now + COALESCE_FOR)),
            Fault::Stall(ms) => (flow.hold, flow.stop) = (after(ms), after(ms)),
            Fault::ZeroWindow(ms) => {
                flow.stop = after(ms);
                flow.small_window = true;
                set_receive_buffer(&self.sides[direction], SMALL_BUFFER);
            }
            Fault::Corrupt => {
                if let Some(byte) = flow.pending.front_mut() {
                    *byte ^= 1 << flow.random.random_range(0..8);
                }
                // The record headers of a handshake hold a version that TLS ignores.
                if flow.passed >= HANDSHAKE {
                    self.damage.corrupted.store(true, Ordering::SeqCst);
                }
            }
            Fault::HalfClose => {
                // Said before the receiver can see it.
                self.damage.cut[direction].store(true, Ordering::SeqCst);
                self.damage.half_closed[direction].store(true, Ordering::SeqCst);
                let _ = self.sides[1 - direction].shutdown(Shutdown::Write);
                flow.pending.clear();
                flow.state = match flow.state {
                    FlowState::Open => FlowState::Discarding,
                    _ => FlowState::Over,
                };
            }
            Fault::Reset => {
                for cut in &self.damage.cut {
                    cut.store(true, Ordering::SeqCst);
                }
                self.reset();
            }
        }
    }

    /// Sends a RST both ways.
    fn reset(&mut self) {
        for side in &self.sides {
            reset_on_close(side);
        }
        for flow in &mut self.flows {
            flow.pending.clear();
            flow.state = FlowState::Over;
        }
    }
}

fn set_receive_buffer(stream: &TcpStream, bytes: usize) {
    set_socket_recv_buffer_size(stream, bytes).unwrap();
}
