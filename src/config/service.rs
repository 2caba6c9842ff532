//! Local services, and where each is reached.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::text::{check_host, check_name, unbracketed};
use super::Port;
use crate::error::{Error, Result};

/// Longest path of a Unix socket, in bytes: `sun_path` holds 107 and a NUL.
const MAX_UNIX_PATH: usize = 107;
/// What a Unix socket's path stands behind in text.
const UNIX: &str = "unix:";

/// A local service that the device offers under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    service_type: String,
    target: Target,
}

impl Service {
    /// A service that listens on TCP.
    ///
    /// - `service_type`: the name that a session asks for, such as `_SSH`. It has 1 to 127 bytes
    ///   and no control characters. (The platform documents at most 16 of `[A-Za-z_.-]`; its C
    ///   callers pass up to 127.)
    /// - `host`: where the service listens, usually `127.0.0.1`; see [`Target::tcp`].
    ///
    /// # Errors
    /// [`Error::InvalidInput`], which names the field.
    pub fn new(service_type: &str, host: &str, port: Port) -> Result<Self> {
        Service::at(service_type, Target::tcp(host, port)?)
    }

    /// A service that listens on a Unix stream socket. `service_type` is as in
    /// [`new`](Service::new), `path` as in [`Target::unix`].
    ///
    /// # Errors
    /// [`Error::InvalidInput`], which names the field.
    pub fn unix(service_type: &str, path: impl AsRef<Path>) -> Result<Self> {
        Service::at(service_type, Target::unix(path)?)
    }

    /// A service at any [`Target`]. `service_type` is as in [`new`](Service::new).
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for the service type.
    pub fn at(service_type: &str, target: Target) -> Result<Self> {
        check_name("service type", service_type)?;
        Ok(Service { service_type: service_type.to_owned(), target })
    }

    /// The name under which the service is offered.
    pub fn service_type(&self) -> &str {
        &self.service_type
    }

    /// Where the service listens.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

/// Where a local service listens.
///
/// As text, it is `HOST:PORT`, `[IPV6]:PORT`, or `unix:` before an absolute path:
///
/// ```
/// use aiot_tunnel::Target;
///
/// let target: Target = "unix:/run/app.sock".parse()?;
/// assert_eq!(target, Target::unix("/run/app.sock")?);
/// assert_eq!("[::1]:22".parse::<Target>()?.to_string(), "[::1]:22");
/// # Ok::<(), aiot_tunnel::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// A TCP socket. Made by [`Target::tcp`].
    #[non_exhaustive]
    Tcp {
        /// A name, an IPv4 address, or an IPv6 address without brackets.
        host: String,
        /// The port.
        port: Port,
    },
    /// A Unix stream socket at an absolute path. Made by [`Target::unix`].
    #[non_exhaustive]
    Unix(PathBuf),
}

impl Target {
    /// A TCP socket. `host` has 1 to 253 bytes of visible ASCII: a name, an IPv4 address, or an
    /// IPv6 address with or without brackets. A name is looked up for each session.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for the host.
    pub fn tcp(host: &str, port: Port) -> Result<Self> {
        let host = unbracketed(host);
        check_host(host)?;
        Ok(Target::Tcp { host: host.to_owned(), port })
    }

