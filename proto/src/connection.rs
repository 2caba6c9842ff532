//! One open WebSocket, in either role: what was received, what waits to be sent, keep-alive, the
//! closing handshake. Device side, access side and gateway all have this one.
//!
//! It reads and writes through a [`Transport`], which must never block, and learns the time from its
//! caller. It knows frames only to tell them from what must be dropped; sessions are the caller's.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::frame::{Frame, FrameType, Malformed};
use crate::progress::Progress;
use crate::timers::{Timer, Timers};
use crate::websocket::close::{answer_to, means_expired};
use crate::websocket::{Incoming, Kind, Receiver, Role, Sender};

/// How long a closing peer may take to answer the close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a gentle close waits while none of its bytes gets through.
const LINGER: Duration = Duration::from_secs(10);
/// How long until a transport that has room and takes nothing is offered bytes again.
const STUCK: Duration = Duration::from_millis(100);
/// A full peer must take this much within the stall time: single bytes hold its siblings up, too.
const LEAST_PROGRESS: u64 = 4096;

/// The byte stream beneath a WebSocket. Nothing here blocks.
pub trait Transport: Read + Write {
    /// Bytes that were written so far.
    fn written(&self) -> u64;
    /// Those of them that the peer's kernel has not acknowledged.
    fn unacked(&self) -> usize;
    /// Learns that `poll` found it readable.
    fn arm(&mut self) {}
    /// Gives back buffers that hold nothing.
    fn shrink(&mut self) {}
    /// Ends the connection in order, as far as that goes without blocking.
    fn shut_down(&mut self) {}
}

/// When an open connection is pinged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ping {
    /// At a fixed interval, as the device side must.
    Every(Duration),
    /// After so much silence of the peer.
    AfterSilence(Duration),
}

/// Times and limits of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upkeep {
    /// When the connection is pinged.
    pub ping: Ping,
    /// Silence after which the peer counts as dead.
    pub silence_limit: Duration,
    /// How often buffers that hold nothing are given back.
    pub shrink_interval: Duration,
    /// Bytes that may wait to be sent before their sources are no longer read.
    pub high_water: usize,
    /// Bytes that may wait to be sent before the connection is given up: the peer asks and does not
    /// read the answers.
    pub flood_limit: usize,
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// This end closed it: why.
    Local(&'static str),
    /// The peer sent a close frame, with this code.
    Peer(Option<u16>),
    /// The peer closed the byte stream without a close frame.
    EndOfStream,
    /// Reading failed.
    Receive(String),
    /// Writing failed.
    Send(String),
    /// The peer broke the WebSocket protocol.
    Protocol(String),
    /// Nothing came for so long.
    Silence(Duration),
    /// The peer does not read the answers that it asks for.
    Flooded,
}

impl End {
    /// Whether the peer says that the token is no longer valid.
    pub fn is_expired(&self) -> bool {
        matches!(self, End::Peer(Some(code)) if means_expired(*code))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Local(why) => f.write_str(why),
            End::Peer(Some(code)) => write!(f, "the peer closed the connection with code {code}"),
            End::Peer(None) => f.write_str("the peer closed the connection"),
            End::EndOfStream => f.write_str("the peer closed the connection (end of stream)"),
            End::Receive(e) => write!(f, "receive: {e}"),
            End::Send(e) => write!(f, "send: {e}"),
            End::Protocol(violation) => write!(f, "WebSocket protocol: {violation}"),
            End::Silence(limit) => write!(f, "nothing received for {limit:?}"),
            End::Flooded => f.write_str("the peer does not read the answers that it asks for"),
        }
    }
}

/// One message of the peer, as its owner sees it.
#[derive(Debug)]
pub enum Received<'a> {
    /// A frame, and where its payload stands in the receive buffer ([`Connection::bytes`]), unless
    /// it came in fragments.
    Frame(Frame<'a>, Option<usize>),
    /// A message that is dropped. `lossy` is the header of a data frame that was too long: its
    /// session has lost bytes.
    Dropped {
        /// What was dropped, and why.
        what: Dropped,
        /// The header of a data frame that was too long to keep.
        lossy: Option<Frame<'a>>,
    },
    /// The peer has answered a ping.
    Pong,
}

