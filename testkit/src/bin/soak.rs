//! Tunnels under load and faults for a given time, with a table at the end.
//!
//! The device side runs in processes of its own (`aiot-tunnel agent`, one for TLS and one for plain
//! text), which receive their commands over their message queues. Gateways, failing networks, local
//! services and access sides are in this process. Each tunnel has a foreign access side and, with
//! and without the session extensions, the library's own one, whose local clients pause, half-close,
//! reset and die. Beside them, processes are killed and started again (see
//! [`kills`](aiot_tunnel_testkit::kills)). The exit code is 1 if a byte was wrong or was lost without a report,
//! at either end of a stream, if a session ended without a cause, or if the device side has grown.
//!
//! `scripts/soak --duration 60m --seed 7` builds both programs and runs this one. Fixtures that a
//! test could use, too, do not belong here, but in the library of this package.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::access::{self, Client, Stop};
use aiot_tunnel::gateway::{Gateway, Side, TunnelConfig};
use aiot_tunnel::{listen, ConnectParams, Port, Security, TlsConfig, Token, TunnelId};
use aiot_tunnel_testkit::certificates::{Authority, Identity};
use aiot_tunnel_testkit::exchange::{self, Bounds, Exchange, Exchanges, Script, Verdict};
use aiot_tunnel_testkit::faults::{Profile, Proxy, KINDS};
use aiot_tunnel_testkit::process::{program, Process};
use aiot_tunnel_testkit::queue::Key;
use aiot_tunnel_testkit::random::{self, permille, Generator};
use aiot_tunnel_testkit::traffic::{
    self, judge, served, Access, Causes, Outcome, Plan, Served, ServiceLog,
};
use aiot_tunnel_testkit::{gateways, kills, procfs};
use clap::Parser;
use rand::{Rng, RngExt};

/// A lost connection may be noticed this much earlier or later than the end of its sessions.
const SLACK: Duration = Duration::from_secs(15);
/// The longest pause of a reader, in milliseconds.
const LONG_PAUSE: u64 = 60_000;
/// Nothing that the soak waits for takes this long, even on a loaded machine.
const TIMEOUT: Duration = Duration::from_millis(120_000 + LONG_PAUSE);
/// What local clients and their services do.
const LOCAL: Bounds =
    Bounds { bytes: 4_000_000, pause: 500, long_pauses: 100, long_pause: LONG_PAUSE, leaves: 100 };
/// Without flow control, a pause holds up the other sessions, and a long one ends its own.
const LOCAL_WITHOUT_EXTENSIONS: Bounds = Bounds { long_pause: 3_000, ..LOCAL };
/// The sessions of one access side of local clients at once.
const LOCAL_AT_ONCE: usize = 2;
/// The device side frees its buffers at the next ping, after 20 s.
const SETTLE: Duration = Duration::from_secs(25);
/// The code of a refusal because there are too many sessions.
const SESSION_LIMIT: i64 = 1;
/// The code of a release by the device.
const BY_DEVICE: i64 = 1;
/// The longest pause of a tunnel between two sessions, in milliseconds.
const PACE: u64 = 800;
/// The most RSS at the end, in percent of the RSS after the first minute.
const MOST_RSS: u64 = 105;

#[derive(Parser)]
struct Options {
    /// The time to run: 90 (seconds), 10m, 2h.
    #[arg(long, default_value = "10m", value_parser = duration)]
    duration: Duration,
    /// The seed of the faults and the sessions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The number of tunnels, half of them with TLS.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(2..=20))]
    tunnels: u64,
}

fn duration(text: &str) -> Result<Duration, String> {
    let units = [("h", 3600), ("m", 60), ("s", 1), ("", 1)];
    let parsed = units.iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*seconds).filter(|seconds| *seconds > 0)
    });
    parsed.map(Duration::from_secs).ok_or("not a duration such as 90, 10m or 2h".into())
}

