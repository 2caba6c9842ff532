//! Finding and connecting a local service, or the cloud, without blocking the worker.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::thread;

use super::control::Control;
use super::session::Local;
use crate::sys::{self, Connecting};

/// Stack of a resolver thread: glibc's resolver keeps its buffers there.
const STACK: usize = 128 * 1024;

type Addresses = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

/// A host name on its way to addresses. The system's resolver blocks, for half a minute when
/// the network is down, so it runs on a thread of its own that nobody waits for.
#[derive(Clone)]
pub(crate) struct Lookup(Arc<OnceLock<Addresses>>);

impl Lookup {
    /// The addresses, `None` while it runs.
    pub(crate) fn poll(&self) -> Option<io::Result<Vec<SocketAddr>>> {
        let found = self.0.get()?;
        Some(found.clone().map_err(|(kind, text)| io::Error::new(kind, text)))
    }
}

/// Runs lookups, one at a time for each name: who asks for a name that is being looked up waits
/// for that same lookup. So neither a cloud that asks for sessions without end nor a name
/// server that never answers makes threads pile up.
pub(crate) struct Resolver {
    control: Arc<Control>,
    running: RefCell<Vec<(String, u16, Lookup)>>,
}

impl Resolver {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Resolver { control, running: RefCell::default() }
    }

    pub(crate) fn look_up(&self, host: &str, port: u16) -> io::Result<Lookup> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Lookup(Arc::new(Ok(vec![SocketAddr::new(ip, port)]).into())));
        }
        let mut running = self.running.borrow_mut();
        running.retain(|(_, _, lookup)| lookup.0.get().is_none());
        if let Some((_, _, lookup)) = running.iter().find(|(h, p, _)| h == host && *p == port) {
            return Ok(lookup.clone());
        }
        let lookup = Lookup(Arc::new(OnceLock::new()));
        let (found, name, control) = (lookup.0.clone(), host.to_owned(), self.control.clone());
        thread::Builder::new().name("aiot-resolve".into()).stack_size(STACK).spawn(move || {
            let addresses = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
            let _ = found.set(addresses.map_err(|e| (e.kind(), e.to_string())));
            control.wake();
        })?;
        running.push((host.to_owned(), port, lookup.clone()));
        Ok(lookup)
    }
}

/// Local services over TCP.
pub(crate) struct Sockets(pub(crate) Rc<Resolver>);

impl Local for Sockets {
    type Dial = Dial;
    type Stream = TcpStream;

    fn dial(&self, host: &str, port: u16) -> io::Result<Dial> {
        let lookup = Some(self.0.look_up(host, port)?);
        Ok(Dial { lookup, addresses: Vec::new(), connecting: None, last_error: None })
    }

    fn step(&self, dial: &mut Dial, writable: bool) -> Option<io::Result<TcpStream>> {
        dial.step(writable)
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
    /// The descriptor that becomes writable when it can move on; none while a name is looked up.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.connecting.as_ref().map(|connecting| connecting.as_fd())
    }

    fn step(&mut self, writable: bool) -> Option<io::Result<TcpStream>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_under_lookup_is_not_looked_up_again() {
        let control = Arc::new(Control::new(super::super::Directive::Stop).unwrap());
        let resolver = Resolver::new(control);
        let never = Lookup(Arc::new(OnceLock::new()));
        resolver.running.borrow_mut().push(("slow.example".into(), 1, never.clone()));
        let again = resolver.look_up("slow.example", 1).unwrap();
        assert!(Arc::ptr_eq(&never.0, &again.0) && again.poll().is_none());
        never.0.set(Ok(vec![])).unwrap();
        assert!(again.poll().is_some());
        let known = resolver.look_up("::1", 7).unwrap().poll().unwrap().unwrap();
        assert_eq!(known, ["[::1]:7".parse().unwrap()]);
    }
}
