//! What the device has said to the cloud, read from the bytes of its WebSocket.

use std::collections::HashMap;

use serde_json::Value;

use super::IDS;
use crate::close_code;

/// What the device has said.
#[derive(Default)]
pub(super) struct Said {
    /// Codes, by the frame id that they answer.
    pub(super) answered: HashMap<u64, i64>,
    /// The sessions that it opened, in order, by id.
    pub(super) accepted: [Vec<Accepted>; IDS],
    /// How many bytes of its messages were read.
    read: usize,
    /// The last id of a frame that it originated.
    own_frame: u64,
    /// It has sent a close frame, with this code.
    pub(super) closed: Option<Option<u16>>,
}

/// A session that the device has opened.
pub(super) struct Accepted {
    /// Of the create that it answers.
    pub(super) frame_id: u64,
    pub(super) bytes: Vec<u8>,
    /// The extensions that hold.
    pub(super) has_eof: bool,
    pub(super) has_credit: bool,
    /// The number of bytes that it has granted.
    pub(super) granted: u64,
    /// It has ended its direction.
    pub(super) eof: bool,
    pub(super) released: bool,
    /// Why the device has released it.
    pub(super) why: Option<String>,
}

impl Said {
    /// Reads the messages that were not read yet. `wire` holds all bytes from the first on.
    pub(super) fn listen(&mut self, wire: &[u8]) {
        let mut rest = &wire[self.read..];
        while let Some((opcode, message)) = next_message(&mut rest) {
            self.read = wire.len() - rest.len();
            assert_eq!(self.closed, None, "opcode {opcode} follows a close frame");
            match opcode {
                2 => {}
                8 => {
                    self.closed = Some(close_code(&message));
                    continue;
                }
                9 | 10 => continue,
                _ => panic!("opcode {opcode}"),
            }
            let (header, payload) = parts(&message);
            let is_response = header["frame_type"] == 1;
            if !is_response {
                self.own_frame += 1;
                assert_eq!(header["frame_id"], self.own_frame, "frame ids are counted from 1");
            }
            self.frame(&header, &payload);
        }
    }

    fn frame(&mut self, header: &Value, payload: &[u8]) {
        let session = header["session_id"].as_str().expect("a session id");
        let id = session.strip_prefix('s').map(|id| id.parse::<usize>().expect("one of ours"));
        match header["frame_type"].as_u64() {
            Some(1) => self.response(header, id, payload),
            Some(3) => {
                let status: Value = serde_json::from_slice(payload).expect("a status");
                assert_eq!(status["code"], 1);
                let why = status["msg"].as_str().expect("words").to_owned();
                if let Some(latest) = id.and_then(|id| self.latest(id)) {
                    (latest.released, latest.why) = (true, Some(why));
                }
            }
            Some(4) => {
                let latest = id.and_then(|id| self.latest(id)).expect("data of an open session");
                latest.data(header, payload);
            }
            other => panic!("frame type {other:?}"),
        }
    }

    fn response(&mut self, header: &Value, id: Option<usize>, payload: &[u8]) {
        let frame_id = header["frame_id"].as_u64().expect("a frame id");
        let status: Value = serde_json::from_slice(payload).expect("a status");
        let code = status["code"].as_i64().expect("a code");
        assert!((0..=2).contains(&code));
        let twice = self.answered.insert(frame_id, code);
        assert_eq!(twice, None, "frame {frame_id} is answered twice");
        let released = status["msg"] == "connected and released";
        if code == 0 && (released || status["msg"] == "success") {
            assert!(header["service_type"].is_string());
            let names = header["ext"].as_str().unwrap_or_default();
            let has_credit = names.contains("credit");
            assert_eq!(header["credit"].is_u64(), has_credit, "{header}");
            let accepted = Accepted {
                frame_id,
                bytes: Vec::new(),
                has_eof: names.contains("eof"),
                has_credit,
                granted: header["credit"].as_u64().unwrap_or_default(),
                eof: false,
                released,
                why: None,
            };
            self.accepted[id.expect("one of ours")].push(accepted);
        }
    }

    /// The session of an id that the cloud still has, or else the last one.
    fn latest(&mut self, id: usize) -> Option<&mut Accepted> {
        let accepted = &mut self.accepted[id];
        let open = accepted.iter().rposition(|session| !session.released);
        let latest = open.or(accepted.len().checked_sub(1))?;
        accepted.get_mut(latest)
    }
}

/// The frames among the messages: headers and payloads.
pub(super) fn frames(mut wire: &[u8]) -> Vec<(Value, Vec<u8>)> {
    let messages = std::iter::from_fn(|| next_message(&mut wire));
    messages.filter(|(opcode, _)| *opcode == 2).map(|(_, message)| parts(&message)).collect()
}

/// The header and the payload of a frame.
pub(crate) fn parts(message: &[u8]) -> (Value, Vec<u8>) {
    let length = usize::from(u16::from_be_bytes([message[0], message[1]]));
    let (header, payload) = message[2..].split_at(length);
    (serde_json::from_slice(header).expect("a header in JSON"), payload.to_vec())
}

impl Accepted {
    fn data(&mut self, header: &Value, payload: &[u8]) {
        assert!(!self.released, "data after the release");
        assert!(!self.eof || payload.is_empty(), "data after the end");
        let is_end = header["eof"] == true;
        let credit = header["credit"].as_u64();
        assert!(self.has_eof || header["eof"].is_null(), "an end that was not agreed on");
        assert!(self.has_credit || header["credit"].is_null(), "credit that was not agreed on");
        assert!(!(is_end && self.eof), "two ends");
        assert!(payload.len() <= 4096);
        assert!(!payload.is_empty() || is_end || credit.is_some_and(|bytes| bytes > 0));
        self.eof |= is_end;
        self.granted += credit.unwrap_or_default();
        self.bytes.extend_from_slice(payload);
    }
}

/// The next whole message of a client: final, masked.
pub(crate) fn next_message(rest: &mut &[u8]) -> Option<(u8, Vec<u8>)> {
    let (head, after) = rest.split_at_checked(2)?;
    assert_eq!((head[0] & 0xf0, head[1] & 0x80), (0x80, 0x80), "final and masked");
    let (length, after) = match head[1] & 0x7f {
        126 => {
            let (bytes, after) = after.split_at_checked(2)?;
            (usize::from(u16::from_be_bytes(bytes.try_into().ok()?)), after)
        }
        127 => panic!("a message of 64 KiB or more"),
        length => (usize::from(length), after),
    };
    let (mask, after) = after.split_at_checked(4)?;
    let (payload, after) = after.split_at_checked(length)?;
    let message = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    *rest = after;
    Some((head[0] & 0x0f, message))
}
