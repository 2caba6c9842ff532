//! The WebSocket: open, receive, send, close; what a close code means.
pub(crate) mod frame;
pub(crate) mod tls;
pub(crate) mod websocket;
