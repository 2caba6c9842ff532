//! What a tunnel of the gateway does at present. Its hub writes it, and anybody may read it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::SystemTime;

use aiot_tunnel_proto::gateway::{Traffic, TunnelEvent};
use parking_lot::Mutex;

use crate::config::TunnelId;

/// A connection of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// The address that the connection came from.
    pub address: String,
    /// When it came.
    pub since: SystemTime,
}

/// What a tunnel of the gateway does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Activity {
    /// The tunnel.
    pub id: TunnelId,
    /// When its tokens expire.
    pub expires: Option<SystemTime>,
    /// Whether its tokens have expired.
    pub is_expired: bool,
    /// The device, if it is connected.
    pub device: Option<Peer>,
    /// When the device was last connected. `None` while it is, and if it never was since the gateway
    /// started.
    pub device_left: Option<SystemTime>,
    /// The access sides that are connected.
    pub accesses: Vec<Peer>,
    /// Sessions that are open or being opened.
    pub sessions: usize,
    /// Sessions that were opened since the gateway started.
    pub sessions_opened: u64,
    /// Bytes that sessions have carried to the device since the gateway started.
    pub bytes_to_device: u64,
    /// Bytes that sessions have carried to access sides since the gateway started.
    pub bytes_to_access: u64,
}

/// The same, as it is kept.
#[derive(Default)]
pub(super) struct Record {
    members: Mutex<Members>,
    sessions: AtomicUsize,
    sessions_opened: AtomicU64,
    bytes_to_device: AtomicU64,
    bytes_to_access: AtomicU64,
}

#[derive(Default)]
struct Members {
    device: Option<Peer>,
    device_left: Option<SystemTime>,
    accesses: Vec<(u64, Peer)>,
}

impl Record {
    pub(super) fn note(&self, event: &TunnelEvent<'_>) {
        let now = SystemTime::now;
        let peer = |from: &str| Peer { address: from.to_owned(), since: now() };
        match event {
            TunnelEvent::DeviceConnected { from } => {
                let mut members = self.members.lock();
                (members.device, members.device_left) = (Some(peer(from)), None);
            }
            TunnelEvent::DeviceLeft { .. } => {
                let mut members = self.members.lock();
                (members.device, members.device_left) = (None, Some(now()));
            }
            TunnelEvent::AccessConnected { key, from } => {
                self.members.lock().accesses.push((*key, peer(from)));
            }
            TunnelEvent::AccessLeft { key, .. } => {
                self.members.lock().accesses.retain(|(other, _)| other != key);
            }
            TunnelEvent::SessionAccepted(_) => {
                self.sessions_opened.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// The hub that writes this has ended.
    pub(super) fn hub_ended(&self) {
        self.sessions.store(0, Ordering::Relaxed);
        let mut members = self.members.lock();
        members.accesses.clear();
        if members.device.take().is_some() {
            members.device_left = Some(SystemTime::now());
        }
    }

    /// `more` is what was passed on since the last call.
    pub(super) fn count(&self, sessions: usize, more: Traffic) {
        self.sessions.store(sessions, Ordering::Relaxed);
        if more != Traffic::default() {
            self.bytes_to_device.fetch_add(more.to_device, Ordering::Relaxed);
            self.bytes_to_access.fetch_add(more.to_access, Ordering::Relaxed);
        }
    }

    pub(super) fn activity(
        &self,
        id: TunnelId,
        expires: Option<SystemTime>,
        is_expired: bool,
    ) -> Activity {
        let members = self.members.lock();
        Activity {
            id,
            expires,
            is_expired,
            device: members.device.clone(),
            device_left: members.device_left,
            accesses: members.accesses.iter().map(|(_, peer)| peer.clone()).collect(),
            sessions: self.sessions.load(Ordering::Relaxed),
            sessions_opened: self.sessions_opened.load(Ordering::Relaxed),
            bytes_to_device: self.bytes_to_device.load(Ordering::Relaxed),
            bytes_to_access: self.bytes_to_access.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hub_reports_is_what_is_shown() {
        let record = Record::default();
        let show = || record.activity(TunnelId::new("t1").unwrap(), None, false);
        record.note(&TunnelEvent::DeviceConnected { from: "192.0.2.1:5" });
        for (key, from) in [(1, "192.0.2.2:6"), (2, "192.0.2.3:7")] {
            record.note(&TunnelEvent::AccessConnected { key, from });
        }
        record.note(&TunnelEvent::SessionAccepted("s"));
        record.count(1, Traffic { to_device: 10, to_access: 20 });
        record.count(1, Traffic { to_device: 1, to_access: 2 });
        record.note(&TunnelEvent::AccessLeft { key: 1, why: "it closed" });
        let shown = show();
        assert_eq!(shown.device.unwrap().address, "192.0.2.1:5");
        let accesses: Vec<&str> = shown.accesses.iter().map(|peer| &*peer.address).collect();
        assert_eq!(accesses, ["192.0.2.3:7"]);
        assert_eq!((shown.sessions, shown.sessions_opened), (1, 1));
        assert_eq!((shown.bytes_to_device, shown.bytes_to_access), (11, 22));
        assert_eq!(shown.device_left, None);
        record.hub_ended();
        let shown = show();
        assert!(shown.device.is_none() && shown.accesses.is_empty() && shown.sessions == 0);
        assert!(shown.device_left.is_some());
        assert_eq!(shown.bytes_to_access, 22);
    }
}
