//! Sessions of one connection, at the end that has their local streams: a session's life, its bytes,
//! its end. Device side and access side share all of this; who asks for a session and who answers is
//! theirs ([`crate::device`], [`crate::access`]).

mod buffer;
mod counters;
mod lingering;
mod recent;
mod stream;

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::frame::{self, reason, Frame, FrameType, HeaderTemplate};
use crate::observer::{Event, Journal, Observer};
use crate::websocket::{Receiver, Sender};

pub use buffer::LocalBuffer;
pub use counters::Counters;
pub use lingering::Lingering;
pub use recent::{RecentIds, REMEMBERED};
pub use stream::{Local, LocalStream};

/// Slices of one write.
const MAX_SLICES: usize = 128;
/// Payloads of one turn before they are handed over: a peer's frames may be of one byte each.
pub const MAX_BATCH: usize = 4 * MAX_SLICES;

/// What the sessions of one connection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Bytes from the peer that may wait for one local stream.
    pub session_buffer: usize,
    /// How long a local stream may take nothing while its full buffer stops the whole connection;
    /// also how long a lingering one may get nowhere. `None` is for ever.
    pub stall_timeout: Option<Duration>,
}

/// A session as the peer sees it: from its creation to a release by either end.
pub struct Session<S> {
    /// Unlike the id, never used twice.
    key: u64,
    id: String,
    service_type: String,
    /// `None` while the local connect is under way.
    local: Option<Local<S>>,
    /// Header of its data frames.
    header: HeaderTemplate,
    /// Payloads of this turn, as positions in the receive buffer.
    batch: Vec<Range<usize>>,
    /// Their bytes together.
    batched: usize,
    /// Bytes that the local stream has not taken yet.
    buffer: LocalBuffer,
    /// Since when its full buffer stops the whole connection.
    pub(crate) blocked_since: Option<Instant>,
    /// Its last read brought more than a frame, or was cut short.
    pub(crate) is_bulk: bool,
    /// The peer released it before its local stream was connected: it is closed once its bytes are
    /// handed over.
    released: bool,
    counters: Arc<Counters>,
}

impl<S: LocalStream> Session<S> {
    /// The local stream, for `poll`.
    pub fn stream(&self) -> Option<&S> {
        self.local.as_ref().map(Local::stream)
    }

    /// Whether bytes wait for the local stream, which took no more the last time.
    pub fn wants_write(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether the peer has released it already.
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// Bytes from the peer that the local stream has not taken.
    pub fn waiting(&self) -> usize {
        self.buffer.len() + self.batched
    }

    /// Payloads of this turn that are not handed over yet, and how many there is room for.
    pub fn batch(&self) -> (usize, usize) {
        (self.batch.len(), self.batch.capacity())
    }

    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn service_type(&self) -> &str {
        &self.service_type
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.local.is_some()
    }

    pub(crate) fn local_mut(&mut self) -> Option<&mut Local<S>> {
        self.local.as_mut()
    }

    /// Whether a write has failed for a reason that ends the session.
    pub(crate) fn has_failed(&self) -> bool {
        self.local.as_ref().is_some_and(Local::has_failed)
    }

    pub(crate) fn connect(&mut self, stream: S) {
        self.local = Some(Local::new(stream));
    }

    pub(crate) fn release_early(&mut self) {
        self.released = true;
    }

    pub(crate) fn shrink(&mut self) {
        self.batch.shrink_to_fit();
    }

    /// Notes a payload of this turn, or copies it where it is not in the receive buffer. False
    /// when the session must be [flushed](Self::flush) first.
    fn take(&mut self, payload: &[u8], at: Option<usize>, most: usize) -> bool {
        let (waiting, length) = (self.waiting(), payload.len());
        let is_full = waiting > 0 && waiting + length > most;
        if is_full || self.batch.len() == MAX_BATCH {
            return false;
        }
        match at {
            Some(at) => {
                self.batch.push(at..at + length);
                self.batched += length;
            }
            None if self.batched > 0 => return false,
            None => self.buffer.push(payload),
        }
        self.counters.add_received(length);
        true
    }

    /// Hands this turn's payloads to the local stream, and buffers what it does not take.
    pub(crate) fn flush(&mut self, receiver: &Receiver, now: Instant) {
        if self.buffer.is_empty() {
            self.write_batch(receiver);
        }
        for range in self.batch.drain(..) {
            self.buffer.push(receiver.bytes(range));
        }
        self.batched = 0;
        self.write_buffer(now);
    }

    fn write_batch(&mut self, receiver: &Receiver) {
        let Some(local) = &mut self.local else { return };
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        while !self.batch.is_empty() {
            let count = self.batch.len().min(MAX_SLICES);
            for (slice, range) in slices.iter_mut().zip(&self.batch) {
                *slice = IoSlice::new(receiver.bytes(range.clone()));
            }
            let Some(mut written) = local.write(&slices[..count]) else { break };
            self.batched -= written;
            let mut whole = 0;
            while whole < count && self.batch[whole].len() <= written {
                written -= self.batch[whole].len();
                whole += 1;
            }
            if let Some(partial) = self.batch.get_mut(whole) {
                partial.start += written;
            }
            self.batch.drain(..whole);
        }
    }

    /// Offers the buffered bytes to the local stream.
    pub(crate) fn write_buffer(&mut self, now: Instant) {
        if let Some(local) = &mut self.local {
            if self.buffer.write(local) {
                self.blocked_since = self.blocked_since.map(|_| now);
            }
        }
    }
}

/// The sessions of one connection.
pub struct Sessions<S: LocalStream> {
    pub(crate) open: Vec<Session<S>>,
    pub(crate) lingering: Vec<Lingering<S>>,
    pub(crate) limits: SessionLimits,
    recent: RecentIds,
    /// The code of the releases that this end sends.
    release_code: u8,
    next_key: u64,
    /// The last one that was used.
    frame_id: u64,
    /// Scratch for a header.
    header: Vec<u8>,
}

impl<S: LocalStream> Sessions<S> {
    pub(crate) fn new(
        limits: SessionLimits,
        release_code: u8,
        lingering: Vec<Lingering<S>>,
    ) -> Self {
        Sessions {
            open: Vec::new(),
            lingering,
            limits,
            recent: RecentIds::default(),
            release_code,
            next_key: 0,
            frame_id: 0,
            header: Vec::new(),
        }
    }

