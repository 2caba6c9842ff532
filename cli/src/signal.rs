//! `aiot-tunnel signal`: from the broker to the agent.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aiot_tunnel::ipc::{self, Command};
use aiot_tunnel::TunnelId;
use aiot_tunnel_signal::{
    Broker, Credentials, Device, HandOver, Handle, NotHandedOver, Options, Queue, Signal, Tls,
};
use serde_json::{json, Value};
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;
use zeroize::Zeroizing;

use crate::cli::SignalArgs;
use crate::process::ending_signals;
use crate::{input, output, warnings, Result, Usage};

const DEFAULT_SOCKET: &str = "/run/aiot-tunnel/agent.sock";
/// How long the agent may take to answer a request.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// Time between two tries to see the agent's events.
const WATCH_AGAIN: Duration = Duration::from_secs(1);
const WATCH_AGAIN_MOST: Duration = Duration::from_secs(8);

pub(crate) fn run(args: &SignalArgs) -> Result<()> {
    let mut ends = ending_signals()?;
    let options = options(args)?;
    output::start();
    let mut asks = Signals::new([SIGUSR1])?;
    let agent = Agent::new(args);
    let socket = agent.socket.clone();
    let signal = Signal::start(options, agent)?;
    let handle = signal.handle();
    if let Some(socket) = socket {
        let handle = handle.clone();
        thread::spawn(move || watch(&socket, &handle));
    }
    thread::spawn(move || asks.forever().for_each(|_| handle.ask()));
    ends.forever().next();
    signal.stop();
    Ok(())
}

fn options(args: &SignalArgs) -> Result<Options> {
    let (Some(key), Some(name)) = (&args.product_key, &args.device_name) else {
        return Err(Usage::of("give --product-key and --device-name").into());
    };
    let device = Device::new(key, name).map_err(Usage::of)?;
    let broker = match (&args.broker, &args.region, &args.instance) {
        (Some(broker), _, _) => broker.clone(),
        (_, Some(region), _) => Broker::region(&device, region).map_err(Usage::of)?,
        (_, _, Some(instance)) => Broker::instance(instance).map_err(Usage::of)?,
        _ => return Err(Usage::of("give --broker URL, --region or --instance").into()),
    };
    let broker = with_tls(args, broker)?;
    let credentials = credentials(args, &device, &broker)?;
    Ok(Options::new(device, broker, credentials))
}

fn with_tls(args: &SignalArgs, broker: Broker) -> Result<Broker> {
    if !broker.is_tls() {
        if args.ca.is_some() || args.client_cert.is_some() {
            return Err(Usage::of("--ca and --client-cert need a broker with mqtts://").into());
        }
        warnings::about_plain_text(broker.host(), "--broker");
        return Ok(broker);
    }
    let mut tls = Tls::new();
    if let Some(path) = &args.ca {
        let with_ca = tls.with_ca_pem(&input::read(path)?);
        tls = with_ca.map_err(|e| format!("{}: {e}", path.display()))?;
    }
    if let (Some(cert), Some(key)) = (&args.client_cert, &args.client_key) {
        tls = tls.with_client_pem(&input::read(cert)?, &input::read_secret(key)?)?;
    }
    Ok(broker.with_tls(tls)?)
}

fn credentials(args: &SignalArgs, device: &Device, broker: &Broker) -> Result<Credentials> {
    let default_id = format!("{}.{}", device.product_key(), device.device_name());
    let id = args.client_id.as_deref().unwrap_or(&default_id);
    let signed = match (&args.device_secret_file, &args.username, &args.password_file) {
        (Some(file), _, _) => {
            Credentials::from_device_secret(device, &secret(file)?, broker.is_tls())
        }
        (None, Some(name), Some(file)) => Credentials::password(id, name, &secret(file)?),
        _ => Credentials::anonymous(id),
    };
    Ok(signed.map_err(Usage::of)?)
}

