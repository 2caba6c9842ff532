//! The options of `aiot-tunnel signal`.

use std::path::PathBuf;

use aiot_tunnel_signal::{Broker, Error};
use clap::Args;
use log::LevelFilter;

use crate::input;
use crate::output::LogFormat;
use crate::settings::Names;

/// How the settings are named in the environment and in the file.
pub(crate) const SIGNAL_SETTINGS: Names =
    Names { subcommand: "signal", prefix: "AIOT_TUNNEL_SIGNAL_", tables: &[] };

const SIGNAL_HELP: &str = "\
Examples:
  Sign in to Alibaba Cloud IoT with the DeviceSecret:
    aiot-tunnel signal --region cn-shanghai --product-key a1pk --device-name device-1 \\
        --device-secret-file /etc/aiot-tunnel/device.secret

  Use a broker of your own, with a user name and a client certificate:
    aiot-tunnel signal --broker mqtts://mqtt.example --product-key a1pk --device-name device-1 \\
        --username device-1 --password-file mqtt.password \\
        --ca ca.pem --client-cert device.pem --client-key device.key

  Take the settings from a file, after a look at what they are:
    aiot-tunnel signal --config /etc/aiot-tunnel/signal.toml --print-config
    aiot-tunnel signal --config /etc/aiot-tunnel/signal.toml

A file of settings is TOML; a key is an option's name with underscores. Of an option, its environment
variable and its key, the first that is set decides.

The platform tells over MQTT which tunnels to open and to close. The program hands this to the agent:
through the agent's control socket if it is there, otherwise through the message queue. It prints one
line for each command that the agent has taken, such as \"add t1\". It asks the platform for connection
data after each connection to the broker, when a tunnel has expired, when the agent has started again,
and on SIGUSR1. SIGINT and SIGTERM end it. Secrets are read from files and stay in memory.";

#[derive(Args)]
#[command(after_help = SIGNAL_HELP)]
pub(crate) struct SignalArgs {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Show the settings and where each comes from, as a file of settings, and end
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Check the settings and the files that they name, and end
    #[arg(long)]
    pub(crate) check: bool,
    /// Broker: mqtts://HOST[:PORT], or mqtt://HOST[:PORT] without TLS
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = ["region", "instance"],
        value_parser = broker
    )]
    pub(crate) broker: Option<Broker>,
    /// Use Alibaba Cloud IoT's broker for this region, such as cn-shanghai, over TLS
    #[arg(long, conflicts_with = "instance")]
    pub(crate) region: Option<String>,
    /// Use the broker of this Alibaba Cloud IoT instance, over TLS: its id, or the host name of its
    /// endpoint
    #[arg(long, value_name = "ID")]
    pub(crate) instance: Option<String>,
    /// ProductKey of this device; it is a part of the topics
    #[arg(long, value_name = "KEY")]
    pub(crate) product_key: Option<String>,
    /// DeviceName of this device; it is a part of the topics
    #[arg(long, value_name = "NAME")]
    pub(crate) device_name: Option<String>,
    /// File with the DeviceSecret, for the sign-in of Alibaba Cloud IoT
    #[arg(long, value_name = "FILE", conflicts_with_all = ["username", "client_id"])]
    pub(crate) device_secret_file: Option<PathBuf>,
    /// User name at the broker
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub(crate) username: Option<String>,
    /// File with the password of --username
    #[arg(long, value_name = "FILE", requires = "username")]
    pub(crate) password_file: Option<PathBuf>,
    /// MQTT client id, unique at the broker; default KEY.NAME
    #[arg(long, value_name = "ID")]
    pub(crate) client_id: Option<String>,
    /// Trust the certificates of this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Client certificate chain (PEM file), the client's own certificate first
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub(crate) client_cert: Option<PathBuf>,
    /// Private key of the client certificate (PEM file, not encrypted)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,
    /// Hand commands to the agent with this control socket. Without this option and --queue-key, the
    /// default socket is used if it is there, otherwise the default queue
    #[arg(long, value_name = "PATH")]
    pub(crate) control_socket: Option<PathBuf>,
    /// Hand commands to the agent with this message queue; with --control-socket, only while there is
    /// no socket
    #[arg(long, value_name = "KEY", value_parser = input::queue_key)]
    pub(crate) queue_key: Option<i32>,
    /// Format of the log on standard error
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Log level, such as warn or debug. Default: RUST_LOG, or info
    #[arg(long, value_name = "LEVEL", value_parser = input::log_level)]
    pub(crate) log_level: Option<LevelFilter>,
}

/// clap names the option itself.
fn broker(text: &str) -> Result<Broker, String> {
    text.parse().map_err(|e| match e {
        Error::Invalid { reason, .. } => reason,
        e => e.to_string(),
    })
}
