//! Slows clients that guess the key. It takes the time as an argument and does no I/O.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Wrong keys that a network may show before it is slowed: an operator mistypes.
const FREE: u32 = 5;
/// From then on, one key is looked at in this time.
pub(crate) const GAP: Duration = Duration::from_secs(1);
/// Clients of a network that wait for their turn. Further ones are told to come later, and their key is
/// not looked at.
const MOST_WAITING: u32 = 8;
/// After so long without a wrong key, a network is as good as new.
const MEMORY: Duration = Duration::from_secs(60);
/// Networks that are remembered. Those that failed longest ago are forgotten first.
const MOST_NETWORKS: usize = 4096;

/// What is to be done with a client before its key is looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Look at the key at this time.
    At(Instant),
    /// There are too many of its network.
    Refuse,
}

#[derive(Default)]
pub(crate) struct Guard {
    networks: HashMap<IpAddr, Failures>,
}

#[derive(Debug)]
struct Failures {
    count: u32,
    last: Instant,
    /// When the last client that waits has its turn.
    turn: Option<Instant>,
}

impl Guard {
    pub(crate) fn turn(&mut self, of: IpAddr, now: Instant) -> Turn {
        let Some(failures) = self.networks.get_mut(&network(of)) else { return Turn::At(now) };
        if now.saturating_duration_since(failures.last.max(failures.turn.unwrap_or(now))) > MEMORY {
            self.networks.remove(&network(of));
            return Turn::At(now);
        }
        if failures.count < FREE {
            return Turn::At(now);
        }
        let turn = failures.turn.map_or(now, |turn| (turn + GAP).max(now));
        if turn > now + GAP * MOST_WAITING {
            return Turn::Refuse;
        }
        failures.turn = Some(turn);
        Turn::At(turn)
    }

    /// A client has shown a wrong key. Returns whether it is the first one of its network.
    pub(crate) fn failed(&mut self, of: IpAddr, now: Instant) -> bool {
        if self.networks.len() >= MOST_NETWORKS && !self.networks.contains_key(&network(of)) {
            let oldest = self.networks.iter().min_by_key(|(_, failures)| failures.last);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.networks.remove(&oldest);
            }
        }
        let new = Failures { count: 0, last: now, turn: None };
        let failures = self.networks.entry(network(of)).or_insert(new);
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        // The next one comes a gap later, although nobody waits.
        failures.turn = failures.turn.max(Some(now).filter(|_| failures.count >= FREE));
        failures.count == 1
    }
}

/// Where clients are counted together: an IPv4 address, or an IPv6 network of one customer.
pub(crate) fn network(of: IpAddr) -> IpAddr {
    match of.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_guessed_at_one_a_second() {
        let (mut guard, start) = (Guard::default(), Instant::now());
        let (mut now, mut guesses) = (start, 0);
        while now < start + Duration::from_secs(100) {
            match guard.turn(ip("192.0.2.1"), now) {
                Turn::At(turn) => now = turn,
                Turn::Refuse => panic!("nobody waits"),
            }
            guard.failed(ip("192.0.2.1"), now);
            guesses += 1;
        }
        assert!(guesses <= 100 + FREE, "{guesses}");
    }

    #[test]
    fn many_at_once_wait_in_a_row_and_others_do_not_wait() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        for _ in 0..FREE {
            assert_eq!(guard.turn(ip("2001:db8::1"), now), Turn::At(now));
            guard.failed(ip("2001:db8::1"), now);
        }
        // Of the same network.
        let turns: Vec<Turn> = (0..20).map(|_| guard.turn(ip("2001:db8::2"), now)).collect();
        for (turn, gaps) in turns.iter().zip(1..=MOST_WAITING) {
            assert_eq!(*turn, Turn::At(now + GAP * gaps));
        }
        assert_eq!(turns[19], Turn::Refuse);
        for other in ["2001:db8:0:1::1", "192.0.2.1"] {
            assert_eq!(guard.turn(ip(other), now), Turn::At(now));
        }
        let later = now + GAP * MOST_WAITING + MEMORY + GAP;
        assert_eq!(guard.turn(ip("2001:db8::1"), later), Turn::At(later));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut guard, now) = (Guard::default(), Instant::now());
        for number in 0..3 * MOST_NETWORKS as u32 {
            assert!(guard.failed(IpAddr::V4(number.into()), now));
        }
        assert_eq!(guard.networks.len(), MOST_NETWORKS);
    }
}
