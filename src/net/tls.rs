//! TLS streams, and a connector made from [`Security`].
//!
//! If the system's root certificates are trusted, native-tls connects. If the process brings its
//! own CA, as all callers of the C SDK do, native-tls would still load the system's roots, twice,
//! and drop them (`docs/performance.md` has the cost). So in that case a context is made with
//! openssl directly, which native-tls uses underneath on Linux. So it is when a wrong clock is
//! tolerated, which native-tls knows nothing of.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use native_tls::{Identity, Protocol};
use openssl::error::ErrorStack;
use openssl::ssl::{
    self, MidHandshakeSslStream, Ssl, SslContext, SslMethod, SslMode, SslOptions, SslStream,
    SslVerifyMode, SslVersion,
};
use openssl::x509::verify::{X509CheckFlags, X509VerifyFlags};
use openssl::x509::{X509VerifyResult, X509};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::clock::WrongClock;
use super::exit::{self, Gated};
use crate::config::{ClientIdentity, Clock, Security, TlsConfig};
use crate::logging::{warn, Code};

/// Longest plain text of a TLS record, in bytes (RFC 8446, 5.1). One write makes one record.
pub(crate) const MAX_RECORD: usize = 16 * 1024;

/// A security setting and the connector made from it at the first use. The workers share it, so the
/// root certificates are parsed and kept once, not once for each tunnel.
#[derive(Clone)]
pub(crate) struct TlsContext(Arc<Context>);

struct Context {
    security: Gated<Security>,
    /// Locked while the connector is made. Loading the system's roots takes a tenth of a second,
    /// and twenty workers that start together must not all do it.
    connector: Mutex<Option<Gated<Connector>>>,
}

impl TlsContext {
    pub(crate) fn new(security: Security) -> Self {
        let (security, connector) = (Gated::new(security), Mutex::new(None));
        TlsContext(Arc::new(Context { security, connector }))
    }

    /// Whether connections are encrypted.
    pub(crate) fn is_secure(&self) -> bool {
        matches!(self.0.security.get(), Security::Tls(_))
    }

    /// The connector. `None` if the setting is plain text. Blocks while another thread makes it.
    pub(crate) fn connector(&self) -> Result<Option<Gated<Connector>>, String> {
        let Security::Tls(config) = self.0.security.get() else { return Ok(None) };
        // Only now: OpenSSL is initialised, since there is a configuration.
        exit::watch();
        let Some(_inside) = exit::enter() else { return Err(exit::closed().to_string()) };
        let mut made = self.0.connector.lock();
        if made.is_none() {
            *made = Some(Gated::new(Connector::new(config)?));
        }
        Ok(made.as_ref().map(|connector| Gated::new(connector.get().clone())))
    }
}

/// Makes verified connections: TLS 1.2 or later, a certificate chain up to a trusted root, and a
/// matching host name.
#[derive(Clone)]
pub(crate) enum Connector {
    System(native_tls::TlsConnector),
    Own { context: SslContext, sni: bool, clock: Clock },
}

impl Connector {
    fn new(config: &TlsConfig) -> Result<Self, String> {
        let identity = config.identity.as_ref();
        let &TlsConfig { sni, clock, .. } = config;
        if config.roots.is_none() && clock == Clock::Strict {
            return system(identity, sni).map(Connector::System);
        }
        own(config.roots.as_deref(), identity)
            .map(|context| Connector::Own { context, sni, clock })
            .map_err(|e| e.to_string())
    }

    /// Says that a certificate was checked without a clock, after it was accepted.
    pub(crate) fn warn_of_tolerance(&self, host: &str) {
        let Connector::Own { clock: Clock::Tolerant, .. } = self else { return };
        let Some(clock) = WrongClock::look() else { return };
        warn!(
            Code::ServerCert,
            "this machine's clock is wrong ({}): the certificate of {host} is accepted even if it is \
             not valid yet (--clock tolerant); set the clock",
            clock.text()
        );
    }

