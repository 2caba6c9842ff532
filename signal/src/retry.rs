//! How long to wait before the next attempt to connect.

use std::time::Duration;

use crate::Times;

/// Counts the failed attempts in a row.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    attempts: u32,
}

impl Retry {
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A connection was good.
    pub(crate) fn succeeded(&mut self) {
        self.attempts = 0;
    }

    /// One more attempt has failed. The time until the next one; `chance` is from 0 to 1 and spreads the
    /// clients of a fleet.
    pub(crate) fn failed(&mut self, times: &Times, is_refused: bool, chance: f64) -> Duration {
        let (least, most) = match is_refused {
            true => (times.refused_least, times.refused_most),
            false => (times.retry_least, times.retry_most),
        };
        let doubled = least.saturating_mul(1 << self.attempts.min(16));
        self.attempts = self.attempts.saturating_add(1);
        doubled.min(most).mul_f64(0.75 + 0.25 * chance.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_grow_from_a_second_to_a_minute_and_a_refused_sign_in_waits_longer() {
        let times = Times::default();
        let mut retry = Retry::default();
        let gaps: Vec<u64> = (0..8).map(|_| retry.failed(&times, false, 1.0).as_secs()).collect();
        assert_eq!(gaps, [1, 2, 4, 8, 16, 32, 64, 64]);
        assert_eq!(retry.attempts(), 8);
        assert_eq!(retry.failed(&times, false, 0.0).as_secs(), 48);
        retry.succeeded();
        assert_eq!(retry.failed(&times, true, 1.0).as_secs(), 30);
        for _ in 0..100 {
            retry.failed(&times, true, 1.0);
        }
        assert_eq!(retry.failed(&times, true, 1.0).as_secs(), 300);
    }
}
