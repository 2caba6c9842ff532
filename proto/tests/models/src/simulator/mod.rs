//! A whole path in one process and in virtual time: services, device, gateway, access sides,
//! clients, and the links between them. The parties are the state machines of the package; the
//! links and the programs at the far ends are models.
//!
//! A world is made from a seed, which replays a failure. These promises hold whatever happens to
//! links and parties:
//! - Each program receives the bytes that its far end has sent, in order.
//! - It sees an orderly end only if its far end has ended in order and nothing is missing.
//! - Memory stays within its budget.
//! - No party spins, and none sleeps while there is work for it.

mod party;
mod plan;
mod program;
mod wire;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::Pending;
use aiot_tunnel_proto::connection::{Connection, Ping};
use aiot_tunnel_proto::gateway::{Tunnel, TunnelLimits, HIGH_WATER, UPKEEP};
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::{Ready, Side};

use party::{Access, Device, Services};
pub use plan::{Fault, Plan};
pub use program::{Program, Saw, Script, SharedProgram, Then};
pub use wire::LinkShape;
use wire::{Clock, Link, LinkEnd};

/// A party that needs more rounds than this at one moment is spinning.
const MANY_ROUNDS: usize = 20_000;
/// How long a party that was lost stays away.
const AWAY: Duration = Duration::from_millis(1500);
/// What one connection of the gateway may have to send: answers up to twice the high-water mark, and
/// what one receive buffer of requests may add.
const MAX_WAITING: usize = 2 * HIGH_WATER + HIGH_WATER / 2 + 8192;

/// A client and the services that its sessions reached.
pub struct Pair {
    pub client: SharedProgram,
    pub services: Rc<RefCell<Vec<SharedProgram>>>,
}

