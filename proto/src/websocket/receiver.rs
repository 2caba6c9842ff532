//! From bytes to messages.

use std::io::{self, Cursor, Read};
use std::ops::Range;

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::FrameHeader;

use super::mask::apply_mask;
use super::{close, Role};
use crate::frame::{MAX_HEADER, MAX_MESSAGE};

/// The receive buffer while data flows. It begins small and doubles as reads fill it. What a turn
/// finds for one session goes to its service in one write, so that ten busy sessions make small
/// writes of a small buffer (docs/performance.md).
const MAX_BUFFER: usize = 512 * 1024;
/// A server has many peers.
const MAX_SERVER_BUFFER: usize = 128 * 1024;
const FIRST_BUFFER: usize = 8 * 1024;
/// A message this long is skipped; a longer one fails the connection.
const MAX_SKIPPED: u64 = 64 * 1024 * 1024;
/// Longest control payload (RFC 6455, 5.5).
const MAX_CONTROL: u64 = 125;

/// Why the connection must be failed.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// A WebSocket frame header that cannot be read.
    #[error("frame header: {0}")]
    Header(#[from] tungstenite::Error),
    /// Reserved bits are set.
    #[error("reserved bits are set")]
    ReservedBits,
    /// A mask where none may be, or none where one must be.
    #[error("the peer's frames must {}be masked", if *.0 == Role::Client { "not " } else { "" })]
    Masking(Role),
    /// A control frame that is fragmented or too long.
    #[error("a control frame is fragmented or longer than 125 bytes")]
    Control,
    /// Fragments in the wrong order.
    #[error("a continuation without a beginning, or a beginning within a message")]
    Fragments,
    /// A message that is too long even to be skipped, with its length in bytes.
    #[error("a message of {0} bytes")]
    TooLong(u64),
}

impl Violation {
    /// The close code that says so.
    pub fn close_code(&self) -> u16 {
        match self {
            Violation::TooLong(_) => close::TOO_BIG,
            _ => close::PROTOCOL_ERROR,
        }
    }
}

/// What the peer sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole binary message. `at` tells where it stands in the receive buffer, unless it came
    /// in fragments.
    Binary {
        /// The whole message.
        message: &'a [u8],
        /// Where it stands in the receive buffer, unless it came in fragments.
        at: Option<usize>,
    },
    /// The beginning of a binary message longer than [`MAX_MESSAGE`]; the rest is skipped.
    TooLong {
        /// Its beginning, long enough for the header of a frame.
        head: &'a [u8],
        /// Its length, in bytes.
        length: u64,
    },
    /// A text message; its text does not matter to a tunnel.
    Text,
    /// A ping, which asks for a pong with the same payload.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// A close frame, with its code if it has one.
    Close(Option<u16>),
}

/// What kind of message comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Binary, text, or too long.
    Message,
    /// A ping.
    Ping,
    /// A pong.
    Pong,
    /// A close frame.
    Close,
}

/// The unread frame at the beginning of the buffer.
struct Pending {
    header: FrameHeader,
    /// Where its payload stands.
    payload: Range<usize>,
    /// Payload bytes that are not in the buffer and will be skipped.
    beyond: u64,
    /// Whether it is the unfragmented message, or the part of one that completes it.
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Whole,
    /// The message stands in `Receiver::assembled`.
    Assembled,
    TooLong(u64),
    /// Nothing to report: a fragment that was put aside.
    Nothing,
}

/// A message that comes in fragments.
#[derive(Default)]
struct Assembly {
    opcode: Option<Data>,
    bytes: Vec<u8>,
    length: u64,
}

/// Turns received bytes into messages. `peek` shows the next message until it is consumed.
pub struct Receiver {
    role: Role,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    pending: Option<Pending>,
    /// Bytes that are still to come and of no interest.
    skip: u64,
    assembly: Assembly,
    /// Room that the message at hand needs, if the buffer is too small for it.
    needed: usize,
}

impl Receiver {
    /// A receiver of this end.
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

    /// Takes bytes that came with the opening handshake.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.needed = self.needed.max(bytes.len());
        self.make_room();
        self.buffer[self.end..][..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// One read. Moves what is unread to the front, so positions from before are void.
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

    /// Whether [`fill`](Self::fill) can take more without growing.
    pub fn is_full(&self) -> bool {
        self.start == 0 && self.end == self.buffer.len() && self.end >= self.needed
    }

    /// Gives the buffer back when nothing waits in it.
    pub fn shrink(&mut self) {
        if self.start == self.end && self.pending.is_none() {
            self.buffer = Vec::new();
            (self.start, self.end, self.needed) = (0, 0, FIRST_BUFFER);
        }
        if self.assembly.opcode.is_none() {
            self.assembly.bytes = Vec::new();
        }
    }

    /// The bytes at a position that `peek` gave since the last fill.
    pub fn bytes(&self, at: Range<usize>) -> &[u8] {
        &self.buffer[at]
    }

    /// Bytes that the buffer takes.
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

    /// The next message, if it is complete; the same one until [`consume`](Self::consume).
    pub fn peek(&mut self) -> Result<Option<Incoming<'_>>, Violation> {
        Ok(self.advance()?.and_then(|_| self.current()))
    }

    /// Finds the next message: its kind, if it is complete. [`current`](Self::current) is the
    /// message.
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
            (OpCode::Control(Control::Close), _) => {
                Incoming::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code)))
            }
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

    /// Drops the message that `peek` showed.
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

    /// Reads the frame at the front of the buffer into `pending`; false when it is incomplete.
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
        // Of a message that is too long, as much is awaited as may be its header.
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

    /// Adds a data frame to the message it belongs to.
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
    /// The length of the message so far, with one more data frame.
    fn length_with(&self, header: &FrameHeader, length: u64) -> u64 {
        let continues = header.opcode == OpCode::Data(Data::Continue);
        let before = if continues { self.length } else { 0 };
        before.saturating_add(length)
    }
}
