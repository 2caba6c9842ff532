//! Signals, and the line that scripts wait for.

use std::io::Write;
use std::net::SocketAddr;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Result;

/// The signals that end the program in order.
pub(crate) fn ending_signals() -> Result<Signals> {
    Ok(Signals::new([SIGINT, SIGTERM])?)
}

/// Calls `stop` at the first SIGINT or SIGTERM, on a thread of its own.
pub(crate) fn on_signal(stop: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut signals = ending_signals()?;
    std::thread::spawn(move || {
        signals.forever().next();
        stop();
    });
    Ok(())
}

/// Says that the port is open.
pub(crate) fn say_listening(address: SocketAddr) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {address}")?;
    Ok(stdout.flush()?)
}