    pub(crate) fn connect<S: Read + Write>(&self, host: &str, stream: S) -> Handshake<S> {
        // A dot at the end makes a name absolute for the resolver. It is in no certificate, and not
        // allowed in the handshake (RFC 6066, 3).
        let host = host.strip_suffix('.').unwrap_or(host);
        let Some(_inside) = exit::enter() else {
            return Handshake::Failed(exit::closed().to_string());
        };
        match self {
            Connector::System(connector) => connector.connect(host, stream).into(),
            Connector::Own { context, sni, clock } => match session(context, host, *sni, *clock) {
                Ok(session) => session.connect(stream).into(),
                Err(e) => Handshake::Failed(e.to_string()),
            },
        }
    }
}

fn system(
    identity: Option<&ClientIdentity>,
    sni: bool,
) -> Result<native_tls::TlsConnector, String> {
    let mut builder = native_tls::TlsConnector::builder();
    builder.min_protocol_version(Some(Protocol::Tlsv12)).use_sni(sni);
    if let Some(identity) = identity {
        // native-tls takes only PKCS#8, but firmware also has RSA and EC keys in their older forms.
        let key = identity.key.private_key_to_pem_pkcs8().map(Zeroizing::new);
        let key = key.map_err(|e| e.to_string())?;
        let chain: Result<Vec<_>, _> = identity.chain.iter().map(|cert| cert.to_pem()).collect();
        let chain = chain.map_err(|e| e.to_string())?.concat();
        builder.identity(Identity::from_pkcs8(&chain, &key).map_err(|e| e.to_string())?);
    }
    builder.build().map_err(|e| e.to_string())
}

/// Where systems keep their root certificates. OpenSSL that is linked in does not know.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Does what openssl's own connector does, but loads the system's roots only if there are no others.
fn own(
    roots: Option<&[X509]>,
    identity: Option<&ClientIdentity>,
) -> Result<SslContext, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    // Renegotiation is of no use here. With it, a write might have to wait for a read.
    context
        .set_options(SslOptions::ALL | SslOptions::NO_COMPRESSION | SslOptions::NO_RENEGOTIATION);
    context.set_cipher_list(
        "DEFAULT:!aNULL:!eNULL:!MD5:!3DES:!DES:!RC4:!IDEA:!SEED:!aDSS:!SRP:!PSK",
    )?;
    context.set_mode(
        SslMode::AUTO_RETRY
            | SslMode::ACCEPT_MOVING_WRITE_BUFFER
            | SslMode::ENABLE_PARTIAL_WRITE
            | SslMode::RELEASE_BUFFERS,
    );
    context.set_verify(SslVerifyMode::PEER);
    match roots {
        Some(roots) => {
            // An anchor may be an intermediate certificate or the server's own.
            context.cert_store_mut().set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
            for root in roots {
                context.cert_store_mut().add_cert(root.clone())?;
            }
        }
        None => {
            context.set_default_verify_paths()?;
            for path in SYSTEM_ROOTS.map(Path::new).into_iter().filter(|path| path.exists()) {
                context.set_ca_file(path)?;
            }
        }
    }
    if let Some(ClientIdentity { chain, key }) = identity {
        if let Some((own, others)) = chain.split_first() {
            context.set_certificate(own)?;
            for certificate in others {
                context.add_extra_chain_cert(certificate.clone())?;
            }
        }
        context.set_private_key(key)?;
    }
    Ok(context.build())
}

/// A TLS session that accepts only a certificate for this host.
fn session(context: &SslContext, host: &str, sni: bool, clock: Clock) -> Result<Ssl, ErrorStack> {
    let mut session = Ssl::new(context)?;
    if let (Clock::Tolerant, Some(wrong)) = (clock, WrongClock::look()) {
        tolerate(&mut session, wrong);
    }
    let address = host.parse();
    // An IP address is never sent as the server name (RFC 6066, 3).
    if sni && address.is_err() {
        session.set_hostname(host)?;
    }
    let parameters = session.param_mut();
    parameters.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS);
    match address {
        Ok(address) => parameters.set_ip(address)?,
        Err(_) => parameters.set_host(host)?,
    }
    Ok(session)
}

