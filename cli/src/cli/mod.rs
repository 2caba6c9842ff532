//! The options of every subcommand and their help texts, one file for each subcommand.

mod access;
mod agent;
mod gateway;
mod manual;
mod send;
mod signal;
mod ssh;
mod status;
mod tunnel;

use std::ffi::OsString;

use clap::builder::RangedU64ValueParser;
use clap::parser::ValueSource;
use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand,
};

use crate::profile::Profile;
use crate::settings::{self, Names, Settings};
use crate::Usage;

pub(crate) use access::{AccessArgs, SSH_DOMAIN};
pub(crate) use agent::{AgentArgs, LimitArgs, AGENT_SETTINGS};
pub(crate) use gateway::{GatewayArgs, GATEWAY_SETTINGS};
pub(crate) use manual::{CompletionsArgs, ManArgs};
pub(crate) use send::{Operation, SendArgs};
pub(crate) use signal::{SignalArgs, SIGNAL_SETTINGS};
pub(crate) use ssh::{HoldTokenArgs, SshArgs, SshConfigArgs};
pub(crate) use status::StatusArgs;
pub(crate) use tunnel::{
    GenCertArgs, GenTokenArgs, TokenSide, TunnelAction, TunnelArgs, DEFAULT_API,
};

/// Open secure tunnels to devices behind a firewall or NAT.
///
/// The device runs `agent`. An operator logs in with `ssh` and reaches other services with `access`. Both connect to the
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
  0 success, 1 failure, 2 wrong arguments; `aiot-tunnel access --help` lists those of access

`aiot-tunnel help SUBCOMMAND` shows the options and examples of a subcommand.";

#[derive(Subcommand)]
pub(crate) enum Subcommands {
    /// Serve tunnels to which devices and operators connect
    Gateway(GatewayArgs),
    /// Add, show and change the tunnels of a gateway, through its HTTP API
    Tunnel(TunnelArgs),
    /// Reach a service of a device through a local port, or through stdin and stdout
    Access(AccessArgs),
    /// Log in to a device with the system's ssh
    Ssh(SshArgs),
    /// Print lines for ssh's configuration, so that ssh, scp and rsync reach NAME.tunnel
    SshConfig(SshConfigArgs),
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
    /// Hand a terminal's session to ssh, whose proxy command this is
    #[command(hide = true, name = aiot_tunnel_console::terminal::SUBCOMMAND)]
    PassConnection,
    /// Hold a token for the access that ssh starts
    #[command(hide = true)]
    HoldToken(HoldTokenArgs),
}

/// The subcommands that take settings from a file and from the environment.
const WITH_SETTINGS: [&Names; 3] = [&AGENT_SETTINGS, &GATEWAY_SETTINGS, &SIGNAL_SETTINGS];

/// The value of a setting that is on or off: `--name`, `--name=true` and `--name=false`, so that the command
/// line can switch off what the file switches on.
const SWITCH: &str = "BOOL";

/// The program's command line, as help and manual pages show it.
pub(crate) fn command() -> Command {
    WITH_SETTINGS.iter().fold(declared(), |command, names| {
        command.mut_subcommand(names.subcommand, |subcommand| names.document(subcommand))
    })
}

/// The command line as the structures declare it.
fn declared() -> Command {
    let is_switch = |arg: &Arg| arg.get_value_names().is_some_and(|names| names[..] == [SWITCH]);
    let complete = |arg: Arg| match is_switch(&arg) {
        true => arg
            .num_args(0..=1)
            .require_equals(true)
            .required(false)
            .default_value("false")
            .default_missing_value("true"),
        false => arg,
    };
    WITH_SETTINGS.iter().fold(Cli::command(), |command, names| {
        command.mut_subcommand(names.subcommand, |subcommand| subcommand.mut_args(complete))
    })
}

/// The options of a subcommand, without the names of their variables in the help texts.
pub(crate) fn options_of(names: &Names) -> Command {
    let mut command = declared();
    command.build();
    command.find_subcommand(names.subcommand).cloned().unwrap_or_default()
}

/// Parses the command line, with the settings of the environment and of a file. Ends the program after
/// a request for help and after wrong arguments.
///
/// # Errors
/// A wrong setting in the environment, the file or the profile.
pub(crate) fn parse() -> crate::Result<(Cli, Option<Settings>)> {
    let (arguments, settings) = layered()?;
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        // What the options of the command line do to each other is clap's to explain.
        Err(e) => match settings.as_ref().and_then(|settings| settings.explain(&e)) {
            Some(wrong) => return Err(wrong.into()),
            None => e.exit(),
        },
    };
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    match cli.command {
        Subcommands::Access(args) if args.url.is_none() => {
            Ok((with_profile(&args, &matches)?, None))
        }
        command => Ok((Cli { command }, settings)),
    }
}

/// The arguments of `access` with those of a profile behind them.
fn with_profile(args: &AccessArgs, matches: &ArgMatches) -> crate::Result<Cli> {
    let tunnel =
        args.tunnel()?.ok_or_else(|| Usage::of("give --tunnel ID, or the path in --url"))?;
    let profile =
        Profile::load(args.place.config.as_deref(), args.place.profile.as_deref(), &tunnel)?;
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let options = access_options();
    let given = matches.subcommand_matches("access");
    for (option, value) in profile.options() {
        let arg = options.get_arguments().find(|arg| arg.get_long() == Some(&option));
        let Some(arg) = arg else { continue };
        let source = given.and_then(|given| given.value_source(arg.get_id().as_str()));
        if source == Some(ValueSource::CommandLine) {
            continue;
        }
        match (arg.get_action(), value) {
            (ArgAction::SetTrue, "true") => arguments.push(format!("--{option}").into()),
            (ArgAction::SetTrue, _) => {}
            _ => arguments.push(format!("--{option}={value}").into()),
        }
    }
    let mut cli = Cli::try_parse_from(arguments).unwrap_or_else(|e| e.exit());
    if let Subcommands::Access(args) = &mut cli.command {
        args.loaded = Some(profile);
    }
    Ok(cli)
}

/// The options of `access`.
pub(crate) fn access_options() -> Command {
    Cli::command().find_subcommand("access").cloned().unwrap_or_default()
}

/// The agent's settings as they are now.
///
/// # Errors
/// A wrong setting.
pub(crate) fn agent_again() -> Result<(AgentArgs, Settings), Usage> {
    match again()? {
        (Subcommands::Agent(args), settings) => Ok((args, settings)),
        _ => Err(Usage::of("this is no agent")),
    }
}

/// The gateway's settings as they are now.
///
/// # Errors
/// A wrong setting.
pub(crate) fn gateway_again() -> Result<(GatewayArgs, Settings), Usage> {
    match again()? {
        (Subcommands::Gateway(args), settings) => Ok((args, settings)),
        _ => Err(Usage::of("this is no gateway")),
    }
}

fn again() -> Result<(Subcommands, Settings), Usage> {
    let (arguments, settings) = layered()?;
    let settings = settings.ok_or_else(|| Usage::of("the subcommand has no settings"))?;
    let one_line = |e: clap::Error| {
        let first = || Usage::of(e.to_string().lines().next().unwrap_or_default());
        settings.explain(&e).unwrap_or_else(first)
    };
    let matches = command().try_get_matches_from(arguments).map_err(one_line)?;
    let command = Cli::from_arg_matches(&matches).map_err(one_line)?.command;
    Ok((command, settings))
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
        command().debug_assert();
    }
}
