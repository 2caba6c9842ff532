//! What the options name: files, tokens, URLs and services.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use aiot_tunnel::{process, Port, Service, TlsConfig, Token};
use log::LevelFilter;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::{warnings, Result, Usage};

/// The variable that holds the device's token when no file is named.
pub(crate) const DEVICE_TOKEN: &str = "AIOT_TUNNEL_DEVICE_TOKEN";
/// The variable that holds the operator's token when no file is named.
pub(crate) const ACCESS_TOKEN: &str = "AIOT_TUNNEL_ACCESS_TOKEN";

/// A longer time is a mistake, and clocks do not reach it.
const MAX_TIME: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// Longest file, in bytes. The list of the system's certificates has 200 KB.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// How long a pipe may take to deliver its content. A person at a terminal may take longer.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// What to do about a file without certificates.
pub(crate) const NO_CERTIFICATE: &str =
    "name the CA's certificate, a PEM file, such as the ca.pem of gen-cert";
/// A larger buffer is a mistake.
const MAX_BYTES: usize = 1024 * 1024 * 1024;

/// The settings name a file that cannot be used.
fn wrong(path: &Path, why: impl fmt::Display) -> Box<dyn std::error::Error> {
    Usage::of(format_args!("{}: {why}", path.display())).into()
}

/// Why a file cannot be read, and what to do.
pub(crate) fn unreadable(path: &Path, e: &io::Error) -> Box<dyn std::error::Error> {
    let folder = std::env::current_dir().ok().filter(|_| path.is_relative());
    let cure = match (e.kind(), folder) {
        (io::ErrorKind::NotFound, Some(folder)) => {
            format!("; check the name, which is looked for in {}", folder.display())
        }
        (io::ErrorKind::NotFound, None) => "; check the name".to_owned(),
        (io::ErrorKind::PermissionDenied, _) => {
            "; let the user of this program read it, and look into its folder".to_owned()
        }
        (io::ErrorKind::IsADirectory, _) => "; name a file in this folder".to_owned(),
        _ => String::new(),
    };
    wrong(path, format_args!("{e}{cure}"))
}

/// Reads a whole file; an error names it. A pipe must end in time, and nothing may be longer than
/// [`MAX_FILE`]: a reload must not wait for ever, nor a device such as `/dev/zero` fill the memory.
///
/// # Errors
/// [`Usage`], as of all functions here: the arguments, the environment or the settings name the file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    read_within(path).map_err(|e| unreadable(path, &e))
}

fn read_within(path: &Path) -> io::Result<Vec<u8>> {
    // The open of a pipe that nobody writes to would wait.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let size = file.metadata()?.len();
    // If it grew, it would leave a copy of a secret behind. A pipe has no size.
    let mut bytes = Vec::with_capacity(size.clamp(64 * 1024, MAX_FILE) as usize + 1);
    let deadline = (!file.is_terminal()).then(|| Instant::now() + MAX_PAUSE);
    loop {
        match file.by_ref().take(MAX_FILE + 1 - bytes.len() as u64).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > MAX_FILE => {
                return Err(io::Error::other(format!("more than {} MiB", MAX_FILE >> 20)));
            }
            Ok(_) => return Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(&file, deadline)?,
            Err(e) => return Err(e),
        }
    }
}

