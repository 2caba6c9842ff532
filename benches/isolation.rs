//! Prints a table: how one tunnel in trouble changes the round trips of nineteen other tunnels.
//!
//! `cargo bench --bench isolation [-- ROUNDS]`. The states alternate within one run, because the
//! speed of a machine drifts. Cloud, flood and device share the machine.

use std::time::Duration;

use aiot_tunnel_testkit::logs;
use aiot_tunnel_testkit::troubles::{Fleet, Kind, OTHERS};

/// The number of round trips of each of the nineteen tunnels in one round of a state.
const TRIPS: usize = 40;

fn main() {
    // With RUST_LOG=info, the measurement includes the cost of the log.
    logs::print();
    let rounds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(10usize);
    let states = [
        ("all well", None),
        ("connecting to a black hole", Some(Kind::BlackHole)),
        ("TLS handshake without end", Some(Kind::EndlessHandshake)),
        ("10,000 garbage frames a second", Some(Kind::Flood(Some(10_000)))),
        ("flooded as fast as it goes", Some(Kind::Flood(None))),
    ];
    let mut fleet = Fleet::new();
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); states.len()];
    let mut frames = vec![0; states.len()];
    for n in (0..OTHERS).cycle().take(OTHERS * TRIPS) {
        fleet.round_trip(n);
    }
    for _ in 0..rounds {
        for (index, (_, kind)) in states.iter().enumerate() {
            let trouble = kind.map(|kind| fleet.trouble(kind));
            for n in (0..OTHERS).cycle().take(OTHERS * TRIPS) {
                let time = fleet.round_trip(n);
                times[index].push(time);
            }
            if let Some(trouble) = trouble {
                frames[index] += fleet.over(trouble);
            }
        }
    }
    let mut quiet = None;
    println!(
        "{:<32} {:>9} {:>9} {:>7} {:>7} {:>10}",
        "one of twenty", "median", "p99", "x", "x p99", "frames/s"
    );
    for ((name, _), (times, frames)) in states.iter().zip(times.iter_mut().zip(&frames)) {
        times.sort_unstable();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let median = micros(times[times.len() / 2]);
        let p99 = micros(times[times.len() * 99 / 100]);
        let (quiet_median, quiet_p99) = *quiet.get_or_insert((median, p99));
        let total: Duration = times.iter().sum();
        let rate = *frames as f64 / total.as_secs_f64();
        println!(
            "{name:<32} {median:>6.0} us {p99:>6.0} us {:>6.2}x {:>6.2}x {rate:>10.0}",
            median / quiet_median,
            p99 / quiet_p99,
        );
    }
}
