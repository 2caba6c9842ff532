//! The program `aiot-tunnel`. One file for each subcommand; `cli.rs` declares their options, and
//! `--help` is the manual. Nothing but arguments, files, signals and the terminal is handled here:
//! what a subcommand does is the library's.
//!
//! The program exits with 0 after success, with 1 after a failure, and with 2 when the arguments
//! are wrong. `exit_codes.rs` has the others.

mod access;
mod agent;
mod cli;
mod control;
mod exit_codes;
mod gateway;
mod generate;
mod input;
mod manual;
mod network;
mod output;
mod process;
mod profile;
mod rates;
mod send;
mod settings;
mod signal;
mod ssh;
mod status;
mod tunnel;
mod warnings;

use std::fmt;
use std::process::ExitCode;

use cli::Subcommands;
use output::LogFormat;
use settings::Settings;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// The arguments are wrong. The text says why.
#[derive(Debug)]
struct Usage(String);

impl Usage {
    fn of(why: impl fmt::Display) -> Self {
        Usage(why.to_string())
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn main() -> ExitCode {
    let result = cli::parse().and_then(|(cli, settings)| run(cli.command, settings));
    let status = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::say_why(&*e);
            ExitCode::from(exit_codes::of(&*e))
        }
    };
    output::finish();
    status
}

fn run(command: Subcommands, settings: Option<Settings>) -> Result<()> {
    match &command {
        Subcommands::Agent(args) => output::init_log(args.log_format, args.log_level),
        Subcommands::Signal(args) => output::init_log(args.log_format, args.log_level),
        Subcommands::Gateway(args) => output::init_log(args.log_format, args.log_level),
        _ => output::init_log(LogFormat::Text, None),
    }
    match (command, settings) {
        (Subcommands::Gateway(args), Some(settings)) => gateway::run(&args, &settings),
        (Subcommands::Access(args), _) => access::run(&args),
        (Subcommands::Agent(args), Some(settings)) => agent::run(&args, settings),
        (Subcommands::Signal(args), Some(settings)) => signal::run(&args, &settings),
        // Nothing stands before the subcommand.
        (Subcommands::Agent(_) | Subcommands::Gateway(_) | Subcommands::Signal(_), None) => {
            Err(Usage::of("the subcommand must be the first argument").into())
        }
        (Subcommands::Ssh(args), _) => ssh::run(&args),
        (Subcommands::SshConfig(args), _) => ssh::config(&args),
        (Subcommands::Send(args), _) => send::run(&args),
        (Subcommands::Status(args), _) => status::run(&args),
        (Subcommands::Tunnel(args), _) => tunnel::run(&args),
        (Subcommands::GenToken(args), _) => generate::token(&args),
        (Subcommands::GenCert(args), _) => generate::certificate(&args),
        (Subcommands::Completions(args), _) => manual::completions(&args),
        (Subcommands::Man(args), _) => manual::man(&args),
        (Subcommands::PassConnection, _) => {
            let passed = aiot_tunnel_console::terminal::pass_connection();
            passed.map_err(|e| format!("hand the gateway's session to ssh: {e}").into())
        }
    }
}
