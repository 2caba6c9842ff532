//! WebSocket messages (RFC 6455) to bytes and back, without I/O and without a copy to spare.
//!
//! tungstenite reads and writes the frame headers. Its own message layer is not used: it turns
//! the close code 401 into 1002, fails the connection where one message is too long or its text
//! is not UTF-8, copies each payload, and logs handshakes, the token included.

use std::io::{self, Cursor, Read, Write};
use std::ops::Range;

use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::FrameHeader;

use crate::cloud::frame::{MAX_HEADER, MAX_MESSAGE};

/// The receive buffer while data flows. It begins small and doubles as reads fill it. What a turn
/// finds for one session goes to its service in one write, so that ten busy sessions make small
/// writes of a small buffer (docs/performance.md).
const MAX_BUFFER: usize = 512 * 1024;
/// A server has many peers.
const MAX_SERVER_BUFFER: usize = 128 * 1024;
const FIRST_BUFFER: usize = 8 * 1024;
/// A message this long is skipped; a longer one fails the connection.
const MAX_SKIPPED: u64 = 64 * 1024 * 1024;
/// Longest header of a frame (RFC 6455, 5.2).
const MAX_FRAME_HEADER: usize = 14;
/// Longest control payload (RFC 6455, 5.5).
const MAX_CONTROL: u64 = 125;

/// Which end this is: a client masks what it sends, a server what it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    #[cfg_attr(not(feature = "gateway"), allow(dead_code))]
    Server,
}

/// Why the connection must be failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    #[error("frame header: {0}")]
    Header(#[from] tungstenite::Error),
    #[error("reserved bits are set")]
    ReservedBits,
    #[error("the peer's frames must {}be masked", if *.0 == Role::Client { "not " } else { "" })]
    Masking(Role),
    #[error("a control frame is fragmented or longer than 125 bytes")]
    Control,
    #[error("a continuation without a beginning, or a beginning within a message")]
    Fragments,
    #[error("a message of {0} bytes")]
    TooLong(u64),
}

impl Violation {
    /// The close code that says so.
    pub(crate) fn close_code(&self) -> u16 {
        match self {
            Violation::TooLong(_) => 1009,
            _ => 1002,
        }
    }
}

