//! Reads ahead of OpenSSL, which fetches each record's header and body by themselves.

use std::io::{self, Read, Write};

/// Begins small and doubles as reads fill it.
const FIRST: usize = 4 * 1024;
const MOST: usize = 64 * 1024;

/// A stream whose small reads are served from few large ones; writes pass through.
pub(crate) struct ReadAhead<S> {
    stream: S,
    buffer: Vec<u8>,
    /// What was read but not asked for is `start..end`.
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

    /// Gives the buffer back when nothing is in it.
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
                // The last read filled it: there is more than it takes.
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

    /// Gives what it has in pieces of the lengths that are asked for, and counts the reads.
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
        // 4, 8, 16, 32 and 64 KiB, four times more, and the one that would block.
        assert_eq!(ahead.get_ref().1, 5 + 3 + 1);
        // It is as good as new when nothing has come for a while.
        ahead.shrink();
        ahead.get_mut().0.extend(b"late");
        assert_eq!(ahead.read(&mut piece).unwrap(), 4);
    }
}
