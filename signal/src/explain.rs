//! Says in plain words why a connection to the broker has failed, and what to check. The text of the
//! system stands in brackets. No text quotes a packet: it may hold a token.

use std::io;
use std::time::Duration;

use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{ConnectReturnCode, ConnectionError, StateError, TlsError};

use crate::text::printable;

/// OpenSSL's words, and ours.
const TLS: [(&str, &str); 10] = [
    ("self-signed certificate", UNTRUSTED),
    ("self signed certificate", UNTRUSTED),
    ("unable to get local issuer certificate", UNTRUSTED),
    ("unable to verify the first certificate", UNTRUSTED),
    (
        "certificate has expired",
        "its certificate has expired; renew it, or set this machine's clock",
    ),
    ("not yet valid", "its certificate is not valid yet; set this machine's clock"),
    ("mismatch", "its certificate is for another name; use the name that is in the certificate"),
    ("wrong version number", NO_TLS),
    ("packet length too long", NO_TLS),
    ("alert", "it refuses the TLS handshake; it may want a client certificate"),
];
const UNTRUSTED: &str =
    "its certificate comes from a CA that is not trusted here; name the right CA's \
                         certificate";
const NO_TLS: &str = "it does not speak TLS on this port; check the port, or use mqtt://";

/// Whether the broker has sent a packet that is too long for this client.
pub(crate) fn is_too_long(error: &ConnectionError) -> bool {
    use StateError::Deserialization;
    matches!(
        error,
        ConnectionError::MqttState(Deserialization(PacketError::PayloadSizeLimitExceeded(_)))
    )
}

/// `within`: the time for a connection.
pub(crate) fn explain(error: &ConnectionError, within: Duration) -> String {
    match error {
        ConnectionError::NetworkTimeout => {
            let seconds = within.as_secs().max(1);
            format!("it does not answer within {seconds} s; check the address and the network")
        }
        ConnectionError::FlushTimeout => "it takes no data any more".to_owned(),
        ConnectionError::Tls(TlsError::Io(e)) | ConnectionError::Io(e) => by_kind(e),
        ConnectionError::Tls(e) => tls(&e.to_string()),
        ConnectionError::ConnectionRefused(code) => refused(*code),
        // Its text would quote the packet.
        ConnectionError::NotConnAck(_) => "it does not speak MQTT 3.1.1".to_owned(),
        ConnectionError::RequestsDone => "the client was dropped".to_owned(),
        ConnectionError::MqttState(e) => state(e),
    }
}

fn by_kind(e: &io::Error) -> String {
    let why = match e.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nothing listens there; check the address, and whether the broker runs"
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "there is no way to it; check this machine's network"
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => "it closed the connection",
        _ if e.to_string().contains("failed to lookup") => {
            "the name is unknown; check it, and whether this machine's name server answers"
        }
        _ => "the connection failed",
    };
    with_raw(why, &e.to_string())
}

fn tls(raw: &str) -> String {
    let known = TLS.iter().find(|(words, _)| raw.contains(words));
    with_raw(known.map_or("the TLS handshake failed", |(_, why)| why), raw)
}

fn refused(code: ConnectReturnCode) -> String {
    let why = match code {
        ConnectReturnCode::BadUserNamePassword => {
            "it refuses the sign-in (code 4); check the product key, the device name and the secret, \
             or the user name and the password"
        }
        ConnectReturnCode::NotAuthorized => {
            "it refuses the sign-in (code 5); check the secret or the password, and whether the device \
             is enabled at the broker"
        }
        ConnectReturnCode::BadClientId => "it refuses the client id (code 2); check it",
        ConnectReturnCode::RefusedProtocolVersion => "it does not speak MQTT 3.1.1 (code 1)",
        ConnectReturnCode::ServiceUnavailable => "its service is not available (code 3)",
        ConnectReturnCode::Success => "it does not speak MQTT 3.1.1",
    };
    why.to_owned()
}

fn state(error: &StateError) -> String {
    match error {
        StateError::Io(e) => by_kind(e),
        StateError::ConnectionAborted => {
            "it closed the connection; if this goes on, check whether another client uses the same \
             client id"
                .to_owned()
        }
        StateError::AwaitPingResp => "it does not answer a ping".to_owned(),
        StateError::Deserialization(PacketError::Io(e)) => by_kind(e),
        StateError::Deserialization(_) => "it sent a packet that is not valid MQTT".to_owned(),
        _ => "it broke the rules of MQTT".to_owned(),
    }
}

fn with_raw(why: &str, raw: &str) -> String {
    format!("{why} [{}]", printable(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssls_words_are_explained() {
        let text = tls("certificate verify failed (unable to get local issuer certificate)");
        assert!(text.starts_with("its certificate comes from a CA"), "{text}");
        assert!(tls("wrong version number").contains("does not speak TLS"));
        assert!(tls("something new").starts_with("the TLS handshake failed [something new]"));
    }
}
