//! The two ends of `scripts/compare`: the local service, and the client that puts load on a
//! connection to it. The client prints its measurements as JSON.
//!
//! Arguments: `service`; `load PORT SERVICE down|up CONNECTIONS SECONDS [PROCESS]...`, where the
//! processor time of each PROCESS is measured; `trips PORT SERVICE COUNT`; `setup PORT SERVICE
//! COUNT`; `crowd PORT TUNNELS IDLE LOADED PROCESS`, both ends of many tunnels ([`crowd`]).

mod crowd;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::bench::service;
use aiot_tunnel_testkit::procfs;
use aiot_tunnel_testkit::sockets::reset_on_close;
use serde_json::json;

const CHUNK: usize = 256 * 1024;
/// Time between two set-ups. It is longer than a delayed acknowledgement (40 ms). ssh leaves
/// Nagle's algorithm on, and the end of one connection would otherwise delay the next.
const PAUSE: Duration = Duration::from_millis(60);
/// No connection takes this long to end, even if much data is in flight.
const TIMEOUT: Duration = Duration::from_secs(30);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match text[..] {
        ["service"] => return service::run(),
        ["load", port, service_port, direction, count, seconds, ref processes @ ..] => {
            let window = Duration::from_secs_f64(number(seconds));
            let processes: Vec<u32> = processes.iter().map(|pid| number(pid)).collect();
            Ends::new(port, service_port).load(direction, number(count), window, &processes)
        }
        ["trips", port, service, count] => Ends::new(port, service).trips(number(count)),
        ["setup", port, service, count] => Ends::new(port, service).setup(number(count)),
        ["crowd", port, tunnels, idle, loaded, gateway] => {
            let [idle, loaded] = [idle, loaded].map(|text| Duration::from_secs_f64(number(text)));
            crowd::measure(number(port), number(tunnels), idle, loaded, number(gateway))
        }
        // `cargo test --benches` and `cargo bench` check only that the program starts.
        _ => return,
    };
    println!("{result}");
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is not a number"))
}

/// The port of the measured connection, and a direct connection to the service at its end.
struct Ends {
    port: u16,
    count: TcpStream,
}

impl Ends {
    fn new(port: &str, service_port: &str) -> Self {
        let mut ends = Ends { port: number(port), count: connect(number(service_port)) };
        ends.count.write_all(&[service::COUNT]).unwrap();
        ends.rest();
        ends
    }

    fn open(&self, first: &[u8]) -> TcpStream {
        let mut stream = connect(self.port);
        stream.write_all(first).unwrap();
        stream
    }

    fn ask(&mut self, what: u8) -> u64 {
        let mut answer = [0; 8];
        self.count.write_all(&[what]).unwrap();
        self.count.read_exact(&mut answer).unwrap();
        u64::from_be_bytes(answer)
    }

    /// Waits until the service has this many connections.
    fn wait_for(&mut self, connections: u64) {
        let deadline = Instant::now() + TIMEOUT;
        while self.ask(service::BUSY) != connections {
            assert!(Instant::now() < deadline, "not {connections} connections at the service");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the service has no connections.
    fn rest(&mut self) {
        self.wait_for(0);
    }

    /// Measures a rate. Bytes are counted where they arrive: in the service or here.
    fn load(
        &mut self,
        direction: &str,
        connections: usize,
        window: Duration,
        processes: &[u32],
    ) -> serde_json::Value {
        let (is_down, received) = (direction == "down", &AtomicU64::new(0));
        let what = if is_down { service::SINK } else { service::FLOOD };
        let streams: Vec<TcpStream> = (0..connections).map(|_| self.open(&[what])).collect();
        self.wait_for(connections as u64);
        let (bytes, cpu, seconds) = thread::scope(|scope| {
            for mut stream in &streams {
                scope.spawn(move || {
                    let mut chunk = vec![7; CHUNK];
                    if is_down {
                        while stream.write_all(&chunk).is_ok() {}
                    } else {
                        while let Ok(length @ 1..) = stream.read(&mut chunk) {
                            received.fetch_add(length as u64, Ordering::Relaxed);
                        }
                    }
                });
            }
            thread::sleep(window / 5);
            let mut so_far = || match is_down {
                true => self.ask(service::COUNT),
                false => received.load(Ordering::Relaxed),
            };
            let cpu = || processes.iter().map(|pid| procfs::cpu(*pid)).collect::<Vec<f64>>();
            let (bytes, used, began) = (so_far(), cpu(), Instant::now());
            thread::sleep(window);
            let bytes = so_far() - bytes;
            let seconds = began.elapsed();
            let used: Vec<f64> =
                cpu().iter().zip(used).map(|(after, before)| after - before).collect();
            let busy = self.ask(service::BUSY);
            for stream in &streams {
                // Without a reset, a sender whose bytes are no longer read would not notice the
                // close.
                reset_on_close(stream);
                let _ = stream.shutdown(Shutdown::Both);
            }
            // The check comes last, because a panic waits for the threads, and they end with their
            // connections.
            assert_eq!(busy, connections as u64, "a connection was lost");
            (bytes as f64, used, seconds.as_secs_f64())
        });
        drop(streams);
        self.rest();
        let cpu: Vec<f64> = cpu.into_iter().map(|cpu| cpu / (bytes / 1e9)).collect();
        json!({"rate": bytes / 1e6 / seconds, "cpu": cpu})
    }

    /// Times round trips of one byte, in microseconds.
    fn trips(&mut self, count: usize) -> serde_json::Value {
        let mut stream = self.open(&[service::ECHO]);
        let mut times: Vec<f64> = (0..count + count / 10).map(|_| trip(&mut stream)).collect();
        times.drain(..count / 10);
        times.sort_unstable_by(f64::total_cmp);
        json!({"p50": times[count / 2], "p99": times[count * 99 / 100]})
    }

    /// Times set-ups, in microseconds: from the connect to the first byte from the service.
    fn setup(&mut self, count: usize) -> serde_json::Value {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            // A single write, so that Nagle's algorithm does not delay the second byte.
            let mut stream = self.open(&[service::ECHO, 7]);
            stream.read_exact(&mut [0]).unwrap();
            times.push(began.elapsed().as_secs_f64() * 1e6);
            drop(stream);
            self.rest();
            thread::sleep(PAUSE);
        }
        times.sort_unstable_by(f64::total_cmp);
        json!({"p50": times[count / 2]})
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn trip(stream: &mut TcpStream) -> f64 {
    let began = Instant::now();
    let mut byte = [7];
    stream.write_all(&byte).unwrap();
    stream.read_exact(&mut byte).unwrap();
    began.elapsed().as_secs_f64() * 1e6
}
