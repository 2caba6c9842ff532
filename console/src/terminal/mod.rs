//! The terminal in the browser: the system's ssh in a pseudo-terminal, over a session of the tunnel. The
//! browser's WebSocket carries its input and output.
//!
//! Who may use a terminal is the caller's affair. Nothing that a browser sends becomes a part of a
//! command, except the [login name](LoginName).

mod browser;
mod host_keys;
mod login;
mod screen;
mod ssh;
mod wire;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aiot_tunnel::gateway::LocalSession;
use aiot_tunnel::TunnelId;
use aiot_tunnel_registry::Registry;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout, Instant};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::WebSocketStream;

use browser::{farewell, Browser, End, Sink, Stream};
use host_keys::HostKeys;
use screen::{show_output, write_input, Output};
use ssh::{Entrance, Login, Screen, Ssh};
use wire::{Untaken, MAX_MESSAGE};

pub use login::{LoginName, WrongLogin};
pub use ssh::{pass_connection, SUBCOMMAND};

/// How many terminals may be open, unless the caller says otherwise.
const LIMIT: usize = 16;
/// The service of a device that ssh reaches.
const SERVICE: &str = "_SSH";
/// How long the browser may take to show ssh's last output.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// How long it may take to answer the close frame.
const FAREWELL: Duration = Duration::from_secs(3);
/// The size of the terminal until the browser says it.
const SIZE: [u64; 2] = [80, 24];
/// ssh's status when it has failed itself.
const SSH_FAILED: i32 = 255;
/// How the gateway begins the reason of a session that one of its ends has closed. ssh and sshd do so when
/// they are done with each other, and ssh says why.
const ORDERLY: &str = "released by ";

/// The terminals of a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Terminals {
    registry: Arc<Registry>,
    program: Arc<PathBuf>,
    host_keys: Arc<HostKeys>,
    places: Arc<Semaphore>,
    limit: usize,
}

impl fmt::Debug for Terminals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminals")
            .field("host_keys", &self.host_keys)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// What a terminal is opened for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The tunnel.
    pub tunnel: TunnelId,
    /// The device's user.
    pub login: LoginName,
    /// The browser's address, for log and audit.
    pub client: String,
}

/// An ssh that has been started.
struct Started {
    ssh: Ssh,
    entrance: Entrance,
    screen: Screen,
    /// Its place among the terminals.
    _place: OwnedSemaphorePermit,
}

/// Whose terminal it is.
struct User<'a> {
    request: &'a Request,
    ended: watch::Receiver<bool>,
    used: &'a (dyn Fn() + Send + Sync),
}

