//! The device side of a relay. The cloud asks for sessions, and the device connects them to its
//! local services.

use std::io;
use std::time::{Duration, Instant};

use crate::frame::{
    reason, release, response, status, tells_of_cut, write_acceptance, write_response, Credit,
    Extensions, Frame, FrameType, Status,
};
use crate::observer::{Event, Observer};
use crate::relay::{Relay, RelaySide, Step};
use crate::session::{LocalStream, Outputs, ReleaseCodes, Sessions};
use crate::websocket::Sender;
use crate::Ready;

/// Longest text that lists services. A longer text of a response is truncated, and a name with it.
const MAX_TEXT: usize = 240;

/// Connects sessions to local services. No function blocks.
pub trait Connect {
    /// A connect in progress.
    type Dial;
    /// The connected local stream.
    type Stream: LocalStream;

    /// Begins to connect to a local service.
    ///
    /// # Errors
    /// [`DialError`] if there is no such service, or if the connect failed at once.
    fn dial(&mut self, service_type: &str) -> Result<Self::Dial, DialError>;

    /// Advances a connect. `ready` tells that `poll` reported its descriptor ready. Returns `None`
    /// while the connect is in progress.
    fn step(&mut self, dial: &mut Self::Dial, ready: bool) -> Option<io::Result<Self::Stream>>;

    /// When to call [`step`](Self::step) again even if `poll` reports nothing.
    fn deadline(&self, _: &Self::Dial) -> Option<Instant> {
        None
    }

    /// The address of a service, for messages.
    fn address(&self, service_type: &str) -> String;

    /// The names of the services that the device offers, in a stable order, for messages.
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Why a connect could not begin.
#[derive(Debug)]
pub enum DialError {
    /// The device does not offer this service.
    NoService,
    /// The connect failed at once.
    Io(io::Error),
}

/// Limits of the device side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    /// The number of sessions a tunnel may have at once. A further one is refused with code 1.
    pub max_sessions: usize,
    /// How long a connect to a local service may take.
    pub connect_timeout: Duration,
}

/// A session whose local service is being connected.
struct Dialing<D> {
    /// The key of the session in the table.
    key: u64,
    dial: D,
    deadline: Instant,
    /// The frame id of its `session_create`, which waits for a response.
    create_id: u64,
    ready: bool,
}

/// The part of a relay that is specific to the device side.
pub struct DeviceSide<C: Connect> {
    connect: C,
    limits: DeviceLimits,
    dialing: Vec<Dialing<C::Dial>>,
    /// The connection has ended. No further session is opened.
    over: bool,
}

impl<C: Connect> DeviceSide<C> {
    /// `connect` connects the sessions to the local services.
    pub fn new(connect: C, limits: DeviceLimits) -> Self {
        DeviceSide { connect, limits, dialing: Vec::new(), over: false }
    }

    /// The connects in progress, for `poll`. [`ready`](Self::ready) expects the results in this
    /// order.
    pub fn dials(&self) -> impl Iterator<Item = &C::Dial> {
        self.dialing.iter().map(|dialing| &dialing.dial)
    }

    /// Passes on what `poll` reported for the connects.
    pub fn ready(&mut self, ready: &[Ready]) {
        for (dialing, ready) in self.dialing.iter_mut().zip(ready) {
            dialing.ready |= ready.write;
        }
    }

