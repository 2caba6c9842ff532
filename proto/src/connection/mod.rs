//! One open WebSocket, in either role: received messages, the send buffer, keep-alive and the
//! closing handshake. Device side, access side and gateway all use this type.
//!
//! It reads and writes through a [`Transport`], which must never block. Its caller passes the time.
//! It parses frames only to find those that must be dropped; sessions are the caller's concern.

mod end;
mod pace;
mod received;

use std::io::{self, Read, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::progress::Progress;
use crate::timers::{Timer, Timers};
use crate::websocket::close::answer_to;
use crate::websocket::{Flushed, Incoming, Kind, Receiver, Role, Sender};
use pace::Pace;
use received::received;

pub use end::End;
pub use received::{Dropped, Loss, Received};

/// How long a peer may take to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a gentle close waits without progress: none of its bytes gets through.
const LINGER: Duration = Duration::from_secs(10);
/// How long to wait before writing again to a transport that reports room but takes nothing.
const STUCK: Duration = Duration::from_millis(100);

/// The byte stream below a WebSocket. No function blocks.
pub trait Transport: Read + Write {
    /// The number of bytes written so far.
    fn written(&self) -> u64;
    /// The number of written bytes that the peer's kernel has not acknowledged.
    fn unacked(&self) -> usize;
    /// The number of written bytes that the kernel has not sent yet.
    fn unsent(&self) -> usize {
        0
    }
    /// The shortest round trip to the peer's kernel. `None`: unknown.
    fn round_trip(&self) -> Option<Duration> {
        None
    }
    /// Limits the bytes that wait unsent in the kernel before the transport reports no room.
    fn limit_unsent(&mut self, _bytes: usize) {}
    /// The address of the peer, for messages to people.
    fn peer(&self) -> String {
        "another connection".to_owned()
    }
    /// Tells the transport that `poll` reported it readable.
    fn arm(&mut self) {}
    /// Asked after a read that returned `WouldBlock`: whether the transport has paused although it
    /// may have more to read. `poll` does not report that, so the next turn reads again.
    fn has_paused(&self) -> bool {
        false
    }
    /// Whether the peer is in this process.
    fn is_near(&self) -> bool {
        false
    }
    /// Takes all waiting bytes at once, by exchanging the buffer that holds them for an empty one. Returns
    /// false if it cannot: only a transport in memory can.
    fn take_buffer(&mut self, _buffer: &mut Vec<u8>, _waiting: Range<usize>) -> bool {
        false
    }
    /// Gives everything that can be read, in the same way: where the bytes are in the buffer.
    fn give_buffer(&mut self, _buffer: &mut Vec<u8>) -> Option<Range<usize>> {
        None
    }
    /// Frees buffers that are empty.
    fn shrink(&mut self) {}
    /// Ends the stream in order, as far as that is possible without blocking.
    fn shut_down(&mut self) {}
}

/// When to ping the peer of an open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ping {
    /// At a fixed interval. The device side must do this.
    Every(Duration),
    /// After the peer has been silent for this long.
    AfterSilence(Duration),
}

/// Times and limits of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upkeep {
    /// When to ping the peer.
    pub ping: Ping,
    /// How long the peer may be silent before the connection counts as lost.
    pub silence_limit: Duration,
    /// How often empty buffers are freed.
    pub shrink_interval: Duration,
    /// The high-water mark of the send buffer, in bytes. At this level, the sources of the send
    /// buffer are no longer read.
    pub high_water: usize,
    /// Most bytes in the send buffer. Beyond it, the connection is given up: the peer asks for
    /// answers and does not read them.
    pub flood_limit: usize,
}

/// What [`Connection::tick`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticked {
    /// A ping was queued.
    pub pinged: bool,
    /// Empty buffers were freed. The owner can free its own, too.
    pub shrunk: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// This end has sent a close frame and waits for the peer's close frame.
    Closing,
    /// Both ends have sent a close frame. The rest of the send buffer is still written.
    Closed,
    Lost,
}

#[derive(Debug, Clone, Copy)]
enum ConnectionTimer {
    Ping,
    Silence,
    Shrink,
    /// Until when not to write to a transport that reports room: it takes nothing, or enough is in
    /// flight.
    Stuck,
    /// The deadline of the closing handshake.
    Close,
}

