//! The rate of one direction of a tunnel: a token bucket.

use std::time::{Duration, Instant};

/// Bytes may be passed on this far ahead of the rate. Within that time nobody waits for a byte.
const AHEAD: Duration = Duration::from_millis(50);
/// At least a whole frame is passed on at once, in bytes.
const LEAST: f64 = 4096.0;
/// So that a wake-up is not a moment too early.
const MARGIN: Duration = Duration::from_millis(1);

/// What one direction may still pass on. Frames over the rate are delayed, never dropped.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// `None`: there is no limit.
    level: Option<Level>,
}

#[derive(Debug)]
struct Level {
    /// Bytes a second.
    rate: f64,
    /// Bytes that may be passed on. The last frame may have taken more than there was.
    bytes: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// `rate`: bytes a second.
    pub(super) fn new(rate: Option<u64>) -> Self {
        let level = |rate: u64| {
            let rate = rate.max(1) as f64;
            Level { rate, bytes: most(rate), at: None }
        };
        Bucket { level: rate.map(level) }
    }

    /// Adds what the time until now allows.
    pub(super) fn fill(&mut self, now: Instant) {
        let Some(level) = &mut self.level else { return };
        let passed = level.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        level.at = Some(now);
        let bytes = level.bytes + passed.as_secs_f64() * level.rate;
        level.bytes = bytes.min(most(level.rate));
    }

    /// Whether something may be passed on.
    pub(super) fn is_open(&self) -> bool {
        self.level.as_ref().is_none_or(|level| level.bytes > 0.0)
    }

    pub(super) fn take(&mut self, bytes: usize) {
        if let Some(level) = &mut self.level {
            level.bytes -= bytes as f64;
        }
    }

    /// When something may be passed on again. `None`: it may now.
    pub(super) fn opens_at(&self) -> Option<Instant> {
        let level = self.level.as_ref().filter(|level| level.bytes <= 0.0)?;
        Some(level.at? + Duration::from_secs_f64(-level.bytes / level.rate) + MARGIN)
    }
}

fn most(rate: f64) -> f64 {
    (rate * AHEAD.as_secs_f64()).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_follows_the_rate() {
        for (rate, frame) in [(12_500, 4096), (12_500, 1), (1_000_000, 65_536), (1, 4096)] {
            let mut bucket = Bucket::new(Some(rate));
            let start = Instant::now();
            let end = start + Duration::from_secs(1000);
            let (mut now, mut passed) = (start, 0);
            while now < end && passed < 10_000_000 {
                bucket.fill(now);
                match bucket.opens_at() {
                    None => {
                        assert!(bucket.is_open());
                        bucket.take(frame);
                        passed += frame;
                    }
                    Some(at) => {
                        assert!(!bucket.is_open() && at > now);
                        now = at;
                    }
                }
            }
            let (seconds, rate) = ((now - start).as_secs_f64(), rate as f64);
            let most = seconds * rate + most(rate) + frame as f64;
            assert!(passed as f64 <= most, "{passed} in {seconds} s at {rate}");
            assert!(
                passed as f64 >= 0.9 * seconds * rate - most,
                "{passed} in {seconds} s at {rate}"
            );
        }
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut bucket = Bucket::new(None);
        bucket.fill(Instant::now());
        bucket.take(usize::MAX);
        assert!(bucket.is_open() && bucket.opens_at().is_none());
    }
}
