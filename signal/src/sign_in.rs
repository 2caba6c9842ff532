//! How a client signs in to the broker.

use std::fmt;

use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::Device;

/// The time stamp of the platform's own SDK, in milliseconds. The platform only compares it with the
/// signature, and a device may have no clock. A constant one also keeps the client id constant, and
/// with it the session at the broker.
const TIMESTAMP: &str = "2524608000000";

/// Client id, user name and password of an MQTT connection. `Debug` hides the password.
#[derive(Clone)]
pub struct Credentials {
    client_id: String,
    username: Option<String>,
    password: Option<Zeroizing<String>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| ".."))
            .finish()
    }
}

impl Credentials {
    /// A client id alone, for brokers that identify a client in another way or not at all.
    ///
    /// The client id must be this client's own and constant: the broker keeps messages under it while
    /// the device is away, and ends the older of two connections with the same id.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty or very long client id.
    pub fn anonymous(client_id: &str) -> Result<Self> {
        check("client id", client_id)?;
        Ok(Credentials { client_id: client_id.to_owned(), username: None, password: None })
    }

    /// User name and password.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a field that is empty or very long.
    pub fn password(client_id: &str, username: &str, password: &str) -> Result<Self> {
        check("user name", username)?;
        check("password", password)?;
        let mut credentials = Credentials::anonymous(client_id)?;
        credentials.username = Some(username.to_owned());
        credentials.password = Some(Zeroizing::new(password.to_owned()));
        Ok(credentials)
    }

    /// The sign-in of Alibaba Cloud IoT with the DeviceSecret, by HMAC-SHA256. `tls`: whether the
    /// connection uses TLS, which is a part of the client id.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty secret.
    pub fn from_device_secret(device: &Device, secret: &str, tls: bool) -> Result<Self> {
        check("device secret", secret)?;
        let id = format!("{}.{}", device.product_key(), device.device_name());
        let mode = if tls { "2" } else { "3" };
        let client_id =
            format!("{id}|securemode={mode},signmethod=hmacsha256,timestamp={TIMESTAMP}|");
        let username = format!("{}&{}", device.device_name(), device.product_key());
        let content = content(&id, device, TIMESTAMP);
        let password = Zeroizing::new(hmac(MessageDigest::sha256(), secret, &content)?);
        Ok(Credentials { client_id, username: Some(username), password: Some(password) })
    }

    /// The MQTT client id.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The MQTT user name, if there is one.
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// The MQTT password. Do not print, log or store it.
    pub fn expose_password(&self) -> Option<&str> {
        self.password.as_ref().map(|password| password.as_str())
    }
}

/// A field of the CONNECT packet has at most 65535 bytes; nothing needs as many.
fn check(field: &'static str, text: &str) -> Result<()> {
    match text.len() {
        0 => Err(Error::invalid(field, "must not be empty")),
        1..=1024 if !text.contains('\0') => Ok(()),
        1..=1024 => Err(Error::invalid(field, "has a NUL byte")),
        _ => Err(Error::invalid(field, "has more than 1024 bytes")),
    }
}

/// What is signed: the names of the parameters in alphabetical order, each with its value.
fn content(id: &str, device: &Device, timestamp: &str) -> String {
    let (name, key) = (device.device_name(), device.product_key());
    format!("clientId{id}deviceName{name}productKey{key}timestamp{timestamp}")
}

/// The signature in hexadecimal digits.
fn hmac(digest: MessageDigest, secret: &str, content: &str) -> Result<String> {
    let sign = || {
        let key = PKey::hmac(secret.as_bytes())?;
        Signer::new(digest, &key)?.sign_oneshot_to_vec(content.as_bytes())
    };
    let signature = sign().map_err(|e| Error::invalid("device secret", e.to_string()))?;
    Ok(signature.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device::new("pk", "device").unwrap()
    }

    /// The example of the platform's documentation, "Establish MQTT connections over TCP": client id
    /// 12345, device name `device`, product key `pk`, time stamp 789, secret `secret`.
    #[test]
    fn the_signature_is_that_of_the_platforms_documentation() {
        let content = content("12345", &device(), "789");
        assert_eq!(content, "clientId12345deviceNamedeviceproductKeypktimestamp789");
        // The documentation has the result for SHA-1.
        let sign = |digest| hmac(digest, "secret", &content).unwrap();
        assert_eq!(sign(MessageDigest::sha1()), "fafd82a3d602b37fb0fa8b7892f24a477f851a14");
        // printf CONTENT | openssl dgst -sha256 -hmac secret
        assert_eq!(sign(MessageDigest::sha256()), SHA256);
    }

    const SHA256: &str = "6074a46a91b1ebb2cc4ea42790ad0e80202c9843859fc292e57c4eb19fad9e57";

    #[test]
    fn the_sign_in_has_the_platforms_form_and_does_not_depend_on_the_clock() {
        let signed = Credentials::from_device_secret(&device(), "secret", true).unwrap();
        assert_eq!(
            signed.client_id(),
            "pk.device|securemode=2,signmethod=hmacsha256,timestamp=2524608000000|"
        );
        assert_eq!(signed.username(), Some("device&pk"));
        // clientIdpk.devicedeviceNamedeviceproductKeypktimestamp2524608000000, signed as above.
        assert_eq!(
            signed.expose_password(),
            Some("2eab47d05ec94fab1a34e7e9f54aebd34a1e15770f932e05300193007e0091e9")
        );
        let plain = Credentials::from_device_secret(&device(), "secret", false).unwrap();
        assert!(plain.client_id().contains("securemode=3,"));
        assert!(!format!("{signed:?}").contains(signed.expose_password().unwrap()));
    }

    #[test]
    fn an_empty_field_is_refused() {
        assert!(Credentials::anonymous("").is_err());
        assert!(Credentials::password("c", "", "p").is_err());
        assert!(Credentials::password("c", "u", "").is_err());
        assert!(Credentials::from_device_secret(&device(), "", true).is_err());
    }
}
