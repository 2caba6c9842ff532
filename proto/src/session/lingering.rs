//! A local stream that lingers: its session has ended, and its last bytes are still delivered.

use std::io;
use std::time::{Duration, Instant};

use super::buffer::LocalBuffer;
use super::stream::{Local, LocalStream};
use crate::progress::Progress;

/// How often a lingering stream checks whether the other end's kernel has acknowledged everything.
const CHECK: Duration = Duration::from_millis(200);
/// A lingering stream holds up no other, so it may stand still for this many stall timeouts.
const STALL_TIMEOUTS: u32 = 6;

/// A local stream whose session has ended.
///
/// Bytes that the other end still sends are read and dropped. If a socket were closed with unread
/// bytes, the kernel would reset the connection, and the other end would lose what it has not read
/// yet. If a `Lingering` is dropped while bytes wait in its local buffer, the stream is reset.
pub struct Lingering<S: LocalStream> {
    local: Local<S>,
    buffer: LocalBuffer,
    shut_down: bool,
    /// The other end has ended its direction. There will be nothing more to read.
    input_ended: bool,
    progress: Progress,
    stall_timeout: Option<Duration>,
}

impl<S: LocalStream> Lingering<S> {
    /// `stall_timeout`: a stream that makes no progress for a multiple of this time is cut. `None`:
    /// no limit.
    pub(crate) fn new(
        local: Local<S>,
        buffer: LocalBuffer,
        stall_timeout: Option<Duration>,
        now: Instant,
    ) -> Self {
        Lingering {
            progress: Progress::new(local.taken(), now),
            local,
            buffer,
            shut_down: false,
            input_ended: false,
            stall_timeout,
        }
    }

    /// The stream, for `poll`.
    pub fn stream(&self) -> &S {
        self.local.stream()
    }

    /// Since when the other end has taken nothing, if that is longer than a stream may block others.
    pub(crate) fn still_since(&self, limit: Duration, now: Instant) -> Option<Instant> {
        (now >= self.progress.deadline(limit)).then(|| self.progress.since())
    }

    /// Ends the stream in a reset although bytes wait.
    pub(crate) fn give_up(mut self) {
        self.local.cut();
    }

    /// The number of bytes that wait for the stream.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Whether to wait until there are bytes to read and drop.
    pub fn wants_read(&self) -> bool {
        !self.input_ended
    }

    /// Whether to wait until the stream takes bytes.
    pub fn wants_write(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// When to call [`step`](Self::step) next even if `poll` reports nothing.
    pub fn deadline(&self, now: Instant) -> Instant {
        now + CHECK
    }

    /// Writes, reads and checks the progress. Returns true if the stream can be closed.
    pub fn step(&mut self, now: Instant, scratch: &mut [u8]) -> bool {
        if !self.buffer.is_empty() {
            self.buffer.write(&mut self.local);
        }
        if self.buffer.is_empty() && !self.shut_down {
            self.local.shut_down();
            self.shut_down = true;
        }
        if !self.input_ended {
            self.input_ended = match self.local.read(scratch) {
                Ok(length) => length == 0,
                Err(e) => e.kind() != io::ErrorKind::WouldBlock,
            };
        }
        self.progress.update(self.local.taken(), now);
        // If the other end has ended its direction, the kernel delivers the rest after the close. A
        // reset would drop it.
        let is_last = self.input_ended && !self.local.is_cut();
        let delivered = self.shut_down && (is_last || self.local.unacked() == 0);
        let stalled = self
            .stall_timeout
            .is_some_and(|limit| now >= self.progress.deadline(limit * STALL_TIMEOUTS));
        if stalled && !delivered {
            self.local.cut();
        }
        delivered || self.local.is_closed() || stalled
    }
}

impl<S: LocalStream> Drop for Lingering<S> {
    fn drop(&mut self) {
        if !self.wants_write() {
            self.local.end_in_order();
        }
    }
}
