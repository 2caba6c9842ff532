//! The exit statuses of the program. They are stable: scripts rely on them.

use std::fmt;
use std::io;

use aiot_tunnel::access::Cause;

/// Anything that has no status of its own.
pub(crate) const FAILURE: u8 = 1;
/// The arguments or the settings are wrong. clap uses the same one.
pub(crate) const WRONG_ARGUMENTS: u8 = 2;
/// The tunnel service, or its API, cannot be reached.
pub(crate) const UNREACHABLE: u8 = 3;
/// Its certificate is not trusted, or TLS fails otherwise.
pub(crate) const UNTRUSTED: u8 = 4;
/// A local port cannot be opened.
pub(crate) const CANNOT_LISTEN: u8 = 19;
/// Other users may read or change a file that a profile relies on.
pub(crate) const OPEN_FILE: u8 = 20;

/// The gateway's certificate or its key cannot be used.
pub(crate) const CERTIFICATE: u8 = 21;
/// The gateway's list of tunnels cannot be used.
pub(crate) const LIST: u8 = 22;
/// The gateway's store cannot be used.
pub(crate) const STORE: u8 = 23;

/// An error with an exit status of its own.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    text: String,
}

impl Failure {
    pub(crate) fn new(status: u8, text: impl fmt::Display) -> Self {
        Failure { status, text: text.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The failure to listen on an address.
pub(crate) fn cannot_listen(address: impl fmt::Display, e: &io::Error) -> Failure {
    let cure = match e.kind() {
        io::ErrorKind::AddrInUse => "another program uses the port: choose another one, or port 0",
        io::ErrorKind::PermissionDenied => "ports below 1024 are root's: choose a higher one",
        _ => "choose an address of this machine, such as 127.0.0.1:8080",
    };
    Failure::new(CANNOT_LISTEN, format_args!("cannot listen on {address}: {cure} [{e}]"))
}

/// The exit status after an error.
pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> u8 {
    if error.is::<crate::Usage>() {
        return WRONG_ARGUMENTS;
    }
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.status;
    }
    error.downcast_ref::<aiot_tunnel::access::Error>().map_or(FAILURE, |e| of_cause(e.cause()))
}

fn of_cause(cause: Cause) -> u8 {
    match cause {
        Cause::Unreachable => UNREACHABLE,
        Cause::Untrusted => UNTRUSTED,
        Cause::Proxy => 5,
        Cause::TokenRefused => 6,
        Cause::Expired => 7,
        Cause::UnknownTunnel => 8,
        Cause::Unavailable => 9,
        Cause::DeviceOffline => 10,
        Cause::NoService => 11,
        Cause::ServiceUnreachable => 12,
        Cause::SessionLimit => 13,
        Cause::NoAnswer => 14,
        Cause::Refused => 15,
        Cause::Cut => 16,
        Cause::DeviceLost => 17,
        Cause::Updated => 18,
        _ => FAILURE,
    }
}

/// The exit status after the API's answer with an HTTP status that is no success.
pub(crate) fn of_api_status(status: u16) -> u8 {
    match status {
        401 | 403 => of_cause(Cause::TokenRefused),
        404 => of_cause(Cause::UnknownTunnel),
        400..500 if status != 408 && status != 429 => of_cause(Cause::Refused),
        _ => of_cause(Cause::Unavailable),
    }
}

/// The table for `--help`. docs/access.md has the same one.
pub(crate) const TABLE: &str = "\
Exit status:
   0  success: the session has ended in order
   1  any other failure, for example standard output cannot be written
   2  the arguments, the environment or the configuration file are wrong
   3  the tunnel service cannot be reached
   4  its certificate is not trusted, or TLS fails otherwise
   5  the proxy cannot be reached, or refuses
   6  the token is refused
   7  the tunnel has expired, or its token was replaced
   8  the tunnel service does not know the tunnel
   9  the tunnel service cannot serve now, for example it has too many connections
  10  the device is not connected to the tunnel service
  11  the device has no such service
  12  the device cannot connect to the service
  13  the tunnel has as many sessions as it may have
  14  the device does not answer
  15  the session is refused for another reason
  16  the session or the connection was cut
  17  the session was cut because the device lost its connection
  18  the session was cut because the tunnel service is being updated
  19  a local port cannot be opened, for example it is in use
  20  other users may read a token file, or change the configuration file";

/// That of `gateway`. docs/gateway.md has the same one.
pub(crate) const GATEWAY_TABLE: &str = "\
Exit status:
   0  success: the gateway was told to end
   1  any other failure, for example no thread can be created
   2  the arguments, the environment or the file of settings are wrong
  19  a local port cannot be opened, for example it is in use
  20  with --check: other users may read or change a file that holds a secret
  21  the certificate or its key cannot be used
  22  the list of tunnels cannot be used
  23  the store cannot be used";

/// That of `tunnel`. docs/gateway.md has the same one.
pub(crate) const TUNNEL_TABLE: &str = "\
Exit status:
   0  success
   1  any other failure, for example the tokens cannot be written
   2  the arguments or the environment are wrong
   3  the gateway's API cannot be reached
   4  its certificate is not trusted, or TLS fails otherwise
   6  the API key is refused
   8  the gateway does not know the tunnel
   9  the gateway cannot serve now: its store is away, or too many wrong keys came from here
  15  the gateway refuses for another reason, for example there is such a tunnel already";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_documents_have_the_same_tables() {
        let of_gateway = include_str!("../../docs/gateway.md");
        for (table, name, document) in [
            (TABLE, "docs/access.md", include_str!("../../docs/access.md")),
            (GATEWAY_TABLE, "docs/gateway.md", of_gateway),
            (TUNNEL_TABLE, "docs/gateway.md", of_gateway),
        ] {
            for line in table.lines().skip(1) {
                let (status, text) = line.trim_start().split_once("  ").unwrap();
                let row = format!("| {status} | {text} |");
                assert!(document.contains(&row), "{name} lacks: {row}");
            }
        }
    }
}
