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
    /// The text of a refusal by our gateway while no device is connected to the tunnel.
    pub const NOT_CONNECTED: &str = "the device is not connected";
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
    /// The cloud is being updated. Both ends may come back after a second.
    pub const UPDATE: u8 = 4;
}

/// Texts with which an end of this project releases a session that it cuts. A session that ended in
/// order has another text.
pub mod reason {
    /// The local buffer was full, and the local service took nothing for the stall timeout.
    pub const STALLED: &str = "the local service takes nothing";
    /// The tunnel was deleted, updated or stopped.
    pub const TUNNEL_CLOSED: &str = "the tunnel is closed";
    /// A data frame was longer than this end accepts.
    pub const FRAME_TOO_LONG: &str = "a data frame is longer than 64 KiB";
    /// A frame of the session could not be read, so that its payload is lost.
    pub const UNREADABLE_FRAME: &str = "a frame of the session has an unusable header";
    /// Data came for a session that does not exist.
    pub const UNKNOWN_SESSION: &str = "no such session";
    /// The local program at the access side took nothing for the stall timeout.
    pub const PROGRAM_STALLED: &str = "the local program takes nothing";
    /// The access side was stopped while the session was open.
    pub const STOPPED: &str = "the access side was stopped";
    /// The peer sent more bytes than it was granted.
    pub const OVER_CREDIT: &str = "more data than was granted";
    /// The peer granted an impossible number of bytes.
    pub const BAD_CREDIT: &str = "an impossible credit";
    /// The peer sent data after the end of its direction.
    pub const DATA_AFTER_END: &str = "data after the end of the stream";
    /// The device accepted the session after the other end had stopped waiting for it.
    pub const TOO_LATE: &str = "the answer came too late";
    /// No byte came or went for the idle limit.
    pub const IDLE: &str = "the session was idle for too long";
    /// The start of the text if the local connection of the access side failed. The error follows.
    pub const LOCAL_CONNECTION: &str = "local connection: ";
}

/// Whether the code or the text of a release says that the stream was cut. Texts of other devices
/// and clouds prove nothing, so their codes 0 and 1 are orderly ends.
pub fn tells_of_cut(status: &Status, service_type: &str) -> bool {
    if status.code != i64::from(release::BY_ACCESS) && status.code != i64::from(release::BY_DEVICE)
    {
        return true;
    }
    let msg = &*status.msg;
    let of_service = msg.strip_prefix("service ").and_then(|msg| msg.strip_prefix(service_type));
    let failed = of_service.is_some_and(|rest| rest.starts_with(": "));
    let cuts = [
        reason::STALLED,
        reason::TUNNEL_CLOSED,
        reason::FRAME_TOO_LONG,
        reason::UNREADABLE_FRAME,
        reason::UNKNOWN_SESSION,
        reason::PROGRAM_STALLED,
        reason::STOPPED,
        reason::OVER_CREDIT,
        reason::BAD_CREDIT,
        reason::DATA_AFTER_END,
        reason::IDLE,
        reason::TOO_LATE,
    ];
    failed || msg.starts_with(reason::LOCAL_CONNECTION) || cuts.contains(&msg)
}

/// The content of a `common_response` or a `session_release`.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Status {
    /// The code. See [`response`] and [`release`].
    #[serde(deserialize_with = "super::header::code")]
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
