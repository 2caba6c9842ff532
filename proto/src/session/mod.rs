//! The sessions of one connection, at an end that has local streams: how a session lives, what
//! happens to its bytes, and how it ends. Device side and access side share this module.
//! [`crate::device`] and [`crate::access`] add what differs: which of them asks for sessions and
//! which answers.

mod buffer;
mod flow;
mod lingering;
mod recent;
mod stream;

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::frame::{self, reason, Credit, DataHeader, Extensions, Fields, Frame};
use crate::observer::{Event, Journal, Observer};
use crate::progress::Progress;
use crate::websocket::{Receiver, Sender};

pub use crate::counters::{Counters, SessionRecord};
pub use buffer::LocalBuffer;
pub(crate) use flow::Flow;
pub use flow::WindowLimits;
pub use lingering::Lingering;
pub use recent::{RecentIds, REMEMBERED};
pub use stream::{Local, LocalStream};

/// How long a lingering stream may stand still while its place is wanted, without a stall timeout.
const STILL: Duration = Duration::from_secs(10);
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
    /// connection and other sessions with it. A stream that takes large steps has more time. A
    /// lingering stream may make no progress for six times as long. `None`: no limit.
    pub stall_timeout: Option<Duration>,
    /// What happens when a local stream ends its direction in a session without half-close. `None`:
    /// this end releases the session. Otherwise the session goes on for the other direction, until
    /// no byte has come or gone for this long.
    pub half_close_timeout: Option<Duration>,
    /// How long a session may stand idle in both directions before it is cut. `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// What a peer may send ahead in a session with flow control.
    pub window: WindowLimits,
}

/// A session as the peer sees it. It exists from its creation until either end releases it.
pub struct Session<S> {
    /// Identifies the session in this table. Unlike the id, it is never used twice.
    key: u64,
    record: Arc<SessionRecord>,
    /// `None` while this end still connects to the local service.
    local: Option<Local<S>>,
    /// How the headers of the session's data frames are written.
    header: DataHeader,
    /// The payloads of this turn, as positions in the receive buffer.
    batch: Vec<Range<usize>>,
    /// The sum of their lengths, in bytes.
    batched: usize,
    /// Bytes that the local stream has not taken yet.
    buffer: LocalBuffer,
    /// The progress of the local stream since its full local buffer has kept the connection from
    /// being read.
    pub(crate) blocked: Option<Box<Progress>>,
    /// The last read took more than one frame, or more bytes were left.
    pub(crate) is_bulk: bool,
    /// The peer released the session before the local stream was connected. The session is closed
    /// once its bytes are written.
    released: bool,
    /// The peer can end its direction alone.
    has_eof: bool,
    /// `None` if the peer does not take part in flow control.
    flow: Option<Box<Flow>>,
    /// The local stream has ended its direction.
    pub(crate) input_ended: bool,
    /// The peer has ended its direction.
    output_ended: bool,
    /// The local stream has been told that the peer has ended its direction.
    output_shut: bool,
    /// In a session with one ended direction: when the last byte came or went.
    last_byte: Option<Instant>,
    /// The sum of the byte counters at the last look, and when they had last changed.
    activity: Option<Box<(u64, Instant)>>,
}

