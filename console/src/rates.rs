//! How fast the tunnels carry bytes. Samples are taken while somebody is logged in.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aiot_tunnel::gateway::Activity;

/// Between two samples.
pub(crate) const PERIOD: Duration = Duration::from_secs(2);
/// Samples that are kept: five minutes.
pub(crate) const SAMPLES: usize = 150;

/// Bytes a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Rate {
    pub(crate) to_device: f32,
    pub(crate) to_access: f32,
}

/// The rates of the last minutes, of all tunnels together and of each.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    at: Option<Instant>,
    all: Line,
    tunnels: HashMap<String, Tunnel>,
}

#[derive(Debug)]
struct Tunnel {
    to_device: u64,
    to_access: u64,
    /// Empty while the tunnel carries nothing.
    line: Line,
}

/// Samples, the newest one last.
type Line = VecDeque<Rate>;

impl Rates {
    /// Adds a sample.
    pub(crate) fn sample(&self, activities: &[Activity], now: Instant) {
        let counts = activities
            .iter()
            .map(|one| (one.id.as_str(), one.bytes_to_device, one.bytes_to_access));
        self.sample_counts(counts, now);
    }

    /// The same, of the bytes that each tunnel has carried to the device and to access sides.
    fn sample_counts<'a>(&self, counts: impl Iterator<Item = (&'a str, u64, u64)>, now: Instant) {
        let mut state = self.lock();
        let before = state.at.replace(now);
        let passed = before.map(|before| now.saturating_duration_since(before));
        // After a pause, the counts tell nothing of the rate of now.
        let seconds =
            passed.filter(|passed| *passed < 5 * PERIOD).map(|passed| passed.as_secs_f32());
        if seconds.is_none() {
            state.all.clear();
            state.tunnels.clear();
        }
        let rate = |from: u64, to: u64| match seconds {
            Some(seconds) if seconds > 0.0 => to.saturating_sub(from) as f32 / seconds,
            _ => 0.0,
        };
        let mut before = std::mem::take(&mut state.tunnels);
        let mut sum = Rate::default();
        for (id, to_device, to_access) in counts {
            let new = || Tunnel { to_device, to_access, line: Line::default() };
            let mut tunnel = before.remove(id).unwrap_or_else(new);
            let of_this = Rate {
                to_device: rate(tunnel.to_device, to_device),
                to_access: rate(tunnel.to_access, to_access),
            };
            (tunnel.to_device, tunnel.to_access) = (to_device, to_access);
            sum.to_device += of_this.to_device;
            sum.to_access += of_this.to_access;
            if of_this != Rate::default() || !tunnel.line.is_empty() {
                push(&mut tunnel.line, of_this);
            }
            if tunnel.line.iter().all(|rate| *rate == Rate::default()) {
                tunnel.line = Line::default();
            }
            state.tunnels.insert(id.to_owned(), tunnel);
        }
        if seconds.is_some() {
            push(&mut state.all, sum);
        }
    }

    /// The samples of all tunnels together, the newest one last.
    pub(crate) fn of_all(&self) -> Vec<Rate> {
        self.lock().all.iter().copied().collect()
    }

    /// The samples of a tunnel, the newest one last. Empty: it has carried nothing.
    pub(crate) fn of(&self, tunnel: &str) -> Vec<Rate> {
        let state = self.lock();
        state.tunnels.get(tunnel).map_or_else(Vec::new, |one| one.line.iter().copied().collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(line: &mut Line, rate: Rate) {
    if line.len() >= SAMPLES {
        line.pop_front();
    }
    line.push_back(rate);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(to_device: f32, to_access: f32) -> Rate {
        Rate { to_device, to_access }
    }

    #[test]
    fn a_rate_is_what_was_carried_between_two_samples() {
        let (rates, began) = (Rates::default(), Instant::now());
        let sample = |counts: &[(&str, u64, u64)], periods: u32| {
            rates.sample_counts(counts.iter().copied(), began + periods * PERIOD);
        };
        // Bytes from before the first sample are no rate.
        sample(&[("t1", 1000, 500), ("t2", 7, 7)], 0);
        assert!(rates.of_all().is_empty() && rates.of("t1").is_empty());
        sample(&[("t1", 1200, 500), ("t2", 7, 27)], 1);
        assert_eq!(rates.of("t1"), [rate(100.0, 0.0)]);
        assert_eq!(rates.of("t2"), [rate(0.0, 10.0)]);
        assert_eq!(rates.of_all(), [rate(100.0, 10.0)]);
        // One that was removed and made again counts from zero, and never backwards.
        sample(&[("t1", 10, 0)], 2);
        assert_eq!(rates.of("t1"), [rate(100.0, 0.0), rate(0.0, 0.0)]);
        assert!(rates.of("t2").is_empty());
    }

    #[test]
    fn after_a_pause_the_lines_begin_anew() {
        let (rates, began) = (Rates::default(), Instant::now());
        for (count, after) in [(0, 0), (200, 1), (400, 2)] {
            rates.sample_counts([("t1", count, 0)].into_iter(), began + after * PERIOD);
        }
        assert_eq!(rates.of_all().len(), 2);
        rates.sample_counts([("t1", 1_000_000, 0)].into_iter(), began + 100 * PERIOD);
        assert!(rates.of_all().is_empty() && rates.of("t1").is_empty());
    }

    #[test]
    fn five_minutes_are_kept_and_a_quiet_tunnel_costs_nothing() {
        let (rates, began) = (Rates::default(), Instant::now());
        for number in 0..SAMPLES as u32 + 20 {
            rates.sample_counts(
                [("t1", 2, 0), ("t2", number.into(), 0)].into_iter(),
                began + number * PERIOD,
            );
        }
        assert_eq!((rates.of_all().len(), rates.of("t2").len()), (SAMPLES, SAMPLES));
        assert!(rates.of("t1").is_empty());
    }
}