/// All parties, and everything between them.
pub struct World {
    plan: Plan,
    clock: Clock,
    end: Instant,
    device: Device,
    gateway: Option<Tunnel<LinkEnd, ()>>,
    gateway_at: Instant,
    accesses: Vec<Access>,
    links: Vec<(Link, Side)>,
    services: Services,
    pub pairs: Vec<Pair>,
    /// Whether a fault has happened that may cut sessions.
    disturbed: bool,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let began = Instant::now();
        let clock: Clock = Rc::new(Cell::new(began));
        let services = Services::new(clock.clone());
        World {
            end: began + plan.length,
            device: Device::new(services.clone(), began),
            gateway: None,
            gateway_at: began,
            accesses: (0..plan.accesses).map(|_| Access::new(plan.extensions, began)).collect(),
            links: Vec::new(),
            services,
            pairs: Vec::new(),
            disturbed: false,
            clock,
            plan,
        }
    }

    /// Runs the world of a seed to its end. Panics where a promise is broken.
    pub fn run(seed: u64) {
        World::run_plan(Plan::of_seed(seed));
    }

    /// Runs the world of a plan to its end. Panics where a promise is broken.
    pub fn run_plan(plan: Plan) {
        let mut world = World::new(plan);
        world.run_to_end();
        world.settle();
        world.judge();
    }

    fn now(&self) -> Instant {
        self.clock.get()
    }

    /// Lets everything of the plan happen.
    pub fn run_to_end(&mut self) {
        let (began, end) = (self.now(), self.end);
        let clients = std::mem::take(&mut self.plan.clients);
        let faults = std::mem::take(&mut self.plan.faults);
        let (mut clients, mut faults) =
            (clients.into_iter().peekable(), faults.into_iter().peekable());
        while self.now() < end {
            let now = self.now();
            while let Some(client) = clients.next_if(|client| began + client.at <= now) {
                self.open(client.access, client.client, client.service);
            }
            while let Some((_, fault)) = faults.next_if(|(at, _)| began + *at <= now) {
                self.happens(fault);
            }
            self.work();
            let planned = clients.peek().map(|client| began + client.at);
            let planned = planned.into_iter().chain(faults.peek().map(|(at, _)| began + *at));
            let next = planned.chain(self.next_event()).chain([end]).min().unwrap_or(end);
            self.clock.set(next.max(self.now()));
        }
    }

    /// Lets everything go well until nothing moves.
    fn settle(&mut self) {
        let last = self.now() + Duration::from_secs(3600);
        while self.now() < last && !self.is_settled() {
            self.work();
            let next = self.next_event().unwrap_or(last);
            self.clock.set(next.max(self.now()).min(last));
        }
    }

    fn is_settled(&self) -> bool {
        self.pairs.iter().all(|pair| {
            let services = pair.services.borrow();
            pair.client.borrow().saw.is_some()
                && services.iter().all(|service| service.borrow().saw.is_some())
        })
    }

    /// A client connects to the local port of an access side.
    pub fn open(&mut self, access: usize, client: Script, service: Script) -> usize {
        let (now, number) = (self.now(), self.pairs.len() as u64);
        let program = Program::new(client, (2 * number, 2 * number + 1), now);
        let services = self.services.add(service, (2 * number + 1, 2 * number));
        let stream = program::ProgramStream::new(program.clone());
        let until = now + Duration::from_secs(30);
        let pending = Pending::new(stream, format!("c{number}").into(), Some(until));
        self.accesses[access].offer(pending);
        self.pairs.push(Pair { client: program, services });
        self.pairs.len() - 1
    }

    fn happens(&mut self, fault: Fault) {
        self.disturbed = true;
        let now = self.now();
        match fault {
            Fault::KillDevice => self.device.is_killed(now + AWAY),
            Fault::KillGateway => (self.gateway, self.gateway_at) = (None, now + AWAY),
            Fault::KillAccess(access) => self.accesses[access].is_killed(now + AWAY),
            Fault::Directive => self.device.is_directed(now),
            Fault::Cut(side) => self.links(side).for_each(|link| link.cut()),
            Fault::Pause(side, time) => self.links(side).for_each(|link| link.pause(time)),
        }
    }

    fn links(&self, side: Side) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(move |(_, of)| *of == side).map(|(link, _)| link)
    }

    /// Lets every party do what there is to do at this moment.
    fn work(&mut self) {
        let mut last = Vec::new();
        for _ in 0..MANY_ROUNDS {
            last = self.round();
            if last.is_empty() {
                return;
            }
        }
        panic!("{last:?} spin");
    }

    /// Lets every party do one thing. Returns the parties that did something.
    fn round(&mut self) -> Vec<&'static str> {
        let now = self.now();
        self.links.retain(|(link, _)| !link.is_over());
        self.links.iter().for_each(|(link, _)| link.advance());
        let mut programs = false;
        for pair in &self.pairs {
            programs |= pair.client.borrow_mut().step(now);
            for service in pair.services.borrow().iter() {
                programs |= service.borrow_mut().step(now);
            }
        }
        if self.gateway.is_none() && now >= self.gateway_at {
            let limits = TunnelLimits {
                sessions: self.plan.sessions,
                stall: Duration::from_secs(10),
                rate: self.plan.rate,
            };
            self.gateway = Some(Tunnel::new(limits, ()));
        }
        let connects = self.connect(now);
        let device = self.device.work(now);
        let gateway = self.work_gateway(now);
        let mut accesses = false;
        for access in &mut self.accesses {
            accesses |= access.work(now);
        }
        let worked = [
            ("programs", programs),
            ("connects", connects),
            ("device", device),
            ("gateway", gateway),
            ("access", accesses),
        ];
        worked.into_iter().filter(|(_, worked)| *worked).map(|(who, _)| who).collect()
    }

    fn connect(&mut self, now: Instant) -> bool {
        let Some(gateway) = &mut self.gateway else { return false };
        let upkeep = aiot_tunnel_proto::connection::Upkeep {
            ping: Ping::AfterSilence(Duration::from_secs(30)),
            ..UPKEEP
        };
        let mut connected = false;
        let mut link = |shape: LinkShape, side| {
            let (link, ours, theirs) = Link::new(shape, &self.clock);
            let member = Connection::new(theirs, Role::Server, b"", upkeep, now);
            gateway.join(side, member, now);
            self.links.push((link, side));
            connected = true;
            ours
        };
        if self.device.wants_connection(now) {
            self.device.connects(link(self.plan.device_link, Side::Device), now);
        }
        for access in self.accesses.iter_mut().filter(|access| access.wants_connection(now)) {
            access.connects(link(self.plan.access_link, Side::Access), now);
        }
        connected
    }

    /// What the thread of the gateway's tunnel does.
    fn work_gateway(&mut self, now: Instant) -> bool {
        let Some(gateway) = &mut self.gateway else { return false };
        let ready: Vec<Ready> = gateway
            .members()
            .map(|(member, reads)| Ready {
                read: reads && member.reads() && member.transport().is_readable(),
                write: member.wants_room(now) && member.transport().is_writable(),
            })
            .collect();
        let is_due = gateway.deadline(now).is_some_and(|at| at <= now);
        if !is_due && ready.iter().all(|ready| *ready == Ready::default()) {
            return false;
        }
        gateway.receive(now, &ready);
        gateway.step(now);
        for (member, _) in gateway.members() {
            assert!(member.waiting() <= MAX_WAITING, "{} bytes wait", member.waiting());
        }
        true
    }

    fn next_event(&self) -> Option<Instant> {
        let now = self.now();
        let programs = self.pairs.iter().flat_map(|pair| {
            let services = pair.services.borrow();
            let services: Vec<_> =
                services.iter().map(|one| one.borrow().next_event(now)).collect();
            services.into_iter().chain([pair.client.borrow().next_event(now)]).flatten()
        });
        let links = self.links.iter().filter_map(|(link, _)| link.next_event());
        let gateway = match &self.gateway {
            Some(gateway) => gateway.deadline(now),
            None => Some(self.gateway_at),
        };
        let has_gateway = self.gateway.is_some();
        let parties = self.accesses.iter().filter_map(|access| access.next_event(now, has_gateway));
        let parties = parties.chain(self.device.next_event(now, has_gateway));
        programs.chain(links).chain(gateway).chain(parties).min()
    }

    /// What every program saw must fit together with what its far end did.
    pub fn judge(&self) {
        for (number, pair) in self.pairs.iter().enumerate() {
            let client = pair.client.borrow();
            let services = pair.services.borrow();
            for service in services.iter().map(|service| service.borrow()) {
                let what = format!("the service of client {number}");
                judge_one(&what, &service, &client, self.plan.extensions);
            }
            let what = format!("client {number}");
            // A request on a connection that was lost may be read late, when the client has long been
            // served by another connection. Its service is reset and says nothing to the client.
            let has_served = |service: &&SharedProgram| {
                let service = service.borrow();
                service.ended && service.sent == client.received
            };
            let may_have_served =
                |service: &&SharedProgram| service.borrow().sent >= client.received;
            let served = services.iter().rev();
            let served = served.clone().find(has_served).or(served.clone().find(may_have_served));
            let served = served.or(services.last());
            let served = served.map(|service| service.borrow());
            match &served {
                Some(service) => judge_one(&what, &client, service, self.plan.extensions),
                None => assert_ne!(client.saw, Some(Saw::Eof), "{what} saw an end of nothing"),
            }
            let Some(service) = served else {
                assert!(self.disturbed || self.plan.may_wait(), "{what} was never served");
                continue;
            };
            let is_calm = !self.disturbed && !client.has_reset && !service.has_reset;
            if is_calm && self.plan.extensions && services.len() == 1 {
                assert_eq!(client.received, service.script.sends, "{what} lacks bytes");
                assert_eq!(service.received, client.script.sends, "its service lacks bytes");
                let saw = (client.saw, service.saw);
                assert_eq!(saw, (Some(Saw::Eof), Some(Saw::Eof)), "{what} and its service");
            }
        }
    }
}

/// `one` saw an orderly end only if its far end has ended in order and nothing is missing.
fn judge_one(what: &str, one: &Program, far: &Program, extensions: bool) {
    assert!(one.received <= far.sent, "{what} received more than was sent");
    // A program that resets its stream does not look at its end.
    if one.saw != Some(Saw::Eof) || one.has_reset {
        return;
    }
    // Without half-close, a device takes the end of a service's stream for a close of both.
    let closed_itself = !extensions && one.ended;
    assert!(far.ended || closed_itself, "{what} saw an orderly end of a stream that was cut");
    let is_whole = one.received == far.script.sends;
    assert!(is_whole || closed_itself, "{what} saw an orderly end of a part: {}", one.received);
}
