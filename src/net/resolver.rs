//! Looks up host names. The system's resolver blocks, for half a minute if the network is down. So
//! each lookup runs on a thread of its own, and no other thread waits for it.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock};
use std::thread;

use crate::sys::Waker;

/// Stack of a resolver thread, in bytes. glibc's resolver keeps its buffers there.
const STACK: usize = 256 * 1024;

type Addresses = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

/// A lookup, running or done.
#[derive(Clone)]
pub(crate) struct Lookup(Arc<OnceLock<Addresses>>);

impl Lookup {
    /// The result of the lookup. `None` while it runs.
    pub(crate) fn poll(&self) -> Option<io::Result<Vec<SocketAddr>>> {
        let found = self.0.get()?;
        Some(found.clone().map_err(|(kind, text)| io::Error::new(kind, text)))
    }
}

/// Runs lookups, at most one for each name at a time. A second request for a name joins the running
/// lookup. So threads do not pile up, neither when the cloud asks for many sessions nor when a name
/// server never answers.
pub(crate) struct Resolver {
    /// Woken when a lookup is done.
    waker: Arc<Waker>,
    running: RefCell<Vec<(String, u16, Lookup)>>,
}

impl Resolver {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Resolver { waker, running: RefCell::default() }
    }

    /// Starts a lookup, or joins the running one. Does not block.
    ///
    /// # Errors
    /// The thread cannot be created.
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
        let (found, name, waker) = (lookup.0.clone(), host.to_owned(), self.waker.clone());
        thread::Builder::new().name("aiot-resolve".into()).stack_size(STACK).spawn(move || {
            let addresses = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
            let _ = found.set(addresses.map_err(|e| (e.kind(), e.to_string())));
            waker.wake();
        })?;
        running.push((host.to_owned(), port, lookup.clone()));
        Ok(lookup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_under_lookup_is_not_looked_up_again() {
        let resolver = Resolver::new(Arc::new(Waker::new().unwrap()));
        let never = Lookup(Arc::new(OnceLock::new()));
        resolver.running.borrow_mut().push(("slow.example".into(), 1, never.clone()));
        for _ in 0..3 {
            let again = resolver.look_up("slow.example", 1).unwrap();
            assert!(Arc::ptr_eq(&never.0, &again.0) && again.poll().is_none());
        }
        never.0.set(Ok(vec![])).unwrap();
        assert!(never.poll().is_some());
        let known = resolver.look_up("::1", 7).unwrap().poll().unwrap().unwrap();
        assert_eq!(known, ["[::1]:7".parse().unwrap()]);
    }
}
