//! Whether something that shrinks gets on: a buffer that a peer takes, bytes to be acknowledged.

use std::time::Instant;

/// When an amount last became less, and what it was then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    since: Instant,
    left: usize,
}

impl Progress {
    pub(crate) fn new(now: Instant) -> Self {
        Progress { since: now, left: usize::MAX }
    }

    /// Notes how much is left now.
    pub(crate) fn update(&mut self, left: usize, now: Instant) {
        if left < self.left {
            self.since = now;
        }
        self.left = left;
    }

    /// It got on in a way that the amount does not show.
    pub(crate) fn touch(&mut self, now: Instant) {
        self.since = now;
    }

    /// The last time at which it got on.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }
}
