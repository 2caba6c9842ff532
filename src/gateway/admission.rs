//! Admission to the gateway: tokens, permits, and the handshakes in progress.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::proxies::ClientAddress;
use parking_lot::Mutex;

use super::front::Client;
use crate::sys::Waker;

/// A pool of permits. It counts the permits that are taken.
#[derive(Clone, Default)]
pub(super) struct Permits(Arc<AtomicUsize>);

/// A permit from each of two pools, with their limits. Dropping it frees both places.
pub(super) struct Permit([(Permits, usize); 2]);

impl Permits {
    /// The number of permits that are taken.
    pub(super) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes a permit from this pool and one from `other`, if both have one left. The caller must
    /// hold a lock, because two threads must not take permits at the same time.
    pub(super) fn take(&self, limit: usize, other: &Permits, other_limit: usize) -> Option<Permit> {
        let has_room = self.taken() < limit && other.taken() < other_limit;
        has_room.then(|| self.take_anyway(limit, other, other_limit))
    }

    /// Like [`take`](Self::take), for a connection that replaces one of this pool. It takes over the
    /// place of that one: until the other has given its permit back, there may be one too many.
    pub(super) fn replace(
        &self,
        limit: usize,
        other: &Permits,
        other_limit: usize,
    ) -> Option<Permit> {
        match self.taken() {
            0 => self.take(limit, other, other_limit),
            _ => Some(self.take_anyway(limit, other, other_limit)),
        }
    }

    /// Takes a permit from both pools, whatever their limits.
    pub(super) fn take_anyway(&self, limit: usize, other: &Permits, other_limit: usize) -> Permit {
        let permit = Permit([(self.clone(), limit), (other.clone(), other_limit)]);
        for (pool, _) in &permit.0 {
            pool.0.fetch_add(1, Ordering::Relaxed);
        }
        permit
    }
}

impl Permit {
    /// Whether one of the pools has given out more permits than its limit.
    pub(super) fn is_over(&self) -> bool {
        self.0.iter().any(|(pool, limit)| pool.taken() > *limit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for (pool, _) in &self.0 {
            pool.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How long a handshake may run while clients wait for its place: shorter if its network has more
/// places than its share. A handshake takes two to four round trips, so even a client on a bad link
/// has finished by then. A client that holds its place without using it has not.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_WITH_GREED: Duration = Duration::from_secs(1);

/// Clients that have been accepted and wait for the place of a handshake. Further ones wait in the
/// listener's backlog, where the gateway does not see their addresses.
pub(super) const MAX_WAITING: usize = 1024;

/// Networks that are remembered although none of their clients is here. Those that were served longest
/// ago are forgotten first. It counts as never served then.
const MAX_REMEMBERED: usize = 8192;

/// Where clients are counted together: an IPv4 address, or an IPv6 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Group(IpAddr, u8);

/// The groups of a client, the largest first. They are the /48, the /56 and the /64 of an IPv6 address:
/// a provider gives its customer one of these, and the customer has all the networks within. An IPv4
/// address is its own group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network([Group; 3]);

impl Network {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(v6) => Network([48, 56, 64].map(|bits| {
                let prefix = v6.to_bits() & (u128::MAX << (128 - bits));
                Group(Ipv6Addr::from_bits(prefix).into(), bits)
            })),
            v4 => Network([Group(v4, 32); 3]),
        }
    }

    /// The groups, without a repetition.
    fn groups(&self) -> &[Group] {
        let count = if self.0[0] == self.0[2] { 1 } else { 3 };
        &self.0[..count]
    }

    /// The smallest group. Two clients of it have the same owner for certain.
    fn smallest(&self) -> Group {
        self.0[2]
    }
}

/// What is known of a group.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    running: usize,
    waiting: usize,
    /// The number of its last handshake, counted from 1. 0: never served, or its last client has shown
    /// a token.
    served: u64,
}

/// What [`Places`] decides.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn<C> {
    /// This client's handshake begins. The number is its place's.
    Begin(u64, C),
    /// The handshake with this number gives way.
    CutOff(u64),
    /// Nothing changes before this time, or before a place becomes free. `None`: nobody waits.
    Wait(Option<Instant>),
}

