//! Opens a WebSocket from connection data: name lookup, TCP, if there is a proxy the way through it,
//! TLS and opening handshake, all before one deadline. Device side and access side both open their
//! connections here.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Instant;

use aiot_tunnel_proto::connection::Transport;
use aiot_tunnel_proto::handshake::client::{Answer, ClientHandshake, Refusal, Target};
use aiot_tunnel_proto::handshake::{Head, HeadReader};

use super::addresses::History;
use super::dial::tcp::{Race, Won};
use super::dial::{self, ProxyError};
use super::explain::{explained, explained_proxy, explained_refusal};
use super::read_ahead::ReadAhead;
use super::resolver::Resolver;
use super::tls::{Connector, Handshake, TlsContext};
use super::wait::HandshakeError;
use super::{Socket, Stream, Wait, WaitError};
use crate::config::{ConnectParams, Network, Proxy};
use crate::sys;

/// A step of an attempt, for the log.
pub(crate) enum Progress {
    Connecting,
    /// The usual way is not open, and another one is tried. The text says both.
    Detour(String),
    Connected {
        fd: i32,
        local_port: u16,
    },
    /// The proxy, as text, has connected to the server.
    ThroughProxy(String),
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
    /// Our gateway says that the tunnel has expired (HTTP 401).
    Expired,
    /// Any other failure. The caller can try again.
    Failed(Failure),
}

/// What failed, by the step in which it failed. [`Opener::open`] makes the texts plain sentences.
#[derive(Debug)]
pub(crate) enum Failure {
    Lookup(String),
    Connect(String),
    TimedOut(String),
    /// The proxy could not be reached, or did not connect to the server. The text is a plain sentence
    /// from the start.
    Proxy(String),
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
            Failure::Broken(_) | Failure::Proxy(_) => 1,
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
            | Failure::Proxy(text)
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
    pub(crate) network: &'a Network,
    pub(crate) history: &'a RefCell<History>,
    pub(crate) progress: &'a dyn Fn(Progress),
}

/// One attempt: what is opened, and by which way.
struct Attempt<'a> {
    params: &'a ConnectParams,
    tls: &'a TlsContext,
    proxy: Option<&'a Proxy>,
}

impl Attempt<'_> {
    /// Where TCP leads: to the proxy, or to the server.
    fn host(&self) -> &str {
        self.proxy.map_or(self.params.host(), Proxy::host)
    }

    fn port(&self) -> u16 {
        self.proxy.map_or(self.params.port(), Proxy::port).get()
    }

    /// A failure before TCP is connected.
    fn failed_tcp(&self, failure: Failure) -> OpenError {
        OpenError::Failed(match self.proxy {
            Some(proxy) => Failure::Proxy(explained_proxy(failure, proxy)),
            None => failure,
        })
    }
}

