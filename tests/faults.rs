//! Gateway, device and access side over networks that fail on seeded schedules. Whatever happens, a
//! session is either complete or reported, and it always delivers a prefix of what was sent.
//!
//! Each seed has two access sides. A foreign one speaks frames without extensions. The library's own
//! one serves local clients, with the extensions in half of the seeds. Its clients and their services
//! pause, end one direction, reset their streams and die. An orderly end, at the client as at the
//! service, must be the end of everything that the far end has sent.
//!
//! `FAULT_SEEDS=2000` runs more seeds than the default. `FAULT_SEED=n` runs one seed and prints the
//! faults of its connections.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::access::{self, Client, Forward, Stop};
use aiot_tunnel::gateway::Gateway;
use aiot_tunnel::*;
use aiot_tunnel_testkit::certificates::{Authority, Identity};
use aiot_tunnel_testkit::exchange::{self, Bounds, Exchange, Exchanges, Script, Verdict};
use aiot_tunnel_testkit::faults::{Damage, Fault, Profile, Proxy, KINDS};
use aiot_tunnel_testkit::random::{self, magnitude, permille, Generator};
use aiot_tunnel_testkit::traffic::{
    judge, served, Access, Causes, Mode, Outcome, Plan, Served, ServiceLog,
};
use aiot_tunnel_testkit::wait::until_within;
use aiot_tunnel_testkit::{gateways, logs, procfs, ACCESS_TOKEN, DEVICE_TOKEN};
use rand::RngExt;

const SEEDS: u64 = 120;
/// Seeds that run at the same time. They mostly wait.
const AT_ONCE: usize = 10;
/// No seed takes this long unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(120);
/// A lost connection may be reported a little later than its sessions end.
const SLACK: Duration = Duration::from_secs(5);
/// What local clients and services do. Long pauses are rare, because a seed waits for them.
const LOCAL: Bounds =
    Bounds { bytes: 400_000, pause: 100, long_pauses: 5, long_pause: 60_000, leaves: 100 };
/// Where a stall ends the session, pauses are shorter than any limit.
const LOCAL_WITHOUT_EXTENSIONS: Bounds = Bounds { long_pauses: 20, long_pause: 1_000, ..LOCAL };
/// Sessions of a seed at once, at most.
const SESSIONS: usize = 20;

/// Held by tests that count descriptors or open some.
static ALONE: Mutex<()> = Mutex::new(());

/// How the sessions of a run ended, and the faults that they met.
#[derive(Default)]
struct Tally {
    complete: AtomicU64,
    explained: AtomicU64,
    /// With and without extensions, those of the local clients: complete, left by an end, cut and
    /// reported.
    local: [[AtomicU64; 3]; 2],
    disconnects: AtomicU64,
    faults: [AtomicU64; KINDS.len()],
}

/// Made once for all seeds.
struct Certificates {
    ca: Vec<u8>,
    own: Identity,
}

impl Certificates {
    fn new() -> Self {
        let authority = Authority::new();
        Certificates { ca: authority.pem(), own: authority.identity("127.0.0.1") }
    }
}

#[test]
fn under_faults_every_session_is_complete_or_reported() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let certificates = Certificates::new();
    let tally = Tally::default();
    let only = number("FAULT_SEED");
    if only.is_some() {
        logs::print();
    }
    logs::keep();
    // OpenSSL and std allocate some things once, which is no growth. Seed 0 has TLS.
    run_seed(0, &certificates, false, &Tally::default());
    let before = (descriptors(), threads());

    let failures = match only {
        Some(seed) => {
            run_seed(seed, &certificates, true, &tally);
            Vec::new()
        }
        None => run_seeds(number("FAULT_SEEDS").unwrap_or(SEEDS), certificates, &tally),
    };
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let (complete, explained) = (count(&tally.complete), count(&tally.explained));
    println!("sessions: {complete} complete, {explained} reported as lost");
    for (which, counts) in ["with", "without"].into_iter().zip(&tally.local) {
        let [complete, left, reported] = counts.each_ref().map(count);
        println!(
            "local clients {which} extensions: {complete} complete, {left} left by an end, \
             {reported} reported as lost"
        );
    }
    println!("disconnects: {}", count(&tally.disconnects));
    for (kind, number) in KINDS.iter().zip(&tally.faults) {
        println!("{kind}: {}", count(number));
    }
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
    assert!(only.is_some() || complete > explained / 2, "faults so dense that they prove little");
    until_within("descriptors and threads as before", Duration::from_secs(20), || {
        (descriptors(), threads()) == before
    });
}

