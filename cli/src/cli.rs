//! The options of every subcommand, and their help texts.

use std::net::SocketAddr;
use std::path::PathBuf;

use aiot_tunnel::{ipc, Port, Service, TunnelId};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::input;

/// Open secure tunnels to devices behind a firewall or NAT.
///
/// The device runs `agent`. An operator reaches its services with `access`. Both connect to the
/// platform's tunnel service, or to `gateway`. `send` tells the agent which tunnel to open.
///
/// Tokens are read from files or from the environment, never from the command line, where every
/// local user could see them.
#[derive(Parser)]
#[command(name = "aiot-tunnel", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Subcommands,
}

const AFTER_HELP: &str = "\
Environment:
  AIOT_TUNNEL_DEVICE_TOKEN  the device's token, for gateway and send
  AIOT_TUNNEL_ACCESS_TOKEN  the operator's token, for gateway and access
  RUST_LOG                  log level, such as warn or debug; default info

Exit status:
  0 success, 1 failure, 2 wrong arguments

`aiot-tunnel help SUBCOMMAND` shows the options and examples of a subcommand.";

#[derive(Subcommand)]
pub(crate) enum Subcommands {
    /// Serve tunnels to which devices and operators connect
    Gateway(GatewayArgs),
    /// Reach a service of a device through a local port, or through stdin and stdout
    Access(AccessArgs),
    /// Run the remote-login process of a device
    Agent(AgentArgs),
    /// Send a command to the agent on this machine
    Send(SendArgs),
}

const GATEWAY_HELP: &str = "\
Examples:
  Serve the tunnels of a file, with TLS:
    aiot-tunnel gateway --listen 0.0.0.0:8443 --cert server.pem --key server.key \\
        --tunnels tunnels.json

  Serve one tunnel for an hour, on this machine and without TLS:
    aiot-tunnel gateway --plain --tunnel t1 --expire 3600 \\
        --device-token-file device.token --access-token-file access.token

The file of --tunnels is a JSON list; \"expire\" (seconds from now) may be left out:
  [{\"id\": \"t1\", \"device_token\": \"...\", \"access_token\": \"...\", \"expire\": 3600}]

Devices connect to /tunnel/ID/dest, operators to /tunnel/ID/source. The gateway prints
\"listening on ADDRESS\" when it is ready. SIGINT and SIGTERM end it, and so does
SIGHUP: the files are read at the start only. An ID is a part of the path: visible ASCII
without '/', '?' and '#'.";

#[derive(Args)]
#[command(after_help = GATEWAY_HELP)]
pub(crate) struct GatewayArgs {
    /// Address to listen on; port 0 picks a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    pub(crate) listen: SocketAddr,
    /// Certificate chain (PEM file), the gateway's own certificate first
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key of the certificate (PEM file, not encrypted)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Also accept TLS 1.2 with RSA key exchange, for devices with the vendor's C SDK. Without
    /// forward secrecy: who gets the key later can read recorded connections
    #[arg(long, requires = "cert")]
    pub(crate) legacy_tls: bool,
    /// Serve ws, without TLS
    #[arg(long, conflicts_with = "cert")]
    pub(crate) plain: bool,
    /// Serve the tunnels of this JSON file; the format is shown below
    #[arg(long, value_name = "FILE", conflicts_with = "tunnel")]
    pub(crate) tunnels: Option<PathBuf>,
    /// Serve one tunnel with this id
    #[arg(long, value_name = "ID")]
    pub(crate) tunnel: Option<TunnelId>,
    /// File with the device's token; without it, AIOT_TUNNEL_DEVICE_TOKEN is used
    #[arg(long, value_name = "FILE", requires = "tunnel")]
    pub(crate) device_token_file: Option<PathBuf>,
    /// File with the operator's token; without it, AIOT_TUNNEL_ACCESS_TOKEN is used
    #[arg(long, value_name = "FILE", requires = "tunnel")]
    pub(crate) access_token_file: Option<PathBuf>,
    /// Seconds from now after which the tunnel expires
    #[arg(
        long,
        requires = "tunnel",
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub(crate) expire: Option<u64>,
    /// Sessions that one tunnel may have at once
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = at_least_one())]
    pub(crate) session_limit: usize,
    /// Connections that may be open in all; one more is answered with HTTP 503
    #[arg(long, value_name = "NUMBER", default_value_t = 1024, value_parser = at_least_one())]
    pub(crate) connection_limit: usize,
    /// Handshakes that may run at once; further clients wait for a place
    #[arg(long, value_name = "NUMBER", default_value_t = 64)]
    pub(crate) handshake_limit: usize,
    /// Operators that may be connected to one tunnel at once; one more is answered with HTTP 503
    #[arg(long, value_name = "NUMBER", default_value_t = 32, value_parser = at_least_one())]
    pub(crate) access_limit: usize,
}

