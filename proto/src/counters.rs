//! Counts the bytes of one session. Another thread can read the counts.

#[cfg(any(not(target_has_atomic = "64"), test))]
mod narrow;

#[cfg(not(target_has_atomic = "64"))]
use narrow::Count;

/// The names of a session and its byte counters. Whoever observes the session shares it with its owner.
#[derive(Debug)]
pub struct SessionRecord {
    /// The id, then the service type.
    names: Box<str>,
    /// The length of the id.
    id: u32,
    counters: Counters,
}

impl SessionRecord {
    /// The record of a session that has moved no bytes.
    pub fn new(id: &str, service_type: &str) -> Self {
        // Both come from a header of at most 2048 bytes.
        let length = id.len() as u32;
        SessionRecord {
            names: [id, service_type].concat().into(),
            id: length,
            counters: Counters::default(),
        }
    }

    /// The session id.
    pub fn id(&self) -> &str {
        &self.names[..self.id as usize]
    }

    /// The service type.
    pub fn service_type(&self) -> &str {
        &self.names[self.id as usize..]
    }

    /// The bytes of the session.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// Byte counters. The thread that owns the session writes them without a lock where the processor has
/// 64-bit atomics; any thread reads them.
#[derive(Debug, Default)]
pub struct Counters {
    received: Count,
    sent: Count,
}

impl Counters {
    /// Payload bytes received from the peer.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Payload bytes queued for the peer.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// The bytes in both directions.
    pub fn sum(&self) -> u64 {
        self.received().wrapping_add(self.sent())
    }

    /// Counts received bytes. Only the owner may call it: one writer can use a load and a store,
    /// which cost less than an atomic addition.
    pub fn add_received(&self, bytes: usize) {
        self.received.add(bytes as u64);
    }

    /// Counts sent bytes. Only the owner may call it.
    pub fn add_sent(&self, bytes: usize) {
        self.sent.add(bytes as u64);
    }
}

/// A number with one writer.
#[cfg(target_has_atomic = "64")]
#[derive(Debug, Default)]
struct Count(std::sync::atomic::AtomicU64);

#[cfg(target_has_atomic = "64")]
impl Count {
    fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn add(&self, more: u64) {
        self.0.store(self.get() + more, std::sync::atomic::Ordering::Relaxed);
    }
}
