//! The WebSocket to the cloud: open, receive, send, close; what a close code means.

pub(crate) mod frame;
mod open;
#[cfg(any(test, fuzzing))]
pub(crate) mod property;
pub(crate) mod read_ahead;
pub(crate) mod stream;
pub(crate) mod tls;
mod transport;
pub(crate) mod websocket;

use std::io::{Read, Write};

pub(crate) use open::{open, timed_out, OpenError, Wait};
pub(crate) use transport::Transport;
use websocket::{Receiver, Sender};

/// The bytes beneath a WebSocket.
pub(crate) trait ByteStream: Read + Write {
    /// Bytes that were written so far.
    fn written(&self) -> u64;
    /// Those of them that the peer's kernel has not acknowledged.
    fn unsent(&self) -> usize;
    /// Gives back buffers that hold nothing.
    fn shrink(&mut self) {}
}

/// An open WebSocket: its byte stream, and both directions' messages.
pub(crate) struct Link<T: ByteStream = Transport> {
    pub(crate) transport: T,
    pub(crate) receiver: Receiver,
    pub(crate) sender: Sender,
}

/// Close codes by which the cloud says that the token is no longer valid (401: the C SDK's).
pub(crate) fn means_expired(close_code: u16) -> bool {
    matches!(close_code, 4001 | 401)
}
