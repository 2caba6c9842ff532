//! One WebSocket of the gateway or of the access side, after its handshake: a stream, what was
//! received and what waits to be sent, keep-alive, and the orderly close.

mod stream;
mod throttle;

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::cloud::frame::{Frame, FrameType, Malformed};
use crate::cloud::websocket::{Incoming, Receiver, Role, Sender};
use crate::sys::PollFd;

pub(crate) use stream::{Socket, Stream};
pub(crate) use throttle::Throttle;

/// The target of this module's lines: the gateway's, whichever end runs.
const TARGET: &str = "aiot_tunnel::gateway";
/// Bytes that may wait for a peer before what feeds it is read no more.
pub(crate) const FULL: usize = 256 * 1024;
/// A peer that lets this much wait floods us with requests whose answers it does not read.
const FLOODED: usize = 4 * FULL;
const PING_AFTER: Duration = Duration::from_secs(30);
const DEAD_AFTER: Duration = Duration::from_secs(90);
/// How often buffers that hold nothing are given back.
const SHRINK_AFTER: Duration = Duration::from_secs(30);
/// How long a closing peer may take to answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a close that is to lose nothing waits while none of its bytes gets through.
#[cfg(feature = "access")]
const LINGER: Duration = Duration::from_secs(10);
/// A full peer must take this much within the stall time: one that lives on single bytes holds
/// its siblings up as one that takes nothing does.
#[cfg(feature = "gateway")]
const LEAST_PROGRESS: u64 = 4096;

/// What an open WebSocket needs of the stream beneath it.
pub(crate) trait Wire: Read + Write {
    /// From now on, reads and writes do not wait.
    fn end_patience(&mut self);
    /// Whether there are bytes to read that `poll` does not know of.
    fn holds_bytes(&self) -> bool;
    /// Bytes that were written but not taken by the other end's kernel.
    fn unsent(&self) -> usize;
    /// Ends the connection, telling the peer.
    fn shut_down(&mut self);
    /// Gives back buffers that hold nothing.
    fn shrink(&mut self) {}
}

impl Wire for Stream {
    fn end_patience(&mut self) {
        self.socket_mut().end_patience();
    }
    fn holds_bytes(&self) -> bool {
        self.holds_bytes()
    }
    fn unsent(&self) -> usize {
        self.unsent()
    }
    fn shut_down(&mut self) {
        self.shut_down();
    }
    fn shrink(&mut self) {
        self.shrink();
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
pub(crate) struct Peer<W: Wire = Stream> {
    wire: W,
    role: Role,
    receiver: Receiver,
    /// What goes before every message: the answer to the opening handshake.
    greeting: Vec<u8>,
    sender: Sender,
    life: Life,
    heard: Instant,
    pinged: Instant,
    shrunk: Instant,
    /// Whether messages may wait in `receiver` that the last pump left there.
    held: bool,
    /// The last read found nothing.
    dry: bool,
    /// Nothing more comes, and why: it is lost when what came before is dealt with.
    ended: Option<String>,
    /// Writing has failed. What the peer sent before is read to its end all the same.
    mute: bool,
    /// Bytes written so far.
    written: u64,
    #[cfg(feature = "gateway")]
    stall: Option<Stall>,
    #[cfg(feature = "access")]
    linger: Option<Linger>,
    /// For the log: why it ended.
    reason: String,
    close_code: Option<u16>,
    throttle: Throttle,
    /// Dropped with the peer.
    #[cfg(feature = "gateway")]
    seat: Option<Box<dyn Send>>,
}

/// What a peer's message is to its owner.
pub(crate) enum Received<'a> {
    Frame(Frame<'a>),
    /// The header of a data frame that was too long to keep: its session has lost bytes.
    LostData(Frame<'a>),
}

/// A message that is dropped may all the same have been a session's data.
fn lost_data(head: &[u8]) -> Option<Received<'_>> {
    let frame = Frame::parse_header(head).ok()?;
    (frame.frame_type == FrameType::DataTransport).then_some(Received::LostData(frame))
}

/// Since when a peer is full, and what it had taken then.
#[cfg(feature = "gateway")]
struct Stall {
    since: Instant,
    taken: u64,
}

/// A close that is to lose nothing: when it last got on, and what was left then.
#[cfg(feature = "access")]
struct Linger {
    progress: Instant,
    left: usize,
}

impl<W: Wire + AsFd> Peer<W> {
    /// What `poll` is to wait for.
    pub(crate) fn poll_fd(&self, read: bool) -> PollFd<'_> {
        let (reads, writes) = self.interest(read);
        PollFd::new(self.wire.as_fd(), reads, writes)
    }
}

impl<W: Wire> Peer<W> {
    /// `rest`: bytes that came with the handshake.
    pub(crate) fn new(mut wire: W, role: Role, rest: &[u8], now: Instant) -> Self {
        wire.end_patience();
        let mut receiver = Receiver::new(role);
        if !rest.is_empty() {
            receiver.feed(rest);
        }
        Peer {
            wire,
            role,
            receiver,
            greeting: Vec::new(),
            sender: Sender::new(role),
            life: Life::Open,
            heard: now,
            pinged: now,
            shrunk: now,
            held: true,
            dry: false,
            ended: None,
            mute: false,
            written: 0,
            #[cfg(feature = "gateway")]
            stall: None,
            #[cfg(feature = "access")]
            linger: None,
            reason: String::new(),
            close_code: None,
            throttle: Throttle::default(),
            #[cfg(feature = "gateway")]
            seat: None,
        }
    }

