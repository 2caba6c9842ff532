//! LK-coded log lines. Each goes with the same text to the `log` facade and to the C caller's
//! callback.
//!
//! A line reads `[<seconds>.<milliseconds>][LK-<code>] <text>\r\n`. The facade gets `[LK-<code>]
//! <text>` under the target `aiot_tunnel`. A text may contain bytes from a peer. So control
//! characters are replaced here, in one place, and a line stays one line.
//!
//! A worker never waits for the C caller's callback: see [`delivery`]. The facade calls the logger of
//! a Rust program directly; that logger must not block.

mod budget;
mod delivery;
mod held;

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use log::Level;
use parking_lot::Mutex;

use crate::state;

pub(crate) use budget::{limit_this_thread, report_left_out};
pub(crate) use delivery::{settle, Delivering};
pub(crate) use held::hold;

const TARGET: &str = "aiot_tunnel";

/// The code of a line. Operators' tools know lines by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Code {
    Tunnel = state::TUNNEL_BASE,
    TunnelFailed = state::TUNNEL_FAILED,
    TunnelTimeout = state::TUNNEL_TIMEOUT,
    TunnelReset = state::TUNNEL_RESET,
    Adapter = state::ADAPTER_COMMON,
    /// The reference logs the end of a successful WebSocket handshake under this code.
    Channel = state::PORT_NETWORK_CONNECT_FAILED,
    Dns = state::PORT_NETWORK_DNS_FAILED,
    Handshake = state::PORT_TLS_INVALID_HANDSHAKE,
    // The lines of a refused call of the C interface have the code that the call returns.
    NullPointer = state::USER_INPUT_NULL_POINTER,
    OutRange = state::USER_INPUT_OUT_RANGE,
    ExecDisabled = state::USER_INPUT_EXEC_DISABLED,
    CredOption = state::PORT_TLS_INVALID_CRED_OPTION,
    ServerCert = state::PORT_TLS_INVALID_SERVER_CERT,
    ClientCert = state::PORT_TLS_INVALID_CLIENT_CERT,
    ClientKey = state::PORT_TLS_INVALID_CLIENT_KEY,
    TunnelLimit = state::TUNNEL_LIMIT,
    TunnelBusy = state::TUNNEL_BUSY,
    TunnelRunning = state::TUNNEL_RUNNING,
    TunnelUnknown = state::TUNNEL_UNKNOWN,
}

/// Receives the code of a line (negative) and the whole line, which ends in `\r\n`.
pub(crate) type Sink = Arc<dyn Fn(i32, &str) + Send + Sync>;

static SINK: Mutex<Option<Sink>> = Mutex::new(None);
/// Whether there is a sink. Without a sink and without a logger, a line costs one load.
static HAS_SINK: AtomicBool = AtomicBool::new(false);
/// Locked while the sink runs, so that it receives one line at a time.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    static INSIDE_SINK: Cell<bool> = const { Cell::new(false) };
}

/// Replaces the sink. Blocks until the former sink no longer runs, unless the former sink itself is
/// the caller. Lines that wait for the former sink still go to it, unless it takes none.
pub(crate) fn set_sink(sink: Option<Sink>) {
    settle();
    let _turn = (!INSIDE_SINK.get()).then(|| TURN.lock());
    HAS_SINK.store(sink.is_some(), Ordering::Release);
    *SINK.lock() = sink;
}

pub(crate) fn write(level: Level, code: Code, text: fmt::Arguments<'_>) {
    if held::keeps(level, code, text) {
        return;
    }
    if budget::permits(level) {
        write_unlimited(level, code, text);
    }
}

/// Whether the facade takes a line of this level, and whether the sink does.
fn takers(level: Level) -> (bool, bool) {
    let to_facade = log::log_enabled!(target: TARGET, level);
    // A line that the sink itself causes does not go to the sink. Otherwise it would recurse
    // without end.
    let to_sink = HAS_SINK.load(Ordering::Acquire) && !INSIDE_SINK.get();
    (to_facade, to_sink)
}

fn write_unlimited(level: Level, code: Code, text: fmt::Arguments<'_>) {
    let (to_facade, to_sink) = takers(level);
    if !to_facade && !to_sink {
        return;
    }
    let text = text.to_string();
    let text = one_line(&text);
    let number = (code as i32).unsigned_abs();
    if to_facade {
        log::log!(target: TARGET, level, "[LK-{number:04X}] {text}");
    }
    if to_sink {
        delivery::deliver(line(code, &text));
    }
}

/// A line as the sink gets it.
struct Line {
    code: i32,
    text: String,
}

fn line(code: Code, text: &str) -> Line {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (now.as_secs(), now.subsec_millis());
    let number = (code as i32).unsigned_abs();
    let text = format!("[{seconds}.{millis:03}][LK-{number:04X}] {text}\r\n");
    Line { code: code as i32, text }
}

/// Calls the sink. Blocks while the sink runs, in this thread or in another one.
fn call_sink(line: &Line) {
    let _turn = TURN.lock();
    let Some(sink) = SINK.lock().clone() else { return };
    INSIDE_SINK.set(true);
    sink(line.code, &line.text);
    INSIDE_SINK.set(false);
}

/// Returns the text with `?` in place of each character that a terminal or a viewer may act upon.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_not_shown) {
        return text.into();
    }
    text.replace(is_not_shown, "?").into()
}

/// Control characters; line and paragraph separators; and the format characters, which are invisible,
/// and of which some change the order of the text around them.
fn is_not_shown(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
            | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E007F}')
}

macro_rules! info {
    ($code:expr, $($text:tt)+) => {
        $crate::logging::write(log::Level::Info, $code, format_args!($($text)+))
    };
}
macro_rules! warn_ {
    ($code:expr, $($text:tt)+) => {
        $crate::logging::write(log::Level::Warn, $code, format_args!($($text)+))
    };
}
macro_rules! debug {
    ($code:expr, $($text:tt)+) => {
        $crate::logging::write(log::Level::Debug, $code, format_args!($($text)+))
    };
}
pub(crate) use {debug, info, warn_ as warn};

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_peers_line_breaks_do_not_forge_lines() {
        assert_eq!(one_line("a\r\n[LK-1C80] b\u{1b}[0m"), "a??[LK-1C80] b?[0m");
        assert_eq!(one_line("plain é"), "plain é");
    }

    #[test]
    fn a_peers_invisible_characters_do_not_reorder_or_break_a_line() {
        assert_eq!(one_line("a\u{202E}b\u{2028}c\u{2066}d\u{200B}e\u{FEFF}"), "a?b?c?d?e?");
        assert_eq!(one_line("中文 ß — “x”"), "中文 ß — “x”");
    }
}
