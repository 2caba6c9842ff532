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
    sys::reset_on_close(&tcp, false);
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// A connect to a service in progress: looks up the name, then tries its addresses one at a time. Each
/// gets a share of the time, so that one that does not answer does not use up the time of the next.
pub(crate) struct TcpDial {
    lookup: Option<Lookup>,
    /// The addresses that remain to be tried. The next one is the last element.
    addresses: Vec<SocketAddr>,
    connecting: Option<Connecting>,
    /// When the time of the present address is up.
    share: Option<Instant>,
    deadline: Instant,
    last_error: Option<io::Error>,
}

impl TcpDial {
    /// `deadline` is that of the connect. Its owner watches it.
    pub(super) fn new(
        resolver: &Resolver,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> io::Result<Self> {
        Ok(TcpDial::after(resolver.look_up(host, port)?, deadline))
    }

    fn after(lookup: Lookup, deadline: Instant) -> Self {
        let (lookup, addresses) = (Some(lookup), Vec::new());
        TcpDial { lookup, addresses, connecting: None, share: None, deadline, last_error: None }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connecting.as_ref().map(|connecting| connecting.as_fd())
    }

    /// When [`step`](Self::step) has to be called even if the descriptor is not ready.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.share
    }

    pub(super) fn step(&mut self, ready: bool, now: Instant) -> Option<io::Result<TcpStream>> {
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
        // The time of the last address is up with the whole connect's, which its owner watches.
        if self.share.is_some_and(|until| now >= until) && !self.addresses.is_empty() {
            self.connecting = None;
            self.last_error = Some(io::ErrorKind::TimedOut.into());
        }
        while self.connecting.is_none() {
            let Some(address) = self.addresses.pop() else {
                let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                return Some(Err(self.last_error.take().unwrap_or_else(none)));
            };
            let left = self.deadline.saturating_duration_since(now);
            let others = self.addresses.len() as u32;
            self.share = (others > 0).then(|| now + left / (others + 1));
            match sys::connect(address) {
                Ok(connecting) => self.connecting = Some(connecting),
                Err(e) => self.last_error = Some(e),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_connect_that_is_given_up_is_a_reset_for_the_service() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connecting = sys::connect(listener.local_addr().unwrap()).unwrap();
        let (mut service, _) = listener.accept().unwrap();
        drop(connecting);
        let error = io::Read::read(&mut service, &mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn each_address_has_its_share_of_the_time() {
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        // A listener whose backlog is full answers nothing to a further client.
        let full = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let dead = full.local_addr().unwrap();
        let _occupied = TcpStream::connect(dead).unwrap();
        let addresses = vec![dead, dead, good.local_addr().unwrap()];
        let start = Instant::now();
        let minute = Duration::from_secs(60);
        let mut dial = TcpDial::after(Lookup::done(addresses), start + 3 * minute);
        for turn in 1..3 {
            let begun = start + (turn - 1) * minute;
            assert!(dial.step(false, begun).is_none());
            assert_eq!(dial.deadline(), Some(start + turn * minute));
            assert!(dial.step(false, begun + minute / 2).is_none());
            assert_eq!(dial.deadline(), Some(start + turn * minute));
        }
        assert!(dial.step(false, start + 2 * minute).is_none());
        // The last address may take all the time that is left.
        assert_eq!(dial.deadline(), None);
        let mut fds = [sys::PollFd::new(dial.fd().unwrap(), false, true)];
        sys::poll(&mut fds, Some(Instant::now() + Duration::from_secs(20))).unwrap();
        assert!(fds[0].ready().write);
        let stream = dial.step(true, start + 2 * minute).unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good.local_addr().unwrap());
    }
}
