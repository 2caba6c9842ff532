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
use crate::session::{Local, LocalStream, Outputs, RecentIds, ReleaseCodes, Sessions};

pub use crate::observer::SessionError;

/// How long to wait for the answer to a session_create. The gateway gives the device 10 s, and this
/// must be longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often to ask again while the tunnel has no free session or no device. Other access sides may
/// end their sessions unnoticed.
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
    /// Until when it may wait for a free session or for the device.
    until: Option<Instant>,
}

impl<S: LocalStream> Pending<S> {
    /// A local stream for this service. If the tunnel has no free session or the device is not
    /// connected, it waits until `until`; without such a time, it does not wait.
    pub fn new(stream: S, service_type: Arc<str>, until: Option<Instant>) -> Self {
        Pending { local: Local::new(stream), service_type, until }
    }

    /// The local stream.
    pub fn stream(&self) -> &S {
        self.local.stream()
    }

    /// Until when it may wait for a free session or for the device. `None`: it does not wait.
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

/// Is called before a session is asked for, with the frame id of the session_create.
pub type Asked<S> = Box<dyn FnMut(u64, &S) + Send>;

/// The part of a relay that is specific to the access side.
pub struct AccessSide<S: LocalStream> {
    limits: AccessLimits,
    asked: Option<Asked<S>>,
    opening: Vec<Opening<S>>,
    /// The local streams that wait because the tunnel has no free session or no device.
    waiting: VecDeque<Pending<S>>,
    /// What they wait for.
    lacks: Lack,
    /// When to ask again for the first that waits.
    ask_at: Instant,
    /// The ids of sessions whose data came before the answer that opens them. The data is lost.
    early: RecentIds,
    over: bool,
}

/// What a tunnel lacks, so that local streams wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// A free session. The number is that of the own sessions at the refusal. With fewer, one is
    /// free.
    Session(usize),
    /// The device is not connected.
    Device,
}

impl Lack {
    /// What the device or the gateway says with a refusal. `None`: waiting does not help.
    fn told_by(status: &Status, sessions: usize) -> Option<Self> {
        if status.code == i64::from(response::SESSION_LIMIT) {
            return Some(Lack::Session(sessions));
        }
        let is_away =
            status.code == i64::from(response::REFUSED) && response::is_not_connected(&status.msg);
        is_away.then_some(Lack::Device)
    }
}

impl<S: LocalStream> AccessSide<S> {
    /// An access side without local streams.
    pub fn new(limits: AccessLimits, now: Instant) -> Self {
        AccessSide {
            limits,
            asked: None,
            opening: Vec::new(),
            waiting: VecDeque::new(),
            lacks: Lack::Session(0),
            ask_at: now,
            early: RecentIds::default(),
            over: false,
        }
    }

    /// Calls `asked` for each session_create from now on.
    pub fn tell_of_requests(&mut self, asked: Asked<S>) {
        self.asked = Some(asked);
    }

    /// Whether a local stream waits for the device's answer, for a free session or for the device.
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
        if let Some(asked) = &mut self.asked {
            asked(frame_id, pending.local.stream());
        }
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
        if is_success {
            self.ask_at = out.now;
            match self.fault(id, sessions, out) {
                None => self.opened(frame, opening.pending, sessions, out),
                Some(msg) => {
                    let (code, msg) = (i64::from(response::REFUSED), msg.to_owned());
                    refuse(opening.pending, SessionError::Refused { code, msg }, out);
                }
            }
            return;
        }
        let open = sessions.open.len();
        let lack = status.as_ref().and_then(|status| Lack::told_by(status, open));
        match lack.filter(|_| opening.pending.until.is_some() && !self.over) {
            Some(lack) => {
                let until = opening.pending.until;
                let place = self.waiting.partition_point(|pending| pending.until <= until);
                self.waiting.insert(place, opening.pending);
                self.lacks = lack;
                self.ask_at = out.now + ASK_AGAIN;
            }
            None => {
                let error = SessionError::Refused { code, msg: quoted(status) };
                refuse(opening.pending, error, out);
            }
        }
    }

    /// Why no session can have the id of this answer. `None`: it can.
    fn fault(
        &mut self,
        id: &str,
        sessions: &mut Sessions<S>,
        out: &mut Outputs<'_, impl Observer>,
    ) -> Option<&'static str> {
        if sessions.find(id).is_some() {
            // A release would end the other session.
            return Some("the session id is in use");
        }
        if self.early.contains(id) {
            self.early.remove(id);
            sessions.write_cut(id, reason::UNKNOWN_SESSION, out.sender);
            return Some("data of the session came before the answer");
        }
        None
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
            let (code, msg) = match self.lacks {
                Lack::Session(_) => (response::SESSION_LIMIT, "no session became free in time"),
                Lack::Device => (response::REFUSED, "the device was not connected in time"),
            };
            let (code, msg) = (i64::from(code), msg.to_owned());
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
        if self.is_due(sessions.open.len()) || self.opening.is_empty() && out.now >= self.ask_at {
            if let Some(pending) = self.waiting.pop_front() {
                self.ask(pending, sessions, out.sender, out.now);
            }
        }
    }

    /// Does nothing: every session in the table of the access side is open.
    fn cancel(&mut self, _: u64, _: &str, _: &mut Sessions<S>, _: &mut Outputs<'_, impl Observer>) {
    }

    fn unknown(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<S>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        let id = &*frame.session_id;
        // Data of a session that has ended is late, not early.
        if !id.is_empty() && !sessions.has_ended(id) {
            self.early.push(id);
        }
        sessions.unknown(frame, out);
    }

    /// A session has ended, so the first that waits can have one.
    fn is_due(&self, sessions: usize) -> bool {
        let is_free = matches!(self.lacks, Lack::Session(full) if sessions < full);
        is_free && self.opening.is_empty() && !self.waiting.is_empty()
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
    // The observer knows before the local program does.
    out.journal.tell(Event::Failed(&error));
    drop(pending);
}

/// The text of a status, quoted, so that it stays on one line.
fn quoted(status: Option<Status>) -> String {
    format!("{:?}", status.map_or("no reason given".to_owned(), |status| status.msg))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;

    struct Nothing;

    impl LocalStream for Nothing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn write(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn shut_down(&mut self) {}
        fn reset_on_close(&mut self, _: bool) {}
        fn unacked(&self) -> usize {
            0
        }
    }

    #[test]
    fn the_end_of_a_session_makes_one_that_waits_due_at_once() {
        let now = Instant::now();
        let until = Some(now + Duration::from_secs(30));
        let mut side = AccessSide::new(AccessLimits { extensions: Extensions::ALL }, now);
        side.lacks = Lack::Session(10);
        assert!(!side.is_due(9));
        side.waiting.push_back(Pending::new(Nothing, "s".into(), until));
        assert!(side.is_due(9) && !side.is_due(10));
        // Another one's end does not bring a device back.
        side.lacks = Lack::Device;
        assert!(!side.is_due(9));
    }
}
