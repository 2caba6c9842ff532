//! Counts the bytes of one session. Another thread can read the counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Byte counters. The thread that owns the session writes them without a lock; any thread reads
/// them.
#[derive(Debug, Default)]
pub struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Counters {
    /// Payload bytes received from the peer.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Payload bytes queued for the peer.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The bytes in both directions.
    pub fn sum(&self) -> u64 {
        self.received().wrapping_add(self.sent())
    }

    /// Counts received bytes. Only the owner may call it: one writer can use a load and a store,
    /// which cost less than an atomic addition.
    pub fn add_received(&self, bytes: usize) {
        self.received.store(self.received() + bytes as u64, Ordering::Relaxed);
    }

    /// Counts sent bytes. Only the owner may call it.
    pub fn add_sent(&self, bytes: usize) {
        self.sent.store(self.sent() + bytes as u64, Ordering::Relaxed);
    }
}
