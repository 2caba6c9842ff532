//! Services, connection data, security and limits: validated when made, so that nothing later
//! checks again.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use openssl::pkey::{PKey, Private};
use openssl::x509::X509;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Longest tunnel id and service type, in bytes (the C structs hold 127 and a NUL).
pub const MAX_NAME: usize = 127;
/// Longest host name, in bytes (RFC 1035).
pub const MAX_HOST: usize = 253;
/// Longest path and longest token, in bytes.
pub const MAX_PATH: usize = 2048;

/// The identifier of a tunnel: 1 to 127 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(Arc<str>);

impl TunnelId {
    /// Checks and takes an identifier.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when it is empty, longer than 127 bytes, or holds a control
    /// character.
    pub fn new(id: &str) -> Result<Self> {
        check_name("tunnel id", id)?;
        Ok(TunnelId(id.into()))
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TunnelId {
    type Err = Error;
    fn from_str(id: &str) -> Result<Self> {
        TunnelId::new(id)
    }
}

impl TryFrom<&str> for TunnelId {
    type Error = Error;
    fn try_from(id: &str) -> Result<Self> {
        TunnelId::new(id)
    }
}

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port(NonZeroU16);

impl Port {
    /// # Errors
    /// [`Error::InvalidInput`] for 0.
    pub fn new(port: u16) -> Result<Self> {
        NonZeroU16::new(port).map(Port).ok_or_else(|| Error::invalid("port", "0 is no port"))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl FromStr for Port {
    type Err = Error;
    /// Decimal digits only: no sign, no blanks.
    fn from_str(text: &str) -> Result<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { text.parse::<u16>().ok() } else { None };
        number
            .and_then(|n| Port::new(n).ok())
            .ok_or_else(|| Error::invalid("port", "not a decimal number from 1 to 65535"))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The access token of one end of a tunnel. Wiped from memory when dropped; `Debug` prints
/// `Token(..)`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Checks and takes a token: at most 2048 bytes of visible ASCII.
    ///
    /// # Errors
    /// [`Error::InvalidInput`]; the text of the error never holds the token.
    pub fn new(token: &str) -> Result<Self> {
        check_visible("token", token, 0, MAX_PATH)?;
        Ok(Token(Zeroizing::new(token.to_owned())))
    }

    /// The secret itself. Mind where it goes.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Where and how one tunnel's device end connects: what the cloud's notify message carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectParams {
    pub(crate) host: String,
    pub(crate) port: Port,
    pub(crate) path: String,
    pub(crate) token: Token,
}

impl ConnectParams {
    /// Checks and takes connection data.
    ///
    /// - `host`: 1 to 253 bytes of visible ASCII, a name, an IPv4 or an IPv6 address (with or
    ///   without brackets);
    /// - `path`: at most 2048 bytes of visible ASCII, sent as it is (a query string is kept);
    ///   a missing leading `/` is added, because a request line needs one.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] names the field.
    pub fn new(host: &str, port: Port, path: &str, token: Token) -> Result<Self> {
        let host = unbracketed(host);
        check_host(host)?;
        check_visible("path", path, 0, MAX_PATH)?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(ConnectParams { host: host.to_owned(), port, path: format!("{slash}{path}"), token })
    }

    /// Host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port of the tunnel service.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Request target, e.g. `/tunnel/<id>/dest`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A local TCP service that the device offers under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub(crate) service_type: String,
    pub(crate) host: String,
    pub(crate) port: Port,
}

impl Service {
    /// Checks and takes a service.
    ///
    /// - `service_type`: the name that a `session_create` asks for, e.g. `_SSH`; 1 to 127
    ///   bytes without control characters (the platform documents at most 16 of
    ///   `[A-Za-z_.-]`, its C callers pass up to 127);
    /// - `host`: where it listens, usually `127.0.0.1`; IPv4, IPv6 or a name.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] names the field.
    pub fn new(service_type: &str, host: &str, port: Port) -> Result<Self> {
        check_name("service type", service_type)?;
        let host = unbracketed(host);
        check_host(host)?;
        Ok(Service { service_type: service_type.to_owned(), host: host.to_owned(), port })
    }

    /// The name it is offered under.
    pub fn service_type(&self) -> &str {
        &self.service_type
    }

    /// Host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port it listens on.
    pub fn port(&self) -> Port {
        self.port
    }
}

/// The services on offer, by name.
pub(crate) type Services = BTreeMap<String, Service>;

/// How the connection to the cloud is secured. TLS with the system's roots unless told
/// otherwise; plain text only when asked for by name.
#[derive(Clone, Debug)]
pub enum Security {
    /// `wss`: TLS 1.2 or later, certificate chain and host name always verified.
    Tls(TlsConfig),
    /// `ws`: no encryption and no authentication of the cloud. For labs.
    Plain,
}

impl Default for Security {
    fn default() -> Self {
        Security::Tls(TlsConfig::default())
    }
}

/// TLS settings. The default verifies against the system's root certificates and sends SNI.
#[derive(Clone)]
pub struct TlsConfig {
    pub(crate) roots: Option<Vec<X509>>,
    pub(crate) identity: Option<ClientIdentity>,
    pub(crate) sni: bool,
}

/// A client's certificate, those between it and a root, and its key.
#[derive(Clone)]
pub(crate) struct ClientIdentity {
    pub(crate) chain: Vec<X509>,
    pub(crate) key: PKey<Private>,
}

impl Default for TlsConfig {
    fn default() -> Self {
        TlsConfig { roots: None, identity: None, sni: true }
    }
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("roots", &self.roots.as_ref().map(Vec::len))
            .field("identity", &self.identity.as_ref().map(|_| ".."))
            .field("sni", &self.sni)
            .finish()
    }
}

impl TlsConfig {
    /// The system's roots, no client certificate, SNI on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificates of this PEM bundle instead of the system's roots.
    ///
    /// # Errors
    /// [`Error::InvalidCa`] when the bundle holds no certificate or a broken one.
    pub fn with_ca_pem(mut self, pem: &[u8]) -> Result<Self> {
        let roots = X509::stack_from_pem(pem).map_err(|e| Error::InvalidCa(e.to_string()))?;
        if roots.is_empty() {
            return Err(Error::InvalidCa("the PEM text holds no certificate".into()));
        }
        self.roots = Some(roots);
        Ok(self)
    }

    /// Presents a client certificate: `chain` in PEM, the client's own certificate first; `key`
    /// in PEM, PKCS#8 or the traditional RSA and EC forms, not encrypted.
    ///
    /// # Errors
    /// [`Error::InvalidClientCert`], [`Error::InvalidClientKey`]; a key that belongs to another
    /// certificate is the latter.
    pub fn with_client_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self> {
        self.identity = Some(client_identity(chain, key)?);
        Ok(self)
    }

    /// Whether the TLS handshake names the host (SNI); on by default. Never sent for addresses.
    pub fn with_sni(mut self, sni: bool) -> Self {
        self.sni = sni;
        self
    }
}

fn client_identity(chain: &[u8], key: &[u8]) -> Result<ClientIdentity> {
    let chain = X509::stack_from_pem(chain).map_err(|e| Error::InvalidClientCert(e.to_string()))?;
    let Some(own) = chain.first() else {
        return Err(Error::InvalidClientCert("the PEM text holds no certificate".into()));
    };
    // The callback refuses encrypted keys; without it OpenSSL would ask on the terminal.
    let key = PKey::private_key_from_pem_callback(key, |_| Ok(0))
        .map_err(|_| Error::InvalidClientKey("not a PEM private key, or encrypted".into()))?;
    let public = own.public_key().map_err(|e| Error::InvalidClientCert(e.to_string()))?;
    if !key.public_eq(&public) {
        return Err(Error::InvalidClientKey("does not belong to the client certificate".into()));
    }
    Ok(ClientIdentity { chain, key })
}

/// Limits and times. Every default is the protocol's or the design's figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Tunnels that may exist at once. Default 20 (the C SDK's table).
    pub max_tunnels: usize,
    /// Sessions of one tunnel at once; one more is answered with code 1. Default 10 (the
    /// platform's limit).
    pub max_sessions: usize,
    /// Bytes from the cloud that may wait for one local service. Default 256 KiB, at least
    /// 64 KiB (the largest payload that is accepted).
    pub session_buffer: usize,
    /// Bytes that may wait for the cloud before local services are read no more. Default
    /// 128 KiB, at least 8 KiB; as much again is kept free for answers.
    pub send_buffer: usize,
    /// How long a local service may take nothing while its full `session_buffer` stops the
    /// whole tunnel; then its session is released, so that the siblings go on. Default 10 s.
    pub stall_timeout: Duration,
    /// TCP, TLS and WebSocket handshake together. Default 15 s.
    pub handshake_timeout: Duration,
    /// Connecting to a local service. Default 5 s.
    pub connect_timeout: Duration,
    /// Time between two WebSocket pings. Default 20 s.
    pub ping_interval: Duration,
    /// Silence of the cloud after which the connection counts as dead. Default 60 s.
    pub pong_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_tunnels: 20,
            max_sessions: 10,
            session_buffer: 256 * 1024,
            send_buffer: 128 * 1024,
            stall_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(20),
            pong_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// # Errors
    /// [`Error::InvalidInput`] names the field that is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        let at_least = |field, value: usize, least: usize| {
            if value >= least {
                return Ok(());
            }
            Err(Error::invalid(field, format!("{value} is less than {least}")))
        };
        at_least("max_tunnels", self.max_tunnels, 1)?;
        at_least("max_sessions", self.max_sessions, 1)?;
        at_least("session_buffer", self.session_buffer, 64 * 1024)?;
        at_least("send_buffer", self.send_buffer, 8 * 1024)?;
        for (field, time) in [
            ("stall_timeout", self.stall_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("connect_timeout", self.connect_timeout),
            ("ping_interval", self.ping_interval),
            ("pong_timeout", self.pong_timeout),
        ] {
            if time.is_zero() {
                return Err(Error::invalid(field, "must not be zero"));
            }
        }
        Ok(())
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

fn check_name(field: &'static str, text: &str) -> Result<()> {
    check_length(field, text, 1, MAX_NAME)?;
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, "holds a control character"));
    }
    Ok(())
}

