//! What tests of the embedded gateway share: its tunnels' configuration, and clients that connect to
//! it by tungstenite. The gateway itself is the library's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use aiot_tunnel::gateway::TunnelConfig;
use aiot_tunnel::{Token, TunnelId};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Error, HandshakeError};

use crate::frame::SUBPROTOCOL;
use crate::tunnel_end::TunnelEnd;
use crate::wait::TIMEOUT;
use crate::{ACCESS_TOKEN, DEVICE_TOKEN};

/// A tunnel with the tests' tokens that does not expire.
pub fn tunnel(id: &str) -> TunnelConfig {
    tunnel_with_tokens(id, DEVICE_TOKEN, ACCESS_TOKEN)
}

/// A tunnel that does not expire.
pub fn tunnel_with_tokens(id: &str, device_token: &str, access_token: &str) -> TunnelConfig {
    TunnelConfig::new(
        TunnelId::new(id).unwrap(),
        Token::new(device_token).unwrap(),
        Token::new(access_token).unwrap(),
    )
}

/// A TCP connection whose reads do not wait for ever.
pub fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// Connects to a path with a token. The error is the HTTP status of a refusal.
pub fn connect(
    address: SocketAddr,
    path: &str,
    token: Option<&str>,
) -> Result<TunnelEnd<TcpStream>, u16> {
    let tcp = tcp(address);
    let stream = tcp.try_clone().unwrap();
    connect_over(stream, tcp, path, token).map_err(|e| match e {
        HandshakeError::Failure(Error::Http(response)) => response.status().as_u16(),
        e => panic!("{path}: {e}"),
    })
}

/// Connects over a stream that is open already, which runs over `tcp`.
#[allow(clippy::result_large_err)]
pub fn connect_over<S: Read + Write>(
    stream: S,
    tcp: TcpStream,
    path: &str,
    token: Option<&str>,
) -> Result<TunnelEnd<S>, HandshakeError<tungstenite::ClientHandshake<S>>> {
    let address = tcp.peer_addr().unwrap();
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    if let Some(token) = token {
        headers.insert("tunnel-access-token", token.parse().unwrap());
    }
    let (socket, _) = tungstenite::client(request, stream)?;
    Ok(TunnelEnd { socket, tcp, path: path.to_owned() })
}
