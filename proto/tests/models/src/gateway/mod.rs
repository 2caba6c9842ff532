//! The life of one of the gateway's tunnels, against a model of its devices and access sides. Whatever
//! happens, session ids are unique, bytes go in order from one end of their session to the other and
//! nowhere else, codes are the specified ones, buffers are bounded, and the tunnel comes to rest.

mod client;
mod line;
mod operation;
mod session;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use aiot_tunnel_proto::connection::Connection;
use aiot_tunnel_proto::frame::{
    status, Credit, Extensions, Fields, Frame, FrameType, HeaderTemplate, Status,
};
use aiot_tunnel_proto::gateway::{Tunnel, TunnelLimits, HIGH_WATER, UPKEEP};
use aiot_tunnel_proto::session::REMEMBERED;
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::{Ready, Side};

use crate::relay::{Offer, BAD_CREDITS, MOST_CREDIT};
use client::Client;
use line::Line;
pub use operation::{Action, ClientEnd, EarlyKind, Operation, PoisonKind, Step};
use session::{content, directions, Session, TO_ACCESS, TO_DEVICE};

/// Sessions of the tunnel.
const SESSION_LIMIT: usize = 4;
/// Connections in one life.
const MAX_CLIENTS: usize = 12;
const STALL: Duration = Duration::from_secs(10);
/// The answer to the opening handshake, which goes before every message.
const GREETING: &[u8] = b"HTTP/1.1 101 and so on";
/// What may wait for a connection: an access connection is read up to twice its high-water mark, and
/// a receive buffer's length of pongs and a frame may come on top.
const MAX_WAITING: usize = 2 * HIGH_WATER + HIGH_WATER / 2 + 4096;
/// Most bytes that one direction of a session holds in the gateway, and of all sessions together.
/// Each may have its first window all the same.
const SESSION_CREDIT: u64 = 2 << 20;
const TUNNEL_CREDIT: u64 = 4 << 20;
const FIRST_CREDIT: u64 = 64 * 1024;
/// Turns after which a tunnel that still moves never comes to rest.
const MANY_TURNS: usize = 200_000;
/// What the bytes of a session never are.
const POISON: u8 = 0xEE;

/// A tunnel, and everything around it.
pub struct World {
    tunnel: Tunnel<Line, ()>,
    now: Instant,
    clients: Vec<Client>,
    sessions: BTreeMap<String, Session>,
    /// What was offered, by the frame id of the create.
    offers: HashMap<u64, Offer>,
    next_frame: u64,
}

impl World {
    fn new() -> Self {
        let limits = TunnelLimits { sessions: SESSION_LIMIT, stall: STALL, rate: None };
        World {
            tunnel: Tunnel::new(limits, ()),
            now: Instant::now(),
            clients: Vec::new(),
            sessions: BTreeMap::new(),
            offers: HashMap::new(),
            next_frame: 1,
        }
    }

    /// Lets the steps happen to a new tunnel, and then everybody leave. Panics where a promise is
    /// broken.
    pub fn run(steps: &[Step]) {
        let mut world = World::new();
        for step in steps {
            world.happens(&step.operation);
            world.settle(step.turns);
        }
        world.finish();
    }

    fn happens(&mut self, operation: &Operation) {
        match operation {
            Operation::Connect { side, chunk, ahead } => {
                if self.clients.len() < MAX_CLIENTS {
                    self.connect(*side, *chunk, *ahead);
                }
            }
            Operation::TimePasses { millis } => {
                self.now += Duration::from_millis(*millis);
                self.settle(1);
            }
            Operation::Expires => {
                self.tunnel.expire_at(Some(self.now));
                self.clients.iter_mut().for_each(|client| client.is_good = false);
            }
            Operation::Create { access, long } => {
                if let Some(access) = self.pick(Side::Access, *access) {
                    self.create(access, *long, Offer::default());
                }
            }
            Operation::Offers { access, offer } => {
                if let Some(access) = self.pick(Side::Access, *access) {
                    self.create(access, false, *offer);
                }
            }
            Operation::Answer { device, session, code } => {
                if let Some(device) = self.pick(Side::Device, *device) {
                    self.answer(device, *session, *code, Extensions::ALL);
                }
            }
            Operation::Early { device, session, kind } => {
                if let Some(device) = self.pick(Side::Device, *device) {
                    self.early(device, *session, *kind);
                }
            }
            Operation::AcceptsBadly { device, session, which } => {
                if let Some(device) = self.pick(Side::Device, *device) {
                    self.accepts_badly(device, *session, *which);
                }
            }
            Operation::Accepts { device, session, extensions } => {
                if let Some(device) = self.pick(Side::Device, *device) {
                    self.answer(device, *session, 0, *extensions);
                }
            }
            Operation::Client { side, client, does } => {
                if let Some(client) = self.pick(*side, *client) {
                    self.client_does(client, does);
                }
            }
        }
    }

