//! The status as a table. Ids and errors come from afar: no control character of theirs reaches the
//! terminal, and their width is the one that a terminal shows.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::control::protocol::{Session, Status, Tunnel};

/// Columns of an output that is no terminal.
pub(super) const WIDTH: usize = 80;
/// A table for less would not be one.
const LEAST_WIDTH: usize = 74;
/// Columns that an id gets although it is shorter.
const LEAST_ID: usize = 12;

/// What a tunnel's columns need besides its id: the state, since, tries and a short host.
const BESIDE_TUNNEL: usize = 52;
/// What a session's columns need besides its id.
const BESIDE_SESSION: usize = 47;
/// The same, with rates.
const BESIDE_RATES: usize = 65;

/// Bytes of tunnels and sessions some time ago.
#[derive(Default)]
pub(super) struct Earlier {
    bytes: HashMap<(String, Option<String>), Bytes>,
    ago: Duration,
}

/// From the cloud, and to it.
#[derive(Clone, Copy)]
struct Bytes(u64, u64);

impl Earlier {
    pub(super) fn new(status: &Status, ago: Duration) -> Self {
        let mut bytes = HashMap::new();
        for tunnel in &status.tunnels {
            bytes.insert((tunnel.id.clone(), None), of_tunnel(tunnel));
            for session in &tunnel.sessions {
                let id = (tunnel.id.clone(), Some(session.id.clone()));
                bytes.insert(id, of_session(session));
            }
        }
        Earlier { bytes, ago }
    }

    /// Bytes in a second since then. `None`: it was not there then.
    fn rates(&self, tunnel: &str, session: Option<&str>, now: Bytes) -> Option<Bytes> {
        let before = self.bytes.get(&(tunnel.to_owned(), session.map(str::to_owned)))?;
        let seconds = self.ago.as_secs_f64();
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
        (seconds > 0.0).then(|| Bytes(rate(now.0, before.0), rate(now.1, before.1)))
    }
}

fn of_tunnel(tunnel: &Tunnel) -> Bytes {
    Bytes(tunnel.bytes_from_cloud, tunnel.bytes_to_cloud)
}

fn of_session(session: &Session) -> Bytes {
    Bytes(session.bytes_from_cloud, session.bytes_to_cloud)
}

/// The table, with rates if an earlier status is given. No line is wider than `width`.
pub(super) fn table(
    status: &Status,
    earlier: Option<&Earlier>,
    width: usize,
    now: SystemTime,
) -> String {
    let width = width.max(LEAST_WIDTH);
    let mut page = Page { lines: String::new(), width };
    let services: Vec<String> =
        status.services.iter().map(|(name, target)| format!("{name}={target}")).collect();
    page.paragraph(
        0,
        &format!(
            "aiot-tunnel {}, running for {}; services: {}",
            status.version,
            since(&status.since, now),
            match services.is_empty() {
                true => "none".to_owned(),
                false => services.join(" "),
            }
        ),
    );
    page.line("");
    if status.tunnels.is_empty() {
        page.line("No tunnels.");
        return page.lines;
    }
    let longest = status.tunnels.iter().map(|tunnel| shown(&tunnel.id).width()).max();
    let id = longest.unwrap_or(0).max(LEAST_ID).min(width - BESIDE_TUNNEL);
    let row = |name: &str, state: &str, since: &str, tries: &str, host: &str| {
        format!(
            "{}  {}  {}  {}  {host}",
            left(name, id),
            left(state, 10),
            right(since, 7),
            right(tries, 5)
        )
    };
    page.line(&row("TUNNEL", "STATE", "SINCE", "TRIES", "HOST"));
    for tunnel in &status.tunnels {
        let host = match tunnel.host.contains(':') {
            true => format!("[{}]:{}", tunnel.host, tunnel.port),
            false => format!("{}:{}", tunnel.host, tunnel.port),
        };
        let tries = tunnel.attempts.to_string();
        page.line(&row(&tunnel.id, &tunnel.state, &since(&tunnel.since, now), &tries, &host));
        if let Some(retry_at) = &tunnel.retry_at {
            page.line(&format!("  next attempt in {}", until(retry_at, now)));
        }
        if let Some(error) = &tunnel.last_error {
            page.paragraph(4, &format!("last error: {error}"));
        }
        sessions(&mut page, tunnel, earlier);
    }
    page.lines
}

