//! The far end: the cloud's side of the connections and, behind it, the one who reads and
//! writes. A gateway that is no bottleneck: frames are built beforehand and written many at a
//! time, and of what arrives only the lengths are looked at.
#![allow(dead_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod, SslStream};
use openssl::x509::X509;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use tungstenite::handshake::derive_accept_key;

/// TLS 1.3; with OpenSSL at both ends that is AES-256-GCM.
pub fn acceptor(certificate: &[u8], key: &[u8]) -> SslAcceptor {
    let certificate = X509::from_pem(certificate).unwrap();
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor.set_certificate(&certificate).unwrap();
    acceptor.set_private_key(&PKey::private_key_from_pem(key).unwrap()).unwrap();
    acceptor.build()
}

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between an echo and the next keystroke.
const BETWEEN_KEYS: Duration = Duration::from_millis(2);
/// What this end queues in its kernel when delays are measured.
const KEYED_QUEUE: usize = 256 * 1024;
/// Payload of a data frame.
const PAYLOAD: usize = 4096;
/// Bytes that one write offers, about.
const BATCH: usize = 256 * 1024;

/// Plain or secured, non-blocking.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

impl Stream {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(stream) => stream.get_ref(),
        }
    }

    /// `None`: not now.
    pub fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        now(match self {
            Stream::Plain(tcp) => tcp.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        })
    }

    /// `None`: not now.
    pub fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        now(match self {
            Stream::Plain(tcp) => tcp.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        })
    }

    fn poll_fd(&self, read: bool, write: bool) -> PollFd<'_> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, read);
        flags.set(PollFlags::OUT, write);
        PollFd::new(self.tcp(), flags)
    }
}

fn now(result: io::Result<usize>) -> Option<usize> {
    match result {
        Ok(0) => panic!("the device's end closed the connection"),
        Ok(length) => Some(length),
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        Err(e) => panic!("{e}"),
    }
}

