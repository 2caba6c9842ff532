//! Commands from another process: the business process sends them, the listen thread receives
//! them and hands them to a [`Handle`](crate::Handle). It does nothing else.
//!
//! The transport is the System V message queue of the Link SDK's demo: message type 1, a body of
//! exactly 644 bytes ([`Command::to_bytes`]). A process that may write to the queue may open a
//! tunnel to any host. So the queue is created with mode 0600 (the SDK's demo uses 0666), and a
//! queue that exists already must be as safe ([`Listener::start`]).
//!
//! ```no_run
//! use aiot_tunnel::ipc::{ListenOptions, Listener};
//! use aiot_tunnel::Manager;
//!
//! let manager = Manager::builder().build()?;
//! let listener = Listener::start(manager.handle(), ListenOptions::new())?;
//! manager.run()?;
//! listener.stop();
//! # Ok::<(), aiot_tunnel::Error>(())
//! ```

mod listener;
mod lock;
mod message;
mod queue;

pub use listener::Listener;
pub use message::{Command, MESSAGE_SIZE};
pub use queue::{send, send_and_wait, ListenOptions, DEFAULT_KEY};
