//! The options of every subcommand and their help texts, one file for each subcommand.

mod access;
mod agent;
mod gateway;
mod send;
mod signal;
mod status;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};

pub(crate) use access::AccessArgs;
pub(crate) use agent::AgentArgs;
pub(crate) use gateway::GatewayArgs;
pub(crate) use send::{Operation, SendArgs};
pub(crate) use signal::SignalArgs;
pub(crate) use status::StatusArgs;

/// Open secure tunnels to devices behind a firewall or NAT.
///
/// The device runs `agent`. An operator reaches its services with `access`. Both connect to the
/// platform's tunnel service, or to `gateway`. `send` tells the agent which tunnel to open, and
/// `status` shows what the tunnels do. `signal` tells the agent what the platform says over MQTT.
///
/// Tokens are read from files or from the environment, never from the command line, where every
/// local user could see them.
#[derive(Parser)]
#[command(name = "aiot-tunnel", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Subcommands,
}

const AFTER_HELP: &str = "\
Environment:
  AIOT_TUNNEL_DEVICE_TOKEN  the device's token, for gateway and send
  AIOT_TUNNEL_ACCESS_TOKEN  the operator's token, for gateway and access
  RUST_LOG                  log level, such as warn or debug; default info

Exit status:
  0 success, 1 failure, 2 wrong arguments

`aiot-tunnel help SUBCOMMAND` shows the options and examples of a subcommand.";

#[derive(Subcommand)]
pub(crate) enum Subcommands {
    /// Serve tunnels to which devices and operators connect
    Gateway(GatewayArgs),
    /// Reach a service of a device through a local port, or through stdin and stdout
    Access(AccessArgs),
    /// Run the remote-login process of a device
    Agent(AgentArgs),
    /// Send a command to the agent on this machine
    Send(SendArgs),
    /// Tell the agent what the platform says over MQTT
    Signal(SignalArgs),
    /// Show the tunnels and sessions of the agent on this machine
    Status(StatusArgs),
}

/// A limit. With 0, nothing would work.
fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declarations_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