    /// Sends `greeting` before anything else. Whatever the client does once it has read it finds
    /// whoever owns the peer informed.
    #[cfg(feature = "gateway")]
    pub(crate) fn greet(mut self, greeting: Vec<u8>, seat: Box<dyn Send>) -> Self {
        self.greeting = greeting;
        self.seat = Some(seat);
        self
    }

    #[cfg(all(feature = "gateway", any(test, fuzzing)))]
    pub(crate) fn wire(&self) -> &W {
        &self.wire
    }

    /// Whether what it sends is of interest still.
    #[cfg(all(feature = "gateway", any(test, fuzzing)))]
    pub(crate) fn wants_read(&self) -> bool {
        self.reads()
    }

    /// Whether to wait for bytes to read, and for room to write.
    fn interest(&self, read: bool) -> (bool, bool) {
        // What waits for a lost one stays: waiting for room would return at once, for ever.
        let writes = self.life != Life::Lost && !self.mute && !self.is_sent();
        (read && self.reads(), writes)
    }

    fn reads(&self) -> bool {
        matches!(self.life, Life::Open | Life::Closing(_))
    }

    /// Whether nothing waits for the socket.
    fn is_sent(&self) -> bool {
        self.greeting.is_empty() && self.sender.is_empty()
    }

    /// Whether there is something to pump without waiting for the socket.
    fn is_held(&self) -> bool {
        self.reads() && (self.held || !self.dry && self.wire.holds_bytes())
    }

    #[cfg(feature = "gateway")]
    pub(crate) fn is_full(&self) -> bool {
        self.sender.len() > FULL
    }

    /// Bytes that wait for it.
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

    /// Reads what there is, up to a buffer's length; nothing while messages wait already. `ready`:
    /// what `poll` has found; `reads`: whether it is to be read at all.
    pub(crate) fn receive(&mut self, now: Instant, ready: bool, reads: bool) {
        let has_some = ready || reads && self.is_held();
        if !has_some || self.held || !self.reads() {
            return;
        }
        loop {
            match self.receiver.fill(&mut self.wire) {
                Ok(0) => self.ended = Some("end of stream".into()),
                Ok(_) => {
                    self.heard = now;
                    self.held = true;
                    self.dry = false;
                }
                Err(e) if is_temporary(&e) => {
                    // Whatever is fetched is of no use yet.
                    self.dry = true;
                    break;
                }
                Err(e) => self.ended = Some(e.to_string()),
            }
            // TLS gives one record at a time.
            if self.ended.is_some() || self.receiver.is_full() || !self.wire.holds_bytes() {
                break;
            }
        }
        self.end();
    }

    /// Nothing is left of what came before the end.
    fn end(&mut self) {
        if self.held {
            return;
        }
        if let Some(reason) = self.ended.take().filter(|_| self.reads()) {
            self.lose(&reason);
        }
    }

