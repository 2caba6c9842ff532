//! The access side of a relay. It asks for a session for each local stream, and the device answers.

use std::io;
use std::time::{Duration, Instant};

use crate::connection::Transport;
use crate::frame::{reason, release, response, Frame, FrameType, HeaderTemplate, Status};
use crate::observer::{Event, Observer};
use crate::relay::{Relay, RelaySide, Step};
use crate::session::{Local, LocalStream, Outputs, Sessions};

pub use crate::observer::SessionError;

/// How long to wait for the answer to a session_create. The gateway gives the device 10 s, and this
/// must be longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// A session that waits for the device's answer.
struct Opening<S> {
    local: Local<S>,
    /// The frame id of its session_create.
    frame_id: u64,
    deadline: Instant,
}

/// The part of a relay that is specific to the access side.
pub struct AccessSide<S: LocalStream> {
    service_type: String,
    opening: Vec<Opening<S>>,
    over: bool,
}

impl<S: LocalStream> AccessSide<S> {
    /// `service_type`: the service that every session asks for.
    pub fn new(service_type: &str) -> Self {
        AccessSide { service_type: service_type.to_owned(), opening: Vec::new(), over: false }
    }

    /// Whether a session waits for the device's answer.
    pub fn is_opening(&self) -> bool {
        !self.opening.is_empty()
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
            // No local stream waits for this session any more.
            let is_known = sessions.find(id).is_some() || sessions.has_ended(id);
            if is_success && !is_known {
                sessions.write_release(id, "closed", out.sender);
            }
            return;
        };
        if is_success {
            let key = sessions.add(id, &self.service_type, Some(opening.local));
            let Some(index) = sessions.find_key(key) else { return };
            let (service_type, counters) = (&*self.service_type, sessions.open[index].counters());
            out.journal.tell(Event::Opened { id, service_type, counters });
        } else {
            refuse(opening, SessionError::Refused { code, msg: quoted(status) }, out);
        }
    }

    fn released(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<S>,
        out: &mut Outputs<'_, impl Observer>,
    ) -> Step {
        let Some(index) = sessions.find(&frame.session_id) else { return Step::Done };
        let status = Status::parse(frame.payload);
        let code = status.as_ref().map_or(i64::from(release::BY_DEVICE), |status| status.code);
        let is_loss = code > i64::from(release::BY_DEVICE);
        let tells_of_loss =
            status.as_ref().is_some_and(|status| tells_of_loss(&status.msg, &self.service_type));
        let error = SessionError::Released { code, msg: quoted(status) };
        if is_loss {
            if let Some(local) = sessions.open[index].local_mut() {
                local.cut();
            }
            out.journal.tell(Event::Failed(&error));
        } else if tells_of_loss {
            out.journal.tell(Event::Odd(&error));
        }
        Step::Released(index)
    }
}

impl<S: LocalStream> RelaySide for AccessSide<S> {
    type Stream = S;
    const RELEASE_CODE: u8 = release::BY_ACCESS;
    const STALLED: &'static str = "the local program takes nothing";

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

    fn step(&mut self, _: &mut Sessions<S>, out: &mut Outputs<'_, impl Observer>) {
        let (now, over) = (out.now, self.over);
        let late = |opening: &mut Opening<S>| now >= opening.deadline || over;
        for opening in self.opening.extract_if(.., late) {
            let msg = if over { "the connection is closed" } else { "no response within 15 s" };
            let code = i64::from(response::REFUSED);
            refuse(opening, SessionError::Refused { code, msg: msg.to_owned() }, out);
        }
    }

    /// Does nothing: every session in the table of the access side is open.
    fn cancel(&mut self, _: u64, _: &str, _: &mut Sessions<S>, _: &mut Outputs<'_, impl Observer>) {
    }

    fn deadline(&self) -> Option<Instant> {
        self.opening.iter().map(|opening| opening.deadline).min()
    }

    fn conclude(&mut self) {
        self.over = true;
    }

    fn cut_pending(&mut self) {
        for mut opening in self.opening.drain(..) {
            opening.local.cut();
        }
    }

    fn end_of_stream(&self, _: &str, error: Option<&io::Error>) -> String {
        match error {
            None => "closed".to_owned(),
            Some(e) => format!("local connection: {e}"),
        }
    }
}

/// A relay of the access side.
pub type AccessRelay<T, S, O> = Relay<T, AccessSide<S>, O>;

impl<T: Transport, S: LocalStream, O: Observer> Relay<T, AccessSide<S>, O> {
    /// Asks the device for a session for a local stream. The answer may take 15 s.
    pub fn open(&mut self, stream: S, now: Instant) {
        let (side, sessions, connection) = self.parts();
        let frame_id = sessions.next_frame_id();
        let mut header = Vec::new();
        HeaderTemplate::new(FrameType::SessionCreate, "", Some(&side.service_type))
            .write(frame_id, &mut header);
        connection.sender().binary(&header, &[]);
        let deadline = now + RESPONSE_TIMEOUT;
        side.opening.push(Opening { local: Local::new(stream), frame_id, deadline });
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

fn refuse<S: LocalStream>(
    mut opening: Opening<S>,
    error: SessionError,
    out: &mut Outputs<'_, impl Observer>,
) {
    opening.local.shut_down();
    out.journal.tell(Event::Failed(&error));
}

/// Whether this project's device sends this text when it cuts a session. Texts of other devices
/// prove nothing: their code 1 is an orderly end.
fn tells_of_loss(msg: &str, service_type: &str) -> bool {
    let of_service = msg.strip_prefix("service ").and_then(|msg| msg.strip_prefix(service_type));
    let failed = of_service.is_some_and(|rest| rest.starts_with(": "));
    let cut =
        [reason::STALLED, reason::TUNNEL_CLOSED, reason::FRAME_TOO_LONG, reason::UNKNOWN_SESSION];
    failed || cut.contains(&msg)
}

/// The text of a status, quoted, so that it stays on one line.
fn quoted(status: Option<Status>) -> String {
    format!("{:?}", status.map_or("no reason given".to_owned(), |status| status.msg))
}
