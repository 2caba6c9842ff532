//! How long to wait before the next attempt to connect.

use std::time::Duration;

use crate::Times;

/// A connection that is lost sooner counts as a failed attempt.
const GOOD: Duration = Duration::from_secs(10);

/// Counts the failed attempts in a row.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    attempts: u32,
    /// The last gap.
    gap: Duration,
}

impl Retry {
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A connection was lost after this time. If that was long, the series has ended.
    ///
    /// Two clients with one client id end each other's connections. Each connection then stands for about
    /// as long as the other client waits, so the gaps must grow all the same.
    pub(crate) fn stood(&mut self, time: Duration) {
        if time >= GOOD.max(2 * self.gap) {
            self.attempts = 0;
        }
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
        self.gap = doubled.min(most).mul_f64(0.75 + 0.25 * chance.clamp(0.0, 1.0));
        self.gap
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
        retry.stood(Duration::from_secs(600));
        assert_eq!(retry.failed(&times, true, 1.0).as_secs(), 30);
        for _ in 0..100 {
            retry.failed(&times, true, 1.0);
        }
        assert_eq!(retry.failed(&times, true, 1.0).as_secs(), 300);
    }

    #[test]
    fn two_clients_with_one_client_id_end_each_others_connections_more_and_more_rarely() {
        let times = Times::default();
        let (mut one, mut other) = (Retry::default(), Retry::default());
        let mut gap = one.failed(&times, false, 0.0);
        for _ in 0..20 {
            // Each connection lasts until the other client comes back.
            other.stood(gap);
            gap = other.failed(&times, false, 1.0);
            std::mem::swap(&mut one, &mut other);
        }
        assert_eq!(gap.as_secs(), 64);
    }

    #[test]
    fn a_link_that_is_lost_now_and_then_is_tried_again_soon() {
        let times = Times::default();
        let mut retry = Retry::default();
        for _ in 0..20 {
            assert!(retry.failed(&times, false, 1.0).as_secs() <= 1);
            retry.stood(Duration::from_secs(30));
        }
    }
}
