//! The sessions of one connection, at an end that has local streams: how a session lives, what
//! happens to its bytes, and how it ends. Device side and access side share this module.
//! [`crate::device`] and [`crate::access`] add what differs: which of them asks for sessions and
//! which answers.

mod buffer;
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

pub use crate::counters::Counters;
pub use buffer::LocalBuffer;
pub use lingering::Lingering;
pub use recent::{RecentIds, REMEMBERED};
pub use stream::{Local, LocalStream};

/// Most slices in one write.
const MAX_SLICES: usize = 128;
/// Most payloads that one turn collects before they are written. A peer may send frames of one byte
/// each.
pub const MAX_BATCH: usize = 4 * MAX_SLICES;

/// Limits of the sessions of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Size limit of a local buffer, in bytes: what may wait for one local stream.
    pub session_buffer: usize,
    /// How long a local stream may take nothing while its full local buffer blocks the whole
    /// connection. Also how long a lingering stream may make no progress. `None`: no limit.
    pub stall_timeout: Option<Duration>,
}

/// A session as the peer sees it. It exists from its creation until either end releases it.
pub struct Session<S> {
    /// Identifies the session in this table. Unlike the id, it is never used twice.
    key: u64,
    id: String,
    service_type: String,
    /// `None` while this end still connects to the local service.
    local: Option<Local<S>>,
    /// The prepared header of the session's data frames.
    header: HeaderTemplate,
    /// The payloads of this turn, as positions in the receive buffer.
    batch: Vec<Range<usize>>,
    /// The sum of their lengths, in bytes.
    batched: usize,
    /// Bytes that the local stream has not taken yet.
    buffer: LocalBuffer,
    /// Since when its full local buffer has kept the connection from being read.
    pub(crate) blocked_since: Option<Instant>,
    /// The last read took more than one frame, or more bytes were left.
    pub(crate) is_bulk: bool,
    /// The peer released the session before the local stream was connected. The session is closed
    /// once its bytes are written.
    released: bool,
    counters: Arc<Counters>,
}

impl<S: LocalStream> Session<S> {
    /// The local stream, for `poll`.
    pub fn stream(&self) -> Option<&S> {
        self.local.as_ref().map(Local::stream)
    }

    /// Whether bytes wait for the local stream, because it took no more at the last write.
    pub fn wants_write(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether the peer has already released the session.
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// The number of bytes from the peer that the local stream has not taken yet.
    pub fn waiting(&self) -> usize {
        self.buffer.len() + self.batched
    }

    /// The number of payloads of this turn that are not written yet, and the allocated room for
    /// such.
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

    /// Notes the position of a payload in the receive buffer, or copies the payload if it is not
    /// there. Returns false if the session must be [flushed](Self::flush) first.
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

    /// Writes this turn's payloads to the local stream, and buffers what it does not take.
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

    /// Writes the local buffer to the local stream.
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
    /// The last frame id that this end used.
    frame_id: u64,
    /// Scratch memory for a header.
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

    /// The next id for a frame that this end originates.
    pub(crate) fn next_frame_id(&mut self) -> u64 {
        self.frame_id += 1;
        self.frame_id
    }

    /// The index of a session that the peer has not released.
    pub(crate) fn find(&self, id: &str) -> Option<usize> {
        self.open.iter().position(|session| session.id == id && !session.released)
    }

    pub(crate) fn find_key(&self, key: u64) -> Option<usize> {
        self.open.iter().position(|session| session.key == key)
    }

    /// Whether a session with this id ended a short while ago.
    pub(crate) fn has_ended(&self, id: &str) -> bool {
        self.recent.contains(id)
    }

    /// Adds a session to the table. Returns its key.
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

    /// Passes a payload to its session. Returns false if the session must be flushed first.
    pub(crate) fn data(&mut self, index: usize, payload: &[u8], at: Option<usize>) -> bool {
        payload.is_empty() || self.open[index].take(payload, at, self.limits.session_buffer)
    }

    /// Queues bytes from a local stream as data frames.
    pub(crate) fn queue(&mut self, index: usize, bytes: &[u8], sender: &mut Sender) {
        let session = &mut self.open[index];
        for payload in bytes.chunks(frame::MAX_PAYLOAD_SENT) {
            self.frame_id += 1;
            session.header.write(self.frame_id, &mut self.header);
            sender.binary(&self.header, payload);
        }
        session.counters.add_sent(bytes.len());
    }

    /// Handles data for a session that is not in the table. Tells the peer once.
    pub(crate) fn unknown(&mut self, frame: &Frame<'_>, cx: &mut Outputs<'_, impl Observer>) {
        let id = &*frame.session_id;
        if id.is_empty() || self.recent.contains(id) {
            return;
        }
        cx.journal.tell_limited(cx.now, Event::UnknownSession { id });
        self.write_release(id, reason::UNKNOWN_SESSION, cx.sender);
    }

    /// Ends a session whose local stream is connected, and tells the peer.
    pub(crate) fn release(&mut self, index: usize, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        let id = self.open[index].id.clone();
        self.close(index, cx);
        self.say_released(&id, why, cx);
    }

    /// Ends a session that lost bytes for its local stream. Cuts the local stream.
    pub(crate) fn cut(&mut self, index: usize, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        let session = &mut self.open[index];
        if let Some(local) = &mut session.local {
            cx.journal.tell(Event::Cut { id: &session.id, reason: why });
            local.cut();
        }
        self.release(index, why, cx);
    }

    /// Ends a session whose local stream takes nothing. The stream does not linger, because the
    /// waiting bytes cannot be written.
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

    /// Removes a session from the table. Its local stream lingers until its last bytes are
    /// delivered.
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

/// Receives the consequences of an event: frames for the peer and events for the observer.
pub struct Outputs<'a, O> {
    /// The send buffer.
    pub sender: &'a mut Sender,
    /// The observer of the relay.
    pub journal: &'a mut Journal<O>,
    /// The present time.
    pub now: Instant,
}
