//! The far end of a benchmark's tunnels: the cloud, and the reader and writer behind it. A gateway
//! that is no bottleneck: it builds frames in advance, writes many of them at a time, and looks at
//! the lengths alone of what it receives. Checks of contents do not belong here.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use openssl::ssl::{SslAcceptor, SslStream};
use rustix::event::PollFd;
use tungstenite::handshake::derive_accept_key;

use crate::frame::{self, parse_client, server_tunnel};
use crate::sockets::{interest, wait};

/// Nothing here takes this long unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Between an echo and the next keystroke.
const BETWEEN_KEYS: Duration = Duration::from_millis(2);
/// The send buffer of this end when delays are measured.
const KEYED_BUFFER: usize = 256 * 1024;
/// Payload of a data frame.
const PAYLOAD: usize = 4096;
/// About how many bytes one write offers.
const BATCH: usize = 256 * 1024;

/// A connection, plain or TLS, that does not block.
pub enum Transport {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

impl Transport {
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(stream) => stream.get_ref(),
        }
    }

    /// `None` if it would have to wait.
    pub fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        now(match self {
            Transport::Plain(tcp) => tcp.read(buffer),
            Transport::Tls(stream) => stream.read(buffer),
        })
    }

    /// `None` if it would have to wait.
    pub fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        now(match self {
            Transport::Plain(tcp) => tcp.write(bytes),
            Transport::Tls(stream) => stream.write(bytes),
        })
    }

    fn poll_fd(&self, read: bool, write: bool) -> PollFd<'_> {
        interest(self.tcp(), read, write)
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

/// How a connection carries its bytes.
enum Framing {
    Raw,
    Echo,
    Tunnel { sessions: usize, frame_id: u64 },
}

/// One connection from the device's side.
pub struct Connection {
    stream: Transport,
    framing: Framing,
    received: Vec<u8>,
    end: usize,
    /// Bytes that are written again and again, and how far this has come.
    batch: Vec<u8>,
    written: usize,
}

impl Connection {
    fn accept(listener: &TcpListener, tls: Option<&SslAcceptor>) -> Transport {
        let tcp = crate::wait::accept(listener);
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        let stream = match tls {
            None => Transport::Plain(tcp),
            Some(acceptor) => Transport::Tls(Box::new(acceptor.accept(tcp).unwrap())),
        };
        stream.tcp().set_nonblocking(true).unwrap();
        stream
    }

    fn new(stream: Transport, framing: Framing) -> Self {
        let received = vec![0; 512 * 1024];
        Connection { stream, framing, received, end: 0, batch: Vec::new(), written: 0 }
    }

    /// The connection of a raw relay.
    pub fn raw(listener: &TcpListener, tls: Option<&SslAcceptor>) -> Self {
        Connection::new(Connection::accept(listener, tls), Framing::Raw)
    }

    /// The open tunnel of a device.
    pub fn tunnel(listener: &TcpListener, tls: Option<&SslAcceptor>) -> Self {
        let framing = Framing::Tunnel { sessions: 0, frame_id: 0 };
        Connection::web_socket(listener, tls, framing)
    }

    /// The open WebSocket of an echo, without tunnel frames.
    pub fn echo(listener: &TcpListener, tls: Option<&SslAcceptor>) -> Self {
        Connection::web_socket(listener, tls, Framing::Echo)
    }