    /// Begins to connect to a service, or returns the code and the text of the refusal.
    fn admit(
        &mut self,
        id: &str,
        service_type: &str,
        sessions: &mut Sessions<C::Stream>,
        now: Instant,
    ) -> Result<C::Dial, (u8, String)> {
        if self.over {
            return Err((response::REFUSED, reason::TUNNEL_CLOSED.into()));
        }
        if sessions.find(id).is_some() {
            return Err((response::REFUSED, "the session id is in use".into()));
        }
        let most = self.limits.max_sessions;
        let open = sessions.open.iter().filter(|session| !session.is_released()).count();
        let alive = sessions.open.len() + sessions.lingering.len();
        let is_full = alive >= most + (most / 2).max(1);
        if open >= most || is_full && !sessions.give_up_lingering(now) {
            return Err((response::SESSION_LIMIT, format!("the limit of {most} sessions")));
        }
        self.connect.dial(service_type).map_err(|e| match e {
            DialError::NoService if service_type.is_empty() => {
                (response::REFUSED, "the request names no service".into())
            }
            DialError::NoService => (response::REFUSED, self.no_service(service_type)),
            DialError::Io(e) => {
                (response::REFUSED, self.not_connected(service_type, &e.to_string()))
            }
        })
    }

    /// Whoever asks has the access token, which opens every service whose name he knows or guesses.
    /// So the names are no secret from him.
    fn no_service(&self, service_type: &str) -> String {
        let mut text = format!("no service {service_type} here");
        let mut separator = response::OFFERS;
        for name in self.connect.names() {
            let is_too_long = text.len() + separator.len() + name.len() > MAX_TEXT;
            text += separator;
            if is_too_long {
                text += "...";
                break;
            }
            text += &name;
            separator = ", ";
        }
        text
    }

    fn not_connected(&self, service_type: &str, why: &str) -> String {
        let address = self.connect.address(service_type);
        format!("connect to {address} (service {service_type}): {why}")
    }

    fn create(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<C::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        let (id, service_type) = (&*frame.session_id, &*frame.service_type);
        let Some(create_id) = frame.frame_id.filter(|_| !id.is_empty()) else {
            return out.journal.tell_limited(out.now, Event::Incomplete);
        };
        out.journal.tell_unless_limited(Event::Requested { id, service_type });
        let dial = match self.admit(id, service_type, sessions, out.now) {
            Ok(dial) => dial,
            Err((code, reason)) => {
                out.journal.tell_limited(out.now, Event::Refused { id, reason: &reason });
                return respond(out.sender, id, service_type, create_id, code, &reason);
            }
        };
        let key = sessions.add(id, service_type, None);
        self.agree(frame, sessions, out.now);
        let deadline = out.now + self.limits.connect_timeout;
        self.dialing.push(Dialing { key, dial, deadline, create_id, ready: false });
        self.step_one(self.dialing.len() - 1, sessions, out);
    }

    /// Agrees on the extensions that the asker offers for the session added last.
    fn agree(&self, frame: &Frame<'_>, sessions: &mut Sessions<C::Stream>, now: Instant) {
        let mut extensions = frame.extensions.and(Extensions::ALL);
        let mut flow = sessions.new_flow(now);
        extensions.credit &= match frame.credit {
            Credit::Bytes(bytes) => flow.add_credit(bytes),
            Credit::Absent | Credit::Invalid => false,
        };
        if let Some(session) = sessions.open.last_mut() {
            session.agree(extensions, flow);
        }
    }

    /// Advances one connect.
    fn step_one(
        &mut self,
        index: usize,
        sessions: &mut Sessions<C::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        let dialing = &mut self.dialing[index];
        let ready = std::mem::take(&mut dialing.ready);
        match self.connect.step(&mut dialing.dial, ready) {
            Some(Ok(stream)) => self.connected(index, stream, sessions, out),
            Some(Err(e)) => self.failed(index, &e.to_string(), sessions, out),
            None if out.now >= dialing.deadline => self.failed(index, "timed out", sessions, out),
            None => {}
        }
    }

    fn connected(
        &mut self,
        index: usize,
        stream: C::Stream,
        sessions: &mut Sessions<C::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        let Dialing { key, create_id, .. } = self.dialing.remove(index);
        let Some(index) = sessions.find_key(key) else { return };
        let session = &mut sessions.open[index];
        session.connect(stream);
        let (id, service_type) = (session.id(), session.service_type());
        let words = if session.is_released() { "connected and released" } else { "success" };
        let payload = status(response::SUCCESS, words);
        write_acceptance(out.sender, id, service_type, create_id, session.terms(), &payload);
        out.journal.tell(Event::Opened(session.record()));
        session.write_buffer(out.now);
        if session.is_released() {
            sessions.close(index, out);
        }
    }

