//! Moves bytes between one connection and its local streams: what each message, byte and deadline
//! leads to. This is the hot path of the device side and of the access side.
//!
//! One turn reads the local streams, receives from the peer, writes to the local streams and sends
//! to the peer. Each step is bounded, so a busy session delays the others by one turn at most.

use std::io;
use std::time::{Duration, Instant};

use crate::connection::{Connection, End, Received, Transport};
use crate::frame::{reason, Frame, FrameType};
use crate::observer::{Event, Journal, Observer};
use crate::schedule::{Room, Schedule, READ};
use crate::session::{
    Lingering, LocalStream, Outputs, ReleaseCodes, Session, SessionLimits, Sessions, Taken,
};
use crate::websocket::close;
use crate::Ready;

/// The part that differs between the device side and the access side: which of them asks for
/// sessions and which answers.
pub trait RelaySide {
    /// The type of the local streams.
    type Stream: LocalStream;
    /// The codes of the releases that this side sends.
    const RELEASE_CODES: ReleaseCodes;
    /// The text of the release of a session whose local stream takes nothing.
    const STALLED: &'static str;
    /// Whether this side releases a session once both directions have ended.
    const RELEASES_FINISHED: bool;

    /// Handles a frame that is not a data frame.
    fn frame(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<Self::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) -> Step;

    /// Advances the sessions that are being opened.
    fn step(&mut self, sessions: &mut Sessions<Self::Stream>, out: &mut Outputs<'_, impl Observer>);

    /// Refuses a session that is in the table but not open yet.
    fn cancel(
        &mut self,
        key: u64,
        why: &str,
        sessions: &mut Sessions<Self::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    );

    /// Handles data for a session that is not in the table.
    fn unknown(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<Self::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        sessions.unknown(frame, out);
    }

    /// When [`step`](Self::step) has to be called even if `poll` reports nothing.
    fn deadline(&self) -> Option<Instant>;

    /// Whether [`step`](Self::step) has to be called at once, because only so many sessions are
    /// left.
    fn is_due(&self, _sessions: usize) -> bool {
        false
    }

    /// The connection ends. From now on no session is opened.
    fn conclude(&mut self);

    /// The connection is not read at present, so no answer can be seen. Time that passes does not
    /// count.
    fn not_read(&mut self, _now: Instant) {}

    /// The connection is lost. Cuts the local streams whose sessions are not open yet.
    fn cut_pending(&mut self) {}

    /// The text of the release of a session whose local stream has ended.
    fn end_of_stream(&self, service_type: &str, error: Option<&io::Error>) -> String;
}

/// What the relay still has to do for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Done,
    /// The session at this index has no room for the payload, or must write its batch first.
    Flush(usize),
    /// The peer has released the session at this index.
    Released {
        /// The index of the session.
        index: usize,
        /// The code or the text of the release tells that the stream was cut.
        is_cut: bool,
    },
    /// The session at this index has lost bytes, or its peer broke the protocol.
    Cut(usize, &'static str),
}

/// Limits of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Limits of its sessions.
    pub session: SessionLimits,
    /// The period of the log limiter for lines about a peer that breaks the protocol.
    pub log_window: Duration,
}

/// One open connection and its sessions. It reads no clock and does not wait. Its owner tells it
/// what is ready and what time it is.
pub struct Relay<T: Transport, D: RelaySide, O> {
    connection: Connection<T>,
    sessions: Sessions<D::Stream>,
    side: D,
    journal: Journal<O>,
    schedule: Schedule,
    scratch: Vec<u8>,
    /// The session whose full local buffer keeps the connection from being read.
    blocked: Option<usize>,
    /// The local streams had much to send in the turn before.
    was_busy: bool,
}

