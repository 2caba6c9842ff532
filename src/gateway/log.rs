//! Writes the log lines of one tunnel, within limits: a client that has a token can cause as many
//! events as it likes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::gateway::{TunnelEvent, TunnelObserver};
use aiot_tunnel_proto::LogLimiter;
use parking_lot::Mutex;

use super::activity::Record;
use super::published::{Origin, Origins};
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
    name: String,
    limits: LogLimits,
    activity: Arc<Record>,
    /// Of the next access side, if it is a published port.
    pub(super) origins: Option<Arc<Origins>>,
    accesses: HashMap<u64, Access>,
}

/// An access side.
struct Access {
    address: String,
    /// Of a published port.
    origins: Option<Arc<Origins>>,
}

impl TunnelLog {
    pub(super) fn new(name: String, limits: LogLimits, activity: Arc<Record>) -> Self {
        TunnelLog { name, limits, activity, origins: None, accesses: HashMap::new() }
    }

    /// The client of a published port that a session was asked for.
    fn origin(&self, access: u64, frame_id: u64) -> Option<Arc<Origin>> {
        self.accesses.get(&access)?.origins.as_ref()?.take(frame_id)
    }

    fn note(&mut self, event: &TunnelEvent<'_>) {
        match *event {
            TunnelEvent::AccessConnected { key, from } => {
                let (address, origins) = (from.to_owned(), self.origins.take());
                self.accesses.insert(key, Access { address, origins });
            }
            TunnelEvent::AccessLeft { key, .. } => drop(self.accesses.remove(&key)),
            TunnelEvent::SessionCreated { access, frame_id, .. } => {
                if let Some(origin) = self.origin(access, frame_id) {
                    origin.has_session();
                }
            }
            TunnelEvent::Refused { access, frame_id, why, .. } => {
                if let Some(origin) = self.origin(access, frame_id) {
                    origin.is_refused(why);
                }
            }
            _ => {}
        }
    }
}

impl TunnelObserver for TunnelLog {
    fn event(&mut self, event: TunnelEvent<'_>) {
        self.activity.note(&event);
        self.note(&event);
        if matches!(event, TunnelEvent::Refused { is_logged: false, .. }) {
            return;
        }
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
        let session =
            TunnelEvent::SessionCreated { id: "s", service_type: "_SSH", access: 1, frame_id: 1 };
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
