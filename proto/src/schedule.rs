//! Decides which local stream is read next and how much, so that each gets a fair share of the
//! connection.

use std::io;

use crate::frame::MAX_PAYLOAD_SENT;
use crate::session::{LocalStream, Sessions};
use crate::websocket::Sender;
use crate::Ready;

/// Most bytes that one read of a local stream takes.
pub(crate) const READ: usize = 15 * MAX_PAYLOAD_SENT;
/// A read of at most this many bytes counts as short, even on the slowest link.
const LEAST_BULK: usize = 256;

/// The order in which local streams are read.
///
/// Streams whose last read was short go first, so that a keystroke does not wait for a file
/// transfer. Busy streams take turns of [`READ`] bytes each; a turn may need several reads. If the
/// room in the send buffer did not suffice for all, the streams that were left out go first the
/// next time.
pub(crate) struct Schedule {
    /// The indices of the ready streams, in the order in which they are read.
    order: Vec<usize>,
    /// The busy stream whose turn it is, and how many bytes remain of its turn.
    first_bulk: usize,
    left: usize,
    /// The short stream that goes first because it was left out the last time.
    first_short: usize,
    /// The last time, short streams left no room for busy ones. So the busy ones go first now.
    starved: bool,
}

/// What the peer can take in one round of reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Streams are read while fewer bytes than this wait in the sender.
    pub(crate) limit: usize,
    /// The size of the payloads, in bytes.
    pub(crate) payload: usize,
}

/// The result of one round of reads.
#[derive(Default)]
pub(crate) struct Reads {
    pub(crate) bytes: usize,
    /// The streams that ended, with the error if there was one, in the order of their sessions.
    pub(crate) ended: Vec<(usize, Option<io::Error>)>,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { order: Vec::new(), first_bulk: 0, left: READ, first_short: 0, starved: false }
    }
}

impl Schedule {
    /// Reads the ready streams while there is room in the sender.
    pub(crate) fn read<S: LocalStream>(
        &mut self,
        sessions: &mut Sessions<S>,
        sender: &mut Sender,
        scratch: &mut Vec<u8>,
        Room { limit, payload }: Room,
        ready: &[Ready],
    ) -> Reads {
        let mut reads = Reads::default();
        self.put_in_order(sessions, ready);
        if self.order.is_empty() {
            return reads;
        }
        scratch.resize(READ, 0);
        let mut read_bulk = false;
        for position in 0..self.order.len() {
            let index = self.order[position];
            let is_bulk = sessions.open[index].is_bulk;
            let Some(room @ 1..) = limit.checked_sub(sender.len()) else {
                self.leave_out(sessions, position, read_bulk);
                break;
            };
            read_bulk |= is_bulk;
            let turn = self.turn_of(index, is_bulk);
            let share = room.max(payload).min(turn).min(sessions.open[index].may_send());
            let Some(local) = sessions.open[index].local_mut() else { continue };
            match local.read(&mut scratch[..share]) {
                Ok(0) => reads.end(index, None),
                Ok(length) => {
                    sessions.queue(index, &scratch[..length], payload, sender);
                    reads.bytes += length;
                    // A read that filled its share left bytes behind.
                    let many = MAX_PAYLOAD_SENT.min(limit / 32).max(LEAST_BULK);
                    sessions.open[index].is_bulk = length == share || length > many;
                    if is_bulk {
                        self.took(index, length, share);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => reads.end(index, Some(e)),
            }
        }
        reads
    }

    fn put_in_order<S: LocalStream>(&mut self, sessions: &Sessions<S>, ready: &[Ready]) {
        let count = ready.len();
        let ready_from = |from: usize, bulk: bool| {
            let in_turn = (from..from + count).map(move |index| index % count);
            in_turn.filter(move |index| {
                let session = &sessions.open[*index];
                ready[*index].read && session.wants_read() && session.is_bulk == bulk
            })
        };
        self.order.clear();
        self.order.extend(ready_from(self.first_short, false));
        let short = self.order.len();
        self.order.extend(ready_from(self.first_bulk, true));
        if !self.order.is_empty() && std::mem::take(&mut self.starved) {
            self.order.rotate_left(short);
        }
    }

    /// There is no room for the streams from this position on. They go first the next time.
    fn leave_out<S: LocalStream>(&mut self, sessions: &Sessions<S>, from: usize, read_bulk: bool) {
        let is_bulk = |index: &usize| sessions.open[*index].is_bulk;
        let left_out = &self.order[from..];
        if let Some(index) = left_out.first().filter(|index| !is_bulk(index)) {
            self.first_short = *index;
        }
        self.starved = !read_bulk && left_out.iter().any(is_bulk);
    }

    /// The number of bytes a stream may be read for now.
    fn turn_of(&mut self, index: usize, is_bulk: bool) -> usize {
        if !is_bulk {
            return READ;
        }
        if index != self.first_bulk {
            (self.first_bulk, self.left) = (index, READ);
        }
        self.left
    }

    fn took(&mut self, index: usize, length: usize, share: usize) {
        self.left -= length;
        if length < share || self.left == 0 {
            (self.first_bulk, self.left) = (index + 1, READ);
        }
    }
}

impl Reads {
    fn end(&mut self, index: usize, error: Option<io::Error>) {
        let at = self.ended.partition_point(|(other, _)| *other < index);
        self.ended.insert(at, (index, error));
    }
}

/// Lets each member go first in turn, in the order of the keys.
#[derive(Default)]
pub(crate) struct RoundRobin(u64);

impl RoundRobin {
    /// Returns the keys in the order of this turn. `keys` must ascend.
    pub(crate) fn turn(&mut self, mut keys: Vec<u64>) -> Vec<u64> {
        let first = keys.partition_point(|key| *key < self.0);
        keys.rotate_left(first);
        self.0 = keys.first().map_or(0, |key| key + 1);
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_goes_first_in_turn() {
        let mut turns = RoundRobin::default();
        let firsts = |keys: &[u64], turns: &mut RoundRobin| turns.turn(keys.to_vec())[0];
        let order: Vec<u64> = (0..5).map(|_| firsts(&[3, 5, 9], &mut turns)).collect();
        assert_eq!(order, [3, 5, 9, 3, 5]);
        // A member that has left is skipped.
        assert_eq!(firsts(&[3, 5], &mut turns), 3);
        assert!(turns.turn(Vec::new()).is_empty());
    }
}
