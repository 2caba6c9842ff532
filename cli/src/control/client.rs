//! The client's part: one request, one answer.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::{connect, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::protocol::{RequestLine, MAX_LINE};
use crate::Result;

/// An agent answers within milliseconds.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// Longest answer that is read. A status of thousands of tunnels fits.
const MAX_ANSWER: u64 = 64 * 1024 * 1024;

/// A connection to an agent.
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

/// Why no agent can be reached.
#[derive(Debug)]
pub(crate) enum Unreachable {
    /// Nobody listens there.
    Absent(PathBuf),
    /// Somebody does, but not to this user.
    Failed(PathBuf, io::Error),
}

impl Unreachable {
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Unreachable::Absent(_))
    }

    /// Whether this user may not connect.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Unreachable::Failed(_, e) if e.kind() == ErrorKind::PermissionDenied)
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreachable::Absent(path) => write!(
                f,
                "no agent listens on {}; start one, or name its socket with --control-socket",
                path.display()
            ),
            Unreachable::Failed(path, e) if e.kind() == ErrorKind::PermissionDenied => write!(
                f,
                "{}: permission denied; run this as root or as the agent's user",
                path.display()
            ),
            Unreachable::Failed(path, e) if e.kind() == ErrorKind::WouldBlock => {
                write!(f, "{}: the agent takes no clients; it hangs", path.display())
            }
            Unreachable::Failed(path, e) => write!(f, "{}: {e}", path.display()),
        }
    }
}

impl std::error::Error for Unreachable {}

/// The agent does not do what was asked. The text is the agent's.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the agent refuses: {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// An event as it came.
#[derive(Deserialize)]
pub(crate) struct EventLine {
    pub(crate) event: String,
    pub(crate) tunnel: String,
}

/// An answer as it came.
#[derive(Deserialize)]
struct AnswerLine {
    ok: bool,
    error: Option<String>,
    status: Option<Box<RawValue>>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> std::result::Result<Self, Unreachable> {
        match open(path) {
            Ok(stream) => Ok(Client { stream: BufReader::new(stream), path: path.to_owned() }),
            // The file of an agent that was killed is still there.
            Err(Errno::NOENT | Errno::CONNREFUSED) => Err(Unreachable::Absent(path.to_owned())),
            Err(e) => Err(Unreachable::Failed(path.to_owned(), e.into())),
        }
    }

    /// Sends a request, and waits for its answer.
    pub(crate) fn request(&mut self, request: &RequestLine) -> Result<()> {
        self.ask(request).map(drop)
    }

    /// The agent's status, in JSON as the agent has written it.
    pub(crate) fn status(&mut self) -> Result<Box<RawValue>> {
        let answer = self.ask(&RequestLine::new("status", None))?;
        answer.status.ok_or_else(|| self.wrong("an answer without a status"))
    }

    /// Asks for the agent's events.
    pub(crate) fn subscribe(&mut self) -> Result<()> {
        self.ask(&RequestLine::new("events", None)).map(drop)
    }

    /// Waits for the agent's next event, after [`subscribe`](Self::subscribe). `None`: the agent has
    /// ended. Lines that this program does not understand are skipped.
    pub(crate) fn next_event(&mut self) -> Option<EventLine> {
        self.stream.get_ref().set_read_timeout(None).ok()?;
        loop {
            let mut line = Vec::new();
            let length = self.stream.by_ref().take(MAX_ANSWER).read_until(b'\n', &mut line);
            if length.ok()? == 0 {
                return None;
            }
            if let Ok(event) = serde_json::from_slice(&line) {
                return Some(event);
            }
        }
    }

    fn ask(&mut self, request: &RequestLine) -> Result<AnswerLine> {
        // It may hold a token, and a vector that grows leaves copies behind.
        let mut line = Zeroizing::new(Vec::with_capacity(2 * MAX_LINE));
        serde_json::to_writer(&mut *line, request)?;
        line.push(b'\n');
        match self.stream.get_ref().write_all(&line) {
            // An agent without room for a client ends the connection, and says why before.
            Err(e) if e.kind() != ErrorKind::BrokenPipe => return Err(self.failed(e)),
            _ => {}
        }
        let mut line = Vec::new();
        let mut stream = self.stream.by_ref().take(MAX_ANSWER);
        let read = stream.read_until(b'\n', &mut line);
        read.map_err(|e| self.failed(e))?;
        if line.last() != Some(&b'\n') {
            return Err(self.wrong("the agent has ended"));
        }
        let answer: AnswerLine =
            serde_json::from_slice(&line).map_err(|_| self.wrong("not the answer of an agent"))?;
        match answer.ok {
            true => Ok(answer),
            false => Err(Refused(answer.error.unwrap_or_default()).into()),
        }
    }

    fn failed(&self, e: io::Error) -> Box<dyn std::error::Error> {
        match e.kind() {
            ErrorKind::WouldBlock => {
                let seconds = ANSWERED_WITHIN.as_secs();
                self.wrong(&format!("the agent has not answered within {seconds} seconds"))
            }
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.wrong("the agent has ended"),
            _ => self.wrong(&e.to_string()),
        }
    }

    fn wrong(&self, what: &str) -> Box<dyn std::error::Error> {
        format!("{}: {what}", self.path.display()).into()
    }
}

/// A connected stream that waits for an agent at most for [`ANSWERED_WITHIN`].
fn open(path: &Path) -> std::result::Result<UnixStream, Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The time for sending bounds the connect, too.
    for which in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, which, Some(ANSWERED_WITHIN))?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