/// Shared by all threads.
struct Soak {
    tunnels: Vec<Tunnel>,
    proxy: Proxy,
    ca: Vec<u8>,
    exchanges: Arc<Exchanges>,
    /// Access sides open no session while this is set.
    quiet: AtomicBool,
    stop: AtomicBool,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    opened: AtomicU64,
    complete: AtomicU64,
    reported: AtomicU64,
    to_device: AtomicU64,
    from_device: AtomicU64,
    connects: AtomicU64,
    disconnects: AtomicU64,
    updates: AtomicU64,
    expiries: AtomicU64,
    /// Sessions that were reported as refused or lost without a known cause.
    unexplained: AtomicU64,
    /// With and without extensions, the exchanges of local clients.
    local: [Verdicts; 2],
    /// Processes killed or stopped, and the exchanges of the clients beside.
    kills: AtomicU64,
    beside_kills: [Verdicts; 2],
    mismatches: Mutex<Vec<String>>,
}

/// Exchanges that were complete, left by an end, or reported as lost: in the order of [`Verdict`].
#[derive(Default)]
struct Verdicts([AtomicU64; 3]);

impl Verdicts {
    fn add(&self, verdict: Verdict, count: u64) {
        self.0[verdict as usize].fetch_add(count, Ordering::SeqCst);
    }

    fn text(&self) -> String {
        let [complete, left, reported] =
            self.0.each_ref().map(|count| count.load(Ordering::SeqCst));
        format!("{complete} complete, {left} left by an end, {reported} reported")
    }
}

impl Tally {
    fn mismatch(&self, text: String) {
        eprintln!("{text}");
        self.mismatches.lock().unwrap().push(text);
    }
}

struct Tunnel {
    id: TunnelId,
    tls: bool,
    gateway: Arc<Gateway>,
    /// Where the device finds its gateway.
    port: Port,
    queue: i32,
    log: Arc<ServiceLog>,
    state: Mutex<TunnelState>,
}

struct TunnelState {
    generation: u64,
    connected: bool,
    expired: bool,
    /// The times when it was lost, expired, or came back.
    changes: VecDeque<Instant>,
    under_way: usize,
}

impl Tunnel {
    fn token(&self, side: Side, generation: u64) -> String {
        let side = if side == Side::Device { "device" } else { "access" };
        format!("hush-{side}-{}-{generation}", self.id)
    }

    fn config(&self, generation: u64) -> TunnelConfig {
        let device = self.token(Side::Device, generation);
        let access = self.token(Side::Access, generation);
        gateways::tunnel_with_tokens(self.id.as_str(), &device, &access)
    }

    fn params(&self, generation: u64) -> ConnectParams {
        let path = format!("/tunnel/{}/dest", self.id);
        let token = Token::new(&self.token(Side::Device, generation)).unwrap();
        ConnectParams::new("127.0.0.1", self.port, &path, token).unwrap()
    }