    fn client_does(&mut self, client: usize, action: &Action) {
        match action {
            Action::Data { session, length, frames } => {
                (0..*frames).for_each(|_| self.data(client, *session, *length));
            }
            Action::TooMuch { session, length } => self.too_much(client, *session, *length),
            Action::Poison { session, kind } => self.poison(client, *session, *kind),
            Action::Release { session } => self.release(client, *session),
            Action::Grant { session, bytes } => self.grant(client, *session, *bytes),
            Action::Finish { session, length } => self.end(client, *session, *length),
            Action::BadCredit { session, which } => self.bad_credit(client, *session, *which),
            Action::OverCredit { session, excess } => self.over_credit(client, *session, *excess),
            Action::DataAfterEnd { session } => self.data_after_end(client, *session),
            Action::Message(message) => {
                if !is_lawful(message) {
                    self.clients[client].sender.binary(message, b"");
                }
            }
            Action::Ping => self.clients[client].sender.ping(),
            Action::Pong => self.clients[client].sender.pong(b"unasked"),
            Action::LongMessage => self.clients[client].sender.binary(&[0; 100_000], b""),
            Action::End(how) => self.clients[client].ends(*how),
            Action::Takes { bytes } => {
                self.clients[client].line.state().room = *bytes;
                self.clients[client].is_slow = true;
            }
            Action::ArrivesIn { chunk } => self.clients[client].line.state().chunk = *chunk,
        }
        self.clients[client].transmit();
    }

    fn connect(&mut self, side: Side, chunk: usize, ahead: bool) {
        let line = Line::new(chunk, ahead);
        let mut member = Connection::new(line.clone(), Role::Server, b"", UPKEEP, self.now);
        member.sender().raw(GREETING);
        self.tunnel.join(side, member, self.now);
        if side == Side::Device {
            for client in self.clients.iter_mut().filter(|client| client.side == side) {
                client.is_good = false;
            }
        }
        self.clients.push(Client::new(side, line));
    }

    /// One of the clients of a side that behave.
    fn pick(&self, side: Side, which: u8) -> Option<usize> {
        let clients = self.clients.iter().enumerate();
        let good: Vec<usize> = clients
            .filter(|(_, client)| client.side == side && client.is_good)
            .map(|(n, _)| n)
            .collect();
        usize::from(which).checked_rem(good.len()).map(|nth| good[nth])
    }

    fn send(&mut self, from: usize, frame: (FrameType, &str, Option<&str>, u64), payload: &[u8]) {
        self.send_with(from, frame, Fields::default(), payload);
    }

    fn send_with(
        &mut self,
        from: usize,
        frame: (FrameType, &str, Option<&str>, u64),
        fields: Fields,
        payload: &[u8],
    ) {
        let (frame_type, id, service, frame_id) = frame;
        let mut header = Vec::new();
        HeaderTemplate::new(frame_type, id, service).write_with(frame_id, fields, &mut header);
        self.clients[from].sender.binary(&header, payload);
        self.clients[from].transmit();
    }

    /// `long`: the service type is longer than one may be.
    fn create(&mut self, access: usize, long: bool, offer: Offer) {
        let frame_id = self.next_frame;
        self.next_frame += 1;
        let mut service = format!("a{access}-{frame_id}");
        if long {
            service += &"x".repeat(1900);
        }
        self.clients[access].pending.push(frame_id);
        self.offers.insert(frame_id, offer);
        let extensions = Extensions { eof: offer.eof, credit: offer.credit.is_some() };
        let fields = Fields { extensions, credit: offer.credit.unwrap_or_default(), eof: false };
        let frame = (FrameType::SessionCreate, "", Some(&*service), frame_id);
        self.send_with(access, frame, fields, b"");
    }

