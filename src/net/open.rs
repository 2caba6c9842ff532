//! Opens a WebSocket from connection data: name lookup, TCP, TLS and opening handshake, all before
//! one deadline. Device side and access side both open their connections here.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use aiot_tunnel_proto::connection::Transport;
use aiot_tunnel_proto::handshake::client::{Answer, ClientHandshake, Refusal, Target};
use aiot_tunnel_proto::handshake::{Head, HeadReader};

use super::dial::tcp;
use super::explain::explained;
use super::read_ahead::ReadAhead;
use super::resolver::Resolver;
use super::tls::{Connector, Handshake, TlsContext};
use super::wait::HandshakeError;
use super::{Socket, Stream, Wait, WaitError};
use crate::config::ConnectParams;

/// How many failed addresses are remembered.
const MAX_FAILED: usize = 32;

/// A step of an attempt, for the log.
pub(crate) enum Progress {
    Connecting,
    Connected {
        fd: i32,
        local_port: u16,
    },
    Securing,
    Secured,
    /// The answer names no subprotocol. It is accepted.
    NoSubprotocol,
    Opened,
}

/// Why an attempt did not open a WebSocket.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The caller interrupted the wait.
    Interrupted,
    /// The server refuses the token (HTTP 401).
    Unauthorized,
    /// Any other failure. The caller can try again.
    Failed(Failure),
}

/// What failed, by the step in which it failed. [`Opener::open`] makes the texts plain sentences.
#[derive(Debug)]
pub(crate) enum Failure {
    Lookup(String),
    Connect(String),
    TimedOut(String),
    Tls(String),
    /// The server answered with a status that is neither 101 nor 401.
    Status(u16, String),
    /// The server's answer is invalid.
    Answer(String),
    /// The connection broke during the opening handshake.
    Broken(String),
}

impl Failure {
    /// Orders failures. If several addresses fail, the failure with the greatest weight is
    /// reported.
    fn weight(&self) -> u8 {
        match self {
            Failure::Lookup(_) | Failure::Connect(_) | Failure::TimedOut(_) => 0,
            Failure::Broken(_) => 1,
            Failure::Answer(_) | Failure::Status(..) => 2,
            Failure::Tls(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Status(_, text)
            | Failure::Lookup(text)
            | Failure::Connect(text)
            | Failure::TimedOut(text)
            | Failure::Tls(text)
            | Failure::Answer(text)
            | Failure::Broken(text) => f.write_str(text),
        }
    }
}

/// An open WebSocket's stream, and the bytes received behind the server's answer.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    pub(crate) rest: Vec<u8>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

/// Opens WebSockets to one server, one at a time.
pub(crate) struct Opener<'a, W> {
    pub(crate) wait: &'a W,
    pub(crate) resolver: &'a Resolver,
    /// Addresses of the server that failed since the last success, the most recent last.
    pub(crate) failed: &'a RefCell<Vec<SocketAddr>>,
    pub(crate) progress: &'a dyn Fn(Progress),
}