    /// Refuses a session because its local service cannot be reached.
    fn failed(
        &mut self,
        index: usize,
        why: &str,
        sessions: &mut Sessions<C::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        let key = self.dialing[index].key;
        let Some(at) = sessions.find_key(key) else { return };
        let why = self.not_connected(sessions.open[at].service_type(), why);
        self.cancel(key, &why, sessions, out);
    }
}

impl<C: Connect> RelaySide for DeviceSide<C> {
    type Stream = C::Stream;
    // The cloud knows code 1 only. The text tells of a cut.
    const RELEASE_CODES: ReleaseCodes =
        ReleaseCodes { orderly: release::BY_DEVICE, cut: release::BY_DEVICE };
    const STALLED: &'static str = reason::STALLED;
    const RELEASES_FINISHED: bool = true;

    fn frame(
        &mut self,
        frame: &Frame<'_>,
        sessions: &mut Sessions<C::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) -> Step {
        match frame.frame_type {
            FrameType::SessionCreate => self.create(frame, sessions, out),
            FrameType::SessionRelease => {
                let (id, service_type) = (&frame.session_id, &frame.service_type);
                if let Some(frame_id) = frame.frame_id {
                    let code = response::SUCCESS;
                    respond(out.sender, id, service_type, frame_id, code, "released");
                }
                let status = Status::parse(frame.payload);
                let is_cut = status.is_some_and(|status| tells_of_cut(&status, ""));
                let released = sessions.find(id).map(|index| Step::Released { index, is_cut });
                return released.unwrap_or(Step::Done);
            }
            // A common_response answers a release of this device. The relay handles data frames.
            FrameType::CommonResponse | FrameType::DataTransport => {}
        }
        Step::Done
    }

    fn step(&mut self, sessions: &mut Sessions<C::Stream>, out: &mut Outputs<'_, impl Observer>) {
        for index in (0..self.dialing.len()).rev() {
            self.step_one(index, sessions, out);
        }
    }

    fn cancel(
        &mut self,
        key: u64,
        why: &str,
        sessions: &mut Sessions<C::Stream>,
        out: &mut Outputs<'_, impl Observer>,
    ) {
        let dialing = self.dialing.extract_if(.., |dialing| dialing.key == key).next();
        let (Some(dialing), Some(index)) = (dialing, sessions.find_key(key)) else { return };
        let session = sessions.open.remove(index);
        let (id, service_type) = (session.id(), session.service_type());
        out.journal.tell_limited(out.now, Event::Refused { id, reason: why });
        respond(out.sender, id, service_type, dialing.create_id, response::REFUSED, why);
    }

    fn deadline(&self) -> Option<Instant> {
        let of_one = |dialing: &Dialing<C::Dial>| {
            let own = self.connect.deadline(&dialing.dial);
            own.map_or(dialing.deadline, |own| own.min(dialing.deadline))
        };
        self.dialing.iter().map(of_one).min()
    }

    fn conclude(&mut self) {
        self.over = true;
    }

    fn end_of_stream(&self, service_type: &str, error: Option<&io::Error>) -> String {
        match error {
            None => format!("service {service_type} closed the connection"),
            Some(e) => format!("service {service_type}: {e}"),
        }
    }
}

/// A relay of the device side.
pub type DeviceRelay<T, C, O> = Relay<T, DeviceSide<C>, O>;

fn respond(sender: &mut Sender, id: &str, service: &str, frame_id: u64, code: u8, words: &str) {
    write_response(sender, id, service, frame_id, &status(code, words));
}
