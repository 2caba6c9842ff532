//! Writes the log lines of the access side, within limits: the gateway, the device and local
//! programs can cause as many as they like.

use std::fmt;
use std::time::Instant;

use ::log::Level;
use aiot_tunnel_proto::LogLimiter;
use parking_lot::Mutex;

use super::TARGET;

/// Lines in one period. Ordinary use stays far below.
const LINES: u32 = 100;

/// One for the process, because its log is one.
static LIMITER: Mutex<LogLimiter> = Mutex::new(LogLimiter::with_lines(LogLimiter::WINDOW, LINES));

/// Writes a line, unless too many were written in this period.
pub(super) fn line(level: Level, text: fmt::Arguments<'_>) {
    report(Instant::now());
    if LIMITER.lock().permits(Instant::now()) {
        ::log::log!(target: TARGET, level, "{text}");
    }
}

/// Reports what was left out in a period that is over.
pub(super) fn report(now: Instant) {
    write(LIMITER.lock().tick(now));
}

/// Reports what was left out: when the access side ends.
pub(super) fn report_all() {
    write(LIMITER.lock().end());
}

fn write(left_out: Option<u32>) {
    if let Some(count) = left_out {
        ::log::warn!(target: TARGET, "{count} more lines were left out");
    }
}

macro_rules! info {
    ($($text:tt)+) => { $crate::access::log::line(::log::Level::Info, format_args!($($text)+)) };
}
macro_rules! warn_ {
    ($($text:tt)+) => { $crate::access::log::line(::log::Level::Warn, format_args!($($text)+)) };
}
macro_rules! error {
    ($($text:tt)+) => { $crate::access::log::line(::log::Level::Error, format_args!($($text)+)) };
}
pub(super) use {error, info, warn_ as warn};
