//! Proxies, and which connections go through one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::text::{check_host, unbracketed};
use super::Port;
use crate::error::{Error, Result};

/// Longest user name and longest password, in bytes (RFC 1929).
const MAX_CREDENTIAL: usize = 255;
const FIELD: &str = "proxy";

/// A proxy through which the tunnel service is reached. It passes bytes on: TLS and the check of the
/// certificate go through it unchanged, and it sees neither the token nor a session when TLS is used.
///
/// As text, it is `http://[USER:PASSWORD@]HOST:PORT` or `socks5://[USER:PASSWORD@]HOST:PORT`
/// (`socks5h` means the same). Characters of the user name and the password may be
/// percent-encoded. Neither `Debug` nor `Display` shows the user name or the password.
///
/// ```
/// use aiot_tunnel::Proxy;
///
/// let proxy: Proxy = "http://device:s%40cret@proxy.example:3128".parse()?;
/// assert_eq!(proxy.to_string(), "http://proxy.example:3128");
/// # Ok::<(), aiot_tunnel::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Proxy {
    pub(crate) protocol: ProxyProtocol,
    host: String,
    port: Port,
    credentials: Option<Arc<Credentials>>,
}

/// The language that a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyProtocol {
    Http,
    Socks5,
}

/// A user name and its password. Wiped when dropped.
pub(crate) struct Credentials {
    pub(crate) user: Zeroizing<String>,
    pub(crate) password: Zeroizing<String>,
}

impl Proxy {
    /// An HTTP proxy, which is asked to `CONNECT` (RFC 9110, 9.3.6). The connection to the proxy itself
    /// is not encrypted.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for the host, as in [`Target::tcp`](crate::Target::tcp).
    pub fn http(host: &str, port: Port) -> Result<Self> {
        Proxy::new(ProxyProtocol::Http, host, port)
    }

    /// A SOCKS5 proxy (RFC 1928). The proxy looks up the name of the tunnel service.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for the host, as in [`Target::tcp`](crate::Target::tcp).
    pub fn socks5(host: &str, port: Port) -> Result<Self> {
        Proxy::new(ProxyProtocol::Socks5, host, port)
    }

    fn new(protocol: ProxyProtocol, host: &str, port: Port) -> Result<Self> {
        let host = unbracketed(host);
        check_host(host)?;
        Ok(Proxy { protocol, host: host.to_owned(), port, credentials: None })
    }

    /// Signs in at the proxy: HTTP's Basic authentication, or SOCKS5's user name and password (RFC
    /// 1929). A proxy that asks for neither does not get them from SOCKS5; an HTTP proxy always gets
    /// them, and they are not encrypted on the way.
    ///
    /// The user name has 1 to 255 bytes, the password at most 255. Neither may hold a control
    /// character; with HTTP, the user name may hold no colon. Both are wiped from memory when the last
    /// copy of the proxy is dropped.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]. Its text never holds the user name or the password.
    pub fn with_credentials(mut self, user: &str, password: &str) -> Result<Self> {
        let invalid = |reason: &str| Err(Error::invalid(FIELD, reason));
        if user.is_empty() {
            return invalid("the user name must not be empty");
        }
        if user.len() > MAX_CREDENTIAL || password.len() > MAX_CREDENTIAL {
            return invalid("user name and password may have 255 bytes each");
        }
        if user.chars().chain(password.chars()).any(char::is_control) {
            return invalid("the user name or the password holds a control character");
        }
        if self.protocol == ProxyProtocol::Http && user.contains(':') {
            return invalid("HTTP allows no colon in the user name");
        }
        let own = |text: &str| Zeroizing::new(text.to_owned());
        self.credentials = Some(Arc::new(Credentials { user: own(user), password: own(password) }));
        Ok(self)
    }

    /// Host name or address of the proxy, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port of the proxy.
    pub fn port(&self) -> Port {
        self.port
    }

    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_deref()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            ProxyProtocol::Http => "http",
            ProxyProtocol::Socks5 => "socks5",
        };
        let (host, port) = (&self.host, self.port);
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}"),
            false => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials = if self.credentials.is_some() { ", with credentials" } else { "" };
        write!(f, "Proxy({self}{credentials})")
    }
}

