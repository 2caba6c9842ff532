//! TCP: to an address of the cloud ([`connect`]), or to a local service by its name ([`TcpDial`]).

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::net::resolver::{Lookup, Resolver};
use crate::net::wait::HandshakeError;
use crate::net::Wait;
use crate::sys::{self, Connecting};

/// Connects to one address: the connected, non-blocking stream.
///
/// # Errors
/// The system's, and those of the wait.
pub(crate) fn connect(
    address: SocketAddr,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<TcpStream, HandshakeError> {
    let connecting = sys::connect(address)?;
    wait.wait(Some(connecting.as_fd()), true, deadline)?;
    let tcp = connecting.finish()?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// A connect to a service in progress: looks up the name, then tries its addresses one at a time.
pub(crate) struct TcpDial {
    lookup: Option<Lookup>,
    /// The addresses that remain to be tried. The next one is the last element.
    addresses: Vec<SocketAddr>,
    connecting: Option<Connecting>,
    last_error: Option<io::Error>,
}

impl TcpDial {
    pub(crate) fn new(resolver: &Resolver, host: &str, port: u16) -> io::Result<Self> {
        let lookup = Some(resolver.look_up(host, port)?);
        Ok(TcpDial { lookup, addresses: Vec::new(), connecting: None, last_error: None })
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connecting.as_ref().map(|connecting| connecting.as_fd())
    }

    pub(super) fn step(&mut self, ready: bool) -> Option<io::Result<TcpStream>> {
        if let Some(lookup) = &self.lookup {
            match lookup.poll()? {
                Ok(mut addresses) => {
                    addresses.reverse();
                    self.addresses = addresses;
                }
                Err(e) => return Some(Err(e)),
            }
            self.lookup = None;
        }
        if let Some(connecting) = self.connecting.take_if(|_| ready) {
            match connecting.finish() {
                Ok(stream) => return Some(Ok(stream)),
                Err(e) => self.last_error = Some(e),
            }
        }
        while self.connecting.is_none() {
            let Some(address) = self.addresses.pop() else {
                let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                return Some(Err(self.last_error.take().unwrap_or_else(none)));
            };
            match sys::connect(address) {
                Ok(connecting) => self.connecting = Some(connecting),
                Err(e) => self.last_error = Some(e),
            }
        }
        None
    }
}
