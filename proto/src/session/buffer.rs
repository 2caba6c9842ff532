//! The local buffer: bytes that wait for a local stream.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::stream::{Local, LocalStream};

/// By how much the buffer grows, in bytes.
const GROWTH: usize = 64 * 1024;

/// A queue of bytes. It frees its memory when it is empty.
#[derive(Default)]
pub struct LocalBuffer(VecDeque<u8>);

impl LocalBuffer {
    /// The number of bytes that wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no bytes wait.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.0.len() + bytes.len() > self.0.capacity() {
            // If the capacity doubled, the allocator would be left with as much memory again in
            // unusable pieces.
            self.0.reserve_exact(bytes.len().next_multiple_of(GROWTH));
        }
        self.0.extend(bytes);
    }

    /// Writes what the stream takes. Returns whether it took anything.
    pub(crate) fn write(&mut self, local: &mut Local<impl LocalStream>) -> bool {
        let before = self.0.len();
        while !self.0.is_empty() {
            let (front, back) = self.0.as_slices();
            match local.write(&[IoSlice::new(front), IoSlice::new(back)]) {
                Some(written) => drop(self.0.drain(..written)),
                None => return self.0.len() < before,
            }
        }
        *self = LocalBuffer::default();
        true
    }
}
