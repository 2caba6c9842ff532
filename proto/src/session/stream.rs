//! A local stream: the service that a session belongs to, or the operator's program. What a write or a
//! read says about its end is kept here, since the kernel says some of it only once.

use std::io::{self, IoSlice};

/// A connected local stream. Nothing here blocks.
pub trait LocalStream {
    /// Reads what there is; `WouldBlock` when there is nothing, 0 bytes at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes the slices in order, as far as the stream takes them.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Ends the sending direction.
    fn shut_down(&mut self);
    /// Makes the close that follows a reset, which the other end cannot mistake for an orderly end.
    fn reset_on_close(&mut self);
    /// Bytes that were written but that the other end's kernel has not acknowledged.
    fn unacked(&self) -> usize;
}

/// A local stream and what is known of its end.
pub struct Local<S> {
    stream: S,
    /// It takes nothing more: what comes for it is dropped, what it sent is still read.
    closed: bool,
    /// A write was told that the other end has reset the connection. The next read would look like
    /// an orderly end.
    reset: bool,
    /// Why a write failed while the other end may still be there.
    failure: Option<io::Error>,
    /// It is to end in a reset: bytes for it are lost.
    cut: bool,
}

impl<S: LocalStream> Local<S> {
    /// A stream that is connected.
    pub fn new(stream: S) -> Self {
        Local { stream, closed: false, reset: false, failure: None, cut: false }
    }

    /// The stream, for `poll`.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Bytes that were taken; `None` when it takes none now.
    pub(crate) fn write(&mut self, slices: &[IoSlice<'_>]) -> Option<usize> {
        let all = || slices.iter().map(|slice| slice.len()).sum();
        if self.closed {
            return Some(all());
        }
        loop {
            match self.stream.write(slices) {
                Ok(written) => return Some(written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) => {
                    self.closed = true;
                    // An end that is gone ends the session when all that it sent is read.
                    match e.kind() {
                        io::ErrorKind::BrokenPipe => {}
                        io::ErrorKind::ConnectionReset => self.reset = true,
                        _ => {
                            self.failure = Some(e);
                            self.cut();
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
    pub(crate) fn cut(&mut self) {
        self.cut = true;
        self.stream.reset_on_close();
    }

    /// Ends the sending direction, unless the stream is to end in a reset.
    pub(crate) fn shut_down(&mut self) {
        if !self.cut {
            self.stream.shut_down();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(crate) fn unacked(&self) -> usize {
        self.stream.unacked()
    }

    /// Whether [`take_failure`](Self::take_failure) has something to say.
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Why the session cannot go on, though the other end may still be there: bytes for it are lost.
    pub(crate) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }
}
