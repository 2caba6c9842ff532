//! Reads ahead for OpenSSL, which reads the header and the body of each record separately.
//!
//! OpenSSL does not return from a read before it has data for its caller. A peer can send it records
//! without any: key updates, session tickets, empty records, requests for a new handshake. So this
//! is also the place where the work for such a peer is bounded.

use std::io::{self, Read, Write};

/// Sizes of the buffer, in bytes. It begins small and doubles while reads fill it.
const FIRST: usize = 4 * 1024;
const MOST: usize = 64 * 1024;

/// After this many reads the stream pauses, so that its owner can look at its other work. A record
/// takes two reads. The most expensive record, a key update, costs about 10 microseconds.
const MOST_READS: usize = 1024;
/// A peer that sends this many bytes without application data is given up. A handshake takes some
/// kilobytes, at most 100 KiB of which are certificates.
const MOST_WITHOUT_DATA: usize = 256 * 1024;
/// How many other bytes each byte of application data allows. The smallest record has one byte of
/// data and 22 others.
const ALLOWED_FOR_DATA: usize = 64;

/// A stream that serves small reads from few large ones. Writes pass through.
pub(crate) struct ReadAhead<S> {
    stream: S,
    buffer: Vec<u8>,
    /// The bytes at `start..end` were read from the stream and not returned yet.
    start: usize,
    end: usize,
    /// The number of reads since the last one that would block.
    reads: usize,
    /// The last read would block only because there were [`MOST_READS`] before it.
    paused: bool,
    /// How many bytes were returned without application data.
    without_data: usize,
}

impl<S> ReadAhead<S> {
    pub(crate) fn new(stream: S) -> Self {
        ReadAhead {
            stream,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            reads: 0,
            paused: false,
            without_data: 0,
        }
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Whether the last read that would block was a pause. The stream may have more to read then.
    pub(crate) fn has_paused(&self) -> bool {
        self.paused
    }

    /// Reports that the bytes returned so far held this much application data.
    pub(crate) fn held_data(&mut self, length: usize) {
        let allowed = ALLOWED_FOR_DATA.saturating_mul(length);
        self.without_data = self.without_data.saturating_sub(allowed);
    }

    /// Frees the buffer if it is empty. Its owner calls this once in a while, so this is also when
    /// the peer is forgiven what it has sent without data. A connection may live for years.
    pub(crate) fn shrink(&mut self) {
        self.without_data = 0;
        if self.start == self.end {
            (self.buffer, self.start, self.end) = (Vec::new(), 0, 0);
        }
    }
}

impl<S: Read> ReadAhead<S> {
    fn fill(&mut self) -> io::Result<()> {
        if self.start == self.end {
            if self.end == self.buffer.len() {
                // The last read filled the buffer, so the stream has more than the buffer holds.
                self.buffer.resize((2 * self.end).clamp(FIRST, MOST), 0);
            }
            (self.start, self.end) = (0, 0);
            self.end = self.stream.read(&mut self.buffer)?;
        }
        Ok(())
    }
}

impl<S: Read> Read for ReadAhead<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.without_data >= MOST_WITHOUT_DATA {
            return Err(io::Error::other("the peer sends TLS records without data"));
        }
        self.paused = self.reads == MOST_READS;
        if self.paused {
            self.reads = 0;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.reads += 1;
        self.fill().inspect_err(|_| self.reads = 0)?;
        let length = buffer.len().min(self.end - self.start);
        buffer[..length].copy_from_slice(&self.buffer[self.start..][..length]);
        self.start += length;
        self.without_data += length;
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
                Ok(length) => {
                    read.extend_from_slice(&piece[..length]);
                    ahead.held_data(length);
                }
                Err(_) if ahead.has_paused() => {}
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
    /// A peer that never stops sending.
    struct Flood;
    impl Read for Flood {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
    }

    #[test]
    fn a_stream_without_end_pauses_so_that_its_owner_can_turn_to_other_work() {
        let mut ahead = ReadAhead::new(Flood);
        for _ in 0..3 {
            for _ in 0..MOST_READS {
                assert_eq!(ahead.read(&mut [0; 4]).unwrap(), 4);
                assert!(!ahead.has_paused());
            }
            let pause = ahead.read(&mut [0; 4]).unwrap_err();
            assert!(pause.kind() == io::ErrorKind::WouldBlock && ahead.has_paused());
        }
        // A read that does block is no pause.
        let mut ahead = ReadAhead::new(Source(Vec::new(), 0));
        for _ in 0..2 * MOST_READS {
            assert_eq!(ahead.read(&mut [0; 4]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            assert!(!ahead.has_paused());
        }
    }

    #[test]
    fn a_peer_that_sends_megabytes_without_data_is_given_up() {
        const RECORD: usize = 16 * 1024;
        let records = |ahead: &mut ReadAhead<Flood>, count: usize| {
            (0..count).try_for_each(|_| ahead.read_exact(&mut [0; RECORD]))
        };
        let mut ahead = ReadAhead::new(Flood);
        let most = MOST_WITHOUT_DATA / RECORD;
        assert!(records(&mut ahead, most).is_ok());
        let end = records(&mut ahead, 1).unwrap_err();
        assert!(end.to_string().contains("without data"), "{end}");
        // Data makes up for other bytes, and time does.
        let mut ahead = ReadAhead::new(Flood);
        for _ in 0..10 {
            assert!(records(&mut ahead, most / 2).is_ok());
            ahead.held_data(MOST_WITHOUT_DATA / ALLOWED_FOR_DATA / 2);
        }
        assert!(records(&mut ahead, most).is_ok());
        ahead.shrink();
        assert!(records(&mut ahead, most).is_ok());
        assert!(records(&mut ahead, 1).is_err());
    }
}
