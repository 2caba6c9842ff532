//! A stream of bytes as WebSocket messages.

use std::io::{self, Read};

use aiot_tunnel_proto::frame::Frame;
use aiot_tunnel_proto::websocket::{Incoming, Receiver, Role};

/// Most bytes that the receive buffer may take here. Inputs are short, so it never grows far.
const MAX_BUFFER: usize = 160 * 1024;

/// However a stream is cut, the same messages come out of it. Its first byte says which role reads it,
/// and in pieces of which size it comes.
pub fn check(data: &[u8]) {
    let (first, stream) = data.split_first().unwrap_or((&0, &[]));
    let role = if first % 2 == 0 { Role::Client } else { Role::Server };
    let size = usize::from(*first / 2).max(1);
    let whole = messages(role, stream, usize::MAX);
    assert_eq!(messages(role, stream, size), whole, "in pieces of {size}");
}

/// Bytes that arrive in pieces.
struct Pieces<'a> {
    rest: &'a [u8],
    size: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.rest.len().min(self.size).min(buffer.len());
        if length == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        buffer[..length].copy_from_slice(&self.rest[..length]);
        self.rest = &self.rest[length..];
        Ok(length)
    }
}

fn messages(role: Role, stream: &[u8], size: usize) -> Vec<String> {
    let mut receiver = Receiver::new(role);
    let mut source = Pieces { rest: stream, size };
    let mut seen = Vec::new();
    while receiver.fill(&mut source).is_ok() {
        assert!(receiver.capacity() <= MAX_BUFFER, "{}", receiver.capacity());
        loop {
            match receiver.peek() {
                Ok(None) => break,
                // Where a message stands in the buffer depends on how it came.
                Ok(Some(Incoming::Binary { message, .. })) => seen.push(format!("{message:?}")),
                Ok(Some(Incoming::TooLong { head, length })) => {
                    assert!(Frame::parse_header(head).is_ok() || length > 0);
                    seen.push(format!("too long: {length}"));
                }
                Ok(Some(incoming)) => seen.push(format!("{incoming:?}")),
                Err(violation) => {
                    seen.push(format!("violation {}", violation.close_code()));
                    return seen;
                }
            }
            receiver.consume();
        }
    }
    seen
}