/// The secret of a file, without white space around it.
fn secret(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = input::read_secret(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{}: not text", path.display()))?;
    match text.trim() {
        "" => Err(format!("{}: the file is empty", path.display()).into()),
        text => Ok(Zeroizing::new(text.to_owned())),
    }
}

/// The ways to the agent, the preferred one first.
struct Agent {
    socket: Option<PathBuf>,
    queue: Option<Queue>,
}

impl Agent {
    fn new(args: &SignalArgs) -> Self {
        match (&args.control_socket, args.queue_key) {
            (None, None) => Agent {
                socket: Some(DEFAULT_SOCKET.into()),
                queue: Some(Queue::new(ipc::DEFAULT_KEY)),
            },
            (socket, key) => Agent { socket: socket.clone(), queue: key.map(Queue::new) },
        }
    }
}

impl HandOver for Agent {
    fn hand_over(&mut self, command: &Command) -> std::result::Result<(), NotHandedOver> {
        let by_socket = self.socket.as_deref().map(|socket| by_socket(socket, command));
        match (by_socket, &mut self.queue) {
            (Some(Err(absent @ NotHandedOver::Unreachable(_))), Some(queue)) => {
                // The agent's socket says more to a user than the absence of a queue.
                queue.hand_over(command).map_err(|e| match e {
                    NotHandedOver::Unreachable(_) => absent,
                    e => e,
                })?;
            }
            (Some(result), _) => result?,
            (None, Some(queue)) => queue.hand_over(command)?,
            (None, None) => {}
        }
        let line = match command {
            Command::Add(id, _) => format!("add {id}\n"),
            Command::Update(id, _) => format!("update {id}\n"),
            Command::Delete(id) => format!("delete {id}\n"),
            _ => return Ok(()),
        };
        output::STDOUT.push(line.into_bytes());
        Ok(())
    }
}

fn by_socket(socket: &Path, command: &Command) -> std::result::Result<(), NotHandedOver> {
    let request = match command {
        Command::Add(id, params) | Command::Update(id, params) => json!({
            "command": if matches!(command, Command::Add(..)) { "add" } else { "update" },
            "tunnel": id.as_str(), "host": params.host(), "port": params.port().get(),
            "path": params.path(), "token": params.token().expose(),
        }),
        _ => json!({"command": "delete", "tunnel": tunnel(command).as_str()}),
    };
    let away = |e: io::Error| NotHandedOver::Unreachable(format!("{}: {e}", socket.display()));
    let (_, answer) = ask(socket, &request).map_err(away)?;
    match answer["ok"].as_bool() {
        Some(true) => Ok(()),
        _ => {
            let why = answer["error"].as_str().unwrap_or("its answer is not understood");
            Err(NotHandedOver::Refused(why.to_owned()))
        }
    }
}

fn tunnel(command: &Command) -> &TunnelId {
    match command {
        Command::Add(id, _) | Command::Update(id, _) | Command::Delete(id) => id,
        _ => unreachable!("there are three commands"),
    }
}

/// Sends a request; the connection and the answer.
fn ask(socket: &Path, request: &Value) -> io::Result<(BufReader<UnixStream>, Value)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWERED_WITHIN))?;
    stream.set_write_timeout(Some(ANSWERED_WITHIN))?;
    let line = Zeroizing::new(format!("{request}\n"));
    stream.write_all(line.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut answer = String::new();
    reader.read_line(&mut answer)?;
    let answer = serde_json::from_str(&answer).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((reader, answer))
}

/// Sees the agent's events, for as long as the program runs.
fn watch(socket: &Path, handle: &Handle) {
    let mut gap = WATCH_AGAIN;
    loop {
        if let Ok((mut events, _)) = ask(socket, &json!({"command": "events"})) {
            gap = WATCH_AGAIN;
            let _ = events.get_ref().set_read_timeout(None);
            handle.agent_connected();
            let mut line = String::new();
            while events.read_line(&mut line).is_ok_and(|length| length > 0) {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                if let (Some("expired"), Some(id)) =
                    (event["event"].as_str(), event["tunnel"].as_str())
                {
                    if let Ok(id) = TunnelId::new(id) {
                        log::info!("tunnel {id} has expired");
                        handle.expired(&id);
                    }
                }
                line.clear();
            }
            handle.agent_disconnected();
            log::warn!("the agent has left; waiting for it");
        }
        thread::sleep(gap);
        gap = (2 * gap).min(WATCH_AGAIN_MOST);
    }
}