    /// Puts a command on the agent's queue, which may be full or not exist yet.
    fn command(&self, command: &listen::Command) {
        let deadline = Instant::now() + TIMEOUT;
        while let Err(e) = listen::send(self.queue, command) {
            assert!(Instant::now() < deadline, "{e}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A device process.
struct Agent {
    name: &'static str,
    process: Process,
    queue: Key,
    reader: Option<JoinHandle<()>>,
    readings: Vec<Reading>,
    peak: Reading,
}

#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Reading {
    rss: u64,
    descriptors: u64,
    threads: u64,
}

impl Agent {
    fn start(name: &'static str, arguments: &[String]) -> Self {
        let queue = Key::new();
        let mut command = Command::new(program());
        command.args(["agent", "--control-socket", "none", "--queue-key", &queue.0.to_string()]);
        command.args(arguments);
        let process = Process::start(command.env("RUST_LOG", "error").stdout(Stdio::piped()));
        let (readings, peak) = (Vec::new(), Reading::default());
        Agent { name, process, queue, reader: None, readings, peak }
    }

    /// Follows its events, one a line: `Connect t1`.
    fn follow(&mut self, soak: &Arc<Soak>) {
        let (lines, soak) = (self.process.lines(), soak.clone());
        self.reader = Some(thread::spawn(move || {
            for line in lines {
                let Some((kind, id)) = line.split_once(' ') else { continue };
                let tunnel = soak.tunnels.iter().find(|tunnel| tunnel.id.as_str() == id);
                let mut state = tunnel.expect("a tunnel of the soak").state.lock().unwrap();
                state.connected = kind == "Connect";
                match kind {
                    "Connect" => drop(soak.tally.connects.fetch_add(1, Ordering::SeqCst)),
                    "Expired" => state.expired = true,
                    _ => drop(soak.tally.disconnects.fetch_add(1, Ordering::SeqCst)),
                }
                state.changes.push_back(Instant::now());
                let surplus = state.changes.len().saturating_sub(400);
                state.changes.drain(..surplus);
            }
        }));
    }

    fn read(&mut self) -> Reading {
        let id = self.process.id();
        let reading = Reading {
            rss: procfs::status(id, "VmRSS"),
            descriptors: procfs::descriptors(id) as u64,
            threads: procfs::threads(id) as u64,
        };
        self.peak.rss = self.peak.rss.max(reading.rss);
        self.peak.descriptors = self.peak.descriptors.max(reading.descriptors);
        self.peak.threads = self.peak.threads.max(reading.threads);
        reading
    }

    /// Ends it in order.
    fn end(&mut self) {
        self.process.terminate();
        if self.process.wait_within(Duration::from_secs(20)).is_none() {
            eprintln!("the {} agent does not end in time and is killed", self.name);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone()).unwrap();
    }
    let scratch = Scratch::new();
    let mut agents = Vec::new();
    let soak = set_up(&options, &scratch.0, &mut agents);
    let result = run(&options, &soak, &mut agents, &interrupted);
    soak.stop.store(true, Ordering::SeqCst);
    agents.iter_mut().for_each(Agent::end);
    result
}

/// A directory that is gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("aiot-tunnel-soak-{:08x}", rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn set_up(options: &Options, scratch: &Path, agents: &mut Vec<Agent>) -> Arc<Soak> {
    let authority = Authority::new();
    let identity: Identity = authority.identity("127.0.0.1");
    let ca = scratch.join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let proxy = Proxy::start(options.seed, false);
    // Calm until all tunnels have connected for the first time.
    proxy.calm(true);
    let exchanges = Arc::new(Exchanges::default());
    let mut tunnels = Vec::new();
    for tls in [false, true] {
        let mut builder = Gateway::builder();
        if tls {
            builder = builder.tls_pem(&identity.certificate, &identity.key).unwrap();
        }
        let gateway = Arc::new(builder.start("127.0.0.1:0".parse().unwrap()).unwrap());
        let address = gateway.local_addr();
        let cloud = Profile {
            name: if tls { "wss" } else { "ws" },
            gap: 600_000,
            stall: 400,
            fatal: 100,
            fatal_connections: usize::MAX,
            corrupt: tls,
        };
        let device_port = proxy.route(cloud, move |_| TcpStream::connect(address)).port();
        let log = Arc::new(ServiceLog::default());
        let local = |name: &'static str, fatal| {
            let profile = Profile {
                name,
                gap: 250_000,
                stall: 400,
                fatal,
                fatal_connections: usize::MAX,
                corrupt: false,
            };
            let log = log.clone();
            let port = proxy.route(profile, move |damage| served(damage, &log)).port();
            ["--service".to_owned(), format!("{name}=127.0.0.1:{port}")]
        };
        let mut arguments: Vec<String> =
            [local("both", 20), local("source", 20), local("sink", 20), local("sound", 0)].concat();
        let profile = Profile {
            name: "local",
            gap: 250_000,
            stall: 400,
            fatal: 20,
            fatal_connections: usize::MAX,
            corrupt: false,
        };
        let served = exchanges.clone();
        let port = proxy.route(profile, move |damage| exchange::served(damage, &served)).port();
        arguments.extend(["--service".into(), format!("local=127.0.0.1:{port}")]);
        match tls {
            false => arguments.push("--plain".into()),
            true => arguments.extend(["--ca".into(), ca.to_str().unwrap().into()]),
        }
        let agent = Agent::start(if tls { "TLS" } else { "plain" }, &arguments);
        let queue = agent.queue.0;
        agents.push(agent);
        let own = (0..options.tunnels).filter(|n| (n % 2 == 1) == tls);
        tunnels.extend(own.map(|n| Tunnel {
            id: TunnelId::new(&format!("t{n}")).unwrap(),
            tls,
            gateway: gateway.clone(),
            port: Port::new(device_port).unwrap(),
            queue,
            log: log.clone(),
            state: Mutex::new(TunnelState {
                generation: 0,
                connected: false,
                expired: false,
                changes: VecDeque::new(),
                under_way: 0,
            }),
        }));
    }
    let soak = Arc::new(Soak {
        tunnels,
        proxy,
        ca: authority.pem(),
        exchanges,
        quiet: AtomicBool::new(true),
        stop: AtomicBool::new(false),
        tally: Tally::default(),
    });
    for agent in agents {
        agent.follow(&soak);
    }
    for tunnel in &soak.tunnels {
        tunnel.gateway.add_tunnel(tunnel.config(0)).unwrap();
        tunnel.command(&listen::Command::Add(tunnel.id.clone(), tunnel.params(0)));
    }
    soak
}

fn run(
    options: &Options,
    soak: &Arc<Soak>,
    agents: &mut [Agent],
    interrupted: &AtomicBool,
) -> ExitCode {
    let mut control = Control { soak: soak.clone(), random: random::part(options.seed, 1) };
    control.rest(agents, Duration::from_secs(1));
    let mut drivers = Vec::new();
    for index in 0..soak.tunnels.len() {
        let part = |part| random::part(options.seed, part + index as u64);
        let (of_driver, random) = (soak.clone(), part(1000));
        drivers.push(thread::spawn(move || Driver::new(&of_driver, index, random).run()));
        for (extensions, random) in [(true, part(2000)), (false, part(3000))] {
            let soak = soak.clone();
            let run = move || LocalDriver::new(&soak, index, extensions, random).run();
            drivers.push(thread::spawn(run));
        }
    }
    let (of_kills, seed) = (soak.clone(), options.seed);
    drivers.push(thread::spawn(move || kill(&of_kills, seed)));

    let began = Instant::now();
    let first_minute = Duration::from_secs(60).min(options.duration / 4);
    let settle = SETTLE.min(options.duration / 10);
    let mut minutes = 0;
    let (mut next_update, mut next_expiry) = (first_minute / 4, first_minute / 2);
    control.go_on();
    println!("soak: {:?}, seed {}, {} tunnels", options.duration, options.seed, options.tunnels);
    while began.elapsed() < options.duration && !interrupted.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(500));
        for agent in agents.iter_mut() {
            assert!(!agent.process.has_ended(), "the {} agent has ended", agent.name);
            agent.read();
        }
        control.renew();
        let time = began.elapsed();
        if time >= next_update {
            control.update();
            next_update =
                time + Duration::from_millis(control.random.random_range(10_000..=30_000));
        }
        if time >= next_expiry {
            control.expire();
            next_expiry =
                time + Duration::from_millis(control.random.random_range(30_000..=90_000));
        }
        if agents[0].readings.len() == 1 && time >= first_minute {
            control.rest(agents, settle);
            control.go_on();
        }
        if time.as_secs() / 60 > minutes {
            minutes = time.as_secs() / 60;
            progress(minutes, soak, agents);
        }
    }
    control.rest(agents, settle);
    soak.stop.store(true, Ordering::SeqCst);
    for driver in drivers {
        driver.join().unwrap();
    }
    if let Err(stray) = soak.exchanges.strays() {
        soak.tally.mismatch(stray);
    }
    report(began.elapsed(), soak, agents)
}