const ACCESS_HELP: &str = "\
Examples:
  Log in to a device with ssh:
    ssh -o ProxyCommand='aiot-tunnel access --url wss://gw.example:8443 --tunnel t1 --stdio' \\
        user@device

  Forward local port 8080 to the device's service \"web\":
    aiot-tunnel access --url wss://gw.example:8443 --tunnel t1 --service web \\
        --listen 127.0.0.1:8080

  Forward two ports to two services, and wait for the tunnel service if it is away:
    aiot-tunnel access --url wss://gw.example:8443 --tunnel t1 --retry \\
        --listen localhost:2222=_SSH --listen :8080=web

With --listen, \"listening on ADDRESS\" is printed for each port when it is open, and a lost
connection to the tunnel service is opened again. A session that is cut shows as a connection
reset; with --stdio, as an error message and exit status 1. So do a standard input that cannot
be read and a standard output that cannot be written. With --stdio, the two directions end one by
one: the program ends after the end of standard input and the end of the service's stream. SIGINT
and SIGTERM end the program.";

#[derive(Args)]
#[command(after_help = ACCESS_HELP)]
pub(crate) struct AccessArgs {
    /// Tunnel service: wss://HOST:PORT, or ws://HOST:PORT without TLS; with a path instead of
    /// --tunnel
    #[arg(long)]
    pub(crate) url: String,
    /// Id of the tunnel
    #[arg(long, value_name = "ID")]
    pub(crate) tunnel: Option<TunnelId>,
    /// Service to ask the device for
    #[arg(long, default_value = "_SSH", value_parser = input::service_type)]
    pub(crate) service: String,
    /// Forward connections to this local address: HOST:PORT, or :PORT on all addresses; port 0
    /// picks a free port. With =SERVICE, they reach this service instead of --service. May be
    /// repeated
    #[arg(
        long,
        value_name = "ADDRESS[=SERVICE]",
        value_parser = input::listen,
        conflicts_with = "stdio",
        required_unless_present = "stdio"
    )]
    pub(crate) listen: Vec<String>,
    /// Connect stdin and stdout to one session, for ssh's ProxyCommand
    #[arg(long)]
    pub(crate) stdio: bool,
    /// With --listen: go on trying if the first connection to the tunnel service fails
    #[arg(long, conflicts_with = "stdio")]
    pub(crate) retry: bool,
    /// With --listen: how long a connection waits for a session, while the tunnel has as many as it
    /// may have, or while the tunnel service or the device is away; then it is reset
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) queue_timeout: u64,
    /// How long a session without half-close goes on without a byte after the local program has
    /// ended its stream; then it is cut
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) half_close_timeout: u64,
    /// After how long without traffic a local connection is probed; 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) keepalive: u64,
    /// Do not offer half-close and flow control, for a tunnel service that refuses unknown fields
    #[arg(long)]
    pub(crate) no_extensions: bool,
    /// Trust the certificates of this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// File with the operator's token; without it, AIOT_TUNNEL_ACCESS_TOKEN is used
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

const AGENT_HELP: &str = "\
Examples:
  Offer ssh, and wait for commands on the default queue:
    aiot-tunnel agent

  Offer ssh and a web server that listens on a Unix socket, and trust a CA of your own:
    aiot-tunnel agent --service _SSH=127.0.0.1:22 --service web=unix:/run/app.sock \\
        --ca ca.pem

The agent opens no tunnel by itself: `aiot-tunnel send`, or the business process of the
Link SDK, tells it through the message queue. It prints one line for each event, such as
\"Connect t1\". SIGINT and SIGTERM end it.";

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
    /// Key of the message queue that commands come from
    #[arg(
        long,
        value_name = "KEY",
        default_value_t = ipc::DEFAULT_KEY,
        value_parser = input::queue_key
    )]
    pub(crate) queue_key: i32,
    /// Permissions that the queue may have, in octal; an existing queue loses all others
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = input::octal)]
    pub(crate) queue_mode: u32,
    /// User id that may own the queue, besides root and the user of this process
    #[arg(long, value_name = "UID")]
    pub(crate) queue_owner: Option<u32>,
}

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

/// A limit. With 0, nothing would work.
fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declarations_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
