//! The gateway's handshake.

use std::sync::OnceLock;

use crate::cloud::frame::TOKEN_HEADER;
use crate::config::{Token, TunnelId};
use crate::gateway::handshake::Opening;
use crate::gateway::server::Shared;
use crate::gateway::{Gateway, Side, TunnelConfig};

const DEVICE_TOKEN: &str = "hush-device";
const ACCESS_TOKEN: &str = "hush-access";

fn gateway() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let shared = Gateway::builder().connection_limit(usize::MAX).shared().unwrap();
        let tunnel = TunnelConfig::new(
            TunnelId::new("t1").unwrap(),
            Token::new(DEVICE_TOKEN).unwrap(),
            Token::new(ACCESS_TOKEN).unwrap(),
        );
        shared.add(&tunnel).unwrap();
        shared
    })
}

/// A request head, whole or made of a good one and of pieces of `data`: it never panics, and who
/// is let in has named one end of the tunnel, in one way, and has given this end's token, once.
pub(crate) fn handshake(data: &[u8]) {
    let (kind, data) = data.split_first().unwrap_or((&0, b""));
    let mut head = Vec::new();
    if kind.is_multiple_of(4) {
        head.extend_from_slice(data);
    } else {
        let token: &[u8] = if kind & 16 == 0 { b"hush-access" } else { b"hush-device" };
        let path: &[u8] = if kind & 32 == 0 { b"/tunnel/t1/source" } else { b"/tunnel/t1/dest" };
        let (path, token, more) = match kind % 4 {
            1 => (data, token, &b""[..]),
            2 => (path, data, &b""[..]),
            _ => (path, token, data),
        };
        for part in [
            b"GET ",
            path,
            b" HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
              sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\ntunnel-access-token: ",
            token,
            b"\r\n",
            more,
            b"\r\n\r\n",
        ] {
            head.extend_from_slice(part);
        }
        // `more` may end in a line's end of its own.
        let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        head.truncate(end + 4);
    }
    let Ok(opening) = Opening::parse(&head) else { return };

    // The same again, by plain means.
    let text = String::from_utf8_lossy(&head);
    let lines: Vec<&str> = text.trim_start_matches(['\r', '\n']).split('\n').collect();
    let target = lines[0].split(' ').nth(1).unwrap();
    let end = match opening.side {
        Side::Device => "dest",
        Side::Access => "source",
    };
    let path = target.split('?').next().unwrap();
    assert_eq!(path, format!("/tunnel/{}/{end}", opening.tunnel));
    assert!(!opening.tunnel.contains('/') && !opening.tunnel.is_empty());
    let tokens: Vec<&str> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case(TOKEN_HEADER))
        .map(|(_, value)| value.trim_matches([' ', '\t', '\r']))
        .collect();
    assert!(tokens.len() <= 1, "{text:?}");
    let token = tokens.first().copied().unwrap_or("");
    assert_eq!(String::from_utf8_lossy(opening.token), token);

    let answer = String::from_utf8(opening.answer()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"));
    assert!(matches!(answer.lines().count(), 5 | 6), "{answer:?}");

    let is_right = match opening.side {
        Side::Device => token == DEVICE_TOKEN,
        Side::Access => token == ACCESS_TOKEN,
    };
    let may_in = is_right && opening.tunnel == "t1";
    assert_eq!(gateway().seat(&opening).is_ok(), may_in, "{text:?}");
}
