//! The access side's relay against a model of its gateway and of the local programs, all of memory. The
//! gateway may be hostile, and so may the device behind it. Whatever happens, every byte arrives in order
//! at the program it is for, no program sees an orderly end of a part, and no end sends more than was
//! granted.

mod operation;

use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::{AccessLimits, AccessRelay, AccessSide, Pending};
use aiot_tunnel_proto::connection::{Connection, End, Ping, Upkeep};
use aiot_tunnel_proto::frame::{reason, Extensions, MAX_PAYLOAD};
use aiot_tunnel_proto::relay::RelayLimits;
use aiot_tunnel_proto::session::{SessionLimits, WindowLimits};
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::Ready;
use serde_json::Value;

use crate::close_code;
use crate::relay::{
    assert_content, content, next_message, parts, CloudWire, Service, ServiceStream, SharedService,
    BAD_CREDITS, CLOSES, MOST_CREDIT,
};
pub use operation::{Action, Ending, Life, Operation};

/// Local programs in one life.
const MAX_PROGRAMS: usize = 6;
const SESSION_BUFFER: usize = 64 * 1024;
const SEND_BUFFER: usize = 8 * 1024;
const WINDOW: WindowLimits =
    WindowLimits { first: 64 * 1024, session: 256 * 1024, growth: 256 * 1024 };
/// What may wait for the gateway beyond twice the send buffer: one read of a program at its limit.
const SEND_EXCESS: usize = 16 * 1024;
/// After this time, the access side may have given something up.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than any program has to send.
const PLENTY: u64 = 1 << 40;

/// A local program, and its session as the gateway knows it.
struct Program {
    service: SharedService,
    /// The frame id of its session_create that is not answered.
    asked: Option<u64>,
    /// A frame of its session was sent before the answer.
    early: bool,
    session: Option<Session>,
}

/// A session that the gateway has accepted.
#[derive(Default)]
struct Session {
    extensions: Extensions,
    /// The number of bytes that the access side may send, and has sent.
    granted: u64,
    received: usize,
    /// The number of bytes that the gateway may send.
    may_send: u64,
    /// Where the gateway has ended its direction, and whether the access side has ended its own.
    eof_at: Option<usize>,
    ended: bool,
    /// The gateway has released it: in order, or as cut.
    gateway_released: Option<Ending>,
    /// The access side has released it.
    released: bool,
    /// The gateway broke the protocol of the extensions, or may have.
    broke: bool,
    surely: bool,
}

/// A relay, and everything around it.
struct World {
    offer: Extensions,
    began: Instant,
    now: Instant,
    wire: CloudWire,
    relay: AccessRelay<CloudWire, ServiceStream, ()>,
    programs: Vec<Program>,
    /// Bytes that the gateway has sent for each program.
    sent: Vec<usize>,
    /// How many bytes of the access side were read.
    heard: usize,
    next_frame: u64,
    /// The gateway has sent a close frame, and says nothing more.
    has_closed: bool,
    /// The access side has sent a close frame, with this code.
    closed: Option<Option<u16>>,
}

/// Lets the operations happen to a new relay, and then everything go well. Panics where a promise is
/// broken.
pub fn run(life: &Life) {
    let mut world = World::new(life.offer);
    for operation in &life.operations.0 {
        world.happens(*operation);
        if world.relay.end().is_some() {
            return world.ended();
        }
    }
    world.settle();
}

impl World {
    fn new(offer: Extensions) -> Self {
        let (wire, now) = (CloudWire::default(), Instant::now());
        let upkeep = Upkeep {
            ping: Ping::Every(Duration::from_secs(20)),
            silence_limit: Duration::from_secs(60),
            shrink_interval: Duration::from_secs(20),
            high_water: SEND_BUFFER,
            flood_limit: usize::MAX,
        };
        let connection = Connection::new(wire.clone(), Role::Client, b"", upkeep, now);
        let session = SessionLimits {
            session_buffer: SESSION_BUFFER,
            stall_timeout: Some(PATIENCE),
            half_close_timeout: Some(Duration::from_secs(60)),
            idle_timeout: None,
            window: WINDOW,
        };
        let limits = RelayLimits { session, log_window: Duration::from_secs(20) };
        let side = AccessSide::new(AccessLimits { extensions: offer }, now);
        World {
            offer,
            began: now,
            now,
            wire,
            relay: AccessRelay::new(connection, side, limits, (), Vec::new()),
            programs: Vec::new(),
            sent: Vec::new(),
            heard: 0,
            next_frame: 0,
            has_closed: false,
            closed: None,
        }
    }