    /// A Unix stream socket. `path` is absolute, has at most 107 bytes (the kernel's limit), and
    /// holds no control character. The socket need not exist yet.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for the path.
    pub fn unix(path: impl AsRef<Path>) -> Result<Self> {
        const FIELD: &str = "Unix socket path";
        let path = path.as_ref();
        let bytes = path.as_os_str().as_bytes();
        if !path.is_absolute() {
            return Err(Error::invalid(FIELD, "not an absolute path"));
        }
        if bytes.len() > MAX_UNIX_PATH {
            let length = bytes.len();
            return Err(Error::invalid(
                FIELD,
                format!("has {length} bytes; {MAX_UNIX_PATH} are allowed"),
            ));
        }
        if bytes.iter().any(u8::is_ascii_control) {
            return Err(Error::invalid(FIELD, "holds a control character"));
        }
        Ok(Target::Unix(path.to_owned()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Target::Tcp { host, port } => write!(f, "{host}:{port}"),
            Target::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix(UNIX) {
            // A host may be called "unix"; a port does not begin with a slash.
            Some(path) if path.starts_with('/') => return Target::unix(path),
            _ => {}
        }
        let forms = "neither HOST:PORT nor [IPV6]:PORT nor unix:/ABSOLUTE/PATH";
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| Error::invalid("service address", forms))?;
        Target::tcp(host, port.parse()?)
    }
}

/// The services on offer, one of each type. They are few, so a list is searched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Services(Vec<Service>);

impl Services {
    pub(crate) fn get(&self, service_type: &str) -> Option<&Service> {
        self.0.iter().find(|service| service.service_type == service_type)
    }

    /// The types of all services.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|service| service.service_type.clone()).collect()
    }

    /// Offers a service in place of one of the same type.
    pub(crate) fn put(&mut self, service: Service) {
        let same = self.0.iter_mut().find(|other| other.service_type == service.service_type);
        match same {
            Some(other) => *other = service,
            None => self.0.push(service),
        }
    }

    /// No longer offers the service of this type. Returns whether there was one.
    pub(crate) fn remove(&mut self, service_type: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|service| service.service_type != service_type);
        self.0.len() < before
    }
}

impl FromIterator<Service> for Services {
    fn from_iter<I: IntoIterator<Item = Service>>(services: I) -> Self {
        let mut all = Services::default();
        services.into_iter().for_each(|service| all.put(service));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(n: u16) -> Port {
        Port::new(n).unwrap()
    }

    #[test]
    fn a_service_type_is_a_name_as_a_tunnel_id_is() {
        for bad in ["", "a\nb", "\0", &"x".repeat(128)] {
            assert!(crate::config::TunnelId::new(bad).is_err(), "{bad:?}");
            assert!(Service::new(bad, "127.0.0.1", port(1)).is_err());
            assert!(Service::unix(bad, "/run/s").is_err());
        }
        assert!(crate::config::TunnelId::new(&"x".repeat(127)).is_ok());
        assert!(Service::new(&"x".repeat(127), "127.0.0.1", port(1)).is_ok());
    }

    #[test]
    fn a_target_is_read_back_from_its_text() {
        for (text, target) in [
            ("127.0.0.1:22", Target::tcp("127.0.0.1", port(22))),
            ("box.local:8080", Target::tcp("box.local", port(8080))),
            ("[::1]:22", Target::tcp("::1", port(22))),
            ("unix:/run/app.sock", Target::unix("/run/app.sock")),
            ("unix:/run/a b:22", Target::unix("/run/a b:22")),
            // A host of that name, as it was before there were Unix sockets.
            ("unix:22", Target::tcp("unix", port(22))),
        ] {
            let target = target.unwrap();
            assert_eq!(text.parse::<Target>().unwrap(), target);
            assert_eq!(target.to_string(), text);
        }
        // Without brackets, the last colon stands before the port.
        assert_eq!("::1:22".parse::<Target>().unwrap(), Target::tcp("::1", port(22)).unwrap());
    }

    #[test]
    fn an_address_that_is_none_is_refused_with_the_reason() {
        for (bad, reason) in [
            ("", "HOST:PORT"),
            ("localhost", "HOST:PORT"),
            ("unix:", "port"),
            ("unix:run/app.sock", "port"),
            ("localhost:", "port"),
            ("localhost:0", "port"),
            (":22", "host"),
            ("a b:22", "host"),
            ("unix:/run/\n", "control"),
        ] {
            let error = bad.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(reason), "{bad:?}: {error}");
        }
        assert!(Target::unix("run/app.sock").is_err());
        assert!(Target::unix("").is_err());
        assert!(Target::unix(format!("/{}", "x".repeat(106))).is_ok());
        assert!(Target::unix(format!("/{}", "x".repeat(107))).is_err());
    }
}
