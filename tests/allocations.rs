//! Once a tunnel has its buffers, a frame upstream causes no allocation, and a frame downstream at
//! most one. The test counts what the worker allocates with Rust's allocator, not what OpenSSL
//! allocates with the C library's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::Relaxed};
use std::sync::{mpsc, Mutex};
use std::thread;
use std::time::Duration;

use aiot_tunnel::*;
use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::{id, Running};
use aiot_tunnel_testkit::services::service;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::TIMEOUT;
use aiot_tunnel_testkit::{frame, wait};

/// Frames of a case in which each frame has a turn of its own.
const FRAMES: usize = 1000;
/// Bytes of a case in which a turn moves many.
const BULK: usize = 4 << 20;
const PAYLOAD: usize = 4096;
/// How often a case may be counted until it holds.
const ROUNDS: usize = 3;
/// No timer expires while allocations are counted: a ping would free the buffers.
const NEVER: Duration = Duration::from_secs(3600);

/// The system's allocator, which counts the allocations of one thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The thread whose allocations are counted; 0 for none.
static COUNTED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// The sizes of the latest ones, which show what they were for.
static SIZES: [AtomicUsize; 16] = [const { AtomicUsize::new(0) }; 16];

thread_local! {
    /// Neither made nor dropped at run time, so the allocator may use it.
    static THREAD: Cell<i32> = const { Cell::new(0) };
}

