//! The device's relay against a model of its cloud and of its local services, all of memory. Whatever
//! happens, every byte arrives in order at the session it is for, what is lost is reported, and the
//! buffers stay within their budget.

mod content;
mod operation;
mod said;
mod service;
mod wire;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::connection::{Connection, End, Ping, Upkeep};
use aiot_tunnel_proto::device::{DeviceLimits, DeviceRelay, DeviceSide};
use aiot_tunnel_proto::frame::{reason, MAX_PAYLOAD};
use aiot_tunnel_proto::relay::RelayLimits;
use aiot_tunnel_proto::session::{Lingering, SessionLimits, WindowLimits, MAX_BATCH};
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::Ready;

use serde_json::Value;

pub(crate) use content::{assert_content, content};
use content::{down, up};
pub(crate) use operation::{length, millis};
pub use operation::{Misbehaviour, Offer, Operation, ServiceEnd, BAD_CREDITS, CLOSES};
pub(crate) use said::{next_message, parts};
use said::{Accepted, Said};
pub use service::{Answer, Service, ServiceStream, Services, SharedService};
pub use wire::{CloudWire, Wire};

/// Sessions that the cloud talks of; the device takes [`MAX_SESSIONS`] of them at once.
pub const IDS: usize = 5;
pub const MAX_SESSIONS: usize = 3;
/// Operations on services concern one of so many latest.
const REACH: usize = 8;
/// What the receive buffer may take.
const MAX_RECEIVE_BUFFER: usize = 520 * 1024;
/// What may wait for the cloud beyond twice the send buffer: one read of a service at its limit.
const SEND_EXCESS: usize = 16 * 1024;

/// Limits of the device side.
#[derive(Debug, Clone)]
pub struct Limits {
    pub max_sessions: usize,
    pub session_buffer: usize,
    pub send_buffer: usize,
    pub stall_timeout: Duration,
    pub connect_timeout: Duration,
    pub ping_interval: Duration,
    pub pong_timeout: Duration,
}

