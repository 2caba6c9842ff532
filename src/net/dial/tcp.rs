//! TCP to one of several addresses: "happy eyeballs" (RFC 8305). A [`Race`] begins a connect to the
//! next address when the former one has failed or has not been done in 250 ms, and the first connect
//! that is done wins. [`open`](super::super::open) and [`TcpDial`] run one.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::net::addresses::take_turns;
use crate::net::resolver::{Lookup, Resolver};
use crate::sys::{self, Connecting, Origin, PollFd};

/// How long an address may run before the next one begins (RFC 8305, 8: Connection Attempt Delay).
const DELAY: Duration = Duration::from_millis(250);
/// Most connects of one race at a time. Each has a descriptor.
const MOST_AT_ONCE: usize = 4;

/// Connects to several addresses, each a little after the former one.
pub(crate) struct Race {
    /// Not begun yet. The next one is the last element.
    waiting: Vec<SocketAddr>,
    /// In the order in which they began.
    running: Vec<Runner>,
    /// When the next one begins, if there is a place for it.
    due: Instant,
    /// How long the oldest connect keeps its place when all places are taken.
    share: Duration,
    error: Option<(SocketAddr, io::Error)>,
}

struct Runner {
    address: SocketAddr,
    connecting: Connecting,
    began: Instant,
}

/// How a race has ended.
pub(crate) enum Won {
    /// The first address that was connected, and its non-blocking stream.
    By(SocketAddr, TcpStream),
    /// No address was connected. The last error is that of the address beside it.
    Nobody(Option<SocketAddr>, io::Error),
}

impl Race {
    /// `deadline` is the race's. Its owner watches it.
    pub(crate) fn new(mut addresses: Vec<SocketAddr>, now: Instant, deadline: Instant) -> Self {
        let rounds = addresses.len().div_ceil(MOST_AT_ONCE).max(1) as u32;
        let share = deadline.saturating_duration_since(now) / rounds;
        addresses.reverse();
        Race { waiting: addresses, running: Vec::new(), due: now, share, error: None }
    }

    /// The connects in progress. Each becomes writable when it is done.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.iter().map(|runner| runner.connecting.as_fd())
    }

    /// When [`step`](Self::step) has to be called even if no descriptor is ready.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.next_at())
    }

    /// The addresses that have not failed.
    pub(crate) fn into_rest(self) -> Vec<SocketAddr> {
        let running = self.running.into_iter().map(|runner| runner.address);
        running.chain(self.waiting.into_iter().rev()).collect()
    }

    fn next_at(&self) -> Instant {
        match self.running.first() {
            Some(oldest) if self.running.len() >= MOST_AT_ONCE => {
                self.due.max(oldest.began + self.share)
            }
            _ => self.due,
        }
    }

    /// Looks at the connects in progress, and begins the next one if it is time for it. `ready`: a
    /// descriptor was reported ready. `begins` is told each address that begins.
    pub(crate) fn step(
        &mut self,
        ready: bool,
        now: Instant,
        origin: &Origin<'_>,
        begins: &mut dyn FnMut(SocketAddr),
    ) -> Option<Won> {
        if ready || self.running.len() > 1 {
            if let Some(won) = self.finish(now) {
                return Some(won);
            }
        }
        while !self.waiting.is_empty() && now >= self.next_at() {
            if self.running.len() >= MOST_AT_ONCE {
                let oldest = self.running.remove(0);
                self.error = Some((oldest.address, io::ErrorKind::TimedOut.into()));
            }
            let Some(address) = self.waiting.pop() else { break };
            begins(address);
            match sys::connect(address, origin) {
                Ok(connecting) => {
                    self.running.push(Runner { address, connecting, began: now });
                    self.due = now + DELAY;
                }
                Err(e) => self.error = Some((address, e)),
            }
        }
        if !self.running.is_empty() {
            return None;
        }
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        Some(match self.error.take() {
            Some((address, e)) => Won::Nobody(Some(address), e),
            None => Won::Nobody(None, none()),
        })
    }

    /// Takes the connects that are done. The first one that has succeeded wins.
    fn finish(&mut self, now: Instant) -> Option<Won> {
        let mut fds: Vec<_> = self.fds().map(|fd| PollFd::new(fd, false, true)).collect();
        // Does not wait.
        if sys::poll(&mut fds, Some(Instant::now())).is_err() {
            return None;
        }
        let done: Vec<usize> = (0..fds.len()).filter(|&index| fds[index].ready().write).collect();
        drop(fds);
        for (removed, index) in done.into_iter().enumerate() {
            let Runner { address, connecting, .. } = self.running.remove(index - removed);
            match connecting.finish() {
                Ok(stream) => return Some(Won::By(address, stream)),
                Err(e) => {
                    self.error = Some((address, e));
                    self.due = now;
                }
            }
        }
        None
    }
}