fn count(size: usize) {
    if THREAD.get() == 0 {
        THREAD.set(rustix::thread::gettid().as_raw_pid());
    }
    if THREAD.get() == COUNTED.load(Relaxed) {
        let nth = ALLOCATIONS.fetch_add(1, Relaxed);
        SIZES[nth % SIZES.len()].store(size, Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller promises what `alloc` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above, and `block` came from the system's allocator.
        unsafe { System.realloc(block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

/// The only worker of this process.
fn worker() -> i32 {
    let mut found = None;
    wait::until("one worker", || {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        let named = tasks.filter(|task| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.trim_end() == "aiot-tunnel"
        });
        let workers: Vec<_> = named.collect();
        found = workers.first().map(|task| task.file_name().to_str().unwrap().parse().unwrap());
        workers.len() == 1
    });
    found.unwrap()
}

/// Frames that passed, in either direction.
struct Passed {
    up: usize,
    down: usize,
}

/// A device with ten sessions; the test has both ends of each.
struct Tunnel {
    transport: &'static str,
    device: TunnelEnd,
    worker: i32,
    sessions: Vec<String>,
    /// The local service's ends of the sessions.
    locals: Vec<TcpStream>,
    report: Vec<String>,
    failed: bool,
    _running: Running,
}

impl Tunnel {
    fn new(transport: &'static str, cloud: Cloud, security: Security) -> Self {
        let (sender, connections) = mpsc::channel();
        let sender = Mutex::new(sender);
        let local = service("local", move |stream| sender.lock().unwrap().send(stream).unwrap());
        let limits = Limits::new().with_ping_interval(NEVER).with_pong_timeout(NEVER);
        let builder = Manager::builder().security(security).service(local).limits(limits);
        let running = Running::start(builder);
        running.handle.add(&id("t"), cloud.params()).unwrap();
        let mut device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        let open = |n| {
            let name = format!("s{n}");
            assert_eq!(device.create(&name, "local"), 0);
            let stream: TcpStream = connections.recv_timeout(TIMEOUT).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            (name, stream)
        };
        let (sessions, locals) = (0..10).map(open).unzip();
        let (worker, report, failed) = (worker(), Vec::new(), false);
        Tunnel { transport, device, worker, sessions, locals, report, failed, _running: running }
    }

    /// Whether the worker waits in `poll`, because it has nothing to do.
    fn is_asleep(&self) -> bool {
        let path = format!("/proc/self/task/{}/stat", self.worker);
        let stat = fs::read_to_string(path).expect("the worker lives");
        stat.rsplit(") ").next().is_some_and(|state| state.starts_with('S'))
    }

    fn settle(&self) {
        wait::until("the worker has nothing to do", || self.is_asleep());
    }

    /// Runs a case once, so that the buffers grow, and then counts. How full a buffer gets depends on
    /// the scheduler, so a buffer may grow again later: a case that fails is counted again.
    fn measure(&mut self, case: &str, happen: impl Fn(&mut Self) -> Passed) {
        happen(self);
        let (mut passed, mut count) = self.count(&happen);
        for _ in 1..ROUNDS {
            if count > passed.down {
                (passed, count) = self.count(&happen);
            }
        }
        let Passed { up, down } = passed;
        let fine = count <= down;
        let sizes: BTreeSet<usize> =
            SIZES.iter().take(count).map(|size| size.load(Relaxed)).collect();
        self.failed |= !fine;
        self.report.push(format!(
            "{:4} {:5} {case:40} {up:5} frames up, {down:5} down: {count:6} allocations, \
             {:.3} a frame {sizes:?}",
            if fine { "ok" } else { "FAIL" },
            self.transport,
            count as f64 / (up + down) as f64,
        ));
    }

    /// The frames that a case passes, and how often the worker allocates meanwhile.
    fn count(&mut self, happen: &impl Fn(&mut Self) -> Passed) -> (Passed, usize) {
        self.settle();
        ALLOCATIONS.store(0, Relaxed);
        COUNTED.store(self.worker, Relaxed);
        let passed = happen(self);
        self.settle();
        COUNTED.store(0, Relaxed);
        (passed, ALLOCATIONS.load(Relaxed))
    }

    /// A service sends until every buffer is full, and only then the cloud reads: no buffer on this
    /// way will ever hold more.
    fn upload_against_a_cloud_that_waits(&mut self) {
        let mut local = &self.locals[0];
        local.set_nonblocking(true).unwrap();
        let (mut sent, mut full) = (0, false);
        wait::until("every buffer is full", || match local.write(&[7; 64 * 1024]) {
            Ok(length) => {
                (sent, full) = (sent + length, false);
                false
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                std::mem::replace(&mut full, self.is_asleep())
            }
        });
        local.set_nonblocking(false).unwrap();
        self.device.receive_data(&self.sessions[0], sent);
    }

    fn keystrokes_up(&mut self) -> Passed {
        for _ in 0..FRAMES {
            self.locals[0].write_all(b"x").unwrap();
            self.device.receive_data(&self.sessions[0], 1);
        }
        Passed { up: FRAMES, down: 0 }
    }

    /// Sends single bytes, each in a frame with this header, each when the service has the last one.
    fn keystrokes_down(&mut self, header: impl Fn(usize) -> String) -> Passed {
        for n in 0..FRAMES {
            self.device.send_message(frame::tunnel(&header(n), b"x"));
            self.locals[0].read_exact(&mut [0]).unwrap();
        }
        Passed { up: 0, down: FRAMES }
    }

    fn bulk_up(&mut self, count: usize) -> Passed {
        let Tunnel { locals, device, .. } = self;
        thread::scope(|scope| {
            for local in &mut locals[..count] {
                scope.spawn(move || local.write_all(&vec![7; BULK / count]).unwrap());
            }
            let (mut bytes, mut up) = (0, 0);
            while bytes < BULK / count * count {
                bytes += device.receive().1.len();
                up += 1;
            }
            Passed { up, down: 0 }
        })
    }

    fn bulk_down(&mut self, count: usize) -> Passed {
        let Tunnel { sessions, locals, device, .. } = self;
        let each = BULK / PAYLOAD / count;
        thread::scope(|scope| {
            for local in &mut locals[..count] {
                scope.spawn(move || local.read_exact(&mut vec![0; each * PAYLOAD]).unwrap());
            }
            for _ in 0..each {
                for name in &sessions[..count] {
                    device.data(name, &[7; PAYLOAD]);
                }
            }
        });
        Passed { up: 0, down: each * count }
    }

    /// Every service sends back what it receives, in frames of many sizes.
    fn echoes(&mut self) -> Passed {
        const SIZES: [usize; 5] = [1, PAYLOAD, 100, 3000, 17];
        /// So little is on its way that this thread cannot deadlock with itself.
        const WINDOW: usize = 100_000;
        let Tunnel { sessions, locals, device, .. } = self;
        let each = SIZES.iter().sum::<usize>() * FRAMES / 50;
        thread::scope(|scope| {
            for local in locals {
                scope.spawn(move || {
                    let (mut buffer, mut left) = ([0; 64 * 1024], each);
                    while left > 0 {
                        let length = local.read(&mut buffer).unwrap();
                        assert!((1..=left).contains(&length));
                        local.write_all(&buffer[..length]).unwrap();
                        left -= length;
                    }
                });
            }
            let all = each * sessions.len();
            let (mut sent, mut received, mut up, mut down) = (0, 0, 0, 0);
            while received < all {
                if sent < all && sent - received < WINDOW {
                    let (round, nth) = (down / sessions.len(), down % sessions.len());
                    let size = SIZES[round % SIZES.len()];
                    device.data(&sessions[nth], &vec![7; size]);
                    (sent, down) = (sent + size, down + 1);
                } else {
                    received += device.receive().1.len();
                    up += 1;
                }
            }
            Passed { up, down }
        })
    }

    /// Runs all cases.
    fn run(mut self) -> (bool, Vec<String>) {
        // Log lines are allocated.
        log::set_max_level(log::LevelFilter::Off);
        self.bulk_up(10);
        self.bulk_down(10);
        self.upload_against_a_cloud_that_waits();
        let plain = |n| format!(r#"{{"frame_type":4,"frame_id":{n},"session_id":"s0"}}"#);
        // Nine random digits: one in ten begins with a zero, which is not JSON.
        let c_sdk = |n: usize| {
            let random = (n % 10) * 100_000_000 + n + 1;
            format!(r#"{{"frame_type":4,"frame_id":{random:09},"session_id":"s0"}}"#)
        };
        self.measure("up, one byte a turn", Self::keystrokes_up);
        self.measure("up, 4 MiB of one session", |it| it.bulk_up(1));
        self.measure("up, 4 MiB of 10 sessions", |it| it.bulk_up(10));
        self.measure("down, one byte a turn", |it| it.keystrokes_down(plain));
        self.measure("down, one byte a turn, the C SDK's ids", |it| it.keystrokes_down(c_sdk));
        self.measure("down, 4 MiB in 4 KiB to one session", |it| it.bulk_down(1));
        self.measure("down, 4 MiB in 4 KiB to 10 sessions", |it| it.bulk_down(10));
        self.measure("both ways, echoes of 10 sessions", Self::echoes);
        (self.failed, self.report)
    }
}

#[test]
fn no_frame_up_allocates_and_a_frame_down_at_most_once() {
    let (plain_failed, mut report) = Tunnel::new("plain", Cloud::plain(), Security::Plain).run();
    let authority = Authority::new();
    let tls = TlsConfig::new().with_ca_pem(&authority.pem()).unwrap();
    let cloud = Cloud::tls(authority.acceptor("127.0.0.1"));
    let (tls_failed, tls_report) = Tunnel::new("tls", cloud, Security::Tls(tls)).run();
    report.extend(tls_report);
    let report = report.join("\n");
    println!("{report}");
    assert!(!plain_failed && !tls_failed, "the worker allocates for frames:\n{report}");
}
