//! The terminal in the browser: the system's ssh in a pseudo-terminal, over a session of the tunnel. The
//! browser's WebSocket carries its input and output.
//!
//! Who may use a terminal is the caller's affair. Nothing that a browser sends becomes a part of a
//! command, except the [login name](LoginName).

mod host_keys;
mod login;
mod ssh;
mod wire;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aiot_tunnel::gateway::{Gateway, LocalSession};
use aiot_tunnel::TunnelId;
use aiot_tunnel_registry::Registry;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use pty_process::{ReadPty, WritePty};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch, OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval_at, sleep, timeout, Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::WebSocketStream;

use host_keys::HostKeys;
use ssh::{Entrance, Login, Screen, Ssh};
use wire::{Said, Untaken, MAX_MESSAGE, MAX_TYPED};

pub use login::{LoginName, WrongLogin};
pub use ssh::{pass_connection, SUBCOMMAND};

/// How many terminals may be open, unless the caller says otherwise.
const LIMIT: usize = 16;
/// The service of a device that ssh reaches.
const SERVICE: &str = "_SSH";
/// How often the browser is asked whether it is there, and after how long without a sign of it it is not.
const PING: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(50);
/// How long the browser may take to show ssh's last output.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// How long it may take to answer the close frame.
const FAREWELL: Duration = Duration::from_secs(3);
/// Longest messages to the browser: of the device's output, and of ssh's own.
const PIECE: usize = 32 * 1024;
const SMALL_PIECE: usize = 4 * 1024;
/// The size of the terminal until the browser says it.
const SIZE: [u64; 2] = [80, 24];
/// ssh's status when it has failed itself.
const SSH_FAILED: i32 = 255;
/// How the gateway begins the reason of a session that one of its ends has closed. ssh and sshd do so when
/// they are done with each other, and ssh says why.
const ORDERLY: &str = "released by ";

/// Whoever has the gateway whose tunnels the terminals use.
pub trait HasGateway: Send + Sync + 'static {
    /// The gateway.
    fn gateway(&self) -> &Gateway;
}

impl HasGateway for Gateway {
    fn gateway(&self) -> &Gateway {
        self
    }
}

impl HasGateway for Registry {
    fn gateway(&self) -> &Gateway {
        Registry::gateway(self)
    }
}

/// The terminals of a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Terminals {
    owner: Arc<dyn HasGateway>,
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

/// Why a terminal ends.
struct End {
    code: CloseCode,
    /// A sentence for the user. `None`: the browser is gone or has closed.
    why: Option<String>,
    /// For the log, if it says something else.
    log: Option<String>,
}

impl End {
    fn of(why: impl Into<String>) -> Self {
        End { code: CloseCode::Normal, why: Some(why.into()), log: None }
    }

    fn gone(how: impl Into<String>) -> Self {
        End { code: CloseCode::Normal, why: None, log: Some(how.into()) }
    }

    fn wrong(code: CloseCode, why: &str) -> Self {
        End { code, ..End::of(why) }
    }

