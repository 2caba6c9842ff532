//! The published ports, as the options and the file of settings name them.

use std::net::{SocketAddr, TcpListener};
use std::str::FromStr;

use aiot_tunnel::gateway::{Gateway, PublishedPort};
use aiot_tunnel::{Port, Service, TunnelId};

use crate::cli::GatewayArgs;
use crate::exit_codes::{self, Failure};
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
    /// Whether the protocol can carry the service's name.
    fn check(&self) -> Result<(), String> {
        let port = Port::try_from(1).map_err(|e| e.to_string())?;
        Service::new(&self.service, "localhost", port).map(drop).map_err(|e| e.to_string())
    }

    fn port(&self, listener: TcpListener, args: &GatewayArgs) -> Result<PublishedPort, String> {
        let port = PublishedPort::new(listener, self.tunnel.clone(), &self.service);
        Ok(port
            .map_err(|e| e.to_string())?
            .with_proxy_protocol(self.proxy_protocol)
            .with_queue_timeout(args.publish_queue_timeout)
            .with_client_limit(args.publish_limit))
    }
}

/// The ports that are published, and the addresses on which they listen.
#[derive(Default)]
pub(super) struct Ports(Vec<(Publish, SocketAddr)>);

/// What has to be done for other ports to be published.
pub(super) struct Plan {
    /// Ports that end. Some of them have a successor at the same address.
    ended: Vec<(SocketAddr, Option<Publish>)>,
    new: Vec<(Publish, PublishedPort)>,
}

impl Ports {
    /// Binds the ports of the settings, at the start.
    pub(super) fn bind(
        &mut self,
        args: &GatewayArgs,
        settings: &Settings,
    ) -> Result<Vec<PublishedPort>> {
        let plan = self.plan(args, settings)?;
        let mut ports = Vec::new();
        for (publish, port) in plan.new {
            self.0.push((publish, port.local_addr()?));
            ports.push(port);
        }
        Ok(ports)
    }

    /// Says which ports are open.
    pub(super) fn announce(&self) {
        self.0.iter().for_each(announce);
    }

    /// Compares with what the settings say now, and binds what is new.
    ///
    /// # Errors
    /// A port cannot be published. Nothing has changed.
    pub(super) fn plan(&self, args: &GatewayArgs, settings: &Settings) -> Result<Plan> {
        let mut old: Vec<&(Publish, SocketAddr)> = self.0.iter().collect();
        let mut take = |fits: &dyn Fn(&Publish) -> bool| {
            let at = old.iter().position(|(publish, _)| fits(publish))?;
            Some(old.remove(at).1)
        };
        let mut others = Vec::new();
        for (at, publish) in args.publish.iter().enumerate() {
            if take(&|old| old == publish).is_none() {
                others.push((at, publish));
            }
        }
        let (mut ended, mut new) = (Vec::new(), Vec::new());
        for (at, publish) in others {
            let wrong = |e: String| settings.wrong_value("publish", at, e);
            publish.check().map_err(wrong)?;
            if let Some(address) = take(&|old| old.listen == publish.listen) {
                ended.push((address, Some(publish.clone())));
            } else {
                let listener = TcpListener::bind(publish.listen).map_err(|e| {
                    let why = exit_codes::cannot_listen(publish.listen, &e);
                    let why = settings.wrong_value("publish", at, why);
                    Failure::new(exit_codes::CANNOT_LISTEN, why)
                })?;
                let port = publish.port(listener, args).map_err(wrong)?;
                new.push((publish.clone(), port));
            }
        }
        ended.extend(old.into_iter().map(|(_, address)| (*address, None)));
        Ok(Plan { ended, new })
    }

    pub(super) fn carry_out(&mut self, plan: Plan, args: &GatewayArgs, gateway: &Gateway) {
        for (address, successor) in plan.ended {
            self.0.retain(|(_, other)| *other != address);
            let listener = gateway.unpublish(address);
            log::info!("published port {address}: closed, and its sessions with it");
            if let (Some(listener), Some(publish)) = (listener, successor) {
                match publish.port(listener, args) {
                    Ok(port) => self.open(publish, port, gateway),
                    Err(e) => log::error!("published port {address}: {e}"),
                }
            }
        }
        for (_, address) in &self.0 {
            gateway.set_port_limits(*address, args.publish_queue_timeout, args.publish_limit);
        }
        for (publish, port) in plan.new {
            self.open(publish, port, gateway);
        }
    }

    fn open(&mut self, publish: Publish, port: PublishedPort, gateway: &Gateway) {
        let listen = publish.listen;
        match port.local_addr().map(|address| (address, gateway.publish(port))) {
            Ok((address, Ok(()))) => {
                let open = (publish, address);
                announce(&open);
                self.0.push(open);
            }
            Ok((_, Err(e))) => log::error!("published port {listen}: {e}"),
            Err(e) => log::error!("published port {listen}: {e}"),
        }
    }
}

fn announce((publish, address): &(Publish, SocketAddr)) {
    let (tunnel, service) = (publish.tunnel.as_str(), &publish.service);
    log::info!("published port {address}: service {service:?} of tunnel {tunnel:?}");
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
