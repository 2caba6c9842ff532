//! Measures a keystroke beside a bulk stream over a slow link: plain TCP, `ssh -R` and the tunnel.
//! Prints a table. Options: `--json FILE`, `--quick`, `--rate 1000` (kbit/s; only this one),
//! `--queue 200` (milliseconds that the link's own queue holds). It needs root.
//!
//! A keystroke is one byte through an echo service behind the device. The bulk stream is a second
//! connection: up from the device to the operator, or down. Each combination has a link of its own,
//! and all combinations of one rate are measured at the same time, so that the machine is in the same
//! condition for all. The links are slow enough for that.

mod ways;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::bench::service::{self, Counters};
use aiot_tunnel_testkit::link::{self, Link, DEVICE};
use aiot_tunnel_testkit::random;
use aiot_tunnel_testkit::sockets::{is_temporary, reset_on_close};
use aiot_tunnel_testkit::wait;
use rand::RngExt;
use serde_json::{json, Value};
use signal_hook::consts::{SIGINT, SIGTERM};

use ways::{Way, SERVICE_PORT};

const KBIT: u64 = 1000;
/// The links' rates in kbit/s, and how long to measure in seconds: first the bulk stream alone, so
/// that all queues are full, then keystrokes beside it. 100 kbit/s is the platform's own limit.
const RATES: [(u64, u64, u64); 3] = [(100, 20, 60), (1_000, 8, 30), (10_000, 4, 15)];
/// A quick run measures for a quarter of that time.
const QUICK: u64 = 4;
/// The pauses between an echo and the next keystroke, in milliseconds.
const BETWEEN_KEYS: std::ops::Range<u64> = 20..120;
/// How often a wait looks whether the program has been interrupted.
const LOOK: Duration = Duration::from_millis(50);

/// The targets, for links of at most this rate in kbit/s: a keystroke's median in multiples of plain
/// TCP's, and the bulk stream's rate as a part of plain TCP's.
const SLOW: u64 = 1_000;
const KEY_TARGET: f64 = 3.0;
const BULK_TARGET: f64 = 0.85;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Direction {
    fn name(self) -> &'static str {
        match self {
            Direction::Up => "up",
            Direction::Down => "down",
        }
    }
}

/// One link, and how long to measure over it.
#[derive(Clone, Copy)]
struct Settings {
    kbit: u64,
    /// The time that the link's own queue holds.
    queue: Duration,
    warm_up: Duration,
    window: Duration,
}

struct Figures {
    /// Milliseconds, sorted.
    keys: Vec<f64>,
    /// Whether the last keystroke got no answer. Its time is then a lower bound.
    is_open: bool,
    /// The bulk stream's rate in kbit/s; `None` if its connection was lost.
    bulk: Option<f64>,
}

impl Figures {
    fn percentile(&self, percent: usize) -> f64 {
        self.keys[(self.keys.len() * percent / 100).min(self.keys.len() - 1)]
    }