/// What the peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming<'a> {
    /// A whole binary message. `at` tells where it stands in the receive buffer, unless it came
    /// in fragments.
    Binary {
        message: &'a [u8],
        at: Option<usize>,
    },
    /// The beginning of a binary message longer than [`MAX_MESSAGE`]; the rest is skipped.
    TooLong {
        head: &'a [u8],
        length: u64,
    },
    /// A text message; its text does not matter to a tunnel.
    Text,
    Ping(&'a [u8]),
    Pong,
    /// A close frame, with its code if it has one.
    Close(Option<u16>),
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
pub(crate) struct Receiver {
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
    pub(crate) fn new(role: Role) -> Self {
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
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.needed = self.needed.max(bytes.len());
        self.make_room();
        self.buffer[self.end..][..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// One read. Moves what is unread to the front, so positions from before are void.
    pub(crate) fn fill(&mut self, source: &mut impl Read) -> io::Result<usize> {
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
    pub(crate) fn is_full(&self) -> bool {
        self.start == 0 && self.end == self.buffer.len() && self.end >= self.needed
    }

    /// Gives the buffer back when nothing waits in it.
    pub(crate) fn shrink(&mut self) {
        if self.start == self.end && self.pending.is_none() {
            self.buffer = Vec::new();
            (self.start, self.end, self.needed) = (0, 0, FIRST_BUFFER);
        }
        if self.assembly.opcode.is_none() {
            self.assembly.bytes = Vec::new();
        }
    }

    /// The bytes at a position that `peek` gave since the last fill.
    pub(crate) fn bytes(&self, at: Range<usize>) -> &[u8] {
        &self.buffer[at]
    }

    /// Bytes that the buffer takes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn capacity(&self) -> usize {
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
    pub(crate) fn peek(&mut self) -> Result<Option<Incoming<'_>>, Violation> {
        loop {
            match &self.pending {
                Some(pending) if pending.what != What::Nothing => break,
                Some(_) => self.consume(),
                None => {}
            }
            self.skip_uninteresting();
            if self.skip > 0 || !self.read_frame()? {
                return Ok(None);
            }
        }
        let Some(pending) = &self.pending else { return Ok(None) };
        let payload = &self.buffer[pending.payload.clone()];
        Ok(Some(match (pending.header.opcode, pending.what) {
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
        }))
    }

    /// Drops the message that `peek` showed.
    pub(crate) fn consume(&mut self) {
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

/// Turns messages into bytes that wait to be written.
pub(crate) struct Sender {
    role: Role,
    buffer: Vec<u8>,
    /// What waits is `start..end`.
    start: usize,
    end: usize,
}

impl Sender {
    pub(crate) fn new(role: Role) -> Self {
        Sender { role, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Queues a binary message made of two parts.
    pub(crate) fn binary(&mut self, head: &[u8], payload: &[u8]) {
        self.frame(OpCode::Data(Data::Binary), head, payload);
    }

    pub(crate) fn ping(&mut self) {
        self.frame(OpCode::Control(Control::Ping), &[], &[]);
    }

    pub(crate) fn pong(&mut self, payload: &[u8]) {
        self.frame(OpCode::Control(Control::Pong), payload, &[]);
    }

    /// Queues a close frame; without a code it has no payload.
    pub(crate) fn close(&mut self, code: Option<u16>) {
        let code = code.map(u16::to_be_bytes);
        let payload = code.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        self.frame(OpCode::Control(Control::Close), payload, &[]);
    }

    fn frame(&mut self, opcode: OpCode, head: &[u8], payload: &[u8]) {
        // RFC 6455 asks for masks that the sender's data cannot predict: a new random one each.
        let mask = (self.role == Role::Client).then(rand::random::<[u8; 4]>);
        let header = FrameHeader { opcode, mask, ..FrameHeader::default() };
        let length = head.len() + payload.len();
        self.make_room(MAX_FRAME_HEADER + length);
        let room = &mut self.buffer[self.end..];
        let mut cursor = Cursor::new(&mut *room);
        // There is room.
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

    /// Makes room for so many more bytes.
    fn make_room(&mut self, length: usize) {
        if self.buffer.len() - self.end >= length {
            return;
        }
        // Written bytes at the front must not pile up behind a slow peer.
        if self.start * 2 > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let needed = self.end + length;
        if self.buffer.len() < needed {
            self.buffer.resize(needed.max(self.buffer.len() * 2), 0);
        }
    }

    /// Writes until nothing waits (true) or the sink takes no more (false).
    pub(crate) fn flush(&mut self, sink: &mut impl Write) -> io::Result<bool> {
        while self.start < self.end {
            match sink.write(&self.buffer[self.start..self.end]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.start += written,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        (self.start, self.end) = (0, 0);
        sink.flush()?;
        Ok(true)
    }

    /// Bytes that the buffer takes.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Gives the buffer back when nothing waits in it.
    pub(crate) fn shrink(&mut self) {
        if self.is_empty() {
            *self = Sender::new(self.role);
        }
    }
}

/// XOR with the mask, eight bytes a step.
fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let wide = widened(mask);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// As [`apply_mask`], from one place to another of the same length.
fn copy_masked(from: &[u8], to: &mut [u8], mask: [u8; 4]) {
    let wide = widened(mask);
    let whole = from.len() / 8 * 8;
    let (words, rest) = from.split_at(whole);
    let (word_targets, rest_targets) = to.split_at_mut(whole);
    for (source, target) in words.chunks_exact(8).zip(word_targets.chunks_exact_mut(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(source);
        target.copy_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
    }
    for ((source, target), key) in rest.iter().zip(rest_targets).zip(mask.iter().cycle()) {
        *target = source ^ key;
    }
}

fn widened([a, b, c, d]: [u8; 4]) -> u64 {
    u64::from_ne_bytes([a, b, c, d, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tungstenite::protocol::{frame::Frame, Role as PeerRole, WebSocketConfig};
    use tungstenite::{Message, WebSocket};

    /// Bytes that arrive as given and can be written to.
    struct Wire(Cursor<Vec<u8>>);
    impl Read for Wire {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                length => Ok(length),
            }
        }
    }
    impl Write for Wire {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a server's frames look like on the wire.
    fn wire(frames: &[(OpCode, &[u8], bool)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (opcode, payload, is_final) in frames {
            let header = FrameHeader { opcode: *opcode, is_final: *is_final, ..Default::default() };
            Frame::from_payload(header, payload.to_vec().into()).format(&mut bytes).unwrap();
        }
        bytes
    }

    /// Everything that a client makes of bytes that arrive `step` at a time.
    fn read(bytes: &[u8], step: usize) -> Result<Vec<String>, Violation> {
        let mut receiver = Receiver::new(Role::Client);
        let mut seen = Vec::new();
        for chunk in bytes.chunks(step) {
            let mut chunk = Cursor::new(chunk);
            while chunk.position() < chunk.get_ref().len() as u64 {
                receiver.fill(&mut chunk).unwrap();
                while let Some(incoming) = receiver.peek()? {
                    seen.push(match incoming {
                        Incoming::Binary { message, .. } => {
                            format!("binary {}", String::from_utf8_lossy(message))
                        }
                        Incoming::TooLong { length, .. } => format!("too long {length}"),
                        other => format!("{other:?}"),
                    });
                    receiver.consume();
                }
            }
        }
        Ok(seen)
    }

    const BINARY: OpCode = OpCode::Data(Data::Binary);
    const CONTINUE: OpCode = OpCode::Data(Data::Continue);
    const PING: OpCode = OpCode::Control(Control::Ping);
    const CLOSE: OpCode = OpCode::Control(Control::Close);

    #[test]
    fn fragments_join_and_control_frames_may_stand_between_them() {
        let bytes = wire(&[
            (BINARY, b"one", true),
            (BINARY, b"a", false),
            (PING, b"p", true),
            (CONTINUE, b"b", false),
            (CONTINUE, b"c", true),
            (OpCode::Data(Data::Text), b"\xff", true),
            (CLOSE, &401u16.to_be_bytes(), true),
        ]);
        for step in [1, 2, 7, 1000] {
            assert_eq!(
                read(&bytes, step).unwrap(),
                ["binary one", "Ping([112])", "binary abc", "Text", "Close(Some(401))"]
            );
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_skipped_whole_or_in_fragments() {
        let long = vec![0; 1 << 20];
        let half = vec![0; MAX_MESSAGE / 2 + 1];
        let bytes = wire(&[
            (BINARY, &long, true),
            (BINARY, b"after", true),
            (BINARY, &half, false),
            (CONTINUE, &half, false),
            (CONTINUE, b"end", true),
            (BINARY, b"last", true),
        ]);
        for step in [1000, 65_536] {
            let length = 2 * half.len() + 3;
            assert_eq!(
                read(&bytes, step).unwrap(),
                ["too long 1048576", "binary after", &format!("too long {length}"), "binary last"]
            );
        }
    }

    #[test]
    fn violations_fail_the_connection() {
        let huge = [&[0x82, 127][..], &(1u64 << 62).to_be_bytes()].concat();
        assert_eq!(read(&huge, 100).unwrap_err().close_code(), 1009);
        let masked = [0x82, 0x81, 1, 2, 3, 4, 5];
        let reserved_bit = [0xC2, 0];
        let reserved_opcode = [0x83, 0];
        let lone_continuation = [0x80, 0];
        let long_ping = [&[0x89, 126, 0, 126][..], &[0; 126]].concat();
        let cases: [&[u8]; 5] =
            [&masked, &reserved_bit, &reserved_opcode, &lone_continuation, &long_ping];
        for bytes in cases {
            assert_eq!(read(bytes, 100).unwrap_err().close_code(), 1002, "{bytes:?}");
        }
    }

    #[test]
    fn a_full_buffer_makes_room_for_one_whole_message() {
        let payload = vec![7; MAX_MESSAGE];
        let bytes = wire(&[(BINARY, &payload, true)]);
        assert_eq!(read(&bytes, 1000).unwrap().len(), 1);
    }

    #[test]
    fn the_sink_is_told_when_nothing_more_follows() {
        /// Takes so many bytes, and counts how often it is flushed.
        struct Sink(usize, usize);
        impl Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let taken = bytes.len().min(self.0);
                self.0 -= taken;
                (taken > 0).then_some(taken).ok_or(io::ErrorKind::WouldBlock.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                self.1 += 1;
                Ok(())
            }
        }
        let mut sender = Sender::new(Role::Server);
        sender.binary(&[1; 100], &[2; 100]);
        let mut sink = Sink(50, 0);
        assert!(!sender.flush(&mut sink).unwrap());
        assert_eq!(sink.1, 0);
        sink.0 = 1000;
        assert!(sender.flush(&mut sink).unwrap());
        assert_eq!(sink.1, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..500), step in 1usize..50) {
            let _ = read(&bytes, step);
        }

        #[test]
        fn tungstenite_reads_what_the_sender_writes(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..70_000), 1..4),
        ) {
            let mut sender = Sender::new(Role::Client);
            for message in &messages {
                let (head, payload) = message.split_at(message.len() / 3);
                sender.binary(head, payload);
            }
            let mut bytes = Vec::new();
            prop_assert!(sender.flush(&mut bytes).unwrap());
            let config = WebSocketConfig::default();
            let wire = Wire(Cursor::new(bytes));
            let mut peer = WebSocket::from_raw_socket(wire, PeerRole::Server, Some(config));
            for message in messages {
                prop_assert_eq!(peer.read().unwrap(), Message::binary(message));
            }
        }
    }
}
