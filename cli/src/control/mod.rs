//! The agent's control socket. docs/control.md is its language; `protocol` has the types of it.
//!
//! [`Server`] is the agent's part, one thread that waits in one `poll`. [`Client`] is the part of
//! `send` and `status`. Nothing here knows how a tunnel works: the agent's [`Actions`] do the work.

mod client;
mod connection;
mod events;
mod metrics;
mod options;
pub(crate) mod protocol;
mod server;
mod socket;

use std::sync::Arc;

use aiot_tunnel::ipc::Command;
use aiot_tunnel::{Handle, Service, TunnelId};

pub(crate) use client::{Client, Refused};
pub(crate) use events::Events;
pub(crate) use options::{path_of_socket, ControlArgs, SocketPath, DEFAULT_PATH};
pub(crate) use server::Server;
use socket::NoSocket;

use crate::Result;

/// What the agent does on request. The functions run on the server's thread: other clients wait for
/// them. An error's text is the client's answer, so it must hold no secret.
pub(crate) trait Actions: Send + Sync {
    /// The agent's tunnels.
    fn handle(&self) -> &Handle;

    /// The services on offer.
    fn services(&self) -> Vec<Service>;

    /// Does what `SIGHUP` does.
    fn reload(&self) -> Result<()>;

    /// Connects a tunnel again, or all of them.
    fn reconnect(&self, tunnel: Option<&TunnelId>) -> Result<()> {
        let handle = self.handle();
        match tunnel {
            Some(tunnel) => Ok(handle.reconnect(tunnel)?),
            None => Ok(handle.reconnect_all()?),
        }
    }

    /// Takes a command, as one from the message queue.
    fn command(&self, command: Command) -> Result<()> {
        let handle = self.handle();
        match command {
            Command::Add(id, params) => handle.add(&id, params)?,
            Command::Update(id, params) => handle.update(&id, params)?,
            Command::Delete(id) => handle.delete(&id)?,
            _ => return Err("this agent does not know the command".into()),
        }
        Ok(())
    }
}

/// Starts the server that the options ask for.
///
/// Without rights to make the default path, an ordinary user's agent goes on without the socket: there
/// is the message queue. A path of the user's choice must work, and two agents never share one.
pub(crate) fn serve(
    args: &ControlArgs,
    actions: Arc<dyn Actions>,
    events: Events,
) -> Result<Option<Server>> {
    let SocketPath::At(path) = &args.control_socket else { return Ok(None) };
    let options = args.options(path);
    match Server::start(&options, actions, events) {
        Ok(server) => Ok(Some(server)),
        Err(e) if args.control_socket.is_default() && !is_taken(&*e) => {
            log::warn!(
                "no control socket: {e}; choose another path with --control-socket, or switch it \
                 off with --control-socket none"
            );
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn is_taken(e: &(dyn std::error::Error + 'static)) -> bool {
    matches!(e.downcast_ref(), Some(NoSocket::Taken(_)))
}
