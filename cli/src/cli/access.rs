//! The options of `aiot-tunnel access`.

use std::path::PathBuf;

use aiot_tunnel::TunnelId;
use clap::Args;

use crate::exit_codes;
use crate::input;
use crate::network::NetworkOptions;
use crate::profile::Profile;
use crate::{Result, Usage};

/// What ssh's configuration puts behind the id of a tunnel.
pub(crate) const SSH_DOMAIN: &str = ".tunnel";

const ACCESS_HELP: &str = "\
Examples:
  Forward local port 8080 to the service \"web\" of the device pump-17, with the default profile:
    aiot-tunnel access --tunnel pump-17 --listen 127.0.0.1:8080=web

  Connect a program that speaks through stdin and stdout, without a profile:
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
reset; with --stdio, as an error message and an exit status. So do a standard input that cannot be
read and a standard output that cannot be written. With --stdio, the two directions end one by one:
the program ends after the end of standard input and the end of the service's stream. SIGINT and
SIGTERM end the program.

Without --url, a profile names the tunnel service and the place of the token. Profiles stand in
~/.config/aiot-tunnel/config.toml ($XDG_CONFIG_HOME/aiot-tunnel/config.toml if that is set):
  default = \"plant\"

  [profile.plant]
  url = \"wss://gw.example:8443\"
  ca = \"ca.pem\"
  user = \"root\"
  token_command = [\"pass\", \"show\", \"tunnels/{tunnel}\"]

{tunnel} stands for the id. In place of token_command, token_file names a file and token_variable a
variable of the environment. No token stands in the file itself. docs/access.md lists all keys.";

/// The text behind the options.
fn help() -> String {
    format!("{ACCESS_HELP}\n\n{}", exit_codes::TABLE)
}

#[derive(Args)]
#[command(after_help = help())]
pub(crate) struct AccessArgs {
    /// Tunnel service: wss://HOST:PORT, or ws://HOST:PORT without TLS; with a path instead of
    /// --tunnel. Without it, a profile names it
    #[arg(long)]
    pub(crate) url: Option<String>,
    #[command(flatten)]
    pub(crate) place: ProfileOptions,
    /// Id of the tunnel
    #[arg(long, value_name = "ID")]
    pub(crate) tunnel: Option<TunnelId>,
    /// In place of --tunnel, for ssh's configuration: the host name whose first part is the id
    #[arg(long, value_name = "NAME", conflicts_with = "tunnel", hide = true)]
    pub(crate) ssh_host: Option<String>,
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
    /// Show on standard error, once a second, how many bytes come and go
    #[arg(long, short)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) network: NetworkOptions,
    /// The profile whose options stand behind those of the command line.
    #[arg(skip)]
    pub(crate) loaded: Option<Profile>,
}

/// Which profile counts.
#[derive(Args)]
pub(crate) struct ProfileOptions {
    /// The file with the profiles, in place of ~/.config/aiot-tunnel/config.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The profile to use, in place of the default one
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
}

impl AccessArgs {
    /// The id of the tunnel, if it does not stand in the URL.
    pub(crate) fn tunnel(&self) -> Result<Option<TunnelId>> {
        let Some(host) = &self.ssh_host else { return Ok(self.tunnel.clone()) };
        let of_profile = self.place.profile.as_ref().and_then(|profile| {
            host.strip_suffix(SSH_DOMAIN)?.strip_suffix(profile)?.strip_suffix('.')
        });
        let id = of_profile.or_else(|| host.strip_suffix(SSH_DOMAIN)).unwrap_or(host);
        Ok(Some(id.parse().map_err(|e| Usage::of(format_args!("{host}: {e}")))?))
    }
}
