//! The header of the PROXY protocol, versions 1 and 2, in front of a connection.
//! <https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest header, in bytes. The addresses need 52; more is what a proxy tells of TLS.
pub const MAX_HEADER: usize = 4096;

/// Longest header of version 1, with its line end.
const MAX_LINE: usize = 107;
/// Shortest header: `PROXY UNKNOWN\r\n`.
const SHORTEST: usize = 15;
/// How version 1 begins.
const WORD: &[u8] = b"PROXY ";
/// How version 2 begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The part of version 2 before the addresses. Its last two bytes are the length of what follows.
const FIXED: usize = 16;

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;

/// Where a connection comes from, by its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The proxy itself, for example to see whether the server is there.
    Local,
    /// The proxy does not know, or it was no TCP connection.
    Unknown,
    /// This client.
    Client(SocketAddr),
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongHeader(&'static str);

impl fmt::Display for WrongHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for WrongHeader {}

const NO_HEADER: WrongHeader =
    WrongHeader("the connection does not begin with a header of the PROXY protocol");
const TOO_LONG: WrongHeader = WrongHeader("the header of the PROXY protocol is too long");
const NO_LINE: WrongHeader =
    WrongHeader("the header of the PROXY protocol, version 1, is not a line of the expected form");
const NO_COMMAND: WrongHeader =
    WrongHeader("the header of the PROXY protocol, version 2, has an unknown version or command");
const NO_FAMILY: WrongHeader =
    WrongHeader("the header of the PROXY protocol, version 2, is not of a TCP connection");
const TOO_SHORT: WrongHeader =
    WrongHeader("the header of the PROXY protocol, version 2, is too short for its addresses");

/// Reads a header. It never takes a byte that stands behind it.
#[derive(Debug, Clone, Default)]
pub struct HeaderReader {
    bytes: Vec<u8>,
    filled: usize,
}

impl HeaderReader {
    /// Where the next bytes of the connection belong: as many as are part of the header for certain.
    pub fn space(&mut self) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            let more = missing(&self.bytes);
            self.bytes.resize(self.filled + more, 0);
        }
        &mut self.bytes[self.filled..]
    }

    /// Whether nothing has been received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// So many bytes of [`space`](Self::space) have been received. Returns what the header says when it
    /// is complete.
    ///
    /// # Errors
    /// What was received is no header.
    pub fn received(&mut self, length: usize) -> Result<Option<Source>, WrongHeader> {
        self.filled = self.bytes.len().min(self.filled + length);
        let bytes = &self.bytes[..self.filled];
        if begins_alike(bytes, SIGNATURE) {
            return binary(bytes);
        }
        if begins_alike(bytes, WORD) {
            return line(bytes);
        }
        Err(NO_HEADER)
    }
}

/// How many bytes a header that begins so still has, at least.
fn missing(bytes: &[u8]) -> usize {
    match bytes.len() {
        length @ 0..SHORTEST => SHORTEST - length,
        // The space of version 2 ends with its header, except at the fixed part.
        length if bytes.starts_with(SIGNATURE) => match bytes.get(14..FIXED) {
            Some(more) => usize::from(u16::from_be_bytes([more[0], more[1]])),
            None => FIXED - length,
        },
        _ if bytes.ends_with(b"\r") => 1,
        _ => 2,
    }
}

/// Whether one begins with the other.
fn begins_alike(bytes: &[u8], with: &[u8]) -> bool {
    bytes.iter().zip(with).all(|(one, other)| one == other)
}

/// Whether a connection that begins with these bytes begins with a header, or with enough of one that it
/// is nothing else.
#[must_use]
pub fn looks_like_header(bytes: &[u8]) -> bool {
    // No request of HTTP and no message of TLS begins like that.
    bytes.starts_with(WORD) || bytes.len() > 4 && begins_alike(bytes, SIGNATURE)
}

