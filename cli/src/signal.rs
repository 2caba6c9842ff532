//! `aiot-tunnel signal`: from the broker to the agent.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use aiot_tunnel::ipc::{self, Command};
use aiot_tunnel::TunnelId;
use aiot_tunnel_signal::{
    Broker, Credentials, Device, HandOver, Handle, NotHandedOver, Options, Queue, Signal, Tls,
};
use sd_notify::NotifyState;
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use crate::cli::SignalArgs;
use crate::control::protocol::RequestLine;
use crate::control::{Client, Refused, DEFAULT_PATH};
use crate::process::{ending_signals, tell_service_manager};
use crate::settings::Settings;
use crate::{input, output, warnings, Result, Usage};

/// Time between two tries to see the agent's events.
const WATCH_AGAIN: Duration = Duration::from_secs(1);
const WATCH_AGAIN_MOST: Duration = Duration::from_secs(8);

pub(crate) fn run(args: &SignalArgs, settings: &Settings) -> Result<()> {
    if args.print_config {
        print!("{settings}");
    }
    settings.warn_of_unknown_variables();
    let options = options(args, settings)?;
    if args.check {
        println!("the settings are valid");
    }
    if args.check || args.print_config {
        return Ok(());
    }
    // Not before all files have been read, which a signal must be able to end.
    let mut ends = ending_signals()?;
    let mut asks = Signals::new([SIGUSR1])?;
    output::start();
    let agent = Agent::new(args);
    let socket = agent.socket.clone();
    let signal = Signal::start(options, agent)?;
    let handle = signal.handle();
    if let Some(socket) = socket {
        let handle = handle.clone();
        thread::spawn(move || watch(&socket, &handle));
    }
    thread::spawn(move || asks.forever().for_each(|_| handle.ask()));
    tell_service_manager(&[NotifyState::Ready]);
    ends.forever().next();
    tell_service_manager(&[NotifyState::Stopping]);
    signal.stop();
    Ok(())
}

fn options(args: &SignalArgs, settings: &Settings) -> Result<Options> {
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
    let broker = with_tls(args, settings, broker)?;
    let credentials = credentials(args, settings, &device, &broker)?;
    Ok(Options::new(device, broker, credentials))
}

fn with_tls(args: &SignalArgs, settings: &Settings, broker: Broker) -> Result<Broker> {
    if !broker.is_tls() {
        if args.ca.is_some() || args.client_cert.is_some() {
            return Err(Usage::of("--ca and --client-cert need a broker with mqtts://").into());
        }
        warnings::about_plain_text(broker.host(), "--broker");
        return Ok(broker);
    }
    let mut tls = Tls::new();
    if let Some(path) = &args.ca {
        let pem = input::read(path).map_err(|e| settings.wrong("ca", e))?;
        tls = tls
            .with_ca_pem(&pem)
            .map_err(|e| settings.wrong("ca", format_args!("{}: {e}", path.display())))?;
    }
    if let (Some(cert), Some(key)) = (&args.client_cert, &args.client_key) {
        let chain = input::read(cert).map_err(|e| settings.wrong("client-cert", e))?;
        let private = input::read_secret(key).map_err(|e| settings.wrong("client-key", e))?;
        let tls_with = tls.with_client_pem(&chain, &private);
        tls = tls_with.map_err(|e| settings.wrong("client-key", e))?;
    }
    Ok(broker.with_tls(tls)?)
}

fn credentials(
    args: &SignalArgs,
    settings: &Settings,
    device: &Device,
    broker: &Broker,
) -> Result<Credentials> {
    let default_id = format!("{}.{}", device.product_key(), device.device_name());
    let id = args.client_id.as_deref().unwrap_or(&default_id);
    let signed = match (&args.device_secret_file, &args.username, &args.password_file) {
        (Some(file), _, _) => {
            let secret =
                input::secret_line(file).map_err(|e| settings.wrong("device-secret-file", e))?;
            Credentials::from_device_secret(device, &secret, broker.is_tls())
        }
        (None, Some(name), Some(file)) => {
            let secret =
                input::secret_line(file).map_err(|e| settings.wrong("password-file", e))?;
            Credentials::password(id, name, &secret)
        }
        _ => Credentials::anonymous(id),
    };
    Ok(signed.map_err(Usage::of)?)
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
                socket: Some(DEFAULT_PATH.into()),
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
    let mut agent =
        Client::connect(socket).map_err(|e| NotHandedOver::Unreachable(e.to_string()))?;
    agent.request(&RequestLine::of(command)).map_err(|e| match e.downcast::<Refused>() {
        Ok(refused) => NotHandedOver::Refused(refused.0),
        Err(e) => NotHandedOver::Unreachable(e.to_string()),
    })
}

/// Sees the agent's events, for as long as the program runs.
fn watch(socket: &Path, handle: &Handle) {
    let mut gap = WATCH_AGAIN;
    loop {
        if let Some(agent) = subscribed(socket) {
            gap = WATCH_AGAIN;
            handle.agent_connected();
            until_it_leaves(agent, handle);
            handle.agent_disconnected();
            log::warn!("the agent has left; waiting for it");
        }
        thread::sleep(gap);
        gap = (2 * gap).min(WATCH_AGAIN_MOST);
    }
}

fn subscribed(socket: &Path) -> Option<Client> {
    let mut agent = Client::connect(socket).ok()?;
    agent.subscribe().ok().map(|()| agent)
}

fn until_it_leaves(mut agent: Client, handle: &Handle) {
    while let Some(event) = agent.next_event() {
        if event.event != "expired" {
            continue;
        }
        if let Ok(id) = TunnelId::new(&event.tunnel) {
            log::info!("tunnel {id} has expired");
            handle.expired(&id);
        }
    }
}
