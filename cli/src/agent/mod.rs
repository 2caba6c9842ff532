//! `aiot-tunnel agent`: the remote-login process of a device.

mod config;
mod hooks;
mod reload;

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use aiot_tunnel::ipc::{ListenOptions, Listener};
use aiot_tunnel::{process, Error, Handle, Manager, NoticeKind, Service, TunnelId};
use rustix::io::Errno;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::cli::AgentArgs;
use crate::input::QueueKey;
use crate::process::{agent_signals, tell_service_manager};
use crate::settings::Settings;
use crate::{control, output, Result};

use config::Config;
pub(crate) use config::ConfiguredTunnel;
use hooks::Hooks;
use reload::Reloader;

pub(crate) fn run(args: &AgentArgs, settings: Settings) -> Result<()> {
    if args.print_config {
        print!("{settings}");
    }
    settings.warn_of_unknown_variables();
    let config = Config::load(args, &settings)?;
    if args.check {
        let file = args.config.as_ref().map(|path| format!("{}: ", path.display()));
        println!("{}the settings are valid", file.unwrap_or_default());
    }
    if args.check || args.print_config {
        return Ok(());
    }
    serve(args, settings, config)
}

/// What changes the settings in force.
enum Change {
    /// The sender gets the outcome.
    Reload(Option<Sender<std::result::Result<(), String>>>),
    TokenRefused(TunnelId),
}

/// The services in force.
type Services = Arc<Mutex<Vec<Service>>>;

fn serve(args: &AgentArgs, settings: Settings, config: Config) -> Result<()> {
    // The agent runs for months, and its buffers come and go.
    process::give_back_large_buffers();
    let signals = agent_signals()?;
    output::start();
    let (changes, receiver) = mpsc::channel();
    let events = control::Events::new()?;
    let manager = manager(args, &config, changes.clone(), events.clone())?;
    let listener = listener(args, manager.handle())?;
    for tunnel in &config.tunnels {
        manager.handle().add(&tunnel.id, tunnel.params.clone())?;
    }
    let services = Services::new(Mutex::new(config.services.clone()));
    let actions = Actions {
        handle: manager.handle(),
        services: services.clone(),
        changes: Mutex::new(changes.clone()),
    };
    let control = control::serve(&args.control, Arc::new(actions), events)?;
    let reloader = Reloader::new(manager.handle(), settings, config, services);
    spawn("settings", move || apply(reloader, &receiver))?;
    let handle = manager.handle();
    spawn("signals", move || obey(signals, &handle, &changes))?;
    tell_service_manager(&[NotifyState::Ready]);
    let result = manager.run();
    tell_service_manager(&[NotifyState::Stopping]);
    if let Some(control) = control {
        control.stop();
    }
    if let Some(listener) = listener {
        listener.stop();
    }
    Ok(result?)
}

fn manager(
    args: &AgentArgs,
    config: &Config,
    changes: Sender<Change>,
    told: control::Events,
) -> Result<Manager> {
    let mut builder = Manager::builder()
        .security(config.security.clone())
        .network(config.network.clone())
        .limits(config.limits.clone());
    for service in &config.services {
        builder = builder.service(service.clone());
    }
    let hooks = args.on_event.as_deref().map(Hooks::start).transpose()?;
    let (noticed, hooks_of_notices) = (told.clone(), hooks.clone());
    let builder = builder
        .on_event(move |_, event| {
            told.event(event);
            // Commands and tunnels go on when nobody reads the events.
            output::STDOUT.push(format!("{event}\n").into_bytes());
            if let Some(hooks) = &hooks {
                hooks.event(event);
            }
        })
        .on_notice(move |_, notice| {
            noticed.notice(notice);
            match &notice.kind {
                NoticeKind::TokenRefused => {
                    if let Some(hooks) = &hooks_of_notices {
                        hooks.token_refused(&notice.tunnel_id);
                    }
                    // The thread that receives it reads a file, which may take long.
                    let _ = changes.send(Change::TokenRefused(notice.tunnel_id.clone()));
                }
                NoticeKind::Failed { text, .. } => {
                    if let Some(hooks) = &hooks_of_notices {
                        hooks.failed(&notice.tunnel_id, text);
                    }
                }
                _ => {}
            }
        });
    Ok(builder.build()?)
}

/// Receives commands from the message queue, unless it is off.
fn listener(args: &AgentArgs, handle: Handle) -> Result<Option<Listener>> {
    let QueueKey::Key(key) = args.queue_key else { return Ok(None) };
    let options =
        ListenOptions::new().with_key(key).with_mode(args.queue_mode).with_owner(args.queue_owner);
    match Listener::start(handle, options) {
        Ok(listener) => Ok(Some(listener)),
        Err(e) if has_no_queues(&e) => Err(format!(
            "{e}: this system has no message queues; use the control socket, with --queue-key off"
        )
        .into()),
        Err(e) => Err(e.into()),
    }
}

/// Whether the kernel, or a container's filter or limit, allows no System V queue at all.
fn has_no_queues(e: &Error) -> bool {
    let Error::Io { source, .. } = e else { return false };
    [Errno::NOSYS, Errno::PERM, Errno::NOSPC, Errno::OPNOTSUPP]
        .contains(&Errno::from_io_error(source).unwrap_or(Errno::IO))
}

/// What the control socket does with this agent.
struct Actions {
    handle: Handle,
    services: Services,
    changes: Mutex<Sender<Change>>,
}

impl control::Actions for Actions {
    fn handle(&self) -> &Handle {
        &self.handle
    }

    fn services(&self) -> Vec<Service> {
        lock(&self.services).clone()
    }

    fn reload(&self) -> Result<()> {
        let (sender, outcome) = mpsc::channel();
        lock(&self.changes).send(Change::Reload(Some(sender)))?;
        Ok(outcome.recv()??)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(())
}

/// The thread that changes the settings in force.
fn apply(mut reloader: Reloader, changes: &Receiver<Change>) {
    for change in changes {
        match change {
            Change::TokenRefused(id) => reloader.token_refused(&id),
            Change::Reload(answer) => {
                tell_service_manager(&[NotifyState::Reloading]);
                let outcome = reloader.reload();
                tell_service_manager(&[NotifyState::Ready]);
                if let Some(answer) = answer {
                    let _ = answer.send(outcome);
                }
            }
        }
    }
}

/// The thread that waits for signals. It ends with the first one that ends the agent.
fn obey(mut signals: Signals, handle: &Handle, changes: &Sender<Change>) {
    for signal in signals.forever() {
        match signal {
            SIGHUP => drop(changes.send(Change::Reload(None))),
            SIGUSR1 => {
                log::info!("SIGUSR1: connecting every tunnel again");
                if let Err(e) = handle.reconnect_all() {
                    log::warn!("SIGUSR1: {e}");
                }
            }
            _ => return handle.stop(),
        }
    }
}
