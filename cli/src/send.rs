//! `aiot-tunnel send`

use std::time::Duration;

use aiot_tunnel::ipc::{self, Command};
use aiot_tunnel::ConnectParams;

use crate::cli::{Operation, SendArgs};
use crate::input::{self, DEVICE_TOKEN};
use crate::{Result, Usage};

/// An agent takes a command within milliseconds.
const TAKEN_WITHIN: Duration = Duration::from_secs(3);

pub(crate) fn run(args: &SendArgs) -> Result<()> {
    let id = args.tunnel.clone();
    let command = match args.operation {
        Operation::Add => Command::Add(id, params(args)?),
        Operation::Update => Command::Update(id, params(args)?),
        Operation::Delete => Command::Delete(id),
    };
    Ok(ipc::send_and_wait(args.queue_key, &command, TAKEN_WITHIN)?)
}

fn params(args: &SendArgs) -> Result<ConnectParams> {
    let (Some(host), Some(port)) = (&args.host, args.port) else {
        return Err(Usage::of("add and update need --host and --port").into());
    };
    let path = args.path.clone().unwrap_or_else(|| format!("/tunnel/{}/dest", args.tunnel));
    let token = input::token(args.token_file.as_deref(), DEVICE_TOKEN, "device")?;
    Ok(ConnectParams::new(host, port, &path, token).map_err(Usage::of)?)
}
