//! The options of `aiot-tunnel agent`.

use std::path::PathBuf;

use aiot_tunnel::{ipc, Service};
use clap::Args;

use crate::control::ControlArgs;
use crate::input::{self, QueueKey};

const AGENT_HELP: &str = "\
Examples:
  Offer ssh, and wait for commands on the default queue:
    aiot-tunnel agent

  Offer ssh and a web server that listens on a Unix socket, and trust a CA of your own:
    aiot-tunnel agent --service _SSH=127.0.0.1:22 --service web=unix:/run/app.sock \\
        --ca ca.pem

  In a container, which has no message queue:
    aiot-tunnel agent --queue-key off

The agent opens no tunnel by itself. `aiot-tunnel send` tells it to through the control socket,
and the business process of the Link SDK through the message queue. It prints one line for
each event, such as \"Connect t1\". SIGINT and SIGTERM end it.";

#[derive(Args)]
#[command(after_help = AGENT_HELP)]
pub(crate) struct AgentArgs {
    /// Service to offer: TYPE=HOST:PORT, TYPE=[IPV6]:PORT or TYPE=unix:/PATH; may be repeated
    #[arg(
        long,
        value_name = "TYPE=ADDRESS",
        default_value = "_SSH=127.0.0.1:22",
        value_parser = input::service
    )]
    pub(crate) service: Vec<Service>,
    /// Trust the certificates of this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Connect without TLS
    #[arg(long, conflicts_with_all = ["ca", "client_cert"])]
    pub(crate) plain: bool,
    /// Client certificate chain (PEM file), the device's own certificate first
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub(crate) client_cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM file, not encrypted)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,
    /// Key of the message queue that commands come from; "off": no queue
    #[arg(long, value_name = "KEY", default_value_t = QueueKey::Key(ipc::DEFAULT_KEY))]
    pub(crate) queue_key: QueueKey,
    /// Permissions that the queue may have, in octal; an existing queue loses all others
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = input::octal)]
    pub(crate) queue_mode: u32,
    /// User id that may own the queue, besides root and the user of this process
    #[arg(long, value_name = "UID")]
    pub(crate) queue_owner: Option<u32>,
    #[command(flatten)]
    pub(crate) control: ControlArgs,
}
