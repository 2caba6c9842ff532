//! Sessions whose bytes check themselves: both ends know from a seed what the other end sends. With
//! them comes an access side, written on tungstenite and [`frame`].
//!
//! To the service a session carries a head (which session this is), a body and an end marker; back
//! from the service a body and an end marker. The marker holds the body's length and its hash. What
//! harms the connections on the way is in [`faults`](crate::faults), not here.

use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};
use serde_json::json;
use tungstenite::{Error, Message};

use crate::faults::Damage;
use crate::random::{self, magnitude, permille, Generator};
use crate::tunnel_end::{Stream, TunnelEnd};
use crate::{certificates, frame, gateways, sockets};

/// No end of a session is silent for so long unless it hangs.
pub const SILENCE: Duration = Duration::from_secs(60);
const HEAD: usize = 24;
/// The number of former sessions that an access side remembers.
const FORMER: usize = 512;

/// Which end closes a session first, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The service, when it has sent and received everything.
    ServiceLast,
    /// The service, as soon as it has sent everything.
    ServiceFirst,
    /// The access side, when it has sent and received everything.
    AccessLast,
    /// The access side, as soon as it has sent everything.
    AccessFirst,
    /// The access side, without a byte.
    Silent,
}

const MODES: [Mode; 5] =
    [Mode::ServiceLast, Mode::ServiceFirst, Mode::AccessLast, Mode::AccessFirst, Mode::Silent];

/// One session as it should go.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub service: String,
    pub mode: Mode,
    /// Bytes of the bodies, to the service and back.
    pub up: usize,
    pub down: usize,
}

impl Plan {
    /// A random plan with bodies of at most so many bytes.
    pub fn random(random: &mut Generator, service: &str, most: u64) -> Self {
        let size = |random: &mut Generator| match random.random_range(0..8) {
            0 => 0,
            _ => magnitude(random, most) as usize,
        };
        let mode = match random.random_range(0..20) {
            0 => Mode::Silent,
            n => MODES[n % 4],
        };
        let seed = random.next_u64();
        Plan { seed, service: service.into(), mode, up: size(random), down: size(random) }
    }

    fn head(&self) -> Vec<u8> {
        let mut head = self.seed.to_be_bytes().to_vec();
        let mode = MODES.iter().position(|mode| *mode == self.mode).unwrap();
        for number in [self.up, self.down, mode, 0] {
            head.extend((number as u32).to_be_bytes());
        }
        head
    }

    fn from_head(head: &[u8]) -> Option<Self> {
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap()) as usize;
        Some(Plan {
            seed: u64::from_be_bytes(head[..8].try_into().unwrap()),
            service: String::new(),
            mode: *MODES.get(number(16))?,
            up: number(8),
            down: number(12),
        })
    }

    pub fn up_stream(&self) -> Vec<u8> {
        match self.mode {
            Mode::Silent => Vec::new(),
            _ => [self.head(), marked(self.seed, self.up)].concat(),
        }
    }

    pub fn down_stream(&self) -> Vec<u8> {
        marked(!self.seed, self.down)
    }
}

/// A body and its end marker.
fn marked(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = random::bytes(seed, length);
    let hash = hash(&bytes);
    bytes.extend(b"the end:");
    bytes.extend((length as u64).to_be_bytes());
    bytes.extend(hash.to_be_bytes());
    bytes
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Whether a stream ends with a marker that fits the bytes before it.
fn is_marked(bytes: &[u8]) -> bool {
    let Some(length) = bytes.len().checked_sub(24) else { return false };
    let (body, marker) = bytes.split_at(length);
    marker[..8] == *b"the end:"
        && marker[8..16] == (length as u64).to_be_bytes()
        && marker[16..] == hash(body).to_be_bytes()
}

/// The receiver's view of one direction.
struct Check {
    expected: Vec<u8>,
    received: Vec<u8>,
    wrong: Option<String>,
}

impl Check {
    fn new(expected: Vec<u8>) -> Self {
        Check { expected, received: Vec::new(), wrong: None }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let at = self.received.len();
        self.received.extend_from_slice(bytes);
        if self.expected.get(at..at + bytes.len()) != Some(bytes) && self.wrong.is_none() {
            let expected = self.expected.len();
            self.wrong = Some(format!("wrong bytes from offset {at} of {expected}"));
        }
    }

    /// `head`: bytes before the marked stream.
    fn complete(&self, head: usize) -> bool {
        self.received.len() == self.expected.len()
            && self.wrong.is_none()
            && is_marked(&self.received[head..])
    }
}

/// A local service's view of one session.
#[derive(Clone)]
pub struct Served {
    /// Which session it was; `None` if its head did not arrive.
    pub seed: Option<u64>,
    pub damage: Arc<Damage>,
    pub received: usize,
    pub complete: bool,
    pub wrong: Option<String>,
    /// The result of the last read.
    pub end: String,
    pub ended: Instant,
}

/// All sessions that local services have seen.
#[derive(Default)]
pub struct ServiceLog {
    pub served: Mutex<Vec<Served>>,
    pub active: AtomicUsize,
}

/// Makes a connection whose other end is served on a thread of its own.
pub fn served(damage: &Arc<Damage>, log: &Arc<ServiceLog>) -> io::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    let (damage, log) = (damage.clone(), log.clone());
    log.active.fetch_add(1, Ordering::SeqCst);
    thread::Builder::new().name("service".into()).spawn(move || {
        let served = serve(accepted, damage);
        log.served.lock().unwrap().push(served);
        log.active.fetch_sub(1, Ordering::SeqCst);
    })?;
    Ok(stream)
}

