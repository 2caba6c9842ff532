//! The device's byte stream to the cloud. Non-blocking.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::stream::{self, Stream, Tcp};
use super::ByteStream;

/// A non-blocking socket that remembers when it has nothing more to read, which saves the read
/// that would only say so. [`arm`](Socket::arm) it when `poll` finds it readable again.
pub(crate) struct Socket {
    tcp: Tcp,
    written: u64,
    drained: bool,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Socket { tcp: Tcp::new(tcp), written: 0, drained: false }
    }

    pub(crate) fn arm(&mut self) {
        self.drained = false;
    }
}

impl stream::Socket for Socket {
    fn tcp(&self) -> &Tcp {
        &self.tcp
    }
    fn tcp_mut(&mut self) -> &mut Tcp {
        &mut self.tcp
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
        let written = self.tcp.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// The connection to the cloud.
pub(crate) type Transport = Stream<Socket>;

impl Transport {
    /// Tells it that `poll` found it readable.
    pub(crate) fn arm(&mut self) {
        self.socket_mut().arm();
    }
}

impl ByteStream for Transport {
    fn written(&self) -> u64 {
        self.socket().written
    }

    fn unsent(&self) -> usize {
        self.unsent()
    }

    fn shrink(&mut self) {
        self.shrink();
    }
}