/// Plays the business process and the cloud, which give the commands.
struct Control {
    soak: Arc<Soak>,
    random: Generator,
}

impl Control {
    fn pick(&mut self) -> &Tunnel {
        let index = self.random.random_range(0..self.soak.tunnels.len());
        &self.soak.tunnels[index]
    }

    fn update(&mut self) {
        self.soak.tally.updates.fetch_add(1, Ordering::SeqCst);
        let tunnel = self.pick();
        let mut state = tunnel.state.lock().unwrap();
        state.generation += 1;
        // A device that connects with the old token before it has the new one will find it expired.
        tunnel.gateway.add_tunnel(tunnel.config(state.generation)).unwrap();
        let update = listen::Command::Update(tunnel.id.clone(), tunnel.params(state.generation));
        drop(state);
        tunnel.command(&update);
    }

    fn expire(&mut self) {
        self.soak.tally.expiries.fetch_add(1, Ordering::SeqCst);
        let tunnel = self.pick();
        tunnel.state.lock().unwrap().changes.push_back(Instant::now());
        tunnel.gateway.expire(&tunnel.id).unwrap();
    }

    /// Adds expired tunnels again, with new tokens.
    fn renew(&mut self) {
        for tunnel in &self.soak.tunnels {
            let mut state = tunnel.state.lock().unwrap();
            if !std::mem::take(&mut state.expired) {
                continue;
            }
            state.generation += 1;
            tunnel.gateway.add_tunnel(tunnel.config(state.generation)).unwrap();
            let add = listen::Command::Add(tunnel.id.clone(), tunnel.params(state.generation));
            drop(state);
            tunnel.command(&add);
        }
    }

