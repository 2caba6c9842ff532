//! The devices of many tunnels, on one thread with one `epoll`: the library's device has a thread for each tunnel
//! and would cost more than the gateway that is measured. They connect again as the library does: at once after
//! a loss, and with its gaps after failed attempts. This file measures nothing but time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::frame::{self, SUBPROTOCOL};
use openssl::ssl::{ErrorCode, SslConnector, SslStream};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The library's settings, by default.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
const ATTEMPT: Duration = Duration::from_secs(15);
/// The library's gaps: four of 1 s, then they double after each five failures.
const GAP: Duration = Duration::from_secs(1);
const STEP: u32 = 5;
const MOST_DOUBLINGS: u32 = 6;
/// Gaps from 2 s on are up to a tenth longer.
const JITTER: f64 = 0.1;
/// Nothing takes this long unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(180);
/// Attempts that begin in one turn, so that answers are looked at meanwhile.
const BATCH: usize = 64;

/// A ping without payload, masked with zeros.
const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];

/// A tunnel, and its device's token.
pub struct Tunnel {
    pub id: String,
    pub token: String,
}

/// A stream that does not block.
enum Stream {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

enum State {
    /// Until the next attempt.
    Away,
    Connecting,
    /// Its request is sent.
    Asked,
    Open,
}

struct Device {
    tunnel: Tunnel,
    state: State,
    stream: Option<Stream>,
    /// Counts attempts: what an older one has planned is void.
    attempt: u32,
    failures: u32,
    answer: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Begin,
    GiveUp,
    Ping,
}

/// How all devices connected.
pub struct Storm {
    pub half: Duration,
    /// 99 of 100.
    pub most: Duration,
    pub all: Duration,
    pub failures: u64,
}

pub struct Crowd {
    epoll: OwnedFd,
    gateway: SocketAddr,
    connector: Option<SslConnector>,
    devices: Vec<Device>,
    plans: BinaryHeap<Reverse<(Instant, usize, u32, What)>>,
    open: usize,
    failures: u64,
    /// Whether devices ping.
    pings: bool,
}

impl Crowd {
    pub fn new(gateway: SocketAddr, tunnels: Vec<Tunnel>, connector: Option<SslConnector>) -> Self {
        let device = |tunnel| Device {
            tunnel,
            state: State::Away,
            stream: None,
            attempt: 0,
            failures: 0,
            answer: Vec::new(),
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let devices: Vec<Device> = tunnels.into_iter().map(device).collect();
        let now = Instant::now();
        let plans =
            (0..devices.len()).map(|number| Reverse((now, number, 0, What::Begin))).collect();
        Crowd { epoll, gateway, connector, devices, plans, open: 0, failures: 0, pings: false }
    }

    /// The devices that are connected.
    pub fn open(&self) -> usize {
        self.open
    }

    /// The attempts that have failed so far.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Runs until all devices are connected. Times are counted from `began`.
    pub fn connect_all(&mut self, began: Instant) -> Storm {
        let (before, count) = (self.failures, self.devices.len());
        let mut reached = |share: usize| {
            while self.open * 100 < count * share {
                assert!(began.elapsed() < TIMEOUT, "{} of {count} are open", self.open);
                self.turn(Instant::now() + Duration::from_millis(100));
            }
            began.elapsed()
        };
        let (half, most, all) = (reached(50), reached(99), reached(100));
        Storm { half, most, all, failures: self.failures - before }
    }

    /// Runs for some time, with or without pings.
    pub fn run(&mut self, until: Instant, pings: bool) {
        if pings && !self.pings {
            // Evenly spread, as those of devices that were started at any time.
            let now = Instant::now();
            for (number, device) in self.devices.iter().enumerate() {
                let share = number as f64 / self.devices.len() as f64;
                let at = now + PING_INTERVAL.mul_f64(share);
                self.plans.push(Reverse((at, number, device.attempt, What::Ping)));
            }
        }
        self.pings = pings;
        while Instant::now() < until {
            self.turn(until);
        }
    }

    fn turn(&mut self, until: Instant) {
        let now = Instant::now();
        for _ in 0..BATCH {
            match self.plans.peek() {
                Some(Reverse((at, ..))) if *at <= now => {}
                _ => break,
            }
            let Some(Reverse((_, number, attempt, what))) = self.plans.pop() else { break };
            if self.devices[number].attempt == attempt {
                self.carry_out(number, what, now);
            }
        }
        let next = self.plans.peek().map_or(until, |Reverse((at, ..))| (*at).min(until));
        let left = next.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as _ };
        let mut events = Vec::with_capacity(256);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => panic!("{e}"),
        }
        for event in events {
            self.go_on(event.data.u64() as usize);
        }
    }

