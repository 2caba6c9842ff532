//! Measures one gateway with 1,000 and 10,000 tunnels: memory, threads, descriptors and processor time, idle and
//! under the devices' pings; and how long all devices take to come back after the gateway was killed. Prints a
//! table. Options: `--json FILE`, `--quick`, `--tunnels COUNT[,COUNT]`.
//!
//! The gateway is the built program, with a list of tunnels and a processor to itself. The devices are one thread
//! on the other processor ([`crowd`]).

mod crowd;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::bench::process::{pin, FAR, NEAR};
use aiot_tunnel_testkit::bench::transport;
use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::fleet::{Fleet, GATEWAYS};
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::process::{program, Process};
use aiot_tunnel_testkit::{certificates, procfs};
use rustix::process::{getrlimit, setrlimit, Resource};
use serde_json::{json, Map};

use crowd::{Crowd, Storm, Tunnel};

const COUNTS: [usize; 2] = [1_000, 10_000];
/// What a gateway needs for each tunnel with a device, and for itself and its handshakes.
const DESCRIPTORS: usize = 2;
const OWN_DESCRIPTORS: usize = 200;
/// Time between the last connection and the first window.
const SETTLE: Duration = Duration::from_secs(2);

struct Settings {
    counts: Vec<usize>,
    json: Option<String>,
    /// Shorter than the time after which the gateway pings.
    idle: Duration,
    /// By default one ping interval, so that each device pings once.
    pings: Duration,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if !has("--bench") {
        // `cargo test --benches` checks only that the program starts.
        return;
    }
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).clone())
    };
    let counts = value("--tunnels").map_or(COUNTS.to_vec(), |text| {
        text.split(',').map(|count| count.parse().expect("--tunnels COUNT[,COUNT]")).collect()
    });
    let quick = has("--quick");
    let most = allowed();
    let counts = counts.into_iter().map(|count: usize| {
        if count > most {
            eprintln!(
                "{most} tunnels instead of {count}: a process may have too few descriptors here; \
                 `ulimit -Hn {}` as root",
                count * DESCRIPTORS + OWN_DESCRIPTORS
            );
        }
        count.min(most)
    });
    let settings = Settings {
        counts: counts.collect(),
        json: value("--json"),
        idle: Duration::from_secs(if quick { 2 } else { 10 }),
        pings: if quick { Duration::from_secs(4) } else { crowd::PING_INTERVAL },
    };
    pin(std::process::id(), FAR);
    let mut rows = Vec::new();
    for tls in [false, true] {
        let columns: Vec<_> =
            settings.counts.iter().map(|count| measure(*count, tls, &settings)).collect();
        rows.extend(print(transport(tls), &settings.counts, columns));
    }
    let columns = settings.counts.iter().map(|count| measure_fleet(*count));
    match columns.collect::<Result<Vec<_>, _>>() {
        Ok(columns) => {
            rows.extend(print("two gateways behind HAProxy", &settings.counts, columns));
        }
        Err(why) => eprintln!("gateways behind HAProxy are left out: {why}"),
    }
    if let Some(file) = settings.json {
        std::fs::write(file, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    }
}

/// Raises the limit on descriptors. How many tunnels it allows.
fn allowed() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("raise the limit on descriptors");
    let most = limit.maximum.map_or(usize::MAX, |most| most as usize);
    most.saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS
}

/// The program under measurement.
struct Gateway {
    process: Process,
    address: SocketAddr,
    /// From its start to its listening.
    started: Duration,
}

impl Gateway {
    fn start(arguments: &[String]) -> Self {
        let began = Instant::now();
        let mut command = Command::new(program());
        command.args(arguments).env_remove("RUST_LOG").stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        pin(process.id(), NEAR);
        let mut line = String::new();
        BufReader::new(process.take_stdout()).read_line(&mut line).unwrap();
        let started = began.elapsed();
        let address = line.trim_end().strip_prefix("listening on ").expect("an address");
        Gateway { process, address: address.parse().unwrap(), started }
    }
}