/// Who may do a handshake, and who waits. It takes the time as an argument and does no I/O; `C` is a
/// client.
///
/// The next one is the waiting client whose group has the fewest handshakes; of equal groups, the one
/// that was served longest ago, or never. This is decided for the large groups first, then among the
/// smaller ones inside. So a network with many clients only delays its own, and many networks delay a
/// newcomer only until each of them has been served once.
///
/// While clients wait, a handshake that takes too long gives way. One that makes progress does not: if
/// each newcomer cut off the oldest handshake, which is nearest to its success, then of many clients
/// that come at once nobody would succeed.
pub(super) struct Places<C> {
    limit: usize,
    next: u64,
    /// The handshakes, the oldest first.
    running: BTreeMap<u64, (Network, Instant)>,
    /// In the order of their arrival.
    waiting: VecDeque<(Network, C)>,
    /// How many clients may wait.
    most_waiting: usize,
    known: HashMap<Group, Known>,
}

impl<C> Places<C> {
    pub(super) fn new(limit: usize) -> Self {
        let (running, waiting) = (BTreeMap::new(), VecDeque::new());
        let (limit, most_waiting, known) = (limit.max(1), MAX_WAITING, HashMap::new());
        Places { limit, next: 0, running, waiting, most_waiting, known }
    }

    /// Adds a client. If too many wait, returns the client that is dropped for it.
    #[must_use]
    pub(super) fn add(&mut self, network: Network, client: C) -> Option<C> {
        self.note(network, |known| known.waiting += 1);
        self.waiting.push_back((network, client));
        (self.waiting.len() > self.most_waiting).then(|| self.drop_one()).flatten()
    }

    /// Drops a waiting client, which frees its descriptor: the youngest of the group that has most of
    /// them; of equal groups, the one that was served last.
    pub(super) fn drop_one(&mut self) -> Option<C> {
        let order = |(index, (network, _)): &(usize, &(Network, C))| {
            (self.order(network, |known| (known.waiting, known.served)), *index)
        };
        let (index, _) = self.waiting.iter().enumerate().max_by_key(order)?;
        self.take(index).map(|(_, client)| client)
    }

    pub(super) fn turn(&mut self, now: Instant) -> Turn<C> {
        let order = |(_, (network, _)): &(usize, &(Network, C))| {
            self.order(network, |known| (known.running, known.served))
        };
        let first = self.waiting.iter().enumerate().min_by_key(order);
        let Some((index, (network, _))) = first else { return Turn::Wait(None) };
        if self.running.len() >= self.limit {
            let share = |network: &Network| self.known(network.smallest()).running;
            let fair = share(network) + 1;
            let until = |(network, begun): &(Network, Instant)| {
                let greedy = share(network) > fair;
                *begun + if greedy { PATIENCE_WITH_GREED } else { PATIENCE }
            };
            let nearest = self.running.iter().map(|(number, one)| (until(one), *number)).min();
            return match nearest {
                Some((until, number)) if until <= now => {
                    self.free(number);
                    Turn::CutOff(number)
                }
                nearest => Turn::Wait(nearest.map(|(until, _)| until)),
            };
        }
        let Some((network, client)) = self.take(index) else { return Turn::Wait(None) };
        let number = self.next;
        self.next += 1;
        self.note(network, |known| (known.running, known.served) = (known.running + 1, number + 1));
        self.running.insert(number, (network, now));
        self.forget();
        Turn::Begin(number, client)
    }

    /// Frees the place of a handshake. Returns false if it was cut off.
    pub(super) fn free(&mut self, number: u64) -> bool {
        let freed = self.running.remove(&number);
        if let Some((network, _)) = freed {
            self.note(network, |known| known.running -= 1);
        }
        freed.is_some()
    }

    /// Frees the place of a client that has shown its token. What it was given does not count against
    /// its network: a stranger has no token. Returns false if it was cut off.
    pub(super) fn succeed(&mut self, number: u64) -> bool {
        if let Some((network, _)) = self.running.get(&number) {
            self.note(*network, |known| known.served = 0);
        }
        self.free(number)
    }

    /// The client of a handshake is one of this network: a proxy has told so, and the proxy's network has
    /// no part in it.
    pub(super) fn is_of(&mut self, number: u64, network: Network) {
        let Some((before, _)) = self.running.get_mut(&number) else { return };
        let proxy = std::mem::replace(before, network);
        self.note(proxy, |known| (known.running, known.served) = (known.running - 1, 0));
        self.note(network, |known| (known.running, known.served) = (known.running + 1, number + 1));
    }

