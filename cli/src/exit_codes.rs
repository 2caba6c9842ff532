//! The exit statuses of the program. They are stable: scripts rely on them.

use std::fmt;

use aiot_tunnel::access::Cause;

/// Anything that has no status of its own.
pub(crate) const FAILURE: u8 = 1;
/// The arguments or the settings are wrong. clap uses the same one.
pub(crate) const WRONG_ARGUMENTS: u8 = 2;
/// A local port cannot be opened.
pub(crate) const CANNOT_LISTEN: u8 = 19;
/// Other users may read or change a file that a profile relies on.
pub(crate) const OPEN_FILE: u8 = 20;

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
        Cause::Unreachable => 3,
        Cause::Untrusted => 4,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_and_document_have_the_same_table() {
        let document = include_str!("../../docs/access.md");
        for line in TABLE.lines().skip(1) {
            let (status, text) = line.trim_start().split_once("  ").unwrap();
            let row = format!("| {status} | {text} |");
            assert!(document.contains(&row), "docs/access.md lacks: {row}");
        }
    }
}
