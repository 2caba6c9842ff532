//! A session, as the model knows it from its two ends.

use aiot_tunnel_proto::frame::{Credit, Extensions, Frame};
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
    /// What the access side offers; once the device has answered, what holds.
    pub(super) extensions: Extensions,
    /// One of its ends broke the protocol of the extensions, or sent more at once than the gateway keeps.
    pub(super) is_cut: bool,
    /// There is no doubt about it.
    pub(super) surely: bool,
}

#[derive(Default)]
pub(super) struct Direction {
    pub(super) sent: u64,
    pub(super) received: u64,
    /// The sender has released it.
    pub(super) released: bool,
    /// The receiver has been told.
    pub(super) over: bool,
    /// With flow control: the number of bytes that the receiver has granted, and of how many the
    /// sender knows.
    pub(super) granted: u64,
    pub(super) told: u64,
    /// With half-close: the sender has ended the direction, and the receiver knows.
    pub(super) ended: bool,
    pub(super) end_came: bool,
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
            extensions: Extensions::NONE,
            is_cut: false,
            surely: false,
        }
    }

    /// The number of bytes that may be sent in a direction.
    pub(super) fn may_send(&self, which: usize) -> usize {
        let direction = &self.directions[which];
        match (direction.ended, self.extensions.credit) {
            (true, _) => 0,
            (false, true) => direction.told.saturating_sub(direction.sent) as usize,
            (false, false) => usize::MAX,
        }
    }

    /// What may be held for a direction, as its ends see it.
    pub(super) fn held(&self, which: usize) -> u64 {
        self.directions[which].told.saturating_sub(self.directions[which].received)
    }

    /// A data frame comes to the receiver of a direction.
    pub(super) fn receives(&mut self, id: &str, which: usize, frame: &Frame<'_>) {
        self.receives_payload(id, which, frame.payload);
        assert_eq!(frame.extensions, Extensions::NONE);
        let has_credit = self.extensions.credit;
        match frame.credit {
            Credit::Absent => {}
            Credit::Bytes(bytes) if has_credit => self.is_told(1 - which, bytes),
            other => panic!("{other:?} that was not agreed on"),
        }
        let direction = &mut self.directions[which];
        let within = direction.received <= direction.granted;
        assert!(!has_credit || within, "more than the receiver has granted");
        if frame.eof {
            assert!(direction.ended && !direction.end_came, "an end that was not sent");
            assert!(direction.received == direction.sent || self.is_cut, "an end before the data");
            direction.end_came = true;
        }
    }

    /// The sender of a direction is told of credit.
    pub(super) fn is_told(&mut self, which: usize, bytes: u64) {
        let direction = &mut self.directions[which];
        direction.told += bytes;
        assert!(direction.told <= direction.granted, "credit that nobody has granted");
    }

    fn receives_payload(&mut self, id: &str, which: usize, payload: &[u8]) {
        let direction = &mut self.directions[which];
        assert!(!direction.over, "data after the release");
        assert!(!direction.end_came || payload.is_empty(), "data after the end");
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
