//! The access side: the operator's end of a tunnel. It connects a local port ([`Client::listen`])
//! or stdin and stdout ([`Client::stdio`]) to sessions.
//!
//! One thread serves the WebSocket and the local streams with one `poll(2)`.
//!
//! A local stream ends in order only if the stream at the device ended in order and every byte was
//! delivered. Otherwise the received bytes are delivered and the local stream is reset. So no
//! program mistakes a truncated stream for a complete one. On stdin and stdout, a lost session is an
//! error.
//!
//! With a device of this project, each session has half-close and flow control. With others, a
//! session whose local program has ended its stream goes on until the device ends it, or until no
//! byte has come or gone for the [half-close timeout](Client::with_half_close_timeout). There a
//! local program that takes nothing holds up the other sessions, so its session is cut after 10 s.

mod cause;
mod connector;
mod listeners;
mod log;
mod relay;
mod stdio;
mod traffic;

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::SessionError;
use aiot_tunnel_proto::session::Lingering;

use crate::config::{ConnectParams, Network, Port, Security, Service};
use crate::error::Error as CrateError;
use crate::net::open::Opened;
use crate::net::tls::TlsContext;
use crate::net::LocalSocket;
use crate::sys::{self, poll, PollFd, Waker};
pub use cause::Cause;
use connector::Connector;
use listeners::Listeners;
use relay::Relay;
use stdio::Standard;
pub use traffic::Traffic;

const TARGET: &str = "aiot_tunnel::access";
const RETRY: Duration = Duration::from_secs(1);
/// How long to wait, after a stop, until stdout has taken the last bytes.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// Why a tunnel or a session could not be opened, or why it did not end in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The token is wrong or has expired (HTTP 401).
    #[error("the tunnel service refuses the token (wrong or expired); ask for a new one")]
    Unauthorized,
    /// The tunnel has expired: our gateway says so (HTTP 401), or an open connection was closed with
    /// code 4001, which also tells of a token that was replaced.
    #[error(
        "the tunnel has expired, or its token was replaced; ask for a new tunnel or a new token"
    )]
    Expired,
    /// The server answered with another HTTP status than 101 and 401. 404: it does not know the
    /// tunnel; also after it has closed an open connection because the tunnel was removed.
    #[error("{text}")]
    Status {
        /// The status.
        status: u16,
        /// Which server, what the status means, and what to do.
        text: String,
    },
    /// The certificate is not valid, or the TLS handshake failed. The text says which server, why,
    /// and what to do.
    #[error("{0}")]
    Tls(String),
    /// The proxy could not be reached, or did not connect to the server. The text says which, why, and
    /// what to do.
    #[error("{0}")]
    Proxy(String),
    /// The connection could not be opened. The text says which, why, and what to do.
    #[error("{0}")]
    Connection(String),
    /// The connection was lost. The text says why, and what to do.
    #[error("{0}")]
    Disconnected(String),
    /// The gateway or the device refused the session.
    #[error("{text} [session refused: code {code}, {msg}]")]
    Refused {
        /// Why, and what to do.
        text: String,
        /// What it means.
        cause: Cause,
        /// The response code. 1: the session limit is reached. 2: the device refuses.
        code: i64,
        /// The text of the response, quoted.
        msg: String,
    },
    /// The session did not end in order.
    #[error("{text} [session lost: code {code}, {msg}]")]
    Released {
        /// Why, and what to do.
        text: String,
        /// What it means.
        cause: Cause,
        /// The release code. Codes from 2 are losses. Codes 0 and 1 are losses if the text says
        /// so, or if a session with half-close had not ended in both directions.
        code: i64,
        /// The text of the release, quoted.
        msg: String,
    },
    /// Bytes of the session were lost on this side, so the session ended.
    #[error("session lost: {0}")]
    Lost(String),
    /// A system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A value is invalid, or the client could not be made.
    #[error(transparent)]
    Setup(#[from] CrateError),
}

impl Error {
    fn of_session(error: &SessionError) -> Self {
        let (cause, text) = cause::of_session(error);
        match error.clone() {
            SessionError::Refused { code, msg } => Error::Refused { text, cause, code, msg },
            SessionError::Released { code, msg } => Error::Released { text, cause, code, msg },
        }
    }

    /// The tunnel was removed while the connection was open.
    fn removed() -> Self {
        let text = "the tunnel was removed from the tunnel service; ask for another one";
        Error::Status { status: 404, text: text.to_owned() }
    }

