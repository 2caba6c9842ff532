//! Measures the rate of a link, and says how much may be queued towards it.
//!
//! What is queued delays everything behind it. So on a slow link the send buffer and the kernel's
//! queue of unsent bytes each hold what the link carries in [`QUEUE_TIME`]. On a fast link they have
//! their full size.
//!
//! What is in flight delays it, too: it fills the queue of a modem or a router, and what overflows
//! that queue has to be sent again. TCP notices that late on a slow link. So on a slow link no more is
//! in flight than the link carries in two of its shortest round trips and [`FLIGHT_TIME`]. The largest
//! rate of the last seconds counts there. Otherwise a limit that is too small for a moment would make
//! the measured rate smaller, and that the limit.

use std::time::{Duration, Instant};

use crate::frame::MAX_PAYLOAD_SENT;

/// The time that a byte may wait in each of the two queues.
const QUEUE_TIME: Duration = Duration::from_millis(25);
/// The time that bytes in flight may wait in the link's own queue.
const FLIGHT_TIME: Duration = Duration::from_millis(30);
/// Fewest bytes in flight: three full packets. The peer's kernel acknowledges every second packet at
/// once, and the link has one more to carry meanwhile.
const LEAST_FLIGHT: usize = 3 * 1460;
/// How long the largest rate counts, at least. It counts twice as long at most.
const PEAK_TIME: Duration = Duration::from_secs(5);
/// How long to wait for room in flight.
const LEAST_PAUSE: Duration = Duration::from_millis(1);
const MOST_PAUSE: Duration = Duration::from_millis(100);
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
    /// The largest rates of this and of the previous period of [`PEAK_TIME`].
    peaks: [f64; 2],
    period: Option<Instant>,
    /// The size of a queue on a fast link, in bytes.
    full: usize,
    /// When the measurement began, and how much had been acknowledged then.
    sample: Option<(Instant, u64)>,
    /// How much had been acknowledged when the kernel was asked last.
    acknowledged: u64,
    /// The send buffer was never empty since then. So the link was busy all the time.
    busy: bool,
}

impl Pace {
    /// `full`: the size of a queue on a fast link, in bytes.
    pub(crate) fn new(full: usize) -> Self {
        Pace {
            rate: None,
            peaks: [0.0; 2],
            period: None,
            full,
            sample: None,
            acknowledged: 0,
            busy: false,
        }
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

    /// How many bytes may be in flight on a slow link, of which the shortest round trip is known.
    pub(crate) fn flight(&self, round_trip: Duration) -> usize {
        let worth = self.peak() * (2 * round_trip + FLIGHT_TIME).as_secs_f64();
        (worth as usize).max(LEAST_FLIGHT)
    }

    /// How long the link takes to carry `bytes`, within the limits of a pause.
    pub(crate) fn pause(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.peak()).clamp(LEAST_PAUSE, MOST_PAUSE)
    }

    /// The largest rate of the last seconds.
    fn peak(&self) -> f64 {
        match self.peaks[0].max(self.peaks[1]) {
            0.0 => FIRST_RATE,
            peak => peak,
        }
    }

    fn note_peak(&mut self, rate: f64, now: Instant) {
        let since = *self.period.get_or_insert(now);
        if now.duration_since(since) >= PEAK_TIME {
            self.peaks = [0.0, self.peaks[0]];
            self.period = Some(now);
        }
        self.peaks[0] = self.peaks[0].max(rate);
    }

    /// The payload of a full frame, in bytes.
    pub(crate) fn payload(&self) -> usize {
        match self.rate {
            None => MAX_PAYLOAD_SENT,
            Some(_) => self.queue().clamp(LEAST_PAYLOAD, MAX_PAYLOAD_SENT),
        }
    }

    /// Whether `length` more bytes may be written without asking the kernel what is in flight.
    /// `written`: how many bytes have been written so far.
    pub(crate) fn is_little(&self, written: u64, length: usize) -> bool {
        let most = written.saturating_sub(self.acknowledged) as usize;
        most.saturating_add(length) <= LEAST_QUEUE
    }

    /// Whether to call [`measure`](Self::measure) now. `written`: how many bytes have been written
    /// so far.
    pub(crate) fn is_due(&self, written: u64, now: Instant) -> bool {
        let Some((since, before)) = self.sample else { return true };
        let time = now.duration_since(since);
        match self.is_fast() {
            true => time >= FAST_INTERVAL,
            // No more can have been acknowledged than was written.
            false => time >= SAMPLE_TIME || written.saturating_sub(before) >= SAMPLE,
        }
    }

    /// Notes how many bytes the peer's kernel has acknowledged.
    pub(crate) fn note(&mut self, acknowledged: u64) {
        self.acknowledged = acknowledged;
    }

    /// The send buffer is empty: the link has nothing to do.
    pub(crate) fn idle(&mut self) {
        self.busy = false;
    }

    /// Reports how many bytes the peer's kernel has acknowledged, while more bytes wait.
    pub(crate) fn measure(&mut self, acknowledged: u64, now: Instant) {
        self.note(acknowledged);
        let Some((since, before)) = self.sample else {
            (self.sample, self.busy) = (Some((now, acknowledged)), true);
            return;
        };
        let (bytes, time) = (acknowledged.saturating_sub(before), now.duration_since(since));
        if bytes < SAMPLE && (time < SAMPLE_TIME || bytes == 0) {
            return;
        }
        let rate = bytes as f64 / time.max(LEAST_TIME).as_secs_f64();
        // A link that had nothing to do for a while looks slower than it is.
        if self.busy || rate > self.peak() {
            self.note_peak(rate, now);
        }
        self.rate = match self.rate {
            old if rate <= old.unwrap_or(FIRST_RATE) && !self.busy => old,
            Some(old) if rate <= old => Some((old + rate) / 2.0),
            _ => Some(rate),
        };
        (self.sample, self.busy) = (Some((now, acknowledged)), true);
    }
}
