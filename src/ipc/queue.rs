//! The queue: who may own it, and which permissions it may have.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::message::Command;
use crate::error::{Error, Result};
use crate::logging::{warn, Code};
use crate::sys::{self, Access, MessageQueue};

/// The queue's key in the Link SDK's demo.
pub const DEFAULT_KEY: i32 = 1234;
/// Time between two looks at a queue whose reader is awaited.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Which queue the listen thread reads, and who may write to it.
///
/// ```
/// use aiot_tunnel::ipc::ListenOptions;
///
/// let options = ListenOptions::new().with_key(4321).with_mode(0o620).with_owner(1000);
/// assert_eq!(options.owner, Some(1000));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct ListenOptions {
    /// The queue's key. Default 1234 ([`DEFAULT_KEY`]).
    pub key: i32,
    /// The permission bits that the queue may have. Default 0600. A queue that is created gets
    /// all of them; one that exists loses those beyond them.
    pub mode: u32,
    /// A user id that may own the queue, besides root and the user of this process. Default: none.
    /// The owner of the queue may open tunnels.
    pub owner: Option<u32>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions { key: DEFAULT_KEY, mode: 0o600, owner: None }
    }
}

impl ListenOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`key`](Self::key).
    pub fn with_key(mut self, key: i32) -> Self {
        self.key = key;
        self
    }

    /// Sets [`mode`](Self::mode).
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`owner`](Self::owner).
    pub fn with_owner(mut self, uid: impl Into<Option<u32>>) -> Self {
        self.owner = uid.into();
        self
    }
}

/// Puts one command on the queue of `key`. This is the business process's part. Does not block.
///
/// # Errors
/// [`Error::Io`] when there is no such queue, this process may not write to it, or it is full;
/// [`Error::InvalidInput`] for a field that does not fit into the message.
pub fn send(key: i32, command: &Command) -> Result<()> {
    put(key, command).map(drop)
}

/// Puts one command on the queue of `key` and waits until an agent has taken it, for `timeout` at
/// most. A queue may exist although no agent runs: one that was killed leaves it behind.
///
/// # Errors
/// Those of [`send`]. [`Error::NobodyReads`] when no message was taken in time. The command stays on
/// the queue; the next agent executes it.
pub fn send_and_wait(key: i32, command: &Command, timeout: Duration) -> Result<()> {
    let queue = put(key, command)?;
    let deadline = Instant::now() + timeout;
    let mut most = 0;
    loop {
        let waiting = queue.waiting().map_err(|e| Error::io(what(key), e))?;
        // Other senders may add commands, but only a reader makes them fewer.
        if waiting == 0 || waiting < most {
            return Ok(());
        }
        most = waiting;
        if Instant::now() >= deadline {
            return Err(Error::NobodyReads(key));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn put(key: i32, command: &Command) -> Result<MessageQueue> {
    let body = command.to_bytes()?;
    check(key)?;
    let queue = MessageQueue::open(key).map_err(|e| Error::io(what(key), e))?;
    queue.send(&body).map_err(|e| Error::io(what(key), e))?;
    Ok(queue)
}

/// The key 0 (`IPC_PRIVATE`) makes a new queue that nobody else can open.
fn check(key: i32) -> Result<()> {
    match key {
        0 => Err(Error::invalid("queue key", "0 makes a private queue that nobody can reach")),
        _ => Ok(()),
    }
}

fn what(key: i32) -> String {
    format!("message queue {key:#x}")
}

/// Removes the queue if this process has created it.
pub(super) fn remove_if_ours(queue: MessageQueue) {
    if queue.created() {
        let _ = queue.remove();
    }
}

/// Opens the queue, or creates it, and makes it as safe as the options say.
pub(super) fn open(options: &ListenOptions) -> Result<MessageQueue> {
    check(options.key)?;
    let failed = |e| Error::io(what(options.key), e);
    let queue = MessageQueue::open_or_create(options.key, options.mode).map_err(failed)?;
    if !queue.created() {
        secure(&queue, options).map_err(failed)?;
    }
    Ok(queue)
}

/// Narrows the queue to the permissions that the options allow. Refuses a queue that somebody
/// else controls.
fn secure(queue: &MessageQueue, options: &ListenOptions) -> io::Result<()> {
    let key = options.key;
    let refused = |text: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    let access = queue.access()?;
    if let Some(stranger) = stranger(access, sys::effective_uid(), options.owner) {
        return refused(format!(
            "it belongs to uid {stranger}, who could open tunnels; remove it (ipcrm -Q {key:#x}), \
             or name that user as the owner in the options"
        ));
    }
    let (found, most) = (access.mode, options.mode & 0o777);
    if found & !most == 0 {
        return Ok(());
    }
    if let Err(e) = queue.set_mode(found & most) {
        return refused(format!(
            "its mode is {found:04o}, wider than {most:04o}, and cannot be narrowed ({e}); remove \
             it (ipcrm -Q {key:#x}), or allow that mode in the options"
        ));
    }
    warn!(
        Code::Tunnel,
        "message queue {key:#x} had mode {found:04o}, which lets other users open tunnels; now it \
         has {:04o}",
        found & most
    );
    Ok(())
}

/// The user who controls the queue and is not trusted: its owner or its creator, for either may
/// change its mode.
fn stranger(access: Access, own: u32, trusted: Option<u32>) -> Option<u32> {
    stranger_among([access.owner, access.creator], own, trusted)
}

/// The first of the users who is not trusted.
pub(super) fn stranger_among(users: [u32; 2], own: u32, trusted: Option<u32>) -> Option<u32> {
    let known = |uid: u32| uid == 0 || uid == own || Some(uid) == trusted;
    users.into_iter().find(|uid| !known(*uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_trusted_only_when_root_we_or_the_configured_user_own_and_made_it() {
        let access = |owner, creator| Access { owner, creator, mode: 0o600 };
        assert_eq!(stranger(access(0, 0), 1000, None), None);
        assert_eq!(stranger(access(1000, 1000), 1000, None), None);
        assert_eq!(stranger(access(1001, 1001), 1000, Some(1001)), None);
        assert_eq!(stranger(access(1001, 0), 1000, None), Some(1001));
        assert_eq!(stranger(access(0, 1001), 1000, None), Some(1001));
        assert_eq!(stranger(access(1001, 1001), 0, None), Some(1001));
        assert_eq!(stranger(access(1001, 1002), 1000, Some(1001)), Some(1002));
    }
}
