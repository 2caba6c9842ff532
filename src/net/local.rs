//! A connected local stream: to a local service of the device, or to a local program at the access
//! side.

use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
#[cfg(feature = "access")]
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aiot_tunnel_proto::session::LocalStream;

use crate::sys;

/// A non-blocking TCP or Unix stream.
pub(crate) enum LocalSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// A Unix stream whose other end belongs to threads of this process. The text says why its end
    /// of file is none in truth: the source of the bytes has failed.
    #[cfg(feature = "access")]
    Fed(UnixStream, Arc<OnceLock<String>>),
}

impl LocalSocket {
    /// Makes the kernel probe the other end after this time without traffic. Does nothing to a Unix
    /// stream: its other end is on this machine.
    pub(crate) fn keep_alive(&self, idle: Option<Duration>) {
        if let (LocalSocket::Tcp(stream), Some(idle)) = (self, idle) {
            sys::keep_alive(stream, idle);
        }
    }
}

impl LocalStream for LocalSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            LocalSocket::Tcp(stream) => stream.read(buffer),
            LocalSocket::Unix(stream) => stream.read(buffer),
            #[cfg(feature = "access")]
            LocalSocket::Fed(stream, failure) => match (stream.read(buffer)?, failure.get()) {
                (0, Some(why)) => Err(io::Error::other(why.clone())),
                (length, _) => Ok(length),
            },
        }
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        sys::send_vectored(self.as_fd(), slices)
    }

    fn shut_down(&mut self) {
        let _ = match self {
            LocalSocket::Tcp(stream) => stream.shutdown(Shutdown::Write),
            LocalSocket::Unix(stream) => stream.shutdown(Shutdown::Write),
            #[cfg(feature = "access")]
            LocalSocket::Fed(stream, _) => stream.shutdown(Shutdown::Write),
        };
    }

    fn reset_on_close(&mut self, resets: bool) {
        match self {
            LocalSocket::Tcp(stream) => sys::reset_on_close(stream, resets),
            // A Unix stream cannot be reset. Its other end sees an end of file.
            LocalSocket::Unix(_) => {}
            #[cfg(feature = "access")]
            LocalSocket::Fed(..) => {}
        }
    }

    fn unacked(&self) -> usize {
        match self {
            LocalSocket::Tcp(stream) => match sys::unacked(stream) {
                // After a reset, the kernel counts bytes for ever that nobody will acknowledge.
                count if count > 0 && sys::is_dead(stream) => 0,
                count => count,
            },
            // Written bytes are already in the other end's receive queue and are not lost by a
            // close.
            LocalSocket::Unix(_) => 0,
            #[cfg(feature = "access")]
            LocalSocket::Fed(..) => 0,
        }
    }
}

impl AsFd for LocalSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            LocalSocket::Tcp(stream) => stream.as_fd(),
            LocalSocket::Unix(stream) => stream.as_fd(),
            #[cfg(feature = "access")]
            LocalSocket::Fed(stream, _) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_stream_that_is_reset_on_close_is_no_orderly_end_for_its_service() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut service, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut local = LocalSocket::Tcp(stream);
        assert_eq!(LocalStream::write(&mut local, &[IoSlice::new(b"some")]).unwrap(), 4);
        local.reset_on_close(true);
        drop(local);
        let error = service.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn nobody_waits_for_the_acknowledgement_of_a_service_that_has_reset_its_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (service, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut local = LocalSocket::Tcp(stream);
        let bytes = [0; 64 * 1024];
        while LocalStream::write(&mut local, &[IoSlice::new(&bytes)]).is_ok() {}
        assert!(local.unacked() > 0, "a service that does not read");
        // With unread bytes, the close is a reset.
        drop(service);
        let LocalSocket::Tcp(stream) = &local else { unreachable!() };
        stream.set_nonblocking(false).unwrap();
        let error = (&mut &*stream).read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(local.unacked(), 0);
    }
}
