//! Writes the log lines of one tunnel, within limits: a client that has a token can cause as many
//! events as it likes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::gateway::{Member, TunnelEvent, TunnelObserver};
use aiot_tunnel_proto::LogLimiter;
use parking_lot::Mutex;

use super::activity::Record;
use super::audit::{Audit, AuditEvent, Live, Refusal, Way};
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
            TunnelEvent::SessionCreated { .. } | TunnelEvent::SessionEnded { .. } => 1,
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

/// Writes the lines, and tells the audit.
pub(super) struct TunnelLog {
    name: String,
    limits: LogLimits,
    activity: Arc<Record>,
    audit: Audit,
    /// Of the next access side, if it is a published port.
    pub(super) origins: Option<Arc<Origins>>,
    /// The address of the device.
    device: String,
    accesses: HashMap<u64, Access>,
    sessions: HashMap<String, Live>,
}

/// An access side.
struct Access {
    address: String,
    /// Of a published port.
    origins: Option<Arc<Origins>>,
}

impl TunnelLog {
    pub(super) fn new(
        name: String,
        limits: LogLimits,
        activity: Arc<Record>,
        audit: Audit,
    ) -> Self {
        TunnelLog {
            name,
            limits,
            activity,
            audit,
            origins: None,
            device: String::new(),
            accesses: HashMap::new(),
            sessions: HashMap::new(),
        }
    }

    /// The client of a published port that a session was asked for.
    fn origin(&self, access: u64, frame_id: u64) -> Option<Arc<Origin>> {
        self.accesses.get(&access)?.origins.as_ref()?.take(frame_id)
    }

    /// The address of a connection.
    fn address(&self, member: Member) -> &str {
        match member {
            Member::Device => &self.device,
            Member::Access(key) => self.accesses.get(&key).map_or("", |access| &access.address),
        }
    }

    /// Takes down who is connected and what is open. Returns the address that belongs behind the
    /// event's line.
    fn note(&mut self, event: &TunnelEvent<'_>, now: Instant) -> Option<String> {
        match *event {
            TunnelEvent::DeviceConnected { from } => {
                self.device = from.to_owned();
                let (tunnel, client) = (&self.name, from);
                self.audit.report(&AuditEvent::DeviceConnected { tunnel, client });
                return None;
            }
            TunnelEvent::DeviceLeft { why, .. } => {
                let (tunnel, client) = (&self.name, &self.device);
                self.audit.report(&AuditEvent::DeviceLeft { tunnel, client, why });
            }
            TunnelEvent::AccessConnected { key, from } => {
                let (address, origins) = (from.to_owned(), self.origins.take());
                self.accesses.insert(key, Access { address, origins });
                return None;
            }
            TunnelEvent::AccessLeft { key, .. } => {
                return self.accesses.remove(&key).map(|access| access.address);
            }
            TunnelEvent::SessionCreated { id, service_type, access, frame_id } => {
                let origin = self.origin(access, frame_id);
                let (client, way) = match &origin {
                    Some(origin) => (origin.address.clone(), origin.way),
                    None => (self.address(Member::Access(access)).to_owned(), Way::Access),
                };
                if let Some(origin) = &origin {
                    origin.has_session();
                }
                let service = service_type.to_owned();
                let live = Live { service, client: client.clone(), way, since: now, origin };
                self.sessions.insert(id.to_owned(), live);
                return Some(client);
            }
            TunnelEvent::SessionEnded { id, was_open, moved, why } => {
                let live = self.sessions.remove(id)?;
                if let Some(origin) = &live.origin {
                    origin.has_ended(why);
                }
                if was_open {
                    self.audit.report(&live.ended(&self.name, id, moved, why, now));
                } else {
                    self.audit.refused(&AuditEvent::Refused {
                        tunnel: &self.name,
                        service: Some(&live.service),
                        client: &live.client,
                        way: live.way,
                        reason: Refusal::Device,
                        why,
                    });
                }
                let seconds = now.saturating_duration_since(live.since).as_secs_f64();
                return Some(format!("{}, {seconds:.3} s", live.client));
            }
            TunnelEvent::Refused { access, frame_id, service_type, reason, why, .. } => {
                if let Some(origin) = self.origin(access, frame_id) {
                    // The port reports it if it is not asked for again.
                    origin.is_refused(reason.into(), why);
                    return Some(origin.address.clone());
                }
                self.audit.refused(&AuditEvent::Refused {
                    tunnel: &self.name,
                    service: Some(service_type),
                    client: self.address(Member::Access(access)),
                    way: Way::Access,
                    reason: reason.into(),
                    why,
                });
            }
            TunnelEvent::Cut { id, .. } | TunnelEvent::DeviceRefused { id, .. } => {
                return self.sessions.get(id).map(|live| live.client.clone());
            }
            _ => {}
        }
        event.member().map(|member| self.address(member).to_owned())
    }
}

impl TunnelObserver for TunnelLog {
    fn event(&mut self, event: TunnelEvent<'_>) {
        let now = Instant::now();
        self.activity.note(&event);
        let address = self.note(&event, now);
        // A session's end says the same, and more.
        let is_said = matches!(event, TunnelEvent::Released(..) | TunnelEvent::SessionAccepted(_));
        if is_said || matches!(event, TunnelEvent::Refused { is_logged: false, .. }) {
            return;
        }
        self.limits.report(&self.name, now, false);
        if self.limits.permits(&event, now) {
            let level = if event.is_warning() { ::log::Level::Warn } else { ::log::Level::Info };
            match address.filter(|address| !address.is_empty()) {
                Some(address) => {
                    ::log::log!(target: TARGET, level, "tunnel {:?}: {event} ({address})", self.name);
                }
                None => ::log::log!(target: TARGET, level, "tunnel {:?}: {event}", self.name),
            }
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
        assert!(limits.permits(&TunnelEvent::Stalled(Member::Device), now));
        assert_eq!(limits.deadline(), Some(now + WINDOW));
        limits.report("t1", now + WINDOW, false);
        assert_eq!(limits.deadline(), None);
        assert!(limits.permits(&session, now + WINDOW));
    }
}
