//! The WebSocket: open, receive, send, close; what a close code means.
pub(crate) mod tls;