    /// What went wrong.
    pub fn cause(&self) -> Cause {
        match self {
            Error::Unauthorized => Cause::TokenRefused,
            Error::Expired => Cause::Expired,
            Error::Status { status: 404, .. } => Cause::UnknownTunnel,
            Error::Status { status: 500..600, .. } => Cause::Unavailable,
            Error::Status { .. } | Error::Connection(_) => Cause::Unreachable,
            Error::Tls(_) => Cause::Untrusted,
            Error::Proxy(_) => Cause::Proxy,
            Error::Disconnected(_) => Cause::Cut,
            Error::Refused { cause, .. } | Error::Released { cause, .. } => *cause,
            Error::Lost(why) => cause::of_loss(why),
            Error::Io(_) | Error::Setup(_) => Cause::Local,
        }
    }
}

/// The result of the access side's calls.
pub type Result<T> = std::result::Result<T, Error>;

/// Stops a running [`Client`] from another thread. Cheap to clone.
#[derive(Clone)]
#[must_use]
pub struct Stop(Arc<Waker>);

impl Stop {
    /// Ends [`Client::listen`] and [`Client::stdio`], and every later call of them. Does not block.
    pub fn stop(&self) {
        self.0.wake();
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stop")
    }
}

/// A local port, and the service that its connections reach.
#[derive(Debug)]
#[must_use]
pub struct Forward {
    listener: TcpListener,
    service_type: Arc<str>,
}

impl Forward {
    /// Each connection to `listener` becomes a session of the service, such as `_SSH`. Sets the
    /// listener's `SO_LINGER` so that an accepted connection ends in a reset if this process dies.
    ///
    /// # Errors
    /// [`Error::Setup`] if the protocol cannot carry the service type.
    pub fn new(listener: TcpListener, service_type: &str) -> Result<Self> {
        // A connection is a stream that may be cut from its first moment on.
        sys::reset_on_close(&listener, true);
        Ok(Forward { listener, service_type: checked(service_type)? })
    }
}

#[derive(Debug)]
struct Settings {
    extensions: bool,
    queue_timeout: Duration,
    half_close_timeout: Duration,
    local_keepalive: Option<Duration>,
    retry: bool,
}

/// The client of an access side. It connects when [`listen`](Client::listen) or
/// [`stdio`](Client::stdio) is called.
#[must_use]
pub struct Client {
    params: ConnectParams,
    tls: TlsContext,
    network: Network,
    service_type: Arc<str>,
    settings: Settings,
    traffic: Traffic,
    /// Never reset. Once it is woken, every call ends.
    stop: Arc<Waker>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("params", &self.params)
            .field("network", &self.network)
            .field("service_type", &self.service_type)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client. It does not connect yet. `params` holds host, port, path
    /// (`/tunnel/<id>/source`) and the access token. `service_type` is the service that every
    /// session asks for, such as `_SSH`.
    ///
    /// # Errors
    /// [`Error::Setup`] if the protocol cannot carry the service type, or if a descriptor cannot be
    /// created.
    pub fn new(params: ConnectParams, security: Security, service_type: &str) -> Result<Self> {
        let service_type = checked(service_type)?;
        let stop = Waker::new().map_err(|e| CrateError::io("create an eventfd", e))?;
        let (tls, stop) = (TlsContext::new(security), Arc::new(stop));
        let settings = Settings {
            extensions: true,
            queue_timeout: Duration::from_secs(30),
            half_close_timeout: Duration::from_secs(60),
            local_keepalive: Some(Duration::from_secs(60)),
            retry: false,
        };
        let (network, traffic) = (Network::new(), Traffic::default());
        Ok(Client { params, tls, network, service_type, settings, traffic, stop })
    }

    /// Sets the way to the tunnel service: proxy, local address or interface, address family. Default:
    /// [`Network::new`], which uses no proxy.
    pub fn with_network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Sets whether half-close and flow control are offered to the device; default true. A tunnel
    /// service that refuses unknown header fields needs false.
    pub fn with_extensions(mut self, offered: bool) -> Self {
        self.settings.extensions = offered;
        self
    }

    /// Sets how long an accepted local connection may wait for a session: while the tunnel has as
    /// many as it may have, while the tunnel service cannot be reached, and while our gateway says
    /// that the device is not connected. Then the connection is reset. Default 30 s.
    pub fn with_queue_timeout(mut self, time: Duration) -> Self {
        self.settings.queue_timeout = time;
        self
    }

    /// Sets how long a session without half-close goes on after its local program has ended its
    /// stream, while no byte comes or goes. Then the session is cut. Default 60 s.
    pub fn with_half_close_timeout(mut self, time: Duration) -> Self {
        self.settings.half_close_timeout = time;
        self
    }

    /// Sets after how long without traffic the kernel probes a local connection; default 60 s.
    /// `None`: never.
    pub fn with_local_keepalive(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.settings.local_keepalive = time.into();
        self
    }

