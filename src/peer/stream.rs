//! The stream beneath a peer, from its handshake on: it waits, or does not.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use zeroize::Zeroizing;

use crate::cloud::stream::{self, Tcp};
use crate::sys::{poll, PollFd, Waker};

/// Longest request or response head of a handshake.
const MAX_HEAD: usize = 16 * 1024;
/// How long, and for how many bytes, a refused client is heard out.
#[cfg(feature = "gateway")]
const PARTING: std::time::Duration = std::time::Duration::from_secs(1);
#[cfg(feature = "gateway")]
const MAX_PARTING: usize = 256 * 1024;

/// A non-blocking socket that can be made to wait: the handshakes are written as if it blocked,
/// yet end at one deadline however their bytes are split.
pub(crate) struct Socket {
    tcp: Tcp,
    patience: Option<Patience>,
}

struct Patience {
    deadline: Instant,
    stop: Arc<Waker>,
}

impl Socket {
    /// Reads and writes wait until `deadline`, or until `stop` is woken.
    pub(crate) fn patient(tcp: TcpStream, deadline: Instant, stop: Arc<Waker>) -> io::Result<Self> {
        tcp.set_nonblocking(true)?;
        tcp.set_nodelay(true)?;
        Ok(Socket { tcp: Tcp::new(tcp), patience: Some(Patience { deadline, stop }) })
    }

    /// From now on, reads and writes do not wait.
    pub(super) fn end_patience(&mut self) {
        self.patience = None;
    }

    fn retry<T>(
        &mut self,
        writes: bool,
        mut attempt: impl FnMut(&mut Tcp) -> io::Result<T>,
    ) -> io::Result<T> {
        // A peer that always has bytes for us would never be waited for.
        if self.patience.as_ref().is_some_and(|patience| Instant::now() >= patience.deadline) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        loop {
            match (attempt(&mut self.tcp), &self.patience) {
                (Err(e), Some(patience)) if e.kind() == io::ErrorKind::WouldBlock => {
                    patience.wait(self.tcp.as_fd(), writes)?;
                }
                (result, _) => return result,
            }
        }
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

impl Patience {
    fn wait(&self, fd: BorrowedFd<'_>, writes: bool) -> io::Result<()> {
        let mut fds =
            [PollFd::new(fd, !writes, writes), PollFd::new(self.stop.as_fd(), true, false)];
        poll(&mut fds, Some(self.deadline))?;
        if fds[1].ready().read {
            return Err(io::Error::other("stopping"));
        }
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(false, |tcp| tcp.read(buffer))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(true, |tcp| tcp.write(bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// An HTTP head, and the bytes that came after it.
pub(crate) type Head = (Zeroizing<Vec<u8>>, Vec<u8>);

pub(crate) type Stream = stream::Stream<Socket>;

impl Stream {
    /// Reads up to the end of an HTTP head; gives it, which may hold a token, and what came
    /// after it, or nothing for a head that is too long.
    pub(crate) fn read_head(&mut self) -> io::Result<Option<Head>> {
        // Never grows, for that would leave copies behind.
        let mut head = Zeroizing::new(vec![0; MAX_HEAD]);
        let mut length = 0;
        while length < MAX_HEAD {
            let read = match self.read(&mut head[length..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let from = length.saturating_sub(3);
            length += read;
            let end = head[from..length].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                let end = from + end + 4;
                let rest = head[end..length].to_vec();
                head.truncate(end);
                return Ok(Some((head, rest)));
            }
        }
        Ok(None)
    }

    /// Says a last word that the peer shall be able to read: closing a socket with unread bytes
    /// would reset the connection, so some of what still comes is read and dropped.
    #[cfg(feature = "gateway")]
    pub(crate) fn part(&mut self, word: &[u8]) -> io::Result<()> {
        self.write_all(word)?;
        self.shut_down();
        let socket = self.socket_mut();
        if let Some(patience) = &mut socket.patience {
            patience.deadline = patience.deadline.min(Instant::now() + PARTING);
        }
        let mut scratch = [0; 4096];
        for _ in 0..MAX_PARTING / scratch.len() {
            if socket.read(&mut scratch).is_ok_and(|length| length > 0) {
                continue;
            }
            break;
        }
        Ok(())
    }
}
