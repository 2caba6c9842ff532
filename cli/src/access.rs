//! `aiot-tunnel access`

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use aiot_tunnel::access::{Client, Forward};
use aiot_tunnel::{ConnectParams, Security};

use crate::cli::AccessArgs;
use crate::exit_codes;
use crate::input::{self, ACCESS_TOKEN};
use crate::output;
use crate::process::{on_signal, say_listening};
use crate::{rates, warnings, Result, Usage};

pub(crate) fn run(args: &AccessArgs) -> Result<()> {
    // An error about something that the profile has set names its place there.
    let usage = |key: &str, why: &str| match &args.loaded {
        Some(profile) => Err(profile.wrong(key, why).into()),
        None => Err(Usage::of(why).into()),
    };
    let place = &args.place;
    if args.loaded.is_none() && (place.config.is_some() || place.profile.is_some()) {
        return Err(Usage::of("give --url, or a profile, and not both").into());
    }
    let url = input::split_url(args.url.as_deref().unwrap_or_default()).map_err(Usage::of)?;
    let path = match (args.tunnel()?, url.path) {
        (Some(id), "" | "/") => format!("/tunnel/{id}/source"),
        (None, path) if path.len() > 1 => path.to_owned(),
        (Some(_), _) if args.loaded.is_some() => {
            return usage("url", "a profile's URL has no path: it serves several tunnels")
        }
        (Some(_), _) => return usage("url", "the URL has a path already: leave --tunnel out"),
        (None, _) => return usage("url", "give --tunnel ID, or the whole path in --url"),
    };
    let security = match (url.secure, &args.ca) {
        (false, None) => Security::Plain,
        (false, Some(_)) => return usage("ca", "--ca needs a wss:// URL"),
        (true, ca) => {
            let tls = input::tls(ca.as_deref()).map_err(|e| named(args, "ca", ca.as_deref(), e))?;
            Security::Tls(tls.with_clock(args.network.clock()))
        }
    };
    let token = match (&args.loaded, &args.token_file) {
        (Some(profile), None) => profile.token()?,
        (_, Some(file)) => {
            let token = input::token(Some(file), ACCESS_TOKEN, "access");
            token.map_err(|e| named(args, "token_file", Some(file), e))?
        }
        (None, None) => input::token(None, ACCESS_TOKEN, "access")?,
    };
    // With --stdio, standard output is closed before the program ends.
    output::start_log();
    if !url.secure {
        warnings::about_plain_text(url.host, "a ws:// URL");
    }
    let params = ConnectParams::new(url.host, url.port, &path, token).map_err(Usage::of)?;
    let keepalive = (args.keepalive > 0).then(|| Duration::from_secs(args.keepalive));
    let client = Client::new(params, security, &args.service)?
        .with_network(args.network.network()?)
        .with_extensions(!args.no_extensions)
        .with_queue_timeout(Duration::from_secs(args.queue_timeout))
        .with_half_close_timeout(Duration::from_secs(args.half_close_timeout))
        .with_local_keepalive(keepalive)
        .with_retry(args.retry);
    let stop = client.stop_handle();
    on_signal(move || stop.stop())?;
    if args.verbose {
        rates::show(client.traffic())?;
    }
    if args.stdio {
        return Ok(client.stdio()?);
    }
    let mut forwards = Vec::new();
    for listen in &args.listen {
        let (address, service) = listen.split_once('=').unwrap_or((listen, &args.service));
        let listener = bind(address).map_err(|e| exit_codes::cannot_listen(address, &e))?;
        let bound = listener.local_addr()?;
        forwards.push(Forward::new(listener, service)?);
        say_listening(bound)?;
    }
    Ok(client.forward(&forwards)?)
}

/// An error about a file, with the place that names the file: an option, or a line of the profile.
fn named(
    args: &AccessArgs,
    key: &str,
    file: Option<&Path>,
    e: Box<dyn std::error::Error>,
) -> Usage {
    match &args.loaded {
        Some(profile) if profile.option(key).map(Path::new) == file => profile.wrong(key, e),
        _ => Usage::of(format_args!("--{}: {e}", key.replace('_', "-"))),
    }
}

/// Binds HOST:PORT, or :PORT on all addresses of the machine.
fn bind(address: &str) -> io::Result<TcpListener> {
    match address.strip_prefix(':') {
        // The IPv6 wildcard also takes IPv4, unless the machine has no IPv6.
        Some(port) => TcpListener::bind(format!("[::]:{port}"))
            .or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}"))),
        None => TcpListener::bind(address),
    }
}