impl Timer for ConnectionTimer {
    const COUNT: usize = 5;
    fn index(self) -> usize {
        self as usize
    }
}

/// An open WebSocket.
pub struct Connection<T: Transport> {
    transport: T,
    receiver: Receiver,
    sender: Sender,
    role: Role,
    upkeep: Upkeep,
    state: State,
    timers: Timers<{ ConnectionTimer::COUNT }>,
    /// There may be more to read than `poll` reports.
    readable: bool,
    /// The receive buffer may hold whole messages.
    undealt: bool,
    /// `poll` reported room in the transport.
    writable: bool,
    /// The last flush could not write everything.
    backlog: bool,
    /// A write has failed. Bytes that the peer sent before are still read.
    broken: bool,
    /// No more bytes will come.
    input_ended: bool,
    /// Why the connection ended. Set early: it may still hold messages to process.
    end: Option<End>,
    /// How many bytes the peer's kernel had acknowledged at the last ping, and how many not.
    acknowledged: u64,
    unacked: usize,
    /// The progress of the peer since the send buffer is over its high-water mark.
    full: Option<Progress>,
    /// The progress of a gentle close, which waits until its bytes get through.
    gentle: Option<Progress>,
    /// How much may be queued towards the peer.
    pace: Pace,
    /// The limit of unsent bytes in the kernel, as it is set.
    unsent_limit: usize,
    /// The connection ends. It takes its last bytes without a limit.
    is_ending: bool,
    /// The length of a write that would have blocked. TLS must be offered at least as many bytes
    /// again.
    blocked_write: usize,
}

/// The limit of unsent bytes in the kernel on a fast link.
pub const UNSENT_LIMIT: usize = 128 * 1024;

impl<T: Transport> Connection<T> {
    /// Makes a connection after the opening handshake. `rest` holds the bytes received behind it.
    pub fn new(transport: T, role: Role, rest: &[u8], upkeep: Upkeep, now: Instant) -> Self {
        let mut receiver = Receiver::new(role);
        if !rest.is_empty() {
            receiver.feed(rest);
        }
        let mut timers = Timers::default();
        let (Ping::Every(interval) | Ping::AfterSilence(interval)) = upkeep.ping;
        timers.set(ConnectionTimer::Ping, now + interval);
        timers.set(ConnectionTimer::Silence, now + upkeep.silence_limit);
        timers.set(ConnectionTimer::Shrink, now + upkeep.shrink_interval);
        Connection {
            transport,
            receiver,
            sender: Sender::new(role),
            role,
            upkeep,
            state: State::Open,
            timers,
            readable: true,
            undealt: true,
            writable: false,
            backlog: false,
            broken: false,
            input_ended: false,
            end: None,
            acknowledged: 0,
            unacked: 0,
            full: None,
            gentle: None,
            pace: Pace::new(upkeep.high_water.max(UNSENT_LIMIT)),
            unsent_limit: usize::MAX,
            is_ending: false,
            blocked_write: 0,
        }
    }

    /// The transport, for `poll` and for the log.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The send buffer. Nothing may be queued after a close frame: see [`is_open`](Self::is_open).
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// The bytes at a position that [`Received::Frame`] gave. Positions are valid until the next
    /// [`receive`](Self::receive).
    pub fn bytes(&self, at: Range<usize>) -> &[u8] {
        self.receiver.bytes(at)
    }

    /// The receive buffer and the send buffer together.
    pub(crate) fn halves(&mut self) -> (&Receiver, &mut Sender) {
        (&self.receiver, &mut self.sender)
    }

    /// The number of bytes in the send buffer.
    pub fn waiting(&self) -> usize {
        self.sender.len()
    }

    /// Whether the send buffer has reached its high-water mark. Then its sources must not be read.
    pub fn over_high_water(&self) -> bool {
        self.sender.len() >= self.high_water()
    }

    /// The allocated size of the receive buffer, in bytes.
    pub fn receive_capacity(&self) -> usize {
        self.receiver.capacity()
    }

    /// The allocated size of the send buffer, in bytes.
    pub fn send_capacity(&self) -> usize {
        self.sender.capacity()
    }

