//! Two gateways behind HAProxy with one Redis server, with the configuration of `packaging/fleet`. A test
//! without one of the programs says so and passes; scripts/setup installs them.
//!
//! `FLEET_TUNNELS=200` and `FLEET_KILLS=10` make more tunnels, and more kills of each gateway, than the
//! default.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::access::{Client, Stop};
use aiot_tunnel::{
    ConnectParams, Limits, Manager, Port, Security, Service, TlsConfig, Token, TunnelId,
};
use aiot_tunnel_testkit::exchange::{self, Bounds, Ended, Exchange, Exchanges, Script, Verdict};
use aiot_tunnel_testkit::fleet::{Fleet, Tokens, GATEWAYS};
use aiot_tunnel_testkit::manager::Running;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{random, skip};
use rand::RngExt;

const SERVICE: &str = "s";
/// Tunnels, and kills of each gateway, unless the environment has other numbers.
const TUNNELS: usize = 40;
const KILLS: usize = 1;
/// The tunnels of a gateway that is killed, or comes back, work again within this time.
const BACK: Duration = Duration::from_secs(10);
/// A change of a token takes effect at all gateways within this time.
const SOON: Duration = Duration::from_secs(1);
/// For so long nothing may happen to tunnels when `/healthz` says that the store is away. The balancer takes a
/// gateway for dead in less.
const WATCH: Duration = Duration::from_secs(4);
/// Bytes may be under way for so long after their sender has ended.
const SLACK: Duration = Duration::from_secs(1);
/// What clients and services do.
const BOUNDS: Bounds =
    Bounds { bytes: 600_000, pause: 1_000, long_pauses: 500, long_pause: 4_000, leaves: 100 };
/// Longest time between two exchanges of a client, in milliseconds, for each tunnel: many tunnels together do as much
/// as a few.
const BREAK: u64 = 10;

/// The fleet, and both ends of its tunnels.
struct Site {
    // Dropped first: operators and devices end at once then.
    load: Load,
    fleet: Fleet,
}

struct Load {
    tunnels: Vec<Tunnel>,
    exchanges: Arc<Exchanges>,
    seeds: AtomicU64,
    /// When connections of a home may be lost.
    windows: Mutex<Vec<Window>>,
    _device: Mutex<Running>,
    _service: exchange::Service,
}

struct Tunnel {
    id: String,
    /// The gateway where both ends meet while all run.
    home: usize,
    operator: Operator,
    done: Mutex<Vec<Exchange>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    home: usize,
    from: Instant,
    until: Instant,
}

/// The operator's end of a tunnel, with a local port.
struct Operator {
    address: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Operator {
    fn start(params: ConnectParams, security: Security) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = Client::new(params, security, SERVICE).unwrap().with_retry(true);
        let stop = client.stop_handle();
        let thread = thread::spawn(move || client.listen(&listener).unwrap());
        Operator { address, stop, thread: Some(thread) }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))), "an operator's end failed");
    }
}