    fn take(&mut self, index: usize) -> Option<(Network, C)> {
        let (network, client) = self.waiting.remove(index)?;
        self.note(network, |known| known.waiting -= 1);
        Some((network, client))
    }

    fn known(&self, group: Group) -> Known {
        self.known.get(&group).copied().unwrap_or_default()
    }

    /// What an order of networks compares, the largest group first.
    fn order<K: Copy>(&self, network: &Network, key: impl Fn(Known) -> K) -> [K; 3] {
        match network.groups() {
            [only] => [key(self.known(*only)); 3],
            _ => network.0.map(|group| key(self.known(group))),
        }
    }

    fn note(&mut self, network: Network, change: impl Fn(&mut Known)) {
        for group in network.groups() {
            change(self.known.entry(*group).or_default());
        }
    }

    /// Forgets groups without clients, if there are too many: half of them.
    fn forget(&mut self) {
        let is_idle = |known: &Known| known.running == 0 && known.waiting == 0;
        let most = MAX_REMEMBERED + 3 * (self.waiting.len() + self.running.len());
        if self.known.len() > most {
            let idle = self.known.values().filter(|known| is_idle(known));
            let mut served: Vec<u64> = idle.map(|known| known.served).collect();
            let middle = served.len() / 2;
            let (_, last, _) = served.select_nth_unstable(middle);
            let last = *last;
            self.known.retain(|_, known| !is_idle(known) || known.served > last);
        }
    }
}

/// The handshakes in progress and the clients that wait for their places.
pub(super) struct Handshakes {
    limit: usize,
    state: Mutex<State>,
    /// Woken when a place becomes free.
    pub(super) freed: Waker,
}

struct State {
    places: Places<Client>,
    /// The connections of the handshakes, to cut them off, and their clients.
    sockets: HashMap<u64, (TcpStream, ClientAddress)>,
    /// The number of handshake threads. It includes those that were cut off and have not ended yet.
    threads: usize,
}

/// One handshake. Dropping it frees its place.
pub(super) struct Handshake {
    of: Arc<Handshakes>,
    number: u64,
}

/// What the accept thread has to do.
pub(super) enum Next {
    Begin(Handshake, Client),
    /// A handshake of this client was cut off.
    CutOff(ClientAddress),
    /// Ask again at this time, or when [`freed`](Handshakes::freed) is woken.
    Wait(Option<Instant>),
}

impl Handshakes {
    pub(super) fn new(limit: usize) -> io::Result<Self> {
        let (places, sockets) = (Places::new(limit), HashMap::new());
        let state = Mutex::new(State { places, sockets, threads: 0 });
        Ok(Handshakes { limit: limit.max(1), state, freed: Waker::new()? })
    }

    /// Adds a client. At most `most` may wait. Returns the address of a client that was dropped
    /// because there were more.
    pub(super) fn add(&self, client: Client, most: usize) -> Option<ClientAddress> {
        let network = Network::of(client.address.ip);
        let places = &mut self.state.lock().places;
        places.most_waiting = most;
        places.add(network, client).map(|client| client.address)
    }

    /// Drops a waiting client, to free its descriptor. Returns false if nobody waits.
    pub(super) fn drop_one(&self) -> bool {
        self.state.lock().places.drop_one().is_some()
    }

    /// [`drop_one`](Self::drop_one), unless only one waits.
    pub(super) fn drop_one_of_several(&self) {
        let mut state = self.state.lock();
        if state.places.waiting.len() > 1 {
            state.places.drop_one();
        }
    }

