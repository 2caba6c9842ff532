//! The opening handshake (RFC 6455, 4) as bytes: requests, answers and their checks. Both ends read
//! HTTP heads with [`HeadReader`]. Nothing here waits.

pub mod client;
pub mod server;

use std::io::{self, Read};

use zeroize::Zeroizing;

pub use tungstenite::http::StatusCode;

/// Longest head of a request or an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Size of the first buffer, in bytes. Most heads fit.
const FIRST_HEAD: usize = 1024;
const TOO_LONG: &str = "the head is longer than 16 KiB";

/// Reads an HTTP head, with as many reads as necessary.
#[derive(Default)]
pub struct HeadReader {
    buffer: Zeroizing<Vec<u8>>,
    length: usize,
}

/// An HTTP head, and the bytes behind it.
pub struct Head {
    /// The head, with the empty line that ends it. It may hold a token, so it is wiped when it is
    /// dropped.
    pub head: Zeroizing<Vec<u8>>,
    /// The bytes that were received behind the head.
    pub rest: Vec<u8>,
}

impl HeadReader {
    /// A reader that begins with `rest`, the bytes received behind an interim answer.
    ///
    /// # Errors
    /// `InvalidData` if `rest` is longer than a head may be.
    pub fn after(rest: &[u8]) -> io::Result<Self> {
        let mut reader = HeadReader::default();
        while reader.buffer.len() < rest.len() {
            reader.grow()?;
        }
        reader.buffer[..rest.len()].copy_from_slice(rest);
        reader.length = rest.len();
        Ok(reader)
    }

    /// Doubles the buffer. The old one may hold a token and is wiped.
    fn grow(&mut self) -> io::Result<()> {
        if self.buffer.len() >= MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, TOO_LONG));
        }
        let size = (2 * self.buffer.len()).max(FIRST_HEAD);
        let mut buffer = Zeroizing::new(vec![0; size]);
        buffer[..self.length].copy_from_slice(&self.buffer[..self.length]);
        self.buffer = buffer;
        Ok(())
    }

    /// Reads until the head is complete. Keeps what it has read if the source would block; call it
    /// again then.
    ///
    /// # Errors
    /// The errors of the source, `WouldBlock` among them. `UnexpectedEof` if the source ends first.
    /// `InvalidData` if the head is longer than 16 KiB.
    pub fn read(&mut self, source: &mut impl Read) -> io::Result<Head> {
        let mut searched = 0;
        loop {
            let unsearched = &self.buffer[searched..self.length];
            if let Some(at) = unsearched.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                return Ok(self.split(searched + at + 4));
            }
            searched = self.length.saturating_sub(3);
            if self.length == self.buffer.len() {
                self.grow()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns its bytes in pieces of the given size.
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