    fn for_log(&self) -> &str {
        self.log.as_deref().or(self.why.as_deref()).unwrap_or_default()
    }
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

type Sink<S> = SplitSink<WebSocketStream<S>, Message>;
type Stream<S> = SplitStream<WebSocketStream<S>>;

impl Terminals {
    /// Terminals for the tunnels of a gateway. `program` is the program whose subcommand [`SUBCOMMAND`]
    /// calls [`pass_connection`]. `directory` is for the host keys of devices; it is made if it is not there,
    /// readable for this user alone.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(
        owner: Arc<dyn HasGateway>,
        program: PathBuf,
        directory: PathBuf,
    ) -> io::Result<Self> {
        Ok(Terminals {
            owner,
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
    /// is dropped, when the user's login ends. `used` is called when the user has typed something.
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
        let activity = self.owner.gateway().activity(tunnel);
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
            why = self.connect(&entrance, request, &session) => End::of(why),
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
        entrance: &Entrance,
        request: &Request,
        session: &Mutex<Option<LocalSession>>,
    ) -> String {
        let Request { tunnel, client, .. } = request;
        let opened = match entrance.connection().await {
            Ok(stream) => {
                let gateway = self.owner.gateway();
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

/// Where what a browser says goes.
struct Browser<'a> {
    untaken: &'a Untaken,
    /// How many bytes ssh has not taken.
    typed: &'a AtomicUsize,
    typing: mpsc::UnboundedSender<Bytes>,
    sizes: watch::Sender<[u64; 2]>,
    used: &'a (dyn Fn() + Send + Sync),
}

impl Browser<'_> {
    /// Listens until the browser is gone, or is not understood.
    async fn listen<S>(&self, stream: &mut Stream<S>) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let message = match timeout(SILENCE, stream.next()).await {
                Err(_) => return End::gone("the browser gives no sign of life"),
                Ok(None) => return End::gone("the browser is gone"),
                Ok(Some(Err(Error::Capacity(_)))) => {
                    return End::wrong(CloseCode::Size, "a message from the browser is too long");
                }
                Ok(Some(Err(e))) => return End::gone(format!("the browser is gone: {e}")),
                Ok(Some(Ok(message))) => message,
            };
            match message {
                Message::Binary(bytes) => {
                    (self.used)();
                    let length = bytes.len();
                    if self.typed.fetch_add(length, Ordering::Relaxed) + length > MAX_TYPED {
                        let why = "too much was pasted that the device has not taken";
                        return End::wrong(CloseCode::Size, why);
                    }
                    // Its receiver lives as long as this.
                    let _ = self.typing.send(bytes);
                }
                Message::Text(text) => {
                    let is_understood = match Said::parse(&text) {
                        Some(Said::Size(size)) => {
                            self.sizes.send_replace(size);
                            true
                        }
                        Some(Said::Taken(bytes)) => self.untaken.taken(bytes),
                        None => false,
                    };
                    if !is_understood {
                        let why = "a message from the browser was not understood";
                        return End::wrong(CloseCode::Protocol, why);
                    }
                }
                Message::Close(_) => return End::gone("the browser has closed it"),
                // The answers to pings are the WebSocket's.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// Writes what is typed, and sets the size of the terminal.
async fn write_input(
    input: &mut WritePty<'_>,
    keys: &mut mpsc::UnboundedReceiver<Bytes>,
    sizes: &mut watch::Receiver<[u64; 2]>,
    typed: &AtomicUsize,
) -> Infallible {
    let mut waiting = Bytes::new();
    loop {
        tokio::select! {
            Ok(()) = sizes.changed() => {
                let size = *sizes.borrow_and_update();
                if let Err(e) = input.resize(wire::size(size)) {
                    log::debug!("terminal: resize: {e}");
                }
            }
            written = input.write(&waiting), if !waiting.is_empty() => match written {
                Ok(length) => {
                    typed.fetch_sub(length, Ordering::Relaxed);
                    let _ = waiting.split_to(length);
                }
                // ssh has ended, which its output tells.
                Err(_) => std::future::pending().await,
            },
            Some(more) = keys.recv(), if waiting.is_empty() => waiting = more,
        }
    }
}

/// What ssh shows.
struct Output<'a> {
    /// The device's. `None`: it has ended.
    device: Option<&'a mut UnixStream>,
    /// ssh's own. `None`: it has ended.
    ssh: Option<ReadPty<'a>>,
    buffers: [Vec<u8>; 2],
}

impl<'a> Output<'a> {
    fn new(device: &'a mut UnixStream, ssh: ReadPty<'a>) -> Self {
        let buffers = [vec![0; PIECE], vec![0; SMALL_PIECE]];
        Output { device: Some(device), ssh: Some(ssh), buffers }
    }

    /// Reads what may be sent. `None`: the end. Nothing is lost if the future is dropped.
    async fn read(&mut self, untaken: &Untaken) -> Option<Bytes> {
        let Output { device, ssh, buffers: [large, small] } = self;
        loop {
            let room = untaken.room().await;
            let (large, small) = (shortened(large, room), shortened(small, room));
            // What ssh says comes behind the device's last words. An error is an end, too: that of a
            // pseudo-terminal which nobody has open any more.
            tokio::select! {
                biased;
                Some(length) = read(device.as_deref_mut(), large) => match length {
                    0 => *device = None,
                    length => return Some(Bytes::copy_from_slice(&large[..length])),
                },
                Some(length) = read(ssh.as_mut(), small) => match length {
                    0 => *ssh = None,
                    length => return Some(Bytes::copy_from_slice(&small[..length])),
                },
                else => return None,
            }
        }
    }
}

fn shortened(buffer: &mut [u8], room: usize) -> &mut [u8] {
    let length = buffer.len().min(room);
    &mut buffer[..length]
}

/// `None`: there is nothing to read from.
async fn read(from: Option<&mut (impl AsyncRead + Unpin)>, buffer: &mut [u8]) -> Option<usize> {
    Some(from?.read(buffer).await.unwrap_or(0))
}

/// Sends ssh's output as far as the browser shows it, and asks whether the browser is there. Returns at the
/// end of the output.
///
/// # Errors
/// The WebSocket's.
async fn show_output<S>(
    output: &mut Output<'_>,
    sink: &mut Sink<S>,
    untaken: &Untaken,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval_at(Instant::now() + PING, PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            piece = output.read(untaken) => match piece {
                Some(piece) => {
                    untaken.sent(piece.len());
                    Message::Binary(piece)
                }
                None => return Ok(()),
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        sink.send(message).await?;
    }
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

/// Tells the browser why the terminal ends, and waits until it knows.
async fn farewell<S>(sink: &mut Sink<S>, stream: &mut Stream<S>, end: End) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Some(why) = end.why {
        let why = serde_json::json!({ "end": why }).to_string();
        sink.send(Message::text(why)).await?;
    }
    sink.send(Message::Close(Some(CloseFrame { code: end.code, reason: "".into() }))).await?;
    while let Some(Ok(_)) = stream.next().await {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    type Socket = WebSocketStream<tokio::io::DuplexStream>;

    async fn sockets() -> [Socket; 2] {
        let (own, other) = duplex(64 * 1024);
        let own = WebSocketStream::from_raw_socket(own, Role::Server, None).await;
        [own, WebSocketStream::from_raw_socket(other, Role::Client, None).await]
    }

    /// Listens to a browser. Returns the end and how long it took.
    async fn listen(stream: &mut Stream<tokio::io::DuplexStream>) -> (End, Duration) {
        let (untaken, typed) = (Untaken::default(), AtomicUsize::new(0));
        let (sizes, _sizes) = watch::channel(SIZE);
        let (typing, _keys) = mpsc::unbounded_channel();
        let used = || ();
        let browser = Browser { untaken: &untaken, typed: &typed, typing, sizes, used: &used };
        let began = Instant::now();
        let end = browser.listen(stream).await;
        (end, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_without_a_sign_of_life_is_gone_within_a_minute() {
        let [server, _browser] = sockets().await;
        let (_sink, mut stream) = server.split();
        let (end, after) = listen(&mut stream).await;
        assert!(end.why.is_none());
        assert_eq!(after, SILENCE);
        assert!(SILENCE < Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_answers_pings_may_be_silent_for_hours() {
        let [server, mut browser] = sockets().await;
        let (mut sink, mut stream) = server.split();
        let (_far, mut near) = UnixStream::pair().unwrap();
        let (mut pty, _slave) = pty_process::open().unwrap();
        let (ssh, _) = pty.split();
        let mut output = Output::new(&mut near, ssh);
        let untaken = Untaken::default();
        let answers = async {
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(7200) {
                // Reading answers it.
                assert!(matches!(browser.next().await, Some(Ok(Message::Ping(_)))));
            }
            browser.close(None).await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (end, after) = listen(&mut stream) => {
                assert_eq!(end.for_log(), "the browser has closed it");
                assert_eq!(after.as_secs(), 7200);
            }
            _ = show_output(&mut output, &mut sink, &untaken) => panic!("the output has ended"),
            () = answers => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_typed_and_not_taken_is_limited() {
        let [server, mut browser] = sockets().await;
        let (_sink, mut stream) = server.split();
        let types = async {
            for _ in 0..=MAX_TYPED / MAX_MESSAGE {
                let _ = browser.send(Message::binary(vec![b'x'; MAX_MESSAGE])).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (end, _) = listen(&mut stream) => assert_eq!(end.code, CloseCode::Size),
            () = types => {}
        }
    }
}
