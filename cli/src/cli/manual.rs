//! The options of `aiot-tunnel completions` and `aiot-tunnel man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

const COMPLETIONS_HELP: &str = "\
Examples:
  Complete in this bash:
    source <(aiot-tunnel completions bash)

  Complete in every fish of this user:
    aiot-tunnel completions fish >~/.config/fish/completions/aiot-tunnel.fish

The Debian package and `make install` have installed them already.";

#[derive(Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub(crate) struct CompletionsArgs {
    /// Shell that reads the script
    pub(crate) shell: Shell,
}

#[derive(Args)]
pub(crate) struct ManArgs {
    /// Folder for the pages; it must exist
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
}
