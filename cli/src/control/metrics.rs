//! `GET /metrics`: the status in the text format of Prometheus.

use std::time::{SystemTime, UNIX_EPOCH};

use aiot_tunnel_registry::Page;

use super::protocol::{EventName, Status, Tunnel};
use super::server::Agent;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether a line is the first one of an HTTP request: its method is in capitals, and no JSON begins
/// with one.
pub(super) fn is_http(line: &[u8]) -> bool {
    let method = line.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    method > 0 && line.get(method) == Some(&b' ')
}

/// The answer to an HTTP request, whole. It is the connection's last one.
pub(super) fn http(request: &[u8], is_too_long: bool, agent: &Agent) -> Vec<u8> {
    let request = String::from_utf8_lossy(request);
    let mut words = request.split_ascii_whitespace();
    let (method, target, version) = (words.next(), words.next(), words.next());
    let is_head = method == Some("HEAD");
    let refuse =
        |status, more| response(status, more, "text/plain", &format!("{status}\n"), is_head);
    if is_too_long {
        return refuse("431 Request Header Fields Too Large", "");
    }
    match (version, words.next()) {
        (Some("HTTP/1.0" | "HTTP/1.1"), None) => {}
        (Some(other), None) if other.starts_with("HTTP/") => {
            return refuse("505 HTTP Version Not Supported", "");
        }
        _ => return refuse("400 Bad Request", ""),
    }
    if path(target.unwrap_or_default()) != "/metrics" {
        return refuse("404 Not Found", "");
    }
    match method {
        Some("GET" | "HEAD") => response("200 OK", "", CONTENT_TYPE, &agent.metrics(), is_head),
        _ => refuse("405 Method Not Allowed", "Allow: GET, HEAD\r\n"),
    }
}

/// The path of a request target, which may be a whole URL and may have a query.
fn path(target: &str) -> &str {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    path.split('?').next().unwrap_or(path)
}

fn response(status: &str, more: &str, kind: &str, body: &str, is_head: bool) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}\
         Connection: close\r\n\r\n"
    );
    let body = if is_head { "" } else { body };
    (head + body).into_bytes()
}

/// All metrics. What is named `_total` never falls while its tunnel exists.
pub(super) fn text(
    status: &Status,
    started: SystemTime,
    events: impl Iterator<Item = (EventName, u64)>,
) -> String {
    let mut page = Page::new("aiot_tunnel_");
    page.family("build_info", "gauge", "The version of the agent.");
    page.sample("build_info", &[("version", &status.version)], 1);
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    page.family("start_time_seconds", "gauge", "When the agent was started, in Unix time.");
    page.sample("start_time_seconds", &[], started);
    page.family("tunnels", "gauge", "Tunnels that exist.");
    page.sample("tunnels", &[], status.tunnels.len() as u64);
    page.family("events_total", "counter", "Events of all tunnels since the start, by kind.");
    for (name, count) in events {
        page.sample("events_total", &[("event", name.as_str())], count);
    }
    let mut of_each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Tunnel) -> u64| {
        page.family(name, kind, help);
        for tunnel in &status.tunnels {
            page.sample(name, &[("tunnel", &tunnel.id)], value(tunnel));
        }
    };
    of_each("up", "gauge", "1 while the tunnel is connected, else 0.", &|tunnel| {
        u64::from(tunnel.state == "connected")
    });
    of_each(
        "attempts",
        "gauge",
        "Attempts to connect since the tunnel was last open.",
        &|tunnel| tunnel.attempts.into(),
    );
    of_each("sessions", "gauge", "Open sessions.", &|tunnel| tunnel.sessions.len() as u64);
    let help = "Sessions that were opened.";
    of_each("sessions_opened_total", "counter", help, &|tunnel| tunnel.sessions_opened);
    let help = "Payload bytes of all sessions that came from the cloud.";
    of_each("bytes_from_cloud_total", "counter", help, &|tunnel| tunnel.bytes_from_cloud);
    let help = "Payload bytes of all sessions that went to the cloud.";
    of_each("bytes_to_cloud_total", "counter", help, &|tunnel| tunnel.bytes_to_cloud);
    page.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_told_from_json() {
        for line in ["GET /metrics HTTP/1.1\r", "X ", "POST / HTTP/1.0"] {
            assert!(is_http(line.as_bytes()), "{line}");
        }
        for line in ["", "{}", "GET", "get / HTTP/1.1", " GET / HTTP/1.1", "true "] {
            assert!(!is_http(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn a_target_has_a_path() {
        for (target, expected) in [
            ("/metrics", "/metrics"),
            ("/metrics?a=/b", "/metrics"),
            ("http://agent/metrics", "/metrics"),
            ("http://agent", "/"),
            ("*", "*"),
        ] {
            assert_eq!(path(target), expected);
        }
    }
}
