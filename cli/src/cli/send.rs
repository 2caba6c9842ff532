//! The options of `aiot-tunnel send`.

use std::path::PathBuf;

use aiot_tunnel::{ipc, Port, TunnelId};
use clap::{Args, ValueEnum};

use crate::input;

const SEND_HELP: &str = "\
Examples:
  Open a tunnel; the token is in a file:
    aiot-tunnel send add --tunnel t1 --host gw.example --port 8443 \\
        --token-file device.token

  Close it:
    aiot-tunnel send delete --tunnel t1

The program ends when the agent has taken the command, and fails if nobody takes it within
three seconds. The agent reports the outcome as an event.";

#[derive(Args)]
#[command(after_help = SEND_HELP)]
pub(crate) struct SendArgs {
    /// Command to send
    pub(crate) operation: Operation,
    /// Id of the tunnel
    #[arg(long, value_name = "ID")]
    pub(crate) tunnel: TunnelId,
    /// Host of the tunnel service; needed for add and update
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Port of the tunnel service; needed for add and update
    #[arg(long)]
    pub(crate) port: Option<Port>,
    /// Path of the tunnel; default /tunnel/ID/dest
    #[arg(long)]
    pub(crate) path: Option<String>,
    /// File with the device's token; without it, AIOT_TUNNEL_DEVICE_TOKEN is used
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Key of the agent's message queue
    #[arg(
        long,
        value_name = "KEY",
        default_value_t = ipc::DEFAULT_KEY,
        value_parser = input::queue_key
    )]
    pub(crate) queue_key: i32,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Open a tunnel
    Add,
    /// Give a tunnel a new address or token, and connect it again
    Update,
    /// Close a tunnel
    Delete,
}
