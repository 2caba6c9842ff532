//! The life of a tunnel, against a model of its connections.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{self, Cursor, Read, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::cloud::frame::{status, Frame, FrameType, HeaderTemplate, Status};
use crate::cloud::websocket::{Incoming, Receiver, Role, Sender};
use crate::gateway::tunnel::{Limits, Tunnel};
use crate::gateway::Side;
use crate::peer::{Peer, Wire};

/// One connection's bytes, seen from the gateway.
#[derive(Default)]
struct Pipe {
    inbound: VecDeque<u8>,
    /// Most bytes of one read.
    chunk: usize,
    /// As with TLS, what came is fetched already, be it an end.
    ahead: bool,
    end: End,
    outbound: Vec<u8>,
    /// Bytes that it still takes.
    room: usize,
    /// The gateway has dropped it.
    is_shut: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum End {
    #[default]
    Not,
    Eof,
    Reset,
}

struct Line(Rc<RefCell<Pipe>>);

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        // A long message in single bytes would be thousands of turns.
        let chunk = pipe.chunk.max(pipe.inbound.len() / 128);
        let length = buffer.len().min(chunk).min(pipe.inbound.len());
        for to in buffer[..length].chunks_mut(64 * 1024) {
            pipe.inbound.read_exact(to)?;
        }
        match pipe.end {
            _ if length > 0 => Ok(length),
            End::Not => Err(io::ErrorKind::WouldBlock.into()),
            End::Eof => Ok(0),
            End::Reset => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let length = bytes.len().min(pipe.room);
        if pipe.end == End::Reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if length == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if pipe.room < usize::MAX {
            pipe.room -= length;
        }
        pipe.outbound.extend_from_slice(&bytes[..length]);
        Ok(length)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for Line {
    fn end_patience(&mut self) {}
    fn holds_bytes(&self) -> bool {
        let pipe = self.0.borrow();
        pipe.ahead && !(pipe.inbound.is_empty() && pipe.end == End::Not)
    }
    fn unsent(&self) -> usize {
        0
    }
    fn shut_down(&mut self) {
        self.0.borrow_mut().is_shut = true;
    }
}

const GREETING: &[u8] = b"HTTP/1.1 101 and so on";
const SESSION_LIMIT: usize = 4;
const STALL: Duration = Duration::from_secs(10);

/// A device or an access side.
struct Client {
    side: Side,
    pipe: Rc<RefCell<Pipe>>,
    /// Bytes of the handshake's answer that came.
    greeted: usize,
    sender: Sender,
    receiver: Receiver,
    /// It behaved so far, and has neither closed nor been closed.
    is_good: bool,
    /// It sent a close frame, or bytes that are no frames: what it sends after that is void.
    is_void: bool,
    got_close: bool,
    /// It did not read all the time: it may have been closed, and not have heard of it yet.
    is_slow: bool,
    /// An access side's creates that are not answered; a device's that it has not answered.
    pending: Vec<u64>,
    unanswered: Vec<String>,
    /// Ids for which it sent data though no session was its own.
    made_up: HashSet<String>,
}

struct Session {
    access: usize,
    device: usize,
    frame_id: u64,
    service: String,
    /// The device's answer.
    code: Option<u8>,
    /// Towards the access side, and towards the device.
    directions: [Direction; 2],
    open_at_access: bool,
    /// One of its ends sent more at once than the gateway keeps.
    is_cut: bool,
}

#[derive(Default)]
struct Direction {
    sent: u64,
    received: u64,
    /// The sender has released it.
    released: bool,
    /// The receiver has been told.
    over: bool,
}

const TO_ACCESS: usize = 0;
const TO_DEVICE: usize = 1;

/// What a session's bytes are; never what `POISON` is.
fn bytes(session: &str, direction: usize, at: u64, length: usize) -> Vec<u8> {
    let seed = session.bytes().fold(direction as u64, |a, b| (a * 31 + u64::from(b)) % 251);
    (at..at + length as u64).map(|at| ((seed + at * 7 + at / 128) % 128) as u8).collect()
}

const POISON: u8 = 0xEE;

struct World {
    tunnel: Tunnel<Line>,
    now: Instant,
    clients: Vec<Client>,
    sessions: BTreeMap<String, Session>,
    next_frame: u64,
    head: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let limits = Limits { sessions: SESSION_LIMIT, stall: STALL };
        World {
            tunnel: Tunnel::new("t1".into(), limits),
            now: Instant::now(),
            clients: Vec::new(),
            sessions: BTreeMap::new(),
            next_frame: 1,
            head: Vec::new(),
        }
    }

    fn connect(&mut self, side: Side, how: u8) {
        let (chunk, ahead) = (CHUNKS[usize::from(how) % CHUNKS.len()], how >= 128);
        let pipe = Pipe { chunk, ahead, room: usize::MAX, ..Pipe::default() };
        let pipe = Rc::new(RefCell::new(pipe));
        let peer = Peer::new(Line(pipe.clone()), Role::Server, b"", self.now);
        self.tunnel.join(side, peer.greet(GREETING.to_vec(), Box::new(())), self.now);
        if side == Side::Device {
            for client in self.clients.iter_mut().filter(|client| client.side == side) {
                client.is_good = false;
            }
        }
        self.clients.push(Client {
            side,
            pipe,
            greeted: 0,
            sender: Sender::new(Role::Client),
            receiver: Receiver::new(Role::Client),
            is_good: true,
            is_void: false,
            got_close: false,
            is_slow: false,
            pending: Vec::new(),
            unanswered: Vec::new(),
            made_up: HashSet::new(),
        });
    }

    fn pick(&self, side: Side, which: u8) -> Option<usize> {
        let of_side: Vec<usize> = (0..self.clients.len())
            .filter(|n| self.clients[*n].side == side && self.clients[*n].is_good)
            .collect();
        (!of_side.is_empty()).then(|| of_side[usize::from(which) % of_side.len()])
    }

    fn send(&mut self, from: usize, frame: (FrameType, &str, Option<&str>, u64), payload: &[u8]) {
        let (frame_type, id, service, frame_id) = frame;
        HeaderTemplate::new(frame_type, id, service).write(frame_id, &mut self.head);
        let client = &mut self.clients[from];
        client.sender.binary(&self.head, payload);
        client.transmit();
    }

    fn create(&mut self, access: usize, long: bool) {
        let frame_id = self.next_frame;
        self.next_frame += 1;
        let mut service = format!("a{access}-{frame_id}");
        if long {
            service += &"x".repeat(1900);
        }
        self.clients[access].pending.push(frame_id);
        self.send(access, (FrameType::SessionCreate, "", Some(&service), frame_id), b"");
    }

    fn answer(&mut self, device: usize, which: u8, code: u8) {
        let pending = self.clients[device].unanswered.len();
        if pending == 0 {
            return;
        }
        let id = self.clients[device].unanswered.remove(usize::from(which) % pending);
        self.sessions.get_mut(&id).unwrap().code = Some(code);
        self.send(device, (FrameType::CommonResponse, &id, None, 1), &status(code, "so it is"));
    }

    /// A session of this end, as far as it knows.
    fn session_of(&self, client: usize, which: u8) -> Option<String> {
        let side = self.clients[client].side;
        let is_own = |session: &Session| match side {
            Side::Access => session.access == client && session.open_at_access,
            Side::Device => session.device == client && session.code == Some(0),
        };
        let is_own = |session: &&String| {
            let session = &self.sessions[*session];
            let (out, back) = directions(side);
            is_own(session) && !session.directions[out].released && !session.directions[back].over
        };
        let own: Vec<&String> = self.sessions.keys().filter(is_own).collect();
        (!own.is_empty()).then(|| own[usize::from(which) % own.len()].clone())
    }

    fn data(&mut self, from: usize, which: u8, length: usize) {
        let Some(id) = self.session_of(from, which) else { return };
        let (out, _) = directions(self.clients[from].side);
        let direction = &mut self.sessions.get_mut(&id).unwrap().directions[out];
        let at = direction.sent;
        direction.sent += length as u64;
        let payload = bytes(&id, out, at, length);
        self.send(from, (FrameType::DataTransport, &id, None, at), &payload);
    }

    /// More data in one frame than the gateway keeps: a message that it has whole, or not.
    fn too_much(&mut self, from: usize, which: u8) {
        let Some(id) = self.session_of(from, which) else { return };
        let (out, _) = directions(self.clients[from].side);
        let session = self.sessions.get_mut(&id).unwrap();
        session.is_cut = true;
        let direction = &mut session.directions[out];
        let (at, length) = (direction.sent, if which & 64 == 0 { 65_537 } else { 90_000 });
        direction.sent += length;
        let payload = vec![POISON; length as usize];
        self.send(from, (FrameType::DataTransport, &id, None, at), &payload);
    }

    /// Data of a session that is another's, over, or nobody's.
    fn poison(&mut self, from: usize, which: u8) {
        let side = self.clients[from].side;
        let is_foreign = |session: &Session| match side {
            Side::Access => session.access != from,
            Side::Device => session.device != from,
        };
        let foreign: Vec<_> = self.sessions.iter().filter(|(_, s)| is_foreign(s)).collect();
        let id = match usize::from(which) % (foreign.len() + 2) {
            n if n < foreign.len() => foreign[n].0.clone(),
            n if n == foreign.len() => String::new(),
            _ => format!("made up {}", which % 4),
        };
        self.clients[from].made_up.insert(id.clone());
        let frame_type = match which % 8 {
            // A response or a release of what is not one's own must do nothing either.
            6 => FrameType::CommonResponse,
            7 => FrameType::SessionRelease,
            _ => FrameType::DataTransport,
        };
        self.send(from, (frame_type, &id, None, 1), &[POISON; 16]);
    }

    fn release(&mut self, from: usize, which: u8) {
        let Some(id) = self.session_of(from, which) else { return };
        let side = self.clients[from].side;
        let (out, _) = directions(side);
        self.sessions.get_mut(&id).unwrap().directions[out].released = true;
        let code = if side == Side::Device { 1 } else { 0 };
        self.send(from, (FrameType::SessionRelease, &id, None, 1), &status(code, "enough"));
    }

    fn end(&mut self, client: usize, how: u8) {
        let client = &mut self.clients[client];
        client.is_good = false;
        match how % 4 {
            0 => {
                client.sender.close(Some(1000));
                client.transmit();
            }
            1 => client.pipe.borrow_mut().end = End::Eof,
            2 => client.pipe.borrow_mut().end = End::Reset,
            _ => {
                // No frame of a client: it is not masked, or has reserved bits.
                client.pipe.borrow_mut().inbound.extend([0x82, 1, 0]);
            }
        }
        client.is_void = true;
    }

    /// Lets the gateway do what it can at this moment, and hears what it says.
    fn settle(&mut self, most: usize) {
        for turn in 0..most {
            let ready: Vec<bool> = self.tunnel.members().map(|(_, reads)| reads).collect();
            self.tunnel.receive(self.now, &ready);
            self.tunnel.step(self.now);
            self.tunnel.check_bounds();
            let heard = self.hear();
            let wants_more = self.tunnel.deadline(self.now).is_some_and(|at| at <= self.now);
            if !heard && !wants_more && !self.has_input() {
                return;
            }
            assert!(turn < 200_000, "it never comes to rest");
        }
    }

    /// Whether there is something to read for the gateway that it wants to read.
    fn has_input(&self) -> bool {
        self.tunnel.members().any(|(peer, reads)| {
            let pipe = peer.wire().0.borrow();
            reads && peer.wants_read() && (!pipe.inbound.is_empty() || pipe.end != End::Not)
        })
    }

    fn hear(&mut self) -> bool {
        let mut heard = false;
        for client in &mut self.clients {
            client.is_good &= !client.pipe.borrow().is_shut;
        }
        for n in 0..self.clients.len() {
            let bytes = std::mem::take(&mut self.clients[n].pipe.borrow_mut().outbound);
            heard |= !bytes.is_empty();
            self.listen(n, bytes);
        }
        heard
    }

    fn listen(&mut self, n: usize, mut said: Vec<u8>) {
        let client = &mut self.clients[n];
        let greeting = &GREETING[client.greeted..];
        let greeting = &greeting[..greeting.len().min(said.len())];
        assert!(said.starts_with(greeting), "the answer comes first");
        client.greeted += greeting.len();
        said.drain(..greeting.len());
        let mut source = Cursor::new(said);
        while source.position() < source.get_ref().len() as u64 {
            self.clients[n].receiver.fill(&mut source).unwrap();
            loop {
                let client = &mut self.clients[n];
                let message = match client.receiver.peek().expect("well-formed messages") {
                    None => break,
                    Some(Incoming::Binary { message, .. }) => message.to_vec(),
                    Some(Incoming::Close(_)) => {
                        client.got_close = true;
                        client.is_good = false;
                        client.receiver.consume();
                        continue;
                    }
                    Some(Incoming::Ping(_)) => {
                        if client.is_good {
                            client.sender.pong(b"");
                        }
                        client.receiver.consume();
                        client.transmit();
                        continue;
                    }
                    Some(Incoming::Pong) => {
                        client.receiver.consume();
                        continue;
                    }
                    Some(other) => panic!("{other:?}"),
                };
                client.receiver.consume();
                assert!(!client.got_close, "nothing follows a close frame");
                let frame = Frame::parse(&message).expect("well-formed frames");
                match self.clients[n].side {
                    Side::Device => self.at_device(n, &frame),
                    Side::Access => self.at_access(n, &frame),
                }
            }
        }
    }

    fn at_device(&mut self, n: usize, frame: &Frame<'_>) {
        let id = frame.session_id.to_string();
        match frame.frame_type {
            FrameType::SessionCreate => {
                assert!(!self.sessions.contains_key(&id), "ids are unique");
                let service = frame.service_type.to_string();
                let (access, frame_id) = service[1..].split_once('-').expect("as it was asked");
                let access: usize = access.parse().unwrap();
                let frame_id = frame_id.parse().unwrap();
                let directions = Default::default();
                let (code, open_at_access, is_cut) = (None, false, false);
                let session = Session {
                    access,
                    device: n,
                    frame_id,
                    service,
                    code,
                    directions,
                    open_at_access,
                    is_cut,
                };
                self.sessions.insert(id.clone(), session);
                self.clients[n].unanswered.push(id);
            }
            FrameType::DataTransport => {
                let session = self.sessions.get_mut(&id).expect("a session");
                assert_eq!(session.device, n, "data of another device's session");
                receive(&id, session, TO_DEVICE, frame.payload);
            }
            FrameType::SessionRelease => {
                let code = Status::parse(frame.payload).expect("a status").code;
                let Some(session) = self.sessions.get_mut(&id).filter(|s| s.device == n) else {
                    assert!(self.clients[n].made_up.contains(&id), "a release of nothing");
                    assert_eq!(code, 2);
                    return;
                };
                self.clients[n].unanswered.retain(|unanswered| *unanswered != id);
                let direction = &mut session.directions[TO_DEVICE];
                assert!(!direction.over, "two releases");
                direction.over = true;
                let access = &self.clients[session.access];
                match code {
                    // The access side's own, or that of a create which nobody waits for.
                    0 if direction.released => assert_eq!(direction.received, direction.sent),
                    0 => assert!(!session.open_at_access),
                    2 if session.is_cut => {}
                    2 => {
                        assert!(!access.is_good || access.is_slow, "it is there");
                        // All that it sent before it left came before this.
                        if access.is_void
                            && !access.got_close
                            && !access.is_slow
                            && !direction.released
                        {
                            assert_eq!(direction.received, direction.sent);
                        }
                    }
                    other => panic!("release code {other} towards a device"),
                }
            }
            FrameType::CommonResponse => panic!("a response towards a device"),
        }
    }

    fn at_access(&mut self, n: usize, frame: &Frame<'_>) {
        let id = frame.session_id.to_string();
        match frame.frame_type {
            FrameType::CommonResponse => {
                let frame_id = frame.frame_id.expect("a frame id");
                let pending = &mut self.clients[n].pending;
                let at = pending.iter().position(|pending| *pending == frame_id);
                pending.remove(at.expect("a response to what was asked, once"));
                let code = Status::parse(frame.payload).expect("a status").code;
                if id.is_empty() {
                    assert!(code == 1 || code == 2, "{code}");
                    // A device that reads nothing does not know of all of its sessions.
                    assert!(code == 2 || self.next_frame > SESSION_LIMIT as u64);
                    return;
                }
                // Of a create that the device never read there is no record.
                let Some(session) = self.sessions.get_mut(&id) else {
                    return assert_eq!(code, 2);
                };
                assert_eq!((session.access, session.frame_id), (n, frame_id));
                assert_eq!(frame.service_type, session.service);
                if code == 0 {
                    assert_eq!(session.code, Some(0), "the device has not said so");
                    session.open_at_access = true;
                } else {
                    assert!(code == 2 || session.code.is_some_and(|own| i64::from(own) == code));
                }
            }
            FrameType::DataTransport => {
                let session = self.sessions.get_mut(&id).expect("a session");
                assert!(session.access == n && session.open_at_access, "data of another's session");
                receive(&id, session, TO_ACCESS, frame.payload);
            }
            FrameType::SessionRelease => {
                let code = Status::parse(frame.payload).expect("a status").code;
                let own = |session: &&mut Session| session.access == n && session.open_at_access;
                let Some(session) = self.sessions.get_mut(&id).filter(own) else {
                    assert!(self.clients[n].made_up.contains(&id), "a release of nothing");
                    assert_eq!(code, 3);
                    return;
                };
                let direction = &mut session.directions[TO_ACCESS];
                assert!(!direction.over, "two releases");
                direction.over = true;
                let device = &self.clients[session.device];
                match code {
                    1 => {
                        assert!(direction.released, "the device has not said so");
                        assert_eq!(direction.received, direction.sent);
                    }
                    3 if session.is_cut => {}
                    3 => {
                        assert!(!device.is_good || device.is_slow, "it is there");
                        let left_by_itself = device.is_void && !device.got_close && !device.is_slow;
                        let replaced = self.clients[session.device + 1..]
                            .iter()
                            .any(|client| client.side == Side::Device);
                        if left_by_itself && !replaced && !direction.released {
                            assert_eq!(direction.received, direction.sent);
                        }
                    }
                    other => panic!("release code {other} towards an access side"),
                }
            }
            FrameType::SessionCreate => panic!("a session_create towards an access side"),
        }
    }

    /// In the end everybody reads, and whoever is still there has what was sent to it.
    fn finish(mut self) {
        for client in &mut self.clients {
            client.pipe.borrow_mut().room = usize::MAX;
            client.pipe.borrow_mut().chunk = usize::MAX;
        }
        self.settle(usize::MAX);
        for (id, session) in &self.sessions {
            let (access, device) = (&self.clients[session.access], &self.clients[session.device]);
            if !access.is_good || !device.is_good || !session.open_at_access {
                continue;
            }
            for direction in &session.directions {
                // One that its receiver has released meanwhile need not be complete.
                let cut = session.directions.iter().any(|either| either.released || either.over);
                let whole = direction.received == direction.sent;
                assert!(whole || cut, "{id}: {} of {}", direction.received, direction.sent);
            }
        }
        // With everybody gone nothing stays.
        for n in 0..self.clients.len() {
            self.clients[n].pipe.borrow_mut().end = End::Eof;
        }
        self.settle(usize::MAX);
        self.now += Duration::from_secs(3);
        self.settle(usize::MAX);
        assert!(self.tunnel.is_empty() && self.tunnel.session_count() == 0);
    }
}

impl Client {
    /// Puts what it has to say on the wire, unless it has ended.
    fn transmit(&mut self) {
        let mut bytes = Vec::new();
        self.sender.flush(&mut bytes).unwrap();
        let mut pipe = self.pipe.borrow_mut();
        if !self.is_void && pipe.end == End::Not && !pipe.is_shut {
            pipe.inbound.extend(bytes);
        }
    }
}

/// Outwards and back, for one side.
fn directions(side: Side) -> (usize, usize) {
    match side {
        Side::Device => (TO_ACCESS, TO_DEVICE),
        Side::Access => (TO_DEVICE, TO_ACCESS),
    }
}

fn receive(id: &str, session: &mut Session, which: usize, payload: &[u8]) {
    let direction = &mut session.directions[which];
    assert!(!direction.over, "data after the release");
    let expected = bytes(id, which, direction.received, payload.len());
    assert!(payload == expected, "other bytes, or in another order");
    direction.received += payload.len() as u64;
    assert!(direction.received <= direction.sent);
}

const LENGTHS: [usize; 8] = [0, 1, 7, 200, 4096, 4097, 30_000, 65_536];
const CHUNKS: [usize; 6] = [1, 3, 50, 1500, 70_000, usize::MAX];
const TIMES: [u64; 8] = [0, 1, 900, 2_000, 9_999, 10_001, 31_000, 61_000];

/// A tunnel's life: three bytes are one operation. Whatever it is, session ids are unique,
/// bytes go in order from one end of their session to the other and nowhere else, codes are the
/// specified ones, buffers are bounded, and the tunnel always comes to rest.
pub(crate) fn frames(data: &[u8]) {
    let mut world = World::new();
    let mut rest = data;
    while let [operation, which, how, more @ ..] = rest {
        rest = more;
        let side = if which & 128 == 0 { Side::Access } else { Side::Device };
        let length = LENGTHS[usize::from(*how) % LENGTHS.len()];
        let client = world.pick(side, *which);
        let access = world.pick(Side::Access, *which);
        let device = world.pick(Side::Device, *which);
        match (operation % 16, client) {
            (0, _) if world.clients.len() < 12 => {
                world.connect(Side::Device, *how);
            }
            (1, _) if world.clients.len() < 12 => {
                world.connect(Side::Access, *how);
            }
            (2, _) => access.map_or((), |access| world.create(access, *how == 255)),
            (3, _) => device.map_or((), |device| world.answer(device, *how, 0)),
            (4, _) => device.map_or((), |device| world.answer(device, *how, 1 + how % 20)),
            (5 | 6, Some(client)) => {
                for _ in 0..=how / 64 {
                    world.data(client, how / 8, length);
                }
            }
            (7, Some(client)) => world.poison(client, *how),
            (8, Some(client)) => world.release(client, *how),
            (9, Some(client)) => {
                // Bytes from the input as one message, a frame or not. They may say anything but
                // what would be this client's own lawful word.
                let length = usize::from(*how).min(rest.len());
                let (message, more) = rest.split_at(length);
                rest = more;
                if !is_lawful(message) {
                    world.clients[client].sender.binary(message, b"");
                    world.clients[client].transmit();
                }
            }
            (10, Some(client)) => {
                let sender = &mut world.clients[client].sender;
                match how % 3 {
                    0 => sender.ping(),
                    1 => sender.binary(&[0; 100_000], b""),
                    _ => sender.pong(b"unasked"),
                }
                world.clients[client].transmit();
            }
            (11, Some(client)) => world.end(client, *how),
            (12, Some(client)) => {
                let room = [0, 0, 1, 1000, usize::MAX, usize::MAX][usize::from(*how) % 6];
                world.clients[client].pipe.borrow_mut().room = room;
                world.clients[client].is_slow = true;
            }
            (13, Some(client)) => {
                let chunk = CHUNKS[usize::from(*how) % CHUNKS.len()];
                world.clients[client].pipe.borrow_mut().chunk = chunk;
            }
            (14, _) => {
                world.now += Duration::from_millis(TIMES[usize::from(*how) % TIMES.len()]);
                world.settle(1);
            }
            (15, _) if *which == 0 => {
                world.tunnel.expire_at(Some(world.now));
                world.clients.iter_mut().for_each(|client| client.is_good = false);
            }
            (15, Some(client)) => world.too_much(client, *how),
            _ => {}
        }
        world.settle([0, 1, 2, 40][usize::from(operation / 64)]);
    }
    world.finish();
}

/// A frame that an end may send and the model would have to know of.
fn is_lawful(message: &[u8]) -> bool {
    Frame::parse(message).is_ok_and(|frame| {
        frame.frame_type == FrameType::SessionCreate || !frame.session_id.is_empty()
    })
}
