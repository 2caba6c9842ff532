//! Flow control of one session: what each end may still send. Both ends must have agreed on it.
//!
//! A receiver grants what it can keep. So the connection is always read, and a local stream that
//! takes nothing holds up no other session.

use std::time::{Duration, Instant};

/// The window is worth this much time of what flows. A window that is too small would limit a
/// path whose round trip is long; one that is too large would keep much data on the way.
const WINDOW_TIME: Duration = Duration::from_millis(500);
/// Shortest time in which the flow is measured.
const MEASURE: Duration = Duration::from_millis(20);
/// Most bytes that a peer may grant in all.
const MAX_CREDIT: u64 = i64::MAX as u64;

/// Limits of what the peer may send ahead, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowLimits {
    /// The window of a new session.
    pub first: u64,
    /// The largest window of a session.
    pub session: u64,
    /// The sum of the windows of all sessions, apart from their first windows.
    pub growth: u64,
}

/// Flow control of one session.
#[derive(Debug)]
pub(crate) struct Flow {
    /// The number of bytes that this end may still send.
    may_send: u64,
    /// The number of bytes that the peer may still send.
    granted: u64,
    /// How many bytes may be granted or wait for the local stream.
    window: u64,
    /// When the present measurement began, and how many bytes have come since.
    since: Instant,
    received: u64,
}

impl Flow {
    pub(crate) fn new(first: u64, now: Instant) -> Self {
        Flow { may_send: 0, granted: first, window: first, since: now, received: 0 }
    }

    pub(crate) fn may_send(&self) -> u64 {
        self.may_send
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// The number of bytes that the peer may send or that wait. After the window has become
    /// smaller, they may exceed it.
    pub(crate) fn held(&self, waiting: usize) -> u64 {
        self.window.max(self.granted + waiting as u64)
    }

    /// The peer grants more. Returns false if it breaks the protocol.
    pub(crate) fn add_credit(&mut self, bytes: u64) -> bool {
        let sum = self.may_send.checked_add(bytes).filter(|sum| *sum <= MAX_CREDIT);
        self.may_send = sum.unwrap_or(self.may_send);
        sum.is_some()
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.may_send = self.may_send.saturating_sub(bytes as u64);
    }

    /// Whether the peer may send this many bytes.
    pub(crate) fn admits(&self, bytes: usize) -> bool {
        bytes as u64 <= self.granted
    }

    pub(crate) fn received(&mut self, bytes: usize) {
        self.granted = self.granted.saturating_sub(bytes as u64);
        self.received += bytes as u64;
    }

    /// The number of bytes to grant now, 0 for none. `waiting` bytes have not been taken by the
    /// local stream. `most` is the largest window now.
    pub(crate) fn grant(&mut self, waiting: usize, most: u64, now: Instant) -> u64 {
        self.window = self.window.min(most);
        let used = self.granted + waiting as u64;
        let free = self.window.saturating_sub(used);
        if free < self.window / 4 || free == 0 {
            return 0;
        }
        let grown = if waiting == 0 { self.grow(most, now) } else { 0 };
        self.granted += free + grown;
        free + grown
    }

    /// Enlarges the window if it is worth less than [`WINDOW_TIME`] of what flows. Returns by how
    /// much.
    fn grow(&mut self, most: u64, now: Instant) -> u64 {
        let time = now.duration_since(self.since);
        if time < MEASURE {
            return 0;
        }
        let worth = self.received as f64 * WINDOW_TIME.as_secs_f64() / time.as_secs_f64();
        let target = (worth as u64).min(2 * self.window).min(most).max(self.window);
        let grown = target - self.window;
        (self.window, self.since, self.received) = (target, now, 0);
        grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u64 = 64 * 1024;

    #[test]
    fn a_peer_is_granted_what_the_local_stream_has_taken() {
        let now = Instant::now();
        let mut flow = Flow::new(FIRST, now);
        assert!(flow.admits(64 * 1024) && !flow.admits(64 * 1024 + 1));
        flow.received(10_000);
        assert_eq!(flow.grant(0, FIRST, now), 0, "little is not worth a frame");
        flow.received(10_000);
        assert_eq!(flow.grant(20_000, FIRST, now), 0, "it still waits");
        assert_eq!(flow.grant(2000, FIRST, now), 18_000);
        assert!(flow.admits(64 * 1024 - 2000));
    }

    #[test]
    fn the_window_grows_only_where_it_is_the_limit() {
        let now = Instant::now();
        let mut slow = Flow::new(FIRST, now);
        let mut fast = Flow::new(FIRST, now);
        for step in 1..200 {
            // 64 KB/s and 3.2 MB/s.
            slow.received(6400);
            slow.grant(0, 1 << 21, now + step * Duration::from_millis(100));
            fast.received(64_000);
            fast.grant(0, 1 << 21, now + step * Duration::from_millis(20));
        }
        assert_eq!(slow.window(), FIRST);
        assert!(fast.window() > 1_000_000, "{}", fast.window());
    }

    #[test]
    fn hostile_credit_is_refused() {
        let mut flow = Flow::new(FIRST, Instant::now());
        assert!(flow.add_credit(5));
        assert!(!flow.add_credit(u64::MAX));
        assert!(!flow.add_credit(MAX_CREDIT));
        assert_eq!(flow.may_send(), 5);
    }
}