    /// The high-water mark of the send buffer, in bytes. It is smaller on a slow link.
    pub fn high_water(&self) -> usize {
        let queue = if self.is_ending { usize::MAX } else { self.pace.queue() };
        self.upkeep.high_water.min(queue)
    }

    /// The payload of a full frame, in bytes. It is smaller on a slow link, so that a keystroke
    /// does not wait long for the frame before it.
    pub fn payload_size(&self) -> usize {
        self.pace.payload()
    }

    /// The level of the send buffer, in bytes, at which the connection itself is no longer read.
    /// The half above the high-water mark is reserved for answers.
    pub fn hard_limit(&self) -> usize {
        2 * self.upkeep.high_water
    }

    /// Lifts the limits of the send buffer, because the connection ends and takes its last bytes.
    pub fn lift_limits(&mut self) {
        self.upkeep.high_water = usize::MAX / 4;
        self.is_ending = true;
    }

    /// Whether frames can be sent and received.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Why the connection ended. May be set while received messages are still to be processed.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Whether the connection is finished and can be dropped.
    pub fn is_gone(&self) -> bool {
        match self.state {
            State::Lost => true,
            State::Closed => self.sender.is_empty(),
            State::Open | State::Closing => false,
        }
    }

    /// Whether bytes from the peer are still read.
    pub fn reads(&self) -> bool {
        matches!(self.state, State::Open | State::Closing)
    }

    /// Whether to wait until the transport has room. False for a while if the transport reports
    /// room but takes nothing: TLS may have to read before it can write, and waiting for room would
    /// then make the caller spin.
    pub fn wants_room(&self, now: Instant) -> bool {
        let stuck = self.timers.get(ConnectionTimer::Stuck).is_some_and(|until| now < until);
        self.state != State::Lost && !self.sender.is_empty() && !stuck
    }

    /// Passes on what `poll` reported.
    pub fn ready(&mut self, readable: bool, writable: bool) {
        if readable {
            self.transport.arm();
        }
        self.writable |= writable;
        // TLS may have waited for room before it could read.
        self.readable |= readable || writable;
    }

    /// The peer has closed the connection while it was not read. What can still be read is less
    /// than a receive buffer.
    pub fn hang_up(&mut self) {
        self.ready(true, false);
        self.end.get_or_insert(End::EndOfStream);
    }

    /// Whether there are bytes to receive or messages to process that `poll` does not report.
    pub fn has_input(&self) -> bool {
        self.reads() && (self.readable || self.undealt)
    }

    /// Whether the receive buffer may hold whole messages.
    pub fn has_messages(&self) -> bool {
        self.undealt
    }

