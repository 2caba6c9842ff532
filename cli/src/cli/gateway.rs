//! The options of `aiot-tunnel gateway`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use aiot_tunnel::gateway::Subnet;
use aiot_tunnel::TunnelId;
use aiot_tunnel_registry::PublicUrl;
use clap::{ArgAction, Args};
use log::LevelFilter;

use super::{at_least_one, SWITCH};
use crate::exit_codes;
use crate::gateway::publish::{self, Publish};
use crate::input::{self, Unquoted};
use crate::output::LogFormat;
use crate::settings::{Names, Table};

/// How the settings are named in the environment and in the file.
pub(crate) const GATEWAY_SETTINGS: Names =
    Names { subcommand: "gateway", prefix: "AIOT_TUNNEL_GATEWAY_", tables: &[PUBLISH] };

const PUBLISH: Table = Table::List {
    option: "publish",
    key: "publish",
    fields: &publish::FIELDS,
    as_fields: publish::as_fields,
};

const GATEWAY_HELP: &str = "\
Examples:
  Serve the tunnels of a file, with TLS:
    aiot-tunnel gateway --listen 0.0.0.0:8443 --cert server.pem --key server.key \\
        --tunnels tunnels.json

  Keep tunnels in a store; `aiot-tunnel tunnel` adds and changes them over HTTP:
    aiot-tunnel gateway --listen 0.0.0.0:8443 --cert server.pem --key server.key \\
        --store tunnels.db --public-url wss://gw.example:8443 \\
        --api 127.0.0.1:8444 --api-key-file api.key

  The same with a page for browsers at https://gw.example:8444/, and a terminal in it:
    aiot-tunnel gateway --listen 0.0.0.0:8443 --cert server.pem --key server.key \\
        --store tunnels.db --public-url wss://gw.example:8443 \\
        --api 0.0.0.0:8444 --api-tls --api-key-file api.key --page --terminal

  Publish the SSH server of a device on a port of this machine; then `ssh -p 2222 localhost`:
    aiot-tunnel gateway --cert server.pem --key server.key --tunnels tunnels.json \\
        --publish 127.0.0.1:2222=t1:_SSH

  Serve without TLS behind a proxy on this machine, which has the certificate and tells the
  clients' addresses in X-Forwarded-For:
    aiot-tunnel gateway --plain --tunnels tunnels.json --trusted-proxy 127.0.0.1

  Serve TLS behind a balancer that sends the PROXY protocol:
    aiot-tunnel gateway --listen 10.0.0.9:8443 --cert server.pem --key server.key \\
        --tunnels tunnels.json --trusted-proxy 10.0.0.0/24 --proxy-protocol

  Serve one tunnel for an hour, on this machine and without TLS:
    aiot-tunnel gateway --plain --tunnel t1 --expire 3600 \\
        --device-token-file device.token --access-token-file access.token

  Take the settings from a file, after a look at what they are:
    aiot-tunnel gateway --config gateway.toml --print-config
    aiot-tunnel gateway --config gateway.toml