impl<T: Transport, D: RelaySide, O: Observer> Relay<T, D, O> {
    /// Makes a relay. `lingering` holds the local streams of former connections that still linger.
    pub fn new(
        connection: Connection<T>,
        side: D,
        limits: RelayLimits,
        observer: O,
        lingering: Vec<Lingering<D::Stream>>,
    ) -> Self {
        Relay {
            connection,
            sessions: Sessions::new(limits.session, D::RELEASE_CODES, lingering),
            side,
            journal: Journal::new(observer, limits.log_window),
            schedule: Schedule::default(),
            scratch: Vec::new(),
            blocked: None,
            was_busy: false,
        }
    }

    /// The connection.
    pub fn connection(&self) -> &Connection<T> {
        &self.connection
    }

    /// The connection. The owner passes on what `poll` reported for it.
    pub fn connection_mut(&mut self) -> &mut Connection<T> {
        &mut self.connection
    }

    /// The sessions in the table. [`turn`](Self::turn) expects the results of `poll` in this order.
    pub fn sessions(&self) -> &[Box<Session<D::Stream>>] {
        &self.sessions.open
    }

    /// The lingering local streams: their sessions have ended.
    pub fn lingering(&self) -> &[Lingering<D::Stream>] {
        &self.sessions.lingering
    }

    /// The part that differs between device side and access side.
    pub fn side(&self) -> &D {
        &self.side
    }

    /// The part that differs between device side and access side.
    pub fn side_mut(&mut self) -> &mut D {
        &mut self.side
    }

