//! The way out of this machine: proxy, local address, interface, address family.

use std::net::{IpAddr, SocketAddr};

use super::proxy::{Proxies, Proxy};
use super::Port;
use crate::error::{Error, Result};
use crate::sys::Origin;

/// Longest name of an interface, in bytes (the kernel's `IFNAMSIZ` without the NUL).
const MAX_INTERFACE: usize = 15;

/// The way from this machine to the tunnel service. It does not concern the device's local services.
///
/// By default there is no proxy, and the environment is not read: a library must not change its way
/// because of a variable that was set for somebody else.
/// [`with_proxy_from_environment`](Self::with_proxy_from_environment) asks for it.
///
/// ```
/// use aiot_tunnel::{AddressFamily, Network};
///
/// let network = Network::new()
///     .with_proxy("socks5://proxy.example:1080".parse::<aiot_tunnel::Proxy>()?)
///     .with_bind_interface("wwan0")?
///     .with_family(AddressFamily::Ipv4);
/// # Ok::<(), aiot_tunnel::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Network {
    proxies: Proxies,
    address: Option<IpAddr>,
    interface: Option<String>,
    family: AddressFamily,
}

/// Which addresses of a name are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AddressFamily {
    /// IPv6 and IPv4, in the order that the system prefers.
    #[default]
    Any,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

impl Network {
    /// No proxy, every local address and interface, both address families.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reaches every tunnel service through this proxy; default `None`, directly. The names of tunnel
    /// services are then looked up by the proxy, and only the proxy's own name is looked up here.
    pub fn with_proxy(mut self, proxy: impl Into<Option<Proxy>>) -> Self {
        self.proxies.set(proxy.into());
        self
    }

    /// Names hosts that are reached directly although there is a proxy, in the form of the variable
    /// `NO_PROXY`: a list with commas or blanks of names (each with all names below it), addresses,
    /// blocks of addresses (`10.0.0.0/8`), each with `:PORT` if only one port is meant; `*` for all.
    /// An entry that is none of these is ignored, as in `NO_PROXY`.
    pub fn with_no_proxy(mut self, list: &str) -> Self {
        self.proxies.set_exceptions(list);
        self
    }

    /// Reads the proxy from the environment, once, in this call; what was set before is replaced. The first variable that is set and not
    /// empty counts: for TLS (`wss`) `https_proxy`, `HTTPS_PROXY`, `all_proxy`, `ALL_PROXY`; without
    /// TLS (`ws`) `http_proxy`, `all_proxy`, `ALL_PROXY`. A value without a scheme means `http://`.
    /// `no_proxy` or `NO_PROXY` is as in [`with_no_proxy`](Self::with_no_proxy). `localhost` and
    /// loopback addresses are always reached directly.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], which names the variable and never holds its value.
    pub fn with_proxy_from_environment(mut self) -> Result<Self> {
        self.proxies = Proxies::from_variables(&|name| std::env::var(name).ok())?;
        Ok(self)
    }

    /// Connects from this local address; default `None`, the system's choice. Addresses of the other
    /// family are not used. If the address is not this machine's, the attempt fails and is repeated: the
    /// address may come later.
    pub fn with_bind_address(mut self, address: impl Into<Option<IpAddr>>) -> Self {
        self.address = address.into();
        self
    }

    /// Connects through this network interface only (`SO_BINDTODEVICE`); default: the routing table's
    /// choice. Names are still looked up by the system's own way. Before Linux 5.7 this needs the
    /// capability `CAP_NET_RAW`. If there is no such interface, the attempt fails and is repeated: the
    /// interface may come later.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for a name that is empty, has more than 15 bytes, or holds a slash, a
    /// blank or a control character.
    pub fn with_bind_interface(mut self, name: &str) -> Result<Self> {
        let invalid = |reason| Err(Error::invalid("interface", reason));
        if name.is_empty() || name.len() > MAX_INTERFACE {
            return invalid("the name must have 1 to 15 bytes");
        }
        if name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
            return invalid("the name holds a slash, a blank or a control character");
        }
        self.interface = Some(name.to_owned());
        Ok(self)
    }

    /// Uses only addresses of this family, for the tunnel service or for the proxy; default
    /// [`AddressFamily::Any`]. It does not bind the proxy's own way.
    pub fn with_family(mut self, family: AddressFamily) -> Self {
        self.family = family;
        self
    }

    /// The proxy for a connection to this host. `None`: it is connected directly.
    pub(crate) fn proxy_for(&self, secure: bool, host: &str, port: Port) -> Option<&Proxy> {
        self.proxies.proxy_for(secure, host, port)
    }

    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { address: self.address, interface: self.interface.as_deref() }
    }

    /// Whether a connection may lead to this address.
    pub(crate) fn uses(&self, address: &SocketAddr) -> bool {
        let fits = match self.family {
            AddressFamily::Any => true,
            AddressFamily::Ipv4 => address.is_ipv4(),
            AddressFamily::Ipv6 => address.is_ipv6(),
        };
        fits && self.address.is_none_or(|own| own.is_ipv4() == address.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_a_name_that_the_kernel_takes() {
        for good in ["lo", "wwan0", "eth0.100", "fifteen-letters"] {
            assert!(Network::new().with_bind_interface(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "a b", "a\n", "sixteen-letters-"] {
            assert!(Network::new().with_bind_interface(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_addresses_of_the_family_are_used() {
        let (four, six): (SocketAddr, SocketAddr) =
            ("10.0.0.1:1".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap());
        let used = |network: Network| (network.uses(&four), network.uses(&six));
        let family = |family| Network::new().with_family(family);
        assert_eq!(used(Network::new()), (true, true));
        assert_eq!(used(family(AddressFamily::Ipv4)), (true, false));
        assert_eq!(used(family(AddressFamily::Ipv6)), (false, true));
        let bound: IpAddr = "10.0.0.2".parse().unwrap();
        assert_eq!(used(Network::new().with_bind_address(bound)), (true, false));
        assert_eq!(used(family(AddressFamily::Ipv6).with_bind_address(bound)), (false, false));
    }
}
