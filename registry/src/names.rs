//! Ids of tunnels, times, and the URLs under which clients reach the gateway.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aiot_tunnel::gateway::TunnelConfig;
use aiot_tunnel::{Token, TunnelId};

use crate::{Error, Result};

/// A time that is further away is a mistake, and clocks do not reach it: 100 years, in seconds.
pub const MAX_EXPIRE: u64 = 100 * 365 * 24 * 60 * 60;

/// An id that a tunnel of the gateway may have.
pub(crate) fn id(text: &str) -> Result<TunnelId> {
    let invalid = |e: aiot_tunnel::Error| Error::Invalid(e.to_string());
    let id = TunnelId::new(text).map_err(invalid)?;
    // The tokens do not matter here.
    let token = |text| Token::new(text).map_err(invalid);
    TunnelConfig::new(id.clone(), token("d")?, token("a")?).check_id().map_err(invalid)?;
    Ok(id)
}

/// An id that nobody has used.
pub(crate) fn new_id() -> String {
    let bytes: [u8; 10] = rand::random();
    format!("t-{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

/// So many seconds from now, in whole milliseconds.
pub(crate) fn from_now(seconds: u64) -> SystemTime {
    let now = SystemTime::now();
    let then = now.checked_add(Duration::from_secs(seconds.min(MAX_EXPIRE))).unwrap_or(now);
    of_millis(to_millis(then))
}

/// Milliseconds since 1970, as the store keeps a time. The next whole one, so that it is never earlier.
pub(crate) fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let rest = u128::from(!since.subsec_nanos().is_multiple_of(1_000_000));
    i64::try_from(since.as_millis() + rest).unwrap_or(i64::MAX)
}

pub(crate) fn of_millis(millis: i64) -> SystemTime {
    let since = Duration::from_millis(millis.max(0).unsigned_abs());
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

/// The beginning of the URLs of a gateway: `wss://HOST[:PORT]` or `ws://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// Of a gateway that is reached at the address that it listens on.
    pub(crate) fn of_address(scheme: &str, address: SocketAddr) -> Self {
        PublicUrl(format!("{scheme}://{address}"))
    }

    /// Whether it is `wss`, the host without brackets, and the port.
    ///
    /// # Errors
    /// The port is none.
    pub(crate) fn parts(&self) -> Result<(bool, &str, u16)> {
        let wrong = || Error::Invalid(format!("{self}: the port is not one from 1 to 65535"));
        let (scheme, authority) = self.0.split_once("://").ok_or_else(wrong)?;
        let is_secure = scheme == "wss";
        let after_address = authority.rfind(']').unwrap_or(0);
        let (host, port) = match authority[after_address..].find(':') {
            Some(colon) => {
                let (host, port) = authority.split_at(after_address + colon);
                let port = port[1..].parse().ok().filter(|port| *port != 0);
                (host, port.ok_or_else(wrong)?)
            }
            None => (authority, if is_secure { 443 } else { 80 }),
        };
        Ok((is_secure, host.trim_start_matches('[').trim_end_matches(']'), port))
    }

    /// The URL of a tunnel's end; `end` is `dest` or `source`.
    pub fn of(&self, id: &TunnelId, end: &str) -> String {
        format!("{}/tunnel/{id}/{end}", self.0)
    }
}

impl FromStr for PublicUrl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let host = text.strip_prefix("wss://").or_else(|| text.strip_prefix("ws://"));
        let is_host = |host: &str| {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@\"\\".contains(&b))
        };
        match host {
            Some(host) if is_host(host) => {
                let url = PublicUrl(text.to_owned());
                url.parts().map_err(|e| e.to_string())?;
                Ok(url)
            }
            _ => Err("not a URL such as wss://gw.example:8443, without a path".to_owned()),
        }
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_part_of_a_path() {
        for good in ["t1", "a.b", "%41", "x=y"] {
            assert!(id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a?b", "a#b", "a b", "é", "\n", &"x".repeat(5000)] {
            assert!(id(bad).is_err(), "{bad}");
        }
        assert!(id(&new_id()).is_ok());
        assert_ne!(new_id(), new_id());
    }

    #[test]
    fn a_public_url_is_a_scheme_and_a_host() {
        let url: PublicUrl = "wss://gw.example:8443/".parse().unwrap();
        assert_eq!(url.of(&id("t1").unwrap(), "dest"), "wss://gw.example:8443/tunnel/t1/dest");
        for bad in ["", "gw.example", "https://h", "wss://", "wss://h/p", "ws://u@h", "ws://h?q"] {
            assert!(bad.parse::<PublicUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_public_url_has_a_host_and_a_port() {
        for (text, parts) in [
            ("wss://gw.example", (true, "gw.example", 443)),
            ("ws://gw.example", (false, "gw.example", 80)),
            ("wss://gw.example:8443", (true, "gw.example", 8443)),
            ("ws://[::1]:5", (false, "::1", 5)),
            ("ws://[::1]", (false, "::1", 80)),
        ] {
            assert_eq!(text.parse::<PublicUrl>().unwrap().parts().unwrap(), parts);
        }
        for bad in ["wss://h:", "wss://h:0", "wss://h:65536", "ws://h:x"] {
            assert!(bad.parse::<PublicUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_time_survives_the_store() {
        let time = from_now(3600);
        assert_eq!(of_millis(to_millis(time)), time);
        let now = SystemTime::now();
        let kept = of_millis(to_millis(now));
        assert!(kept >= now && kept <= now + Duration::from_millis(1));
        assert_eq!(of_millis(-1), UNIX_EPOCH);
        let far = from_now(u64::MAX);
        assert!(of_millis(to_millis(far)) == far);
    }
}
