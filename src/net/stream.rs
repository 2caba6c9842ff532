//! A non-blocking byte stream to another machine: TCP, or TLS over TCP.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use aiot_tunnel_proto::connection::Transport;

use super::read_ahead::ReadAhead;
use super::tls::{TlsStream, MAX_RECORD};
use crate::sys;

/// A TCP stream. It remembers the results of its last calls and so saves system calls.
pub(crate) struct Socket {
    tcp: TcpStream,
    /// There is nothing more to read. Reads return `WouldBlock` without a system call until `poll`
    /// reports the socket readable ([`arm`](Socket::arm)).
    drained: bool,
    /// The last call that returned `WouldBlock` was a write.
    blocked_on_write: bool,
    /// More bytes follow the next write at once.
    more: bool,
    written: u64,
}

impl Socket {
    /// Wraps a TCP stream, which must be non-blocking.
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Socket { tcp, drained: false, blocked_on_write: false, more: false, written: 0 }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(crate) fn arm(&mut self) {
        self.drained = false;
    }

    /// What to wait for after a call that would block: for room (true) or for bytes (false).
    pub(crate) fn waits_for_room(&self) -> bool {
        self.blocked_on_write
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.drained {
            self.blocked_on_write = false;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let result = self.tcp.read(buffer);
        self.drained = match &result {
            Ok(length) => (1..buffer.len()).contains(length),
            Err(e) => e.kind() == io::ErrorKind::WouldBlock,
        };
        self.blocked_on_write = false;
        result
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = sys::send(&self.tcp, bytes, self.more);
        match &result {
            Ok(written) => self.written += *written as u64,
            Err(e) => self.blocked_on_write = e.kind() == io::ErrorKind::WouldBlock,
        }
        result
    }
    /// Makes the kernel send what it held back. A record announced as followed by more may have
    /// been the last one.
    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.more) {
            sys::push(&self.tcp);
        }
        Ok(())
    }
}

/// A plain stream or a TLS stream.
pub(crate) enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<ReadAhead<Socket>>>),
}

impl Stream {
    pub(crate) fn socket(&self) -> &Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_ref().get_ref(),
        }
    }

    fn socket_mut(&mut self) -> &mut Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_mut().get_mut(),
        }
    }
}

impl Transport for Stream {
    fn written(&self) -> u64 {
        self.socket().written
    }

    fn unacked(&self) -> usize {
        sys::unacked(self.socket().tcp())
    }

    fn unsent(&self) -> usize {
        sys::unsent(self.socket().tcp())
    }

    fn round_trip(&self) -> Option<Duration> {
        sys::least_round_trip(self.socket().tcp())
    }

    fn limit_unsent(&mut self, bytes: usize) {
        sys::limit_queue(self.socket().tcp(), bytes.try_into().unwrap_or(libc::c_int::MAX));
    }

    fn peer(&self) -> String {
        let address = self.socket().tcp().peer_addr();
        address.map_or_else(|_| "another connection".to_owned(), |address| address.to_string())
    }

    fn arm(&mut self) {
        self.socket_mut().arm();
    }

    fn has_paused(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.get_ref().has_paused(),
        }
    }

    fn shrink(&mut self) {
        if let Stream::Tls(tls) = self {
            tls.get_mut().shrink();
        }
    }

    /// Ends TLS first, then TCP.
    fn shut_down(&mut self) {
        if let Stream::Tls(tls) = self {
            tls.shutdown();
        }
        let _ = self.socket().tcp().shutdown(Shutdown::Write);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().tcp().as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(tls) => {
                let length = tls.read(buffer)?;
                tls.get_mut().held_data(length);
                Ok(length)
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(tls) => {
                // Each call writes one TLS record. With `more`, the kernel gathers the records, and
                // the peer wakes up once.
                tls.get_mut().get_mut().more = bytes.len() > MAX_RECORD;
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
