//! The list of tunnels: the file of `--tunnels`, or the one tunnel of `--tunnel`.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use aiot_tunnel::gateway::TunnelConfig;
use aiot_tunnel::{Token, TunnelId};
use aiot_tunnel_registry::ListedTunnel;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::cli::GatewayArgs;
use crate::exit_codes::{self, Failure};
use crate::input::{self, ACCESS_TOKEN, DEVICE_TOKEN};
use crate::{Result, Usage};

/// The tunnels of the list. With a store, there need not be one.
pub(super) fn of(args: &GatewayArgs) -> Result<Vec<ListedTunnel>> {
    match (&args.tunnels, &args.tunnel) {
        (Some(path), _) => {
            let list = of_file(path)?;
            if list.is_empty() && args.store.is_none() {
                let why = format!("{}: there is no tunnel in it", path.display());
                return Err(Failure::new(exit_codes::LIST, why).into());
            }
            Ok(list)
        }
        (None, Some(id)) => {
            let device_file = args.device_token_file.as_deref();
            let device_token = input::token(device_file, DEVICE_TOKEN, "device")?;
            let access_file = args.access_token_file.as_deref();
            let access_token = input::token(access_file, ACCESS_TOKEN, "access")?;
            let config = TunnelConfig::new(id.clone(), device_token, access_token);
            Ok(vec![ListedTunnel { config, expire: args.expire }])
        }
        (None, None) if args.store.is_some() => Ok(Vec::new()),
        (None, None) => Err(Usage::of("give --store FILE, --tunnels FILE or --tunnel ID").into()),
    }
}

/// Reads and checks a file of tunnels. It may have none: then all tunnels of the list are taken away.
///
/// # Errors
/// One sentence that names the file.
pub(super) fn of_file(path: &Path) -> Result<Vec<ListedTunnel>> {
    Ok(read(path).map_err(|e| Failure::new(exit_codes::LIST, e))?)
}

fn read(path: &Path) -> Result<Vec<ListedTunnel>> {
    let text = input::read_secret(path)?;
    // serde's message would quote the text, and that holds tokens.
    let entries: Vec<Entry> = serde_json::from_slice(&text).map_err(|e| {
        let (line, column) = (e.line(), e.column());
        format!(
            "{}: line {line}, column {column}: not a list of tunnels as --help shows it",
            path.display()
        )
    })?;
    tunnels(entries).map_err(|e| format!("{}: {e}", path.display()).into())
}

/// Checks all entries. An error names the entry.
fn tunnels(entries: Vec<Entry>) -> std::result::Result<Vec<ListedTunnel>, String> {
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut tunnels = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        let id = entry.id.clone();
        let named = |what: &dyn fmt::Display| format!("entry {number} (id {id:?}): {what}");
        if let Some(other) = known.insert(id.clone(), number) {
            return Err(named(&format_args!("entry {other} has the same id")));
        }
        tunnels.push(entry.tunnel().map_err(|e| named(&e))?);
    }
    Ok(tunnels)
}

/// A tunnel in the file of `--tunnels`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    #[serde(deserialize_with = "wiped")]
    device_token: Zeroizing<String>,
    #[serde(deserialize_with = "wiped")]
    access_token: Zeroizing<String>,
    expire: Option<u64>,
}

impl Entry {
    fn tunnel(self) -> Result<ListedTunnel> {
        let id = TunnelId::new(&self.id)?;
        if self.device_token.is_empty() || self.access_token.is_empty() {
            return Err("a token is empty".into());
        }
        if self.device_token == self.access_token {
            return Err("device_token and access_token are the same; they must differ".into());
        }
        if self.expire == Some(0) {
            return Err("expire is 0, so it would have expired at once; leave expire out for a \
                        tunnel that does not expire"
                .into());
        }
        let (device, access) = (Token::new(&self.device_token)?, Token::new(&self.access_token)?);
        let config = TunnelConfig::new(id, device, access);
        config.check_id()?;
        Ok(ListedTunnel { config, expire: self.expire })
    }
}

/// A text that is wiped from memory when it is dropped.
fn wiped<'de, D: Deserializer<'de>>(text: D) -> std::result::Result<Zeroizing<String>, D::Error> {
    String::deserialize(text).map(Zeroizing::new)
}
