//! Both ends of many tunnels of a gateway: the devices, which echo, and the access sides, which send.
//! One thread with one `epoll`, so that the gateway is what is measured. Each access side counts
//! what comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::frame::{self, SUBPROTOCOL};
use aiot_tunnel_testkit::procfs;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::Timespec;
use serde_json::json;

/// The number of sessions of a tunnel.
const SESSIONS: usize = 2;
/// Under load, each session carries one message in each period: 5 KB/s to the device and 5 KB/s
/// back.
const MESSAGE: usize = 1000;
const PERIOD: Duration = Duration::from_millis(200);
/// Time between a change and the idle window behind it.
const SETTLE: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Device,
    Access,
}

/// A connection to the gateway.
struct End {
    side: Side,
    stream: TcpStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// The ids of the open sessions.
    sessions: Vec<String>,
    /// Payload bytes that came back.
    back: u64,
}

struct Crowd {
    epoll: OwnedFd,
    port: u16,
    ends: Vec<End>,
}

/// What a process uses in each second of a window.
fn window(process: u32, meanwhile: impl FnOnce()) -> f64 {
    let (before, began) = (procfs::cpu(process), Instant::now());
    meanwhile();
    (procfs::cpu(process) - before) / began.elapsed().as_secs_f64()
}

/// Measures the gateway at `port`, which serves the tunnels `t0`, `t1`, ... with the tokens
/// `device` and `access` followed by the tunnel's name.
pub fn measure(
    port: u16,
    tunnels: usize,
    idle: Duration,
    loaded: Duration,
    gateway: u32,
) -> serde_json::Value {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let mut crowd = Crowd { epoll, port, ends: Vec::new() };
    let private = || procfs::memory(gateway).1 as f64;
    let empty = private();
    (0..tunnels).for_each(|number| crowd.connect(Side::Device, number));
    crowd.run(Instant::now() + SETTLE);
    let idle_share = window(gateway, || crowd.run(Instant::now() + idle));
    let of_tunnel = (private() - empty) / tunnels as f64;

    (0..tunnels).for_each(|number| crowd.connect(Side::Access, number));
    for end in &mut crowd.ends[tunnels..] {
        for id in 0..SESSIONS {
            let id = id + 1;
            let header = format!(r#"{{"frame_type":2,"frame_id":{id},"service_type":"echo"}}"#);
            end.send(&frame::tunnel(&header, &[]));
        }
    }
    let all_open = |crowd: &Crowd| crowd.ends.iter().all(|end| end.sessions.len() == SESSIONS);
    crowd.run_until("all sessions", all_open);
    crowd.run(Instant::now() + SETTLE);
    let of_sessions = (private() - empty) / tunnels as f64;
    let (mut sent, mut back, mut own) = (0, 0, 0.0);
    let me = std::process::id();
    let share = window(gateway, || {
        own = window(me, || (sent, back) = crowd.load(tunnels, loaded));
    });
    crowd.run_until("all bytes", |crowd| crowd.back() == sent);
    json!({
        "idle": idle_share * 100.0,
        "loaded": share * 100.0,
        "KiB a tunnel": of_tunnel,
        "KiB with sessions": of_sessions,
        "in time": back as f64 / sent as f64,
        "own": own * 100.0,
    })
}

impl Crowd {
    fn connect(&mut self, side: Side, tunnel: usize) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let (path, token) = match side {
            Side::Device => ("dest", "device"),
            Side::Access => ("source", "access"),
        };
        let request = format!(
            "GET /tunnel/t{tunnel}/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\
             tunnel-access-token: {token}-t{tunnel}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        stream.set_nonblocking(true).unwrap();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        let name = EventData::new_u64(self.ends.len() as u64);
        epoll::add(&self.epoll, &stream, name, flags).unwrap();
        let (received, unsent, sessions) = Default::default();
        self.ends.push(End { side, stream, received, unsent, sessions, back: 0 });
    }

    fn back(&self) -> u64 {
        self.ends.iter().map(|end| if end.side == Side::Access { end.back } else { 0 }).sum()
    }

    /// Sends a message through each session in each period, spread evenly over the period. Returns
    /// the bytes that were sent, and those that are back at the end.
    fn load(&mut self, tunnels: usize, time: Duration) -> (u64, u64) {
        let (began, gap) = (Instant::now(), PERIOD / (tunnels * SESSIONS) as u32);
        let mut sent = 0;
        for n in 0.. {
            let due = gap * n;
            if due >= time {
                break;
            }
            self.run(began + due);
            let session = n as usize % (tunnels * SESSIONS);
            let end = &mut self.ends[tunnels + session % tunnels];
            let id = &end.sessions[session / tunnels];
            let header = format!(r#"{{"frame_type":4,"frame_id":{},"session_id":"{id}"}}"#, n + 10);
            end.send(&frame::tunnel(&header, &[7; MESSAGE]));
            sent += MESSAGE as u64;
        }
        self.run(began + time);
        (sent, self.back())
    }

    fn run_until(&mut self, what: &str, is_so: impl Fn(&Crowd) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: not within {TIMEOUT:?}");
            self.turn(Instant::now() + Duration::from_millis(10));
        }
    }

    fn run(&mut self, until: Instant) {
        while Instant::now() < until {
            self.turn(until);
        }
    }

    fn turn(&mut self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as _ };
        let mut events = Vec::with_capacity(256);
        epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)).unwrap();
        for event in events {
            let end = &mut self.ends[event.data.u64() as usize];
            end.receive();
            end.flush();
        }
    }
}

