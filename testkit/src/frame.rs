//! Tunnel frames and WebSocket frames, built and parsed byte by byte.
//!
//! This is the only hand-written framer of the tests and benchmarks. It may not use the library's
//! codec: tests compare the two. Sockets do not belong here either.

use std::ops::Range;

use serde_json::Value;

/// The WebSocket subprotocol that both ends of a tunnel ask for.
pub const SUBPROTOCOL: &str = "aliyun.iot.securetunnel-v1.1";

/// First bytes of WebSocket frames: the FIN bit and the opcode (RFC 6455, section 5.2).
pub const BINARY: u8 = 0x82;
pub const TEXT: u8 = 0x81;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;
pub const CLOSE: u8 = 0x88;
/// The first, a middle and the last fragment of a binary message.
pub const FIRST_FRAGMENT: u8 = 0x02;
pub const MIDDLE_FRAGMENT: u8 = 0x00;
pub const LAST_FRAGMENT: u8 = 0x80;

/// A tunnel frame: the header's length in two bytes, the header, the payload.
pub fn tunnel(header: &str, payload: &[u8]) -> Vec<u8> {
    let length = (header.len() as u16).to_be_bytes();
    [&length, header.as_bytes(), payload].concat()
}

/// A tunnel frame's header and payload; panics if the frame is malformed.
pub fn parse_tunnel(frame: &[u8]) -> (Value, &[u8]) {
    let (length, rest) = frame.split_first_chunk().expect("a header length");
    let (header, payload) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
    (serde_json::from_slice(header).expect("a header in JSON"), payload)
}

/// The code and the text in the payload of a response or a release.
pub fn status(payload: &[u8]) -> (i64, String) {
    let status: Value = serde_json::from_slice(payload).expect("a status in JSON");
    let text = status["msg"].as_str().unwrap_or_default().to_owned();
    (status["code"].as_i64().expect("a code"), text)
}

/// The code in the payload of a response or a release.
pub fn code(payload: &[u8]) -> i64 {
    status(payload).0
}

/// A WebSocket frame as a server sends it, without a mask.
pub fn server(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(length as u8),
        length @ 126..=0xffff => {
            bytes.push(126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(payload);
    bytes
}

/// A tunnel frame in a WebSocket frame, as a server sends it.
pub fn server_tunnel(header: &str, payload: &[u8]) -> Vec<u8> {
    server(BINARY, &tunnel(header, payload))
}

/// Where the parts of a WebSocket frame from a client are.
#[derive(Debug, Clone)]
pub struct ClientFrame {
    /// The FIN bit and the opcode, as in [`BINARY`].
    pub first: u8,
    pub mask: [u8; 4],
    /// The payload's place in the bytes that were parsed. Still masked.
    pub payload: Range<usize>,
}

/// Parses the frame that begins at `at`; `None` while it is not complete.
pub fn parse_client(bytes: &[u8], at: usize) -> Option<ClientFrame> {
    let [first, second, rest @ ..] = bytes.get(at..)? else { return None };
    assert!(second & 0x80 != 0, "a client's frame without a mask");
    let (length, head) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (u64::from_be_bytes(*rest.first_chunk()?).try_into().unwrap(), 10),
        length => (usize::from(length), 2),
    };
    let mask = *bytes.get(at + head..)?.first_chunk()?;
    let start = at + head + mask.len();
    let payload = start..start + length;
    (payload.end <= bytes.len()).then_some(ClientFrame { first: *first, mask, payload })
}

impl ClientFrame {
    pub fn is_binary(&self) -> bool {
        self.first == BINARY
    }

    /// Takes the mask off the payload, in place.
    pub fn unmask<'a>(&self, bytes: &'a mut [u8]) -> &'a [u8] {
        let payload = &mut bytes[self.payload.clone()];
        payload.iter_mut().zip(self.mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        payload
    }

    /// The payload's length of the tunnel frame inside, whose bytes stay masked.
    pub fn tunnel_payload(&self, bytes: &[u8]) -> usize {
        match &bytes[self.payload.clone()] {
            [high, low, ..] => {
                let header = u16::from_be_bytes([high ^ self.mask[0], low ^ self.mask[1]]);
                self.payload.len().saturating_sub(2 + usize::from(header))
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use serde_json::json;
    use tungstenite::protocol::{Role, WebSocketContext};
    use tungstenite::Message;

    use super::*;

    #[test]
    fn tungstenite_reads_and_writes_the_same_frames() {
        for length in [0, 1, 125, 126, 65_000, 65_536, 100_000] {
            let header = json!({"frame_type": 4, "session_id": "s"});
            let message = tunnel(&header.to_string(), &vec![7; length]);
            let mut reader = WebSocketContext::new(Role::Client, None);
            let mut stream = Cursor::new(server(BINARY, &message));
            let read = reader.read(&mut stream).unwrap();
            assert_eq!(read, Message::binary(message.clone()));
            assert_eq!(parse_tunnel(&read.into_data()), (header, &vec![7; length][..]));

            let mut writer = WebSocketContext::new(Role::Client, None);
            let mut stream = Cursor::new(Vec::new());
            writer.write(&mut stream, Message::binary(message.clone())).unwrap();
            writer.flush(&mut stream).unwrap();
            let mut bytes = stream.into_inner();
            assert!(parse_client(&bytes[..bytes.len() - 1], 0).is_none());
            let frame = parse_client(&bytes, 0).unwrap();
            assert!(frame.is_binary());
            assert_eq!(frame.tunnel_payload(&bytes), length);
            assert_eq!(frame.payload.end, bytes.len());
            assert_eq!(frame.unmask(&mut bytes), message);
        }
    }
}