The file of --tunnels is a JSON list; \"expire\" (seconds from now) may be left out:
  [{\"id\": \"t1\", \"device_token\": \"...\", \"access_token\": \"...\", \"expire\": 3600}]

Devices connect to /tunnel/ID/dest, operators to /tunnel/ID/source. The gateway prints
\"listening on ADDRESS\" when it is ready. An ID is a part of the path: visible ASCII without
'/', '?' and '#'.

When the list, the certificate or its key changes, the gateway takes over the new file. Open
sessions go on, except those of tunnels that are no longer in the list or have another token.
A file that cannot be used leaves everything as it was.

The store is an SQLite file, or a Redis server. It holds digests of tokens. Their key is in FILE.key,
or in the file of --store-key-file. Keep both, and let nobody else read them. A password in the URL of
a Redis server is accepted in the file of settings and in the environment, not as an option, which
every user of the machine can see; --store-password-file is better.

A file of settings is TOML; a key is an option's name with underscores. Of an option, its
environment variable and its key, the first that is set decides. Published ports are tables:
  [[publish]]
  listen = \"127.0.0.1:2222\"
  tunnel = \"t1\"
  service = \"_SSH\"
  proxy_protocol = true
The last two may be left out. With proxy_protocol, a session begins with a header of the PROXY
protocol, version 2, which tells the service the client's address.

Signals:
  SIGHUP           reads the file of settings, list, certificate and key again, and opens the
                   audit log again; open sessions go on, except those of ports and tunnels that
                   are gone. A warning names settings that need a restart
  SIGINT, SIGTERM  end the gateway";

fn help() -> String {
    format!("{GATEWAY_HELP}\n\n{}", exit_codes::GATEWAY_TABLE)
}

#[derive(Args)]
#[command(after_help = help())]
pub(crate) struct GatewayArgs {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Show the settings and where each comes from, as a file of settings, and end
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Check the settings and the files that they name, and end
    #[arg(long)]
    pub(crate) check: bool,

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
    #[arg(long, action = ArgAction::Set, value_name = SWITCH)]
    pub(crate) legacy_tls: bool,
    /// Serve ws, without TLS
    #[arg(long, action = ArgAction::Set, value_name = SWITCH)]
    pub(crate) plain: bool,

    /// Serve the tunnels of this JSON file; `aiot-tunnel help gateway` shows its format
    #[arg(long, value_name = "FILE", conflicts_with = "tunnel", help_heading = "Tunnels")]
    pub(crate) tunnels: Option<PathBuf>,
    /// Serve one tunnel with this id
    #[arg(long, value_name = "ID", help_heading = "Tunnels")]
    pub(crate) tunnel: Option<TunnelId>,
    /// File with the device's token; without it, AIOT_TUNNEL_DEVICE_TOKEN is used
    #[arg(long, value_name = "FILE", requires = "tunnel", help_heading = "Tunnels")]
    pub(crate) device_token_file: Option<PathBuf>,
    /// File with the operator's token; without it, AIOT_TUNNEL_ACCESS_TOKEN is used
    #[arg(long, value_name = "FILE", requires = "tunnel", help_heading = "Tunnels")]
    pub(crate) access_token_file: Option<PathBuf>,
    /// Seconds from now after which the tunnel expires
    #[arg(
        long,
        requires = "tunnel",
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..),
        help_heading = "Tunnels"
    )]
    pub(crate) expire: Option<u64>,
    /// Keep the tunnels of the API in this SQLite file, which is made if it is not there; or in a
    /// Redis server that several gateways share: redis://[USER@]HOST[:PORT][/DB], rediss:// for TLS,
    /// or unix://PATH
    #[arg(long, value_name = "STORE", help_heading = "Tunnels")]
    pub(crate) store: Option<Unquoted>,
    /// File with the key of the digests in Redis, the same for all its gateways; make it with
    /// gen-token --out
    #[arg(long, value_name = "FILE", requires = "store", help_heading = "Tunnels")]
    pub(crate) store_key_file: Option<PathBuf>,
    /// File with the password at Redis
    #[arg(long, value_name = "FILE", requires = "store", help_heading = "Tunnels")]
    pub(crate) store_password_file: Option<PathBuf>,
    /// Trust the certificates of this PEM file, instead of the system's, for rediss://
    #[arg(long, value_name = "FILE", requires = "store", help_heading = "Tunnels")]
    pub(crate) store_ca: Option<PathBuf>,
    /// While Redis cannot be reached, known tokens are valid for this time; then clients are
    /// answered with HTTP 503. Open connections go on
    #[arg(
        long,
        value_name = "TIME",
        default_value = "10m",
        value_parser = input::duration,
        help_heading = "Tunnels"
    )]
    pub(crate) store_grace: Duration,

    /// Publish a service of a device on a port of the gateway: LISTEN=TUNNEL[:SERVICE], such as
    /// 127.0.0.1:2222=t1:_SSH. Plain TCP clients need no token: whoever reaches the port reaches the
    /// service. Port 0 picks a free port. May be repeated
    #[arg(long, value_name = "PORT", help_heading = "Published ports")]
    pub(crate) publish: Vec<Publish>,
    /// How long a client of a published port may wait while the device is away or has no free
    /// session; then its connection is reset
    #[arg(
        long,
        value_name = "TIME",
        default_value = "30s",
        value_parser = input::duration,
        help_heading = "Published ports"
    )]
    pub(crate) publish_queue_timeout: Duration,
    /// Clients that one published port may have at once, including those that wait; one more is
    /// reset
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 64,
        value_parser = at_least_one(),
        help_heading = "Published ports"
    )]
    pub(crate) publish_limit: usize,

    /// Serve the HTTP API on this address; port 0 picks a free port. Without this option there is
    /// no API
    #[arg(long, value_name = "ADDRESS", requires = "api_key_file", help_heading = "HTTP API")]
    pub(crate) api: Option<SocketAddr>,
    /// File with the key that clients of the API must present, of 20 characters or more
    #[arg(long, value_name = "FILE", requires = "api", help_heading = "HTTP API")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Serve the API with the gateway's certificate
    #[arg(long, action = ArgAction::Set, value_name = SWITCH, help_heading = "HTTP API")]
    pub(crate) api_tls: bool,
    /// Serve a page for browsers on the same address: tunnels, tokens, events. One logs in with the
    /// API's key
    #[arg(long, action = ArgAction::Set, value_name = SWITCH, help_heading = "HTTP API")]
    pub(crate) page: bool,
    /// Give the page a terminal: who has logged in opens a shell on a device in the browser. The
    /// gateway runs the system's ssh for it
    #[arg(long, action = ArgAction::Set, value_name = SWITCH, help_heading = "HTTP API")]
    pub(crate) terminal: bool,
    /// Directory where the terminal remembers the host keys of devices. Default: STORE.host-keys, if
    /// the store is a file
    #[arg(long, value_name = "DIRECTORY", help_heading = "HTTP API")]
    pub(crate) host_keys: Option<PathBuf>,
    /// URL at which clients reach the gateway, such as wss://gw.example:8443. The URLs that the API
    /// hands out begin with it. Default: the address of --listen
    #[arg(long, value_name = "URL", help_heading = "HTTP API")]
    pub(crate) public_url: Option<PublicUrl>,

    /// Tell devices of their tunnels by this MQTT broker, with the platform's messages:
    /// mqtts://HOST[:PORT], or mqtt://HOST[:PORT] without TLS. A tunnel has a device if it was made
    /// with one
    #[arg(long, value_name = "URL", requires = "store", help_heading = "Messages to devices")]
    pub(crate) notify: Option<Unquoted>,
    /// Trust the certificates of this PEM file, instead of the system's, for the broker
    #[arg(long, value_name = "FILE", requires = "notify", help_heading = "Messages to devices")]
    pub(crate) notify_ca: Option<PathBuf>,
    /// User name at the broker
    #[arg(
        long,
        value_name = "NAME",
        requires_all = ["notify", "notify_password_file"],
        help_heading = "Messages to devices"
    )]
    pub(crate) notify_user: Option<String>,
    /// File with the password of --notify-user
    #[arg(
        long,
        value_name = "FILE",
        requires_all = ["notify", "notify_user"],
        help_heading = "Messages to devices"
    )]
    pub(crate) notify_password_file: Option<PathBuf>,

    /// Proxy in front of the gateway or its API, or a network of proxies: ADDRESS[/BITS], such as
    /// 127.0.0.1 or 10.0.0.0/8. What it tells of a client's address counts; of others it does not.
    /// Without TLS, that is X-Forwarded-For. May be repeated
    #[arg(long, value_name = "ADDRESS[/BITS]", help_heading = "Behind proxies")]
    pub(crate) trusted_proxy: Vec<Subnet>,
    /// Expect a header of the PROXY protocol, version 1 or 2, at the beginning of each connection
    /// from a trusted proxy. Other clients must not send one
    #[arg(long, action = ArgAction::Set, value_name = SWITCH, help_heading = "Behind proxies")]
    pub(crate) proxy_protocol: bool,
    /// The same for connections to the HTTP API
    #[arg(long, action = ArgAction::Set, value_name = SWITCH, help_heading = "Behind proxies")]
    pub(crate) api_proxy_protocol: bool,

    /// Sessions that one tunnel may have at once
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 10,
        value_parser = at_least_one(),
        help_heading = "Limits"
    )]
    pub(crate) session_limit: usize,
    /// Connections that may be open in all; one more is answered with HTTP 503
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1024,
        value_parser = at_least_one(),
        help_heading = "Limits"
    )]
    pub(crate) connection_limit: usize,
    /// Handshakes that may run at once; further clients wait for a place
    #[arg(long, value_name = "NUMBER", default_value_t = 64, help_heading = "Limits")]
    pub(crate) handshake_limit: usize,
    /// Operators that may be connected to one tunnel at once; one more is answered with HTTP 503
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 32,
        value_parser = at_least_one(),
        help_heading = "Limits"
    )]
    pub(crate) access_limit: usize,
    /// Rate of each direction of a tunnel, such as 100kbit or 2Mbit (a second); what is over it is
    /// delayed. Default: none
    #[arg(long, value_name = "RATE", value_parser = input::rate, help_heading = "Limits")]
    pub(crate) rate_limit: Option<u64>,

    /// Append a JSON line to this file for each session that ends and each client that is refused.
    /// After SIGHUP the file is opened again
    #[arg(long, value_name = "FILE", help_heading = "Log")]
    pub(crate) audit_log: Option<PathBuf>,
    /// Format of the log on standard error
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Log")]
    pub(crate) log_format: LogFormat,
    /// Log level, such as warn or debug. Default: RUST_LOG, or info
    #[arg(long, value_name = "LEVEL", value_parser = input::log_level, help_heading = "Log")]
    pub(crate) log_level: Option<LevelFilter>,
}
