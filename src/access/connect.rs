//! TCP, TLS and the client's half of the opening handshake, within one time limit.

use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
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
use crate::sys::Waker;

const TIMEOUT: Duration = Duration::from_secs(15);

/// Opens the WebSocket.
pub(super) fn open(params: &ConnectParams, tls: &TlsContext, stop: &Arc<Waker>) -> Result<Peer> {
    let deadline = Instant::now() + TIMEOUT;
    let lost = |e: io::Error| Error::Connection(e.to_string());
    let tcp = connect(params, deadline).map_err(lost)?;
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
    let (head, rest) = stream.read_head().map_err(lost)?;
    check(&head, &key)?;
    Ok(Peer::new(stream, Role::Client, &rest))
}

fn connect(params: &ConnectParams, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the host name has no address");
    for address in (params.host(), params.port().get()).to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
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
