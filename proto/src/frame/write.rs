//! Headers and small frames on their way out.

use super::{quoted, FrameType};
use crate::websocket::Sender;

/// Writes headers of one session; all but the frame id is prepared once.
pub struct HeaderTemplate {
    /// Two bytes for the length, then the JSON text up to the frame id.
    before_id: Vec<u8>,
    /// The JSON text after the frame id.
    after_id: Vec<u8>,
}

impl HeaderTemplate {
    /// Leaves out an empty session id and an absent service type.
    pub fn new(frame_type: FrameType, session_id: &str, service_type: Option<&str>) -> Self {
        let mut before = format!("\0\0{{\"frame_type\":{}", frame_type as u8);
        if !session_id.is_empty() {
            before += &format!(",\"session_id\":{}", quoted(session_id));
        }
        let after = service_type.map(|name| format!(",\"service_type\":{}", quoted(name)));
        before += ",\"frame_id\":";
        let after = after.unwrap_or_default() + "}";
        HeaderTemplate { before_id: before.into_bytes(), after_id: after.into_bytes() }
    }

    /// Writes length and header to `out`, which is cleared first.
    pub fn write(&self, frame_id: u64, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.before_id);
        out.extend_from_slice(itoa::Buffer::new().format(frame_id).as_bytes());
        out.extend_from_slice(&self.after_id);
        let length = (out.len() - 2) as u16;
        out[..2].copy_from_slice(&length.to_be_bytes());
    }
}

/// Queues a `common_response`; `payload` is a [`status`](super::status()).
pub fn write_response(
    sender: &mut Sender,
    session_id: &str,
    service_type: &str,
    frame_id: u64,
    payload: &[u8],
) {
    let mut header = Vec::new();
    HeaderTemplate::new(FrameType::CommonResponse, session_id, Some(service_type))
        .write(frame_id, &mut header);
    sender.binary(&header, payload);
}

/// Queues a `session_release`; `payload` is a [`status`](super::status()).
pub fn write_release(sender: &mut Sender, session_id: &str, frame_id: u64, payload: &[u8]) {
    let mut header = Vec::new();
    HeaderTemplate::new(FrameType::SessionRelease, session_id, None).write(frame_id, &mut header);
    sender.binary(&header, payload);
}
