//! Writes headers and small frames.

use super::{quoted, Fields, FrameType};
use crate::websocket::Sender;

/// The prepared header of the frames of one session. Only the frame id is written for each frame.
pub struct HeaderTemplate {
    /// Two bytes for the length, then the JSON text without the frame id.
    text: Box<[u8]>,
    /// Where the frame id goes.
    id_at: usize,
}

impl HeaderTemplate {
    /// Prepares a header. Leaves out the session id if it is empty and the service type if it is
    /// absent.
    pub fn new(frame_type: FrameType, session_id: &str, service_type: Option<&str>) -> Self {
        let mut text = format!("\0\0{{\"frame_type\":{}", frame_type as u8);
        if !session_id.is_empty() {
            text += &format!(",\"session_id\":{}", quoted(session_id));
        }
        text += ",\"frame_id\":";
        let id_at = text.len();
        if let Some(name) = service_type {
            text += &format!(",\"service_type\":{}", quoted(name));
        }
        text.push('}');
        HeaderTemplate { text: text.into_bytes().into(), id_at }
    }

    /// Clears `out` and writes the length and the header to it.
    pub fn write(&self, frame_id: u64, out: &mut Vec<u8>) {
        self.write_with(frame_id, Fields::default(), out);
    }

    /// Like [`write`](Self::write), with fields of the session extensions.
    pub fn write_with(&self, frame_id: u64, fields: Fields, out: &mut Vec<u8>) {
        let (before, after) = self.text.split_at(self.id_at);
        out.clear();
        out.extend_from_slice(before);
        finish(frame_id, fields, after, out);
    }
}

/// How the headers of the data frames of one session are written. Most ids stand in JSON as they are,
/// so nothing has to be kept for them.
pub struct DataHeader(Option<Box<HeaderTemplate>>);

impl DataHeader {
    /// Looks at a session id.
    pub fn new(session_id: &str) -> Self {
        let stands_as_it_is =
            !session_id.bytes().any(|byte| matches!(byte, b'"' | b'\\' | ..=0x1f | 0x7f));
        let template = || HeaderTemplate::new(FrameType::DataTransport, session_id, None);
        DataHeader((!stands_as_it_is || session_id.is_empty()).then(|| Box::new(template())))
    }

    /// Clears `out` and writes the length and the header to it. `session_id` is that of
    /// [`new`](Self::new).
    pub fn write_with(&self, session_id: &str, frame_id: u64, fields: Fields, out: &mut Vec<u8>) {
        if let Some(template) = &self.0 {
            return template.write_with(frame_id, fields, out);
        }
        out.clear();
        out.extend_from_slice(b"\0\0{\"frame_type\":4,\"session_id\":\"");
        out.extend_from_slice(session_id.as_bytes());
        out.extend_from_slice(b"\",\"frame_id\":");
        finish(frame_id, fields, b"}", out);
    }
}

/// Writes the frame id and what follows it, then the length in front.
#[inline]
fn finish(frame_id: u64, fields: Fields, after: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(frame_id).as_bytes());
    fields.write(out);
    out.extend_from_slice(after);
    let length = (out.len() - 2) as u16;
    out[..2].copy_from_slice(&length.to_be_bytes());
}

/// Queues a `common_response`. Build `payload` with [`status`](super::status()).
pub fn write_response(
    sender: &mut Sender,
    session_id: &str,
    service_type: &str,
    frame_id: u64,
    payload: &[u8],
) {
    write_acceptance(sender, session_id, service_type, frame_id, Fields::default(), payload);
}

/// Queues a `common_response` with the extensions that hold for the session.
pub fn write_acceptance(
    sender: &mut Sender,
    session_id: &str,
    service_type: &str,
    frame_id: u64,
    fields: Fields,
    payload: &[u8],
) {
    let mut header = Vec::new();
    HeaderTemplate::new(FrameType::CommonResponse, session_id, Some(service_type)).write_with(
        frame_id,
        fields,
        &mut header,
    );
    sender.binary(&header, payload);
}

/// Queues a `session_release`. Build `payload` with [`status`](super::status()).
pub fn write_release(sender: &mut Sender, session_id: &str, frame_id: u64, payload: &[u8]) {
    let mut header = Vec::new();
    HeaderTemplate::new(FrameType::SessionRelease, session_id, None).write(frame_id, &mut header);
    sender.binary(&header, payload);
}
