//! The listen thread.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::lock::ReaderLock;
use super::message::{Command, MESSAGE_SIZE};
use super::queue::{self, remove_if_ours, ListenOptions};
use crate::error::{Error, Result};
use crate::logging::{info, warn, Code};
use crate::sys::{MessageQueue, Receive, Receiver};
use crate::Handle;

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
    thread: Option<Receiver<ListenState>>,
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
    handle: Handle,
    options: ListenOptions,
    place: Mutex<Place>,
    /// Signalled when the thread is to end.
    stopped: Condvar,
}

/// Where the thread receives.
struct Place {
    queue: MessageQueue,
    /// The queue cannot be read any more.
    lost: bool,
    stopping: bool,
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
        let place = Mutex::new(Place { queue, lost: false, stopping: false });
        let shared = Arc::new(ListenState { handle, options, place, stopped: Condvar::new() });
        let thread = Receiver::spawn(c"aiot-listen", STACK, shared.clone()).map_err(|e| {
            remove_if_ours(queue);
            Error::io("create the listen thread", e)
        })?;
        Ok(Listener { shared, thread: Some(thread), _lock: lock })
    }

    /// Stops the thread and waits for it; that takes less than 200 ms, also if this process may not
    /// send to the queue. A queue that the listener has created is removed; a queue that existed
    /// before stays.
    pub fn stop(mut self) {
        self.end(Receiver::end);
    }

    /// Stops the thread and does not wait for it.
    pub(crate) fn abandon(mut self) {
        self.end(Receiver::abandon);
    }

    fn end(&mut self, how: fn(Receiver<ListenState>)) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.place.lock().stopping = true;
        self.shared.stopped.notify_all();
        how(thread);
        remove_if_ours(self.shared.place.lock().queue);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.end(Receiver::end);
    }
}

impl Receive for ListenState {
    fn next_queue(&self) -> Option<MessageQueue> {
        let place = self.place.lock();
        if place.lost && !place.stopping {
            drop(place);
            return self.reopen();
        }
        (!place.stopping).then_some(place.queue)
    }

    fn received(&self, result: io::Result<&[u8]>) {
        match result {
            Ok(message) => match message.try_into() {
                Ok(body) => {
                    info!(Code::Tunnel, "msg recv data len {MESSAGE_SIZE}");
                    if let Err(e) = execute(&self.handle, body) {
                        warn!(Code::TunnelFailed, "an IPC message is dropped: {e}");
                    }
                }
                Err(_) => {
                    let size = message.len();
                    warn!(
                        Code::TunnelFailed,
                        "an IPC message of {size} bytes, not {MESSAGE_SIZE}, is dropped"
                    );
                }
            },
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                warn!(Code::TunnelFailed, "receive from the message queue: {e}; opening it anew");
                self.place.lock().lost = true;
            }
        }
    }
}

impl ListenState {
    /// Without a queue nobody can reach this process any more, so it tries until there is one.
    /// `None`: the thread is to end.
    fn reopen(&self) -> Option<MessageQueue> {
        let mut said = false;
        loop {
            let mut place = self.place.lock();
            // Before the first try as well: a queue that exists but cannot be read must not make it spin.
            self.stopped.wait_while_for(&mut place, |place| !place.stopping, REOPEN_AFTER);
            if place.stopping {
                return None;
            }
            drop(place);
            match queue::open(&self.options) {
                Ok(queue) => {
                    let mut place = self.place.lock();
                    if place.stopping {
                        remove_if_ours(queue);
                        return None;
                    }
                    (place.queue, place.lost) = (queue, false);
                    drop(place);
                    info!(Code::Tunnel, "listening on the message queue again");
                    return Some(queue);
                }
                Err(e) if !said => {
                    warn!(Code::TunnelFailed, "{e}; trying again");
                    said = true;
                }
                Err(_) => {}
            }
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
