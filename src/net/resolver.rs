//! Looks up host names. The system's resolver blocks, for half a minute or longer if the network is
//! down, and cannot be interrupted. So each lookup runs on a thread of its own, and no other thread
//! waits for it.
//!
//! The whole process shares the threads and the lookups, because such a thread outlives the tunnel and
//! the instance that wanted it. There are at most [`MAX_THREADS`].

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;

use parking_lot::Mutex;

use crate::sys::{self, Waker};

/// Stack of a resolver thread, in bytes. glibc's resolver keeps its buffers there.
const STACK: usize = 256 * 1024;
/// Most names that are looked up at a time. Further ones wait. It takes as many names whose servers do
/// not answer to delay the others.
const MAX_THREADS: usize = 16;

type Addresses = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

/// A lookup: waiting, running or done.
#[derive(Clone)]
pub(crate) struct Lookup(Arc<State>);

struct State {
    host: String,
    port: u16,
    found: OnceLock<Addresses>,
    /// Woken when the lookup is done. Their owners may be gone by then.
    wakers: Mutex<Vec<Weak<Waker>>>,
}

impl Lookup {
    fn new(host: &str, port: u16) -> Self {
        let wakers = Mutex::default();
        Lookup(Arc::new(State { host: host.to_owned(), port, found: OnceLock::new(), wakers }))
    }

    /// A lookup that has found these addresses.
    #[cfg(test)]
    pub(crate) fn done(addresses: Vec<SocketAddr>) -> Self {
        let lookup = Lookup::new("", 0);
        lookup.finish(Ok(addresses));
        lookup
    }

    /// The result of the lookup. `None` while it waits or runs.
    pub(crate) fn poll(&self) -> Option<io::Result<Vec<SocketAddr>>> {
        let found = self.0.found.get()?;
        Some(found.clone().map_err(|(kind, text)| io::Error::new(kind, text)))
    }

    fn is_for(&self, host: &str, port: u16) -> bool {
        self.0.host == host && self.0.port == port
    }

    /// Whether nobody but the table of lookups wants the result.
    fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    fn wakes(&self, waker: &Arc<Waker>) {
        let mut wakers = self.0.wakers.lock();
        let own = Arc::downgrade(waker);
        wakers.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&own));
        wakers.push(own);
    }

    fn finish(&self, found: Addresses) {
        let _ = self.0.found.set(found);
        for waker in self.0.wakers.lock().drain(..) {
            if let Some(waker) = waker.upgrade() {
                waker.wake();
            }
        }
    }
}

/// Looks up names for one thread.
pub(crate) struct Resolver {
    /// Woken when a lookup is done.
    waker: Arc<Waker>,
}

impl Resolver {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Resolver { waker }
    }

    /// Starts a lookup, or joins the one that waits or runs. Does not block.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn look_up(&self, host: &str, port: u16) -> io::Result<Lookup> {
        let lookup = match host.parse::<IpAddr>() {
            Ok(ip) => {
                let lookup = Lookup::new(host, port);
                lookup.finish(Ok(vec![SocketAddr::new(ip, port)]));
                lookup
            }
            Err(_) => Lookups::look_up(&LOOKUPS, host, port, &self.waker, system)?,
        };
        Ok(lookup)
    }
}

fn system(host: &str, port: u16) -> Addresses {
    let found = (host, port).to_socket_addrs().map(Iterator::collect);
    found.map_err(|e| (e.kind(), e.to_string()))
}

static LOOKUPS: Mutex<Lookups> = Mutex::new(Lookups::new());

/// Runs lookups, at most one for each name and port at a time. A second request joins the first. So
/// threads do not pile up, neither when the cloud asks for many sessions nor when tunnels are added and
/// deleted while a name server does not answer.
struct Lookups {
    threads: usize,
    running: Vec<Lookup>,
    waiting: VecDeque<Lookup>,
}

impl Lookups {
    const fn new() -> Self {
        Lookups { threads: 0, running: Vec::new(), waiting: VecDeque::new() }
    }

