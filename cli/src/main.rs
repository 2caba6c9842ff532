//! The program `aiot-tunnel`. One file for each subcommand; `cli.rs` declares their options, and
//! `--help` is the manual. Nothing but arguments, files, signals and the terminal is handled here:
//! what a subcommand does is the library's.
//!
//! The program exits with 0 after success, with 1 after a failure, and with 2 when the arguments
//! are wrong.

mod access;
mod agent;
mod cli;
mod gateway;
mod input;
mod output;
mod process;
mod send;
mod warnings;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Subcommands};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    output::init_log();
    let result = match cli.command {
        Subcommands::Gateway(args) => gateway::run(&args),
        Subcommands::Access(args) => access::run(&args),
        Subcommands::Agent(args) => agent::run(&args),
        Subcommands::Send(args) => send::run(&args),
    };
    let status = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::STDERR.push(format!("aiot-tunnel: {e}\n").into_bytes());
            ExitCode::FAILURE
        }
    };
    output::finish();
    status
}
