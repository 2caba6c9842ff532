//! A message of the peer, as the owner of the connection sees it.

use std::borrow::Cow;
use std::fmt;

use crate::frame::{self, reason, Frame, FrameType, Malformed};
use crate::websocket::Incoming;

/// A message from the peer.
#[derive(Debug)]
pub enum Received<'a> {
    /// A frame, and the position of its payload in the receive buffer ([`Connection::bytes`](super::Connection::bytes)). A
    /// message that came in fragments has no position.
    Frame(Frame<'a>, Option<usize>),
    /// A message that is dropped.
    Dropped {
        /// What is dropped, and why.
        what: Dropped,
        /// What a session lost with it.
        loss: Option<Loss<'a>>,
    },
    /// The peer answered a ping.
    Pong,
}

/// A session that lost bytes, or its release, with a dropped message. Its stream must be cut.
#[derive(Debug)]
pub struct Loss<'a> {
    /// The id of the session.
    pub session_id: Cow<'a, str>,
    /// Why, for the release.
    pub reason: &'static str,
}

/// A dropped message, and why it is dropped.
#[derive(Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The message is not a frame.
    Malformed(Malformed),
    /// The message is longer than a frame may be. The number is its length in bytes.
    TooLong(u64),
    /// It is a text message.
    Text,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dropped::Malformed(e) => write!(f, "a malformed frame is dropped: {e}"),
            Dropped::TooLong(length) => write!(f, "a message of {length} bytes is dropped"),
            Dropped::Text => f.write_str("a text message is dropped"),
        }
    }
}

pub(super) fn received(incoming: Incoming<'_>) -> Received<'_> {
    match incoming {
        Incoming::Binary { message, at } => match Frame::parse(message) {
            Ok(frame) => {
                let at = at.map(|at| at + message.len() - frame.payload.len());
                Received::Frame(frame, at)
            }
            Err(e) => {
                let loss = match e {
                    Malformed::Payload(_) => lost_with_long(message),
                    Malformed::NotJson(_) => lost_with_unreadable(message),
                    _ => None,
                };
                Received::Dropped { what: Dropped::Malformed(e), loss }
            }
        },
        Incoming::TooLong { head, length } => {
            Received::Dropped { what: Dropped::TooLong(length), loss: lost_with_long(head) }
        }
        Incoming::Text | Incoming::Ping(_) | Incoming::Close { .. } => {
            Received::Dropped { what: Dropped::Text, loss: None }
        }
        Incoming::Pong => Received::Pong,
    }
}

/// What a message that is too long to keep took with it. `head` is its beginning.
fn lost_with_long(head: &[u8]) -> Option<Loss<'_>> {
    let frame = Frame::parse_header(head).ok()?;
    let is_of_stream =
        matches!(frame.frame_type, FrameType::DataTransport | FrameType::SessionRelease);
    is_of_stream.then_some(Loss { session_id: frame.session_id, reason: reason::FRAME_TOO_LONG })
}

/// What a message with an unusable header took with it, if the header names the session.
fn lost_with_unreadable(message: &[u8]) -> Option<Loss<'_>> {
    let (frame_type, session_id) = frame::type_and_session(message)?;
    let is_of_stream = [FrameType::DataTransport, FrameType::SessionRelease]
        .iter()
        .any(|wanted| *wanted as u64 == frame_type);
    let session_id = session_id.into();
    is_of_stream.then_some(Loss { session_id, reason: reason::UNREADABLE_FRAME })
}
