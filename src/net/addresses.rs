//! The addresses of the tunnel service or of its proxy: which are tried, and in which order.

use std::net::SocketAddr;

use crate::config::Network;

/// How many failed addresses are remembered.
const MAX_FAILED: usize = 32;

/// What earlier attempts have taught about the addresses.
#[derive(Default)]
pub(crate) struct History {
    /// Those that failed since the last success, the most recent last.
    failed: Vec<SocketAddr>,
    /// The address of the last success, and the host that it belongs to.
    good: Option<(String, SocketAddr)>,
}

impl History {
    /// Sorts the addresses that the name server lists. The families take turns, so that a family that
    /// does not work here costs one address and not all of its addresses (RFC 8305, 4). Addresses that
    /// failed come last, because one of them may accept a connection and then stay silent.
    pub(super) fn sorted(&self, found: Vec<SocketAddr>, network: &Network) -> Vec<SocketAddr> {
        let mut sorted = take_turns(found.into_iter().filter(|a| network.uses(a)).collect());
        sorted.sort_by_key(|address| self.failed.iter().position(|a| a == address));
        sorted
    }

    /// The address that worked last for this host and port.
    pub(super) fn good(&self, host: &str, port: u16, network: &Network) -> Option<SocketAddr> {
        let (of, address) = self.good.as_ref()?;
        (of == host && address.port() == port && network.uses(address)).then_some(*address)
    }

    /// Notes that an address is tried.
    pub(super) fn tries(&mut self, address: SocketAddr) {
        self.failed.retain(|other| *other != address);
        if self.failed.len() == MAX_FAILED {
            self.failed.remove(0);
        }
        self.failed.push(address);
    }

    pub(super) fn succeeded(&mut self, host: &str, address: SocketAddr) {
        self.failed.clear();
        match &mut self.good {
            Some((of, good)) if of == host => *good = address,
            good => *good = Some((host.to_owned(), address)),
        }
    }
}

/// Takes an address of either family in turn, and begins with that of the first address.
pub(super) fn take_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_four = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == first_is_four);
    let mut sorted = Vec::with_capacity(one.len() + other.len());
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    loop {
        let before = sorted.len();
        sorted.extend(one.next());
        sorted.extend(other.next());
        if sorted.len() == before {
            return sorted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AddressFamily;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    const A: &str = "[2001:db8::a]:1";
    const B: &str = "[2001:db8::b]:1";
    const C: &str = "10.0.0.3:1";
    const D: &str = "10.0.0.4:1";

    #[test]
    fn families_take_turns_and_failed_addresses_come_last() {
        let network = Network::new();
        let mut history = History::default();
        let sorted = |history: &History| history.sorted(addresses(&[A, B, C, D]), &network);
        assert_eq!(sorted(&history), addresses(&[A, C, B, D]));
        history.tries(A.parse().unwrap());
        assert_eq!(sorted(&history), addresses(&[C, B, D, A]));
        history.tries(C.parse().unwrap());
        history.tries(A.parse().unwrap());
        assert_eq!(sorted(&history), addresses(&[B, D, C, A]));
        history.succeeded("h", C.parse().unwrap());
        assert_eq!(sorted(&history), addresses(&[A, C, B, D]));
        let four = Network::new().with_family(AddressFamily::Ipv4);
        assert_eq!(history.sorted(addresses(&[A, B, C, D]), &four), addresses(&[C, D]));
    }

    #[test]
    fn the_last_success_belongs_to_its_host_port_and_family() {
        let network = Network::new();
        let mut history = History::default();
        assert_eq!(history.good("h", 1, &network), None);
        history.succeeded("h", C.parse().unwrap());
        assert_eq!(history.good("h", 1, &network), Some(C.parse().unwrap()));
        assert_eq!(history.good("h", 2, &network), None);
        assert_eq!(history.good("g", 1, &network), None);
        let six = Network::new().with_family(AddressFamily::Ipv6);
        assert_eq!(history.good("h", 1, &six), None);
        history.succeeded("g", D.parse().unwrap());
        assert_eq!(history.good("h", 1, &network), None);
    }
}
