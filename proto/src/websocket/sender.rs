//! Converts messages to bytes.

use std::io::{self, Cursor, Write};
use std::ops::Range;

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::FrameHeader;

use super::close::MAX_REASON;
use super::mask::copy_masked;
use super::Role;

/// Longest header of a WebSocket frame, in bytes (RFC 6455, 5.2).
const MAX_FRAME_HEADER: usize = 14;

/// The send buffer. It converts messages to bytes and keeps them until they are written.
pub struct Sender {
    role: Role,
    buffer: Vec<u8>,
    /// The bytes at `start..end` wait to be written.
    start: usize,
    end: usize,
}

/// The result of [`Sender::flush_most`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// No bytes wait.
    All,
    /// Bytes wait because the caller limited the write.
    Limited,
    /// Bytes wait because the sink takes no more.
    Blocked,
}

impl Sender {
    /// A sender for an end with this role. Its buffer is empty.
    pub fn new(role: Role) -> Self {
        Sender { role, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// The number of bytes that wait.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether no bytes wait.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Queues bytes without a WebSocket frame: the answer to an opening handshake.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.buffer[self.end..][..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Queues a binary message made of two parts: the header and the payload of a tunnel frame.
    pub fn binary(&mut self, head: &[u8], payload: &[u8]) {
        self.frame(OpCode::Data(Data::Binary), head, payload);
    }

    /// Queues a ping with an empty payload.
    pub fn ping(&mut self) {
        self.frame(OpCode::Control(Control::Ping), &[], &[]);
    }

    /// Queues a pong with this payload.
    pub fn pong(&mut self, payload: &[u8]) {
        self.frame(OpCode::Control(Control::Pong), payload, &[]);
    }

    /// Queues a close frame. Without a code its payload is empty.
    pub fn close(&mut self, code: Option<u16>) {
        let code = code.map(u16::to_be_bytes);
        let payload = code.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        self.frame(OpCode::Control(Control::Close), payload, &[]);
    }

    /// Queues a close frame that gives a reason in words. Only its first 123 bytes are sent.
    pub fn close_saying(&mut self, code: u16, reason: &str) {
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = &reason.as_bytes()[..end];
        self.frame(OpCode::Control(Control::Close), &code.to_be_bytes(), reason);
    }

    fn frame(&mut self, opcode: OpCode, head: &[u8], payload: &[u8]) {
        // RFC 6455 requires unpredictable masks, so each WebSocket frame gets a new random one.
        let mask = (self.role == Role::Client).then(rand::random::<[u8; 4]>);
        let header = FrameHeader { opcode, mask, ..FrameHeader::default() };
        let length = head.len() + payload.len();
        self.make_room(MAX_FRAME_HEADER + length);
        let room = &mut self.buffer[self.end..];
        let mut cursor = Cursor::new(&mut *room);
        // This cannot fail: there is room.
        let _ = header.format(length as u64, &mut cursor);
        let first = cursor.position() as usize;
        let (head_room, payload_room) = room[first..][..length].split_at_mut(head.len());
        if let Some(mut mask) = mask {
            copy_masked(head, head_room, mask);
            mask.rotate_left(head.len() % 4);
            copy_masked(payload, payload_room, mask);
        } else {
            head_room.copy_from_slice(head);
            payload_room.copy_from_slice(payload);
        }
        self.end += first + length;
    }

    /// Makes room for `length` more bytes.
    fn make_room(&mut self, length: usize) {
        if self.buffer.len() - self.end >= length {
            return;
        }
        // Bytes already written must not accumulate at the front while a slow peer keeps the buffer
        // from becoming empty.
        if self.start * 2 > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let needed = self.end + length;
        if self.buffer.len() < needed {
            self.buffer.resize(needed.max(self.buffer.len() * 2), 0);
        }
    }

    /// Writes until no bytes wait (true) or the sink takes no more (false).
    ///
    /// # Errors
    /// The errors of the sink. `WriteZero` if it accepts no bytes without an error.
    pub fn flush(&mut self, sink: &mut impl Write) -> io::Result<bool> {
        self.flush_most(sink, usize::MAX).map(|flushed| flushed == Flushed::All)
    }

    /// Like [`flush`](Self::flush), but writes at most `most` bytes.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub fn flush_most(&mut self, sink: &mut impl Write, mut most: usize) -> io::Result<Flushed> {
        while self.start < self.end {
            let length = self.len().min(most);
            if length == 0 {
                sink.flush()?;
                return Ok(Flushed::Limited);
            }
            match sink.write(&self.buffer[self.start..][..length]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.start += written;
                    most -= written;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(e) => return Err(e),
            }
        }
        (self.start, self.end) = (0, 0);
        sink.flush()?;
        Ok(Flushed::All)
    }

    /// Offers the buffer to `take`, with the place of the bytes that wait, if that are not more than
    /// `most`. Returns whether it has taken them and left an empty buffer.
    pub(crate) fn hand_over(
        &mut self,
        most: usize,
        take: impl FnOnce(&mut Vec<u8>, Range<usize>) -> bool,
    ) -> bool {
        let is_taken = self.len() <= most && take(&mut self.buffer, self.start..self.end);
        if is_taken {
            (self.start, self.end) = (0, 0);
        }
        is_taken
    }

    /// The allocated size of the buffer, in bytes.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Frees the buffer if no bytes wait.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Sender::new(self.role);
        }
    }
}
