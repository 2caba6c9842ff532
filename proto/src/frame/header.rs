//! Reads the header of a frame, a JSON object. A short scanner reads headers of the usual form;
//! serde reads the others.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::Deserialize;

use super::extension::{Credit, Extensions};

#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Header<'a> {
    #[serde(deserialize_with = "integer")]
    pub(super) frame_type: u64,
    #[serde(borrow, default)]
    pub(super) session_id: Text<'a>,
    #[serde(default)]
    pub(super) frame_id: FrameId,
    #[serde(borrow, default)]
    pub(super) service_type: Text<'a>,
    #[serde(default, rename = "ext")]
    pub(super) extensions: Extensions,
    #[serde(default)]
    pub(super) credit: Credit,
    #[serde(default)]
    pub(super) eof: Flag,
}

impl<'a> Header<'a> {
    /// Reads a header of the usual form: each field of the protocol at most once, no escapes, no
    /// white space. Returns `None` for any other header. The caller then uses serde, which takes
    /// three times as long.
    pub(super) fn scan(text: &'a [u8]) -> Option<Self> {
        let (mut frame_type, mut frame_id, mut session_id, mut service_type) =
            (None, None, None, None);
        let (mut extensions, mut credit, mut eof) = (None, None, None);
        let mut rest = text.strip_prefix(b"{")?;
        loop {
            let (key, after) = scan_text(rest)?;
            let value = after.strip_prefix(b":")?;
            let is_new = match key {
                b"frame_type" | b"frame_id" | b"credit" => {
                    // The C SDK writes leading zeros in one of ten frame ids. JSON does not allow
                    // them.
                    let (number, after) = scan_number(value, key == b"frame_id")?;
                    rest = after;
                    let field = match key {
                        b"frame_type" => &mut frame_type,
                        b"frame_id" => &mut frame_id,
                        _ => &mut credit,
                    };
                    field.replace(number).is_none()
                }
                b"session_id" | b"service_type" | b"ext" => {
                    let (text, after) = scan_text(value)?;
                    rest = after;
                    let field = match key {
                        b"session_id" => &mut session_id,
                        b"service_type" => &mut service_type,
                        _ => &mut extensions,
                    };
                    field.replace(std::str::from_utf8(text).ok()?).is_none()
                }
                b"eof" => {
                    let (is_set, after) = match value.strip_prefix(b"true") {
                        Some(after) => (true, after),
                        None => (false, value.strip_prefix(b"false")?),
                    };
                    rest = after;
                    eof.replace(is_set).is_none()
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
            extensions: extensions.map_or(Extensions::NONE, Extensions::parse),
            credit: credit.map_or(Credit::Absent, Credit::Bytes),
            eof: Flag(eof.unwrap_or_default()),
        })
    }
}

/// Reads a string without escapes at the start of a JSON text. Returns the string and the rest.
fn scan_text(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let json = json.strip_prefix(b"\"")?;
    let end = first_special(json)?;
    let after = json[end..].strip_prefix(b"\"")?;
    Some((&json[..end], after))
}

/// The position of the first quote, backslash or control character. Looks at eight bytes at a time:
/// most of the time of a small frame goes into its header.
fn first_special(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    // Bytes behind the first one may be marked without reason. The first mark is right.
    let below =
        |word: u64, byte: u8| word.wrapping_sub(ONES.wrapping_mul(byte.into())) & !word & HIGH;
    let (words, rest) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let equals = |byte: u8| below(word ^ ONES.wrapping_mul(byte.into()), 1);
        let marks = equals(b'"') | equals(b'\\') | below(word, 0x20);
        if marks != 0 {
            return Some(8 * index + marks.trailing_zeros() as usize / 8);
        }
    }
    let at = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..=0x1f))?;
    Some(text.len() - rest.len() + at)
}

/// Reads a number of at most 18 digits at the start of a JSON text. Returns the number and the
/// rest.
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
            extensions: self.extensions,
            credit: self.credit,
            eof: self.eof,
        }
    }
}

