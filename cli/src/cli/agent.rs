//! The options of `aiot-tunnel agent`.

use std::path::PathBuf;
use std::time::Duration;

use aiot_tunnel::{ipc, Service};
use clap::{ArgAction, Args};
use log::LevelFilter;

use super::SWITCH;
use crate::agent::ConfiguredTunnel;
use crate::control::ControlArgs;
use crate::input::{self, OptionalDuration, QueueKey};
use crate::network::NetworkOptions;
use crate::output::LogFormat;
use crate::settings::{Field, Names, Table};

const TUNNEL_FIELDS: [Field; 3] =
    [Field::needed("id"), Field::needed("url"), Field::needed("token_file")];

/// How the settings are named in the environment and in the file.
pub(crate) const AGENT_SETTINGS: Names = Names {
    subcommand: "agent",
    prefix: "AIOT_TUNNEL_AGENT_",
    tables: &[
        Table::Map { option: "service", key: "services" },
        Table::List {
            option: "tunnel",
            key: "tunnel",
            fields: &TUNNEL_FIELDS,
            as_fields: str::to_owned,
        },
    ],
};

const AGENT_HELP: &str = "\
Examples:
  Offer ssh, and wait for commands:
    aiot-tunnel agent

  Offer ssh and a web server that listens on a Unix socket, and trust a CA of your own:
    aiot-tunnel agent --service _SSH=127.0.0.1:22 --service web=unix:/run/app.sock \\
        --ca ca.pem

  Take the settings from a file, after a look at what they are:
    aiot-tunnel agent --config /etc/aiot-tunnel/agent.toml --check
    aiot-tunnel agent --config /etc/aiot-tunnel/agent.toml --print-config
    aiot-tunnel agent --config /etc/aiot-tunnel/agent.toml

A file of settings is TOML. A key is an option's name with underscores; services and tunnels
are tables:
  ca = \"/etc/aiot-tunnel/ca.pem\"
  ping_interval = \"30s\"

  [services]
  _SSH = \"127.0.0.1:22\"

  [[tunnel]]
  id = \"t1\"
  url = \"wss://gw.example:8443\"
  token_file = \"/etc/aiot-tunnel/t1.token\"

Of an option, its environment variable and its key, the first that is set decides; an empty
variable is not set. In a variable, ';' divides the values of an option that may be repeated.
Times are in seconds, or have a unit: 90, 500ms, 5m, 1h. Sizes are in bytes, or have a unit: KiB,
MiB.

Tunnels come from the settings, from `aiot-tunnel send` through the control socket, and from the
business process of the Link SDK through the message queue. A container has no message queue: use
--queue-key off there. The agent prints one line for each event, such as \"Connect t1\".

Signals:
  SIGHUP           reads the file of settings and all files that it names again; open tunnels stay
  SIGUSR1          connects every tunnel again now
  SIGINT, SIGTERM  end the agent";

#[derive(Args)]
#[command(after_help = AGENT_HELP)]
pub(crate) struct AgentArgs {
    /// Read settings from this TOML file; its format is shown below
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Show the settings and where each comes from, as a file of settings, and end
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Check the settings and the files that they name, and end
    #[arg(long)]
    pub(crate) check: bool,