/// Checks certificates for the time of the build in place of the present, which nobody knows. Then one
/// that had expired is still refused; only one that is not valid yet, for whatever time, is accepted.
fn tolerate(session: &mut Ssl, clock: WrongClock) {
    /// `X509_V_ERR_CERT_NOT_YET_VALID`.
    const NOT_YET_VALID: i32 = 9;
    // A 32-bit `time_t` holds every time before 2038. Without this, nothing is tolerated either.
    #[allow(irrefutable_let_patterns, clippy::useless_conversion)]
    let Ok(time) = clock.earliest().try_into() else {
        return;
    };
    session.param_mut().set_time(time);
    session.set_verify_callback(SslVerifyMode::PEER, |is_valid, chain| {
        let is_accepted = is_valid || chain.error().as_raw() == NOT_YET_VALID;
        if is_accepted && !is_valid {
            chain.set_error(X509VerifyResult::OK);
        }
        is_accepted
    });
}

/// The state of a TLS handshake.
pub(crate) enum Handshake<S> {
    Done(TlsStream<S>),
    /// The handshake waits for the stream.
    Waits(MidHandshake<S>),
    Failed(String),
}

pub(crate) enum MidHandshake<S> {
    System(Gated<native_tls::MidHandshakeTlsStream<S>>),
    Own(Gated<MidHandshakeSslStream<S>>),
}

impl<S: Read + Write> MidHandshake<S> {
    pub(crate) fn get_mut(&mut self) -> &mut S {
        match self {
            MidHandshake::System(middle) => middle.get_mut().get_mut(),
            MidHandshake::Own(middle) => middle.get_mut().get_mut(),
        }
    }

    /// Continues the handshake. Call it when the stream is ready.
    pub(crate) fn go_on(self) -> Handshake<S> {
        let Some(_inside) = exit::enter() else {
            return Handshake::Failed(exit::closed().to_string());
        };
        match self {
            MidHandshake::System(middle) => middle.into_inner().handshake().into(),
            MidHandshake::Own(middle) => middle.into_inner().handshake().into(),
        }
    }
}

impl<S> From<Result<native_tls::TlsStream<S>, native_tls::HandshakeError<S>>> for Handshake<S> {
    fn from(result: Result<native_tls::TlsStream<S>, native_tls::HandshakeError<S>>) -> Self {
        match result {
            Ok(stream) => Handshake::Done(TlsStream::System(Gated::new(stream))),
            Err(native_tls::HandshakeError::WouldBlock(middle)) => {
                Handshake::Waits(MidHandshake::System(Gated::new(middle)))
            }
            Err(native_tls::HandshakeError::Failure(e)) => Handshake::Failed(e.to_string()),
        }
    }
}

impl<S> From<Result<SslStream<S>, ssl::HandshakeError<S>>> for Handshake<S> {
    fn from(result: Result<SslStream<S>, ssl::HandshakeError<S>>) -> Self {
        match result {
            Ok(stream) => Handshake::Done(TlsStream::Own(Gated::new(stream))),
            Err(ssl::HandshakeError::WouldBlock(middle)) => {
                Handshake::Waits(MidHandshake::Own(Gated::new(middle)))
            }
            Err(ssl::HandshakeError::SetupFailure(e)) => Handshake::Failed(e.to_string()),
            Err(ssl::HandshakeError::Failure(middle)) => {
                let e = middle.error();
                Handshake::Failed(match middle.ssl().verify_result() {
                    X509VerifyResult::OK => e.to_string(),
                    verification => format!("{e} ({verification})"),
                })
            }
        }
    }
}

/// A TLS stream.
pub(crate) enum TlsStream<S> {
    System(Gated<native_tls::TlsStream<S>>),
    Own(Gated<SslStream<S>>),
}

