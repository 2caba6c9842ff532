//! Limits the lines of a worker. A cloud can make a worker write as many as it likes: it opens and
//! closes sessions, or connections. What is left out is counted.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::LogLimiter;
use log::Level;

use super::{write_unlimited, Code};

/// The period of the limits.
const WINDOW: Duration = LogLimiter::WINDOW;
/// Lines in one period. Ordinary use stays below: a session has two lines, a connection about
/// twenty.
const LINES: u32 = 400;
/// Warnings in one period. They have their own limit, so that ordinary lines do not hide them.
const WARNINGS: u32 = 100;

struct Budget {
    lines: LogLimiter,
    warnings: LogLimiter,
    /// Lines of the levels debug and trace.
    details: LogLimiter,
}

thread_local! {
    /// `None`: the lines of this thread are not limited.
    static BUDGET: RefCell<Option<Budget>> = const { RefCell::new(None) };
}

/// From now on limits the lines of this thread. What is left out is reported after the end of its
/// period, with the thread's next line. A worker has one at least for every ping.
pub(crate) fn limit_this_thread() {
    let budget = Budget {
        lines: LogLimiter::with_lines(WINDOW, LINES),
        warnings: LogLimiter::with_lines(WINDOW, WARNINGS),
        details: LogLimiter::with_lines(WINDOW, LINES),
    };
    BUDGET.set(Some(budget));
}

/// Reports what was left out and not reported: before the thread ends.
pub(crate) fn report_left_out() {
    let Some(budget) = BUDGET.take() else { return };
    let limiters = [budget.lines, budget.warnings, budget.details];
    report(limiters.into_iter().filter_map(|mut limiter| limiter.end()).sum());
}

/// Whether this thread may write another line of this level.
pub(super) fn permits(level: Level) -> bool {
    let now = Instant::now();
    let (left_out, permits) = BUDGET.with_borrow_mut(|budget| {
        let Some(budget) = budget else { return (0, true) };
        let Budget { lines, warnings, details } = budget;
        let limiters = [&mut *lines, &mut *warnings, &mut *details];
        let left_out = limiters.into_iter().filter_map(|limiter| limiter.tick(now)).sum();
        let limiter = match level {
            Level::Error | Level::Warn => warnings,
            Level::Info => lines,
            Level::Debug | Level::Trace => details,
        };
        (left_out, limiter.permits(now))
    });
    report(left_out);
    permits
}

fn report(left_out: u32) {
    if left_out > 0 {
        let text = format_args!("{left_out} more lines of this tunnel were left out");
        write_unlimited(Level::Warn, Code::Tunnel, text);
    }
}
