//! What holds for any bytes from the cloud: as a tunnel frame, as WebSocket messages, and as the
//! answer to the opening handshake.

use std::io::{self, Read};

use serde_json::Value;

use super::frame::{
    self, Frame, FrameType, HeaderTemplate, MAX_HEADER, MAX_PAYLOAD, MAX_SESSION_ID,
};
use super::open;
use super::websocket::{Incoming, Receiver, Role};

/// One message as a tunnel frame, beside a general JSON parser.
pub(crate) fn frame(message: &[u8]) {
    let parsed = Frame::parse(message);
    let length = match message {
        [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    let header = message.get(2..2 + length).unwrap_or(&[]);
    frame::scan_agrees(header);
    let value: Option<Value> = serde_json::from_slice(header).ok();
    let frame = match parsed {
        Ok(frame) => frame,
        Err(e) => return assert!(!is_plainly_good(message, length, value.as_ref()), "{e}"),
    };
    assert!((1..=MAX_HEADER).contains(&length));
    assert_eq!(frame.payload, &message[2 + length..]);
    assert!(frame.payload.len() <= MAX_PAYLOAD && frame.session_id.len() <= MAX_SESSION_ID);
    if let Some(value) = value {
        let text = |name: &str| value[name].as_str().unwrap_or("").to_owned();
        assert_eq!(value["frame_type"], frame.frame_type as u8);
        assert_eq!((text("session_id"), text("service_type")), {
            (frame.session_id.to_string(), frame.service_type.to_string())
        });
    }
    // What was understood can be said again, and means the same.
    let service = (!frame.service_type.is_empty()).then_some(&*frame.service_type);
    let template = HeaderTemplate::new(frame.frame_type, &frame.session_id, service);
    let mut again = Vec::new();
    template.write(frame.frame_id.unwrap_or(0), &mut again);
    again.extend_from_slice(frame.payload);
    match Frame::parse(&again) {
        Ok(same) => {
            assert_eq!(same.frame_type, frame.frame_type);
            assert_eq!(same.frame_id, Some(frame.frame_id.unwrap_or(0)));
            assert_eq!(
                (same.session_id, same.service_type),
                (frame.session_id, frame.service_type)
            );
            assert_eq!(same.payload, frame.payload);
        }
        // Control characters are longer when they are written.
        Err(e) => assert!(again.len() - frame.payload.len() > MAX_HEADER, "{e}"),
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

/// Bytes that arrive in pieces.
struct Pieces<'a> {
    rest: &'a [u8],
    size: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.rest.len().min(self.size).min(buffer.len());
        if length == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        buffer[..length].copy_from_slice(&self.rest[..length]);
        self.rest = &self.rest[length..];
        Ok(length)
    }
}

/// A stream of bytes as WebSocket messages: however it is cut, the same messages come out.
pub(crate) fn websocket(data: &[u8]) {
    let (first, stream) = data.split_first().unwrap_or((&0, &[]));
    let role = if first % 2 == 0 { Role::Client } else { Role::Server };
    let size = usize::from(*first / 2).max(1);
    let whole = messages(role, stream, usize::MAX);
    assert_eq!(messages(role, stream, size), whole, "in pieces of {size}");
}

fn messages(role: Role, stream: &[u8], size: usize) -> Vec<String> {
    let mut receiver = Receiver::new(role);
    let mut source = Pieces { rest: stream, size };
    let mut seen = Vec::new();
    loop {
        if receiver.fill(&mut source).is_err() {
            return seen;
        }
        assert!(receiver.capacity() <= 160 * 1024, "{}", receiver.capacity());
        loop {
            match receiver.peek() {
                Ok(None) => break,
                // Where a message stands in the buffer depends on how it came.
                Ok(Some(Incoming::Binary { message, .. })) => seen.push(format!("{message:?}")),
                Ok(Some(Incoming::TooLong { head, length })) => {
                    assert!(Frame::parse_header(head).is_ok() || length > 0);
                    seen.push(format!("too long: {length}"));
                }
                Ok(Some(incoming)) => seen.push(format!("{incoming:?}")),
                Err(violation) => {
                    seen.push(format!("violation {}", violation.close_code()));
                    return seen;
                }
            }
            receiver.consume();
        }
    }
}

/// The head of the answer to an upgrade request.
pub(crate) fn answer(data: &[u8]) {
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    if open::check_response(data, key).is_ok() {
        let text = String::from_utf8_lossy(data).to_ascii_lowercase();
        // Empty lines before it are skipped, as RFC 9112 has it for requests.
        let line = text.trim_start_matches(['\r', '\n']);
        assert!(line.starts_with("http/1.") && line.contains(" 101"));
        assert!(text.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "accepted without the accept key");
    }
}

/// Frame types as the protocol numbers them.
const _: () = assert!(FrameType::CommonResponse as u8 == 1 && FrameType::DataTransport as u8 == 4);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Text that is often a header.
    fn header() -> impl Strategy<Value = String> {
        let key = prop_oneof![
            Just("\"frame_type\"".to_owned()),
            Just("\"frame_id\"".to_owned()),
            Just("\"session_id\"".to_owned()),
            Just("\"service_type\"".to_owned()),
            "\"[a-z_]{0,3}\"",
        ];
        let value = prop_oneof![
            (0u8..6).prop_map(|number| number.to_string()),
            "[0-9-]{1,21}",
            "\"[ -~]{0,20}\"",
            "\"[0-9]{0,20}\"",
            "\"[a-z]{250,260}\"",
            Just("null".to_owned()),
            "[\\[\\]{}:,]{0,5}",
        ];
        let pair = (key, "[ \n]{0,2}", value).prop_map(|(k, gap, v)| format!("{k}{gap}:{gap}{v}"));
        proptest::collection::vec(pair, 0..6).prop_map(|pairs| format!("{{{}}}", pairs.join(",")))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn a_frame_is_what_its_header_says(
            header in header(),
            off in -2i32..3,
            payload in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let length = (header.len() as i32 + if off.abs() == 2 { off } else { 0 }) as u16;
            let mut message = length.to_be_bytes().to_vec();
            message.extend(header.bytes());
            message.extend(payload);
            super::frame(&message);
        }

        #[test]
        fn messages_do_not_depend_on_how_they_arrive(
            data in proptest::collection::vec(prop_oneof![
                Just(0x82u8), Just(0x02), Just(0x80), Just(0x89), Just(0x81), Just(126), 0u8..6, any::<u8>(),
            ], 0..150),
        ) {
            super::websocket(&data);
        }

        #[test]
        fn no_answer_without_the_accept_key_opens(data in "HTTP/1.1 101 x\r\n([A-Za-z-]{1,20}: [ -~]{0,30}\r\n){0,5}\r\n") {
            super::answer(data.as_bytes());
        }
    }
}