impl<S: Read + Write> TlsStream<S> {
    pub(crate) fn get_ref(&self) -> &S {
        match self {
            TlsStream::System(stream) => stream.get().get_ref(),
            TlsStream::Own(stream) => stream.get().get_ref(),
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut S {
        match self {
            TlsStream::System(stream) => stream.get_mut().get_mut(),
            TlsStream::Own(stream) => stream.get_mut().get_mut(),
        }
    }

    /// Sends the TLS close notification, as far as the stream takes it.
    pub(crate) fn shutdown(&mut self) {
        let Some(_inside) = exit::enter() else { return };
        match self {
            TlsStream::System(stream) => drop(stream.get_mut().shutdown()),
            TlsStream::Own(stream) => drop(stream.get_mut().shutdown()),
        }
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let _inside = exit::enter().ok_or_else(exit::closed)?;
        match self {
            TlsStream::System(stream) => stream.get_mut().read(buffer),
            TlsStream::Own(stream) => stream.get_mut().read(buffer),
        }
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _inside = exit::enter().ok_or_else(exit::closed)?;
        match self {
            TlsStream::System(stream) => stream.get_mut().write(bytes),
            TlsStream::Own(stream) => stream.get_mut().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let _inside = exit::enter().ok_or_else(exit::closed)?;
        match self {
            TlsStream::System(stream) => stream.get_mut().flush(),
            TlsStream::Own(stream) => stream.get_mut().flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use openssl::asn1::Asn1Time;
    use openssl::ec::{EcGroup, EcKey};
    use openssl::hash::MessageDigest;
    use openssl::nid::Nid;
    use openssl::pkey::PKey;
    use openssl::ssl::SslAcceptor;
    use openssl::x509::extension::SubjectAlternativeName;
    use openssl::x509::X509Name;

    use super::*;

    /// Connects to a server that has a certificate for `localhost` of its own making. Returns the name
    /// that the handshake carried, or why it failed.
    fn name_seen_by_server(host: &str) -> Result<Option<String>, String> {
        let curve = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        let key = PKey::from_ec_key(EcKey::generate(&curve).unwrap()).unwrap();
        let mut builder = X509::builder().unwrap();
        builder.set_version(2).unwrap();
        let mut name = X509Name::builder().unwrap();
        name.append_entry_by_text("CN", "test").unwrap();
        let name = name.build();
        builder.set_subject_name(&name).unwrap();
        builder.set_issuer_name(&name).unwrap();
        builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
        builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
        builder.set_pubkey(&key).unwrap();
        let mut names = SubjectAlternativeName::new();
        let names = names.dns("localhost").build(&builder.x509v3_context(None, None)).unwrap();
        builder.append_extension(names).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        let certificate = builder.build();

        let config = TlsConfig::new().with_ca_pem(&certificate.to_pem().unwrap()).unwrap();
        let (client, server) = UnixStream::pair().unwrap();
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_private_key(&key).unwrap();
        acceptor.set_certificate(&certificate).unwrap();
        let acceptor = acceptor.build();
        let server = thread::spawn(move || {
            let stream = acceptor.accept(server).ok()?;
            stream.ssl().servername(ssl::NameType::HOST_NAME).map(str::to_owned)
        });
        let outcome = match Connector::new(&config).unwrap().connect(host, client) {
            Handshake::Done(_) => Ok(()),
            Handshake::Failed(why) => Err(why),
            Handshake::Waits(_) => panic!("the sockets block"),
        };
        let name = server.join().unwrap();
        outcome.map(|()| name)
    }

    #[test]
    fn a_dot_at_the_end_of_the_host_is_neither_compared_nor_sent() {
        assert_eq!(name_seen_by_server("localhost").unwrap().as_deref(), Some("localhost"));
        assert_eq!(name_seen_by_server("localhost.").unwrap().as_deref(), Some("localhost"));
        assert!(name_seen_by_server("localhost..").is_err());
    }
}
