//! Where the broker is, and how the connection to it is secured.

use std::fmt;
use std::str::FromStr;

use aiot_tunnel::Port;
use native_tls::{Certificate, Identity, Protocol, TlsConnector};
use openssl::pkey::PKey;
use openssl::x509::X509;

use crate::error::{Error, Result};
use crate::Device;

/// The port of MQTT over TLS.
const TLS_PORT: u16 = 8883;
const PLAIN_PORT: u16 = 1883;

/// An MQTT broker. As text it is `mqtts://HOST[:PORT]`, or `mqtt://HOST[:PORT]` without TLS.
#[derive(Debug, Clone)]
pub struct Broker {
    host: String,
    port: Port,
    tls: Option<Tls>,
}

impl Broker {
    /// The platform's broker for a region, such as `cn-shanghai`, over TLS.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a text that is no region.
    pub fn region(device: &Device, region: &str) -> Result<Self> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if region.is_empty() || !region.chars().all(is_allowed) {
            return Err(Error::invalid("region", "not a region such as cn-shanghai"));
        }
        let key = device.product_key();
        format!("mqtts://{key}.iot-as-mqtt.{region}.aliyuncs.com").parse()
    }

    /// The broker of an instance of the platform, over TLS: the instance's id, such as `iot-06abc`, or
    /// the host name of its endpoint.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a text that is neither.
    pub fn instance(instance: &str) -> Result<Self> {
        match instance.contains('.') {
            true => format!("mqtts://{instance}").parse(),
            false => format!("mqtts://{instance}.mqtt.iothub.aliyuncs.com").parse(),
        }
    }

    /// Sets how TLS is used.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a broker without TLS (`mqtt://`).
    pub fn with_tls(mut self, tls: Tls) -> Result<Self> {
        if self.tls.is_none() {
            return Err(Error::invalid("broker", "certificates need an address with mqtts://"));
        }
        self.tls = Some(tls);
        Ok(self)
    }

    /// Whether the connection uses TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> Port {
        self.port
    }

    /// The connector for TLS.
    pub(crate) fn connector(&self) -> Result<Option<TlsConnector>> {
        self.tls.as_ref().map(Tls::connector).transpose()
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls() { "mqtts" } else { "mqtt" };
        let (host, port) = (&self.host, self.port);
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}"),
            false => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

impl FromStr for Broker {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid("broker", "not of the form mqtts://HOST[:PORT] or mqtt://HOST[:PORT]")
        };
        let (tls, rest) = match text.split_once("://").ok_or_else(wrong)? {
            ("mqtts", rest) => (Some(Tls::new()), rest),
            ("mqtt", rest) => (None, rest),
            _ => return Err(wrong()),
        };
        let after_address = rest.rfind(']').unwrap_or(0);
        let (host, port) = match rest[after_address..].find(':') {
            Some(colon) => {
                let (host, port) = rest.split_at(after_address + colon);
                (host, port[1..].parse().map_err(|_| wrong())?)
            }
            None => {
                let port = if tls.is_some() { TLS_PORT } else { PLAIN_PORT };
                (rest, Port::new(port).map_err(|_| wrong())?)
            }
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').filter(|ip| ip.contains(':')).ok_or_else(wrong)?,
            None => host,
        };
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if host.is_empty() || host.len() > 253 || !host.chars().all(is_allowed) {
            return Err(wrong());
        }
        Ok(Broker { host: host.to_owned(), port, tls })
    }
}

/// How TLS is used. The default trusts the system's root certificates and sends no certificate. The
/// chain, the host name and the time are always verified; TLS 1.2 or later; the host name is sent (SNI).
#[derive(Clone, Default)]
#[must_use]
pub struct Tls {
    roots: Option<Vec<Certificate>>,
    identity: Option<Identity>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("roots", &self.roots.as_ref().map(Vec::len))
            .field("identity", &self.identity.as_ref().map(|_| ".."))
            .finish()
    }
}

impl Tls {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificates of this PEM text instead of the system's.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the text holds no certificate, or one that cannot be read.
    pub fn with_ca_pem(mut self, pem: &[u8]) -> Result<Self> {
        let wrong = |e: &dyn fmt::Display| Error::invalid("CA certificate", e.to_string());
        let found = X509::stack_from_pem(pem).map_err(|e| wrong(&e))?;
        if found.is_empty() {
            return Err(wrong(&"the PEM text holds no certificate"));
        }
        let roots = found.iter().map(|certificate| {
            let der = certificate.to_der().map_err(|e| wrong(&e))?;
            Certificate::from_der(&der).map_err(|e| wrong(&e))
        });
        self.roots = Some(roots.collect::<Result<_>>()?);
        Ok(self)
    }

