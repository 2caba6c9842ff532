//! TCP, TLS and the client's half of the opening handshake, within one time limit.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tungstenite::handshake::client::{generate_key, Response};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use zeroize::Zeroizing;

use super::{Error, Result};
use crate::cloud::frame::{SUBPROTOCOL, TOKEN_HEADER};
use crate::cloud::read_ahead::ReadAhead;
use crate::cloud::tls::{Handshake, TlsContext};
use crate::cloud::websocket::Role;
use crate::config::ConnectParams;
use crate::peer::{Peer, Socket, Stream};
use crate::sys::{self, poll, PollFd, Waker};

const TIMEOUT: Duration = Duration::from_secs(15);

/// Opens WebSockets of one tunnel, one after the other.
pub(super) struct Connector<'a> {
    params: &'a ConnectParams,
    tls: &'a TlsContext,
    stop: &'a Arc<Waker>,
    /// A lookup that an attempt gave up waiting for.
    lookup: Option<Lookup>,
}

/// The system's resolver cannot be interrupted, so it runs on a thread of its own, which nobody
/// has to wait for.
struct Lookup {
    done: Arc<Waker>,
    found: Receiver<io::Result<Vec<SocketAddr>>>,
}

impl Lookup {
    fn start(host: &str, port: u16) -> io::Result<Self> {
        let (host, done) = (host.to_owned(), Arc::new(Waker::new()?));
        let (sender, found) = crossbeam_channel::bounded(1);
        let wake = done.clone();
        thread::Builder::new().name("access-resolve".into()).spawn(move || {
            let _ = sender.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
            wake.wake();
        })?;
        Ok(Lookup { done, found })
    }
}

impl<'a> Connector<'a> {
    pub(super) fn new(
        params: &'a ConnectParams,
        tls: &'a TlsContext,
        stop: &'a Arc<Waker>,
    ) -> Self {
        Connector { params, tls, stop, lookup: None }
    }

    /// One attempt, within the time limit.
    pub(super) fn open(&mut self) -> Result<Peer> {
        let deadline = Instant::now() + TIMEOUT;
        let addresses = self.look_up(deadline).map_err(lost)?;
        self.open_first_of(&addresses, deadline)
    }

    fn look_up(&mut self, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = (self.params.host(), self.params.port().get());
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        // One that hangs is waited for again: another would hang beside it.
        let lookup = match self.lookup.take() {
            Some(lookup) => lookup,
            None => Lookup::start(host, port)?,
        };
        if let Err(e) = self.wait(lookup.done.as_fd(), false, deadline) {
            self.lookup = Some(lookup);
            return Err(e);
        }
        lookup.found.recv().map_err(io::Error::other)?
    }

    /// Each address has its share of the time for all that it takes: one that never answers, or
    /// takes the connection and says nothing, must not use up its successors'.
    fn open_first_of(&self, addresses: &[SocketAddr], deadline: Instant) -> Result<Peer> {
        let mut last = Error::Connection("the host name has no address".into());
        for (done, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = Instant::now() + left / (addresses.len() - done) as u32;
            match self.open_at(*address, share) {
                // A certificate says more than another address at which nobody listens.
                Err(Error::Connection(_)) if matches!(last, Error::Tls(_)) => {}
                Err(e @ (Error::Connection(_) | Error::Tls(_))) => last = e,
                result => return result,
            }
            if self.is_stopped() {
                break;
            }
        }
        Err(last)
    }

    fn open_at(&self, address: SocketAddr, deadline: Instant) -> Result<Peer> {
        let connecting = sys::connect(address).map_err(lost)?;
        self.wait(connecting.as_fd(), true, deadline).map_err(lost)?;
        let tcp = connecting.finish().map_err(lost)?;
        let socket = Socket::patient(tcp, deadline, self.stop.clone())?;
        let connector = self.tls.connector().map_err(Error::Tls)?;
        let mut stream = match &connector {
            None => Stream::Plain(socket),
            Some(connector) => {
                match connector.connect(self.params.host(), ReadAhead::new(socket)) {
                    Handshake::Done(stream) => Stream::Tls(Box::new(stream)),
                    Handshake::Failed(why) => return Err(Error::Tls(why)),
                    Handshake::Waits(_) => {
                        return Err(Error::Tls("the handshake took too long".into()));
                    }
                }
            }
        };
        let key = generate_key();
        let request = request(self.params, &key, connector.is_some());
        stream.write_all(request.as_bytes()).map_err(lost)?;
        let head = stream.read_head().map_err(lost)?;
        let (head, rest) =
            head.ok_or_else(|| Error::Connection("the answer's head is over 16 KiB long".into()))?;
        check(&head, &key)?;
        Ok(Peer::new(stream, Role::Client, &rest, Instant::now()))
    }

