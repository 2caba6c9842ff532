//! One local TCP stream of a tunnel: its connect, its buffer, its orderly close.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cloud::frame::HeaderTemplate;
use crate::cloud::websocket::Receiver;
use crate::status::Counters;
use crate::sys;

/// Slices of one write.
const MAX_SLICES: usize = 128;
/// Payloads of one turn before they are handed over: a cloud's frames may be of one byte each.
pub(crate) const MAX_BATCH: usize = 4 * MAX_SLICES;
/// By how much a session's parked bytes grow.
const GROWTH: usize = 64 * 1024;
/// How often a closed session looks whether the local service's kernel has taken everything.
const LINGER_CHECK: Duration = Duration::from_millis(200);

/// How the relay reaches local services. The worker's way is sockets; tests have one of memory.
pub(crate) trait Local {
    /// A connect under way.
    type Dial;
    type Stream: LocalStream;

    fn dial(&self, host: &str, port: u16) -> io::Result<Self::Dial>;

    /// Moves a connect on. `writable` says that `poll` found its descriptor so.
    fn step(&self, dial: &mut Self::Dial, writable: bool) -> Option<io::Result<Self::Stream>>;
}

/// A connected stream to a local service; nothing here blocks.
pub(crate) trait LocalStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Ends our direction.
    fn end(&mut self);
    /// Makes the close that follows a reset: the service must not take what it got for all.
    fn abort(&mut self);
    /// Bytes that were written but that the service's kernel has not taken.
    fn unsent(&self) -> usize;
}

impl LocalStream for TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(self, buffer)
    }
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        sys::send_vectored(self, slices)
    }
    fn end(&mut self) {
        let _ = self.shutdown(Shutdown::Write);
    }
    fn abort(&mut self) {
        sys::reset_on_close(self);
    }
    fn unsent(&self) -> usize {
        sys::unsent(self)
    }
}

/// Where a session stands.
pub(crate) enum State<L: Local> {
    /// The local connect is under way; the `session_create` is not answered yet.
    Dialing {
        dial: L::Dial,
        deadline: Instant,
        create_id: u64,
    },
    Open(Outlet<L::Stream>),
}

/// A session as the cloud sees it: from `session_create` to a release by either side.
pub(crate) struct Session<L: Local> {
    pub(crate) id: String,
    pub(crate) service_type: String,
    pub(crate) state: State<L>,
    /// Header of its data frames.
    pub(crate) header: HeaderTemplate,
    /// Payloads of this turn, as positions in the receive buffer.
    pub(crate) batch: Vec<Range<usize>>,
    /// Their bytes together.
    pub(crate) batched: usize,
    /// Bytes that the local service has not taken yet.
    pub(crate) parked: Parked,
    /// Since when a full buffer stops the whole tunnel.
    pub(crate) blocked_since: Option<Instant>,
    /// Its last read brought more than a frame, or was cut short.
    pub(crate) is_bulk: bool,
    /// The cloud has released it while it was dialing: it is closed once its bytes are handed on.
    pub(crate) released: bool,
    /// For snapshots.
    pub(crate) counters: Arc<Counters>,
}

impl<L: Local> Session<L> {
    /// Bytes from the cloud that the local service has not taken.
    pub(crate) fn waiting(&self) -> usize {
        self.parked.len() + self.batched
    }

    /// Hands this turn's payloads to the local service, and parks what it does not take.
    pub(crate) fn flush(&mut self, receiver: &Receiver, now: Instant) {
        if let State::Open(outlet) = &mut self.state {
            if self.parked.is_empty() && !self.batch.is_empty() {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                while !self.batch.is_empty() {
                    let count = self.batch.len().min(MAX_SLICES);
                    for (slice, range) in slices.iter_mut().zip(&self.batch) {
                        *slice = IoSlice::new(receiver.bytes(range.clone()));
                    }
                    let Some(mut written) = outlet.write(&slices[..count]) else { break };
                    self.batched -= written;
                    let mut whole = 0;
                    while whole < count && self.batch[whole].len() <= written {
                        written -= self.batch[whole].len();
                        whole += 1;
                    }
                    if let Some(partial) = self.batch.get_mut(whole) {
                        partial.start += written;
                    }
                    self.batch.drain(..whole);
                }
            }
        }
        for range in self.batch.drain(..) {
            self.parked.push(receiver.bytes(range));
        }
        self.batched = 0;
        self.write_parked(now);
    }

    /// Offers the parked bytes to the local service.
    pub(crate) fn write_parked(&mut self, now: Instant) {
        if let State::Open(outlet) = &mut self.state {
            if self.parked.write(outlet) {
                self.blocked_since = self.blocked_since.map(|_| now);
            }
        }
    }
}

/// Bytes that wait for a local service.
#[derive(Default)]
pub(crate) struct Parked(VecDeque<u8>);

impl Parked {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.0.len() + bytes.len() > self.0.capacity() {
            // Doubling would leave behind as much again in pieces too small to be used.
            self.0.reserve_exact(bytes.len().next_multiple_of(GROWTH));
        }
        self.0.extend(bytes);
    }

    /// Writes what the service takes; whether it took anything.
    fn write(&mut self, outlet: &mut Outlet<impl LocalStream>) -> bool {
        let before = self.0.len();
        while !self.0.is_empty() {
            let (front, back) = self.0.as_slices();
            match outlet.write(&[IoSlice::new(front), IoSlice::new(back)]) {
                Some(written) => drop(self.0.drain(..written)),
                None => return self.0.len() < before,
            }
        }
        *self = Parked::default();
        true
    }
}

