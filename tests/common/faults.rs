//! A proxy that does to TCP connections what failing networks do, by a seeded schedule.
//!
//! Each direction of a connection has its own random numbers, drawn from the seed, the route and
//! the connection's number, and its faults happen at byte offsets: what a seed does to a stream
//! does not depend on how fast the machine is.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of one direction that the proxy holds at most.
const HOLDS: usize = 64 * 1024;
/// A coalescing proxy waits this long for more.
const COALESCE_FOR: Duration = Duration::from_millis(15);
/// Receive buffers while a window is to be zero, and afterwards.
const SMALL_BUFFER: i32 = 4096;
const LARGE_BUFFER: i32 = 256 * 1024;

/// More bytes than either side of a TLS handshake has.
const HANDSHAKE: u64 = 3_000;

/// splitmix64.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The numbers of one part of a seed's run.
    pub fn part(seed: u64, part: u64) -> Self {
        let mut rng = Rng(seed ^ part.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        Rng(rng.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to `end` - 1.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// From `start` to `end`, both included.
    pub fn between(&mut self, start: u64, end: u64) -> u64 {
        start + self.below(end - start + 1)
    }

    /// From 1 to `end`, every order of magnitude as likely as the next.
    pub fn magnitude(&mut self, end: u64) -> u64 {
        let bits = self.below(u64::from(64 - end.leading_zeros()));
        self.between(1, 2 << bits).min(end)
    }

    pub fn permille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }
}

/// What happens to one direction of a connection at one byte offset. Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What comes is passed on later.
    Delay(u64),
    /// The next so many bytes go one by one.
    Split(u64),
    /// Nothing is passed on before there are so many bytes.
    Coalesce(u64),
    /// Nothing is read nor passed on.
    Stall(u64),
    /// Nothing is read, with a small receive buffer.
    ZeroWindow(u64),
    /// Both ends get a RST.
    Reset,
    /// The receiver gets a FIN, and what still comes is dropped.
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

/// What the connections of one route suffer.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    pub name: &'static str,
    /// Most bytes between two faults of one direction.
    pub gap: u64,
    /// Longest stall and zero window, in milliseconds.
    pub stall: u64,
    /// How many of a thousand faults end the connection.
    pub fatal: u64,
    /// So many connections, the first ones, may suffer those.
    pub fatal_links: usize,
    /// Whether bytes may be changed: where TLS must notice.
    pub corrupt: bool,
}

impl Leg {
    fn draw(&self, rng: &mut Rng, fatal: bool) -> (u64, Fault) {
        let gap = rng.magnitude(self.gap);
        if rng.permille(self.fatal) && fatal {
            return match rng.below(if self.corrupt { 3 } else { 2 }) {
                0 => (gap, Fault::Reset),
                1 => (gap, Fault::HalfClose),
                _ => (gap, Fault::Corrupt),
            };
        }
        let fault = match rng.below(100) {
            0..30 => Fault::Delay(rng.between(1, 20)),
            30..55 => Fault::Split(rng.magnitude(200)),
            55..80 => Fault::Coalesce(rng.magnitude(30_000)),
            80..92 => Fault::Stall(rng.magnitude(self.stall)),
            _ => Fault::ZeroWindow(rng.magnitude(self.stall)),
        };
        (gap, fault)
    }
}

/// The next fault of a direction that has none.
const NEVER: (u64, Fault) = (u64::MAX, Fault::Delay(1));

/// What has happened to one connection. Direction 0 goes from who connected to the target.
#[derive(Default)]
pub struct LinkReport {
    /// Bytes of this direction were lost by a fault.
    pub cut: [AtomicBool; 2],
    /// It was lost with the look of an orderly end.
    pub half_closed: [AtomicBool; 2],
    /// A byte was changed where TLS must notice.
    pub corrupted: AtomicBool,
    /// Both ends are gone.
    pub over: AtomicBool,
}

impl LinkReport {
    pub fn is_cut(&self, direction: usize) -> bool {
        self.cut[direction].load(Ordering::SeqCst)
    }
}

type Connect = Box<dyn FnMut(&Arc<LinkReport>) -> io::Result<TcpStream> + Send>;

struct Route {
    leg: Leg,
    only: Option<(u64, Fault)>,
    index: u64,
    listener: TcpListener,
    connect: Connect,
    links: usize,
}

#[derive(Default)]
struct Shared {
    calm: AtomicBool,
    stop: AtomicBool,
    inbox: Mutex<Vec<Route>>,
    routes: AtomicUsize,
    counts: [AtomicU64; KINDS.len()],
    reports: Mutex<Vec<Arc<LinkReport>>>,
}

