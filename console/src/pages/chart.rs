//! Small charts of rates, as SVG.

use std::fmt::Write;

use maud::{html, Markup};

use crate::events::bytes;
use crate::rates::{Rate, SAMPLES};

const WIDTH: f32 = 300.0;
const HEIGHT: f32 = 60.0;

/// The rates of five minutes. The newest sample is at the right.
pub(super) fn chart(samples: &[Rate], label: &str) -> Markup {
    let highest = samples.iter().flat_map(|rate| [rate.to_device, rate.to_access]);
    let highest = highest.fold(0.0, f32::max);
    let now = samples.last().copied().unwrap_or_default();
    let text = format!(
        "{label}: now {} to devices and {} from devices; the highest of five minutes is {}",
        rate(now.to_device),
        rate(now.to_access),
        rate(highest)
    );
    html! {
        svg .chart viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
            aria-label=(text) {
            title { (text) }
            path .to-device d=(line(samples, highest, |rate| rate.to_device)) {}
            path .to-access d=(line(samples, highest, |rate| rate.to_access)) {}
        }
    }
}

/// The path of one direction.
fn line(samples: &[Rate], highest: f32, of: impl Fn(&Rate) -> f32) -> String {
    let mut path = String::new();
    let step = WIDTH / (SAMPLES - 1) as f32;
    let first = WIDTH - step * samples.len().saturating_sub(1) as f32;
    for (at, sample) in samples.iter().enumerate() {
        let x = first + step * at as f32;
        let part = if highest > 0.0 { of(sample) / highest } else { 0.0 };
        let y = HEIGHT - 2.0 - (HEIGHT - 4.0) * part;
        let _ = write!(path, "{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" });
    }
    path
}

/// A rate, for people.
pub(super) fn rate(of: f32) -> String {
    // Never negative, and far below the limit.
    format!("{}/s", bytes(of as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_the_right_and_fills_the_height() {
        let rate = |to_device| Rate { to_device, to_access: 0.0 };
        let path = line(&[rate(0.0), rate(5.0), rate(10.0)], 10.0, |rate| rate.to_device);
        assert_eq!(path, "M296.0 58.0L298.0 30.0L300.0 2.0");
        assert_eq!(line(&[], 0.0, |rate| rate.to_device), "");
    }
}