    fn carry_out(&mut self, number: usize, what: What, now: Instant) {
        match (what, &self.devices[number].state) {
            (What::Begin, State::Away) => self.begin(number, now),
            (What::GiveUp, State::Connecting | State::Asked) => self.fail(number),
            (What::Ping, State::Open) if self.pings => {
                let device = &mut self.devices[number];
                // Six bytes always find room.
                if let Some(stream) = &mut device.stream {
                    let _ = stream.write(&PING);
                }
                let next = now + PING_INTERVAL;
                self.plans.push(Reverse((next, number, device.attempt, What::Ping)));
            }
            _ => {}
        }
    }

    fn begin(&mut self, number: usize, now: Instant) {
        let device = &mut self.devices[number];
        device.attempt += 1;
        device.answer.clear();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        // Each device has an address of its own, as in the field.
        let [_, high, middle, low] = (number as u32 + 256).to_be_bytes();
        let own = Ipv4Addr::new(127, high + 1, middle, low);
        rustix::net::bind(&socket, &SocketAddr::from((own, 0))).unwrap();
        let connected = match rustix::net::connect(&socket, &self.gateway) {
            Ok(()) | Err(Errno::INPROGRESS) => true,
            Err(_) => false,
        };
        let tcp = TcpStream::from(socket);
        tcp.set_nodelay(true).unwrap();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &tcp, EventData::new_u64(number as u64), flags).unwrap();
        device.stream = Some(match &self.connector {
            None => Stream::Plain(tcp),
            Some(connector) => {
                let host = self.gateway.ip().to_string();
                let ssl = connector.configure().unwrap().into_ssl(&host).unwrap();
                Stream::Tls(Box::new(SslStream::new(ssl, tcp).unwrap()))
            }
        });
        device.state = State::Connecting;
        let attempt = device.attempt;
        self.plans.push(Reverse((now + ATTEMPT, number, attempt, What::GiveUp)));
        if !connected {
            self.fail(number);
        }
    }

    /// The attempt has failed.
    fn fail(&mut self, number: usize) {
        self.failures += 1;
        let device = &mut self.devices[number];
        device.failures += 1;
        let doublings = (device.failures / STEP).min(MOST_DOUBLINGS);
        let jitter = if doublings > 0 { JITTER * rand::random::<f64>() } else { 0.0 };
        let gap = (GAP * (1 << doublings)).mul_f64(1.0 + jitter);
        self.leave(number, gap);
    }

    fn leave(&mut self, number: usize, gap: Duration) {
        let device = &mut self.devices[number];
        (device.state, device.stream) = (State::Away, None);
        device.attempt += 1;
        self.plans.push(Reverse((Instant::now() + gap, number, device.attempt, What::Begin)));
    }

    /// Something has happened to a device's connection.
    fn go_on(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let Some(stream) = &mut device.stream else { return };
        if let State::Connecting = device.state {
            match stream.is_established() {
                None => return,
                Some(false) => return self.fail(number),
                Some(true) => {}
            }
            let request = format!(
                "GET /tunnel/{}/dest HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\ntunnel-access-token: {}\r\n\r\n",
                device.tunnel.id, device.tunnel.token,
            );
            // A short request always finds room in an empty buffer.
            if stream.write(request.as_bytes()).is_err() {
                return self.fail(number);
            }
            device.state = State::Asked;
        }
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) if matches!(device.state, State::Asked) => {
                    device.answer.extend(&chunk[..length]);
                    // A refusal may have a body, and the connection may stay open behind it.
                    if device.answer.windows(4).any(|part| part == b"\r\n\r\n") {
                        if !device.answer.starts_with(b"HTTP/1.1 101 ") {
                            return self.fail(number);
                        }
                        device.answer = Vec::new();
                        (device.state, device.failures) = (State::Open, 0);
                        self.open += 1;
                    }
                }
                Ok(length) => {
                    // A pong to a ping, or a ping.
                    if chunk[..length] == frame::server(frame::PING, &[]) {
                        let _ = stream.write(&[0x8a, 0x80, 0, 0, 0, 0]);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        match device.state {
            State::Open => {
                self.open -= 1;
                self.leave(number, Duration::ZERO);
            }
            _ => self.fail(number),
        }
    }
}

impl Stream {
    /// `None`: not yet.
    fn is_established(&mut self) -> Option<bool> {
        match self {
            Stream::Plain(tcp) => match (tcp.take_error(), tcp.peer_addr()) {
                (Ok(None), Ok(_)) => Some(true),
                (Ok(None), Err(_)) => None,
                _ => Some(false),
            },
            Stream::Tls(stream) => {
                if let Ok(Some(_)) = stream.get_ref().take_error() {
                    return Some(false);
                }
                stream.get_ref().peer_addr().ok()?;
                match Pin::new(&mut **stream).get_mut().connect() {
                    Ok(()) => Some(true),
                    Err(e) if matches!(e.code(), ErrorCode::WANT_READ | ErrorCode::WANT_WRITE) => {
                        None
                    }
                    Err(_) => Some(false),
                }
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
