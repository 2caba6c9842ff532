//! Sessions whose bytes check themselves: what the access side sends and the local service
//! expects, and the other way round. The access side is written against the protocol, on
//! tungstenite.
//!
//! Towards the service a session carries a head (which session this is), a body and an end
//! marker; back from it a body and an end marker. The marker holds the body's length and hash.
#![allow(dead_code)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Error, Message, WebSocket};

use super::faults::{poll, poll_fd, LinkReport, Rng};

/// No end of a session is silent for so long unless it hangs.
pub const SILENCE: Duration = Duration::from_secs(60);
const HEAD: usize = 24;

/// Who closes a session first, and when.
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
    pub fn random(rng: &mut Rng, service: &str, most: u64) -> Self {
        let size = |rng: &mut Rng| match rng.below(8) {
            0 => 0,
            _ => rng.magnitude(most) as usize,
        };
        let mode = match rng.below(20) {
            0 => Mode::Silent,
            n => MODES[n as usize % 4],
        };
        Plan { seed: rng.next(), service: service.into(), mode, up: size(rng), down: size(rng) }
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
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(length + 32);
    while bytes.len() < length {
        bytes.extend(rng.next().to_be_bytes());
    }
    bytes.truncate(length);
    let hash = hash(&bytes);
    bytes.extend(b"the end:");
    bytes.extend((length as u64).to_be_bytes());
    bytes.extend(hash.to_be_bytes());
    bytes
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Whether a stream ends with a marker that agrees with what came before it.
fn is_marked(bytes: &[u8]) -> bool {
    let Some(length) = bytes.len().checked_sub(24) else { return false };
    let (body, marker) = bytes.split_at(length);
    marker[..8] == *b"the end:"
        && marker[8..16] == (length as u64).to_be_bytes()
        && marker[16..] == hash(body).to_be_bytes()
}

/// One direction at its receiver.
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

/// What a local service saw of one session.
#[derive(Clone)]
pub struct Served {
    /// Which session it was; `None` if its head did not arrive.
    pub seed: Option<u64>,
    pub link: Arc<LinkReport>,
    pub received: usize,
    pub complete: bool,
    pub wrong: Option<String>,
    /// What the last read said.
    pub end: String,
    pub ended: Instant,
}

/// All that local services saw.
#[derive(Default)]
pub struct Log {
    pub served: Mutex<Vec<Served>>,
    pub active: AtomicUsize,
}

/// A fresh connection, its other end served on a thread of its own.
pub fn served(link: &Arc<LinkReport>, log: &Arc<Log>) -> io::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    let (link, log) = (link.clone(), log.clone());
    log.active.fetch_add(1, Ordering::SeqCst);
    thread::Builder::new().name("service".into()).spawn(move || {
        let served = serve(accepted, link);
        log.served.lock().unwrap().push(served);
        log.active.fetch_sub(1, Ordering::SeqCst);
    })?;
    Ok(stream)
}

