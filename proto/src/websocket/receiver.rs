//! Converts received bytes to messages.

use std::io::{self, Cursor, Read};
use std::ops::Range;

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::FrameHeader;

use super::mask::apply_mask;
use super::{close, Role};
use crate::frame::{MAX_HEADER, MAX_MESSAGE};

/// Largest receive buffer of a client, in bytes. The buffer begins small and doubles while reads
/// fill it. The size matters because each turn writes a session's payloads in one write: with a
/// small buffer, ten busy sessions would make small writes (docs/performance.md).
const MAX_BUFFER: usize = 512 * 1024;
/// Largest receive buffer of a server, in bytes. It is smaller because a server has many
/// connections.
const MAX_SERVER_BUFFER: usize = 128 * 1024;
const FIRST_BUFFER: usize = 8 * 1024;
/// Longest message that is skipped, in bytes. A longer message fails the connection.
const MAX_SKIPPED: u64 = 64 * 1024 * 1024;
/// Longest payload of a control frame, in bytes (RFC 6455, 5.5).
const MAX_CONTROL: u64 = 125;

/// Why a connection must be failed.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// The header of a WebSocket frame cannot be read.
    #[error("WebSocket frame header: {0}")]
    Header(#[from] tungstenite::Error),
    /// Reserved bits are set.
    #[error("reserved bits are set")]
    ReservedBits,
    /// A WebSocket frame is masked and must not be, or is not masked and must be.
    #[error("the peer's frames must {}be masked", if *.0 == Role::Client { "not " } else { "" })]
    Masking(Role),
    /// A control frame is fragmented or too long.
    #[error("a control frame is fragmented or longer than 125 bytes")]
    Control,
    /// Fragments come in the wrong order.
    #[error("a continuation without a first fragment, or a new message inside a fragmented one")]
    Fragments,
    /// A message is too long even to be skipped. The number is its length in bytes.
    #[error("a message of {0} bytes is too long")]
    TooLong(u64),
}

impl Violation {
    /// The code of the close frame that reports the violation.
    pub fn close_code(&self) -> u16 {
        match self {
            Violation::TooLong(_) => close::TOO_BIG,
            _ => close::PROTOCOL_ERROR,
        }
    }
}

/// A message from the peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole binary message.
    Binary {
        /// The message.
        message: &'a [u8],
        /// The position of the message in the receive buffer. `None` if it came in fragments.
        at: Option<usize>,
    },
    /// A binary message longer than [`MAX_MESSAGE`]. Only its beginning is kept; the rest is
    /// skipped.
    TooLong {
        /// The beginning of the message. It is long enough to hold the header of a tunnel frame.
        head: &'a [u8],
        /// The length of the message, in bytes.
        length: u64,
    },
    /// A text message. Its text is dropped, because a tunnel does not use it.
    Text,
    /// A ping. The answer is a pong with the same payload.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// A close frame.
    Close {
        /// Its code, if there is one.
        code: Option<u16>,
        /// The bytes behind the code: a text for people.
        reason: &'a [u8],
    },
}

/// The kind of the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A binary or text message, or one that is too long.
    Message,
    /// A ping.
    Ping,
    /// A pong.
    Pong,
    /// A close frame.
    Close,
}

/// The WebSocket frame at the front of the buffer, not consumed yet.
struct Pending {
    header: FrameHeader,
    /// The position of its payload.
    payload: Range<usize>,
    /// The number of payload bytes that are not in the buffer and will be skipped.
    beyond: u64,
    /// What the frame means for its message.
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Whole,
    /// The message is in `Receiver::assembly`.
    Assembled,
    TooLong(u64),
    /// There is nothing to report. The frame was one fragment of a message.
    Nothing,
}

/// A message that comes in fragments.
#[derive(Default)]
struct Assembly {
    opcode: Option<Data>,
    bytes: Vec<u8>,
    length: u64,
}

/// Converts received bytes to messages. `peek` returns the next message until it is consumed.
pub struct Receiver {
    role: Role,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    pending: Option<Pending>,
    /// The number of bytes to skip when they arrive.
    skip: u64,
    assembly: Assembly,
    /// The buffer size that the next message needs.
    needed: usize,
}

impl Receiver {
    /// A receiver for an end with this role.
    pub fn new(role: Role) -> Self {
        Receiver {
            role,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            pending: None,
            skip: 0,
            assembly: Assembly::default(),
            needed: FIRST_BUFFER,
        }
    }

