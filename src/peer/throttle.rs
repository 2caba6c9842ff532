//! So that what others do wrong does not fill the log.

use std::time::{Duration, Instant};

use super::TARGET;
use crate::logging::Complaints;

/// A window in which the lines about one source of trouble are counted.
const COMPLAINTS_WINDOW: Duration = Duration::from_secs(30);

/// Writes lines about what others do wrong, some in each window of time, then their count.
#[derive(Default)]
pub(crate) struct Throttle {
    complaints: Complaints,
    ends: Option<Instant>,
}

impl Throttle {
    pub(crate) fn complain(&mut self, now: Instant, what: std::fmt::Arguments<'_>) {
        self.tick(now);
        self.ends.get_or_insert(now + COMPLAINTS_WINDOW);
        if self.complaints.count() {
            log::warn!(target: TARGET, "{what}");
        }
    }

    /// Ends the window when its time has come.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.ends.is_some_and(|at| now >= at) {
            self.ends = None;
            if let more @ 1.. = self.complaints.forgive() {
                log::warn!(target: TARGET, "{more} more such lines were left out");
            }
        }
    }

    /// When [`tick`](Self::tick) has something to say.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.ends.filter(|_| self.complaints.left_out() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_written_again_in_a_new_window() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        for _ in 0..20 {
            throttle.complain(start, format_args!("x"));
        }
        // Nothing is left to be said: no reason to wake up.
        assert_eq!(throttle.deadline(), None);
        throttle.complain(start, format_args!("x"));
        let end = start + COMPLAINTS_WINDOW;
        assert_eq!(throttle.deadline(), Some(end));
        throttle.tick(end);
        assert!(throttle.deadline().is_none() && !throttle.complaints.are_many());
    }
}
