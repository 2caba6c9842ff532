//! From connection data to an open WebSocket, every wait of it in `poll`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use tungstenite::handshake::client::{generate_key, Response};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use zeroize::Zeroizing;

use super::frame::{SUBPROTOCOL, TOKEN_HEADER};
use super::read_ahead::ReadAhead;
use super::stream::Socket as _;
use super::tls::{Connector, Handshake, TlsContext, TlsStream};
use super::transport::{Socket, Transport};
use super::websocket::{Receiver, Role, Sender};
use super::Link;
use crate::config::ConnectParams;
use crate::logging::{info, warn, Code};
use crate::sys;

/// Bytes in the kernel that are not on their way yet: a millisecond of a fast link, ten seconds of a
/// very slow one (docs/performance.md).
const MAX_QUEUE: i32 = 128 * 1024;
/// Longest head of an HTTP response.
const MAX_HEAD: usize = 16 * 1024;

/// How the opening waits. Only the worker knows what else may wake it.
pub(crate) trait Wait {
    /// Waits until the descriptor is ready.
    fn wait(&self, fd: BorrowedFd<'_>, write: bool, deadline: Instant) -> Result<(), OpenError>;
    /// The addresses of a host, looked up without blocking what may interrupt the wait.
    fn resolve(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, OpenError>;
    /// Hears of each address that is tried.
    fn tries(&self, address: SocketAddr);
}

/// Why there is no WebSocket.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// A directive waits.
    Interrupted,
    /// The cloud refuses the token.
    Expired,
    /// Anything else: worth another try.
    Failed(Code, String),
}

fn failed<T>(code: Code, text: impl Into<String>) -> Result<T, OpenError> {
    Err(OpenError::Failed(code, text.into()))
}

/// Connects, secures and upgrades, before `deadline`.
pub(crate) fn open(
    params: &ConnectParams,
    tls: &TlsContext,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<Link, OpenError> {
    let (host, port) = (params.host(), params.port());
    info!(Code::Tunnel, "start to create cloud channel");
    info!(Code::Tunnel, "connect remote service host {host}, port {port}");
    let tcp = connect(params, wait, deadline)?;
    let local = tcp.local_addr().map_or(0, |address| address.port());
    let number = std::os::fd::AsRawFd::as_raw_fd(&tcp);
    info!(Code::Adapter, "success to establish tcp, fd={number}");
    info!(Code::Adapter, "local port: {local}");

    let connector = match tls.connector() {
        Ok(connector) => connector,
        Err(e) => return failed(Code::Handshake, format!("set up TLS: {e}")),
    };
    let (transport, default_port) = match connector {
        None => (Transport::Plain(Socket::new(tcp)), 80),
        Some(connector) => {
            info!(
                Code::Adapter,
                "establish tls connection with server(host='{host}', port=[{port}])"
            );
            let stream = secure(&connector, host, tcp, wait, deadline)?;
            info!(Code::Adapter, "success to establish tls connection");
            (Transport::Tls(Box::new(stream)), 443)
        }
    };
    let link = upgrade(transport, params, default_port, wait, deadline)?;
    info!(Code::Channel, "open_cloud_proxy_channel success");
    Ok(link)
}

/// Tries the addresses in turn; each gets its share of the time that is left.
fn connect(
    params: &ConnectParams,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<TcpStream, OpenError> {
    let addresses = wait.resolve(params.host(), params.port().get(), deadline)?;
    let mut last = (Code::Dns, "no address".to_owned());
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = Instant::now() + left / (addresses.len() - index) as u32;
        wait.tries(*address);
        match connect_one(*address, wait, share) {
            Ok(tcp) => return Ok(tcp),
            Err(OpenError::Failed(code, text)) => last = (code, text),
            Err(e) => return Err(e),
        }
    }
    Err(OpenError::Failed(last.0, last.1))
}

fn connect_one(
    address: SocketAddr,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<TcpStream, OpenError> {
    let refused =
        |e: io::Error| OpenError::Failed(Code::Channel, format!("connect to {address}: {e}"));
    let connecting = sys::connect(address).map_err(refused)?;
    wait.wait(connecting.as_fd(), true, deadline)?;
    let tcp = connecting.finish().map_err(refused)?;
    tcp.set_nodelay(true).map_err(refused)?;
    sys::limit_queue(&tcp, MAX_QUEUE);
    Ok(tcp)
}

fn secure(
    connector: &Connector,
    host: &str,
    tcp: TcpStream,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<TlsStream<ReadAhead<Socket>>, OpenError> {
    let mut handshake = connector.connect(host, ReadAhead::new(Socket::new(tcp)));
    loop {
        let mut middle = match handshake {
            Handshake::Done(stream) => return Ok(stream),
            Handshake::Waits(middle) => middle,
            Handshake::Failed(why) => {
                return failed(Code::Handshake, format!("TLS handshake with {host}: {why}"))
            }
        };
        // Its first flights fit the socket's buffer, so it is always the peer that is awaited.
        let socket = middle.get_mut().get_mut();
        wait.wait(socket.tcp().as_fd(), false, deadline)?;
        socket.arm();
        handshake = middle.go_on();
    }
}

fn upgrade(
    mut transport: Transport,
    params: &ConnectParams,
    default_port: u16,
    wait: &impl Wait,
    deadline: Instant,
) -> Result<Link, OpenError> {
    let key = generate_key();
    let request = request(params, default_port, &key);
    let mut rest = &request[..];
    while !rest.is_empty() {
        match transport.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait.wait(transport.as_fd(), true, deadline)?;
            }
            Err(e) => return failed(Code::TunnelFailed, format!("send the request: {e}")),
        }
    }

    let mut received = Vec::new();
    let head_length = loop {
        if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        if received.len() > MAX_HEAD {
            return failed(Code::TunnelFailed, "the server's answer has no end");
        }
        let mut chunk = [0; 4096];
        match transport.read(&mut chunk) {
            Ok(0) => return failed(Code::TunnelReset, "the server closed during the handshake"),
            Ok(length) => received.extend_from_slice(&chunk[..length]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait.wait(transport.as_fd(), false, deadline)?;
                transport.arm();
            }
            Err(e) => return failed(Code::TunnelReset, format!("receive the answer: {e}")),
        }
    };
    check_response(&received[..head_length], &key)?;

    let mut receiver = Receiver::new(Role::Client);
    receiver.feed(&received[head_length..]);
    Ok(Link { transport, receiver, sender: Sender::new(Role::Client) })
}

/// The upgrade request. It holds the token, so it is wiped and logged nowhere.
fn request(params: &ConnectParams, default_port: u16, key: &str) -> Zeroizing<Vec<u8>> {
    let host = params.host();
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let port = match params.port().get() {
        port if port == default_port => String::new(),
        port => format!(":{port}"),
    };
    let mut request = Zeroizing::new(Vec::with_capacity(8192));
    // Writing to a Vec cannot fail.
    let _ = write!(
        request,
        "GET {} HTTP/1.1\r\n\
         Host: {host}{port}\r\n\
         Connection: Upgrade\r\n\
         Upgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\
         {TOKEN_HEADER}: {}\r\n\r\n",
        params.path(),
        params.token.expose(),
    );
    request
}

pub(super) fn check_response(head: &[u8], key: &str) -> Result<(), OpenError> {
    let response = match Response::try_parse(head) {
        Ok(Some((_, response))) => response,
        Ok(None) => return failed(Code::TunnelFailed, "the server's answer is no HTTP"),
        Err(e) => return failed(Code::TunnelFailed, format!("the server's answer: {e}")),
    };
    match response.status().as_u16() {
        101 => {}
        401 => return Err(OpenError::Expired),
        other => {
            return failed(Code::TunnelFailed, format!("the server answered HTTP {other}, not 101"))
        }
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let has_token = |name: &str, token: &str| {
        let values =
            response.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|v| v.trim().eq_ignore_ascii_case(token))
    };
    if !has_token("upgrade", "websocket") || !has_token("connection", "upgrade") {
        return failed(Code::TunnelFailed, "the server's 101 does not upgrade to WebSocket");
    }
    if header("sec-websocket-accept") != Some(derive_accept_key(key.as_bytes()).as_str()) {
        return failed(Code::TunnelFailed, "the server's Sec-WebSocket-Accept is wrong");
    }
    if response.headers().contains_key("sec-websocket-extensions") {
        return failed(Code::TunnelFailed, "the server uses an extension that nobody offered");
    }
    match header("sec-websocket-protocol") {
        Some(SUBPROTOCOL) => Ok(()),
        Some(_) => failed(Code::TunnelFailed, "the server chose another subprotocol"),
        None if response.headers().contains_key("sec-websocket-protocol") => {
            failed(Code::TunnelFailed, "the server chose an unreadable subprotocol")
        }
        None => {
            warn!(Code::Tunnel, "the server names no subprotocol; going on");
            Ok(())
        }
    }
}

/// What is left until a deadline, as an error when it is nothing.
pub(crate) fn timed_out(what: &str, limit: Duration) -> OpenError {
    OpenError::Failed(Code::TunnelTimeout, format!("{what}: nothing within {limit:?}"))
}
