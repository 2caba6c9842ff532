//! The opening handshake, from both ends: answers that a client gets, requests that a gateway gets.

use aiot_tunnel_proto::frame::TOKEN_HEADER;
use aiot_tunnel_proto::handshake::client::{Answer, ClientHandshake};
use aiot_tunnel_proto::handshake::server::Opening;
use aiot_tunnel_proto::Side;

/// The key of RFC 6455, and in lower case the accept key that answers it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT_KEY: &str = "s3pplmbitxaq9kygzzhzrbk+xoo=";

/// The id and the tokens of the tunnel that [`request_head`] asks for.
pub const TUNNEL: &str = "t1";
pub const DEVICE_TOKEN: &str = "hush-device";
pub const ACCESS_TOKEN: &str = "hush-access";

/// The head of an answer to an upgrade request: nothing opens the WebSocket but a 101 with the accept
/// key, and only another 1xx lets the client wait for more.
pub fn answer(head: &[u8]) {
    let Ok(answer) = ClientHandshake::with_key(KEY).check(head) else { return };
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    // Empty lines before it are skipped, as RFC 9112 has it for requests.
    let line = text.trim_start_matches(['\r', '\n']).lines().next().unwrap_or("");
    assert!(line.starts_with("http/1."), "{line:?}");
    let status = line.split(' ').nth(1).unwrap_or("");
    match answer {
        Answer::Interim => assert!(status.starts_with('1') && status != "101", "{line:?}"),
        Answer::Accepted { .. } => {
            assert_eq!(status, "101");
            assert!(text.contains(ACCEPT_KEY), "accepted without the accept key");
        }
    }
}

/// A request head, whole or made of a good one and of pieces of `data`.
pub fn request_head(data: &[u8]) -> Vec<u8> {
    let (kind, data) = data.split_first().unwrap_or((&0, b""));
    if kind.is_multiple_of(4) {
        return data.to_vec();
    }
    let token = if kind & 16 == 0 { ACCESS_TOKEN } else { DEVICE_TOKEN }.as_bytes();
    let path: &[u8] = if kind & 32 == 0 { b"/tunnel/t1/source" } else { b"/tunnel/t1/dest" };
    let (path, token, more) = match kind % 4 {
        1 => (data, token, &b""[..]),
        2 => (path, data, &b""[..]),
        _ => (path, token, data),
    };
    let mut head = [
        &b"GET "[..],
        path,
        b" HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
          sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\ntunnel-access-token: ",
        token,
        b"\r\n",
        more,
        b"\r\n\r\n",
    ]
    .concat();
    // `more` may hold the end of a head of its own.
    let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(head.len() - 4);
    head.truncate(end + 4);
    head
}

/// What a request claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub tunnel: String,
    pub side: Side,
    pub token: String,
}

impl Claim {
    /// Whether it holds the token of the end that it asks for.
    pub fn is_right(&self) -> bool {
        let token = match self.side {
            Side::Device => DEVICE_TOKEN,
            Side::Access => ACCESS_TOKEN,
        };
        self.tunnel == TUNNEL && self.token == token
    }
}

/// A request head: one that is accepted names one end of a tunnel, in one way, and one token at most;
/// what was read is what plain means read of it.
pub fn request(head: &[u8]) -> Option<Claim> {
    let opening = Opening::parse(head).ok()?;
    let text = String::from_utf8_lossy(head);
    let lines: Vec<&str> = text.trim_start_matches(['\r', '\n']).split('\n').collect();
    let target = lines[0].split(' ').nth(1).expect("a request target");
    let end = match opening.side {
        Side::Device => "dest",
        Side::Access => "source",
    };
    let path = target.split('?').next().unwrap_or("");
    assert_eq!(path, format!("/tunnel/{}/{end}", opening.tunnel));
    assert!(!opening.tunnel.contains('/') && !opening.tunnel.is_empty());
    let tokens: Vec<&str> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case(TOKEN_HEADER))
        .map(|(_, value)| value.trim_matches([' ', '\t', '\r']))
        .collect();
    assert!(tokens.len() <= 1, "{text:?}");
    let names = lines[1..].iter().filter_map(|line| Some(line.split_once(':')?.0));
    assert_eq!(names.filter(|name| name.eq_ignore_ascii_case("host")).count(), 1, "{text:?}");
    let token = tokens.first().copied().unwrap_or("");
    assert_eq!(String::from_utf8_lossy(opening.token), token);

    let answer = String::from_utf8(opening.answer()).expect("an answer is text");
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"));
    assert!(matches!(answer.lines().count(), 5 | 6), "{answer:?}");
    Some(Claim { tunnel: opening.tunnel.into(), side: opening.side, token: token.into() })
}
