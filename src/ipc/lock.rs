//! Makes sure that a queue has one reader. Two would each get a part of the commands.
//!
//! The lock is a semaphore with the key of the queue. It needs no file, so it works while the disk
//! is full, and the kernel gives it back when a reader is killed.

use std::io;

use super::queue::stranger_among;
use super::ListenOptions;
use crate::error::{Error, Result};
use crate::logging::{warn, Code};
use crate::sys::{effective_uid, Semaphore};

/// How often to begin anew if the semaphore is removed in between.
const TRIES: usize = 10;

/// The right to read a queue. Given back when dropped. `None`: it cannot be told whether there is
/// another reader; the reader reads all the same, because it is the way to repair a device.
pub(super) struct ReaderLock(Option<Semaphore>);

impl ReaderLock {
    /// # Errors
    /// Somebody reads the queue already.
    pub(super) fn take(options: &ListenOptions) -> Result<Self> {
        match lock(options) {
            Ok(Ok(semaphore)) => Ok(ReaderLock(Some(semaphore))),
            Ok(Err(holder)) => {
                let who = holder.map_or(String::new(), |pid| format!(" (process {pid})"));
                let text = format!(
                    "another agent{who} reads it already; stop that one, or use another key"
                );
                let e = io::Error::new(io::ErrorKind::AddrInUse, text);
                Err(Error::io(format!("message queue {:#x}", options.key), e))
            }
            Err(e) => {
                warn!(
                    Code::Tunnel,
                    "message queue {:#x}: cannot tell whether another agent reads it: {e}",
                    options.key
                );
                Ok(ReaderLock(None))
            }
        }
    }
}

impl Drop for ReaderLock {
    fn drop(&mut self) {
        // While it is held: a newcomer that has opened it already notices, and begins anew.
        if let Some(semaphore) = &self.0 {
            let _ = semaphore.remove();
        }
    }
}

/// The lock, or the process that holds it.
fn lock(options: &ListenOptions) -> io::Result<std::result::Result<Semaphore, Option<u32>>> {
    let mut removed = io::Error::from(io::ErrorKind::Interrupted);
    for _ in 0..TRIES {
        let semaphore = Semaphore::open_or_create(options.key)?;
        let was_removed =
            |e: &io::Error| matches!(e.raw_os_error(), Some(libc::EIDRM | libc::EINVAL));
        let taken = semaphore.users().and_then(|users| {
            // Anybody may create a semaphore with this key. It must not stop the agent.
            match stranger_among(users, effective_uid(), options.owner) {
                Some(uid) => Err(io::Error::other(format!(
                    "the semaphore with its key belongs to uid {uid}; remove it (ipcrm -S {:#x})",
                    options.key
                ))),
                None => semaphore.lock(),
            }
        });
        match taken {
            Ok(true) => return Ok(Ok(semaphore)),
            Ok(false) => return Ok(Err(semaphore.holder())),
            Err(e) if was_removed(&e) => removed = e,
            Err(e) => return Err(e),
        }
    }
    Err(removed)
}