/// A running proxy: one thread for all its routes and connections.
pub struct Proxy {
    shared: Arc<Shared>,
    waker: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// `trace` prints every fault as it happens.
    pub fn start(seed: u64, trace: bool) -> Self {
        let (waker, woken) = UnixStream::pair().unwrap();
        woken.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared::default());
        let engine = Engine {
            seed,
            trace: trace.then(Instant::now),
            shared: shared.clone(),
            woken,
            routes: Vec::new(),
            links: Vec::new(),
        };
        let thread = thread::Builder::new().name("faults".into()).spawn(|| engine.run()).unwrap();
        Proxy { shared, waker, thread: Some(thread) }
    }

    /// Connections to the returned address are joined to those that `connect` makes.
    pub fn route(
        &self,
        leg: Leg,
        connect: impl FnMut(&Arc<LinkReport>) -> io::Result<TcpStream> + Send + 'static,
    ) -> SocketAddr {
        self.route_with(leg, None, connect)
    }

    /// As [`route`](Self::route); `only` is the one fault of direction 1, and its offset.
    pub fn route_with(
        &self,
        leg: Leg,
        only: Option<(u64, Fault)>,
        connect: impl FnMut(&Arc<LinkReport>) -> io::Result<TcpStream> + Send + 'static,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let index = self.shared.routes.fetch_add(1, Ordering::SeqCst) as u64;
        let connect = Box::new(connect);
        let route = Route { leg, only, index, listener, connect, links: 0 };
        self.shared.inbox.lock().unwrap().push(route);
        self.wake();
        address
    }

    /// From now on no fault happens, and what is held back goes on its way.
    pub fn calm(&self, calm: bool) {
        self.shared.calm.store(calm, Ordering::SeqCst);
        self.wake();
    }

    /// Faults so far, in the order of [`KINDS`].
    pub fn counts(&self) -> [u64; KINDS.len()] {
        std::array::from_fn(|kind| self.shared.counts[kind].load(Ordering::SeqCst))
    }

    /// Connections whose bytes were changed and which are still open.
    pub fn open_and_corrupted(&self) -> usize {
        let reports = self.shared.reports.lock().unwrap();
        let wrong = |report: &&Arc<LinkReport>| {
            report.corrupted.load(Ordering::SeqCst) && !report.over.load(Ordering::SeqCst)
        };
        reports.iter().filter(wrong).count()
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

struct Engine {
    seed: u64,
    trace: Option<Instant>,
    shared: Arc<Shared>,
    woken: UnixStream,
    routes: Vec<Route>,
    links: Vec<Link>,
}

impl Engine {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            self.routes.append(&mut self.shared.inbox.lock().unwrap());
            let now = Instant::now();
            let calm = self.shared.calm.load(Ordering::SeqCst);
            let mut fds = vec![poll_fd(self.woken.as_raw_fd(), true, false)];
            fds.extend(self.routes.iter().map(|r| poll_fd(r.listener.as_raw_fd(), true, false)));
            let mut nearest: Option<Instant> = None;
            for link in &mut self.links {
                let wants = link.wants(now, calm, &mut nearest);
                for (side, [read, write]) in link.sides.iter().zip(wants) {
                    fds.push(poll_fd(side.as_raw_fd(), read, write));
                }
            }
            poll(&mut fds, nearest.map(|time| time.saturating_duration_since(now)));
            let _ = (&self.woken).read(&mut [0; 64]);

            let ready: Vec<bool> = fds.iter().map(|fd| fd.revents != 0).collect();
            let (ready_routes, ready_links) = ready[1..].split_at(self.routes.len());
            let (shared, trace) = (&self.shared, self.trace);
            for (link, ready) in self.links.iter_mut().zip(ready_links.chunks(2)) {
                link.turn([ready[0], ready[1]], shared, trace);
            }
            self.links.retain(|link| !link.report.over.load(Ordering::SeqCst));
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
        let report = Arc::new(LinkReport::default());
        // Who cannot be joined is closed.
        let Ok(connected) = (route.connect)(&report) else { return };
        for side in [&accepted, &connected] {
            let _ = side.set_nonblocking(true);
            let _ = side.set_nodelay(true);
        }
        let number = route.links as u64;
        route.links += 1;
        let may_fail = route.links <= route.leg.fatal_links;
        let flow = |direction: u64| {
            let part = 1 + 2 * (number << 16 | route.index) + direction;
            let mut rng = Rng::part(self.seed, part);
            let next = match route.only {
                None => route.leg.draw(&mut rng, may_fail),
                Some(fault) if direction == 1 => fault,
                Some(_) => NEVER,
            };
            Flow { rng, next, ..Flow::default() }
        };
        let flows = [flow(0), flow(1)];
        let mut reports = self.shared.reports.lock().unwrap();
        reports.retain(|report| !report.over.load(Ordering::SeqCst));
        reports.push(report.clone());
        drop(reports);
        self.links.push(Link {
            leg: route.leg,
            name: format!("{}.{} connection {number}", route.leg.name, route.index),
            may_fail,
            once: route.only.is_some(),
            sides: [accepted, connected],
            flows,
            report,
            reset_by_peer: [false; 2],
        });
    }
}

