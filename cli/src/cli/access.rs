//! The options of `aiot-tunnel access`.

use std::path::PathBuf;

use aiot_tunnel::TunnelId;
use clap::Args;

use crate::input;
use crate::network::NetworkOptions;

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
    #[command(flatten)]
    pub(crate) network: NetworkOptions,
}
