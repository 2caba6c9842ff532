//! One WebSocket of the gateway or of the access side, after its handshake: a stream, what was
//! received and what waits to be sent, keep-alive, and the orderly close.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use native_tls::TlsStream;

use crate::cloud::frame::Frame;
use crate::cloud::websocket::{Incoming, Receiver, Role, Sender};
use crate::sys::{poll, PollFd, Waker};

/// Bytes that may wait for a peer before what feeds it is read no more.
pub(crate) const FULL: usize = 256 * 1024;
/// A peer that lets this much wait floods us with requests whose answers it does not read.
const FLOODED: usize = 4 * FULL;
/// Longest request or response head of a handshake.
const MAX_HEAD: usize = 16 * 1024;
const PING_AFTER: Duration = Duration::from_secs(30);
const DEAD_AFTER: Duration = Duration::from_secs(90);
/// How long a closing peer may take to answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A non-blocking socket that can be made to wait: the handshakes are written as if it blocked,
/// yet end at one deadline however their bytes are split.
pub(crate) struct Socket {
    tcp: TcpStream,
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
        Ok(Socket { tcp, patience: Some(Patience { deadline, stop }) })
    }

    fn retry<T>(
        &mut self,
        writes: bool,
        mut attempt: impl FnMut(&mut TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
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
        Ok(())
    }
}

/// Plain or secured.
pub(crate) enum Stream {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    fn socket(&self) -> &Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_ref(),
        }
    }

    /// From now on, reads and writes do not wait.
    pub(crate) fn end_patience(&mut self) {
        let socket = match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_mut(),
        };
        socket.patience = None;
    }

    /// Bytes that were decrypted but not read: `poll` does not know of them.
    fn holds_bytes(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.buffered_read_size().is_ok_and(|size| size > 0),
        }
    }

    /// Reads up to the end of an HTTP head; returns it and what came after it.
    pub(crate) fn read_head(&mut self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut head = Vec::new();
        let mut chunk = [0; 1024];
        loop {
            let length = match self.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            let from = head.len().saturating_sub(3);
            head.extend_from_slice(&chunk[..length]);
            let end = head[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                let rest = head.split_off(from + end + 4);
                return Ok((head, rest));
            }
            if head.len() > MAX_HEAD {
                return Err(io::Error::other("the HTTP head is longer than 16 KiB"));
            }
        }
    }

    /// Ends the connection, telling the peer.
    pub(crate) fn shut_down(&mut self) {
        if let Stream::Tls(tls) = self {
            let _ = tls.shutdown();
        }
        let _ = self.socket().tcp.shutdown(Shutdown::Write);
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().tcp.as_fd()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// We sent a close frame and wait for the peer's until then.
    Closing(Instant),
    /// Both have: what waits is still written, until then.
    Closed(Instant),
    Lost,
}

/// An open WebSocket.
pub(crate) struct Peer {
    stream: Stream,
    receiver: Receiver,
    sender: Sender,
    life: Life,
    heard: Instant,
    pinged: Instant,
    /// Whether messages may wait in `receiver` that the last pump left there.
    held: bool,
    /// For the log: why it ended.
    reason: String,
    close_code: Option<u16>,
}

impl Peer {
    /// `rest`: bytes that came with the handshake.
    pub(crate) fn new(mut stream: Stream, role: Role, rest: &[u8]) -> Self {
        stream.end_patience();
        let mut receiver = Receiver::new(role);
        if !rest.is_empty() {
            receiver.feed(rest);
        }
        let now = Instant::now();
        Peer {
            stream,
            receiver,
            sender: Sender::new(role),
            life: Life::Open,
            heard: now,
            pinged: now,
            held: true,
            reason: String::new(),
            close_code: None,
        }
    }

