//! Through a SOCKS5 proxy (RFC 1928), with user name and password (RFC 1929). A name goes to the proxy
//! as it is, an address as an address.

use std::net::IpAddr;

use zeroize::Zeroizing;

use super::exchange::{Exchange, ProxyError};
use crate::config::{Credentials, Proxy};

const VERSION: u8 = 5;
/// Methods of authentication.
const NONE: u8 = 0;
const PASSWORD: u8 = 2;
const NOT_ACCEPTABLE: u8 = 0xff;
/// The version of the negotiation about user name and password.
const PASSWORD_VERSION: u8 = 1;
/// Kinds of addresses.
const V4: u8 = 1;
const NAME: u8 = 3;
const V6: u8 = 4;

/// Asks the proxy to connect to the host, and receives its answer.
pub(super) fn connect(
    exchange: &Exchange<'_>,
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), ProxyError> {
    match proxy.credentials() {
        None => exchange.send(&[VERSION, 1, NONE])?,
        Some(_) => exchange.send(&[VERSION, 2, NONE, PASSWORD])?,
    }
    match (receive_answer(exchange, VERSION)?, proxy.credentials()) {
        (NONE, _) => {}
        (PASSWORD, Some(credentials)) => sign_in(exchange, credentials)?,
        (NOT_ACCEPTABLE, _) => {
            return Err(ProxyError::Credentials("SOCKS5: no method of authentication".into()))
        }
        (method, _) => {
            return Err(ProxyError::NoProxy(format!("SOCKS5: method {method} was not offered")))
        }
    }
    exchange.send(&request(host, port))?;
    let reply = receive_answer(exchange, VERSION)?;
    if reply != 0 {
        return Err(refusal(reply));
    }
    // The address from which the proxy connects is of no use here.
    let [_reserved, kind] = receive_bytes(exchange)?;
    let length = match kind {
        V4 => 4,
        V6 => 16,
        NAME => receive_bytes::<1>(exchange)?[0].into(),
        kind => return Err(ProxyError::NoProxy(format!("SOCKS5: address of the kind {kind}"))),
    };
    let mut address = [0; 255 + 2];
    exchange.receive(&mut address[..length + 2])
}

fn sign_in(exchange: &Exchange<'_>, credentials: &Credentials) -> Result<(), ProxyError> {
    let (user, password) = (credentials.user.as_bytes(), credentials.password.as_bytes());
    let mut request = Zeroizing::new(Vec::with_capacity(3 + user.len() + password.len()));
    request.push(PASSWORD_VERSION);
    for part in [user, password] {
        // At most 255 bytes, as the configuration checks.
        request.push(part.len() as u8);
        request.extend_from_slice(part);
    }
    exchange.send(&request)?;
    match receive_answer(exchange, PASSWORD_VERSION)? {
        0 => Ok(()),
        status => Err(ProxyError::Credentials(format!("SOCKS5: sign-in status {status}"))),
    }
}

fn request(host: &str, port: u16) -> Vec<u8> {
    // The command 1 is CONNECT.
    let mut request = vec![VERSION, 1, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            request.push(V4);
            request.extend_from_slice(&address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            request.push(V6);
            request.extend_from_slice(&address.octets());
        }
        Err(_) => {
            // At most 253 bytes, as the configuration checks.
            request.extend_from_slice(&[NAME, host.len() as u8]);
            request.extend_from_slice(host.as_bytes());
        }
    }
    request.extend_from_slice(&port.to_be_bytes());
    request
}

/// Each of the proxy's messages begins with a version and an answer.
fn receive_answer(exchange: &Exchange<'_>, version: u8) -> Result<u8, ProxyError> {
    // A server that is no proxy may send a single byte and wait.
    let [own] = receive_bytes(exchange)?;
    if own != version {
        return Err(ProxyError::NoProxy(format!("SOCKS5: version {own} in place of {version}")));
    }
    receive_bytes(exchange).map(|[answer]| answer)
}

fn receive_bytes<const N: usize>(exchange: &Exchange<'_>) -> Result<[u8; N], ProxyError> {
    let mut bytes = [0; N];
    exchange.receive(&mut bytes)?;
    Ok(bytes)
}

fn refusal(reply: u8) -> ProxyError {
    let text = |what: &str| format!("SOCKS5 reply {reply}: {what}");
    match reply {
        1 => ProxyError::Unreachable(text("general failure")),
        2 => ProxyError::Forbidden(text("not allowed by the rules")),
        3 => ProxyError::Unreachable(text("network unreachable")),
        4 => ProxyError::Unreachable(text("host unreachable")),
        5 => ProxyError::Unreachable(text("connection refused")),
        6 => ProxyError::Unreachable(text("TTL expired")),
        7 => ProxyError::NoProxy(text("command not supported")),
        8 => ProxyError::Refused(text("kind of address not supported")),
        _ => ProxyError::Refused(text("unknown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_as_names_and_addresses_as_addresses() {
        assert_eq!(request("ab", 0x1234), [5, 1, 0, 3, 2, b'a', b'b', 0x12, 0x34]);
        assert_eq!(request("10.0.0.1", 80), [5, 1, 0, 1, 10, 0, 0, 1, 0, 80]);
        let mut six = vec![5, 1, 0, 4];
        six.extend([0; 15]);
        six.extend([1, 0, 80]);
        assert_eq!(request("::1", 80), six);
    }
}
