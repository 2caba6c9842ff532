//! Measures whether a receiver still takes bytes, and for how long it may take none.
//!
//! A receiver that reads slowly takes bytes in large, rare steps: TCP reopens its window only when
//! a part of its buffer is free, on Linux a sixteenth. So the time allowed without progress grows
//! with the last step, up to that of the largest step that a window makes.

use std::time::{Duration, Instant};

/// The last step of a receiver allows it one time limit without progress for each such number of
/// bytes. With a limit of 10 s, a receiver that takes 4 KiB/s counts as alive.
const BYTES_PER_LIMIT: u64 = 40 * 1024;
/// More than this is no step of a window but several of them, taken fast: the figure is a sixteenth of
/// the largest receive buffer of a usual Linux system (6 MiB).
const LARGEST_STEP: u64 = 384 * 1024;
/// Bytes taken within this time of each other belong to one step.
const STEP: Duration = Duration::from_secs(1);

/// The bytes that a receiver has taken, and when it last took some.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    since: Instant,
    taken: u64,
    /// The number of bytes in the last step.
    step: u64,
}

impl Progress {
    /// `taken`: the number of bytes that the receiver has taken before. They count as its first step,
    /// because nothing else is known about its pace. Less would not do: a receiver with a small buffer,
    /// full of these bytes, may have to read all of them before its window opens (on the loopback
    /// interface, where a segment has 64 KiB).
    pub(crate) fn new(taken: u64, now: Instant) -> Self {
        Progress { since: now, taken, step: taken.min(LARGEST_STEP) }
    }

    /// Reports how many bytes the receiver has taken in all.
    pub(crate) fn update(&mut self, taken: u64, now: Instant) {
        if taken > self.taken {
            if now.duration_since(self.since) > STEP {
                self.step = 0;
            }
            self.step = (self.step + taken - self.taken).min(LARGEST_STEP);
            (self.since, self.taken) = (now, taken);
        }
    }

    /// When the receiver last took something.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// When the receiver counts as stalled. `limit` is the time for a receiver that takes little.
    pub(crate) fn deadline(&self, limit: Duration) -> Instant {
        let limits = self.step as f64 / BYTES_PER_LIMIT as f64;
        self.since + limit.mul_f64(limits.max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_receiver_that_takes_nothing_stalls_after_the_limit() {
        let now = Instant::now();
        let mut progress = Progress::new(0, now);
        progress.update(0, now + LIMIT / 2);
        assert_eq!(progress.deadline(LIMIT), now + LIMIT);
    }

    #[test]
    fn a_large_step_buys_time_in_proportion() {
        let now = Instant::now();
        let mut progress = Progress::new(0, now);
        let later = now + Duration::from_secs(5);
        progress.update(200 * 1024, later);
        progress.update(360 * 1024, later + Duration::from_millis(1));
        assert_eq!(progress.deadline(LIMIT), later + Duration::from_millis(1) + 9 * LIMIT);
        // The next step counts alone.
        let last = later + Duration::from_secs(60);
        progress.update(361 * 1024, last);
        assert_eq!(progress.deadline(LIMIT), last + LIMIT);
    }

    #[test]
    fn a_fast_receiver_that_stops_has_the_time_of_one_step() {
        let now = Instant::now();
        let most = LIMIT.mul_f64(9.6);
        let mut progress = Progress::new(500 << 20, now);
        assert_eq!(progress.deadline(LIMIT), now + most);
        for taken in 501..600 {
            progress.update(taken << 20, now + Duration::from_millis(1));
        }
        assert_eq!(progress.deadline(LIMIT), now + Duration::from_millis(1) + most);
    }

    #[test]
    fn what_a_kernel_took_for_a_receiver_counts_as_one_step() {
        let now = Instant::now();
        assert_eq!(Progress::new(30 * 1024, now).deadline(LIMIT), now + LIMIT);
        assert_eq!(Progress::new(160 * 1024, now).deadline(LIMIT), now + 4 * LIMIT);
        // A bit that its kernel takes later is a step of its own.
        let mut progress = Progress::new(160 * 1024, now);
        let later = now + 4 * LIMIT;
        progress.update(161 * 1024, later);
        assert_eq!(progress.deadline(LIMIT), later + LIMIT);
    }
}
