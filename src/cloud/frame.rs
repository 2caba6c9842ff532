//! Tunnel frames (`aliyun.iot.securetunnel-v1.1`) to bytes and back.
//!
//! One frame is one binary WebSocket message: the header's length (2 bytes, big-endian), the
//! header (a JSON object), the payload. Nothing here does I/O.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::Deserialize;

/// The WebSocket subprotocol's name.
pub(crate) const SUBPROTOCOL: &str = "aliyun.iot.securetunnel-v1.1";
/// The HTTP header that carries the token of either end.
pub(crate) const TOKEN_HEADER: &str = "tunnel-access-token";

/// Longest header, in bytes.
pub(crate) const MAX_HEADER: usize = 2048;
/// Longest payload that is accepted; the protocol's own limit is [`MAX_PAYLOAD_SENT`], yet
/// clients exist that send more.
pub(crate) const MAX_PAYLOAD: usize = 64 * 1024;
/// Longest payload that is sent.
pub(crate) const MAX_PAYLOAD_SENT: usize = 4096;
/// Longest message that can be a frame.
pub(crate) const MAX_MESSAGE: usize = 2 + MAX_HEADER + MAX_PAYLOAD;
/// Longest session id that is accepted.
pub(crate) const MAX_SESSION_ID: usize = 256;
/// Longest `msg` of a response or a release; peers' texts that it quotes are cut.
const MAX_MSG: usize = 256;

/// Codes of a `common_response`.
pub(crate) mod response {
    /// The session is open, or the release was taken.
    pub(crate) const SUCCESS: u8 = 0;
    /// The tunnel is at its session limit.
    pub(crate) const SESSION_LIMIT: u8 = 1;
    /// The device refuses.
    pub(crate) const REFUSED: u8 = 2;
}

/// Codes of a `session_release`.
pub(crate) mod release {
    /// The access side closed it.
    #[cfg(any(feature = "gateway", feature = "access"))]
    pub(crate) const BY_ACCESS: u8 = 0;
    /// The device side closed it.
    pub(crate) const BY_DEVICE: u8 = 1;
    /// The cloud saw the access side disconnect.
    #[cfg(feature = "gateway")]
    pub(crate) const ACCESS_LOST: u8 = 2;
    /// The cloud saw the device disconnect.
    #[cfg(feature = "gateway")]
    pub(crate) const DEVICE_LOST: u8 = 3;
}

/// The device's words, beside code 1, for a session that it could not bring to its end.
pub(crate) mod lost {
    /// A full buffer and no progress for the stall time.
    pub(crate) const STALLED: &str = "the local service takes nothing";
    /// A delete, an update or a stop.
    pub(crate) const TUNNEL_CLOSED: &str = "the tunnel is closed";
    /// Longer than what is kept.
    pub(crate) const FRAME_TOO_LONG: &str = "a data frame is longer than 64 KiB";
    /// Data for a session that there is not.
    pub(crate) const UNKNOWN: &str = "no such session";
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameType {
    CommonResponse = 1,
    SessionCreate = 2,
    SessionRelease = 3,
    DataTransport = 4,
}

/// A received frame; its texts and payload borrow the message.
#[derive(Debug, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) frame_type: FrameType,
    /// Empty when the header has none.
    pub(crate) session_id: Cow<'a, str>,
    pub(crate) frame_id: Option<u64>,
    /// Empty when the header has none.
    pub(crate) service_type: Cow<'a, str>,
    pub(crate) payload: &'a [u8],
}

/// Why a message is no frame. The frame is dropped; the tunnel and its sessions go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it has {0} bytes")]
    Short(usize),
    #[error("its header length is {0}, not 1 to {MAX_HEADER}")]
    HeaderLength(usize),
    #[error("its header length {0} points past its end")]
    Truncated(usize),
    #[error("its header is not UTF-8")]
    NotUtf8,
    #[error("its header is not a JSON object with the protocol's fields: {0}")]
    NotJson(String),
    #[error("its frame_type {0} is unknown")]
    UnknownType(u64),
    #[error("its session_id has {0} bytes, more than {MAX_SESSION_ID}")]
    SessionId(usize),
    #[error("its payload has {0} bytes, more than {MAX_PAYLOAD}")]
    Payload(usize),
}

#[derive(Debug, PartialEq, Deserialize)]
struct Header<'a> {
    frame_type: u64,
    #[serde(borrow, default)]
    session_id: Text<'a>,
    #[serde(default)]
    frame_id: FrameId,
    #[serde(borrow, default)]
    service_type: Text<'a>,
}