fn binary(bytes: &[u8]) -> Result<Option<Source>, WrongHeader> {
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else {
        return Ok(None);
    };
    if !matches!(command, LOCAL | PROXY) {
        return Err(NO_COMMAND);
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + length > MAX_HEADER {
        return Err(TOO_LONG);
    }
    let addresses = match family {
        // A proxy may fill in anything for a connection of its own.
        _ if command == LOCAL => 0,
        UNSPECIFIED => 0,
        TCP_OVER_IPV4 => 12,
        TCP_OVER_IPV6 => 36,
        UNIX_STREAM => 216,
        _ => return Err(NO_FAMILY),
    };
    if length < addresses {
        return Err(TOO_SHORT);
    }
    let rest = &bytes[FIXED..];
    if rest.len() < length {
        return Ok(None);
    }
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    Ok(Some(match family {
        _ if command == LOCAL => Source::Local,
        TCP_OVER_IPV4 => {
            let octets: [u8; 4] = [rest[0], rest[1], rest[2], rest[3]];
            Source::Client(SocketAddr::new(Ipv4Addr::from(octets).into(), port(8)))
        }
        TCP_OVER_IPV6 => {
            let mut octets = [0; 16];
            octets.copy_from_slice(&rest[..16]);
            Source::Client(SocketAddr::new(Ipv6Addr::from(octets).into(), port(32)))
        }
        _ => Source::Unknown,
    }))
}

fn line(bytes: &[u8]) -> Result<Option<Source>, WrongHeader> {
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        None if bytes.len() >= MAX_LINE => return Err(TOO_LONG),
        // A carriage return elsewhere is found when the line is complete.
        None => return Ok(None),
        Some(end) if end >= MAX_LINE => return Err(TOO_LONG),
        Some(end) if end + 1 < bytes.len() => return Err(NO_LINE),
        Some(end) => bytes[..end].strip_suffix(b"\r").ok_or(NO_LINE)?,
    };
    let text = std::str::from_utf8(line).map_err(|_| NO_LINE)?;
    let mut words = text.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        return Ok(Some(Source::Unknown));
    }
    let mut next = || words.next().unwrap_or_default();
    let (from, to, from_port, to_port) = (next(), next(), next(), next());
    let is_over = words.next().is_none();
    let from = match family {
        Some("TCP4") => both::<Ipv4Addr>(from, to).map(IpAddr::V4),
        Some("TCP6") => both::<Ipv6Addr>(from, to).map(IpAddr::V6),
        _ => None,
    };
    let client = from.zip(port(from_port)).filter(|_| port(to_port).is_some() && is_over);
    client.map(|client| Some(Source::Client(client.into()))).ok_or(NO_LINE)
}

/// The first address, if both are addresses.
fn both<A: FromStr>(first: &str, second: &str) -> Option<A> {
    second.parse::<A>().ok()?;
    first.parse().ok()
}

/// A decimal number without a sign and without leading zeros.
fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port: &u16| port.to_string() == text)
}

