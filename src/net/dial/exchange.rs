//! The talk with a proxy, before the connection through it is there. Everything is received exactly:
//! what follows the proxy's answer belongs to TLS or to the WebSocket and stays in the socket.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Instant;

use aiot_tunnel_proto::handshake::HeadReader;
use zeroize::Zeroizing;

use crate::net::wait::WaitError;
use crate::net::Wait;
use crate::sys;

/// Why there is no connection through the proxy.
#[derive(Debug)]
pub(crate) enum ProxyError {
    Wait(WaitError),
    Io(io::Error),
    /// The proxy asks for a user name and a password, or refuses them.
    Credentials(String),
    /// The proxy does not allow the connection.
    Forbidden(String),
    /// The proxy cannot reach the server.
    Unreachable(String),
    /// The answer is not that of such a proxy.
    NoProxy(String),
    /// Any other refusal.
    Refused(String),
}

impl From<io::Error> for ProxyError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::InvalidData => ProxyError::NoProxy(e.to_string()),
            _ => ProxyError::Io(e),
        }
    }
}

/// A connection to a proxy, on which one end speaks at a time.
pub(super) struct Exchange<'a> {
    pub(super) tcp: &'a TcpStream,
    pub(super) wait: &'a dyn Wait,
    pub(super) deadline: Instant,
}

impl Exchange<'_> {
    pub(super) fn send(&self, mut bytes: &[u8]) -> Result<(), ProxyError> {
        while !bytes.is_empty() {
            match sys::send(self.tcp, bytes, false) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(e) => self.wait_after(e, true)?,
            }
        }
        Ok(())
    }

    pub(super) fn receive(&self, mut buffer: &mut [u8]) -> Result<(), ProxyError> {
        while !buffer.is_empty() {
            match (&mut &*self.tcp).read(buffer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(length) => buffer = &mut buffer[length..],
                Err(e) => self.wait_after(e, false)?,
            }
        }
        Ok(())
    }

    /// Receives the head of an HTTP answer, which [`HeadReader`] bounds, and nothing behind it.
    pub(super) fn receive_head(&self) -> Result<Zeroizing<Vec<u8>>, ProxyError> {
        let mut reader = HeadReader::for_answer();
        loop {
            match reader.read(&mut OneByOne(self.tcp)) {
                Ok(head) => return Ok(head.head),
                Err(e) => self.wait_after(e, false)?,
            }
        }
    }

    fn wait_after(&self, e: io::Error, write: bool) -> Result<(), ProxyError> {
        match e.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => {
                let fds = [self.tcp.as_fd()];
                self.wait.wait(&fds, write, self.deadline).map_err(ProxyError::Wait)
            }
            _ => Err(e.into()),
        }
    }
}

/// Reads single bytes, so that a head is not read beyond its end.
struct OneByOne<'a>(&'a TcpStream);

impl Read for OneByOne<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(1);
        self.0.read(&mut buffer[..most])
    }
}
