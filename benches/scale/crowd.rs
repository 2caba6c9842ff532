//! The far end of many tunnels, and the echo service behind the device, on one thread with one
//! `epoll`. The library's gateway has a thread for each tunnel and would cost more than the device
//! that is measured. Every byte that comes back is compared. This file measures nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::bench::far::{data_header, Connection, Transport};
use aiot_tunnel_testkit::frame::{self, parse_client, server_tunnel};
use openssl::ssl::SslAcceptor;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::Timespec;

/// The number of sessions of a tunnel.
pub const SESSIONS: usize = 2;
pub const SERVICE: &str = "echo";
/// Most connections that may wait to be accepted. A thousand workers connect at the same time.
const BACKLOG: i32 = 4096;
/// Longest payload of a data frame, in bytes.
const PAYLOAD: usize = 4096;
const TIMEOUT: Duration = Duration::from_secs(60);
/// The number of the echo service's listener in the `epoll`. The tunnels are numbered from 0, and
/// the connections of the echo service follow.
const LISTENER: u64 = u64::MAX;

/// The far end of one tunnel.
struct Tunnel {
    stream: Transport,
    received: Vec<u8>,
    unsent: Vec<u8>,
    sessions: [Echo; SESSIONS],
}

/// The far end of one session. The device echoes its bytes.
#[derive(Clone, Copy, Default)]
struct Echo {
    open: bool,
    sent: u64,
    /// The number of bytes that came back and were correct.
    back: u64,
}

/// A connection of the echo service.
struct Local {
    stream: TcpStream,
    unsent: Vec<u8>,
}

pub struct Crowd {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    cloud: TcpListener,
    service: TcpListener,
    tunnels: Vec<Tunnel>,
    locals: Vec<Local>,
    /// The sums over all sessions.
    sent: u64,
    back: u64,
}

impl Crowd {
    pub fn new() -> Self {
        let listen = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            rustix::net::listen(&listener, BACKLOG).unwrap();
            listener
        };
        let (cloud, service) = (listen(), listen());
        service.set_nonblocking(true).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let listener = EventData::new_u64(LISTENER);
        epoll::add(&epoll, &service, listener, EventFlags::IN).unwrap();
        let events = Vec::with_capacity(256);
        let (tunnels, locals) = (Vec::new(), Vec::new());
        Crowd { epoll, events, cloud, service, tunnels, locals, sent: 0, back: 0 }
    }

    /// The port to which the tunnels connect, and the port of the echo service.
    pub fn ports(&self) -> [u16; 2] {
        [&self.cloud, &self.service].map(|listener| listener.local_addr().unwrap().port())
    }

    /// Accepts `count` tunnels and opens their WebSockets.
    pub fn accept(&mut self, count: usize, tls: Option<&SslAcceptor>) {
        for _ in 0..count {
            let stream = Connection::tunnel(&self.cloud, tls).into_stream();
            self.watch(stream.tcp(), self.tunnels.len() as u64);
            let sessions = Default::default();
            self.tunnels.push(Tunnel {
                stream,
                received: Vec::new(),
                unsent: Vec::new(),
                sessions,
            });
        }
    }

    fn watch(&self, stream: impl AsFd, name: u64) {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.epoll, stream, EventData::new_u64(name), flags).unwrap();
    }

    /// Opens all sessions of all tunnels.
    pub fn open(&mut self) {
        for tunnel in &mut self.tunnels {
            for id in 0..SESSIONS {
                let header = format!(
                    r#"{{"frame_type":2,"frame_id":{id},"session_id":"s{id}","service_type":"{SERVICE}"}}"#
                );
                tunnel.send(&server_tunnel(&header, &[]));
            }
        }
        let all_open =
            |crowd: &Crowd| crowd.tunnels.iter().all(|t| t.sessions.iter().all(|s| s.open));
        self.run_until("sessions open", all_open);
    }

    /// Sends `bytes` bytes through each session and waits until all of them are back.
    pub fn echo(&mut self, bytes: usize) {
        for session in 0..self.len() {
            self.send(session, bytes);
        }
        self.settle();
    }

    /// Waits until all sent bytes are back.
    pub fn settle(&mut self) {
        self.run_until("all bytes back", |crowd| crowd.back == crowd.sent);
    }

    /// Sends a message of `bytes` through each session in each `period`, spread evenly over the
    /// period. Returns the number of bytes that came back during `time`.
    pub fn load(&mut self, bytes: usize, period: Duration, time: Duration) -> u64 {
        let (began, before) = (Instant::now(), self.back);
        let gap = period / self.len() as u32;
        for n in 0.. {
            let due = gap * n;
            if due >= time {
                break;
            }
            self.run(began + due);
            self.send(n as usize % self.len(), bytes);
        }
        self.run(began + time);
        self.back - before
    }

    /// The number of sessions.
    fn len(&self) -> usize {
        self.tunnels.len() * SESSIONS
    }

    /// Sends bytes through one session. Sessions with adjacent numbers belong to different tunnels.
    fn send(&mut self, session: usize, bytes: usize) {
        let (tunnel, id) = (session % self.tunnels.len(), session / self.tunnels.len());
        let seed = tunnel as u64 + id as u64;
        self.sent += bytes as u64;
        let tunnel = &mut self.tunnels[tunnel];
        let start = tunnel.sessions[id].sent;
        let end = start + bytes as u64;
        tunnel.sessions[id].sent = end;
        for at in (start..end).step_by(PAYLOAD) {
            let part = at..end.min(at + PAYLOAD as u64);
            let payload: Vec<u8> = part.map(|at| pattern(seed, at)).collect();
            tunnel.send(&server_tunnel(&data_header(id), &payload));
        }
    }

    fn run_until(&mut self, what: &str, is_so: impl Fn(&Crowd) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: not within {TIMEOUT:?}");
            self.turn(Instant::now() + Duration::from_millis(10));
        }
    }

    /// Answers pings, echoes bytes and compares the bytes that come back.
    pub fn run(&mut self, until: Instant) {
        while Instant::now() < until {
            self.turn(until);
        }
    }

    fn turn(&mut self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as _ };
        let mut events = std::mem::take(&mut self.events);
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)).unwrap();
        for event in events.drain(..) {
            let name = event.data.u64();
            let Some(local) = name.checked_sub(self.tunnels.len() as u64) else {
                let tunnel = &mut self.tunnels[name as usize];
                self.back += tunnel.receive(name);
                tunnel.flush();
                continue;
            };
            match name {
                LISTENER => self.accept_locals(),
                _ => self.locals[local as usize].echo(),
            }
        }
        self.events = events;
    }

    fn accept_locals(&mut self) {
        while let Ok((stream, _)) = self.service.accept() {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
            self.watch(&stream, (self.tunnels.len() + self.locals.len()) as u64);
            self.locals.push(Local { stream, unsent: Vec::new() });
        }
    }
}

