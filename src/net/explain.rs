//! Says in plain words why a connection could not be opened: where, why, and what to do. The text of
//! the system or of OpenSSL stands in brackets at the end, for whoever needs it.

use aiot_tunnel_proto::handshake::fault;

use super::clock::WrongClock;
use super::dial::ProxyError;
use super::open::Failure;
use super::WaitError;
use crate::config::{ConnectParams, Proxy};

/// OpenSSL's words for a certificate whose CA is not trusted.
const UNTRUSTED: [&str; 4] = [
    "self-signed certificate",
    "self signed certificate",
    "unable to get local issuer certificate",
    "unable to verify the first certificate",
];
/// OpenSSL's words for a certificate from the future.
const NOT_YET_VALID: &str = "certificate is not yet valid";
/// OpenSSL's words for an answer that is not TLS.
const NO_TLS: [&str; 5] = [
    "wrong version number",
    "packet length too long",
    "http request",
    "record layer failure",
    "unsupported protocol version number",
];

/// The same failure with a text for people.
pub(super) fn explained(
    failure: Failure,
    params: &ConnectParams,
    proxy: Option<&Proxy>,
) -> Failure {
    let server = match proxy {
        None => name_of(params),
        Some(proxy) => format!("{} (through the proxy {proxy})", name_of(params)),
    };
    let text = |why: String, raw: &str| format!("{why} [{raw}]");
    match failure {
        Failure::Lookup(raw) => Failure::Lookup(text(lookup(&server), &raw)),
        Failure::Connect(raw) => {
            Failure::Connect(text(connect(&server, &raw, "the tunnel service"), &raw))
        }
        Failure::TimedOut(raw) => Failure::TimedOut(text(timed_out(&server), &raw)),
        Failure::Proxy(text) => Failure::Proxy(text),
        Failure::Tls(raw) => Failure::Tls(text(tls(&server, &raw), &raw)),
        Failure::Answer(raw) => Failure::Answer(text(answer(&server, &raw), &raw)),
        Failure::Broken(raw) => Failure::Broken(text(broken(&server), &raw)),
        Failure::Status(status, raw) => {
            Failure::Status(status, text(by_status(&server, status, params.path()), &raw))
        }
    }
}

fn name_of(params: &ConnectParams) -> String {
    match params.host() {
        host if host.contains(':') => format!("[{host}]:{}", params.port()),
        host => format!("{host}:{}", params.port()),
    }
}

/// Why the proxy could not be reached, as a text for people.
pub(super) fn explained_proxy(failure: Failure, proxy: &Proxy) -> String {
    let proxy = format!("the proxy {proxy}");
    let raw = failure.to_string();
    let why = match failure {
        Failure::Lookup(_) => lookup(&proxy),
        Failure::TimedOut(_) => timed_out(&proxy),
        _ => connect(&proxy, &raw, "the proxy"),
    };
    format!("{why} [{raw}]")
}

/// Why the proxy did not connect to the server, as a text for people. Nothing that the proxy has sent
/// stands in it but a number.
pub(super) fn explained_refusal(
    error: ProxyError,
    proxy: &Proxy,
    params: &ConnectParams,
) -> String {
    let check = "check its address, and whether it is an HTTP or a SOCKS5 proxy";
    let server = name_of(params);
    let signs_in = proxy.credentials().is_some();
    let (does, object, advice, raw) = match error {
        ProxyError::Wait(WaitError::Io(e)) | ProxyError::Io(e) => {
            ("ended the connection in place of an answer", "", check, e.to_string())
        }
        ProxyError::Wait(_) => {
            let does = "accepts the connection and does not answer in time while it connects to ";
            (does, &*server, check, "timed out".to_owned())
        }
        ProxyError::Credentials(raw) if signs_in => {
            let does = "refuses the user name or the password";
            (does, "", "check both (--proxy-auth-file)", raw)
        }
        ProxyError::Credentials(raw) => {
            let does = "asks for a user name and a password";
            (does, "", "give them with the proxy (--proxy-auth-file)", raw)
        }
        ProxyError::Forbidden(raw) => {
            ("forbids the connection to ", &*server, "ask its operator to allow it", raw)
        }
        ProxyError::Unreachable(raw) => {
            let advice = "check that address, and the proxy's network and name server";
            ("cannot connect to ", &*server, advice, raw)
        }
        ProxyError::NoProxy(raw) => ("is no proxy that can be used", "", check, raw),
        ProxyError::Refused(raw) => {
            ("refuses the connection to ", &*server, "ask its operator", raw)
        }
    };
    format!("the proxy {proxy} {does}{object}; {advice} [{raw}]")
}

fn lookup(server: &str) -> String {
    format!(
        "cannot connect to {server}: the name is unknown; check it, and whether this machine's name \
         server answers"
    )
}

fn connect(server: &str, raw: &str, what: &str) -> String {
    let is = |code: i32| raw.contains(&format!("(os error {code})"));
    if is(libc::ECONNREFUSED) {
        return format!(
            "cannot connect to {server}: nothing listens there; check the address, and whether {what} \
             runs"
        );
    }
    if is(libc::ENETUNREACH) || is(libc::EHOSTUNREACH) {
        return format!(
            "cannot connect to {server}: there is no way to it; check this machine's network"
        );
    }
    format!("cannot connect to {server}; check the address and this machine's network")
}

