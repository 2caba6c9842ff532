//! A message of the peer, as the owner of the connection sees it.

use std::fmt;

use crate::frame::{Frame, FrameType, Malformed};
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
        /// The header, if it is a data frame that is too long. Then its session has lost bytes.
        lossy: Option<Frame<'a>>,
    },
    /// The peer answered a ping.
    Pong,
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
                let is_long = matches!(e, Malformed::Payload(_));
                let lossy = if is_long { data_header(message) } else { None };
                Received::Dropped { what: Dropped::Malformed(e), lossy }
            }
        },
        Incoming::TooLong { head, length } => {
            Received::Dropped { what: Dropped::TooLong(length), lossy: data_header(head) }
        }
        Incoming::Text | Incoming::Ping(_) | Incoming::Close { .. } => {
            Received::Dropped { what: Dropped::Text, lossy: None }
        }
        Incoming::Pong => Received::Pong,
    }
}

/// The header of a data frame that is too long to keep. `None` if the message is something else.
fn data_header(head: &[u8]) -> Option<Frame<'_>> {
    let frame = Frame::parse_header(head).ok()?;
    (frame.frame_type == FrameType::DataTransport).then_some(frame)
}
