//! Twenty tunnels of one manager: nineteen that work, and one in trouble. What the nineteen must
//! still do is the tests' affair.

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::{EventKind, Limits, Manager, Security, TlsConfig};
use tungstenite::Message;

use crate::certificates::Authority;
use crate::cloud::{params, Cloud};
use crate::frame;
use crate::manager::{id, Running};
use crate::services::{echo, BlackHole};
use crate::tunnel_end::TunnelEnd;
use crate::wait::{accept, TIMEOUT};

/// The tunnels that are not in trouble.
pub const OTHERS: usize = 19;

/// The kinds of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its SYN is not answered.
    BlackHole,
    /// Its ClientHello is not answered.
    EndlessHandshake,
    /// Its cloud sends garbage: so many frames a second, or as fast as it can.
    Flood(Option<u32>),
}

/// The nineteen tunnels, each with an open session.
pub struct Fleet {
    pub running: Running,
    pub cloud: Cloud,
    pub others: Vec<TunnelEnd>,
}

impl Fleet {
    pub fn new() -> Self {
        let authority = Authority::new();
        let tls = TlsConfig::new().with_ca_pem(&authority.pem()).unwrap();
        let cloud = Cloud::tls(authority.acceptor("127.0.0.1"));
        // The tunnel in trouble does not give up, however long the others take.
        let limits = Limits::default().with_handshake_timeout(10 * TIMEOUT);
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

    /// Accepts the next connection, which must be that of tunnel `n`.
    pub fn connected(&self, n: usize) -> TunnelEnd {
        let mut device = self.cloud.accept();
        self.running.expect(EventKind::Connect, &format!("t{n}"));
        assert_eq!(device.create("s", "e"), 0);
        device
    }

    /// The time of a round trip of one byte through one of the nineteen.
    pub fn round_trip(&mut self, n: usize) -> Duration {
        let began = Instant::now();
        self.others[n].data("s", b"k");
        assert_eq!(self.others[n].receive_data("s", 1), b"k");
        began.elapsed()
    }

    /// Adds the twentieth tunnel and gets it into trouble.
    pub fn trouble(&self, kind: Kind) -> Trouble {
        match kind {
            Kind::BlackHole => {
                let hole = BlackHole::new();
                self.add(hole.address().port());
                Trouble::BlackHole(hole)
            }
            Kind::EndlessHandshake => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                self.add(listener.local_addr().unwrap().port());
                Trouble::EndlessHandshake(accept(&listener))
            }
            Kind::Flood(rate) => {
                self.add(self.cloud.address().port());
                let mut device = self.cloud.accept();
                self.running.expect(EventKind::Connect, "trouble");
                let over = Arc::new(AtomicBool::new(false));
                let stop = over.clone();
                let flood = thread::spawn(move || {
                    let began = Instant::now();
                    let garbage = frame::tunnel("{\"x\":", b"garbage");
                    let mut sent = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        let garbage = Message::binary(garbage.clone());
                        if device.socket.write(garbage).is_err() {
                            break;
                        }
                        sent += 1;
                        if let Some(rate) = rate.filter(|_| sent.is_multiple_of(10)) {
                            let _ = device.socket.flush();
                            let due = Duration::from_secs(sent) / rate;
                            thread::sleep(due.saturating_sub(began.elapsed()));
                        }
                    }
                    // The connection stays open: its loss would make the tunnel connect again.
                    (sent, device)
                });
                Trouble::Flood { over, flood }
            }
        }
    }

    fn add(&self, port: u16) {
        self.running.handle.add(&id("trouble"), params("127.0.0.1", port)).unwrap();
    }

    /// Deletes the twentieth tunnel; how many frames it was flooded with.
    pub fn over(&self, trouble: Trouble) -> u64 {
        match trouble {
            Trouble::BlackHole(_) | Trouble::EndlessHandshake(_) => {
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

impl Default for Fleet {
    fn default() -> Self {
        Fleet::new()
    }
}

/// Keeps the trouble up for as long as it lives.
pub enum Trouble {
    BlackHole(BlackHole),
    EndlessHandshake(TcpStream),
    Flood { over: Arc<AtomicBool>, flood: JoinHandle<(u64, TunnelEnd)> },
}
