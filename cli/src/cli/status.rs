//! The options of `aiot-tunnel status`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::control::{path_of_socket, DEFAULT_PATH};

const STATUS_HELP: &str = "\
Examples:
  Show the tunnels and their sessions:
    aiot-tunnel status

  Watch them, with the bytes of each second:
    aiot-tunnel status --watch

  Print the ids of the tunnels that are connected:
    aiot-tunnel status --json \\
        | jq -r '.tunnels[] | select(.state == \"connected\") | .id'

\"Since\" is the time for which a tunnel has been in its state, \"tries\" the number of attempts
to connect since it was last open. Bytes are those of sessions, without the tunnel's own
overhead; those of a tunnel include its ended sessions.

On a terminal, --watch shows the latest state until Ctrl-C, also across restarts of the agent.
Elsewhere it prints one state after the other, with --json one in each line, and ends with the
agent.";

#[derive(Args)]
#[command(after_help = STATUS_HELP)]
pub(crate) struct StatusArgs {
    /// Print JSON on one line; docs/control.md describes it
    #[arg(long)]
    pub(crate) json: bool,
    /// Show the state again and again, with rates
    #[arg(long)]
    pub(crate) watch: bool,
    /// Seconds between two looks with --watch
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "1",
        requires = "watch",
        value_parser = seconds
    )]
    pub(crate) interval: Duration,
    /// The agent's control socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = DEFAULT_PATH,
        value_parser = path_of_socket
    )]
    pub(crate) control_socket: PathBuf,
}

/// From a tenth of a second to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds from 0.1 to 86400".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "NaN", "inf", "1s", "86401"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
