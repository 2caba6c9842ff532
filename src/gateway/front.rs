//! The gateway behind proxies: a new connection's first bytes, and the address of its client.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::handshake::server::header_values;
use aiot_tunnel_proto::proxies::{
    forwarded_for, looks_like_header, ClientAddress, HeaderReader, Proxies, Source, WrongHeader,
};

use super::TARGET;
use crate::net::Wait;

/// How long a proxy may take for its header. It sends it at once; a lost packet costs it some seconds.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// As many bytes tell a header from a handshake of TLS and from a request.
const FIRST_BYTES: usize = 16;

/// A client that was accepted.
pub(super) struct Client {
    pub(super) tcp: TcpStream,
    /// Of the client itself, as far as it is known.
    pub(super) address: ClientAddress,
    pub(super) header: Header,
}

/// What is known of a connection's header of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// It is the first thing that comes.
    Awaited,
    /// There must be none.
    Refused,
    /// Nobody looks for one.
    Ignored,
    /// It was read.
    Read,
    /// It was read, and does not tell the client.
    Unknown,
    /// It was read: the connection is the proxy's own, which sees whether the gateway is there.
    Local,
}

impl Header {
    pub(super) fn of(address: ClientAddress, proxies: &Proxies) -> Self {
        match (proxies.send_header(), proxies.trusts(address.ip)) {
            (false, _) => Header::Ignored,
            (true, true) => Header::Awaited,
            (true, false) => Header::Refused,
        }
    }
}

/// Why a header was not read.
pub(super) enum NoHeader {
    /// The connection ended before its first byte, as that of a proxy that sees whether the gateway is
    /// there.
    Nothing,
    Wrong(WrongHeader),
    Io(io::Error),
}

/// Reads the header. What stands behind it stays in the socket.
pub(super) fn read_header(
    mut tcp: &TcpStream,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<Source, NoHeader> {
    let deadline = deadline.min(Instant::now() + HEADER_TIMEOUT);
    let mut reader = HeaderReader::default();
    tcp.set_nonblocking(true).map_err(NoHeader::Io)?;
    loop {
        // The wait has the deadline, and so has a header that comes in many pieces.
        if Instant::now() >= deadline {
            return Err(NoHeader::Io(io::ErrorKind::TimedOut.into()));
        }
        match tcp.read(reader.space()) {
            Ok(0) if reader.is_empty() => return Err(NoHeader::Nothing),
            Ok(0) => return Err(NoHeader::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => match reader.received(length) {
                Ok(None) => {}
                Ok(Some(source)) => return Ok(source),
                Err(wrong) => return Err(NoHeader::Wrong(wrong)),
            },
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait.wait(&[tcp.as_fd()], false, deadline).map_err(|e| NoHeader::Io(e.into()))?;
            }
            Err(e) => return Err(NoHeader::Io(e)),
        }
    }
}

/// Whether a connection begins with a header. Takes no byte from it.
pub(super) fn has_header(tcp: &TcpStream, wait: &impl Wait, deadline: Instant) -> io::Result<bool> {
    tcp.set_nonblocking(true)?;
    wait.wait(&[tcp.as_fd()], false, deadline)?;
    let mut first = [0; FIRST_BYTES];
    let length = tcp.peek(&mut first)?;
    Ok(looks_like_header(&first[..length]))
}

/// The client of a request that came from `from`, by the head of the request.
pub(super) fn client_of_request(
    from: ClientAddress,
    head: &[u8],
    proxies: &Proxies,
) -> ClientAddress {
    if !proxies.trusts(from.ip) {
        return from;
    }
    let values = header_values(head, "x-forwarded-for");
    let found = forwarded_for(from, values.into_iter(), proxies);
    if let Some(entry) = found.malformed {
        let entry = String::from_utf8_lossy(&entry[..entry.len().min(80)]);
        log::debug!(
            target: TARGET,
            "{from}: X-Forwarded-For: {entry:?} is not an address; the client is {} for the log",
            found.client
        );
    }
    found.client
}
