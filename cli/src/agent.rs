//! `aiot-tunnel agent`

use aiot_tunnel::ipc::{ListenOptions, Listener};
use aiot_tunnel::{process, Manager, Security};

use crate::cli::AgentArgs;
use crate::process::on_signal;
use crate::{input, output, Result};

pub(crate) fn run(args: &AgentArgs) -> Result<()> {
    // The agent runs for months, and its buffers come and go.
    process::give_back_large_buffers();
    output::start();
    let mut builder = Manager::builder().security(security(args)?).network(args.network.network()?);
    for service in &args.service {
        builder = builder.service(service.clone());
    }
    let manager = builder
        .on_event(|_, event| {
            // Commands and tunnels go on when nobody reads the events.
            output::STDOUT.push(format!("{event}\n").into_bytes());
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

fn security(args: &AgentArgs) -> Result<Security> {
    if args.plain {
        return Ok(Security::Plain);
    }
    let tls = input::tls(args.ca.as_deref())?.with_clock(args.network.clock());
    Ok(Security::Tls(match (&args.client_cert, &args.client_key) {
        (Some(cert), Some(key)) => {
            tls.with_client_pem(&input::read(cert)?, &input::read_secret(key)?)?
        }
        _ => tls,
    }))
}
