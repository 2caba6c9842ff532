//! The relay against a model of its cloud and its local services, all of memory: bytes are read as
//! a sequence of cloud messages, local reads, writes and closes, and passing time. Whatever the
//! sequence, every byte arrives in order at the session it is for, what is lost is reported,
//! and the buffers stay within their budget.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::relay::{End, Relay};
use super::session::{Local, LocalStream, State, MAX_BATCH};
use crate::cloud::websocket::{Receiver, Role, Sender};
use crate::cloud::{ByteStream, Link};
use crate::config::{Limits, Port, Service, Services, TunnelId};
use crate::sys::Ready;

/// Sessions that the cloud talks of; the device takes [`MAX_SESSIONS`] of them at once.
const IDS: usize = 5;
const MAX_SESSIONS: usize = 3;

/// Reads `data` as a sequence of events, lets them happen, and panics where a promise is broken.
pub(crate) fn relay(data: &[u8]) {
    World::new(data).run();
}

/// A stream's byte at a position; streams differ by their salt.
fn content(salt: usize, at: usize, length: usize) -> impl Iterator<Item = &'static [u8]> {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        (0..65_521).map(|_| next()).collect()
    });
    let (mut at, mut left) = ((salt * 7919 + at) % table.len(), length);
    std::iter::from_fn(move || {
        let part = &table[at..(at + left).min(table.len())];
        (at, left) = ((at + part.len()) % table.len(), left - part.len());
        (!part.is_empty()).then_some(part)
    })
}

fn assert_content(what: &str, salt: usize, at: usize, bytes: &[u8]) {
    let mut rest = bytes;
    for part in content(salt, at, bytes.len()) {
        assert!(rest.starts_with(part), "{what}: bytes lost, reordered or another session's");
        rest = &rest[part.len()..];
    }
}

/// The WebSocket's byte stream.
#[derive(Default)]
pub(super) struct Wire {
    to_device: Vec<u8>,
    read: usize,
    /// How far the device may read.
    pub(super) arrived: usize,
    closed: bool,
    from_device: Vec<u8>,
    /// Bytes that the cloud takes.
    pub(super) takes: usize,
}

