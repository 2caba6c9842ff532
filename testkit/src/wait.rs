//! Waiting for a condition, always with a deadline. Tests may not sleep for a fixed time instead.

use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};

/// Nothing that a test waits for takes this long unless it hangs.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// No device waits this long between two attempts to connect.
const RETRY_TIMEOUT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// Time between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(5);

/// Waits until a condition holds; panics after [`TIMEOUT`].
pub fn until(what: &str, holds: impl FnMut() -> bool) {
    until_within(what, TIMEOUT, holds);
}

/// Waits until a condition holds; panics after `timeout`.
pub fn until_within(what: &str, timeout: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {timeout:?}");
        thread::sleep(INTERVAL);
    }
}

/// Accepts the next connection; panics if none comes in time.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&RETRY_TIMEOUT)).unwrap();
    assert_eq!(ready, 1, "nothing connects in time");
    listener.accept().unwrap().0
}
