//! The codes and words of a `common_response` and of a `session_release`: the one place for them.

use serde::Deserialize;

use super::quoted;

/// Longest `msg` of a response or a release, in bytes. A longer text is truncated.
const MAX_MSG: usize = 256;

/// Codes of a `common_response`.
pub mod response {
    /// The session is open, or the release was accepted.
    pub const SUCCESS: u8 = 0;
    /// The tunnel has as many sessions as it may have.
    pub const SESSION_LIMIT: u8 = 1;
    /// The device refuses the session.
    pub const REFUSED: u8 = 2;
}

/// Codes of a `session_release`.
pub mod release {
    /// The access side closed the session.
    pub const BY_ACCESS: u8 = 0;
    /// The device side closed the session.
    pub const BY_DEVICE: u8 = 1;
    /// The access side lost its connection to the cloud.
    pub const ACCESS_LOST: u8 = 2;
    /// The device lost its connection to the cloud.
    pub const DEVICE_LOST: u8 = 3;
}

/// Texts that this project's device sends with release code 1 when it cuts a session. A session
/// that ended in order has another text.
pub mod reason {
    /// The local buffer was full, and the local service took nothing for the stall timeout.
    pub const STALLED: &str = "the local service takes nothing";
    /// The tunnel was deleted, updated or stopped.
    pub const TUNNEL_CLOSED: &str = "the tunnel is closed";
    /// A data frame was longer than this end accepts.
    pub const FRAME_TOO_LONG: &str = "a data frame is longer than 64 KiB";
    /// Data came for a session that does not exist.
    pub const UNKNOWN_SESSION: &str = "no such session";
}

/// The content of a `common_response` or a `session_release`.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// The code. See [`response`] and [`release`].
    pub code: i64,
    /// The text for people. Empty if there is none.
    #[serde(default)]
    pub msg: String,
}

impl Status {
    /// Reads a payload. Returns `None` if it is not a status.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }
}

/// Builds the payload of a `common_response` or a `session_release`.
pub fn status(code: u8, msg: &str) -> Vec<u8> {
    let mut end = msg.len().min(MAX_MSG);
    while !msg.is_char_boundary(end) {
        end -= 1;
    }
    format!("{{\"code\":{code},\"msg\":{}}}", quoted(&msg[..end])).into_bytes()
}
