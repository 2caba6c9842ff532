//! The options of `aiot-tunnel tunnel`, `gen-token` and `gen-cert`.

use std::path::PathBuf;
use std::time::Duration;

use aiot_tunnel_signal::Device;
use clap::{Args, ValueEnum};

use crate::{exit_codes, input};

/// The gateway's API when nothing names another.
pub(crate) const DEFAULT_API: &str = "http://127.0.0.1:8444";

const TUNNEL_HELP: &str = "\
Examples:
  Make a tunnel for a day, and write its two tokens into files:
    aiot-tunnel tunnel add pump-17 --expire 24h --save tokens --api-key-file api.key

  Show all tunnels, and one with its connections:
    export AIOT_TUNNEL_API_KEY_FILE=api.key
    aiot-tunnel tunnel list
    aiot-tunnel tunnel show pump-17

  Make one of which the device is told by MQTT:
    aiot-tunnel tunnel add pump-17 --device a1pk/device-1

  Replace the operator's token; operators that are connected lose their connections:
    aiot-tunnel tunnel rotate pump-17 --side access --save tokens

  Print the ids of the devices that are not connected:
    aiot-tunnel tunnel list --json | jq -r '.tunnels[] | select(.state == \"offline\") | .id'

The tokens are shown once, or written into files with --save: the gateway keeps only digests of
them. With --save, tunnel pump-17 has its tokens in pump-17.device.token and
pump-17.access.token of that folder; only their owner may read them.

Environment:
  AIOT_TUNNEL_API           the API's URL, for want of --api
  AIOT_TUNNEL_API_KEY_FILE  the file with the API's key, for want of --api-key-file";

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TunnelAction {
    /// Make a tunnel; without an id, the gateway chooses one
    Add,
    /// Show all tunnels
    List,
    /// Show one tunnel with its connections
    Show,
    /// Replace its tokens
    Rotate,
    /// Remove it and close its connections
    Remove,
}

/// Whose token is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenSide {
    /// The device's
    Device,
    /// The operators'
    Access,
    /// Both
    Both,
}

fn help() -> String {
    format!("{TUNNEL_HELP}\n\n{}", exit_codes::TUNNEL_TABLE)
}

#[derive(Args)]
#[command(after_help = help())]
pub(crate) struct TunnelArgs {
    /// What to do
    #[arg(value_name = "ACTION")]
    pub(crate) action: TunnelAction,
    /// Id of the tunnel
    #[arg(value_name = "ID")]
    pub(crate) id: Option<String>,
    /// URL of the gateway's API, http://HOST:PORT or https://HOST:PORT; default AIOT_TUNNEL_API, or
    /// http://127.0.0.1:8444
    #[arg(long, value_name = "URL")]
    pub(crate) api: Option<String>,
    /// File with the API's key; default AIOT_TUNNEL_API_KEY_FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Trust the certificates of this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// With add and rotate: time from now after which the tunnel expires, such as 24h
    #[arg(long, value_name = "TIME", value_parser = input::duration)]
    pub(crate) expire: Option<Duration>,
    /// With add: the device that the gateway tells of the tunnel, by its --notify
    #[arg(long, value_name = "PRODUCT_KEY/DEVICE_NAME", value_parser = device)]
    pub(crate) device: Option<Device>,
    /// With rotate: whose token to replace; default both
    #[arg(long, value_name = "SIDE")]
    pub(crate) side: Option<TokenSide>,
    /// With add and rotate: write the tokens into files of this folder, and do not show them
    #[arg(long, value_name = "FOLDER")]
    pub(crate) save: Option<PathBuf>,
    /// Print the API's answer, as JSON on one line; docs/openapi.json describes it
    #[arg(long)]
    pub(crate) json: bool,
}

fn device(text: &str) -> Result<Device, String> {
    let (key, name) = text.split_once('/').ok_or("not of the form PRODUCT_KEY/DEVICE_NAME")?;
    Device::new(key, name).map_err(|e| e.to_string())
}

const GEN_TOKEN_HELP: &str = "\
Examples:
  Make a key for the gateway's API:
    aiot-tunnel gen-token --out api.key

The token has 256 random bits, as 43 characters. It serves as an API key, as a device's token and
as an operator's.";

#[derive(Args)]
#[command(after_help = GEN_TOKEN_HELP)]
pub(crate) struct GenTokenArgs {
    /// Write it into this new file, which only its owner may read, and do not show it
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

const GEN_CERT_HELP: &str = "\
Examples:
  Make a certificate for a gateway that clients reach by name and by address:
    aiot-tunnel gen-cert --name gw.example --name 192.0.2.1 --out tls

It makes four new files: ca.pem and ca.key, a CA for this one use; server.pem and server.key, a
certificate for the names. Give server.pem and server.key to the gateway, and ca.pem to devices and
operators (--ca). Nobody needs ca.key until the certificate is renewed: with a folder that has
ca.pem and ca.key, only server.pem and server.key are made anew.

This is for a start. In production, use the certificates of a CA that you run or that is public.";

#[derive(Args)]
#[command(after_help = GEN_CERT_HELP)]
pub(crate) struct GenCertArgs {
    /// Name or IP address of the gateway, as clients write it; may be repeated
    #[arg(long, value_name = "NAME", required = true, value_parser = name)]
    pub(crate) name: Vec<String>,
    /// Folder for the files; it is made if it is not there
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub(crate) out: PathBuf,
    /// Days for which the certificate is valid
    #[arg(long, value_name = "DAYS", default_value_t = 365,
          value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

/// A host name, or an IP address. A name may begin with `*.`.
fn name(text: &str) -> Result<String, String> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let host = text.strip_prefix("*.").unwrap_or(text);
    match host.len() <= 253 && host.split('.').all(is_label) {
        true => Ok(text.to_owned()),
        false => Err("neither a host name nor an IP address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_names_and_addresses() {
        for good in ["gw.example", "localhost", "*.gw.example", "192.0.2.1", "::1", "a_b"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        for bad in
            ["", "https://gw.example", "a..b", "a b", "gw.example:8443", "*", "a,DNS:b", "[::1]"]
        {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
