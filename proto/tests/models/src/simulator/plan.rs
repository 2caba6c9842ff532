//! What happens in a world: its links, its programs and its faults, all from a seed or from the bytes
//! of a fuzzer.

use std::time::Duration;

use aiot_tunnel_proto::Side;
use arbitrary::{Arbitrary, Result, Unstructured};

use super::program::{Script, Then};
use super::wire::LinkShape;

/// Something that disturbs the path.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A process is killed. It comes back a little later.
    KillDevice,
    KillGateway,
    KillAccess(usize),
    /// The device's tunnel gets other connection data.
    Directive,
    /// The connections of this side are reset.
    Cut(Side),
    /// Nothing gets through to and from this side for a while.
    Pause(Side, Duration),
}

/// A client, and the service that it asks for.
#[derive(Debug, Clone)]
pub struct Client {
    pub at: Duration,
    pub access: usize,
    pub client: Script,
    pub service: Script,
}

/// What happens in a world.
#[derive(Debug, Clone)]
pub struct Plan {
    pub length: Duration,
    pub accesses: usize,
    /// Sessions that the gateway lets a tunnel have.
    pub sessions: usize,
    /// The gateway's limit for each direction of a tunnel, in bytes a second.
    pub rate: Option<u64>,
    /// Whether the access sides offer half-close and flow control.
    pub extensions: bool,
    pub device_link: LinkShape,
    pub access_link: LinkShape,
    /// In the order of their times.
    pub clients: Vec<Client>,
    pub faults: Vec<(Duration, Fault)>,
}

/// The next number of a generator (SplitMix64), which a seed reproduces on every machine.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Decides, by the numbers of its source.
struct Random<'a>(&'a mut dyn FnMut() -> u64);

impl Random<'_> {
    fn below(&mut self, end: u64) -> u64 {
        (self.0)() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn link(&mut self) -> LinkShape {
        let rate = self.pick(&[12_500.0, 125_000.0, 1_250_000.0, 50_000_000.0]);
        LinkShape { rate, delay: Duration::from_millis(self.pick(&[0, 1, 10, 100, 300])) }
    }

    fn script(&mut self, most: usize) -> Script {
        let length = self.pick(&[0, 1, 100, 5000, 100_000, 600_000]).min(most);
        let pause = self.one_in(4).then(|| {
            let from = self.millis(5000);
            (from, from + self.millis(60_000))
        });
        Script {
            sends: length + if length > 0 { self.below(length as u64) as usize } else { 0 },
            then: match self.below(8) {
                0 => Then::Resets,
                1 | 2 => Then::Waits,
                _ => Then::HalfCloses,
            },
            after_eof: false,
            reads: self.pick(&[f64::INFINITY, f64::INFINITY, 1_000_000.0, 20_000.0]),
            pause,
        }
    }
}

impl Plan {
    /// Links, and nothing that happens.
    pub fn quiet(length: Duration, device_link: LinkShape, access_link: LinkShape) -> Self {
        Plan {
            length,
            accesses: 1,
            sessions: 10,
            rate: None,
            extensions: true,
            device_link,
            access_link,
            clients: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// The plan of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut state = seed;
        Plan::decided(Random(&mut || next(&mut state)))
    }

    fn decided(mut random: Random<'_>) -> Self {
        let length = Duration::from_secs(20) + random.millis(60_000);
        let mut plan = Plan::quiet(length, random.link(), random.link());
        plan.accesses = 1 + random.below(3) as usize;
        plan.sessions = random.pick(&[2, 4, 10]);
        plan.extensions = !random.one_in(3);
        // As much as the slower link carries in a few minutes.
        let slower = plan.device_link.rate.min(plan.access_link.rate);
        let most = (slower * 20.0) as usize;
        for _ in 0..1 + random.below(8) {
            let (mut client, mut service) = (random.script(most), random.script(most));
            match random.below(6) {
                0 => (service.after_eof, service.then) = (true, Then::HalfCloses),
                1 => (client.after_eof, client.then) = (true, Then::HalfCloses),
                _ => {}
            }
            if service.after_eof && client.then == Then::Waits
                || client.after_eof && service.then == Then::Waits
                || client.then == Then::Waits && service.then == Then::Waits
            {
                // Both would wait for each other.
                (client.then, service.then) = (Then::HalfCloses, Then::HalfCloses);
            }
            let access = random.below(plan.accesses as u64) as usize;
            let at = random.millis(10_000);
            plan.clients.push(Client { at, access, client, service });
        }
        plan.clients.sort_by_key(|client| client.at);
        if random.one_in(2) {
            for _ in 0..1 + random.below(3) {
                let side = random.pick(&[Side::Device, Side::Access]);
                let fault = match random.below(7) {
                    0 => Fault::KillDevice,
                    1 => Fault::KillGateway,
                    2 => Fault::KillAccess(random.below(plan.accesses as u64) as usize),
                    3 => Fault::Directive,
                    4 => Fault::Cut(side),
                    _ => Fault::Pause(side, random.millis(60_000)),
                };
                plan.faults.push((random.millis(20_000), fault));
            }
            plan.faults.sort_by_key(|(at, _)| *at);
        }
        plan
    }

    /// Whether a client may have to wait for a session, and be turned away.
    pub(super) fn may_wait(&self) -> bool {
        // The plan's clients have been taken out when this is asked.
        self.sessions < 10
    }
}

impl<'a> Arbitrary<'a> for Plan {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Plan::decided(Random(&mut || u.arbitrary::<u32>().unwrap_or_default().into())))
    }
}