fn serve(mut stream: TcpStream, link: Arc<LinkReport>) -> Served {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    stream.set_write_timeout(Some(SILENCE)).unwrap();
    let mut served = Served {
        seed: None,
        link,
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
        served.wrong = Some(format!("a head that nobody sent: {head:x?}"));
        return served;
    };
    served.seed = Some(plan.seed);
    let mut check = Check::new(plan.up_stream());
    check.feed(&head);

    let mut writer = Some(thread::spawn({
        let (mut stream, plan) = (stream.try_clone().unwrap(), plan.clone());
        move || {
            let (bytes, mut rng) = (plan.down_stream(), Rng::part(plan.seed, 77));
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let length = rng.magnitude(65_536).min(rest.len() as u64) as usize;
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
            served.wrong.get_or_insert_with(|| "the service heard nothing for a minute".into());
            e.to_string()
        }
        Err(e) => e.to_string(),
    };
    served.ended = Instant::now();
    served
}

/// What the access side saw of one session.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub plan: Plan,
    pub began: Instant,
    pub ended: Instant,
    /// The code and text of a create that was refused.
    pub refused: Option<(i64, String)>,
    /// The code and text of the release that came.
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

struct Session {
    outcome: Outcome,
    phase: Phase,
    frame_id: u64,
    id: String,
    up: Vec<u8>,
    down: Check,
}

impl Session {
    fn wants_to_send(&self) -> bool {
        match self.phase {
            Phase::Starting => true,
            Phase::Open => self.outcome.sent < self.up.len() || self.releases(),
            _ => false,
        }
    }

    /// Whether it is now for the access side to end it.
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

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// An access side: sessions over one WebSocket, on the caller's thread.
pub struct Access {
    socket: WebSocket<Box<dyn Stream>>,
    tcp: TcpStream,
    sessions: Vec<Session>,
    /// Ids of sessions that are over here; data for them is late.
    former: Vec<String>,
    rng: Rng,
    frame_id: u64,
    turn: usize,
    backlog: bool,
    /// It reads nothing before.
    pause: Option<Instant>,
    pub lost: Option<String>,
}

impl Access {
    /// Connects to `/tunnel/ID/source`; `ca` in PEM if the gateway speaks TLS.
    pub fn connect(
        gateway: SocketAddr,
        tunnel: &str,
        token: &str,
        ca: Option<&[u8]>,
        rng: Rng,
    ) -> Result<Self, String> {
        let tcp = TcpStream::connect(gateway).map_err(|e| e.to_string())?;
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(SILENCE)).unwrap();
        let stream: Box<dyn Stream> = match ca {
            None => Box::new(tcp.try_clone().unwrap()),
            Some(pem) => {
                let ca = native_tls::Certificate::from_pem(pem).unwrap();
                let connector = native_tls::TlsConnector::builder()
                    .disable_built_in_roots(true)
                    .add_root_certificate(ca)
                    .build()
                    .unwrap();
                let stream = connector.connect("127.0.0.1", tcp.try_clone().unwrap());
                Box::new(stream.map_err(|e| e.to_string())?)
            }
        };
        let url = format!("ws://{gateway}/tunnel/{tunnel}/source");
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", "aliyun.iot.securetunnel-v1.1".parse().unwrap());
        headers.insert("tunnel-access-token", token.parse().unwrap());
        let (socket, _) = tungstenite::client(request, stream).map_err(|e| e.to_string())?;
        tcp.set_nonblocking(true).unwrap();
        Ok(Access {
            socket,
            tcp,
            sessions: Vec::new(),
            former: Vec::new(),
            rng,
            frame_id: 0,
            turn: 0,
            backlog: false,
            pause: None,
            lost: None,
        })
    }

    pub fn open(&mut self, plan: Plan) {
        let now = Instant::now();
        self.sessions.push(Session {
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

    /// Moves on, after waiting for at most `timeout`; the sessions that are over now.
    pub fn step(&mut self, timeout: Duration) -> Vec<Outcome> {
        let now = Instant::now();
        self.pause.take_if(|pause| now >= *pause);
        if self.lost.is_none() {
            let can_send = self.sessions.iter().any(Session::wants_to_send);
            let reads = self.pause.is_none();
            let mut fds = [poll_fd(self.tcp.as_raw_fd(), reads, self.backlog || can_send)];
            let pause = self.pause.map(|pause| pause.saturating_duration_since(now));
            poll(&mut fds, Some(pause.unwrap_or(timeout).min(timeout)));
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
        let is_over = |session: &mut Session| matches!(session.phase, Phase::Over);
        let over: Vec<Session> = self.sessions.extract_if(.., is_over).collect();
        self.former.extend(over.iter().map(|session| session.id.clone()));
        let most = 512;
        self.former.drain(..self.former.len().saturating_sub(most));
        over.into_iter().map(|session| session.outcome).collect()
    }

    /// Ends what is still under way, as it stands.
    pub fn give_up(&mut self, why: &str) -> Vec<Outcome> {
        self.lost = Some(why.into());
        self.step(Duration::ZERO)
    }

    fn receive(&mut self) -> Result<(), Error> {
        for _ in 0..32 {
            if self.pause.is_some() {
                break;
            }
            match self.socket.read() {
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
        let end = 2 + usize::from(u16::from_be_bytes([message[0], message[1]]));
        let header: Value = serde_json::from_slice(&message[2..end]).unwrap();
        let payload = &message[end..];
        let status = || {
            let status: Value = serde_json::from_slice(payload).unwrap_or_default();
            let text = status["msg"].as_str().unwrap_or_default().to_owned();
            (status["code"].as_i64().unwrap_or(-1), text)
        };
        let id = header["session_id"].as_str().unwrap_or_default();
        if header["frame_type"] == 1 {
            let create = |session: &&mut Session| {
                header["frame_id"] == session.frame_id && matches!(session.phase, Phase::Creating)
            };
            let Some(session) = self.sessions.iter_mut().find(create) else { return };
            id.clone_into(&mut session.id);
            session.phase = Phase::Open;
            let status = status();
            if status.0 != 0 {
                session.outcome.refused = Some(status);
                session.end();
            }
            return;
        }
        let Some(session) = self.sessions.iter_mut().find(|session| session.id == id) else {
            let known = self.former.iter().any(|former| former == id);
            assert!(known, "a frame for a session that never was: {header}");
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
                session.outcome.released = Some(status());
                session.end();
            }
            _ => panic!("a frame of an unexpected type: {header}"),
        }
        // Now and then an access side is slow.
        if self.rng.permille(2) {
            let pause = Duration::from_millis(self.rng.magnitude(100));
            self.pause = Some(Instant::now() + pause);
        }
    }

    fn send(&mut self) -> Result<(), Error> {
        for _ in 0..16 {
            match self.socket.flush() {
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
            match self.socket.write(Message::binary(frame)) {
                // What the socket does not take waits in tungstenite's buffer.
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
            return frame(
                json!({"frame_type": 2, "frame_id": frame_id, "service_type": service}),
                b"",
            );
        }
        if session.releases() {
            let header = json!({"frame_type": 3, "frame_id": frame_id, "session_id": id});
            let release = frame(header, br#"{"code":0,"msg":"enough"}"#);
            session.end();
            return release;
        }
        let rest = &session.up[session.outcome.sent..];
        let length = self.rng.magnitude(65_536).min(rest.len() as u64) as usize;
        session.outcome.sent += length;
        let header = json!({"frame_type": 4, "frame_id": frame_id, "session_id": id});
        frame(header, &rest[..length])
    }
}

fn frame(header: Value, payload: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// What may excuse a session that is not complete.
#[derive(Clone, Copy, Debug)]
pub struct Causes {
    /// The device's connection to the gateway was lost meanwhile, or is not there.
    pub tunnel: bool,
    /// A fault cut the local connection.
    pub local: bool,
    /// The access side may be disconnected.
    pub access: bool,
}

/// Whether a session kept the promises: `Ok` says whether it was complete.
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
                // As if the service had ended it in order: only a FIN explains that.
                let half_closed = |s: &Served| s.link.half_closed[1].load(Ordering::SeqCst);
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
        return if broken { Ok(false) } else { Err("the service did not get everything".into()) };
    }
    Ok(true)
}

/// A throwaway CA and a certificate for 127.0.0.1, in PEM.
pub struct Certificates {
    pub ca: Vec<u8>,
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

impl Certificates {
    pub fn new() -> Self {
        use openssl::asn1::Asn1Time;
        use openssl::ec::{EcGroup, EcKey};
        use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
        use openssl::x509::{X509Builder, X509NameBuilder, X509};

        let group = EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
        let key = || openssl::pkey::PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
        let (ca_key, own_key) = (key(), key());
        let certify = |key, name: &str, issuer: Option<&X509>| {
            let mut subject = X509NameBuilder::new().unwrap();
            subject.append_entry_by_text("CN", name).unwrap();
            let subject = subject.build();
            let mut builder = X509Builder::new().unwrap();
            builder.set_version(2).unwrap();
            let serial = openssl::bn::BigNum::from_u32(rand::random()).unwrap();
            builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
            builder.set_subject_name(&subject).unwrap();
            builder.set_issuer_name(issuer.map_or(&*subject, |ca| ca.subject_name())).unwrap();
            builder.set_pubkey(key).unwrap();
            builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
            builder.set_not_after(&Asn1Time::days_from_now(2).unwrap()).unwrap();
            if issuer.is_none() {
                let ca = BasicConstraints::new().critical().ca().build().unwrap();
                builder.append_extension(ca).unwrap();
            } else {
                let context = builder.x509v3_context(issuer.map(|ca| &**ca), None);
                let names = SubjectAlternativeName::new().ip(name).build(&context).unwrap();
                builder.append_extension(names).unwrap();
            }
            builder.sign(&ca_key, openssl::hash::MessageDigest::sha256()).unwrap();
            builder.build()
        };
        let ca = certify(&ca_key, "test CA", None);
        let own = certify(&own_key, "127.0.0.1", Some(&ca));
        Certificates {
            ca: ca.to_pem().unwrap(),
            chain: own.to_pem().unwrap(),
            key: own_key.private_key_to_pem_pkcs8().unwrap(),
        }
    }
}
