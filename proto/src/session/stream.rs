//! A local stream and how it ends. The kernel reports some facts about an end only once, at a read
//! or at a write, so this module remembers them.

use std::io::{self, IoSlice};

/// A connected local stream. No function blocks.
pub trait LocalStream {
    /// Reads the available bytes. Returns 0 at the end of the stream, and `WouldBlock` if there are
    /// no bytes now.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes the slices in order, as far as the stream takes them. Returns the number of bytes
    /// taken.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Ends the sending direction.
    fn shut_down(&mut self);
    /// Decides what the later close means: an orderly end, or a reset. The other end cannot mistake
    /// a reset for an orderly end. A stream begins with a reset, so that the death of the process
    /// is a reset, too.
    fn reset_on_close(&mut self, resets: bool);
    /// The number of written bytes that the other end's kernel has not acknowledged and may still
    /// acknowledge. 0 for a stream that was reset.
    fn unacked(&self) -> usize;
}

/// A local stream and what is known about its end.
pub struct Local<S> {
    stream: S,
    /// The stream takes nothing more. Bytes for it are dropped; bytes from it are still read.
    closed: bool,
    /// A write reported that the other end reset the stream. The next read would report an orderly
    /// end instead.
    reset: bool,
    /// The error of a failed write. The other end may still be there.
    failure: Option<io::Error>,
    /// The stream ends in a reset, because bytes for it are lost.
    cut: bool,
    /// The number of bytes that the stream has taken.
    written: u64,
}

impl<S: LocalStream> Local<S> {
    /// Wraps a connected stream. Until its [orderly end](Self::end_in_order), a close of it is a
    /// reset.
    pub fn new(mut stream: S) -> Self {
        stream.reset_on_close(true);
        Local { stream, closed: false, reset: false, failure: None, cut: false, written: 0 }
    }

    /// The stream, for `poll`.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Writes and returns the number of bytes taken. `None` if the stream takes none now.
    pub(crate) fn write(&mut self, slices: &[IoSlice<'_>]) -> Option<usize> {
        let all = || slices.iter().map(|slice| slice.len()).sum();
        if self.closed {
            return Some(all());
        }
        loop {
            match self.stream.write(slices) {
                Ok(written) => {
                    self.written += written as u64;
                    return Some(written);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) => {
                    self.closed = true;
                    // If the other end is gone, the session ends once everything it sent has been
                    // read.
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

    /// Cuts the stream: it will end in a reset.
    pub(crate) fn cut(&mut self) {
        self.cut = true;
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Every byte is delivered, or will be by the kernel: the later close is an orderly end. Does
    /// nothing to a stream that is cut.
    pub(crate) fn end_in_order(&mut self) {
        if !self.cut {
            self.stream.reset_on_close(false);
        }
    }

    /// Ends the sending direction, unless the stream is cut.
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

    /// The number of bytes that the other end's kernel has acknowledged.
    pub(crate) fn taken(&self) -> u64 {
        self.written.saturating_sub(self.stream.unacked() as u64)
    }

    /// Whether a write has failed for a reason that ends the session.
    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The error of a failed write, once. Bytes for the stream are lost, so the session cannot go
    /// on.
    pub(crate) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }
}
