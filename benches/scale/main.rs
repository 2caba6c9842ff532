//! Measures one process with 10, 100 and 1,000 tunnels: its memory, threads, descriptors and
//! processor time, first idle and then at 10 KB/s for each tunnel and direction. Prints tables.
//! Options: `--json FILE`, `--quick`.
//!
//! The device is a process of its own and has a processor to itself. The far end of all tunnels and
//! the echo service behind the device share the other processor.

mod crowd;

use std::io::{BufRead, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel::{
    ConnectParams, EventKind, Limits, Manager, Port, Security, Service, TlsConfig, Token, TunnelId,
};
use aiot_tunnel_testkit::bench::process::{pin, Role, FAR, NEAR};
use aiot_tunnel_testkit::bench::transport;
use aiot_tunnel_testkit::certificates::Identity;
use aiot_tunnel_testkit::procfs;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use serde_json::{json, Map};

use crowd::{Crowd, SERVICE, SESSIONS};

const COUNTS: [usize; 3] = [10, 100, 1000];
/// The number of bytes that each session echoes before the measurements.
const ECHO: usize = 32 * 1024;
/// Time between the echo and the idle window. It keeps pings away from the edges of the window.
const SETTLE: Duration = Duration::from_secs(2);
/// Under load, each session carries one message in each period: 5 KB/s to the device and 5 KB/s
/// back.
const MESSAGE: usize = 1000;
const PERIOD: Duration = Duration::from_millis(200);
/// The share of the sent bytes that must come back while the load runs. All of them must be back
/// soon afterwards.
const BACK: f64 = 0.98;

struct Settings {
    json: Option<String>,
    /// By default one ping interval, so that each tunnel sends one ping.
    idle: Duration,
    load: Duration,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["device", count, cloud, service, ref ca @ ..] = text[..] {
        let number = |text: &str| text.parse().expect("a port");
        let count = count.parse().expect("a count");
        return device(count, number(cloud), number(service), ca.first().copied());
    }
    if !text.contains(&"--bench") {
        // `cargo test --benches` checks only that the program starts.
        return;
    }
    let quick = text.contains(&"--quick");
    let json = text.iter().position(|argument| *argument == "--json");
    let settings = Settings {
        json: json.map(|at| arguments.get(at + 1).expect("--json FILE").clone()),
        idle: if quick { Duration::from_secs(2) } else { Limits::default().ping_interval },
        load: Duration::from_secs(if quick { 2 } else { 10 }),
    };
    allow_descriptors();
    pin(std::process::id(), FAR);
    let mut rows = Vec::new();
    for tls in [false, true] {
        let columns: Vec<_> = COUNTS.iter().map(|count| measure(*count, tls, &settings)).collect();
        print(tls, &columns);
        for (count, column) in COUNTS.iter().zip(columns) {
            let figures: Map<_, _> =
                column.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            rows.push(json!({ "leg": transport(tls), "tunnels": count, "figures": figures }));
        }
    }
    if let Some(file) = settings.json {
        std::fs::write(file, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    }
}

/// Raises the limit on descriptors. The device needs the most: for each tunnel a socket, an
/// eventfd, and a socket for each session.
fn allow_descriptors() {
    let need = (COUNTS[COUNTS.len() - 1] * (2 + SESSIONS) + 100) as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < need) {
        let raised = Rlimit { current: Some(need), ..limit };
        if let Err(e) = setrlimit(Resource::Nofile, raised) {
            eprintln!("a process needs {need} descriptors here; `ulimit -Hn {need}` as root: {e}");
            std::process::exit(1);
        }
    }
}

/// The device's process. It connects when its standard input has a line, and stops at the end of
/// the input. Then it prints the number of connected tunnels, the number of tunnels lost before,
/// and the milliseconds that the stop took.
fn device(count: usize, cloud: u16, service: u16, ca: Option<&str>) {
    let security = match ca {
        Some(ca) => Security::Tls(TlsConfig::new().with_ca_pem(ca.as_bytes()).unwrap()),
        None => Security::Plain,
    };
    let port = |port| Port::new(port).unwrap();
    let counters: Arc<[AtomicUsize; 2]> = Arc::default();
    let events = counters.clone();
    let manager = Manager::builder()
        .limits(Limits::new().with_max_tunnels(count))
        .service(Service::new(SERVICE, "127.0.0.1", port(service)).unwrap())
        .security(security)
        .on_event(move |_, event| {
            let which = usize::from(event.kind != EventKind::Connect);
            events[which].fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .unwrap();
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    let handle = manager.handle();
    for number in 0..count {
        let token = Token::new("hush-scale").unwrap();
        let params = ConnectParams::new("127.0.0.1", port(cloud), "/tunnel/t/dest", token).unwrap();
        handle.add(&TunnelId::new(&format!("t{number}")).unwrap(), params).unwrap();
    }
    let at_stop = counters.clone();
    let stop = std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let counts = at_stop.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        let began = Instant::now();
        handle.stop();
        (counts, began)
    });
    manager.run().unwrap();
    let ended = Instant::now();
    let ([connected, lost], began) = stop.join().unwrap();
    println!("{connected} {lost} {}", (ended - began).as_secs_f64() * 1e3);
}

/// Figures with their names, in the order of the table.
type Column = Vec<(&'static str, f64)>;

fn measure(count: usize, tls: bool, settings: &Settings) -> Column {
    let identity = Identity::self_signed();
    let acceptor = tls.then(|| identity.acceptor());
    let mut crowd = Crowd::new();
    let [cloud, service] = crowd.ports().map(|port| port.to_string());
    let mut arguments = vec!["device".to_owned(), count.to_string(), cloud, service];
    arguments.extend(tls.then(|| String::from_utf8(identity.certificate).unwrap()));
    let mut device = Role::start(&arguments);
    let id = device.id();
    assert_eq!(device.next_line(), "ready");
    pin(id, NEAR);
    let (_, empty) = procfs::memory(id);

    let began = Instant::now();
    device.say("connect");
    crowd.accept(count, acceptor.as_ref());
    let connected = began.elapsed();
    let began = Instant::now();
    crowd.open();
    let opened = began.elapsed();
    crowd.echo(ECHO);

    crowd.run(Instant::now() + SETTLE);
    let idle = window(id, || crowd.run(Instant::now() + settings.idle));
    let (resident, private) = procfs::memory(id);
    let (threads, descriptors) = (procfs::threads(id), procfs::descriptors(id));
    let sent = count as f64 * SESSIONS as f64 * MESSAGE as f64 * settings.load.as_secs_f64()
        / PERIOD.as_secs_f64();
    let mut back = 0;
    let load = window(id, || back = crowd.load(MESSAGE, PERIOD, settings.load));
    crowd.settle();
    if (back as f64) < sent * BACK {
        eprintln!("{count} tunnels, loaded: of {sent} bytes {back} in time; is the machine busy?");
    }
    let (loaded, loaded_private) = procfs::memory(id);
    let peak = procfs::peak(id);
    device.hang_up();
    let end = device.next_line();
    let end: Vec<f64> = end.split(' ').map(|number| number.parse().unwrap()).collect();
    assert_eq!(end[..2], [count as f64, 0.0], "tunnels connected, lost");
    vec![
        ("sessions", (count * SESSIONS) as f64),
        ("seconds until all tunnels are open", connected.as_secs_f64()),
        ("milliseconds until all sessions are open", opened.as_secs_f64() * 1e3),
        ("threads", threads as f64),
        ("descriptors", descriptors as f64),
        ("MiB resident, idle", mebi(resident)),
        ("MiB private, idle", mebi(private)),
        ("KiB private a tunnel, idle", (private - empty) as f64 / count as f64),
        ("% of a processor, idle", idle.cpu * 100.0),
        ("wake-ups a second, idle", idle.sleeps),
        ("MB/s each way, loaded", back as f64 / settings.load.as_secs_f64() / 1e6),
        ("% of a processor, loaded", load.cpu * 100.0),
        ("wake-ups a second, loaded", load.sleeps),
        ("% of the other processor, loaded: far end and echo", load.far * 100.0),
        ("MiB resident, loaded", mebi(loaded)),
        ("MiB private, loaded", mebi(loaded_private)),
        ("MiB resident at most", mebi(peak)),
        ("milliseconds to stop", end[2]),
    ]
}

fn mebi(kibi: u64) -> f64 {
    kibi as f64 / 1024.0
}

/// What a process uses in each second of a window.
struct Rates {
    cpu: f64,
    sleeps: f64,
    /// The processor time of this process, the far end. At 1 it would limit the result.
    far: f64,
}

fn window(device: u32, meanwhile: impl FnOnce()) -> Rates {
    let read = || (procfs::cpu(device), procfs::sleeps(device), procfs::cpu(std::process::id()));
    let (before, began) = (read(), Instant::now());
    meanwhile();
    let (after, time) = (read(), began.elapsed().as_secs_f64());
    Rates {
        cpu: (after.0 - before.0) / time,
        sleeps: (after.1 - before.1) as f64 / time,
        far: (after.2 - before.2) / time,
    }
}

fn print(tls: bool, columns: &[Column]) {
    let heads: String = COUNTS.iter().map(|count| format!(" {count} tunnels |")).collect();
    println!("\n| {} |{heads}\n| --- |{}", transport(tls), " ---: |".repeat(COUNTS.len()));
    for (row, (name, _)) in columns[0].iter().enumerate() {
        let cells: String =
            columns.iter().map(|column| format!(" {} |", figure(column[row].1))).collect();
        println!("| {name} |{cells}");
    }
}

fn figure(value: f64) -> String {
    match value {
        whole if whole.fract() == 0.0 => format!("{whole}"),
        large if large >= 100.0 => format!("{large:.0}"),
        small => format!("{small:.2}"),
    }
}