/// Host names reach the resolver, the certificate check and the `Host` header: what could
/// change the shape of a header or a URL is refused.
fn check_host(host: &str) -> Result<()> {
    check_visible("host", host, 1, MAX_HOST)?;
    if host.contains(['/', '?', '#', '@', '[', ']', '\\']) {
        return Err(Error::invalid("host", "not a host name or address"));
    }
    Ok(())
}

fn check_visible(field: &'static str, text: &str, least: usize, most: usize) -> Result<()> {
    check_length(field, text, least, most)?;
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::invalid(field, "holds a byte that is not visible ASCII"));
    }
    Ok(())
}

fn check_length(field: &'static str, text: &str, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&text.len()) {
        return Ok(());
    }
    Err(Error::invalid(field, format!("{} bytes, not {least} to {most}", text.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(n: u16) -> Port {
        Port::new(n).unwrap()
    }

    #[test]
    fn ports_are_plain_decimals_from_1_to_65535() {
        for good in ["1", "443", "65535", "00022"] {
            assert!(good.parse::<Port>().is_ok(), "{good}");
        }
        for bad in ["", "0", "65536", "+443", "-1", " 443", "443 ", "0x1bb", "4 4", "99999999999"] {
            assert!(bad.parse::<Port>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn control_bytes_and_blanks_never_get_into_connection_data() {
        for bad in ["a\r\nX: y", "a b", "a\0", "\u{7f}", "é"] {
            assert!(ConnectParams::new(bad, port(1), "/", Token::new("t").unwrap()).is_err());
            assert!(ConnectParams::new("h", port(1), bad, Token::new("t").unwrap()).is_err());
            assert!(Token::new(bad).is_err());
        }
        for bad in ["", "a\nb", "\0", &"x".repeat(128)] {
            assert!(TunnelId::new(bad).is_err(), "{bad:?}");
            assert!(Service::new(bad, "127.0.0.1", port(1)).is_err());
        }
        assert!(TunnelId::new(&"x".repeat(127)).is_ok());
        assert!(ConnectParams::new("", port(1), "/", Token::new("t").unwrap()).is_err());
        assert!(ConnectParams::new("a/b", port(1), "/", Token::new("t").unwrap()).is_err());
    }

    #[test]
    fn brackets_of_an_ipv6_address_are_optional() {
        let token = Token::new("t").unwrap();
        let params = ConnectParams::new("[::1]", port(1), "x?y=z", token).unwrap();
        assert_eq!((params.host(), params.path()), ("::1", "/x?y=z"));
    }

    #[test]
    fn debug_and_errors_keep_the_secret() {
        let token = Token::new("s3cret-token").unwrap();
        let params = ConnectParams::new("h", port(1), "/", token).unwrap();
        assert!(!format!("{params:?}").contains("s3cret"));
        let err = Token::new("s3cret token").unwrap_err();
        assert!(!format!("{err} {err:?}").contains("s3cret"));
    }

    #[test]
    fn a_ca_bundle_without_a_certificate_is_refused() {
        for bad in
            [&b""[..], b"nonsense", b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"]
        {
            assert!(matches!(TlsConfig::new().with_ca_pem(bad), Err(Error::InvalidCa(_))));
        }
    }
}
