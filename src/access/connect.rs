//! TCP, TLS and the client's half of the opening handshake, within one time limit.

use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tungstenite::handshake::client::{generate_key, Response};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use zeroize::Zeroizing;

use super::{Error, Result};
use crate::cloud::frame::{SUBPROTOCOL, TOKEN_HEADER};
use crate::cloud::tls::TlsContext;
use crate::cloud::websocket::Role;
use crate::config::ConnectParams;
use crate::peer::{Peer, Socket, Stream};
use crate::sys::{poll, PollFd, Waker};

const TIMEOUT: Duration = Duration::from_secs(15);

/// Opens the WebSocket.
pub(super) fn open(params: &ConnectParams, tls: &TlsContext, stop: &Arc<Waker>) -> Result<Peer> {
    let deadline = Instant::now() + TIMEOUT;
    let lost = |e: io::Error| Error::Connection(e.to_string());
    let tcp = connect(params, deadline, stop).map_err(lost)?;
    let socket = Socket::patient(tcp, deadline, stop.clone())?;
    let connector = tls.connector().map_err(|e| Error::Tls(e.to_string()))?;
    let mut stream = match &connector {
        None => Stream::Plain(socket),
        Some(connector) => match connector.connect(params.host(), socket) {
            Ok(stream) => Stream::Tls(Box::new(stream)),
            Err(native_tls::HandshakeError::Failure(e)) => return Err(Error::Tls(e.to_string())),
            Err(_) => return Err(Error::Tls("the handshake took too long".into())),
        },
    };
    let key = generate_key();
    let request = request(params, &key, connector.is_some());
    stream.write_all(request.as_bytes()).map_err(lost)?;
    let head = stream.read_head().map_err(lost)?;
    let (head, rest) =
        head.ok_or_else(|| Error::Connection("the answer's head is over 16 KiB long".into()))?;
    check(&head, &key)?;
    Ok(Peer::new(stream, Role::Client, &rest, Instant::now()))
}

/// Finds and connects the host. Neither resolver nor connect can be interrupted, so they run on
/// a thread of their own, which a stop does not wait for.
fn connect(params: &ConnectParams, deadline: Instant, stop: &Waker) -> io::Result<TcpStream> {
    let (host, port) = (params.host().to_owned(), params.port().get());
    let done = Arc::new(Waker::new()?);
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let wake = done.clone();
    thread::Builder::new().name("access-connect".into()).spawn(move || {
        let _ = sender.send(connect_host(&host, port, deadline));
        wake.wake();
    })?;
    let mut fds = [PollFd::new(done.as_fd(), true, false), PollFd::new(stop.as_fd(), true, false)];
    loop {
        poll(&mut fds, Some(deadline))?;
        if fds[1].ready().read {
            return Err(io::Error::other("stopped"));
        }
        match receiver.try_recv() {
            Ok(result) => return result,
            Err(_) if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

fn connect_host(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the host name has no address");
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    for (done, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        // Each has its share: one that never answers must not use up its successors' time.
        let share = left / (addresses.len() - done) as u32;
        if share.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(address, share) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
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
