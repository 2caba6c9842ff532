//! The few system calls that std lacks, each behind a safe function. Linux only.

mod message_queue;
mod poll;
mod socket;
mod waker;

pub(crate) use message_queue::{effective_uid, Access, MessageQueue, Received};
pub(crate) use poll::{poll, PollFd, PollSet, Ready};
pub(crate) use socket::{connect, reset_on_close, send, send_vectored, unsent, Connecting};
pub(crate) use waker::Waker;

pub(crate) fn tune(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}
macro_rules! tuned {
    ($n:literal, $d:expr) => {{
        static V: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
        *V.get_or_init(|| $crate::sys::tune($n, $d))
    }};
}
pub(crate) use tuned;
