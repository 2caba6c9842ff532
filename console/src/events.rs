//! The last events of the gateway's tunnels, as the page shows them.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aiot_tunnel::gateway::{AuditEvent, Way};
use aiot_tunnel_registry::Change;

/// Events that are kept, and warnings beside them: strangers can cause as many of these as they like.
const MOST: usize = 500;
/// Longest text of an event, in bytes. Strangers choose some of it.
const MAX_TEXT: usize = 300;

/// The last events. What the gateway reports comes in at [`note`](Self::note).
#[derive(Debug, Default)]
pub struct Events(Mutex<Kept>);

/// Each with the newest first.
#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    warnings: VecDeque<Event>,
}

#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) at: SystemTime,
    pub(crate) tunnel: String,
    pub(crate) text: String,
    /// Somebody should look at it.
    pub(crate) is_warning: bool,
}

impl Events {
    /// Takes down what the gateway reports.
    pub fn note(&self, event: &AuditEvent<'_>) {
        let (tunnel, text, is_warning) = match event {
            AuditEvent::DeviceConnected { tunnel, client, .. } => {
                (*tunnel, format!("The device connected from {client}"), false)
            }
            AuditEvent::DeviceLeft { tunnel, why, .. } => {
                (*tunnel, format!("The device disconnected: {why}"), false)
            }
            AuditEvent::SessionEnded {
                tunnel,
                service,
                client,
                way,
                bytes_to_device,
                bytes_to_access,
                lasted,
                why,
                ..
            } => {
                let (to_device, to_access) = (bytes(*bytes_to_device), bytes(*bytes_to_access));
                let seconds = lasted.as_secs_f64();
                let text = format!(
                    "A session of {service} from {client}{} ended after {seconds:.1} s, {to_device} to \
                     the device, {to_access} from it: {why}",
                    by(*way)
                );
                (*tunnel, text, false)
            }
            AuditEvent::Refused { tunnel, service, client, way, why, .. } => {
                let what = service.map_or_else(String::new, |name| format!(" for {name}"));
                (*tunnel, format!("{client}{} was refused{what}: {why}", by(*way)), true)
            }
            AuditEvent::LeftOut(count) => {
                ("", format!("{count} more refusals are not shown"), true)
            }
            _ => return,
        };
        self.add(tunnel, text, is_warning);
    }

    /// Takes down a change of a tunnel.
    pub fn note_change(&self, tunnel: &str, change: Change) {
        let text = match change {
            Change::Added => "The tunnel was made",
            Change::Changed => "The tunnel has another token or expiry",
            Change::Removed => "The tunnel was removed",
        };
        self.add(tunnel, text.to_owned(), false);
    }

    pub(crate) fn add(&self, tunnel: &str, mut text: String, is_warning: bool) {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        let tunnel = tunnel[..tunnel.floor_char_boundary(MAX_TEXT)].to_owned();
        let mut kept = self.lock();
        let Kept { events, warnings } = &mut *kept;
        let all = if is_warning { warnings } else { events };
        all.truncate(MOST - 1);
        all.push_front(Event { at: SystemTime::now(), tunnel, text, is_warning });
    }

    /// The newest ones, the newest first; of one tunnel, or of all.
    pub(crate) fn last(&self, count: usize, tunnel: Option<&str>) -> Vec<Event> {
        let kept = self.lock();
        let is_meant = |event: &&Event| tunnel.is_none_or(|tunnel| event.tunnel == tunnel);
        let of_each = [&kept.events, &kept.warnings];
        let of_each = of_each.map(|all| all.iter().filter(is_meant).take(count));
        let mut found: Vec<&Event> = of_each.into_iter().flatten().collect();
        found.sort_by_key(|event| Reverse(event.at));
        found.into_iter().take(count).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn by(way: Way) -> &'static str {
    match way {
        Way::Published => " (published port)",
        Way::Terminal => " (terminal)",
        _ => "",
    }
}

/// A number of bytes, for people.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = usize::from(unit != "B" && value < 9.95);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_old_ones_go() {
        let events = Events::default();
        for number in 0..MOST + 10 {
            events.add(["t1", "t2"][number % 2], format!("event {number}"), false);
        }
        let last = events.last(2, None);
        assert_eq!(last[0].text, format!("event {}", MOST + 9));
        assert_eq!(events.last(usize::MAX, None).len(), MOST);
        let of_one = events.last(usize::MAX, Some("t2"));
        assert!(of_one.len() == MOST / 2 && of_one.iter().all(|event| event.tunnel == "t2"));
    }

    #[test]
    fn a_flood_of_refusals_hides_no_other_event() {
        let events = Events::default();
        events.add("t1", "made".to_owned(), false);
        for _ in 0..2 * MOST {
            events.add("t1", "refused".to_owned(), true);
        }
        let all = events.last(usize::MAX, None);
        assert_eq!(all.len(), MOST + 1);
        assert_eq!(all[MOST].text, "made");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let events = Events::default();
        events.add(&"é".repeat(400), "ü".repeat(400), true);
        let last = &events.last(1, None)[0];
        assert_eq!((last.text.len(), last.tunnel.len()), (MAX_TEXT, MAX_TEXT));
    }

    #[test]
    fn bytes_have_a_unit_that_fits() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9_949, "9.9 kB"),
            (123_456, "123 kB"),
            (999_600, "1.0 MB"),
            (5_000_000_000, "5.0 GB"),
            (u64::MAX, "18446744.1 TB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