    /// Until the descriptor is ready.
    fn wait(&self, fd: BorrowedFd<'_>, writes: bool, deadline: Instant) -> io::Result<()> {
        let mut fds =
            [PollFd::new(fd, !writes, writes), PollFd::new(self.stop.as_fd(), true, false)];
        loop {
            poll(&mut fds, Some(deadline))?;
            let [ready, stopped] = [fds[0].ready(), fds[1].ready()];
            if stopped.read {
                return Err(io::Error::other("stopped"));
            }
            if ready.read || ready.write {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn is_stopped(&self) -> bool {
        let mut fds = [PollFd::new(self.stop.as_fd(), true, false)];
        poll(&mut fds, Some(Instant::now())).is_ok() && fds[0].ready().read
    }
}

fn lost(e: io::Error) -> Error {
    Error::Connection(e.to_string())
}

fn request(params: &ConnectParams, key: &str, secure: bool) -> Zeroizing<String> {
    let host = match params.host() {
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    let port = match (params.port().get(), secure) {
        (443, true) | (80, false) => String::new(),
        (port, _) => format!(":{port}"),
    };
    Zeroizing::new(format!(
        "GET {} HTTP/1.1\r\nHost: {host}{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n{TOKEN_HEADER}: {}\r\n\r\n",
        params.path(),
        params.token.expose(),
    ))
}

fn check(head: &[u8], key: &str) -> Result<()> {
    let not_one = |what: &str| Error::Connection(format!("the answer is no WebSocket's: {what}"));
    let Ok(Some((_, response))) = Response::try_parse(head) else {
        return Err(not_one("not HTTP"));
    };
    match response.status().as_u16() {
        101 => {}
        401 => return Err(Error::Unauthorized),
        other => return Err(Error::Status(other)),
    }
    let header = |name| response.headers().get(name).map(|value| value.as_bytes());
    if header("sec-websocket-accept") != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(not_one("wrong Sec-WebSocket-Accept"));
    }
    match header("sec-websocket-protocol") {
        Some(name) if name != SUBPROTOCOL.as_bytes() => Err(not_one("another subprotocol")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    use crate::config::{Port, Security, Token};

    fn with_connector(test: impl FnOnce(&mut Connector<'_>)) {
        let port = Port::new(1).unwrap();
        let token = Token::new("hush-access").unwrap();
        let params = ConnectParams::new("gateway.example", port, "/tunnel/t1/source", token);
        let (params, tls) = (params.unwrap(), TlsContext::new(Security::Plain));
        let stop = Arc::new(Waker::new().unwrap());
        test(&mut Connector::new(&params, &tls, &stop));
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
        with_connector(|connector| {
            let peer = connector.open_first_of(&addresses, Instant::now() + TIMEOUT / 3);
            assert!(peer.is_ok_and(|peer| peer.is_open()));
        });
        gateway.join().unwrap();
    }

    #[test]
    fn a_lookup_that_hangs_is_waited_for_again_and_not_begun_again() {
        with_connector(|connector| {
            let (sender, found) = crossbeam_channel::bounded(1);
            let done = Arc::new(Waker::new().unwrap());
            connector.lookup = Some(Lookup { done: done.clone(), found });
            for _ in 0..3 {
                let timed_out = connector.look_up(Instant::now()).unwrap_err();
                assert_eq!(timed_out.kind(), io::ErrorKind::TimedOut);
            }
            let addresses = vec!["192.0.2.1:1".parse().unwrap()];
            sender.send(Ok(addresses.clone())).unwrap();
            done.wake();
            let found = connector.look_up(Instant::now() + TIMEOUT);
            assert_eq!(found.unwrap(), addresses);
            assert!(connector.lookup.is_none());
        });
    }
}
