//! A server behind proxies: which of them are trusted, and what they tell about a client's address.
//!
//! A balancer that passes bytes on tells it by a [header of the PROXY protocol](HeaderReader) in front
//! of the connection. A proxy that reads HTTP tells it in `X-Forwarded-For`.

mod forwarded;
mod header;
mod subnet;

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use forwarded::{forwarded_for, Forwarded};
pub use header::{header, looks_like_header, HeaderReader, Source, WrongHeader, MAX_HEADER};
pub use subnet::{InvalidSubnet, Subnet};

/// The proxies in front of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Proxies {
    trusted: Vec<Subnet>,
    send_header: bool,
}

impl Proxies {
    /// Proxies with these addresses. With `send_header`, a connection of theirs begins with a header of
    /// the PROXY protocol.
    pub fn new(trusted: Vec<Subnet>, send_header: bool) -> Self {
        Proxies { trusted, send_header }
    }

    /// Whether the address is that of a proxy, whose word counts.
    #[must_use]
    pub fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|subnet| subnet.contains(ip))
    }

    /// Whether a connection of a proxy begins with a header of the PROXY protocol.
    #[must_use]
    pub fn send_header(&self) -> bool {
        self.send_header
    }
}

/// The address of a client. HTTP proxies usually do not tell the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress {
    /// The address.
    pub ip: IpAddr,
    /// The port, if it is known.
    pub port: Option<u16>,
}

impl From<SocketAddr> for ClientAddress {
    fn from(address: SocketAddr) -> Self {
        ClientAddress { ip: address.ip(), port: Some(address.port()) }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}