fn wait(fds: &mut [PollFd<'_>], until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos() as _ };
    poll(fds, Some(&timeout)).unwrap() > 0
}

/// What a connection carries.
enum Framing {
    Raw,
    Echo,
    Tunnel { sessions: usize, frame_id: u64 },
}

/// One connection from the device's end.
pub struct Link {
    stream: Stream,
    framing: Framing,
    received: Vec<u8>,
    end: usize,
    /// What is written again and again, and how far it is.
    batch: Vec<u8>,
    written: usize,
}

impl Link {
    fn accept(listener: &TcpListener, tls: Option<&SslAcceptor>) -> Stream {
        let comes = PollFd::new(listener, PollFlags::IN);
        assert!(wait(&mut [comes], Instant::now() + PATIENCE), "nobody connects");
        let (tcp, _) = listener.accept().unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let stream = match tls {
            None => Stream::Plain(tcp),
            Some(acceptor) => Stream::Tls(Box::new(acceptor.accept(tcp).unwrap())),
        };
        stream.tcp().set_nonblocking(true).unwrap();
        stream
    }

    fn new(stream: Stream, framing: Framing) -> Self {
        let received = vec![0; 512 * 1024];
        Link { stream, framing, received, end: 0, batch: Vec::new(), written: 0 }
    }

    /// A raw relay's connection.
    pub fn raw(listener: &TcpListener, tls: Option<&SslAcceptor>) -> Self {
        Link::new(Link::accept(listener, tls), Framing::Raw)
    }

    /// A device's tunnel, its WebSocket open.
    pub fn tunnel(listener: &TcpListener, tls: Option<&SslAcceptor>) -> Self {
        let framing = Framing::Tunnel { sessions: 0, frame_id: 0 };
        Link::web_socket(listener, tls, framing)
    }

    /// A bare WebSocket that gives back what comes.
    pub fn echo(listener: &TcpListener, tls: Option<&SslAcceptor>) -> Self {
        Link::web_socket(listener, tls, Framing::Echo)
    }

    fn web_socket(listener: &TcpListener, tls: Option<&SslAcceptor>, framing: Framing) -> Self {
        let mut link = Link::new(Link::accept(listener, tls), framing);
        let end = |bytes: &[u8]| bytes.windows(4).position(|part| part == b"\r\n\r\n");
        while end(&link.received[..link.end]).is_none() {
            link.fill(Instant::now() + PATIENCE);
        }
        let head = String::from_utf8_lossy(&link.received[..link.end]).into_owned();
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\
             Sec-WebSocket-Protocol: aliyun.iot.securetunnel-v1.1\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        link.end = 0;
        link.send(answer.as_bytes());
        link
    }

    /// What is left when all else is done by others.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Opens one more session and tells its service what to do; how long the opening took.
    pub fn open(&mut self, service: &str, what: u8) -> Duration {
        let Framing::Tunnel { sessions, frame_id } = &mut self.framing else {
            self.send(&[what]);
            return Duration::ZERO;
        };
        *sessions += 1;
        *frame_id += 1;
        let id = *sessions;
        let header = format!(
            r#"{{"frame_type":2,"frame_id":{frame_id},"session_id":"s{id}","service_type":"{service}"}}"#
        );
        // A read that waits costs one system call, not three.
        self.stream.tcp().set_nonblocking(false).unwrap();
        let began = Instant::now();
        self.send(&message(&header, &[]));
        while self.take_message().is_none() {
            self.fill(began + PATIENCE);
        }
        let took = began.elapsed();
        self.stream.tcp().set_nonblocking(true).unwrap();
        self.send(&message(&data_header(id), &[what]));
        took
    }

    /// Ends all sessions of a tunnel.
    pub fn release(&mut self) {
        let Framing::Tunnel { sessions, .. } = &mut self.framing else { return };
        for id in 1..=std::mem::take(sessions) {
            let header = format!(r#"{{"frame_type":3,"session_id":"s{id}"}}"#);
            self.send(&message(&header, br#"{"code":0,"msg":"done"}"#));
        }
    }

    /// From now on [`Far::run`] writes data for all open sessions, evenly.
    pub fn load(&mut self) {
        self.written = 0;
        self.batch.clear();
        while self.batch.len() < BATCH {
            match &self.framing {
                Framing::Raw => self.batch.extend([7; PAYLOAD]),
                Framing::Echo => self.batch.extend(frame(&[&[7; PAYLOAD]])),
                Framing::Tunnel { sessions, .. } => {
                    for id in 1..=*sessions {
                        self.batch.extend(message(&data_header(id), &[7; PAYLOAD]));
                    }
                }
            }
        }
    }

    /// Writes all of it; reads nothing meanwhile.
    fn send(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Some(length) => bytes = &bytes[length..],
                None => {
                    let fds = &mut [self.stream.poll_fd(false, true)];
                    assert!(wait(fds, Instant::now() + PATIENCE), "the device reads nothing");
                }
            }
        }
    }

    /// Reads what there is, waiting for it.
    fn fill(&mut self, until: Instant) {
        loop {
            if let Some(length) = self.stream.read(&mut self.received[self.end..]) {
                self.end += length;
                return;
            }
            let fds = &mut [self.stream.poll_fd(true, false)];
            assert!(wait(fds, until), "the device sends nothing");
        }
    }

    /// Takes the next binary message off the received bytes: its payload's length.
    fn take_message(&mut self) -> Option<usize> {
        let (length, used) = loop {
            let found = parse(&self.received[..self.end])?;
            if found.opcode == 2 {
                break (found.payload, found.used);
            }
            self.received.copy_within(found.used..self.end, 0);
            self.end -= found.used;
        };
        self.received.copy_within(used..self.end, 0);
        self.end -= used;
        Some(length)
    }

    /// Takes all whole messages: how many bytes of sessions they hold.
    fn take_all(&mut self) -> usize {
        if matches!(self.framing, Framing::Raw) {
            return std::mem::take(&mut self.end);
        }
        let (mut at, mut sum) = (0, 0);
        while let Some(found) = parse(&self.received[at..self.end]) {
            sum += match self.framing {
                _ if found.opcode != 2 => 0,
                Framing::Echo => found.length,
                _ => found.payload,
            };
            at += found.used;
        }
        self.received.copy_within(at..self.end, 0);
        self.end -= at;
        sum
    }

    /// One byte there and back, `count` times.
    pub fn round_trips(&mut self, count: usize) -> Vec<Duration> {
        let ping = match self.framing {
            Framing::Raw | Framing::Echo => vec![7],
            Framing::Tunnel { sessions, .. } => message(&data_header(sessions), &[7]),
        };
        let mut times = Vec::with_capacity(count);
        self.stream.tcp().set_nonblocking(false).unwrap();
        for _ in 0..count {
            let began = Instant::now();
            self.send(&ping);
            while self.take_all() == 0 {
                self.fill(began + PATIENCE);
            }
            times.push(began.elapsed());
        }
        self.stream.tcp().set_nonblocking(true).unwrap();
        times
    }
}

impl Link {
    /// Round trips of one byte in the last session while all others are busy: downwards when
    /// they are `loaded`, upwards when their services flood. One after the other, a while apart.
    pub fn keystrokes(&mut self, count: usize, loaded: bool) -> Vec<Duration> {
        let Framing::Tunnel { sessions, .. } = self.framing else { return Vec::new() };
        // What stands in this end's own kernel, by default 4 MB, is not the device's delay.
        rustix::net::sockopt::set_socket_send_buffer_size(self.stream.tcp(), KEYED_QUEUE).unwrap();
        let key = message(&data_header(sessions), &[7]);
        let mut load = Vec::new();
        if loaded {
            (1..sessions).for_each(|id| load.extend(message(&data_header(id), &[7; PAYLOAD])));
        }
        let (mut out, mut written) = (Vec::new(), 0);
        let (mut pressed, mut next) = (None, Instant::now());
        let mut times = Vec::with_capacity(count);
        while times.len() < count {
            if written == out.len() {
                (out, written) = (Vec::new(), 0);
                if pressed.is_none() && Instant::now() >= next {
                    pressed = Some(Instant::now());
                    out.extend(&key);
                }
                out.extend(&load);
            }
            let mut moved = false;
            if written < out.len() {
                if let Some(length) = self.stream.write(&out[written..]) {
                    (written, moved) = (written + length, true);
                }
            }
            if let Some(length) = self.stream.read(&mut self.received[self.end..]) {
                (self.end, moved) = (self.end + length, true);
                if self.take_echo(sessions) {
                    let began = pressed.take().expect("an echo of what was sent");
                    times.push(began.elapsed());
                    next = Instant::now() + BETWEEN_KEYS;
                }
            }
            let hangs = pressed.is_some_and(|at| at.elapsed() > PATIENCE);
            assert!(!hangs, "a keystroke has no echo");
            if !moved {
                let until = if pressed.is_some() { Instant::now() + PATIENCE } else { next };
                wait(&mut [self.stream.poll_fd(true, written < out.len())], until);
            }
        }
        self.send(&out[written..]);
        times
    }

    /// Takes all whole messages: whether one is a byte of that session.
    fn take_echo(&mut self, session: usize) -> bool {
        let (mut at, mut is_there) = (0, false);
        let id = format!("\"s{session}\"");
        while let Some(found) = parse(&self.received[at..self.end]) {
            if found.payload == 1 {
                let (mask, text) = self.received[at + found.used - found.length - 4..].split_at(4);
                let text = text[..found.length].iter().zip(mask.iter().cycle());
                let text: Vec<u8> = text.map(|(byte, mask)| byte ^ mask).collect();
                is_there |= String::from_utf8_lossy(&text).contains(&id);
            }
            at += found.used;
        }
        self.received.copy_within(at..self.end, 0);
        self.end -= at;
        is_there
    }
}

/// Reads and writes all links until then; the bytes of sessions that were received.
pub fn run(links: &mut [Link], until: Instant) -> u64 {
    let mut received = 0;
    while Instant::now() < until {
        let mut moved = false;
        for link in links.iter_mut() {
            if !link.batch.is_empty() {
                if let Some(length) = link.stream.write(&link.batch[link.written..]) {
                    link.written = (link.written + length) % link.batch.len();
                    moved = true;
                }
            }
            if let Some(length) = link.stream.read(&mut link.received[link.end..]) {
                link.end += length;
                received += link.take_all() as u64;
                moved = true;
            }
        }
        if !moved {
            let mut fds: Vec<_> = links
                .iter()
                .map(|link| link.stream.poll_fd(true, !link.batch.is_empty()))
                .collect();
            wait(&mut fds, until);
        }
    }
    received
}

/// A client's WebSocket frame.
struct Found {
    opcode: u8,
    /// Of its own payload, and of the payload of the tunnel frame in that.
    length: usize,
    payload: usize,
    used: usize,
}

/// The frame at the front, when it is whole.
fn parse(bytes: &[u8]) -> Option<Found> {
    let [first, second, rest @ ..] = bytes else { return None };
    let (length, head) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), 4),
        127 => panic!("a frame of 64 KiB or more"),
        length => (usize::from(length), 2),
    };
    let used = head + 4 + length;
    let (mask, message) = bytes.get(head..used)?.split_at(4);
    let payload = match message {
        [high, low, ..] => {
            let header = usize::from(u16::from_be_bytes([high ^ mask[0], low ^ mask[1]]));
            length.saturating_sub(2 + header)
        }
        _ => 0,
    };
    Some(Found { opcode: first & 0x0f, length, payload, used })
}

pub fn data_header(session: usize) -> String {
    format!(r#"{{"frame_type":4,"frame_id":1234567,"session_id":"s{session}"}}"#)
}

/// A server's WebSocket frame with a tunnel frame in it.
pub fn message(header: &str, payload: &[u8]) -> Vec<u8> {
    let length = header.len() as u16;
    frame(&[&length.to_be_bytes(), header.as_bytes(), payload])
}

fn frame(parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![0x82];
    if length < 126 {
        bytes.push(length as u8);
    } else {
        bytes.push(126);
        bytes.extend((length as u16).to_be_bytes());
    }
    bytes.extend(parts.concat());
    bytes
}
