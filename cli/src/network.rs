//! The way out: proxy, local address or interface, address family, and what a wrong clock means.
//! Options of `agent` and `access`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aiot_tunnel::{AddressFamily, Clock, Network, Proxy};
use clap::builder::{StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Args, Command, ValueEnum};
use zeroize::Zeroizing;

use crate::{input, Result, Usage};

#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Way out")]
pub(crate) struct NetworkOptions {
    /// Proxy to connect through: http://HOST:PORT, socks5://HOST:PORT, or none. Without this option,
    /// the environment names it: HTTPS_PROXY (http_proxy without TLS), ALL_PROXY and NO_PROXY
    #[arg(long, value_name = "URL|none", value_parser = ProxyParser)]
    pub(crate) proxy: Option<ProxyOption>,
    /// File with the line USER:PASSWORD, to sign in at the proxy of --proxy
    #[arg(long, value_name = "FILE")]
    pub(crate) proxy_auth_file: Option<PathBuf>,
    /// Connect from this local address, or through this network interface only
    #[arg(long, value_name = "ADDRESS|INTERFACE", value_parser = bind)]
    pub(crate) bind: Option<Bind>,
    /// Use only addresses of this family, for the tunnel service or for the proxy
    #[arg(long, value_enum, default_value_t = Family::Any)]
    pub(crate) family: Family,
    /// Tolerant: while this machine's clock is before the program's own build, as on a device that
    /// starts in 1970, accept certificates that are not valid yet
    #[arg(long, value_enum, default_value_t = ClockOption::Strict)]
    pub(crate) clock: ClockOption,
}

#[derive(Debug, Clone)]
pub(crate) enum ProxyOption {
    None,
    Through(Proxy),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bind {
    Address(IpAddr),
    Interface(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    Any,
    Ipv4,
    Ipv6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClockOption {
    Strict,
    Tolerant,
}

impl NetworkOptions {
    /// # Errors
    /// An option, its file, or a variable of the environment is wrong.
    pub(crate) fn network(&self) -> Result<Network> {
        let mut network = Network::new();
        match (&self.proxy, &self.proxy_auth_file) {
            (Some(ProxyOption::Through(proxy)), None) => {
                network = network.with_proxy(proxy.clone());
            }
            (Some(ProxyOption::Through(proxy)), Some(file)) => {
                network = network.with_proxy(signed_in(proxy.clone(), file)?);
            }
            (_, Some(_)) => {
                return Err(Usage::of(
                    "--proxy-auth-file needs --proxy URL; the environment's proxy has its user and \
                     password in its own URL",
                )
                .into());
            }
            (Some(ProxyOption::None), None) => {}
            (None, None) => network = network.with_proxy_from_environment().map_err(Usage::of)?,
        }
        network = match &self.bind {
            None => network,
            Some(Bind::Address(address)) => network.with_bind_address(*address),
            Some(Bind::Interface(name)) => network.with_bind_interface(name).map_err(Usage::of)?,
        };
        Ok(network.with_family(match self.family {
            Family::Any => AddressFamily::Any,
            Family::Ipv4 => AddressFamily::Ipv4,
            Family::Ipv6 => AddressFamily::Ipv6,
        }))
    }

    pub(crate) fn clock(&self) -> Clock {
        match self.clock {
            ClockOption::Strict => Clock::Strict,
            ClockOption::Tolerant => Clock::Tolerant,
        }
    }
}

/// The proxy with the user name and the password of a file.
fn signed_in(proxy: Proxy, file: &Path) -> Result<Proxy> {
    let wrong = |why: &str| Usage::of(format_args!("{}: {why}", file.display()));
    let bytes = input::read_secret(file)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("not text"))?;
    let line = text.lines().next().unwrap_or_default();
    let (user, password) =
        line.split_once(':').ok_or_else(|| wrong("the first line is not USER:PASSWORD"))?;
    Ok(proxy.with_credentials(user, password).map_err(|e| wrong(&e.to_string()))?)
}

fn bind(text: &str) -> std::result::Result<Bind, String> {
    if let Ok(address) = text.parse() {
        return Ok(Bind::Address(address));
    }
    if text.contains(':') {
        return Err(
            "neither an address of this machine (without port and brackets) nor the name of \
                    an interface"
                .into(),
        );
    }
    let named = Network::new().with_bind_interface(text).map_err(|e| e.to_string());
    named.map(|_| Bind::Interface(text.to_owned()))
}

/// Reads `--proxy`. Its errors do not repeat the value, which may hold a password.
#[derive(Clone)]
struct ProxyParser;

impl TypedValueParser for ProxyParser {
    type Value = ProxyOption;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> std::result::Result<ProxyOption, clap::Error> {
        let text = Zeroizing::new(StringValueParser::new().parse_ref(command, argument, value)?);
        parse_proxy(&text).map_err(|why| {
            let text = format!("invalid value for '--proxy <URL|none>': {why}\n");
            clap::Error::raw(ErrorKind::ValueValidation, text).with_cmd(command)
        })
    }
}

fn parse_proxy(text: &str) -> std::result::Result<ProxyOption, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(ProxyOption::None);
    }
    if text.contains('@') {
        return Err(
            "every user of this machine can read a password there; put USER:PASSWORD into a \
                    file (--proxy-auth-file)"
                .into(),
        );
    }
    text.parse().map(ProxyOption::Through).map_err(|e: aiot_tunnel::Error| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_names_a_proxy_or_none_and_no_password() {
        assert!(matches!(parse_proxy("none"), Ok(ProxyOption::None)));
        assert!(matches!(parse_proxy("socks5://p:1"), Ok(ProxyOption::Through(_))));
        for bad in ["", "p:1", "http://p", "https://p:1", "http://u:hush-x@p:1"] {
            let error = parse_proxy(bad).expect_err(bad);
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_local_end_is_an_address_or_an_interface() {
        assert_eq!(bind("10.0.0.1"), Ok(Bind::Address("10.0.0.1".parse().unwrap())));
        assert_eq!(bind("::1"), Ok(Bind::Address("::1".parse().unwrap())));
        assert_eq!(bind("wwan0"), Ok(Bind::Interface("wwan0".into())));
        for bad in ["", "10.0.0.1:80", "[::1]", "a/b", "a-name-that-is-too-long"] {
            assert!(bind(bad).is_err(), "{bad}");
        }
    }
}
