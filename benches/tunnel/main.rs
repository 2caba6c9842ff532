//! Measures the device side from outside: the C demo, which uses the shared library and gets its
//! commands over the message queue. It runs between a gateway that is no bottleneck and a local
//! service. A raw relay and a bare WebSocket echo are measured in its place in the same run. Prints
//! a table and writes it as JSON.
//!
//! For throughput, the gateway has one processor; device and local service share the other. For
//! round trips, all run on the same processor. Then the figures show the software and not the time
//! that an idle processor needs to wake up.

mod reference;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::bench::far::{self, Connection};
use aiot_tunnel_testkit::bench::process::{pin, Demo, Role, FAR, NEAR};
use aiot_tunnel_testkit::bench::{service, transport};
use aiot_tunnel_testkit::certificates::Identity;
use aiot_tunnel_testkit::procfs;
use openssl::ssl::SslAcceptor;
use serde_json::{json, Value};

/// How long the load runs before a measurement begins.
const WARM_UP: Duration = Duration::from_millis(200);

struct Settings {
    demo: String,
    json: Option<String>,
    repeats: usize,
    window: Duration,
    round_trips: usize,
    keystrokes: usize,
    idle: Duration,
    /// Run only the phases whose names contain this text.
    only: String,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().expect("a number");
    match text[..] {
        ["local"] => return service::run(),
        ["relay", port, service, count, ref ca @ ..] => {
            let count = count.parse().expect("a count");
            return reference::relay(number(port), number(service), count, ca.first().copied());
        }
        ["echo", port, ref ca @ ..] => return reference::echo(number(port), ca.first().copied()),
        _ => {}
    }
    if !text.contains(&"--bench") {
        // `cargo test --benches` checks only that the program starts.
        return;
    }
    let quick = text.contains(&"--quick");
    let value = |name: &str| {
        let at = text.iter().position(|argument| *argument == name)?;
        text.get(at + 1).map(|value| value.to_string())
    };
    Bench::new(Settings {
        demo: value("--demo").unwrap_or("target/demo/tunnel_basic_demo".into()),
        json: value("--json"),
        repeats: if quick { 1 } else { 5 },
        window: value("--seconds")
            .map_or(Duration::from_millis(if quick { 200 } else { 800 }), |seconds| {
                Duration::from_secs_f64(seconds.parse().expect("seconds"))
            }),
        round_trips: if quick { 500 } else { 20_000 },
        keystrokes: if quick { 100 } else { 1000 },
        idle: Duration::from_secs(if quick { 2 } else { 30 }),
        only: value("--only").unwrap_or_default(),
    })
    .run();
}

/// The program that is measured.
#[derive(Clone, Copy, PartialEq)]
enum Subject {
    Device,
    Raw,
    Echo,
}

struct Bench {
    settings: Settings,
    listener: TcpListener,
    acceptor: SslAcceptor,
    /// The name of the CA's file.
    ca: String,
    /// The process of the local service, its port, and a connection that reads its counters.
    local: Role,
    service: u16,
    count: TcpStream,
    rows: Vec<Value>,
}

/// A running subject and its connections.
struct Setup {
    process: Running,
    connections: Vec<Connection>,
}

enum Running {
    Device(Demo),
    Reference(Role),
}

impl Setup {
    /// The process id of the subject.
    fn id(&self) -> u32 {
        match &self.process {
            Running::Device(demo) => demo.id(),
            Running::Reference(role) => role.id(),
        }
    }
}