impl Tunnel {
    fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend(bytes);
        self.flush();
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            let Some(length) = self.stream.write(&self.unsent) else { return };
            self.unsent.drain(..length);
        }
    }

    /// Reads and checks everything. Returns the number of payload bytes.
    fn receive(&mut self, number: u64) -> u64 {
        let mut chunk = [0; 16 * 1024];
        while let Some(length) = self.stream.read(&mut chunk) {
            self.received.extend(&chunk[..length]);
        }
        let (mut at, mut back) = (0, 0);
        while let Some(found) = parse_client(&self.received, at) {
            at = found.payload.end;
            let message = found.unmask(&mut self.received);
            match found.first {
                frame::BINARY => back += check(&mut self.sessions, number, message),
                frame::PING => self.unsent.extend(frame::server(frame::PONG, message)),
                first => panic!("tunnel {number}: a frame that begins with {first:#x}"),
            }
        }
        self.received.drain(..at);
        back
    }
}

/// Checks a tunnel frame. Returns the number of its payload bytes.
fn check(sessions: &mut [Echo], tunnel: u64, message: &[u8]) -> u64 {
    let (header, payload) = frame::parse_tunnel(message);
    let id = header["session_id"].as_str().and_then(|id| id.strip_prefix('s')?.parse().ok());
    let id: usize = id.expect("a session's id");
    let session = &mut sessions[id];
    match header["frame_type"].as_u64() {
        Some(1) => {
            let (code, text) = frame::status(payload);
            assert_eq!(code, 0, "tunnel {tunnel}: {text}");
            session.open = true;
            0
        }
        Some(4) => {
            let expected = (session.back..).map(|at| pattern(tunnel + id as u64, at));
            let same = payload.iter().copied().eq(expected.take(payload.len()));
            assert!(same, "tunnel {tunnel}, session {id}: other bytes than were sent");
            session.back += payload.len() as u64;
            assert!(session.back <= session.sent, "tunnel {tunnel}: more than was sent");
            payload.len() as u64
        }
        _ => panic!("tunnel {tunnel}: {header}"),
    }
}

/// The expected byte at a position of a session. Adjacent sessions and adjacent positions have
/// different bytes.
fn pattern(seed: u64, at: u64) -> u8 {
    (at.wrapping_mul(7) + at / 251 + seed * 31) as u8
}

impl Local {
    fn echo(&mut self) {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("the device has closed a connection to the echo"),
                Ok(length) => self.unsent.extend(&chunk[..length]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("{e}"),
            }
        }
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => panic!("{e}"),
            }
        }
    }
}
