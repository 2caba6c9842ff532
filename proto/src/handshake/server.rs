//! The server's part of the opening handshake: reads the head of the request and writes the answer.
//! The request holds a token. This module neither logs nor copies it.

use tungstenite::handshake::derive_accept_key;
use tungstenite::http::StatusCode;

use super::{EXPIRED, REFUSAL_HEADER};
use crate::frame::{MAX_NAME, SUBPROTOCOL, TOKEN_HEADER};
use crate::Side;

/// Most header lines of a request. tungstenite has the same limit.
const MAX_HEADERS: usize = 124;

/// A well-formed request. The caller decides whether to accept it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Opening<'a> {
    /// The tunnel id from the path, as it is written there.
    pub tunnel: &'a str,
    /// The end of the tunnel from the path.
    pub side: Side,
    /// The token that the client presents. Empty if there is none.
    pub token: &'a [u8],
    key: &'a [u8],
    offers_subprotocol: bool,
}

impl<'a> Opening<'a> {
    /// Reads the head of a request.
    ///
    /// # Errors
    /// The HTTP status to answer with, if the head is not a valid request for a tunnel.
    pub fn parse(head: &'a [u8]) -> Result<Self, StatusCode> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(head) {
            Ok(httparse::Status::Complete(length)) if length == head.len() => {}
            Err(httparse::Error::TooManyHeaders) => {
                return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            }
            _ => return Err(StatusCode::BAD_REQUEST),
        }
        if (request.method, request.version) != (Some("GET"), Some(1)) {
            return Err(StatusCode::BAD_REQUEST);
        }
        let headers = Headers(request.headers);
        let (tunnel, side) = route(request.path.unwrap_or("")).ok_or(StatusCode::NOT_FOUND)?;
        headers.check_upgrade()?;
        // RFC 9112 requires exactly one, and 400 otherwise.
        headers.only("host")?.ok_or(StatusCode::BAD_REQUEST)?;
        // With two token headers it would be unclear which of them counts.
        let token = headers.only(TOKEN_HEADER)?.unwrap_or(b"");
        let key = headers.only("sec-websocket-key")?.filter(|key| is_key(key));
        // Some clients name the subprotocol only in a header called `subprotocol`. That is not an
        // offer, so the answer must not accept it.
        let offers_subprotocol = headers.lists("sec-websocket-protocol", SUBPROTOCOL);
        let key = key.ok_or(StatusCode::BAD_REQUEST)?;
        Ok(Opening { tunnel, side, token, key, offers_subprotocol })
    }

    /// The 101 answer that accepts the request.
    pub fn answer(&self) -> Vec<u8> {
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {}\r\n",
            derive_accept_key(self.key)
        );
        if self.offers_subprotocol {
            answer += &format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n");
        }
        answer += "\r\n";
        answer.into_bytes()
    }
}

/// The values of a header in the head of a request, in their order.
pub fn header_values<'a>(head: &'a [u8], name: &str) -> Vec<&'a [u8]> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(_) => Headers(request.headers).all(name).collect(),
        Err(_) => Vec::new(),
    }
}

/// The answer that refuses a request with this status.
pub fn refusal(status: StatusCode) -> Vec<u8> {
    let version = match status {
        StatusCode::UPGRADE_REQUIRED => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        _ => "",
    };
    refuse(status, version)
}

/// The answer to a client that presents the right token after the tunnel has expired. Only such a
/// client may learn of that.
pub fn expired() -> Vec<u8> {
    refuse(StatusCode::UNAUTHORIZED, &format!("{REFUSAL_HEADER}: {EXPIRED}\r\n"))
}

fn refuse(status: StatusCode, header: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n")
        .into_bytes()
}

/// Reads `/tunnel/<id>/dest` or `/tunnel/<id>/source`, with or without a query. The path is neither
/// decoded nor normalized, so each path has one spelling.
fn route(target: &str) -> Option<(&str, Side)> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let (id, end) = path.strip_prefix("/tunnel/")?.split_once('/')?;
    let side = match end {
        "dest" => Side::Device,
        "source" => Side::Access,
        _ => return None,
    };
    // No tunnel has a longer id. Control characters are refused because the id appears in the log.
    let is_name = (1..=MAX_NAME).contains(&id.len()) && !id.contains(char::is_control);
    is_name.then_some((id, side))
}

/// Whether the key is 16 bytes in base64.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key[..22].iter().all(is_digit) && key.ends_with(b"==")
}

struct Headers<'h, 'a>(&'h [httparse::Header<'a>]);

