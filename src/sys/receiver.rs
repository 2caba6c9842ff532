//! A thread that receives from message queues. It can be ended while it waits for a message.
//!
//! Nothing but a message, a signal and the removal of the queue ends the system call. A message of our
//! own does not always arrive: the queue may be full, or this process may not send to it. The thread is
//! therefore cancelled (`pthread_cancel`). Cancellation unwinds the thread's frames, and must meet nothing
//! in them that has to be dropped or that catches panics. So it is on only while the thread waits.

use std::ffi::{c_void, CStr};
use std::io;
use std::mem::{self, MaybeUninit};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::Arc;

use zeroize::Zeroize;

use super::cancellation;
use super::message_queue::{MessageQueue, COMMAND};
use super::signals;

/// Size of the buffer. Larger than a command, so that a message that is too long can be told from one
/// that fits exactly.
const ROOM: usize = 8192;

/// What the thread does.
pub(crate) trait Receive: Send + Sync + 'static {
    /// Returns the queue to receive from next. `None`: the thread ends.
    fn next_queue(&self) -> Option<MessageQueue>;
    /// Called with the body of each message, cut to 8192 bytes, and with each error.
    fn received(&self, result: io::Result<&[u8]>);
}

/// A running thread.
pub(crate) struct Receiver<R: Receive> {
    /// A `pthread_t`. With some C libraries that is a pointer, which would tie the value to a thread.
    thread: usize,
    /// Used by the thread.
    receive: Arc<R>,
}

impl<R: Receive> Receiver<R> {
    /// Starts the thread. `name` has at most 15 bytes.
    pub(crate) fn spawn(name: &CStr, stack: usize, receive: Arc<R>) -> io::Result<Self> {
        let check = |result| match result {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        };
        let mut attributes = MaybeUninit::uninit();
        let mut thread = MaybeUninit::uninit();
        let argument = Arc::as_ptr(&receive).cast_mut().cast();
        // SAFETY: the attributes are initialised before they are used, and the thread's id is read after
        // pthread_create has written it. The argument is an `R`, which outlives the thread: it is
        // released after the thread has ended, or never.
        unsafe {
            check(libc::pthread_attr_init(attributes.as_mut_ptr()))?;
            let created = check(libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), stack))
                .and_then(|()| {
                    signals::blocked(|| {
                        check(pthread_create(
                            thread.as_mut_ptr(),
                            attributes.as_ptr(),
                            run::<R>,
                            argument,
                        ))
                    })
                });
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            created?;
            let thread = thread.assume_init();
            libc::pthread_setname_np(thread, name.as_ptr());
            Ok(Receiver { thread: thread as usize, receive })
        }
    }

    /// Ends the thread and waits for it. [`Receive::next_queue`] must return `None` already.
    pub(crate) fn end(self) {
        let thread = self.thread as libc::pthread_t;
        cancel(thread);
        // SAFETY: the thread was neither joined nor detached: both consume `self`.
        unsafe { libc::pthread_join(thread, ptr::null_mut()) };
    }

    /// Ends the thread and does not wait for it. Leaves what the thread uses in memory for ever.
    pub(crate) fn abandon(self) {
        let thread = self.thread as libc::pthread_t;
        cancel(thread);
        // SAFETY: the thread was neither joined nor detached: both consume `self`.
        unsafe { libc::pthread_detach(thread) };
        mem::forget(self.receive);
    }
}

/// The thread's routine.
extern "C-unwind" fn run<R: Receive>(argument: *mut c_void) -> *mut c_void {
    cancellation::disable();
    let receive: *const R = argument.cast_const().cast();
    let mut envelope = Envelope { kind: 0, body: [0; ROOM] };
    // SAFETY: `spawn` has passed an `R` that outlives this thread. A panic in it ends one step.
    while let Some(queue) = guard(|| unsafe { (*receive).next_queue() }).flatten() {
        let received = wait(queue.id(), &raw mut envelope);
        let step = || {
            let result = usize::try_from(received).map_err(|_| io::Error::last_os_error());
            let result = result.map(|size| &envelope.body[..size.min(ROOM)]);
            // SAFETY: as above.
            unsafe { (*receive).received(result) }
        };
        guard(step);
        if received > 0 {
            // The message may hold a token.
            envelope.body.zeroize();
        }
    }
    ptr::null_mut()
}

fn guard<T>(step: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(step)).ok()
}

/// A message in the layout of the kernel: its type, then its body.
#[repr(C)]
struct Envelope {
    kind: libc::c_long,
    body: [u8; ROOM],
}

/// Waits for a message. The only place where the thread can be cancelled.
#[cfg(not(target_os = "android"))]
fn wait(queue: libc::c_int, envelope: *mut Envelope) -> isize {
    cancellation::enable();
    // SAFETY: the envelope is a type field and `ROOM` bytes. MSG_NOERROR truncates a longer message.
    let received = unsafe { msgrcv(queue, envelope.cast(), ROOM, COMMAND, libc::MSG_NOERROR) };
    cancellation::disable();
    received
}

#[cfg(not(target_os = "android"))]
fn cancel(thread: libc::pthread_t) {
    // SAFETY: the thread was neither joined nor detached, so its id is valid.
    unsafe { pthread_cancel(thread) };
}

/// Threads cannot be cancelled there, so this one looks every 100 ms.
#[cfg(target_os = "android")]
fn wait(queue: libc::c_int, envelope: *mut Envelope) -> isize {
    let flags = libc::MSG_NOERROR | libc::IPC_NOWAIT;
    // SAFETY: the envelope is a type field and `ROOM` bytes. MSG_NOERROR truncates a longer message.
    let received = unsafe { msgrcv(queue, envelope.cast(), ROOM, COMMAND, flags) };
    if received < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOMSG) {
        std::thread::sleep(std::time::Duration::from_millis(100));
        return 0;
    }
    received
}

#[cfg(target_os = "android")]
fn cancel(_: libc::pthread_t) {}

// As in the crate libc, but unwound by a cancellation.
extern "C-unwind" {
    fn msgrcv(
        queue: libc::c_int,
        message: *mut c_void,
        size: usize,
        kind: libc::c_long,
        flags: libc::c_int,
    ) -> isize;
    fn pthread_create(
        thread: *mut libc::pthread_t,
        attributes: *const libc::pthread_attr_t,
        routine: extern "C-unwind" fn(*mut c_void) -> *mut c_void,
        argument: *mut c_void,
    ) -> libc::c_int;
    #[cfg(not(target_os = "android"))]
    fn pthread_cancel(thread: libc::pthread_t) -> libc::c_int;
}