/// Figures with their names, in the order of the table.
type Column = Vec<(&'static str, f64)>;

fn measure(count: usize, tls: bool, settings: &Settings) -> Column {
    let folder = Folder::new();
    let tunnels: Vec<Tunnel> = (0..count)
        .map(|number| Tunnel { id: format!("t{number}"), token: format!("hush-device-{number}") })
        .collect();
    let entry = |Tunnel { id, token }: &Tunnel| json!({ "id": id, "device_token": token, "access_token": format!("hush-access-{id}") });
    let list: Vec<_> = tunnels.iter().map(entry).collect();
    let list = folder.write_secret("tunnels.json", serde_json::to_string(&list).unwrap());
    let limit = (count + 1_000).to_string();
    let mut arguments: Vec<String> =
        ["gateway", "--listen", "127.0.0.1:0", "--tunnels", &list, "--connection-limit", &limit]
            .map(str::to_owned)
            .into();
    arguments.extend(["--log-level".to_owned(), "error".to_owned()]);
    let authority = Authority::new();
    let connector = tls.then(|| certificates::connector(&authority.pem()));
    if tls {
        let identity = authority.identity("127.0.0.1");
        let certificate = folder.write("server.pem", identity.certificate);
        let key = folder.write_secret("server.key", identity.key);
        arguments.extend(["--cert".to_owned(), certificate, "--key".to_owned(), key]);
    } else {
        arguments.push("--plain".to_owned());
    }

    let gateway = Gateway::start(&arguments);
    let id = gateway.process.id();
    let (_, empty) = procfs::memory(id);
    let mut crowd = Crowd::new(gateway.address, tunnels, connector);
    let set_up = storm(&mut crowd, Instant::now(), &[id]);
    crowd.run(Instant::now() + SETTLE, false);
    let idle = window(id, || crowd.run(Instant::now() + settings.idle, false));
    let pings = window(id, || crowd.run(Instant::now() + settings.pings, true));
    let (resident, private) = procfs::memory(id);
    let (threads, descriptors) = (procfs::threads(id), procfs::descriptors(id));

    // The devices notice the end at once: the gateway's kernel resets their connections.
    arguments[2] = gateway.address.to_string();
    let mut process = gateway.process;
    let killed = Instant::now();
    process.kill();
    let (sender, receiver) = mpsc::channel();
    let starter = thread::spawn(move || sender.send(Gateway::start(&arguments)));
    let failures = crowd.failures();
    let gateway = loop {
        crowd.run(Instant::now() + Duration::from_millis(10), false);
        if let Ok(gateway) = receiver.try_recv() {
            break gateway;
        }
    };
    starter.join().unwrap().unwrap();
    let id = gateway.process.id();
    let mut back = storm(&mut crowd, killed, &[]);
    (back.failures, back.cpu) = ((crowd.failures() - failures) as f64, procfs::whole_cpu(id));
    let peak = procfs::peak(id);
    vec![
        ("seconds until the gateway listens", gateway.started.as_secs_f64()),
        ("first connection: seconds until half are open", set_up.half),
        ("first connection: seconds until all are open", set_up.all),
        ("first connection: attempts that failed", set_up.failures),
        ("first connection: processor seconds of the gateway", set_up.cpu),
        ("threads", threads as f64),
        ("descriptors", descriptors as f64),
        ("MiB resident", mebi(resident)),
        ("MiB private", mebi(private)),
        ("KiB private a tunnel", (private - empty) as f64 / count as f64),
        ("% of a processor, idle", idle * 100.0),
        ("% of a processor, with a ping each 20 s a device", pings * 100.0),
        ("restart: seconds until half are back", back.half),
        ("restart: seconds until 99 % are back", back.most),
        ("restart: seconds until all are back", back.all),
        ("restart: attempts that failed", back.failures),
        ("restart: processor seconds of the gateway", back.cpu),
        ("restart: MiB resident at most", mebi(peak)),
    ]
}

/// How all devices connected.
struct Figures {
    half: f64,
    most: f64,
    all: f64,
    failures: f64,
    cpu: f64,
}

/// Lets all devices connect, and counts the processor seconds of these processes.
fn storm(crowd: &mut Crowd, began: Instant, processes: &[u32]) -> Figures {
    let used = || processes.iter().map(|process| procfs::whole_cpu(*process)).sum::<f64>();
    let before = used();
    let Storm { half, most, all, failures } = crowd.connect_all(began);
    let [half, most, all] = [half, most, all].map(|time| time.as_secs_f64());
    Figures { half, most, all, failures: failures as f64, cpu: used() - before }
}

/// Two gateways behind HAProxy, one of which is killed.
fn measure_fleet(count: usize) -> Result<Column, String> {
    let mut fleet = Fleet::start(&[])?;
    for (_, process) in fleet.processes() {
        pin(process, NEAR);
    }
    let add = |number| {
        let id = format!("pump-{number}");
        let token = fleet.add(number % GATEWAYS, &id).device;
        Tunnel { id, token }
    };
    let tunnels: Vec<Tunnel> = (0..count).map(add).collect();
    let id = |fleet: &Fleet, name: &str| {
        let all = fleet.processes();
        all.into_iter().find(|(other, _)| other == name).map(|(_, id)| id).expect("a process")
    };
    let (balancer, survivor) = (id(&fleet, "haproxy"), id(&fleet, "gateway 1"));
    let empty = procfs::memory(balancer).1;
    let connector = certificates::connector(&fleet.ca());
    let mut crowd = Crowd::new(fleet.address(), tunnels, Some(connector));
    let set_up = storm(&mut crowd, Instant::now(), &[balancer]);
    crowd.run(Instant::now() + SETTLE, false);
    let memory = procfs::memory(balancer).1;
    let descriptors = procfs::descriptors(balancer);
    let pings = window(balancer, || crowd.run(Instant::now() + crowd::PING_INTERVAL, true));
    let (killed, before) = (Instant::now(), [balancer, survivor].map(procfs::whole_cpu));
    fleet.kill(0);
    // Until the balancer has closed the first connection.
    while crowd.open() == count {
        crowd.run(Instant::now() + Duration::from_millis(1), false);
    }
    let lost = storm(&mut crowd, killed, &[]);
    let after = [balancer, survivor].map(procfs::whole_cpu);
    Ok(vec![
        ("first connection: seconds until all are open", set_up.all),
        ("first connection: processor seconds of HAProxy", set_up.cpu),
        ("HAProxy: KiB private a tunnel", (memory - empty) as f64 / count as f64),
        ("HAProxy: descriptors", descriptors as f64),
        ("HAProxy: % of a processor, with a ping each 20 s a device", pings * 100.0),
        ("kill of a gateway: seconds until all are back", lost.all),
        ("kill of a gateway: attempts that failed", lost.failures),
        ("kill of a gateway: processor seconds of HAProxy", after[0] - before[0]),
        ("kill of a gateway: processor seconds of the other gateway", after[1] - before[1]),
    ])
}

/// The share of a processor that the gateway uses meanwhile.
fn window(gateway: u32, meanwhile: impl FnOnce()) -> f64 {
    let (before, began) = (procfs::cpu(gateway), Instant::now());
    meanwhile();
    (procfs::cpu(gateway) - before) / began.elapsed().as_secs_f64()
}

fn mebi(kibi: u64) -> f64 {
    kibi as f64 / 1024.0
}

/// Prints a table. Returns it as JSON.
fn print(leg: &str, counts: &[usize], columns: Vec<Column>) -> Vec<serde_json::Value> {
    let heads: String = counts.iter().map(|count| format!(" {count} tunnels |")).collect();
    println!("\n| {leg} |{heads}\n| --- |{}", " ---: |".repeat(counts.len()));
    for (row, (name, _)) in columns[0].iter().enumerate() {
        let cells: String =
            columns.iter().map(|column| format!(" {} |", figure(column[row].1))).collect();
        println!("| {name} |{cells}");
    }
    let row = |(count, column): (&usize, Column)| {
        let figures: Map<_, _> =
            column.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
        json!({ "leg": leg, "tunnels": count, "figures": figures })
    };
    counts.iter().zip(columns).map(row).collect()
}

fn figure(value: f64) -> String {
    match value {
        whole if whole.fract() == 0.0 => format!("{whole}"),
        large if large >= 100.0 => format!("{large:.0}"),
        small => format!("{small:.2}"),
    }
}