/// Removes the leading zeros of the frame id. Returns `None` if there are none.
pub(super) fn without_leading_zeros(header: &str) -> Option<String> {
    const KEY: &str = "\"frame_id\"";
    // The same text may occur earlier as a value. Only the key is followed by a colon.
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

/// A string that borrows from the message if it can. An absent or null string is empty.
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

/// A frame id. Some clients send the number in quotes.
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
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<FrameId, E> {
                let id = integral(number, &self)?;
                self.visit_u64(id)
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

/// A value of any kind, of which only a scalar matters. Arrays and objects are skipped without
/// recursion: the stack of a worker is small, and a peer may nest them.
#[derive(Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Unsigned(u64),
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Unsigned(value))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }
            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// A field that is set if it is `true`. Any other value counts as absent: the field may belong to
/// somebody else.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Flag(pub(super) bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Flag(Scalar::deserialize(deserializer)? == Scalar::Bool(true)))
    }
}

/// The integer that a JSON number with a point, an exponent or a minus sign stands for: 1.0, 1e3, -0.
/// Such a number is exact up to 2^53 only.
fn integral<E: de::Error>(number: f64, expected: &dyn de::Expected) -> Result<u64, E> {
    const EXACT: f64 = (1u64 << f64::MANTISSA_DIGITS) as f64;
    if number.fract() == 0.0 && (0.0..=EXACT).contains(&number) {
        return Ok(number as u64);
    }
    Err(E::invalid_value(de::Unexpected::Float(number), expected))
}

/// The type and the session id of a message whose header cannot be used, if it tells them. Of a field
/// that comes twice, the last one counts.
pub(super) fn rescue(header: &[u8]) -> Option<(u64, String)> {
    #[derive(Deserialize)]
    struct Type(#[serde(deserialize_with = "integer")] u64);
    struct RescueVisitor;
    impl<'de> Visitor<'de> for RescueVisitor {
        type Value = (Option<u64>, String);
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut frame_type, mut session_id) = (None, String::new());
            while let Some(key) = map.next_key::<Text<'_>>()? {
                match &*key.0 {
                    "frame_type" => frame_type = Some(map.next_value::<Type>()?.0),
                    "session_id" => session_id = map.next_value::<Text<'_>>()?.0.into_owned(),
                    // Skipped without recursion, however deep it is.
                    _ => _ = map.next_value::<IgnoredAny>()?,
                }
            }
            Ok((frame_type, session_id))
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(header);
    let (frame_type, session_id) = deserializer.deserialize_map(RescueVisitor).ok()?;
    Some((frame_type?, session_id)).filter(|(_, id)| !id.is_empty())
}

/// A code: an integer by value, 2.0 or 2e0 as well, or in quotes.
pub(super) fn code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    struct CodeVisitor;
    impl Visitor<'_> for CodeVisitor {
        type Value = i64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a code")
        }
        fn visit_i64<E>(self, code: i64) -> Result<i64, E> {
            Ok(code)
        }
        fn visit_u64<E>(self, code: u64) -> Result<i64, E> {
            Ok(i64::try_from(code).unwrap_or(i64::MAX))
        }
        fn visit_f64<E: de::Error>(self, code: f64) -> Result<i64, E> {
            // A code beyond the range of an integer is unknown like any other.
            match code.fract() {
                0.0 => Ok(code as i64),
                _ => Err(E::invalid_value(de::Unexpected::Float(code), &self)),
            }
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<i64, E> {
            text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_any(CodeVisitor)
}

fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct IntegerVisitor;
    impl Visitor<'_> for IntegerVisitor {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number from 0")
        }
        fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }
        fn visit_f64<E: de::Error>(self, number: f64) -> Result<u64, E> {
            integral(number, &self)
        }
    }
    deserializer.deserialize_any(IntegerVisitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_special_byte_is_found_wherever_it_stands() {
        let slow =
            |text: &[u8]| text.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..=0x1f));
        for length in 0..20 {
            for at in 0..length {
                for byte in 0..=255 {
                    for filler in [b' ', b'a', 0x7f, 0x80, 0xff, b'!', b'#', b'[', b']'] {
                        let mut text = vec![filler; length];
                        text[at] = byte;
                        assert_eq!(first_special(&text), slow(&text), "{text:?}");
                        // A second one, right behind.
                        if let Some(next) = text.get_mut(at + 1) {
                            *next = b'"';
                            assert_eq!(first_special(&text), slow(&text), "{text:?}");
                        }
                    }
                }
            }
        }
    }
}