impl<W: Wait> Opener<'_, W> {
    /// Looks up the host and tries its addresses in turn, before `deadline`. Blocks in the waits of
    /// `wait`.
    ///
    /// Each address gets a share of the time, and the share covers all steps. An address that does
    /// not answer, or that accepts the connection and then stays silent, must not use up the time
    /// of the next one.
    pub(crate) fn open(
        &self,
        params: &ConnectParams,
        tls: &TlsContext,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        (self.progress)(Progress::Connecting);
        let addresses = self.look_up(params.host(), params.port().get(), deadline);
        let opened =
            addresses.and_then(|addresses| self.open_one_of(&addresses, params, tls, deadline));
        opened.map_err(|e| match e {
            OpenError::Failed(failure) => OpenError::Failed(explained(failure, params)),
            e => e,
        })
    }

    fn open_one_of(
        &self,
        addresses: &[SocketAddr],
        params: &ConnectParams,
        tls: &TlsContext,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        let mut failure = Failure::Lookup(format!("look up {}: no address", params.host()));
        for (done, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = Instant::now() + left / (addresses.len() - done) as u32;
            self.tries(*address);
            match self.open_at(*address, params, tls, share) {
                Ok(opened) => {
                    self.failed.borrow_mut().clear();
                    return Ok(opened);
                }
                Err(OpenError::Failed(next)) => {
                    if next.weight() >= failure.weight() {
                        failure = next;
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Err(OpenError::Failed(failure))
    }

    /// Looks up the addresses of a host. Addresses that failed come last, in whatever order the
    /// name server lists them, because one of them may accept a connection and then stay silent.
    fn look_up(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, OpenError> {
        let failed = |e| OpenError::Failed(Failure::Lookup(format!("look up {host}: {e}")));
        let lookup = self.resolver.look_up(host, port).map_err(failed)?;
        loop {
            if let Some(result) = lookup.poll() {
                let mut addresses = result.map_err(failed)?;
                let failures = self.failed.borrow();
                addresses.sort_by_key(|address| failures.iter().position(|a| a == address));
                return Ok(addresses);
            }
            let waited = self.wait.wait(None, false, deadline);
            waited.map_err(|e| not_waited("look up", e))?;
        }
    }

    fn tries(&self, address: SocketAddr) {
        let mut failed = self.failed.borrow_mut();
        failed.retain(|other| *other != address);
        if failed.len() == MAX_FAILED {
            failed.remove(0);
        }
        failed.push(address);
    }

    fn open_at(
        &self,
        address: SocketAddr,
        params: &ConnectParams,
        tls: &TlsContext,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        let tcp = self.connect(address, deadline)?;
        let local_port = tcp.local_addr().map_or(0, |address| address.port());
        (self.progress)(Progress::Connected { fd: tcp.as_raw_fd(), local_port });
        let connector = tls.connector();
        let connector =
            connector.map_err(|e| OpenError::Failed(Failure::Tls(format!("set up TLS: {e}"))))?;
        let (stream, default_port) = match connector {
            None => (Stream::Plain(Socket::new(tcp)), 80),
            Some(connector) => (self.secure(connector.get(), params.host(), tcp, deadline)?, 443),
        };
        let target = Target {
            host: params.host(),
            port: params.port().get(),
            default_port,
            path: params.path(),
            token: params.token.expose(),
        };
        let opened = self.upgrade(stream, &target, params.headers(), deadline)?;
        (self.progress)(Progress::Opened);
        Ok(opened)
    }

    fn connect(&self, address: SocketAddr, deadline: Instant) -> Result<TcpStream, OpenError> {
        let what = || format!("connect to {address}");
        let tcp = tcp::connect(address, self.wait, deadline).map_err(|e| match e {
            HandshakeError::Wait(e) => not_waited(&what(), e),
            HandshakeError::Io(e) => {
                OpenError::Failed(Failure::Connect(format!("{}: {e}", what())))
            }
        })?;
        Ok(tcp)
    }

    fn secure(
        &self,
        connector: &Connector,
        host: &str,
        tcp: TcpStream,
        deadline: Instant,
    ) -> Result<Stream, OpenError> {
        (self.progress)(Progress::Securing);
        let handshake = connector.connect(host, ReadAhead::new(Socket::new(tcp)));
        let stream = finish_tls(handshake, self.wait, deadline).map_err(|e| match e {
            TlsError::Wait(e) => not_waited(&format!("TLS handshake with {host}"), e),
            TlsError::Failed(why) => {
                OpenError::Failed(Failure::Tls(format!("TLS handshake with {host}: {why}")))
            }
        })?;
        (self.progress)(Progress::Secured);
        Ok(stream)
    }

    fn upgrade(
        &self,
        mut stream: Stream,
        target: &Target<'_>,
        headers: &str,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        const WHAT: &str = "WebSocket handshake";
        let broken =
            |what: &str, e: io::Error| OpenError::Failed(Failure::Broken(format!("{what}: {e}")));
        let handshake = ClientHandshake::default();
        let mut request = handshake.request(target);
        add_headers(&mut request, headers);
        write_all(&mut stream, &request, self.wait, deadline).map_err(|e| match e {
            HandshakeError::Wait(e) => not_waited(WHAT, e),
            HandshakeError::Io(e) => broken("send the request", e),
        })?;
        let mut reader = HeadReader::for_answer();
        loop {
            let head = read_head(&mut stream, &mut reader, self.wait, deadline);
            let Head { head, rest } = head.map_err(|e| match e {
                HandshakeError::Wait(e) => not_waited(WHAT, e),
                HandshakeError::Io(e) if e.kind() == io::ErrorKind::InvalidData => {
                    OpenError::Failed(Failure::Answer(format!("receive the answer: {e}")))
                }
                HandshakeError::Io(e) => broken("receive the answer", e),
            })?;
            let answer = handshake.check(&head).map_err(|refusal| match refusal {
                Refusal::Unauthorized => OpenError::Unauthorized,
                Refusal::Status(status) => {
                    OpenError::Failed(Failure::Status(status, refusal.to_string()))
                }
                Refusal::Invalid(why) => OpenError::Failed(Failure::Answer(why)),
            })?;
            match answer {
                Answer::Interim => {
                    let after = HeadReader::after(&rest);
                    reader = after.map_err(|e| broken("receive the answer", e))?;
                    continue;
                }
                Answer::Accepted { names_subprotocol: false } => {
                    (self.progress)(Progress::NoSubprotocol);
                }
                Answer::Accepted { .. } => {}
            }
            return Ok(Opened { stream, rest });
        }
    }
}

/// Puts the caller's header lines before the empty line at the end. The request's buffer has room for
/// them.
fn add_headers(request: &mut Vec<u8>, headers: &str) {
    const END: &[u8] = b"\r\n";
    if request.ends_with(END) {
        request.truncate(request.len() - END.len());
        request.extend_from_slice(headers.as_bytes());
        request.extend_from_slice(END);
    }
}

fn not_waited(what: &str, e: WaitError) -> OpenError {
    match e {
        WaitError::Interrupted => OpenError::Interrupted,
        WaitError::TimedOut => OpenError::Failed(Failure::TimedOut(format!("{what}: timed out"))),
        WaitError::Io(e) => OpenError::Failed(Failure::Connect(format!("{what}: {e}"))),
    }
}

pub(super) enum TlsError {
    Wait(WaitError),
    Failed(String),
}

/// Continues a TLS handshake until it is done.
pub(super) fn finish_tls(
    mut handshake: Handshake<ReadAhead<Socket>>,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<Stream, TlsError> {
    loop {
        let mut middle = match handshake {
            Handshake::Done(stream) => return Ok(Stream::Tls(Box::new(stream))),
            Handshake::Waits(middle) => middle,
            Handshake::Failed(why) => return Err(TlsError::Failed(why)),
        };
        if Instant::now() >= deadline {
            return Err(TlsError::Wait(WaitError::TimedOut));
        }
        let paused = middle.get_mut().has_paused();
        let socket = middle.get_mut().get_mut();
        let room = paused || socket.waits_for_room();
        wait.wait(Some(socket.tcp().as_fd()), room, deadline).map_err(TlsError::Wait)?;
        socket.arm();
        handshake = middle.go_on();
    }
}

pub(super) fn write_all(
    stream: &mut Stream,
    mut bytes: &[u8],
    wait: &impl Wait,
    deadline: Instant,
) -> Result<(), HandshakeError> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait_for(stream, wait, deadline)?;
            }
            Err(e) => return Err(HandshakeError::Io(e)),
        }
    }
    stream.flush().map_err(HandshakeError::Io)
}

/// Waits until the stream can do what it would have blocked for in its last call. A stream that has
/// only paused is not waited for: there nearly always is room, and this lets the caller interrupt.
fn wait_for(
    stream: &mut Stream,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<(), HandshakeError> {
    let room = stream.has_paused() || stream.socket().waits_for_room();
    wait.wait(Some(stream.as_fd()), room, deadline).map_err(HandshakeError::Wait)?;
    stream.arm();
    Ok(())
}

pub(super) fn read_head(
    stream: &mut Stream,
    reader: &mut HeadReader,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<Head, HandshakeError> {
    loop {
        // A peer that sends without pause never makes the read block, so the deadline is checked
        // here too.
        if Instant::now() >= deadline {
            return Err(HandshakeError::Wait(WaitError::TimedOut));
        }
        match reader.read(stream) {
            Ok(head) => return Ok(head),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait_for(stream, wait, deadline)?;
            }
            Err(e) => return Err(HandshakeError::Io(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::BorrowedFd;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::config::{Port, Security, Token};
    use crate::sys::{self, PollFd, Waker};

    struct Plainly;
    impl Wait for Plainly {
        fn wait(
            &self,
            fd: Option<BorrowedFd<'_>>,
            write: bool,
            deadline: Instant,
        ) -> Result<(), WaitError> {
            let mut fds = [PollFd::new(fd.unwrap(), !write, write)];
            sys::poll(&mut fds, Some(deadline)).map_err(WaitError::Io)?;
            if fds[0].ready() == Default::default() {
                return Err(WaitError::TimedOut);
            }
            Ok(())
        }
    }

    #[test]
    fn an_address_that_takes_the_connection_and_says_nothing_does_not_hide_the_next() {
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [mute.local_addr().unwrap(), good.local_addr().unwrap()];
        let gateway = thread::spawn(move || {
            let (tcp, _) = good.accept().unwrap();
            tungstenite::accept(tcp).map(drop).unwrap();
        });
        let (port, token) = (Port::new(1).unwrap(), Token::new("hush-access").unwrap());
        let params = ConnectParams::new("gateway.example", port, "/tunnel/t1/source", token);
        let resolver = Resolver::new(Arc::new(Waker::new().unwrap()));
        let failed = RefCell::default();
        let opener =
            Opener { wait: &Plainly, resolver: &resolver, failed: &failed, progress: &|_| {} };
        let deadline = Instant::now() + Duration::from_secs(5);
        let tls = TlsContext::new(Security::Plain);
        let opened = opener.open_one_of(&addresses, &params.unwrap(), &tls, deadline);
        assert!(opened.is_ok());
        gateway.join().unwrap();
    }
}