/// What was dropped, and why.
#[derive(Debug, PartialEq, Eq)]
pub enum Dropped {
    /// A message that is no frame.
    Malformed(Malformed),
    /// A message longer than a frame may be, with its length in bytes.
    TooLong(u64),
    /// A text message.
    Text,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dropped::Malformed(e) => write!(f, "a malformed frame is dropped: {e}"),
            Dropped::TooLong(length) => write!(f, "a message of {length} bytes is dropped"),
            Dropped::Text => f.write_str("a text message is dropped"),
        }
    }
}

/// What [`Connection::tick`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticked {
    /// A ping was queued.
    pub pinged: bool,
    /// Buffers were given back; the owner may give back its own.
    pub shrunk: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// This end has sent a close frame and waits for the peer's.
    Closing,
    /// Both have sent theirs; what waits is still written.
    Closed,
    Lost,
}

#[derive(Debug, Clone, Copy)]
enum ConnectionTimer {
    Ping,
    Silence,
    Shrink,
    /// A transport that has room takes nothing: until when it is left alone.
    Stuck,
    /// The closing handshake.
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
    /// The transport may have more to read than `poll` knows of.
    readable: bool,
    /// Whole messages may wait in the receive buffer.
    undealt: bool,
    /// `poll` found room in the transport.
    writable: bool,
    /// The last flush left bytes behind.
    backlog: bool,
    /// Writing has failed. What the peer sent before is read all the same.
    broken: bool,
    /// Nothing more comes.
    input_ended: bool,
    /// Why it is over, or will be once what came before is dealt with.
    end: Option<End>,
    /// What the peer's kernel had acknowledged at the last ping, and what it had not.
    acknowledged: u64,
    unacked: usize,
    /// Since when it is over its high-water mark, and what the peer had taken then.
    full: Option<(Instant, u64)>,
    /// A close that waits for its bytes to get through.
    gentle: Option<Progress>,
}

