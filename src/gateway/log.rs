//! Writes the log lines of one tunnel, within limits: a client that has a token can cause as many
//! events as it likes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::gateway::{TunnelEvent, TunnelObserver};
use aiot_tunnel_proto::LogLimiter;
use parking_lot::Mutex;

use super::activity::Record;
use super::TARGET;

/// The period of the limits.
const WINDOW: Duration = LogLimiter::WINDOW;
/// Lines about connections in one period. Each connection has two.
const CONNECTIONS: u32 = 100;
/// Lines about sessions in one period. Each session has two.
const SESSIONS: u32 = 300;
/// Warnings in one period.
const WARNINGS: u32 = 60;

/// What the lines of a tunnel may still cost. It outlives the tunnel's thread, which ends with the
/// last connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct LogLimits(Arc<Mutex<[LogLimiter; 3]>>);

impl Default for LogLimits {
    fn default() -> Self {
        let limiter = |lines| LogLimiter::with_lines(WINDOW, lines);
        LogLimits(Arc::new(Mutex::new([CONNECTIONS, SESSIONS, WARNINGS].map(limiter))))
    }
}

impl LogLimits {
    fn permits(&self, event: &TunnelEvent<'_>, now: Instant) -> bool {
        let index = match event {
            _ if event.is_warning() => 2,
            TunnelEvent::SessionCreated { .. } | TunnelEvent::Released(..) => 1,
            _ => 0,
        };
        self.0.lock()[index].permits(now)
    }

    /// When [`report`](Self::report) has something to say. `None`: nothing was left out.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.lock().iter().filter_map(LogLimiter::deadline).min()
    }

    /// Reports what was left out in the periods that are over; with `all`, in the present ones, too.
    pub(super) fn report(&self, tunnel: &str, now: Instant, all: bool) {
        let mut limiters = self.0.lock();
        let counts = limiters.iter_mut().filter_map(|limiter| match all {
            true => limiter.end(),
            false => limiter.tick(now),
        });
        let left_out: u32 = counts.sum();
        drop(limiters);
        if left_out > 0 {
            ::log::warn!(target: TARGET, "tunnel {tunnel:?}: {left_out} more lines were left out");
        }
    }
}

/// Writes the lines.
pub(super) struct TunnelLog {
    pub(super) name: String,
    pub(super) limits: LogLimits,
    pub(super) activity: Arc<Record>,
}

impl TunnelObserver for TunnelLog {
    fn event(&mut self, event: TunnelEvent<'_>) {
        self.activity.note(&event);
        let now = Instant::now();
        self.limits.report(&self.name, now, false);
        if self.limits.permits(&event, now) {
            let level = if event.is_warning() { ::log::Level::Warn } else { ::log::Level::Info };
            ::log::log!(target: TARGET, level, "tunnel {:?}: {event}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_sessions_does_not_hide_connections_and_is_counted() {
        let (limits, now) = (LogLimits::default(), Instant::now());
        let session = TunnelEvent::SessionCreated { id: "s", service_type: "_SSH" };
        let written = (0..10_000).filter(|_| limits.permits(&session, now)).count();
        assert_eq!(written, SESSIONS as usize);
        assert!(limits.permits(&TunnelEvent::DeviceConnected { from: "" }, now));
        assert!(limits.permits(&TunnelEvent::Stalled, now));
        assert_eq!(limits.deadline(), Some(now + WINDOW));
        limits.report("t1", now + WINDOW, false);
        assert_eq!(limits.deadline(), None);
        assert!(limits.permits(&session, now + WINDOW));
    }
}