    /// Sets whether [`forward`](Self::forward) and [`listen`](Self::listen) go on trying if the
    /// first connection fails; default false.
    pub fn with_retry(mut self, retry: bool) -> Self {
        self.settings.retry = retry;
        self
    }

    /// What the sessions move, for another thread.
    pub fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// A handle that stops the client from another thread.
    pub fn stop_handle(&self) -> Stop {
        Stop(self.stop.clone())
    }

    /// Serves each connection to `listener` as a session of the client's service. Otherwise like
    /// [`forward`](Self::forward).
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn listen(&self, listener: &TcpListener) -> Result<()> {
        let listener = listener.try_clone()?;
        self.forward(&[Forward { listener, service_type: self.service_type.clone() }])
    }

    /// Serves each connection to the local ports as a session, all over one connection to the
    /// tunnel service. Blocks until it is stopped. If that connection is lost, the local
    /// connections of its sessions are reset, and the client connects again a second later. Failed
    /// sessions are reported to the log.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] and [`Error::Expired`] at any time. Any other error only if the first connection fails and
    /// [`with_retry`](Self::with_retry) is not set.
    pub fn forward(&self, forwards: &[Forward]) -> Result<()> {
        let result = self.keep_forwarding(forwards);
        log::report_all();
        result
    }

    fn keep_forwarding(&self, forwards: &[Forward]) -> Result<()> {
        let mut listeners = Listeners::new(forwards, &self.settings)?;
        let connector = Connector::new(&self.params, &self.tls, &self.network, &self.stop)?;
        let mut connected = self.settings.retry;
        loop {
            let lost = match connector.open_beside(&mut listeners) {
                Ok(opened) => {
                    connected = true;
                    log::info!("connected to the tunnel");
                    let lingering = Some(listeners.take_lingering());
                    let mut relay = self.relay(opened, lingering);
                    relay.run(Some(&mut listeners))
                }
                Err(e) => Err(e),
            };
            match lost {
                _ if self.is_stopped() => return Ok(()),
                Ok(()) => return Ok(()),
                Err(e @ (Error::Unauthorized | Error::Expired)) => return Err(e),
                Err(e) if !connected => return Err(e),
                Err(e) => log::warn!("{e}; connecting again"),
            }
            if connector.pause(RETRY, &mut listeners) {
                return Ok(());
            }
        }
    }

    /// Serves stdin and stdout as one session. Blocks until the session ends and every received
    /// byte has been written.
    ///
    /// The two directions end one by one. After the end of file on stdin, the answer is still
    /// written. After the end of the received stream, stdout is closed and stdin is still read. If
    /// stdin cannot be read or stdout cannot be written, the session is cut.
    ///
    /// Call it once in a process, and end the process afterwards: descriptor 1 is then `/dev/null`,
    /// and the thread that reads stdin goes on until its read returns.
    ///
    /// # Errors
    /// Any error for which the session was not opened or did not end in order. [`Error::Io`] if
    /// stdin or stdout is closed or open for the other direction only; then nothing is connected.
    pub fn stdio(&self) -> Result<()> {
        let standard = Standard::take()?;
        let opened = Connector::new(&self.params, &self.tls, &self.network, &self.stop)?.open()?;
        let (local, output) = standard.start()?;
        let mut relay = self.relay(opened, None);
        relay.open(local, &self.service_type, &output);
        let result = relay.run(None);
        drop(relay);
        // After a stop, do not wait long for a reader of stdout that does not read.
        let written = output.finish(&self.stop, LAST_BYTES);
        result.and(written)
    }

    fn relay(&self, opened: Opened, lingering: Option<Vec<Lingering<LocalSocket>>>) -> Relay<'_> {
        self.traffic.begin();
        Relay::new(opened, &self.settings, &self.traffic, &self.stop, lingering)
    }

    fn is_stopped(&self) -> bool {
        self.pause(Duration::ZERO)
    }

    /// Blocks for `time` at most. Returns true if the client was stopped.
    fn pause(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(self.stop.as_fd(), true, false)];
        let _ = poll(&mut fds, Some(Instant::now() + time));
        fds[0].ready().read
    }
}

/// The same rule holds for a device's services. Host and port do not matter here.
fn checked(service_type: &str) -> Result<Arc<str>> {
    Service::new(service_type, "localhost", Port::try_from(1)?)?;
    Ok(service_type.into())
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_connection_is_a_reset_even_if_the_process_dies_as_it_accepts() {
        let forward = Forward::new(TcpListener::bind("127.0.0.1:0").unwrap(), "s").unwrap();
        let address = forward.listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        // As the kernel closes it then: nothing more was set.
        drop(forward.listener.accept().unwrap());
        let error = client.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}
