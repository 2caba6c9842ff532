//! `aiot-tunnel access`

use std::net::TcpListener;

use aiot_tunnel::access::Client;
use aiot_tunnel::{ConnectParams, Security};

use crate::cli::AccessArgs;
use crate::input::{self, ACCESS_TOKEN};
use crate::output;
use crate::process::{on_signal, say_listening};
use crate::{warnings, Result};

pub(crate) fn run(args: &AccessArgs) -> Result<()> {
    let url = input::split_url(&args.url)?;
    let path = match (&args.tunnel, url.path) {
        (Some(id), "" | "/") => format!("/tunnel/{id}/source"),
        (None, path) if path.len() > 1 => path.to_owned(),
        (Some(_), _) => return Err("the URL has a path already: leave --tunnel out".into()),
        (None, _) => return Err("give --tunnel ID, or the whole path in --url".into()),
    };
    let security = match (url.secure, &args.ca) {
        (false, None) => Security::Plain,
        (false, Some(_)) => return Err("--ca needs a wss:// URL".into()),
        (true, ca) => Security::Tls(input::tls(ca.as_deref())?),
    };
    let token = input::token(args.token_file.as_deref(), ACCESS_TOKEN, "access")?;
    output::start();
    if !url.secure {
        warnings::about_plain_text(url.host, "a ws:// URL");
    }
    let params = ConnectParams::new(url.host, url.port, &path, token)?;
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
