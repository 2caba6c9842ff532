//! Converts tunnel frames (`aliyun.iot.securetunnel-v1.1`) to bytes and back.
//!
//! A frame is one binary WebSocket message: the length of the header (2 bytes, big-endian), the
//! header (a JSON object) and the payload. This module reads and writes whole messages. It knows
//! neither sessions nor connections.

mod codes;
mod extension;
mod header;
mod write;

use std::borrow::Cow;

pub use codes::{reason, release, response, status, tells_of_cut, Status};
pub use extension::{Credit, Extensions, Fields};
use header::Header;
pub use write::{write_acceptance, write_release, write_response, DataHeader, HeaderTemplate};

/// The name of the WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "aliyun.iot.securetunnel-v1.1";
/// The HTTP header that carries a device token or an access token.
pub const TOKEN_HEADER: &str = "tunnel-access-token";

/// Longest header, in bytes.
pub const MAX_HEADER: usize = 2048;
/// Longest payload that is accepted, in bytes. The protocol's own limit is [`MAX_PAYLOAD_SENT`],
/// but some clients send more.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Longest payload that is sent, in bytes.
pub const MAX_PAYLOAD_SENT: usize = 4096;
/// Longest message that can be a frame, in bytes.
pub const MAX_MESSAGE: usize = 2 + MAX_HEADER + MAX_PAYLOAD;
/// Longest tunnel id and longest service type, in bytes.
pub const MAX_NAME: usize = 127;
/// Longest session id that is accepted, in bytes.
pub const MAX_SESSION_ID: usize = 256;

/// The purpose of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Answers a session_create or a session_release.
    CommonResponse = 1,
    /// Asks for a session.
    SessionCreate = 2,
    /// Ends a session.
    SessionRelease = 3,
    /// Carries payload bytes of a session.
    DataTransport = 4,
}

/// A received frame. Its texts and its payload borrow from the message.
#[derive(Debug, PartialEq)]
pub struct Frame<'a> {
    /// The purpose of the frame.
    pub frame_type: FrameType,
    /// The session. Empty if the header does not name one.
    pub session_id: Cow<'a, str>,
    /// The number that the sender gave the frame. A response carries the number of the frame it
    /// answers.
    pub frame_id: Option<u64>,
    /// The service. Empty if the header does not name one.
    pub service_type: Cow<'a, str>,
    /// The session extensions that the sender offers or accepts.
    pub extensions: Extensions,
    /// The number of payload bytes that the sender grants.
    pub credit: Credit,
    /// The sender ends its direction of the session behind this frame.
    pub eof: bool,
    /// The bytes behind the header.
    pub payload: &'a [u8],
}

/// Why a message is not a frame. The message is dropped; the tunnel and its sessions go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message has fewer than two bytes.
    #[error("it has {0} bytes, fewer than 2")]
    Short(usize),
    /// The header length is 0 or too large.
    #[error("its header length is {0}, not 1 to {MAX_HEADER}")]
    HeaderLength(usize),
    /// The header length points past the end of the message.
    #[error("its header length {0} points past the end of the message")]
    Truncated(usize),
    /// The header is not UTF-8.
    #[error("its header is not UTF-8")]
    NotUtf8,
    /// The header is not a JSON object with the fields of the protocol.
    #[error("its header is not a JSON object with the protocol's fields: {0}")]
    NotJson(String),
    /// The `frame_type` is unknown.
    #[error("its frame_type {0} is unknown")]
    UnknownType(u64),
    /// The session id is too long.
    #[error("its session_id has {0} bytes, more than {MAX_SESSION_ID}")]
    SessionId(usize),
    /// The payload is too long.
    #[error("its payload has {0} bytes, more than {MAX_PAYLOAD}")]
    Payload(usize),
}

/// The type and the session id of a message that is [malformed](Malformed::NotJson), if its header tells
/// them.
pub(crate) fn type_and_session(message: &[u8]) -> Option<(u64, String)> {
    let (length, rest) = message.split_first_chunk()?;
    header::rescue(rest.get(..usize::from(u16::from_be_bytes(*length)))?)
}