    /// What is to be done now.
    ///
    /// # Errors
    /// A handshake cannot begin, because there is no descriptor left. Its client was dropped.
    pub(super) fn next(self: &Arc<Self>, now: Instant) -> io::Result<Next> {
        let mut state = self.state.lock();
        // A thread whose handshake was cut off may take a moment to notice.
        if state.threads >= 2 * self.limit {
            return Ok(Next::Wait(None));
        }
        Ok(match state.places.turn(now) {
            Turn::Begin(number, client) => {
                state.threads += 1;
                // Frees the place if there is no descriptor.
                let handshake = Handshake { of: self.clone(), number };
                let mut socket = client.tcp.try_clone();
                // Whose turn it is needs a descriptor more than those who wait.
                if socket.is_err() && state.places.drop_one().is_some() {
                    socket = client.tcp.try_clone();
                }
                match socket {
                    Ok(socket) => state.sockets.insert(number, (socket, client.address)),
                    Err(e) => {
                        drop(state);
                        return Err(e);
                    }
                };
                Next::Begin(handshake, client)
            }
            Turn::CutOff(number) => match state.sockets.remove(&number) {
                Some((socket, address)) => {
                    let _ = socket.shutdown(Shutdown::Both);
                    Next::CutOff(address)
                }
                None => Next::Wait(Some(now)),
            },
            Turn::Wait(until) => Next::Wait(until),
        })
    }
}

impl Handshake {
    /// A proxy has told whose handshake it is.
    pub(super) fn is_of(&self, client: ClientAddress) {
        let mut state = self.of.state.lock();
        state.places.is_of(self.number, Network::of(client.ip));
        if let Some((_, address)) = state.sockets.get_mut(&self.number) {
            *address = client;
        }
    }

