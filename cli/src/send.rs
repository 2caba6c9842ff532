//! `aiot-tunnel send`

use std::path::Path;
use std::time::Duration;

use aiot_tunnel::ipc::{self, Command};
use aiot_tunnel::{ConnectParams, TunnelId};

use crate::cli::{Operation, SendArgs};
use crate::control::protocol::RequestLine;
use crate::control::{Client, DEFAULT_PATH};
use crate::input::{self, DEVICE_TOKEN};
use crate::{Result, Usage};

/// An agent takes a command within milliseconds.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);

/// What is to be sent.
enum Message {
    /// Both ways carry it.
    Command(Command),
    /// Only the control socket does.
    Reconnect(Option<TunnelId>),
    Reload,
}

impl Message {
    fn new(args: &SendArgs) -> Result<Self> {
        let id = || args.tunnel.clone().ok_or_else(|| Usage::of("--tunnel is missing"));
        Ok(match args.operation {
            Operation::Add => Message::Command(Command::Add(id()?, params(args, &id()?)?)),
            Operation::Update => Message::Command(Command::Update(id()?, params(args, &id()?)?)),
            Operation::Delete => Message::Command(Command::Delete(id()?)),
            Operation::Reconnect => Message::Reconnect(args.tunnel.clone()),
            Operation::Reload if args.tunnel.is_some() => {
                return Err(Usage::of("reload concerns the whole agent; leave --tunnel out").into())
            }
            Operation::Reload => Message::Reload,
        })
    }

    fn request(&self) -> RequestLine<'_> {
        match self {
            Message::Command(command) => RequestLine::of(command),
            Message::Reconnect(tunnel) => RequestLine::new("reconnect", tunnel.as_ref()),
            Message::Reload => RequestLine::new("reload", None),
        }
    }
}

pub(crate) fn run(args: &SendArgs) -> Result<()> {
    let message = Message::new(args)?;
    if let Some(key) = args.queue_key {
        let Message::Command(command) = &message else {
            return Err(Usage::of(
                "the message queue carries add, update and delete only; leave --queue-key out to \
                 use the control socket",
            )
            .into());
        };
        return Ok(ipc::send_and_wait(key, command, TAKEN_WITHIN)?);
    }
    let path = args.control_socket.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    match (Client::connect(path), &message) {
        (Ok(mut agent), message) => agent.request(&message.request()),
        // An agent without a control socket has the queue, and the queue may be for more users.
        (Err(e), Message::Command(command))
            if args.control_socket.is_none() && (e.is_absent() || e.is_denied()) =>
        {
            ipc::send_and_wait(ipc::DEFAULT_KEY, command, TAKEN_WITHIN).map_err(|of_queue| {
                format!("{e}; the message queue cannot be used either: {of_queue}").into()
            })
        }
        (Err(e), _) => Err(e.into()),
    }
}

fn params(args: &SendArgs, id: &TunnelId) -> Result<ConnectParams> {
    let (Some(host), Some(port)) = (&args.host, args.port) else {
        return Err(Usage::of("add and update need --host and --port").into());
    };
    let path = args.path.clone().unwrap_or_else(|| format!("/tunnel/{id}/dest"));
    let token = input::token(args.token_file.as_deref(), DEVICE_TOKEN, "device")?;
    Ok(ConnectParams::new(host, port, &path, token).map_err(Usage::of)?)
}
