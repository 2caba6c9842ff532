//! A session, as the model knows it from its two ends.

use aiot_tunnel_proto::Side;

pub(super) struct Session {
    /// The client that asked for it, and the one that was asked.
    pub(super) access: usize,
    pub(super) device: usize,
    /// Of the access side's create.
    pub(super) frame_id: u64,
    pub(super) service: String,
    /// The device's answer.
    pub(super) code: Option<u8>,
    /// [`TO_ACCESS`] and [`TO_DEVICE`].
    pub(super) directions: [Direction; 2],
    pub(super) open_at_access: bool,
    /// One of its ends sent more at once than the gateway keeps.
    pub(super) is_cut: bool,
}

#[derive(Default)]
pub(super) struct Direction {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// The sender has released it.
    pub(super) released: bool,
    /// The receiver has been told.
    pub(super) over: bool,
}

/// Towards the access side.
pub(super) const TO_ACCESS: usize = 0;
/// Towards the device.
pub(super) const TO_DEVICE: usize = 1;

/// Outwards and back, for one side.
pub(super) fn directions(side: Side) -> (usize, usize) {
    match side {
        Side::Device => (TO_ACCESS, TO_DEVICE),
        Side::Access => (TO_DEVICE, TO_ACCESS),
    }
}

/// A session's bytes in one direction; below 128, so never poison.
pub(super) fn content(session: &str, direction: usize, at: u64, length: usize) -> Vec<u8> {
    let seed = session.bytes().fold(direction as u64, |a, b| (a * 31 + u64::from(b)) % 251);
    (at..at + length as u64).map(|at| ((seed + at * 7 + at / 128) % 128) as u8).collect()
}

impl Session {
    /// A create that has reached a device. Its service type tells the access side and the frame id.
    pub(super) fn asked(device: usize, service: &str) -> Self {
        let access_and_frame = service.strip_prefix('a').and_then(|rest| rest.split_once('-'));
        let (access, frame_id) = access_and_frame.expect("as it was asked");
        Session {
            access: access.parse().expect("a client's number"),
            device,
            frame_id: frame_id.parse().expect("a frame id"),
            service: service.to_owned(),
            code: None,
            directions: Default::default(),
            open_at_access: false,
            is_cut: false,
        }
    }

    pub(super) fn receives(&mut self, id: &str, which: usize, payload: &[u8]) {
        let direction = &mut self.directions[which];
        assert!(!direction.over, "data after the release");
        let expected = content(id, which, direction.received, payload.len());
        assert!(payload == expected, "other bytes, or in another order");
        direction.received += payload.len() as u64;
        assert!(direction.received <= direction.sent);
    }

    /// A receiver is told of the end.
    pub(super) fn ends(&mut self, which: usize) {
        assert!(!self.directions[which].over, "two releases");
        self.directions[which].over = true;
    }
}