/// Waits until there is something to read.
fn wait(file: &fs::File, deadline: Option<Instant>) -> io::Result<()> {
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    let late = || io::Error::other(format!("nothing to read for {} s", MAX_PAUSE.as_secs()));
    let timeout = left.map(|left| Timespec::try_from(left).map_err(|_| late())).transpose()?;
    match poll(&mut [PollFd::new(file, PollFlags::IN)], timeout.as_ref()) {
        Ok(0) => Err(late()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Reads a file that holds a secret. Warns if others may read it.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let bytes = Zeroizing::new(read(path)?);
    warnings::about_secret_file(path);
    Ok(bytes)
}

/// A token, never empty, from its file or, without one, from the environment, where it is wiped.
/// Call it before the process has a second thread.
pub(crate) fn token(file: Option<&Path>, variable: &str, side: &str) -> Result<Token> {
    let text = match file {
        Some(path) => secret_text(path)?,
        None => process::take_variable(variable)?.ok_or_else(|| {
            Usage::of(format_args!(
                "no {side} token: name its file in an option (see --help), or set {variable}"
            ))
        })?,
    };
    match text.trim() {
        "" => Err(Usage::of(format_args!("the {side} token is empty")).into()),
        token => Ok(Token::new(token).map_err(Usage::of)?),
    }
}

/// The token of a file, never empty.
pub(crate) fn token_of_file(path: &Path) -> Result<Token> {
    let text = secret_text(path)?;
    match text.trim() {
        "" => Err(wrong(path, "it is empty; a token is expected")),
        token => Token::new(token).map_err(|e| wrong(path, e)),
    }
}

/// The secret of a file, without white space around it, never empty.
pub(crate) fn secret_line(path: &Path) -> Result<Zeroizing<String>> {
    let text = secret_text(path)?;
    match text.trim() {
        "" => Err(wrong(path, "the file is empty")),
        text => Ok(Zeroizing::new(text.to_owned())),
    }
}

fn secret_text(path: &Path) -> Result<Zeroizing<String>> {
    let bytes = read_secret(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong(path, "not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// TLS that trusts the certificates of a file, or the system's.
pub(crate) fn tls(ca: Option<&Path>) -> Result<TlsConfig> {
    match ca {
        Some(path) => {
            let tls = TlsConfig::new().with_ca_pem(&read(path)?);
            tls.map_err(|e| wrong(path, format_args!("{e}; {NO_CERTIFICATE}")))
        }
        None => Ok(TlsConfig::new()),
    }
}

/// A URL of a tunnel service, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url<'a> {
    pub(crate) secure: bool,
    pub(crate) host: &'a str,
    pub(crate) port: Port,
    /// With a leading slash, or empty.
    pub(crate) path: &'a str,
}

/// `ws[s]://HOST[:PORT][PATH]`
pub(crate) fn split_url(url: &str) -> Result<Url<'_>> {
    let wrong = || format!("{url:?} is no URL such as wss://host:port");
    let (secure, rest) = match url.split_once("://").ok_or_else(wrong)? {
        ("wss", rest) => (true, rest),
        ("ws", rest) => (false, rest),
        _ => return Err(wrong().into()),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let after_address = authority.rfind(']').unwrap_or(0);
    let (host, port) = match authority[after_address..].find(':') {
        Some(colon) => {
            let (host, port) = authority.split_at(after_address + colon);
            (host, port[1..].parse()?)
        }
        None => (authority, Port::new(if secure { 443 } else { 80 })?),
    };
    if host.is_empty() {
        return Err(format!("the URL {url:?} names no host").into());
    }
    Ok(Url { secure, host, port, path })
}

/// `TYPE=HOST:PORT`, `TYPE=[IPV6]:PORT` or `TYPE=unix:/PATH`
pub(crate) fn service(text: &str) -> std::result::Result<Service, String> {
    let (name, target) =
        text.split_once('=').ok_or("not of the form TYPE=HOST:PORT or TYPE=unix:/PATH")?;
    let service = target.parse().and_then(|target| Service::at(name, target));
    service.map_err(|e| e.to_string())
}

/// The name of a service that a device may offer.
pub(crate) fn service_type(text: &str) -> std::result::Result<String, String> {
    let port = Port::new(1).map_err(|e| e.to_string())?;
    // Host and port do not matter here.
    Service::new(text, "localhost", port).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// `HOST:PORT` or `:PORT`, and `=SERVICE` if there is one.
pub(crate) fn listen(text: &str) -> std::result::Result<String, String> {
    let (address, name) = text.split_once('=').map_or((text, None), |(a, name)| (a, Some(name)));
    let (_, port) = address.rsplit_once(':').ok_or("not of the form HOST:PORT or :PORT")?;
    port.parse::<u16>().map_err(|_| format!("{port:?} is no port from 0 to 65535"))?;
    name.map_or(Ok(()), |name| service_type(name).map(drop))?;
    Ok(text.to_owned())
}

/// A value that may hold a password, although it should not. It is examined after clap, which would quote
/// it in an error.
#[derive(Clone)]
pub(crate) struct Unquoted(Zeroizing<String>);

impl Unquoted {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Unquoted {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        Ok(Unquoted(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for Unquoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unquoted(..)")
    }
}

/// The message queue of an agent, or none: containers often have no System V IPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueKey {
    Off,
    Key(i32),
}

impl FromStr for QueueKey {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "off" => Ok(QueueKey::Off),
            key if key.parse::<i32>().is_err() => Err("neither a number nor off".into()),
            key => queue_key(key).map(QueueKey::Key),
        }
    }
}

impl fmt::Display for QueueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QueueKey::Off => f.write_str("off"),
            QueueKey::Key(key) => key.fmt(f),
        }
    }
}

/// The key of a message queue.
pub(crate) fn queue_key(text: &str) -> std::result::Result<i32, String> {
    match text.parse() {
        // The kernel makes a new queue for each use of IPC_PRIVATE.
        Ok(0) => Err("0 makes a private queue that nobody can reach; use another key".into()),
        Ok(key) => Ok(key),
        Err(e) => Err(format!("{e}")),
    }
}

/// A time that may be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OptionalDuration(pub(crate) Option<Duration>);

/// A time in seconds, or with a unit: `90`, `500ms`, `1m 30s`. Not zero.
pub(crate) fn duration(text: &str) -> std::result::Result<Duration, String> {
    let time = match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    match time {
        Ok(Duration::ZERO) => Err("must not be zero".to_owned()),
        Ok(time) if time > MAX_TIME => Err("longer than 100 years".to_owned()),
        Ok(time) => Ok(time),
        Err(_) => Err("not a time such as 30s, 500ms or 5m".to_owned()),
    }
}

/// A time, or `never`.
pub(crate) fn optional_duration(text: &str) -> std::result::Result<OptionalDuration, String> {
    match text {
        "never" => Ok(OptionalDuration(None)),
        text => match duration(text) {
            Ok(time) => Ok(OptionalDuration(Some(time))),
            Err(e) => Err(format!("{e}; never switches it off")),
        },
    }
}

/// A number of bytes, or of KiB or MiB.
fn bytes(text: &str, least: usize) -> std::result::Result<usize, String> {
    let (number, unit) = match text.trim_end_matches("KiB") {
        number if number != text => (number, 1024),
        _ => match text.trim_end_matches("MiB") {
            number if number != text => (number, 1024 * 1024),
            number => (number, 1),
        },
    };
    let bytes: Option<usize> = number.trim_end().parse().ok();
    match bytes.and_then(|bytes| bytes.checked_mul(unit)).filter(|bytes| *bytes <= MAX_BYTES) {
        Some(bytes) if bytes >= least => Ok(bytes),
        Some(_) => Err(format!("less than {}KiB", least / 1024)),
        None => Err("not a number of bytes up to 1024MiB, such as 65536 or 64KiB".to_owned()),
    }
}

/// Bits a second, `100kbit` or `2.5Mbit`, as bytes a second.
pub(crate) fn rate(text: &str) -> std::result::Result<u64, String> {
    let text = text.strip_suffix("/s").unwrap_or(text);
    let units = [("kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)];
    let parsed = units.iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        Some(number * factor / 8.0)
    });
    match parsed {
        // A frame of 64 KiB would take minutes.
        Some(rate) if rate < 1000.0 => Err("less than 8kbit".to_owned()),
        Some(rate) if rate <= 1e12 => Ok(rate as u64),
        _ => Err("not a rate such as 100kbit or 2Mbit".to_owned()),
    }
}

/// The largest payload that is accepted fits into it.
pub(crate) fn session_buffer(text: &str) -> std::result::Result<usize, String> {
    bytes(text, 64 * 1024)
}

/// Two frames fit into it.
pub(crate) fn send_buffer(text: &str) -> std::result::Result<usize, String> {
    bytes(text, 8 * 1024)
}

/// How much is logged.
pub(crate) fn log_level(text: &str) -> std::result::Result<LevelFilter, String> {
    text.parse().map_err(|_| "not one of off, error, warn, info, debug, trace".to_owned())
}

/// A limit. With 0, nothing would work.
pub(crate) fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("not a number".to_owned()),
    }
}