/// A connect to a service in progress: looks up the name, then lets its addresses race.
pub(crate) struct TcpDial {
    lookup: Option<Lookup>,
    race: Race,
    deadline: Instant,
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
        TcpDial { lookup: Some(lookup), race: Race::new(Vec::new(), deadline, deadline), deadline }
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.race.fds()
    }

    /// When [`step`](Self::step) has to be called even if no descriptor is ready.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.race.deadline()
    }

    /// `ready`: a descriptor was reported ready.
    pub(super) fn step(&mut self, ready: bool, now: Instant) -> Option<io::Result<TcpStream>> {
        if let Some(lookup) = &self.lookup {
            match lookup.poll()? {
                Ok(found) => self.race = Race::new(take_turns(found), now, self.deadline),
                Err(e) => return Some(Err(e)),
            }
            self.lookup = None;
        }
        Some(match self.race.step(ready, now, &Origin::default(), &mut |_| {})? {
            Won::By(_, stream) => Ok(stream),
            Won::Nobody(_, e) => Err(e),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn begin(address: SocketAddr) -> Connecting {
        sys::connect(address, &Origin::default()).unwrap()
    }

    /// A listener whose backlog is full answers nothing to a further client.
    fn silent() -> (SocketAddr, TcpListener, TcpStream) {
        let full = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let address = full.local_addr().unwrap();
        let occupied = TcpStream::connect(address).unwrap();
        (address, full, occupied)
    }

    /// Nothing listens there.
    fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_connect_that_is_given_up_is_a_reset_for_the_service() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connecting = begin(listener.local_addr().unwrap());
        let (mut service, _) = listener.accept().unwrap();
        drop(connecting);
        let error = io::Read::read(&mut service, &mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_next_address_begins_a_quarter_of_a_second_later_and_the_first_that_connects_wins() {
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let (dead, _full, _occupied) = silent();
        let addresses = vec![dead, dead, good.local_addr().unwrap()];
        let start = Instant::now();
        let deadline = start + Duration::from_secs(60);
        let mut dial = TcpDial::after(Lookup::done(addresses), deadline);
        for turn in 0..2 {
            let now = start + turn * DELAY;
            assert!(dial.step(false, now).is_none());
            assert_eq!(dial.fds().count(), 1 + turn as usize);
            assert_eq!(dial.deadline(), Some(now + DELAY));
            assert!(dial.step(false, now + DELAY / 2).is_none());
            assert_eq!(dial.deadline(), Some(now + DELAY));
        }
        let mut now = start + 2 * DELAY;
        let stream = loop {
            if let Some(done) = dial.step(false, now) {
                break done.unwrap();
            }
            // The last address may take all the time that is left.
            assert_eq!((dial.deadline(), dial.fds().count()), (None, 3));
            let mut fds: Vec<_> = dial.fds().map(|fd| PollFd::new(fd, false, true)).collect();
            sys::poll(&mut fds, Some(Instant::now() + Duration::from_secs(20))).unwrap();
            assert!(fds[2].ready().write);
            now += DELAY;
        };
        assert_eq!(stream.peer_addr().unwrap(), good.local_addr().unwrap());
    }

    #[test]
    fn an_address_that_refuses_makes_way_for_the_next_at_once() {
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = vec![refusing(), refusing(), good.local_addr().unwrap()];
        let now = Instant::now();
        let mut dial = TcpDial::after(Lookup::done(addresses), now + Duration::from_secs(60));
        // The clock stands still, so no address begins because of the time.
        let stream = loop {
            let ready = match dial.fds().next() {
                Some(fd) => {
                    let mut fds = [PollFd::new(fd, false, true)];
                    sys::poll(&mut fds, Some(Instant::now() + Duration::from_secs(20))).unwrap();
                    fds[0].ready().write
                }
                None => false,
            };
            if let Some(done) = dial.step(ready, now) {
                break done.unwrap();
            }
        };
        assert_eq!(stream.peer_addr().unwrap(), good.local_addr().unwrap());
        let mut dial = TcpDial::after(Lookup::done(vec![]), now);
        let error = dial.step(false, now).unwrap().unwrap_err();
        assert!(error.to_string().contains("no address"), "{error}");
    }

    #[test]
    fn many_silent_addresses_share_few_descriptors_and_the_time() {
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let (dead, _full, _occupied) = silent();
        let mut addresses = vec![dead; 2 * MOST_AT_ONCE];
        addresses.push(good.local_addr().unwrap());
        let start = Instant::now();
        let mut race = Race::new(addresses, start, start + Duration::from_secs(30));
        assert_eq!(race.share, Duration::from_secs(10));
        let (mut now, mut begun) = (start, 0);
        loop {
            let mut begins = |_| begun += 1;
            if let Some(won) = race.step(false, now, &Origin::default(), &mut begins) {
                assert!(matches!(won, Won::By(..)));
                break;
            }
            assert!(race.running.len() <= MOST_AT_ONCE);
            match race.deadline() {
                Some(at) => now = at,
                None => {
                    let mut fds: Vec<_> =
                        race.fds().map(|fd| PollFd::new(fd, false, true)).collect();
                    sys::poll(&mut fds, Some(Instant::now() + Duration::from_secs(20))).unwrap();
                }
            }
        }
        assert_eq!(begun, 2 * MOST_AT_ONCE + 1);
        assert!(now <= start + Duration::from_secs(22), "{:?}", now - start);
    }
}
