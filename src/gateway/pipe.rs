//! A connection between two ends in this process, in memory: between a published port and the tunnel's
//! hub, whose thread serves both.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use aiot_tunnel_proto::connection::Transport;
use parking_lot::Mutex;

/// Most bytes that wait in one direction. What fits the processor's cache is copied fast.
const CAPACITY: usize = 128 * 1024;

/// One direction.
#[derive(Default)]
struct Queue {
    buffer: Vec<u8>,
    /// The bytes at `start..end` wait.
    start: usize,
    end: usize,
    /// The writing end writes no more.
    ended: bool,
    /// The reading end is gone.
    broken: bool,
}

impl Queue {
    fn waiting(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.waiting().len())
    }
}

/// One end. Dropping it ends both directions.
pub(super) struct PipeEnd {
    incoming: Arc<Mutex<Queue>>,
    outgoing: Arc<Mutex<Queue>>,
    written: u64,
}

/// Both ends of a new connection.
pub(super) fn pair() -> [PipeEnd; 2] {
    let [one, other] = <[Arc<Mutex<Queue>>; 2]>::default();
    [
        PipeEnd { incoming: one.clone(), outgoing: other.clone(), written: 0 },
        PipeEnd { incoming: other, outgoing: one, written: 0 },
    ]
}

impl PipeEnd {
    /// Whether a read would return at once: bytes, or the end.
    pub(super) fn is_readable(&self) -> bool {
        let queue = self.incoming.lock();
        queue.ended || !queue.waiting().is_empty()
    }

    /// Whether a write would return at once: it takes bytes, or fails.
    pub(super) fn is_writable(&self) -> bool {
        let queue = self.outgoing.lock();
        queue.broken || queue.room() > 0
    }

    /// Whether the other end writes no more.
    pub(super) fn has_ended(&self) -> bool {
        self.incoming.lock().ended
    }
}

impl Read for PipeEnd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut queue = self.incoming.lock();
        let waiting = queue.waiting();
        if waiting.is_empty() {
            return if queue.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let length = waiting.len().min(buffer.len());
        buffer[..length].copy_from_slice(&waiting[..length]);
        queue.start += length;
        Ok(length)
    }
}

impl Write for PipeEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut queue = self.outgoing.lock();
        if queue.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let length = bytes.len().min(queue.room());
        if length == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Queue { buffer, start, end, .. } = &mut *queue;
        buffer.truncate(*end);
        buffer.drain(..std::mem::take(start));
        buffer.extend_from_slice(&bytes[..length]);
        *end = buffer.len();
        self.written += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written is with the other end at once.
impl Transport for PipeEnd {
    fn written(&self) -> u64 {
        self.written
    }
    fn unacked(&self) -> usize {
        0
    }
    fn is_near(&self) -> bool {
        true
    }
    fn take_buffer(&mut self, buffer: &mut Vec<u8>, waiting: Range<usize>) -> bool {
        let mut queue = self.outgoing.lock();
        if queue.broken || !queue.waiting().is_empty() {
            return false;
        }
        std::mem::swap(&mut queue.buffer, buffer);
        self.written += waiting.len() as u64;
        (queue.start, queue.end) = (waiting.start, waiting.end);
        true
    }
    fn give_buffer(&mut self, buffer: &mut Vec<u8>) -> Option<Range<usize>> {
        let mut queue = self.incoming.lock();
        if queue.waiting().is_empty() {
            return None;
        }
        std::mem::swap(&mut queue.buffer, buffer);
        let at = queue.start..queue.end;
        (queue.start, queue.end) = (0, 0);
        Some(at)
    }
    fn shrink(&mut self) {
        for queue in [&self.incoming, &self.outgoing] {
            let mut queue = queue.lock();
            if queue.waiting().is_empty() {
                (queue.buffer, queue.start, queue.end) = (Vec::new(), 0, 0);
            }
        }
    }
    fn shut_down(&mut self) {
        self.outgoing.lock().ended = true;
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.outgoing.lock().ended = true;
        self.incoming.lock().broken = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_a_full_pipe_takes_no_more() {
        let [mut one, mut other] = pair();
        assert!(!other.is_readable());
        assert_eq!(other.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let bytes: Vec<u8> = (0..3 * CAPACITY).map(|n| (n % 251) as u8).collect();
        let (mut sent, mut received) = (0, Vec::<u8>::new());
        while received.len() < bytes.len() {
            while sent < bytes.len() && one.is_writable() {
                sent += one.write(&bytes[sent..]).unwrap();
            }
            assert!(sent == bytes.len() || !one.is_writable());
            let mut piece = [0; 10_007];
            let length = other.read(&mut piece).unwrap();
            received.extend(&piece[..length]);
        }
        assert!(received == bytes);
        assert_eq!((one.written(), other.written()), (bytes.len() as u64, 0));
    }

    #[test]
    fn whole_buffers_change_hands_and_keep_their_place_in_the_stream() {
        let [mut one, mut other] = pair();
        let mut buffer = b"..whole.".to_vec();
        assert!(one.take_buffer(&mut buffer, 2..7));
        assert_eq!(one.written(), 5);
        // Not before the other end has taken it.
        assert!(!one.take_buffer(&mut buffer, 0..0));
        one.write_all(b" behind").unwrap();
        let mut received = [0; 4];
        other.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"whol");
        let mut taken = Vec::new();
        let at = other.give_buffer(&mut taken).unwrap();
        assert_eq!(&taken[at], b"e behind");
        assert!(!other.is_readable() && other.give_buffer(&mut taken).is_none());
    }

    #[test]
    fn the_end_comes_behind_the_bytes_and_a_dropped_end_breaks_the_pipe() {
        let [mut one, mut other] = pair();
        one.write_all(b"last").unwrap();
        one.shut_down();
        assert!(other.has_ended());
        assert_eq!(other.read(&mut [0; 8]).unwrap(), 4);
        assert_eq!(other.read(&mut [0; 8]).unwrap(), 0);
        // The other direction goes on.
        other.write_all(b"back").unwrap();
        assert_eq!(one.read(&mut [0; 8]).unwrap(), 4);
        drop(one);
        assert!(other.is_writable());
        assert_eq!(other.write(b"more").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