    fn go_on(&self) {
        self.soak.proxy.calm(false);
        self.soak.quiet.store(false, Ordering::SeqCst);
    }

    /// Lets all sessions end without further faults, and reads what the idle agents use.
    fn rest(&mut self, agents: &mut [Agent], settle: Duration) {
        self.soak.quiet.store(true, Ordering::SeqCst);
        self.soak.proxy.calm(true);
        let deadline = Instant::now() + TIMEOUT;
        let soak = self.soak.clone();
        let is_idle = |tunnel: &Tunnel| {
            let state = tunnel.state.lock().unwrap();
            state.connected && state.under_way == 0 && tunnel.log.active.load(Ordering::SeqCst) == 0
        };
        while !soak.tunnels.iter().all(is_idle) {
            self.renew();
            if Instant::now() >= deadline {
                let busy = soak.tunnels.iter().filter(|tunnel| !is_idle(tunnel));
                let busy = busy.map(|tunnel| {
                    let TunnelState { connected, under_way, .. } = &*tunnel.state.lock().unwrap();
                    format!("{} (connected: {connected}, sessions: {under_way})", tunnel.id)
                });
                let text = format!("not idle in time: {}", busy.collect::<Vec<_>>().join(", "));
                soak.tally.mismatch(text);
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(settle);
        // Sockets and threads of former sessions may linger for a moment.
        let wanted = |agent: &Agent| agent.readings.first().copied();
        let settled = |reading: Reading, first: Option<Reading>| {
            first.is_none_or(|first| {
                (reading.descriptors, reading.threads) == (first.descriptors, first.threads)
            })
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        for agent in agents {
            let mut reading = agent.read();
            while !settled(reading, wanted(agent)) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(100));
                reading = agent.read();
            }
            agent.readings.push(reading);
        }
    }
}

/// The access side of one tunnel.
struct Driver<'a> {
    soak: &'a Soak,
    tunnel: &'a Tunnel,
    random: Generator,
    access: Option<Access>,
    /// Sessions that are over here, but perhaps not yet at the service.
    over: Vec<Outcome>,
    next: Instant,
}

impl<'a> Driver<'a> {
    fn new(soak: &'a Soak, index: usize, random: Generator) -> Self {
        let tunnel = &soak.tunnels[index];
        Driver { soak, tunnel, random, access: None, over: Vec::new(), next: Instant::now() }
    }

    fn run(mut self) {
        while !self.soak.stop.load(Ordering::SeqCst) {
            if self.access.is_none() {
                self.access = self.connect();
            }
            let quiet = self.soak.quiet.load(Ordering::SeqCst);
            let Some(access) = &mut self.access else {
                thread::sleep(Duration::from_millis(200));
                self.settle();
                continue;
            };
            if !quiet && Instant::now() >= self.next && access.under_way() < 6 {
                let service = ["both", "source", "sink", "sound"][self.random.random_range(0..4)];
                let mut plan = Plan::random(&mut self.random, service, 200_000);
                // Long ones take long and meet more faults.
                if permille(&mut self.random, 80) {
                    plan.up = self.random.random_range(0..8_000_000);
                    plan.down = self.random.random_range(0..8_000_000);
                }
                match service {
                    "source" => plan.up = plan.up.min(100),
                    "sink" => plan.down = plan.down.min(100),
                    _ => {}
                }
                // Before it begins, so that the tunnel does not look idle.
                self.tunnel.state.lock().unwrap().under_way += 1;
                access.open(plan);
                self.soak.tally.opened.fetch_add(1, Ordering::SeqCst);
                self.next =
                    Instant::now() + Duration::from_millis(self.random.random_range(0..PACE));
            }
            self.over.extend(access.step(Duration::from_millis(25)));
            if access.lost.is_some() && access.under_way() == 0 {
                self.access = None;
            }
            self.settle();
        }
    }

