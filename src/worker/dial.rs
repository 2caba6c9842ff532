//! Finding and connecting a local service, or the cloud, without blocking the worker.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, TryRecvError};

use super::control::Control;
use crate::sys::{self, Connecting};

/// A host name on its way to addresses. The system's resolver blocks, for half a minute when
/// the network is down, so it runs on a thread of its own that nobody waits for.
pub(crate) enum Lookup {
    Known(Vec<SocketAddr>),
    Running(Receiver<io::Result<Vec<SocketAddr>>>),
}

impl Lookup {
    pub(crate) fn start(host: &str, port: u16, control: &Arc<Control>) -> io::Result<Self> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Lookup::Known(vec![SocketAddr::new(ip, port)]));
        }
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let (host, control) = (host.to_owned(), control.clone());
        thread::Builder::new().name("aiot-resolve".into()).stack_size(128 * 1024).spawn(
            move || {
                let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
                let _ = sender.send(found);
                control.wake();
            },
        )?;
        Ok(Lookup::Running(receiver))
    }

    /// The addresses, `None` while it runs.
    pub(crate) fn poll(&mut self) -> Option<io::Result<Vec<SocketAddr>>> {
        match self {
            Lookup::Known(addresses) => Some(Ok(std::mem::take(addresses))),
            Lookup::Running(receiver) => match receiver.try_recv() {
                Ok(result) => Some(result),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => {
                    Some(Err(io::Error::other("the resolver's thread has ended")))
                }
            },
        }
    }
}

/// A connect to a local service.
pub(crate) struct Dial {
    lookup: Option<Lookup>,
    addresses: Vec<SocketAddr>,
    connecting: Option<Connecting>,
    last_error: Option<io::Error>,
}

impl Dial {
    pub(crate) fn start(host: &str, port: u16, control: &Arc<Control>) -> io::Result<Self> {
        let lookup = Some(Lookup::start(host, port, control)?);
        Ok(Dial { lookup, addresses: Vec::new(), connecting: None, last_error: None })
    }

    /// The descriptor that becomes writable when it can move on; none while a name is looked up.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connecting.as_ref().map(|connecting| connecting.as_fd())
    }

    /// Moves on. `writable` says that `poll` found the descriptor so.
    pub(crate) fn step(&mut self, writable: bool) -> Option<io::Result<TcpStream>> {
        if let Some(lookup) = &mut self.lookup {
            match lookup.poll()? {
                Ok(mut addresses) => {
                    addresses.reverse();
                    self.addresses = addresses;
                }
                Err(e) => return Some(Err(e)),
            }
            self.lookup = None;
        }
        loop {
            match self.connecting.take() {
                Some(connecting) if !writable => {
                    self.connecting = Some(connecting);
                    return None;
                }
                Some(connecting) => match connecting.finish() {
                    Ok(stream) => return Some(stream.set_nodelay(true).map(|()| stream)),
                    Err(e) => self.last_error = Some(e),
                },
                None => {}
            }
            let Some(address) = self.addresses.pop() else {
                let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                return Some(Err(self.last_error.take().unwrap_or_else(none)));
            };
            match sys::connect(address) {
                Ok(connecting) => {
                    self.connecting = Some(connecting);
                    return None;
                }
                Err(e) => self.last_error = Some(e),
            }
        }
    }
}
