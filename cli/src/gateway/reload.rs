//! Takes over changed files while the gateway runs: certificate and key, and the list of tunnels. A file
//! that cannot be used leaves everything as it was.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aiot_tunnel_registry::{http, Registry};
use zeroize::Zeroizing;

use super::list;
use crate::cli::GatewayArgs;
use crate::exit_codes::{self, Failure};
use crate::{input, Result};

/// The files of the gateway's certificate.
#[derive(Clone)]
pub(super) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    pub(super) is_legacy: bool,
}

impl Certificate {
    pub(super) fn of(args: &GatewayArgs) -> Option<Self> {
        let (chain, key) = (args.cert.clone()?, args.key.clone()?);
        Some(Certificate { chain, key, is_legacy: args.legacy_tls })
    }

    /// Certificate chain and key, in PEM.
    pub(super) fn read(&self) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>)> {
        let failed = |e| Failure::new(exit_codes::CERTIFICATE, e);
        let chain = input::read(&self.chain).map_err(failed)?;
        Ok((chain, input::read_secret(&self.key).map_err(failed)?))
    }

    /// The failure to use what was read.
    pub(super) fn wrong(&self, e: impl fmt::Display) -> Failure {
        let (text, chain, key) = (e.to_string(), self.chain.display(), self.key.display());
        let why = match text.contains("values mismatch") {
            true => "the key belongs to another certificate; name the one that was made with it",
            false => {
                "give a certificate chain and its key, both in PEM, the key without a password"
            }
        };
        let text = format_args!("{chain} and {key} cannot be used: {why} [{text}]");
        Failure::new(exit_codes::CERTIFICATE, text)
    }
}

/// Tells whether a file has changed: device, inode, size, and time of change in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Option<(u64, u64, u64, i64, i64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        let file = fs::metadata(path).ok();
        Stamp(file.map(|f| (f.dev(), f.ino(), f.size(), f.ctime(), f.ctime_nsec())))
    }
}

/// The stamps of all files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamps {
    certificate: Vec<Stamp>,
    list: Option<Stamp>,
}

impl Stamps {
    pub(super) fn of(certificate: Option<&Certificate>, list: Option<&Path>) -> Self {
        let certificate = certificate.into_iter();
        Stamps {
            certificate: certificate
                .flat_map(|one| [Stamp::of(&one.chain), Stamp::of(&one.key)])
                .collect(),
            list: list.map(Stamp::of),
        }
    }
}

/// The files that are read at the start only, with their settings and their stamps.
pub(super) struct ReadOnce(Vec<(&'static str, PathBuf, Stamp)>);

impl ReadOnce {
    pub(super) fn of(args: &GatewayArgs) -> Self {
        let files = [
            ("api_key_file", &args.api_key_file),
            ("store_key_file", &args.store_key_file),
            ("store_password_file", &args.store_password_file),
            ("store_ca", &args.store_ca),
            ("notify_ca", &args.notify_ca),
            ("notify_password_file", &args.notify_password_file),
            ("device_token_file", &args.device_token_file),
            ("access_token_file", &args.access_token_file),
        ];
        let files = files.into_iter().filter_map(|(key, file)| Some((key, file.clone()?)));
        ReadOnce(files.map(|(key, file)| (key, file.clone(), Stamp::of(&file))).collect())
    }

    /// Says which of them have changed, for somebody who expects that they count from now on.
    fn warn_of_changes(&self) {
        for (key, file, _) in self.0.iter().filter(|(_, file, seen)| Stamp::of(file) != *seen) {
            let file = file.display();
            log::warn!("reload: {key}: {file} has changed, which needs a restart of the gateway");
        }
    }
}

pub(super) struct Reloader {
    pub(super) registry: Arc<Registry>,
    pub(super) certificate: Option<Certificate>,
    pub(super) list: Option<PathBuf>,
    /// The API's, if it has TLS.
    pub(super) api_tls: Option<http::Tls>,
    pub(super) read_once: ReadOnce,
}

impl Reloader {
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let certificate = self.certificate.iter();
        let mut files: Vec<PathBuf> =
            certificate.flat_map(|one| [one.chain.clone(), one.key.clone()]).collect();
        files.extend(self.list.clone());
        files
    }

    pub(super) fn stamps(&self) -> Stamps {
        Stamps::of(self.certificate.as_ref(), self.list.as_deref())
    }

    /// Takes over what has changed; with `all`, also what looks the same.
    pub(super) fn reload(&mut self, seen: &Stamps, now: &Stamps, all: bool) {
        if all {
            self.read_once.warn_of_changes();
        }
        if let Some(certificate) = &self.certificate {
            if all || seen.certificate != now.certificate {
                match self.renew(certificate) {
                    Ok(()) => log::info!("reload: new connections get the certificate of now"),
                    Err(e) => log::warn!("reload: {e}; the old certificate stays"),
                }
            }
        }
        if let Some(list) = &self.list {
            if all || seen.list != now.list {
                match self.take_over(list) {
                    Ok(what) => log::info!("reload: {}: {what}", list.display()),
                    Err(e) => log::warn!("reload: {e}; the old list stays"),
                }
            }
        }
    }

    fn renew(&self, certificate: &Certificate) -> Result<()> {
        let (chain, key) = certificate.read()?;
        let gateway = self.registry.gateway();
        match certificate.is_legacy {
            true => gateway.set_legacy_tls_pem(&chain, &key),
            false => gateway.set_tls_pem(&chain, &key),
        }
        .map_err(|e| certificate.wrong(e))?;
        if let Some(tls) = &self.api_tls {
            tls.set_pem(&chain, &key).map_err(|e| certificate.wrong(e))?;
        }
        Ok(())
    }

    fn take_over(&self, path: &Path) -> Result<String> {
        let list = list::of_file(path)?;
        let changes = self.registry.set_list(list);
        let changes = changes.map_err(|e| format!("{}: {e}", path.display()))?;
        let (added, changed, removed) = (changes.added, changes.changed, changes.removed);
        let tunnels = if added == 1 { "tunnel" } else { "tunnels" };
        Ok(format!("{added} {tunnels} added, {changed} changed, {removed} removed"))
    }
}
