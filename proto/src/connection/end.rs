//! Why a connection is over.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::websocket::close::{means_expired, GOING_AWAY, NORMAL, REMOVED, REPLACED_BY};

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// This end closed it, for this reason.
    Local(Cow<'static, str>),
    /// The peer sent a close frame.
    Peer {
        /// The code of the close frame, if it has one.
        code: Option<u16>,
        /// The reason in words. It is the peer's text and may hold any character. Often empty.
        reason: String,
    },
    /// The peer closed the byte stream without a close frame.
    EndOfStream,
    /// Reading failed.
    Receive(String),
    /// Writing failed.
    Send(String),
    /// The peer broke the WebSocket protocol.
    Protocol(String),
    /// Nothing was received for this long.
    Silence(Duration),
    /// The peer does not read the answers that it asks for.
    Flooded,
}

impl End {
    /// Whether the peer says that the token is no longer valid.
    pub fn is_expired(&self) -> bool {
        matches!(self, End::Peer { code: Some(code), .. } if means_expired(*code))
    }

    /// Whether our gateway says that it no longer has the tunnel.
    pub fn is_removed(&self) -> bool {
        matches!(self, End::Peer { code: Some(GOING_AWAY), reason } if reason == REMOVED)
    }

    /// The address of the connection that has taken this one's place, if the gateway says so. It is
    /// the peer's text.
    pub fn replaced_by(&self) -> Option<&str> {
        match self {
            End::Peer { code: Some(NORMAL), reason } => reason.strip_prefix(REPLACED_BY),
            _ => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Local(why) => f.write_str(why),
            End::Peer { code: Some(code), reason } => {
                write!(f, "the peer closed the connection with code {code}")?;
                if reason.is_empty() {
                    return Ok(());
                }
                write!(f, ": {reason}")
            }
            End::Peer { code: None, .. } => f.write_str("the peer closed the connection"),
            End::EndOfStream => f.write_str("the peer closed the connection (end of stream)"),
            End::Receive(e) => write!(f, "receive: {e}"),
            End::Send(e) => write!(f, "send: {e}"),
            End::Protocol(violation) => write!(f, "WebSocket protocol: {violation}"),
            End::Silence(limit) => write!(f, "nothing received for {limit:?}"),
            End::Flooded => f.write_str("the peer does not read the answers that it asks for"),
        }
    }
}
