//! What the settings mean for the library: services, security, limits and tunnels. Their files are
//! read here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aiot_tunnel::{ConnectParams, Limits, Network, Security, Service, TunnelId};

use rustix::fs::Access;

use crate::cli::{AgentArgs, LimitArgs};
use crate::settings::Settings;
use crate::{input, warnings, Usage};

/// A tunnel of the settings, as it is written there.
#[derive(Debug, Clone)]
pub(crate) struct ConfiguredTunnel {
    id: TunnelId,
    url: String,
    token_file: PathBuf,
}

impl FromStr for ConfiguredTunnel {
    type Err = String;

    /// `ID URL TOKEN_FILE`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.trim().splitn(3, char::is_whitespace).map(str::trim);
        let (Some(id), Some(url), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("not an id, a URL and the file of a token with blanks between them".into());
        };
        let id = id.parse().map_err(|e| format!("id: {e}"))?;
        input::split_url(url).map_err(|e| format!("url: {e}"))?;
        if file.is_empty() {
            return Err("token_file: must not be empty".to_owned());
        }
        Ok(ConfiguredTunnel { id, url: url.to_owned(), token_file: file.into() })
    }
}

/// A tunnel that the agent opens by itself.
pub(super) struct Tunnel {
    pub(super) id: TunnelId,
    pub(super) params: ConnectParams,
    source: ConfiguredTunnel,
    plain: bool,
}

impl Tunnel {
    fn new(source: &ConfiguredTunnel, plain: bool) -> crate::Result<Tunnel> {
        let params = params(source, plain)?;
        Ok(Tunnel { id: source.id.clone(), params, source: source.clone(), plain })
    }

    /// Reads the token again. Returns whether the connection data have changed.
    pub(super) fn refresh(&mut self) -> crate::Result<bool> {
        let params = params(&self.source, self.plain)?;
        let has_changed = params != self.params;
        self.params = params;
        Ok(has_changed)
    }
}

/// The settings as values of the library.
pub(super) struct Config {
    pub(super) services: Vec<Service>,
    pub(super) security: Security,
    pub(super) network: Network,
    pub(super) limits: Limits,
    pub(super) tunnels: Vec<Tunnel>,
}

impl Config {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// One line that says which setting is wrong and where it stands.
    pub(super) fn load(args: &AgentArgs, settings: &Settings) -> Result<Config, Usage> {
        if let Some(program) = &args.on_event {
            check_program(program).map_err(|e| {
                settings.wrong("on-event", format_args!("{}: {e}", program.display()))
            })?;
        }
        Ok(Config {
            services: services(args, settings)?,
            security: security(args, settings)?,
            network: network(args, settings)?,
            limits: limits(&args.limits),
            tunnels: tunnels(args, settings)?,
        })
    }
}

/// Whether a program can be run.
fn check_program(program: &Path) -> io::Result<()> {
    if !fs::metadata(program)?.is_file() {
        return Err(io::Error::other("not a program"));
    }
    Ok(rustix::fs::access(program, Access::EXEC_OK)?)
}

fn services(args: &AgentArgs, settings: &Settings) -> Result<Vec<Service>, Usage> {
    for (at, service) in args.service.iter().enumerate() {
        let name = service.service_type();
        if args.service[..at].iter().any(|other| other.service_type() == name) {
            return Err(settings.wrong_value("service", at, format_args!("{name} is there twice")));
        }
    }
    Ok(args.service.clone())
}

fn security(args: &AgentArgs, settings: &Settings) -> Result<Security, Usage> {
    let files =
        [("ca", &args.ca), ("client-cert", &args.client_cert), ("client-key", &args.client_key)];
    if args.plain {
        // A default is no wish.
        if let Some((option, _)) = files.iter().find(|(_, file)| file.is_some()) {
            let plain = settings.place("plain");
            return Err(settings.wrong(option, format_args!("cannot be used with {plain}")));
        }
        return Ok(Security::Plain);
    }
    let tls = input::tls(args.ca.as_deref()).map_err(|e| settings.wrong("ca", e))?;
    let tls = tls.with_clock(args.network.clock());
    let (cert, key) = match (&args.client_cert, &args.client_key) {
        (None, None) => return Ok(Security::Tls(tls)),
        (Some(cert), Some(key)) => (cert, key),
        (Some(_), None) => {
            return Err(settings.wrong("client-cert", "--client-key is required as well"));
        }
        (None, Some(_)) => {
            return Err(settings.wrong("client-key", "--client-cert is required as well"));
        }
    };
    let chain = input::read(cert).map_err(|e| settings.wrong("client-cert", e))?;
    let private = input::read_secret(key).map_err(|e| settings.wrong("client-key", e))?;
    let tls = tls.with_client_pem(&chain, &private);
    // The error says which of the two it is about.
    Ok(Security::Tls(tls.map_err(|e| settings.wrong("client-key", e))?))
}

fn network(args: &AgentArgs, settings: &Settings) -> Result<Network, Usage> {
    args.network.network().map_err(|e| match &args.network.proxy_auth_file {
        Some(_) => settings.wrong("proxy-auth-file", e),
        None => settings.wrong("proxy", e),
    })
}

fn limits(args: &LimitArgs) -> Limits {
    Limits::new()
        .with_max_tunnels(args.max_tunnels)
        .with_max_sessions(args.max_sessions)
        .with_session_buffer(args.session_buffer)
        .with_send_buffer(args.send_buffer)
        .with_stall_timeout(args.stall_timeout)
        .with_local_keepalive(args.local_keepalive.0)
        .with_session_idle_timeout(args.session_idle_timeout.0)
        .with_handshake_timeout(args.handshake_timeout)
        .with_connect_timeout(args.connect_timeout)
        .with_ping_interval(args.ping_interval)
        .with_pong_timeout(args.pong_timeout)
}

fn tunnels(args: &AgentArgs, settings: &Settings) -> Result<Vec<Tunnel>, Usage> {
    let most = args.limits.max_tunnels;
    let mut tunnels: Vec<Tunnel> = Vec::new();
    for (at, tunnel) in args.tunnel.iter().enumerate() {
        let wrong = |why: &dyn std::fmt::Display| settings.wrong_value("tunnel", at, why);
        if tunnels.iter().any(|other| other.id == tunnel.id) {
            return Err(wrong(&format_args!("{} is there twice", tunnel.id)));
        }
        if at == most {
            return Err(wrong(&format_args!("more than max_tunnels ({most})")));
        }
        tunnels.push(Tunnel::new(tunnel, args.plain).map_err(|e| wrong(&e))?);
    }
    Ok(tunnels)
}

/// The connection data of a tunnel. Reads its token.
fn params(tunnel: &ConfiguredTunnel, plain: bool) -> crate::Result<ConnectParams> {
    let url = input::split_url(&tunnel.url)?;
    match (url.secure, plain) {
        (false, false) => return Err("a ws:// URL is without TLS: use wss://, or --plain".into()),
        (true, true) => return Err("a wss:// URL is with TLS, but --plain is set".into()),
        (false, true) => warnings::about_plain_text(url.host, "a ws:// URL"),
        (true, false) => {}
    }
    let path = match url.path {
        "" | "/" => format!("/tunnel/{}/dest", tunnel.id),
        path => path.to_owned(),
    };
    let token = input::token_of_file(&tunnel.token_file)?;
    let params = ConnectParams::new(url.host, url.port, &path, token)?;
    Ok(params.with_refusal_retry(true))
}
