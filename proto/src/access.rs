//! The access side of a relay. It asks for a session for each local stream, and the device answers.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::Transport;
use crate::frame::{
    reason, release, response, tells_of_cut, Credit, Extensions, Fields, Frame, FrameType,
    HeaderTemplate, Status,
};
use crate::observer::{Event, Observer};
use crate::relay::{Relay, RelaySide, Step};
use crate::session::{Local, LocalStream, Outputs, ReleaseCodes, Sessions};

pub use crate::observer::SessionError;

/// How long to wait for the answer to a session_create. The gateway gives the device 10 s, and this
/// must be longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often to ask again while the tunnel has no free session. Other access sides may end theirs
/// unnoticed.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Limits of an access side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessLimits {
    /// The extensions that are offered to the device.
    pub extensions: Extensions,
}

/// A local stream that has no session yet.
pub struct Pending<S> {
    local: Local<S>,
    service_type: Arc<str>,
    /// Until when it may wait for a free session.
    until: Option<Instant>,
}

impl<S: LocalStream> Pending<S> {
    /// A local stream for this service. If the tunnel has no free session, it waits for one until
    /// `until`; without such a time, it does not wait.
    pub fn new(stream: S, service_type: Arc<str>, until: Option<Instant>) -> Self {
        Pending { local: Local::new(stream), service_type, until }
    }

    /// Until when it may wait for a free session. `None`: it does not wait for one.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether it has waited for too long.
    pub fn is_late(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }
}

/// A session that waits for the device's answer.
struct Opening<S> {
    pending: Pending<S>,
    /// The frame id of its session_create.
    frame_id: u64,
    deadline: Instant,
}

/// The part of a relay that is specific to the access side.
pub struct AccessSide<S: LocalStream> {
    limits: AccessLimits,
    opening: Vec<Opening<S>>,
    /// The local streams that wait because the tunnel has no free session.
    waiting: VecDeque<Pending<S>>,
    /// The number of own sessions when the tunnel had no free one. With fewer, one is free.
    full_at: usize,
    /// When to ask again for the first that waits.
    ask_at: Instant,
    over: bool,
}

impl<S: LocalStream> AccessSide<S> {
    /// An access side without local streams.
    pub fn new(limits: AccessLimits, now: Instant) -> Self {
        AccessSide {
            limits,
            opening: Vec::new(),
            waiting: VecDeque::new(),
            full_at: 0,
            ask_at: now,
            over: false,
        }
    }

    /// Whether a local stream waits for the device's answer or for a free session.
    pub fn is_opening(&self) -> bool {
        !self.opening.is_empty() || !self.waiting.is_empty()
    }

    /// Takes the local streams that have no session yet, the first that came first.
    pub fn take_pending(&mut self) -> Vec<Pending<S>> {
        let opening = self.opening.drain(..).map(|opening| opening.pending);
        opening.chain(self.waiting.drain(..)).collect()
    }

    fn ask(
        &mut self,
        pending: Pending<S>,
        sessions: &mut Sessions<S>,
        sender: &mut crate::websocket::Sender,
        now: Instant,
    ) {
        let frame_id = sessions.next_frame_id();
        let mut header = Vec::new();
        let extensions = self.limits.extensions;
        let credit = if extensions.credit { sessions.limits.window.first } else { 0 };
        let fields = Fields { extensions, credit, eof: false };
        HeaderTemplate::new(FrameType::SessionCreate, "", Some(&pending.service_type)).write_with(
            frame_id,
            fields,
            &mut header,
        );
        sender.binary(&header, &[]);
        self.opening.push(Opening { pending, frame_id, deadline: now + RESPONSE_TIMEOUT });
    }

    fn answered(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<S>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        let status = Status::parse(frame.payload);
        let code = status.as_ref().map_or(i64::from(response::REFUSED), |status| status.code);
        let id = &*frame.session_id;
        let is_success = code == i64::from(response::SUCCESS) && !id.is_empty();
        let asked = |opening: &mut Opening<S>| Some(opening.frame_id) == frame.frame_id;
        let Some(opening) = self.opening.extract_if(.., asked).next() else {
            // No local stream is waiting for this session.
            let is_known = sessions.find(id).is_some() || sessions.has_ended(id);
            if is_success && !is_known {
                sessions.write_cut(id, reason::TOO_LATE, out.sender);
            }
            return;
        };
        let is_full = code == i64::from(response::SESSION_LIMIT);
        if is_success && sessions.is_denied(id) {
            let code = i64::from(response::REFUSED);
            let msg = "data came before the answer".to_owned();
            refuse(opening.pending, SessionError::Refused { code, msg }, out);
        } else if is_success {
            self.ask_at = out.now;
            self.opened(frame, opening.pending, sessions, out);
        } else if is_full && opening.pending.until.is_some() && !self.over {
            let until = opening.pending.until;
            let place = self.waiting.partition_point(|pending| pending.until <= until);
            self.waiting.insert(place, opening.pending);
            self.full_at = sessions.open.len();
            self.ask_at = out.now + ASK_AGAIN;
        } else {
            let error = SessionError::Refused { code, msg: quoted(status) };
            refuse(opening.pending, error, out);
        }
    }

    /// The device has opened a session.
    fn opened(
        &mut self,
        frame: &Frame<'_>,
        pending: Pending<S>,
        sessions: &mut Sessions<S>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        let id = &*frame.session_id;
        let service_type = &*pending.service_type;
        let key = sessions.add(id, service_type, Some(pending.local));
        let extensions = self.limits.extensions.and(frame.extensions);
        let mut flow = sessions.new_flow(out.now);
        let is_valid = match frame.credit {
            Credit::Bytes(bytes) => flow.add_credit(bytes),
            Credit::Absent => true,
            Credit::Invalid => false,
        };
        let Some(index) = sessions.find_key(key) else { return };
        sessions.open[index].agree(extensions, flow);
        out.journal.tell(Event::Opened(sessions.open[index].record()));
        if extensions.credit && !is_valid {
            sessions.cut(index, reason::BAD_CREDIT, out);
        }
    }

