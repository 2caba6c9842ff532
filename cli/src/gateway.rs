//! `aiot-tunnel gateway`

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use aiot_tunnel::gateway::{Gateway, TunnelConfig};
use aiot_tunnel::{process, Token, TunnelId};
use sd_notify::NotifyState;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::cli::GatewayArgs;
use crate::input::{self, ACCESS_TOKEN, DEVICE_TOKEN};
use crate::output;
use crate::process::{ending_signals, say_listening, tell_service_manager};
use crate::{warnings, Result, Usage};

pub(crate) fn run(args: &GatewayArgs) -> Result<()> {
    let mut signals = ending_signals()?;
    let mut builder = Gateway::builder()
        .session_limit(args.session_limit)
        .connection_limit(args.connection_limit)
        .handshake_limit(args.handshake_limit)
        .access_limit(args.access_limit);
    builder = match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => {
            let (chain, key) = (input::read(cert)?, input::read_secret(key)?);
            if args.legacy_tls {
                builder.legacy_tls_pem(&chain, &key)?
            } else {
                builder.tls_pem(&chain, &key)?
            }
        }
        _ if args.plain => {
            warnings::about_plain_text(&args.listen.ip().to_string(), "--plain");
            builder
        }
        _ => return Err(Usage::of("give --cert and --key for TLS, or --plain for none").into()),
    };
    for tunnel in tunnels(args)? {
        builder = builder.tunnel(tunnel);
    }
    output::start();
    if let Err(e) = process::raise_descriptor_limit() {
        log::warn!("{e}");
    }
    let gateway = builder.start(args.listen)?;
    say_listening(gateway.local_addr())?;
    tell_service_manager(&[NotifyState::Ready]);
    signals.forever().next();
    tell_service_manager(&[NotifyState::Stopping]);
    gateway.shutdown();
    Ok(())
}

fn tunnels(args: &GatewayArgs) -> Result<Vec<TunnelConfig>> {
    match (&args.tunnels, &args.tunnel) {
        (Some(path), _) => {
            let text = input::read_secret(path)?;
            // serde's message would quote the text, and that holds tokens.
            let entries: Vec<Entry> = serde_json::from_slice(&text).map_err(|e| {
                let (line, column) = (e.line(), e.column());
                format!(
                    "{}: line {line}, column {column}: not a list of tunnels as --help shows it",
                    path.display()
                )
            })?;
            configs(entries).map_err(|e| format!("{}: {e}", path.display()).into())
        }
        (None, Some(id)) => {
            let device_file = args.device_token_file.as_deref();
            let device_token = input::token(device_file, DEVICE_TOKEN, "device")?;
            let access_file = args.access_token_file.as_deref();
            let access_token = input::token(access_file, ACCESS_TOKEN, "access")?;
            let tunnel = TunnelConfig::new(id.clone(), device_token, access_token);
            Ok(vec![tunnel.with_expires(args.expire.and_then(from_now))])
        }
        (None, None) => Err(Usage::of("give --tunnels FILE or --tunnel ID").into()),
    }
}

/// Checks all entries. An error names the entry.
fn configs(entries: Vec<Entry>) -> std::result::Result<Vec<TunnelConfig>, String> {
    if entries.is_empty() {
        return Err("there is no tunnel in it".to_owned());
    }
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut configs = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        let id = entry.id.clone();
        let named = |what: &dyn fmt::Display| format!("entry {number} (id {id:?}): {what}");
        if let Some(other) = known.insert(id.clone(), number) {
            return Err(named(&format_args!("entry {other} has the same id")));
        }
        configs.push(entry.config().map_err(|e| named(&e))?);
    }
    Ok(configs)
}

/// So many seconds from now; `None` when no clock shows that time.
fn from_now(seconds: u64) -> Option<SystemTime> {
    SystemTime::now().checked_add(Duration::from_secs(seconds))
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
    fn config(self) -> Result<TunnelConfig> {
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
        Ok(config.with_expires(self.expire.and_then(from_now)))
    }
}

/// A text that is wiped from memory when it is dropped.
fn wiped<'de, D: Deserializer<'de>>(text: D) -> std::result::Result<Zeroizing<String>, D::Error> {
    String::deserialize(text).map(Zeroizing::new)
}