impl Default for Limits {
    /// Those of the library.
    fn default() -> Self {
        Limits {
            max_sessions: 10,
            session_buffer: 256 * 1024,
            send_buffer: 128 * 1024,
            stall_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(20),
            pong_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// As small as they may be, so that every limit is met.
    fn tight() -> Self {
        Limits {
            max_sessions: MAX_SESSIONS,
            session_buffer: 64 * 1024,
            send_buffer: 8 * 1024,
            ..Limits::default()
        }
    }
}

/// What may be granted or wait in a session with flow control.
const WINDOW: WindowLimits =
    WindowLimits { first: 64 * 1024, session: 256 * 1024, growth: 256 * 1024 };
/// What the cloud grants each session in the end: more than any service has to send.
const PLENTY: u64 = 1 << 40;
/// The most that one frame may grant.
pub const MOST_CREDIT: u64 = i64::MAX as u64;
/// Fields of the extensions, in data of a session that does not exist.
const FIELDS: [&str; 4] = ["", r#","credit":5"#, r#","eof":true"#, r#","credit":-1"#];

/// A session_create, and what the cloud has sent for its session.
struct Create {
    /// The position in the bytes of its id.
    at: usize,
    frame_id: u64,
    /// The extensions that hold if the device accepts it.
    has_eof: bool,
    has_credit: bool,
    /// The number of bytes that the cloud has granted, and that it has sent.
    granted: u64,
    sent: usize,
    /// Where the cloud has ended its direction.
    eof_at: Option<usize>,
    /// The cloud has released it.
    released: bool,
    /// The cloud has broken the protocol of the extensions, or may have.
    broke: bool,
    surely: bool,
}

/// What the cloud knows of the latest session of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    /// There is none with extensions.
    Free,
    /// It is not answered.
    Pending,
    /// The device has granted so many bytes.
    Open(u64),
}

/// What the cloud has sent for one session id.
#[derive(Default)]
struct Told {
    bytes: usize,
    /// In the order of their frame ids.
    creates: Vec<Create>,
    releases: Vec<(usize, u64)>,
    /// A frame was too long to be kept, so sessions of this id may end early.
    lost: bool,
}

/// A relay, and everything around it.
pub struct World {
    pub limits: Limits,
    began: Instant,
    pub now: Instant,
    pub wire: CloudWire,
    pub services: Services,
    pub relay: DeviceRelay<CloudWire, Services, ()>,
    told: [Told; IDS],
    next_frame: u64,
    /// Frame ids that must be answered, and whose they are.
    asked: HashMap<u64, usize>,
    /// What the device has said so far.
    said: Said,
    /// The cloud has sent a close frame, and says nothing more.
    has_closed: bool,
}

impl Default for World {
    fn default() -> Self {
        World::new(Limits::tight())
    }
}

impl World {
    pub fn new(limits: Limits) -> Self {
        let (wire, services) = (CloudWire::default(), Services::default());
        let upkeep = Upkeep {
            ping: Ping::Every(limits.ping_interval),
            silence_limit: limits.pong_timeout,
            shrink_interval: limits.ping_interval,
            high_water: limits.send_buffer,
            flood_limit: usize::MAX,
        };
        let now = Instant::now();
        let connection = Connection::new(wire.clone(), Role::Client, b"", upkeep, now);
        let (max_sessions, connect_timeout) = (limits.max_sessions, limits.connect_timeout);
        let side =
            DeviceSide::new(services.clone(), DeviceLimits { max_sessions, connect_timeout });
        let session = SessionLimits {
            session_buffer: limits.session_buffer,
            stall_timeout: Some(limits.stall_timeout),
            half_close_timeout: None,
            idle_timeout: None,
            window: WINDOW,
        };
        let relay_limits = RelayLimits { session, log_window: limits.ping_interval };
        let relay = DeviceRelay::new(connection, side, relay_limits, (), Vec::new());
        World {
            limits,
            began: now,
            now,
            wire,
            services,
            relay,
            told: Default::default(),
            next_frame: 0,
            asked: HashMap::new(),
            said: Said::default(),
            has_closed: false,
        }
    }

    /// Lets the operations happen to a new relay, and then everything go well. Panics where a promise
    /// is broken.
    pub fn run(operations: &[Operation]) {
        let mut world = World::default();
        for operation in operations {
            if let Err(end) = world.happens(operation) {
                return world.ended(Some(end));
            }
        }
        world.settle();
    }

    fn happens(&mut self, operation: &Operation) -> Result<(), End> {
        if self.has_closed && operation.is_said_by_cloud() {
            return Ok(());
        }
        match *operation {
            Operation::CloudCreates { id, known, fragments } => {
                self.cloud_creates(id, known, fragments);
            }
            Operation::CloudSends { id, length, fragments } => {
                self.cloud_sends(id, length, fragments);
            }
            Operation::CloudReleases { id, asks, fragments } => {
                self.cloud_releases(id, asks, fragments);
            }
            Operation::CloudOffers { id, offer, fragments } => {
                self.cloud_offers(id, offer, fragments);
            }
            Operation::CloudGrants { id, bytes } => self.cloud_grants(id, bytes),
            Operation::CloudEnds { id, length } => self.cloud_ends(id, length),
            Operation::CloudMisbehaves { how, fragments } => self.cloud_misbehaves(how, fragments),
            Operation::Arrives { length } => self.wire.state().arrived += length,
            Operation::CloudTakes { length } => self.wire.state().takes += length,
            Operation::ServiceSends { service, length } => self.with_service(service, |service| {
                service.sent += if service.end.is_none() { length } else { 0 };
            }),
            Operation::ServiceTakes { service, length } => {
                self.with_service(service, |service| service.takes += length);
            }
            Operation::ServiceTakesLater { service, writes, length } => {
                self.with_service(service, |service| service.takes_later = Some((writes, length)));
            }
            Operation::ServiceEnds { service, how } => {
                self.with_service(service, |service| service.ends(how));
            }
            Operation::NextConnect { id, answer } => self.services.next_connect(id, answer),
            Operation::Connects { service, succeeds } => self.with_service(service, |service| {
                let answer = if succeeds { Ok(()) } else { Err(ErrorKind::TimedOut) };
                service.connected.get_or_insert(answer);
            }),
            Operation::TimePasses { millis } => self.now += Duration::from_millis(millis),
            Operation::CloudSaysClose { which } => self.cloud_says_close(which),
            Operation::CloudCloses => self.wire.state().closed = true,
            Operation::Directive => {
                self.relay.close(reason::TUNNEL_CLOSED, self.now);
                return Err(directed());
            }
            Operation::Turn { spurious } => self.turn(spurious)?,
        }
        Ok(())
    }

    /// Does something to one of the latest services, counted from the back.
    fn with_service(&self, which: u8, act: impl FnOnce(&mut Service)) {
        let services = self.services.all();
        if let Some(back) = usize::from(which).checked_rem(services.len().min(REACH)) {
            act(&mut services[services.len() - 1 - back].borrow_mut());
        }
    }

    /// What the worker does: sees what is ready, and lets the relay deal with it. `spurious`: `poll`
    /// reports everything that it was asked for.
    ///
    /// # Errors
    /// The connection is over.
    pub fn turn(&mut self, spurious: bool) -> Result<(), End> {
        let polled = self.poll(spurious);
        self.relay.connection_mut().ready(polled.connection.read, polled.connection.write);
        self.relay.side_mut().ready(&polled.dials);
        self.relay.turn(self.now, &polled.sessions);
        self.said.listen(&self.wire.state().from_device);
        self.check_budget();
        self.check_credit();
        self.relay.end().map_or(Ok(()), |end| Err(end.clone()))
    }

    fn poll(&self, spurious: bool) -> Polled {
        let relay = &self.relay;
        let (wants_input, wants_local) = (relay.wants_input(), relay.wants_local());
        let wants_room = relay.connection().wants_room(self.now);
        let wire = self.wire.state();
        let local = |stream: &ServiceStream, read: bool, write: bool| {
            let service = stream.service.borrow();
            Ready {
                read: read && (spurious || service.is_readable()),
                write: write && (spurious || service.is_writable()),
            }
        };
        let sessions = relay.sessions().iter();
        let dials = relay.side().dials();
        let lingering = relay.lingering().iter();
        Polled {
            connection: Ready {
                read: wants_input && (spurious || wire.is_readable()),
                write: wants_room && (spurious || wire.takes > 0),
            },
            sessions: sessions
                .map(|session| {
                    let stream = session.stream();
                    stream.map_or(Ready::default(), |stream| {
                        local(stream, wants_local && session.wants_read(), session.wants_write())
                    })
                })
                .collect(),
            dials: dials
                .map(|dial| Ready { read: false, write: dial.borrow().connected.is_some() })
                .collect(),
            lingering: lingering
                .map(|one| local(one.stream(), one.wants_read(), one.wants_write()))
                .collect(),
        }
    }

    fn check_budget(&self) {
        let (sessions, lingering) = (self.relay.sessions(), self.relay.lingering());
        let most = self.limits.max_sessions;
        assert!(sessions.iter().filter(|session| !session.is_released()).count() <= most);
        assert!(sessions.len() + lingering.len() <= most * 3 / 2);
        for session in sessions {
            let (payloads, room) = session.batch();
            // A batch points into the receive buffer, which the next turn may move or give back.
            assert_eq!(payloads, 0, "a batch outlives its turn");
            assert!(room <= MAX_BATCH, "a batch has room for {room} payloads");
        }
        let plain = self.limits.session_buffer;
        for session in sessions {
            let most = session.window().map_or(plain, |_| WINDOW.session as usize);
            assert!(session.waiting() <= most, "{} bytes wait for a service", session.waiting());
        }
        for length in lingering.iter().map(Lingering::waiting) {
            let most = plain.max(WINDOW.session as usize);
            assert!(length <= most, "{length} bytes wait for a service");
        }
        let connection = self.relay.connection();
        if connection.reads() && connection.waiting() < connection.hard_limit() {
            let blocks = sessions.iter().any(|one| one.window().is_none() && one.waiting() > 0);
            assert!(self.relay.wants_input() || blocks, "a session with credit blocks");
        }
        let waiting = self.relay.connection().waiting();
        let most = 2 * self.limits.send_buffer + SEND_EXCESS;
        assert!(waiting <= most, "{waiting} bytes wait for the cloud");
        let held = self.relay.connection().receive_capacity();
        assert!(held <= MAX_RECEIVE_BUFFER, "the receive buffer has {held} bytes");
    }

    /// What the device sends, and what it grants, stays within what is allowed.
    fn check_credit(&self) {
        let (mut all, mut count) = (0, 0);
        for (id, told) in self.told.iter().enumerate() {
            for (answer, service) in self.said.accepted[id].iter().zip(self.services.opened(id)) {
                // A test may have written the create itself.
                let mut creates = told.creates.iter();
                let create = creates.find(|create| create.frame_id == answer.frame_id);
                let Some(create) = create else { continue };
                let sent = answer.bytes.len() as u64;
                assert!(!answer.has_credit || sent <= create.granted, "s{id}: more than granted");
                let service = service.borrow();
                let is_open = answer.has_credit && !answer.released && !service.closed;
                if is_open && !create.released && !service.spoiled {
                    let held = answer.granted.saturating_sub(service.received.len() as u64);
                    assert!(held <= WINDOW.session, "s{id}: {held} bytes are granted");
                    (all, count) = (all + held, count + 1);
                }
            }
        }
        let most = count * WINDOW.first + WINDOW.growth;
        assert!(all <= most, "{all} bytes are granted in {count} sessions");
    }

    /// What the cloud knows of the latest session of an id.
    fn seat(&self, id: usize) -> Seat {
        let has_any = |create: &&Create| create.has_eof || create.has_credit;
        let latest = self.told[id].creates.last().filter(has_any);
        let Some(create) = latest.filter(|create| !create.released) else { return Seat::Free };
        if !self.said.answered.contains_key(&create.frame_id) {
            return Seat::Pending;
        }
        let mut accepted = self.said.accepted[id].iter();
        match accepted.find(|answer| answer.frame_id == create.frame_id) {
            Some(answer) if !answer.released => Seat::Open(answer.granted),
            _ => Seat::Free,
        }
    }

    /// The number of bytes that the cloud may send for an id.
    pub fn may_send(&self, id: usize) -> usize {
        let (seat, create) = (self.seat(id), self.told[id].creates.last());
        match (seat, create) {
            (Seat::Free, _) | (_, None) => usize::MAX,
            (_, Some(create)) if create.eof_at.is_some() => 0,
            (_, Some(create)) if !create.has_credit => usize::MAX,
            (Seat::Pending, _) => 0,
            (Seat::Open(granted), Some(create)) => (granted as usize).saturating_sub(create.sent),
        }
    }

    /// The latest create of an id, while the cloud may think that its session with extensions lives.
    fn latest(&mut self, id: usize) -> Option<&mut Create> {
        let is_free = self.seat(id) == Seat::Free;
        self.told[id].creates.last_mut().filter(|_| !is_free)
    }

    /// `known`: whether there is such a service.
    pub fn cloud_creates(&mut self, id: usize, known: bool, fragments: usize) {
        let name = if known { format!("v{id}") } else { "nope".to_owned() };
        self.create(id, &name, Offer::default(), fragments);
    }

    /// A create that offers extensions.
    pub fn cloud_offers(&mut self, id: usize, offer: Offer, fragments: usize) {
        self.create(id, &format!("v{id}"), offer, fragments);
    }

    fn create(&mut self, id: usize, name: &str, offer: Offer, fragments: usize) {
        // A cloud knows which session its credit is for.
        if self.seat(id) != Seat::Free {
            return;
        }
        let frame_id = self.frame_id();
        let is_valid = |bytes: &u64| *bytes <= i64::MAX as u64;
        let granted = offer.credit.filter(is_valid);
        let Told { bytes, creates, .. } = &mut self.told[id];
        creates.push(Create {
            at: *bytes,
            frame_id,
            has_eof: offer.eof,
            has_credit: granted.is_some(),
            granted: granted.unwrap_or_default(),
            sent: 0,
            eof_at: None,
            released: false,
            broke: false,
            surely: false,
        });
        self.asked.insert(frame_id, id);
        let names = match (offer.eof, offer.credit) {
            (true, Some(_)) => r#","ext":"eof,credit""#,
            (true, None) => r#","ext":"zip, eof""#,
            (false, Some(_)) => r#","ext":"credit""#,
            (false, None) => "",
        };
        let credit = offer.credit.map_or(String::new(), |bytes| format!(r#","credit":{bytes}"#));
        let header = format!(
            r#"{{"frame_type":2,"frame_id":{},"session_id":"s{id}","service_type":"{name}"{names}{credit}}}"#,
            spelled(frame_id)
        );
        self.wire.state().frame(&header, &[], fragments);
    }

    /// A data frame with these fields.
    fn data_frame(&mut self, id: usize, fields: &str, payload: &[u8]) {
        let frame_id = self.frame_id();
        let header =
            format!(r#"{{"frame_type":4,"frame_id":{frame_id},"session_id":"s{id}"{fields}}}"#);
        self.wire.state().frame(&header, payload, 1);
    }

    pub fn cloud_grants(&mut self, id: usize, bytes: u64) {
        if let Some(create) = self.latest(id).filter(|create| create.has_credit) {
            create.granted = create.granted.saturating_add(bytes);
        }
        self.data_frame(id, &format!(r#","credit":{bytes}"#), &[]);
    }

    pub fn cloud_ends(&mut self, id: usize, length: usize) {
        let payload = self.next_content(id, length.min(MAX_PAYLOAD).min(self.may_send(id)));
        let at = self.told[id].bytes;
        if let Some(create) = self.latest(id).filter(|create| create.has_eof) {
            create.eof_at.get_or_insert(at);
        }
        self.data_frame(id, r#","eof":true"#, &payload);
    }

    fn bad_credit(&mut self, id: usize, which: u8) {
        if let Some(create) = self.latest(id).filter(|create| create.has_credit) {
            (create.broke, create.surely) = (true, true);
        }
        if let Some(text) = BAD_CREDITS.get(usize::from(which) % (BAD_CREDITS.len() + 1)) {
            return self.data_frame(id, &format!(r#","credit":{text}"#), &[]);
        }
        // Each is the most that may be granted. Their sum is more.
        for _ in 0..2 {
            if let Some(create) = self.latest(id) {
                create.granted = create.granted.saturating_add(MOST_CREDIT);
            }
            self.data_frame(id, &format!(r#","credit":{MOST_CREDIT}"#), &[]);
        }
    }

    fn over_credit(&mut self, id: usize, excess: u8) {
        let mut left = self.may_send(id).saturating_add(1 + usize::from(excess));
        let Some(create) = self.latest(id).filter(|create| create.has_credit) else { return };
        create.broke = true;
        while left > 0 {
            let payload = self.next_content(id, left.min(MAX_PAYLOAD));
            left -= payload.len();
            self.data_frame(id, "", &payload);
        }
    }

    fn data_after_end(&mut self, id: usize) {
        let Some(create) = self.latest(id).filter(|create| create.eof_at.is_some()) else { return };
        (create.broke, create.surely) = (true, true);
        let payload = self.next_content(id, 7);
        self.data_frame(id, "", &payload);
    }

    pub fn cloud_sends(&mut self, id: usize, length: usize, fragments: usize) {
        let most = self.may_send(id);
        if most == 0 {
            return;
        }
        let payload = self.next_content(id, length.min(MAX_PAYLOAD).min(most));
        let frame_id = self.frame_id();
        let header = if frame_id.is_multiple_of(2) {
            format!(r#"{{"frame_type":4,"frame_id":{frame_id},"session_id":"s{id}"}}"#)
        } else {
            format!(
                r#"{{ "session_id" : "s{id}", "x":null, "frame_id":"{frame_id}","frame_type":4}}"#
            )
        };
        self.wire.state().frame(&header, &payload, fragments);
    }

    /// `asks`: the release has a frame id, so it must be answered.
    pub fn cloud_releases(&mut self, id: usize, asks: bool, fragments: usize) {
        let frame_id = self.frame_id();
        self.told[id].releases.push((self.told[id].bytes, frame_id));
        if let Some(create) = self.told[id].creates.last_mut() {
            create.released = true;
        }
        let field = if asks {
            self.asked.insert(frame_id, id);
            format!(r#","frame_id":{}"#, spelled(frame_id))
        } else {
            String::new()
        };
        let header = format!(r#"{{"frame_type":3,"session_id":"s{id}"{field}}}"#);
        self.wire.state().frame(&header, br#"{"code":0,"msg":"done"}"#, fragments);
    }

    fn cloud_misbehaves(&mut self, how: Misbehaviour, fragments: usize) {
        let mut wire = self.wire.state();
        match how {
            Misbehaviour::Ping => wire.message(9, &[7; 100], 1),
            Misbehaviour::Pong => wire.message(10, &[], 1),
            Misbehaviour::Text => wire.message(1, b"text", fragments),
            Misbehaviour::NoMessage => wire.message(2, &[], 1),
            Misbehaviour::HeaderTooLong => wire.message(2, b"\x08\x01{}", 1),
            Misbehaviour::HeaderIsArray => wire.message(2, b"\0\x02[]rest", 1),
            Misbehaviour::UnknownType => wire.frame(r#"{"frame_type":9}"#, b"x", fragments),
            Misbehaviour::CreateWithoutFrameId => {
                let header = r#"{"frame_type":2,"session_id":"s0","service_type":"v0"}"#;
                wire.frame(header, b"", fragments);
            }
            Misbehaviour::UnknownSession => {
                let id = format!("z{}", self.next_frame % 300);
                let fields = FIELDS[(self.next_frame % FIELDS.len() as u64) as usize];
                self.next_frame += 1;
                let header =
                    format!(r#"{{"frame_type":4,"frame_id":1,"session_id":"{id}"{fields}}}"#);
                wire.frame(&header, b"of no session", fragments);
            }
            Misbehaviour::Response => {
                let header = r#"{"frame_type":1,"frame_id":77,"session_id":"s1"}"#;
                wire.frame(header, b"{}", fragments);
            }
            Misbehaviour::LongPayload { id, excess } => {
                drop(wire);
                self.cloud_sends_too_much(id, MAX_PAYLOAD + 1 + usize::from(excess), fragments);
            }
            Misbehaviour::LongMessage { id, excess } => {
                drop(wire);
                self.cloud_sends_too_much(id, 68_000 + 200 * usize::from(excess), fragments);
            }
            Misbehaviour::BadCredit { id, which } => {
                drop(wire);
                self.bad_credit(id, which);
            }
            Misbehaviour::OverCredit { id, excess } => {
                drop(wire);
                self.over_credit(id, excess);
            }
            Misbehaviour::DataAfterEnd { id } => {
                drop(wire);
                self.data_after_end(id);
            }
        }
    }

    /// Data that is not delivered: its session must not go on as if it had been.
    fn cloud_sends_too_much(&mut self, id: usize, length: usize, fragments: usize) {
        let payload = self.next_content(id, length);
        self.told[id].lost = true;
        let header = format!(r#"{{"frame_type":4,"frame_id":1,"session_id":"s{id}"}}"#);
        self.wire.state().frame(&header, &payload, fragments);
    }

    /// Why the device has released the latest session of an id, if it has.
    pub fn release_of(&self, id: usize) -> Option<String> {
        self.said.accepted[id].last()?.why.clone()
    }

    /// The frames of the device that the cloud has taken: headers and payloads.
    pub fn frames_of_device(&self) -> Vec<(Value, Vec<u8>)> {
        said::frames(&self.wire.state().from_device)
    }

    /// 0, 1, 2 ...
    fn frame_id(&mut self) -> u64 {
        self.next_frame += 1;
        self.next_frame - 1
    }

    /// A close frame. Nothing of the cloud follows it.
    pub fn cloud_says_close(&mut self, which: u8) {
        let payload = CLOSES[usize::from(which) % CLOSES.len()];
        self.wire.state().message(8, payload, 1);
        self.has_closed = true;
    }

    fn next_content(&mut self, id: usize, length: usize) -> Vec<u8> {
        let bytes = content(down(id), self.told[id].bytes, length).collect::<Vec<_>>().concat();
        self.told[id].bytes += length;
        if let Some(create) = self.told[id].creates.last_mut() {
            create.sent += length;
        }
        bytes
    }

    /// From here on all goes well and everybody takes everything: then nothing may be missing.
    fn settle(mut self) {
        for _ in 0..10_000 {
            let before = self.progress();
            {
                let mut wire = self.wire.state();
                (wire.arrived, wire.takes) = (usize::MAX, usize::MAX);
            }
            self.services.favour();
            self.cloud_favours();
            let wakes = self.wakes();
            if let Err(end) = self.turn(false) {
                return self.ended(Some(end));
            }
            assert!(wakes || self.progress() == before, "the worker sleeps while there is work");
            // A service that is gone takes bytes without a trace: that is no standstill.
            if self.wire.state().is_all_read() && self.progress() == before && !self.wakes() {
                assert_eq!(self.relay.connection().waiting(), 0, "bytes wait for the cloud");
                assert!(self.relay.lingering().is_empty(), "a closed session lingers");
                return self.ended(None);
            }
        }
        panic!("no end of turns");
    }

    /// The cloud grants each session plenty.
    fn cloud_favours(&mut self) {
        if self.has_closed {
            return;
        }
        for id in 0..IDS {
            let is_open = matches!(self.seat(id), Seat::Open(_));
            let latest = self.latest(id);
            if is_open && latest.is_some_and(|one| one.has_credit && one.granted < PLENTY) {
                self.cloud_grants(id, PLENTY);
            }
        }
    }

    /// Whether the worker's wait returns at once, or may be longer than what there is to do: a transport
    /// that has reported room and took nothing is left alone for a while.
    pub fn wakes(&self) -> bool {
        let connection = self.relay.connection();
        let is_left_alone = connection.waiting() > 0 && !connection.wants_room(self.now);
        let is_due = self.relay.deadline(self.now) <= self.now;
        is_due || is_left_alone || self.poll(false).wakes()
    }

    fn progress(&self) -> [usize; 5] {
        let wire = self.wire.state();
        let services = self.services.all();
        let services = services.iter().map(|service| service.borrow());
        let moved = services.map(|service| service.received.len() + service.read).sum();
        let (sessions, lingering) = (self.relay.sessions(), self.relay.lingering());
        [wire.read, wire.from_device.len(), moved, sessions.len(), lingering.len()]
    }

    /// The connection is over, or everything is said: what was said must fit together.
    fn ended(self, end: Option<End>) {
        self.wire.state().takes = usize::MAX;
        self.services.favour();
        let alive = end.is_none();
        let World { limits, began, now, wire, services, relay, told, asked, mut said, .. } = self;
        let open: Vec<SharedService> = relay
            .sessions()
            .iter()
            .filter_map(|session| session.stream().map(|stream| stream.service.clone()))
            .collect();
        let mut lingering = relay.into_lingering(now);
        // Some may have connected just now.
        services.favour();
        for _ in 0..100 {
            lingering.retain_mut(|lingering| !lingering.step(now, &mut [0; 4096]));
        }
        assert!(lingering.is_empty(), "a closed session lingers");

        let wire = wire.state();
        said.listen(&wire.from_device);
        if let Some(End::Peer { code, .. }) = &end {
            let answer = said.closed.expect("a close frame is answered");
            assert_eq!(answer.is_some(), code.is_some(), "the answer to a close frame");
        }
        let verdict = Verdict {
            alive,
            directed: end == Some(directed()),
            arrived: wire.is_all_read(),
            patient: now.duration_since(began) < limits.stall_timeout.min(limits.connect_timeout),
        };
        for (id, told) in told.iter().enumerate() {
            let opened = services.opened(id);
            let answers = &said.accepted[id];
            assert_eq!(opened.len(), answers.len(), "s{id}: an open service was not announced");
            for (nth, (service, answer)) in opened.iter().zip(answers).enumerate() {
                let open = open.iter().any(|open| Rc::ptr_eq(open, service));
                verdict.session(id, nth, told, answer, &service.borrow(), open);
            }
        }
        if alive {
            for (frame, id) in asked {
                assert!(said.answered.contains_key(&frame), "frame {frame} of s{id}: no answer");
            }
        }
    }
}

/// What `poll` reports.
struct Polled {
    connection: Ready,
    sessions: Vec<Ready>,
    dials: Vec<Ready>,
    lingering: Vec<Ready>,
}

impl Polled {
    /// Whether it returns at once.
    fn wakes(&self) -> bool {
        let locals = self.sessions.iter().chain(&self.dials).chain(&self.lingering);
        locals.chain([&self.connection]).any(|ready| *ready != Ready::default())
    }
}

/// What may be asked of a session in the end.
struct Verdict {
    /// The connection is still open.
    alive: bool,
    /// A directive has closed it.
    directed: bool,
    /// What the cloud sent has all arrived.
    arrived: bool,
    /// No session's time was up.
    patient: bool,
}

impl Verdict {
    /// One session: what the cloud told of it, what the device said, what its service got.
    fn session(
        &self,
        id: usize,
        nth: usize,
        told: &Told,
        answer: &Accepted,
        service: &Service,
        open: bool,
    ) {
        let what = format!("s{id}, the {nth}th");
        let create = told.create(answer.frame_id);
        let agreed = (answer.has_eof, answer.has_credit);
        assert_eq!(agreed, (create.has_eof, create.has_credit), "{what}: the terms");
        let from = create.at;
        assert_content(&what, down(id), from, &service.received);
        let release = told.releases.iter().find(|(_, frame)| *frame > answer.frame_id);
        let released = release.map(|(at, _)| *at);
        let to = from + service.received.len();
        let all = released.unwrap_or(told.bytes).min(create.eof_at.unwrap_or(usize::MAX));
        assert!(to <= all, "{what}: bytes after its release");
        assert_content(&what, up(id, nth), 0, &answer.bytes);
        assert!(answer.bytes.len() <= service.sent, "{what}: bytes that were not sent");

        // Without half-close, the end of a service is the end of its session.
        let ended_in_order = service.end == Some(Ok(()));
        let spoiled = service.spoiled || ended_in_order && !create.has_eof;
        let is_whole = create.eof_at == Some(to);
        let is_finished = is_whole && answer.eof;
        if create.has_eof {
            assert!(!service.shut || spoiled || is_whole, "{what}: an orderly end of a part");
            let is_orderly = service.closed && !service.reset;
            assert!(!is_orderly || spoiled || is_finished, "{what}: a release is taken for an end");
        } else if service.shut && !service.reset && !spoiled {
            assert!(released.is_some() && to == all, "{what}: an orderly end of a part");
        }
        let is_all_sent = service.end.is_some() && answer.bytes.len() == service.sent;
        assert!(!answer.eof || is_all_sent, "{what}: an end of a part is told");
        // After the cloud's release, the device's answers data for no session.
        let by_device = answer.released && released.is_none();
        if self.arrived && !spoiled {
            let short = to < all;
            let may_be_short = told.lost || create.broke || !self.patient;
            assert!(!short || may_be_short, "{what}: bytes are missing");
            assert!(!short || service.reset, "{what}: cut short, and not told");
            let cause = short || told.lost || create.broke || self.directed || is_finished;
            assert!(!by_device || cause, "{what}: released for no reason");
            if create.surely && !is_finished {
                assert!(service.reset, "{what}: the cloud broke the protocol unpunished");
                assert!(answer.released || !self.alive, "{what}: a cut that was not told");
            }
        }
        if service.told_of_reset && !answer.eof {
            let orderly =
                answer.why.as_ref().is_some_and(|why| why.ends_with("closed the connection"));
            assert!(!orderly, "{what}: a reset is told as an orderly end");
        }
        if !self.alive || !self.patient || told.lost || create.broke {
            return;
        }
        let reset = service.spoiled && !ended_in_order || service.write_error.is_some();
        if open || by_device && !reset {
            assert_eq!(answer.bytes.len(), service.sent, "{what}: local bytes are missing");
        }
        if released.is_some() || service.end.is_none() {
            return;
        }
        if create.has_eof && !service.spoiled {
            assert!(answer.eof, "{what}: its end was not told");
            assert_eq!(by_device, is_whole, "{what}: not released when both ends were said");
        } else if spoiled && !answer.eof {
            assert!(by_device, "{what}: its end was not reported");
        }
    }
}

impl Told {
    /// The create with this frame id.
    fn create(&self, frame_id: u64) -> &Create {
        let mut creates = self.creates.iter();
        let create = creates.find(|create| create.frame_id == frame_id);
        create.expect("a create that was answered was sent")
    }
}

/// A frame id in one of the forms that a number may have, or in quotes, or as the C SDK writes it.
fn spelled(frame_id: u64) -> String {
    match frame_id % 8 {
        0 if frame_id == 0 => "-0".to_owned(),
        0 => format!("{frame_id}.0"),
        1 => format!("{frame_id}e0"),
        2 => format!("{frame_id}0E-1"),
        3 => format!(r#""{frame_id}""#),
        4 => format!("0{frame_id}"),
        _ => frame_id.to_string(),
    }
}

/// How a connection ends that a directive closes.
fn directed() -> End {
    End::Local(reason::TUNNEL_CLOSED.into())
}
