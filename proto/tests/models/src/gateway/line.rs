//! The byte stream between the gateway and one client.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use aiot_tunnel_proto::connection::Transport;

use super::operation::ClientEnd;

/// A long message in single bytes would take thousands of turns: a read brings at least this part.
const LEAST_PART: usize = 128;

/// Both directions, seen from the gateway.
#[derive(Debug)]
pub(super) struct LineState {
    inbound: VecDeque<u8>,
    /// Most bytes of one read.
    pub(super) chunk: usize,
    /// As with TLS, a read fetches everything that has come, be it an end: `poll` does not report it
    /// again.
    ahead: bool,
    /// Something has come since the last read that fetched everything.
    fresh: bool,
    end: Option<End>,
    pub(super) outbound: Vec<u8>,
    written: u64,
    /// Bytes that the client still takes.
    pub(super) room: usize,
    /// The gateway has dropped it.
    pub(super) is_shut: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    OfStream,
    Reset,
}

impl LineState {
    /// What `poll` says.
    pub(super) fn poll_readable(&self) -> bool {
        self.has_input() && (!self.ahead || self.fresh)
    }

    /// Whether there is something to read, be it an end.
    pub(super) fn has_input(&self) -> bool {
        !self.inbound.is_empty() || self.end.is_some()
    }

    /// Bytes come, unless the stream has ended.
    pub(super) fn arrive(&mut self, bytes: &[u8]) {
        if self.end.is_none() && !self.is_shut {
            self.inbound.extend(bytes);
            self.fresh = true;
        }
    }

    /// The byte stream ends.
    pub(super) fn end(&mut self, how: ClientEnd) {
        let end = if how == ClientEnd::Reset { End::Reset } else { End::OfStream };
        self.end = Some(end);
        self.fresh = true;
    }
}

/// One end of it. Clones are the same stream.
#[derive(Debug, Clone)]
pub(super) struct Line(Rc<RefCell<LineState>>);

impl Line {
    pub(super) fn new(chunk: usize, ahead: bool) -> Self {
        Line(Rc::new(RefCell::new(LineState {
            inbound: VecDeque::new(),
            chunk,
            ahead,
            fresh: false,
            end: None,
            outbound: Vec::new(),
            written: 0,
            room: usize::MAX,
            is_shut: false,
        })))
    }

    pub(super) fn state(&self) -> RefMut<'_, LineState> {
        self.0.borrow_mut()
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut line = self.state();
        line.fresh = false;
        let chunk = line.chunk.max(line.inbound.len() / LEAST_PART);
        let length = buffer.len().min(chunk).min(line.inbound.len());
        for part in buffer[..length].chunks_mut(64 * 1024) {
            line.inbound.read_exact(part)?;
        }
        match line.end {
            _ if length > 0 => Ok(length),
            None => Err(ErrorKind::WouldBlock.into()),
            Some(End::OfStream) => Ok(0),
            Some(End::Reset) => Err(ErrorKind::ConnectionReset.into()),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = self.state();
        if line.end == Some(End::Reset) {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let length = bytes.len().min(line.room);
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if line.room < usize::MAX {
            line.room -= length;
        }
        line.written += length as u64;
        line.outbound.extend_from_slice(&bytes[..length]);
        Ok(length)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Line {
    fn written(&self) -> u64 {
        self.0.borrow().written
    }
    fn unacked(&self) -> usize {
        0
    }
    fn shut_down(&mut self) {
        self.state().is_shut = true;
    }
}