    fn connect(&mut self) -> Option<Access> {
        let generation = self.tunnel.state.lock().unwrap().generation;
        let token = self.tunnel.token(Side::Access, generation);
        let (address, id): (SocketAddr, _) =
            (self.tunnel.gateway.local_addr(), self.tunnel.id.as_str());
        let ca = self.tunnel.tls.then_some(&self.soak.ca[..]);
        let random = random::part(self.random.next_u64(), 0);
        Access::connect(address, id, &token, ca, random).ok()
    }

    /// Judges the sessions that are over at both ends.
    fn settle(&mut self) {
        for outcome in std::mem::take(&mut self.over) {
            let log = &self.tunnel.log;
            // Read before the search in the log.
            let active = log.active.load(Ordering::SeqCst);
            let served = {
                let mut served = log.served.lock().unwrap();
                served.retain(|served| served.seed.is_some());
                let at = served.iter().position(|s| s.seed == Some(outcome.plan.seed));
                at.map(|at| served.swap_remove(at))
            };
            let age = outcome.ended.elapsed();
            let never_served =
                active == 0 && age > Duration::from_secs(5) || age > traffic::SILENCE * 2;
            let over = served.is_some() || outcome.refused.is_some() || never_served;
            if over && self.judge(&outcome, served.as_ref()) {
                self.tunnel.state.lock().unwrap().under_way -= 1;
                let tally = &self.soak.tally;
                tally.from_device.fetch_add(outcome.received as u64, Ordering::SeqCst);
                let to_device = served.map_or(0, |served| served.received as u64);
                tally.to_device.fetch_add(to_device, Ordering::SeqCst);
            } else {
                log.served.lock().unwrap().extend(served);
                self.over.push(outcome);
            }
        }
    }

    /// Judges a session. False while its cause may still become known.
    fn judge(&self, outcome: &Outcome, served: Option<&Served>) -> bool {
        let tally = &self.soak.tally;
        let ended = served.map_or(outcome.ended, |served| served.ended.max(outcome.ended));
        let window = outcome.began.checked_sub(SLACK).unwrap_or(outcome.began)..ended + SLACK;
        let lost = {
            let state = self.tunnel.state.lock().unwrap();
            !state.connected || state.changes.iter().any(|time| window.contains(time))
        };
        let at_the_limit = matches!(outcome.refused, Some((SESSION_LIMIT, _)));
        let cut = served.map(|served| served.damage.is_cut(0) || served.damage.is_cut(1));
        // The device's text about a service needs a cause at that service, and no other one.
        let of_a_service = matches!(&outcome.released, Some((BY_DEVICE, text))
            if text != "the tunnel is closed" && text != "no such session");
        let causes = Causes {
            tunnel: lost && !of_a_service || at_the_limit,
            local: cut.unwrap_or(outcome.plan.service != "sound"),
            access: lost,
        };
        let wrong = match judge(outcome, served, causes) {
            Ok(complete) => {
                let counter = if complete { &tally.complete } else { &tally.reported };
                counter.fetch_add(1, Ordering::SeqCst);
                return true;
            }
            Err(_) if ended.elapsed() < SLACK => return false,
            Err(wrong) => wrong,
        };
        let seen = served.map(|s| (s.received, s.complete, s.end.clone()));
        let text = format!("tunnel {}: {wrong}: {outcome:?}, {seen:?}", self.tunnel.id);
        eprintln!("{text}");
        // A reported loss is not silent, but it needs a cause, too.
        let reported = outcome.refused.is_some()
            || outcome
                .released
                .as_ref()
                .is_some_and(|(_, text)| !text.ends_with("closed the connection"));
        match judge(outcome, served, Causes { tunnel: true, ..causes }) {
            Ok(_) if reported => drop(tally.unexplained.fetch_add(1, Ordering::SeqCst)),
            _ => tally.mismatches.lock().unwrap().push(text),
        }
        true
    }
}

/// The library's access side of one tunnel, and its local clients.
struct LocalDriver<'a> {
    soak: &'a Soak,
    tunnel: &'a Tunnel,
    extensions: bool,
    random: Generator,
    running: Option<(Stop, JoinHandle<access::Result<()>>, SocketAddr)>,
    clients: Vec<JoinHandle<Exchange>>,
    /// Exchanges that are over at the client, but whose cause may still become known.
    over: Vec<Exchange>,
    next: Instant,
}