    /// Frees the place of a successful handshake, so that it is no longer cut off. Returns false if it
    /// already was.
    pub(super) fn succeeds(&self) -> bool {
        let mut state = self.of.state.lock();
        state.sockets.remove(&self.number);
        let in_time = state.places.succeed(self.number);
        drop(state);
        self.of.freed.wake();
        in_time
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut state = self.of.state.lock();
        state.sockets.remove(&self.number);
        state.places.free(self.number);
        state.threads -= 1;
        drop(state);
        self.of.freed.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn network(last: u16) -> Network {
        let [high, low] = last.to_be_bytes();
        Network::of(IpAddr::from([192, 0, high, low]))
    }

    /// Clients that come at the same time. Returns when each has succeeded, and how many were cut off.
    fn run(networks: impl Iterator<Item = Network>, takes: Duration) -> (Vec<Duration>, usize) {
        let start = Instant::now();
        let mut places = Places::new(64);
        for (client, network) in networks.enumerate() {
            assert_eq!(places.add(network, client), None);
        }
        let (mut now, mut done, mut cut) = (start, Vec::new(), 0);
        let mut ends = BTreeMap::new();
        loop {
            match places.turn(now) {
                Turn::Begin(number, _) => drop(ends.insert(number, now + takes)),
                Turn::CutOff(number) => {
                    ends.remove(&number);
                    cut += 1;
                }
                Turn::Wait(until) => {
                    let Some((&number, &end)) = ends.iter().min_by_key(|(_, end)| **end) else {
                        return (done, cut);
                    };
                    now = until.map_or(end, |until| until.min(end)).max(now);
                    if now == end {
                        ends.remove(&number);
                        assert!(places.free(number));
                        done.push(now - start);
                    }
                }
            }
        }
    }

    #[test]
    fn of_600_clients_that_come_at_once_each_succeeds_at_its_first_attempt() {
        let takes = Duration::from_millis(600);
        // From as many addresses, and from one address: behind a router that translates addresses.
        for addresses in [600, 1] {
            let (done, cut) = run((0..600).map(|n| network(n % addresses)), takes);
            assert_eq!((done.len(), cut), (600, 0));
            // Nobody waits longer than the handshakes before it take.
            assert_eq!(*done.last().unwrap(), takes * 600u32.div_ceil(64));
        }
    }

    #[test]
    fn a_network_that_holds_all_places_delays_another_one_for_a_moment() {
        let start = Instant::now();
        let (hostile, honest) = (network(1), network(2));
        let mut places = Places::new(4);
        for client in 0..1000 {
            assert_eq!(places.add(hostile, client), None);
        }
        for number in 0..4 {
            assert_eq!(places.turn(start), Turn::Begin(number, number as i32));
        }
        assert_eq!(places.turn(start), Turn::Wait(Some(start + PATIENCE)));
        // The newcomer comes before the thousand that wait already.
        assert_eq!(places.add(honest, -1), None);
        let soon = start + PATIENCE_WITH_GREED;
        assert_eq!(places.turn(start), Turn::Wait(Some(soon)));
        assert_eq!(places.turn(soon), Turn::CutOff(0));
        assert!(!places.free(0));
        assert_eq!(places.turn(soon), Turn::Begin(4, -1));
        // The others of the network have kept their places, and a place that becomes free is given on.
        assert!(places.free(1));
        assert_eq!(places.turn(soon), Turn::Begin(5, 4));
        assert_eq!(places.turn(soon), Turn::Wait(Some(start + PATIENCE)));
    }

    /// Clients of these networks that hold every place, come back at once when they are cut off, and are
    /// dropped for others. Returns how long newcomers wait that come at these times.
    fn besieged(hostile: &[Network], connections: usize, newcomers: &[u64]) -> Vec<Duration> {
        let start = Instant::now();
        let mut places = Places::new(8);
        let hostile = hostile.iter().cycle().copied().take(connections);
        for network in hostile {
            assert!(places.add(network, Some(network)).is_none());
        }
        let (mut held, mut waits) = (HashMap::new(), Vec::new());
        for (nth, second) in (1..).zip(newcomers) {
            let came = start + Duration::from_secs(*second);
            let newcomer = Network::of(Ipv4Addr::new(198, 51, 100, nth).into());
            let mut now = start;
            let mut has_come = false;
            loop {
                match places.turn(now) {
                    Turn::Begin(number, Some(network)) => drop(held.insert(number, network)),
                    // The newcomer.
                    Turn::Begin(number, None) => {
                        assert!(places.free(number));
                        waits.push(now - came);
                        break;
                    }
                    Turn::CutOff(number) => {
                        let network = held.remove(&number).unwrap();
                        assert!(places.add(network, Some(network)).is_none());
                    }
                    Turn::Wait(until) => {
                        let until = until.unwrap();
                        if !has_come && until >= came {
                            assert!(places.add(newcomer, None).is_none());
                            (now, has_come) = (came, true);
                        } else {
                            now = until;
                        }
                    }
                }
            }
        }
        waits
    }

    #[test]
    fn many_networks_that_hold_all_places_delay_a_newcomer_by_one_handshake() {
        // For eight places: as 64 x 14, 256 x 4, 32 x 30 and 896 x 1 connections for 64 places. As soon
        // as each of the hostile networks was served once:
        let later = [71, 83, 94];
        for (addresses, each) in [(8, 14), (32, 4), (4, 30), (112, 1)] {
            let hostile: Vec<Network> = (0..addresses).map(network).collect();
            for wait in besieged(&hostile, usize::from(addresses) * each, &later) {
                assert!(wait <= PATIENCE, "{addresses} x {each}: {wait:?}");
            }
        }
        // Before that, those who came first are served first.
        let hostile: Vec<Network> = (0..112).map(network).collect();
        let first = besieged(&hostile, 112, &[7])[0];
        assert!(first > PATIENCE && first <= PATIENCE * 112 / 8, "{first:?}");
        // All networks of one /56 and of one /48 are one: there is no such time.
        for shift in [64, 72] {
            let one = |n: u16| Ipv6Addr::from_bits((0x2001_0db8 << 96) | (u128::from(n) << shift));
            let hostile: Vec<Network> = (0..112).map(|n| Network::of(one(n).into())).collect();
            for wait in besieged(&hostile, 112, &[7, 31, 52]) {
                assert!(wait <= PATIENCE, "{wait:?}");
            }
        }
    }

    #[test]
    fn the_newcomer_is_not_dropped_for_those_who_were_served() {
        let now = Instant::now();
        let mut places = Places::new(64);
        for n in 0..MAX_WAITING as u16 {
            assert_eq!(places.add(network(n), n), None);
        }
        for n in 0..64 {
            assert_eq!(places.turn(now), Turn::Begin(u64::from(n), n));
            assert!(places.free(u64::from(n)));
            assert_eq!(places.add(network(n), n), None);
        }
        for n in 0..64 {
            assert_eq!(places.add(network(5000 + n), 5000 + n), Some(63 - n));
        }
    }

    #[test]
    fn who_has_shown_a_token_is_a_newcomer_again() {
        let now = Instant::now();
        let mut places = Places::new(1);
        let turn = |places: &mut Places<u16>| match places.turn(now) {
            Turn::Begin(number, client) => (number, client),
            other => panic!("{other:?}"),
        };
        for n in [1, 2, 2, 1] {
            assert_eq!(places.add(network(n), n), None);
        }
        let (number, client) = turn(&mut places);
        assert!(client == 1 && places.succeed(number));
        let (number, client) = turn(&mut places);
        assert!(client == 2 && places.free(number));
        // Network 2 has waited longer, but 1 has shown a token.
        assert_eq!(turn(&mut places).1, 1);
    }

    #[test]
    fn a_proxy_has_no_part_in_the_handshakes_of_its_clients() {
        let now = Instant::now();
        let (proxy, client, other) = (network(1), network(2), network(3));
        let mut places = Places::new(2);
        for (network, number) in [(proxy, 0), (other, 1)] {
            assert_eq!(places.add(network, number), None);
            assert!(matches!(places.turn(now), Turn::Begin(..)));
        }
        places.is_of(0, client);
        assert_eq!(places.known(proxy.smallest()).running, 0);
        assert_eq!(places.known(proxy.smallest()).served, 0);
        assert_eq!(places.known(client.smallest()).running, 1);
        // So its next client comes before those of networks that have a place.
        assert_eq!(
            (places.add(other, 2), places.add(client, 3), places.add(proxy, 4)),
            (None, None, None)
        );
        assert!(places.free(1));
        assert_eq!(places.turn(now), Turn::Begin(2, 4));
        assert!(places.free(0) && places.free(2));
        for group in [proxy, client, other] {
            assert_eq!(places.known(group.smallest()).running, 0);
        }
        // One that was cut off stays so.
        places.is_of(0, client);
        assert_eq!(places.known(client.smallest()).running, 0);
    }

    #[test]
    fn what_is_remembered_of_networks_is_bounded() {
        let now = Instant::now();
        let mut places = Places::new(64);
        for n in 0..20_000 {
            assert_eq!(places.add(network(n), n), None);
            let Turn::Begin(number, _) = places.turn(now) else { panic!("no place") };
            assert!(places.free(number));
            assert!(places.known.len() <= MAX_REMEMBERED + 4);
        }
        // The last ones are known.
        assert!(places.known(network(19_000).smallest()).served > 0);
        assert_eq!(places.known(network(0).smallest()).served, 0);
    }

    #[test]
    fn a_crowd_that_waits_drops_the_youngest_of_its_largest_network() {
        let mut places = Places::new(1);
        for client in 0..MAX_WAITING - 1 {
            assert_eq!(places.add(network(1), client), None);
        }
        assert_eq!(places.add(network(2), 9000), None);
        assert_eq!(places.add(network(3), 9001), Some(MAX_WAITING - 2));
        assert_eq!(places.add(network(1), 9002), Some(9002));
        assert_eq!(places.drop_one(), Some(MAX_WAITING - 3));
    }

    #[test]
    fn addresses_of_one_owner_are_one_network() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("2001:db8:1:2::1").0[1], of("2001:db8:1:ff::1").0[1]);
        assert_eq!(of("2001:db8:1:2::1").0[0], of("2001:db8:1:ff02::1").0[0]);
        assert_ne!(of("2001:db8:1::").0[0], of("2001:db8:2::").0[0]);
        assert_ne!(of("2001:db8::").0[0], of("2001:db8::").0[1]);
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn a_permit_is_given_back_in_both_pools() {
        let (all, tunnel) = (Permits::default(), Permits::default());
        let first = all.take(2, &tunnel, 1).unwrap();
        assert!(all.take(2, &tunnel, 1).is_none());
        let other = Permits::default();
        let second = all.take(2, &other, 1).unwrap();
        assert!(all.take(2, &Permits::default(), 1).is_none());
        drop(first);
        assert!(all.take(2, &tunnel, 1).is_some());
        drop(second);
        assert_eq!(all.taken(), 0);
    }

    #[test]
    fn a_replacement_takes_over_a_place_and_no_more() {
        let (all, tunnel) = (Permits::default(), Permits::default());
        let first = tunnel.replace(8, &all, 1).unwrap();
        assert!(!first.is_over());
        assert!(Permits::default().replace(8, &all, 1).is_none());
        let second = tunnel.replace(8, &all, 1).unwrap();
        assert!(second.is_over());
        drop(first);
        assert!(!second.is_over());
    }
}