    /// As the table shows it.
    fn key(&self, percent: usize) -> String {
        let value = self.percentile(percent);
        let is_bound = self.is_open && value >= self.percentile(100);
        format!("{}{value:.0}", if is_bound { "> " } else { "" })
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches` checks only that the program starts.
        return;
    }
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).clone())
    };
    let only: Option<u64> = option("--rate").map(|text| text.parse().expect("--rate KBIT"));
    let queue = option("--queue").map(|text| text.parse().expect("--queue MILLISECONDS"));
    let queue = queue.map_or(link::QUEUE, Duration::from_millis);
    let shorter = if arguments.iter().any(|argument| argument == "--quick") { QUICK } else { 1 };
    if let Err(why) = Link::new(KBIT * RATES[0].0) {
        eprintln!("slow-link needs root and network namespaces: {why}");
        std::process::exit(1);
    }
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).unwrap();
    thread::spawn(move || {
        signals.forever().next();
        // Every measurement ends at its next look, and its processes and links go with it.
        INTERRUPTED.store(true, Ordering::SeqCst);
    });
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !INTERRUPTED.load(Ordering::SeqCst) {
            hook(info);
        }
    }));

    let cells = cells();
    println!("| link, kbit/s | bulk | way | keystroke p50, ms | p95, ms | of plain TCP | bulk, kbit/s | of plain TCP | targets |");
    println!("| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |");
    let mut rows = Vec::new();
    for (kbit, warm_up, window) in RATES {
        if only.is_some_and(|only| only != kbit) {
            continue;
        }
        let seconds = |seconds: u64| Duration::from_millis(seconds * 1000 / shorter);
        eprintln!("{kbit} kbit/s: {} s", (warm_up + window) / shorter);
        let settings = Settings { kbit, queue, warm_up: seconds(warm_up), window: seconds(window) };
        let measured = measure_all(&cells, settings);
        for ((way, direction), figures) in cells.iter().zip(&measured) {
            let plain = cells.iter().position(|cell| *cell == (Way::Tcp, *direction)).unwrap();
            rows.push(row(settings, (*way, *direction), figures, &measured[plain]));
        }
    }
    if let Some(file) = option("--json") {
        let about = json!({
            "commit": output("git", &["describe", "--always", "--dirty"]),
            "kernel": output("uname", &["-r"]),
            "ssh": output("ssh", &["-V"]),
            "quick": shorter != 1,
        });
        let result = json!({"about": about, "rows": rows});
        std::fs::write(file, serde_json::to_string_pretty(&result).unwrap()).unwrap();
    }
}

fn cells() -> Vec<(Way, Direction)> {
    let mut cells = Vec::new();
    for direction in [Direction::Up, Direction::Down] {
        cells.extend([Way::Tcp, Way::Ssh, Way::Tunnel].map(|way| (way, direction)));
    }
    // Downwards a foreign cloud's queue is the foreign cloud's affair.
    if Way::has_foreign() {
        cells.push((Way::Foreign, Direction::Up));
    } else {
        eprintln!("no row for a foreign cloud: this `access` has no --no-extensions");
    }
    cells
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| {
            let text = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&text).trim().to_owned()
        },
    )
}

/// Measures all cells at once. Does not return if one fails or the program is interrupted.
fn measure_all(cells: &[(Way, Direction)], settings: Settings) -> Vec<Figures> {
    let results: Vec<_> = thread::scope(|scope| {
        let start = |cell: &(Way, Direction)| {
            let (way, direction) = *cell;
            scope.spawn(move || {
                panic::catch_unwind(AssertUnwindSafe(|| measure(way, direction, settings)))
            })
        };
        let threads: Vec<_> = cells.iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    if INTERRUPTED.load(Ordering::SeqCst) {
        std::process::exit(130);
    }
    results.into_iter().map(|result| result.unwrap_or_else(|_| std::process::exit(1))).collect()
}

fn measure(way: Way, direction: Direction, settings: Settings) -> Figures {
    let link = Link::with_queue(settings.kbit * KBIT, settings.queue).unwrap();
    let listener = link.device.within(|| TcpListener::bind(("0.0.0.0", SERVICE_PORT)).unwrap());
    // The thread that serves is in the device's namespace, too; it needs no network of its own.
    let counters = service::start(listener);
    let set_up = way.set_up(&link);
    link.cloud.within(|| {
        let address = set_up.address();
        let mut keys = open(address, service::ECHO);
        key(&mut keys, Instant::now() + wait::TIMEOUT).expect("an echo before the bulk stream");
        let bulk = Bulk::start(address, direction, counters);
        pause(settings.warm_up);
        let (began, before) = (Instant::now(), bulk.taken());
        let end = began + settings.window;
        let mut figures = Figures { keys: Vec::new(), is_open: false, bulk: None };
        let mut pauses = random::part(settings.kbit, 0);
        while Instant::now() < end {
            let pressed = Instant::now();
            let time = key(&mut keys, end);
            figures.is_open = time.is_none();
            let time = time.unwrap_or_else(|| pressed.elapsed());
            figures.keys.push(time.as_secs_f64() * 1e3);
            pause(Duration::from_millis(pauses.random_range(BETWEEN_KEYS)));
        }
        let bytes = bulk.taken() - before;
        let rate = bytes as f64 * 8.0 / 1e3 / began.elapsed().as_secs_f64();
        figures.bulk = (!bulk.is_lost()).then_some(rate);
        figures.keys.sort_unstable_by(f64::total_cmp);
        figures
    })
}

/// Ends this measurement if the program has been interrupted.
fn look() {
    if INTERRUPTED.load(Ordering::SeqCst) {
        panic::resume_unwind(Box::new("interrupted"));
    }
}

fn pause(time: Duration) {
    let end = Instant::now() + time;
    loop {
        look();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(LOOK));
    }
}

/// A connection to the service that does what this byte says.
fn open(address: SocketAddr, what: u8) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(LOOK)).unwrap();
    stream.write_all(&[what]).unwrap();
    stream
}

/// The time of a round trip; `None` if it has not ended at `deadline`.
fn key(stream: &mut TcpStream, deadline: Instant) -> Option<Duration> {
    let (pressed, mut byte) = (Instant::now(), [7]);
    stream.write_all(&byte).unwrap();
    while Instant::now() < deadline {
        look();
        match stream.read(&mut byte) {
            Ok(1) => return Some(pressed.elapsed()),
            Err(e) if is_temporary(&e) => {}
            other => panic!("the keystrokes' connection is lost: {other:?}"),
        }
    }
    None
}

/// The bulk stream. It ends with its value.
struct Bulk {
    stream: TcpStream,
    /// Bytes that have come here.
    received: Arc<AtomicU64>,
    is_lost: Arc<AtomicBool>,
    direction: Direction,
    counters: Arc<Counters>,
}

impl Bulk {
    fn start(address: SocketAddr, direction: Direction, counters: Arc<Counters>) -> Self {
        let what = if direction == Direction::Up { service::FLOOD } else { service::SINK };
        let stream = open(address, what);
        stream.set_read_timeout(None).unwrap();
        let received = Arc::new(AtomicU64::new(0));
        let is_lost = Arc::new(AtomicBool::new(false));
        let (mut end, count, lost) =
            (stream.try_clone().unwrap(), received.clone(), is_lost.clone());
        thread::spawn(move || {
            let mut chunk = vec![7; 64 * 1024];
            match direction {
                Direction::Up => {
                    while let Ok(length @ 1..) = end.read(&mut chunk) {
                        count.fetch_add(length as u64, Ordering::Relaxed);
                    }
                }
                Direction::Down => while end.write_all(&chunk).is_ok() {},
            }
            lost.store(true, Ordering::SeqCst);
        });
        Bulk { stream, received, is_lost, direction, counters }
    }

    /// Bytes that have come to the far end.
    fn taken(&self) -> u64 {
        match self.direction {
            Direction::Up => self.received.load(Ordering::Relaxed),
            Direction::Down => self.counters.taken.load(Ordering::Relaxed),
        }
    }

    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::SeqCst)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        reset_on_close(&self.stream);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Prints one line of the table and returns it for the JSON file.
fn row(
    settings: Settings,
    (way, direction): (Way, Direction),
    figures: &Figures,
    plain: &Figures,
) -> Value {
    let kbit = settings.kbit;
    let keys = figures.percentile(50) / plain.percentile(50);
    let bulk = figures.bulk.zip(plain.bulk).map(|(rate, plain)| rate / plain);
    let met = match way {
        Way::Tcp | Way::Ssh => None,
        _ if kbit > SLOW => None,
        // The target for a foreign cloud is that of the keystroke alone.
        Way::Foreign => Some(keys <= KEY_TARGET),
        Way::Tunnel => Some(keys <= KEY_TARGET && bulk.is_some_and(|part| part >= BULK_TARGET)),
    };
    let verdict = match met {
        None => "",
        Some(true) => "met",
        Some(false) => "NOT MET",
    };
    let shown = |value: Option<f64>, digits: usize| {
        value.map_or("lost".to_owned(), |value| format!("{value:.digits$}"))
    };
    println!(
        "| {kbit} | {} | {} | {} | {} | {keys:.1} | {} | {} | {verdict} |",
        direction.name(),
        way.name(),
        figures.key(50),
        figures.key(95),
        shown(figures.bulk, 0),
        shown(bulk, 2),
    );
    json!({
        "kbit": kbit,
        "queue_bytes": link::queue_length(kbit * KBIT, settings.queue),
        "bulk": direction.name(),
        "way": way.name(),
        "keystrokes": figures.keys.len(),
        "last_unanswered": figures.is_open,
        "p50_ms": figures.percentile(50),
        "p95_ms": figures.percentile(95),
        "p50_of_plain": keys,
        "bulk_kbit": figures.bulk,
        "bulk_of_plain": bulk,
        "met": met,
    })
}

/// The address of the service as seen over the link.
fn service_address() -> SocketAddr {
    (DEVICE, SERVICE_PORT).into()
}
