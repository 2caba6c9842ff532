//! What happens in a tunnel of the gateway, for an owner that logs or counts it.

use std::fmt;

use crate::connection::Dropped;
use crate::Side;

/// Something that happened in a tunnel. The observer can log and count it.
#[derive(Debug)]
#[non_exhaustive]
pub enum TunnelEvent<'a> {
    /// A device connected.
    DeviceConnected {
        /// Its address.
        from: &'a str,
    },
    /// An access side connected.
    AccessConnected {
        /// The number that identifies it within the tunnel.
        key: u64,
        /// Its address.
        from: &'a str,
    },
    /// The device's connection ended.
    DeviceLeft {
        /// Why it ended.
        why: &'a str,
    },
    /// An access side's connection ended.
    AccessLeft {
        /// The number of the access side.
        key: u64,
        /// Why it ended.
        why: &'a str,
    },
    /// The tunnel expired.
    Expired,
    /// The token of one side is no longer valid, and its connections are closed.
    Revoked(Side),
    /// The gateway asked the device for a session.
    SessionCreated {
        /// The session id.
        id: &'a str,
        /// The service type.
        service_type: &'a str,
        /// The number of the access side.
        access: u64,
        /// The frame id of its session_create.
        frame_id: u64,
    },
    /// The device refused a session, or did not answer in time.
    DeviceRefused {
        /// The session id.
        id: &'a str,
        /// Why: the device's text, which may hold any character.
        why: &'a str,
    },
    /// One of the ends released the session with this id.
    Released(Side, &'a str),
    /// A session lost bytes and is cut.
    Cut {
        /// The session id.
        id: &'a str,
        /// Why it is cut.
        why: &'a str,
    },
    /// A full connection takes next to nothing and is closed.
    Stalled,
    /// The gateway refused a session_create of an access side.
    Refused {
        /// The number of the access side.
        access: u64,
        /// The frame id of its session_create.
        frame_id: u64,
        /// The service type.
        service_type: &'a str,
        /// Why.
        why: &'a str,
        /// Whether the event is to be logged: an access side can cause as many as it likes.
        is_logged: bool,
    },
    /// A session_create without frame_id was dropped.
    Incomplete,
    /// A session_create that came from a device was dropped.
    CreateFromDevice,
    /// Data for a session that does not exist was dropped. The text is the session id.
    UnknownSession(&'a str),
    /// A message was dropped.
    Dropped(Side, &'a Dropped),
    /// This many events were not reported, because a peer caused too many.
    LeftOut(u32),
}

impl TunnelEvent<'_> {
    /// Whether the event is a sign of trouble.
    pub fn is_warning(&self) -> bool {
        use TunnelEvent::*;
        match self {
            Cut { .. }
            | Stalled
            | DeviceRefused { .. }
            | Refused { .. }
            | Incomplete
            | CreateFromDevice => true,
            UnknownSession(_) | TunnelEvent::Dropped(..) | LeftOut(_) => true,
            DeviceConnected { .. } | AccessConnected { .. } => false,
            DeviceLeft { .. } | AccessLeft { .. } => false,
            Expired | Revoked(_) | SessionCreated { .. } | Released(..) => false,
        }
    }
}

impl fmt::Display for TunnelEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use TunnelEvent::*;
        match self {
            DeviceConnected { from } => write!(f, "device connected from {from}"),
            AccessConnected { key, from } => write!(f, "access {key} connected from {from}"),
            DeviceLeft { why } => write!(f, "device disconnected: {why}"),
            AccessLeft { key, why } => write!(f, "access {key} disconnected: {why}"),
            Expired => f.write_str("expired"),
            Revoked(Side::Device) => f.write_str("the device's token is no longer valid"),
            Revoked(Side::Access) => f.write_str("the access token is no longer valid"),
            SessionCreated { id, service_type, .. } => {
                write!(f, "session {id} for {service_type:?}")
            }
            DeviceRefused { id, why } => write!(f, "device refused {id:?}: {why:?}"),
            Released(Side::Device, id) => write!(f, "device released {id:?}"),
            Released(Side::Access, id) => write!(f, "access released {id:?}"),
            Cut { id, why } => write!(f, "session {id:?} is cut: {why}"),
            Stalled => f.write_str("a full connection takes next to nothing and is closed"),
            Refused { why, .. } => write!(f, "session_create refused: {why}"),
            Incomplete => f.write_str("session_create without frame_id"),
            CreateFromDevice => f.write_str("session_create from a device"),
            UnknownSession(id) => write!(f, "data for unknown session {id:?}"),
            TunnelEvent::Dropped(side, what) => write!(f, "{side:?}: {what}"),
            LeftOut(count) => write!(f, "{count} more such lines were left out"),
        }
    }
}

/// Receives the events of a tunnel.
pub trait TunnelObserver {
    /// Receives one event.
    fn event(&mut self, event: TunnelEvent<'_>);
}

/// Ignores all events.
impl TunnelObserver for () {
    fn event(&mut self, _: TunnelEvent<'_>) {}
}