impl Site {
    /// `None`, with a message, where a program is missing. `more`: further arguments of the gateways.
    fn start(test: &str, count: usize, more: &[&str]) -> Option<Self> {
        let fleet = Fleet::start(more).map_err(|why| skip(test, why)).ok()?;
        let exchanges = Arc::new(Exchanges::default());
        let service = exchange::Service::start(&exchanges);
        let security = || Security::Tls(TlsConfig::new().with_ca_pem(&fleet.ca()).unwrap());
        let port = Port::new(service.port).unwrap();
        let builder = Manager::builder()
            .security(security())
            .limits(Limits::new().with_max_tunnels(count))
            .service(Service::new(SERVICE, "127.0.0.1", port).unwrap());
        let device = Running::start(builder);
        let host = fleet.address().ip().to_string();
        let port = Port::new(fleet.address().port()).unwrap();
        let params = |id: &str, side: &str, token: &str| {
            let path = format!("/tunnel/{id}/{side}");
            ConnectParams::new(&host, port, &path, Token::new(token).unwrap()).unwrap()
        };
        let opened: Vec<(String, Operator)> = (0..count)
            .map(|number| {
                let id = format!("pump-{number}");
                let tokens = fleet.add(number % GATEWAYS, &id);
                let params = |side, token: &str| params(&id, side, token);
                let name = TunnelId::new(&id).unwrap();
                device.handle.add(&name, params("dest", &tokens.device)).unwrap();
                let operator = Operator::start(params("source", &tokens.access), security());
                (id, operator)
            })
            .collect();
        let tunnels = opened.into_iter().map(|(id, operator)| {
            let mut places = Vec::new();
            wait::until(&format!("{id}: the device is connected"), || {
                places = fleet.places(&id);
                !places.is_empty()
            });
            assert_eq!(places.len(), 1, "{id}");
            Tunnel { id, home: places[0], operator, done: Mutex::default() }
        });
        let tunnels: Vec<Tunnel> = tunnels.collect();
        let load = Load {
            tunnels,
            exchanges,
            seeds: AtomicU64::new(1),
            windows: Mutex::default(),
            _device: Mutex::new(device),
            _service: service,
        };
        Some(Site { load, fleet })
    }
}

