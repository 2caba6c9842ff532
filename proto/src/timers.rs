//! Deadlines in one table for each owner. Reads no clock.

use std::time::Instant;

/// The place of a timer in its table.
pub(crate) trait Timer: Copy {
    /// How many timers the table has.
    const COUNT: usize;
    fn index(self) -> usize;
}

/// A table with at most one deadline for each timer.
pub(crate) struct Timers<const N: usize>([Option<Instant>; N]);

impl<const N: usize> Default for Timers<N> {
    fn default() -> Self {
        Timers([None; N])
    }
}

impl<const N: usize> Timers<N> {
    pub(crate) fn set(&mut self, timer: impl Timer, at: Instant) {
        self.0[timer.index()] = Some(at);
    }

    pub(crate) fn clear(&mut self, timer: impl Timer) {
        self.0[timer.index()] = None;
    }

    pub(crate) fn get(&self, timer: impl Timer) -> Option<Instant> {
        self.0[timer.index()]
    }

    /// Whether a timer is set and its deadline has passed.
    pub(crate) fn is_due(&self, timer: impl Timer, now: Instant) -> bool {
        self.get(timer).is_some_and(|at| now >= at)
    }
}
