//! Signals, and the line that scripts wait for.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::Result;

/// The signals that end the program in order. The second one ends it at once, whatever the program
/// waits for: the signal handler itself does that.
pub(crate) fn ending_signals() -> Result<Signals> {
    signals_with(&[])
}

/// The signals that end the program, and those by which the agent is told to do something.
pub(crate) fn agent_signals() -> Result<Signals> {
    signals_with(&[SIGHUP, SIGUSR1])
}

/// The signals that end the program, and the one by which the gateway is told to read its files again.
pub(crate) fn gateway_signals() -> Result<Signals> {
    signals_with(&[SIGHUP])
}

fn signals_with(more: &[i32]) -> Result<Signals> {
    let second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, second.clone())?;
        flag::register(signal, second.clone())?;
    }
    Ok(Signals::new([&[SIGINT, SIGTERM], more].concat())?)
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

/// Tells systemd, or whoever has set NOTIFY_SOCKET, about the state of the program.
pub(crate) fn tell_service_manager(state: &[NotifyState<'_>]) {
    // Without a service manager, nothing happens. With one that does not listen, nothing helps.
    if let Err(e) = sd_notify::notify(state) {
        log::debug!("tell the service manager: {e}");
    }
}