impl<'a> Frame<'a> {
    /// Reads one message.
    ///
    /// # Errors
    /// [`Malformed`] says why the message is not a frame.
    pub fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let frame = Frame::parse_header(message)?;
        if frame.payload.len() > MAX_PAYLOAD {
            return Err(Malformed::Payload(frame.payload.len()));
        }
        Ok(frame)
    }

    /// Like [`parse`](Self::parse), but accepts a payload of any length. `message` may be only the
    /// beginning of a message that is too long to keep.
    ///
    /// # Errors
    /// [`Malformed`] says why the message is not a frame.
    pub fn parse_header(message: &'a [u8]) -> Result<Self, Malformed> {
        let [high, low, rest @ ..] = message else {
            return Err(Malformed::Short(message.len()));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if !(1..=MAX_HEADER).contains(&length) {
            return Err(Malformed::HeaderLength(length));
        }
        let (header, payload) =
            rest.split_at_checked(length).ok_or(Malformed::Truncated(length))?;
        if let Some(header) = Header::scan(header) {
            return Frame::from_header(header, payload);
        }
        let text = std::str::from_utf8(header).map_err(|_| Malformed::NotUtf8)?;
        // serde would also accept an array and read the fields from it in order.
        if !text.trim_start().starts_with('{') {
            return Err(Malformed::NotJson("not an object".into()));
        }
        match serde_json::from_str::<Header<'a>>(text) {
            Ok(header) => Frame::from_header(header, payload),
            Err(e) => {
                // The C SDK writes some numbers with leading zeros. JSON does not allow them.
                let mended = header::without_leading_zeros(text)
                    .ok_or_else(|| Malformed::NotJson(e.to_string()))?;
                let header = serde_json::from_str::<Header<'_>>(&mended)
                    .map_err(|e| Malformed::NotJson(e.to_string()))?;
                Frame::from_header(header.into_owned(), payload)
            }
        }
    }

    fn from_header(header: Header<'a>, payload: &'a [u8]) -> Result<Self, Malformed> {
        let frame_type = match header.frame_type {
            1 => FrameType::CommonResponse,
            2 => FrameType::SessionCreate,
            3 => FrameType::SessionRelease,
            4 => FrameType::DataTransport,
            other => return Err(Malformed::UnknownType(other)),
        };
        let session_id = header.session_id.0;
        if session_id.len() > MAX_SESSION_ID {
            return Err(Malformed::SessionId(session_id.len()));
        }
        Ok(Frame {
            frame_type,
            session_id,
            frame_id: header.frame_id.0,
            service_type: header.service_type.0,
            extensions: header.extensions,
            credit: header.credit,
            eof: header.eof.0,
            payload,
        })
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(header: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn field_order_white_space_and_unknown_fields_do_not_matter() {
        let bytes = message(
            " { \"x\" : [1,{\"y\":null}], \"frame_id\":\"17\",\n\"session_id\":\"a\\u0062\", \"frame_type\": 4 } ",
            b"data",
        );
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.frame_type, FrameType::DataTransport);
        assert_eq!((&*frame.session_id, frame.frame_id), ("ab", Some(17)));
        assert_eq!((&*frame.service_type, frame.payload), ("", &b"data"[..]));
    }

    #[test]
    fn absent_null_and_empty_texts_are_the_same() {
        for header in [
            r#"{"frame_type":2,"frame_id":1}"#,
            r#"{"frame_type":2,"frame_id":1,"session_id":null,"service_type":null}"#,
            r#"{"frame_type":2,"frame_id":1,"session_id":"","service_type":""}"#,
        ] {
            let bytes = message(header, b"");
            let frame = Frame::parse(&bytes).unwrap();
            assert_eq!((&*frame.session_id, &*frame.service_type), ("", ""));
        }
    }

    #[test]
    fn the_c_sdks_leading_zeros_are_read_as_decimals() {
        for (text, id) in [("012345678", 12_345_678), ("000000001", 1), ("000000000", 0)] {
            for space in ["", " "] {
                let header =
                    format!("{{\"frame_type\":4,\"frame_id\":{space}{text},\"session_id\":\"s\"}}");
                let bytes = message(&header, b"");
                let frame = Frame::parse(&bytes).unwrap();
                assert_eq!((frame.frame_id, &*frame.session_id), (Some(id), "s"));
                // The same text appears as a value first. It must not be mistaken for the key.
                let named = format!(
                    r#"{{"session_id":{space}"frame_id","frame_type":4,"frame_id":{text}}}"#
                );
                let bytes = message(&named, b"");
                let frame = Frame::parse(&bytes).unwrap();
                assert_eq!((frame.frame_id, &*frame.session_id), (Some(id), "frame_id"));
            }
        }
    }

    #[test]
    fn numbers_are_read_by_their_value_not_by_their_form() {
        for (text, id) in [
            ("1e3", 1000),
            ("1.0", 1),
            ("-0", 0),
            ("-0.0", 0),
            ("20E-1", 2),
            ("9007199254740992.0", 1 << 53),
        ] {
            let header = format!("{{\"frame_type\":2e0,\"frame_id\":{text},\"session_id\":\"s\"}}");
            let bytes = message(&header, b"");
            let frame = Frame::parse(&bytes).unwrap();
            assert_eq!((frame.frame_type, frame.frame_id), (FrameType::SessionCreate, Some(id)));
        }
        for text in ["1.5", "-1", "-1.0", "1e300", "9007199254740994.0", "1e-1", "true", "[]"] {
            for header in [
                format!("{{\"frame_type\":2,\"frame_id\":{text}}}"),
                format!("{{\"frame_type\":{text},\"frame_id\":2}}"),
            ] {
                let error = Frame::parse(&message(&header, b"")).map(|_| ()).unwrap_err();
                assert!(matches!(error, Malformed::NotJson(_)), "{header}: {error:?}");
            }
        }
    }

    #[test]
    fn malformed_messages_are_told_apart() {
        let parse = |bytes: &[u8]| Frame::parse(bytes).map(|_| ()).unwrap_err();
        assert_eq!(parse(b""), Malformed::Short(0));
        assert_eq!(parse(b"\0"), Malformed::Short(1));
        assert_eq!(parse(b"\0\0{}"), Malformed::HeaderLength(0));
        assert_eq!(parse(b"\x08\x01{}"), Malformed::HeaderLength(2049));
        assert_eq!(parse(b"\0\x09{}"), Malformed::Truncated(9));
        assert_eq!(parse(b"\0\x02\xff\xfe"), Malformed::NotUtf8);
        assert_eq!(parse(&message(r#"{"frame_type":9}"#, b"")), Malformed::UnknownType(9));
        for header in [
            "null",
            "[4,\"s\",1,\"\"]",
            "{",
            "{}",
            "{\"frame_type\":-1}",
            "{\"frame_type\":4.5}",
            "{\"frame_type\":4,\"session_id\":7}",
            "{\"frame_type\":4,\"frame_id\":9223372036854775808}",
            "{\"frame_type\":4,\"frame_id\":-1}",
            "{\"frame_type\":4,\"frame_id\":\"x\"}",
            "{\"frame_type\":4}{}",
        ] {
            let error = parse(&message(header, b""));
            assert!(matches!(error, Malformed::NotJson(_)), "{header}: {error:?}");
        }
        let long = format!("{{\"frame_type\":4,\"session_id\":\"{}\"}}", "s".repeat(257));
        assert_eq!(parse(&message(&long, b"")), Malformed::SessionId(257));
        let big = message("{\"frame_type\":4}", &vec![0; MAX_PAYLOAD + 1]);
        assert_eq!(parse(&big), Malformed::Payload(MAX_PAYLOAD + 1));
    }

    #[test]
    fn a_deeply_nested_header_is_malformed_and_harmless() {
        let header = format!("{{\"x\":{}", "[".repeat(2000));
        assert!(Frame::parse(&message(&header, b"")).is_err());
    }

    #[test]
    fn the_header_of_a_data_frame_is_that_of_the_template() {
        let ids =
            ["s", "\u{e9}\u{2028}", "q\"uote", "back\\slash", "line\nfeed", "\u{7f}", "/", ""];
        let all = Fields { extensions: Extensions::ALL, credit: 7, eof: true };
        for id in ids {
            for fields in [Fields::default(), all] {
                let (mut short, mut long) = (Vec::new(), Vec::new());
                DataHeader::new(id).write_with(id, 65, fields, &mut short);
                let template = HeaderTemplate::new(FrameType::DataTransport, id, None);
                template.write_with(65, fields, &mut long);
                assert_eq!(short, long, "{id:?}");
            }
        }
    }

    #[test]
    fn codes_are_read_by_value() {
        for (payload, code) in [
            (r#"{"code":2}"#, 2),
            (r#"{"code":2.0}"#, 2),
            (r#"{"code":2e0,"msg":"m"}"#, 2),
            (r#"{"code":"2"}"#, 2),
            (r#"{"code":1e1}"#, 10),
            (r#"{"code":0.0}"#, 0),
            (r#"{"code":-1}"#, -1),
            (r#"{"code":1e300}"#, i64::MAX),
        ] {
            assert_eq!(Status::parse(payload.as_bytes()).unwrap().code, code, "{payload}");
        }
        for payload in ["", "{}", r#"{"code":2.5}"#, r#"{"code":"two"}"#, r#"{"code":null}"#] {
            assert_eq!(Status::parse(payload.as_bytes()), None, "{payload}");
        }
    }

    #[test]
    fn a_status_quotes_at_most_256_bytes_of_a_message() {
        let long = "\u{e9}".repeat(500);
        let parsed = Status::parse(&status(2, &long)).unwrap();
        assert_eq!((parsed.code, parsed.msg.len()), (2, 256));
    }

    #[test]
    fn usual_headers_are_scanned() {
        for header in [
            r#"{"frame_type":4,"frame_id":1,"session_id":"s"}"#,
            "{\"frame_type\":2,\"frame_id\":0,\"session_id\":\"\u{e9}\",\"service_type\":\"_SSH\"}",
            r#"{"session_id":"","frame_type":4}"#,
        ] {
            assert!(Header::scan(header.as_bytes()).is_some(), "{header}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Frame::parse(&bytes);
        }

        #[test]
        fn what_a_template_writes_is_read_back(
            session in "\\PC{0,60}", service in proptest::option::of("\\PC{0,60}"),
            id in 0..=i64::MAX as u64, payload in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let template = HeaderTemplate::new(FrameType::SessionCreate, &session, service.as_deref());
            let mut bytes = Vec::new();
            template.write(id, &mut bytes);
            bytes.extend_from_slice(&payload);
            let frame = Frame::parse(&bytes).unwrap();
            prop_assert_eq!(frame.frame_type, FrameType::SessionCreate);
            prop_assert_eq!(frame.session_id, session);
            prop_assert_eq!(frame.service_type, service.unwrap_or_default());
            prop_assert_eq!(frame.frame_id, Some(id));
            prop_assert_eq!(frame.payload, payload);
        }
    }
}
