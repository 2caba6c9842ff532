//! The state of standard input and standard output.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which of standard input and standard output were closed when the process started.
static CLOSED: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];

/// Runs before `main`, as the constructors of C do. Rust's own start opens `/dev/null` in place of a
/// closed standard stream. After that, nothing tells that everything written is lost.
#[used]
#[link_section = ".init_array"]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    for (fd, closed) in (0..).zip(&CLOSED) {
        // SAFETY: fcntl with F_GETFD takes no pointers, and any number may be asked for.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        closed.store(flags < 0, Ordering::Relaxed);
    }
}

/// Whether the descriptor, standard input or standard output, was closed when the process started.
pub(crate) fn was_closed(fd: BorrowedFd<'_>) -> bool {
    let closed = usize::try_from(fd.as_raw_fd()).ok().and_then(|fd| CLOSED.get(fd));
    closed.is_some_and(|closed| closed.load(Ordering::Relaxed))
}

/// Whether the descriptor is open for reading and for writing.
pub(crate) fn access_mode(fd: BorrowedFd<'_>) -> io::Result<(bool, bool)> {
    // SAFETY: F_GETFL takes no pointers.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) } {
        -1 => Err(io::Error::last_os_error()),
        flags => {
            let mode = flags & libc::O_ACCMODE;
            Ok((mode != libc::O_WRONLY, mode != libc::O_RDONLY))
        }
    }
}

/// Ends standard output, so that its reader sees the end of the stream. A socket that is standard
/// input, too, ends its sending direction only. Later writes to standard output are lost.
pub(crate) fn end_output() {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    if is_same_socket(stdin.as_raw_fd(), stdout.as_raw_fd()) {
        // SAFETY: shutdown takes no pointers.
        unsafe { libc::shutdown(stdout.as_raw_fd(), libc::SHUT_WR) };
    }
    // The number must not become that of the next file that is opened.
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        // SAFETY: both descriptors are open, and dup2 replaces the second one atomically.
        unsafe { libc::dup2(null.as_raw_fd(), stdout.as_raw_fd()) };
    }
}

fn is_same_socket(one: i32, other: i32) -> bool {
    let identity = |fd| {
        // SAFETY: an all-zero `stat` is a valid value of that plain structure.
        let mut stat: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: fstat writes to a live structure.
        let result = unsafe { libc::fstat(fd, &mut stat) };
        let is_socket = result == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        is_socket.then_some((stat.st_dev, stat.st_ino))
    };
    identity(one).is_some_and(|one| identity(other) == Some(one))
}
