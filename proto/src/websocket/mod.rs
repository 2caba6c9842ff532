//! Converts WebSocket messages (RFC 6455) to bytes and back, with as few copies as possible.
//!
//! tungstenite reads and writes the headers of WebSocket frames. This module does not use its
//! message layer, which has four faults for a tunnel: it turns the close code 401 into 1002; it
//! fails the connection if a message is too long or a text is not UTF-8; it copies each payload;
//! and it logs handshakes with their tokens.

pub mod close;
mod mask;

mod receiver;
mod sender;

pub use receiver::{Incoming, Kind, Receiver, Violation};
pub use sender::{Flushed, Sender};

/// The role of this end. A client masks its WebSocket frames, a server does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Masks what it sends; receives unmasked WebSocket frames.
    Client,
    /// Does not mask what it sends; receives masked WebSocket frames.
    Server,
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor, Read, Write};

    use super::*;
    use crate::frame::MAX_MESSAGE;
    use proptest::prelude::*;
    use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::{frame::Frame, Role as PeerRole, WebSocketConfig};
    use tungstenite::{Message, WebSocket};

    /// A stream that returns the given bytes and ignores what is written to it.
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

    /// The bytes of a server's WebSocket frames.
    fn wire(frames: &[(OpCode, &[u8], bool)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (opcode, payload, is_final) in frames {
            let header = FrameHeader { opcode: *opcode, is_final: *is_final, ..Default::default() };
            Frame::from_payload(header, payload.to_vec().into()).format(&mut bytes).unwrap();
        }
        bytes
    }

    /// Everything that a client receives if the bytes arrive `step` at a time.
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
                [
                    "binary one",
                    "Ping([112])",
                    "binary abc",
                    "Text",
                    "Close { code: Some(401), reason: [] }"
                ]
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
        /// Takes a limited number of bytes, and counts the flushes.
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
