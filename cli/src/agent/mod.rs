//! `aiot-tunnel agent`: the remote-login process of a device.

mod config;
mod hooks;
mod reload;

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use aiot_tunnel::ipc::{ListenOptions, Listener};
use aiot_tunnel::{process, EventKind, Handle, Manager, NoticeKind, TunnelId};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::cli::AgentArgs;
use crate::process::{agent_signals, tell_service_manager};
use crate::settings::Settings;
use crate::{output, Result};

use config::Config;
pub(crate) use config::ConfiguredTunnel;
use hooks::Hooks;
use reload::Reloader;

pub(crate) fn run(args: &AgentArgs, settings: Settings) -> Result<()> {
    if args.print_config {
        print!("{settings}");
    }
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
    Reload,
    TokenRefused(TunnelId),
}

fn serve(args: &AgentArgs, settings: Settings, config: Config) -> Result<()> {
    // The agent runs for months, and its buffers come and go.
    process::give_back_large_buffers();
    let signals = agent_signals()?;
    output::start();
    let (changes, receiver) = mpsc::channel();
    let manager = manager(args, &config, changes.clone())?;
    let options = ListenOptions::new()
        .with_key(args.queue_key)
        .with_mode(args.queue_mode)
        .with_owner(args.queue_owner);
    let listener = Listener::start(manager.handle(), options)?;
    for tunnel in &config.tunnels {
        manager.handle().add(&tunnel.id, tunnel.params.clone())?;
    }
    let reloader = Reloader::new(manager.handle(), settings, config);
    spawn("settings", move || apply(reloader, &receiver))?;
    let handle = manager.handle();
    spawn("signals", move || obey(signals, &handle, &changes))?;
    tell_service_manager(&[NotifyState::Ready]);
    let result = manager.run();
    tell_service_manager(&[NotifyState::Stopping]);
    listener.stop();
    Ok(result?)
}

fn manager(args: &AgentArgs, config: &Config, changes: Sender<Change>) -> Result<Manager> {
    let mut builder =
        Manager::builder().security(config.security.clone()).limits(config.limits.clone());
    for service in &config.services {
        builder = builder.service(service.clone());
    }
    let hooks = args.on_event.as_deref().map(Hooks::start).transpose()?;
    let hooks_of_notices = hooks.clone();
    let builder = builder
        .on_event(move |_, event| {
            // Commands and tunnels go on when nobody reads the events.
            output::STDOUT.push(format!("{event}\n").into_bytes());
            if let Some(hooks) = &hooks {
                hooks.event(event);
            }
        })
        .on_notice(move |_, notice| match &notice.kind {
            NoticeKind::TokenRefused => {
                // The thread that receives it reads a file, which may take long.
                let _ = changes.send(Change::TokenRefused(notice.tunnel_id.clone()));
            }
            NoticeKind::Failed { text, .. } => {
                if let Some(hooks) = &hooks_of_notices {
                    hooks.failed(&notice.tunnel_id, text);
                }
            }
            _ => {}
        });
    Ok(builder.build()?)
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
            Change::Reload => {
                tell_service_manager(&[NotifyState::Reloading]);
                // What is wrong was logged.
                let _ = reloader.reload();
                tell_service_manager(&[NotifyState::Ready]);
            }
        }
    }
}

/// The thread that waits for signals. It ends with the first one that ends the agent.
fn obey(mut signals: Signals, handle: &Handle, changes: &Sender<Change>) {
    for signal in signals.forever() {
        match signal {
            SIGHUP => drop(changes.send(Change::Reload)),
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

/// The name of an event for other programs.
fn event_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Connect => "connect",
        EventKind::Disconnect => "disconnect",
        EventKind::Expired => "expired",
        _ => "other",
    }
}