impl Load {
    /// The tunnels whose home is this gateway.
    fn of(&self, home: usize) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.iter().filter(move |tunnel| tunnel.home == home)
    }

    fn exchange(&self, tunnel: &Tunnel, script: Script) -> Ended {
        let connected = TcpStream::connect_timeout(&tunnel.operator.address, TIMEOUT).ok();
        let exchange = self.exchanges.run(script, connected);
        let ended = exchange.client.ended;
        tunnel.done.lock().unwrap().push(exchange);
        ended
    }

    /// Waits until each tunnel has carried an exchange that began now or later. How long that took.
    fn all_work(&self) -> Duration {
        let begun = Instant::now();
        thread::scope(|scope| {
            for tunnel in &self.tunnels {
                scope.spawn(move || loop {
                    let seed = self.seeds.fetch_add(1, Ordering::SeqCst);
                    let ended = self.exchange(tunnel, Script::plain(seed, true, 1_000));
                    let passed = begun.elapsed();
                    assert!(passed < BACK, "{}: {ended:?} after {passed:?}", tunnel.id);
                    if ended == Ended::Orderly {
                        break;
                    }
                    thread::sleep(Duration::from_millis(20));
                });
            }
        });
        begun.elapsed()
    }

    /// A client of each tunnel exchanges bytes while `work` runs.
    fn amid_transfers(&self, work: impl FnOnce()) {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let longest = BREAK * self.tunnels.len() as u64;
            for (number, tunnel) in self.tunnels.iter().enumerate() {
                let is_over = &is_over;
                scope.spawn(move || {
                    let mut random = random::part(number as u64, 0);
                    while !is_over.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_millis(random.random_range(0..longest)));
                        self.exchange(tunnel, Script::random(&mut random, true, BOUNDS));
                    }
                });
            }
            // Clients end after a failure, too.
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            is_over.store(true, Ordering::SeqCst);
            if let Err(panic) = worked {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Connections of a home may be lost while `work` runs.
    fn may_cut<T>(&self, home: usize, work: impl FnOnce() -> T) -> T {
        let from = Instant::now();
        let result = work();
        let until = Instant::now();
        self.windows.lock().unwrap().push(Window { home, from, until });
        result
    }

    /// Judges all exchanges: none has an orderly end where bytes are missing, and none was cut without a reason.
    fn judge(&self) -> [u64; 3] {
        self.exchanges.settle();
        self.exchanges.strays().unwrap();
        let windows = self.windows.lock().unwrap();
        let [mut complete, mut left, mut reported] = [0; 3];
        for tunnel in &self.tunnels {
            for exchange in &*tunnel.done.lock().unwrap() {
                let verdict = self.exchanges.judge(exchange, false, |service, _| {
                    let (began, at) = (exchange.client.began, exchange.client.at);
                    let last = service.map_or(at, |one| one.at.max(at));
                    windows.iter().any(|window| {
                        let is_within = began <= window.until && last + SLACK >= window.from;
                        window.home == tunnel.home && is_within
                    })
                });
                match verdict.unwrap_or_else(|wrong| panic!("{}: {wrong}", tunnel.id)) {
                    Verdict::Complete => complete += 1,
                    Verdict::Left => left += 1,
                    Verdict::Reported => reported += 1,
                }
            }
        }
        [complete, left, reported]
    }
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Waits until the home's tunnels, and no others, are at this gateway. How long that took.
fn are_at_home(fleet: &Fleet, load: &Load, home: usize) -> Duration {
    let begun = Instant::now();
    for tunnel in load.of(home) {
        let left = BACK.saturating_sub(begun.elapsed());
        let what = format!("{} is at its home again", tunnel.id);
        wait::until_within(&what, left, || fleet.places(&tunnel.id) == [home]);
    }
    load.all_work();
    begun.elapsed()
}

/// The statuses with which all gateways, and the balancer, answer to both tokens.
fn admissions(fleet: &Fleet, id: &str, tokens: &Tokens) -> Vec<u16> {
    let mut all = Vec::new();
    for (side, token) in [("source", &tokens.access), ("dest", &tokens.device)] {
        let path = format!("/tunnel/{id}/{side}");
        let members = fleet.members.iter().filter(|member| member.is_running());
        all.extend(members.map(|member| member.admission(&path, token)));
        all.push(fleet.connect(&path, token).map_or_else(|status| status, |_| 101));
    }
    all
}

/// Replaces the tokens of an open tunnel by one gateway, then removes it by another one. Each time its
/// connections are closed, and its tokens refused everywhere, in time. When, at most, a look began that found them
/// refused everywhere.
fn revoke(fleet: &Fleet, id: &str, by: usize) -> Duration {
    let mut tokens = fleet.add(by, id);
    let running: Vec<usize> =
        (0..GATEWAYS).filter(|number| fleet.members[*number].is_running()).collect();
    let mut slowest = Duration::ZERO;
    for (number, (code, refusal)) in [(4001, 401), (1001, 404)].into_iter().enumerate() {
        wait::until("the tokens are known everywhere", || {
            admissions(fleet, id, &tokens).iter().all(|status| *status == 101)
        });
        let path = |side| format!("/tunnel/{id}/{side}");
        let mut device = fleet.connect(&path("dest"), &tokens.device).unwrap();
        let mut access = fleet.connect(&path("source"), &tokens.access).unwrap();
        let by = running[(by + number) % running.len()];
        let asked = Instant::now();
        let new = match code {
            4001 => fleet.rotate(by, id),
            _ => fleet.remove(by, id),
        };
        assert_eq!([device.receive_close(), access.receive_close()], [Some(code); 2]);
        loop {
            let begun = asked.elapsed();
            if admissions(fleet, id, &tokens).iter().all(|status| *status == refusal) {
                slowest = slowest.max(begun);
                break;
            }
            assert!(begun < SOON, "{id}: a token that was revoked {begun:?} ago opens the tunnel");
        }
        tokens = new.unwrap_or(tokens);
    }
    slowest
}

#[test]
fn the_tunnels_of_a_killed_gateway_are_back_in_time_and_no_end_takes_a_part_for_the_whole() {
    let test = "a killed gateway of a fleet";
    let (tunnels, kills) = (number("FLEET_TUNNELS", TUNNELS), number("FLEET_KILLS", KILLS));
    let Some(Site { load, mut fleet }) = Site::start(test, tunnels, &[]) else { return };
    load.all_work();
    let counts: Vec<usize> = (0..GATEWAYS).map(|home| load.of(home).count()).collect();
    assert!(counts.iter().all(|count| count * 4 >= tunnels), "{counts:?}");
    let (mut killed, mut returned, mut revoked) = (Vec::new(), Vec::new(), Vec::new());
    load.amid_transfers(|| {
        for home in 0..GATEWAYS {
            for kill in 0..kills {
                let other = (home + 1) % GATEWAYS;
                let missed = fleet.add(home, &format!("missed-{home}-{kill}"));
                killed.push(load.may_cut(home, || {
                    fleet.kill(home);
                    load.all_work()
                }));
                let id = format!("missed-{home}-{kill}");
                fleet.rotate(other, &id);
                revoked.push(revoke(&fleet, &format!("alone-{home}-{kill}"), other));
                returned.push(load.may_cut(home, || {
                    fleet.restart(home);
                    // What it has missed does not open anything, from its first moment on.
                    let path = format!("/tunnel/{id}/source");
                    assert_eq!(fleet.members[home].admission(&path, &missed.access), 401);
                    are_at_home(&fleet, &load, home)
                }));
                revoked.push(revoke(&fleet, &format!("both-{home}-{kill}"), home));
            }
        }
    });
    let [complete, left, reported] = load.judge();
    println!("{tunnels} tunnels, by their homes: {counts:?}");
    println!("{complete} exchanges complete, {left} left by an end, {reported} reported as lost");
    println!("until the slowest tunnel worked after a kill: {killed:?}");
    println!("until the slowest tunnel worked at its home again: {returned:?}");
    println!("until a look that found revoked tokens refused everywhere: {revoked:?}");
}

/// The balancer may not notice that a gateway was away, and must notice that one does nothing.
#[test]
fn a_gateway_that_hangs_or_restarts_at_once_parts_no_ends() {
    let test = "a gateway of a fleet that hangs";
    let Some(Site { load, mut fleet }) = Site::start(test, 10, &[]) else { return };
    load.all_work();
    load.amid_transfers(|| {
        for is_kill in [true, false] {
            load.may_cut(0, || {
                match is_kill {
                    true => fleet.kill(0),
                    false => fleet.stop(0),
                }
                fleet.restart(0);
                are_at_home(&fleet, &load, 0)
            });
        }
        load.may_cut(1, || {
            fleet.process(1).freeze();
            load.all_work();
            fleet.process(1).thaw();
            are_at_home(&fleet, &load, 1)
        });
    });
    load.judge();
}

#[test]
fn without_its_store_a_fleet_goes_on() {
    let test = "a fleet without its store";
    let Some(Site { load, mut fleet }) = Site::start(test, 10, &["--store-grace", "5s"]) else {
        return;
    };
    let tokens = fleet.add(0, "other");
    wait::until("the tunnel is known everywhere", || {
        admissions(&fleet, "other", &tokens).iter().all(|status| *status == 101)
    });
    let wrong = Tokens { device: tokens.access.clone(), access: tokens.device.clone() };
    let all = |fleet: &Fleet, health: (u16, &str)| {
        fleet.members.iter().all(|member| {
            let (status, text) = member.health();
            (status, &text[..]) == health
        })
    };
    load.amid_transfers(|| {
        fleet.stop_store();
        wait::until("all gateways say so", || all(&fleet, (200, "degraded")));
        assert!(admissions(&fleet, "other", &tokens).iter().all(|status| *status == 101));
        assert!(admissions(&fleet, "other", &wrong).iter().all(|status| *status == 401));
        let (status, answer) = fleet.members[0].ask("POST", "/tunnels/other/rotate", None);
        assert_eq!(status, 503, "{answer}");
        load.all_work();
        // For longer than the time of grace. The balancer goes on with the gateways, too.
        wait::until("the time of grace is over", || all(&fleet, (503, "unavailable")));
        assert!(admissions(&fleet, "other", &tokens).iter().all(|status| *status == 503));
        let begun = Instant::now();
        while begun.elapsed() < WATCH {
            load.all_work();
        }
        fleet.start_store();
        wait::until("all gateways are well again", || all(&fleet, (200, "ok")));
        assert!(admissions(&fleet, "other", &tokens).iter().all(|status| *status == 101));
        revoke(&fleet, "later", 1);
    });
    // Nothing was cut: there was no reason.
    load.judge();
}
