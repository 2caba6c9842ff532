//! When to ask the platform for connection data.

use std::time::{Duration, Instant};

/// Keeps a gap between two requests. The gap grows with each request that an expired tunnel causes, so
/// that a token which is refused again and again does not make a storm.
#[derive(Debug)]
pub(crate) struct Asking {
    least: Duration,
    most: Duration,
    gap: Duration,
    wanted: Option<Reason>,
    last: Option<Instant>,
}

/// Why to ask. The greater one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// The agent has lost a tunnel, or all of them.
    Lost,
    /// A connection is new, or somebody wants it.
    Now,
}

impl Asking {
    pub(crate) fn new(least: Duration, most: Duration) -> Self {
        Asking { least, most, gap: least, wanted: None, last: None }
    }

    pub(crate) fn want(&mut self, reason: Reason) {
        self.wanted = self.wanted.max(Some(reason));
    }

    pub(crate) fn wants_now(&self) -> bool {
        self.wanted == Some(Reason::Now)
    }

    /// When to ask next, if at all. A time that has passed means at once.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let gap = match self.wanted? {
            Reason::Now => self.least,
            Reason::Lost => self.gap,
        };
        Some(self.last.map_or(now, |last| last + gap))
    }

    /// A request is sent.
    pub(crate) fn asked(&mut self, now: Instant) {
        let is_quiet = self.last.is_none_or(|last| now - last > 2 * self.most);
        if self.wanted.take() == Some(Reason::Lost) {
            self.gap = if is_quiet { 2 * self.least } else { 2 * self.gap }.min(self.most);
        }
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn asking() -> Asking {
        Asking::new(SECOND, 300 * SECOND)
    }

    #[test]
    fn a_token_that_is_refused_again_and_again_makes_no_storm() {
        let (mut asking, start) = (asking(), Instant::now());
        let (mut now, mut requests) = (start, 0);
        while now < start + 3600 * SECOND {
            asking.want(Reason::Lost);
            now = now.max(asking.due(now).unwrap());
            asking.asked(now);
            requests += 1;
        }
        assert!((15..25).contains(&requests), "{requests} requests in an hour");
        // After a quiet time, the first request is prompt again.
        now += 3600 * SECOND;
        asking.want(Reason::Lost);
        assert!(asking.due(now).unwrap() <= now);
        asking.asked(now);
        asking.want(Reason::Lost);
        assert_eq!(asking.due(now), Some(now + 2 * SECOND));
    }

    #[test]
    fn a_request_that_somebody_wants_waits_only_for_the_least_gap() {
        let (mut asking, now) = (asking(), Instant::now());
        assert_eq!(asking.due(now), None);
        for _ in 0..10 {
            asking.want(Reason::Lost);
            asking.asked(now);
        }
        asking.want(Reason::Now);
        asking.want(Reason::Lost);
        assert!(asking.wants_now());
        assert_eq!(asking.due(now), Some(now + SECOND));
        asking.asked(now);
        assert_eq!(asking.due(now), None);
    }
}
