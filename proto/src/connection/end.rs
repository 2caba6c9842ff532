//! Why a connection is over.

use std::fmt;
use std::time::Duration;

use crate::websocket::close::means_expired;

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// This end closed it, for this reason.
    Local(&'static str),
    /// The peer sent a close frame, with this code if it has one.
    Peer(Option<u16>),
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
        matches!(self, End::Peer(Some(code)) if means_expired(*code))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Local(why) => f.write_str(why),
            End::Peer(Some(code)) => write!(f, "the peer closed the connection with code {code}"),
            End::Peer(None) => f.write_str("the peer closed the connection"),
            End::EndOfStream => f.write_str("the peer closed the connection (end of stream)"),
            End::Receive(e) => write!(f, "receive: {e}"),
            End::Send(e) => write!(f, "send: {e}"),
            End::Protocol(violation) => write!(f, "WebSocket protocol: {violation}"),
            End::Silence(limit) => write!(f, "nothing received for {limit:?}"),
            End::Flooded => f.write_str("the peer does not read the answers that it asks for"),
        }
    }
}
