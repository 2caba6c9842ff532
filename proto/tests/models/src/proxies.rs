//! What a proxy in front of a server says of a client. Hostile bytes must neither crash the parsers nor take
//! a byte of the connection behind the header.

use std::net::IpAddr;

use aiot_tunnel_proto::proxies::{
    forwarded_for, header, looks_like_header, ClientAddress, HeaderReader, Proxies, Source,
    MAX_HEADER,
};

/// Reads the bytes as a connection that brings `step` bytes at a time. Returns what the header says, and
/// how many bytes it has.
fn read(bytes: &[u8], step: usize) -> (Option<Result<Source, String>>, usize) {
    let (mut reader, mut taken) = (HeaderReader::default(), 0);
    while taken < bytes.len() {
        let space = reader.space();
        assert!(!space.is_empty(), "there is no room for the rest of a header");
        let length = space.len().min(step).min(bytes.len() - taken);
        space[..length].copy_from_slice(&bytes[taken..taken + length]);
        taken += length;
        assert!(taken <= MAX_HEADER, "a header is too long");
        match reader.received(length) {
            Ok(None) => {}
            Ok(Some(source)) => return (Some(Ok(source)), taken),
            Err(e) => return (Some(Err(e.to_string())), taken),
        }
    }
    (None, taken)
}

/// A header of the PROXY protocol, and bytes behind it.
pub fn connection(bytes: &[u8]) {
    let (all, length) = read(bytes, usize::MAX);
    for step in [1, 5] {
        let (other, other_length) = read(bytes, step);
        match &all {
            Some(Err(_)) => assert_eq!(other, all, "{step} at a time"),
            _ => assert_eq!((other, other_length), (all.clone(), length), "{step} at a time"),
        }
    }
    let Some(Ok(source)) = all else { return };
    assert!(looks_like_header(bytes), "a header that is not recognized");
    assert_eq!(read(&bytes[..length], usize::MAX).0, all, "it depends on what stands behind it");
    if let Source::Client(address) = source {
        let (again, _) = read(&header(address, address), usize::MAX);
        let Some(Ok(Source::Client(again))) = again else { panic!("ours is not read") };
        assert_eq!(again.ip().to_canonical(), address.ip().to_canonical());
    }
}

/// A request's `X-Forwarded-For`, a header a line.
pub fn forwarded(bytes: &[u8]) {
    let trusted =
        ["10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse().expect("a network"));
    let proxies = Proxies::new(trusted.to_vec(), false);
    for peer in [IpAddr::from([10, 0, 0, 1]), IpAddr::from([192, 0, 2, 1])] {
        let peer = ClientAddress { ip: peer, port: Some(1) };
        let values = || bytes.split(|byte| *byte == b'\n');
        let found = forwarded_for(peer, values(), &proxies);
        if !proxies.trusts(peer.ip) {
            assert_eq!(found.client, peer, "a stranger's word counts");
        }
        if let Some(entry) = found.malformed {
            assert!(proxies.trusts(found.client.ip), "a stranger vouches for {entry:?}");
        }
        // What a client writes in front of it changes nothing, once the client is known.
        if found.malformed.is_none() && !proxies.trusts(found.client.ip) {
            let forged = [&b"198.51.100.1, 10.0.0.9"[..]].into_iter();
            let with_forged = forged.chain(values()).collect::<Vec<_>>();
            assert_eq!(forwarded_for(peer, with_forged.into_iter(), &proxies), found);
        }
    }
}

/// Both.
pub fn check(bytes: &[u8]) {
    connection(bytes);
    forwarded(bytes);
}
