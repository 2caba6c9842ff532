//! Through an HTTP proxy: `CONNECT` (RFC 9110, 9.3.6), with Basic authentication (RFC 7617).

use std::io::Write;

use openssl::base64;
use zeroize::Zeroizing;

use super::exchange::{Exchange, ProxyError};
use crate::config::Proxy;

const USER_AGENT: &str = concat!("aiot-tunnel/", env!("CARGO_PKG_VERSION"));
/// Longest request: names and credentials have their limits.
const MAX_REQUEST: usize = 2048;
/// Most interim answers (1xx) before the final one.
const MAX_INTERIM: usize = 8;

/// Asks the proxy to connect to the host, and receives its answer.
pub(super) fn connect(
    exchange: &Exchange<'_>,
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), ProxyError> {
    exchange.send(&request(proxy, host, port))?;
    for _ in 0..=MAX_INTERIM {
        let head = exchange.receive_head()?;
        let status = status(&head)
            .ok_or_else(|| ProxyError::NoProxy("the proxy's answer has no status".into()))?;
        let text = format!("HTTP {status}");
        return Err(match status {
            // A body may be announced. RFC 9110 says that there is none.
            200..300 => return Ok(()),
            // There is nothing to switch to, so 101 is no interim answer.
            100 | 102..200 => continue,
            // 401 is how tinyproxy refuses a password.
            401 | 407 => ProxyError::Credentials(text),
            403 => ProxyError::Forbidden(text),
            // 500 is how tinyproxy says that it cannot connect.
            500 | 502..=504 => ProxyError::Unreachable(text),
            400 | 404 | 405 | 501 => ProxyError::NoProxy(text),
            _ => ProxyError::Refused(text),
        });
    }
    Err(ProxyError::NoProxy("the proxy sends interim answers without end".into()))
}

fn request(proxy: &Proxy, host: &str, port: u16) -> Zeroizing<Vec<u8>> {
    let authority = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    // If the buffer grew, it would leave a copy of the password behind.
    let mut request = Zeroizing::new(Vec::with_capacity(MAX_REQUEST));
    // Writing to a Vec cannot fail.
    let _ = write!(
        request,
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {USER_AGENT}\r\n"
    );
    if let Some(credentials) = proxy.credentials() {
        let (user, password) = (&*credentials.user, &*credentials.password);
        let mut pair = Zeroizing::new(Vec::with_capacity(user.len() + 1 + password.len()));
        for part in [user.as_bytes(), b":", password.as_bytes()] {
            pair.extend_from_slice(part);
        }
        let encoded = Zeroizing::new(base64::encode_block(&pair));
        let _ = write!(request, "Proxy-Authorization: Basic {}\r\n", *encoded);
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// The status of an answer: `HTTP/1.1 200 ...`.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|&byte| byte == b'\r').next()?;
    let status = line.split(|&byte| byte == b' ').nth(1)?;
    let status = std::str::from_utf8(status).ok().filter(|text| text.len() == 3)?;
    status.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_names_the_host_and_carries_the_credentials() {
        let proxy: Proxy = "http://p:1".parse().unwrap();
        let text = String::from_utf8(request(&proxy, "::1", 443).to_vec()).unwrap();
        assert!(text.starts_with("CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n") && !text.contains("Authorization"), "{text}");
        // The example of RFC 7617.
        let proxy = proxy.with_credentials("Aladdin", "open sesame").unwrap();
        let text = String::from_utf8(request(&proxy, "gw.example", 1).to_vec()).unwrap();
        let expected = "\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n";
        assert!(text.starts_with("CONNECT gw.example:1 ") && text.ends_with(expected), "{text}");
    }

    #[test]
    fn the_longest_request_fits_its_buffer() {
        let proxy: Proxy = "http://p:1".parse().unwrap();
        let proxy = proxy.with_credentials(&"u".repeat(255), &"p".repeat(255)).unwrap();
        let request = request(&proxy, &"h".repeat(253), 65_535);
        assert_eq!(request.capacity(), MAX_REQUEST);
    }

    #[test]
    fn a_status_has_three_digits() {
        assert_eq!(status(b"HTTP/1.1 200 Connection established\r\n\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 407\r\n\r\n"), Some(407));
        for bad in ["", "HTTP/1.1\r\n", "HTTP/1.1 20 x\r\n", "HTTP/1.1 2000\r\n", "HTTP/ +20\r\n"] {
            assert_eq!(status(bad.as_bytes()), None, "{bad}");
        }
    }
}
