//! A limit on what a tunnel may carry in a second: a token bucket for each direction.
//!
//! In a session with flow control, bytes beyond the limit wait in its lane, where short lanes go first:
//! a keystroke does not wait behind a file. Without flow control, the connection that feeds the session
//! is not read.

use std::time::{Duration, Instant};

use crate::Side;

/// Tokens for this time are the most that a bucket holds.
const BURST: Duration = Duration::from_millis(100);
/// A lane has a turn when there are tokens for this time, or for all that waits.
const TURN: Duration = Duration::from_millis(20);
/// But at least this many bytes, and at most that many.
const LEAST_TURN: u64 = 256;
const MOST_TURN: u64 = 16 * 1024;

const NANOS: u128 = 1_000_000_000;

/// The limit of one tunnel.
pub(super) struct RateLimit {
    /// In bytes a second, not 0.
    rate: u64,
    to_device: Bucket,
    to_access: Bucket,
}

struct Bucket {
    /// In bytes. Below zero, more was carried than there were tokens.
    left: i64,
    /// For which time the tokens are in the bucket.
    at: Instant,
}

impl RateLimit {
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        let rate = rate.max(1);
        let full = || Bucket { left: burst(rate), at: now };
        RateLimit { rate, to_device: full(), to_access: full() }
    }

    pub(super) fn refill(&mut self, now: Instant) {
        let rate = u128::from(self.rate);
        for bucket in [&mut self.to_device, &mut self.to_access] {
            let passed = now.saturating_duration_since(bucket.at).as_nanos();
            let tokens = passed * rate / NANOS;
            // Only the time of whole tokens has been used.
            let used = (tokens * NANOS).div_ceil(rate);
            bucket.at += Duration::from_nanos(u64::try_from(used).unwrap_or(u64::MAX));
            let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
            bucket.left = bucket.left.saturating_add(tokens).min(burst(self.rate));
        }
    }

    /// How many of these waiting bytes may go now. 0: too few to be worth a turn.
    pub(super) fn allows(&self, to: Side, waiting: usize) -> usize {
        let left = self.bucket(to).left;
        if left < self.needed(waiting) {
            return 0;
        }
        usize::try_from(left).unwrap_or_default()
    }

    /// Whether nothing may go at all.
    pub(super) fn is_empty(&self, to: Side) -> bool {
        self.bucket(to).left <= 0
    }

    pub(super) fn take(&mut self, to: Side, bytes: usize) {
        let bucket = match to {
            Side::Device => &mut self.to_device,
            Side::Access => &mut self.to_access,
        };
        bucket.left = bucket.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// When these waiting bytes have a turn.
    pub(super) fn ready_at(&self, to: Side, waiting: usize) -> Instant {
        let bucket = self.bucket(to);
        let lacking = u128::try_from(self.needed(waiting).saturating_sub(bucket.left));
        let nanos = (lacking.unwrap_or_default() * NANOS).div_ceil(u128::from(self.rate));
        bucket.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn needed(&self, waiting: usize) -> i64 {
        let turn = share(self.rate, TURN).clamp(LEAST_TURN, MOST_TURN);
        i64::try_from(turn.min(waiting as u64).max(1)).unwrap_or(i64::MAX)
    }

    fn bucket(&self, to: Side) -> &Bucket {
        match to {
            Side::Device => &self.to_device,
            Side::Access => &self.to_access,
        }
    }
}

/// What a rate makes in this time.
fn share(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / NANOS).unwrap_or(u64::MAX)
}

fn burst(rate: u64) -> i64 {
    i64::try_from(share(rate, BURST).max(LEAST_TURN)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_a_time_is_the_rate_and_one_burst() {
        let begun = Instant::now();
        let mut limit = RateLimit::new(12_500, begun);
        let (mut now, mut carried) = (begun, 0);
        while now < begun + Duration::from_secs(10) {
            let most = limit.allows(Side::Device, 100_000);
            assert!(most > 0);
            limit.take(Side::Device, most);
            carried += most;
            now = limit.ready_at(Side::Device, 100_000);
            limit.refill(now);
        }
        assert!((125_000..=125_000 + 1_250 + 256).contains(&carried), "{carried}");
        // The other direction has its own tokens, and no more than a burst of them.
        assert_eq!(limit.allows(Side::Access, 100_000), 1_250);
    }

    #[test]
    fn a_debt_is_paid_before_anything_goes() {
        let begun = Instant::now();
        let mut limit = RateLimit::new(1_000, begun);
        limit.take(Side::Access, 10_256);
        assert!(limit.is_empty(Side::Access) && !limit.is_empty(Side::Device));
        let ready = limit.ready_at(Side::Access, 1);
        assert_eq!(ready, begun + Duration::from_millis(10_001));
        limit.refill(ready - Duration::from_millis(1));
        assert_eq!(limit.allows(Side::Access, 1), 0);
        limit.refill(ready);
        assert_eq!(limit.allows(Side::Access, 1), 1);
        assert_eq!(limit.allows(Side::Access, 1_000), 0);
    }
}
