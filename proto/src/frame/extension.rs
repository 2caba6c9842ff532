//! The fields of the session extensions: half-close and flow control. `docs/protocol.md` describes
//! them.

use serde::de::Deserializer;
use serde::Deserialize;

use super::header::Scalar;

/// A set of session extensions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Half-close: `"eof":true` in a data frame ends one direction of the session.
    pub eof: bool,
    /// Flow control: an end sends only what the other end has granted.
    pub credit: bool,
}

impl Extensions {
    /// No extension.
    pub const NONE: Extensions = Extensions { eof: false, credit: false };
    /// All extensions.
    pub const ALL: Extensions = Extensions { eof: true, credit: true };

    /// Reads the value of the header field `ext`. Unknown names are ignored.
    pub fn parse(text: &str) -> Self {
        let mut extensions = Extensions::NONE;
        for name in text.split(',') {
            match name.trim() {
                "eof" => extensions.eof = true,
                "credit" => extensions.credit = true,
                _ => {}
            }
        }
        extensions
    }

    /// The value of the header field `ext`.
    pub fn name(self) -> &'static str {
        match (self.eof, self.credit) {
            (true, true) => "eof,credit",
            (true, false) => "eof",
            (false, true) => "credit",
            (false, false) => "",
        }
    }

    /// The extensions that are in both sets.
    #[must_use]
    pub fn and(self, other: Extensions) -> Self {
        Extensions { eof: self.eof && other.eof, credit: self.credit && other.credit }
    }
}

impl<'de> Deserialize<'de> for Extensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Scalar::deserialize(deserializer)? {
            Scalar::Text(names) => Extensions::parse(&names),
            _ => Extensions::NONE,
        })
    }
}

/// The header field `credit`: the number of payload bytes that are granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Credit {
    /// The header has no such field.
    #[default]
    Absent,
    /// This many more bytes may be sent.
    Bytes(u64),
    /// The value is no number of bytes. In a session with flow control, this breaks the protocol.
    Invalid,
}

impl<'de> Deserialize<'de> for Credit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Scalar::deserialize(deserializer)? {
            Scalar::Null => Credit::Absent,
            Scalar::Unsigned(bytes) => Credit::Bytes(bytes),
            _ => Credit::Invalid,
        })
    }
}

/// The extension fields of a header that is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fields {
    /// The extensions that are offered or accepted.
    pub extensions: Extensions,
    /// The number of payload bytes that are granted. 0: none.
    pub credit: u64,
    /// The sender ends its direction with this frame.
    pub eof: bool,
}

impl Fields {
    /// Writes the fields as the continuation of a JSON object.
    #[inline]
    pub(super) fn write(self, out: &mut Vec<u8>) {
        if self.extensions != Extensions::NONE {
            out.extend_from_slice(b",\"ext\":\"");
            out.extend_from_slice(self.extensions.name().as_bytes());
            out.push(b'"');
        }
        // An offer of flow control says its credit even if it is 0.
        if self.credit > 0 || self.extensions.credit {
            out.extend_from_slice(b",\"credit\":");
            out.extend_from_slice(itoa::Buffer::new().format(self.credit).as_bytes());
        }
        if self.eof {
            out.extend_from_slice(b",\"eof\":true");
        }
    }
}
