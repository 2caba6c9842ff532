//! Measures the rate of a link, and says how much may be queued towards it.
//!
//! What is queued delays everything behind it. So on a slow link the send buffer and the kernel's
//! queue of unsent bytes together hold what the link carries in [`QUEUE_TIME`]. On a fast link they
//! have their full size.

use std::time::{Duration, Instant};

use crate::frame::MAX_PAYLOAD_SENT;

/// The time that a byte may wait in each of the two queues.
const QUEUE_TIME: Duration = Duration::from_millis(25);
/// A measurement ends when the peer's kernel has acknowledged this many bytes, or after this time.
const SAMPLE: u64 = 16 * 1024;
const SAMPLE_TIME: Duration = Duration::from_millis(400);
/// Shortest time that counts. The clock and the acknowledgements are not finer.
const LEAST_TIME: Duration = Duration::from_millis(2);
/// How often a fast link is measured.
const FAST_INTERVAL: Duration = Duration::from_millis(50);
/// The rate that is assumed while it is unknown, in bytes in a second. Each queue holds 16 KB.
const FIRST_RATE: f64 = 640_000.0;
/// Smallest size of a queue, in bytes: a small frame with its headers.
const LEAST_QUEUE: usize = 1400;
/// Smallest payload of a full frame, in bytes. Smaller ones would cost more in headers than they
/// save in delay.
const LEAST_PAYLOAD: usize = 1024;

/// The rate of one link.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes in a second. `None`: not known yet.
    rate: Option<f64>,
    /// The size of a queue on a fast link, in bytes.
    full: usize,
    /// When the measurement began, and how much had been acknowledged then.
    sample: Option<(Instant, u64)>,
    /// The send buffer was never empty since then. So the link was busy all the time.
    busy: bool,
}

impl Pace {
    /// `full`: the size of a queue on a fast link, in bytes.
    pub(crate) fn new(full: usize) -> Self {
        Pace { rate: None, full, sample: None, busy: false }
    }

    /// The size of each queue, in bytes.
    pub(crate) fn queue(&self) -> usize {
        let worth = self.rate.unwrap_or(FIRST_RATE) * QUEUE_TIME.as_secs_f64();
        (worth as usize).clamp(LEAST_QUEUE, self.full.max(LEAST_QUEUE))
    }

    /// Whether the queues have their full size.
    pub(crate) fn is_fast(&self) -> bool {
        self.queue() >= self.full
    }

    /// The payload of a full frame, in bytes.
    pub(crate) fn payload(&self) -> usize {
        match self.rate {
            None => MAX_PAYLOAD_SENT,
            Some(_) => self.queue().clamp(LEAST_PAYLOAD, MAX_PAYLOAD_SENT),
        }
    }

    /// Whether to call [`measure`](Self::measure) now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        match self.sample {
            Some((since, _)) if self.is_fast() => now.duration_since(since) >= FAST_INTERVAL,
            _ => true,
        }
    }

    /// The send buffer is empty: the link has nothing to do.
    pub(crate) fn idle(&mut self) {
        self.busy = false;
    }

    /// Reports how many bytes the peer's kernel has acknowledged, while more bytes wait.
    pub(crate) fn measure(&mut self, acknowledged: u64, now: Instant) {
        let Some((since, before)) = self.sample else {
            (self.sample, self.busy) = (Some((now, acknowledged)), true);
            return;
        };
        let (bytes, time) = (acknowledged.saturating_sub(before), now.duration_since(since));
        if bytes < SAMPLE && (time < SAMPLE_TIME || bytes == 0) {
            return;
        }
        let rate = bytes as f64 / time.max(LEAST_TIME).as_secs_f64();
        self.rate = match self.rate {
            // A link that had nothing to do for a while looks slower than it is.
            old if rate <= old.unwrap_or(FIRST_RATE) && !self.busy => old,
            Some(old) if rate <= old => Some((old + rate) / 2.0),
            _ => Some(rate),
        };
        (self.sample, self.busy) = (Some((now, acknowledged)), true);
    }
}
