//! `GET /metrics`: what the tunnels do, in the text format of Prometheus.

use std::fmt::Write;
use std::time::UNIX_EPOCH;

use aiot_tunnel::gateway::Activity;

use crate::registry::Health;
use crate::Registry;

pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics. What is named `_total` never falls while its tunnel exists.
pub(crate) fn text(registry: &Registry) -> String {
    let all = registry.activities();
    let mut page = Page::new("aiot_tunnel_gateway_");
    page.family("build_info", "gauge", "The version of the gateway.");
    page.sample("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let started = registry.started().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    page.family("start_time_seconds", "gauge", "When the gateway was started, in Unix time.");
    page.sample("start_time_seconds", &[], started);
    let health = registry.health();
    if health != Health::NoStore {
        page.family("store_up", "gauge", "1 while the store can be reached, else 0.");
        page.sample("store_up", &[], u64::from(health == Health::Good));
    }
    page.family("tunnels", "gauge", "Tunnels, by state.");
    for state in ["online", "offline", "expired"] {
        let count = all.iter().filter(|one| state_of(one) == state).count();
        page.sample("tunnels", &[("state", state)], count as u64);
    }
    let mut of_each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Activity) -> u64| {
        page.family(name, kind, help);
        for one in &all {
            page.sample(name, &[("tunnel", one.id.as_str())], value(one));
        }
    };
    let help = "1 while the tunnel's device is connected, else 0.";
    of_each("device_up", "gauge", help, &|one| u64::from(one.device.is_some()));
    let help = "Connections of access sides.";
    of_each("access_connections", "gauge", help, &|one| one.accesses.len() as u64);
    let help = "Sessions that are open or being opened.";
    of_each("sessions", "gauge", help, &|one| one.sessions as u64);
    let help = "Sessions that were opened.";
    of_each("sessions_opened_total", "counter", help, &|one| one.sessions_opened);
    let help = "Payload bytes of all sessions that went to the device.";
    of_each("bytes_to_device_total", "counter", help, &|one| one.bytes_to_device);
    let help = "Payload bytes of all sessions that went to access sides.";
    of_each("bytes_to_access_total", "counter", help, &|one| one.bytes_to_access);
    page.into_text()
}

/// What a tunnel's state is called.
#[must_use]
pub fn state_of(one: &Activity) -> &'static str {
    match &one.device {
        _ if one.is_expired => "expired",
        Some(_) => "online",
        None => "offline",
    }
}

/// A page of metrics in the text format of Prometheus.
#[derive(Debug)]
pub struct Page {
    prefix: &'static str,
    text: String,
}

impl Page {
    /// An empty page. Each name gets the prefix.
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Page { prefix, text: String::new() }
    }

    /// Begins the samples of one name.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let Page { prefix, text } = self;
        let _ = writeln!(text, "# HELP {prefix}{name} {help}");
        let _ = writeln!(text, "# TYPE {prefix}{name} {kind}");
    }

    /// Adds a sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let Page { prefix, text } = self;
        let _ = write!(text, "{prefix}{name}");
        for (at, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, "{}{label}=\"{value}\"", if at == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(text, "{end} {value}");
    }

    /// The page.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_its_line() {
        let mut page = Page::new("p_");
        page.sample("n", &[("a", "a\"b\\c\nd"), ("b", "x")], 5);
        page.sample("m", &[], 1);
        assert_eq!(page.into_text(), "p_n{a=\"a\\\"b\\\\c\\nd\",b=\"x\"} 5\np_m 1\n");
    }
}