impl<'a> Frame<'a> {
    /// Reads one message.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let frame = Frame::parse_header(message)?;
        if frame.payload.len() > MAX_PAYLOAD {
            return Err(Malformed::Payload(frame.payload.len()));
        }
        Ok(frame)
    }

    /// As [`parse`](Self::parse) with a payload of any length: `message` may be the beginning
    /// of one that is too long to keep.
    pub(crate) fn parse_header(message: &'a [u8]) -> Result<Self, Malformed> {
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
        // serde would also read the fields from an array, in order.
        if !text.trim_start().starts_with('{') {
            return Err(Malformed::NotJson("not an object".into()));
        }
        match serde_json::from_str::<Header<'a>>(text) {
            Ok(header) => Frame::from_header(header, payload),
            Err(e) => {
                // The C SDK writes some numbers with leading zeros, which is not JSON.
                let mended =
                    without_leading_zeros(text).ok_or_else(|| Malformed::NotJson(e.to_string()))?;
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
        let (frame_id, service_type) = (header.frame_id.0, header.service_type.0);
        Ok(Frame { frame_type, session_id, frame_id, service_type, payload })
    }
}

impl<'a> Header<'a> {
    /// Reads a header of the kind that nearly all are: the protocol's fields once each, no escapes,
    /// no white space. `None` leaves the judgement to serde, which takes three times as long.
    fn scan(text: &'a [u8]) -> Option<Self> {
        let (mut frame_type, mut frame_id, mut session_id, mut service_type) =
            (None, None, None, None);
        let mut rest = text.strip_prefix(b"{")?;
        loop {
            let (key, after) = scan_text(rest)?;
            let value = after.strip_prefix(b":")?;
            let is_new = match key {
                b"frame_type" | b"frame_id" => {
                    // The C SDK's ids have leading zeros, which is not JSON: one in ten.
                    let (number, after) = scan_number(value, key == b"frame_id")?;
                    rest = after;
                    let field = if key == b"frame_type" { &mut frame_type } else { &mut frame_id };
                    field.replace(number).is_none()
                }
                b"session_id" | b"service_type" => {
                    let (text, after) = scan_text(value)?;
                    rest = after;
                    let field =
                        if key == b"session_id" { &mut session_id } else { &mut service_type };
                    field.replace(std::str::from_utf8(text).ok()?).is_none()
                }
                _ => false,
            };
            if !is_new {
                return None;
            }
            match rest {
                b"}" => break,
                _ => rest = rest.strip_prefix(b",")?,
            }
        }
        let text = |text: Option<&'a str>| Text(Cow::Borrowed(text.unwrap_or_default()));
        Some(Header {
            frame_type: frame_type?,
            session_id: text(session_id),
            frame_id: FrameId(frame_id),
            service_type: text(service_type),
        })
    }
}

/// A string without escapes at the front of a JSON text, and what comes after it.
fn scan_text(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let json = json.strip_prefix(b"\"")?;
    let end = json.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..=0x1f))?;
    let after = json[end..].strip_prefix(b"\"")?;
    Some((&json[..end], after))
}

/// A number of at most 18 digits at the front of a JSON text, and what comes after it.
fn scan_number(json: &[u8], leading_zeros: bool) -> Option<(u64, &[u8])> {
    let length = json.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, after) = json.split_at(length);
    let is_json = digits.first()? != &b'0' || length == 1;
    if !(is_json || leading_zeros)
        || length > 18
        || matches!(after.first(), Some(b'.' | b'e' | b'E'))
    {
        return None;
    }
    Some((digits.iter().fold(0, |sum, digit| 10 * sum + u64::from(digit - b'0')), after))
}

impl Header<'_> {
    fn into_owned(self) -> Header<'static> {
        let owned = |text: Text<'_>| Text(Cow::Owned(text.0.into_owned()));
        Header {
            frame_type: self.frame_type,
            session_id: owned(self.session_id),
            frame_id: self.frame_id,
            service_type: owned(self.service_type),
        }
    }
}

/// The header with the leading zeros of its frame id taken away, if that is what it has.
fn without_leading_zeros(header: &str) -> Option<String> {
    const KEY: &str = "\"frame_id\"";
    // The same text may be a value before it is the key.
    let (after_key, value) = header.match_indices(KEY).find_map(|(at, _)| {
        let after_key = at + KEY.len();
        let value = header[after_key..].trim_ascii_start().strip_prefix(':')?;
        Some((after_key, value.trim_ascii_start()))
    })?;
    let after_zeros = value.trim_start_matches('0');
    let has_more = after_zeros.starts_with(|c: char| c.is_ascii_digit());
    let zero = if has_more { "" } else { "0" };
    value.starts_with('0').then(|| format!("{}:{zero}{after_zeros}", &header[..after_key]))
}

/// A string that borrows its text where it can; absent and null are the empty string.
#[derive(Debug, Default, PartialEq)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Text::default())
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