    /// Hands what was received to `on_received` until nothing is left or it returns false.
    pub(crate) fn pump(
        &mut self,
        now: Instant,
        mut on_received: impl FnMut(Received<'_>, &mut Sender) -> bool,
    ) {
        self.held = false;
        while self.reads() {
            let mut go_on = true;
            match self.receiver.peek() {
                Ok(None) => break,
                Ok(Some(Incoming::Binary { message, .. })) if self.life == Life::Open => {
                    match Frame::parse(message) {
                        Ok(frame) => go_on = on_received(Received::Frame(frame), &mut self.sender),
                        Err(e) => {
                            let what = format_args!("malformed frame dropped: {e}");
                            self.throttle.complain(now, what);
                            let is_long = matches!(e, Malformed::Payload(_));
                            if let Some(lost) = lost_data(message).filter(|_| is_long) {
                                go_on = on_received(lost, &mut self.sender);
                            }
                        }
                    }
                }
                Ok(Some(Incoming::Ping(payload))) => self.sender.pong(payload),
                Ok(Some(Incoming::Close(code))) => {
                    self.close_code = code;
                    if self.life == Life::Open {
                        let code = code.map(answer_to);
                        self.sender.close(code);
                        self.reason = format!("closed by the peer ({code:?})");
                    }
                    self.life = Life::Closed(now + CLOSE_TIMEOUT);
                }
                Ok(Some(Incoming::Text)) => {
                    self.throttle.complain(now, format_args!("text message dropped"));
                }
                Ok(Some(Incoming::TooLong { head, length })) => {
                    let what = format_args!("message of {length} bytes dropped");
                    self.throttle.complain(now, what);
                    if let Some(lost) = lost_data(head).filter(|_| self.life == Life::Open) {
                        go_on = on_received(lost, &mut self.sender);
                    }
                }
                Ok(Some(_)) => {}
                Err(violation) => {
                    self.sender.close(Some(violation.close_code()));
                    self.reason = violation.to_string();
                    self.life = Life::Closed(now + CLOSE_TIMEOUT);
                    break;
                }
            }
            self.receiver.consume();
            if !go_on {
                self.held = true;
                break;
            }
        }
        self.end();
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self, now: Instant) {
        if self.life != Life::Lost && !self.is_sent() {
            let before = self.greeting.len() + self.sender.len();
            let result = if self.mute { Ok(()) } else { self.write() };
            let written = before - self.greeting.len() - self.sender.len();
            self.written += written as u64;
            // TLS may have waited for room to go on reading.
            self.dry &= written == 0;
            if let Err(e) = result {
                self.fall_mute(&e.to_string());
            }
            if self.mute {
                self.greeting = Vec::new();
                self.sender = Sender::new(self.role);
            }
            if self.sender.len() > FLOODED {
                self.lose("it does not read its answers");
            }
        }
        self.watch(now);
    }

    fn write(&mut self) -> io::Result<()> {
        while !self.greeting.is_empty() {
            match self.wire.write(&self.greeting) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => drop(self.greeting.drain(..length)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        self.sender.flush(&mut self.wire).map(drop)
    }

    /// What it sent before its end may still wait for us: only reading tells that it is over.
    fn fall_mute(&mut self, reason: &str) {
        if !self.reads() {
            return self.lose(reason);
        }
        log::debug!(target: TARGET, "a connection takes nothing more: {reason}");
        self.mute = true;
    }

    #[cfg(not(feature = "gateway"))]
    fn watch(&mut self, _: Instant) {}

    /// Keeps the time for which it has been full.
    #[cfg(feature = "gateway")]
    fn watch(&mut self, now: Instant) {
        if !self.is_full() {
            self.stall = None;
        } else if self.stall.is_none() {
            self.stall = Some(Stall { since: now, taken: self.taken() });
        }
    }

    /// Bytes that the other end's kernel has acknowledged. What ours takes is no measure: it
    /// takes megabytes at once and then, of a slow connection, nothing for long.
    #[cfg(feature = "gateway")]
    fn taken(&self) -> u64 {
        self.written.saturating_sub(self.wire.unsent() as u64)
    }

    /// Whether it has been full for so long and has taken next to nothing.
    #[cfg(feature = "gateway")]
    pub(crate) fn is_stalled(&mut self, now: Instant, limit: Duration) -> bool {
        let taken = match &self.stall {
            Some(stall) if self.is_open() && now >= stall.since + limit => self.taken(),
            _ => return false,
        };
        let stalled = self.stall.as_ref().is_some_and(|stall| taken < stall.taken + LEAST_PROGRESS);
        if !stalled {
            self.stall = Some(Stall { since: now, taken });
        }
        stalled
    }

    /// When [`is_stalled`](Self::is_stalled) is to be asked.
    #[cfg(feature = "gateway")]
    pub(crate) fn stalls_at(&self, limit: Duration) -> Option<Instant> {
        self.stall.as_ref().filter(|_| self.is_open()).map(|stall| stall.since + limit)
    }

    /// Begins the closing handshake.
    pub(crate) fn close(&mut self, code: u16, reason: &str, now: Instant) {
        if self.life == Life::Open {
            self.sender.close(Some(code));
            self.life = Life::Closing(now + CLOSE_TIMEOUT);
            self.reason = reason.to_owned();
        }
    }

    /// As [`close`](Self::close), but as long as what we sent gets through, however slowly, the
    /// answer is waited for.
    #[cfg(feature = "access")]
    pub(crate) fn close_gently(&mut self, code: u16, reason: &str, now: Instant) {
        self.linger = Some(Linger { progress: now, left: usize::MAX });
        self.close(code, reason, now);
    }

    /// Pings and deadlines. `reads`: whether we read it at all; only then its silence counts.
    pub(crate) fn tick(&mut self, now: Instant, reads: bool) {
        self.throttle.tick(now);
        // A peer that pings us is never pinged, so this has a time of its own.
        if now >= self.shrunk + SHRINK_AFTER {
            self.wire.shrink();
            self.receiver.shrink();
            self.sender.shrink();
            self.shrunk = now;
        }
        let life = self.life;
        match life {
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
            Life::Closing(deadline) if now >= deadline && self.lingers(now) => {
                self.life = Life::Closing(now + CLOSE_TIMEOUT);
            }
            Life::Closing(deadline) | Life::Closed(deadline) if now >= deadline => {
                self.life = Life::Lost;
            }
            _ => {}
        }
    }

    #[cfg(not(feature = "access"))]
    fn lingers(&mut self, _: Instant) -> bool {
        false
    }

    #[cfg(feature = "access")]
    fn lingers(&mut self, now: Instant) -> bool {
        let left = self.sender.len() + self.wire.unsent();
        let Some(linger) = &mut self.linger else { return false };
        if left < linger.left {
            *linger = Linger { progress: now, left };
        }
        left > 0 && !self.mute && now < linger.progress + LINGER
    }

    fn next_ping(&self) -> Instant {
        self.heard.max(self.pinged) + PING_AFTER
    }

    /// When it is to be seen to, whatever its socket does. `reads`: whether it is to be read.
    pub(crate) fn deadline(&self, now: Instant, reads: bool) -> Instant {
        if reads && self.is_held() {
            return now;
        }
        match self.life {
            Life::Open => {
                let due = self.next_ping().min(self.heard + DEAD_AFTER);
                self.throttle.deadline().map_or(due, |at| at.min(due))
            }
            Life::Closing(deadline) | Life::Closed(deadline) => deadline,
            Life::Lost => now,
        }
    }

    /// Whether nothing is left to do but to drop it.
    pub(crate) fn is_gone(&self) -> bool {
        match self.life {
            Life::Lost => true,
            Life::Closed(_) => self.is_sent(),
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

impl<W: Wire> Drop for Peer<W> {
    fn drop(&mut self) {
        self.wire.shut_down();
    }
}

/// The code that answers a close frame: its own, unless that must not stand in a frame.
fn answer_to(code: u16) -> u16 {
    match code {
        1004..=1006 | 1015 => 1000,
        1000..5000 => code,
        _ => 1000,
    }
}

/// Whether the call may simply be made again later.
pub(crate) fn is_temporary(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A connection of memory: what each read brings, fetched together as TLS does.
    struct Script {
        reads: VecDeque<io::Result<Vec<u8>>>,
        /// Whether it takes what is written.
        takes: bool,
    }

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let bytes = self.reads.pop_front().unwrap_or(Err(io::ErrorKind::WouldBlock.into()))?;
            (&bytes[..]).read(buffer)
        }
    }

    impl Write for Script {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.takes.then_some(bytes.len()).ok_or(io::ErrorKind::WouldBlock.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Wire for Script {
        fn end_patience(&mut self) {}
        fn holds_bytes(&self) -> bool {
            !self.reads.is_empty()
        }
        fn unsent(&self) -> usize {
            0
        }
        fn shut_down(&mut self) {}
    }

    /// A peer that has said nothing yet.
    fn peer<const N: usize>(
        reads: [io::Result<Vec<u8>>; N],
        takes: bool,
        now: Instant,
    ) -> Peer<Script> {
        let wire = Script { reads: reads.into(), takes };
        let mut peer = Peer::new(wire, Role::Client, b"", now);
        peer.pump(now, |_, _| true);
        peer
    }

    #[test]
    fn what_came_with_the_end_counts() {
        let now = Instant::now();
        let mut sender = Sender::new(Role::Server);
        let mut record = |code: Option<u16>| {
            match code {
                Some(code) => sender.close(Some(code)),
                None => sender.binary(b"\0\x10{\"frame_type\":4}", b"x"),
            }
            let mut bytes = Vec::new();
            sender.flush(&mut bytes).unwrap();
            bytes
        };
        let (data, close) = (record(None), record(Some(4001)));
        for (end, reason) in
            [(Ok(Vec::new()), "end of stream"), (Err(io::ErrorKind::ConnectionReset), "reset")]
        {
            let end = || end.clone().map_err(io::Error::from);
            let mut peer = peer([Ok(data.clone()), Ok(data.clone()), end()], true, now);
            peer.receive(now, true, true);
            assert!(peer.is_open() && peer.is_held());
            let mut count = 0;
            // Its owner may take one at a time.
            while peer.is_held() {
                peer.pump(now, |_, _| {
                    count += 1;
                    false
                });
            }
            assert_eq!(count, 2);
            assert!(peer.is_gone() && peer.reason().contains(reason), "{}", peer.reason());

            // A close frame is the end that counts, and is answered.
            let mut peer = self::peer([Ok(data.clone()), Ok(close.clone()), end()], true, now);
            peer.receive(now, true, true);
            peer.pump(now, |_, _| true);
            assert_eq!(peer.close_code, Some(4001));
            assert!(!peer.is_sent() && !peer.is_gone() && !peer.is_held());
        }
    }

    #[test]
    fn a_lost_peer_is_waited_for_in_no_way_though_bytes_wait_for_it() {
        let now = Instant::now();
        let mut peer = peer([Err(io::ErrorKind::ConnectionReset.into())], false, now);
        peer.sender().ping();
        peer.flush(now);
        assert_eq!(peer.interest(true), (true, true));
        peer.receive(now, true, true);
        assert!(peer.is_gone() && peer.waiting() > 0);
        assert_eq!(peer.interest(true), (false, false));
        assert!(!peer.is_held() && peer.deadline(now, true) == now);
    }

    #[test]
    fn a_peer_that_is_heard_all_the_time_has_its_buffers_given_back_all_the_same() {
        let start = Instant::now();
        let pong = vec![0x8a, 0];
        let mut peer = peer([Ok(pong)], true, start);
        let now = start + SHRINK_AFTER;
        peer.receive(now, true, true);
        peer.pump(now, |_, _| true);
        assert!(peer.heard == now && peer.receiver.capacity() > 0);
        peer.tick(now, true);
        assert_eq!(peer.receiver.capacity(), 0);
        assert!(peer.is_sent(), "it is pinged");
    }

    #[test]
    fn a_close_code_that_must_not_stand_in_a_frame_is_answered_with_1000() {
        for (code, answer) in [
            (0, 1000),
            (401, 1000),
            (999, 1000),
            (1000, 1000),
            (1001, 1001),
            (1004, 1000),
            (1005, 1000),
            (1006, 1000),
            (1007, 1007),
            (1014, 1014),
            (1015, 1000),
            (4001, 4001),
            (4999, 4999),
            (5000, 1000),
            (65_535, 1000),
        ] {
            assert_eq!(answer_to(code), answer, "{code}");
        }
    }
}
