//! Between one connection and its local streams: what each message, byte and tick leads to. The hot
//! path of the device side and of the access side.
//!
//! A turn is: read the local streams, take what the peer sent, hand it to the local streams, send.
//! Each step is bounded, so a busy session delays its siblings by one turn at most.

use std::io;
use std::time::{Duration, Instant};

use crate::connection::{Connection, End, Received, Transport};
use crate::frame::{reason, Frame, FrameType};
use crate::observer::{Event, Journal, Observer};
use crate::schedule::{Schedule, READ};
use crate::session::{Lingering, LocalStream, Outputs, Session, SessionLimits, Sessions};
use crate::websocket::close;
use crate::Ready;

/// What an end of the tunnel does in its own way: who asks for sessions and who answers.
pub trait RelaySide {
    /// A local stream.
    type Stream: LocalStream;
    /// The code of its releases.
    const RELEASE_CODE: u8;
    /// Its words for a session whose local stream takes nothing.
    const STALLED: &'static str;

    /// Deals with a frame other than data.
    fn frame(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<Self::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) -> Step;

    /// Moves sessions on that are not open yet.
    fn step(&mut self, sessions: &mut Sessions<Self::Stream>, out: &mut Outputs<'_, impl Observer>);

    /// Refuses a session of the table that is not open yet.
    fn cancel(
        &mut self,
        key: u64,
        why: &str,
        sessions: &mut Sessions<Self::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    );

    /// When [`step`](Self::step) has something to do, whatever `poll` says.
    fn deadline(&self) -> Option<Instant>;

    /// The connection is over: no session is opened any more.
    fn conclude(&mut self);

    /// The connection is lost: local streams whose sessions are not open yet end in a reset.
    fn cut_pending(&mut self) {}

    /// Its words for the end of a local stream.
    fn end_of_stream(&self, service_type: &str, error: Option<&io::Error>) -> String;
}

/// What is left to do for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Done,
    /// The session at this index has no room for it, or must hand over its batch first.
    Flush(usize),
    /// The peer has released the session at this index.
    Released(usize),
    /// The session at this index has lost bytes.
    Cut(usize),
}

/// Limits of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Limits of its sessions.
    pub session: SessionLimits,
    /// How often lines about a peer that breaks the protocol are permitted again.
    pub log_window: Duration,
}

/// One open connection and its sessions. It reads no clock and waits for nothing: its owner says what
/// is ready and what time it is.
pub struct Relay<T: Transport, D: RelaySide, O> {
    connection: Connection<T>,
    sessions: Sessions<D::Stream>,
    side: D,
    journal: Journal<O>,
    schedule: Schedule,
    scratch: Vec<u8>,
    /// The session whose full buffer stops the reading of the connection.
    blocked: Option<usize>,
}

impl<T: Transport, D: RelaySide, O: Observer> Relay<T, D, O> {
    /// `lingering`: local streams of former connections that are still being closed.
    pub fn new(
        connection: Connection<T>,
        side: D,
        limits: RelayLimits,
        observer: O,
        lingering: Vec<Lingering<D::Stream>>,
    ) -> Self {
        Relay {
            connection,
            sessions: Sessions::new(limits.session, D::RELEASE_CODE, lingering),
            side,
            journal: Journal::new(observer, limits.log_window),
            schedule: Schedule::default(),
            scratch: Vec::new(),
            blocked: None,
        }
    }

    /// The connection.
    pub fn connection(&self) -> &Connection<T> {
        &self.connection
    }

    /// For what `poll` found of the connection.
    pub fn connection_mut(&mut self) -> &mut Connection<T> {
        &mut self.connection
    }

    /// The sessions in the table, in the order in which [`turn`](Self::turn) expects what `poll`
    /// found of them.
    pub fn sessions(&self) -> &[Session<D::Stream>] {
        &self.sessions.open
    }

