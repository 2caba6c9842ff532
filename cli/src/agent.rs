//! `aiot-tunnel agent`

use std::sync::Arc;

use aiot_tunnel::ipc::{ListenOptions, Listener};
use aiot_tunnel::{process, Error, Handle, Manager, Security, Service, TunnelId};
use rustix::io::Errno;

use crate::cli::AgentArgs;
use crate::input::QueueKey;
use crate::process::on_signal;
use crate::{control, input, output, Result};

pub(crate) fn run(args: &AgentArgs) -> Result<()> {
    // The agent runs for months, and its buffers come and go.
    process::give_back_large_buffers();
    output::start();
    let mut builder = Manager::builder().security(security(args)?);
    for service in &args.service {
        builder = builder.service(service.clone());
    }
    let events = control::Events::new()?;
    let told = events.clone();
    let manager = builder
        .on_event(move |_, event| {
            told.event(event);
            // Commands and tunnels go on when nobody reads the events.
            output::STDOUT.push(format!("{event}\n").into_bytes());
        })
        .build()?;
    let handle = manager.handle();
    on_signal(move || handle.stop())?;
    let listener = listener(args, manager.handle())?;
    let actions = Actions { handle: manager.handle(), services: args.service.clone() };
    let control = control::serve(&args.control, Arc::new(actions), events)?;
    let result = manager.run();
    control.map(control::Server::stop);
    listener.map(Listener::stop);
    Ok(result?)
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
    services: Vec<Service>,
}

impl control::Actions for Actions {
    fn handle(&self) -> &Handle {
        &self.handle
    }

    fn services(&self) -> Vec<Service> {
        self.services.clone()
    }

    fn reload(&self) -> Result<()> {
        Err("this agent cannot reload its settings".into())
    }

    fn reconnect(&self, _tunnel: Option<&TunnelId>) -> Result<()> {
        Err("this agent cannot reconnect a tunnel".into())
    }
}

fn security(args: &AgentArgs) -> Result<Security> {
    if args.plain {
        return Ok(Security::Plain);
    }
    let tls = input::tls(args.ca.as_deref())?;
    Ok(Security::Tls(match (&args.client_cert, &args.client_key) {
        (Some(cert), Some(key)) => {
            tls.with_client_pem(&input::read(cert)?, &input::read_secret(key)?)?
        }
        _ => tls,
    }))
}
