//! The program `aiot-tunnel`. One file for each subcommand; `cli.rs` declares their options, and
//! `--help` is the manual. Nothing but arguments, files, signals and the terminal is handled here:
//! what a subcommand does is the library's.
//!
//! The program exits with 0 after success, with 1 after a failure, and with 2 when the arguments
//! are wrong.

mod access;
mod agent;
mod cli;
mod control;
mod gateway;
mod input;
mod output;
mod process;
mod send;
mod signal;
mod status;
mod warnings;

use std::fmt;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Subcommands};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Exit status after wrong arguments. clap uses the same one.
const WRONG_ARGUMENTS: u8 = 2;

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
    let cli = Cli::parse();
    output::init_log();
    let result = match cli.command {
        Subcommands::Gateway(args) => gateway::run(&args),
        Subcommands::Access(args) => access::run(&args),
        Subcommands::Agent(args) => agent::run(&args),
        Subcommands::Send(args) => send::run(&args),
        Subcommands::Signal(args) => signal::run(&args),
        Subcommands::Status(args) => status::run(&args),
    };
    let status = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::STDERR.push(format!("aiot-tunnel: {e}\n").into_bytes());
            match e.is::<Usage>() {
                true => ExitCode::from(WRONG_ARGUMENTS),
                false => ExitCode::FAILURE,
            }
        }
    };
    output::finish();
    status
}
