//! Says in one sentence why a session was refused or lost, and what to do. What the peer said stands in
//! brackets at the end, for whoever needs it.

use aiot_tunnel_proto::frame::{reason, release, response};

use super::SessionError;

/// What went wrong, for programs that react to it: by an exit status, for example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The tunnel service cannot be reached, or something else answers at its address.
    Unreachable,
    /// The certificate of the tunnel service is not trusted, or TLS fails otherwise.
    Untrusted,
    /// The proxy cannot be reached, or refuses.
    Proxy,
    /// The token is wrong, or no longer valid.
    TokenRefused,
    /// The tunnel has expired.
    Expired,
    /// The tunnel service does not know the tunnel.
    UnknownTunnel,
    /// The tunnel service cannot serve now: HTTP 5xx.
    Unavailable,
    /// The device is not connected to the tunnel service.
    DeviceOffline,
    /// The device has no such service.
    NoService,
    /// The device has the service, and cannot connect to it.
    ServiceUnreachable,
    /// The tunnel has as many sessions as it may have.
    SessionLimit,
    /// The device did not answer.
    NoAnswer,
    /// The session was refused for another reason.
    Refused,
    /// The session or the connection was cut.
    Cut,
    /// The session was cut because the device lost its connection.
    DeviceLost,
    /// The session was cut because the tunnel service is being updated.
    Updated,
    /// Something on this machine failed: a stream, a port, a system call.
    Local,
}

/// The release code of a cloud that is being updated.
const CLOUD_UPDATE: i64 = 4;

/// Why a session was refused or lost.
pub(super) fn of_session(error: &SessionError) -> (Cause, String) {
    match error {
        SessionError::Refused { code, msg } => of_refusal(*code, unquoted(msg)),
        SessionError::Released { code, msg } => of_release(*code, unquoted(msg)),
    }
}

/// The text of a peer, whose special characters stay escaped.
fn unquoted(msg: &str) -> &str {
    msg.strip_prefix('"').and_then(|msg| msg.strip_suffix('"')).unwrap_or(msg)
}

fn of_refusal(code: i64, msg: &str) -> (Cause, String) {
    if code == i64::from(response::SESSION_LIMIT) {
        let text =
            "the tunnel has as many sessions as it may have; end one of them, or try again later";
        return (Cause::SessionLimit, text.to_owned());
    }
    if let Some(since) = msg.strip_prefix(response::NOT_CONNECTED) {
        let text = format!(
            "the device is not connected to the tunnel service{since}; check its power, its network \
             and its agent, then try again"
        );
        return (Cause::DeviceOffline, text);
    }
    if msg == "the device was not connected in time" {
        let text =
            "the device did not connect to the tunnel service in time; check its power, its \
                    network and its agent";
        return (Cause::DeviceOffline, text.to_owned());
    }
    if let Some((name, offered)) = no_service(msg) {
        let text = match offered {
            Some(offered) => format!(
                "the device has no service {name}, only {offered}; choose one of them (--service)"
            ),
            None => format!(
                "the device has no service {name}; ask for one that it has (--service), or add it \
                 to the device's agent"
            ),
        };
        return (Cause::NoService, text);
    }
    if msg.starts_with("connect to ") {
        let text = "the device cannot connect to its service; check that the service runs there";
        return (Cause::ServiceUnreachable, text.to_owned());
    }
    if msg.starts_with("timeout: ") || msg.starts_with("no response within ") {
        let text =
            "the device did not answer in time; check its network, and the name of the service: \
                    devices with the vendor's SDK do not answer if they do not have it";
        return (Cause::NoAnswer, text.to_owned());
    }
    if msg == "the device's connection is lost" {
        return (Cause::DeviceLost, DEVICE_LOST.to_owned());
    }
    let text = "the device or the tunnel service refuses the session; see its words, and its log";
    (Cause::Refused, text.to_owned())
}

const DEVICE_LOST: &str = "the device lost its connection to the tunnel service; wait until it is \
                           back, then try again";

/// The name and the list of `no service NAME here[; it offers LIST]`, as devices of this project say.
fn no_service(msg: &str) -> Option<(&str, Option<&str>)> {
    let (name, rest) = msg.strip_prefix("no service ")?.split_once(" here")?;
    Some((name, rest.strip_prefix(response::OFFERS)))
}

fn of_release(code: i64, msg: &str) -> (Cause, String) {
    let (cause, text) = match code {
        CLOUD_UPDATE => (
            Cause::Updated,
            "the tunnel service is being updated and has cut the session; try again in a few seconds",
        ),
        code if code == i64::from(release::DEVICE_LOST) => (Cause::DeviceLost, DEVICE_LOST),
        _ if msg == reason::TUNNEL_CLOSED => (
            Cause::DeviceLost,
            "the device has closed or changed the tunnel and has cut the session; try again",
        ),
        _ if msg.starts_with("service ") => (
            Cause::Cut,
            "the connection to the service broke at the device; check the service there",
        ),
        _ => (Cause::Cut, "the session was cut before its end, and bytes may be missing; try again"),
    };
    (cause, text.to_owned())
}

/// Why bytes were lost on this side.
pub(super) fn of_loss(why: &str) -> Cause {
    let is_local = why.starts_with(reason::LOCAL_CONNECTION)
        || [reason::STOPPED, reason::PROGRAM_STALLED].contains(&why);
    if is_local {
        Cause::Local
    } else {
        Cause::Cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_and_loss_has_a_sentence_with_a_cure() {
        let refused = |code, msg: &str| SessionError::Refused { code, msg: format!("{msg:?}") };
        let released = |code, msg: &str| SessionError::Released { code, msg: format!("{msg:?}") };
        for (error, cause, parts) in [
            (refused(1, "ten are enough"), Cause::SessionLimit, &["end one"][..]),
            (refused(2, response::NOT_CONNECTED), Cause::DeviceOffline, &["power"]),
            (
                refused(2, "the device is not connected (for 5 min)"),
                Cause::DeviceOffline,
                &["service (for 5 min); check"],
            ),
            (refused(2, "no service web here"), Cause::NoService, &["no service web; ask"]),
            (
                refused(2, "no service web here; it offers _SSH, log"),
                Cause::NoService,
                &["no service web, only _SSH, log; choose", "--service"],
            ),
            (
                refused(2, "connect to 127.0.0.1:22 (service _SSH): refused"),
                Cause::ServiceUnreachable,
                &["runs"],
            ),
            (refused(2, "timeout: the device did not answer"), Cause::NoAnswer, &["SDK"]),
            (refused(2, "no"), Cause::Refused, &["log"]),
            (refused(101_671, ""), Cause::Refused, &["log"]),
            (released(1, "service _SSH: reset"), Cause::Cut, &["check the service"]),
            (released(1, "the tunnel is closed"), Cause::DeviceLost, &["try again"]),
            (released(2, "x"), Cause::Cut, &["try again"]),
            (released(3, "x"), Cause::DeviceLost, &["try again"]),
            (released(4, "x"), Cause::Updated, &["updated", "try again"]),
        ] {
            let (is, text) = of_session(&error);
            assert_eq!(is, cause, "{error:?}");
            for part in parts {
                assert!(text.contains(part), "no {part:?} in {text}");
            }
        }
    }
}