fn timed_out(server: &str) -> String {
    format!(
        "cannot connect to {server}: it does not answer in time; check the address, the network, and \
         whether a firewall is in between"
    )
}

fn tls(server: &str, raw: &str) -> String {
    let says = |part: &str| raw.contains(part);
    if UNTRUSTED.iter().any(|part| says(part)) {
        return format!(
            "cannot trust {server}: its certificate comes from a CA that is not trusted here; name \
             the right CA's certificate (--ca)"
        );
    }
    if says("certificate has expired") {
        return format!(
            "cannot trust {server}: its certificate has expired; renew it, or set this machine's \
             clock"
        );
    }
    if says(NOT_YET_VALID) {
        if let Some(clock) = WrongClock::look() {
            return format!(
                "cannot trust {server}: this machine's clock is wrong ({}); set it, or accept this \
                 until it is set (--clock tolerant)",
                clock.text()
            );
        }
        return format!(
            "cannot trust {server}: its certificate is not valid yet; set this machine's clock"
        );
    }
    if says("hostname mismatch") || says("IP address mismatch") {
        return format!(
            "cannot trust {server}: its certificate is for another name; connect to the name that is \
             in the certificate"
        );
    }
    if says("certificate verify failed") {
        return format!("cannot trust {server}: its certificate cannot be verified");
    }
    if NO_TLS.iter().any(|part| says(part)) {
        return format!(
            "cannot connect to {server}: it does not speak TLS; check the port, or connect without \
             TLS (ws://, --plain)"
        );
    }
    format!("cannot connect to {server}: the TLS handshake failed")
}

fn answer(server: &str, raw: &str) -> String {
    if raw.contains(fault::TLS) {
        return format!(
            "cannot connect to {server}: it expects TLS; connect with TLS (wss://, no --plain)"
        );
    }
    if raw.contains(fault::TOO_LONG) {
        return format!(
            "cannot connect to {server}: the head of its answer is too long for a tunnel service; \
             check the address, and the headers that a proxy in between adds"
        );
    }
    format!(
        "cannot connect to {server}: what answers there is no tunnel service; check the address"
    )
}

fn broken(server: &str) -> String {
    format!(
        "cannot connect to {server}: it ended the connection in place of an answer; if it expects \
         TLS, connect with TLS (wss://, no --plain)"
    )
}

fn by_status(server: &str, status: u16, path: &str) -> String {
    match status {
        // Without its query: nobody knows what is in it.
        404 => {
            let path = path.split('?').next().unwrap_or_default();
            format!(
                "the gateway {server} does not know the tunnel ({path}); check the id, and whether \
                 the tunnel still exists"
            )
        }
        400 | 426 => format!(
            "{server} does not take the request for a WebSocket; a proxy in between must pass on the \
             headers Upgrade and Connection"
        ),
        403 => format!("{server} forbids the connection; ask its operator"),
        300..400 => format!(
            "{server} sends the client elsewhere, which is not followed; check the address"
        ),
        500..600 => format!(
            "{server} cannot serve the connection now: it has as many connections as it may have, or \
             the service behind a proxy is away; end one of yours, or try again later"
        ),
        _ => format!("{server} is no tunnel service; check the address and the path"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Port, Token};

    fn text(host: &str, failure: Failure) -> String {
        let token = Token::new("hush-token").unwrap();
        let port = Port::new(8443).unwrap();
        let path = "/tunnel/t1/source?secret=x";
        let params = ConnectParams::new(host, port, path, token).unwrap();
        explained(failure, &params, None).to_string()
    }

    #[test]
    fn every_failure_names_the_server_and_ends_with_the_original_text() {
        let raw = || "the original".to_owned();
        for failure in [
            Failure::Lookup(raw()),
            Failure::Connect(raw()),
            Failure::TimedOut(raw()),
            Failure::Tls(raw()),
            Failure::Answer(raw()),
            Failure::Broken(raw()),
            Failure::Status(404, raw()),
            Failure::Status(400, raw()),
            Failure::Status(302, raw()),
            Failure::Status(503, raw()),
            Failure::Status(200, raw()),
        ] {
            let what = format!("{failure:?}");
            let text = text("::1", failure);
            assert!(text.contains("[::1]:8443") && text.ends_with(" [the original]"), "{text}");
            assert!(!text.contains("secret") && text.lines().count() == 1, "{what}: {text}");
        }
    }

    #[test]
    fn the_causes_that_openssl_tells_apart_are_told_apart() {
        let tls = |raw: &str| text("gw.example", Failure::Tls(raw.into()));
        assert!(tls("certificate verify failed (self-signed certificate)").contains("--ca"));
        assert!(tls("unable to get local issuer certificate").contains("--ca"));
        assert!(tls("certificate verify failed (certificate has expired)").contains("renew"));
        assert!(tls("certificate verify failed (hostname mismatch)").contains("another name"));
        assert!(tls("SSL routines::wrong version number").contains("does not speak TLS"));
        assert!(tls("alert handshake failure").contains("the TLS handshake failed"));
    }
}
