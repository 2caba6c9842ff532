//! The local service of benchmarks, in a process of its own. A connection's first byte tells the
//! service what to do with it. Services of tests are in [`services`](crate::services).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;

/// Reads everything and drops it.
pub const SINK: u8 = b'S';
/// Writes without end.
pub const FLOOD: u8 = b'F';
/// [`SINK`] and [`FLOOD`] at once.
pub const BOTH: u8 = b'B';
/// Sends back what it reads.
pub const ECHO: u8 = b'E';
/// Answers each further byte with a number in eight bytes, big-endian: the bytes that all sinks have
/// read so far, or for a [`BUSY`] the number of other connections.
pub const COUNT: u8 = b'C';
/// See [`COUNT`].
pub const BUSY: u8 = b'N';

/// Shared by all connections.
#[derive(Default)]
pub struct Counters {
    /// Bytes that sinks have read.
    pub taken: AtomicU64,
    /// Open connections.
    busy: AtomicU64,
}

/// Prints its port and serves until its standard input ends.
pub fn run() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    start(listener);
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Serves the connections of a listener in this process, for as long as it runs.
pub fn start(listener: TcpListener) -> Arc<Counters> {
    let counters = Arc::new(Counters::default());
    let shared = counters.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counters = shared.clone();
            thread::spawn(move || {
                counters.busy.fetch_add(1, Ordering::Relaxed);
                serve(stream, &counters);
                counters.busy.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    counters
}

fn serve(mut stream: TcpStream, counters: &Counters) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut what = [0];
    stream.read_exact(&mut what).ok()?;
    match what[0] {
        SINK => sink(stream, &counters.taken),
        FLOOD => flood(stream),
        BOTH => {
            let other = stream.try_clone().ok()?;
            thread::scope(|scope| {
                scope.spawn(|| flood(other));
                sink(stream, &counters.taken)
            })
        }
        ECHO => {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
                stream.write_all(&buffer[..length]).ok()?;
            }
        }
        COUNT => loop {
            stream.read_exact(&mut what).ok()?;
            let count = match what[0] {
                // Without the connection that asks.
                BUSY => counters.busy.load(Ordering::Relaxed) - 1,
                _ => counters.taken.load(Ordering::Relaxed),
            };
            stream.write_all(&count.to_be_bytes()).ok()?;
        },
        _ => None,
    }
}

fn sink(mut stream: TcpStream, taken: &AtomicU64) -> Option<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let length = stream.read(&mut buffer).ok().filter(|length| *length > 0)?;
        taken.fetch_add(length as u64, Ordering::Relaxed);
    }
}

fn flood(mut stream: TcpStream) -> Option<()> {
    let buffer = vec![7; 256 * 1024];
    loop {
        stream.write_all(&buffer).ok()?;
    }
}
