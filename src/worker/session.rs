//! One local TCP stream of a tunnel: its connect, its buffer, its orderly close.

use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::dial::Dial;
use crate::cloud::frame::HeaderTemplate;
use crate::cloud::websocket::Receiver;
use crate::sys;

/// Slices of one write.
const MAX_SLICES: usize = 64;
/// How often a closed session looks whether the local service's kernel has taken everything.
const LINGER_CHECK: Duration = Duration::from_millis(200);

/// Where a session stands.
pub(crate) enum State {
    /// The local connect is under way; the `session_create` is not answered yet.
    Dialing {
        dial: Dial,
        deadline: Instant,
        create_id: u64,
    },
    Open(Outlet),
}

/// A session as the cloud sees it: from `session_create` to a release by either side.
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) service_type: String,
    pub(crate) state: State,
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
}

impl Session {
    /// Bytes from the cloud that the local service has not taken.
    pub(crate) fn waiting(&self) -> usize {
        self.parked.len() + self.batched
    }

    /// Hands this turn's payloads to the local service, and parks what it does not take.
    pub(crate) fn flush(&mut self, receiver: &Receiver) {
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
        self.write_parked();
    }

    /// Offers the parked bytes to the local service.
    pub(crate) fn write_parked(&mut self) {
        if let State::Open(outlet) = &mut self.state {
            if self.parked.write(outlet) {
                self.blocked_since = self.blocked_since.map(|_| Instant::now());
            }
        }
    }
}

/// Bytes that wait for a local service.
#[derive(Default)]
pub(crate) struct Parked {
    bytes: Vec<u8>,
    start: usize,
}

impl Parked {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes what the service takes; whether it took anything.
    fn write(&mut self, outlet: &mut Outlet) -> bool {
        let before = self.start;
        while !self.is_empty() {
            match outlet.write(&[IoSlice::new(&self.bytes[self.start..])]) {
                Some(written) => self.start += written,
                None => return self.start > before,
            }
        }
        *self = Parked::default();
        true
    }
}

/// The connected local stream.
pub(crate) struct Outlet {
    stream: TcpStream,
    /// The service takes nothing more; what comes for it is dropped, what it sent is still read.
    deaf: bool,
}

impl Outlet {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Outlet { stream, deaf: false }
    }

    /// Bytes that were taken; `None` when the service takes none now.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> Option<usize> {
        let all = || slices.iter().map(|slice| slice.len()).sum();
        if self.deaf {
            return Some(all());
        }
        loop {
            match sys::send_vectored(&self.stream, slices) {
                Ok(written) => return Some(written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => {
                    self.deaf = true;
                    return Some(all());
                }
            }
        }
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl AsFd for Outlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A session that is over for the cloud while its last bytes go to the local service.
///
/// What the service still sends is read and dropped: closing a socket with unread bytes would
/// reset the connection, and with it what the service has not read yet.
pub(crate) struct Closing {
    outlet: Outlet,
    parked: Parked,
    ended: bool,
    progress: Instant,
    unsent: usize,
    stall: Duration,
}

impl Closing {
    pub(crate) fn new(outlet: Outlet, parked: Parked, stall: Duration) -> Self {
        let now = Instant::now();
        Closing { outlet, parked, ended: false, progress: now, unsent: usize::MAX, stall }
    }

    pub(crate) fn wants_write(&self) -> bool {
        !self.parked.is_empty()
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + LINGER_CHECK
    }

    /// Moves on; true when the stream can be closed.
    pub(crate) fn step(&mut self, scratch: &mut [u8]) -> bool {
        let now = Instant::now();
        if !self.parked.is_empty() && self.parked.write(&mut self.outlet) {
            self.progress = now;
        }
        if self.parked.is_empty() && !self.ended {
            let _ = self.outlet.stream.shutdown(Shutdown::Write);
            self.ended = true;
        }
        let peer_ended = match self.outlet.read(scratch) {
            Ok(0) => true,
            Ok(_) => false,
            Err(e) => e.kind() != io::ErrorKind::WouldBlock,
        };
        let unsent = sys::unsent(&self.outlet.stream);
        if unsent < self.unsent {
            self.progress = now;
        }
        self.unsent = unsent;
        let all_taken = self.ended && (peer_ended || unsent == 0);
        all_taken || self.outlet.deaf || now.duration_since(self.progress) >= self.stall
    }
}

impl AsFd for Closing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outlet.as_fd()
    }
}
