//! Admission to the gateway: tokens, permits, and the handshakes in progress.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::Token;

/// A token as the gateway stores it. All digests have the same length, so every comparison takes
/// the same time.
#[derive(Clone, Copy)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn matches(&self, other: &Digest) -> bool {
        openssl::memcmp::eq(&self.0, &other.0)
    }
}

/// Makes digests. It has a random salt of its own.
pub(super) struct Digester {
    salt: [u8; 32],
}

impl Digester {
    pub(super) fn new() -> Self {
        Digester { salt: rand::random() }
    }

    pub(super) fn of(&self, token: &[u8]) -> Digest {
        let mut hash = openssl::sha::Sha256::new();
        hash.update(&self.salt);
        hash.update(token);
        Digest(hash.finish())
    }

    pub(super) fn of_token(&self, token: &Token) -> Digest {
        self.of(token.expose().as_bytes())
    }
}

/// A pool of permits. It counts the permits that are taken.
#[derive(Clone, Default)]
pub(super) struct Permits(Arc<AtomicUsize>);

/// A permit from each of two pools. Dropping it frees both places.
pub(super) struct Permit([Permits; 2]);

impl Permits {
    fn has_room(&self, limit: usize) -> bool {
        self.0.load(Ordering::Relaxed) < limit
    }

    /// Takes a permit from this pool and one from `other`, if both have one left. The caller must
    /// hold a lock, because two threads must not take permits at the same time.
    pub(super) fn take(&self, limit: usize, other: &Permits, other_limit: usize) -> Option<Permit> {
        if !self.has_room(limit) || !other.has_room(other_limit) {
            return None;
        }
        let seat = Permit([self.clone(), other.clone()]);
        for pool in &seat.0 {
            pool.0.fetch_add(1, Ordering::Relaxed);
        }
        Some(seat)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for pool in &self.0 {
            pool.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The handshakes in progress. If there are too many, the gateway cuts off the oldest handshake of
/// the address that has most of them. So a client that holds many handshakes open only loses its
/// own.
pub(super) struct Handshakes {
    limit: usize,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    next: u64,
    /// The connections of the handshakes, the oldest first.
    sockets: BTreeMap<u64, (IpAddr, TcpStream)>,
    /// The number of handshake threads. It includes those that were cut off and have not ended yet.
    threads: usize,
}

/// One handshake. Dropping it takes it off the list.
pub(super) struct Handshake {
    of: Arc<Handshakes>,
    number: u64,
}

impl Handshakes {
    pub(super) fn new(limit: usize) -> Self {
        Handshakes { limit: limit.max(1), running: Mutex::default() }
    }

    /// Adds a handshake. If another one was cut off for it, returns the address of that one.
    pub(super) fn begin(
        self: &Arc<Self>,
        ip: IpAddr,
        tcp: &TcpStream,
    ) -> io::Result<(Handshake, Option<IpAddr>)> {
        let mut running = self.running.lock();
        // A thread whose handshake was cut off may take a moment to notice.
        if running.threads >= 2 * self.limit {
            return Err(io::Error::other("too many handshakes at a time"));
        }
        let mut gave_way = None;
        if running.sockets.len() >= self.limit {
            let addresses = running.sockets.iter().map(|(number, (ip, _))| (*number, *ip));
            let (number, ip) = gives_way(addresses).unwrap_or((0, ip));
            if let Some((_, tcp)) = running.sockets.remove(&number) {
                gave_way = Some(ip);
                let _ = tcp.shutdown(Shutdown::Both);
            }
        }
        let socket = tcp.try_clone()?;
        let number = running.next;
        running.next += 1;
        running.threads += 1;
        running.sockets.insert(number, (ip, socket));
        Ok((Handshake { of: self.clone(), number }, gave_way))
    }
}

impl Handshake {
    /// Takes a successful handshake off the list, so that it is no longer cut off. Returns false if
    /// it already was.
    pub(super) fn succeeds(&self) -> bool {
        self.of.running.lock().sockets.remove(&self.number).is_some()
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut running = self.of.running.lock();
        running.sockets.remove(&self.number);
        running.threads -= 1;
    }
}

/// Picks the oldest handshake of the address that has most of them.
fn gives_way(by_age: impl Iterator<Item = (u64, IpAddr)>) -> Option<(u64, IpAddr)> {
    let mut of_address: HashMap<IpAddr, (usize, u64)> = HashMap::new();
    for (number, ip) in by_age {
        of_address.entry(ip).or_insert((0, number)).0 += 1;
    }
    let most = of_address.into_iter().max_by_key(|(_, (count, oldest))| {
        // If two addresses have the same number, the one with the older handshake.
        (*count, std::cmp::Reverse(*oldest))
    });
    most.map(|(ip, (_, oldest))| (oldest, ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_busiest_address_gives_way() {
        let ip = |last| IpAddr::from([192, 0, 2, last]);
        let pick = |list: &[(u64, u8)]| {
            gives_way(list.iter().map(|(number, last)| (*number, ip(*last)))).map(|(n, _)| n)
        };
        assert_eq!(pick(&[]), None);
        assert_eq!(pick(&[(3, 1)]), Some(3));
        assert_eq!(pick(&[(1, 1), (2, 2), (3, 2), (4, 1), (5, 2)]), Some(2));
        assert_eq!(pick(&[(1, 3), (2, 2), (3, 1)]), Some(1));
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
        assert_eq!(all.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn only_the_same_token_matches() {
        let digester = Digester::new();
        let token = digester.of(b"hush-token");
        assert!(token.matches(&digester.of(b"hush-token")));
        for other in [&b""[..], b"hush-toke", b"hush-token ", b"hush-token\0"] {
            assert!(!token.matches(&digester.of(other)));
        }
        assert!(!token.matches(&Digester::new().of(b"hush-token")));
    }
}
