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
/// The start of every answer.
const ANSWER: &[u8] = b"HTTP/";
/// The first byte of a TLS record that holds an alert or a handshake message.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// The header in which our gateway says why it refuses a client that has the right token.
const REFUSAL_HEADER: &str = "tunnel-refusal";
/// Its value when the tunnel has expired.
const EXPIRED: &str = "expired";

/// Texts of the errors of a [`HeadReader`].
pub mod fault {
    /// The head is too long.
    pub const TOO_LONG: &str = "the head is longer than 16 KiB";
    /// The first bytes are not those of an HTTP answer.
    pub const NOT_HTTP: &str = "the server's answer is not HTTP";
    /// The first bytes are those of a TLS record.
    pub const TLS: &str = "the server's answer is TLS";
}

/// Reads an HTTP head, with as many reads as necessary.
#[derive(Default)]
pub struct HeadReader {
    buffer: Zeroizing<Vec<u8>>,
    length: usize,
    /// What the head must start with.
    start: &'static [u8],
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
    /// A reader for the head of an answer. It refuses anything else as soon as the first bytes
    /// differ: such a server may wait for the client to speak, and then no end would come.
    pub fn for_answer() -> Self {
        HeadReader { start: ANSWER, ..HeadReader::default() }
    }

    /// A reader for an answer that begins with `rest`, the bytes received behind an interim answer.
    ///
    /// # Errors
    /// `InvalidData` if `rest` is longer than a head may be.
    pub fn after(rest: &[u8]) -> io::Result<Self> {
        let mut reader = HeadReader::for_answer();
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
            return Err(io::Error::new(io::ErrorKind::InvalidData, fault::TOO_LONG));
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
    /// `InvalidData` if the head is longer than 16 KiB, or if it is to be that of an answer and
    /// cannot be one.
    pub fn read(&mut self, source: &mut impl Read) -> io::Result<Head> {
        let mut searched = 0;
        loop {
            self.check_start()?;
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

    fn check_start(&self) -> io::Result<()> {
        let known = self.start.len().min(self.length);
        if self.buffer[..known] == self.start[..known] {
            return Ok(());
        }
        let is_tls = self.buffer.first().is_some_and(|byte| TLS_RECORDS.contains(byte));
        let text = if is_tls { fault::TLS } else { fault::NOT_HTTP };
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
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
    fn an_expired_tunnel_is_told_from_a_wrong_token_by_our_header_only() {
        let check = |head: &[u8]| client::ClientHandshake::default().check(head);
        assert_eq!(check(&server::expired()), Err(client::Refusal::Expired));
        let head = "HTTP/1.1 401 Unauthorized\r\n";
        for more in ["", "tunnel-refusal: x\r\n", "refusal: expired\r\n"] {
            let head = format!("{head}{more}\r\n");
            assert_eq!(check(head.as_bytes()), Err(client::Refusal::Unauthorized), "{more}");
        }
        let head = server::refusal(StatusCode::UNAUTHORIZED);
        assert_eq!(check(&head), Err(client::Refusal::Unauthorized));
    }

    #[test]
    fn an_answer_that_cannot_be_http_is_refused_at_its_first_bytes() {
        for (bytes, text) in
            [(&b"SSH-2.0-x\r\n"[..], fault::NOT_HTTP), (b"\x15\x03\x01", fault::TLS)]
        {
            let error = HeadReader::for_answer().read(&mut Pieces(bytes, 1)).err().unwrap();
            assert_eq!((error.kind(), &*error.to_string()), (io::ErrorKind::InvalidData, text));
        }
        let error = HeadReader::for_answer().read(&mut Pieces(b"HTTP", 1)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
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
