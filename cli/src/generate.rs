//! `aiot-tunnel gen-token` and `gen-cert`: secrets and certificates for a start.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
    SubjectKeyIdentifier,
};
use openssl::x509::{X509Builder, X509NameBuilder, X509};
use zeroize::Zeroizing;

use crate::cli::{GenCertArgs, GenTokenArgs};
use crate::tunnel::secret_file;
use crate::{input, Result};

/// For so long the CA is valid, in days.
const CA_DAYS: u32 = 3650;
/// Longest common name of a certificate.
const MAX_COMMON_NAME: usize = 64;

pub(crate) fn token(args: &GenTokenArgs) -> Result<()> {
    let line = Zeroizing::new(aiot_tunnel_registry::new_token().to_string() + "\n");
    match &args.out {
        Some(path) => write(path, line.as_bytes(), true),
        None => Ok(io::stdout().write_all(line.as_bytes())?),
    }
}

pub(crate) fn certificate(args: &GenCertArgs) -> Result<()> {
    let folder = &args.out;
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let file = |name: &str| folder.join(name);
    // Checked before the first file is written.
    for new in ["server.pem", "server.key"].map(file) {
        if new.exists() {
            return Err(format!("{} exists; move it away first", new.display()).into());
        }
    }
    let (ca_file, ca_key_file) = (file("ca.pem"), file("ca.key"));
    let ca = match (ca_file.exists(), ca_key_file.exists()) {
        (true, true) => Authority::read(&ca_file, &ca_key_file)?,
        (false, false) => {
            let ca = Authority::new()?;
            write(&ca_key_file, &Zeroizing::new(ca.key.private_key_to_pem_pkcs8()?), true)?;
            write(&ca_file, &ca.certificate.to_pem()?, false)?;
            ca
        }
        _ => {
            let folder = folder.display();
            return Err(
                format!("{folder} has one of ca.pem and ca.key, and both are needed").into()
            );
        }
    };
    let (certificate, key) = ca.certify(&args.name, args.days)?;
    write(&file("server.key"), &Zeroizing::new(key.private_key_to_pem_pkcs8()?), true)?;
    write(&file("server.pem"), &certificate.to_pem()?, false)?;
    let show = |name: &str| file(name).display().to_string();
    let text = format!(
        "gateway:               --cert {} --key {}\ndevices and operators: --ca {}\n",
        show("server.pem"),
        show("server.key"),
        show("ca.pem")
    );
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// Writes a new file. One that exists is left alone.
fn write(path: &Path, bytes: &[u8], is_secret: bool) -> Result<()> {
    let file = match is_secret {
        true => secret_file(path),
        false => OpenOptions::new().write(true).create_new(true).open(path),
    };
    let wrong = |e: io::Error| match e.kind() {
        io::ErrorKind::AlreadyExists => format!("{} exists; move it away first", path.display()),
        _ => format!("{}: {e}", path.display()),
    };
    Ok(file.and_then(|mut file| file.write_all(bytes)).map_err(wrong)?)
}

struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

impl Authority {
    fn new() -> Result<Self> {
        let key = new_key()?;
        let mut builder = builder("aiot-tunnel throwaway CA", &key, CA_DAYS)?;
        let name = builder.0;
        let builder = &mut builder.1;
        builder.set_issuer_name(&name)?;
        builder.append_extension(BasicConstraints::new().critical().ca().pathlen(0).build()?)?;
        builder.append_extension(KeyUsage::new().critical().key_cert_sign().crl_sign().build()?)?;
        let identifier = SubjectKeyIdentifier::new().build(&builder.x509v3_context(None, None))?;
        builder.append_extension(identifier)?;
        builder.sign(&key, MessageDigest::sha256())?;
        let certificate = std::mem::replace(builder, X509Builder::new()?).build();
        Ok(Authority { certificate, key })
    }

    fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let at = |path: &Path, e: ErrorStack| format!("{}: {e}", path.display());
        let ca = X509::from_pem(&input::read(certificate)?).map_err(|e| at(certificate, e))?;
        let pem = input::read_secret(key)?;
        let ca_key =
            PKey::private_key_from_pem_callback(&pem, |_| Ok(0)).map_err(|e| at(key, e))?;
        if !ca.public_key()?.public_eq(&ca_key) {
            let (certificate, key) = (certificate.display(), key.display());
            return Err(format!("{key} is not the key of {certificate}").into());
        }
        Ok(Authority { certificate: ca, key: ca_key })
    }

    /// A server's certificate and its key.
    fn certify(&self, names: &[String], days: u32) -> Result<(X509, PKey<Private>)> {
        let key = new_key()?;
        let common = names.first().filter(|name| name.len() <= MAX_COMMON_NAME);
        let common = common.map_or("gateway", String::as_str);
        let (_, mut builder) = builder(common, &key, days)?;
        builder.set_issuer_name(self.certificate.subject_name())?;
        builder.append_extension(BasicConstraints::new().critical().build()?)?;
        builder.append_extension(KeyUsage::new().critical().digital_signature().build()?)?;
        builder.append_extension(ExtendedKeyUsage::new().server_auth().build()?)?;
        let mut alternatives = SubjectAlternativeName::new();
        for name in names {
            match name.parse::<IpAddr>() {
                Ok(_) => alternatives.ip(name),
                Err(_) => alternatives.dns(name),
            };
        }
        let context = builder.x509v3_context(Some(&self.certificate), None);
        let extensions = [
            alternatives.build(&context)?,
            SubjectKeyIdentifier::new().build(&context)?,
            AuthorityKeyIdentifier::new().keyid(true).build(&context)?,
        ];
        for extension in extensions {
            builder.append_extension(extension)?;
        }
        builder.sign(&self.key, MessageDigest::sha256())?;
        Ok((builder.build(), key))
    }
}

fn new_key() -> std::result::Result<PKey<Private>, ErrorStack> {
    PKey::from_ec_key(EcKey::generate(EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?.as_ref())?)
}

/// A certificate without issuer and extensions, and its name.
fn builder(
    common_name: &str,
    key: &PKey<Private>,
    days: u32,
) -> std::result::Result<(openssl::x509::X509Name, X509Builder), ErrorStack> {
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_nid(Nid::COMMONNAME, common_name)?;
    let name = name.build();
    let mut serial = BigNum::new()?;
    serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    builder.set_serial_number(serial.to_asn1_integer()?.as_ref())?;
    builder.set_subject_name(&name)?;
    builder.set_pubkey(key)?;
    // A clock that is a little behind shall not matter.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = i64::try_from(now.unwrap_or_default().as_secs()).unwrap_or(0);
    builder.set_not_before(Asn1Time::from_unix(now - 3600)?.as_ref())?;
    builder.set_not_after(Asn1Time::days_from_now(days)?.as_ref())?;
    Ok((name, builder))
}
