//! Keeps the program's signals away from the threads of the library.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::thread::{Builder, JoinHandle};

/// Caused by the thread itself, which cannot go on. Blocked, they would end the process without the
/// program's handler.
const SYNCHRONOUS: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGSYS,
];

/// Creates a thread that takes no signals: the program's handlers do not run on its small stack, and a
/// program that waits for signals in a thread of its own gets them there.
pub(crate) fn spawn<T: Send + 'static>(
    builder: Builder,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    blocked(|| builder.spawn(body))
}

/// Calls `create` while the calling thread takes no signals. A thread that it creates inherits that.
pub(super) fn blocked<T>(create: impl FnOnce() -> T) -> T {
    let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
    let mut former = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set; the others read it, and pthread_sigmask writes the former
    // one. None of them fails with these arguments.
    unsafe {
        libc::sigfillset(signals.as_mut_ptr());
        for signal in SYNCHRONOUS {
            libc::sigdelset(signals.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, signals.as_ptr(), former.as_mut_ptr());
    }
    let created = create();
    // SAFETY: the former set was written above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, former.as_ptr(), ptr::null_mut()) };
    created
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_blocked(signal: libc::c_int) -> bool {
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: pthread_sigmask writes the set, which sigismember then reads.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), mask.as_mut_ptr());
            libc::sigismember(mask.as_ptr(), signal) == 1
        }
    }

    #[test]
    fn a_new_thread_takes_only_the_signals_that_it_causes() {
        let before = is_blocked(libc::SIGTERM);
        let look = || [libc::SIGTERM, libc::SIGALRM, libc::SIGSEGV, libc::SIGABRT].map(is_blocked);
        let inside = spawn(Builder::new(), look).unwrap().join().unwrap();
        assert_eq!(inside, [true, true, false, false]);
        assert_eq!(is_blocked(libc::SIGTERM), before);
    }
}