impl End {
    /// Sends a tunnel frame. The mask of a client's frame may be any; this one changes nothing.
    fn send(&mut self, message: &[u8]) {
        self.queue(frame::BINARY, message);
        self.flush();
    }

    fn queue(&mut self, first: u8, payload: &[u8]) {
        let mut bytes = frame::server(first, payload);
        let head = bytes.len() - payload.len();
        bytes[1] |= 0x80;
        self.unsent.extend(&bytes[..head]);
        self.unsent.extend([0; 4]);
        self.unsent.extend(payload);
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => panic!("{e}"),
            }
        }
    }

    fn receive(&mut self) {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => panic!("the gateway closed a connection"),
                Ok(length) => self.received.extend(&chunk[..length]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("{e}"),
            }
        }
        let received = std::mem::take(&mut self.received);
        let mut rest = &received[..];
        while let Some((first, payload, behind)) = parse_server(rest) {
            rest = behind;
            match first {
                frame::BINARY => self.take(payload),
                frame::PING => self.queue(frame::PONG, payload),
                first => panic!("a frame that begins with {first:#x}"),
            }
        }
        self.received = rest.to_vec();
    }

    fn take(&mut self, message: &[u8]) {
        let length = usize::from(u16::from_be_bytes([message[0], message[1]]));
        let is_data = message[2..2 + length].windows(14).any(|part| part == br#""frame_type":4"#);
        match (self.side, is_data) {
            (Side::Device, true) => self.queue(frame::BINARY, message),
            (Side::Access, true) => self.back += (message.len() - 2 - length) as u64,
            (side, false) => {
                let (header, payload) = frame::parse_tunnel(message);
                let id = header["session_id"].as_str().unwrap_or_default();
                match side {
                    Side::Device => {
                        let answer = json!({
                            "frame_type": 1,
                            "frame_id": header["frame_id"],
                            "session_id": id,
                            "service_type": header["service_type"],
                        });
                        let status = br#"{"code":0,"msg":"ok"}"#;
                        self.queue(frame::BINARY, &frame::tunnel(&answer.to_string(), status));
                    }
                    Side::Access => {
                        let (code, text) = frame::status(payload);
                        assert_eq!(code, 0, "{text}");
                    }
                }
                self.sessions.push(id.to_owned());
            }
        }
    }
}

/// The first byte and the payload of a frame without a mask, and the bytes behind it. `None` while it
/// is not complete.
fn parse_server(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [first, second, rest @ ..] = bytes else { return None };
    let (length, rest) = match second {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            (u64::from_be_bytes(*length).try_into().ok()?, rest)
        }
        length => (usize::from(*length), rest),
    };
    let (payload, behind) = rest.split_at_checked(length)?;
    Some((*first, payload, behind))
}