impl<'a> Headers<'_, 'a> {
    fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.0.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).map(|h| h.value)
    }

    /// The value of a header. It is an error if the header appears twice.
    fn only(&self, name: &str) -> Result<Option<&'a [u8]>, StatusCode> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() {
            return Err(StatusCode::BAD_REQUEST);
        }
        Ok(first)
    }

    /// Whether the comma-separated values of a header contain `item`. Ignores case.
    fn lists(&self, name: &str, item: &str) -> bool {
        let values = self.all(name).filter_map(|value| std::str::from_utf8(value).ok());
        let mut parts = values.flat_map(|value| value.split(','));
        parts.any(|part| part.trim().eq_ignore_ascii_case(item))
    }

    fn check_upgrade(&self) -> Result<(), StatusCode> {
        if !self.lists("upgrade", "websocket") {
            return Err(StatusCode::UPGRADE_REQUIRED);
        }
        if self.only("sec-websocket-version")? != Some(&b"13"[..]) {
            return Err(StatusCode::UPGRADE_REQUIRED);
        }
        // A body would be mistaken for the first WebSocket message.
        let has_body = self.all("transfer-encoding").next().is_some()
            || self.all("content-length").any(|length| length != b"0");
        if has_body || !self.lists("connection", "upgrade") {
            return Err(StatusCode::BAD_REQUEST);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_ends_of_a_tunnel_are_paths() {
        assert!(matches!(route("/tunnel/t/dest"), Some(("t", Side::Device))));
        assert!(matches!(route("/tunnel/t/source"), Some(("t", Side::Access))));
        assert!(matches!(route("/tunnel/t/source?/dest"), Some(("t", Side::Access))));
        assert!(matches!(route("/tunnel/%2e/dest"), Some(("%2e", Side::Device))));
        let of_length = |length| format!("/tunnel/{}/dest", "t".repeat(length));
        assert!(route(&of_length(127)).is_some() && route(&of_length(128)).is_none());
        for bad in [
            "/",
            "",
            "*",
            "/tunnel//dest",
            "/tunnel/t",
            "/tunnel/t/",
            "/tunnel/t/dest/",
            "/tunnel/t/dest/.",
            "/tunnel/t/dest/../source",
            "/tunnel/t/source/../dest",
            "/tunnel/./t/dest",
            "/tunnel/t/%64est",
            "/tunnel/t%2fdest",
            "/tunnel/t//dest",
            "//tunnel/t/dest",
            "/x/../tunnel/t/dest",
            "/TUNNEL/t/dest",
            "/tunnel/t/DEST",
            "/tunnel/t/dest;x",
            "/tunnel/t/dest#x",
            "/x/t/dest",
            "http://gateway/tunnel/t/dest",
            "gateway/tunnel/t/dest",
        ] {
            assert!(route(bad).is_none(), "{bad}");
        }
    }

    fn parse(lines: &[&str]) -> Result<(String, usize), StatusCode> {
        let head = format!("{}\r\n\r\n", lines.join("\r\n"));
        let opening = Opening::parse(head.as_bytes())?;
        Ok((String::from_utf8(opening.answer()).unwrap(), opening.token.len()))
    }

    const GOOD: [&str; 7] = [
        "GET /tunnel/t/source HTTP/1.1",
        "Host: gateway.example:8443",
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Tunnel-Access-Token:  hush-12 ",
    ];

    #[test]
    fn the_answer_is_the_rfcs() {
        let (answer, token) = parse(&GOOD).unwrap();
        assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"));
        assert!(!answer.contains("Sec-WebSocket-Protocol"));
        assert_eq!(token, "hush-12".len());
        let offer = "Sec-WebSocket-Protocol: x, aliyun.iot.securetunnel-v1.1";
        let (answer, _) = parse(&[&GOOD[..], &[offer]].concat()).unwrap();
        assert!(answer.contains("\r\nSec-WebSocket-Protocol: aliyun.iot.securetunnel-v1.1\r\n"));
    }

    #[test]
    fn what_is_said_twice_or_not_at_all_is_refused() {
        for left_out in &GOOD[1..6] {
            let lines: Vec<&str> = GOOD.into_iter().filter(|line| line != left_out).collect();
            assert!(parse(&lines).is_err(), "without {left_out}");
        }
        assert_eq!(parse(&GOOD[..6]).unwrap().1, 0);
        for (more, status) in [
            ("tunnel-access-token: hush-12", 400),
            ("TUNNEL-ACCESS-TOKEN:", 400),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", 400),
            ("Sec-WebSocket-Version: 8", 400),
            ("HOST: gateway.example:8443", 400),
            ("Content-Length: 5", 400),
            ("Transfer-Encoding: chunked", 400),
            ("no colon", 400),
            (" folded", 400),
            ("nul: \0", 400),
        ] {
            let refused = parse(&[&GOOD[..], &[more]].concat()).unwrap_err();
            assert_eq!(refused.as_u16(), status, "{more}");
        }
        for request_line in [
            "POST /tunnel/t/source HTTP/1.1",
            "GET /tunnel/t/source HTTP/1.0",
            "GET  HTTP/1.1",
            "\x16\x03\x01\x02\0\x01",
        ] {
            let refused = parse(&[&[request_line], &GOOD[1..]].concat()).unwrap_err();
            assert_eq!(refused.as_u16(), 400, "{request_line:?}");
        }
        let many = vec!["a: b"; 130];
        assert_eq!(parse(&[&GOOD[..], &many].concat()).unwrap_err().as_u16(), 431);
    }
}
