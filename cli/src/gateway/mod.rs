//! `aiot-tunnel gateway`

mod audit;
mod list;
mod live;
mod notify;
pub(crate) mod publish;
mod reload;
pub(crate) mod store;
mod watch;

use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, RwLock};
use std::thread;

use aiot_tunnel::gateway::{Gateway, GatewayBuilder, Proxies};
use aiot_tunnel::process;
use aiot_tunnel_console::terminal::Terminals;
use aiot_tunnel_console::{assets, Console, Events};
use aiot_tunnel_registry::{
    http, Api, ApiKey, Door, Error as RegistryError, Observer, Options, Registry,
};
use sd_notify::NotifyState;
use signal_hook::consts::SIGHUP;

use crate::cli::GatewayArgs;
use crate::exit_codes::{self, Failure};
use crate::input;
use crate::output;
use crate::process::{gateway_signals, say_listening, tell_service_manager};
use crate::settings::Settings;
use crate::{warnings, Result, Usage};

use live::Live;
use publish::Ports;
use reload::{Certificate, ReadOnce, Reloader, Stamps};

pub(crate) fn run(args: &GatewayArgs, settings: &Settings) -> Result<()> {
    let signals = gateway_signals()?;
    if args.print_config {
        print!("{settings}");
    }
    if args.print_config && !args.check {
        return Ok(());
    }
    let start = Start::load(args, settings)?;
    if args.check {
        if warnings::has_open_files() {
            let why =
                "other users may read or change a file that holds a secret; the lines above name \
                       it and say what to run";
            return Err(Failure::new(exit_codes::OPEN_FILE, why).into());
        }
        let file = args.config.as_ref().map(|path| format!("{}: ", path.display()));
        println!("{}the settings are valid", file.unwrap_or_default());
        return Ok(());
    }
    start.serve(args, settings, signals)
}

/// A failure to start, with its exit status.
fn failure(e: RegistryError) -> Box<dyn std::error::Error> {
    match e {
        RegistryError::Listen(address, e) => exit_codes::cannot_listen(address, &e).into(),
        RegistryError::Store(why) => Failure::new(exit_codes::STORE, why).into(),
        e => e.into(),
    }
}

/// What the gateway starts with.
struct Start {
    builder: GatewayBuilder,
    certificate: Option<Certificate>,
    list: Vec<aiot_tunnel_registry::ListedTunnel>,
    api: Option<(ApiKey, http::Tls)>,
    store: store::Place,
    notify: Option<notify::Notify>,
    /// Taken before certificate and list were read.
    stamps: Stamps,
    /// Taken before the other files were read.
    read_once: ReadOnce,
}

fn limits(args: &GatewayArgs) -> GatewayBuilder {
    Gateway::builder()
        .session_limit(args.session_limit)
        .connection_limit(args.connection_limit)
        .handshake_limit(args.handshake_limit)
        .access_limit(args.access_limit)
        .rate_limit(args.rate_limit)
}

/// The proxies in front of the gateway's listener.
fn proxies(args: &GatewayArgs) -> Proxies {
    Proxies::new(args.trusted_proxy.clone(), args.proxy_protocol)
}

/// The proxies in front of the API's.
fn api_proxies(args: &GatewayArgs) -> Proxies {
    Proxies::new(args.trusted_proxy.clone(), args.api_proxy_protocol)
}

