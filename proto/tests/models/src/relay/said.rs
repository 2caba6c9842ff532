//! What the device has said to the cloud, read from the bytes of its WebSocket.

use std::collections::HashMap;

use serde_json::Value;

use super::IDS;

/// What the device has said.
#[derive(Default)]
pub(super) struct Said {
    /// Codes, by the frame id that they answer.
    pub(super) answered: HashMap<u64, i64>,
    /// The sessions that it opened, in order, by id.
    pub(super) accepted: [Vec<Accepted>; IDS],
}

/// A session that the device has opened.
pub(super) struct Accepted {
    /// Of the create that it answers.
    pub(super) frame_id: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) released: bool,
    /// Why the device has released it.
    pub(super) why: Option<String>,
}

impl Said {
    pub(super) fn read(wire: &[u8]) -> Self {
        let mut said = Said::default();
        let mut own_frame = 0;
        let mut rest = wire;
        while let Some((opcode, message)) = next_message(&mut rest) {
            if opcode != 2 {
                assert!(matches!(opcode, 8..=10), "opcode {opcode}");
                continue;
            }
            let length = usize::from(u16::from_be_bytes([message[0], message[1]]));
            let (header, payload) = message[2..].split_at(length);
            let header: Value = serde_json::from_slice(header).expect("a header in JSON");
            let is_response = header["frame_type"] == 1;
            if !is_response {
                own_frame += 1;
                assert_eq!(header["frame_id"], own_frame, "frame ids are counted from 1");
            }
            said.frame(&header, payload);
        }
        said
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
                assert!((1..=4096).contains(&payload.len()));
                let latest = id.and_then(|id| self.latest(id)).expect("data of an open session");
                assert!(!latest.released, "data after the release");
                latest.bytes.extend_from_slice(payload);
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
            let accepted = Accepted { frame_id, bytes: Vec::new(), released, why: None };
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

/// The next whole message of a client: final, masked.
fn next_message(rest: &mut &[u8]) -> Option<(u8, Vec<u8>)> {
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
