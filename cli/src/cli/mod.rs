//! The options of every subcommand and their help texts, one file for each subcommand.

mod access;
mod agent;
mod gateway;
mod manual;
mod send;
mod signal;
mod status;
mod tunnel;

use std::ffi::OsString;

use clap::builder::RangedU64ValueParser;
use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::settings::{self, Names, Settings};
use crate::Usage;

pub(crate) use access::AccessArgs;
pub(crate) use agent::{AgentArgs, LimitArgs, AGENT_SETTINGS};
pub(crate) use gateway::{GatewayArgs, GATEWAY_SETTINGS};
pub(crate) use manual::{CompletionsArgs, ManArgs};
pub(crate) use send::{Operation, SendArgs};
pub(crate) use signal::{SignalArgs, SIGNAL_SETTINGS};
pub(crate) use status::StatusArgs;
pub(crate) use tunnel::{
    GenCertArgs, GenTokenArgs, TokenSide, TunnelAction, TunnelArgs, DEFAULT_API,
};

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
    /// Add, show and change the tunnels of a gateway, through its HTTP API
    Tunnel(TunnelArgs),
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
    /// Make a token or a key for the gateway's API
    GenToken(GenTokenArgs),
    /// Make a throwaway CA and a certificate for a gateway
    GenCert(GenCertArgs),
    /// Print the completions for a shell
    Completions(CompletionsArgs),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man(ManArgs),
}

/// The subcommands that take settings from a file and from the environment.
const WITH_SETTINGS: [&Names; 3] = [&AGENT_SETTINGS, &GATEWAY_SETTINGS, &SIGNAL_SETTINGS];

/// The program's command line, as help and manual pages show it.
pub(crate) fn command() -> Command {
    WITH_SETTINGS.iter().fold(Cli::command(), |command, names| {
        command.mut_subcommand(names.subcommand, |subcommand| names.document(subcommand))
    })
}

/// The options of a subcommand, without the names of their variables in the help texts.
pub(crate) fn options_of(names: &Names) -> Command {
    let mut command = Cli::command();
    command.build();
    command.find_subcommand(names.subcommand).cloned().unwrap_or_default()
}

/// Parses the command line, with the settings of the environment and of a file. Ends the program after
/// a request for help and after wrong arguments.
///
/// # Errors
/// A wrong setting in the environment or the file.
pub(crate) fn parse() -> Result<(Cli, Option<Settings>), Usage> {
    let (arguments, settings) = layered()?;
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        // What the options of the command line do to each other is clap's to explain.
        Err(e) => match settings.as_ref().and_then(|settings| settings.explain(&e)) {
            Some(wrong) => return Err(wrong),
            None => e.exit(),
        },
    };
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    Ok((cli, settings))
}

/// The agent's settings as they are now.
///
/// # Errors
/// A wrong setting.
pub(crate) fn agent_again() -> Result<(AgentArgs, Settings), Usage> {
    let (arguments, settings) = layered()?;
    let first_line = |e: clap::Error| Usage::of(e.to_string().lines().next().unwrap_or_default());
    let matches = command().try_get_matches_from(arguments).map_err(first_line)?;
    match (Cli::from_arg_matches(&matches).map_err(first_line)?.command, settings) {
        (Subcommands::Agent(args), Some(settings)) => Ok((args, settings)),
        _ => Err(Usage::of("this is no agent")),
    }
}

fn layered() -> Result<(Vec<OsString>, Option<Settings>), Usage> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let names = WITH_SETTINGS.iter().find(|names| settings::is_for(names, &arguments));
    let Some(names) = names else { return Ok((arguments, None)) };
    let command = command();
    let Some(subcommand) = command.find_subcommand(names.subcommand) else {
        return Ok((arguments, None));
    };
    let (arguments, settings) = settings::layer(names, subcommand, &arguments)?;
    Ok((arguments, Some(settings)))
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
