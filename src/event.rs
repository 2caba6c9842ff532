//! The events that the start thread passes to the event handler.

use std::fmt;

use crate::config::TunnelId;

/// What happened to a tunnel. As text it is the variant's name, such as `Connect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The WebSocket is open: sessions can be created. C: `AIOT_TUNNEL_EVT_CONNECT`.
    Connect,
    /// An open WebSocket was lost, or was closed by a delete, an update or a stop. Each
    /// [`Connect`](EventKind::Connect) has exactly one. C: `AIOT_TUNNEL_EVT_DISCONNECT`.
    Disconnect,
    /// The cloud refuses the token (HTTP 401, close code 4001 or 401). The tunnel is dropped;
    /// `update` or `add` with a new token brings it back. A tunnel that
    /// [retries](crate::ConnectParams::with_refusal_retry) has no such event. C:
    /// `AIOT_TUNNEL_EVT_EXPIRED`.
    Expired,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            EventKind::Connect => "Connect",
            EventKind::Disconnect => "Disconnect",
            EventKind::Expired => "Expired",
        })
    }
}

/// One event of one tunnel. As text it is `<kind> <tunnel id>`, such as `Connect t1`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The tunnel to which it happened.
    pub tunnel_id: TunnelId,
}

impl Event {
    /// Makes an event. The library makes its own events; this function is for tests of an event
    /// handler.
    pub fn new(kind: EventKind, tunnel_id: TunnelId) -> Self {
        Event { kind, tunnel_id }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.tunnel_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_as_text_is_its_kind_and_its_tunnel() {
        for kind in [EventKind::Connect, EventKind::Disconnect, EventKind::Expired] {
            let event = Event { kind, tunnel_id: TunnelId::new("t1").unwrap() };
            assert_eq!(event.to_string(), format!("{kind:?} t1"));
        }
    }
}
