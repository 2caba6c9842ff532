//! `aiot-tunnel man` and `aiot-tunnel completions`: what an installation has beside the program, made
//! from the declared options, so that it cannot differ from `--help`.

mod example;
mod help;
mod page;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_mangen::roff::Roff;

use crate::cli::{self, CompletionsArgs, ManArgs};
use crate::Result;

const NAME: &str = "aiot-tunnel";

/// Prints the script that makes a shell complete the program's arguments.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut visible(&cli::command()), NAME, &mut script);
    let script = String::from_utf8(script)?;
    // clap_complete 4.6 writes a name with a hyphen in two ways, and bash does not find the one by the
    // other.
    let script = script.replace("aiot__subcmd__tunnel", "aiot__tunnel");
    Ok(io::stdout().write_all(script.as_bytes())?)
}

/// Without the hidden subcommands, which the scripts would show.
fn visible(command: &Command) -> Command {
    let subcommands = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments())
        .subcommands(subcommands)
}

/// Writes a page for the program, for each subcommand, and for each file of settings.
pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let mut program = cli::command().disable_help_subcommand(true);
    program.build();
    let subcommands: Vec<Command> =
        program.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    for subcommand in subcommands {
        write(&args.folder, page::of_command(subcommand)?)?;
    }
    for file in &example::FILES {
        write(&args.folder, page::of_settings(file)?)?;
    }
    write(&args.folder, page::of_command(program)?)
}

/// A page and the name of its file.
struct Page {
    file: String,
    text: Vec<u8>,
}

impl Page {
    fn new(name: &str, section: u8, roff: &Roff, head: Vec<u8>) -> Result<Page> {
        let mut text = head;
        roff.to_writer(&mut text)?;
        Ok(Page { file: format!("{name}.{section}"), text })
    }
}

fn write(folder: &Path, page: Page) -> Result<()> {
    let path = folder.join(page.file);
    fs::write(&path, page.text).map_err(|e| format!("{}: {e}", path.display()).into())
}
