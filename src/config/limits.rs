//! Limits and times of the device side.

use std::time::Duration;

use aiot_tunnel_proto::session::WindowLimits;

use crate::error::{Error, Result};

/// Smallest `session_buffer`, in bytes: the largest payload that is accepted.
const MIN_SESSION_BUFFER: usize = 64 * 1024;
/// The window of a new session with flow control, in bytes.
pub(crate) const FIRST_WINDOW: u64 = 64 * 1024;
/// Smallest `send_buffer`, in bytes: two frames.
const MIN_SEND_BUFFER: usize = 8 * 1024;

/// Limits and times of a [`Manager`](crate::Manager). The defaults are the protocol's or the
/// design's figures. [`ManagerBuilder::build`](crate::ManagerBuilder::build) checks them.
///
/// ```
/// use std::time::Duration;
/// use aiot_tunnel::Limits;
///
/// let limits = Limits::new().with_max_tunnels(4).with_ping_interval(Duration::from_secs(60));
/// assert_eq!(limits.max_sessions, 10);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Limits {
    /// How many tunnels may exist at once; at least 1. Default 20 (the C SDK's table).
    pub max_tunnels: usize,
    /// How many sessions one tunnel may have at once; at least 1. One more is answered with
    /// code 1. Default 10 (the platform's limit).
    pub max_sessions: usize,
    /// How many bytes from the cloud may wait for one local service; at least 64 KiB, the
    /// largest payload that is accepted. Default 256 KiB. In a session with flow control, the
    /// window grows to eight times as much while much flows, and all windows of a tunnel together
    /// to sixteen times as much.
    pub session_buffer: usize,
    /// How many bytes may wait for the cloud before local services are no longer read; at least
    /// 8 KiB. As much again is kept free for answers. Default 128 KiB.
    pub send_buffer: usize,
    /// How long a local service may take nothing while its full `session_buffer` stops the other
    /// sessions of its tunnel. Then its session is released, so that the others go on. A service
    /// that takes its bytes in large, rare steps has more time: with the default, 4 KiB/s are
    /// enough. A session with flow control, or one without siblings, may stand still for as long
    /// as it likes. Default 10 s.
    pub stall_timeout: Duration,
    /// After how long without traffic the kernel probes a local service over TCP. A service that
    /// has vanished then gives back its session. `None`: never. Default 60 s.
    pub local_keepalive: Option<Duration>,
    /// After how long without a byte in either direction a session is cut. `None`, the default:
    /// never.
    pub session_idle_timeout: Option<Duration>,
    /// Time for the lookup, TCP, the proxy, TLS and the WebSocket handshake together. Default 15 s.
    pub handshake_timeout: Duration,
    /// Time for the connection to a local service. Default 5 s.
    pub connect_timeout: Duration,
    /// Time between two WebSocket pings. Default 20 s.
    pub ping_interval: Duration,
    /// Silence of the cloud after which the connection counts as lost. Default 60 s.
    pub pong_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_tunnels: 20,
            max_sessions: 10,
            session_buffer: 256 * 1024,
            send_buffer: 128 * 1024,
            stall_timeout: Duration::from_secs(10),
            local_keepalive: Some(Duration::from_secs(60)),
            session_idle_timeout: None,
            handshake_timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(20),
            pong_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`max_tunnels`](Self::max_tunnels).
    pub fn with_max_tunnels(mut self, count: usize) -> Self {
        self.max_tunnels = count;
        self
    }

    /// Sets [`max_sessions`](Self::max_sessions).
    pub fn with_max_sessions(mut self, count: usize) -> Self {
        self.max_sessions = count;
        self
    }

    /// Sets [`session_buffer`](Self::session_buffer), in bytes.
    pub fn with_session_buffer(mut self, bytes: usize) -> Self {
        self.session_buffer = bytes;
        self
    }

    /// Sets [`send_buffer`](Self::send_buffer), in bytes.
    pub fn with_send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = bytes;
        self
    }

    /// Sets [`stall_timeout`](Self::stall_timeout).
    pub fn with_stall_timeout(mut self, time: Duration) -> Self {
        self.stall_timeout = time;
        self
    }

    /// Sets [`local_keepalive`](Self::local_keepalive).
    pub fn with_local_keepalive(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.local_keepalive = time.into();
        self
    }

    /// Sets [`session_idle_timeout`](Self::session_idle_timeout).
    pub fn with_session_idle_timeout(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.session_idle_timeout = time.into();
        self
    }

    /// What a peer may send ahead in sessions with flow control.
    pub(crate) fn window(&self) -> WindowLimits {
        let buffer = self.session_buffer as u64;
        let first = FIRST_WINDOW.min(buffer);
        let tunnel = 16 * buffer;
        let growth = tunnel.saturating_sub(first * self.max_sessions as u64);
        WindowLimits { first, session: 8 * buffer, growth }
    }

    /// Sets [`handshake_timeout`](Self::handshake_timeout).
    pub fn with_handshake_timeout(mut self, time: Duration) -> Self {
        self.handshake_timeout = time;
        self
    }

    /// Sets [`connect_timeout`](Self::connect_timeout).
    pub fn with_connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Sets [`ping_interval`](Self::ping_interval).
    pub fn with_ping_interval(mut self, time: Duration) -> Self {
        self.ping_interval = time;
        self
    }

    /// Sets [`pong_timeout`](Self::pong_timeout).
    pub fn with_pong_timeout(mut self, time: Duration) -> Self {
        self.pong_timeout = time;
        self
    }

    /// # Errors
    /// [`Error::InvalidInput`], which names the field that is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        let at_least = |field, value: usize, least: usize| {
            if value >= least {
                return Ok(());
            }
            Err(Error::invalid(field, format!("{value} is less than {least}")))
        };
        at_least("max_tunnels", self.max_tunnels, 1)?;
        at_least("max_sessions", self.max_sessions, 1)?;
        at_least("session_buffer", self.session_buffer, MIN_SESSION_BUFFER)?;
        at_least("send_buffer", self.send_buffer, MIN_SEND_BUFFER)?;
        for (field, time) in [
            ("stall_timeout", self.stall_timeout),
            ("local_keepalive", self.local_keepalive.unwrap_or(Duration::MAX)),
            ("session_idle_timeout", self.session_idle_timeout.unwrap_or(Duration::MAX)),
            ("handshake_timeout", self.handshake_timeout),
            ("connect_timeout", self.connect_timeout),
            ("ping_interval", self.ping_interval),
            ("pong_timeout", self.pong_timeout),
        ] {
            if time.is_zero() {
                return Err(Error::invalid(field, "must not be zero"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_out_of_its_range_is_named() {
        assert!(Limits::new().check().is_ok());
        for (limits, field) in [
            (Limits::new().with_max_tunnels(0), "max_tunnels"),
            (Limits::new().with_max_sessions(0), "max_sessions"),
            (Limits::new().with_session_buffer(64 * 1024 - 1), "session_buffer"),
            (Limits::new().with_send_buffer(8 * 1024 - 1), "send_buffer"),
            (Limits::new().with_stall_timeout(Duration::ZERO), "stall_timeout"),
            (Limits::new().with_handshake_timeout(Duration::ZERO), "handshake_timeout"),
            (Limits::new().with_connect_timeout(Duration::ZERO), "connect_timeout"),
            (Limits::new().with_ping_interval(Duration::ZERO), "ping_interval"),
            (Limits::new().with_pong_timeout(Duration::ZERO), "pong_timeout"),
        ] {
            let error = limits.check().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