impl Start {
    fn load(args: &GatewayArgs, settings: &Settings) -> Result<Self> {
        let mut builder = limits(args).proxies(proxies(args));
        let certificate = Certificate::of(args);
        check_flags(args, settings)?;
        let stamps = Stamps::of(certificate.as_ref(), args.tunnels.as_deref());
        let read_once = ReadOnce::of(args);
        let api_tls = http::Tls::off();
        match &certificate {
            Some(certificate) => {
                let (chain, key) = certificate.read()?;
                builder = match certificate.is_legacy {
                    true => builder.legacy_tls_pem(&chain, &key),
                    false => builder.tls_pem(&chain, &key),
                }
                .map_err(|e| certificate.wrong(e))?;
                if args.api_tls {
                    api_tls.set_pem(&chain, &key).map_err(|e| certificate.wrong(e))?;
                }
            }
            None if args.plain => {
                warnings::about_plain_text(&args.listen.ip().to_string(), "--plain");
            }
            None => {
                return Err(Usage::of("give --cert and --key for TLS, or --plain for none").into())
            }
        }
        warn_of_idle_proxies(args);
        if args.api.is_some() && args.public_url.is_none() && args.listen.ip().is_unspecified() {
            let scheme = if certificate.is_some() { "wss" } else { "ws" };
            warnings::about_own_address(args.listen, scheme);
        }
        let api = match (&args.api, &args.api_key_file) {
            (Some(address), Some(path)) => {
                if !args.api_tls {
                    warnings::about_plain_text(&address.ip().to_string(), "--api");
                }
                let key = input::token_of_file(path)
                    .and_then(|key| {
                        let wrong = |e| format!("{}: {e}", path.display());
                        Ok(ApiKey::new(key.expose()).map_err(wrong)?)
                    })
                    .map_err(|e| settings.wrong("api-key-file", e))?;
                Some((key, api_tls))
            }
            _ => None,
        };
        let store = store::Place::of(args, settings)?;
        let notify = notify::Notify::of(args, settings)?;
        let list = list::of(args)?;
        Ok(Start { builder, certificate, list, api, store, notify, stamps, read_once })
    }

    fn serve(
        mut self,
        args: &GatewayArgs,
        settings: &Settings,
        mut signals: signal_hook::iterator::Signals,
    ) -> Result<()> {
        output::start();
        if let Err(e) = process::raise_descriptor_limit() {
            log::warn!("{e}");
        }
        let events = args.page.then(|| Arc::new(Events::default()));
        let options = Options {
            store: self.store.open()?,
            store_grace: args.store_grace,
            list: self.list,
            public_url: args.public_url.clone(),
            is_secure: self.certificate.is_some(),
            platform: self.notify.map(notify::Notify::start).transpose()?,
            observer: events.clone().map(|events| {
                Observer::new(move |tunnel, change| events.note_change(tunnel, change))
            }),
        };
        let writes_audit = args.audit_log.is_some();
        if let Some(path) = &args.audit_log {
            audit::start(path).map_err(|e| settings.wrong("audit-log", e))?;
        }
        if writes_audit || events.is_some() {
            let events = events.clone();
            self.builder = self.builder.audit(move |event| {
                if writes_audit {
                    audit::write(event);
                }
                if let Some(events) = &events {
                    events.note(event);
                }
            });
        }
        let mut ports = Ports::default();
        for port in ports.bind(args, settings)? {
            self.builder = self.builder.publish(port);
        }
        let registry = Registry::start(self.builder, args.listen, options).map_err(failure)?;
        let mut api_tls = None;
        let shared_proxies = Arc::new(RwLock::new(api_proxies(args)));
        if let (Some(address), Some((key, tls))) = (args.api, self.api) {
            let door = Arc::new(Door::new(key));
            let site: Arc<dyn http::Site> = match events {
                Some(events) => {
                    let registry = registry.clone();
                    let terminals = terminals(args, settings, &registry)?;
                    let options =
                        aiot_tunnel_console::Options { registry, door, events, terminals };
                    Console::start(options)?
                }
                None => Arc::new(Api::new(registry.clone(), door)),
            };
            let served = http::serve(site, address, tls.clone(), shared_proxies.clone());
            let address = served.map_err(failure)?;
            log::info!("the API listens on {address}");
            if args.page {
                let scheme = if args.api_tls { "https" } else { "http" };
                log::info!("the page is at {scheme}://{address}/");
            }
            api_tls = args.api_tls.then_some(tls);
        }
        let reloader = Reloader {
            registry: registry.clone(),
            certificate: self.certificate,
            list: args.tunnels.clone(),
            api_tls,
            read_once: self.read_once,
        };
        ports.announce();
        let live = Live::new(registry.clone(), settings.clone(), ports, shared_proxies);
        let changes = reload_on(reloader, live, self.stamps)?;
        say_listening(registry.gateway().local_addr())?;
        tell_service_manager(&[NotifyState::Ready]);
        for signal in signals.forever() {
            match signal {
                SIGHUP => {
                    audit::reopen();
                    drop(changes.send(Cause::Signal));
                }
                _ => break,
            }
        }
        tell_service_manager(&[NotifyState::Stopping]);
        registry.stop();
        audit::finish();
        Ok(())
    }
}

