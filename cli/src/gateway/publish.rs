//! The published ports, as the options and the file of settings name them.

use std::net::{SocketAddr, TcpListener};
use std::str::FromStr;
use std::time::Duration;

use aiot_tunnel::gateway::PublishedPort;
use aiot_tunnel::TunnelId;

use crate::settings::{Field, Settings};
use crate::Result;

/// The service of a port that names none.
const SERVICE: &str = "_SSH";

/// The fields of `[[publish]]`.
pub(crate) const FIELDS: [Field; 4] = [
    Field::needed("listen"),
    Field::needed("tunnel"),
    Field::or("service", SERVICE),
    Field::or("proxy_protocol", "false"),
];

/// A port to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish {
    listen: SocketAddr,
    tunnel: TunnelId,
    service: String,
    proxy_protocol: bool,
}

impl FromStr for Publish {
    type Err = String;

    /// `LISTEN=TUNNEL[:SERVICE]`, or the fields with a blank between them.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (listen, tunnel, service, proxy_protocol) = match text.split_once(' ') {
            Some((listen, rest)) => {
                let (tunnel, rest) = rest.split_once(' ').unwrap_or((rest, SERVICE));
                let (service, proxy) = rest.rsplit_once(' ').unwrap_or((rest, "false"));
                (listen, tunnel, service, proxy)
            }
            None => {
                let form = "write LISTEN=TUNNEL or LISTEN=TUNNEL:SERVICE, such as \
                            127.0.0.1:2222=t1:_SSH";
                let (listen, rest) = text.split_once('=').ok_or(form)?;
                let (tunnel, service) = rest.split_once(':').unwrap_or((rest, SERVICE));
                (listen, tunnel, service, "false")
            }
        };
        let wrong = |what: &str| format!("{listen:?} {what}");
        let listen = listen.parse().map_err(|_| {
            wrong("is not an address with a port, such as 127.0.0.1:2222 or [::1]:2222")
        })?;
        let proxy_protocol = proxy_protocol.parse();
        Ok(Publish {
            listen,
            tunnel: TunnelId::new(tunnel).map_err(|e| e.to_string())?,
            service: service.to_owned(),
            proxy_protocol: proxy_protocol.map_err(|_| "proxy_protocol: write true or false")?,
        })
    }
}

/// A value of the option as its fields, with blanks between them.
pub(crate) fn as_fields(text: &str) -> String {
    text.parse().map_or_else(
        |_| text.to_owned(),
        |Publish { listen, tunnel, service, proxy_protocol }| {
            format!("{listen} {} {service} {proxy_protocol}", tunnel.as_str())
        },
    )
}

impl Publish {
    /// Binds the port.
    pub(super) fn bind(&self, at: usize, settings: &Settings) -> Result<PublishedPort> {
        let Publish { listen, tunnel, service, proxy_protocol } = self;
        let listener = TcpListener::bind(listen).map_err(|e| {
            settings.wrong_value("publish", at, format_args!("listen on {listen}: {e}"))
        })?;
        let port = PublishedPort::new(listener, tunnel.clone(), service)
            .map_err(|e| settings.wrong_value("publish", at, e))?;
        Ok(port.with_proxy_protocol(*proxy_protocol))
    }
}

/// Binds the ports. Returns them with what is said when they are served.
pub(super) fn bind(
    ports: &[Publish],
    queue_timeout: Duration,
    client_limit: usize,
    settings: &Settings,
) -> Result<Vec<(PublishedPort, String)>> {
    let mut bound = Vec::new();
    for (at, one) in ports.iter().enumerate() {
        let port = one.bind(at, settings)?;
        let (tunnel, service) = (one.tunnel.as_str(), &one.service);
        let text = format!(
            "published port {}: service {service:?} of tunnel {tunnel:?}",
            port.local_addr()?
        );
        let port = port.with_queue_timeout(queue_timeout).with_client_limit(client_limit);
        bound.push((port, text));
    }
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_and_a_table_name_the_same_port() {
        let short: Publish = "127.0.0.1:2222=t1".parse().unwrap();
        assert_eq!(as_fields("127.0.0.1:2222=t1"), "127.0.0.1:2222 t1 _SSH false");
        assert_eq!(short, "127.0.0.1:2222 t1 _SSH false".parse().unwrap());
        let other: Publish = "[::1]:80=t2:web".parse().unwrap();
        assert_eq!((&other.service[..], other.tunnel.as_str()), ("web", "t2"));
        let proxied: Publish = "[::1]:80 t2 my web true".parse().unwrap();
        assert!(proxied.proxy_protocol && proxied.service == "my web");
    }

    #[test]
    fn what_is_no_port_is_refused_with_its_form() {
        for wrong in ["", "2222", "2222=t1", "host:22=t1", "127.0.0.1:1=", "127.0.0.1:1 t s maybe"]
        {
            assert!(wrong.parse::<Publish>().is_err(), "{wrong}");
        }
    }
}
