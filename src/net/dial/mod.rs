//! The ways to connect, one file each: [`tcp`] leads to one of a host's addresses (for the cloud, its
//! proxy and local services), [`unix`] to local services. [`http_proxy`] and [`socks5`] continue a TCP
//! connection through a proxy; [`exchange`] is how both talk. No function blocks: a [`Dial`] is advanced
//! when `poll` reports its descriptor ready, and the way to the cloud waits in `Wait`.

mod exchange;
mod http_proxy;
mod socks5;
pub(crate) mod tcp;
pub(crate) mod unix;

use std::io;
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::device::{Connect, DialError};
use parking_lot::Mutex;

use super::local::LocalSocket;
use super::resolver::Resolver;
use super::Wait;
use crate::config::{Proxy, ProxyProtocol, Services, Target};
use exchange::Exchange;
pub(crate) use exchange::ProxyError;

/// Continues a connection to the proxy: after that, it is one to the host. Bytes that follow the
/// proxy's answer stay in the socket.
pub(super) fn through_proxy(
    tcp: &TcpStream,
    proxy: &Proxy,
    host: &str,
    port: u16,
    wait: &dyn Wait,
    deadline: Instant,
) -> Result<(), ProxyError> {
    let exchange = Exchange { tcp, wait, deadline };
    match proxy.protocol {
        ProxyProtocol::Http => http_proxy::connect(&exchange, proxy, host, port),
        ProxyProtocol::Socks5 => socks5::connect(&exchange, proxy, host, port),
    }
}

/// A connect to a local service, in progress.
pub(crate) enum Dial {
    Tcp(tcp::TcpDial),
    Unix(unix::UnixDial),
}

impl Dial {
    /// The descriptors of which one becomes writable when the connect can advance. None while a name
    /// is looked up; the end of the lookup wakes the resolver's waker.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let tcp = match self {
            Dial::Tcp(dial) => Some(dial),
            Dial::Unix(_) => None,
        };
        tcp.into_iter().flat_map(tcp::TcpDial::fds)
    }
}

/// Connects a device's sessions to its local services.
pub(crate) struct Dialer {
    /// Locked while a session looks for its service, so that one added later is found.
    pub(crate) services: Arc<Mutex<Services>>,
    pub(crate) resolver: Rc<Resolver>,
    /// When to probe a service that sends nothing. `None`: never.
    pub(crate) keep_alive: Option<Duration>,
    /// How long a connect may take, with all addresses of a name.
    pub(crate) connect_timeout: Duration,
}

impl Connect for Dialer {
    type Dial = Dial;
    type Stream = LocalSocket;

    fn dial(&mut self, service_type: &str) -> Result<Dial, DialError> {
        let services = self.services.lock();
        let service = services.get(service_type).ok_or(DialError::NoService)?;
        match service.target() {
            Target::Tcp { host, port } => {
                let deadline = Instant::now() + self.connect_timeout;
                let dial = tcp::TcpDial::new(&self.resolver, host, port.get(), deadline);
                dial.map(Dial::Tcp).map_err(DialError::Io)
            }
            Target::Unix(path) => Ok(Dial::Unix(unix::UnixDial::new(path))),
        }
    }

    fn step(&mut self, dial: &mut Dial, ready: bool) -> Option<io::Result<LocalSocket>> {
        match dial {
            Dial::Tcp(dial) => {
                let stream = dial.step(ready, Instant::now())?;
                Some(stream.and_then(|tcp| {
                    tcp.set_nodelay(true)?;
                    let local = LocalSocket::Tcp(tcp);
                    local.keep_alive(self.keep_alive);
                    Ok(local)
                }))
            }
            Dial::Unix(dial) => Some(dial.step()?.map(LocalSocket::Unix)),
        }
    }

    fn deadline(&self, dial: &Dial) -> Option<Instant> {
        match dial {
            Dial::Tcp(dial) => dial.deadline(),
            Dial::Unix(dial) => dial.deadline(),
        }
    }

    fn address(&self, service_type: &str) -> String {
        let services = self.services.lock();
        services.get(service_type).map(|service| service.target().to_string()).unwrap_or_default()
    }

    fn names(&self) -> Vec<String> {
        self.services.lock().names()
    }
}
