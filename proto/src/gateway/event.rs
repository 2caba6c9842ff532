//! What happens in a tunnel of the gateway, for an owner that logs or counts it.

use std::fmt;

use super::Traffic;
use crate::connection::Dropped;
use crate::Side;

/// One of the connections of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// The device's.
    Device,
    /// That of the access side with this number.
    Access(u64),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::Device => f.write_str("device"),
            Member::Access(key) => write!(f, "access {key}"),
        }
    }
}

/// Why the gateway refuses a session_create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// The tunnel has as many sessions as it may have.
    SessionLimit,
    /// The device is not connected.
    DeviceAway,
    /// The request is not valid.
    Invalid,
}

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
    /// The device has accepted the session with this id.
    SessionAccepted(&'a str),
    /// The device refused a session, or did not answer in time.
    DeviceRefused {
        /// The session id.
        id: &'a str,
        /// Why: the device's text, which may hold any character.
        why: &'a str,
    },
    /// One of the ends released the session with this id.
    Released(Side, &'a str),
    /// A session is over.
    SessionEnded {
        /// The session id.
        id: &'a str,
        /// Whether the device had accepted it.
        was_open: bool,
        /// What it has carried.
        moved: Traffic,
        /// Why it ended. The ends' own texts are quoted.
        why: &'a str,
    },
    /// A session lost bytes and is cut.
    Cut {
        /// The session id.
        id: &'a str,
        /// Why it is cut.
        why: &'a str,
    },
    /// A full connection takes next to nothing and is closed.
    Stalled(Member),
    /// The gateway refused a session_create of an access side.
    Refused {
        /// The number of the access side.
        access: u64,
        /// The frame id of its session_create.
        frame_id: u64,
        /// The service type.
        service_type: &'a str,
        /// The kind of reason.
        reason: RefusalReason,
        /// Why, as text.
        why: &'a str,
        /// Whether the event is to be logged: an access side can cause as many as it likes.
        is_logged: bool,
    },
    /// A session_create without frame_id was dropped.
    Incomplete(Member),
    /// A session_create that came from a device was dropped.
    CreateFromDevice,
    /// Data for a session that does not exist was dropped. The text is the session id.
    UnknownSession(Member, &'a str),
    /// A message was dropped.
    Dropped(Member, &'a Dropped),
    /// This many events were not reported, because a peer caused too many.
    LeftOut(u32),
}

impl TunnelEvent<'_> {
    /// Whether the event is a sign of trouble.
    pub fn is_warning(&self) -> bool {
        use TunnelEvent::*;
        match self {
            Cut { .. }
            | Stalled(_)
            | DeviceRefused { .. }
            | Refused { .. }
            | Incomplete(_)
            | CreateFromDevice => true,
            UnknownSession(..) | TunnelEvent::Dropped(..) | LeftOut(_) => true,
            DeviceConnected { .. } | AccessConnected { .. } => false,
            DeviceLeft { .. } | AccessLeft { .. } => false,
            Expired | Revoked(_) | SessionCreated { .. } | Released(..) => false,
            SessionAccepted(_) | SessionEnded { .. } => false,
        }
    }

    /// The connection that the event is about. `None`: it is about a session or the tunnel.
    pub fn member(&self) -> Option<Member> {
        use TunnelEvent::*;
        match self {
            DeviceConnected { .. } | DeviceLeft { .. } | DeviceRefused { .. } => {
                Some(Member::Device)
            }
            CreateFromDevice => Some(Member::Device),
            AccessConnected { key, .. } | AccessLeft { key, .. } => Some(Member::Access(*key)),
            SessionCreated { access, .. } | Refused { access, .. } => Some(Member::Access(*access)),
            Stalled(member) | Incomplete(member) | UnknownSession(member, _) => Some(*member),
            TunnelEvent::Dropped(member, _) => Some(*member),
            Expired | Revoked(_) | SessionEnded { .. } | Released(..) | Cut { .. } => None,
            SessionAccepted(_) | LeftOut(_) => None,
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
            SessionAccepted(id) => write!(f, "device accepted {id:?}"),
            DeviceRefused { id, why } => write!(f, "device refused {id:?}: {why:?}"),
            Released(Side::Device, id) => write!(f, "device released {id:?}"),
            Released(Side::Access, id) => write!(f, "access released {id:?}"),
            Cut { id, why } => write!(f, "session {id:?} is cut: {why}"),
            SessionEnded { id, was_open: false, why, .. } => {
                write!(f, "session {id} was not opened: {why}")
            }
            SessionEnded { id, moved, why, .. } => {
                let Traffic { to_device, to_access } = moved;
                write!(
                    f,
                    "session {id} ended: {to_device} bytes to the device, {to_access} back: {why}"
                )
            }
            Stalled(member) => {
                write!(f, "{member}: a full connection takes next to nothing and is closed")
            }
            Refused { why, .. } => write!(f, "session_create refused: {why}"),
            Incomplete(member) => write!(f, "{member}: session_create without frame_id"),
            CreateFromDevice => f.write_str("session_create from a device"),
            UnknownSession(member, id) => write!(f, "{member}: data for unknown session {id:?}"),
            TunnelEvent::Dropped(member, what) => write!(f, "{member}: {what}"),
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