    /// The next id of a frame that this end originates.
    pub(crate) fn next_frame_id(&mut self) -> u64 {
        self.frame_id += 1;
        self.frame_id
    }

    /// The session of an id, as long as the peer has not released it.
    pub(crate) fn find(&self, id: &str) -> Option<usize> {
        self.open.iter().position(|session| session.id == id && !session.released)
    }

    pub(crate) fn find_key(&self, key: u64) -> Option<usize> {
        self.open.iter().position(|session| session.key == key)
    }

    /// Whether a session of this id has ended a short while ago.
    pub(crate) fn has_ended(&self, id: &str) -> bool {
        self.recent.contains(id)
    }

    /// Takes a session into the table: its key.
    pub(crate) fn add(&mut self, id: &str, service_type: &str, local: Option<Local<S>>) -> u64 {
        self.recent.remove(id);
        self.next_key += 1;
        self.open.push(Session {
            key: self.next_key,
            id: id.to_owned(),
            service_type: service_type.to_owned(),
            local,
            header: HeaderTemplate::new(FrameType::DataTransport, id, None),
            batch: Vec::new(),
            batched: 0,
            buffer: LocalBuffer::default(),
            blocked_since: None,
            is_bulk: false,
            released: false,
            counters: Arc::default(),
        });
        self.next_key
    }

    /// Hands a payload to its session. False when the session must be flushed first.
    pub(crate) fn data(&mut self, index: usize, payload: &[u8], at: Option<usize>) -> bool {
        payload.is_empty() || self.open[index].take(payload, at, self.limits.session_buffer)
    }

    /// Queues what a local stream has sent.
    pub(crate) fn queue(&mut self, index: usize, bytes: &[u8], sender: &mut Sender) {
        let session = &mut self.open[index];
        for payload in bytes.chunks(frame::MAX_PAYLOAD_SENT) {
            self.frame_id += 1;
            session.header.write(self.frame_id, &mut self.header);
            sender.binary(&self.header, payload);
        }
        session.counters.add_sent(bytes.len());
    }

    /// Data for a session that is not in the table. The peer is told once.
    pub(crate) fn unknown(&mut self, frame: &Frame<'_>, cx: &mut Outputs<'_, impl Observer>) {
        let id = &*frame.session_id;
        if id.is_empty() || self.recent.contains(id) {
            return;
        }
        cx.journal.tell_limited(cx.now, Event::UnknownSession { id });
        self.write_release(id, reason::UNKNOWN_SESSION, cx.sender);
    }

    /// Ends a session whose local stream is connected, from this end.
    pub(crate) fn release(&mut self, index: usize, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        let id = self.open[index].id.clone();
        self.close(index, cx);
        self.say_released(&id, why, cx);
    }

    /// Releases a session that has lost bytes for its local stream, which must see a reset.
    pub(crate) fn cut(&mut self, index: usize, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        let session = &mut self.open[index];
        if let Some(local) = &mut session.local {
            cx.journal.tell(Event::Cut { id: &session.id, reason: why });
            local.cut();
        }
        self.release(index, why, cx);
    }

    /// Ends a session whose local stream takes nothing: nothing of what waits can be written, so
    /// there is nothing to linger for.
    pub(crate) fn abandon(&mut self, index: usize, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        let mut session = self.open.remove(index);
        if let Some(local) = &mut session.local {
            local.cut();
        }
        cx.journal.tell(Event::Cut { id: &session.id, reason: why });
        cx.journal.tell(Event::Closed { id: &session.id });
        self.say_released(&session.id, why, cx);
    }

    fn say_released(&mut self, id: &str, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        cx.journal.tell(Event::Released { id });
        self.write_release(id, why, cx.sender);
    }

    pub(crate) fn write_release(&mut self, id: &str, why: &str, sender: &mut Sender) {
        let frame_id = self.next_frame_id();
        frame::write_release(sender, id, frame_id, &frame::status(self.release_code, why));
        self.recent.push(id);
    }

    /// Takes a session out of the table; its last bytes still go to the local stream.
    pub(crate) fn close(&mut self, index: usize, cx: &mut Outputs<'_, impl Observer>) {
        let session = self.open.remove(index);
        let Some(local) = session.local else { return };
        cx.journal.tell(Event::Closed { id: &session.id });
        let stall_timeout = self.limits.stall_timeout;
        let mut lingering = Lingering::new(local, session.buffer, stall_timeout, cx.now);
        if !lingering.step(cx.now, &mut [0; 4096]) {
            self.lingering.push(lingering);
        }
    }
}

/// Where the consequences of an event go, and when it happens.
pub struct Outputs<'a, O> {
    /// What waits to be sent to the peer.
    pub sender: &'a mut Sender,
    /// Where events are told.
    pub journal: &'a mut Journal<O>,
    /// The time.
    pub now: Instant,
}
