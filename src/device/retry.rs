//! When to connect again. After a failed attempt: the schedule of the C SDK, with an upper limit and
//! some jitter on the longer gaps. After a refused token: a schedule of its own, with longer gaps.

use std::time::Duration;

/// Longest retry gap.
const MAX_GAP: Duration = Duration::from_secs(64);
/// The number of consecutive failures after which the gap doubles.
const STEP: u32 = 5;

/// Longest gap after a refused token.
pub(crate) const MAX_REFUSAL_GAP: Duration = Duration::from_secs(5 * 60);

/// Counts consecutive failed attempts.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    failures: u32,
    /// How often the token was refused.
    refusals: u32,
    /// Another device with the same token took the place of this one since the last start.
    replaced: bool,
}

impl Retry {
    /// Starts the schedule again, after a success or a command.
    pub(crate) fn clear(&mut self) {
        *self = Retry::default();
    }

    /// Notes that another device took the place of this one. Returns whether this is the first time
    /// since the schedule started.
    pub(crate) fn replaced(&mut self) -> bool {
        !std::mem::replace(&mut self.replaced, true)
    }

    /// Counts one more failed attempt and returns the gap before the next one. `jitter`, from 0 to
    /// 1, lengthens gaps of 2 s and more by up to a tenth, so that a fleet of devices does not
    /// connect again at the same moment.
    pub(crate) fn after_failure(&mut self, jitter: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let exponent = (self.failures / STEP).min(6);
        let gap = Duration::from_secs(1 << exponent).min(MAX_GAP);
        if exponent == 0 {
            return gap;
        }
        gap.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 10.0).min(MAX_GAP)
    }

    /// Counts one more refusal of the token and returns the gap before the next attempt. It doubles
    /// from 1 s on. `jitter`, from 0 to 1, shortens it by up to a quarter: after a mistake in the
    /// gateway's list of tokens, a whole fleet has been refused at the same moment.
    pub(crate) fn after_refusal(&mut self, jitter: f64) -> Duration {
        let gap = Duration::from_secs(1 << self.refusals.min(9)).min(MAX_REFUSAL_GAP);
        self.refusals = self.refusals.saturating_add(1);
        gap.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_1_s_four_times_then_double_every_five_failures_up_to_64_s() {
        let mut retry = Retry::default();
        let gaps: Vec<u64> = (0..40).map(|_| retry.after_failure(0.0).as_secs()).collect();
        assert_eq!(gaps[..10], [1, 1, 1, 1, 2, 2, 2, 2, 2, 4]);
        assert_eq!(gaps[28..34], [32, 64, 64, 64, 64, 64]);
        retry.clear();
        assert_eq!(retry.after_failure(1.0).as_secs(), 1);
    }

    #[test]
    fn gaps_after_a_refused_token_double_from_1_s_up_to_5_minutes() {
        let mut retry = Retry::default();
        let gaps: Vec<u64> = (0..12).map(|_| retry.after_refusal(0.0).as_secs()).collect();
        assert_eq!(gaps, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(retry.after_refusal(1.0), Duration::from_secs(225));
        // A failure of another kind has a count of its own.
        assert_eq!(retry.after_failure(0.0).as_secs(), 1);
        assert_eq!(retry.after_refusal(0.0), MAX_REFUSAL_GAP);
        retry.clear();
        assert_eq!(retry.after_refusal(0.0).as_secs(), 1);
    }

    #[test]
    fn ten_minutes_offline_have_fewer_than_40_attempts() {
        let mut retry = Retry::default();
        let mut passed = Duration::ZERO;
        let mut attempts = 0;
        while passed < Duration::from_secs(600) {
            attempts += 1;
            passed += retry.after_failure(0.0);
        }
        // Each but the first costs one log line: see `tests/attempts.rs`.
        assert!(attempts < 40, "{attempts} attempts");
    }

    #[test]
    fn a_replacement_is_news_once_until_the_schedule_starts_again() {
        let mut retry = Retry::default();
        assert!(retry.replaced());
        retry.after_failure(0.0);
        assert!(!retry.replaced());
        retry.clear();
        assert!(retry.replaced());
    }

    #[test]
    fn jitter_only_lengthens_and_never_exceeds_the_longest_gap() {
        let mut retry = Retry::default();
        for _ in 0..100 {
            let gap = retry.after_failure(1.0);
            assert!(gap <= MAX_GAP);
        }
    }
}
