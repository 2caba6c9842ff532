//! A byte stream to another machine: TCP, or TLS over it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use super::read_ahead::ReadAhead;
use super::tls::{TlsStream, MAX_RECORD};
use crate::sys;

/// A TCP stream that knows whether what it writes next has a continuation that follows at once.
pub(crate) struct Tcp {
    stream: TcpStream,
    more: bool,
}

impl Tcp {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Tcp { stream, more: false }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsFd for Tcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for Tcp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Tcp {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        sys::send(&self.stream, bytes, self.more)
    }
    /// Of a record that had to wait, the rest goes with the next one, which may have been the last.
    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.more) {
            sys::push(&self.stream);
        }
        Ok(())
    }
}

/// What an end makes of its TCP stream: how it waits, what it remembers.
pub(crate) trait Socket: Read + Write {
    fn tcp(&self) -> &Tcp;
    fn tcp_mut(&mut self) -> &mut Tcp;
}

/// Plain or secured.
pub(crate) enum Stream<S> {
    Plain(S),
    Tls(Box<TlsStream<ReadAhead<S>>>),
}

impl<S: Socket> Stream<S> {
    pub(crate) fn socket(&self) -> &S {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_ref().get_ref(),
        }
    }

    pub(crate) fn socket_mut(&mut self) -> &mut S {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_mut().get_mut(),
        }
    }

    /// Ends our direction: TLS says so, then TCP.
    pub(crate) fn shut_down(&mut self) {
        if let Stream::Tls(tls) = self {
            tls.shutdown();
        }
        let _ = self.socket().tcp().stream().shutdown(Shutdown::Write);
    }

    /// Bytes that were written but that the peer's kernel has not acknowledged.
    pub(crate) fn unsent(&self) -> usize {
        sys::unsent(self.socket().tcp().stream())
    }

    /// Whether bytes wait that `poll` knows nothing of: decrypted, or fetched.
    #[cfg(any(feature = "gateway", feature = "access"))]
    pub(crate) fn holds_bytes(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.has_buffered() || tls.get_ref().holds_bytes(),
        }
    }

    /// Gives back buffers that hold nothing.
    pub(crate) fn shrink(&mut self) {
        if let Stream::Tls(tls) = self {
            tls.get_mut().shrink();
        }
    }
}

impl<S: Socket> AsFd for Stream<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().tcp().as_fd()
    }
}

impl<S: Socket> Read for Stream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl<S: Socket> Write for Stream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(tls) => {
                // One call writes one record. The kernel gathers them, and wakes the peer once.
                tls.get_mut().get_mut().tcp_mut().more = bytes.len() > MAX_RECORD;
                tls.write(bytes)
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}