/// Rates in MB/s, and processor seconds for each GB.
#[derive(Clone, Copy, Default)]
struct Sample {
    down: f64,
    up: f64,
    cpu: f64,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.ca);
    }
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let identity = Identity::self_signed();
        let ca = std::env::temp_dir().join(format!("aiot-bench-{}.pem", std::process::id()));
        std::fs::write(&ca, &identity.certificate).unwrap();
        let local = Role::start(&["local".into()]);
        let service = local.next_line().parse().expect("the service prints its port");
        let mut count = TcpStream::connect(("127.0.0.1", service)).unwrap();
        count.write_all(&[service::COUNT]).unwrap();
        Bench {
            settings,
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            acceptor: identity.acceptor(),
            ca: ca.to_str().unwrap().to_owned(),
            local,
            service,
            count,
            rows: Vec::new(),
        }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// The number of bytes that the sinks of the local service have read.
    fn taken(&mut self) -> u64 {
        self.count.write_all(&[0]).unwrap();
        let mut bytes = [0; 8];
        self.count.read_exact(&mut bytes).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn setup(&self, subject: Subject, tls: bool, sessions: usize, what: u8) -> Setup {
        let ca = tls.then_some(self.ca.as_str());
        let acceptor = tls.then_some(&self.acceptor);
        match subject {
            Subject::Device => {
                let device = Demo::start(&self.settings.demo, self.service, ca);
                device.add(0, self.port());
                let mut connection = Connection::tunnel(&self.listener, acceptor);
                for _ in 0..sessions {
                    connection.open("bench", what);
                }
                Setup { process: Running::Device(device), connections: vec![connection] }
            }
            Subject::Raw => {
                let mut arguments = vec![
                    "relay".to_owned(),
                    self.port().to_string(),
                    self.service.to_string(),
                    sessions.to_string(),
                ];
                arguments.extend(ca.map(str::to_owned));
                let relay = Role::start(&arguments);
                let mut connections: Vec<Connection> =
                    (0..sessions).map(|_| Connection::raw(&self.listener, acceptor)).collect();
                for connection in &mut connections {
                    connection.open("", what);
                }
                Setup { process: Running::Reference(relay), connections }
            }
            Subject::Echo => {
                let mut arguments = vec!["echo".to_owned(), self.port().to_string()];
                arguments.extend(ca.map(str::to_owned));
                let echo = Role::start(&arguments);
                let connections = vec![Connection::echo(&self.listener, acceptor)];
                Setup { process: Running::Reference(echo), connections }
            }
        }
    }

    fn pin_apart(&self, setup: &Setup) {
        pin(std::process::id(), FAR);
        pin(self.local.id(), NEAR);
        pin(setup.id(), NEAR);
    }

    fn throughput(&mut self, subject: Subject, tls: bool, sessions: usize, what: u8) -> Sample {
        let mut setup = self.setup(subject, tls, sessions, what);
        self.pin_apart(&setup);
        if what != service::FLOOD {
            setup.connections.iter_mut().for_each(Connection::load);
        }
        far::run(&mut setup.connections, Instant::now() + WARM_UP);
        let (taken, cpu, began) = (self.taken(), procfs::cpu(setup.id()), Instant::now());
        let received = far::run(&mut setup.connections, began + self.settings.window);
        let down = self.taken() - taken;
        let (cpu, time) = (procfs::cpu(setup.id()) - cpu, began.elapsed().as_secs_f64());
        let gigabytes = (down + received) as f64 / 1e9;
        Sample {
            down: down as f64 / 1e6 / time,
            up: received as f64 / 1e6 / time,
            cpu: cpu / gigabytes,
        }
    }

    /// Measures the device and the raw relay by turns, so that both meet the same state of the
    /// machine.
    fn compare(&mut self, tls: bool, sessions: usize, what: u8) -> (Vec<Sample>, Vec<Sample>) {
        (0..self.settings.repeats)
            .map(|_| {
                let raw = self.throughput(Subject::Raw, tls, sessions, what);
                (self.throughput(Subject::Device, tls, sessions, what), raw)
            })
            .unzip()
    }

    fn run(mut self) {
        let machine = machine();
        println!("{machine}\n");
        println!("{:<50} {:>10} {:>10} {:>9}  {:<10}", "", "device", "raw relay", "", "target");
        for tls in [false, true] {
            self.throughputs(tls);
        }
        for tls in [false, true] {
            self.latencies(tls);
        }
        for tls in [false, true] {
            if self.wanted(tls, "idle") {
                self.idle(tls);
            }
            if self.wanted(tls, "memory") {
                self.memory(tls);
            }
        }
        if "library".contains(&self.settings.only) {
            self.library();
        }
        if let Some(file) = &self.settings.json {
            let report = json!({ "machine": machine, "rows": self.rows });
            let text = serde_json::to_string_pretty(&report).unwrap();
            std::fs::write(file, text).unwrap();
        }
    }

    /// Whether the user asked for this phase.
    fn wanted(&self, tls: bool, phase: &str) -> bool {
        format!("{}, {phase}", transport(tls)).contains(&self.settings.only)
    }

    fn throughputs(&mut self, tls: bool) {
        let transport = transport(tls);
        let repeats = self.settings.repeats;
        if self.wanted(tls, "echo") {
            let echo: Vec<_> = (0..repeats)
                .map(|_| self.throughput(Subject::Echo, tls, 1, service::ECHO))
                .collect();
            let name = format!("{transport}, bare WebSocket echo, 4 KiB, MB/s each way");
            self.row(&name, median(&echo, |s| s.up), None, None, Target::None);
        }
        let least = if tls { 0.80 } else { 0.75 };
        for sessions in [1, 10] {
            for (what, name) in [(service::SINK, "down"), (service::FLOOD, "up")] {
                if !self.wanted(tls, &format!("{name}, {sessions} session(s)")) {
                    continue;
                }
                let (device, raw) = self.compare(tls, sessions, what);
                let rate = |s: &Sample| s.down + s.up;
                let (ours, theirs) = (median(&device, rate), median(&raw, rate));
                let ratios: Vec<f64> =
                    device.iter().zip(&raw).map(|(d, r)| rate(d) / rate(r)).collect();
                let name = format!("{transport}, {name}, {sessions} session(s), MB/s");
                self.row(&name, ours, Some(theirs), Some(median_of(ratios)), Target::Least(least));
                let (ours, theirs) = (median(&device, |s| s.cpu), median(&raw, |s| s.cpu));
                let most = match (what, tls) {
                    (service::SINK, false) => 0.60,
                    (service::SINK, true) => 0.85,
                    (_, false) => 0.90,
                    (_, true) => 1.10,
                };
                self.row("  processor seconds a GB", ours, Some(theirs), None, Target::Most(most));
            }
            if !self.wanted(tls, &format!("both ways, {sessions} session(s)")) {
                continue;
            }
            let (device, _) = self.compare(tls, sessions, service::BOTH);
            let name = format!("{transport}, both ways, {sessions} session(s): MB/s down");
            self.row(&name, median(&device, |s| s.down), None, None, Target::None);
            self.row("  MB/s up", median(&device, |s| s.up), None, None, Target::None);
            let share = median(&device, |s| s.down.min(s.up) / (s.down + s.up));
            self.row("  the slower one's share", share, None, None, Target::Least(0.35));
        }
    }

    fn latencies(&mut self, tls: bool) {
        if self.wanted(tls, "round trip") {
            self.round_trips(tls);
        }
        for (what, direction) in [(service::SINK, "down"), (service::FLOOD, "up")] {
            if self.wanted(tls, &format!("under load {direction}")) {
                self.keystrokes(tls, what, direction);
            }
        }
        if self.wanted(tls, "session set-up") {
            self.session_set_up(tls);
        }
        if self.wanted(tls, "tunnel set-up") {
            self.tunnel_set_up(tls);
        }
    }

    fn round_trips(&mut self, tls: bool) {
        let transport = transport(tls);
        let [mut ours, mut theirs] = [Subject::Device, Subject::Raw].map(|subject| {
            let mut setup = self.setup(subject, tls, 1, service::ECHO);
            for process in [self.local.id(), setup.id(), std::process::id()] {
                pin(process, FAR);
            }
            setup.connections[0].round_trips(self.settings.round_trips / 10);
            setup.connections[0].round_trips(self.settings.round_trips)
        });
        for times in [&mut ours, &mut theirs] {
            times.sort_unstable();
        }
        let most = if tls { 2.0 } else { 1.6 };
        for (part, name, target) in [
            (0.5, "p50", Target::Most(most)),
            (0.99, "p99", Target::None),
            (0.999, "p99.9", Target::None),
        ] {
            let at = |times: &[Duration]| {
                times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6
            };
            let (a, b) = (at(&ours), at(&theirs));
            let name = format!("{transport}, round trip of 1 byte, {name}, us");
            self.row(&name, a, Some(b), Some(a / b), target);
        }
    }

    /// Measures a keystroke while nine other sessions are as busy as possible.
    fn keystrokes(&mut self, tls: bool, what: u8, direction: &str) {
        let mut setup = self.setup(Subject::Device, tls, 9, what);
        setup.connections[0].open("bench", service::ECHO);
        self.pin_apart(&setup);
        let (connection, count) = (&mut setup.connections[0], self.settings.keystrokes);
        connection.keystrokes(count / 10, what == service::SINK);
        let mut times = connection.keystrokes(count, what == service::SINK);
        times.sort_unstable();
        for (part, name, target) in [(0.5, "p50", Target::None), (0.99, "p99", Target::Most(5.0))] {
            let at = times[(count as f64 * part) as usize].as_secs_f64() * 1e3;
            let name =
                format!("{}, keystroke beside nine busy {direction}, {name}, ms", transport(tls));
            self.row(&name, at, None, None, target);
        }
    }

    fn session_set_up(&mut self, tls: bool) {
        let mut setup = self.setup(Subject::Device, tls, 0, service::ECHO);
        pin(setup.id(), FAR);
        // The local service starts a thread for each connection. That time is not the device's, so
        // the service gets the other processor.
        pin(self.local.id(), NEAR);
        let connection = &mut setup.connections[0];
        let mut times = Vec::new();
        for _ in 0..20 * self.settings.repeats {
            times.extend((0..10).map(|_| {
                let took = connection.open("bench", service::ECHO);
                // The round trip waits until everything is at rest before the next measurement.
                connection.round_trips(1);
                took.as_secs_f64() * 1e6
            }));
            connection.release();
            // Receives the answers to the releases, so that the next sessions find an empty table.
            far::run(std::slice::from_mut(connection), Instant::now() + Duration::from_millis(20));
        }
        let name = format!("{}, session set-up, p50, us", transport(tls));
        self.row(&name, median_of(times), None, None, Target::Most(150.0));
    }

    fn tunnel_set_up(&mut self, tls: bool) {
        let mut times = Vec::new();
        for _ in 0..4 * self.settings.repeats {
            let device =
                Demo::start(&self.settings.demo, self.service, tls.then_some(self.ca.as_str()));
            // The first connection loads code that all others share, so it is not measured.
            device.add(0, self.port());
            let _first = Connection::tunnel(&self.listener, tls.then_some(&self.acceptor));
            let began = Instant::now();
            device.add(1, self.port());
            let _second = Connection::tunnel(&self.listener, tls.then_some(&self.acceptor));
            times.push(began.elapsed().as_secs_f64() * 1e6);
            // The device ends before its connections. Otherwise it would connect again.
            drop(device);
        }
        self.row(
            &format!("{}, tunnel set-up, p50, us", transport(tls)),
            median_of(times),
            None,
            None,
            Target::None,
        );
    }

    fn idle(&mut self, tls: bool) {
        let transport = transport(tls);
        let setup = self.setup(Subject::Device, tls, 1, service::ECHO);
        std::thread::sleep(Duration::from_secs(1));
        let before = procfs::sleeps(setup.id());
        std::thread::sleep(self.settings.idle);
        let count = (procfs::sleeps(setup.id()) - before) as f64;
        let rate = count / self.settings.idle.as_secs_f64();
        self.row(
            &format!("{transport}, idle: wake-ups a second"),
            rate,
            None,
            None,
            Target::Most(0.2),
        );
    }

    fn memory(&mut self, tls: bool) {
        let transport = transport(tls);
        let ca = tls.then_some(self.ca.as_str());
        let device = Demo::start(&self.settings.demo, self.service, ca);
        let mut connections = Vec::new();
        let settle = || std::thread::sleep(Duration::from_millis(500));
        let mut readings = Vec::new();
        for count in [0, 1, 20] {
            while connections.len() < count {
                device.add(connections.len(), self.port());
                connections.push(Connection::tunnel(&self.listener, tls.then_some(&self.acceptor)));
            }
            settle();
            let (resident, private) = procfs::memory(device.id());
            readings.push(private);
            let at_one = |most| if tls && count == 1 { Target::Most(most) } else { Target::None };
            let name = format!("{transport}, {count} idle tunnel(s): KiB resident");
            self.row(&name, resident as f64, None, None, at_one(8.0 * 1024.0));
            self.row("  KiB private", private as f64, None, None, at_one(2.5 * 1024.0));
        }
        let each = (readings[2] - readings[1]) as f64 / 19.0;
        let most = if tls { 160.0 } else { 64.0 };
        let name = format!("{transport}, each further tunnel: KiB private");
        self.row(&name, each, None, None, Target::Most(most));
        for connection in &mut connections {
            for _ in 0..10 {
                connection.open("bench", service::ECHO);
            }
        }
        settle();
        let each = (procfs::memory(device.id()).1 - readings[2]) as f64 / 200.0;
        let name = format!("{transport}, each session: KiB private");
        self.row(&name, each, None, None, Target::Most(16.0));
        drop(device);
    }

    /// Measures the size of the shared library.
    fn library(&mut self) {
        let target = Path::new(&self.settings.demo).parent().and_then(Path::parent);
        let target = target.map(Path::to_owned).unwrap_or_default();
        let stripped = std::env::temp_dir().join(format!("aiot-bench-{}.so", std::process::id()));
        for (profile, most) in [("release", 1024.0), ("release-small", 700.0)] {
            let library = target.join(profile).join("libaiot_tunnel.so");
            if !library.exists() {
                eprintln!("there is no {}: `make bench` builds it", library.display());
                continue;
            }
            let strip =
                Command::new("strip").arg("-s").arg(&library).arg("-o").arg(&stripped).status();
            assert!(strip.is_ok_and(|status| status.success()), "strips {}", library.display());
            let size = std::fs::metadata(&stripped).unwrap().len() as f64 / 1024.0;
            let name = format!("stripped libaiot_tunnel.so, {profile}: KiB");
            self.row(&name, size, None, None, Target::Most(most));
        }
        let _ = std::fs::remove_file(&stripped);
    }

    fn row(&mut self, name: &str, ours: f64, raw: Option<f64>, ratio: Option<f64>, target: Target) {
        let cell = |value: Option<f64>| value.map_or(String::new(), figure);
        let verdict = match target {
            Target::None => String::new(),
            Target::Least(least) => format!(">= {least} {}", met(ratio.unwrap_or(ours) >= least)),
            Target::Most(most) => format!("<= {most} {}", met(ratio.unwrap_or(ours) <= most)),
        };
        let ratio_cell = cell(ratio);
        println!("{name:<50} {:>10} {:>10} {ratio_cell:>9}  {verdict}", figure(ours), cell(raw));
        self.rows.push(json!({
            "name": name.trim(), "device": ours, "raw": raw, "ratio": ratio, "target": verdict,
        }));
    }
}

/// Describes the machine: commit, processors, system and tools.
fn machine() -> String {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.unwrap_or_default()
    };
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    format!(
        "commit {}; {} processor(s), {}; Linux {}; {}; {}",
        output("git", &["describe", "--always", "--dirty"]),
        info.matches("processor\t").count(),
        model.unwrap_or("unknown").trim_start_matches(['\t', ':', ' ']),
        read("/proc/sys/kernel/osrelease").trim(),
        output("rustc", &["--version"]),
        openssl::version::version(),
    )
}

#[derive(Clone, Copy)]
enum Target {
    None,
    Least(f64),
    Most(f64),
}

fn met(is: bool) -> &'static str {
    if is {
        "met"
    } else {
        "NOT MET"
    }
}

fn figure(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    median_of(samples.iter().map(of).collect())
}

fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
