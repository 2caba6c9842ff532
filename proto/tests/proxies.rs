//! What proxies tell of a client, as random and as damaged bytes.

use aiot_tunnel_models::proxies;
use proptest::prelude::*;

/// How something that proxies send begins.
const BEGINNINGS: [&[u8]; 9] = [
    b"",
    b"PROXY ",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 258 22\r\n",
    b"PROXY TCP6 2001:db8::1 2001:db8::2 258 22\r\n",
    b"PROXY UNKNOWN",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x01\x02\0\x16",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x28",
    b"198.51.100.1, 192.0.2.1:80, [2001:db8::1]:80\n10.0.0.2",
];

proptest! {
    #[test]
    fn no_bytes_break_the_parsers(
        beginning in prop::sample::select(BEGINNINGS.to_vec()),
        cut in 0..64_usize,
        change in prop::option::of((0..64_usize, any::<u8>())),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = [beginning, &rest[..]].concat();
        if let Some((at, byte)) = change.filter(|(at, _)| *at < bytes.len()) {
            bytes[at] = byte;
        }
        proxies::check(&bytes);
        bytes.truncate(bytes.len().saturating_sub(cut));
        proxies::check(&bytes);
    }
}
