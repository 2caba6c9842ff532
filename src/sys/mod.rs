//! The few system calls that std lacks, each behind a safe function. For Linux only.

mod allocator;
mod environment;
mod exit;
mod message_queue;
mod poll;
mod socket;
mod waker;

pub(crate) use allocator::give_back_large_buffers;
pub(crate) use environment::take_variable;
pub(crate) use exit::at_exit;
pub(crate) use message_queue::{effective_uid, Access, MessageQueue, Received};
pub(crate) use poll::{poll, PollFd, PollSet};
pub(crate) use socket::{
    connect, connect_unix, limit_queue, push, reset_on_close, send, send_vectored, unsent,
    Connecting,
};
pub(crate) use waker::Waker;
