//! One session's local end: what waits for it, and its orderly close.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::cloud::frame::HeaderTemplate;
use crate::sys;

/// How long a local program may take nothing while a full buffer waits for it and, behind it,
/// its siblings.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Reads of a lingering session in one turn.
const LINGER_READS: usize = 4;

/// A local connection, non-blocking.
pub(super) enum Local {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Local {
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Local::Tcp(stream) => stream.read(buffer),
            Local::Unix(stream) => stream.read(buffer),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Local::Tcp(stream) => stream.write(bytes),
            Local::Unix(stream) => stream.write(bytes),
        }
    }

    /// Ends our direction.
    pub(super) fn end(&self) {
        let _ = match self {
            Local::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Local::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Makes the close that follows a reset: the local program must not take what it got for all.
    pub(super) fn abort(&self) {
        match self {
            Local::Tcp(stream) => sys::reset_on_close(stream),
            // Only ours: the program's exit status tells.
            Local::Unix(_) => self.end(),
        }
    }

    /// Bytes that its kernel has yet to deliver; closing the socket may destroy them.
    pub(super) fn unsent(&self) -> usize {
        match self {
            Local::Tcp(stream) => sys::unsent(stream),
            // What was written is in the other end's queue, and stays there.
            Local::Unix(_) => 0,
        }
    }
}

impl AsFd for Local {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Local::Tcp(stream) => stream.as_fd(),
            Local::Unix(stream) => stream.as_fd(),
        }
    }
}

pub(super) enum State {
    /// Waits for the response to the session_create with this frame id.
    Opening {
        frame_id: u64,
        deadline: Instant,
    },
    Open,
    /// Released by the other side: what waits is still written.
    Draining,
    /// All is written, but not delivered. What the local program still sends is read and
    /// dropped: closing a socket with unread bytes would reset the connection.
    Lingering {
        progress: Instant,
        left: usize,
    },
    Ended,
}

pub(super) struct Session {
    pub(super) local: Local,
    pub(super) state: State,
    pub(super) id: String,
    pub(super) data: Option<HeaderTemplate>,
    /// Bytes that wait for `local`, from `written` on.
    pub(super) waiting: Vec<u8>,
    pub(super) written: usize,
    /// Since when a full buffer waits for a local end that takes nothing.
    pub(super) stalled: Option<Instant>,
    /// Something is missing: its end must not look like an orderly one.
    pub(super) is_cut: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_cut || self.waits() > 0 {
            self.local.abort();
        } else {
            self.local.end();
        }
    }
}

impl Session {
    pub(super) fn waits(&self) -> usize {
        self.waiting.len() - self.written
    }

    /// The state of one that lingers, when it has read and dropped some more.
    pub(super) fn linger(&mut self, mut progress: Instant, mut left: usize, now: Instant) -> State {
        let ended = self.drops_input() && self.drop_input();
        let unsent = self.local.unsent();
        if unsent < left {
            (progress, left) = (now, unsent);
        }
        if ended || left == 0 || now >= progress + STALL_TIMEOUT {
            return State::Ended;
        }
        State::Lingering { progress, left }
    }

    /// Whether what the local program sends is to be read and dropped. One that is to be reset
    /// in the end may have unread bytes then.
    pub(super) fn drops_input(&self) -> bool {
        !self.is_cut
    }

    /// Reads and drops, within bounds: its siblings wait. Whether the local end has ended.
    fn drop_input(&mut self) -> bool {
        let mut scratch = [0; 4096];
        for _ in 0..LINGER_READS {
            match self.local.read(&mut scratch) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return e.kind() != io::ErrorKind::WouldBlock,
            }
        }
        false
    }

    /// Writes what the local end takes; false when it is gone.
    pub(super) fn flush(&mut self) -> bool {
        while self.waits() > 0 {
            match self.local.write(&self.waiting[self.written..]) {
                Ok(0) => return false,
                Ok(length) => self.written += length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.written * 2 > self.waiting.len() {
                        self.waiting.drain(..self.written);
                        self.written = 0;
                    }
                    return true;
                }
                Err(_) => return false,
            }
        }
        self.waiting.clear();
        self.written = 0;
        true
    }
}
