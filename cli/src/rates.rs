//! Shows how many bytes come and go, once a second, on standard error.

use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::access::Traffic;

use crate::output;
use crate::Result;

const PERIOD: Duration = Duration::from_secs(1);

/// Shows them until the program ends, on a thread of its own.
pub(crate) fn show(traffic: Traffic) -> Result<()> {
    let run = move || {
        let (mut before, mut since) = ((traffic.received(), traffic.sent()), Instant::now());
        loop {
            thread::sleep(PERIOD);
            let (after, now) = ((traffic.received(), traffic.sent()), Instant::now());
            let seconds = (now - since).as_secs_f64();
            let rate = |before: u64, after: u64| rate((after - before) as f64 / seconds);
            let (down, up) = (rate(before.0, after.0), rate(before.1, after.1));
            let sessions = traffic.sessions();
            output::say(&format!("aiot-tunnel: down {down}, up {up}, sessions {sessions}"));
            (before, since) = (after, now);
        }
    };
    thread::Builder::new().name("rates".into()).spawn(run)?;
    Ok(())
}

/// Bytes a second, for people.
fn rate(bytes: f64) -> String {
    match bytes {
        0.0..1e3 => format!("{bytes:.0} B/s"),
        1e3..1e6 => format!("{:.1} kB/s", bytes / 1e3),
        _ => format!("{:.1} MB/s", bytes / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn a_rate_has_a_unit_that_fits() {
        for (bytes, text) in
            [(0.0, "0 B/s"), (999.0, "999 B/s"), (1500.0, "1.5 kB/s"), (2.5e7, "25.0 MB/s")]
        {
            assert_eq!(rate(bytes), text);
        }
    }
}