/// Runs the seeds below `count`; the failures, one line each.
fn run_seeds(count: u64, certificates: Certificates, tally: &Tally) -> Vec<String> {
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let running: [Mutex<Option<(u64, Instant)>>; AT_ONCE] = Default::default();
    let done = AtomicUsize::new(0);
    let (next, failures, certificates, done) = (&next, &failures, &certificates, &done);
    thread::scope(|scope| {
        for slot in &running {
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= count {
                        break;
                    }
                    *slot.lock().unwrap() = Some((seed, Instant::now()));
                    let run = AssertUnwindSafe(|| run_seed(seed, certificates, false, tally));
                    if let Err(panic) = catch_unwind(run) {
                        let text = panic.downcast_ref::<String>().cloned();
                        failures.lock().unwrap().push(text.unwrap_or_else(|| of_seed(seed, "?")));
                    }
                    *slot.lock().unwrap() = None;
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        while done.load(Ordering::SeqCst) < AT_ONCE {
            for slot in &running {
                let overdue = slot.lock().unwrap().filter(|(_, began)| began.elapsed() > TIMEOUT);
                if let Some((seed, _)) = overdue {
                    eprintln!("{}", of_seed(seed, "it hangs"));
                    std::process::exit(1);
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    let failures = std::mem::take(&mut *failures.lock().unwrap());
    failures
}

fn of_seed(seed: u64, what: &str) -> String {
    format!(
        "seed {seed}: {what}; again: FAULT_SEED={seed} cargo test --features cli --test faults \
         -- --nocapture"
    )
}

fn run_seed(seed: u64, certificates: &Certificates, trace: bool, tally: &Tally) {
    let result = catch_unwind(AssertUnwindSafe(|| try_seed(seed, certificates, trace, tally)));
    let wrong = match result {
        Ok(Ok(())) => return,
        Ok(Err(wrong)) => wrong,
        Err(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, text) => text.unwrap_or(&"panic").to_string(),
        },
    };
    panic!("{}", of_seed(seed, &wrong));
}

/// The device's events: the times of its DISCONNECTs, whether it is connected, and whether it has
/// ever been.
#[derive(Default)]
struct Reports {
    lost: Vec<Instant>,
    connected: bool,
    first: bool,
}

fn try_seed(
    seed: u64,
    certificates: &Certificates,
    trace: bool,
    tally: &Tally,
) -> Result<(), String> {
    let mut random = random::part(seed, 0);
    let tls = seed.is_multiple_of(2);
    // Half of the seeds lose no connection to the gateway. There, a session may only be lost together
    // with its own local connection.
    let (cloud_fails, local_fails) = (permille(&mut random, 500), permille(&mut random, 400));
    // In some seeds services stall for longer than the device's stall timeout.
    let stall_times_out = permille(&mut random, 100);
    let cloud_profile = Profile {
        name: "cloud",
        gap: [2_000, 50_000, 200_000][random.random_range(0..3)],
        stall: 150,
        fatal: if cloud_fails { 100 } else { 0 },
        fatal_connections: 3,
        corrupt: tls,
    };
    let local_profile = Profile {
        name: "local",
        gap: [5_000, 100_000][random.random_range(0..2)],
        stall: if stall_times_out { 1_000 } else { 150 },
        fatal: if local_fails { 150 } else { 0 },
        fatal_connections: 1,
        corrupt: false,
    };

    let id = TunnelId::new("t").unwrap();
    let mut builder = Gateway::builder().tunnel(gateways::tunnel("t")).session_limit(SESSIONS);
    if tls {
        builder = builder.tls_pem(&certificates.own.certificate, &certificates.own.key).unwrap();
    }
    let gateway = builder.start("127.0.0.1:0".parse().unwrap()).unwrap();
    let gateway_address = gateway.local_addr();
    let ca = tls.then_some(&certificates.ca[..]);

    let proxy = Proxy::start(seed, trace);
    let cloud = proxy.route(cloud_profile, move |_| TcpStream::connect(gateway_address));
    let log = Arc::new(ServiceLog::default());
    let service = |name: &str, profile| {
        let log = log.clone();
        let address = proxy.route(profile, move |damage| served(damage, &log));
        Service::new(name, "127.0.0.1", Port::new(address.port()).unwrap()).unwrap()
    };
    let sound = Profile { name: "sound", fatal: 0, ..local_profile };
    let exchanges = Arc::new(Exchanges::default());
    let local_service = |name: &str, profile| {
        let exchanges = exchanges.clone();
        let address = proxy.route(profile, move |damage| exchange::served(damage, &exchanges));
        Service::new(name, "127.0.0.1", Port::new(address.port()).unwrap()).unwrap()
    };
    // What belongs to local clients has random numbers of its own.
    let mut local_random = random::part(seed, 50);
    let extensions = permille(&mut local_random, 500);
    let access_fails = permille(&mut local_random, 250);
    let access_profile =
        Profile { name: "access", fatal: if access_fails { 100 } else { 0 }, ..cloud_profile };
    let access_route = proxy.route(access_profile, move |_| TcpStream::connect(gateway_address));
    let security = || match ca {
        Some(pem) => Security::Tls(TlsConfig::new().with_ca_pem(pem).unwrap()),
        None => Security::Plain,
    };
    // Pings so frequent that a connection with changed bytes fails soon.
    let limits = Limits::default()
        .with_max_sessions(SESSIONS)
        .with_ping_interval(Duration::from_millis(250))
        .with_pong_timeout(Duration::from_secs(8))
        .with_session_buffer([64, 256][random.random_range(0..2)] * 1024)
        .with_send_buffer([8, 64][random.random_range(0..2)] * 1024)
        .with_stall_timeout(Duration::from_millis(if stall_times_out { 250 } else { 10_000 }));
    let reports = Arc::new(Mutex::new(Reports::default()));
    let manager = Manager::builder()
        .security(security())
        .limits(limits)
        .service(service("failing", local_profile))
        .service(service("sound", sound))
        .service(local_service("local-failing", local_profile))
        .service(local_service("local-sound", sound))
        .on_event({
            let reports = reports.clone();
            move |_, event| {
                let mut reports = reports.lock().unwrap();
                reports.connected = event.kind == EventKind::Connect;
                reports.first |= reports.connected;
                match event.kind {
                    EventKind::Connect => {}
                    EventKind::Disconnect => reports.lost.push(Instant::now()),
                    other => panic!("{other:?} of a tunnel whose token is good"),
                }
            }
        })
        .build()
        .unwrap();
    let handle = manager.handle();
    let device = thread::spawn(move || manager.run().unwrap());
    let port = Port::new(cloud.port()).unwrap();
    let token = Token::new(DEVICE_TOKEN).unwrap();
    let params = ConnectParams::new("127.0.0.1", port, "/tunnel/t/dest", token).unwrap();
    handle.add(&id, params).unwrap();

    let clients = Clients::start(access_route.port(), security(), extensions);
    let connect = |part| {
        let random = random::part(seed, part);
        Access::connect(gateway_address, "t", ACCESS_TOKEN, ca, random)
    };
    let sessions = || -> Result<(), String> {
        until_within("connected", TIMEOUT / 4, || reports.lock().unwrap().first);
        let bounds = if extensions { LOCAL } else { LOCAL_WITHOUT_EXTENSIONS };
        // The denser the faults, the slower the connection, and the answer to a request must come
        // within 10 s.
        let bounds = Bounds { bytes: bounds.bytes.min(20 * cloud_profile.gap), ..bounds };
        let exchanging = clients.exchange(&exchanges, &mut local_random, extensions, bounds);
        let mut access: Vec<Access> = Vec::new();
        for part in 0..random.random_range(1..=2) {
            access.push(connect(100 + part)?);
        }
        let plan = |random: &mut Generator| {
            let service = if permille(random, 700) { "failing" } else { "sound" };
            let most = if permille(random, 100) { 1_000_000 } else { 60_000 };
            (Duration::from_millis(magnitude(random, 400)), Plan::random(random, service, most))
        };
        let count = random.random_range(3..=8);
        let mut plans: VecDeque<_> = (0..count).map(|_| plan(&mut random)).collect();
        plans.make_contiguous().sort_by_key(|(time, _)| *time);
        let began = Instant::now();
        let mut outcomes: Vec<Outcome> = Vec::new();
        while outcomes.len() < count {
            while plans.front().is_some_and(|(time, _)| began.elapsed() >= *time) {
                let (_, plan) = plans.pop_front().unwrap();
                let index = plan.seed as usize % access.len();
                access[index].open(plan);
            }
            for access in &mut access {
                outcomes.extend(access.step(Duration::from_millis(3)));
            }
            if began.elapsed() > TIMEOUT / 2 {
                for access in &mut access {
                    outcomes.extend(access.give_up("no end in time"));
                }
            }
        }
        let exchanged = exchanging.into_iter().map(|(service, one)| (service, one.join().unwrap()));
        let exchanged: Vec<_> = exchanged.collect();
        exchanges.settle();
        until_within("every service has ended", TIMEOUT / 4, || {
            log.active.load(Ordering::SeqCst) == 0
        });

        proxy.calm(true);
        recovers(&mut access[0], TIMEOUT / 4)?;
        clients.recover(&exchanges, extensions, TIMEOUT / 4)?;
        drop(access);
        until_within("changed bytes end the connection", TIMEOUT / 4, || {
            proxy.open_and_corrupted() == 0
        });

        let counts = proxy.counts();
        for (sum, count) in tally.faults.iter().zip(counts) {
            sum.fetch_add(count, Ordering::SeqCst);
        }
        let reports = reports.lock().unwrap();
        tally.disconnects.fetch_add(reports.lost.len() as u64, Ordering::SeqCst);
        if !cloud_fails && !reports.lost.is_empty() {
            return Err("the tunnel was lost without a reason".into());
        }
        let served = log.served.lock().unwrap();
        for outcome in &outcomes {
            let seed = Some(outcome.plan.seed);
            let served = served.iter().find(|served| served.seed == seed);
            let ended = served.map_or(outcome.ended, |served| served.ended.max(outcome.ended));
            let meanwhile = |lost: &Instant| (outcome.began - SLACK..ended + SLACK).contains(lost);
            let causes = Causes {
                // If only one direction was closed, the gateway notices it first and reports it.
                tunnel: reports.lost.iter().any(meanwhile)
                    || cloud_fails && matches!(outcome.released, Some((3, _))),
                local: stall_times_out
                    || match served {
                        Some(served) => served.damage.is_cut(0) || served.damage.is_cut(1),
                        None => local_fails && outcome.plan.service == "failing",
                    },
                access: false,
            };
            if trace {
                println!("{outcome:?}\n    {causes:?}, served: {:?}", served.map(describe));
            }
            match judge(outcome, served, causes) {
                Ok(true) => tally.complete.fetch_add(1, Ordering::SeqCst),
                Ok(false) => tally.explained.fetch_add(1, Ordering::SeqCst),
                Err(wrong) => {
                    let served = served.map(describe);
                    return Err(format!("{wrong}: {outcome:?}, {causes:?}, served: {served:?}"));
                }
            };
        }
        exchanges.strays()?;
        for (service, one) in &exchanged {
            let fails = local_fails && *service == FAILING;
            let verdict = exchanges.judge(one, fails, |_, damage| {
                cloud_fails
                    || access_fails
                    || stall_times_out && !extensions
                    || damage.is_some_and(|damage| damage.is_cut(0) || damage.is_cut(1))
            })?;
            if trace {
                println!("{verdict:?}: {one:?}");
            }
            tally.local[usize::from(!extensions)][verdict as usize].fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    };
    let result = catch_unwind(AssertUnwindSafe(sessions));
    // Whatever happened, nothing of this seed goes on beside the next one.
    proxy.calm(true);
    clients.stop();
    handle.stop();
    device.join().unwrap();
    gateway.shutdown();
    drop(proxy);
    match result {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The index of the local port whose service's connections may fail; the other is 1.
const FAILING: usize = 0;

/// The library's access side, for local clients.
struct Clients {
    ports: [SocketAddr; 2],
    stop: Stop,
    thread: JoinHandle<access::Result<()>>,
}

impl Clients {
    fn start(gateway: u16, security: Security, extensions: bool) -> Self {
        let (port, token) = (Port::new(gateway).unwrap(), Token::new(ACCESS_TOKEN).unwrap());
        let params = ConnectParams::new("127.0.0.1", port, "/tunnel/t/source", token).unwrap();
        let client = Client::new(params, security, "local-sound")
            .unwrap()
            .with_extensions(extensions)
            .with_retry(true);
        let stop = client.stop_handle();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let [failing, sound] = listeners;
        let forwards = [
            Forward::new(failing, "local-failing").unwrap(),
            Forward::new(sound, "local-sound").unwrap(),
        ];
        let thread = thread::spawn(move || client.forward(&forwards));
        Clients { ports, stop, thread }
    }

    /// Starts clients, each with the index of its port.
    fn exchange(
        &self,
        exchanges: &Arc<Exchanges>,
        random: &mut Generator,
        extensions: bool,
        bounds: Bounds,
    ) -> Vec<(usize, JoinHandle<Exchange>)> {
        let count = random.random_range(3..=6);
        let one = |_| {
            let service = if permille(random, 600) { FAILING } else { 1 };
            let delay = Duration::from_millis(magnitude(random, 400));
            let script = Script::random(random, extensions, bounds);
            let (exchanges, address) = (exchanges.clone(), self.ports[service]);
            let client = move || {
                thread::sleep(delay);
                exchanges.run(script, TcpStream::connect(address).ok())
            };
            (service, thread::Builder::new().name("client".into()).spawn(client).unwrap())
        };
        (0..count).map(one).collect()
    }

    /// Lets clients exchange until everything arrives.
    fn recover(
        &self,
        exchanges: &Exchanges,
        extensions: bool,
        timeout: Duration,
    ) -> Result<(), String> {
        let began = Instant::now();
        for seed in 0.. {
            let script = Script::plain(seed, extensions, 100_000);
            let one = exchanges.run(script, TcpStream::connect(self.ports[1]).ok());
            exchanges.settle();
            if exchanges.judge(&one, false, |_, _| true)? == Verdict::Complete {
                break;
            }
            if began.elapsed() > timeout {
                return Err(format!("no recovery of local clients: {one:?}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn stop(self) {
        self.stop.stop();
        self.thread.join().unwrap().unwrap();
    }
}

fn describe(served: &Served) -> String {
    let Served { received, complete, end, .. } = served;
    format!("{received} bytes, complete: {complete}, end: {end}")
}

/// Opens sessions until one is complete.
fn recovers(access: &mut Access, timeout: Duration) -> Result<(), String> {
    let began = Instant::now();
    let plan = Plan {
        seed: 1,
        service: "sound".into(),
        mode: Mode::ServiceLast,
        up: 100_000,
        down: 100_000,
    };
    let mut number = 0;
    loop {
        number += 1;
        access.open(Plan { seed: number, ..plan.clone() });
        let outcome = loop {
            if let Some(outcome) = access.step(Duration::from_millis(20)).pop() {
                break outcome;
            }
            if began.elapsed() > timeout {
                return Err("no recovery: a session without an end".into());
            }
        };
        if outcome.complete {
            return Ok(());
        }
        if began.elapsed() > timeout {
            return Err(format!("no recovery: {outcome:?}"));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn descriptors() -> usize {
    procfs::descriptors(std::process::id())
}

fn threads() -> usize {
    procfs::threads(std::process::id())
}

/// Lets a fault happen to a service's answer of 9,000 bytes: how many of them arrive unharmed, and
/// the result of the last read.
fn suffer(fault: Fault) -> (usize, std::io::Result<usize>) {
    let proxy = Proxy::start(1, false);
    let log = Arc::new(ServiceLog::default());
    let profile =
        Profile { name: "one", gap: 1, stall: 1, fatal: 0, fatal_connections: 0, corrupt: false };
    let address =
        proxy.route_with(profile, Some((5_000, fault)), move |damage| served(damage, &log));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let plan =
        Plan { seed: 5, service: String::new(), mode: Mode::ServiceFirst, up: 9, down: 9_000 };
    stream.write_all(&plan.up_stream()).unwrap();
    let (expected, mut received, mut buffer) = (plan.down_stream(), Vec::new(), [0; 1000]);
    let end = loop {
        match stream.read(&mut buffer) {
            Ok(length) if length > 0 => received.extend_from_slice(&buffer[..length]),
            end => break end,
        }
    };
    (expected.iter().zip(&received).take_while(|(a, b)| a == b).count(), end)
}

#[test]
fn the_proxy_does_what_its_faults_say() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for harmless in [
        Fault::Delay(5),
        Fault::Split(100),
        Fault::Coalesce(100_000),
        Fault::Stall(5),
        Fault::ZeroWindow(5),
    ] {
        let (unharmed, end) = suffer(harmless);
        assert_eq!((unharmed, end.unwrap()), (9_024, 0), "{harmless:?}");
    }
    let (unharmed, end) = suffer(Fault::Corrupt);
    assert_eq!((unharmed, end.unwrap()), (5_000, 0));
    let (unharmed, end) = suffer(Fault::HalfClose);
    assert_eq!((unharmed, end.unwrap()), (5_000, 0));
    let (unharmed, end) = suffer(Fault::Reset);
    assert!(unharmed <= 5_000);
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_judge_lets_no_loss_pass() {
    let now = Instant::now();
    let plan = Plan { seed: 1, service: String::new(), mode: Mode::ServiceLast, up: 5, down: 5 };
    let whole = Outcome {
        plan,
        began: now,
        ended: now,
        refused: None,
        released: Some((1, "service s closed the connection".into())),
        lost: None,
        sent: 0,
        received: 0,
        complete: true,
        wrong: None,
    };
    let damage = Arc::new(Damage::default());
    let all = Served {
        seed: Some(1),
        damage,
        received: 0,
        complete: true,
        wrong: None,
        end: String::new(),
        ended: now,
    };
    let none = Causes { tunnel: false, local: false, access: false };
    let lost = Causes { tunnel: true, ..none };
    assert_eq!(judge(&whole, Some(&all), none), Ok(true));
    let short = Outcome { complete: false, ..whole.clone() };
    assert!(judge(&short, Some(&all), none).is_err());
    assert!(judge(&short, Some(&all), lost).is_err(), "it looks like an orderly end");
    let reported = Outcome { released: Some((3, "lost".into())), ..short.clone() };
    assert_eq!(judge(&reported, Some(&all), lost), Ok(false));
    assert!(judge(&reported, Some(&all), none).is_err());
    assert!(judge(&Outcome { released: None, ..short }, Some(&all), lost).is_err());
    let short_served = Served { complete: false, ..all.clone() };
    assert!(judge(&whole, Some(&short_served), none).is_err());
    assert!(judge(&whole, None, none).is_err());
    assert_eq!(judge(&whole, None, lost), Ok(false));
    let changed = Served { wrong: Some("x".into()), ..all };
    assert!(judge(&whole, Some(&changed), lost).is_err());
}
