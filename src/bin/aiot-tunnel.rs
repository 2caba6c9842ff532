//! The gateway, the access side, the remote-login process and the sender of its commands, as
//! one program.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use aiot_tunnel::access::Client;
use aiot_tunnel::gateway::{Gateway, TunnelConfig};
use aiot_tunnel::ipc::{self, Command, ListenOptions, Listener};
use aiot_tunnel::{ConnectParams, Manager, Port, Security, Service, TlsConfig, Token, TunnelId};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Deserializer};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use zeroize::Zeroizing;

#[path = "../sys/allocator.rs"]
mod allocator;
#[path = "../sys/environment.rs"]
mod environment;

const DEVICE_TOKEN: &str = "AIOT_TUNNEL_DEVICE_TOKEN";
const ACCESS_TOKEN: &str = "AIOT_TUNNEL_ACCESS_TOKEN";

/// Secure tunnels to devices. Tokens come from files or the environment, never from options.
#[derive(Parser)]
#[command(name = "aiot-tunnel", version)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Serve tunnels: the devices' end and the access sides'.
    Gateway(GatewayArgs),
    /// Reach a device's service: forward a local port, or stdin and stdout.
    Access(AccessArgs),
    /// Be the remote-login process of this device.
    Agent(AgentArgs),
    /// Give the remote-login process a command.
    Send(SendArgs),
}

#[derive(Args)]
struct GatewayArgs {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Certificate chain (PEM), the gateway's own first.
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// Private key (PEM).
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    /// Serve ws without TLS.
    #[arg(long, conflicts_with = "cert")]
    plain: bool,
    /// JSON file: [{"id":"..","device_token":"..","access_token":"..","expire":3600}].
    #[arg(long, conflicts_with = "tunnel")]
    tunnels: Option<PathBuf>,
    /// Serve this one tunnel.
    #[arg(long)]
    tunnel: Option<String>,
    /// File that holds its device token; else AIOT_TUNNEL_DEVICE_TOKEN.
    #[arg(long, requires = "tunnel")]
    device_token_file: Option<PathBuf>,
    /// File that holds its access token; else AIOT_TUNNEL_ACCESS_TOKEN.
    #[arg(long, requires = "tunnel")]
    access_token_file: Option<PathBuf>,
    /// Seconds after which it expires.
    #[arg(long, requires = "tunnel")]
    expire: Option<u64>,
    /// Sessions of one tunnel at once.
    #[arg(long, default_value_t = 10)]
    session_limit: usize,
    /// Open connections in all; one more is answered with 503.
    #[arg(long, default_value_t = 1024)]
    connection_limit: usize,
    /// Access connections of one tunnel at once; one more is answered with 503.
    #[arg(long, default_value_t = 32)]
    access_limit: usize,
}

#[derive(Args)]
struct AccessArgs {
    /// wss://HOST:PORT, with the path if --tunnel is not given; ws:// is plain text.
    #[arg(long)]
    url: String,
    /// The tunnel's id.
    #[arg(long)]
    tunnel: Option<String>,
    /// What to ask the device for.
    #[arg(long, default_value = "_SSH")]
    service: String,
    /// Forward connections to this local address; port 0 picks a free one.
    #[arg(long, conflicts_with = "stdio", required_unless_present = "stdio")]
    listen: Option<SocketAddr>,
    /// One session on stdin and stdout, as ssh's ProxyCommand wants it.
    #[arg(long)]
    stdio: bool,
    /// Trust these certificates (PEM) instead of the system's.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// File that holds the access token; else AIOT_TUNNEL_ACCESS_TOKEN.
    #[arg(long)]
    token_file: Option<PathBuf>,
}

#[derive(Args)]
struct AgentArgs {
    /// A service on offer, TYPE=HOST:PORT; may be repeated.
    #[arg(long, default_value = "_SSH=127.0.0.1:22")]
    service: Vec<String>,
    /// Trust these certificates (PEM) instead of the system's.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Connect without TLS.
    #[arg(long, conflicts_with_all = ["ca", "client_cert"])]
    plain: bool,
    /// Client certificate chain (PEM).
    #[arg(long, requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// Key of the message queue that commands come from.
    #[arg(long, default_value_t = ipc::DEFAULT_KEY)]
    queue_key: i32,
    /// The most permissions that the queue may have, in octal; one that is there is narrowed.
    #[arg(long, default_value = "0600", value_parser = octal)]
    queue_mode: u32,
    /// Uid that may own the queue, besides root and this process's user.
    #[arg(long, value_name = "UID")]
    queue_owner: Option<u32>,
}

