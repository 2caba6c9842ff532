//! Three things that a program may do with its own process. They concern the whole process, so the
//! library itself never does them.

use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::sys;

/// Takes a secret out of the environment.
///
/// The value is wiped in the memory where the kernel has put it, so that `/proc/PID/environ` no
/// longer shows it, and the variable is removed, so that no child process inherits it. The
/// returned copy is wiped when it is dropped. `Ok(None)`: the variable is not set or, then wiped
/// all the same, not UTF-8.
///
/// Call this at the start of the program: the environment may only be changed while the process
/// has one thread. Does not block.
///
/// # Errors
/// [`Error::Io`] when the process has more than one thread, or when `/proc` does not tell. Then
/// the environment is unchanged.
pub fn take_variable(name: &str) -> Result<Option<Zeroizing<String>>> {
    sys::take_variable(name).map_err(|e| Error::io(format!("take {name} from the environment"), e))
}

/// Makes the C library's allocator give large buffers back to the system as soon as they are
/// freed. For programs that run for long.
///
/// By itself, glibc keeps freed buffers of up to 32 MiB for later, and gives each thread an arena
/// of its own. After this call buffers of 64 KiB and more go back at once, and threads share two
/// arenas. With other C libraries the call does nothing. Call it at the start of the program: it
/// applies to memory that is allocated later. Does not block.
pub fn give_back_large_buffers() {
    sys::give_back_large_buffers();
}

/// Raises the number of descriptors that the process may have (`RLIMIT_NOFILE`), from the soft limit
/// to the hard one. The soft limit is often 1024, for the sake of programs that use `select`. Programs
/// that serve many clients need more; a program that uses `select`, or starts one that does, must not
/// call this. Does not block.
///
/// # Errors
/// [`Error::Io`] when the system refuses. The limit is unchanged then.
pub fn raise_descriptor_limit() -> Result<()> {
    sys::raise_descriptor_limit().map_err(|e| Error::io("raise the limit of open files", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_not_taken_while_other_threads_may_read_it() {
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || receiver.recv());
            let error = take_variable("PATH").unwrap_err().to_string();
            assert!(error.contains("PATH") && error.contains("thread"), "{error}");
            assert!(std::env::var_os("PATH").is_some());
            drop(sender);
        });
    }
}