    /// Adds bytes that were received behind the opening handshake.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.needed = self.needed.max(bytes.len());
        self.make_room();
        self.buffer[self.end..][..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Reads once from the source. Moves the unread bytes to the front, so older positions become
    /// invalid.
    pub fn fill(&mut self, source: &mut impl Read) -> io::Result<usize> {
        self.make_room();
        let room = &mut self.buffer[self.end..];
        let length = source.read(room)?;
        if length == room.len() {
            let most = match self.role {
                Role::Client => MAX_BUFFER,
                Role::Server => MAX_SERVER_BUFFER,
            };
            self.needed = (self.buffer.len() * 2).clamp(self.needed, most.max(self.needed));
        }
        self.end += length;
        Ok(length)
    }

    /// Instead of a read: offers the buffer, if it is empty, to `give`, which may exchange it for one
    /// with bytes. Returns how many. Older positions become invalid.
    pub(crate) fn exchange(
        &mut self,
        give: impl FnOnce(&mut Vec<u8>) -> Option<Range<usize>>,
    ) -> Option<usize> {
        if self.start != self.end || self.pending.is_some() {
            return None;
        }
        let at = give(&mut self.buffer)?;
        (self.start, self.end) = (at.start, at.end);
        Some(at.len())
    }

    /// Whether [`fill`](Self::fill) has no room unless the buffer grows.
    pub fn is_full(&self) -> bool {
        self.start == 0 && self.end == self.buffer.len() && self.end >= self.needed
    }

    /// Frees the buffer if it is empty.
    pub fn shrink(&mut self) {
        if self.start == self.end && self.pending.is_none() {
            self.buffer = Vec::new();
            (self.start, self.end, self.needed) = (0, 0, FIRST_BUFFER);
        }
        if self.assembly.opcode.is_none() {
            self.assembly.bytes = Vec::new();
        }
    }

    /// The bytes at a position that `peek` gave. Positions are valid until the next `fill`.
    pub fn bytes(&self, at: Range<usize>) -> &[u8] {
        &self.buffer[at]
    }

    /// The allocated size of the buffer, in bytes.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            if let Some(pending) = &mut self.pending {
                pending.payload.start -= self.start;
                pending.payload.end -= self.start;
            }
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < self.needed {
            self.buffer.resize(self.needed, 0);
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.end + FIRST_BUFFER, 0);
        }
    }

    /// The next message, if it is complete. Returns the same message until
    /// [`consume`](Self::consume).
    ///
    /// # Errors
    /// A [`Violation`] for which the connection must be failed.
    pub fn peek(&mut self) -> Result<Option<Incoming<'_>>, Violation> {
        Ok(self.advance()?.and_then(|_| self.current()))
    }

    /// Finds the next message and returns its kind, if it is complete. Then
    /// [`current`](Self::current) returns the message.
    ///
    /// # Errors
    /// A [`Violation`] for which the connection must be failed.
    pub fn advance(&mut self) -> Result<Option<Kind>, Violation> {
        loop {
            match &self.pending {
                Some(pending) if pending.what != What::Nothing => {
                    return Ok(Some(match pending.header.opcode {
                        OpCode::Data(_) => Kind::Message,
                        OpCode::Control(Control::Ping) => Kind::Ping,
                        OpCode::Control(Control::Close) => Kind::Close,
                        OpCode::Control(_) => Kind::Pong,
                    }));
                }
                Some(_) => self.consume(),
                None => {}
            }
            self.skip_uninteresting();
            if self.skip > 0 || !self.read_frame()? {
                return Ok(None);
            }
        }
    }

    /// The message that [`advance`](Self::advance) found.
    pub fn current(&self) -> Option<Incoming<'_>> {
        let pending = self.pending.as_ref()?;
        let payload = &self.buffer[pending.payload.clone()];
        Some(match (pending.header.opcode, pending.what) {
            (OpCode::Control(Control::Ping), _) => Incoming::Ping(payload),
            (OpCode::Control(Control::Close), _) => match payload.split_first_chunk() {
                Some((code, reason)) => {
                    Incoming::Close { code: Some(u16::from_be_bytes(*code)), reason }
                }
                None => Incoming::Close { code: None, reason: &[] },
            },
            (OpCode::Control(_), _) => Incoming::Pong,
            (OpCode::Data(_), What::TooLong(length)) => {
                let head =
                    if self.assembly.bytes.is_empty() { payload } else { &self.assembly.bytes };
                Incoming::TooLong { head, length }
            }
            (OpCode::Data(Data::Text), What::Whole) => Incoming::Text,
            (OpCode::Data(_), What::Whole) => {
                Incoming::Binary { message: payload, at: Some(pending.payload.start) }
            }
            (OpCode::Data(_), _) if self.assembly.opcode == Some(Data::Text) => Incoming::Text,
            (OpCode::Data(_), _) => Incoming::Binary { message: &self.assembly.bytes, at: None },
        })
    }

    /// Drops the message that `peek` returned.
    pub fn consume(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        self.start = pending.payload.end;
        self.skip = pending.beyond;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if pending.what == What::Assembled || matches!(pending.what, What::TooLong(_)) {
            let fragmented = self.assembly.opcode.is_some();
            if fragmented && pending.header.is_final {
                self.assembly.opcode = None;
                self.assembly.bytes.clear();
            }
        }
    }

    fn skip_uninteresting(&mut self) {
        let here = self.skip.min((self.end - self.start) as u64);
        self.start += here as usize;
        self.skip -= here;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads the WebSocket frame at the front of the buffer into `pending`. Returns false if it is
    /// incomplete.
    fn read_frame(&mut self) -> Result<bool, Violation> {
        let unread = &self.buffer[self.start..self.end];
        let mut cursor = Cursor::new(unread);
        let Some((header, length)) = FrameHeader::parse(&mut cursor)? else {
            return Ok(false);
        };
        let header_length = cursor.position() as usize;
        self.check(&header, length)?;

        let first = self.start + header_length;
        let here = self.end - first;
        let is_data = matches!(header.opcode, OpCode::Data(_));
        let total = if is_data { self.assembly.length_with(&header, length) } else { length };
        if total > MAX_SKIPPED {
            return Err(Violation::TooLong(total));
        }
        let too_long = is_data && total > MAX_MESSAGE as u64;
        // If a message is too long, only the bytes that may hold its tunnel frame header are
        // awaited.
        let awaited = if too_long { length.min(2 + MAX_HEADER as u64) } else { length } as usize;
        if here < awaited {
            self.needed = self.needed.max(header_length + awaited);
            return Ok(false);
        }

        let payload = first..first + awaited;
        if let Some(mask) = header.mask {
            apply_mask(&mut self.buffer[payload.clone()], mask);
        }
        let what =
            if is_data { self.assemble(&header, payload.clone(), total) } else { What::Whole };
        let beyond = length - awaited as u64;
        self.pending = Some(Pending { header, payload, beyond, what });
        Ok(true)
    }

    fn check(&self, header: &FrameHeader, length: u64) -> Result<(), Violation> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Violation::ReservedBits);
        }
        if header.mask.is_some() != (self.role == Role::Server) {
            return Err(Violation::Masking(self.role));
        }
        match header.opcode {
            OpCode::Control(_) if !header.is_final || length > MAX_CONTROL => {
                Err(Violation::Control)
            }
            OpCode::Data(data) => {
                let continues = data == Data::Continue;
                if continues != self.assembly.opcode.is_some() {
                    return Err(Violation::Fragments);
                }
                Ok(())
            }
            OpCode::Control(_) => Ok(()),
        }
    }

    /// Adds a data frame to its message.
    fn assemble(&mut self, header: &FrameHeader, payload: Range<usize>, total: u64) -> What {
        let OpCode::Data(data) = header.opcode else { return What::Whole };
        if data != Data::Continue {
            if header.is_final {
                let too_long = total > MAX_MESSAGE as u64;
                return if too_long { What::TooLong(total) } else { What::Whole };
            }
            self.assembly.opcode = Some(data);
            self.assembly.bytes.clear();
        }
        self.assembly.length = total;
        let room = MAX_MESSAGE.saturating_sub(self.assembly.bytes.len());
        let bytes = &self.buffer[payload];
        self.assembly.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        match (header.is_final, total > MAX_MESSAGE as u64) {
            (false, _) => What::Nothing,
            (true, false) => What::Assembled,
            (true, true) => What::TooLong(total),
        }
    }
}

impl Assembly {
    /// The length of the message including one more data frame.
    fn length_with(&self, header: &FrameHeader, length: u64) -> u64 {
        let continues = header.opcode == OpCode::Data(Data::Continue);
        let before = if continues { self.length } else { 0 };
        before.saturating_add(length)
    }
}