/// Where the terminal keeps the host keys of devices.
fn host_keys(args: &GatewayArgs) -> Option<PathBuf> {
    args.host_keys.clone().or_else(|| store::beside(args, ".host-keys"))
}

/// The terminals of the page, if they are switched on.
fn terminals(
    args: &GatewayArgs,
    settings: &Settings,
    registry: &Arc<Registry>,
) -> Result<Option<Terminals>> {
    let Some(directory) = host_keys(args).filter(|_| args.terminal) else { return Ok(None) };
    if assets::terminal().is_none() {
        log::warn!(
            "--terminal has no effect: this program was built without the terminal's packages"
        );
        return Ok(None);
    }
    let wrong = |e| settings.wrong("host-keys", format_args!("{}: {e}", directory.display()));
    let program = std::env::current_exe()?;
    Ok(Some(Terminals::new(registry.clone(), program, directory.clone()).map_err(wrong)?))
}

/// Checks the flags that need another option, or exclude one. Their defaults do not.
fn check_flags(args: &GatewayArgs, settings: &Settings) -> Result<()> {
    let has_certificate = args.cert.is_some();
    for (flag, is_set, wrong) in [
        ("plain", args.plain && has_certificate, "cannot be used with --cert, which is for TLS"),
        ("legacy-tls", args.legacy_tls && !has_certificate, "needs --cert and --key"),
        ("api-tls", args.api_tls && !has_certificate, "needs --cert and --key"),
        ("api-tls", args.api_tls && args.api.is_none(), "needs --api"),
        ("page", args.page && args.api.is_none(), "needs --api"),
        ("terminal", args.terminal && !args.page, "needs --page"),
        (
            "terminal",
            args.terminal && host_keys(args).is_none(),
            "needs --host-keys DIRECTORY, because there is no store that is a file",
        ),
        (
            "proxy-protocol",
            args.proxy_protocol && args.trusted_proxy.is_empty(),
            "needs --trusted-proxy: nobody else may say where a connection comes from",
        ),
        (
            "api-proxy-protocol",
            args.api_proxy_protocol && args.trusted_proxy.is_empty(),
            "needs --trusted-proxy: nobody else may say where a connection comes from",
        ),
        ("api-proxy-protocol", args.api_proxy_protocol && args.api.is_none(), "needs --api"),
    ] {
        if is_set {
            return Err(settings.wrong(flag, wrong).into());
        }
    }
    Ok(())
}

/// Within TLS, nothing but the PROXY protocol tells a client's address.
fn warn_of_idle_proxies(args: &GatewayArgs) {
    let by_gateway = args.plain || args.proxy_protocol;
    let by_api = args.api.is_some() && (!args.api_tls || args.api_proxy_protocol);
    if !args.trusted_proxy.is_empty() && !by_gateway && !by_api {
        log::warn!(
            "--trusted-proxy has no effect: with TLS, only the PROXY protocol tells a client's address; \
             give --proxy-protocol, too"
        );
    }
}

/// Why the files are read again.
enum Cause {
    Signal,
    Files,
}

/// Starts the thread that reads the files again, and the one that watches them.
/// `seen` was taken before the files were read.
fn reload_on(mut reloader: Reloader, mut live: Live, seen: Stamps) -> Result<Sender<Cause>> {
    let (changes, causes) = mpsc::channel();
    let files = reloader.files();
    let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
    spawn("reload").spawn(move || {
        let mut seen = seen;
        for cause in causes {
            let now = reloader.stamps();
            match cause {
                Cause::Signal => {
                    tell_service_manager(&[NotifyState::Reloading]);
                    live.reload();
                    reloader.reload(&seen, &now, true);
                    tell_service_manager(&[NotifyState::Ready]);
                }
                Cause::Files => reloader.reload(&seen, &now, false),
            }
            seen = now;
        }
    })?;
    let watcher = changes.clone();
    spawn("watch").spawn(move || {
        if let Err(e) = watch::files(&files, || watcher.send(Cause::Files).is_ok()) {
            log::warn!("the files are not watched: {e}; send SIGHUP after a change");
        }
    })?;
    Ok(changes)
}