impl<'a> LocalDriver<'a> {
    fn new(soak: &'a Soak, index: usize, extensions: bool, random: Generator) -> Self {
        LocalDriver {
            soak,
            tunnel: &soak.tunnels[index],
            extensions,
            random,
            running: None,
            clients: Vec::new(),
            over: Vec::new(),
            next: Instant::now(),
        }
    }

    fn run(mut self) {
        while !self.soak.stop.load(Ordering::SeqCst) {
            // It ends when its token is no longer valid.
            if self.running.as_ref().is_none_or(|(_, thread, _)| thread.is_finished()) {
                self.running = Some(self.start());
            }
            let quiet = self.soak.quiet.load(Ordering::SeqCst);
            let is_time = Instant::now() >= self.next && self.clients.len() < LOCAL_AT_ONCE;
            if !quiet && is_time {
                self.tunnel.state.lock().unwrap().under_way += 1;
                self.open();
                let pause = self.random.random_range(0..PACE);
                self.next = Instant::now() + Duration::from_millis(pause);
            }
            let ended = self.clients.extract_if(.., |client| client.is_finished());
            self.over.extend(ended.map(|client| client.join().unwrap()));
            self.settle();
            thread::sleep(Duration::from_millis(25));
        }
        if let Some((stop, thread, _)) = self.running.take() {
            stop.stop();
            let _ = thread.join().unwrap();
        }
    }

    fn start(&self) -> (Stop, JoinHandle<access::Result<()>>, SocketAddr) {
        let Tunnel { id, tls, gateway, .. } = self.tunnel;
        let generation = self.tunnel.state.lock().unwrap().generation;
        let token = Token::new(&self.tunnel.token(Side::Access, generation)).unwrap();
        let port = Port::new(gateway.local_addr().port()).unwrap();
        let params = ConnectParams::new("127.0.0.1", port, &format!("/tunnel/{id}/source"), token);
        let security = match tls {
            true => Security::Tls(TlsConfig::new().with_ca_pem(&self.soak.ca).unwrap()),
            false => Security::Plain,
        };
        let client = Client::new(params.unwrap(), security, "local").unwrap();
        let client = client.with_extensions(self.extensions).with_retry(true);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = client.stop_handle();
        (stop, thread::spawn(move || client.listen(&listener)), address)
    }

    fn open(&mut self) {
        let bounds = if self.extensions { LOCAL } else { LOCAL_WITHOUT_EXTENSIONS };
        let script = Script::random(&mut self.random, self.extensions, bounds);
        let address = self.running.as_ref().map(|(_, _, address)| *address);
        let exchanges = self.soak.exchanges.clone();
        self.clients.push(thread::spawn(move || {
            let connected = address.and_then(|address| TcpStream::connect(address).ok());
            exchanges.run(script, connected)
        }));
    }

    /// Judges the exchanges that are over at both ends.
    fn settle(&mut self) {
        let exchanges = &self.soak.exchanges;
        let is_over =
            |one: &mut Exchange| exchanges.is_over(one) && one.client.at.elapsed() >= SLACK;
        let over: Vec<_> = self.over.extract_if(.., is_over).collect();
        for one in over {
            let verdict = exchanges.judge(&one, true, |service, damage| {
                let ended = service.map_or(one.client.at, |service| service.at.max(one.client.at));
                let began = one.client.began;
                let window = began.checked_sub(SLACK).unwrap_or(began)..ended + SLACK;
                let state = self.tunnel.state.lock().unwrap();
                !state.connected
                    || state.changes.iter().any(|time| window.contains(time))
                    || damage.is_some_and(|damage| damage.is_cut(0) || damage.is_cut(1))
            });
            let tally = &self.soak.tally;
            match verdict {
                Ok(verdict) => tally.local[usize::from(!self.extensions)].add(verdict, 1),
                Err(wrong) => tally.mismatch(format!("tunnel {}: {wrong}", self.tunnel.id)),
            }
            self.tunnel.state.lock().unwrap().under_way -= 1;
        }
    }
}

/// Kills processes, one after the other, for as long as the soak runs.
fn kill(soak: &Soak, seed: u64) {
    let mut random = random::part(seed, 4000);
    while !soak.stop.load(Ordering::SeqCst) {
        if soak.quiet.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(100));
            continue;
        }
        let seed = random.next_u64();
        let bounds = Bounds { long_pauses: 100, long_pause: LONG_PAUSE, ..kills::BOUNDS };
        match kills::run(seed, bounds) {
            Ok(figures) => {
                let verdicts = &soak.tally.beside_kills[usize::from(!figures.plan.kind.extensions)];
                verdicts.add(Verdict::Complete, figures.complete);
                verdicts.add(Verdict::Left, figures.left);
                verdicts.add(Verdict::Reported, figures.reported);
                soak.tally.kills.fetch_add(1, Ordering::SeqCst);
            }
            Err(wrong) => soak.tally.mismatch(format!("kill with seed {seed}: {wrong}")),
        }
    }
}

