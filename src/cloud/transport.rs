//! The byte stream to the cloud: TCP, or TLS over it. Non-blocking.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use super::tls::TlsStream;
use super::ByteStream;
use crate::sys;

/// What OpenSSL reads in pieces (a record's header, then its body) is fetched in one go.
/// Begins small and doubles as reads fill it.
const MAX_READ_AHEAD: usize = 64 * 1024;
const FIRST_READ_AHEAD: usize = 4 * 1024;

/// Longest plain text of a TLS record (RFC 8446, 5.1).
const MAX_RECORD: usize = 16 * 1024;

/// A non-blocking socket that remembers when it has nothing more to read, which saves the read
/// that would only say so. [`arm`](Socket::arm) it when `poll` finds it readable again.
pub(crate) struct Socket {
    tcp: TcpStream,
    written: u64,
    drained: bool,
    /// What is written next has a continuation that follows at once.
    more: bool,
    ahead: Vec<u8>,
    start: usize,
    end: usize,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Socket { tcp, written: 0, drained: false, more: false, ahead: Vec::new(), start: 0, end: 0 }
    }

    pub(crate) fn arm(&mut self) {
        self.drained = false;
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn read_tcp(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
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

    fn write_tcp(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = sys::send(&self.tcp, bytes, self.more)?;
        self.written += written as u64;
        Ok(written)
    }

    /// Reads through the read-ahead buffer.
    fn read_ahead(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if self.drained {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if self.end == self.ahead.len() {
                // The last read filled it: there is more than it takes.
                let length = (2 * self.end).clamp(FIRST_READ_AHEAD, MAX_READ_AHEAD);
                self.ahead.resize(length, 0);
            }
            (self.start, self.end) = (0, 0);
            let mut ahead = std::mem::take(&mut self.ahead);
            let result = self.read_tcp(&mut ahead);
            self.ahead = ahead;
            self.end = result?;
        }
        let length = buffer.len().min(self.end - self.start);
        buffer[..length].copy_from_slice(&self.ahead[self.start..][..length]);
        self.start += length;
        Ok(length)
    }

    fn shrink(&mut self) {
        if self.start == self.end {
            (self.ahead, self.start, self.end) = (Vec::new(), 0, 0);
        }
    }
}

/// TLS reads through [`Socket`] as a stream.
pub(crate) struct TlsSocket(Socket);

impl Read for TlsSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_ahead(buffer)
    }
}

impl Write for TlsSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_tcp(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsSocket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        TlsSocket(Socket::new(tcp))
    }

    pub(crate) fn socket_mut(&mut self) -> &mut Socket {
        &mut self.0
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.0
    }
}

/// The connection to the cloud.
pub(crate) enum Transport {
    Plain(Socket),
    Tls(Box<TlsStream<TlsSocket>>),
}

impl Transport {
    /// Tells it that `poll` found it readable.
    pub(crate) fn arm(&mut self) {
        match self {
            Transport::Plain(socket) => socket.arm(),
            Transport::Tls(stream) => stream.get_mut().socket_mut().arm(),
        }
    }

    fn socket(&self) -> &Socket {
        match self {
            Transport::Plain(socket) => socket,
            Transport::Tls(stream) => stream.get_ref().socket(),
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
            stream.get_mut().socket_mut().shrink();
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
            Transport::Plain(socket) => socket.read_tcp(buffer),
            Transport::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(socket) => socket.write_tcp(bytes),
            Transport::Tls(stream) => {
                // One call writes one record. The kernel gathers them, and wakes the cloud once.
                stream.get_mut().socket_mut().more = bytes.len() > MAX_RECORD;
                stream.write(bytes)
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
