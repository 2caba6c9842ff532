//! Connects to Unix sockets. A connect succeeds or fails at once, unless the listener's backlog is
//! full. Then it is tried again after a while, because `poll` does not report room in a backlog.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::sys;

/// Time between two attempts while the backlog is full.
const RETRY: Duration = Duration::from_millis(20);

/// A connect to a Unix socket, in progress.
pub(crate) struct UnixDial {
    path: PathBuf,
    retry_at: Option<Instant>,
}

impl UnixDial {
    pub(super) fn new(path: &Path) -> Self {
        UnixDial { path: path.to_owned(), retry_at: None }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn step(&mut self) -> Option<io::Result<UnixStream>> {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        match sys::connect_unix(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.retry_at = Some(now + RETRY);
                None
            }
            result => Some(result),
        }
    }
}
