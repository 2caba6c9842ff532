//! `X-Forwarded-For`: each proxy appends the address from which it was asked. So what trusted proxies
//! have written stands on the right, and what stands on the left may be anybody's invention.

use std::net::{IpAddr, SocketAddr};

use super::{ClientAddress, Proxies};

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded<'a> {
    /// The client: the last address that is not a trusted proxy's. If all are, the first one.
    pub client: ClientAddress,
    /// An entry that is no address. What stands before it is not looked at: the proxy that wrote it does
    /// not know from where it was asked, so nobody vouches for the rest.
    pub malformed: Option<&'a [u8]>,
}

/// Finds the client of a request that came from `peer`, by the values of the request's
/// `X-Forwarded-For` headers in their order. Of a peer that is not trusted, they say nothing.
#[must_use]
pub fn forwarded_for<'a>(
    peer: ClientAddress,
    values: impl DoubleEndedIterator<Item = &'a [u8]>,
    proxies: &Proxies,
) -> Forwarded<'a> {
    let mut client = peer;
    let mut entries = values.rev().flat_map(|value| value.rsplit(|byte| *byte == b','));
    while proxies.trusts(client.ip) {
        let Some(entry) = entries.next() else { break };
        match address(entry) {
            Some(address) => client = address,
            None => return Forwarded { client, malformed: Some(entry.trim_ascii()) },
        }
    }
    Forwarded { client, malformed: None }
}

/// An address, some with a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`.
fn address(entry: &[u8]) -> Option<ClientAddress> {
    let text = std::str::from_utf8(entry).ok()?.trim_matches([' ', '\t']);
    let without_port = |ip: IpAddr| ClientAddress { ip, port: None };
    if let Ok(ip) = text.parse() {
        return Some(without_port(ip));
    }
    if let Some(v6) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return v6.parse().ok().map(|v6| without_port(IpAddr::V6(v6)));
    }
    text.parse().ok().map(|address: SocketAddr| address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, values: &[&str]) -> (String, bool) {
        let proxies =
            Proxies::new(vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()], false);
        let peer: SocketAddr = peer.parse().unwrap();
        let values = values.iter().map(|value| value.as_bytes());
        let found = forwarded_for(peer.into(), values, &proxies);
        (found.client.to_string(), found.malformed.is_some())
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_a_proxys() {
        for (peer, values, expected) in [
            ("10.0.0.1:5", &[][..], "10.0.0.1:5"),
            ("10.0.0.1:5", &["192.0.2.1"], "192.0.2.1"),
            ("[::1]:5", &["192.0.2.1:80"], "192.0.2.1:80"),
            ("[::ffff:10.0.0.1]:5", &["[2001:db8::1]:80"], "[2001:db8::1]:80"),
            ("10.0.0.1:5", &["[2001:db8::1]"], "2001:db8::1"),
            // Of proxies behind each other, and in several headers.
            ("10.0.0.1:5", &["192.0.2.1, 10.0.0.3,10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1:5", &["192.0.2.1", "10.0.0.3", "10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1:5", &["10.0.0.9,\t10.0.0.2 "], "10.0.0.9"),
            // What the client itself has written.
            ("10.0.0.1:5", &["198.51.100.1, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1:5", &["10.0.0.7", "192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1:5", &["junk,,\u{fc}", "192.0.2.1"], "192.0.2.1"),
            // From somebody else.
            ("192.0.2.9:5", &["198.51.100.1"], "192.0.2.9:5"),
            ("192.0.2.9:5", &["10.0.0.1"], "192.0.2.9:5"),
            ("192.0.2.9:5", &["junk"], "192.0.2.9:5"),
        ] {
            assert_eq!(client(peer, values), (expected.to_owned(), false), "{peer} {values:?}");
        }
    }

    #[test]
    fn nothing_before_a_malformed_entry_counts() {
        for entry in [
            "",
            " ",
            "unknown",
            "_hidden",
            "192.0.2",
            "192.0.2.1:",
            "192.0.2.1:x",
            "192.0.2.1:99999",
            "[192.0.2.1]",
            "[::1",
            "::1]",
            "\"192.0.2.1\"",
            "192.0.2.1;",
            "fe80::1%eth0",
            "for=192.0.2.1",
        ] {
            let list = format!("198.51.100.1, {entry}");
            let expected = ("10.0.0.1:5".to_owned(), true);
            assert_eq!(client("10.0.0.1:5", &[&list]), expected, "{entry}");
            assert_eq!(client("10.0.0.1:5", &["198.51.100.1", entry]), expected, "{entry}");
            // What a trusted proxy has written behind it still does.
            let list = format!("198.51.100.1, {entry}, 10.0.0.2");
            assert_eq!(client("10.0.0.1:5", &[&list]), ("10.0.0.2".to_owned(), true), "{entry}");
        }
    }
}
