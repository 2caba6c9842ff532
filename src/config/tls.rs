//! How connections are secured.

use std::fmt;

use openssl::asn1::Asn1Time;
use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

use crate::error::{Error, Result};
use crate::logging::{warn, Code};

/// How the connection to the tunnel service is secured. The default is TLS with the system's
/// root certificates; plain text has to be asked for by name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Security {
    /// `wss`: TLS 1.2 or later. Certificate chain and host name are always verified.
    Tls(TlsConfig),
    /// `ws`: no encryption, and no authentication of the tunnel service. For labs.
    Plain,
}

impl Default for Security {
    fn default() -> Self {
        Security::Tls(TlsConfig::default())
    }
}

impl From<TlsConfig> for Security {
    fn from(config: TlsConfig) -> Self {
        Security::Tls(config)
    }
}

/// TLS settings. The default verifies against the system's root certificates and sends the host
/// name (SNI).
#[derive(Clone)]
#[must_use]
pub struct TlsConfig {
    pub(crate) roots: Option<Vec<X509>>,
    pub(crate) identity: Option<ClientIdentity>,
    pub(crate) sni: bool,
    pub(crate) clock: Clock,
}

/// How far this machine's clock is trusted when a certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Clock {
    /// A certificate must be valid at the time that the clock says.
    #[default]
    Strict,
    /// As [`Strict`](Self::Strict), unless the clock says a time before this library was built. Then
    /// the clock is certainly wrong, as it is on a device without a battery until it has asked the
    /// network. A certificate is then checked for the time of the build instead, and one that is not
    /// valid yet at that time is accepted, with a warning in the log each time. A certificate that had
    /// expired when the library was built, one of an untrusted CA and one for another name are refused
    /// as ever.
    ///
    /// The price: while the clock is wrong, a certificate that has expired since the build is not
    /// noticed. `docs/security.md` says more.
    Tolerant,
}

/// A client's certificate, those between it and a root, and its key.
#[derive(Clone)]
pub(crate) struct ClientIdentity {
    pub(crate) chain: Vec<X509>,
    pub(crate) key: PKey<Private>,
}

impl Default for TlsConfig {
    fn default() -> Self {
        TlsConfig { roots: None, identity: None, sni: true, clock: Clock::Strict }
    }
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("roots", &self.roots.as_ref().map(Vec::len))
            .field("identity", &self.identity.as_ref().map(|_| ".."))
            .field("sni", &self.sni)
            .field("clock", &self.clock)
            .finish()
    }
}

impl TlsConfig {
    /// The system's root certificates, no client certificate, SNI on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the certificates of this PEM bundle instead of the system's roots. Each of them may be a
    /// root, an intermediate certificate, or the server's own certificate. The host name and the time
    /// are checked in each case.
    ///
    /// A certificate that cannot be read is skipped, with a line in the log, as long as the bundle
    /// holds one that can.
    ///
    /// # Errors
    /// [`Error::InvalidCa`] when the bundle holds no certificate that can be read.
    pub fn with_ca_pem(mut self, pem: &[u8]) -> Result<Self> {
        self.roots = Some(ca_certificates(pem)?);
        Ok(self)
    }

    /// Presents a client certificate. `chain` is PEM text, the client's own certificate first.
    /// `key` is PEM text, PKCS#8 or the traditional RSA and EC forms, not encrypted.
    ///
    /// # Errors
    /// [`Error::InvalidClientCert`] when the chain cannot be read. [`Error::InvalidClientKey`]
    /// when the key cannot be read or belongs to another certificate.
    pub fn with_client_pem(mut self, chain: &[u8], key: &[u8]) -> Result<Self> {
        self.identity = Some(client_identity(chain, key)?);
        Ok(self)
    }

    /// Sets whether the TLS handshake names the host (SNI); default true. An address is never
    /// sent.
    pub fn with_sni(mut self, sni: bool) -> Self {
        self.sni = sni;
        self
    }

    /// Sets what happens while this machine's clock is wrong; default [`Clock::Strict`].
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }
}