    /// What `poll` is to wait for.
    pub(crate) fn poll_fd(&self, read: bool) -> PollFd<'_> {
        let read = read && matches!(self.life, Life::Open | Life::Closing(_));
        PollFd::new(self.stream.as_fd(), read, !self.sender.is_empty())
    }

    /// Whether there is something to pump without waiting for the socket.
    pub(crate) fn is_held(&self) -> bool {
        let reads = matches!(self.life, Life::Open | Life::Closing(_));
        reads && (self.held || self.stream.holds_bytes())
    }

    #[cfg(feature = "gateway")]
    pub(crate) fn is_full(&self) -> bool {
        self.sender.len() > FULL
    }

    /// Bytes that wait for it.
    #[cfg(feature = "access")]
    pub(crate) fn waiting(&self) -> usize {
        self.sender.len()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.life == Life::Open
    }

    /// Why it is open no more.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// The code of the peer's close frame.
    #[cfg(feature = "access")]
    pub(crate) fn close_code(&self) -> Option<u16> {
        self.close_code
    }

    pub(crate) fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// Reads what the socket has, up to a buffer's length; nothing while messages wait already.
    pub(crate) fn receive(&mut self) {
        if self.held {
            return;
        }
        match self.receiver.fill(&mut self.stream) {
            Ok(0) => self.lose("end of stream"),
            Ok(_) => {
                self.heard = Instant::now();
                self.held = true;
            }
            Err(e) if is_temporary(&e) => {}
            Err(e) => self.lose(&e.to_string()),
        }
    }

    /// Hands the received frames to `on_frame`, with the message each came in, until none is
    /// left or it returns false.
    pub(crate) fn pump(&mut self, mut on_frame: impl FnMut(Frame<'_>, &[u8], &mut Sender) -> bool) {
        self.held = false;
        while matches!(self.life, Life::Open | Life::Closing(_)) {
            let mut go_on = true;
            match self.receiver.peek() {
                Ok(None) => break,
                Ok(Some(Incoming::Binary { message, .. })) if self.life == Life::Open => {
                    match Frame::parse(message) {
                        Ok(frame) => go_on = on_frame(frame, message, &mut self.sender),
                        Err(e) => log::warn!(target: TARGET, "malformed frame dropped: {e}"),
                    }
                }
                Ok(Some(Incoming::Ping(payload))) => self.sender.pong(payload),
                Ok(Some(Incoming::Close(code))) => {
                    self.close_code = code;
                    if self.life == Life::Open {
                        // 1000 for a code that must not stand in a frame.
                        let code = code.map(|c| if (1000..5000).contains(&c) { c } else { 1000 });
                        self.sender.close(code);
                        self.reason = format!("closed by the peer ({code:?})");
                    }
                    self.life = Life::Closed(Instant::now() + CLOSE_TIMEOUT);
                }
                Ok(Some(Incoming::Text)) => log::warn!(target: TARGET, "text message dropped"),
                Ok(Some(Incoming::TooLong { length, .. })) => {
                    log::warn!(target: TARGET, "message of {length} bytes dropped");
                }
                Ok(Some(_)) => {}
                Err(violation) => {
                    self.sender.close(Some(violation.close_code()));
                    self.reason = violation.to_string();
                    self.life = Life::Closed(Instant::now() + CLOSE_TIMEOUT);
                    break;
                }
            }
            self.receiver.consume();
            if !go_on {
                self.held = true;
                break;
            }
        }
        if !self.held {
            self.receiver.shrink();
        }
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) {
        if self.life == Life::Lost || self.sender.is_empty() {
            return;
        }
        match self.sender.flush(&mut self.stream) {
            Ok(true) => self.sender.shrink(),
            Ok(false) if self.sender.len() > FLOODED => self.lose("it does not read its answers"),
            Ok(false) => {}
            Err(e) => self.lose(&e.to_string()),
        }
    }

    /// Begins the closing handshake.
    pub(crate) fn close(&mut self, code: u16, reason: &str) {
        if self.life == Life::Open {
            self.sender.close(Some(code));
            self.life = Life::Closing(Instant::now() + CLOSE_TIMEOUT);
            self.reason = reason.to_owned();
        }
    }

    /// Pings and deadlines. `reads`: whether we read it at all; only then its silence counts.
    pub(crate) fn tick(&mut self, now: Instant, reads: bool) {
        match self.life {
            Life::Open => {
                if !reads {
                    self.heard = now;
                }
                if now >= self.heard + DEAD_AFTER {
                    self.lose("silent for 90 s");
                } else if now >= self.next_ping() {
                    self.sender.ping();
                    self.pinged = now;
                }
            }
            Life::Closing(deadline) | Life::Closed(deadline) if now >= deadline => {
                self.life = Life::Lost;
            }
            _ => {}
        }
    }

    fn next_ping(&self) -> Instant {
        self.heard.max(self.pinged) + PING_AFTER
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(crate) fn deadline(&self) -> Instant {
        match self.life {
            Life::Open => self.next_ping().min(self.heard + DEAD_AFTER),
            Life::Closing(deadline) | Life::Closed(deadline) => deadline,
            Life::Lost => Instant::now(),
        }
    }

    /// Whether nothing is left to do but to drop it.
    pub(crate) fn is_gone(&self) -> bool {
        match self.life {
            Life::Lost => true,
            Life::Closed(_) => self.sender.is_empty(),
            _ => false,
        }
    }

    fn lose(&mut self, reason: &str) {
        if self.life == Life::Open {
            self.reason = reason.to_owned();
        }
        self.life = Life::Lost;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stream.shut_down();
    }
}

/// The target of this module's lines: the gateway's, whichever end runs.
const TARGET: &str = "aiot_tunnel::gateway";

/// Whether the call may simply be made again later.
pub(crate) fn is_temporary(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
