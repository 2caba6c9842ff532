//! Of the worker, what needs no thread and no socket.

#[path = "../../src/worker/relay.rs"]
pub(crate) mod relay;
#[path = "../../src/worker/session.rs"]
pub(crate) mod session;