    fn happens(&mut self, operation: Operation) {
        match operation {
            Operation::Opens => self.opens(),
            Operation::Gateway { program, does } => {
                let which = usize::from(program).checked_rem(self.programs.len());
                if let Some(program) = which.filter(|_| !self.has_closed) {
                    self.gateway_does(program, does);
                }
            }
            Operation::Arrives { length } => self.wire.state().arrived += length,
            Operation::Takes { length } => self.wire.state().takes += length,
            Operation::ProgramSends { program, length } => self.with_service(program, |service| {
                service.sent += if service.end.is_none() { length } else { 0 };
            }),
            Operation::ProgramTakes { program, length } => {
                self.with_service(program, |service| service.takes += length);
            }
            Operation::ProgramEnds { program, how } => {
                self.with_service(program, |service| service.ends(how));
            }
            Operation::TimePasses { millis } => self.now += Duration::from_millis(millis),
            Operation::StreamEnds => self.wire.state().closed = true,
            Operation::Turn => self.turn(),
        }
    }

    fn with_service(&self, program: u8, act: impl FnOnce(&mut Service)) {
        if let Some(which) = usize::from(program).checked_rem(self.programs.len()) {
            act(&mut self.programs[which].service.borrow_mut());
        }
    }

    /// A local program connects.
    fn opens(&mut self) {
        let number = self.programs.len();
        if number == MAX_PROGRAMS {
            return;
        }
        let (service, stream) = ServiceStream::of_program(up(number));
        let until = Some(self.now + Duration::from_secs(30));
        let pending = Pending::new(stream, format!("p{number}").into(), until);
        self.relay.open(pending, self.now);
        self.programs.push(Program { service, asked: None, early: false, session: None });
        self.sent.push(0);
    }

    fn gateway_does(&mut self, program: usize, action: Action) {
        match action {
            Action::Accepts { extensions, credit } => self.accepts(program, extensions, credit),
            Action::Refuses { code } => self.refuses(program, code),
            Action::Early { fields } => self.early(program, fields),
            Action::Data { length } => self.data(program, length, ""),
            Action::Grant { bytes } => self.grant(program, bytes),
            Action::Finish { length } => self.finish(program, length),
            Action::Release(ending) => self.release(program, ending),
            Action::BadCredit { which } => self.bad_credit(program, which),
            Action::OverCredit { excess } => self.over_credit(program, excess),
            Action::DataAfterEnd => self.data_after_end(program),
            Action::TooLong { excess } => self.too_long(program, excess),
            Action::Stray { fields } => {
                let kind = 1 + self.next_frame % 4;
                let id = format!("z{}", self.next_frame % 300);
                self.frame(kind, &id, FIELDS[usize::from(fields) % FIELDS.len()], b"{}");
            }
            Action::Message { which } => {
                let messages: [(u8, &[u8]); 6] = [
                    (9, b"?"),
                    (10, b"!"),
                    (1, b"text"),
                    (2, b""),
                    (2, b"\x08\x01{}"),
                    (2, b"\0\x02[]rest"),
                ];
                let (opcode, message) = messages[usize::from(which) % messages.len()];
                self.wire.state().message(opcode, message, 1);
            }
            Action::Close { which } => {
                let payload = CLOSES[usize::from(which) % CLOSES.len()];
                self.wire.state().message(8, payload, 1);
                self.has_closed = true;
            }
        }
    }

    /// Puts a frame on the wire.
    fn frame(&mut self, kind: u64, session: &str, fields: &str, payload: &[u8]) {
        self.next_frame += 1;
        let frame_id = self.next_frame;
        let header = format!(
            r#"{{"frame_type":{kind},"frame_id":{frame_id},"session_id":"{session}"{fields}}}"#
        );
        self.wire.state().frame(&header, payload, 1);
    }