impl FromStr for Proxy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // No error holds a part of the text: any part may belong to a password.
        let invalid = |reason: &str| Error::invalid(FIELD, reason);
        let form = || invalid("not of the form http://[USER:PASSWORD@]HOST:PORT or socks5://...");
        let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
        let protocol = match &*scheme.to_ascii_lowercase() {
            "http" => ProxyProtocol::Http,
            "socks5" | "socks5h" => ProxyProtocol::Socks5,
            "https" => return Err(invalid("a proxy behind TLS (https://) is not supported")),
            "socks" | "socks4" | "socks4a" => {
                return Err(invalid("of SOCKS, only socks5:// is supported"))
            }
            _ => return Err(form()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (userinfo, address) =
            rest.rsplit_once('@').map_or((None, rest), |(userinfo, rest)| (Some(userinfo), rest));
        let (host, port) =
            address.rsplit_once(':').ok_or_else(|| invalid("the address has no port"))?;
        if host.contains(':') && unbracketed(host) == host {
            return Err(invalid("an IPv6 address needs brackets"));
        }
        let port = port.parse().map_err(|_| invalid("the port is no number from 1 to 65535"))?;
        let proxy =
            Proxy::new(protocol, host, port).map_err(|_| invalid("not a host name or address"))?;
        let Some(userinfo) = userinfo else { return Ok(proxy) };
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let decoded = |text| {
            percent_decoded(text)
                .ok_or_else(|| invalid("the user name or the password is wrongly percent-encoded"))
        };
        proxy.with_credentials(&decoded(user)?, &decoded(password)?)
    }
}

fn percent_decoded(text: &str) -> Option<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        bytes.push((high << 4 | low) as u8);
    }
    std::str::from_utf8(&bytes).ok().map(|text| Zeroizing::new(text.to_owned()))
}

/// Which connections go through which proxy.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    /// For TLS.
    secure: Option<Proxy>,
    /// Without TLS.
    plain: Option<Proxy>,
    /// Hosts that are connected directly.
    exceptions: Vec<Exception>,
    /// The loopback is connected directly, too: a proxy elsewhere could not reach it.
    spares_loopback: bool,
}

impl Proxies {
    /// One proxy for everything, or none.
    pub(crate) fn set(&mut self, proxy: Option<Proxy>) {
        (self.secure, self.plain, self.spares_loopback) = (proxy.clone(), proxy, false);
    }

    pub(crate) fn set_exceptions(&mut self, list: &str) {
        self.exceptions = exceptions(list);
    }

    /// The proxies that the variables of the environment name.
    ///
    /// # Errors
    /// [`Error::InvalidInput`], which names the variable.
    pub(crate) fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let first = |names: &[&'static str]| {
            let set = |name: &&'static str| {
                let value = variable(name).map(Zeroizing::new)?;
                (!value.trim().is_empty()).then_some((*name, value))
            };
            names.iter().find_map(set)
        };
        let proxy = |names: &[&'static str]| {
            let Some((name, value)) = first(names) else { return Ok(None) };
            let text = match value.trim() {
                text if text.contains("://") => Zeroizing::new(text.to_owned()),
                // As curl takes it.
                text => Zeroizing::new(format!("http://{text}")),
            };
            text.parse().map(Some).map_err(|e| match e {
                Error::InvalidInput { reason, .. } => Error::InvalidInput { field: name, reason },
                e => e,
            })
        };
        Ok(Proxies {
            secure: proxy(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
            // Not HTTP_PROXY: a CGI program's environment has a header of the request there.
            plain: proxy(&["http_proxy", "all_proxy", "ALL_PROXY"])?,
            exceptions: first(&["no_proxy", "NO_PROXY"])
                .map_or(Vec::new(), |(_, list)| exceptions(&list)),
            spares_loopback: true,
        })
    }

    /// The proxy for a connection to this host. `None`: it is connected directly.
    pub(crate) fn proxy_for(&self, secure: bool, host: &str, port: Port) -> Option<&Proxy> {
        let proxy = if secure { &self.secure } else { &self.plain }.as_ref()?;
        let host = host.strip_suffix('.').unwrap_or(host);
        let address = host.parse::<IpAddr>().ok();
        let is_loopback =
            address.map_or(host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback());
        if self.spares_loopback && is_loopback {
            return None;
        }
        let is_spared = |exception: &Exception| exception.covers(host, address, port);
        (!self.exceptions.iter().any(is_spared)).then_some(proxy)
    }
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    /// `None`: every port.
    port: Option<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    /// The name, in lower case, and every name that ends in it behind a dot.
    Domain(String),
    /// The addresses that begin with so many bits of this one.
    Block(IpAddr, u32),
}

fn exceptions(list: &str) -> Vec<Exception> {
    let entries = list.split([',', ' ', '\t']).filter(|entry| !entry.is_empty());
    entries.filter_map(Exception::parse).collect()
}