    fn answer(&mut self, device: usize, session: u8, code: u8, most: Extensions) {
        let unanswered = &mut self.clients[device].unanswered;
        let Some(nth) = usize::from(session).checked_rem(unanswered.len()) else { return };
        let id = unanswered.remove(nth);
        let session = self.session(&id);
        session.code = Some(code);
        session.extensions = session.extensions.and(most);
        let credit = if session.extensions.credit { FIRST_CREDIT } else { 0 };
        session.directions[TO_DEVICE].granted = credit;
        // A device may claim what was not asked for. It does not hold.
        let fields = Fields { extensions: most, credit, eof: false };
        let frame = (FrameType::CommonResponse, &*id, None, 1);
        self.send_with(device, frame, fields, &status(code, "so it is"));
    }

    /// A frame of a session that the device has not answered. The gateway may end the session.
    fn early(&mut self, device: usize, session: u8, kind: EarlyKind) {
        let unanswered = &self.clients[device].unanswered;
        let Some(nth) = usize::from(session).checked_rem(unanswered.len()) else { return };
        let id = unanswered[nth].clone();
        self.session(&id).is_cut = true;
        let (length, fields) = match kind {
            EarlyKind::Data => (usize::from(session), Fields::default()),
            EarlyKind::Credit => (0, Fields { credit: FIRST_CREDIT, ..Fields::default() }),
            EarlyKind::End => (7, Fields { eof: true, ..Fields::default() }),
            EarlyKind::Release => {
                let frame = (FrameType::SessionRelease, &*id, None, 1);
                return self.send(device, frame, &status(1, "too early"));
            }
        };
        self.send_data(device, &id, length, fields);
    }

