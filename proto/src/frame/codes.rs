//! The codes and words of a `common_response` and of a `session_release`: the one place for them.

use serde::Deserialize;

use super::quoted;

/// Longest `msg` of a response or a release, in bytes; a longer text is cut.
const MAX_MSG: usize = 256;

/// Codes of a `common_response`.
pub mod response {
    /// The session is open, or the release was taken.
    pub const SUCCESS: u8 = 0;
    /// The tunnel is at its session limit.
    pub const SESSION_LIMIT: u8 = 1;
    /// The device refuses.
    pub const REFUSED: u8 = 2;
}

/// Codes of a `session_release`.
pub mod release {
    /// The access side closed it.
    pub const BY_ACCESS: u8 = 0;
    /// The device side closed it.
    pub const BY_DEVICE: u8 = 1;
    /// The cloud saw the access side disconnect.
    pub const ACCESS_LOST: u8 = 2;
    /// The cloud saw the device disconnect.
    pub const DEVICE_LOST: u8 = 3;
}

/// Words of this project's device beside release code 1: the session was cut, not ended in order.
pub mod reason {
    /// A full buffer and no progress for the stall time.
    pub const STALLED: &str = "the local service takes nothing";
    /// A delete, an update or a stop.
    pub const TUNNEL_CLOSED: &str = "the tunnel is closed";
    /// Longer than what is kept.
    pub const FRAME_TOO_LONG: &str = "a data frame is longer than 64 KiB";
    /// Data for a session that there is not.
    pub const UNKNOWN_SESSION: &str = "no such session";
}

/// What the payload of a `common_response` or a `session_release` says.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// The code: see [`response`] and [`release`].
    pub code: i64,
    /// Words for people; empty when there are none.
    #[serde(default)]
    pub msg: String,
}

impl Status {
    /// The status, when the payload is one.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }
}

/// The payload of a `common_response` or a `session_release`.
pub fn status(code: u8, msg: &str) -> Vec<u8> {
    let mut end = msg.len().min(MAX_MSG);
    while !msg.is_char_boundary(end) {
        end -= 1;
    }
    format!("{{\"code\":{code},\"msg\":{}}}", quoted(&msg[..end])).into_bytes()
}