    /// Service to offer: TYPE=HOST:PORT, TYPE=[IPV6]:PORT or TYPE=unix:/PATH; may be repeated
    #[arg(
        long,
        value_name = "TYPE=ADDRESS",
        default_value = "_SSH=127.0.0.1:22",
        value_parser = input::service
    )]
    pub(crate) service: Vec<Service>,
    /// Tunnel to open at the start: its id, its URL (wss://HOST:PORT, with a path unless that is
    /// /tunnel/ID/dest) and the file with the device's token. A refused token is tried again. May be
    /// repeated
    #[arg(long, value_name = "\"ID URL TOKEN_FILE\"")]
    pub(crate) tunnel: Vec<ConfiguredTunnel>,

    /// Trust the certificates of this PEM file instead of the system's
    #[arg(long, value_name = "FILE", help_heading = "The tunnel service")]
    pub(crate) ca: Option<PathBuf>,
    /// Connect without TLS
    #[arg(long, action = ArgAction::Set, value_name = SWITCH, help_heading = "The tunnel service")]
    pub(crate) plain: bool,
    /// Client certificate chain (PEM file), the device's own certificate first
    #[arg(long, value_name = "FILE", help_heading = "The tunnel service")]
    pub(crate) client_cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM file, not encrypted)
    #[arg(long, value_name = "FILE", help_heading = "The tunnel service")]
    pub(crate) client_key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) network: NetworkOptions,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
    /// Key of the message queue that commands come from; "off": no queue
    #[arg(
        long,
        value_name = "KEY",
        default_value_t = QueueKey::Key(ipc::DEFAULT_KEY),
        help_heading = "Commands"
    )]
    pub(crate) queue_key: QueueKey,
    /// Permissions that the queue may have, in octal; an existing queue loses all others
    #[arg(
        long,
        value_name = "MODE",
        default_value = "0600",
        value_parser = input::octal,
        help_heading = "Commands"
    )]
    pub(crate) queue_mode: u32,
    /// User id that may own the queue, besides root and the user of this process
    #[arg(
        long,
        value_name = "UID",
        value_parser = input::user_id,
        help_heading = "Commands"
    )]
    pub(crate) queue_owner: Option<u32>,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    /// Format of the log on standard error
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Reports")]
    pub(crate) log_format: LogFormat,
    /// Log level, such as warn or debug. Default: RUST_LOG, or info
    #[arg(
        long,
        value_name = "LEVEL",
        value_parser = input::log_level,
        help_heading = "Reports"
    )]
    pub(crate) log_level: Option<LevelFilter>,
    /// Program to run for each event. Its environment has AIOT_TUNNEL_EVENT (connect, disconnect,
    /// expired or failed), AIOT_TUNNEL_ID, AIOT_TUNNEL_TIME and, after a failure, AIOT_TUNNEL_ERROR
    #[arg(long, value_name = "PROGRAM", help_heading = "Reports")]
    pub(crate) on_event: Option<PathBuf>,
}

/// Limits and times of the library, one option each.
#[derive(Args)]
#[command(next_help_heading = "Limits and times")]
pub(crate) struct LimitArgs {
    /// Tunnels that may exist at once
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = input::at_least_one)]
    pub(crate) max_tunnels: usize,
    /// Sessions that one tunnel may have at once
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = input::at_least_one)]
    pub(crate) max_sessions: usize,
    /// Bytes from the tunnel service that may wait for one local service; at least 64KiB. The window
    /// of a session with flow control grows to eight times as much
    #[arg(long, value_name = "BYTES", default_value = "256KiB", value_parser = input::session_buffer)]
    pub(crate) session_buffer: usize,
    /// Bytes that may wait for the tunnel service before local services are no longer read; at least
    /// 8KiB
    #[arg(long, value_name = "BYTES", default_value = "128KiB", value_parser = input::send_buffer)]
    pub(crate) send_buffer: usize,
    /// How long a local service that takes nothing may stop the other sessions of its tunnel, which
    /// it does only without flow control
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = input::duration)]
    pub(crate) stall_timeout: Duration,
    /// After how long without traffic a local service is probed; or never
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = input::optional_duration)]
    pub(crate) local_keepalive: OptionalDuration,
    /// After how long without a byte a session is cut; or never
    #[arg(long, value_name = "TIME", default_value = "never", value_parser = input::optional_duration)]
    pub(crate) session_idle_timeout: OptionalDuration,
    /// Time for the name lookup, TCP, TLS and the WebSocket handshake together
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = input::duration)]
    pub(crate) handshake_timeout: Duration,
    /// Time for the connection to a local service
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = input::duration)]
    pub(crate) connect_timeout: Duration,
    /// Time between two pings
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = input::duration)]
    pub(crate) ping_interval: Duration,
    /// Silence of the tunnel service after which the connection counts as lost
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = input::duration)]
    pub(crate) pong_timeout: Duration,
}
