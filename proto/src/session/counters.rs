//! Bytes of one session, for whoever observes it from another thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// Written by the thread that owns the session, without a lock; read by any.
#[derive(Debug, Default)]
pub struct Counters {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Counters {
    /// Payload bytes that came from the peer.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Payload bytes that were queued for the peer.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// For the owner alone: a load and a store cost less than an atomic addition, and one writer needs
    /// no more.
    pub fn add_received(&self, bytes: usize) {
        self.received.store(self.received() + bytes as u64, Ordering::Relaxed);
    }

    /// For the owner alone.
    pub fn add_sent(&self, bytes: usize) {
        self.sent.store(self.sent() + bytes as u64, Ordering::Relaxed);
    }
}
