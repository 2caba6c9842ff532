//! Twenty tunnels of one manager: nineteen that work, and one in trouble.
#![allow(dead_code)]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aiot_tunnel::*;

use super::common::*;

pub const OTHERS: usize = 19;

/// What the one is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// None answers its SYN.
    BlackHole,
    /// None answers its ClientHello.
    EndlessHandshake,
    /// Its cloud sends garbage: so many frames a second, or as fast as it can.
    Flood(Option<u32>),
}

/// The nineteen, each with an open session.
pub struct Fleet {
    pub running: Running,
    pub cloud: Cloud,
    pub others: Vec<Device>,
}

impl Fleet {
    pub fn new() -> Self {
        let authority = Authority::new();
        let tls = TlsConfig::new().with_ca_pem(&authority.pem()).unwrap();
        let cloud = Cloud::tls(authority.acceptor("127.0.0.1", 1));
        // The one in trouble does not give up, however long the others take.
        let limits = Limits::new().with_handshake_timeout(10 * PATIENCE);
        let builder = Manager::builder().security(Security::Tls(tls)).service(echo("e"));
        let builder = builder.limits(limits);
        let running = Running::start(builder);
        let mut fleet = Fleet { running, cloud, others: Vec::new() };
        for n in 0..OTHERS {
            fleet.running.handle.add(&id(&format!("t{n}")), fleet.cloud.params()).unwrap();
            let device = fleet.connected(n);
            fleet.others.push(device);
        }
        fleet
    }

    /// The next connection, which is that of tunnel `n`.
    pub fn connected(&self, n: usize) -> Device {
        let mut device = self.cloud.accept();
        self.running.expect(EventKind::Connect, &format!("t{n}"));
        assert_eq!(device.create("s", "e"), 0);
        device
    }

    /// One round trip of one byte through one of the nineteen.
    pub fn round_trip(&mut self, n: usize) -> Duration {
        let begun = Instant::now();
        self.others[n].data("s", b"k");
        assert_eq!(self.others[n].receive_data("s", 1), b"k");
        begun.elapsed()
    }

    /// Adds the twentieth, and leads it into trouble.
    pub fn trouble(&self, kind: Kind) -> Trouble {
        match kind {
            Kind::BlackHole => {
                let (address, (listener, queue)) = black_hole();
                self.add(address.port());
                Trouble::Silence { listener, queue }
            }
            Kind::EndlessHandshake => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                self.add(listener.local_addr().unwrap().port());
                let tcp = accept(&listener);
                Trouble::Silence { listener, queue: vec![tcp] }
            }
            Kind::Flood(rate) => {
                self.add(self.cloud.address().port());
                let mut device = self.cloud.accept();
                self.running.expect(EventKind::Connect, "trouble");
                let over = Arc::new(AtomicBool::new(false));
                let stop = over.clone();
                let flood = std::thread::spawn(move || {
                    let begun = Instant::now();
                    let mut sent = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        let garbage = tungstenite::Message::binary(&b"\0\x05{\"x\":garbage"[..]);
                        if device.socket.write(garbage).is_err() {
                            break;
                        }
                        sent += 1;
                        if let Some(rate) = rate.filter(|_| sent.is_multiple_of(10)) {
                            let _ = device.socket.flush();
                            let due = Duration::from_secs(sent) / rate;
                            std::thread::sleep(due.saturating_sub(begun.elapsed()));
                        }
                    }
                    // Kept: its loss would make the tunnel connect anew.
                    (sent, device)
                });
                Trouble::Flood { over, flood }
            }
        }
    }

    fn add(&self, port: u16) {
        self.running.handle.add(&id("trouble"), params("127.0.0.1", port)).unwrap();
    }

    /// Deletes the twentieth; the frames that it was flooded with.
    pub fn over(&self, trouble: Trouble) -> u64 {
        match trouble {
            Trouble::Silence { .. } => {
                self.running.handle.delete(&id("trouble")).unwrap();
                0
            }
            Trouble::Flood { over, flood } => {
                over.store(true, Ordering::Relaxed);
                let (sent, _device) = flood.join().unwrap();
                self.running.handle.delete(&id("trouble")).unwrap();
                self.running.expect(EventKind::Disconnect, "trouble");
                sent
            }
        }
    }
}

/// An address whose every SYN is dropped, for as long as its other part lives.
pub fn black_hole() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: no pointers; the descriptor is a listening socket's. Its queue of connections
    // becomes the shortest there is.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let address = listener.local_addr().unwrap();
    let patience = Duration::from_millis(300);
    let mut queue = Vec::new();
    while let Ok(tcp) = TcpStream::connect_timeout(&address, patience) {
        queue.push(tcp);
    }
    (address, (listener, queue))
}

/// What holds the trouble up.
pub enum Trouble {
    Silence { listener: TcpListener, queue: Vec<TcpStream> },
    Flood { over: Arc<AtomicBool>, flood: JoinHandle<(u64, Device)> },
}
