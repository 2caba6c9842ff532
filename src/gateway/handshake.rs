//! The server's half of the opening handshake. The request holds a token: nothing here logs it.

use std::io::{self, Write};

use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::Request;
use tungstenite::http::{HeaderMap, StatusCode};

use super::Side;
use crate::cloud::frame::{SUBPROTOCOL, TOKEN_HEADER};
use crate::peer::Stream;

/// A request that is well formed; whether it may in is the caller's decision.
pub(super) struct Opening {
    pub(super) tunnel: String,
    pub(super) side: Side,
    request: Request,
    /// Bytes that came after the request.
    pub(super) rest: Vec<u8>,
}

impl Opening {
    /// Reads a request; one that is no opening is answered with its error.
    pub(super) fn read(stream: &mut Stream) -> io::Result<Result<Self, StatusCode>> {
        let (head, rest) = stream.read_head()?;
        let head = zeroize::Zeroizing::new(head);
        let Ok(Some((_, request))) = Request::try_parse(&head) else {
            return Ok(Err(StatusCode::BAD_REQUEST));
        };
        let Some((tunnel, side)) = route(request.uri().path()) else {
            return Ok(Err(StatusCode::NOT_FOUND));
        };
        let tunnel = tunnel.to_owned();
        Ok(check_upgrade(request.headers()).map(|()| Opening { tunnel, side, request, rest }))
    }

    /// The token that the client presents; empty when it has none.
    pub(super) fn token(&self) -> &[u8] {
        self.request.headers().get(TOKEN_HEADER).map_or(b"", |value| value.as_bytes())
    }

    /// Answers 101.
    pub(super) fn accept(&self, stream: &mut Stream) -> io::Result<()> {
        let headers = self.request.headers();
        let key = headers.get("sec-websocket-key").map_or(&b""[..], |key| key.as_bytes());
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n",
            derive_accept_key(key)
        );
        // A client that names it in its plain `subprotocol` header has offered none to accept.
        if lists(headers, "sec-websocket-protocol", SUBPROTOCOL) {
            answer += &format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n");
        }
        answer += "\r\n";
        stream.write_all(answer.as_bytes())
    }
}

/// Answers with an error status.
pub(super) fn refuse(stream: &mut Stream, status: StatusCode) -> io::Result<()> {
    let version = match status {
        StatusCode::UPGRADE_REQUIRED => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        _ => "",
    };
    let answer =
        format!("HTTP/1.1 {status}\r\n{version}Content-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes())?;
    stream.shut_down();
    Ok(())
}

/// `/tunnel/<id>/dest` or `/tunnel/<id>/source`.
fn route(path: &str) -> Option<(&str, Side)> {
    let (id, end) = path.strip_prefix("/tunnel/")?.split_once('/')?;
    let side = match end {
        "dest" => Side::Device,
        "source" => Side::Access,
        _ => return None,
    };
    (!id.is_empty()).then_some((id, side))
}

fn check_upgrade(headers: &HeaderMap) -> Result<(), StatusCode> {
    if !lists(headers, "upgrade", "websocket") {
        return Err(StatusCode::UPGRADE_REQUIRED);
    }
    let version = headers.get("sec-websocket-version").map(|value| value.as_bytes());
    if version != Some(b"13") {
        return Err(StatusCode::UPGRADE_REQUIRED);
    }
    let has_key = headers.get("sec-websocket-key").is_some_and(|key| key.len() == 24);
    if !has_key || !lists(headers, "connection", "upgrade") {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(())
}

/// Whether a header's comma-separated list holds `item`, in any case.
fn lists(headers: &HeaderMap, name: &str, item: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(item))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_ends_of_a_tunnel_are_paths() {
        assert!(matches!(route("/tunnel/t/dest"), Some(("t", Side::Device))));
        assert!(matches!(route("/tunnel/t/source"), Some(("t", Side::Access))));
        for bad in ["/", "/tunnel//dest", "/tunnel/t", "/tunnel/t/", "/tunnel/t/dest/", "/x/t/dest"]
        {
            assert!(route(bad).is_none(), "{bad}");
        }
    }
}