#[derive(Clone, Default)]
pub(super) struct Transport(pub(super) Rc<RefCell<Wire>>);

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        let end = wire.arrived.min(wire.to_device.len());
        let length = buffer.len().min(end - wire.read);
        if length == 0 {
            let all = wire.closed && end == wire.to_device.len();
            return if all { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let start = wire.read;
        buffer[..length].copy_from_slice(&wire.to_device[start..start + length]);
        wire.read += length;
        Ok(length)
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wire = self.0.borrow_mut();
        let length = bytes.len().min(wire.takes);
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        wire.takes -= length;
        wire.from_device.extend_from_slice(&bytes[..length]);
        Ok(length)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ByteStream for Transport {
    fn written(&self) -> u64 {
        0
    }
    fn unsent(&self) -> usize {
        0
    }
}

/// The far end of one local connection.
pub(super) struct Peer {
    session: usize,
    /// `None` while the connect is under way.
    connected: Option<Result<(), ErrorKind>>,
    /// The how manieth of its session's that was opened.
    opened: Option<usize>,
    pub(super) received: Vec<u8>,
    /// Bytes that it takes.
    pub(super) takes: usize,
    write_error: Option<ErrorKind>,
    /// Bytes that it has sent, and how many of them were read.
    pub(super) sent: usize,
    pub(super) read: usize,
    pub(super) end: Option<Result<(), ErrorKind>>,
    /// Whether it did what ends a session early.
    spoiled: bool,
    /// The device lets the stream end in a reset.
    aborted: bool,
}

pub(super) type Shared = Rc<RefCell<Peer>>;

impl Peer {
    fn is_readable(&self) -> bool {
        self.read < self.sent || self.end.is_some()
    }
}

pub(super) struct Stream {
    peer: Shared,
    salt: usize,
}

impl LocalStream for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut peer = self.peer.borrow_mut();
        if let Some(Err(kind)) = peer.end {
            return Err(kind.into());
        }
        let length = buffer.len().min(peer.sent - peer.read);
        if length == 0 {
            return if peer.end.is_some() { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let mut at = 0;
        for part in content(self.salt, peer.read, length) {
            buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        peer.read += length;
        Ok(length)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut peer = self.peer.borrow_mut();
        if let Some(kind) = peer.write_error {
            return Err(kind.into());
        }
        let mut written = 0;
        for slice in slices {
            let length = slice.len().min(peer.takes);
            peer.received.extend_from_slice(&slice[..length]);
            peer.takes -= length;
            written += length;
        }
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        if written == 0 && wanted > 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(written)
    }

    fn end(&mut self) {
        assert!(!self.peer.borrow().aborted, "an orderly end of what is cut short");
    }

    fn abort(&mut self) {
        self.peer.borrow_mut().aborted = true;
    }

    fn unsent(&self) -> usize {
        0
    }
}

/// What the next connect to a session's service leads to.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Answer {
    AtOnce,
    Later,
    Refused,
    NoSocket,
}

pub(super) struct Side {
    pub(super) peers: Vec<Shared>,
    answers: [Answer; IDS],
    /// How many streams each session's service has opened.
    opened: [usize; IDS],
}

#[derive(Clone)]
pub(super) struct Backend(pub(super) Rc<RefCell<Side>>);

impl Local for Backend {
    type Dial = Shared;
    type Stream = Stream;

    fn dial(&self, host: &str, _: u16) -> io::Result<Shared> {
        let session: usize = host[1..].parse().expect("the hosts are h0, h1, ...");
        let mut side = self.0.borrow_mut();
        let connected = match side.answers[session] {
            Answer::AtOnce => Some(Ok(())),
            Answer::Later => None,
            Answer::Refused => Some(Err(ErrorKind::ConnectionRefused)),
            Answer::NoSocket => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
        };
        let peer = Rc::new(RefCell::new(Peer {
            session,
            connected,
            opened: None,
            received: Vec::new(),
            takes: 0,
            write_error: None,
            sent: 0,
            read: 0,
            end: None,
            spoiled: false,
            aborted: false,
        }));
        side.peers.push(peer.clone());
        Ok(peer)
    }

    fn step(&self, dial: &mut Shared, _: bool) -> Option<io::Result<Stream>> {
        let session = {
            let peer = dial.borrow();
            if let Err(kind) = peer.connected? {
                return Some(Err(kind.into()));
            }
            peer.session
        };
        let mut side = self.0.borrow_mut();
        let nth = side.opened[session];
        side.opened[session] += 1;
        dial.borrow_mut().opened = Some(nth);
        Some(Ok(Stream { peer: dial.clone(), salt: up(session, nth) }))
    }
}

/// The salt of what the cloud sends for a session id.
fn down(session: usize) -> usize {
    session
}

/// The salt of what the `nth` service of a session id sends.
fn up(session: usize, nth: usize) -> usize {
    IDS + session + nth * IDS
}

/// What the cloud has sent for one session id.
#[derive(Default)]
struct Told {
    bytes: usize,
    /// Positions in `bytes`, with the frame ids, which grow.
    creates: Vec<(usize, u64)>,
    releases: Vec<(usize, u64)>,
    /// A frame was too long to be kept, so sessions of this id may end early.
    lost: bool,
}

pub(super) struct World<'a> {
    pub(super) input: &'a [u8],
    pub(super) limits: Limits,
    began: Instant,
    pub(super) now: Instant,
    pub(super) wire: Transport,
    pub(super) side: Backend,
    pub(super) relay: Relay<Transport, Backend>,
    told: [Told; IDS],
    next_frame: u64,
    /// Frame ids that must be answered, and whose they are.
    asked: HashMap<u64, usize>,
}

impl<'a> World<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        let limits = Limits {
            max_sessions: MAX_SESSIONS,
            session_buffer: 64 * 1024,
            send_buffer: 8 * 1024,
            ..Limits::default()
        };
        World::with_limits(input, limits)
    }

    pub(super) fn with_limits(input: &'a [u8], limits: Limits) -> Self {
        let services: Services = (0..IDS)
            .map(|n| {
                let port = Port::new(1).unwrap();
                (format!("v{n}"), Service::new(&format!("v{n}"), &format!("h{n}"), port).unwrap())
            })
            .collect();
        let wire = Transport::default();
        let side = Backend(Rc::new(RefCell::new(Side {
            peers: Vec::new(),
            answers: [Answer::AtOnce; IDS],
            opened: [0; IDS],
        })));
        let link = Link {
            transport: wire.clone(),
            receiver: Receiver::new(Role::Client),
            sender: Sender::new(Role::Client),
        };
        let now = Instant::now();
        let relay = Relay::new(
            link,
            TunnelId::new("t").unwrap(),
            Arc::new(services),
            limits.clone(),
            side.clone(),
            Vec::new(),
            now,
        );
        World {
            input,
            limits,
            began: now,
            now,
            wire,
            side,
            relay,
            told: Default::default(),
            next_frame: 1000,
            asked: HashMap::new(),
        }
    }

    fn run(mut self) {
        while let Some(event) = self.byte() {
            if let Err(end) = self.event(event) {
                return self.ended(Some(end));
            }
        }
        self.settle();
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.input.split_first()?;
        self.input = rest;
        Some(*first)
    }

    fn argument(&mut self) -> usize {
        self.byte().unwrap_or(0).into()
    }

    fn id(&mut self) -> usize {
        self.argument() % IDS
    }

    /// A length of one byte to a few frames, small ones as likely as large ones.
    fn length(&mut self) -> usize {
        let (scale, fine) = (self.argument(), self.argument());
        match scale % 8 {
            0 => fine % 4,
            1..=4 => fine,
            5 => 16 * fine,
            6 => 4095 + fine % 4,
            _ => 256 * fine,
        }
    }

    fn event(&mut self, event: u8) -> Result<(), End> {
        match event % 32 {
            0..=2 => self.cloud_creates(),
            3..=7 => {
                let (id, length) = (self.id(), self.length());
                self.cloud_sends(id, length);
            }
            8 => self.cloud_releases(),
            9 => self.cloud_misbehaves(),
            10..=13 => {
                let length = self.length();
                self.wire.0.borrow_mut().arrived += length;
            }
            14 | 15 => self.wire.0.borrow_mut().takes += self.length(),
            16..=18 => {
                let length = self.length();
                self.with_peer(|peer| peer.sent += if peer.end.is_none() { length } else { 0 });
            }
            19 | 20 => {
                let length = self.length();
                self.with_peer(|peer| peer.takes += length);
            }
            21 => {
                let how = self.argument();
                self.with_peer(|peer| {
                    peer.spoiled = true;
                    match how % 8 {
                        0 => peer.end = Some(Err(ErrorKind::ConnectionReset)),
                        1 => peer.write_error = Some(ErrorKind::BrokenPipe),
                        2 => peer.write_error = Some(ErrorKind::OutOfMemory),
                        _ => peer.end = peer.end.or(Some(Ok(()))),
                    }
                });
            }
            22 => {
                let id = self.id();
                let answer = match self.argument() % 8 {
                    0 => Answer::Refused,
                    1 => Answer::NoSocket,
                    2..=4 => Answer::Later,
                    _ => Answer::AtOnce,
                };
                self.side.0.borrow_mut().answers[id] = answer;
            }
            23 => {
                let refused = self.argument().is_multiple_of(4);
                self.with_peer(|peer| {
                    let answer = if refused { Err(ErrorKind::TimedOut) } else { Ok(()) };
                    peer.connected = peer.connected.or(Some(answer));
                });
            }
            24 => {
                let step = self.argument();
                self.now += Duration::from_millis(match step % 4 {
                    0 => 40 * step as u64,
                    _ => step as u64,
                });
            }
            25 if self.argument() % 64 == 7 => self.wire.0.borrow_mut().closed = true,
            25 if self.argument() % 64 == 7 => {
                self.relay.close(self.now);
                return Err(directed());
            }
            _ => {
                let spurious = event >= 224;
                self.turn(spurious)?;
            }
        }
        Ok(())
    }

    /// Does something to one of the latest peers.
    fn with_peer(&mut self, act: impl FnOnce(&mut Peer)) {
        let which = self.argument();
        let side = self.side.0.borrow();
        if let Some(back) = which.checked_rem(side.peers.len().min(8)) {
            act(&mut side.peers[side.peers.len() - 1 - back].borrow_mut());
        }
    }

    /// What the worker does: sees what is ready, and lets the relay deal with it.
    pub(super) fn turn(&mut self, spurious: bool) -> Result<(), End> {
        let (wants_cloud, wants_local) = (self.relay.wants_cloud(), self.relay.wants_local());
        self.relay.readable |= wants_cloud;
        let has_room = spurious || self.wire.0.borrow().takes > 0;
        self.relay.writable = self.relay.wants_room(self.now) && has_room;
        let ready: Vec<Ready> = self
            .relay
            .table
            .sessions
            .iter()
            .map(|session| match &session.state {
                State::Open(outlet) => {
                    let peer = outlet.stream.peer.borrow();
                    let writable = spurious || peer.takes > 0 || peer.write_error.is_some();
                    Ready {
                        read: wants_local && (spurious || peer.is_readable()),
                        write: !session.parked.is_empty() && writable,
                    }
                }
                State::Dialing { dial, .. } => {
                    Ready { read: false, write: dial.borrow().connected.is_some() }
                }
            })
            .collect();
        let result = self.relay.turn(self.now, &ready);
        self.check_budget();
        result
    }

    fn check_budget(&self) {
        let table = &self.relay.table;
        assert!(table.sessions.iter().filter(|session| !session.released).count() <= MAX_SESSIONS);
        // A batch points into the receive buffer, which the next turn may move or give back.
        assert!(table.sessions.iter().all(|session| session.batch.is_empty()));
        assert!(table.sessions.iter().all(|session| session.batch.capacity() <= MAX_BATCH));
        assert!(table.sessions.len() + table.closing.len() <= MAX_SESSIONS * 3 / 2);
        let parked = table.sessions.iter().map(|session| session.parked.len());
        let parked = parked.chain(table.closing.iter().map(|closing| closing.parked.len()));
        for length in parked {
            assert!(length <= self.limits.session_buffer, "{length} bytes are parked");
        }
        let waiting = self.relay.link.sender.len();
        assert!(waiting <= 2 * self.limits.send_buffer + 16 * 1024, "{waiting} bytes wait");
        let held = self.relay.link.receiver.capacity();
        assert!(held <= 520 * 1024, "the receive buffer has {held} bytes");
    }

    pub(super) fn cloud_creates(&mut self) {
        let (id, service) = (self.id(), self.argument());
        let frame_id = self.frame_id();
        let name = if service % 16 == 15 { "nope".to_owned() } else { format!("v{id}") };
        self.told[id].creates.push((self.told[id].bytes, frame_id));
        self.asked.insert(frame_id, id);
        let header = format!(
            r#"{{"frame_type":2,"frame_id":{frame_id},"session_id":"s{id}","service_type":"{name}"}}"#
        );
        self.frame(&header, &[]);
    }

    pub(super) fn cloud_sends(&mut self, id: usize, length: usize) {
        let length = length.min(64 * 1024);
        let payload = self.next_content(id, length);
        let frame_id = self.frame_id();
        let header = if frame_id.is_multiple_of(2) {
            format!(r#"{{"frame_type":4,"frame_id":{frame_id},"session_id":"s{id}"}}"#)
        } else {
            format!(
                r#"{{ "session_id" : "s{id}", "x":null, "frame_id":"{frame_id}","frame_type":4}}"#
            )
        };
        self.frame(&header, &payload);
    }

    fn cloud_releases(&mut self) {
        let (id, answered) = (self.id(), self.argument().is_multiple_of(2));
        let frame_id = self.frame_id();
        self.told[id].releases.push((self.told[id].bytes, frame_id));
        let field = if answered {
            self.asked.insert(frame_id, id);
            format!(r#","frame_id":{frame_id}"#)
        } else {
            String::new()
        };
        let header = format!(r#"{{"frame_type":3,"session_id":"s{id}"{field}}}"#);
        self.frame(&header, br#"{"code":0,"msg":"done"}"#);
    }

    fn cloud_misbehaves(&mut self) {
        let (id, fine) = (self.id(), self.argument());
        match self.argument() % 12 {
            0 => self.message(9, &[7; 100], 1),
            1 => self.message(10, &[], 1),
            2 => self.message(1, b"text", 1 + fine % 3),
            3 => self.message(2, b"\x08\x01{}", 1),
            4 => self.message(2, b"\0\x02[]rest", 1),
            5 => self.frame(r#"{"frame_type":9}"#, b"x"),
            6 => self.frame(r#"{"frame_type":2,"session_id":"s0","service_type":"v0"}"#, b""),
            7 => {
                let header = format!(
                    r#"{{"frame_type":4,"frame_id":1,"session_id":"z{}"}}"#,
                    self.next_frame % 300
                );
                self.next_frame += 1;
                self.frame(&header, b"of no session");
            }
            8 => self.frame(r#"{"frame_type":1,"frame_id":77,"session_id":"s1"}"#, b"{}"),
            9 | 10 => {
                // Too long to be delivered: its session must not go on as if it had been.
                let length = if fine % 2 == 0 { 64 * 1024 + 1 + fine } else { 68_000 + 200 * fine };
                let payload = self.next_content(id, length);
                self.told[id].lost = true;
                let header = format!(r#"{{"frame_type":4,"frame_id":1,"session_id":"s{id}"}}"#);
                self.frame(&header, &payload);
            }
            _ => self.message(2, &[], 1 + fine % 2),
        }
    }

    fn frame_id(&mut self) -> u64 {
        self.next_frame += 1;
        self.next_frame
    }

    fn next_content(&mut self, id: usize, length: usize) -> Vec<u8> {
        let bytes = content(down(id), self.told[id].bytes, length).collect::<Vec<_>>().concat();
        self.told[id].bytes += length;
        bytes
    }

    fn frame(&mut self, header: &str, payload: &[u8]) {
        let mut message = (header.len() as u16).to_be_bytes().to_vec();
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(payload);
        let fragments = match self.argument() % 8 {
            0 => 2,
            1 => 3,
            _ => 1,
        };
        self.message(2, &message, fragments);
    }

    /// Puts a WebSocket message on the wire, in so many fragments, with a ping between them.
    fn message(&mut self, opcode: u8, message: &[u8], fragments: usize) {
        let mut wire = self.wire.0.borrow_mut();
        let mut put = |first: u8, bytes: &[u8]| {
            wire.to_device.push(first);
            match bytes.len() {
                length @ 0..=125 => wire.to_device.push(length as u8),
                length @ 126..=0xffff => {
                    wire.to_device.push(126);
                    wire.to_device.extend((length as u16).to_be_bytes());
                }
                length => {
                    wire.to_device.push(127);
                    wire.to_device.extend((length as u64).to_be_bytes());
                }
            }
            wire.to_device.extend_from_slice(bytes);
        };
        let size = message.len().div_ceil(fragments).max(1);
        let mut parts = message.chunks(size).peekable();
        let mut first = opcode;
        let Some(mut part) = parts.next() else { return put(0x80 | opcode, &[]) };
        loop {
            let next = parts.next();
            put(if next.is_some() { first } else { 0x80 | first }, part);
            let Some(next) = next else { return };
            put(0x89, b"?");
            (first, part) = (0, next);
        }
    }

    /// From here on all goes well and everybody takes everything: then nothing may be missing.
    fn settle(mut self) {
        for _ in 0..10_000 {
            let before = self.progress();
            {
                let mut wire = self.wire.0.borrow_mut();
                (wire.arrived, wire.takes) = (usize::MAX, usize::MAX);
            }
            favour(&self.side);
            if let Err(end) = self.turn(false) {
                return self.ended(Some(end));
            }
            // A service that is gone takes bytes without a trace: that is no standstill.
            let all_read = self.wire.0.borrow().read == self.wire.0.borrow().to_device.len();
            if all_read && self.progress() == before && self.relay.link.sender.is_empty() {
                assert!(self.relay.table.closing.is_empty(), "a closed session lingers");
                return self.ended(None);
            }
        }
        panic!("no end of turns");
    }

    fn progress(&self) -> (usize, usize, usize, usize) {
        let wire = self.wire.0.borrow();
        let side = self.side.0.borrow();
        let peers = side.peers.iter().map(|peer| peer.borrow());
        let moved: usize = peers.map(|peer| peer.received.len() + peer.read).sum();
        let table = &self.relay.table;
        let sessions = table.sessions.len() + 100 * table.closing.len();
        (wire.read, wire.from_device.len(), moved, sessions)
    }

    /// The connection is over, or everything is said: what was said must fit together.
    fn ended(self, end: Option<End>) {
        self.wire.0.borrow_mut().takes = usize::MAX;
        favour(&self.side);
        let alive = end.is_none();
        let World { wire, side, relay, told, asked, limits, began, now, .. } = self;
        let is_open = |peer: &Shared| {
            relay.table.sessions.iter().any(|session| match &session.state {
                State::Open(outlet) => Rc::ptr_eq(&outlet.stream.peer, peer),
                State::Dialing { .. } => false,
            })
        };
        let open: Vec<Shared> =
            side.0.borrow().peers.iter().filter(|peer| is_open(peer)).cloned().collect();
        let (_, mut closing) = relay.into_closing(now);
        // Some may have connected just now.
        favour(&side);
        let peers = side.0.borrow().peers.clone();
        let is_open = |peer: &Shared| open.iter().any(|open| Rc::ptr_eq(open, peer));
        for _ in 0..100 {
            closing.retain_mut(|closing| !closing.step(now, &mut [0; 4096]));
        }
        assert!(closing.is_empty(), "a closed session lingers");

        // No session's time was up.
        let patient = now.duration_since(began) < limits.stall_timeout.min(limits.connect_timeout);
        // What the cloud sent has all arrived.
        let arrived = wire.0.borrow().read == wire.0.borrow().to_device.len();
        let said = Said::read(&wire.0.borrow().from_device);
        for id in 0..IDS {
            let of_id = peers.iter().filter(|peer| peer.borrow().session == id);
            let mut opened: Vec<_> = of_id.filter(|peer| peer.borrow().opened.is_some()).collect();
            opened.sort_by_key(|peer| peer.borrow().opened);
            let answers = &said.accepted[id];
            assert_eq!(opened.len(), answers.len(), "s{id}: an open service was not announced");
            for (nth, (peer, answer)) in opened.into_iter().zip(answers).enumerate() {
                let open = is_open(peer);
                let (peer, told) = (peer.borrow(), &told[id]);
                let what = format!("s{id}, the {nth}th");
                let create = told.creates.iter().find(|(_, frame)| *frame == answer.frame_id);
                let (from, _) = create.expect("a create that was answered was sent");
                assert_content(&what, down(id), *from, &peer.received);
                let release = told.releases.iter().find(|(_, frame)| *frame > answer.frame_id);
                let released = release.map(|(at, _)| *at);
                let (to, all) = (from + peer.received.len(), released.unwrap_or(told.bytes));
                assert!(to <= all, "{what}: bytes after its release");
                assert_content(&what, up(id, nth), 0, &answer.bytes);
                assert!(answer.bytes.len() <= peer.sent, "{what}: bytes that were not sent");

                // After the cloud's release, the device's answers data for no session.
                let by_device = answer.released && released.is_none();
                if arrived && !peer.spoiled {
                    let short = to < all;
                    assert!(!short || told.lost || !patient, "{what}: bytes are missing");
                    assert!(!short || peer.aborted, "{what}: cut short, and not told");
                    let closes = end.as_ref().is_some_and(|end| *end == directed());
                    let cause = short || told.lost || closes;
                    assert!(!by_device || cause, "{what}: released for no reason");
                }
                if !alive || !patient || told.lost {
                    continue;
                }
                let reset = peer.spoiled && peer.end != Some(Ok(())) || peer.write_error.is_some();
                if open || by_device && !reset {
                    assert_eq!(answer.bytes.len(), peer.sent, "{what}: local bytes are missing");
                }
                if peer.spoiled && released.is_none() && peer.end.is_some() {
                    assert!(by_device, "{what}: its end was not reported");
                }
            }
        }
        if alive {
            for (frame, id) in asked {
                assert!(said.answered.contains_key(&frame), "frame {frame} of s{id}: no answer");
            }
        }
    }
}

/// Every service connects and takes what there is.
fn favour(side: &Backend) {
    for peer in &side.0.borrow().peers {
        let mut peer = peer.borrow_mut();
        peer.takes = usize::MAX;
        peer.connected = peer.connected.or(Some(Ok(())));
    }
}

/// How a connection ends that a directive closes.
fn directed() -> End {
    End::Lost("closed by a directive".into())
}

/// What the device has said to the cloud.
#[derive(Default)]
struct Said {
    /// Codes, by the frame id that they answer.
    answered: HashMap<u64, i64>,
    /// The sessions that it opened, in order, by id.
    accepted: [Vec<Accepted>; IDS],
}

struct Accepted {
    frame_id: u64,
    bytes: Vec<u8>,
    released: bool,
}

impl Said {
    fn read(wire: &[u8]) -> Self {
        let mut said = Said::default();
        let mut own_frame = 0;
        let mut rest = wire;
        while let Some((opcode, message)) = next_message(&mut rest) {
            if opcode != 2 {
                assert!(matches!(opcode, 8..=10), "opcode {opcode}");
                continue;
            }
            let length = usize::from(u16::from_be_bytes([message[0], message[1]]));
            let (header, payload) = message[2..].split_at(length);
            let header: Value = serde_json::from_slice(header).expect("a header in JSON");
            let session = header["session_id"].as_str().expect("a session id");
            let id = session.strip_prefix('s').map(|id| id.parse::<usize>().unwrap());
            let frame_id = header["frame_id"].as_u64().expect("a frame id");
            let kind = header["frame_type"].as_u64();
            if kind != Some(1) {
                own_frame += 1;
                assert_eq!(frame_id, own_frame, "frame ids are counted from 1");
            }
            // The one that the cloud still has, if any.
            let last = id.and_then(|id| {
                let accepted = &mut said.accepted[id];
                let open = accepted.iter().rposition(|session| !session.released);
                let last = open.or(accepted.len().checked_sub(1))?;
                accepted.get_mut(last)
            });
            match kind {
                Some(1) => {
                    let status: Value = serde_json::from_slice(payload).expect("a status");
                    let code = status["code"].as_i64().expect("a code");
                    assert!((0..=2).contains(&code));
                    let twice = said.answered.insert(frame_id, code);
                    assert_eq!(twice, None, "frame {frame_id} is answered twice");
                    let released = status["msg"] == "connected and released";
                    if code == 0 && (released || status["msg"] == "success") {
                        assert!(header["service_type"].is_string());
                        let accepted = Accepted { frame_id, bytes: Vec::new(), released };
                        said.accepted[id.expect("one of ours")].push(accepted);
                    }
                }
                Some(3) => {
                    let status: Value = serde_json::from_slice(payload).expect("a status");
                    assert_eq!(status["code"], 1);
                    if let Some(last) = last {
                        last.released = true;
                    }
                }
                Some(4) => {
                    assert!((1..=4096).contains(&payload.len()));
                    let last = last.expect("data of an open session");
                    assert!(!last.released, "data after the release");
                    last.bytes.extend_from_slice(payload);
                }
                other => panic!("frame type {other:?}"),
            }
        }
        said
    }
}

/// The next whole message of a client: final, masked.
fn next_message(rest: &mut &[u8]) -> Option<(u8, Vec<u8>)> {
    let (head, after) = rest.split_at_checked(2)?;
    assert_eq!((head[0] & 0xf0, head[1] & 0x80), (0x80, 0x80), "final and masked");
    let (length, after) = match head[1] & 0x7f {
        126 => {
            let (bytes, after) = after.split_at_checked(2)?;
            (usize::from(u16::from_be_bytes(bytes.try_into().ok()?)), after)
        }
        127 => panic!("a message of 64 KiB or more"),
        length => (usize::from(length), after),
    };
    let (mask, after) = after.split_at_checked(4)?;
    let (payload, after) = after.split_at_checked(length)?;
    let message = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    *rest = after;
    Some((head[0] & 0x0f, message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn the_relay_keeps_its_promises_whatever_happens(
            data in proptest::collection::vec(any::<u8>(), 0..1500),
        ) {
            super::relay(&data);
        }
    }
}