struct Link {
    leg: Leg,
    name: String,
    may_fail: bool,
    once: bool,
    sides: [TcpStream; 2],
    /// Direction 0 reads side 0 and writes side 1.
    flows: [Flow; 2],
    report: Arc<LinkReport>,
    /// A write has told us so; a read would then say end of file.
    reset_by_peer: [bool; 2],
}

struct Flow {
    rng: Rng,
    /// Offset and kind of the next fault.
    next: (u64, Fault),
    passed: u64,
    pending: VecDeque<u8>,
    /// Not written before.
    hold: Option<Instant>,
    /// Not read before.
    stop: Option<Instant>,
    small_window: bool,
    split: u64,
    coalesce: Option<(usize, Instant)>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// End of file was read: a FIN follows what is pending.
    Ending,
    /// A RST was read: it follows what is pending.
    Aborting,
    /// What comes is dropped.
    Deaf,
    Over,
}

impl Default for Flow {
    fn default() -> Self {
        Flow {
            rng: Rng::new(0),
            next: NEVER,
            passed: 0,
            pending: VecDeque::new(),
            hold: None,
            stop: None,
            small_window: false,
            split: 0,
            coalesce: None,
            state: State::Open,
        }
    }
}

impl Flow {
    fn reads(&self) -> bool {
        match self.state {
            State::Open => self.stop.is_none() && self.pending.len() < HOLDS,
            State::Deaf => true,
            _ => false,
        }
    }

    fn writes(&self) -> bool {
        self.hold.is_none() && self.coalesce.is_none() && !self.pending.is_empty()
    }

    /// Ends the holds whose time has come.
    fn release(&mut self, now: Instant, calm: bool) {
        let over = |time: &mut Instant| calm || now >= *time;
        self.hold.take_if(|time| over(time));
        self.stop.take_if(|time| over(time));
        let enough = |(least, time): &mut (usize, Instant)| {
            calm || now >= *time || self.pending.len() >= *least || self.state != State::Open
        };
        self.coalesce.take_if(enough);
        if calm {
            self.split = 0;
        }
    }
}

impl Link {
    /// Per side, whether it is to be read and written; `nearest` becomes no later than the time
    /// at which something changes by itself.
    fn wants(&mut self, now: Instant, calm: bool, nearest: &mut Option<Instant>) -> [[bool; 2]; 2] {
        let mut wants = [[false; 2]; 2];
        for (direction, flow) in self.flows.iter_mut().enumerate() {
            flow.release(now, calm);
            if flow.small_window && flow.stop.is_none() {
                flow.small_window = false;
                set_receive_buffer(&self.sides[direction], LARGE_BUFFER);
            }
            let times = [flow.hold, flow.stop, flow.coalesce.map(|(_, time)| time)];
            // Bytes that are split go without further waiting, one a turn.
            let at_once = (flow.writes() && flow.split > 0).then_some(now);
            *nearest = times.into_iter().flatten().chain(at_once).chain(*nearest).min();
            wants[direction][0] = flow.reads();
            wants[1 - direction][1] = flow.writes();
        }
        wants
    }

    fn turn(&mut self, ready: [bool; 2], shared: &Shared, trace: Option<Instant>) {
        for direction in [0, 1] {
            if ready[direction] && self.flows[direction].reads() {
                self.read(direction);
            }
            self.write(direction, shared, trace);
        }
        if self.flows.iter().all(|flow| flow.state == State::Over) {
            self.report.over.store(true, Ordering::SeqCst);
        }
    }

