//! Throwaway certificates, by rcgen with keys of OpenSSL. The only place in tests and benchmarks
//! where a certificate is made.

use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use openssl::ssl::{SslAcceptor, SslConnector, SslMethod};
use openssl::x509::X509;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose,
    PublicKeyData, SerialNumber, SignatureAlgorithm, SigningKey, PKCS_ECDSA_P256_SHA256,
};

use crate::logs;

/// Signatures of OpenSSL, so that rcgen needs no cryptography of its own.
struct Key {
    key: PKey<Private>,
    /// The public key, as a point on the curve.
    point: Vec<u8>,
}

impl Key {
    fn new() -> Self {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = EcKey::generate(&group).unwrap();
        let form = openssl::ec::PointConversionForm::UNCOMPRESSED;
        let mut context = openssl::bn::BigNumContext::new().unwrap();
        let point = key.public_key().to_bytes(&group, form, &mut context).unwrap();
        let key = PKey::from_ec_key(key).unwrap();
        logs::note_secret(&key.private_key_to_pem_pkcs8().unwrap());
        Key { key, point }
    }

    fn pem(&self) -> Vec<u8> {
        self.key.private_key_to_pem_pkcs8().unwrap()
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key).unwrap();
        signer.sign_oneshot_to_vec(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A certificate and its key, both in PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

impl Identity {
    /// A certificate for this machine that is its own CA.
    pub fn self_signed() -> Self {
        let key = Key::new();
        let mut params = params("test gateway", &["127.0.0.1", "localhost"], 1, &key);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Identity { certificate: certificate.pem().into(), key: key.pem() }
    }

    pub fn x509(&self) -> X509 {
        X509::from_pem(&self.certificate).unwrap()
    }

    pub fn private_key(&self) -> PKey<Private> {
        PKey::private_key_from_pem(&self.key).unwrap()
    }

    /// A server that shows this certificate, for clients of TLS 1.2 and 1.3.
    pub fn acceptor(&self) -> SslAcceptor {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_certificate(&self.x509()).unwrap();
        acceptor.set_private_key(&self.private_key()).unwrap();
        acceptor.build()
    }
}

/// A CA.
pub struct Authority {
    issuer: Issuer<'static, Key>,
    pem: Vec<u8>,
}

impl Authority {
    pub fn new() -> Self {
        let key = Key::new();
        let params = ca_params("test CA", &key);
        let certificate = params.self_signed(&key).unwrap();
        Authority { pem: certificate.pem().into(), issuer: Issuer::new(params, key) }
    }

    /// An intermediate CA that this one has certified.
    pub fn intermediate(&self) -> Self {
        let key = Key::new();
        let params = ca_params("test intermediate CA", &key);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Authority { pem: certificate.pem().into(), issuer: Issuer::new(params, key) }
    }

    pub fn pem(&self) -> Vec<u8> {
        self.pem.clone()
    }

    pub fn x509(&self) -> X509 {
        X509::from_pem(&self.pem).unwrap()
    }

    /// A certificate for a name or an address, good for two days.
    pub fn identity(&self, name: &str) -> Identity {
        self.identity_for(name, 2)
    }

    /// A certificate that has expired.
    pub fn expired_identity(&self, name: &str) -> Identity {
        self.identity_for(name, -1)
    }

    /// A certificate that had expired long before anybody built the program under test.
    pub fn long_expired_identity(&self, name: &str) -> Identity {
        self.identity_for(name, -1000)
    }

    /// A certificate that is not valid before tomorrow.
    pub fn future_identity(&self, name: &str) -> Identity {
        let key = Key::new();
        let mut params = params(name, &[name], 3, &key);
        let day = std::time::Duration::from_secs(86_400);
        params.not_before = (std::time::SystemTime::now() + day).into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem().into(), key: key.pem() }
    }

    /// A certificate that expires in so many days; a negative number has passed already.
    fn identity_for(&self, name: &str, days: i64) -> Identity {
        let key = Key::new();
        let params = params(name, &[name], days, &key);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem().into(), key: key.pem() }
    }

    /// A server with a certificate for a name or an address.
    pub fn acceptor(&self, name: &str) -> SslAcceptor {
        self.identity(name).acceptor()
    }

    /// A server whose certificate has expired.
    pub fn expired_acceptor(&self, name: &str) -> SslAcceptor {
        self.expired_identity(name).acceptor()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}

/// A client that trusts only what this CA (PEM) has certified.
pub fn connector(ca: &[u8]) -> SslConnector {
    let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
    let mut store = openssl::x509::store::X509StoreBuilder::new().unwrap();
    store.add_cert(X509::from_pem(ca).unwrap()).unwrap();
    connector.set_cert_store(store.build());
    connector.build()
}

fn ca_params(name: &str, key: &Key) -> CertificateParams {
    let mut params = params(name, &[], 2, key);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn params(common_name: &str, names: &[&str], days: i64, key: &Key) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(SerialNumber::from(u64::from(rand::random::<u32>())));
    params.key_identifier_method =
        KeyIdMethod::PreSpecified(openssl::sha::sha1(&key.point).to_vec());
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(86_400);
    // A clock that is a little behind shall not matter.
    params.not_before = (now - day * (1 + days.min(0).unsigned_abs() as u32)).into();
    params.not_after = match days {
        0.. => now + day * days as u32,
        _ => now - day * days.unsigned_abs() as u32,
    }
    .into();
    params
}
