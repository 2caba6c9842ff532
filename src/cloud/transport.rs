//! The byte stream to the cloud: TCP, or TLS over it. Non-blocking.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use super::read_ahead::ReadAhead;
use super::tls::{TlsStream, MAX_RECORD};
use super::ByteStream;
use crate::sys;

/// A non-blocking socket that remembers when it has nothing more to read, which saves the read
/// that would only say so. [`arm`](Socket::arm) it when `poll` finds it readable again.
pub(crate) struct Socket {
    tcp: TcpStream,
    written: u64,
    drained: bool,
    /// What is written next has a continuation that follows at once.
    more: bool,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Socket { tcp, written: 0, drained: false, more: false }
    }

    pub(crate) fn arm(&mut self) {
        self.drained = false;
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.drained {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = self.tcp.read(buffer);
        self.drained = match &result {
            Ok(length) => (1..buffer.len()).contains(length),
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        };
        result
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = sys::send(&self.tcp, bytes, self.more)?;
        self.written += written as u64;
        Ok(written)
    }
    /// Of a record that had to wait, the rest goes with the next one, which may have been the last.
    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.more) {
            sys::push(&self.tcp);
        }
        Ok(())
    }
}

/// The connection to the cloud.
pub(crate) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<ReadAhead<Socket>>>),
}

impl Transport {
    /// Tells it that `poll` found it readable.
    pub(crate) fn arm(&mut self) {
        match self {
            Transport::Plain(socket) => socket.arm(),
            Transport::Tls(stream) => stream.get_mut().get_mut().arm(),
        }
    }

    fn socket(&self) -> &Socket {
        match self {
            Transport::Plain(socket) => socket,
            Transport::Tls(stream) => stream.get_ref().get_ref(),
        }
    }

    /// Ends our direction: TLS says so, then TCP.
    pub(crate) fn shutdown(&mut self) {
        if let Transport::Tls(stream) = self {
            stream.shutdown();
        }
        let _ = self.socket().tcp().shutdown(std::net::Shutdown::Write);
    }
}

impl ByteStream for Transport {
    fn written(&self) -> u64 {
        self.socket().written
    }

    fn unsent(&self) -> usize {
        sys::unsent(self.socket().tcp())
    }

    fn shrink(&mut self) {
        if let Transport::Tls(stream) = self {
            stream.get_mut().shrink();
        }
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().tcp().as_fd()
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(socket) => socket.read(buffer),
            Transport::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(socket) => socket.write(bytes),
            Transport::Tls(stream) => {
                // One call writes one record. The kernel gathers them, and wakes the cloud once.
                stream.get_mut().get_mut().more = bytes.len() > MAX_RECORD;
                stream.write(bytes)
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Transport::Plain(socket) => socket.flush(),
            Transport::Tls(stream) => stream.flush(),
        }
    }
}
