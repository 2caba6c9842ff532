//! Where a Redis server is, as a URL.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

const PORT: u16 = 6379;
/// Longest part of an address, in bytes.
const MAX_PART: usize = 1024;

/// The address of a Redis server, and how to sign in there: `redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]`,
/// `rediss://` for TLS, or `unix://PATH[?db=DB]`. As text it has no password.
#[derive(Clone)]
pub struct RedisAddress {
    pub(crate) server: Place,
    pub(crate) database: i64,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Zeroizing<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl RedisAddress {
    /// Reads a URL. `None`: the text is none, but a file's name.
    ///
    /// # Errors
    /// What is wrong with it. The text is not quoted: it may hold a password.
    #[must_use]
    pub fn read(text: &str) -> Option<Result<Self, String>> {
        let (scheme, rest) = text.split_once("://")?;
        Some(match scheme {
            "redis" => of_tcp(rest, false),
            "rediss" => of_tcp(rest, true),
            "unix" | "redis+unix" => of_unix(rest),
            _ => {
                Err("not a kind of store: a file, redis://, rediss:// or unix:// is expected"
                    .into())
            }
        })
    }

    /// Whether the URL has a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether the connection uses TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.server, Place::Tcp { tls: true, .. })
    }

    /// The host, if it is reached by TCP without TLS.
    #[must_use]
    pub fn plain_host(&self) -> Option<&str> {
        match &self.server {
            Place::Tcp { host, tls: false, .. } => Some(host),
            _ => None,
        }
    }
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Place::Tcp { host, port, tls } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                match host.contains(':') {
                    true => write!(f, "{scheme}://[{host}]:{port}/{}", self.database),
                    false => write!(f, "{scheme}://{host}:{port}/{}", self.database),
                }
            }
            Place::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisAddress({self})")
    }
}

fn of_tcp(rest: &str, tls: bool) -> Result<RedisAddress, String> {
    let form = || {
        "not of the form redis://[USER[:PASSWORD]@]HOST[:PORT][/DB]; in user and password, \
                   write @ : / ? # and % as %40 %3A %2F %3F %23 and %25"
            .to_owned()
    };
    let (authority, database) = match rest.split_once('/') {
        Some((authority, database)) => (authority, database),
        None => (rest, ""),
    };
    let (user, password, address) = match authority.rsplit_once('@') {
        Some((who, address)) => {
            let (user, password) = match who.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (who, None),
            };
            (decoded(user)?, password.map(decoded).transpose()?, address)
        }
        None => (Zeroizing::new(String::new()), None, authority),
    };
    let after_address = address.rfind(']').unwrap_or(0);
    let (host, port) = match address[after_address..].find(':') {
        Some(colon) => {
            let (host, port) = address.split_at(after_address + colon);
            (host, port[1..].parse().ok().filter(|port| *port != 0).ok_or_else(form)?)
        }
        None => (address, PORT),
    };
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').filter(|ip| ip.contains(':')).ok_or_else(form)?,
        None => host,
    };
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if host.is_empty() || host.len() > 253 || !host.chars().all(is_allowed) {
        return Err(form());
    }
    let database = if database.is_empty() { 0 } else { number(database).ok_or_else(form)? };
    Ok(RedisAddress {
        server: Place::Tcp { host: host.to_owned(), port, tls },
        database,
        user: (!user.is_empty()).then(|| user.to_string()),
        password: password.filter(|password| !password.is_empty()),
    })
}

fn of_unix(rest: &str) -> Result<RedisAddress, String> {
    let form = || "not of the form unix:///PATH[?db=DB]".to_owned();
    let (path, database) = match rest.split_once('?') {
        Some((path, query)) => (path, query.strip_prefix("db=").and_then(number).ok_or_else(form)?),
        None => (rest, 0),
    };
    if !path.starts_with('/') || path.contains('\0') {
        return Err(form());
    }
    let server = Place::Unix(path.into());
    Ok(RedisAddress { server, database, user: None, password: None })
}

fn number(text: &str) -> Option<i64> {
    text.parse::<u32>().ok().map(i64::from)
}

/// A part without its percent signs.
fn decoded(part: &str) -> Result<Zeroizing<String>, String> {
    let wrong = || "user or password: after a % two hexadecimal digits are expected".to_owned();
    let mut bytes = Zeroizing::new(Vec::with_capacity(part.len()));
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let high = digit(rest.next()).ok_or_else(wrong)?;
                let low = digit(rest.next()).ok_or_else(wrong)?;
                (16 * high + low) as u8
            }
            byte => byte,
        };
        bytes.push(byte);
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) if text.len() <= MAX_PART => Ok(Zeroizing::new(text.to_owned())),
        Ok(_) => Err(format!("user or password: more than {MAX_PART} bytes")),
        Err(_) => Err("user or password: not UTF-8 text".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RedisAddress, String> {
        RedisAddress::read(text).unwrap()
    }

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (text, shown, user, password) in [
            ("redis://h", "redis://h:6379/0", None, None),
            ("rediss://h.example:1/7", "rediss://h.example:1/7", None, None),
            ("redis://[::1]:5/", "redis://[::1]:5/0", None, None),
            ("redis://u@h", "redis://h:6379/0", Some("u"), None),
            ("redis://:hush-p@h", "redis://h:6379/0", None, Some("hush-p")),
            ("redis://u:hush%40p%2f:@h:1/2", "redis://h:1/2", Some("u"), Some("hush@p/:")),
            ("unix:///run/redis.sock", "unix:///run/redis.sock", None, None),
            ("redis+unix:///run/redis.sock?db=3", "unix:///run/redis.sock", None, None),
        ] {
            let address = read(text).unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.user.as_deref(), user);
            assert_eq!(address.password.as_ref().map(|p| p.as_str()), password);
            assert!(!format!("{address} {address:?}").contains("hush"));
        }
        assert_eq!(read("unix:///s?db=3").unwrap().database, 3);
        for file in ["tunnels.db", "/var/lib/x.db", "redis", "redis:/x", ""] {
            assert!(RedisAddress::read(file).is_none(), "{file}");
        }
    }

    #[test]
    fn a_wrong_address_is_not_quoted() {
        for bad in [
            "redis://",
            "redis://u:hush-p@",
            "redis://u:hush-p@h:0",
            "redis://u:hush-p@h:x",
            "redis://u:hush-p@h:1/x",
            "redis://u:hush-p@h:1/-1",
            "redis://u:hush/p@h",
            "redis://u:hush%zz@h",
            "redis://u:hush%ff@h",
            "rediss://u:hush-p@h#insecure",
            "rediss://u:hush-p@h/0#insecure",
            "redis://u:hush-p@h?x",
            "redis://[h]",
            "redis://u:hush-p@a b",
            "unix://relative",
            "unix:///s?x=hush",
            "http://u:hush-p@h",
        ] {
            let why = read(bad).expect_err(bad);
            assert!(!why.contains("hush"), "{bad}: {why}");
        }
    }
}
