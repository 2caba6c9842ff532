//! Connection data of a tunnel.

use super::text::{check_host, check_visible, unbracketed, MAX_PATH};
use super::{Port, Token};
use crate::error::Result;

/// Where one end of a tunnel connects, and with which token: what the cloud's notify message
/// carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectParams {
    host: String,
    port: Port,
    path: String,
    pub(crate) token: Token,
}

impl ConnectParams {
    /// Checks connection data and copies it.
    ///
    /// - `host`: 1 to 253 bytes of visible ASCII: a name, an IPv4 address, or an IPv6 address
    ///   with or without brackets.
    /// - `path`: at most 2048 bytes of visible ASCII. It is sent unchanged, a query string
    ///   included; a missing leading `/` is added, because a request line needs one.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput), which names the field.
    pub fn new(host: &str, port: Port, path: &str, token: Token) -> Result<Self> {
        let host = unbracketed(host);
        check_host(host)?;
        check_visible("path", path, 0, MAX_PATH)?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(ConnectParams { host: host.to_owned(), port, path: format!("{slash}{path}"), token })
    }

    /// Host name or address of the tunnel service, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port of the tunnel service.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Request target, such as `/tunnel/<id>/dest`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The token that the request carries.
    pub fn token(&self) -> &Token {
        &self.token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::new("t").unwrap()
    }

    #[test]
    fn control_bytes_and_blanks_never_get_into_connection_data() {
        let port = Port::new(1).unwrap();
        for bad in ["a\r\nX: y", "a b", "a\0", "\u{7f}", "é"] {
            assert!(ConnectParams::new(bad, port, "/", token()).is_err());
            assert!(ConnectParams::new("h", port, bad, token()).is_err());
            assert!(Token::new(bad).is_err());
        }
        assert!(ConnectParams::new("", port, "/", token()).is_err());
        assert!(ConnectParams::new("a/b", port, "/", token()).is_err());
    }

    #[test]
    fn brackets_of_an_ipv6_address_are_optional() {
        let params = ConnectParams::new("[::1]", Port::new(1).unwrap(), "x?y=z", token()).unwrap();
        assert_eq!((params.host(), params.path()), ("::1", "/x?y=z"));
    }

    #[test]
    fn debug_keeps_the_secret() {
        let token = Token::new("s3cret-token").unwrap();
        let params = ConnectParams::new("h", Port::new(1).unwrap(), "/", token).unwrap();
        assert!(!format!("{params:?}").contains("s3cret"));
    }
}