/// A header of version 2: a TCP connection from `client` to `server`.
#[must_use]
pub fn header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let (family, addresses) = match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            (TCP_OVER_IPV4, [client.octets(), server.octets()].concat())
        }
        (client, server) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            (TCP_OVER_IPV6, [octets(client), octets(server)].concat())
        }
    };
    let ports = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    // At most 36.
    let length = (addresses.len() + ports.len()) as u16;
    [SIGNATURE, &[PROXY, family], &length.to_be_bytes(), &addresses, &ports].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads from a connection that brings so many bytes at a time. Also returns how many were taken.
    fn read_by(bytes: &[u8], step: usize) -> (Result<Option<Source>, WrongHeader>, usize) {
        let (mut reader, mut taken) = (HeaderReader::default(), 0);
        while taken < bytes.len() {
            let space = reader.space();
            let length = space.len().min(step).min(bytes.len() - taken);
            space[..length].copy_from_slice(&bytes[taken..taken + length]);
            taken += length;
            match reader.received(length) {
                Ok(None) => {}
                end => return (end, taken),
            }
        }
        (Ok(None), taken)
    }

    /// The header with other bytes behind it, however it arrives.
    fn read(bytes: &[u8]) -> Result<Source, WrongHeader> {
        let behind = [bytes, &[0x16, 3, 1, 2, 0]].concat();
        let (result, taken) = read_by(&behind, usize::MAX);
        if result.is_ok() {
            assert_eq!(taken, bytes.len(), "bytes behind the header were taken: {bytes:?}");
        }
        for step in [1, 2, 3, 7] {
            assert_eq!(read_by(&behind, step).0, result, "{step} at a time: {bytes:?}");
        }
        // Cut off anywhere, it is not complete.
        if result.is_ok() {
            for length in 0..bytes.len() {
                assert_eq!(
                    read_by(&bytes[..length], usize::MAX).0,
                    Ok(None),
                    "{length} of {bytes:?}"
                );
            }
        }
        Ok(result?.expect("complete"))
    }

    fn client(text: &str) -> Result<Source, WrongHeader> {
        Ok(Source::Client(text.parse().unwrap()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    #[test]
    fn version_1_is_read_in_all_its_forms() {
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 258 22\r\n", client("192.0.2.1:258")),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                client("255.255.255.255:65535"),
            ),
            ("PROXY TCP6 2001:db8::1 ::1 0 22\r\n", client("[2001:db8::1]:0")),
            ("PROXY UNKNOWN\r\n", Ok(Source::Unknown)),
            ("PROXY UNKNOWN ffff:: junk \r 1\r\n", Ok(Source::Unknown)),
        ] {
            assert_eq!(read(line.as_bytes()), expected, "{line}");
        }
        // The longest that the specification allows.
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_LINE - 16));
        assert_eq!((longest.len(), read(longest.as_bytes())), (107, Ok(Source::Unknown)));
    }

    #[test]
    fn version_1_in_another_form_is_refused() {
        let filler = "x".repeat(MAX_LINE);
        for line in [
            "PROXY TCP4 192.0.2.1 192.0.2.2 258\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 258 22 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 258 22 \r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 258 22\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 258 22\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 65536 22\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +58 22\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 058 22\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 258 -\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 258 22\r\n",
            "PROXY TCP4 192.0.2.1 host 258 22\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 258 22\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 258 22\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 258 22\r\n",
            "PROXY TCP4\r\n PROXY TCP4 192.0.2.1 192.0.2.2 258 22\r\n",
            "PROXY \r\n\r\n\r\n\r\n\r\n",
            "PROXY unknown 1\r\n",
            "PROXY UNKNOWN\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 258 22\r\r\n",
            &format!("PROXY UNKNOWN {filler}\r\n"),
            &format!("PROXY UNKNOWN {}\r\n", &filler[..MAX_LINE - 15]),
            &format!("PROXY {filler}"),
        ] {
            assert!(matches!(read(line.as_bytes()), Err(NO_LINE | TOO_LONG)), "{line}");
        }
    }

    #[test]
    fn version_2_is_read_with_what_a_proxy_adds() {
        let v4 = [192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 0, 22];
        assert_eq!(read(&v2(PROXY, TCP_OVER_IPV4, &v4)), client("192.0.2.1:258"));
        let more = [&v4[..], &[0x20, 0, 5, 1, 0, 0, 0, 0], &[0xff; 2000]].concat();
        assert_eq!(read(&v2(PROXY, TCP_OVER_IPV4, &more)), client("192.0.2.1:258"));
        let mut v6 = [0; 36];
        v6[..2].copy_from_slice(&[0x20, 1]);
        (v6[15], v6[33]) = (9, 80);
        assert_eq!(read(&v2(PROXY, TCP_OVER_IPV6, &v6)), client("[2001::9]:80"));
        assert_eq!(read(&v2(PROXY, UNSPECIFIED, &[])), Ok(Source::Unknown));
        assert_eq!(read(&v2(PROXY, UNSPECIFIED, &[7; 300])), Ok(Source::Unknown));
        assert_eq!(read(&v2(PROXY, UNIX_STREAM, &[7; 216])), Ok(Source::Unknown));
        assert_eq!(read(&v2(LOCAL, UNSPECIFIED, &[])), Ok(Source::Local));
        assert_eq!(read(&v2(LOCAL, 0xff, &[7; 5])), Ok(Source::Local));
        let longest = v2(PROXY, UNSPECIFIED, &[7; MAX_HEADER - FIXED]);
        assert_eq!(read(&longest), Ok(Source::Unknown));
    }

    #[test]
    fn version_2_in_another_form_is_refused() {
        for (command, family, length, why) in [
            (PROXY, UNSPECIFIED, MAX_HEADER - FIXED + 1, TOO_LONG),
            (PROXY, UNSPECIFIED, 65535, TOO_LONG),
            (0x22, TCP_OVER_IPV4, 12, NO_COMMAND),
            (0x11, TCP_OVER_IPV4, 12, NO_COMMAND),
            (0x31, TCP_OVER_IPV4, 12, NO_COMMAND),
            (PROXY, 0x12, 12, NO_FAMILY),
            (PROXY, 0x22, 36, NO_FAMILY),
            (PROXY, 0x32, 216, NO_FAMILY),
            (PROXY, 0x10, 12, NO_FAMILY),
            (PROXY, 0x41, 12, NO_FAMILY),
            (PROXY, TCP_OVER_IPV4, 11, TOO_SHORT),
            (PROXY, TCP_OVER_IPV6, 12, TOO_SHORT),
            (PROXY, UNIX_STREAM, 36, TOO_SHORT),
        ] {
            let header = v2(command, family, &vec![0; length]);
            // Refused as soon as that is known, without reading on.
            assert_eq!(read_by(&header, usize::MAX), (Err(why), FIXED), "{command:x} {family:x}");
            assert_eq!(read(&header), Err(why));
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_its_first_bytes() {
        for bytes in [
            &[0x16, 3, 1, 2, 0, 1][..],
            b"GET /tunnel/t1/dest HTTP/1.1\r\n\r\n",
            b"proxy TCP4 192.0.2.1 192.0.2.2 258 22\r\n",
            b"\r\n\r\nGET / HTTP/1.1",
            b"\0",
        ] {
            assert_eq!(read(bytes), Err(NO_HEADER));
            assert!(!looks_like_header(bytes));
        }
        for length in 0..SHORTEST {
            assert!(matches!(read_by(&[b'P'; SHORTEST][..length], 1).0, Ok(None) | Err(NO_HEADER)));
        }
        assert!(looks_like_header(b"PROXY TCP4 "));
        assert!(looks_like_header(&SIGNATURE[..6]) && looks_like_header(&v2(PROXY, 0, &[])));
        assert!(
            !looks_like_header(b"PROX") && !looks_like_header(b"\r\n") && !looks_like_header(b"")
        );
    }

    #[test]
    fn a_header_of_ours_is_that_of_the_specification_and_is_read_again() {
        let write =
            |client: &str, server: &str| header(client.parse().unwrap(), server.parse().unwrap());
        let signature = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
        let v4 = write("192.0.2.1:258", "[::ffff:192.0.2.2]:22");
        assert_eq!(v4[..12], signature);
        assert_eq!(v4[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 192, 0, 2, 2, 1, 2, 0, 22]);
        let v6 = write("[2001:db8::1]:258", "[2001:db8::2]:22");
        assert_eq!(v6[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(v6.len(), 16 + 36);
        assert_eq!(v6[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!((v6[31], v6[47]), (1, 2));
        assert_eq!(v6[48..], [1, 2, 0, 22]);
        assert_eq!(read(&v4), client("192.0.2.1:258"));
        assert_eq!(read(&v6), client("[2001:db8::1]:258"));
    }
}
