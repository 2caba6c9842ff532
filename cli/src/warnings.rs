//! Warnings at the start about settings that work and are not safe.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Read and write permission of users who are neither the owner nor in the group.
const OTHERS: u32 = 0o006;

static OPEN_FILES: AtomicBool = AtomicBool::new(false);

/// Whether there was a warning about a file that holds a secret.
pub(crate) fn has_open_files() -> bool {
    OPEN_FILES.load(Ordering::Relaxed)
}

/// Warns if every user of the machine may read or change a file that holds a secret.
pub(crate) fn about_secret_file(path: &Path) {
    let Ok(file) = fs::metadata(path) else { return };
    let mode = file.permissions().mode() & 0o777;
    // A device such as /dev/stdin is no file that holds something.
    if file.is_file() && mode & OTHERS != 0 {
        OPEN_FILES.store(true, Ordering::Relaxed);
        let path = path.display();
        log::warn!(
            "{path} holds a secret, and every user of this machine may read or change it (mode \
             {mode:04o}); run: chmod 600 {path}"
        );
    }
}

/// Warns about connections without TLS that leave this machine.
pub(crate) fn about_plain_text(host: &str, option: &str) {
    if !is_loopback(host) {
        log::warn!(
            "{option} without TLS: everybody on the way to or from {host} can read the tokens and \
             the sessions; use TLS, or an address of this machine such as 127.0.0.1"
        );
    }
}

/// Warns about a store that is reached without TLS over a network.
pub(crate) fn about_plain_store(host: &str) {
    if !is_loopback(host) {
        log::warn!(
            "--store without TLS: everybody on the way to {host} can read the password and change the \
             tunnels; use rediss://, or an address of this machine such as 127.0.0.1"
        );
    }
}

/// Warns that the API hands out URLs to which nobody can connect.
pub(crate) fn about_own_address(listen: SocketAddr, scheme: &str) {
    log::warn!(
        "--public-url is missing: the API tells devices and operators to connect to {listen}, which \
         is no machine's address; give the gateway's name: --public-url {scheme}://NAME:{}",
        listen.port()
    );
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn addresses_of_this_machine_are_known() {
        for host in ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.0.2.1", "gw.example", "localhost.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