/// The connected local stream.
pub(crate) struct Outlet<S> {
    pub(crate) stream: S,
    /// The service takes nothing more; what comes for it is dropped, what it sent is still read.
    deaf: bool,
    /// A write was told that the service has reset the connection. The kernel says so only once:
    /// the next read would look like an orderly end.
    reset: bool,
    /// Why a write failed while the service may still be there.
    failure: Option<io::Error>,
    /// It is to end in a reset: bytes for it are lost.
    aborted: bool,
}

impl<S: LocalStream> Outlet<S> {
    pub(crate) fn new(stream: S) -> Self {
        Outlet { stream, deaf: false, reset: false, failure: None, aborted: false }
    }

    /// Bytes that were taken; `None` when the service takes none now.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> Option<usize> {
        let all = || slices.iter().map(|slice| slice.len()).sum();
        if self.deaf {
            return Some(all());
        }
        loop {
            match self.stream.write(slices) {
                Ok(written) => return Some(written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) => {
                    self.deaf = true;
                    // A service that is gone ends the session when all that it sent is read.
                    match e.kind() {
                        io::ErrorKind::BrokenPipe => {}
                        io::ErrorKind::ConnectionReset => self.reset = true,
                        _ => {
                            self.failure = Some(e);
                            self.abort();
                        }
                    }
                    return Some(all());
                }
            }
        }
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) if self.reset => return Err(io::ErrorKind::ConnectionReset.into()),
                result => return result,
            }
        }
    }

    /// From now on the stream ends in a reset.
    pub(crate) fn abort(&mut self) {
        self.aborted = true;
        self.stream.abort();
    }

    /// Why the session cannot go on, though its service may still be there: bytes for it are
    /// lost.
    pub(crate) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }
}

/// A session that is over for the cloud while its last bytes go to the local service.
///
/// What the service still sends is read and dropped: closing a socket with unread bytes would
/// reset the connection, and with it what the service has not read yet.
pub(crate) struct Closing<S> {
    pub(crate) outlet: Outlet<S>,
    pub(crate) parked: Parked,
    ended: bool,
    /// The service has ended its direction: there is nothing more to read, ever.
    peer_ended: bool,
    progress: Instant,
    unsent: usize,
    stall: Duration,
}

impl<S: LocalStream> Closing<S> {
    pub(crate) fn new(outlet: Outlet<S>, parked: Parked, stall: Duration, now: Instant) -> Self {
        let (ended, peer_ended) = (false, false);
        Closing { outlet, parked, ended, peer_ended, progress: now, unsent: usize::MAX, stall }
    }

    pub(crate) fn wants_read(&self) -> bool {
        !self.peer_ended
    }

    pub(crate) fn wants_write(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Gives up what is not written, and lets the service know.
    pub(crate) fn give_up(mut self) {
        if self.wants_write() {
            self.outlet.abort();
        }
    }

    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        now + LINGER_CHECK
    }

    /// Moves on; true when the stream can be closed.
    pub(crate) fn step(&mut self, now: Instant, scratch: &mut [u8]) -> bool {
        if !self.parked.is_empty() && self.parked.write(&mut self.outlet) {
            self.progress = now;
        }
        if self.parked.is_empty() && !self.ended {
            if !self.outlet.aborted {
                self.outlet.stream.end();
            }
            self.ended = true;
        }
        if !self.peer_ended {
            self.peer_ended = match self.outlet.read(scratch) {
                Ok(0) => true,
                Ok(_) => false,
                Err(e) => e.kind() != io::ErrorKind::WouldBlock,
            };
        }
        let unsent = self.outlet.stream.unsent();
        if unsent < self.unsent {
            self.progress = now;
        }
        self.unsent = unsent;
        let all_taken = self.ended && (self.peer_ended || unsent == 0);
        let given_up = now.duration_since(self.progress) >= self.stall;
        if given_up && !all_taken {
            self.outlet.abort();
        }
        all_taken || self.outlet.deaf || given_up
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_reset_that_a_write_was_told_of_is_no_orderly_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (service, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut outlet = Outlet::new(stream);
        // Unread bytes make its close a reset.
        assert_eq!(outlet.write(&[IoSlice::new(b"unread")]), Some(6));
        service.peek(&mut [0; 6]).unwrap();
        drop(service);
        let until = Instant::now() + Duration::from_secs(20);
        let fd = outlet.stream.as_fd();
        sys::poll(&mut [sys::PollFd::new(fd, true, false)], Some(until)).unwrap();
        assert_eq!(outlet.write(&[IoSlice::new(b"late")]), Some(4));
        assert_eq!(outlet.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_closing_session_that_is_given_up_resets_its_service() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut service, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut parked = Parked::default();
        parked.push(&vec![7; 64 * 1024 * 1024]);
        let now = Instant::now();
        let stall = Duration::from_secs(10);
        let mut closing = Closing::new(Outlet::new(stream), parked, stall, now);
        while closing.parked.write(&mut closing.outlet) {}
        assert!(!closing.step(now, &mut [0; 16]));
        assert!(!closing.step(now, &mut [0; 16]));
        assert!(closing.step(now + stall, &mut [0; 16]));
        drop(closing);
        let error = service.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