/// The sessions of a tunnel, and their sum.
fn sessions(page: &mut Page, tunnel: &Tunnel, earlier: Option<&Earlier>) {
    if tunnel.sessions_opened == 0 && tunnel.sessions.is_empty() {
        return;
    }
    let (beside, column) = match earlier {
        None => (BESIDE_SESSION, 10),
        Some(_) => (BESIDE_RATES, 19),
    };
    let longest = tunnel.sessions.iter().map(|session| shown(&session.id).width()).max();
    let id = longest.unwrap_or(0).max(LEAST_ID).min(page.width - beside);
    let mut row = |name: &str, service: &str, age: &str, from: &str, to: &str| {
        let (name, service, age) = (left(name, id), left(service, 10), right(age, 7));
        let (from, to) = (right(from, column), right(to, column));
        page.line(&format!("  {name}  {service}  {age}  {from}  {to}"));
    };
    row("SESSION", "SERVICE", "AGE", "FROM CLOUD", "TO CLOUD");
    for session in &tunnel.sessions {
        let age = short(Duration::try_from_secs_f64(session.age).unwrap_or_default());
        let (from, to) = amounts(tunnel, Some(session), earlier);
        row(&session.id, &session.service, &age, &from, &to);
    }
    let (from, to) = amounts(tunnel, None, earlier);
    row("all so far", &format!("{} opened", tunnel.sessions_opened), "", &from, &to);
}

/// The bytes of a session or of a whole tunnel, with rates if an earlier status is given.
fn amounts(
    tunnel: &Tunnel,
    session: Option<&Session>,
    earlier: Option<&Earlier>,
) -> (String, String) {
    let bytes = session.map_or_else(|| of_tunnel(tunnel), of_session);
    let Some(earlier) = earlier else { return (size(bytes.0), size(bytes.1)) };
    let rates = earlier.rates(&tunnel.id, session.map(|session| &*session.id), bytes);
    let text = |bytes: u64, rate: Option<u64>| {
        let rate = rate.map_or("-".to_owned(), |rate| format!("{}/s", size(rate)));
        format!("{} {rate:>10}", size(bytes))
    };
    (text(bytes.0, rates.map(|rates| rates.0)), text(bytes.1, rates.map(|rates| rates.1)))
}

/// A message in place of a table.
pub(super) fn message(text: &str, width: usize) -> String {
    let mut page = Page { lines: String::new(), width: width.max(LEAST_WIDTH) };
    page.paragraph(0, text);
    page.lines
}

struct Page {
    lines: String,
    width: usize,
}

impl Page {
    /// Adds a line, cut at the width.
    fn line(&mut self, text: &str) {
        self.lines += cut(&shown(text), self.width).trim_end();
        self.lines.push('\n');
    }

    /// Adds a text in as many lines as it needs; all but the first are indented by `indent`, and the
    /// first by half of it.
    fn paragraph(&mut self, indent: usize, text: &str) {
        let mut line = " ".repeat(indent / 2);
        let mut width = line.len();
        for word in shown(text).split_inclusive(' ') {
            let length = word.trim_end().width();
            if width + length > self.width && width > indent {
                self.line(&line);
                line = " ".repeat(indent);
                width = indent;
            }
            // A word may be longer than a line.
            for character in word.chars() {
                let columns = character.width().unwrap_or(0);
                if width + columns > self.width && character != ' ' {
                    self.line(&line);
                    line = " ".repeat(indent);
                    width = indent;
                }
                line.push(character);
                width += columns;
            }
        }
        self.line(&line);
    }
}

/// A text with a question mark for each character that would move the cursor, change the direction
/// of writing, or be invisible.
fn shown(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().map(|c| if is_hidden(c) { '?' } else { c }).collect()
}

/// At most so many columns; an ellipsis stands for the rest.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut cut = String::new();
    let mut used = 1;
    for character in text.chars() {
        used += character.width().unwrap_or(0);
        if used > width {
            break;
        }
        cut.push(character);
    }
    cut + "…"
}

/// Exactly so many columns, the text at the left.
fn left(text: &str, width: usize) -> String {
    let text = cut(&shown(text), width);
    let blanks = width.saturating_sub(text.width());
    text + &" ".repeat(blanks)
}

/// Exactly so many columns, the text at the right.
fn right(text: &str, width: usize) -> String {
    let text = cut(&shown(text), width);
    " ".repeat(width.saturating_sub(text.width())) + &text
}

/// The time from a time stamp to now.
fn since(timestamp: &str, now: SystemTime) -> String {
    let time = humantime::parse_rfc3339(timestamp);
    time.map_or("?".to_owned(), |time| short(now.duration_since(time).unwrap_or_default()))
}

/// The time from now to a time stamp.
fn until(timestamp: &str, now: SystemTime) -> String {
    let time = humantime::parse_rfc3339(timestamp);
    time.map_or("?".to_owned(), |time| short(time.duration_since(now).unwrap_or_default()))
}

