//! Connection data of a tunnel.

use aiot_tunnel_proto::frame::TOKEN_HEADER;

use super::text::{check_host, check_name, check_visible, unbracketed, MAX_PATH};
use super::{Port, Token};
use crate::error::{Error, Result};

/// Where one end of a tunnel connects, and with which token: what the cloud's notify message
/// carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectParams {
    host: String,
    port: Port,
    path: String,
    pub(crate) token: Token,
    /// Header lines of the caller's, each with its line end.
    headers: String,
    retries_refusal: bool,
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
        let path = format!("{slash}{path}");
        let (host, headers) = (host.to_owned(), String::new());
        Ok(ConnectParams { host, port, path, token, headers, retries_refusal: false })
    }

    /// Sets what a tunnel does when its token is refused (HTTP 401, close code 4001 or 401).
    ///
    /// `false`, the default: the tunnel is dropped, and its event is
    /// [`Expired`](crate::EventKind::Expired). Somebody then asks the cloud for a new token.
    ///
    /// `true`: the tunnel is kept and connects again, after 1 s at first, then after gaps that double up
    /// to 5 minutes. There is no event `Expired`; [`NoticeKind::TokenRefused`](crate::NoticeKind) tells
    /// of each refusal. This is for a tunnel whose token stands in a file, where nobody would bring it
    /// back after a mistake at the tunnel service. The access side ignores this setting.
    #[must_use]
    pub fn with_refusal_retry(mut self, retries: bool) -> Self {
        self.retries_refusal = retries;
        self
    }

    /// Whether a tunnel with this connection data is kept when its token is refused.
    pub fn retries_refusal(&self) -> bool {
        self.retries_refusal
    }

    /// Adds a header line to the request that opens the WebSocket, for example one that a proxy or a
    /// load balancer in front of the tunnel service wants. It is not secret: it may appear in `Debug`
    /// output.
    ///
    /// - `name`: 1 to 127 letters, digits and hyphens. The headers that the request has anyway are
    ///   refused: `Host`, `Connection`, `Upgrade`, `User-Agent`, the token's, and all that begin with
    ///   `Sec-WebSocket-`. So are `Content-Length` and `Transfer-Encoding`, because the request has no
    ///   body.
    /// - `value`: at most 1024 bytes of visible ASCII and blanks, with no blank at either end.
    ///
    /// One request has at most 32 of these headers, with at most 2048 bytes together.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput), which names the field.
    pub fn with_header(mut self, name: &str, value: &str) -> Result<Self> {
        self.headers += &header_line(name, value)?;
        if self.headers.len() > MAX_HEADERS {
            return Err(Error::invalid("header", format!("more than {MAX_HEADERS} bytes in all")));
        }
        if self.headers.lines().count() > MAX_HEADER_COUNT {
            return Err(Error::invalid("header", format!("more than {MAX_HEADER_COUNT}")));
        }
        Ok(self)
    }

    /// The caller's header lines, each with its line end.
    pub(crate) fn headers(&self) -> &str {
        &self.headers
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

/// Most bytes of the caller's header lines.
const MAX_HEADERS: usize = 2048;
const MAX_HEADER_COUNT: usize = 32;
const MAX_HEADER_VALUE: usize = 1024;

fn header_line(name: &str, value: &str) -> Result<String> {
    const FIELD: &str = "header name";
    check_name(FIELD, name)?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(Error::invalid(FIELD, "only letters, digits and hyphens are allowed"));
    }
    let reserved = ["host", "connection", "upgrade", "user-agent", TOKEN_HEADER];
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("sec-websocket-") || reserved.iter().any(|r| r.eq_ignore_ascii_case(name))
    {
        return Err(Error::invalid(FIELD, "the request has this header already"));
    }
    if ["content-length", "transfer-encoding"].contains(&lower.as_str()) {
        return Err(Error::invalid(FIELD, "the request has no body"));
    }
    check_visible("header value", &value.replace(' ', "."), 0, MAX_HEADER_VALUE)?;
    if value.trim() != value {
        return Err(Error::invalid("header value", "has a blank at one end"));
    }
    Ok(format!("{name}: {value}\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_cannot_change_the_shape_of_the_request() {
        let params = || ConnectParams::new("h", Port::new(1).unwrap(), "/", token()).unwrap();
        let good = params().with_header("X-Device", "a b").unwrap().with_header("Via", "").unwrap();
        assert_eq!(good.headers(), "X-Device: a b\r\nVia: \r\n");
        let taken = ["host", "Sec-WebSocket-Key", "User-Agent", TOKEN_HEADER];
        let of_a_body = ["Content-Length", "transfer-encoding"];
        for name in ["", "a b", "a:", "a\r\n"].into_iter().chain(taken).chain(of_a_body) {
            assert!(params().with_header(name, "v").is_err(), "{name:?}");
        }
        for value in ["a\r\nb", "\0", "é", " a", "a ", &"x".repeat(1025)] {
            assert!(params().with_header("X-A", value).is_err(), "{value:?}");
        }
        let full = params().with_header("X-A", &"x".repeat(1000)).unwrap();
        assert!(full.clone().with_header("X-B", &"x".repeat(1000)).is_ok());
        assert!(full
            .with_header("X-B", &"x".repeat(1024))
            .and_then(|p| p.with_header("C", "xxxxxxxx"))
            .is_err());
        let many = (0..32).try_fold(params(), |params, _| params.with_header("X-A", "v")).unwrap();
        assert!(many.with_header("X-A", "v").is_err());
    }

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