impl<T: Transport> Connection<T> {
    /// `rest`: bytes that came with the opening handshake.
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
        }
    }

    /// The byte stream, for `poll` and for the log.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// What waits to be sent. Nothing may be queued after a close frame: see [`is_open`](Self::is_open).
    pub fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// Bytes at a position that [`Received::Frame`] gave since the last [`receive`](Self::receive).
    pub fn bytes(&self, at: Range<usize>) -> &[u8] {
        self.receiver.bytes(at)
    }

    /// Both directions at once.
    pub(crate) fn halves(&mut self) -> (&Receiver, &mut Sender) {
        (&self.receiver, &mut self.sender)
    }

    /// Bytes that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.sender.len()
    }

    /// Whether so much waits that its sources are not to be read.
    pub fn over_high_water(&self) -> bool {
        self.sender.len() >= self.upkeep.high_water
    }

    /// Bytes that the receive buffer takes.
    pub fn receive_capacity(&self) -> usize {
        self.receiver.capacity()
    }

    /// Bytes that the send buffer takes.
    pub fn send_capacity(&self) -> usize {
        self.sender.capacity()
    }

    /// Bytes that may wait before its sources are no longer read.
    pub fn high_water(&self) -> usize {
        self.upkeep.high_water
    }

    /// Bytes that may wait before the connection itself is no longer read: half of it is for answers.
    pub fn hard_limit(&self) -> usize {
        2 * self.upkeep.high_water
    }

    /// Changes the high-water mark.
    pub fn set_high_water(&mut self, bytes: usize) {
        self.upkeep.high_water = bytes;
    }

    /// Whether frames may be sent and are received.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether writing has failed.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Why it is over, or will be once what came before has been dealt with.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Whether nothing is left to do but to drop it.
    pub fn is_gone(&self) -> bool {
        match self.state {
            State::Lost => true,
            State::Closed => self.sender.is_empty(),
            State::Open | State::Closing => false,
        }
    }

    /// Whether what the peer sends is still read.
    pub fn reads(&self) -> bool {
        matches!(self.state, State::Open | State::Closing)
    }

    /// Whether to wait for room in the transport. A transport that has room but wants to read before
    /// it writes, as TLS may, would report room again and again.
    pub fn wants_room(&self, now: Instant) -> bool {
        let stuck = self.timers.get(ConnectionTimer::Stuck).is_some_and(|until| now < until);
        self.state != State::Lost && !self.sender.is_empty() && !stuck
    }

    /// Learns what `poll` found.
    pub fn ready(&mut self, readable: bool, writable: bool) {
        if readable {
            self.transport.arm();
        }
        self.writable |= writable;
        // TLS may have waited for room to go on reading.
        self.readable |= readable || writable;
    }

    /// Whether there is something to receive or to deal with that `poll` does not report.
    pub fn has_input(&self) -> bool {
        self.reads() && (self.readable || self.undealt)
    }

    /// Whether whole messages may wait in the receive buffer.
    pub fn has_messages(&self) -> bool {
        self.undealt
    }

    /// Reads what there is, up to a full receive buffer and up to `most` bytes.
    pub fn receive(&mut self, now: Instant, mut most: usize) {
        while self.readable && most > 0 && self.reads() && !self.receiver.is_full() {
            let mut source = Read::take(&mut self.transport, most as u64);
            match self.receiver.fill(&mut source) {
                Ok(0) => return self.ends(End::EndOfStream),
                Ok(length) => {
                    most -= length;
                    self.undealt = true;
                    self.hear(now);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    if self.broken {
                        // Nothing more can come that matters.
                        self.ends(End::EndOfStream);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.ends(End::Receive(e.to_string())),
            }
        }
    }

    /// It is over once what came before has been dealt with.
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

    /// The next message, the same one until it is [consumed](Self::consume), with the sender for
    /// what it leads to. Pings and close frames are answered here.
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
            // Nothing may follow a close frame.
            (Kind::Ping, Some(Incoming::Ping(payload))) if is_open => self.sender.pong(payload),
            (Kind::Close, Some(Incoming::Close(code))) => {
                self.closed(code.map(answer_to), End::Peer(code), now);
            }
            _ => {}
        }
    }

    /// The peer has closed the connection, or has to be told that it is closed.
    fn closed(&mut self, answer: Option<u16>, end: End, now: Instant) {
        if self.state == State::Open {
            self.sender.close(answer);
            // It says more than the end of the stream that came with it.
            self.end = Some(end);
        }
        self.state = State::Closed;
        self.timers.set(ConnectionTimer::Close, now + CLOSE_TIMEOUT);
    }

    /// Drops the message that [`peek`](Self::peek) showed.
    pub fn consume(&mut self) {
        self.receiver.consume();
    }

    /// Begins the closing handshake.
    pub fn close(&mut self, code: u16, reason: &'static str, now: Instant) {
        if self.state == State::Open {
            self.sender.close(Some(code));
            self.state = State::Closing;
            self.timers.set(ConnectionTimer::Close, now + CLOSE_TIMEOUT);
            self.end.get_or_insert(End::Local(reason));
        }
    }

    /// As [`close`](Self::close), but the answer is waited for as long as what was sent gets through,
    /// however slowly.
    pub fn close_gently(&mut self, code: u16, reason: &'static str, now: Instant) {
        self.gentle = Some(Progress::new(now));
        self.close(code, reason, now);
    }

    /// Pings, and gives back buffers, when it is time to. Call it before [`flush`](Self::flush).
    /// `reads`: whether the caller reads from the connection; otherwise the peer's silence does not
    /// count.
    pub fn tick(&mut self, now: Instant, reads: bool) -> Ticked {
        let mut ticked = Ticked::default();
        if !reads && self.state == State::Open {
            self.hear(now);
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

    /// Bytes that the peer's kernel has acknowledged since the last ping are a sign of life: during
    /// a long upload the kernel may hold more than the link moves in that time, and the ping stands
    /// behind it. A dead peer's kernel acknowledges nothing.
    fn note_acknowledged(&mut self, now: Instant) {
        let unacked = self.transport.unacked();
        let acknowledged = self.transport.written().saturating_sub(unacked as u64);
        if self.unacked > 0 && acknowledged > self.acknowledged {
            self.timers.set(ConnectionTimer::Silence, now + self.upkeep.silence_limit);
        }
        (self.acknowledged, self.unacked) = (acknowledged, unacked);
    }

    /// Writes what the transport takes, and looks at the deadlines.
    pub fn flush(&mut self, now: Instant) {
        // Also after the end of the peer's stream: it may still read.
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
        let result = self.sender.flush(&mut self.transport);
        let left = self.sender.len();
        if self.writable && left == before {
            self.timers.set(ConnectionTimer::Stuck, now + STUCK);
        } else {
            self.timers.clear(ConnectionTimer::Stuck);
        }
        // The queue was full and has room again: the peer takes bytes, so it lives, though its pong
        // may stand far behind what it sends, or the ping behind what was sent to it.
        if std::mem::replace(&mut self.backlog, left > 0) && left < before {
            self.timers.set(ConnectionTimer::Silence, now + self.upkeep.silence_limit);
        }
        if let Err(e) = result {
            self.fail_to_write(End::Send(e.to_string()));
        } else if left > self.upkeep.flood_limit {
            self.lose(End::Flooded);
        }
    }

    /// What the peer sent before may still wait to be read.
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
            self.lose(End::Silence(self.upkeep.silence_limit));
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
        let left = self.sender.len() + self.transport.unacked();
        let Some(progress) = &mut self.gentle else { return false };
        progress.update(left, now);
        left > 0 && !self.broken && now < progress.since() + LINGER
    }

    /// Keeps the time for which it has been over its high-water mark.
    fn watch_fill(&mut self, now: Instant) {
        if !self.over_high_water() {
            self.full = None;
        } else if self.full.is_none() {
            self.full = Some((now, self.taken()));
        }
    }

    /// Bytes that the peer's kernel has acknowledged. What this end's kernel takes is no measure: it
    /// takes megabytes at once and then, on a slow link, nothing for long.
    fn taken(&self) -> u64 {
        self.transport.written().saturating_sub(self.transport.unacked() as u64)
    }

    /// Whether it has been over its high-water mark for so long and the peer has taken next to
    /// nothing.
    pub fn is_stalled(&mut self, now: Instant, limit: Duration) -> bool {
        let (taken, before) = match self.full {
            Some((since, taken)) if self.is_open() && now >= since + limit => (self.taken(), taken),
            _ => return false,
        };
        if taken >= before + LEAST_PROGRESS {
            self.full = Some((now, taken));
            return false;
        }
        true
    }

    /// When [`is_stalled`](Self::is_stalled) is to be asked.
    pub fn stalls_at(&self, limit: Duration) -> Option<Instant> {
        self.full.filter(|_| self.is_open()).map(|(since, _)| since + limit)
    }

    /// When it is to be seen to, whatever its transport does. `reads`: whether the caller reads from
    /// it.
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

fn received(incoming: Incoming<'_>) -> Received<'_> {
    match incoming {
        Incoming::Binary { message, at } => match Frame::parse(message) {
            Ok(frame) => {
                let at = at.map(|at| at + message.len() - frame.payload.len());
                Received::Frame(frame, at)
            }
            Err(e) => {
                let is_long = matches!(e, Malformed::Payload(_));
                let lossy = if is_long { data_header(message) } else { None };
                Received::Dropped { what: Dropped::Malformed(e), lossy }
            }
        },
        Incoming::TooLong { head, length } => {
            Received::Dropped { what: Dropped::TooLong(length), lossy: data_header(head) }
        }
        Incoming::Text | Incoming::Ping(_) | Incoming::Close(_) => {
            Received::Dropped { what: Dropped::Text, lossy: None }
        }
        Incoming::Pong => Received::Pong,
    }
}

/// The header of a data frame that was too long to keep.
fn data_header(head: &[u8]) -> Option<Frame<'_>> {
    let frame = Frame::parse_header(head).ok()?;
    (frame.frame_type == FrameType::DataTransport).then_some(frame)
}