    fn accepts(&mut self, program: usize, extensions: Extensions, credit: u8) {
        let Some(frame_id) = self.programs[program].asked.take() else { return };
        let agreed = self.offer.and(extensions);
        let mut session = Session { extensions: agreed, ..Session::default() };
        session.may_send = if agreed.credit { WINDOW.first } else { 0 };
        let credits = [0, 1, 5000, 65_536, 1 << 20];
        let text = match credits.get(usize::from(credit) % (credits.len() + 1)) {
            Some(bytes) => {
                session.granted = *bytes;
                bytes.to_string()
            }
            None => {
                (session.broke, session.surely) = (agreed.credit, agreed.credit);
                BAD_CREDITS[usize::from(credit) % BAD_CREDITS.len()].to_owned()
            }
        };
        session.broke |= self.programs[program].early;
        self.programs[program].session = Some(session);
        let names = match (extensions.eof, extensions.credit) {
            (true, true) => r#","ext":"eof,credit""#,
            (true, false) => r#","ext":"zip,eof""#,
            (false, true) => r#","ext":"credit""#,
            (false, false) => "",
        };
        let header = format!(
            r#"{{"frame_type":1,"frame_id":{frame_id},"session_id":"g{program}"{names},"credit":{text}}}"#
        );
        self.wire.state().frame(&header, br#"{"code":0,"msg":"success"}"#, 1);
    }

    fn refuses(&mut self, program: usize, code: i64) {
        let Some(frame_id) = self.programs[program].asked.take() else { return };
        let header = format!(r#"{{"frame_type":1,"frame_id":{frame_id},"session_id":""}}"#);
        let payload = format!(r#"{{"code":{code},"msg":"no"}}"#);
        self.wire.state().frame(&header, payload.as_bytes(), 1);
    }

    /// A data frame of a session whose answer has not come.
    fn early(&mut self, program: usize, fields: u8) {
        if self.programs[program].asked.is_some() {
            self.programs[program].early = true;
            let payload = self.next_content(program, 9);
            let fields = FIELDS[usize::from(fields) % FIELDS.len()];
            self.frame(4, &format!("g{program}"), fields, &payload);
        }
    }

    /// The session of a program, as long as the gateway thinks that it is open.
    fn open(&mut self, program: usize) -> Option<&mut Session> {
        let is_open = |session: &&mut Session| {
            !session.released && session.gateway_released.is_none() && !session.surely
        };
        self.programs[program].session.as_mut().filter(is_open)
    }

    fn data(&mut self, program: usize, length: usize, fields: &str) {
        let Some(session) = self.open(program).filter(|session| session.eof_at.is_none()) else {
            return;
        };
        let most = if session.extensions.credit { session.may_send as usize } else { usize::MAX };
        let length = length.min(MAX_PAYLOAD).min(most);
        let payload = self.next_content(program, length);
        if length > 0 || !fields.is_empty() {
            self.frame(4, &format!("g{program}"), fields, &payload);
        }
    }

    fn grant(&mut self, program: usize, bytes: u64) {
        let Some(session) = self.open(program) else { return };
        session.granted = session.granted.saturating_add(bytes);
        self.frame(4, &format!("g{program}"), &format!(r#","credit":{bytes}"#), b"");
    }

    fn finish(&mut self, program: usize, length: usize) {
        self.data(program, length, r#","eof":true"#);
        let at = self.sent[program];
        if let Some(session) = self.open(program).filter(|session| session.extensions.eof) {
            session.eof_at.get_or_insert(at);
        }
    }

    fn release(&mut self, program: usize, ending: Ending) {
        let Some(session) = self.open(program) else { return };
        session.gateway_released = Some(ending);
        let (code, msg) = match ending {
            Ending::InOrder => (1, "the service has closed the connection"),
            Ending::Lost => (3, "the device is gone"),
            Ending::Cut => (1, reason::TUNNEL_CLOSED),
        };
        let payload = format!(r#"{{"code":{code},"msg":"{msg}"}}"#);
        self.frame(3, &format!("g{program}"), "", payload.as_bytes());
    }

    fn bad_credit(&mut self, program: usize, which: u8) {
        let Some(session) = self.open(program) else { return };
        if !session.extensions.credit {
            return;
        }
        let bad = BAD_CREDITS.get(usize::from(which) % (BAD_CREDITS.len() + 1));
        (session.broke, session.surely) = (true, true);
        let id = format!("g{program}");
        if let Some(text) = bad {
            return self.frame(4, &id, &format!(r#","credit":{text}"#), b"");
        }
        // Each is the most that may be granted. Their sum is more.
        session.granted = session.granted.saturating_add(MOST_CREDIT);
        for _ in 0..2 {
            self.frame(4, &id, &format!(r#","credit":{MOST_CREDIT}"#), b"");
        }
    }

    fn over_credit(&mut self, program: usize, excess: u8) {
        let Some(session) = self.open(program).filter(|session| session.extensions.credit) else {
            return;
        };
        if session.eof_at.is_some() {
            return;
        }
        // The access side may have granted more meanwhile.
        session.broke = true;
        let mut left = session.may_send as usize + 1 + usize::from(excess);
        while left > 0 {
            let payload = self.next_content(program, left.min(MAX_PAYLOAD));
            left -= payload.len();
            self.frame(4, &format!("g{program}"), "", &payload);
        }
    }

    fn data_after_end(&mut self, program: usize) {
        let Some(session) = self.open(program).filter(|session| session.eof_at.is_some()) else {
            return;
        };
        (session.broke, session.surely) = (true, true);
        let payload = self.next_content(program, 7);
        self.frame(4, &format!("g{program}"), "", &payload);
    }

    fn too_long(&mut self, program: usize, excess: u8) {
        let Some(session) = self.open(program) else { return };
        (session.broke, session.surely) = (true, true);
        let length = MAX_PAYLOAD + 1 + 200 * usize::from(excess);
        let payload = self.next_content(program, length);
        self.frame(4, &format!("g{program}"), "", &payload);
    }

    fn next_content(&mut self, program: usize, length: usize) -> Vec<u8> {
        let bytes = content(program, self.sent[program], length).collect::<Vec<_>>().concat();
        self.sent[program] += length;
        if let Some(session) = &mut self.programs[program].session {
            session.may_send = session.may_send.saturating_sub(length as u64);
        }
        bytes
    }

    /// What the thread of the access side does.
    fn turn(&mut self) {
        let polled = self.poll();
        self.relay.connection_mut().ready(polled.0.read, polled.0.write);
        self.relay.turn(self.now, &polled.1);
        self.listen();
        self.check_budget();
    }

    fn poll(&self) -> (Ready, Vec<Ready>, bool) {
        let (wants_input, wants_local) = (self.relay.wants_input(), self.relay.wants_local());
        let wire = self.wire.state();
        let connection = Ready {
            read: wants_input && wire.is_readable(),
            write: self.relay.connection().wants_room(self.now) && wire.takes > 0,
        };
        let ready = |stream: &ServiceStream, read: bool, write: bool| {
            let service = stream.service.borrow();
            Ready { read: read && service.is_readable(), write: write && service.is_writable() }
        };
        let sessions = self.relay.sessions().iter().map(|session| {
            let stream = session.stream();
            stream.map_or(Ready::default(), |stream| {
                ready(stream, wants_local && session.wants_read(), session.wants_write())
            })
        });
        let sessions: Vec<Ready> = sessions.collect();
        let lingers = self.relay.lingering().iter().any(|one| {
            ready(one.stream(), one.wants_read(), one.wants_write()) != Ready::default()
        });
        let wakes = lingers
            || sessions.iter().chain([&connection]).any(|ready| *ready != Ready::default())
            || self.relay.deadline(self.now) <= self.now;
        (connection, sessions, wakes)
    }

    fn check_budget(&self) {
        for session in self.relay.sessions() {
            let most = session.window().map_or(SESSION_BUFFER, |_| WINDOW.session as usize);
            assert!(session.waiting() <= most, "{} bytes wait for a program", session.waiting());
        }
        let waiting = self.relay.connection().waiting();
        assert!(waiting <= 2 * SEND_BUFFER + SEND_EXCESS, "{waiting} bytes wait for the gateway");
        let connection = self.relay.connection();
        if connection.reads() && connection.waiting() < connection.hard_limit() {
            let mut sessions = self.relay.sessions().iter();
            let blocks = sessions.any(|one| one.window().is_none() && one.waiting() > 0);
            assert!(self.relay.wants_input() || blocks, "a session with credit blocks");
        }
    }

    /// Reads what the access side has said.
    fn listen(&mut self) {
        let wire = self.wire.state().from_device.clone();
        let mut rest = &wire[self.heard..];
        while let Some((opcode, message)) = next_message(&mut rest) {
            self.heard = wire.len() - rest.len();
            assert_eq!(self.closed, None, "opcode {opcode} follows a close frame");
            match opcode {
                2 => {
                    let (header, payload) = parts(&message);
                    self.hear(&header, &payload);
                }
                8 => self.closed = Some(close_code(&message)),
                9 | 10 => {}
                _ => panic!("opcode {opcode}"),
            }
        }
    }

    fn hear(&mut self, header: &Value, payload: &[u8]) {
        if header["frame_type"] == 2 {
            let number = header["service_type"].as_str().and_then(|name| name.strip_prefix('p'));
            let number: usize = number.and_then(|number| number.parse().ok()).expect("a program");
            let names = header["ext"].as_str().unwrap_or_default();
            assert_eq!(Extensions::parse(names), self.offer);
            let first = self.offer.credit.then_some(WINDOW.first);
            assert_eq!(header["credit"].as_u64(), first);
            let program = &mut self.programs[number];
            assert!(program.asked.is_none() && program.session.is_none(), "it asks twice");
            program.asked = header["frame_id"].as_u64();
            return;
        }
        let id = header["session_id"].as_str().expect("a session id");
        let Some(number) = id.strip_prefix('g').and_then(|number| number.parse::<usize>().ok())
        else {
            return assert_eq!(header["frame_type"], 3, "{id} does not exist");
        };
        let program = &mut self.programs[number];
        match (header["frame_type"].as_u64(), &mut program.session) {
            // That of a session that was spoken of too early.
            (Some(3), None) => assert!(program.early),
            (Some(3), Some(session)) => {
                assert!(!session.released || program.early, "two releases");
                session.released = true;
            }
            (Some(4), Some(session)) => session.hears(header, payload),
            _ => panic!("{header}"),
        }
        if let Some(session) = program.session.as_ref().filter(|session| session.extensions.credit)
        {
            assert!(session.received as u64 <= session.granted, "more than was granted");
            let taken = program.service.borrow().received.len() as u64;
            let held = (session.may_send + self.sent[number] as u64).saturating_sub(taken);
            let is_open = !session.released && !session.broke;
            assert!(held <= WINDOW.session || !is_open, "{held} bytes are granted");
        }
    }

    /// From here on all goes well and everybody takes everything: then nothing may be missing.
    fn settle(mut self) {
        for _ in 0..10_000 {
            let before = self.progress();
            {
                let mut wire = self.wire.state();
                (wire.arrived, wire.takes) = (usize::MAX, usize::MAX);
            }
            for number in 0..self.programs.len() {
                self.programs[number].service.borrow_mut().takes = usize::MAX;
                let is_hungry =
                    |session: &&mut Session| session.extensions.credit && session.granted < PLENTY;
                if !self.has_closed && self.open(number).filter(is_hungry).is_some() {
                    self.grant(number, PLENTY);
                }
            }
            let wakes = self.poll().2;
            self.turn();
            if self.relay.end().is_some() {
                return self.ended();
            }
            assert!(wakes || self.progress() == before, "the thread sleeps while there is work");
            let is_read = self.wire.state().is_all_read();
            if is_read && self.progress() == before && !self.poll().2 {
                assert_eq!(self.relay.connection().waiting(), 0, "bytes wait for the gateway");
                assert!(self.relay.lingering().is_empty(), "a closed session lingers");
                return self.ended();
            }
        }
        panic!("no end of turns");
    }

    fn progress(&self) -> [usize; 5] {
        let wire = self.wire.state();
        let services = self.programs.iter().map(|program| program.service.borrow());
        let moved = services.map(|service| service.received.len() + service.read).sum();
        let (sessions, lingering) = (self.relay.sessions(), self.relay.lingering());
        [wire.read, wire.from_device.len(), moved, sessions.len(), lingering.len()]
    }

    /// The connection is over, or everything is said: what each program saw must fit together.
    fn ended(mut self) {
        let end = self.relay.end().cloned();
        self.wire.state().takes = usize::MAX;
        for program in &self.programs {
            program.service.borrow_mut().takes = usize::MAX;
        }
        let mut lingering = Vec::new();
        if end.is_some() {
            lingering = self.relay.take_lingering(self.now);
        }
        for _ in 0..100 {
            lingering.retain_mut(|one| !one.step(self.now, &mut [0; 4096]));
        }
        assert!(lingering.is_empty(), "a closed session lingers");
        self.listen();
        if let Some(End::Peer { code, .. }) = &end {
            let answer = self.closed.expect("a close frame is answered");
            assert_eq!(answer.is_some(), code.is_some(), "the answer to a close frame");
        }
        let is_alive = end.is_none();
        let is_patient = self.now.duration_since(self.began) < PATIENCE;
        let is_read = self.wire.state().is_all_read();
        for (number, program) in self.programs.iter().enumerate() {
            let judge = Judge { number, sent: self.sent[number], is_alive, is_patient, is_read };
            judge.judge(program);
        }
    }
}

impl Session {
    /// A data frame of the access side.
    fn hears(&mut self, header: &Value, payload: &[u8]) {
        assert!(!self.released, "data after the release");
        assert!(!self.ended || payload.is_empty(), "data after the end");
        let is_end = header["eof"] == true;
        let credit = header["credit"].as_u64();
        assert!(self.extensions.eof || header["eof"].is_null(), "an end that was not agreed on");
        assert!(self.extensions.credit || header["credit"].is_null(), "credit nobody agreed on");
        assert!(!(is_end && self.ended), "two ends");
        assert!(payload.len() <= 4096);
        assert!(!payload.is_empty() || is_end || credit.is_some_and(|bytes| bytes > 0));
        self.ended |= is_end;
        self.may_send += credit.unwrap_or_default();
        let number = header["session_id"].as_str().and_then(|id| id[1..].parse().ok());
        let salt = up(number.expect("a session id"));
        assert_content(&format!("{header}"), salt, self.received, payload);
        self.received += payload.len();
    }
}

/// What may be asked of a program's session in the end.
struct Judge {
    number: usize,
    /// The number of bytes that the gateway has sent for it.
    sent: usize,
    is_alive: bool,
    /// Nothing was given up because of the time.
    is_patient: bool,
    /// The access side has read everything.
    is_read: bool,
}

impl Judge {
    fn judge(&self, program: &Program) {
        let what = format!("program {}", self.number);
        let service = program.service.borrow();
        assert_content(&what, self.number, 0, &service.received);
        let got = service.received.len();
        assert!(got <= self.sent, "{what}: bytes that nobody has sent");
        let is_orderly = service.shut || service.closed && !service.reset;
        let Some(session) = &program.session else {
            assert!(got == 0 && !is_orderly, "{what}: bytes or an end without a session");
            return;
        };
        assert!(session.received <= service.sent, "{what}: bytes that were not sent");
        if service.spoiled {
            return;
        }
        let is_all = got == self.sent;
        let in_order = session.gateway_released == Some(Ending::InOrder);
        if session.extensions.eof {
            assert!(!service.shut || session.eof_at == Some(got), "{what}: an end of a part");
            let is_finished = session.eof_at == Some(got) && session.ended;
            assert!(!service.closed || service.reset || is_finished, "{what}: a cut is an end");
        } else {
            assert!(!is_orderly || in_order && is_all, "{what}: an end of a part");
        }
        if self.is_read && (session.surely || !is_all && !session.broke && self.is_patient) {
            // It may have ended before, for another reason.
            assert!(service.reset || session.released, "{what}: {got} of {}", self.sent);
            assert!(!is_orderly || session.eof_at == Some(got), "{what}: cut, and not told");
        }
        if !is_all && service.closed {
            assert!(service.reset, "{what}: {got} of {} and no reset", self.sent);
        }
        let is_open = session.gateway_released.is_none() && !session.released;
        if self.is_alive && self.is_patient && is_open && !session.broke {
            assert!(is_all, "{what}: {got} of {}", self.sent);
            assert_eq!(session.received, service.sent, "{what}: its bytes are missing");
            let told = session.ended || !session.extensions.eof;
            assert!(told || service.end.is_none(), "{what}: its end was not told");
        }
        if self.is_alive && self.is_read && program.early {
            assert!(service.reset || is_all, "{what}: it goes on with a hole");
        }
    }
}

/// Fields of the extensions, in frames where they mean nothing.
const FIELDS: [&str; 4] = ["", r#","credit":5"#, r#","eof":true"#, r#","credit":-1"#];

/// The salt of what a program sends. The gateway's salts are the numbers of the programs.
fn up(program: usize) -> usize {
    1000 + program
}
