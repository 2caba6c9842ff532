//! What an owner of the gateway may keep for later questions: who did what, when, and how much.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::gateway::{RefusalReason, Traffic};
use aiot_tunnel_proto::LogLimiter;
use parking_lot::Mutex;

use super::published::Origin;

/// Refusals that are reported in one period of [`LogLimiter::WINDOW`]. Strangers can cause as many as
/// they like. The ends of sessions are all reported.
const REFUSALS: u32 = 1000;

/// The way of a client to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// A device's connection.
    Device,
    /// The connection of an access side, with a token.
    Access,
    /// A published port, without a token.
    Published,
    /// A stream of the gateway's process, for which
    /// [`Gateway::open_session`](super::Gateway::open_session) was called.
    Terminal,
}

/// Why a client was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The gateway has no such tunnel.
    UnknownTunnel,
    /// The token is not that of the tunnel's side.
    WrongToken,
    /// The tunnel has expired.
    Expired,
    /// A limit was reached: of connections, of clients or of sessions.
    Limit,
    /// The device was not connected.
    DeviceAway,
    /// The device refused the session, did not answer, or was lost before it answered.
    Device,
    /// Anything else.
    Other,
}

impl From<RefusalReason> for Refusal {
    fn from(reason: RefusalReason) -> Self {
        match reason {
            RefusalReason::SessionLimit => Refusal::Limit,
            RefusalReason::DeviceAway => Refusal::DeviceAway,
            RefusalReason::Invalid => Refusal::Other,
        }
    }
}

/// Something that an audit records.
#[derive(Debug)]
#[non_exhaustive]
pub enum AuditEvent<'a> {
    /// A session is over. This is said of every session that the device had accepted.
    #[non_exhaustive]
    SessionEnded {
        /// The tunnel.
        tunnel: &'a str,
        /// The session id.
        session: &'a str,
        /// The service type.
        service: &'a str,
        /// The address of the access side or of the client of a published port, or the name that
        /// [`Gateway::open_session`](super::Gateway::open_session) was given.
        client: &'a str,
        /// The client's way.
        way: Way,
        /// Payload bytes that went to the device.
        bytes_to_device: u64,
        /// Payload bytes that went to the client.
        bytes_to_access: u64,
        /// How long it lasted, from the request on.
        lasted: Duration,
        /// Why it ended. The ends' own texts are quoted.
        why: &'a str,
    },
    /// A device has connected.
    #[non_exhaustive]
    DeviceConnected {
        /// The tunnel.
        tunnel: &'a str,
        /// The device's address.
        client: &'a str,
    },
    /// The connection of a device is over.
    #[non_exhaustive]
    DeviceLeft {
        /// The tunnel.
        tunnel: &'a str,
        /// The device's address.
        client: &'a str,
        /// Why it ended.
        why: &'a str,
    },
    /// A client was refused.
    #[non_exhaustive]
    Refused {
        /// The tunnel that it named; it may be any text.
        tunnel: &'a str,
        /// The service that it asked for, if it came so far.
        service: Option<&'a str>,
        /// Its address.
        client: &'a str,
        /// Its way.
        way: Way,
        /// Why it was refused.
        reason: Refusal,
        /// The same as text.
        why: &'a str,
    },
    /// So many refusals were not reported, because there were too many.
    LeftOut(u32),
}

type Sink = dyn Fn(&AuditEvent<'_>) + Send + Sync;

/// Where the events go. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Audit(Option<Arc<(Box<Sink>, Mutex<LogLimiter>)>>);

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Audit(on)" } else { "Audit(off)" })
    }
}

impl Audit {
    pub(super) fn new(sink: impl Fn(&AuditEvent<'_>) + Send + Sync + 'static) -> Self {
        let limiter = LogLimiter::with_lines(LogLimiter::WINDOW, REFUSALS);
        Audit(Some(Arc::new((Box::new(sink), Mutex::new(limiter)))))
    }

    pub(super) fn report(&self, event: &AuditEvent<'_>) {
        if let Some(one) = &self.0 {
            (one.0)(event);
        }
    }

    pub(super) fn refused(&self, event: &AuditEvent<'_>) {
        let Some(one) = &self.0 else { return };
        let now = Instant::now();
        self.tick(now);
        if one.1.lock().permits(now) {
            (one.0)(event);
        }
    }

    /// Reports what was left out in a period that is over.
    pub(super) fn tick(&self, now: Instant) {
        let Some(one) = &self.0 else { return };
        let left_out = one.1.lock().tick(now);
        if let Some(count) = left_out {
            (one.0)(&AuditEvent::LeftOut(count));
        }
    }

    /// Reports what was left out until now.
    pub(super) fn end(&self) {
        let Some(one) = &self.0 else { return };
        let left_out = one.1.lock().end();
        if let Some(count) = left_out {
            (one.0)(&AuditEvent::LeftOut(count));
        }
    }

    /// When [`tick`](Self::tick) has something to report.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.as_ref()?.1.lock().deadline()
    }
}

/// A session of which the end has not been reported.
pub(super) struct Live {
    pub(super) service: String,
    pub(super) client: String,
    pub(super) way: Way,
    pub(super) since: Instant,
    /// Of a client without an access side of its own.
    pub(super) origin: Option<Arc<Origin>>,
}

impl Live {
    pub(super) fn ended<'a>(
        &'a self,
        tunnel: &'a str,
        session: &'a str,
        moved: Traffic,
        why: &'a str,
        now: Instant,
    ) -> AuditEvent<'a> {
        AuditEvent::SessionEnded {
            tunnel,
            session,
            service: &self.service,
            client: &self.client,
            way: self.way,
            bytes_to_device: moved.to_device,
            bytes_to_access: moved.to_access,
            lasted: now.saturating_duration_since(self.since),
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn refusals_are_limited_and_counted_and_ends_of_sessions_are_not() {
        let seen = Arc::new([const { AtomicU32::new(0) }; 3]);
        let counts = seen.clone();
        let audit = Audit::new(move |event| {
            let (index, by) = match event {
                AuditEvent::SessionEnded { .. } => (0, 1),
                AuditEvent::Refused { .. } => (1, 1),
                AuditEvent::LeftOut(count) => (2, *count),
                AuditEvent::DeviceConnected { .. } | AuditEvent::DeviceLeft { .. } => {
                    unreachable!()
                }
            };
            counts[index].fetch_add(by, Ordering::Relaxed);
        });
        let live = Live {
            service: "s".to_owned(),
            client: "192.0.2.1:1".to_owned(),
            way: Way::Access,
            since: Instant::now(),
            origin: None,
        };
        for _ in 0..3000 {
            audit.report(&live.ended("t", "id", Traffic::default(), "", Instant::now()));
            audit.refused(&AuditEvent::Refused {
                tunnel: "t",
                service: None,
                client: "192.0.2.1:1",
                way: Way::Access,
                reason: Refusal::WrongToken,
                why: "",
            });
        }
        assert!(audit.deadline().is_some());
        audit.end();
        let counts: Vec<u32> = seen.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [3000, REFUSALS, 3000 - REFUSALS]);
    }
}