    fn web_socket(listener: &TcpListener, tls: Option<&SslAcceptor>, framing: Framing) -> Self {
        let mut connection = Connection::new(Connection::accept(listener, tls), framing);
        let end = |bytes: &[u8]| bytes.windows(4).position(|part| part == b"\r\n\r\n");
        while end(&connection.received[..connection.end]).is_none() {
            connection.fill(Instant::now() + TIMEOUT);
        }
        let head = String::from_utf8_lossy(&connection.received[..connection.end]).into_owned();
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\
             Sec-WebSocket-Protocol: {}\r\n\r\n",
            derive_accept_key(key.as_bytes()),
            frame::SUBPROTOCOL,
        );
        connection.end = 0;
        connection.send(answer.as_bytes());
        connection
    }

    /// Gives the connection to another reader and writer.
    pub fn into_stream(self) -> Transport {
        self.stream
    }

    /// Opens one more session and tells its service what to do; the time that the opening took.
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
        // A blocking read costs one system call, not three.
        self.stream.tcp().set_nonblocking(false).unwrap();
        let began = Instant::now();
        self.send(&server_tunnel(&header, &[]));
        while self.take_message().is_none() {
            self.fill(began + TIMEOUT);
        }
        let took = began.elapsed();
        self.stream.tcp().set_nonblocking(true).unwrap();
        self.send(&server_tunnel(&data_header(id), &[what]));
        took
    }

    /// Ends all sessions of a tunnel.
    pub fn release(&mut self) {
        let Framing::Tunnel { sessions, .. } = &mut self.framing else { return };
        for id in 1..=std::mem::take(sessions) {
            let header = format!(r#"{{"frame_type":3,"session_id":"s{id}"}}"#);
            self.send(&server_tunnel(&header, br#"{"code":0,"msg":"done"}"#));
        }
    }

    /// Makes [`run`] write data for all open sessions, evenly.
    pub fn load(&mut self) {
        self.written = 0;
        self.batch.clear();
        while self.batch.len() < BATCH {
            match &self.framing {
                Framing::Raw => self.batch.extend([7; PAYLOAD]),
                Framing::Echo => self.batch.extend(frame::server(frame::BINARY, &[7; PAYLOAD])),
                Framing::Tunnel { sessions, .. } => {
                    for id in 1..=*sessions {
                        self.batch.extend(server_tunnel(&data_header(id), &[7; PAYLOAD]));
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
                    assert!(wait(fds, deadline()), "the device reads nothing");
                }
            }
        }
    }

    /// Waits for bytes and reads them.
    fn fill(&mut self, until: Instant) {
        loop {
            if let Some(length) = self.stream.read(&mut self.received[self.end..]) {
                self.end += length;
                return;
            }
            let fds = &mut [self.stream.poll_fd(true, false)];
            assert!(wait(fds, Some(until)), "the device sends nothing");
        }
    }

    /// Removes the next binary message from the received bytes; its payload's length.
    fn take_message(&mut self) -> Option<usize> {
        loop {
            let found = parse_client(&self.received[..self.end], 0)?;
            let payload = found.tunnel_payload(&self.received);
            self.remove(found.payload.end);
            if found.is_binary() {
                return Some(payload);
            }
        }
    }

    /// Removes all complete messages; how many bytes of sessions they hold.
    fn take_all(&mut self) -> usize {
        if matches!(self.framing, Framing::Raw) {
            return std::mem::take(&mut self.end);
        }
        let (mut at, mut sum) = (0, 0);
        while let Some(found) = parse_client(&self.received[..self.end], at) {
            sum += match self.framing {
                _ if !found.is_binary() => 0,
                Framing::Echo => found.payload.len(),
                _ => found.tunnel_payload(&self.received),
            };
            at = found.payload.end;
        }
        self.remove(at);
        sum
    }

    /// Removes so many received bytes.
    fn remove(&mut self, length: usize) {
        self.received.copy_within(length..self.end, 0);
        self.end -= length;
    }

    /// The times of `count` round trips of one byte.
    pub fn round_trips(&mut self, count: usize) -> Vec<Duration> {
        let ping = match self.framing {
            Framing::Raw | Framing::Echo => vec![7],
            Framing::Tunnel { sessions, .. } => server_tunnel(&data_header(sessions), &[7]),
        };
        let mut times = Vec::with_capacity(count);
        self.stream.tcp().set_nonblocking(false).unwrap();
        for _ in 0..count {
            let began = Instant::now();
            self.send(&ping);
            while self.take_all() == 0 {
                self.fill(began + TIMEOUT);
            }
            times.push(began.elapsed());
        }
        self.stream.tcp().set_nonblocking(true).unwrap();
        times
    }
}

impl Connection {
    /// The times of round trips of one byte in the last session, a while apart, while all other
    /// sessions are busy: to the device if they are `loaded`, from it if their services flood.
    pub fn keystrokes(&mut self, count: usize, loaded: bool) -> Vec<Duration> {
        let Framing::Tunnel { sessions, .. } = self.framing else { return Vec::new() };
        // Bytes in this end's own send buffer, by default 4 MB, are no delay of the device.
        rustix::net::sockopt::set_socket_send_buffer_size(self.stream.tcp(), KEYED_BUFFER).unwrap();
        let key = server_tunnel(&data_header(sessions), &[7]);
        let mut load = Vec::new();
        if loaded {
            (1..sessions)
                .for_each(|id| load.extend(server_tunnel(&data_header(id), &[7; PAYLOAD])));
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
            let hangs = pressed.is_some_and(|at| at.elapsed() > TIMEOUT);
            assert!(!hangs, "a keystroke has no echo");
            if !moved {
                let until = if pressed.is_some() { deadline() } else { Some(next) };
                wait(&mut [self.stream.poll_fd(true, written < out.len())], until);
            }
        }
        self.send(&out[written..]);
        times
    }

    /// Removes all complete messages; whether one of them is a byte of this session.
    fn take_echo(&mut self, session: usize) -> bool {
        let (mut at, mut is_there) = (0, false);
        let id = format!("\"s{session}\"");
        while let Some(found) = parse_client(&self.received[..self.end], at) {
            if found.tunnel_payload(&self.received) == 1 {
                let message = found.unmask(&mut self.received);
                is_there |= String::from_utf8_lossy(message).contains(&id);
            }
            at = found.payload.end;
        }
        self.remove(at);
        is_there
    }
}

/// Reads and writes all connections until a time; the bytes of sessions that were received.
pub fn run(connections: &mut [Connection], until: Instant) -> u64 {
    let mut received = 0;
    while Instant::now() < until {
        let mut moved = false;
        for connection in connections.iter_mut() {
            if !connection.batch.is_empty() {
                if let Some(length) =
                    connection.stream.write(&connection.batch[connection.written..])
                {
                    connection.written = (connection.written + length) % connection.batch.len();
                    moved = true;
                }
            }
            if let Some(length) = connection.stream.read(&mut connection.received[connection.end..])
            {
                connection.end += length;
                received += connection.take_all() as u64;
                moved = true;
            }
        }
        if !moved {
            let mut fds: Vec<_> = connections
                .iter()
                .map(|connection| connection.stream.poll_fd(true, !connection.batch.is_empty()))
                .collect();
            wait(&mut fds, Some(until));
        }
    }
    received
}

fn deadline() -> Option<Instant> {
    Some(Instant::now() + TIMEOUT)
}

/// The header of a data frame of the `session`th session.
pub fn data_header(session: usize) -> String {
    format!(r#"{{"frame_type":4,"frame_id":1234567,"session_id":"s{session}"}}"#)
}