    /// The observer.
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.journal.observer
    }

    /// Why the connection ended. `None` while it has not.
    pub fn end(&self) -> Option<&End> {
        self.connection.end()
    }

    pub(crate) fn parts(&mut self) -> (&mut D, &mut Sessions<D::Stream>, &mut Connection<T>) {
        (&mut self.side, &mut self.sessions, &mut self.connection)
    }

    /// Whether the connection is to be read. It is not read while a full session without flow
    /// control blocks it, nor while too many answers wait for a peer that does not read them. The
    /// owner then still watches for its end ([`Connection::hang_up`]).
    pub fn wants_input(&self) -> bool {
        self.blocked.is_none()
            && self.connection.waiting() < self.connection.hard_limit()
            && self.connection.reads()
    }

    /// Whether to wait for the peer's close, because an open connection is not read.
    pub fn watches_end(&self) -> bool {
        !self.wants_input() && self.connection.is_open() && self.connection.end().is_none()
    }

    /// Whether local streams are to be read.
    pub fn wants_local(&self) -> bool {
        self.connection.is_open() && !self.connection.over_high_water()
    }

    /// When [`turn`](Self::turn) has to be called even if `poll` reports nothing.
    pub fn deadline(&self, now: Instant) -> Instant {
        // The end came after the turn's look at its sessions.
        let is_over = |session: &Session<_>| {
            let is_finished = D::RELEASES_FINISHED && session.is_finished();
            session.has_failed() || session.is_lost() || is_finished
        };
        let is_due = self.side.is_due(self.sessions.open.len());
        if is_due || self.sessions.open.iter().map(Box::as_ref).any(is_over) {
            return now;
        }
        if self.connection.is_gone() && self.sessions.open.is_empty() {
            // Only the last bytes are left. A connection that is gone needs no attention.
            let lingering = self.sessions.lingering.iter().map(|one| one.deadline(now));
            return lingering.min().unwrap_or(now);
        }
        let mut nearest = self.connection.deadline(now, self.wants_input());
        let limits = &self.sessions.limits;
        if let Some(limit) = limits.stall_timeout.filter(|_| self.sessions.open.len() > 1) {
            let blocked =
                self.sessions.open.iter().filter_map(|session| session.blocked.as_deref());
            nearest = blocked.map(|progress| progress.deadline(limit)).fold(nearest, Instant::min);
        }
        if let Some(limit) = limits.idle_timeout {
            let idle = self.sessions.open.iter().map(|session| session.idle_at(limit, now));
            nearest = idle.fold(nearest, Instant::min);
        }
        let silent = |session: &Session<_>| session.silent_at(limits.half_close_timeout);
        nearest = self
            .sessions
            .open
            .iter()
            .map(Box::as_ref)
            .filter_map(silent)
            .fold(nearest, Instant::min);
        let lingering = self.sessions.lingering.iter().map(|lingering| lingering.deadline(now));
        let others = self.side.deadline().into_iter().chain(self.journal.deadline());
        lingering.chain(others).fold(nearest, Instant::min)
    }

    /// Does one turn. `ready` holds what `poll` reported for the sessions, in the order of the
    /// table.
    pub fn turn(&mut self, now: Instant, ready: &[Ready]) {
        let read = self.locals(now, ready);
        // This may unblock the connection, so it comes before the connection is read.
        self.step_sessions(now);
        // While the local streams have much to send, receive about as much as was read from them.
        // Then neither direction starves the other. A busy local stream whose window is small has
        // little to read in some turns between.
        let busy = read >= READ / 4;
        let limit = if busy || self.was_busy { read.max(READ) } else { usize::MAX };
        self.was_busy = busy;
        self.receive(now, limit);
        if self.connection.is_open() {
            let (_, sender) = self.connection.halves();
            self.sessions.grant(sender, now);
        }
        self.tick(now);
        self.connection.flush(now);
        self.step_lingering(now);
    }

    /// Processes the received messages, reads the connection and processes the new messages.
    fn receive(&mut self, now: Instant, most: usize) {
        self.deal(now);
        if self.wants_input() {
            self.connection.receive(now, most);
            self.deal(now);
        }
    }

    /// Processes the messages in the receive buffer until it is empty or a session is full.
    fn deal(&mut self, now: Instant) {
        loop {
            self.blocked = None;
            if self.connection.has_messages() {
                self.deal_messages(now);
            }
            self.flush_sessions(now);
            // A local stream may have taken everything since its session was found full. Such a
            // session waits for nothing, so nothing would unblock the connection.
            let Some(index) = self.blocked else { break };
            if self.sessions.open[index].waiting() > 0 {
                break;
            }
        }
    }

    fn flush_sessions(&mut self, now: Instant) {
        let (receiver, _) = self.connection.halves();
        for (index, session) in self.sessions.open.iter_mut().enumerate() {
            if session.wants_flush() {
                session.flush(receiver, now);
            }
            if self.blocked != Some(index) {
                session.blocked = None;
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
                        Some(index) => match sessions.data(index, &frame, at, now) {
                            Taken::Whole => Step::Done,
                            Taken::Full => Step::Flush(index),
                            Taken::Violation(why) => Step::Cut(index, why),
                        },
                        None => {
                            side.unknown(&frame, sessions, &mut out);
                            Step::Done
                        }
                    }
                }
                Received::Frame(frame, _) => side.frame(&frame, sessions, &mut out),
                Received::Dropped { what, loss } => {
                    out.journal.tell_limited(now, Event::Dropped(&what));
                    let lost = loss.and_then(|loss| Some((sessions.find(&loss.session_id)?, loss)));
                    lost.map_or(Step::Done, |(index, loss)| Step::Cut(index, loss.reason))
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
                Step::Released { index, is_cut } => self.released(index, is_cut, now),
                Step::Cut(index, why) => {
                    let (receiver, _) = self.connection.halves();
                    self.sessions.open[index].flush(receiver, now);
                    self.release(index, why, true, now);
                }
            }
            self.connection.consume();
        }
    }

    /// Makes room in a full session. Returns false if there is none; then the connection is no
    /// longer read.
    fn flush_full(&mut self, index: usize, now: Instant) -> bool {
        let (receiver, _) = self.connection.halves();
        let session = &mut self.sessions.open[index];
        let before = (session.waiting(), session.batch().0);
        session.flush(receiver, now);
        if (session.waiting(), session.batch().0) != before {
            return true;
        }
        session.block(now);
        self.blocked = Some(index);
        false
    }

    /// The peer released a session. The bytes it sent before still go to the local stream. If the
    /// release is not the orderly end of the session, the stream is cut behind them.
    fn released(&mut self, index: usize, is_cut: bool, now: Instant) {
        let Relay { connection, sessions, side, journal, .. } = self;
        let (receiver, sender) = connection.halves();
        let session = &mut sessions.open[index];
        journal.tell(Event::Released { id: session.id() });
        session.flush(receiver, now);
        let mut out = Outputs { sender, journal, now };
        let is_orderly = session.ends_in_order(is_cut);
        if session.is_connected() {
            if !is_orderly {
                sessions.cut_local(index);
            }
            sessions.close(index, &mut out);
        } else if session.waiting() > 0 && is_orderly {
            session.release_early();
        } else {
            let key = session.key();
            side.cancel(key, "released before it was connected", sessions, &mut out);
        }
    }

    /// Ends a session from this end. An open session is released; one that is being opened is
    /// refused.
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

    /// Reads and writes the local streams that `poll` reported ready. Returns the number of bytes
    /// read.
    fn locals(&mut self, now: Instant, ready: &[Ready]) -> usize {
        let Relay { connection, sessions, side, journal, schedule, scratch, .. } = self;
        let limit = if connection.is_open() { connection.high_water() } else { 0 };
        let payload = connection.payload_size();
        let sender = connection.sender();
        let reads = schedule.read(sessions, sender, scratch, Room { limit, payload }, ready);
        let has_ended = !reads.ended.is_empty();
        let mut out = Outputs { sender, journal, now };
        // From the back, so that the remaining indices stay valid.
        for (index, error) in reads.ended.into_iter().rev() {
            let session = &mut sessions.open[index];
            match error {
                None if session.has_eof() => sessions.end_input(index, now, out.sender),
                None if sessions.limits.half_close_timeout.is_some() => session.end_input(now),
                error => {
                    let why = side.end_of_stream(session.service_type(), error.as_ref());
                    match error {
                        None => sessions.release(index, &why, &mut out),
                        Some(_) => sessions.cut(index, &why, &mut out),
                    }
                }
            }
        }
        // The indices have shifted if a session has ended. The next turn writes to the others.
        if !has_ended {
            for (session, ready) in sessions.open.iter_mut().zip(ready) {
                if ready.write {
                    session.write_buffer(now);
                }
            }
        }
        reads.bytes
    }

    /// Ends the sessions whose local streams failed or stalled, and advances those that are being
    /// opened.
    fn step_sessions(&mut self, now: Instant) {
        let Relay { connection, sessions, side, journal, .. } = self;
        let mut out = Outputs { sender: connection.sender(), journal, now };
        let has_siblings = sessions.open.len() > 1;
        for index in (0..sessions.open.len()).rev() {
            let session = &mut sessions.open[index];
            if session.is_untroubled() && sessions.limits.idle_timeout.is_none() {
                continue;
            }
            let failure = session.local_mut().and_then(|local| local.take_failure());
            if let Some(e) = failure {
                let why = side.end_of_stream(session.service_type(), Some(&e));
                sessions.cut(index, &why, &mut out);
                continue;
            }
            if session.is_lost() {
                let why = side.end_of_stream(session.service_type(), None);
                match session.has_eof() {
                    true => sessions.cut(index, &why, &mut out),
                    false => sessions.release(index, &why, &mut out),
                }
                continue;
            }
            let is_finished = D::RELEASES_FINISHED && session.is_finished();
            let silent = session.silent_at(sessions.limits.half_close_timeout);
            if is_finished || silent.is_some_and(|at| now >= at) {
                let is_orderly = session.is_finished();
                let words = side.end_of_stream(session.service_type(), None);
                // Without half-close, nothing tells whether the peer has sent everything.
                if !is_orderly {
                    sessions.cut_local(index);
                }
                sessions.release(index, &words, &mut out);
                continue;
            }
            let idle = sessions.limits.idle_timeout;
            if idle.is_some_and(|limit| sessions.open[index].is_idle(limit, now)) {
                sessions.cut(index, reason::IDLE, &mut out);
                continue;
            }
            let session = &sessions.open[index];
            // A session that holds up nobody may stand still.
            let limit = sessions.limits.stall_timeout.filter(|_| has_siblings);
            let stalls_at =
                session.blocked.as_deref().zip(limit).map(|(one, limit)| one.deadline(limit));
            if session.is_connected() && stalls_at.is_some_and(|at| now >= at) {
                sessions.abandon(index, D::STALLED, &mut out);
            }
        }
        side.step(sessions, &mut out);
    }

    fn tick(&mut self, now: Instant) {
        self.journal.tick(now);
        if self.blocked.is_some() {
            self.side.not_read(now);
        }
        let ticked = self.connection.tick(now, self.blocked.is_none());
        if ticked.pinged {
            self.journal.tell(Event::Pinged);
        }
        if ticked.shrunk {
            self.scratch = Vec::new();
            self.sessions.open.iter_mut().map(Box::as_mut).for_each(Session::shrink);
        }
    }

    fn step_lingering(&mut self, now: Instant) {
        if !self.sessions.lingering.is_empty() {
            self.scratch.resize(READ, 0);
            let scratch = &mut self.scratch;
            self.sessions.lingering.retain_mut(|lingering| !lingering.step(now, scratch));
        }
    }

    /// Prepares the end of the connection. From now on all received bytes are accepted, whatever
    /// the limits, and no session is opened.
    fn conclude(&mut self) {
        self.side.conclude();
        self.sessions.limits.session_buffer = usize::MAX;
        self.connection.lift_limits();
    }

    /// Releases every session and begins the closing handshake.
    pub fn close(&mut self, why: &'static str, now: Instant) {
        self.release_all(why, now);
        self.connection.close(close::NORMAL, why, now);
    }

    /// Like [`close`](Self::close), after the failure of the local stream: `why` is the reason of
    /// the releases.
    pub fn fail(&mut self, why: &str, now: Instant) {
        self.release_all(why, now);
        self.connection.close(close::NORMAL, "the local stream has failed", now);
    }

    /// Like [`close`](Self::close), but waits longer for the answer while queued bytes still get
    /// through.
    pub fn close_gently(&mut self, why: &'static str, now: Instant) {
        self.release_all(why, now);
        self.connection.close_gently(close::NORMAL, why, now);
    }

    fn release_all(&mut self, why: &str, now: Instant) {
        self.conclude();
        self.deal(now);
        if self.connection.is_open() {
            for index in (0..self.sessions.open.len()).rev() {
                self.release(index, why, true, now);
            }
        }
    }

    /// Ends every session after the connection was lost. Processes what the peer sent before,
    /// delivers it to the local streams and then cuts them.
    pub fn cut_all(&mut self, now: Instant) {
        self.take_last_words(now);
        self.side.cut_pending();
        for index in 0..self.sessions.open.len() {
            self.sessions.cut_local(index);
        }
        self.close_all(now);
    }

    /// Ends the connection, and every session as [`cut_all`](Self::cut_all) does. Returns the local
    /// streams that still have bytes to deliver.
    pub fn into_lingering(mut self, now: Instant) -> Vec<Lingering<D::Stream>> {
        self.take_lingering(now)
    }

    /// Like [`into_lingering`](Self::into_lingering). The relay must not be used any more.
    pub fn take_lingering(&mut self, now: Instant) -> Vec<Lingering<D::Stream>> {
        self.connection.lift_limits();
        self.connection.flush(now);
        self.cut_all(now);
        std::mem::take(&mut self.sessions.lingering)
    }

    /// Receives what the peer sent before the connection ended. After a failed write, it may still
    /// be in the kernel.
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
