//! How the agent gets a command.

use std::time::Duration;

use aiot_tunnel::ipc::{self, Command};

/// An agent takes a command within milliseconds.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);

/// Why a command did not reach the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotHandedOver {
    /// The agent is away. The command is kept in memory and tried again.
    #[error("{0}")]
    Unreachable(String),
    /// The agent does not take this command. It is dropped.
    #[error("{0}")]
    Refused(String),
}

/// A way to the agent. One thread calls it, one command at a time.
pub trait HandOver: Send + 'static {
    /// Hands a command to the agent, and returns when the agent has taken it. It may block for some
    /// seconds.
    ///
    /// # Errors
    /// [`NotHandedOver`] says whether to try again.
    fn hand_over(&mut self, command: &Command) -> Result<(), NotHandedOver>;
}

/// The agent's System V message queue.
#[derive(Debug, Clone)]
pub struct Queue {
    key: i32,
}

impl Queue {
    /// The queue with this key.
    pub fn new(key: i32) -> Self {
        Queue { key }
    }
}

impl Default for Queue {
    /// The queue with the default key, [`ipc::DEFAULT_KEY`].
    fn default() -> Self {
        Queue::new(ipc::DEFAULT_KEY)
    }
}

impl HandOver for Queue {
    fn hand_over(&mut self, command: &Command) -> Result<(), NotHandedOver> {
        match ipc::send_and_wait(self.key, command, TAKEN_WITHIN) {
            Ok(()) => Ok(()),
            // It stays on the queue, so it must not be sent twice.
            Err(e @ aiot_tunnel::Error::NobodyReads(_)) => {
                log::warn!("{e}");
                Ok(())
            }
            Err(e @ aiot_tunnel::Error::Io { .. }) => {
                Err(NotHandedOver::Unreachable(e.to_string()))
            }
            Err(e) => Err(NotHandedOver::Refused(e.to_string())),
        }
    }
}