    /// Local streams whose sessions are over.
    pub fn lingering(&self) -> &[Lingering<D::Stream>] {
        &self.sessions.lingering
    }

    /// The part that differs between the ends.
    pub fn side(&self) -> &D {
        &self.side
    }

    /// The part that differs between the ends.
    pub fn side_mut(&mut self) -> &mut D {
        &mut self.side
    }

    /// The observer.
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.journal.observer
    }

    /// Why the connection is over.
    pub fn end(&self) -> Option<&End> {
        self.connection.end()
    }

    pub(crate) fn parts(&mut self) -> (&mut D, &mut Sessions<D::Stream>, &mut Connection<T>) {
        (&mut self.side, &mut self.sessions, &mut self.connection)
    }

    /// Whether the connection is to be read: not while a full session stops it, nor while a peer that
    /// reads nothing lets the answers to it pile up.
    pub fn wants_input(&self) -> bool {
        self.blocked.is_none()
            && self.connection.waiting() < self.connection.hard_limit()
            && self.connection.reads()
    }

    /// Whether there is something to deal with that `poll` does not report.
    pub fn is_ready(&self) -> bool {
        self.connection.has_input() && self.wants_input()
    }

    /// Whether local streams are to be read.
    pub fn wants_local(&self) -> bool {
        self.connection.is_open() && !self.connection.over_high_water()
    }

    /// The nearest time at which [`turn`](Self::turn) has something to do, whatever `poll` says.
    pub fn deadline(&self, now: Instant) -> Instant {
        // The write that failed came after the turn's look at its sessions.
        if self.sessions.open.iter().any(Session::has_failed) {
            return now;
        }
        let mut nearest = self.connection.deadline(now, self.wants_input());
        if let Some(limit) = self.sessions.limits.stall_timeout {
            let blocked = self.sessions.open.iter().filter_map(|session| session.blocked_since);
            nearest = blocked.fold(nearest, |nearest, since| nearest.min(since + limit));
        }
        let lingering = self.sessions.lingering.iter().map(|lingering| lingering.deadline(now));
        let others = self.side.deadline().into_iter().chain(self.journal.deadline());
        lingering.chain(others).fold(nearest, Instant::min)
    }

    /// Deals with what `poll` found. `ready`: what it found of the sessions, in the table's order.
    pub fn turn(&mut self, now: Instant, ready: &[Ready]) {
        let read = self.locals(now, ready);
        // Before the connection is read, which one of these may have stopped.
        self.step_sessions(now);
        // With much to send, no more is received than was read: neither direction starves the other.
        self.receive(now, if read < READ { usize::MAX } else { read });
        self.tick(now);
        self.connection.flush(now);
        self.step_lingering(now);
    }

    /// Reads the connection, and deals with what came.
    fn receive(&mut self, now: Instant, most: usize) {
        self.deal(now);
        if self.wants_input() {
            self.connection.receive(now, most);
            self.deal(now);
        }
    }

    /// Deals with the messages in the receive buffer, until it is empty or a session is full.
    fn deal(&mut self, now: Instant) {
        self.blocked = None;
        if self.connection.has_messages() {
            self.deal_messages(now);
        }
        let (receiver, _) = self.connection.halves();
        for (index, session) in self.sessions.open.iter_mut().enumerate() {
            if session.waiting() > 0 {
                session.flush(receiver, now);
            }
            if self.blocked != Some(index) {
                session.blocked_since = None;
            }
        }
    }

    fn deal_messages(&mut self, now: Instant) {
        while self.connection.waiting() < self.connection.hard_limit() {
            let Relay { connection, sessions, side, journal, .. } = self;
            let Some((received, sender)) = connection.peek(now) else { break };
            let mut out = Outputs { sender, journal, now };
            let step = match received {
                Received::Frame(frame, at) if frame.frame_type == FrameType::DataTransport => {
                    match sessions.find(&frame.session_id) {
                        Some(index) if sessions.data(index, frame.payload, at) => Step::Done,
                        Some(index) => Step::Flush(index),
                        None => {
                            sessions.unknown(&frame, &mut out);
                            Step::Done
                        }
                    }
                }
                Received::Frame(frame, _) => side.frame(&frame, sessions, &mut out),
                Received::Dropped { what, lossy } => {
                    out.journal.tell_limited(now, Event::Dropped(&what));
                    let lossy = lossy.and_then(|frame| sessions.find(&frame.session_id));
                    lossy.map_or(Step::Done, Step::Cut)
                }
                Received::Pong => {
                    out.journal.tell(Event::Pong);
                    Step::Done
                }
            };
            match step {
                Step::Done => {}
                Step::Flush(index) => {
                    if self.flush_full(index, now) {
                        continue;
                    }
                    break;
                }
                Step::Released(index) => self.released(index, now),
                Step::Cut(index) => {
                    let (receiver, _) = self.connection.halves();
                    self.sessions.open[index].flush(receiver, now);
                    self.release(index, reason::FRAME_TOO_LONG, true, now);
                }
            }
            self.connection.consume();
        }
    }

    /// Makes room in a session. Without success it stops the reading of the connection.
    fn flush_full(&mut self, index: usize, now: Instant) -> bool {
        let (receiver, _) = self.connection.halves();
        let session = &mut self.sessions.open[index];
        let before = (session.waiting(), session.batch().0);
        session.flush(receiver, now);
        if (session.waiting(), session.batch().0) != before {
            return true;
        }
        session.blocked_since.get_or_insert(now);
        self.blocked = Some(index);
        false
    }

    /// The peer has released a session: what it sent before still goes to the local stream.
    fn released(&mut self, index: usize, now: Instant) {
        let Relay { connection, sessions, side, journal, .. } = self;
        let (receiver, sender) = connection.halves();
        let session = &mut sessions.open[index];
        journal.tell(Event::Released { id: session.id() });
        session.flush(receiver, now);
        let mut out = Outputs { sender, journal, now };
        if session.is_connected() {
            sessions.close(index, &mut out);
        } else if session.waiting() > 0 {
            session.release_early();
        } else {
            let key = session.key();
            side.cancel(key, "released before it was connected", sessions, &mut out);
        }
    }

    /// Ends a session from this end: by a release, or by the answer that its creation awaits.
    fn release(&mut self, index: usize, why: &str, cut: bool, now: Instant) {
        let Relay { connection, sessions, side, journal, .. } = self;
        let mut out = Outputs { sender: connection.sender(), journal, now };
        let session = &sessions.open[index];
        match (session.is_connected(), cut) {
            (false, _) => side.cancel(session.key(), why, sessions, &mut out),
            (true, false) => sessions.release(index, why, &mut out),
            (true, true) => sessions.cut(index, why, &mut out),
        }
    }

    /// Moves the local streams on, as `poll` found them ready: the bytes that were read.
    fn locals(&mut self, now: Instant, ready: &[Ready]) -> usize {
        let Relay { connection, sessions, side, journal, schedule, scratch, .. } = self;
        let limit = if connection.is_open() { connection.high_water() } else { 0 };
        let sender = connection.sender();
        let reads = schedule.read(sessions, sender, scratch, limit, ready);
        let has_ended = !reads.ended.is_empty();
        let mut out = Outputs { sender, journal, now };
        // From the back, so that the positions of the others stay.
        for (index, error) in reads.ended.into_iter().rev() {
            let service_type = sessions.open[index].service_type();
            let why = side.end_of_stream(service_type, error.as_ref());
            sessions.release(index, &why, &mut out);
        }
        // If a session has ended, the next turn sees to the others.
        if !has_ended {
            for (session, ready) in sessions.open.iter_mut().zip(ready) {
                if ready.write {
                    session.write_buffer(now);
                }
            }
        }
        reads.bytes
    }

    /// Ends sessions whose local streams have failed or stalled, and moves on those to come.
    fn step_sessions(&mut self, now: Instant) {
        let Relay { connection, sessions, side, journal, .. } = self;
        let mut out = Outputs { sender: connection.sender(), journal, now };
        for index in (0..sessions.open.len()).rev() {
            let session = &mut sessions.open[index];
            let failure = session.local_mut().and_then(|local| local.take_failure());
            if let Some(e) = failure {
                let why = side.end_of_stream(session.service_type(), Some(&e));
                sessions.cut(index, &why, &mut out);
                continue;
            }
            let (limit, since) = (sessions.limits.stall_timeout, session.blocked_since);
            let stalls_at = since.zip(limit).map(|(since, limit)| since + limit);
            if session.is_connected() && stalls_at.is_some_and(|at| now >= at) {
                sessions.abandon(index, D::STALLED, &mut out);
            }
        }
        side.step(sessions, &mut out);
    }

    fn tick(&mut self, now: Instant) {
        self.journal.tick(now);
        let ticked = self.connection.tick(now, self.blocked.is_none());
        if ticked.pinged {
            self.journal.tell(Event::Pinged);
        }
        if ticked.shrunk {
            self.scratch = Vec::new();
            self.sessions.open.iter_mut().for_each(Session::shrink);
        }
    }

    fn step_lingering(&mut self, now: Instant) {
        if !self.sessions.lingering.is_empty() {
            self.scratch.resize(READ, 0);
            let scratch = &mut self.scratch;
            self.sessions.lingering.retain_mut(|lingering| !lingering.step(now, scratch));
        }
    }

    /// From now on what was received is handed over whatever room there is, and no session is opened:
    /// the connection is over.
    fn conclude(&mut self) {
        self.side.conclude();
        self.sessions.limits.session_buffer = usize::MAX;
        self.connection.set_high_water(usize::MAX / 4);
    }

    /// Releases every session and begins the closing handshake.
    pub fn close(&mut self, why: &'static str, now: Instant) {
        self.release_all(why, now);
        self.connection.close(close::NORMAL, why, now);
    }

    /// As [`close`](Self::close), but waits for the answer as long as what was sent gets through.
    pub fn close_gently(&mut self, why: &'static str, now: Instant) {
        self.release_all(why, now);
        self.connection.close_gently(close::NORMAL, why, now);
    }

    fn release_all(&mut self, why: &str, now: Instant) {
        self.conclude();
        self.deal(now);
        if self.connection.is_open() {
            for index in (0..self.sessions.open.len()).rev() {
                self.release(index, why, false, now);
            }
        }
    }

    /// The connection is lost: takes its last words, and ends every session in a reset once what came
    /// for it is delivered.
    pub fn cut_all(&mut self, now: Instant) {
        self.take_last_words(now);
        self.side.cut_pending();
        for session in &mut self.sessions.open {
            if let Some(local) = session.local_mut() {
                local.cut();
            }
        }
        self.close_all(now);
    }

    /// Ends the connection and gives back the local streams that still have bytes to take.
    pub fn into_lingering(mut self, now: Instant) -> Vec<Lingering<D::Stream>> {
        self.connection.flush(now);
        self.take_last_words(now);
        self.close_all(now);
        std::mem::take(&mut self.sessions.lingering)
    }

    /// What came before the end counts, though it may stand in the kernel behind a failed write.
    fn take_last_words(&mut self, now: Instant) {
        if self.connection.is_open() {
            self.conclude();
            self.connection.ready(true, false);
            self.receive(now, usize::MAX);
        }
    }

    fn close_all(&mut self, now: Instant) {
        let Relay { connection, sessions, journal, .. } = self;
        let mut out = Outputs { sender: connection.sender(), journal, now };
        for index in (0..sessions.open.len()).rev() {
            sessions.close(index, &mut out);
        }
    }
}