/// At most seven characters for three years.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// At most eight characters.
fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        value /= 1024.0;
        unit = next;
        if value < 1023.95 {
            break;
        }
    }
    match value < 99.95 {
        true => format!("{value:.1} {unit}"),
        false => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn session(id: &str) -> Session {
        Session {
            id: id.to_owned(),
            service: "_SSH".to_owned(),
            age: 12.5,
            bytes_from_cloud: 120,
            bytes_to_cloud: 6000,
        }
    }

    fn tunnel(id: &str) -> Tunnel {
        Tunnel {
            id: id.to_owned(),
            host: "gw.example".to_owned(),
            port: 443,
            state: "connected".to_owned(),
            since: "1970-01-01T00:00:10Z".to_owned(),
            attempts: 0,
            retry_at: None,
            last_error: None,
            bytes_from_cloud: 5120,
            bytes_to_cloud: 70_000,
            sessions_opened: 3,
            sessions: vec![session("s1")],
        }
    }

    fn status(tunnels: Vec<Tunnel>) -> Status {
        Status {
            version: "0.1.0".to_owned(),
            since: "1970-01-01T00:00:00Z".to_owned(),
            services: [("_SSH".to_owned(), "127.0.0.1:22".to_owned())].into(),
            tunnels,
        }
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(7510)
    }

    #[test]
    fn a_table_is_readable_in_80_columns() {
        let waiting = Tunnel {
            state: "waiting".to_owned(),
            retry_at: Some("1970-01-01T02:05:22Z".to_owned()),
            attempts: 12,
            last_error: Some("connect to 192.0.2.1:443: connection refused (os error 111)".into()),
            sessions: Vec::new(),
            sessions_opened: 0,
            host: "2001:db8::1".to_owned(),
            ..tunnel("3f2504e0-4f89-11d3-9a0c-0305e82c3301")
        };
        let text = table(&status(vec![tunnel("t1"), waiting]), None, WIDTH, now());
        let expected = "\
aiot-tunnel 0.1.0, running for 2h05m; services: _SSH=127.0.0.1:22

TUNNEL                        STATE         SINCE  TRIES  HOST
t1                            connected     2h05m      0  gw.example:443
  SESSION       SERVICE         AGE  FROM CLOUD    TO CLOUD
  s1            _SSH            12s       120 B     5.9 KiB
  all so far    3 opened                5.0 KiB    68.4 KiB
3f2504e0-4f89-11d3-9a0c-030…  waiting       2h05m     12  [2001:db8::1]:443
  next attempt in 12s
  last error: connect to 192.0.2.1:443: connection refused (os error 111)
";
        assert_eq!(text, expected);
    }

    #[test]
    fn rates_are_those_of_the_time_between_two_looks() {
        let before = status(vec![tunnel("t1")]);
        let mut after = before.clone();
        after.tunnels[0].bytes_from_cloud += 4096;
        after.tunnels[0].sessions[0].bytes_to_cloud += 3_000_000;
        after.tunnels[0].sessions.push(session("s2"));
        let earlier = Earlier::new(&before, Duration::from_secs(2));
        let text = table(&after, Some(&earlier), WIDTH, now());
        let expected = "\
aiot-tunnel 0.1.0, running for 2h05m; services: _SSH=127.0.0.1:22

TUNNEL        STATE         SINCE  TRIES  HOST
t1            connected     2h05m      0  gw.example:443
  SESSION       SERVICE         AGE           FROM CLOUD             TO CLOUD
  s1            _SSH            12s     120 B      0 B/s   2.9 MiB  1.4 MiB/s
  s2            _SSH            12s     120 B          -   5.9 KiB          -
  all so far    3 opened              9.0 KiB  2.0 KiB/s  68.4 KiB      0 B/s
";
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.width() <= WIDTH));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_none_holds_a_control_character() {
        let hostile = Tunnel {
            last_error: Some(format!("{} \u{1b}[2J\r\n{}", "é".repeat(200), "語 ".repeat(80))),
            sessions: vec![session(&"語".repeat(60)), session("\u{1b}]0;x\u{7}\u{202e}a")],
            host: "h".repeat(253),
            bytes_from_cloud: u64::MAX,
            ..tunnel(&"\u{9b}語é".repeat(40))
        };
        let mut status = status(vec![hostile]);
        status.services.insert("x\u{1b}".repeat(60), "unix:/".to_owned() + &"y".repeat(100));
        let earlier = Earlier::new(&status, Duration::from_secs(1));
        for width in [LEAST_WIDTH, 80, 132, 300] {
            for earlier in [None, Some(&earlier)] {
                let text = table(&status, earlier, width, now());
                for line in text.lines() {
                    assert!(line.width() <= width, "{width}: {line}");
                    assert!(
                        !line.contains(|c: char| c.is_control() || c == '\u{202e}'),
                        "{line:?}"
                    );
                }
                // The whole error is there.
                assert!(text.matches('é').count() >= 200, "{text}");
            }
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (3599, "59m59s"),
            (86_399, "23h59m"),
            (100_000, "1d03h"),
        ] {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }
}
