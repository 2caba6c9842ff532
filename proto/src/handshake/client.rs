//! The client's half of the opening handshake: writes the request and checks the answer. The request
//! holds a token, which is not logged here.

use std::io::Write;

use tungstenite::handshake::client::{generate_key, Response};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use zeroize::Zeroizing;

use crate::frame::{SUBPROTOCOL, TOKEN_HEADER};

/// What a request asks for, and of whom.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Name or address, an IPv6 address without brackets.
    pub host: &'a str,
    /// The port that is connected to.
    pub port: u16,
    /// The port that the scheme implies, which the `Host` header leaves out.
    pub default_port: u16,
    /// The request target, a query included.
    pub path: &'a str,
    /// The token of this end.
    pub token: &'a str,
}

/// One handshake: its request and the key that the answer must match.
pub struct ClientHandshake {
    key: String,
}

/// An answer that does not refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The WebSocket is open. An answer need not name the subprotocol: the connection is used all
    /// the same, as the C SDK does.
    Accepted {
        /// Whether the answer names the subprotocol.
        names_subprotocol: bool,
    },
    /// An interim answer (1xx other than 101), after which the real one follows (RFC 9110, 15.2).
    Interim,
}

/// Why an answer does not open the WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// HTTP 401: the token is wrong or has expired.
    #[error("the server refused the token (HTTP 401)")]
    Unauthorized,
    /// Another status than 101.
    #[error("the server answered HTTP {0}, not 101")]
    Status(u16),
    /// No valid answer to this request.
    #[error("{0}")]
    Invalid(String),
}

fn invalid<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Invalid(what.into()))
}

impl Default for ClientHandshake {
    /// With a fresh random key.
    fn default() -> Self {
        ClientHandshake { key: generate_key() }
    }
}

impl ClientHandshake {
    /// With a key of the caller's choice, for tests.
    pub fn with_key(key: &str) -> Self {
        ClientHandshake { key: key.to_owned() }
    }

    /// The request. It holds the token, so it is wiped when dropped; do not log it.
    pub fn request(&self, target: &Target<'_>) -> Zeroizing<Vec<u8>> {
        let host = match target.host {
            host if host.contains(':') => format!("[{host}]"),
            host => host.to_owned(),
        };
        let port = match target.port {
            port if port == target.default_port => String::new(),
            port => format!(":{port}"),
        };
        // Large enough never to grow, since growing would leave a copy of the token behind.
        let mut request = Zeroizing::new(Vec::with_capacity(8192));
        // Writing to a Vec cannot fail.
        let _ = write!(
            request,
            "GET {} HTTP/1.1\r\n\
             Host: {host}{port}\r\n\
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

    /// Checks the head of an answer.
    ///
    /// # Errors
    /// The reason for which the WebSocket is not open.
    pub fn check(&self, head: &[u8]) -> Result<Answer, Refusal> {
        let response = match Response::try_parse(head) {
            Ok(Some((_, response))) => response,
            Ok(None) => return invalid("the server's answer is not HTTP"),
            Err(e) => return invalid(format!("the server's answer: {e}")),
        };
        match response.status().as_u16() {
            101 => {}
            100..200 => return Ok(Answer::Interim),
            401 => return Err(Refusal::Unauthorized),
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