    fn look_up(
        all: &'static Mutex<Self>,
        host: &str,
        port: u16,
        waker: &Arc<Waker>,
        resolve: fn(&str, u16) -> Addresses,
    ) -> io::Result<Lookup> {
        let mut lookups = all.lock();
        let mut known = lookups.running.iter().chain(&lookups.waiting);
        if let Some(lookup) = known.find(|lookup| lookup.is_for(host, port)) {
            lookup.wakes(waker);
            return Ok(lookup.clone());
        }
        let lookup = Lookup::new(host, port);
        lookup.wakes(waker);
        lookups.waiting.retain(|lookup| !lookup.is_abandoned());
        lookups.waiting.push_back(lookup.clone());
        if lookups.threads < MAX_THREADS {
            lookups.threads += 1;
            let thread = thread::Builder::new().name("aiot-resolve".into()).stack_size(STACK);
            if let Err(e) = sys::spawn(thread, move || Lookups::work(all, resolve)) {
                lookups.threads -= 1;
                // A thread that runs already will do it.
                if lookups.threads == 0 {
                    lookups.waiting.clear();
                    return Err(e);
                }
            }
        }
        Ok(lookup)
    }

    /// A resolver thread: does the lookups that wait, then ends.
    fn work(all: &Mutex<Self>, resolve: fn(&str, u16) -> Addresses) {
        let mut lookups = all.lock();
        while let Some(lookup) = lookups.waiting.pop_front() {
            if lookup.is_abandoned() {
                continue;
            }
            lookups.running.push(lookup.clone());
            drop(lookups);
            let found = resolve(&lookup.0.host, lookup.0.port);
            lookups = all.lock();
            lookups.running.retain(|other| !Arc::ptr_eq(&other.0, &lookup.0));
            lookup.finish(found);
        }
        lookups.threads -= 1;
        if lookups.threads == 0 {
            // Empty lists keep their memory, and dlclose would leak it.
            *lookups = Lookups::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn waker() -> Arc<Waker> {
        Arc::new(Waker::new().unwrap())
    }

    /// Waits until the condition holds for the lookups.
    fn until(lookups: &Mutex<Lookups>, holds: impl Fn(&Lookups) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(&lookups.lock()) {
            assert!(Instant::now() < deadline, "not in time");
            thread::yield_now();
        }
    }

    #[test]
    fn an_address_needs_no_lookup() {
        let known = Resolver::new(waker()).look_up("::1", 7).unwrap().poll().unwrap().unwrap();
        assert_eq!(known, ["[::1]:7".parse().unwrap()]);
    }

    #[test]
    fn a_name_under_lookup_is_not_looked_up_again_whoever_asks() {
        static LOOKUPS: Mutex<Lookups> = Mutex::new(Lookups::new());
        static ANSWER: OnceLock<Addresses> = OnceLock::new();
        fn late(_: &str, _: u16) -> Addresses {
            ANSWER.wait().clone()
        }
        // Of tunnels that are added and deleted again, one after the other.
        let last = waker();
        for _ in 0..300 {
            let asker = waker();
            let lookup = Lookups::look_up(&LOOKUPS, "slow.example", 1, &asker, late).unwrap();
            assert!(lookup.poll().is_none());
        }
        let lookup = Lookups::look_up(&LOOKUPS, "slow.example", 1, &last, late).unwrap();
        assert_eq!(LOOKUPS.lock().threads, 1);
        // Those that are gone are not kept.
        assert!(lookup.0.wakers.lock().len() <= 2);
        ANSWER.set(Ok(vec![])).unwrap();
        until(&LOOKUPS, |lookups| lookups.threads == 0 && lookups.running.capacity() == 0);
        assert!(lookup.poll().is_some());
    }

    #[test]
    fn names_that_are_never_answered_hold_a_bounded_number_of_threads() {
        static LOOKUPS: Mutex<Lookups> = Mutex::new(Lookups::new());
        static ANSWER: OnceLock<Addresses> = OnceLock::new();
        fn late(_: &str, _: u16) -> Addresses {
            ANSWER.wait().clone()
        }
        let asker = waker();
        let look_up =
            |n: u16| Lookups::look_up(&LOOKUPS, &format!("{n}.example"), 1, &asker, late).unwrap();
        let wanted: Vec<Lookup> = (0..100).map(look_up).collect();
        // Nobody waits for these, so they are never begun and do not pile up.
        (1000..2000).map(look_up).for_each(drop);
        until(&LOOKUPS, |lookups| lookups.running.len() == MAX_THREADS);
        assert_eq!(LOOKUPS.lock().threads, MAX_THREADS);
        assert!(LOOKUPS.lock().waiting.len() <= 101);
        ANSWER.set(Ok(vec![])).unwrap();
        until(&LOOKUPS, |lookups| lookups.threads == 0);
        assert!(wanted.iter().all(|lookup| lookup.poll().is_some()));
    }
}
