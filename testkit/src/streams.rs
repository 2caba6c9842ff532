//! Both ends of a stream, as the programs at its ends see them: bytes that can be checked at any
//! position, and whether the end was an orderly one or a reset. What lies between the two ends is
//! the test's affair.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::{Port, Service};

use crate::random;
use crate::wait::{self, TIMEOUT};

/// How the program at one end of a stream sees it end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// An end of file: the program takes what it has for the whole.
    Orderly,
    /// ECONNRESET: the program knows that something is missing.
    Reset,
}

impl End {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset => End::Reset,
            // A write after the other end has closed in order.
            io::ErrorKind::BrokenPipe => End::Orderly,
            _ => panic!("neither an end nor a reset: {error}"),
        }
    }
}

/// Its length is a prime, so that no buffer's or frame's length divides it.
const BLOCK: usize = 65_521;

fn block() -> &'static [u8] {
    static BLOCKS: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCKS.get_or_init(|| random::bytes(1, BLOCK))
}

/// The content of all streams: a lost, doubled or exchanged byte shows.
pub fn content(from: usize, length: usize) -> Vec<u8> {
    let endless = block().iter().copied().cycle();
    endless.skip(from % BLOCK).take(length).collect()
}

/// Panics where a part of a stream is not the content at its position.
pub fn check(from: usize, part: &[u8]) {
    let (mut at, mut rest) = (from, part);
    while !rest.is_empty() {
        let expected = &block()[at % BLOCK..];
        let length = expected.len().min(rest.len());
        assert!(rest[..length] == expected[..length], "wrong bytes after {at} of the stream");
        (at, rest) = (at + length, &rest[length..]);
    }
}

/// A local service whose connections the test takes itself.
pub struct Door {
    listener: TcpListener,
    name: String,
}

impl Door {
    pub fn new(name: &str) -> Self {
        Door { listener: TcpListener::bind("127.0.0.1:0").unwrap(), name: name.to_owned() }
    }

    pub fn service(&self) -> Service {
        let port = Port::new(self.port()).unwrap();
        Service::new(&self.name, "127.0.0.1", port).unwrap()
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// The next connection to the service.
    pub fn accept(&self) -> TcpStream {
        limited(wait::accept(&self.listener))
    }

    /// Runs `serve` for each connection, on a thread of its own. The address stays open.
    pub fn serve(self, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
        let serve = std::sync::Arc::new(serve);
        thread::spawn(move || {
            for stream in self.listener.incoming().flatten() {
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
    }
}

/// A stream on which nothing waits for ever.
pub fn limited(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Writes so much of the content, from `from` on. Panics if the stream ends before.
pub fn write(mut stream: impl Write, from: usize, length: usize) {
    let (mut at, end) = (from, from + length);
    while at < end {
        let part = &block()[at % BLOCK..];
        let part = &part[..part.len().min(end - at)];
        stream.write_all(part).unwrap_or_else(|e| panic!("write after {at} bytes: {e}"));
        at += part.len();
    }
}

/// Writes the content for as long as the stream takes it; how the stream ended.
pub fn write_until_end(mut stream: impl Write) -> End {
    loop {
        if let Err(e) = stream.write_all(block()) {
            return End::of(&e);
        }
    }
}

/// The same on a thread of its own.
pub fn writing(stream: impl Write + Send + 'static) -> JoinHandle<End> {
    thread::spawn(move || write_until_end(stream))
}

/// What has been read of a stream, checked.
pub struct Reader<S> {
    pub stream: S,
    /// Bytes read so far.
    pub taken: usize,
    buffer: Vec<u8>,
}

impl<S: Read> Reader<S> {
    pub fn new(stream: S) -> Self {
        Reader { stream, taken: 0, buffer: vec![0; 64 * 1024] }
    }

    /// Reads once, at most so many bytes; the end if there is one.
    fn step(&mut self, most: usize) -> Option<End> {
        let most = most.min(self.buffer.len());
        match self.stream.read(&mut self.buffer[..most]) {
            Ok(0) => Some(End::Orderly),
            Ok(length) => {
                check(self.taken, &self.buffer[..length]);
                self.taken += length;
                None
            }
            Err(e) => Some(End::of(&e)),
        }
    }

    /// Reads until so many bytes have come in all.
    pub fn read_up_to(&mut self, total: usize) {
        while self.taken < total {
            if let Some(end) = self.step(total - self.taken) {
                panic!("an end ({end:?}) after {} of {total} bytes", self.taken);
            }
        }
    }

    pub fn read_to_end(&mut self) -> End {
        loop {
            if let Some(end) = self.step(usize::MAX) {
                return end;
            }
        }
    }

    /// Reads so many bytes a second for so long, in small portions, without a longer pause.
    pub fn read_slowly(&mut self, rate: usize, time: Duration) {
        let (began, before) = (Instant::now(), self.taken);
        while began.elapsed() < time {
            let due = began.elapsed().as_secs_f64() * rate as f64;
            let due = (due as usize).saturating_sub(self.taken - before);
            if due == 0 {
                thread::sleep(SLICE);
            } else if let Some(end) = self.step(due) {
                panic!("an end ({end:?}) after {} bytes", self.taken);
            }
        }
    }
}

/// The longest time in which a slow reader takes nothing.
const SLICE: Duration = Duration::from_millis(20);

/// The time of a round trip of one byte through an echo.
pub fn round_trip(stream: &mut (impl Read + Write)) -> Duration {
    let (began, mut byte) = (Instant::now(), [7]);
    stream.write_all(&byte).unwrap();
    stream.read_exact(&mut byte).unwrap();
    began.elapsed()
}