/// The id of a user.
pub(crate) fn user_id(text: &str) -> std::result::Result<u32, String> {
    text.parse().map_err(|_| "not a number; `id -u NAME` shows a user's".to_owned())
}

/// Permission bits in octal.
pub(crate) fn octal(text: &str) -> std::result::Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("not permissions such as 0600".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let url = |secure, host, port, path| {
            let port = Port::new(port).unwrap();
            Url { secure, host, port, path }
        };
        for (text, parts) in [
            ("wss://h", url(true, "h", 443, "")),
            ("ws://h/", url(false, "h", 80, "/")),
            ("wss://h:8443", url(true, "h", 8443, "")),
            ("wss://h:8443/a/b?c=d", url(true, "h", 8443, "/a/b?c=d")),
            ("ws://[::1]:80", url(false, "[::1]", 80, "")),
            ("wss://[::1]", url(true, "[::1]", 443, "")),
        ] {
            assert_eq!(split_url(text).unwrap(), parts);
        }
        for bad in [
            "h:1",
            "https://h",
            "wss://h:",
            "wss://h:0",
            "wss://h:x",
            "://h",
            "ws://",
            "ws://:80",
            "ws:///p",
        ] {
            assert!(split_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_has_a_type_and_an_address() {
        for (text, name, target) in [
            ("_SSH=127.0.0.1:22", "_SSH", "127.0.0.1:22"),
            ("_SSH=[::1]:22", "_SSH", "[::1]:22"),
            ("app=unix:/run/app.sock", "app", "unix:/run/app.sock"),
            ("app=unix:/run/a=b", "app", "unix:/run/a=b"),
        ] {
            let service = service(text).unwrap();
            assert_eq!((service.service_type(), &*service.target().to_string()), (name, target));
        }
        for bad in ["", "_SSH", "_SSH=", "=h:22", "_SSH=h", "_SSH=h:0", "app=unix:app.sock"] {
            assert!(service(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_to_listen_on_may_name_a_service() {
        for good in ["127.0.0.1:0", ":80", "[::1]:2222", "localhost:1=_SSH", ":0=web"] {
            assert_eq!(listen(good).as_deref(), Ok(good));
        }
        for bad in ["", "8080", "h", "h:65536", "h:-1", "h:x", "h:", "h:1=", "unix:/tmp/x"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_queue_that_nobody_can_reach_has_no_key() {
        assert_eq!(queue_key("-5"), Ok(-5));
        for bad in ["0", "", "x", "4294967296"] {
            assert!(queue_key(bad).is_err(), "{bad}");
            assert!(bad.parse::<QueueKey>().is_err(), "{bad}");
        }
        for text in ["off", "1234"] {
            assert_eq!(text.parse::<QueueKey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn times_and_sizes_have_units() {
        for (text, seconds) in [("90", 90.0), ("500ms", 0.5), ("1m 30s", 90.0), ("2h", 7200.0)] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds);
        }
        for bad in ["", "0", "0s", "-1", "x", "1 fortnight", "99999999999999999999", "200y"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(optional_duration("never"), Ok(OptionalDuration(None)));
        assert_eq!(optional_duration("1"), Ok(OptionalDuration(Some(Duration::from_secs(1)))));
        assert!(optional_duration("0").unwrap_err().contains("never"));
        for (text, bytes) in [("65536", 65536), ("64KiB", 65536), ("1 MiB", 1 << 20)] {
            assert_eq!(session_buffer(text), Ok(bytes));
        }
        for bad in ["", "65535", "KiB", "1GiB", "-1", "2048MiB", "99999999999999999999"] {
            assert!(session_buffer(bad).is_err(), "{bad}");
        }
        assert_eq!(send_buffer("8KiB"), Ok(8192));
    }

    #[test]
    fn a_rate_is_in_bits() {
        for (text, bytes) in [("100kbit", 12_500), ("2.5 Mbit/s", 312_500), ("1Gbit", 125_000_000)]
        {
            assert_eq!(rate(text), Ok(bytes));
        }
        for bad in ["", "100", "7kbit", "-1Mbit", "NaNkbit", "infkbit", "1e99Gbit", "1Mbyte"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(octal("0620"), Ok(0o620));
        assert_eq!(octal("0o600"), Ok(0o600));
        for bad in ["", "9", "1000", "-1", "0x1f", "0o", "0o0o1"] {
            assert!(octal(bad).is_err(), "{bad}");
        }
    }
}