impl<W: Wait> Opener<'_, W> {
    /// Looks up the host (or its proxy) and tries its addresses, before `deadline`. Blocks in the waits
    /// of `wait`.
    ///
    /// The addresses race for the TCP connection. The first that is connected has its share of the
    /// time for all other steps: an address that accepts the connection and then stays silent must not
    /// use up the time of the others.
    pub(crate) fn open(
        &self,
        params: &ConnectParams,
        tls: &TlsContext,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        (self.progress)(Progress::Connecting);
        let proxy = self.network.proxy_for(tls.is_secure(), params.host(), params.port());
        let attempt = Attempt { params, tls, proxy };
        self.open_by_name(&attempt, deadline).map_err(|e| match e {
            OpenError::Failed(failure) => OpenError::Failed(explained(failure, params, proxy)),
            e => e,
        })
    }

    /// The address that worked last is tried, too, when the name server no longer lists it or does not
    /// answer: after the others, with its share of the time.
    fn open_by_name(&self, attempt: &Attempt<'_>, deadline: Instant) -> Result<Opened, OpenError> {
        let (host, port) = (attempt.host(), attempt.port());
        let good = self.history.borrow().good(host, port, self.network);
        // Without another way, the lookup may take all the time.
        let of_lookup = match good {
            Some(_) => Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2,
            None => deadline,
        };
        // `may_know`: nothing says that the last address is no longer the server's.
        let (failed, may_know) = match self.look_up(host, port, of_lookup) {
            Ok(addresses) => {
                let spare = good.filter(|good| !addresses.contains(good));
                let count = addresses.len() as u32;
                let left = deadline.saturating_duration_since(Instant::now());
                let until = match spare {
                    Some(_) => Instant::now() + left / (count + 1) * count,
                    None => deadline,
                };
                match (self.open_one_of(addresses, attempt, until), spare) {
                    (Err(OpenError::Failed(failure)), Some(_)) => (failure, false),
                    (result, _) => return result,
                }
            }
            Err(OpenError::Failed(failure)) if good.is_some() => (failure, true),
            Err(OpenError::Failed(failure)) => return Err(attempt.failed_tcp(failure)),
            Err(e) => return Err(e),
        };
        // There is a failure only if there is another address.
        let Some(good) = good else { return Err(OpenError::Failed(failed)) };
        let text = format!("{failed}; trying {good}, the address at which {host} answered last");
        (self.progress)(Progress::Detour(text));
        match self.open_one_of(vec![good], attempt, deadline) {
            // A server that the name server no longer lists may have an old list of tokens.
            Err(OpenError::Unauthorized | OpenError::Expired) if !may_know => {
                Err(OpenError::Failed(failed))
            }
            result => result,
        }
    }

    fn open_one_of(
        &self,
        mut addresses: Vec<SocketAddr>,
        attempt: &Attempt<'_>,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        let mut failure: Option<Failure> = None;
        while !addresses.is_empty() {
            let result = self.race(&mut addresses, attempt, deadline).and_then(|(address, tcp)| {
                // The addresses that remain have not failed.
                let left = deadline.saturating_duration_since(Instant::now());
                let share = Instant::now() + left / (addresses.len() + 1) as u32;
                // The most recent one to fail, should it do so.
                self.history.borrow_mut().tries(address);
                let opened = self.open_at(tcp, attempt, share)?;
                self.history.borrow_mut().succeeded(attempt.host(), address);
                Ok(opened)
            });
            match result {
                Err(OpenError::Failed(next)) => {
                    if failure.as_ref().is_none_or(|former| next.weight() >= former.weight()) {
                        failure = Some(next);
                    }
                }
                result => return result,
            }
        }
        Err(failure.map_or_else(
            || {
                let host = attempt.host();
                attempt.failed_tcp(Failure::Lookup(format!(
                    "look up {host}: no address that may be used"
                )))
            },
            OpenError::Failed,
        ))
    }

    /// Looks up the addresses of a host.
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
                let found = result.map_err(failed)?;
                return Ok(self.history.borrow().sorted(found, self.network));
            }
            let waited = self.wait.wait(&[], false, deadline);
            waited.map_err(|e| not_waited("look up", e))?;
        }
    }

    /// Connects to one of the addresses. Leaves in `addresses` those that have not failed. After an
    /// error these are none.
    fn race(
        &self,
        addresses: &mut Vec<SocketAddr>,
        attempt: &Attempt<'_>,
        deadline: Instant,
    ) -> Result<(SocketAddr, TcpStream), OpenError> {
        let all = std::mem::take(addresses);
        let what = match all[..] {
            [address] => format!("connect to {address}"),
            _ => format!("connect to {} addresses", all.len()),
        };
        let mut race = Race::new(all, Instant::now(), deadline);
        let origin = self.network.origin();
        let begins = &mut |address| self.history.borrow_mut().tries(address);
        let mut ready = false;
        let failed = |failure| Err(attempt.failed_tcp(failure));
        loop {
            match race.step(ready, Instant::now(), &origin, begins) {
                Some(Won::By(address, tcp)) => {
                    *addresses = race.into_rest();
                    sys::reset_on_close(&tcp, false);
                    return match tcp.set_nodelay(true) {
                        Ok(()) => Ok((address, tcp)),
                        Err(e) => failed(Failure::Connect(format!("connect to {address}: {e}"))),
                    };
                }
                Some(Won::Nobody(address, e)) => {
                    let what = address.map_or(what, |address| format!("connect to {address}"));
                    return failed(Failure::Connect(format!("{what}: {e}")));
                }
                None => {}
            }
            let until = race.deadline().map_or(deadline, |at| at.min(deadline));
            let fds: Vec<BorrowedFd<'_>> = race.fds().collect();
            ready = match self.wait.wait(&fds, true, until) {
                Ok(()) => true,
                Err(WaitError::TimedOut) if Instant::now() < deadline => false,
                Err(e) => {
                    return match not_waited(&what, e) {
                        OpenError::Failed(failure) => failed(failure),
                        e => Err(e),
                    }
                }
            };
        }
    }

    fn open_at(
        &self,
        tcp: TcpStream,
        attempt: &Attempt<'_>,
        deadline: Instant,
    ) -> Result<Opened, OpenError> {
        let params = attempt.params;
        let local_port = tcp.local_addr().map_or(0, |address| address.port());
        (self.progress)(Progress::Connected { fd: tcp.as_raw_fd(), local_port });
        if let Some(proxy) = attempt.proxy {
            self.pass(&tcp, proxy, params, deadline)?;
        }
        let connector = attempt.tls.connector();
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

    // The steps have stack frames of their own. In one frame they would lie above that of OpenSSL's
    // handshake, which needs most of the stack, and each tunnel would keep pages for it.

    /// Makes the proxy connect to the server.
    #[inline(never)]
    fn pass(
        &self,
        tcp: &TcpStream,
        proxy: &Proxy,
        params: &ConnectParams,
        deadline: Instant,
    ) -> Result<(), OpenError> {
        let (host, port) = (params.host(), params.port().get());
        match dial::through_proxy(tcp, proxy, host, port, self.wait, deadline) {
            Ok(()) => {
                (self.progress)(Progress::ThroughProxy(proxy.to_string()));
                Ok(())
            }
            Err(ProxyError::Wait(WaitError::Interrupted)) => Err(OpenError::Interrupted),
            Err(e) => Err(OpenError::Failed(Failure::Proxy(explained_refusal(e, proxy, params)))),
        }
    }

    #[inline(never)]
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
        connector.warn_of_tolerance(host);
        (self.progress)(Progress::Secured);
        Ok(stream)
    }

    #[inline(never)]
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
                Refusal::Expired => OpenError::Expired,
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
        wait.wait(&[socket.tcp().as_fd()], room, deadline).map_err(TlsError::Wait)?;
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
    wait.wait(&[stream.as_fd()], room, deadline).map_err(HandshakeError::Wait)?;
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
            fds: &[BorrowedFd<'_>],
            write: bool,
            deadline: Instant,
        ) -> Result<(), WaitError> {
            let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, !write, write)).collect();
            sys::poll(&mut fds, Some(deadline)).map_err(WaitError::Io)?;
            if fds.iter().all(|fd| fd.ready() == Default::default()) {
                return Err(WaitError::TimedOut);
            }
            Ok(())
        }
    }

    #[test]
    fn an_address_that_does_not_answer_does_not_hide_the_next() {
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        // A listener whose backlog is full answers nothing to a further client.
        let full = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let dead = full.local_addr().unwrap();
        let _occupied = TcpStream::connect(dead).unwrap();
        let resolver = Resolver::new(Arc::new(Waker::new().unwrap()));
        let history = RefCell::default();
        let opener = Opener {
            wait: &Plainly,
            resolver: &resolver,
            network: &Network::new(),
            history: &history,
            progress: &|_| {},
        };
        let (port, token) = (Port::new(1).unwrap(), Token::new("hush-access").unwrap());
        let params = ConnectParams::new("gateway.example", port, "/", token).unwrap();
        let tls = TlsContext::new(Security::Plain);
        let attempt = Attempt { params: &params, tls: &tls, proxy: None };
        let good = good.local_addr().unwrap();
        let mut addresses = vec![dead, good, dead];
        // With shares of the time, this would take an hour.
        let deadline = Instant::now() + Duration::from_secs(3 * 3600);
        let won = opener.race(&mut addresses, &attempt, deadline);
        assert!(won.is_ok_and(|(address, _)| address == good));
        // Those that have not failed remain.
        assert!(!addresses.is_empty() && addresses.iter().all(|address| *address == dead));
        // Whichever is connected first is tried first, and all that began come after the others.
        let network = Network::new();
        assert_eq!(history.borrow().sorted(vec![dead, good], &network), [dead, good]);
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
        let history = RefCell::default();
        let opener = Opener {
            wait: &Plainly,
            resolver: &resolver,
            network: &Network::new(),
            history: &history,
            progress: &|_| {},
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        let tls = TlsContext::new(Security::Plain);
        let attempt = Attempt { params: &params.unwrap(), tls: &tls, proxy: None };
        let opened = opener.open_one_of(addresses.into(), &attempt, deadline);
        assert!(opened.is_ok());
        gateway.join().unwrap();
    }
}