    fn read(&mut self, direction: usize) {
        let flow = &mut self.flows[direction];
        let mut buffer = [0; 16 * 1024];
        match (&self.sides[direction]).read(&mut buffer) {
            Ok(0) if flow.state == State::Deaf => flow.state = State::Over,
            Ok(0) if self.reset_by_peer[direction] => flow.state = State::Aborting,
            Ok(0) => flow.state = State::Ending,
            Ok(_) if flow.state == State::Deaf => {}
            Ok(length) => flow.pending.extend(&buffer[..length]),
            Err(e) if is_temporary(&e) => {}
            Err(_) if flow.state == State::Deaf => flow.state = State::Over,
            Err(_) => flow.state = State::Aborting,
        }
    }

    fn write(&mut self, direction: usize, shared: &Shared, trace: Option<Instant>) {
        let calm = shared.calm.load(Ordering::SeqCst);
        loop {
            let flow = &mut self.flows[direction];
            if !flow.writes() {
                break;
            }
            let mut most = HOLDS;
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
                    // EPIPE: it had closed in order before it sent the RST.
                    self.reset_by_peer[1 - direction] |= e.kind() != io::ErrorKind::BrokenPipe;
                    flow.pending.clear();
                    flow.state = match flow.state {
                        State::Open => State::Deaf,
                        _ => State::Over,
                    };
                }
            }
        }
        let flow = &mut self.flows[direction];
        if !flow.pending.is_empty() {
            return;
        }
        match flow.state {
            State::Ending => {
                let _ = self.sides[1 - direction].shutdown(Shutdown::Write);
                flow.state = State::Over;
            }
            State::Aborting => self.reset(),
            _ => {}
        }
    }

    fn fire(&mut self, direction: usize, fault: Fault, shared: &Shared, trace: Option<Instant>) {
        let now = Instant::now();
        if let Some(start) = trace {
            let (arrow, at) = (["->", "<-"][direction], self.flows[direction].passed);
            let time = start.elapsed().as_millis();
            println!("{time:6} ms  {} {arrow} byte {at}: {fault:?}", self.name);
        }
        shared.counts[fault.kind()].fetch_add(1, Ordering::SeqCst);
        let flow = &mut self.flows[direction];
        let (gap, next) = self.leg.draw(&mut flow.rng, self.may_fail);
        // Long streams suffer less often, else they would not end in time.
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
                    *byte ^= 1 << flow.rng.below(8);
                }
                // A handshake's record headers hold a version that TLS has peers ignore.
                if flow.passed >= HANDSHAKE {
                    self.report.corrupted.store(true, Ordering::SeqCst);
                }
            }
            Fault::HalfClose => {
                let _ = self.sides[1 - direction].shutdown(Shutdown::Write);
                flow.pending.clear();
                flow.state = match flow.state {
                    State::Open => State::Deaf,
                    _ => State::Over,
                };
                self.report.cut[direction].store(true, Ordering::SeqCst);
                self.report.half_closed[direction].store(true, Ordering::SeqCst);
            }
            Fault::Reset => {
                for cut in &self.report.cut {
                    cut.store(true, Ordering::SeqCst);
                }
                self.reset();
            }
        }
    }

    /// Sends a RST both ways.
    fn reset(&mut self) {
        for side in &self.sides {
            reset_when_closed(side);
        }
        for flow in &mut self.flows {
            flow.pending.clear();
            flow.state = State::Over;
        }
    }
}

fn is_temporary(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// One descriptor to wait for; without an interest it is left out, hang-ups included.
pub fn poll_fd(fd: RawFd, read: bool, write: bool) -> libc::pollfd {
    let events = if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 };
    libc::pollfd { fd: if events == 0 { -1 } else { fd }, events, revents: 0 }
}

/// Waits until one of them is ready or the time is over.
pub fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) {
    // Rounded up, so that a deadline has come when it returns.
    let timeout =
        timeout.map_or(-1, |timeout| timeout.as_micros().div_ceil(1000).min(60_000) as i32);
    // SAFETY: `fds` is a live array of as many structures as it says.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
}

fn set_receive_buffer(stream: &TcpStream, bytes: i32) {
    set_option(stream, libc::SO_RCVBUF, &bytes);
}

/// Closing it will send a RST, and drop what it has not sent.
fn reset_when_closed(stream: &TcpStream) {
    set_option(stream, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 });
}

fn set_option<T>(stream: &TcpStream, option: i32, value: &T) {
    let length = std::mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is live and `length` is its size; the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    assert_eq!(result, 0, "setsockopt: {}", io::Error::last_os_error());
}
