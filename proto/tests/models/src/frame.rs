//! One message as a tunnel frame, beside a general JSON parser.

use aiot_tunnel_proto::frame::{
    Frame, FrameType, HeaderTemplate, Malformed, MAX_HEADER, MAX_PAYLOAD, MAX_SESSION_ID,
};
use serde_json::Value;

/// Frame types as the protocol numbers them.
const _: () = assert!(FrameType::CommonResponse as u8 == 1 && FrameType::DataTransport as u8 == 4);

/// A frame is what its header says, and what was read can be written and read again.
pub fn check(message: &[u8]) {
    let length = match message {
        [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    scanner_agrees(message, length);
    let header = message.get(2..2 + length).unwrap_or(&[]);
    let value: Option<Value> = serde_json::from_slice(header).ok();
    match Frame::parse(message) {
        Ok(frame) => {
            assert!((1..=MAX_HEADER).contains(&length));
            assert_eq!(frame.payload, &message[2 + length..]);
            says(&frame, value.as_ref());
            reads_back(&frame);
        }
        Err(e) => assert!(!is_plainly_good(message, length, value.as_ref()), "{e}"),
    }
}

/// Usual headers are read by a scanner, all others by a JSON parser. The scanner refuses a blank, so
/// behind a blank the parser reads the same header: to the same end.
fn scanner_agrees(message: &[u8], length: usize) {
    let Some((header, payload)) = message.get(2..).and_then(|rest| rest.split_at_checked(length))
    else {
        return;
    };
    if !(1..MAX_HEADER).contains(&length) {
        return;
    }
    let blank_and_header = (length as u16 + 1).to_be_bytes();
    let behind_blank = [&blank_and_header[..], b" ", header, payload].concat();
    match (Frame::parse(message), Frame::parse(&behind_blank)) {
        // The words hold the position of the error.
        (Err(Malformed::NotJson(_)), Err(Malformed::NotJson(_))) => {}
        (scanned, parsed) => assert_eq!(scanned, parsed),
    }
}

fn says(frame: &Frame<'_>, header: Option<&Value>) {
    assert!(frame.payload.len() <= MAX_PAYLOAD && frame.session_id.len() <= MAX_SESSION_ID);
    let Some(header) = header else { return };
    let text = |name: &str| header[name].as_str().unwrap_or("");
    assert_eq!(header["frame_type"], frame.frame_type as u8);
    assert_eq!(text("session_id"), frame.session_id);
    assert_eq!(text("service_type"), frame.service_type);
}

/// What was understood can be said again, and means the same.
fn reads_back(frame: &Frame<'_>) {
    let service = (!frame.service_type.is_empty()).then_some(&*frame.service_type);
    let template = HeaderTemplate::new(frame.frame_type, &frame.session_id, service);
    let frame_id = frame.frame_id.unwrap_or(0);
    let mut again = Vec::new();
    template.write(frame_id, &mut again);
    let header_length = again.len() - 2;
    again.extend_from_slice(frame.payload);
    match Frame::parse(&again) {
        Ok(same) => {
            assert_eq!((same.frame_type, same.frame_id), (frame.frame_type, Some(frame_id)));
            assert_eq!(same.session_id, frame.session_id);
            assert_eq!(same.service_type, frame.service_type);
            assert_eq!(same.payload, frame.payload);
        }
        // Control characters are longer when they are written.
        Err(e) => assert!(header_length > MAX_HEADER, "{e}"),
    }
}

/// A header that no reader of the protocol may refuse.
fn is_plainly_good(message: &[u8], length: usize, header: Option<&Value>) -> bool {
    let Some(Value::Object(fields)) = header else { return false };
    let known = ["frame_type", "frame_id", "session_id", "service_type"];
    let plain = fields.keys().all(|key| known.contains(&key.as_str()));
    // A field that is there twice may be refused; then there are more quotes than fields.
    let text = &message[2..2 + length];
    let quotes = text.iter().filter(|byte| **byte == b'"').count();
    let strings = fields.values().filter(|value| value.is_string()).count();
    let once = quotes == 2 * (fields.len() + strings);
    let session = fields
        .get("session_id")
        .is_none_or(|id| id.as_str().is_some_and(|id| id.len() <= MAX_SESSION_ID));
    plain
        && once
        && session
        && fields.get("service_type").is_none_or(Value::is_string)
        && fields.get("frame_id").is_none_or(|id| id.as_i64().is_some_and(|id| id >= 0))
        && fields.get("frame_type").and_then(Value::as_u64).is_some_and(|n| (1..=4).contains(&n))
        && (1..=MAX_HEADER).contains(&length)
        && message.len() - 2 - length <= MAX_PAYLOAD
}