/// A frame id: a number, or a number in quotes as it is seen in the wild.
#[derive(Debug, Default, PartialEq)]
struct FrameId(Option<u64>);

impl<'de> Deserialize<'de> for FrameId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FrameIdVisitor;
        impl Visitor<'_> for FrameIdVisitor {
            type Value = FrameId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a frame id from 0 to 2^63-1")
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<FrameId, E> {
                if id > i64::MAX as u64 {
                    return Err(E::invalid_value(de::Unexpected::Unsigned(id), &self));
                }
                Ok(FrameId(Some(id)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<FrameId, E> {
                let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                match text.parse() {
                    Ok(id) if digits => self.visit_u64(id),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_unit<E>(self) -> Result<FrameId, E> {
                Ok(FrameId(None))
            }
        }
        deserializer.deserialize_any(FrameIdVisitor)
    }
}

/// What the payload of a `common_response` or a `session_release` says.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[cfg(any(feature = "gateway", feature = "access", test))]
pub(crate) struct Status {
    pub(crate) code: i64,
    #[serde(default)]
    pub(crate) msg: String,
}

#[cfg(any(feature = "gateway", feature = "access", test))]
impl Status {
    /// The status, when the payload is one.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }
}

/// The payload of a `common_response` or a `session_release`.
pub(crate) fn status(code: u8, msg: &str) -> Vec<u8> {
    let mut end = msg.len().min(MAX_MSG);
    while !msg.is_char_boundary(end) {
        end -= 1;
    }
    format!("{{\"code\":{code},\"msg\":{}}}", quoted(&msg[..end])).into_bytes()
}

/// Writes headers of one session; all but the frame id is prepared once.
pub(crate) struct HeaderTemplate {
    /// Two bytes for the length, then the JSON text up to the frame id.
    before_id: Vec<u8>,
    /// The JSON text after the frame id.
    after_id: Vec<u8>,
}

impl HeaderTemplate {
    /// Leaves out an empty session id and an absent service type.
    pub(crate) fn new(frame_type: FrameType, session_id: &str, service_type: Option<&str>) -> Self {
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
    pub(crate) fn write(&self, frame_id: u64, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.before_id);
        out.extend_from_slice(itoa::Buffer::new().format(frame_id).as_bytes());
        out.extend_from_slice(&self.after_id);
        let length = (out.len() - 2) as u16;
        out[..2].copy_from_slice(&length.to_be_bytes());
    }
}

/// What is scanned is what serde reads.
#[cfg(any(test, fuzzing))]
pub(crate) fn scan_agrees(header: &[u8]) {
    if let Some(scanned) = Header::scan(header) {
        let text = std::str::from_utf8(header).expect("what was scanned is text");
        let mended = without_leading_zeros(text);
        let read = serde_json::from_str::<Header<'_>>(text)
            .or_else(|e| serde_json::from_str(mended.as_ref().ok_or(e)?))
            .expect("what was scanned is a header");
        assert_eq!(scanned, read);
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
                // The same text as a value is not the key.
                let named = format!(
                    r#"{{"session_id":{space}"frame_id","frame_type":4,"frame_id":{text}}}"#
                );
                let bytes = message(&named, b"");
                let frame = Frame::parse(&bytes).unwrap();
                assert_eq!((frame.frame_id, &*frame.session_id), (Some(id), "frame_id"));
                scan_agrees(named.as_bytes());
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
    fn a_status_quotes_at_most_256_bytes_of_a_message() {
        let long = "\u{e9}".repeat(500);
        let parsed = Status::parse(&status(2, &long)).unwrap();
        assert_eq!((parsed.code, parsed.msg.len()), (2, 256));
    }

    /// Headers that are nearly right, and right ones.
    fn header() -> impl Strategy<Value = String> {
        let part = proptest::sample::select(vec![
            "{",
            "}",
            ",",
            ":",
            "\"",
            " ",
            "\\",
            "0",
            "1",
            "4",
            "007",
            "12345",
            "999999999999999999",
            "9999999999999999999",
            "1.5",
            "1e3",
            "-1",
            "null",
            "\u{1}",
            "\u{e9}",
            "\"frame_type\":4",
            "\"frame_id\":",
            "\"frame_id\":17",
            "\"session_id\":\"s1\"",
            "\"session_id\":",
            "\"service_type\":\"_SSH\"",
            "\"x\":1",
            "\"a\\u0062\"",
        ]);
        let separator = proptest::sample::select(vec!["", ","]);
        (proptest::collection::vec(part, 0..6), separator).prop_map(|(parts, separator)| {
            format!("{{\"frame_type\":4,{}}}", parts.join(separator))
        })
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
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_scanned_is_what_serde_reads(header in header()) {
            scan_agrees(header.as_bytes());
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