/// What became of the payload of a data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The session has it.
    Whole,
    /// The session must be [flushed](Session::flush) first.
    Full,
    /// The peer broke the protocol of the extensions, for this reason.
    Violation(&'static str),
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

    /// How many bytes may be granted to the peer or wait for the local stream. `None` without flow
    /// control.
    pub fn window(&self) -> Option<u64> {
        self.flow.as_deref().map(Flow::window)
    }

    /// Whether bytes or the end of the peer's direction wait for a write.
    pub(crate) fn wants_flush(&self) -> bool {
        self.waiting() > 0 || self.output_ended && !self.output_shut
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
        self.record.id()
    }

    pub(crate) fn service_type(&self) -> &str {
        self.record.service_type()
    }

    pub(crate) fn record(&self) -> &Arc<SessionRecord> {
        &self.record
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

    /// Whether there is nothing to do for the session but to move bytes: its local stream has neither
    /// failed nor ended, and blocks nobody.
    pub(crate) fn is_untroubled(&self) -> bool {
        !self.input_ended && self.blocked.is_none() && !self.has_failed()
    }

    pub(crate) fn connect(&mut self, stream: S) {
        self.local = Some(Local::new(stream));
    }

    pub(crate) fn release_early(&mut self) {
        self.released = true;
    }

    /// Whether to read the local stream, if there is room towards the peer.
    pub fn wants_read(&self) -> bool {
        !self.input_ended && self.may_send() > 0
    }

    /// The number of bytes that the peer lets this end send.
    pub(crate) fn may_send(&self) -> usize {
        let credit = self.flow.as_deref().map_or(u64::MAX, Flow::may_send);
        usize::try_from(credit).unwrap_or(usize::MAX)
    }

    /// Whether both ends can end their directions one by one.
    pub(crate) fn has_eof(&self) -> bool {
        self.has_eof
    }

    /// Whether the session is open and no byte has come or gone for this long.
    pub(crate) fn is_idle(&mut self, limit: Duration, now: Instant) -> bool {
        let sum = self.record.counters().sum();
        let (before, since) = **self.activity.get_or_insert_with(|| Box::new((sum, now)));
        if sum != before {
            self.activity = Some(Box::new((sum, now)));
            return false;
        }
        self.is_connected() && now >= since + limit
    }

    /// When [`is_idle`](Self::is_idle) has to be called.
    pub(crate) fn idle_at(&self, limit: Duration, now: Instant) -> Instant {
        self.activity.as_deref().map_or(now, |(_, since)| *since) + limit
    }

    /// Sets the extensions that hold for the session. `flow` is used if flow control is one of them.
    pub(crate) fn agree(&mut self, extensions: Extensions, flow: Flow) {
        self.has_eof = extensions.eof;
        self.flow = extensions.credit.then(|| Box::new(flow));
    }

    /// The extensions that hold for the session, and the credit that this end granted at first, as
    /// the fields of a response.
    pub(crate) fn terms(&self) -> Fields {
        let extensions = Extensions { eof: self.has_eof, credit: self.flow.is_some() };
        let credit = self.flow.as_deref().map_or(0, Flow::window);
        Fields { extensions, credit, eof: false }
    }

    /// Whether both directions have ended and the local stream has been told so.
    pub fn is_finished(&self) -> bool {
        self.has_eof && self.input_ended && self.output_shut
    }

    /// Whether bytes are lost: the local stream no longer takes bytes, and its own direction has
    /// ended.
    pub(crate) fn is_lost(&self) -> bool {
        let is_closed = self.local.as_ref().is_some_and(Local::is_closed);
        is_closed && self.input_ended && !self.output_shut
    }

    /// Whether the peer's release is the orderly end of the session. `is_cut`: what its code and
    /// its text say.
    pub(crate) fn ends_in_order(&self, is_cut: bool) -> bool {
        if self.has_eof {
            self.input_ended && self.output_ended
        } else {
            !is_cut
        }
    }

    /// When a session with one ended direction has been silent for too long. `None`: never.
    pub(crate) fn silent_at(&self, limit: Option<Duration>) -> Option<Instant> {
        let waits = if self.has_eof { self.is_finished() } else { self.input_ended };
        // A local stream that still has bytes to take is slow, not silent.
        let is_silent = waits && self.waiting() == 0;
        self.last_byte.zip(limit).filter(|_| is_silent).map(|(last, limit)| last + limit)
    }

    /// The local stream has ended its direction.
    pub(crate) fn end_input(&mut self, now: Instant) {
        self.input_ended = true;
        self.last_byte = Some(now);
    }

    pub(crate) fn shrink(&mut self) {
        self.batch.shrink_to_fit();
    }

    /// Takes a data frame: its payload and its extension fields. Notes the position of the payload
    /// in the receive buffer, or copies the payload if it is not there.
    fn take(&mut self, frame: &Frame<'_>, at: Option<usize>, most: usize, now: Instant) -> Taken {
        if !frame.payload.is_empty() {
            match self.take_payload(frame.payload, at, most) {
                Taken::Whole => {}
                other => return other,
            }
            if let Some(last_byte) = &mut self.last_byte {
                *last_byte = now;
            }
        }
        self.output_ended |= frame.eof && self.has_eof;
        match (&mut self.flow, frame.credit) {
            (Some(flow), Credit::Bytes(bytes)) => match flow.add_credit(bytes) {
                true => Taken::Whole,
                false => Taken::Violation(reason::BAD_CREDIT),
            },
            (Some(_), Credit::Invalid) => Taken::Violation(reason::BAD_CREDIT),
            _ => Taken::Whole,
        }
    }

    fn take_payload(&mut self, payload: &[u8], at: Option<usize>, most: usize) -> Taken {
        let (waiting, length) = (self.waiting(), payload.len());
        if self.output_ended {
            return Taken::Violation(reason::DATA_AFTER_END);
        }
        let is_full = match &self.flow {
            Some(flow) if !flow.admits(length) => return Taken::Violation(reason::OVER_CREDIT),
            Some(_) => false,
            None => waiting > 0 && waiting + length > most,
        };
        if is_full || self.batch.len() == MAX_BATCH {
            return Taken::Full;
        }
        match at {
            Some(at) => {
                self.batch.push(at..at + length);
                self.batched += length;
            }
            None if self.batched > 0 => return Taken::Full,
            None => self.buffer.push(payload),
        }
        if let Some(flow) = &mut self.flow {
            flow.received(length);
        }
        self.record.counters().add_received(length);
        Taken::Whole
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

    /// Writes the local buffer to the local stream. Then ends the stream's direction if the peer
    /// has ended it.
    pub(crate) fn write_buffer(&mut self, now: Instant) {
        let Some(local) = &mut self.local else { return };
        if !self.buffer.is_empty() {
            self.buffer.write(local);
            self.last_byte = self.last_byte.map(|_| now);
        }
        if let Some(blocked) = &mut self.blocked {
            blocked.update(local.taken(), now);
        }
        if self.output_ended && self.buffer.is_empty() && self.batch.is_empty() {
            if !self.output_shut && !local.is_closed() {
                local.shut_down();
                self.output_shut = true;
            }
            self.last_byte.get_or_insert(now);
        }
    }

    /// The full local buffer keeps the connection from being read.
    pub(crate) fn block(&mut self, now: Instant) {
        let taken = self.local.as_ref().map_or(0, Local::taken);
        self.blocked.get_or_insert_with(|| Box::new(Progress::new(taken, now))).update(taken, now);
    }
}

/// The codes of the releases that one end sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReleaseCodes {
    /// After an orderly end.
    pub orderly: u8,
    /// After a cut. A peer that does not know the texts of this project sees only the code.
    pub cut: u8,
}

/// The sessions of one connection.
pub struct Sessions<S: LocalStream> {
    /// Each in a box: a table of the sessions themselves would keep room for as many again.
    pub(crate) open: Vec<Box<Session<S>>>,
    pub(crate) lingering: Vec<Lingering<S>>,
    pub(crate) limits: SessionLimits,
    recent: RecentIds,
    /// The codes of the releases that this end sends.
    codes: ReleaseCodes,
    next_key: u64,
    /// The last frame id that this end used.
    frame_id: u64,
    /// Scratch memory for a header.
    header: Vec<u8>,
}

impl<S: LocalStream> Sessions<S> {
    pub(crate) fn new(
        limits: SessionLimits,
        codes: ReleaseCodes,
        lingering: Vec<Lingering<S>>,
    ) -> Self {
        Sessions {
            open: Vec::new(),
            lingering,
            limits,
            recent: RecentIds::default(),
            codes,
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
        self.open.iter().position(|session| session.id() == id && !session.released)
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
        self.open.push(Box::new(Session {
            key: self.next_key,
            record: Arc::new(SessionRecord::new(id, service_type)),
            local,
            header: DataHeader::new(id),
            batch: Vec::new(),
            batched: 0,
            buffer: LocalBuffer::default(),
            blocked: None,
            is_bulk: false,
            released: false,
            has_eof: false,
            flow: None,
            input_ended: false,
            output_ended: false,
            output_shut: false,
            last_byte: None,
            activity: None,
        }));
        self.next_key
    }

    /// Passes a data frame to its session.
    pub(crate) fn data(
        &mut self,
        index: usize,
        frame: &Frame<'_>,
        at: Option<usize>,
        now: Instant,
    ) -> Taken {
        self.open[index].take(frame, at, self.limits.session_buffer, now)
    }

    /// Queues bytes from a local stream as data frames of at most `most` bytes.
    pub(crate) fn queue(&mut self, index: usize, bytes: &[u8], most: usize, sender: &mut Sender) {
        let session = &mut self.open[index];
        for payload in bytes.chunks(most) {
            self.frame_id += 1;
            let fields = Fields::default();
            session.header.write_with(session.id(), self.frame_id, fields, &mut self.header);
            sender.binary(&self.header, payload);
        }
        if let Some(flow) = &mut session.flow {
            flow.sent(bytes.len());
        }
        session.record.counters().add_sent(bytes.len());
    }

    /// The local stream of a session with half-close has ended its direction. Tells the peer.
    pub(crate) fn end_input(&mut self, index: usize, now: Instant, sender: &mut Sender) {
        self.open[index].end_input(now);
        self.queue_fields(index, Fields { eof: true, ..Fields::default() }, sender);
    }

    /// Queues a data frame without payload.
    fn queue_fields(&mut self, index: usize, fields: Fields, sender: &mut Sender) {
        self.frame_id += 1;
        let session = &self.open[index];
        session.header.write_with(session.id(), self.frame_id, fields, &mut self.header);
        sender.binary(&self.header, &[]);
    }

    /// Flow control for a new session.
    pub(crate) fn new_flow(&self, now: Instant) -> Flow {
        Flow::new(self.limits.window.first, now)
    }

    /// Grants the peer what the local streams have taken.
    pub(crate) fn grant(&mut self, sender: &mut Sender, now: Instant) {
        let WindowLimits { first, session, growth } = self.limits.window;
        let held = |session: &Session<S>| {
            session.flow.as_ref().map(|flow| flow.held(session.waiting()).saturating_sub(first))
        };
        let flows = self.open.iter().map(Box::as_ref).filter_map(held);
        let count = flows.clone().count();
        if count == 0 {
            return;
        }
        let grown: u64 = flows.sum();
        let share = growth / count as u64;
        let mut left = growth.saturating_sub(grown);
        for index in 0..self.open.len() {
            let session_ref = &mut self.open[index];
            let waiting = session_ref.waiting();
            let (is_connected, ended) = (session_ref.is_connected(), session_ref.output_ended);
            let Some(flow) = &mut session_ref.flow else { continue };
            if !is_connected || ended {
                continue;
            }
            let window = flow.window();
            let most = (first + share).min(window.max(first) + left).min(session.max(first));
            let credit = flow.grant(waiting, most, now);
            left -= flow.window().saturating_sub(window).min(left);
            if credit > 0 {
                self.queue_fields(index, Fields { credit, ..Fields::default() }, sender);
            }
        }
    }

    /// Handles data for a session that is not in the table. Tells the peer once.
    pub(crate) fn unknown(&mut self, frame: &Frame<'_>, cx: &mut Outputs<'_, impl Observer>) {
        let id = &*frame.session_id;
        if id.is_empty() || self.recent.contains(id) {
            return;
        }
        cx.journal.tell_limited(cx.now, Event::UnknownSession { id });
        self.write_release(id, self.codes.orderly, reason::UNKNOWN_SESSION, cx.sender);
    }

    /// Ends a session whose local stream is connected, and tells the peer.
    pub(crate) fn release(&mut self, index: usize, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        self.release_as(index, self.codes.orderly, why, cx);
    }

    fn release_as(
        &mut self,
        index: usize,
        code: u8,
        why: &str,
        cx: &mut Outputs<'_, impl Observer>,
    ) {
        let id = self.open[index].id().to_owned();
        self.close(index, cx);
        self.say_released(&id, code, why, cx);
    }

    /// Cuts the local stream of a session. It ends in a reset once its bytes are delivered.
    pub(crate) fn cut_local(&mut self, index: usize) {
        if let Some(local) = &mut self.open[index].local {
            local.cut();
        }
    }

    /// Ends a session that lost bytes for its local stream. Cuts the local stream.
    pub(crate) fn cut(&mut self, index: usize, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        let session = &mut self.open[index];
        if let Some(local) = &mut session.local {
            cx.journal.tell(Event::Cut { id: session.record.id(), reason: why });
            local.cut();
        }
        self.release_as(index, self.codes.cut, why, cx);
    }

    /// Ends a session whose local stream takes nothing. The stream does not linger, because the
    /// waiting bytes cannot be written.
    pub(crate) fn abandon(&mut self, index: usize, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        let mut session = self.open.remove(index);
        if let Some(local) = &mut session.local {
            local.cut();
        }
        cx.journal.tell(Event::Cut { id: session.id(), reason: why });
        cx.journal.tell(Event::Closed { id: session.id() });
        self.say_released(session.id(), self.codes.cut, why, cx);
    }

    fn say_released(&mut self, id: &str, code: u8, why: &str, cx: &mut Outputs<'_, impl Observer>) {
        cx.journal.tell(Event::Released { id });
        self.write_release(id, code, why, cx.sender);
    }

    fn write_release(&mut self, id: &str, code: u8, why: &str, sender: &mut Sender) {
        let frame_id = self.next_frame_id();
        frame::write_release(sender, id, frame_id, &frame::status(code, why));
        self.recent.push(id);
    }

    /// Releases a session that has no local stream.
    pub(crate) fn write_cut(&mut self, id: &str, why: &str, sender: &mut Sender) {
        self.write_release(id, self.codes.cut, why, sender);
    }

    /// Gives up the lingering stream that has stood still for longest, to make room for a session.
    /// Returns false if none stands still.
    pub(crate) fn give_up_lingering(&mut self, now: Instant) -> bool {
        let limit = self.limits.stall_timeout.unwrap_or(STILL);
        let still = self.lingering.iter().enumerate();
        let still = still.filter_map(|(index, one)| Some((one.still_since(limit, now)?, index)));
        let Some((_, index)) = still.min() else { return false };
        self.lingering.swap_remove(index).give_up();
        true
    }

    /// Removes a session from the table. Its local stream lingers until its last bytes are
    /// delivered.
    pub(crate) fn close(&mut self, index: usize, cx: &mut Outputs<'_, impl Observer>) {
        let session = self.open.remove(index);
        let Some(local) = session.local else { return };
        cx.journal.tell(Event::Closed { id: session.record.id() });
        // A session with flow control may stand still for as long as it likes, at its end, too, unless
        // it is cut: then nobody waits for the end.
        let is_patient = session.flow.is_some() && !local.is_cut();
        let stall_timeout = self.limits.stall_timeout.filter(|_| !is_patient);
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
