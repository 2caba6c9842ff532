//! The listen thread.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::lock::ReaderLock;
use super::message::{Command, MESSAGE_SIZE};
use super::queue::{self, remove_if_ours, ListenOptions};
use crate::error::{Error, Result};
use crate::logging::{info, warn, Code};
use crate::sys::{MessageQueue, Received};
use crate::Handle;

/// How often a stop repeats its wake-up, in case another process has received it.
const WAKE_AGAIN: Duration = Duration::from_millis(10);
/// Time between the loss of a queue and the attempt to open it again, and between two attempts.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Stack of the thread, in bytes. It needs 12 KiB, measured in a release build.
const STACK: usize = 128 * 1024;

/// A running listen thread. It receives commands and hands them to a [`Handle`]; a message that
/// is not valid is logged and dropped. Dropping the listener stops it, as [`stop`](Self::stop)
/// does.
#[must_use = "dropping a listener stops it"]
pub struct Listener {
    shared: Arc<ListenState>,
    thread: Option<JoinHandle<()>>,
    /// Given back after the thread has ended.
    _lock: ReaderLock,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// Shared by the listen thread and its [`Listener`].
struct ListenState {
    options: ListenOptions,
    /// The queue that is read now.
    queue: Mutex<MessageQueue>,
    stopping: AtomicBool,
}

impl Listener {
    /// Opens the queue, or creates it, starts the thread and returns. Idle, the thread sleeps. A
    /// queue that somebody removes is created again.
    ///
    /// A queue that exists is used only when root, the user of this process, or
    /// [`ListenOptions::owner`] created and owns it, because the owner can always send and can
    /// let others send. Permissions beyond [`ListenOptions::mode`] are taken away, with a
    /// warning in the log.
    ///
    /// # Errors
    /// [`Error::Io`] when the queue or the thread cannot be made, when the queue belongs to
    /// another user, when its permissions cannot be narrowed, or when another listener reads it. The
    /// text says what to do.
    pub fn start(handle: Handle, options: ListenOptions) -> Result<Self> {
        let lock = ReaderLock::take(&options)?;
        let queue = queue::open(&options)?;
        let stopping = AtomicBool::new(false);
        let shared = Arc::new(ListenState { options, queue: Mutex::new(queue), stopping });
        let for_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("aiot-listen".into())
            .stack_size(STACK)
            .spawn(move || listen(&for_thread, &handle))
            .map_err(|e| {
                remove_if_ours(queue);
                Error::io("create the listen thread", e)
            })?;
        Ok(Listener { shared, thread: Some(thread), _lock: lock })
    }

    /// Stops the thread and waits for it; that takes less than 200 ms. A queue that the listener
    /// has created is removed; a queue that existed before stays.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.stopping.store(true, Ordering::Release);
        while !thread.is_finished() {
            // Ends its wait for a queue; the empty message ends its receive.
            thread.thread().unpark();
            let _ = self.shared.queue.lock().send(&[]);
            thread::park_timeout(WAKE_AGAIN);
        }
        let _ = thread.join();
        remove_if_ours(*self.shared.queue.lock());
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.end();
    }
}

fn listen(shared: &ListenState, handle: &Handle) {
    let mut body = Zeroizing::new([0; MESSAGE_SIZE]);
    while !shared.stopping.load(Ordering::Acquire) {
        let queue = *shared.queue.lock();
        match queue.receive(&mut body) {
            Ok(Received::Message(0)) => {}
            Ok(Received::Message(MESSAGE_SIZE)) => {
                info!(Code::Tunnel, "msg recv data len {MESSAGE_SIZE}");
                if let Err(e) = execute(handle, &body) {
                    warn!(Code::TunnelFailed, "an IPC message is dropped: {e}");
                }
            }
            Ok(Received::Message(size)) => {
                warn!(Code::TunnelFailed, "an IPC message of {size} bytes is dropped");
            }
            Ok(Received::TooLong) => {
                warn!(
                    Code::TunnelFailed,
                    "an IPC message longer than {MESSAGE_SIZE} bytes is dropped"
                );
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                warn!(Code::TunnelFailed, "receive from the message queue: {e}; opening it anew");
                reopen(shared);
            }
        }
    }
}

/// Without a queue nobody can reach this process any more, so it tries until there is one.
fn reopen(shared: &ListenState) {
    let mut said = false;
    loop {
        // Before the first try as well: a queue that exists but cannot be read must not make it spin.
        thread::park_timeout(REOPEN_AFTER);
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        match queue::open(&shared.options) {
            Ok(queue) => {
                *shared.queue.lock() = queue;
                return info!(Code::Tunnel, "listening on the message queue again");
            }
            Err(e) if !said => {
                warn!(Code::TunnelFailed, "{e}; trying again");
                said = true;
            }
            Err(_) => {}
        }
    }
}

fn execute(handle: &Handle, body: &[u8; MESSAGE_SIZE]) -> Result<()> {
    match Command::from_bytes(body)? {
        Command::Add(id, params) => handle.add(&id, params),
        Command::Delete(id) => handle.delete(&id),
        Command::Update(id, params) => handle.update(&id, params),
    }
}
