//! The options of `aiot-tunnel gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;

use aiot_tunnel::TunnelId;
use clap::Args;

use super::at_least_one;

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
