//! The two references that the device is compared with, each in its own process: a raw relay, which
//! only copies bytes, and a bare WebSocket echo. Neither uses tunnel frames.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;

use aiot_tunnel_testkit::frame::SUBPROTOCOL;
use aiot_tunnel_testkit::{certificates, sockets};
use openssl::ssl::{SslConnector, SslStream};
use tungstenite::client::IntoClientRequest;

/// The size of the relay's buffer for each direction, in bytes.
const BUFFER: usize = 64 * 1024;

/// Makes a TLS connector. `ca` is the name of a file.
fn connector(ca: &str) -> SslConnector {
    certificates::connector(&std::fs::read(ca).unwrap())
}

fn cloud(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Copies bytes between `count` connections to the cloud and as many connections to the local
/// service, until the process is killed. Each direction has a thread. A TLS stream cannot be split,
/// so with TLS one thread copies both directions.
pub fn relay(port: u16, service: u16, count: usize, ca: Option<&str>) {
    let connector = ca.map(connector);
    let mut threads = Vec::new();
    for _ in 0..count {
        let far = cloud(port);
        let local = cloud(service);
        match &connector {
            None => {
                let (a, b) = (far.try_clone().unwrap(), local.try_clone().unwrap());
                threads.push(thread::spawn(move || copy(a, b)));
                threads.push(thread::spawn(move || copy(local, far)));
            }
            Some(connector) => {
                let far = connector.connect("localhost", far).unwrap();
                threads.push(thread::spawn(move || copy_tls(far, local)));
            }
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// The buffered bytes of one direction.
struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Direction {
    fn new() -> Self {
        Direction { buffer: vec![0; BUFFER], start: 0, end: 0 }
    }

    /// Copies bytes. Returns whether any were copied, or `None` if an end has closed.
    fn step(&mut self, from: &mut impl Read, to: &mut impl Write) -> Option<bool> {
        let mut moved = false;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            match from.read(&mut self.buffer) {
                Ok(0) => return None,
                Ok(length) => self.end = length,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
        if self.start < self.end {
            match to.write(&self.buffer[self.start..self.end]) {
                Ok(length) => (self.start, moved) = (self.start + length, true),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
        Some(moved)
    }
}

fn copy_tls(mut far: SslStream<TcpStream>, mut local: TcpStream) {
    far.get_ref().set_nonblocking(true).unwrap();
    local.set_nonblocking(true).unwrap();
    let (mut down, mut up) = (Direction::new(), Direction::new());
    loop {
        let Some(a) = down.step(&mut far, &mut local) else { return };
        let Some(b) = up.step(&mut local, &mut far) else { return };
        if !a && !b {
            let wants_far = up.start < up.end;
            let wants_local = down.start < down.end;
            wait(far.get_ref(), wants_far, &local, wants_local);
        }
    }
}

/// Waits until one of the two connections is ready.
fn wait(far: &TcpStream, write_far: bool, local: &TcpStream, write_local: bool) {
    let far = sockets::interest(far, !write_local, write_far);
    let local = sockets::interest(local, !write_far, write_local);
    sockets::wait(&mut [far, local], None);
}

/// Echoes WebSocket messages until the connection ends.
pub fn echo(port: u16, ca: Option<&str>) {
    let mut request = format!("ws://localhost:{port}/echo").into_client_request().unwrap();
    let protocol = SUBPROTOCOL.parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let tcp = cloud(port);
    match ca.map(connector) {
        None => echo_on(request, tcp),
        Some(connector) => echo_on(request, connector.connect("localhost", tcp).unwrap()),
    }
}

fn echo_on(request: tungstenite::handshake::client::Request, stream: impl Read + Write) {
    let Ok((mut socket, _)) = tungstenite::client(request, stream) else { return };
    while let Ok(message) = socket.read() {
        if socket.write(message).and_then(|()| socket.flush()).is_err() {
            return;
        }
    }
}
