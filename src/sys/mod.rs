//! The few system calls that std lacks, each behind a safe function. For Linux only.

mod allocator;
pub(crate) mod cancellation;
mod descriptors;
mod environment;
mod exit;
#[cfg(feature = "gateway")]
mod listen;
mod message_queue;
mod poll;
mod receiver;
mod semaphore;
mod signals;
mod socket;
#[cfg(feature = "access")]
mod standard;
mod thread_end;
mod waker;

pub(crate) use allocator::give_back_large_buffers;
#[cfg(feature = "gateway")]
pub(crate) use descriptors::descriptor_limit;
pub(crate) use descriptors::{beyond_standard, raise_descriptor_limit};
pub(crate) use environment::take_variable;
pub(crate) use exit::at_exit;
#[cfg(feature = "gateway")]
pub(crate) use listen::set_backlog;
pub(crate) use message_queue::{effective_uid, Access, MessageQueue};
pub(crate) use poll::{poll, PollFd, PollSet};
pub(crate) use receiver::{Receive, Receiver};
pub(crate) use semaphore::Semaphore;
pub(crate) use signals::spawn;
pub(crate) use socket::{
    connect, connect_unix, is_dead, keep_alive, least_round_trip, limit_queue, push,
    reset_on_close, send, send_vectored, unacked, unsent, Connecting, Origin,
};
#[cfg(feature = "access")]
pub(crate) use standard::{access_mode, end_output, was_closed};
pub(crate) use thread_end::at_thread_end;
pub(crate) use waker::Waker;