    /// A device accepts a session, and grants what is no credit. With flow control, this is no acceptance.
    fn accepts_badly(&mut self, device: usize, session: u8, which: u8) {
        let unanswered = &mut self.clients[device].unanswered;
        let Some(nth) = usize::from(session).checked_rem(unanswered.len()) else { return };
        let id = unanswered.remove(nth);
        let session = self.session(&id);
        session.code = Some(0);
        if session.extensions.credit {
            (session.code, session.is_cut) = (Some(2), true);
        }
        let text = BAD_CREDITS[usize::from(which) % BAD_CREDITS.len()];
        let fields = format!(r#""frame_type":1,"frame_id":1,"ext":"eof,credit","credit":{text}"#);
        self.send_text(device, &id, &fields, &status(0, "so it is"));
    }

    /// A frame whose header has these fields.
    fn send_text(&mut self, from: usize, id: &str, fields: &str, payload: &[u8]) {
        let header = format!(r#"{{"session_id":"{id}",{fields}}}"#);
        let length = (header.len() as u16).to_be_bytes();
        self.clients[from].sender.binary(&[&length[..], header.as_bytes()].concat(), payload);
        self.clients[from].transmit();
    }

    fn session(&mut self, id: &str) -> &mut Session {
        self.sessions.get_mut(id).expect("a session")
    }

    /// A session of this client, as far as it knows.
    fn session_of(&self, client: usize, which: u8) -> Option<String> {
        let side = self.clients[client].side;
        let (out, back) = directions(side);
        let own = self.sessions.iter().filter(|(_, session)| {
            let is_own = match side {
                Side::Access => session.access == client && session.open_at_access,
                Side::Device => session.device == client && session.code == Some(0),
            };
            is_own && !session.directions[out].released && !session.directions[back].over
        });
        let own: Vec<&String> = own.map(|(id, _)| id).collect();
        usize::from(which).checked_rem(own.len()).map(|nth| own[nth].clone())
    }

    fn data(&mut self, from: usize, session: u8, length: usize) {
        let Some(id) = self.session_of(from, session) else { return };
        let (out, _) = directions(self.clients[from].side);
        let most = self.session(&id).may_send(out);
        if most > 0 {
            self.send_data(from, &id, length.min(most), Fields::default());
        }
    }

    /// Data with the right content.
    fn send_data(&mut self, from: usize, id: &str, length: usize, fields: Fields) {
        let (out, _) = directions(self.clients[from].side);
        let direction = &mut self.session(id).directions[out];
        let at = direction.sent;
        direction.sent += length as u64;
        let payload = content(id, out, at, length);
        self.send_with(from, (FrameType::DataTransport, id, None, at), fields, &payload);
    }

    fn grant(&mut self, from: usize, session: u8, bytes: u64) {
        let Some(id) = self.session_of(from, session) else { return };
        let (_, back) = directions(self.clients[from].side);
        let session = self.session(&id);
        if session.extensions.credit {
            let granted = &mut session.directions[back].granted;
            *granted = granted.saturating_add(bytes);
        }
        self.send_data(from, &id, 0, Fields { credit: bytes, ..Fields::default() });
    }

    fn end(&mut self, from: usize, session: u8, length: usize) {
        let Some(id) = self.session_of(from, session) else { return };
        let (out, _) = directions(self.clients[from].side);
        let session = self.session(&id);
        if session.directions[out].ended {
            return;
        }
        let length = length.min(session.may_send(out));
        session.directions[out].ended = session.extensions.eof;
        self.send_data(from, &id, length, Fields { eof: true, ..Fields::default() });
    }

    fn bad_credit(&mut self, from: usize, session: u8, which: u8) {
        let Some(id) = self.session_of(from, session) else { return };
        let (_, back) = directions(self.clients[from].side);
        let session = self.session(&id);
        session.is_cut |= session.extensions.credit;
        session.surely |= session.extensions.credit;
        let bad = BAD_CREDITS.get(usize::from(which) % (BAD_CREDITS.len() + 1));
        if let Some(text) = bad {
            return self.send_text(from, &id, &format!(r#""frame_type":4,"credit":{text}"#), b"");
        }
        // Each is the most that may be granted. Their sum is more.
        let direction = &mut session.directions[back];
        direction.granted = direction.granted.saturating_add(MOST_CREDIT);
        for _ in 0..2 {
            self.send_data(from, &id, 0, Fields { credit: MOST_CREDIT, ..Fields::default() });
        }
    }

    fn over_credit(&mut self, from: usize, session: u8, excess: u8) {
        let Some(id) = self.session_of(from, session) else { return };
        let (out, _) = directions(self.clients[from].side);
        let session = self.session(&id);
        if !session.extensions.credit || session.directions[out].ended {
            return;
        }
        session.is_cut = true;
        let mut left = session.may_send(out) + 1 + usize::from(excess);
        while left > 0 {
            let length = left.min(65_536);
            self.send_data(from, &id, length, Fields::default());
            left -= length;
        }
    }

    fn data_after_end(&mut self, from: usize, session: u8) {
        let Some(id) = self.session_of(from, session) else { return };
        let (out, _) = directions(self.clients[from].side);
        let session = self.session(&id);
        if session.directions[out].ended {
            (session.is_cut, session.surely) = (true, true);
            self.send(from, (FrameType::DataTransport, &id, None, 1), &[POISON; 3]);
        }
    }

    /// More data in one frame than the gateway keeps.
    fn too_much(&mut self, from: usize, session: u8, length: usize) {
        let Some(id) = self.session_of(from, session) else { return };
        let (out, _) = directions(self.clients[from].side);
        let session = self.session(&id);
        session.is_cut = true;
        let direction = &mut session.directions[out];
        let at = direction.sent;
        direction.sent += length as u64;
        self.send(from, (FrameType::DataTransport, &id, None, at), &vec![POISON; length]);
    }

    /// A frame of a session that is another's, over, or nobody's.
    fn poison(&mut self, from: usize, session: u8, kind: PoisonKind) {
        let side = self.clients[from].side;
        let is_foreign = |session: &Session| match side {
            Side::Access => session.access != from,
            Side::Device => session.device != from,
        };
        let foreign: Vec<_> = self.sessions.iter().filter(|(_, s)| is_foreign(s)).collect();
        let id = match usize::from(session) % (foreign.len() + 2) {
            n if n < foreign.len() => foreign[n].0.clone(),
            n if n == foreign.len() => String::new(),
            _ => format!("made up {}", session % 4),
        };
        self.clients[from].made_up.insert(id.clone());
        let frame_type = match kind {
            PoisonKind::Data => FrameType::DataTransport,
            PoisonKind::Response => FrameType::CommonResponse,
            PoisonKind::Release => FrameType::SessionRelease,
        };
        let credit = if session & 64 == 0 { 0 } else { 1 << session.min(62) };
        let fields = Fields { credit, eof: session & 32 != 0, ..Fields::default() };
        let payload = if session & 16 == 0 { &[POISON; 16][..] } else { b"" };
        self.send_with(from, (frame_type, &id, None, 1), fields, payload);
    }

    fn release(&mut self, from: usize, session: u8) {
        let Some(id) = self.session_of(from, session) else { return };
        let side = self.clients[from].side;
        let (out, _) = directions(side);
        self.session(&id).directions[out].released = true;
        let code = if side == Side::Device { 1 } else { 0 };
        self.send(from, (FrameType::SessionRelease, &id, None, 1), &status(code, "enough"));
    }

    /// Lets the gateway do what it can at this moment, in so many turns, and hears what it says.
    fn settle(&mut self, most: usize) {
        for turn in 0..most {
            self.turn();
            let heard = self.hear();
            let wants_more = self.tunnel.deadline(self.now).is_some_and(|at| at <= self.now);
            if !heard && !wants_more && !self.has_input() {
                return;
            }
            assert!(turn < MANY_TURNS, "it never comes to rest");
        }
    }

    /// What the tunnel's thread does: sees what is ready, and lets the tunnel deal with it.
    fn turn(&mut self) {
        let ready: Vec<Ready> = self
            .tunnel
            .members()
            .map(|(member, reads)| {
                let line = member.transport().state();
                Ready {
                    read: reads && member.reads() && line.poll_readable(),
                    write: member.wants_room(self.now) && line.room > 0,
                }
            })
            .collect();
        self.tunnel.receive(self.now, &ready);
        self.tunnel.step(self.now);
        self.check_bounds();
    }

    fn check_bounds(&self) {
        for (member, _) in self.tunnel.members() {
            assert!(member.waiting() <= MAX_WAITING, "{} bytes wait", member.waiting());
        }
        assert!(self.tunnel.session_count() <= SESSION_LIMIT);
        for which in [TO_ACCESS, TO_DEVICE] {
            let is_open = |session: &&Session| {
                let ended = session.directions.iter().any(|one| one.released || one.over);
                session.extensions.credit && session.open_at_access && !ended && !session.is_cut
            };
            // A connection that is lost may have lost bytes.
            let is_good = |session: &&Session| {
                self.clients[session.access].is_good && self.clients[session.device].is_good
            };
            let open = self.sessions.values().filter(is_open).filter(is_good);
            let held: Vec<u64> = open.map(|session| session.held(which)).collect();
            for held in &held {
                assert!(*held <= SESSION_CREDIT + MAX_WAITING as u64, "{held} are held");
            }
            let most = TUNNEL_CREDIT + held.len() as u64 * (FIRST_CREDIT + MAX_WAITING as u64);
            assert!(held.iter().sum::<u64>() <= most, "{held:?} are held");
        }
        let is_plain = |session: &Session| session.code == Some(0) && !session.extensions.credit;
        if !self.sessions.values().any(is_plain) {
            for (member, reads) in self.tunnel.members() {
                assert!(reads || member.waiting() > 2 * HIGH_WATER, "flow control blocks");
            }
        }
        assert!(self.tunnel.remembered() <= REMEMBERED);
    }

    /// Whether there is something to read for the gateway that it wants to read.
    fn has_input(&self) -> bool {
        let mut members = self.tunnel.members();
        members.any(|(member, reads)| {
            reads && member.reads() && member.transport().state().has_input()
        })
    }

    /// Hears what the gateway has said: whether there was anything.
    fn hear(&mut self) -> bool {
        for client in &mut self.clients {
            client.is_good &= !client.line.state().is_shut;
        }
        let mut heard = false;
        for n in 0..self.clients.len() {
            let bytes = std::mem::take(&mut self.clients[n].line.state().outbound);
            heard |= !bytes.is_empty();
            self.clients[n].listen(&bytes);
            while let Some(message) = self.clients[n].next_message() {
                let frame = Frame::parse(&message).expect("well-formed frames");
                match self.clients[n].side {
                    Side::Device => self.at_device(n, &frame),
                    Side::Access => self.at_access(n, &frame),
                }
            }
        }
        heard
    }

    fn at_device(&mut self, n: usize, frame: &Frame<'_>) {
        let id = &*frame.session_id;
        match frame.frame_type {
            FrameType::SessionCreate => {
                assert!(!self.sessions.contains_key(id), "ids are unique");
                let mut session = Session::asked(n, &frame.service_type);
                self.is_offered(frame, &mut session);
                self.sessions.insert(id.to_owned(), session);
                self.clients[n].unanswered.push(id.to_owned());
            }
            FrameType::DataTransport => {
                let session = self.session(id);
                assert_eq!(session.device, n, "data of another device's session");
                session.receives(id, TO_DEVICE, frame);
            }
            FrameType::SessionRelease => self.released_at_device(n, frame),
            FrameType::CommonResponse => panic!("a response towards a device"),
        }
    }

    /// The device is offered what the access side has offered.
    fn is_offered(&self, frame: &Frame<'_>, session: &mut Session) {
        let offer = self.offers[&session.frame_id];
        // An offer of what is no credit is none.
        let offered = offer.credit.filter(|bytes| *bytes <= MOST_CREDIT);
        let bytes = offered.unwrap_or_default();
        session.extensions = frame.extensions;
        // An offer of nothing may be left out.
        let credit = frame.extensions.credit;
        assert_eq!(frame.extensions, Extensions { eof: offer.eof, credit });
        assert!(credit == offered.is_some() || bytes == 0);
        match frame.credit {
            Credit::Bytes(passed) => {
                assert!(credit && (bytes.min(FIRST_CREDIT)..=SESSION_CREDIT).contains(&passed));
                session.directions[TO_ACCESS].granted = bytes;
                session.is_told(TO_ACCESS, passed);
            }
            Credit::Absent => assert_eq!(bytes, 0),
            Credit::Invalid => panic!("no credit"),
        }
        // A device that is offered no credit agrees on none.
        session.extensions.credit &= frame.credit != Credit::Absent;
    }

    fn released_at_device(&mut self, n: usize, frame: &Frame<'_>) {
        let id = &*frame.session_id;
        let code = Status::parse(frame.payload).expect("a status").code;
        let Some(session) = self.sessions.get_mut(id).filter(|session| session.device == n) else {
            assert!(self.clients[n].made_up.contains(id), "a release of nothing");
            return assert_eq!(code, 2);
        };
        self.clients[n].unanswered.retain(|unanswered| unanswered != id);
        session.ends(TO_DEVICE);
        let direction = &session.directions[TO_DEVICE];
        let access = &self.clients[session.access];
        match code {
            // The access side's own, or that of a create which nobody waits for.
            0 if direction.released => assert_eq!(direction.received, direction.sent),
            0 => assert!(!session.open_at_access),
            // That of a create which nobody waits for: the stream of the service is cut.
            2 if session.is_cut || !session.open_at_access => {}
            // The device's answer came too late.
            2 if !session.open_at_access => {}
            2 => {
                assert!(!access.is_good || access.is_slow, "it is there");
                // All that it sent before it left came before this.
                if access.left_by_itself() && !direction.released {
                    assert_eq!(direction.received, direction.sent);
                }
            }
            other => panic!("release code {other} towards a device"),
        }
    }

    fn at_access(&mut self, n: usize, frame: &Frame<'_>) {
        match frame.frame_type {
            FrameType::CommonResponse => self.answered_at_access(n, frame),
            FrameType::DataTransport => {
                let session = self.session(&frame.session_id);
                assert!(session.access == n && session.open_at_access, "data of another's session");
                session.receives(&frame.session_id, TO_ACCESS, frame);
            }
            FrameType::SessionRelease => self.released_at_access(n, frame),
            FrameType::SessionCreate => panic!("a session_create towards an access side"),
        }
    }

    fn answered_at_access(&mut self, n: usize, frame: &Frame<'_>) {
        let frame_id = frame.frame_id.expect("a frame id");
        let pending = &mut self.clients[n].pending;
        let at = pending.iter().position(|pending| *pending == frame_id);
        pending.remove(at.expect("a response to what was asked, once"));
        let code = Status::parse(frame.payload).expect("a status").code;
        if frame.session_id.is_empty() {
            assert!(code == 1 || code == 2, "{code}");
            // A device that reads nothing does not know of all of its sessions.
            return assert!(code == 2 || self.next_frame > SESSION_LIMIT as u64);
        }
        // Of a create that the device never read there is no record.
        let Some(session) = self.sessions.get_mut(&*frame.session_id) else {
            return assert_eq!(code, 2);
        };
        assert_eq!((session.access, session.frame_id), (n, frame_id));
        assert_eq!(frame.service_type, session.service);
        if code == 0 {
            assert_eq!(session.code, Some(0), "the device has not said so");
            session.open_at_access = true;
            assert_eq!(frame.extensions, session.extensions);
            match frame.credit {
                Credit::Bytes(bytes) if session.extensions.credit => {
                    session.is_told(TO_DEVICE, bytes);
                }
                other => assert!(other == Credit::Absent && !session.extensions.credit),
            }
        } else {
            assert!(code == 2 || session.code.is_some_and(|own| i64::from(own) == code));
        }
    }

    fn released_at_access(&mut self, n: usize, frame: &Frame<'_>) {
        let id = &*frame.session_id;
        let code = Status::parse(frame.payload).expect("a status").code;
        let own = |session: &&mut Session| session.access == n && session.open_at_access;
        let Some(session) = self.sessions.get_mut(id).filter(own) else {
            assert!(self.clients[n].made_up.contains(id), "a release of nothing");
            return assert_eq!(code, 3);
        };
        session.ends(TO_ACCESS);
        let direction = &session.directions[TO_ACCESS];
        let device = &self.clients[session.device];
        match code {
            1 => {
                assert!(direction.released, "the device has not said so");
                assert_eq!(direction.received, direction.sent);
            }
            3 if session.is_cut => {}
            3 => {
                assert!(!device.is_good || device.is_slow, "it is there");
                let later = &self.clients[session.device + 1..];
                let replaced = later.iter().any(|client| client.side == Side::Device);
                if device.left_by_itself() && !replaced && !direction.released {
                    assert_eq!(direction.received, direction.sent);
                }
            }
            other => panic!("release code {other} towards an access side"),
        }
    }

    /// In the end everybody reads, and each that is still there has what was sent to it.
    fn finish(mut self) {
        for client in &self.clients {
            let mut line = client.line.state();
            (line.room, line.chunk) = (usize::MAX, usize::MAX);
        }
        self.settle(usize::MAX);
        for (id, session) in &self.sessions {
            let (access, device) = (&self.clients[session.access], &self.clients[session.device]);
            if !access.is_good || !device.is_good || !session.open_at_access {
                continue;
            }
            let [to_access, to_device] = &session.directions;
            let are_told =
                (to_access.over || to_device.released) && (to_device.over || to_access.released);
            assert!(!session.surely || are_told, "{id}: it is not cut at both ends");
            for direction in &session.directions {
                // One that its receiver has released meanwhile need not be complete.
                let ended = session.directions.iter().any(|either| either.released || either.over);
                let whole = direction.received == direction.sent;
                assert!(whole || ended, "{id}: {} of {}", direction.received, direction.sent);
                if ended || session.is_cut {
                    continue;
                }
                assert_eq!(direction.ended, direction.end_came, "{id}: an end is missing");
                let is_stuck =
                    direction.told == direction.sent && direction.granted > direction.told;
                let has_credit = session.extensions.credit && !direction.ended;
                assert!(!has_credit || !is_stuck, "{id}: credit is missing");
            }
        }
        // With everybody gone nothing stays.
        for client in &self.clients {
            client.line.state().end(ClientEnd::EndOfStream);
        }
        self.settle(usize::MAX);
        self.now += Duration::from_secs(3);
        self.settle(usize::MAX);
        assert!(self.tunnel.is_empty() && self.tunnel.session_count() == 0);
    }
}

/// A frame that an end may send, of which the model would have to know.
fn is_lawful(message: &[u8]) -> bool {
    Frame::parse(message).is_ok_and(|frame| {
        frame.frame_type == FrameType::SessionCreate || !frame.session_id.is_empty()
    })
}
