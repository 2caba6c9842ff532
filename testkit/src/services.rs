//! Local services that a device connects its sessions to. Services that check what they receive
//! are in [`traffic`](crate::traffic).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aiot_tunnel::{Port, Service};

/// A connection attempt that takes this long is not answered.
const UNANSWERED: Duration = Duration::from_millis(300);

/// A service that runs `serve` for each connection, on a thread of its own.
pub fn service(name: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = Port::new(listener.local_addr().unwrap().port()).unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    Service::new(name, "127.0.0.1", port).unwrap()
}

/// A service that sends back what it receives.
pub fn echo(name: &str) -> Service {
    echo_until(name, |_| false)
}

/// A service that sends back what it receives, and closes after the first bytes that are its last.
pub fn echo_until(name: &str, is_last: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Service {
    service(name, move |mut stream| {
        let mut buffer = [0; 65536];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let bytes = &buffer[..length];
            if stream.write_all(bytes).is_err() || is_last(bytes) {
                break;
            }
        }
    })
}

/// An address that drops every SYN for as long as it lives.
pub struct BlackHole {
    pub listener: TcpListener,
    /// The connections that fill the listener's queue.
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // The shortest queue there is; once it is full, the kernel answers no further SYN.
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(tcp) = TcpStream::connect_timeout(&address, UNANSWERED) {
            queue.push(tcp);
        }
        BlackHole { listener, _queue: queue }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }
}

impl Default for BlackHole {
    fn default() -> Self {
        BlackHole::new()
    }
}
