//! Keeps a misbehaving peer from filling the log. At most a fixed number of lines are permitted in
//! a period; further ones are counted. This module writes no lines itself.

use std::time::{Duration, Instant};

/// Lines that are permitted in one period, unless the owner says otherwise.
const LINES: u32 = 20;

/// Counts the lines about one source of trouble.
#[derive(Debug)]
pub struct LogLimiter {
    window: Duration,
    /// Lines that are permitted in one period.
    lines: u32,
    count: u32,
    ends: Option<Instant>,
}

impl LogLimiter {
    /// The period for sources that have no interval of their own.
    pub const WINDOW: Duration = Duration::from_secs(30);

    /// A limiter that permits 20 lines in each period of `window`. The period begins with its first
    /// line.
    pub const fn new(window: Duration) -> Self {
        LogLimiter::with_lines(window, LINES)
    }

    /// A limiter that permits this many lines in each period of `window`.
    pub const fn with_lines(window: Duration, lines: u32) -> Self {
        LogLimiter { window, lines, count: 0, ends: None }
    }

    /// Counts one more line. Returns whether it may be written.
    pub fn permits(&mut self, now: Instant) -> bool {
        self.ends.get_or_insert(now + self.window);
        self.count = self.count.saturating_add(1);
        self.count <= self.lines
    }

    /// Whether the period has no line left.
    pub fn is_exhausted(&self) -> bool {
        self.count >= self.lines
    }

    /// Ends the period if its time has come. Returns how many lines were left out, if any.
    pub fn tick(&mut self, now: Instant) -> Option<u32> {
        self.ends.take_if(|at| now >= *at)?;
        self.end()
    }

    /// Ends the period now. Returns how many lines were left out, if any.
    pub fn end(&mut self) -> Option<u32> {
        self.ends = None;
        let left_out = std::mem::take(&mut self.count).saturating_sub(self.lines);
        (left_out > 0).then_some(left_out)
    }

    /// When [`tick`](Self::tick) has a count to report. `None` if there is nothing to report; the
    /// owner then need not wake up.
    pub fn deadline(&self) -> Option<Instant> {
        self.ends.filter(|_| self.count > self.lines)
    }
}

impl Default for LogLimiter {
    fn default() -> Self {
        LogLimiter::new(Self::WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_lines_a_window_are_written_and_the_rest_counted() {
        let mut now = Instant::now();
        let mut limiter = LogLimiter::default();
        for _ in 0..2 {
            assert_eq!((0..50).filter(|_| limiter.permits(now)).count(), 20);
            assert!(limiter.is_exhausted());
            assert_eq!(limiter.tick(now), None);
            now += LogLimiter::WINDOW;
            assert_eq!(limiter.tick(now), Some(30));
            assert!(!limiter.is_exhausted());
        }
        assert_eq!(limiter.tick(now), None);
    }

    #[test]
    fn only_a_count_that_is_owed_is_a_reason_to_wake_up() {
        let start = Instant::now();
        let mut limiter = LogLimiter::default();
        for _ in 0..20 {
            limiter.permits(start);
        }
        assert_eq!(limiter.deadline(), None);
        limiter.permits(start);
        let end = start + LogLimiter::WINDOW;
        assert_eq!(limiter.deadline(), Some(end));
        assert_eq!(limiter.tick(end), Some(1));
        assert!(limiter.deadline().is_none() && !limiter.is_exhausted());
    }
}
