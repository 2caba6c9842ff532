//! A gateway, an agent and an access side as processes, one of which ends at a random moment, while
//! clients and services exchange bytes. What their ends see is judged as in
//! [`exchange`](crate::exchange). A seed decides on everything except the machine's speed.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::{Port, Service};
use rand::RngExt;

use crate::exchange::{self, Bounds, Ended, Exchange, Exchanges, Script, Verdict};
use crate::path::{Access, Agent, Kind, Path};
use crate::random::{self, permille, Generator};
use crate::wait::TIMEOUT;

const SERVICE: &str = "s";
/// A process ends after at most so many milliseconds.
const LATEST_END: u64 = 1_500;
/// Bytes may be under way for so long after their sender has ended.
const SLACK: Duration = Duration::from_secs(1);
/// Sessions work again after this time: the slowest is a device that backs off.
const RECOVERY: Duration = Duration::from_secs(60);

/// What clients and services do.
pub const BOUNDS: Bounds =
    Bounds { bytes: 8_000_000, pause: 200, long_pauses: 10, long_pause: 3_000, leaves: 100 };

/// The process that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Gateway,
    Agent,
    Access,
}

pub const VICTIMS: [Victim; 3] = [Victim::Gateway, Victim::Agent, Victim::Access];

/// What happens to a path.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub kind: Kind,
    pub victim: Victim,
    /// SIGKILL; otherwise SIGTERM.
    pub is_kill: bool,
    pub after: Duration,
}

impl Plan {
    fn random(random: &mut Generator) -> Self {
        Plan {
            kind: Kind { tls: permille(random, 500), extensions: permille(random, 600) },
            victim: VICTIMS[random.random_range(0..VICTIMS.len())],
            is_kill: permille(random, 700),
            after: Duration::from_millis(random.random_range(0..LATEST_END)),
        }
    }
}

/// How the exchanges of a seed went.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub plan: Plan,
    pub complete: u64,
    pub left: u64,
    pub reported: u64,
    /// From the end of the process to a complete exchange.
    pub recovery: Duration,
}

/// Lets one process end and checks every exchange. `Err` tells what is wrong.
pub fn run(seed: u64, bounds: Bounds) -> Result<Figures, String> {
    let mut random = random::part(seed, 0);
    let plan = Plan::random(&mut random);
    let run = Run { random, plan, bounds };
    run.go().map_err(|wrong| format!("{plan:?}: {wrong}"))
}

struct Run {
    random: Generator,
    plan: Plan,
    bounds: Bounds,
}

/// The processes, and the service behind them.
struct World {
    path: Path,
    agent: Agent,
    access: Access,
    service: Service,
    host: Ipv4Addr,
}

impl World {
    fn new(kind: Kind, host: Ipv4Addr, port: u16) -> Self {
        let service = Service::new(SERVICE, "127.0.0.1", Port::new(port).unwrap()).unwrap();
        let path = Path::at(host, kind, &[]);
        let agent = path.agent(std::slice::from_ref(&service));
        let access = listen(&path, host);
        World { path, agent, access, service, host }
    }

    fn end(&mut self, plan: &Plan) {
        let process = match plan.victim {
            Victim::Gateway => &mut self.path.gateway.process,
            Victim::Agent => &mut self.agent.program.process,
            Victim::Access => &mut self.access.program.process,
        };
        if plan.is_kill {
            process.kill();
        } else {
            process.terminate();
            process.wait();
        }
    }

    fn restart(&mut self, victim: Victim) {
        match victim {
            Victim::Gateway => self.path.restart_gateway(),
            Victim::Agent => self.agent = self.path.agent(std::slice::from_ref(&self.service)),
            Victim::Access => self.access = listen(&self.path, self.host),
        }
    }
}

fn listen(path: &Path, host: Ipv4Addr) -> Access {
    path.listen_at(host, SERVICE, &["--retry"])
}

impl Run {
    fn go(mut self) -> Result<Figures, String> {
        let (plan, random) = (self.plan, &mut self.random);
        let exchanges = Arc::new(Exchanges::default());
        let service = exchange::Service::start(&exchanges);
        // An address of its own, so that no other program takes the port of a process that is gone:
        // a client would reach that program.
        let host = Ipv4Addr::new(127, random.random_range(1..=254), rand::random(), 77);
        let mut world = World::new(plan.kind, host, service.port);

        let count = random.random_range(3..=7);
        let clients: Vec<JoinHandle<Exchange>> = (0..count)
            .map(|_| {
                let script = Script::random(random, plan.kind.extensions, self.bounds);
                let delay = Duration::from_millis(random.random_range(0..LATEST_END));
                start(script, &world.access, &exchanges, delay)
            })
            .collect();
        thread::sleep(plan.after);
        let ended = Instant::now();
        world.end(&plan);
        world.restart(plan.victim);
        let recovered = recover(&world.access, &exchanges, plan.kind.extensions, ended);

        let clients: Vec<Exchange> =
            clients.into_iter().map(|client| client.join().unwrap()).collect();
        exchanges.settle();
        exchanges.strays()?;
        let (recovery, later) = recovered?;
        let mut figures = Figures { plan, complete: 0, left: 0, reported: 0, recovery };
        for exchange in clients.iter().chain(&later) {
            let verdict = exchanges.judge(exchange, false, |service, _| {
                let last = service.map_or(exchange.client.at, |one| one.at.max(exchange.client.at));
                last + SLACK >= ended
            })?;
            match verdict {
                Verdict::Complete => figures.complete += 1,
                Verdict::Left => figures.left += 1,
                Verdict::Reported => figures.reported += 1,
            }
        }
        Ok(figures)
    }
}

fn start(
    script: Script,
    access: &Access,
    exchanges: &Arc<Exchanges>,
    delay: Duration,
) -> JoinHandle<Exchange> {
    let (address, exchanges) = (access.address, exchanges.clone());
    thread::spawn(move || {
        thread::sleep(delay);
        // The access side may be the one that is gone.
        let connected = TcpStream::connect_timeout(&address, TIMEOUT).ok();
        exchanges.run(script, connected)
    })
}

/// Lets clients exchange until everything arrives. The time since `ended`, and the exchanges.
fn recover(
    access: &Access,
    exchanges: &Exchanges,
    extensions: bool,
    ended: Instant,
) -> Result<(Duration, Vec<Exchange>), String> {
    let mut all = Vec::new();
    for seed in 0.. {
        let script = Script::plain(seed, extensions, 100_000);
        let connected = TcpStream::connect_timeout(&access.address, TIMEOUT).ok();
        let exchange = exchanges.run(script, connected);
        let is_orderly = exchange.client.ended == Ended::Orderly;
        all.push(exchange);
        if is_orderly {
            break;
        }
        if ended.elapsed() > RECOVERY {
            return Err(format!("no recovery: {all:?}"));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok((ended.elapsed(), all))
}
