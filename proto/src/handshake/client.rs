//! The client's part of the opening handshake: writes the request and checks the answer. The
//! request holds a token. This module does not log it.

use std::io::Write;

use tungstenite::handshake::client::{generate_key, Response};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use zeroize::Zeroizing;

use super::{fault, EXPIRED, REFUSAL_HEADER};
use crate::frame::{SUBPROTOCOL, TOKEN_HEADER};

/// What a request says about its sender, for the logs of proxies and servers.
const USER_AGENT: &str = concat!("aiot-tunnel/", env!("CARGO_PKG_VERSION"));

/// The parameters of a request.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Host name or address. An IPv6 address has no brackets.
    pub host: &'a str,
    /// The port of the server.
    pub port: u16,
    /// The default port of the scheme. The `Host` header leaves it out.
    pub default_port: u16,
    /// The path of the request, with its query.
    pub path: &'a str,
    /// The device token or the access token.
    pub token: &'a str,
}

/// One handshake. It keeps the random key that the answer must match.
pub struct ClientHandshake {
    key: String,
}

/// An answer that is not a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The WebSocket is open. An answer that does not name the subprotocol is accepted, as the C
    /// SDK does.
    Accepted {
        /// Whether the answer names the subprotocol.
        names_subprotocol: bool,
    },
    /// An interim answer: a 1xx status other than 101. The final answer follows (RFC 9110, 15.2).
    Interim,
}

/// Why the WebSocket was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// HTTP 401: the token is wrong or has expired.
    #[error("the server refused the token (HTTP 401)")]
    Unauthorized,
    /// HTTP 401 of our gateway: the token is right, and the tunnel has expired.
    #[error("the tunnel has expired (HTTP 401)")]
    Expired,
    /// The server answered with this status, which is neither 101 nor 401.
    #[error("the server answered HTTP {0}, not 101")]
    Status(u16),
    /// The answer is invalid or does not match the request. The text says why.
    #[error("{0}")]
    Invalid(String),
}

fn invalid<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Invalid(what.into()))
}

impl Default for ClientHandshake {
    /// A handshake with a new random key.
    fn default() -> Self {
        ClientHandshake { key: generate_key() }
    }
}

impl ClientHandshake {
    /// A handshake with a given key, for tests.
    pub fn with_key(key: &str) -> Self {
        ClientHandshake { key: key.to_owned() }
    }

    /// The request. It holds the token: do not log it. It is wiped when it is dropped.
    pub fn request(&self, target: &Target<'_>) -> Zeroizing<Vec<u8>> {
        let host = match target.host {
            host if host.contains(':') => format!("[{host}]"),
            host => host.to_owned(),
        };
        let port = match target.port {
            port if port == target.default_port => String::new(),
            port => format!(":{port}"),
        };
        // The capacity is large enough for any request. If the buffer grew, it would leave a copy
        // of the token behind.
        let mut request = Zeroizing::new(Vec::with_capacity(8192));
        // Writing to a Vec cannot fail.
        let _ = write!(
            request,
            "GET {} HTTP/1.1\r\n\
             Host: {host}{port}\r\n\
             User-Agent: {USER_AGENT}\r\n\
             Connection: Upgrade\r\n\
             Upgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {}\r\n\
             Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\
             {TOKEN_HEADER}: {}\r\n\r\n",
            target.path, self.key, target.token,
        );
        request
    }

    /// Checks the head of an answer. Call it again for the answer that follows [`Answer::Interim`].
    ///
    /// # Errors
    /// [`Refusal`] says why the WebSocket is not open.
    pub fn check(&self, head: &[u8]) -> Result<Answer, Refusal> {
        let response = match Response::try_parse(head) {
            Ok(Some((_, response))) => response,
            Ok(None) => return invalid(fault::NOT_HTTP),
            Err(e) => return invalid(format!("the server's answer: {e}")),
        };
        match response.status().as_u16() {
            101 => {}
            100..200 => return Ok(Answer::Interim),
            401 => {
                let reason = response.headers().get(REFUSAL_HEADER);
                let has_expired =
                    reason.is_some_and(|reason| reason.as_bytes() == EXPIRED.as_bytes());
                return Err(if has_expired { Refusal::Expired } else { Refusal::Unauthorized });
            }
            other => return Err(Refusal::Status(other)),
        }
        let headers = response.headers();
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let lists = |name: &str, item: &str| {
            let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).any(|v| v.trim().eq_ignore_ascii_case(item))
        };
        if !lists("upgrade", "websocket") || !lists("connection", "upgrade") {
            return invalid("the server's 101 does not upgrade to WebSocket");
        }
        let accept = derive_accept_key(self.key.as_bytes());
        if header("sec-websocket-accept") != Some(accept.as_str()) {
            return invalid("the server's Sec-WebSocket-Accept is wrong");
        }
        if headers.contains_key("sec-websocket-extensions") {
            return invalid("the server uses an extension that was not offered");
        }
        match header("sec-websocket-protocol") {
            Some(SUBPROTOCOL) => Ok(Answer::Accepted { names_subprotocol: true }),
            Some(_) => invalid("the server chose another subprotocol"),
            None if headers.contains_key("sec-websocket-protocol") => {
                invalid("the server chose an unreadable subprotocol")
            }
            None => Ok(Answer::Accepted { names_subprotocol: false }),
        }
    }
}
