//! Measures whether an amount shrinks, for example the bytes in a buffer or the unacked bytes.

use std::time::Instant;

/// An amount, and when it last became smaller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    since: Instant,
    left: usize,
}

impl Progress {
    pub(crate) fn new(now: Instant) -> Self {
        Progress { since: now, left: usize::MAX }
    }

    /// Reports the present amount.
    pub(crate) fn update(&mut self, left: usize, now: Instant) {
        if left < self.left {
            self.since = now;
        }
        self.left = left;
    }

    /// Reports progress that the amount does not show.
    pub(crate) fn touch(&mut self, now: Instant) {
        self.since = now;
    }

    /// The time of the last progress.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }
}
