//! Writes log lines about a tunnel of the device. The texts of the Link SDK are kept.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::observer::{Event, Observer};

use crate::config::{ConnectParams, TunnelId};
use crate::logging::{debug, info, warn, Code};
use crate::net::open::{Failure, Progress};
use crate::status::TunnelRecord;

/// Logs a step of an attempt.
pub(super) fn log_progress(params: &ConnectParams, step: Progress) {
    let (host, port) = (params.host(), params.port());
    match step {
        Progress::Connecting => {
            info!(Code::Tunnel, "start to create cloud channel");
            info!(Code::Tunnel, "connect remote service host {host}, port {port}");
        }
        Progress::Connected { fd, local_port } => {
            info!(Code::Adapter, "success to establish tcp, fd={fd}");
            info!(Code::Adapter, "local port: {local_port}");
        }
        Progress::ThroughProxy(proxy) => {
            info!(Code::Adapter, "the proxy {proxy} has connected to {host}, port {port}");
        }
        Progress::Securing => info!(
            Code::Adapter,
            "establish tls connection with server(host='{host}', port=[{port}])"
        ),
        Progress::Secured => info!(Code::Adapter, "success to establish tls connection"),
        Progress::NoSubprotocol => {
            warn!(Code::Tunnel, "the server names no subprotocol; using the connection");
        }
        Progress::Detour(text) => warn!(Code::Tunnel, "{text}"),
        Progress::Opened => info!(Code::Channel, "open_cloud_proxy_channel success"),
    }
}

/// The code of the line that says why an attempt failed.
pub(super) fn failure_code(failure: &Failure) -> Code {
    match failure {
        Failure::Lookup(_) => Code::Dns,
        Failure::Connect(_) | Failure::Proxy(_) => Code::Channel,
        Failure::TimedOut(_) => Code::TunnelTimeout,
        Failure::Tls(_) => Code::Handshake,
        Failure::Status(..) | Failure::Answer(_) => Code::TunnelFailed,
        Failure::Broken(_) => Code::TunnelReset,
    }
}

/// The attempts that have failed since the tunnel was last open or was given a command. Its end is
/// logged with their number, because each but the first costs only one line.
#[derive(Debug, Default)]
pub(super) struct Series {
    failed: u32,
    /// When the first of them began.
    began: Option<Instant>,
}

impl Series {
    pub(super) fn is_empty(&self) -> bool {
        self.failed == 0
    }

    /// Counts a failed attempt.
    pub(super) fn failed(&mut self, began: Instant) {
        self.failed = self.failed.saturating_add(1);
        self.began.get_or_insert(began);
    }

    /// Forgets the series: the tunnel got a command.
    pub(super) fn clear(&mut self) {
        *self = Series::default();
    }

    /// Logs the end of the series, if there was one: the tunnel is open.
    pub(super) fn end(&mut self, id: &TunnelId) {
        let Series { failed, began } = std::mem::take(self);
        let Some(began) = began else { return };
        let attempts = if failed == 1 { "attempt" } else { "attempts" };
        let took = Spoken(began.elapsed());
        info!(Code::Tunnel, "tunnel {id}: connected after {failed} failed {attempts} in {took}");
    }
}

/// A time as text, in two units at most, such as `3m 5s`.
struct Spoken(Duration);

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
        let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds}s"),
            (0, 0, _) => write!(f, "{minutes}m {seconds}s"),
            (0, ..) => write!(f, "{hours}h {minutes}m"),
            _ => write!(f, "{days}d {hours}h"),
        }
    }
}

/// Logs that another device took the place of this one. Each of the two would go on to replace the
/// other, so it says what is to be done.
pub(super) fn log_replaced(id: &TunnelId, address: &str) {
    warn!(
        Code::TunnelFailed,
        "tunnel {id}: another device uses the same token and has taken this one's place, from \
         {address}; both wait longer and longer before they connect again; give each device a tunnel \
         of its own"
    );
}

/// Writes the log lines of one tunnel, and records its open sessions.
pub(super) struct RelayObserver {
    pub(super) id: TunnelId,
    pub(super) record: Arc<TunnelRecord>,
}

impl Observer for RelayObserver {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Requested { id, service_type } => {
                info!(Code::Tunnel, "new session session_id:{id}, type {service_type}");
            }
            Event::Opened(record) => {
                self.record.session_opened(record.clone());
            }
            Event::Closed { id } => self.record.session_closed(id),
            Event::Released { id } => info!(Code::Tunnel, "release the session: {id}"),
            Event::Refused { id, reason } => {
                warn!(Code::TunnelFailed, "session {id} is refused: {reason}");
            }
            Event::Cut { id, reason } => warn!(Code::TunnelFailed, "session {id}: {reason}"),
            Event::Dropped(what) => warn!(Code::TunnelFailed, "{what}"),
            Event::Incomplete => warn!(
                Code::TunnelFailed,
                "a session_create without frame_id or session_id is dropped"
            ),
            Event::UnknownSession { id } => {
                warn!(Code::TunnelFailed, "data for unknown session {id} is dropped");
            }
            Event::LeftOut(count) => {
                warn!(Code::TunnelFailed, "{count} more such messages were dropped");
            }
            Event::Pinged => debug!(Code::Tunnel, "websocket {} ping", self.id),
            Event::Pong => debug!(Code::Tunnel, "websocket {} pong", self.id),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_spoken_in_two_units_at_most() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (185, "3m 5s"),
            (3600, "1h 0m"),
            (86_399, "23h 59m"),
            (90_000, "1d 1h"),
        ] {
            assert_eq!(Spoken(Duration::from_secs(seconds)).to_string(), text);
        }
    }

    #[test]
    fn a_series_has_an_end_only_if_something_failed() {
        let id = TunnelId::new("t").unwrap();
        let mut series = Series::default();
        series.end(&id);
        let began = Instant::now();
        series.failed(began);
        series.failed(Instant::now());
        assert!(!series.is_empty());
        assert_eq!((series.failed, series.began), (2, Some(began)));
        series.end(&id);
        assert!(series.is_empty() && series.began.is_none());
    }
}