    /// Presents a client certificate. `chain` is PEM text, the client's own certificate first. `key` is
    /// PEM text, PKCS#8 or the traditional RSA and EC forms, not encrypted.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the part that cannot be used.
    pub fn with_client_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self> {
        let certificate = |reason: String| Error::invalid("client certificate", reason);
        let found = X509::stack_from_pem(chain).map_err(|e| certificate(e.to_string()))?;
        let own = found.first();
        let own = own.ok_or_else(|| certificate("the PEM text holds no certificate".into()))?;
        // The callback refuses encrypted keys; without it OpenSSL would ask on the terminal.
        let key = PKey::private_key_from_pem_callback(key, |_| Ok(0));
        let key =
            key.map_err(|_| Error::invalid("client key", "not a key in PEM form, or encrypted"))?;
        let public = own.public_key().map_err(|e| certificate(e.to_string()))?;
        if !key.public_eq(&public) {
            return Err(Error::invalid("client key", "does not belong to the client certificate"));
        }
        let pkcs8 = key.private_key_to_pem_pkcs8();
        let pkcs8 = pkcs8.map_err(|e| Error::invalid("client key", e.to_string()))?;
        let pkcs8 = zeroize::Zeroizing::new(pkcs8);
        let identity = Identity::from_pkcs8(chain, &pkcs8);
        self.identity = Some(identity.map_err(|e| certificate(e.to_string()))?);
        Ok(self)
    }

    fn connector(&self) -> Result<TlsConnector> {
        let mut builder = TlsConnector::builder();
        builder.min_protocol_version(Some(Protocol::Tlsv12));
        if let Some(roots) = &self.roots {
            builder.disable_built_in_roots(true);
            for root in roots {
                builder.add_root_certificate(root.clone());
            }
        }
        if let Some(identity) = &self.identity {
            builder.identity(identity.clone());
        }
        builder.build().map_err(|e| Error::invalid("TLS", e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_has_a_scheme_a_host_and_a_port() {
        for (text, shown, tls) in [
            ("mqtts://h", "mqtts://h:8883", true),
            ("mqtt://h", "mqtt://h:1883", false),
            ("mqtts://b.example:443", "mqtts://b.example:443", true),
            ("mqtt://[::1]", "mqtt://[::1]:1883", false),
            ("mqtts://[fe80::1]:1", "mqtts://[fe80::1]:1", true),
            ("mqtt://127.0.0.1:5", "mqtt://127.0.0.1:5", false),
        ] {
            let broker: Broker = text.parse().unwrap();
            assert_eq!((&*broker.to_string(), broker.is_tls()), (shown, tls));
        }
        for bad in [
            "h",
            "h:1",
            "tcp://h",
            "mqtts://",
            "mqtts://:1",
            "mqtts://h:0",
            "mqtts://h:x",
            "mqtts://h/p",
            "mqtts://u@h",
            "mqtts://[h]",
            "mqtts://a b",
            "mqtts://[::1",
            "mqtts://h:",
        ] {
            assert!(bad.parse::<Broker>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_platforms_brokers_have_documented_names() {
        let device = Device::new("a1pk", "d").unwrap();
        let region = Broker::region(&device, "cn-shanghai").unwrap();
        assert_eq!(region.to_string(), "mqtts://a1pk.iot-as-mqtt.cn-shanghai.aliyuncs.com:8883");
        let instance = |text| Broker::instance(text).unwrap().to_string();
        assert_eq!(instance("iot-1"), "mqtts://iot-1.mqtt.iothub.aliyuncs.com:8883");
        assert_eq!(instance("b.example:1883"), "mqtts://b.example:1883");
        assert!(Broker::region(&device, "a.b").is_err() && Broker::region(&device, "").is_err());
    }

    #[test]
    fn certificates_without_tls_are_refused() {
        let broker: Broker = "mqtt://h".parse().unwrap();
        assert!(broker.with_tls(Tls::new()).is_err());
        assert!(Tls::new().with_ca_pem(b"nonsense").is_err());
    }
}
