//! A cloud for one test: a WebSocket server by tungstenite, whose every frame the test decides.
//!
//! It accepts devices and nothing else. What is sent afterwards is up to the test and
//! [`TunnelEnd`]; a gateway that relays between two ends is the library's own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use aiot_tunnel::{ConnectParams, Port, Token};
use openssl::ssl::SslAcceptor;
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::WebSocket;

use crate::frame::SUBPROTOCOL;
use crate::tunnel_end::{Stream, TunnelEnd};
use crate::wait::{accept, TIMEOUT};
use crate::{logs, DEVICE_TOKEN};

/// Where devices connect.
pub struct Cloud {
    pub listener: TcpListener,
    acceptor: Option<SslAcceptor>,
}

impl Cloud {
    pub fn plain() -> Self {
        logs::keep();
        Cloud { listener: TcpListener::bind("127.0.0.1:0").unwrap(), acceptor: None }
    }

    pub fn tls(acceptor: SslAcceptor) -> Self {
        Cloud { acceptor: Some(acceptor), ..Cloud::plain() }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub fn params(&self) -> ConnectParams {
        params("127.0.0.1", self.address().port())
    }

    /// The next device that connects.
    pub fn accept(&self) -> TunnelEnd {
        self.accept_if(|_| None).unwrap()
    }

    /// The next device. `refuse` may give the HTTP status to refuse it with; then, or if the
    /// connection is lost before it is open, the result is `None`.
    pub fn accept_if(&self, refuse: impl Fn(&Request) -> Option<u16>) -> Option<TunnelEnd> {
        self.admit(DEVICE_TOKEN, refuse)
    }

    /// The next device, whose token is not [`DEVICE_TOKEN`].
    pub fn accept_with_token(&self, token: &str) -> TunnelEnd {
        self.admit(token, |_| None).unwrap()
    }

    fn admit(&self, token: &str, refuse: impl Fn(&Request) -> Option<u16>) -> Option<TunnelEnd> {
        let tcp = set_up(accept(&self.listener));
        let clone = tcp.try_clone().unwrap();
        let stream: Box<dyn Stream> = match &self.acceptor {
            None => Box::new(clone),
            Some(acceptor) => Box::new(acceptor.accept(clone).ok()?),
        };
        let check = |request: &Request| {
            assert_eq!(request.headers()["sec-websocket-protocol"], SUBPROTOCOL);
            assert_eq!(request.headers()["tunnel-access-token"], token);
            refuse(request)
        };
        let (socket, path) = answer(stream, check)?;
        Some(TunnelEnd { socket, tcp, path })
    }
}

/// Opens a plain WebSocket on an accepted connection, whatever the client's token is.
pub fn upgrade(tcp: TcpStream) -> TunnelEnd {
    let tcp = set_up(tcp);
    let stream: Box<dyn Stream> = Box::new(tcp.try_clone().unwrap());
    let (socket, path) = answer(stream, |_| None).expect("a WebSocket handshake");
    TunnelEnd { socket, tcp, path }
}

fn set_up(tcp: TcpStream) -> TcpStream {
    tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
    tcp.set_write_timeout(Some(TIMEOUT)).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp
}

/// Answers a WebSocket request with 101, or with the status that `refuse` gives. Returns the open
/// WebSocket and the path that was asked for.
#[allow(clippy::result_large_err)]
pub fn answer<S: Read + Write>(
    stream: S,
    refuse: impl Fn(&Request) -> Option<u16>,
) -> Option<(WebSocket<S>, String)> {
    let mut path = String::new();
    let callback = |request: &Request, mut response: Response| {
        path = request.uri().to_string();
        if let Some(status) = refuse(request) {
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = status.try_into().unwrap();
            return Err(refusal);
        }
        let protocol = request.headers()["sec-websocket-protocol"].clone();
        response.headers_mut().insert("sec-websocket-protocol", protocol);
        Ok(response)
    };
    let socket = tungstenite::accept_hdr(stream, callback).ok()?;
    Some((socket, path))
}

/// Where a device of a test connects, with [`DEVICE_TOKEN`].
pub fn params(host: &str, port: u16) -> ConnectParams {
    let token = Token::new(DEVICE_TOKEN).unwrap();
    ConnectParams::new(host, Port::new(port).unwrap(), "/tunnel/t/dest?x=1", token).unwrap()
}
