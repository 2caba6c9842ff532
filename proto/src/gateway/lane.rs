//! One direction of a session with flow control: what was granted, and what waits in the gateway.
//!
//! The gateway keeps what was granted and cannot be passed on yet. So it goes on reading a
//! connection although one of its sessions flows to a slow one.

use std::collections::VecDeque;

/// Most bytes that one direction of a session may hold in the gateway, including the bytes that its
/// sender may still send. If a receiver grants more, the sender is told of the rest later.
const SESSION_CREDIT: u64 = 2 * 1024 * 1024;
/// The same if the sender is in this process. It is told of more at once, so what waits here needs not
/// cover its way, and should fit the processor's cache.
const NEAR_CREDIT: u64 = 256 * 1024;
/// The same for all sessions in one direction of a tunnel. Each session may have
/// [`FIRST_CREDIT`] all the same.
pub(super) const TUNNEL_CREDIT: u64 = 4 * 1024 * 1024;
const FIRST_CREDIT: u64 = 64 * 1024;
/// Most bytes that a receiver may grant in all.
const MAX_CREDIT: u64 = i64::MAX as u64;

/// One direction of a session with flow control.
#[derive(Default)]
pub(super) struct Lane {
    queue: VecDeque<u8>,
    /// The number of bytes that the sender may still send.
    granted: u64,
    /// The number of bytes that the receiver has granted and the sender has not been told.
    withheld: u64,
    /// The sender has ended the direction.
    pub(super) ended: bool,
    /// The end waits behind the queue.
    pub(super) eof_waits: bool,
    /// When the lane had its last turn. The lane with the smallest number is next.
    pub(super) served: u64,
}

impl Lane {
    /// The number of bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether bytes or the end of the direction wait.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty() || self.eof_waits
    }

    /// What the lane may hold at present.
    pub(super) fn held(&self) -> u64 {
        self.granted + self.queue.len() as u64
    }

    /// The receiver grants more. Returns false if it breaks the protocol.
    pub(super) fn add_credit(&mut self, bytes: u64) -> bool {
        let sum = self.withheld.checked_add(bytes).filter(|sum| *sum <= MAX_CREDIT);
        self.withheld = sum.unwrap_or(self.withheld);
        sum.is_some()
    }

    /// The credit to pass on to the sender now. `held` is what all lanes of the direction hold.
    /// `is_near`: the sender is in this process.
    pub(super) fn pass_credit(&mut self, held: u64, is_near: bool) -> u64 {
        let own = self.held();
        let of_tunnel = TUNNEL_CREDIT.saturating_sub(held);
        let most = if is_near { NEAR_CREDIT } else { SESSION_CREDIT };
        let room = most.saturating_sub(own).min(of_tunnel);
        let credit = self.withheld.min(room.max(FIRST_CREDIT.saturating_sub(own)));
        self.withheld -= credit;
        self.granted += credit;
        credit
    }

    /// Takes a payload into account. Returns false if the sender was not granted as much, or has
    /// ended its direction.
    pub(super) fn admit(&mut self, length: usize) -> bool {
        let left = self.granted.checked_sub(length as u64).filter(|_| !self.ended || length == 0);
        self.granted = left.unwrap_or(self.granted);
        left.is_some()
    }

    pub(super) fn push(&mut self, payload: &[u8]) {
        self.queue.extend(payload);
    }

    /// The next `length` bytes. `scratch` holds them if the queue has them in two pieces.
    pub(super) fn front<'a>(&'a self, length: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let (front, back) = self.queue.as_slices();
        if let Some(bytes) = front.get(..length) {
            return bytes;
        }
        scratch.clear();
        scratch.extend_from_slice(front);
        scratch.extend_from_slice(&back[..length - front.len()]);
        scratch
    }

    /// The next `length` bytes are passed on.
    pub(super) fn remove(&mut self, length: usize) {
        self.queue.drain(..length);
    }

    /// Frees the queue if it is empty.
    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    /// Drops what waits, and ends the direction.
    pub(super) fn clear(&mut self) {
        *self = Lane { ended: true, ..Lane::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_told_of_no_more_than_the_gateway_keeps() {
        let mut lane = Lane::default();
        assert!(lane.add_credit(u64::MAX / 4));
        assert_eq!(lane.pass_credit(0, false), SESSION_CREDIT);
        assert_eq!(lane.pass_credit(0, false), 0);
        assert!(lane.admit(1000));
        assert_eq!(lane.pass_credit(0, false), 1000);
        assert!(!lane.add_credit(u64::MAX));
    }

    #[test]
    fn a_sender_in_this_process_is_told_of_less_at_a_time() {
        let mut lane = Lane::default();
        assert!(lane.add_credit(SESSION_CREDIT));
        assert_eq!(lane.pass_credit(0, true), NEAR_CREDIT);
        assert!(lane.admit(1000));
        assert_eq!(lane.pass_credit(0, true), 1000);
    }

    #[test]
    fn bytes_leave_in_order_wherever_the_queue_keeps_them() {
        let (mut lane, mut scratch, mut passed) = (Lane::default(), Vec::new(), Vec::new());
        let bytes: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        for piece in bytes.chunks(700) {
            lane.push(piece);
            let length = lane.waiting().min(650);
            passed.extend_from_slice(lane.front(length, &mut scratch));
            lane.remove(length);
        }
        passed.extend_from_slice(lane.front(lane.waiting(), &mut scratch));
        lane.remove(lane.waiting());
        assert!(passed == bytes && !lane.is_waiting());
        lane.shrink();
        assert_eq!(lane.queue.capacity(), 0);
    }

    #[test]
    fn a_full_tunnel_leaves_each_session_its_first_window() {
        let mut lane = Lane::default();
        assert!(lane.add_credit(1 << 20));
        assert_eq!(lane.pass_credit(TUNNEL_CREDIT, false), FIRST_CREDIT);
        assert_eq!(lane.pass_credit(TUNNEL_CREDIT, false), 0);
    }

    #[test]
    fn more_than_was_granted_is_not_admitted() {
        let mut lane = Lane::default();
        assert!(lane.add_credit(10));
        lane.pass_credit(0, false);
        assert!(lane.admit(4) && !lane.admit(7) && lane.admit(6));
        lane.ended = true;
        assert!(lane.admit(0) && !lane.admit(1));
    }
}