fn serve(mut stream: TcpStream, damage: Arc<Damage>) -> Served {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    stream.set_write_timeout(Some(SILENCE)).unwrap();
    let mut served = Served {
        seed: None,
        damage,
        received: 0,
        complete: false,
        wrong: None,
        end: String::new(),
        ended: Instant::now(),
    };
    let mut head = [0; HEAD];
    while served.received < HEAD {
        match stream.read(&mut head[served.received..]) {
            Ok(length) if length > 0 => served.received += length,
            end => return finish(served, end),
        }
    }
    let Some(plan) = Plan::from_head(&head) else {
        served.wrong = Some(format!("a head that no access side sends: {head:x?}"));
        return served;
    };
    served.seed = Some(plan.seed);
    let mut check = Check::new(plan.up_stream());
    check.feed(&head);

    let mut writer = Some(thread::spawn({
        let (mut stream, plan) = (stream.try_clone().unwrap(), plan.clone());
        move || {
            let (bytes, mut random) = (plan.down_stream(), random::part(plan.seed, 77));
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let length = magnitude(&mut random, 65_536).min(rest.len() as u64) as usize;
                if stream.write_all(&rest[..length]).is_err() {
                    return;
                }
                rest = &rest[length..];
            }
            if plan.mode == Mode::ServiceFirst {
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    }));
    let mut buffer = vec![0; 16 * 1024];
    let end = loop {
        if check.complete(HEAD) && plan.mode == Mode::ServiceLast {
            if let Some(writer) = writer.take() {
                writer.join().unwrap();
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
        match stream.read(&mut buffer) {
            Ok(length) if length > 0 => check.feed(&buffer[..length]),
            end => break end,
        }
    };
    (served.received, served.complete) = (check.received.len(), check.complete(HEAD));
    served.wrong = check.wrong;
    served = finish(served, end);
    if let Some(writer) = writer {
        writer.join().unwrap();
    }
    served
}

fn finish(mut served: Served, end: io::Result<usize>) -> Served {
    served.end = match end {
        Ok(_) => "end of file".into(),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            served.wrong.get_or_insert_with(|| "the service received nothing for a minute".into());
            e.to_string()
        }
        Err(e) => e.to_string(),
    };
    served.ended = Instant::now();
    served
}

/// The access side's view of one session.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub plan: Plan,
    pub began: Instant,
    pub ended: Instant,
    /// The code and text of a refusal.
    pub refused: Option<(i64, String)>,
    /// The code and text of the release, if one came.
    pub released: Option<(i64, String)>,
    /// The access side's own connection was lost.
    pub lost: Option<String>,
    pub sent: usize,
    pub received: usize,
    pub complete: bool,
    pub wrong: Option<String>,
}

enum Phase {
    Starting,
    Creating,
    Open,
    Over,
}

/// A session of the access side.
struct AccessSession {
    outcome: Outcome,
    phase: Phase,
    frame_id: u64,
    id: String,
    up: Vec<u8>,
    down: Check,
}

impl AccessSession {
    fn wants_to_send(&self) -> bool {
        match self.phase {
            Phase::Starting => true,
            Phase::Open => self.outcome.sent < self.up.len() || self.releases(),
            _ => false,
        }
    }

    /// Whether the access side is to end the session now.
    fn releases(&self) -> bool {
        let sent = self.outcome.sent == self.up.len();
        match self.outcome.plan.mode {
            Mode::AccessFirst | Mode::Silent => sent,
            Mode::AccessLast => sent && self.down.complete(0),
            Mode::ServiceFirst | Mode::ServiceLast => false,
        }
    }

    fn end(&mut self) {
        self.phase = Phase::Over;
        self.outcome.ended = Instant::now();
        self.outcome.received = self.down.received.len();
        self.outcome.complete = self.down.complete(0);
        if let Some(wrong) = self.down.wrong.take() {
            self.outcome.wrong = Some(wrong);
        }
    }
}

/// An access side: sessions over one WebSocket, on the caller's thread.
pub struct Access {
    end: TunnelEnd<Box<dyn Stream>>,
    sessions: Vec<AccessSession>,
    /// Ids of former sessions. Data for them is late, not wrong.
    former: Vec<String>,
    random: Generator,
    frame_id: u64,
    turn: usize,
    backlog: bool,
    /// Nothing is read before this time.
    pause: Option<Instant>,
    /// Why the connection was lost.
    pub lost: Option<String>,
}

impl Access {
    /// Connects to `/tunnel/ID/source`. With `ca`, a certificate in PEM, it uses TLS.
    pub fn connect(
        gateway: SocketAddr,
        tunnel: &str,
        token: &str,
        ca: Option<&[u8]>,
        random: Generator,
    ) -> Result<Self, String> {
        let tcp = TcpStream::connect(gateway).map_err(|e| e.to_string())?;
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(SILENCE)).unwrap();
        let clone = tcp.try_clone().unwrap();
        let stream: Box<dyn Stream> = match ca {
            None => Box::new(clone),
            Some(ca) => {
                let connector = certificates::connector(ca);
                let stream = connector.connect(&gateway.ip().to_string(), clone);
                Box::new(stream.map_err(|e| e.to_string())?)
            }
        };
        let path = format!("/tunnel/{tunnel}/source");
        let end = gateways::connect_over(stream, tcp, &path, Some(token));
        let end = end.map_err(|e| e.to_string())?;
        end.tcp.set_nonblocking(true).unwrap();
        Ok(Access {
            end,
            sessions: Vec::new(),
            former: Vec::new(),
            random,
            frame_id: 0,
            turn: 0,
            backlog: false,
            pause: None,
            lost: None,
        })
    }

    pub fn open(&mut self, plan: Plan) {
        let now = Instant::now();
        self.sessions.push(AccessSession {
            up: plan.up_stream(),
            down: Check::new(plan.down_stream()),
            phase: Phase::Starting,
            frame_id: 0,
            id: String::new(),
            outcome: Outcome {
                plan,
                began: now,
                ended: now,
                refused: None,
                released: None,
                lost: None,
                sent: 0,
                received: 0,
                complete: false,
                wrong: None,
            },
        });
    }

    pub fn under_way(&self) -> usize {
        self.sessions.len()
    }

    /// Waits for at most `timeout`, moves all sessions on, and gives those that are over now.
    pub fn step(&mut self, timeout: Duration) -> Vec<Outcome> {
        let now = Instant::now();
        self.pause.take_if(|pause| now >= *pause);
        if self.lost.is_none() {
            let can_send = self.sessions.iter().any(AccessSession::wants_to_send);
            let reads = self.pause.is_none();
            let interest = (self.end.tcp.as_fd(), reads, self.backlog || can_send);
            let deadline = now + timeout;
            sockets::ready(&[interest], Some(self.pause.unwrap_or(deadline).min(deadline)));
            if let Err(e) = self.receive().and_then(|()| self.send()) {
                self.lost = Some(e.to_string());
            }
        }
        if let Some(why) = &self.lost {
            for session in &mut self.sessions {
                if !matches!(session.phase, Phase::Over) {
                    session.outcome.lost = Some(why.clone());
                    session.end();
                }
            }
        }
        let is_over = |session: &mut AccessSession| matches!(session.phase, Phase::Over);
        let over: Vec<AccessSession> = self.sessions.extract_if(.., is_over).collect();
        self.former.extend(over.iter().map(|session| session.id.clone()));
        self.former.drain(..self.former.len().saturating_sub(FORMER));
        over.into_iter().map(|session| session.outcome).collect()
    }

    /// Ends all sessions as they are.
    pub fn give_up(&mut self, why: &str) -> Vec<Outcome> {
        self.lost = Some(why.into());
        self.step(Duration::ZERO)
    }

    fn receive(&mut self) -> Result<(), Error> {
        for _ in 0..32 {
            if self.pause.is_some() {
                break;
            }
            match self.end.socket.read() {
                Ok(Message::Binary(message)) => self.take(&message),
                Ok(Message::Close(frame)) => {
                    let code = frame.map(|frame| u16::from(frame.code));
                    return Err(io::Error::other(format!("closed with code {code:?}")).into());
                }
                Ok(_) => {}
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &[u8]) {
        let (header, payload) = frame::parse_tunnel(message);
        let id = header["session_id"].as_str().unwrap_or_default();
        if header["frame_type"] == 1 {
            let is_created = |session: &&mut AccessSession| {
                header["frame_id"] == session.frame_id && matches!(session.phase, Phase::Creating)
            };
            let Some(session) = self.sessions.iter_mut().find(is_created) else { return };
            id.clone_into(&mut session.id);
            session.phase = Phase::Open;
            let status = frame::status(payload);
            if status.0 != 0 {
                session.outcome.refused = Some(status);
                session.end();
            }
            return;
        }
        let Some(session) = self.sessions.iter_mut().find(|session| session.id == id) else {
            let known = self.former.iter().any(|former| former == id);
            assert!(known, "a frame for a session that never existed: {header}");
            return;
        };
        if matches!(session.phase, Phase::Over) {
            return;
        }
        match header["frame_type"].as_u64() {
            Some(4) => {
                assert!(payload.len() <= 4096, "{} bytes in one frame", payload.len());
                session.down.feed(payload);
            }
            Some(3) => {
                session.outcome.released = Some(frame::status(payload));
                session.end();
            }
            _ => panic!("a frame of an unexpected type: {header}"),
        }
        // Access sides are slow at times.
        if permille(&mut self.random, 2) {
            let pause = Duration::from_millis(magnitude(&mut self.random, 100));
            self.pause = Some(Instant::now() + pause);
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        for _ in 0..16 {
            match self.end.socket.flush() {
                Ok(()) => self.backlog = false,
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.backlog = true;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
            self.turn += 1;
            let count = self.sessions.len();
            let turns = (0..count).map(|n| (self.turn + n) % count);
            let next = turns.into_iter().find(|index| self.sessions[*index].wants_to_send());
            let Some(index) = next else { return Ok(()) };
            let frame = self.next_frame(index);
            match self.end.socket.write(Message::binary(frame)) {
                // tungstenite's buffer keeps what the socket does not accept.
                Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn next_frame(&mut self, index: usize) -> Vec<u8> {
        self.frame_id += 1;
        let frame_id = self.frame_id;
        let session = &mut self.sessions[index];
        let id = &session.id;
        if matches!(session.phase, Phase::Starting) {
            session.phase = Phase::Creating;
            session.frame_id = frame_id;
            session.outcome.began = Instant::now();
            let service = &session.outcome.plan.service;
            let header = json!({"frame_type": 2, "frame_id": frame_id, "service_type": service});
            return frame::tunnel(&header.to_string(), b"");
        }
        if session.releases() {
            let header = json!({"frame_type": 3, "frame_id": frame_id, "session_id": id});
            let payload = br#"{"code":0,"msg":"enough"}"#;
            let release = frame::tunnel(&header.to_string(), payload);
            session.end();
            return release;
        }
        let rest = &session.up[session.outcome.sent..];
        let length = magnitude(&mut self.random, 65_536).min(rest.len() as u64) as usize;
        session.outcome.sent += length;
        let header = json!({"frame_type": 4, "frame_id": frame_id, "session_id": id});
        frame::tunnel(&header.to_string(), &rest[..length])
    }
}

/// Events that may excuse an incomplete session.
#[derive(Clone, Copy, Debug)]
pub struct Causes {
    /// The device's connection to the gateway was lost during the session, or does not exist.
    pub tunnel: bool,
    /// A fault cut the local connection.
    pub local: bool,
    /// The access side may be disconnected.
    pub access: bool,
}

/// Judges whether a session kept the promises. `Ok` tells whether it was complete.
pub fn judge(outcome: &Outcome, served: Option<&Served>, causes: Causes) -> Result<bool, String> {
    let mode = outcome.plan.mode;
    if let Some(wrong) = &outcome.wrong {
        return Err(format!("at the access side: {wrong}"));
    }
    if let Some(wrong) = served.and_then(|served| served.wrong.as_ref()) {
        return Err(format!("at the service: {wrong}"));
    }
    if outcome.lost.is_some() {
        return if causes.access { Ok(false) } else { Err("the access side was cut off".into()) };
    }
    let broken = causes.tunnel || causes.local;
    if outcome.refused.is_some() {
        return if broken { Ok(false) } else { Err("refused without a reason".into()) };
    }
    let wants_down = matches!(mode, Mode::ServiceFirst | Mode::ServiceLast | Mode::AccessLast);
    if wants_down && !outcome.complete {
        return match &outcome.released {
            None => Err("short of bytes, and never released".into()),
            Some((1, text)) if text.ends_with("closed the connection") => {
                // It looks as if the service had ended it in order: only a FIN explains that.
                let half_closed = |s: &Served| s.damage.half_closed[1].load(Ordering::SeqCst);
                if causes.local && served.is_none_or(half_closed) {
                    Ok(false)
                } else {
                    Err("a loss that looks like an orderly end".into())
                }
            }
            Some(_) if broken => Ok(false),
            Some(_) => Err("released without a reason".into()),
        };
    }
    let wants_up = matches!(mode, Mode::ServiceLast | Mode::AccessLast | Mode::AccessFirst);
    if wants_up && !served.is_some_and(|served| served.complete) {
        return if broken {
            Ok(false)
        } else {
            Err("the service did not receive everything".into())
        };
    }
    Ok(true)
}