#[derive(Args)]
struct SendArgs {
    operation: Operation,
    /// The tunnel's id.
    #[arg(long)]
    tunnel: String,
    /// Host of the tunnel service.
    #[arg(long)]
    host: Option<String>,
    /// Its port.
    #[arg(long)]
    port: Option<Port>,
    /// The path; /tunnel/ID/dest when it is not given.
    #[arg(long)]
    path: Option<String>,
    /// File that holds the device token; else AIOT_TUNNEL_DEVICE_TOKEN.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Key of the message queue.
    #[arg(long, default_value_t = ipc::DEFAULT_KEY)]
    queue_key: i32,
}

#[derive(Clone, Copy, ValueEnum, PartialEq, Eq)]
enum Operation {
    Add,
    Update,
    Delete,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(default).init();
    let result = match cli.command {
        Subcommands::Gateway(args) => gateway(&args),
        Subcommands::Access(args) => access(&args),
        Subcommands::Agent(args) => agent(&args),
        Subcommands::Send(args) => send(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("aiot-tunnel: {e}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TunnelEntry {
    id: String,
    #[serde(deserialize_with = "wiped")]
    device_token: Zeroizing<String>,
    #[serde(deserialize_with = "wiped")]
    access_token: Zeroizing<String>,
    expire: Option<u64>,
}

/// A text that is wiped from memory when dropped.
fn wiped<'de, D: Deserializer<'de>>(text: D) -> std::result::Result<Zeroizing<String>, D::Error> {
    String::deserialize(text).map(Zeroizing::new)
}

fn gateway(args: &GatewayArgs) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let mut builder = Gateway::builder()
        .session_limit(args.session_limit)
        .connection_limit(args.connection_limit)
        .access_limit(args.access_limit);
    builder = match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => builder.tls_pem(&read(cert)?, &Zeroizing::new(read(key)?))?,
        _ if args.plain => builder,
        _ => return Err("give --cert and --key for TLS, or --plain for none".into()),
    };
    for tunnel in tunnels(args)? {
        builder = builder.tunnel(tunnel);
    }
    let gateway = builder.start(args.listen)?;
    say_listening(gateway.local_addr())?;
    signals.forever().next();
    gateway.shutdown();
    Ok(())
}

fn tunnels(args: &GatewayArgs) -> Result<Vec<TunnelConfig>> {
    let entries = match (&args.tunnels, &args.tunnel) {
        (Some(path), _) => {
            let text = Zeroizing::new(read(path)?);
            // serde's message would quote the text, and that holds tokens.
            serde_json::from_slice(&text).map_err(|e| {
                let (line, column) = (e.line(), e.column());
                format!(
                    "{}: line {line}, column {column}: not a list of tunnels as --help shows it",
                    path.display()
                )
            })?
        }
        (None, Some(id)) => vec![TunnelEntry {
            id: id.clone(),
            device_token: secret(args.device_token_file.as_deref(), DEVICE_TOKEN, "device")?,
            access_token: secret(args.access_token_file.as_deref(), ACCESS_TOKEN, "access")?,
            expire: args.expire,
        }],
        (None, None) => return Err("give --tunnels FILE or --tunnel ID".into()),
    };
    let now = SystemTime::now();
    let config = |entry: TunnelEntry| -> Result<TunnelConfig> {
        let expires = entry.expire.map(|seconds| now.checked_add(Duration::from_secs(seconds)));
        Ok(TunnelConfig::new(
            TunnelId::new(&entry.id)?,
            Token::new(&entry.device_token)?,
            Token::new(&entry.access_token)?,
        )
        .with_expires(expires.flatten()))
    };
    entries.into_iter().map(config).collect()
}

fn access(args: &AccessArgs) -> Result<()> {
    let (secure, host, port, path) = split_url(&args.url)?;
    let path = match (&args.tunnel, path) {
        (Some(id), "" | "/") => format!("/tunnel/{}/source", TunnelId::new(id)?),
        (None, path) if path.len() > 1 => path.to_owned(),
        (Some(_), _) => return Err("the URL has a path already: leave --tunnel out".into()),
        (None, _) => return Err("give --tunnel ID, or the whole path in --url".into()),
    };
    let security = match (secure, &args.ca) {
        (false, None) => Security::Plain,
        (false, Some(_)) => return Err("--ca needs a wss:// URL".into()),
        (true, ca) => Security::Tls(tls(ca.as_deref())?),
    };
    let token = secret(args.token_file.as_deref(), ACCESS_TOKEN, "access")?;
    let params = ConnectParams::new(host, port, &path, Token::new(&token)?)?;
    let client = Client::new(params, security, &args.service)?;
    let stop = client.stop_handle();
    on_signal(move || stop.stop())?;
    match args.listen {
        Some(address) => {
            let listener =
                TcpListener::bind(address).map_err(|e| format!("listen on {address}: {e}"))?;
            say_listening(listener.local_addr()?)?;
            client.listen(&listener)?;
        }
        None => client.stdio()?,
    }
    Ok(())
}

fn agent(args: &AgentArgs) -> Result<()> {
    // It runs for months, and its buffers come and go.
    allocator::give_back_large_buffers();
    let security = if args.plain {
        Security::Plain
    } else {
        let mut config = tls(args.ca.as_deref())?;
        if let (Some(cert), Some(key)) = (&args.client_cert, &args.client_key) {
            config = config.with_client_pem(&read(cert)?, &Zeroizing::new(read(key)?))?;
        }
        Security::Tls(config)
    };
    let mut builder = Manager::builder().security(security);
    for text in &args.service {
        builder = builder.service(service(text)?);
    }
    let manager = builder
        .on_event(|_, event| {
            let _ = writeln!(std::io::stdout(), "{event}");
        })
        .build()?;
    let handle = manager.handle();
    on_signal(move || handle.stop())?;
    let options = ListenOptions::new()
        .with_key(args.queue_key)
        .with_mode(args.queue_mode)
        .with_owner(args.queue_owner);
    let listener = Listener::start(manager.handle(), options)?;
    let result = manager.run();
    listener.stop();
    Ok(result?)
}

fn send(args: &SendArgs) -> Result<()> {
    let id = TunnelId::new(&args.tunnel)?;
    let params = || -> Result<ConnectParams> {
        let (Some(host), Some(port)) = (&args.host, args.port) else {
            return Err("add and update need --host and --port".into());
        };
        let path = args.path.clone().unwrap_or_else(|| format!("/tunnel/{id}/dest"));
        let token = secret(args.token_file.as_deref(), DEVICE_TOKEN, "device")?;
        Ok(ConnectParams::new(host, port, &path, Token::new(&token)?)?)
    };
    let command = match args.operation {
        Operation::Add => Command::Add(id.clone(), params()?),
        Operation::Update => Command::Update(id.clone(), params()?),
        Operation::Delete => Command::Delete(id.clone()),
    };
    Ok(ipc::send(args.queue_key, &command)?)
}

/// A token from its file or, without one, from the environment, where it is wiped; never empty.
fn secret(file: Option<&Path>, variable: &str, side: &str) -> Result<Zeroizing<String>> {
    let text = match file {
        Some(path) => {
            let bytes = Zeroizing::new(read(path)?);
            let text =
                std::str::from_utf8(&bytes).map_err(|_| format!("{}: not text", path.display()))?;
            Zeroizing::new(text.to_owned())
        }
        None => environment::take_variable(variable).ok_or_else(|| {
            format!("no {side} token: name its file in an option (see --help), or set {variable}")
        })?,
    };
    match text.trim() {
        "" => Err(format!("the {side} token is empty").into()),
        token => Ok(Zeroizing::new(token.to_owned())),
    }
}

/// `ws[s]://HOST[:PORT][PATH]`
fn split_url(url: &str) -> Result<(bool, &str, Port, &str)> {
    let wrong = || format!("{url:?} is no URL such as wss://host:port");
    let (secure, rest) = match url.split_once("://").ok_or_else(wrong)? {
        ("wss", rest) => (true, rest),
        ("ws", rest) => (false, rest),
        _ => return Err(wrong().into()),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let after_address = authority.rfind(']').unwrap_or(0);
    let (host, port) = match authority[after_address..].find(':') {
        Some(colon) => {
            let (host, port) = authority.split_at(after_address + colon);
            (host, port[1..].parse()?)
        }
        None => (authority, Port::new(if secure { 443 } else { 80 })?),
    };
    Ok((secure, host, port, path))
}

/// `TYPE=HOST:PORT` or `TYPE=unix:PATH`
fn service(text: &str) -> Result<Service> {
    let (name, target) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not TYPE=HOST:PORT"))?;
    Ok(Service::at(name, target.parse()?)?)
}

fn tls(ca: Option<&Path>) -> Result<TlsConfig> {
    match ca {
        Some(path) => Ok(TlsConfig::new().with_ca_pem(&read(path)?)?),
        None => Ok(TlsConfig::new()),
    }
}

fn octal(text: &str) -> std::result::Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("not permissions such as 0600".into()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()).into())
}

/// Scripts wait for this line.
fn say_listening(address: SocketAddr) -> Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {address}")?;
    Ok(stdout.flush()?)
}

/// Calls `stop` at the first SIGINT or SIGTERM.
fn on_signal(stop: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        signals.forever().next();
        stop();
    });
    Ok(())
}
