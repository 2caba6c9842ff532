//! The store that `--store` names: a file, or a Redis server.

use std::path::{Path, PathBuf};

use aiot_tunnel::process;
use aiot_tunnel_registry::{RedisAddress, RedisOptions, SharedKey, Store};

use crate::cli::{GatewayArgs, GATEWAY_SETTINGS};
use crate::exit_codes::{self, Failure};
use crate::input::{self, Unquoted};
use crate::settings::{Origin, Settings};
use crate::{warnings, Result, Usage};

/// Where the tunnels of the API are kept.
pub(super) enum Place {
    None,
    File(PathBuf),
    Redis(Box<RedisOptions>),
}

impl Place {
    /// Reads the settings and their files. Call it before the process has a second thread.
    pub(super) fn of(args: &GatewayArgs, settings: &Settings) -> Result<Self> {
        let Some(text) = args.store.as_ref().map(Unquoted::as_str) else { return Ok(Place::None) };
        let address = RedisAddress::read(text);
        let address = address.transpose().map_err(|e| settings.wrong("store", e))?;
        let Some(address) = address else {
            for (option, file) in [
                ("store-key-file", &args.store_key_file),
                ("store-password-file", &args.store_password_file),
                ("store-ca", &args.store_ca),
            ] {
                if file.is_some() {
                    let why = "only a store of several gateways, such as redis://HOST, has one";
                    return Err(settings.wrong(option, why).into());
                }
            }
            return Ok(Place::File(PathBuf::from(text)));
        };
        check_password(args, settings, &address)?;
        if let Some(host) = address.plain_host() {
            warnings::about_plain_store(host);
        }
        let Some(key) = &args.store_key_file else {
            return Err(Usage::of(
                "a store in Redis needs --store-key-file FILE, the same file for all its gateways; make \
                 it once with: aiot-tunnel gen-token --out FILE",
            )
            .into());
        };
        let mut options = RedisOptions::new(address, shared_key(key, settings)?);
        if let Some(path) = &args.store_password_file {
            let password = input::secret_line(path);
            let password = password.map_err(|e| settings.wrong("store-password-file", e))?;
            options.password = Some(password);
        }
        if let Some(path) = &args.store_ca {
            if !options.address.is_tls() {
                return Err(settings.wrong("store-ca", "needs a store with rediss://").into());
            }
            options.ca = Some(input::read(path).map_err(|e| settings.wrong("store-ca", e))?);
            let wrong = |e| settings.wrong("store-ca", format_args!("{}: {e}", path.display()));
            options.check().map_err(wrong)?;
        }
        Ok(Place::Redis(Box::new(options)))
    }

    /// Opens the store.
    pub(super) fn open(self) -> Result<Option<Store>> {
        let opened = match self {
            Place::None => return Ok(None),
            Place::File(path) => Store::open(&path),
            Place::Redis(options) => Store::connect(*options),
        };
        Ok(Some(opened.map_err(|e| Failure::new(exit_codes::STORE, e))?))
    }
}

/// A path beside the store, if that is a file.
pub(super) fn beside(args: &GatewayArgs, ending: &str) -> Option<PathBuf> {
    let text = args.store.as_ref().map(Unquoted::as_str)?;
    let is_file = matches!(RedisAddress::read(text), None);
    is_file.then(|| PathBuf::from(format!("{text}{ending}")))
}

/// A password must not be where other users see it.
fn check_password(args: &GatewayArgs, settings: &Settings, address: &RedisAddress) -> Result<()> {
    if !address.has_password() {
        return Ok(());
    }
    if args.store_password_file.is_some() {
        let why = "the URL has a password, too; give one of them";
        return Err(settings.wrong("store-password-file", why).into());
    }
    match settings.origin("store") {
        Origin::Option | Origin::Default => {
            let why =
                "every user of this machine can see a password on the command line; put it into a \
                       file, and name that with --store-password-file";
            Err(settings.wrong("store", why).into())
        }
        Origin::Environment(_) => {
            // Whoever may look at the process sees its environment.
            process::take_variable(&GATEWAY_SETTINGS.variable("store"))?;
            Ok(())
        }
        Origin::File { path, .. } => {
            warnings::about_secret_file(path);
            Ok(())
        }
    }
}

fn shared_key(path: &Path, settings: &Settings) -> Result<SharedKey> {
    let read = || -> Result<SharedKey> {
        let text = input::secret_line(path)?;
        Ok(SharedKey::read(&text).map_err(|e| format!("{}: {e}", path.display()))?)
    };
    Ok(read().map_err(|e| {
        let hint = match path.exists() {
            true => "",
            false => {
                "; copy it from another gateway of this store, or make the first one with: aiot-tunnel \
                 gen-token --out FILE"
            }
        };
        settings.wrong("store-key-file", format_args!("{e}{hint}"))
    })?)
}
