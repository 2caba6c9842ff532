//! One message as a tunnel frame, beside a general JSON parser.

use aiot_tunnel_proto::frame::{
    Credit, Extensions, Fields, Frame, FrameType, HeaderTemplate, Malformed, MAX_HEADER,
    MAX_PAYLOAD, MAX_SESSION_ID,
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
    assert_eq!(integer(&header["frame_type"]), Some(frame.frame_type as u64));
    assert_eq!(text("session_id"), frame.session_id);
    assert_eq!(text("service_type"), frame.service_type);
    assert_eq!(frame_id(&header["frame_id"]), frame.frame_id);
    let names = || text("ext").split(',').map(str::trim);
    let has = |name| names().any(|one| one == name);
    assert_eq!(frame.extensions, Extensions { eof: has("eof"), credit: has("credit") });
    assert_eq!(frame.eof, header["eof"] == true);
    match frame.credit {
        Credit::Absent => assert!(header["credit"].is_null()),
        Credit::Bytes(bytes) => assert_eq!(header["credit"], bytes),
        Credit::Invalid => assert!(!header["credit"].is_u64() && !header["credit"].is_null()),
    }
}

/// The whole number from 0 on that a value stands for, whatever its form: 1000, 1e3, 1000.0, -0. Such
/// forms are exact up to 2^53.
fn integer(value: &Value) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let of_float = |number: &f64| number.fract() == 0.0 && (0.0..=EXACT).contains(number);
    value.as_u64().or_else(|| value.as_f64().filter(of_float).map(|number| number as u64))
}

/// A frame id: a number, or digits in quotes.
fn frame_id(value: &Value) -> Option<u64> {
    let number = match value.as_str() {
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        Some(_) => None,
        None => integer(value),
    };
    number.filter(|id| *id <= i64::MAX as u64)
}

/// What was understood can be said again, and means the same.
fn reads_back(frame: &Frame<'_>) {
    let service = (!frame.service_type.is_empty()).then_some(&*frame.service_type);
    let template = HeaderTemplate::new(frame.frame_type, &frame.session_id, service);
    let frame_id = frame.frame_id.unwrap_or(0);
    let credit = match frame.credit {
        Credit::Bytes(bytes) => bytes,
        Credit::Absent | Credit::Invalid => 0,
    };
    let fields = Fields { extensions: frame.extensions, credit, eof: frame.eof };
    let mut again = Vec::new();
    template.write_with(frame_id, fields, &mut again);
    let header_length = again.len() - 2;
    again.extend_from_slice(frame.payload);
    match Frame::parse(&again) {
        Ok(same) => {
            assert_eq!((same.frame_type, same.frame_id), (frame.frame_type, Some(frame_id)));
            assert_eq!(same.session_id, frame.session_id);
            assert_eq!(same.service_type, frame.service_type);
            assert_eq!(same.payload, frame.payload);
            assert_eq!((same.extensions, same.eof), (frame.extensions, frame.eof));
            // A credit of 0 is said in an offer only.
            let is_said = credit > 0 || frame.extensions.credit;
            let said = if is_said { Credit::Bytes(credit) } else { Credit::Absent };
            assert_eq!(same.credit, said);
        }
        // Control characters are longer when they are written.
        Err(e) => assert!(header_length > MAX_HEADER, "{e}"),
    }
}

/// A header that no reader of the protocol may refuse.
fn is_plainly_good(message: &[u8], length: usize, header: Option<&Value>) -> bool {
    let Some(Value::Object(fields)) = header else { return false };
    let known = ["frame_type", "frame_id", "session_id", "service_type", "ext", "credit", "eof"];
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
        && fields.get("frame_id").is_none_or(|id| frame_id(id).is_some())
        && fields.get("frame_type").and_then(integer).is_some_and(|n| (1..=4).contains(&n))
        && (1..=MAX_HEADER).contains(&length)
        && message.len() - 2 - length <= MAX_PAYLOAD
}