    /// Reads what the transport has, at most `most` bytes and until the receive buffer is full.
    pub fn receive(&mut self, now: Instant, mut most: usize) {
        while self.readable && most > 0 && self.reads() && !self.receiver.is_full() {
            let transport = &mut self.transport;
            if let Some(length) = self.receiver.exchange(|buffer| transport.give_buffer(buffer)) {
                most = most.saturating_sub(length);
                self.undealt = true;
                self.hear(now);
                continue;
            }
            let mut source = Read::take(&mut self.transport, most as u64);
            match self.receiver.fill(&mut source) {
                Ok(0) => return self.ends(End::EndOfStream),
                Ok(length) => {
                    most -= length;
                    self.undealt = true;
                    self.hear(now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = self.transport.has_paused();
                    // After a failed write or a silence, nothing that comes later matters.
                    let is_silent = self.state == State::Open && self.end.is_some();
                    if !self.readable && (self.broken || is_silent) {
                        self.ends(End::EndOfStream);
                    }
                    return;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.ends(End::Receive(e.to_string())),
            }
        }
    }

    /// No more bytes will come. The connection is lost once the received messages are processed.
    fn ends(&mut self, end: End) {
        (self.readable, self.input_ended) = (false, true);
        self.end.get_or_insert(end);
        if !self.undealt {
            self.state = State::Lost;
        }
    }

    fn hear(&mut self, now: Instant) {
        self.timers.set(ConnectionTimer::Silence, now + self.upkeep.silence_limit);
        if let Ping::AfterSilence(interval) = self.upkeep.ping {
            self.timers.set(ConnectionTimer::Ping, now + interval);
        }
    }

    /// The next message, and the send buffer for the answers to it. Returns the same message until
    /// [`consume`](Self::consume). Answers pings and close frames itself.
    pub fn peek(&mut self, now: Instant) -> Option<(Received<'_>, &mut Sender)> {
        loop {
            if !self.reads() {
                return None;
            }
            let is_open = self.state == State::Open;
            match self.receiver.advance() {
                Ok(Some(Kind::Message | Kind::Pong)) if is_open => break,
                Ok(Some(kind)) => {
                    self.answer(kind, is_open, now);
                    self.receiver.consume();
                }
                Ok(None) => {
                    self.undealt = false;
                    if self.input_ended {
                        self.state = State::Lost;
                    }
                    return None;
                }
                Err(violation) => {
                    let end = End::Protocol(violation.to_string());
                    self.closed(Some(violation.close_code()), end, now);
                }
            }
        }
        let incoming = self.receiver.current()?;
        Some((received(incoming), &mut self.sender))
    }

    fn answer(&mut self, kind: Kind, is_open: bool, now: Instant) {
        match (kind, self.receiver.current()) {
            // No frame may follow a close frame.
            (Kind::Ping, Some(Incoming::Ping(payload))) if is_open => self.sender.pong(payload),
            (Kind::Close, Some(Incoming::Close { code, reason })) => {
                let end = End::Peer { code, reason: String::from_utf8_lossy(reason).into_owned() };
                self.closed(code.map(answer_to), end, now);
            }
            _ => {}
        }
    }

    /// Ends the connection and sends a close frame: in answer to the peer's, or after a violation.
    fn closed(&mut self, answer: Option<u16>, end: End, now: Instant) {
        if self.state == State::Open {
            self.sender.close(answer);
            // This reason says more than an end of stream that was noticed before.
            self.end = Some(end);
        }
        self.state = State::Closed;
        self.timers.set(ConnectionTimer::Close, now + CLOSE_TIMEOUT);
    }

    /// Drops the message that [`peek`](Self::peek) returned.
    pub fn consume(&mut self) {
        self.receiver.consume();
    }

    /// Sends a close frame and begins the closing handshake. Does nothing if the connection is not
    /// open.
    pub fn close(&mut self, code: u16, reason: &'static str, now: Instant) {
        if self.state == State::Open {
            self.sender.close(Some(code));
            self.state = State::Closing;
            self.timers.set(ConnectionTimer::Close, now + CLOSE_TIMEOUT);
            self.end.get_or_insert(End::Local(reason.into()));
        }
    }

    /// Like [`close`](Self::close), but tells the peer the reason, too.
    pub fn close_saying(&mut self, code: u16, reason: String, now: Instant) {
        if self.state == State::Open {
            self.sender.close_saying(code, &reason);
            self.state = State::Closing;
            self.timers.set(ConnectionTimer::Close, now + CLOSE_TIMEOUT);
            self.end.get_or_insert(End::Local(reason.into()));
        }
    }

    /// Like [`close`](Self::close), but waits for the answer as long as queued bytes still get
    /// through, however slowly.
    pub fn close_gently(&mut self, code: u16, reason: &'static str, now: Instant) {
        self.gentle = Some(Progress::new(self.taken(), now));
        self.close(code, reason, now);
    }

    /// Queues a ping and frees buffers when they are due. Call it before [`flush`](Self::flush).
    /// `reads`: whether the caller reads from the connection. If it does not, the peer's silence
    /// does not count.
    pub fn tick(&mut self, now: Instant, reads: bool) -> Ticked {
        let mut ticked = Ticked::default();
        if !reads && self.state == State::Open {
            self.note_acknowledged(now);
            // Nothing was sent that could be acknowledged. The next ping is.
            if self.unacked == 0 {
                self.timers.set(ConnectionTimer::Silence, now + self.upkeep.silence_limit);
            }
        }
        if self.timers.is_due(ConnectionTimer::Shrink, now) {
            self.timers.set(ConnectionTimer::Shrink, now + self.upkeep.shrink_interval);
            self.transport.shrink();
            self.receiver.shrink();
            self.sender.shrink();
            ticked.shrunk = true;
        }
        if self.state == State::Open && self.timers.is_due(ConnectionTimer::Ping, now) {
            let (Ping::Every(interval) | Ping::AfterSilence(interval)) = self.upkeep.ping;
            self.timers.set(ConnectionTimer::Ping, now + interval);
            self.note_acknowledged(now);
            if self.sender.len() < self.hard_limit() {
                self.sender.ping();
            }
            ticked.pinged = true;
        }
        ticked
    }

    /// Counts newly acknowledged bytes as a sign of life. During a long upload, a ping may wait in
    /// the kernel behind more bytes than the link carries before the silence limit. The kernel of a
    /// dead peer acknowledges nothing.
    fn note_acknowledged(&mut self, now: Instant) {
        let unacked = self.transport.unacked();
        let acknowledged = self.transport.written().saturating_sub(unacked as u64);
        if self.unacked > 0 && acknowledged > self.acknowledged {
            self.timers.set(ConnectionTimer::Silence, now + self.upkeep.silence_limit);
        }
        (self.acknowledged, self.unacked) = (acknowledged, unacked);
    }

    /// Writes what the transport takes, then checks the deadlines.
    pub fn flush(&mut self, now: Instant) {
        // The peer may still read after the end of its own stream.
        if !self.sender.is_empty() {
            self.write(now);
        }
        self.writable = false;
        self.watch_fill(now);
        self.expire(now);
    }

    fn write(&mut self, now: Instant) {
        if self.broken {
            self.sender = Sender::new(self.role);
            return;
        }
        let before = self.sender.len();
        let (most, pause) = self.room();
        let transport = &mut self.transport;
        let result =
            match self.sender.hand_over(most, |buffer, at| transport.take_buffer(buffer, at)) {
                true => Ok(Flushed::All),
                false => self.sender.flush_most(&mut self.transport, most),
            };
        self.blocked_write = if matches!(result, Ok(Flushed::Blocked)) { most } else { 0 };
        let left = self.sender.len();
        if let Some(pause) = pause.filter(|_| left > 0) {
            self.timers.set(ConnectionTimer::Stuck, now + pause);
        } else if self.writable && left == before && most > 0 {
            self.timers.set(ConnectionTimer::Stuck, now + STUCK);
        } else {
            self.timers.clear(ConnectionTimer::Stuck);
        }
        // The transport was full and took bytes again, so the peer is alive. Its pong may be far
        // behind other bytes it sends, or the ping far behind bytes sent to it.
        if std::mem::replace(&mut self.backlog, left > 0) && left < before {
            self.timers.set(ConnectionTimer::Silence, now + self.upkeep.silence_limit);
        }
        if left == 0 {
            self.pace.idle();
        }
        if self.pace.is_due(self.transport.written(), now) {
            self.pace.measure(self.taken(), now);
        }
        if let Err(e) = result {
            self.fail_to_write(End::Send(e.to_string()));
        } else if left > self.upkeep.flood_limit {
            self.lose(End::Flooded);
        }
    }

    /// How many bytes to write now, and how long to wait then if that is little because enough is in
    /// flight. On a fast link there is no limit but the kernel's.
    fn room(&mut self) -> (usize, Option<Duration>) {
        if self.is_ending {
            return (usize::MAX, None);
        }
        let queue = self.pace.queue();
        // The kernel reports room when less than half of its limit waits unsent.
        let limit = if self.pace.is_fast() { UNSENT_LIMIT } else { (2 * queue).min(UNSENT_LIMIT) };
        let is_near = limit != UNSENT_LIMIT
            && limit / 2 <= self.unsent_limit
            && self.unsent_limit <= 2 * limit;
        if limit != self.unsent_limit && !is_near {
            self.transport.limit_unsent(limit);
            self.unsent_limit = limit;
        }
        if self.pace.is_fast() {
            return (usize::MAX, None);
        }
        if self.pace.is_little(self.transport.written(), self.sender.len()) {
            return (self.sender.len().max(self.blocked_write), None);
        }
        // `poll` also reports room for a transport that has failed. The write finds out.
        let least = self.blocked_write.max(usize::from(self.writable));
        let mut left = (self.unsent_limit / 2).saturating_sub(self.transport.unsent());
        let mut pause = None;
        if let Some(round_trip) = self.transport.round_trip() {
            let (most, in_flight) = (self.pace.flight(round_trip), self.transport.unacked());
            self.pace.note(self.transport.written().saturating_sub(in_flight as u64));
            let wanted = in_flight + self.sender.len().min(self.pace.payload());
            pause = (wanted > most).then(|| self.pace.pause(wanted - most));
            left = left.min(most.saturating_sub(in_flight));
        }
        (left.max(least), pause)
    }

    /// A write failed. Bytes that the peer sent before may still wait to be read.
    fn fail_to_write(&mut self, end: End) {
        if !self.reads() {
            return self.lose(end);
        }
        self.broken = true;
        self.end.get_or_insert(end);
        self.sender = Sender::new(self.role);
        self.timers.clear(ConnectionTimer::Stuck);
        self.ready(true, false);
    }

    fn lose(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.state = State::Lost;
    }

    fn expire(&mut self, now: Instant) {
        if self.state == State::Open && self.timers.is_due(ConnectionTimer::Silence, now) {
            // Bytes may still wait where they were not read, for example behind a full send buffer.
            self.end.get_or_insert(End::Silence(self.upkeep.silence_limit));
            self.ready(true, false);
        }
        if self.timers.is_due(ConnectionTimer::Close, now) {
            if self.state == State::Closing && self.still_sends(now) {
                self.timers.set(ConnectionTimer::Close, now + CLOSE_TIMEOUT);
            } else {
                self.state = State::Lost;
            }
        }
    }

    fn still_sends(&mut self, now: Instant) -> bool {
        let (taken, left) = (self.taken(), self.sender.len() + self.transport.unacked());
        let Some(progress) = &mut self.gentle else { return false };
        progress.update(taken, now);
        left > 0 && !self.broken && now < progress.deadline(LINGER)
    }

    /// Notes since when the send buffer has been over its high-water mark.
    fn watch_fill(&mut self, now: Instant) {
        if !self.over_high_water() {
            self.full = None;
        } else if self.full.is_none() {
            self.full = Some(Progress::new(self.taken(), now));
        }
    }

    /// The number of bytes that the peer's kernel has acknowledged. The number of written bytes
    /// would mislead: on a slow link this end's kernel takes megabytes at once, then nothing for a
    /// long time.
    fn taken(&self) -> u64 {
        self.transport.written().saturating_sub(self.transport.unacked() as u64)
    }

    /// Whether the peer has taken nothing for `limit` while the send buffer was over its high-water
    /// mark. A peer that takes large steps has more time.
    pub fn is_stalled(&mut self, now: Instant, limit: Duration) -> bool {
        if !self.is_open() || self.full.is_none_or(|full| now < full.deadline(limit)) {
            return false;
        }
        let taken = self.taken();
        let Some(full) = &mut self.full else { return false };
        full.update(taken, now);
        now >= full.deadline(limit)
    }

    /// When [`is_stalled`](Self::is_stalled) has to be called. `None` while the send buffer is not
    /// full.
    pub fn stalls_at(&self, limit: Duration) -> Option<Instant> {
        self.full.filter(|_| self.is_open()).map(|full| full.deadline(limit))
    }

    /// When the connection needs attention even if its transport is not ready. `reads`: whether the
    /// caller reads from the connection.
    pub fn deadline(&self, now: Instant, reads: bool) -> Instant {
        if self.state == State::Lost || reads && self.has_input() {
            return now;
        }
        let far = now + self.upkeep.silence_limit;
        match self.state {
            State::Open => {
                let timers =
                    [ConnectionTimer::Ping, ConnectionTimer::Silence, ConnectionTimer::Stuck];
                timers
                    .into_iter()
                    .filter_map(|timer| self.timers.get(timer))
                    .fold(far, Instant::min)
            }
            _ => self.timers.get(ConnectionTimer::Close).unwrap_or(far),
        }
    }
}

impl<T: Transport> Drop for Connection<T> {
    fn drop(&mut self) {
        self.transport.shut_down();
    }
}
