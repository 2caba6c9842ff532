//! The header of a frame: a JSON object, read by a short scanner where it is of the usual form, and by
//! serde where it is not.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::Deserialize;

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Header<'a> {
    pub(super) frame_type: u64,
    #[serde(borrow, default)]
    pub(super) session_id: Text<'a>,
    #[serde(default)]
    pub(super) frame_id: FrameId,
    #[serde(borrow, default)]
    pub(super) service_type: Text<'a>,
}

impl<'a> Header<'a> {
    /// Reads a header of the kind that nearly all are: the protocol's fields once each, no escapes,
    /// no white space. `None` leaves the judgement to serde, which takes three times as long.
    pub(super) fn scan(text: &'a [u8]) -> Option<Self> {
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
    pub(super) fn into_owned(self) -> Header<'static> {
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
pub(super) fn without_leading_zeros(header: &str) -> Option<String> {
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
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

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
pub(super) struct FrameId(pub(super) Option<u64>);

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
