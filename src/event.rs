//! What the start thread tells the event handler.

use crate::config::TunnelId;

/// What happened to a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The WebSocket is open: sessions can be created. C: `AIOT_TUNNEL_EVT_CONNECT`.
    Connect,
    /// An open WebSocket was lost, deleted, updated, or the manager stops: exactly once for
    /// each [`Connect`](EventKind::Connect). C: `AIOT_TUNNEL_EVT_DISCONNECT`.
    Disconnect,
    /// The cloud refuses the token (HTTP 401, close code 4001 or 401). The tunnel is dropped;
    /// `update` or `add` with a fresh token brings it back. C: `AIOT_TUNNEL_EVT_EXPIRED`.
    Expired,
}

/// One event of one tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To which tunnel.
    pub tunnel_id: TunnelId,
}
