//! Reads ahead for OpenSSL, which reads the header and the body of each record separately.

use std::io::{self, Read, Write};

/// Sizes of the buffer, in bytes. It begins small and doubles while reads fill it.
const FIRST: usize = 4 * 1024;
const MOST: usize = 64 * 1024;

/// A stream that serves small reads from few large ones. Writes pass through.
pub(crate) struct ReadAhead<S> {
    stream: S,
    buffer: Vec<u8>,
    /// The bytes at `start..end` were read from the stream and not returned yet.
    start: usize,
    end: usize,
}

impl<S> ReadAhead<S> {
    pub(crate) fn new(stream: S) -> Self {
        ReadAhead { stream, buffer: Vec::new(), start: 0, end: 0 }
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Frees the buffer if it is empty.
    pub(crate) fn shrink(&mut self) {
        if self.start == self.end {
            (self.buffer, self.start, self.end) = (Vec::new(), 0, 0);
        }
    }
}

impl<S: Read> Read for ReadAhead<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if self.end == self.buffer.len() {
                // The last read filled the buffer, so the stream has more than the buffer holds.
                self.buffer.resize((2 * self.end).clamp(FIRST, MOST), 0);
            }
            (self.start, self.end) = (0, 0);
            self.end = self.stream.read(&mut self.buffer)?;
        }
        let length = buffer.len().min(self.end - self.start);
        buffer[..length].copy_from_slice(&self.buffer[self.start..][..length]);
        self.start += length;
        Ok(length)
    }
}

impl<S: Write> Write for ReadAhead<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns its bytes in pieces of the requested lengths, and counts the reads.
    struct Source(Vec<u8>, usize);
    impl Read for Source {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            let length = self.0.as_slice().read(buffer)?;
            self.0.drain(..length);
            if length == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(length)
        }
    }

    #[test]
    fn small_reads_give_all_bytes_in_order_from_few_large_ones() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let mut ahead = ReadAhead::new(Source(bytes.clone(), 0));
        let (mut read, mut piece) = (Vec::new(), [0; 5]);
        loop {
            match ahead.read(&mut piece) {
                Ok(length) => read.extend_from_slice(&piece[..length]),
                Err(e) => break assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(read == bytes);
        // Reads of 4, 8, 16, 32 and 64 KiB, three more of 64 KiB, and one that would block.
        assert_eq!(ahead.get_ref().1, 5 + 3 + 1);
        // A shrunk buffer works again when more bytes come.
        ahead.shrink();
        ahead.get_mut().0.extend(b"late");
        assert_eq!(ahead.read(&mut piece).unwrap(), 4);
    }
}
