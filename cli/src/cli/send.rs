//! The options of `aiot-tunnel send`.

use std::path::PathBuf;

use aiot_tunnel::{Port, TunnelId};
use clap::{Args, ValueEnum};

use crate::control::path_of_socket;
use crate::input;

const SEND_HELP: &str = "\
Examples:
  Open a tunnel; the token is in a file:
    aiot-tunnel send add --tunnel t1 --host gw.example --port 8443 \\
        --token-file device.token

  Close it:
    aiot-tunnel send delete --tunnel t1

  Connect all tunnels again now, for example after the network has changed:
    aiot-tunnel send reconnect

The command goes through the agent's control socket. If no agent listens at its default path,
or this user may not use it, or with --queue-key, the command goes through the message queue,
which carries add, update and delete. The program ends when the agent has taken the command,
and fails if nobody takes it within three seconds. The agent reports the outcome as an event.";

#[derive(Args)]
#[command(after_help = SEND_HELP)]
pub(crate) struct SendArgs {
    /// Command to send
    pub(crate) operation: Operation,
    /// Id of the tunnel; needed for add, update and delete. Reconnect without it is for all
    #[arg(
        long,
        value_name = "ID",
        required_if_eq_any([("operation", "add"), ("operation", "update"), ("operation", "delete")])
    )]
    pub(crate) tunnel: Option<TunnelId>,
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
    /// The agent's control socket; default /run/aiot-tunnel/agent.sock
    #[arg(long, value_name = "PATH", value_parser = path_of_socket, conflicts_with = "queue_key")]
    pub(crate) control_socket: Option<PathBuf>,
    /// Key of the agent's message queue; 1234 unless the agent has another one
    #[arg(long, value_name = "KEY", value_parser = input::queue_key)]
    pub(crate) queue_key: Option<i32>,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Open a tunnel
    Add,
    /// Give a tunnel a new address or token, and connect it again
    Update,
    /// Close a tunnel
    Delete,
    /// Connect a tunnel again now, or all of them
    Reconnect,
    /// Make the agent read its services and files again, as SIGHUP does
    Reload,
}