fn progress(minutes: u64, soak: &Soak, agents: &mut [Agent]) {
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let tally = &soak.tally;
    let rss: Vec<_> = agents.iter_mut().map(|agent| agent.read().rss.to_string()).collect();
    println!(
        "{minutes:4} min: {} sessions, {} complete, {} reported, {} MB up, {} MB down, \
         {} disconnects, {} faults, {} mismatches, RSS {} KiB",
        count(&tally.opened),
        count(&tally.complete),
        count(&tally.reported),
        count(&tally.to_device) / 1_000_000,
        count(&tally.from_device) / 1_000_000,
        count(&tally.disconnects),
        soak.proxy.counts().iter().sum::<u64>(),
        tally.mismatches.lock().unwrap().len(),
        rss.join(" + "),
    );
}

fn report(time: Duration, soak: &Soak, agents: &[Agent]) -> ExitCode {
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let tally = &soak.tally;
    let mismatches = tally.mismatches.lock().unwrap().len();
    let mut rows = vec![
        ("time", format!("{} s", time.as_secs())),
        ("tunnels", soak.tunnels.len().to_string()),
        ("bytes to the device", count(&tally.to_device).to_string()),
        ("bytes from the device", count(&tally.from_device).to_string()),
        ("sessions opened", count(&tally.opened).to_string()),
        ("sessions complete", count(&tally.complete).to_string()),
        ("sessions reported as refused or lost", count(&tally.reported).to_string()),
        ("local clients, extensions on", tally.local[0].text()),
        ("local clients, extensions off", tally.local[1].text()),
        ("processes killed or stopped", count(&tally.kills).to_string()),
        ("clients beside a kill, extensions on", tally.beside_kills[0].text()),
        ("clients beside a kill, extensions off", tally.beside_kills[1].text()),
        ("unexplained losses", count(&tally.unexplained).to_string()),
        ("connects", count(&tally.connects).to_string()),
        ("disconnects", count(&tally.disconnects).to_string()),
        ("updates", count(&tally.updates).to_string()),
        ("expiries", count(&tally.expiries).to_string()),
    ];
    for (kind, number) in KINDS.iter().zip(soak.proxy.counts()) {
        rows.push((kind, number.to_string()));
    }
    rows.push(("mismatches", mismatches.to_string()));
    println!("\n| what | count |\n| --- | ---: |");
    for (what, number) in rows {
        println!("| {what} | {number} |");
    }
    println!("\n| device process | reading | RSS KiB | descriptors | threads |");
    println!("| --- | --- | ---: | ---: | ---: |");
    let mut wrong = Vec::new();
    for agent in agents {
        let [start, rest @ ..] = &agent.readings[..] else { continue };
        let end = rest.last().unwrap_or(start);
        // A very short run has no other reading.
        let minute = if rest.len() > 1 { rest[0] } else { *end };
        for (what, reading) in [
            ("start", start),
            ("after the first minute", &minute),
            ("peak", &agent.peak),
            ("end", end),
        ] {
            let Reading { rss, descriptors, threads } = reading;
            println!("| {} | {what} | {rss} | {descriptors} | {threads} |", agent.name);
        }
        if (end.descriptors, end.threads) != (start.descriptors, start.threads) {
            wrong.push(format!("{}: descriptors or threads not as at the start", agent.name));
        }
        if end.rss * 100 > minute.rss * MOST_RSS {
            let name = agent.name;
            wrong.push(format!("{name}: RSS is more than 5% above that after the first minute"));
        }
    }
    if count(&tally.unexplained) > 0 {
        wrong.push(format!("{} losses unexplained", count(&tally.unexplained)));
    }
    if mismatches > 0 {
        wrong.push(format!("{mismatches} mismatches"));
    }
    println!("\n{}", if wrong.is_empty() { "passed".into() } else { wrong.join("; ") });
    if wrong.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