impl Terminals {
    /// Terminals for the tunnels of a gateway. `program` is the program whose subcommand [`SUBCOMMAND`]
    /// calls [`pass_connection`]. `directory` is for the host keys of devices; it is made if it is not there,
    /// readable for this user alone.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(registry: Arc<Registry>, program: PathBuf, directory: PathBuf) -> io::Result<Self> {
        Ok(Terminals {
            registry,
            program: Arc::new(program),
            host_keys: Arc::new(HostKeys::in_directory(directory)?),
            places: Arc::new(Semaphore::new(LIMIT)),
            limit: LIMIT,
        })
    }

    /// Sets how many terminals may be open at once; default 16.
    #[must_use]
    pub fn with_limit(self, limit: usize) -> Self {
        Terminals { places: Arc::new(Semaphore::new(limit)), limit, ..self }
    }

    /// Forgets the host key of a tunnel's device, so that ssh asks again. Returns whether there was one.
    ///
    /// # Errors
    /// The system's.
    pub fn forget_host_key(&self, tunnel: &TunnelId) -> io::Result<bool> {
        self.host_keys.forget(tunnel)
    }

    /// Whether a host key of the tunnel's device is remembered.
    #[must_use]
    pub fn knows_host_key(&self, tunnel: &TunnelId) -> bool {
        self.host_keys.knows(tunnel)
    }

    /// Serves a terminal: returns when ssh has ended and the browser has been told why, or is gone.
    /// `stream` is the browser's connection behind the handshake of the WebSocket. `ended` becomes true, or
    /// is dropped, when the user's login ends. `used` is called when the user has pressed a key.
    ///
    /// Runs on a tokio runtime with time, I/O and processes. If it is dropped, ssh is killed.
    pub async fn run<S>(
        &self,
        stream: S,
        request: Request,
        ended: watch::Receiver<bool>,
        used: impl Fn() + Send + Sync,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        let (mut sink, mut stream) = socket.split();
        let Request { tunnel, login, client } = &request;
        let (tunnel, opened) = (tunnel.as_str(), Instant::now());
        let end = match self.start(&request) {
            Err(why) => End::of(why),
            Ok(started) => {
                log::info!("terminal: tunnel {tunnel:?}: {client} logs in as {login}");
                let user = User { request: &request, ended, used: &used };
                self.serve(&mut sink, &mut stream, started, user).await
            }
        };
        let (seconds, why) = (opened.elapsed().as_secs_f64(), end.for_log());
        log::info!("terminal: tunnel {tunnel:?}: {client} ends after {seconds:.1} s: {why}");
        let _ = timeout(FAREWELL, farewell(&mut sink, &mut stream, end)).await;
    }

    /// # Errors
    /// Why there is no terminal, as a sentence for the user.
    fn start(&self, request: &Request) -> Result<Started, String> {
        let Request { tunnel, login, .. } = request;
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| {
            format!("the gateway has as many terminals open as it may have: {}", self.limit)
        })?;
        let activity = self.registry.gateway().activity(tunnel);
        let activity = activity.ok_or_else(|| format!("there is no tunnel {tunnel}"))?;
        if activity.is_expired {
            return Err("the tunnel has expired".to_owned());
        }
        if activity.device.is_none() {
            return Err("the device is not connected".to_owned());
        }
        let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let host_keys = self.host_keys.prepare(tunnel);
        let host_keys =
            host_keys.map_err(failed("the gateway cannot keep the device's host key"))?;
        let login = Login {
            program: &self.program,
            name: login,
            host_keys: (self.host_keys.directory(), &host_keys),
        };
        let (ssh, entrance, screen) = Ssh::start(&login).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                "the gateway's machine has no ssh; install OpenSSH's client there".to_owned()
            }
            _ => failed("the gateway cannot start ssh")(e),
        })?;
        let _ = screen.pty.resize(wire::size(SIZE));
        Ok(Started { ssh, entrance, screen, _place: place })
    }

    /// Moves bytes until something ends the terminal; ends ssh.
    async fn serve<S>(
        &self,
        sink: &mut Sink<S>,
        stream: &mut Stream<S>,
        started: Started,
        user: User<'_>,
    ) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Started { mut ssh, entrance, mut screen, _place } = started;
        let User { request, mut ended, used } = user;
        let (messages, mut input) = screen.pty.split();
        let mut output = Output::new(&mut screen.output, messages);
        let session = Mutex::new(None);
        let (untaken, typed) = (Untaken::default(), AtomicUsize::new(0));
        let (sizes, mut new_size) = watch::channel(SIZE);
        let (typing, mut keys) = mpsc::unbounded_channel();
        let browser = Browser { untaken: &untaken, typed: &typed, typing, sizes, used };
        let end = tokio::select! {
            end = browser.listen(stream) => end,
            never = write_input(&mut input, &mut keys, &mut new_size, &typed) => match never {},
            why = self.connect(entrance, request, &session) => End::of(why),
            () = login_ends(&mut ended) => End::of("your login has ended"),
            shown = show_output(&mut output, sink, &untaken) => match shown {
                Ok(()) => why_over(&mut ssh, &session).await,
                Err(e) => End::gone(format!("the browser is gone: {e}")),
            },
            () = has_ended(&mut ssh) => why_over(&mut ssh, &session).await,
        };
        ssh.end().await;
        end
    }

    /// Gives ssh its session. Returns only if that fails, and why.
    async fn connect(
        &self,
        entrance: Entrance,
        request: &Request,
        session: &Mutex<Option<LocalSession>>,
    ) -> String {
        let Request { tunnel, client, .. } = request;
        let connection = entrance.connection().await;
        // There is one connection, and nobody else has anything to seek there.
        drop(entrance);
        let opened = match connection {
            Ok(stream) => {
                let gateway = self.registry.gateway();
                gateway.open_session(stream, tunnel, SERVICE, client).map_err(|e| e.to_string())
            }
            Err(e) => Err(e.to_string()),
        };
        match opened {
            Ok(opened) => {
                *session.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
                std::future::pending().await
            }
            Err(why) => format!("the gateway cannot open a session: {why}"),
        }
    }
}

async fn login_ends(ended: &mut watch::Receiver<bool>) {
    // An error says that nobody knows of the login any more.
    let _ = ended.wait_for(|ended| *ended).await;
}

/// Waits until ssh has ended, and a moment longer for its last output, which the browser may not take.
async fn has_ended(ssh: &mut Ssh) {
    ssh.wait().await;
    sleep(LAST_OUTPUT).await;
}

/// Why ssh has ended.
async fn why_over(ssh: &mut Ssh, session: &Mutex<Option<LocalSession>>) -> End {
    let Ok(status) = timeout(LAST_OUTPUT, ssh.wait()).await else {
        return End::of("ssh has closed the terminal");
    };
    let session = session.lock().unwrap_or_else(PoisonError::into_inner).take();
    // ssh cannot know why its connection was lost.
    let of_session = session.and_then(|session| session.end());
    let of_session = of_session.filter(|why| !why.starts_with(ORDERLY));
    match (status, of_session) {
        (Some(SSH_FAILED), Some(why)) => End::of(format!("the session has ended: {why}")),
        (Some(0), _) => End::of("ssh ended"),
        (Some(status), _) => End::of(format!("ssh ended with status {status}")),
        (None, _) => End::of("ssh was ended by a signal"),
    }
}
