//! The opening handshake (RFC 6455, 4): requests, answers and their checks, as bytes. Both ends read
//! heads with [`HeadReader`]; neither waits here.

pub mod client;
pub mod server;

use std::io::{self, Read};

use zeroize::Zeroizing;

pub use tungstenite::http::StatusCode;

/// Longest head of a request or of an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Reads up to the end of an HTTP head, in as many reads as it takes.
pub struct HeadReader {
    /// Never grows, since growing would leave copies of a token behind.
    buffer: Zeroizing<Vec<u8>>,
    length: usize,
}

/// An HTTP head, and the bytes that came after it.
pub struct Head {
    /// May hold a token.
    pub head: Zeroizing<Vec<u8>>,
    /// What came after the head.
    pub rest: Vec<u8>,
}

impl Default for HeadReader {
    fn default() -> Self {
        HeadReader { buffer: Zeroizing::new(vec![0; MAX_HEAD]), length: 0 }
    }
}

impl HeadReader {
    /// A reader that begins with bytes that came after an interim answer.
    ///
    /// # Errors
    /// `InvalidData` for more bytes than a head may have.
    pub fn after(rest: &[u8]) -> io::Result<Self> {
        let mut reader = HeadReader::default();
        let Some(room) = reader.buffer.get_mut(..rest.len()) else { return Err(too_long()) };
        room.copy_from_slice(rest);
        reader.length = rest.len();
        Ok(reader)
    }

    /// Reads until the head is complete or the source has nothing more for now (`WouldBlock`).
    ///
    /// # Errors
    /// Those of the source; `UnexpectedEof` when it ends first; `InvalidData` for a head that is
    /// longer than 16 KiB.
    pub fn read(&mut self, source: &mut impl Read) -> io::Result<Head> {
        let mut searched = 0;
        loop {
            let unsearched = &self.buffer[searched..self.length];
            if let Some(at) = unsearched.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                return Ok(self.split(searched + at + 4));
            }
            searched = self.length.saturating_sub(3);
            if self.length == self.buffer.len() {
                return Err(too_long());
            }
            match source.read(&mut self.buffer[self.length..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.length += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn split(&mut self, end: usize) -> Head {
        let rest = self.buffer[end..self.length].to_vec();
        let mut head = std::mem::take(&mut *self).buffer;
        head.truncate(end);
        Head { head, rest }
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the head is longer than 16 KiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of so many.
    struct Pieces<'a>(&'a [u8], usize);
    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(self.0.len()).min(buffer.len());
            let (now, later) = self.0.split_at(length);
            buffer[..length].copy_from_slice(now);
            self.0 = later;
            if length == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(length)
        }
    }

    #[test]
    fn a_head_is_found_however_its_bytes_arrive() {
        let bytes = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 101 Ok\r\n\r\n\x82\x00";
        for size in [1, 2, 3, 5, 100] {
            let mut source = Pieces(bytes, size);
            let first = HeadReader::default().read(&mut source).unwrap();
            let handshake = client::ClientHandshake::default();
            assert_eq!(handshake.check(&first.head), Ok(client::Answer::Interim));
            let second = HeadReader::after(&first.rest).unwrap().read(&mut source).unwrap();
            assert_eq!(&second.head[..], b"HTTP/1.1 101 Ok\r\n\r\n");
            assert!(handshake.check(&second.head).is_err());
        }
        let endless = vec![b'x'; MAX_HEAD + 1];
        let error = HeadReader::default().read(&mut Pieces(&endless, 1000)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