    fn released(
        &mut self,
        frame: &Frame<'_>,
        sessions: &Sessions<S>,
        out: &mut Outputs<'_, impl Observer>,
    ) -> Step {
        let Some(index) = sessions.find(&frame.session_id) else { return Step::Done };
        let session = &sessions.open[index];
        let status = Status::parse(frame.payload);
        let code = status.as_ref().map_or(i64::from(release::BY_DEVICE), |status| status.code);
        let tells = |status: &Status| tells_of_cut(status, session.service_type());
        let is_cut = status.as_ref().is_some_and(tells);
        if !session.ends_in_order(is_cut) {
            let error = SessionError::Released { code, msg: quoted(status) };
            out.journal.tell(Event::Failed(&error));
        }
        Step::Released { index, is_cut }
    }

    /// Gives up what has waited for too long.
    fn give_up(&mut self, out: &mut Outputs<'_, impl Observer>) {
        let (now, over) = (out.now, self.over);
        let late = |opening: &mut Opening<S>| now >= opening.deadline || over;
        for opening in self.opening.extract_if(.., late) {
            let msg = if over { "the connection is closed" } else { "no response within 15 s" };
            let code = i64::from(response::REFUSED);
            refuse(opening.pending, SessionError::Refused { code, msg: msg.to_owned() }, out);
        }
        while self.waiting.front().is_some_and(|pending| pending.is_late(now) || over) {
            let Some(pending) = self.waiting.pop_front() else { break };
            let code = i64::from(response::SESSION_LIMIT);
            let msg = "no session became free in time".to_owned();
            refuse(pending, SessionError::Refused { code, msg }, out);
        }
    }
}

impl<S: LocalStream> RelaySide for AccessSide<S> {
    type Stream = S;
    const RELEASE_CODES: ReleaseCodes =
        ReleaseCodes { orderly: release::BY_ACCESS, cut: release::ACCESS_LOST };
    const STALLED: &'static str = reason::PROGRAM_STALLED;
    const RELEASES_FINISHED: bool = false;

    fn frame(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<S>,
        out: &mut Outputs<'_, impl Observer>,
    ) -> Step {
        match frame.frame_type {
            FrameType::CommonResponse => self.answered(frame, sessions, out),
            FrameType::SessionRelease => return self.released(frame, sessions, out),
            FrameType::SessionCreate | FrameType::DataTransport => {}
        }
        Step::Done
    }

    fn step(&mut self, sessions: &mut Sessions<S>, out: &mut Outputs<'_, impl Observer>) {
        self.give_up(out);
        let may_ask = sessions.open.len() < self.full_at || out.now >= self.ask_at;
        if self.opening.is_empty() && may_ask {
            if let Some(pending) = self.waiting.pop_front() {
                self.ask(pending, sessions, out.sender, out.now);
            }
        }
    }

    /// Does nothing: every session in the table of the access side is open.
    fn cancel(&mut self, _: u64, _: &str, _: &mut Sessions<S>, _: &mut Outputs<'_, impl Observer>) {
    }

    fn deadline(&self) -> Option<Instant> {
        let opening = self.opening.iter().map(|opening| opening.deadline);
        let waiting = self.waiting.front().into_iter().flat_map(|pending| {
            let ask_at = self.opening.is_empty().then_some(self.ask_at);
            pending.until.into_iter().chain(ask_at)
        });
        opening.chain(waiting).min()
    }

    fn conclude(&mut self) {
        self.over = true;
    }

    fn not_read(&mut self, now: Instant) {
        for opening in &mut self.opening {
            opening.deadline = now + RESPONSE_TIMEOUT;
        }
    }

    fn cut_pending(&mut self) {
        drop(self.take_pending());
    }

    fn end_of_stream(&self, _: &str, error: Option<&io::Error>) -> String {
        match error {
            None => "closed".to_owned(),
            Some(e) => format!("{}{e}", reason::LOCAL_CONNECTION),
        }
    }
}

/// A relay of the access side.
pub type AccessRelay<T, S, O> = Relay<T, AccessSide<S>, O>;

impl<T: Transport, S: LocalStream, O: Observer> Relay<T, AccessSide<S>, O> {
    /// Asks the device for a session for a local stream. The answer may take 15 s. If the tunnel has
    /// no free session, the stream may have to wait.
    pub fn open(&mut self, pending: Pending<S>, now: Instant) {
        let (side, sessions, connection) = self.parts();
        if side.waiting.is_empty() {
            side.ask(pending, sessions, connection.sender(), now);
        } else {
            side.waiting.push_back(pending);
        }
    }

    /// Whether no local stream is left, neither open nor waiting nor lingering.
    pub fn is_idle(&self) -> bool {
        self.is_over() && self.lingering().is_empty()
    }

    /// Whether no session is open or waiting for an answer.
    pub fn is_over(&self) -> bool {
        self.sessions().is_empty() && !self.side().is_opening()
    }
}

/// Resets a local stream that gets no session.
fn refuse<S: LocalStream>(
    pending: Pending<S>,
    error: SessionError,
    out: &mut Outputs<'_, impl Observer>,
) {
    drop(pending);
    out.journal.tell(Event::Failed(&error));
}

/// The text of a status, quoted, so that it stays on one line.
fn quoted(status: Option<Status>) -> String {
    format!("{:?}", status.map_or("no reason given".to_owned(), |status| status.msg))
}