impl Exception {
    fn parse(entry: &str) -> Option<Self> {
        // An IPv6 address has colons itself; before a port it needs brackets.
        let is_address = entry.parse::<Ipv6Addr>().is_ok() || entry.contains('/');
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !is_address => match port.parse::<Port>() {
                Ok(port) => (host, Some(port)),
                Err(_) => (entry, None),
            },
            _ => (entry, None),
        };
        let hosts = match host.split_once('/') {
            _ if host == "*" => Hosts::All,
            Some((address, bits)) => {
                let address: IpAddr = unbracketed(address).parse().ok()?;
                let bits: u32 = bits.parse().ok()?;
                (bits <= width(address)).then_some(Hosts::Block(address, bits))?
            }
            None => match unbracketed(host).parse() {
                Ok(address) => Hosts::Block(address, width(address)),
                Err(_) => {
                    let name = host.strip_prefix("*.").unwrap_or(host);
                    let name = name.trim_matches('.').to_ascii_lowercase();
                    (!name.is_empty()).then_some(Hosts::Domain(name))?
                }
            },
        };
        Some(Exception { hosts, port })
    }

    /// `address` is the host if it is none by name. A name is not looked up for this.
    fn covers(&self, host: &str, address: Option<IpAddr>, port: Port) -> bool {
        if self.port.is_some_and(|own| own != port) {
            return false;
        }
        match (&self.hosts, address) {
            (Hosts::All, _) => true,
            (Hosts::Block(own, bits), Some(address)) => is_within(address, *own, *bits),
            (Hosts::Domain(name), None) => {
                let host = host.to_ascii_lowercase();
                host.strip_suffix(&**name)
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            _ => false,
        }
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() {
        Ipv4Addr::BITS
    } else {
        Ipv6Addr::BITS
    }
}

fn is_within(address: IpAddr, block: IpAddr, bits: u32) -> bool {
    let differs = |one: u128, other: u128, width: u32| {
        let rest = (one ^ other).checked_shr(width - bits).unwrap_or(0);
        rest != 0
    };
    match (address.to_canonical(), block) {
        (IpAddr::V4(address), IpAddr::V4(block)) => {
            !differs(address.to_bits().into(), block.to_bits().into(), Ipv4Addr::BITS)
        }
        (_, IpAddr::V6(block)) => {
            let address = match address {
                IpAddr::V6(address) => address,
                IpAddr::V4(_) => return false,
            };
            !differs(address.to_bits(), block.to_bits(), Ipv6Addr::BITS)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16) -> Port {
        Port::new(number).unwrap()
    }

    #[test]
    fn a_proxy_is_read_from_its_url() {
        for (text, shown, credentials) in [
            ("http://p:3128", "http://p:3128", None),
            ("HTTP://p:3128/", "http://p:3128", None),
            ("socks5://u@p:1080", "socks5://p:1080", Some(("u", ""))),
            ("socks5h://u:a:b@[::1]:1080", "socks5://[::1]:1080", Some(("u", "a:b"))),
            ("http://u:p%40s%3As@10.0.0.1:1", "http://10.0.0.1:1", Some(("u", "p@s:s"))),
            ("http://u:p@ss@p:1", "http://p:1", Some(("u", "p@ss"))),
            ("socks5://%C3%A9:x@p:1", "socks5://p:1", Some(("é", "x"))),
        ] {
            let proxy: Proxy = text.parse().unwrap();
            assert_eq!(proxy.to_string(), shown);
            let own = proxy.credentials().map(|own| (&**own.user, &**own.password));
            assert_eq!(own, credentials, "{text}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_and_not_repeated() {
        for bad in [
            "",
            "hush-x",
            "http://",
            "http://hush-x",
            "http://hush-x:",
            "http://hush-x:0",
            "http://hush-x:65536",
            "http://:1",
            "http://::1:80",
            "https://u:hush-x@p:1",
            "socks4://u:hush-x@p:1",
            "ftp://u:hush-x@p:1",
            "http://:hush-x@p:1",
            "http://u:hush-x%@p:1",
            "http://u:hush-x%0a@p:1",
            "http://u%3a:hush-x@p:1",
            "http://u:hush-x%ff@p:1",
            "http://u:hush-x@p:1/hush-x",
            "http://u:hush-x@a b:1",
            &format!("socks5://{}:hush-x@p:1", "u".repeat(256)),
            &format!("socks5://u:hush-x{}@p:1", "u".repeat(256)),
        ] {
            let error = bad.parse::<Proxy>().expect_err(bad).to_string();
            assert!(error.starts_with("proxy: ") && !error.contains("hush"), "{bad}: {error}");
        }
    }

    #[test]
    fn debug_and_display_keep_the_credentials() {
        let proxy: Proxy = "http://hush-user:hush-password@p:1".parse().unwrap();
        assert!(!format!("{proxy:?} {proxy}").contains("hush"));
    }

    fn environment(variables: &[(&str, &str)]) -> Result<Proxies> {
        Proxies::from_variables(&|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn chosen(variables: &[(&str, &str)], secure: bool, host: &str, number: u16) -> String {
        let proxies = environment(variables).unwrap();
        proxies.proxy_for(secure, host, port(number)).map_or("-".into(), Proxy::to_string)
    }

    #[test]
    fn the_environment_names_proxies_as_for_curl() {
        let secure = |variables: &[_]| chosen(variables, true, "h", 443);
        let plain = |variables: &[_]| chosen(variables, false, "h", 80);
        assert_eq!(secure(&[]), "-");
        assert_eq!(secure(&[("HTTPS_PROXY", "http://a:1")]), "http://a:1");
        assert_eq!(secure(&[("HTTPS_PROXY", "a:1")]), "http://a:1");
        assert_eq!(
            secure(&[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "http://b:1")]),
            "http://b:1"
        );
        assert_eq!(secure(&[("https_proxy", ""), ("ALL_PROXY", "socks5://c:1")]), "socks5://c:1");
        assert_eq!(secure(&[("http_proxy", "http://a:1")]), "-");
        assert_eq!(plain(&[("http_proxy", "http://a:1")]), "http://a:1");
        assert_eq!(plain(&[("HTTP_PROXY", "http://a:1")]), "-");
        assert_eq!(plain(&[("all_proxy", "http://a:1")]), "http://a:1");
        let error = environment(&[("HTTPS_PROXY", "https://u:hush-x@p:1")]).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("HTTPS_PROXY: ") && !error.contains("hush"), "{error}");
    }

    #[test]
    fn the_loopback_is_not_reached_through_a_proxy_of_the_environment() {
        let all = [("ALL_PROXY", "http://a:1")];
        for host in ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1"] {
            assert_eq!(chosen(&all, true, host, 1), "-", "{host}");
        }
        let mut proxies = Proxies::default();
        proxies.set(Some("http://a:1".parse().unwrap()));
        assert!(proxies.proxy_for(true, "localhost", port(1)).is_some());
    }

    #[test]
    fn no_proxy_spares_hosts_domains_addresses_blocks_and_ports() {
        let is_spared = |list: &str, host: &str, number| {
            let variables = [("ALL_PROXY", "http://a:1"), ("no_proxy", list)];
            chosen(&variables, true, host, number) == "-"
        };
        for (list, host, number) in [
            ("*", "any.example", 1),
            ("a.example", "a.example", 1),
            ("x, a.example ,y", "A.Example", 1),
            ("x a.example", "a.example.", 1),
            (".a.example", "a.example", 1),
            ("a.example", "b.a.example", 1),
            ("*.a.example", "b.a.example", 1),
            ("a.example:443", "a.example", 443),
            ("10.0.0.1", "10.0.0.1", 1),
            ("10.0.0.1:5", "10.0.0.1", 5),
            ("10.0.0.0/8", "10.9.9.9", 1),
            ("0.0.0.0/0", "8.8.8.8", 1),
            ("2001:db8::/32", "2001:db8:1::1", 1),
            ("2001:db8::1", "2001:db8:0::1", 1),
            ("[2001:db8::1]:443", "2001:db8::1", 443),
            ("::/0", "2001:db8::1", 1),
            ("10.0.0.0/8", "::ffff:10.1.1.1", 1),
        ] {
            assert!(is_spared(list, host, number), "{list} {host}:{number}");
        }
        for (list, host, number) in [
            ("", "a.example", 1),
            ("a.example", "aa.example", 1),
            ("a.example", "example", 1),
            ("a.example:443", "a.example", 444),
            ("10.0.0.0/8", "11.0.0.1", 1),
            ("10.0.0.0/33", "10.0.0.1", 1),
            ("10.0.0.0/x", "10.0.0.1", 1),
            ("0.0.0.0/0", "2001:db8::1", 1),
            ("::/0", "10.0.0.1", 1),
            ("10.0.0.0/8", "10.example", 1),
            ("0.1", "10.0.0.1", 1),
            (".", "a.example", 1),
        ] {
            assert!(!is_spared(list, host, number), "{list} {host}:{number}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_proxy_or_an_error_that_does_not_repeat_it(
            text in "(http|socks5h?|x)://[a:@%\\[\\]/0-9é\n]{0,12}",
        ) {
            match text.parse::<Proxy>() {
                Ok(proxy) => drop(proxy.to_string().parse::<Proxy>().unwrap()),
                Err(e) => proptest::prop_assert!(!e.to_string().contains(&text)),
            }
        }

        #[test]
        fn any_list_and_any_host_can_be_compared(
            list in "[a.*:/,\\[\\] 0-9]{0,20}",
            host in "[aA.:0-9]{0,12}",
        ) {
            let variables = [("ALL_PROXY", "http://a:1"), ("NO_PROXY", &list)];
            let proxies = environment(&variables).unwrap();
            let _ = proxies.proxy_for(true, &host, port(1));
        }
    }
}
