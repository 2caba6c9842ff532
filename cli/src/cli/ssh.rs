//! The options of `aiot-tunnel ssh` and `aiot-tunnel ssh-config`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::access::ProfileOptions;
use crate::input;
use crate::network::NetworkOptions;

const SSH_HELP: &str = "\
Examples:
  Log in to the device pump-17, with the default profile:
    aiot-tunnel ssh pump-17

  The same as another user, with one of ssh's own options, and a command:
    aiot-tunnel ssh -L 8080:localhost:80 admin@pump-17 uptime

  Copy a folder:
    rsync -a -e 'aiot-tunnel ssh' folder pump-17:

The options of this program begin with -- and stand first. All that follows is ssh's: its options
may stand before and behind the tunnel. ssh remembers the device's key under the name of the tunnel
and the address of the gateway. aiot-tunnel ssh-config prints lines for ssh's configuration, with
which ssh, scp, sftp, rsync and git reach pump-17.tunnel themselves.

The exit status is ssh's: that of the command, or 255 after an error. The reason stands above it, in
the words of aiot-tunnel access.";

#[derive(Args)]
#[command(after_help = SSH_HELP)]
pub(crate) struct SshArgs {
    #[command(flatten)]
    pub(crate) place: ProfileOptions,
    /// Tunnel service: wss://HOST:PORT, or ws://HOST:PORT without TLS. Without it, a profile names it
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// The device's service that speaks ssh; without it, that of the profile, or _SSH
    #[arg(long, value_parser = input::service_type)]
    pub(crate) service: Option<String>,
    /// Do not offer half-close and flow control, for a tunnel service that refuses unknown fields
    #[arg(long)]
    pub(crate) no_extensions: bool,
    /// Trust the certificates of this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// File with the operator's token; without it, AIOT_TUNNEL_ACCESS_TOKEN or the profile is used
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The tunnel, with or without a user, and ssh's own options and command
    #[arg(
        value_name = "[USER@]TUNNEL",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) arguments: Vec<OsString>,
    #[command(flatten)]
    pub(crate) network: NetworkOptions,
}

/// Of the process that `ssh` starts for itself.
#[derive(Args)]
pub(crate) struct HoldTokenArgs {
    /// The process whose end ends this one
    pub(crate) parent: i32,
}

const SSH_CONFIG_HELP: &str = "\
Examples:
  Make ssh, scp, sftp, rsync and git reach pump-17.tunnel:
    aiot-tunnel ssh-config >> ~/.ssh/config
    ssh pump-17.tunnel
    scp file pump-17.tunnel:

There is a block for each profile, which serves TUNNEL.PROFILE.tunnel, and one for the default profile,
which serves TUNNEL.tunnel. Print them again after the program has moved or the address of a gateway
has changed.";

#[derive(Args)]
#[command(after_help = SSH_CONFIG_HELP)]
pub(crate) struct SshConfigArgs {
    #[command(flatten)]
    pub(crate) place: ProfileOptions,
}