fn ca_certificates(bundle: &[u8]) -> Result<Vec<X509>> {
    let mut certificates = Vec::new();
    let mut skipped = Vec::new();
    for (index, block) in certificate_blocks(bundle).enumerate() {
        match X509::from_pem(block) {
            Ok(certificate) => certificates.push(certificate),
            Err(e) => skipped.push((index + 1, e)),
        }
    }
    if certificates.is_empty() {
        let why = match skipped.first() {
            None => "the PEM text holds no certificate".to_owned(),
            Some((_, e)) => e.to_string(),
        };
        return Err(Error::InvalidCa(why));
    }
    for (number, e) in skipped {
        warn!(Code::ServerCert, "certificate {number} of the CA bundle is skipped: {e}");
    }
    Ok(certificates)
}

/// The bundle's certificates, each from its `BEGIN` line up to the next one.
fn certificate_blocks(bundle: &[u8]) -> impl Iterator<Item = &[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let mut starts: Vec<usize> =
        (0..bundle.len()).filter(|&at| bundle[at..].starts_with(BEGIN)).collect();
    starts.push(bundle.len());
    let blocks: Vec<&[u8]> = starts.windows(2).map(|ends| &bundle[ends[0]..ends[1]]).collect();
    blocks.into_iter().filter(|block| {
        let line = block.split(|&byte| byte == b'\n').next().unwrap_or_default();
        line.windows(b"CERTIFICATE-----".len()).any(|part| part == b"CERTIFICATE-----")
    })
}

fn client_identity(chain: &[u8], key: &[u8]) -> Result<ClientIdentity> {
    let chain = X509::stack_from_pem(chain).map_err(|e| Error::InvalidClientCert(e.to_string()))?;
    let Some(own) = chain.first() else {
        return Err(Error::InvalidClientCert("the PEM text holds no certificate".into()));
    };
    // The callback refuses encrypted keys; without it OpenSSL would ask on the terminal.
    let key = PKey::private_key_from_pem_callback(key, |_| Ok(0))
        .map_err(|_| Error::InvalidClientKey("not a key in PEM form, or encrypted".into()))?;
    let public = own.public_key().map_err(|e| Error::InvalidClientCert(e.to_string()))?;
    if !key.public_eq(&public) {
        return Err(Error::InvalidClientKey("does not belong to the client certificate".into()));
    }
    if let Some(problem) = validity_problem(own) {
        warn!(
            Code::Handshake,
            "the client certificate {problem}; the tunnel service may refuse it"
        );
    }
    Ok(ClientIdentity { chain, key })
}

/// Says if a certificate is not valid at this moment. It is still used: the clock may be wrong.
pub(crate) fn validity_problem(certificate: &X509) -> Option<String> {
    let now = Asn1Time::days_from_now(0).ok()?;
    let (begin, end) = (certificate.not_before(), certificate.not_after());
    if *end < *now {
        return Some(format!("has expired ({end})"));
    }
    (*begin > *now).then(|| format!("is not valid yet (from {begin} on)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The certificate of a root that is nobody's.
    fn certificate() -> Vec<u8> {
        use openssl::asn1::Asn1Time;
        use openssl::ec::{EcGroup, EcKey};
        use openssl::hash::MessageDigest;
        use openssl::nid::Nid;

        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.set_pubkey(&key).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        builder.build().to_pem().unwrap()
    }

    #[test]
    fn a_broken_certificate_among_good_ones_is_skipped() {
        let (first, last) = (certificate(), certificate());
        let broken = &b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"[..];
        let cut = &certificate()[..200];
        for bad in [broken, cut, b"-----BEGIN CERTIFICATE-----\n", b"# a comment\n"] {
            for bundle in [[&first[..], bad, &last], [bad, &first, &last], [&first, &last, bad]] {
                let tls = TlsConfig::new().with_ca_pem(&bundle.concat()).unwrap();
                assert_eq!(tls.roots.unwrap().len(), 2, "{bad:?}");
            }
        }
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
