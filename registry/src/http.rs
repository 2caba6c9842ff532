//! The HTTP server: hyper, on a runtime of one thread. What a request asks for may block, so other threads
//! do it. What is served is a [`Site`]: the API, or the API and what stands beside it.
//!
//! Places are few. When another client comes, one that has not shown the key gives up its place: the oldest
//! of the network that has the most of them.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::proxies::{
    forwarded_for, looks_like_header, ClientAddress, HeaderReader, Proxies, Source,
};
use aiot_tunnel_proto::LogLimiter;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, EXPECT};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use openssl::pkey::PKey;
use openssl::ssl::{Ssl, SslAcceptor, SslMethod, SslOptions};
use openssl::x509::X509;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_openssl::SslStream;
use zeroize::Zeroizing;

use crate::guard::network;
use crate::{Error, Result};

/// Time for a TLS handshake, for the head of a request, and for its body.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a request and its answer together.
const LIFE: Duration = Duration::from_secs(60);
/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Longest body, in bytes. The largest that means something is some hundred bytes long.
const MAX_BODY: usize = 64 * 1024;
/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
/// Threads for what requests ask for. The store takes one of them at a time.
const WORKERS: usize = 4;
/// After a failed accept, for example without a free descriptor.
const PAUSE: Duration = Duration::from_millis(100);
/// How long, and for how many bytes, the body of a refused request is still read. If the socket were
/// closed with unread bytes, the client might not see the answer.
const PARTING: Duration = Duration::from_secs(1);
const MAX_PARTING: usize = 1024 * 1024;
/// Stack of a thread, in bytes.
const STACK: usize = 512 * 1024;

/// What answers the requests of a listener.
pub trait Site: Send + Sync + 'static {
    /// When a client has its turn: those that guess a key wait. Must not block.
    ///
    /// # Errors
    /// The answer to a client that shall come later.
    fn turn(&self, head: &Head<'_>) -> std::result::Result<Instant, Answer>;

    /// Whether a request may go on, once the client has its turn. It is asked before the body is read.
    /// Must not block.
    ///
    /// # Errors
    /// The answer to a client that may not.
    fn admit(&self, head: &Head<'_>) -> std::result::Result<Client, Answer>;

    /// Does what an admitted request asks for. May block.
    fn answer(&self, head: &Head<'_>, body: &[u8]) -> Answer;
}

/// Whether a client has shown who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// It has.
    Known,
    /// It has not, and may lose its place to another one.
    Stranger,
}

/// The head of a request.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Such as `GET`.
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    /// What stands behind the `?` of the path.
    pub query: Option<&'a str>,
    /// The client's address, as far as proxies may tell it.
    pub from: IpAddr,
    /// Whether the client's connection is TLS, as far as proxies may tell it.
    pub is_secure: bool,
    headers: &'a HeaderMap,
}

impl<'a> Head<'a> {
    fn of(parts: &'a hyper::http::request::Parts, origin: Origin) -> Self {
        Head {
            method: parts.method.as_str(),
            path: parts.uri.path(),
            query: parts.uri.query(),
            from: origin.from.ip,
            is_secure: origin.is_secure,
            headers: &parts.headers,
        }
    }

    /// All header lines.
    #[must_use]
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// The value of a header that stands there once, without spaces around it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        the_only(self.headers, name)
    }
}

/// The value of a header that stands there once.
fn the_only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let (first, second) = (all.next()?, all.next());
    first.to_str().ok().filter(|_| second.is_none()).map(str::trim)
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    from: ClientAddress,
    is_secure: bool,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// More header lines.
    pub headers: Vec<(&'static str, String)>,
    /// Empty: the answer has no content.
    pub content_type: &'static str,
    /// May hold tokens.
    pub body: Content,
    /// What the connection is used for after an answer with status 101.
    pub upgrade: Option<Upgrade>,
}

/// The body of an answer.
#[derive(Debug)]
pub enum Content {
    /// Made for this answer.
    Text(Zeroizing<String>),
    /// A part of the program.
    Embedded(&'static [u8]),
}

/// The connection of an answer with status 101.
pub type Connection = TokioIo<Upgraded>;

/// Uses a connection until it ends, on the thread of the server: it must not block.
pub struct Upgrade(Box<Work>);

type Work = dyn FnOnce(Connection) -> Running + Send;
type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Upgrade {
    /// Runs `work` with the connection once the answer is sent.
    pub fn new<F>(work: impl FnOnce(Connection) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Upgrade(Box::new(move |connection| Box::pin(work(connection))))
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade(..)")
    }
}

impl Answer {
    /// An answer with a text.
    #[must_use]
    pub fn text(status: u16, content_type: &'static str, text: String) -> Self {
        let body = Content::Text(Zeroizing::new(text));
        Answer { status, headers: Vec::new(), content_type, body, upgrade: None }
    }

    /// An answer without content.
    #[must_use]
    pub fn empty(status: u16) -> Self {
        Answer::text(status, "", String::new())
    }

    /// Adds a header line. One of these names is set in any case; this value counts.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// The certificate of the listener. Cheap to clone; a new certificate is for new connections.
#[derive(Clone, Default)]
pub struct Tls(Arc<Mutex<Option<SslAcceptor>>>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Without TLS, until [`set_pem`](Self::set_pem).
    #[must_use]
    pub fn off() -> Self {
        Tls::default()
    }

    /// Sets certificate chain and key, in PEM.
    ///
    /// # Errors
    /// [`Error::Invalid`]: they cannot be used. The old ones stay.
    pub fn set_pem(&self, chain: &[u8], key: &[u8]) -> Result<()> {
        let invalid = |e: openssl::error::ErrorStack| Error::Invalid(e.to_string());
        // Without the callback, OpenSSL would ask for a password on the terminal.
        let key = PKey::private_key_from_pem_callback(key, |_| Ok(0)).map_err(invalid)?;
        let mut chain = X509::stack_from_pem(chain).map_err(invalid)?.into_iter();
        let own = chain.next().ok_or_else(|| Error::Invalid("no certificate".into()))?;
        let acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server());
        let mut acceptor = acceptor.map_err(invalid)?;
        acceptor.set_options(SslOptions::NO_RENEGOTIATION);
        acceptor.set_certificate(&own).map_err(invalid)?;
        for certificate in chain {
            acceptor.add_extra_chain_cert(certificate).map_err(invalid)?;
        }
        acceptor.set_private_key(&key).map_err(invalid)?;
        *lock(&self.0) = Some(acceptor.build());
        Ok(())
    }
}

/// The proxies in front of the listener. New ones are for new connections.
pub type SharedProxies = Arc<RwLock<Proxies>>;

/// Binds the address and serves the site on threads of its own, until the process ends. Returns the
/// address, whose port may have been 0.
///
/// # Errors
/// The address cannot be bound, or no thread can be created.
pub fn serve(
    site: Arc<dyn Site>,
    address: SocketAddr,
    tls: Tls,
    proxies: SharedProxies,
) -> Result<SocketAddr> {
    let failed = |e: io::Error| Error::Listen(address, e);
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let own = listener.local_addr().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(WORKERS)
        .thread_name("api-worker")
        .thread_stack_size(STACK)
        .build()
        .map_err(failed)?;
    let server = Arc::new(Server {
        site,
        tls,
        proxies,
        limiter: Mutex::default(),
        clients: Mutex::default(),
        left: Notify::new(),
    });
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener).map_err(failed)?
    };
    let run = move || runtime.block_on(server.accept(&listener));
    let thread = thread::Builder::new().name("api".into()).stack_size(STACK).spawn(run);
    thread.map_err(failed)?;
    Ok(own)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Server {
    site: Arc<dyn Site>,
    tls: Tls,
    proxies: SharedProxies,
    /// Of lines that any client can cause.
    limiter: Mutex<LogLimiter>,
    clients: Mutex<Clients>,
    /// One of them has left.
    left: Notify,
}

#[derive(Default)]
struct Clients {
    count: usize,
    next: u64,
    /// Those that have not shown the key, the oldest first, to cut them off.
    strangers: BTreeMap<u64, (IpAddr, AbortHandle)>,
}

impl Clients {
    /// Takes out the oldest stranger of the network that has the most of them, so that many clients of one
    /// network hold up each other first.
    fn first_to_go(&mut self) -> Option<AbortHandle> {
        let mut counts = HashMap::new();
        for (network, _) in self.strangers.values() {
            *counts.entry(*network).or_insert(0) += 1;
        }
        let most = counts.values().max().copied()?;
        let mut all = self.strangers.iter();
        let (number, _) = all.find(|(_, (network, _))| counts[network] == most)?;
        let number = *number;
        self.strangers.remove(&number).map(|(_, client)| client)
    }
}

/// A client. Dropping it frees its place.
struct Place {
    server: Arc<Server>,
    number: u64,
}

impl Place {
    /// The client has shown the key.
    fn is_known(&self) {
        lock(&self.server.clients).strangers.remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = lock(&self.server.clients);
        clients.strangers.remove(&self.number);
        clients.count -= 1;
        drop(clients);
        self.server.left.notify_one();
    }
}

impl Server {
    async fn accept(self: Arc<Self>, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((tcp, from)) => {
                    let place = self.place().await;
                    let number = place.number;
                    let client = self.clone().serve(tcp, from.into(), Arc::new(place));
                    let client = tokio::spawn(client);
                    // It runs when this task waits, so it is not known yet.
                    let stranger = (network(from.ip()), client.abort_handle());
                    lock(&self.clients).strangers.insert(number, stranger);
                    // It begins before another one may take its place.
                    tokio::task::yield_now().await;
                }
                Err(e) => {
                    log::debug!("api: accept: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Waits for a place. While there is none, strangers give way.
    async fn place(self: &Arc<Self>) -> Place {
        loop {
            {
                let mut clients = lock(&self.clients);
                if clients.count < MAX_CONNECTIONS {
                    clients.count += 1;
                    clients.next += 1;
                    return Place { server: self.clone(), number: clients.next };
                }
                if let Some(client) = clients.first_to_go() {
                    client.abort();
                }
            }
            self.left.notified().await;
        }
    }

    async fn serve(self: Arc<Self>, tcp: TcpStream, from: ClientAddress, place: Arc<Place>) {
        if let Err(e) = self.serve_client(tcp, from, &place).await {
            log::debug!("api: {from}: {e}");
        }
    }

    async fn serve_client(
        self: &Arc<Self>,
        mut tcp: TcpStream,
        from: ClientAddress,
        place: &Arc<Place>,
    ) -> io::Result<()> {
        tcp.set_nodelay(true)?;
        let tls = lock(&self.tls.0).clone();
        let proxies = self.proxies.read().unwrap_or_else(PoisonError::into_inner).clone();
        let client = self.client_of_connection(&mut tcp, from, &proxies);
        let (from, vouches) = timeout(TIMEOUT, client).await??;
        let origin = Origin { from, is_secure: tls.is_some() };
        match tls {
            // What passes on TLS has not read the request, and vouches for nothing in it.
            Some(acceptor) => {
                let stream = secured(&acceptor, tcp).await?;
                self.converse(stream, (origin, None), place).await
            }
            None => self.converse(tcp, (origin, Some(&proxies).filter(|_| vouches)), place).await,
        }
    }

    /// The client of a connection, by its header of the PROXY protocol if there must be one, and whether
    /// `X-Forwarded-For` may count. It may not if the proxy does not know who has written the request.
    async fn client_of_connection(
        &self,
        tcp: &mut TcpStream,
        from: ClientAddress,
        proxies: &Proxies,
    ) -> io::Result<(ClientAddress, bool)> {
        if !proxies.send_header() {
            return Ok((from, true));
        }
        let refused = || io::Error::other("refused");
        if !proxies.trusts(from.ip) {
            let mut first = [0; 16];
            let length = tcp.peek(&mut first).await?;
            if looks_like_header(&first[..length]) {
                self.complain(format_args!(
                    "{from}: refused: it sends a header of the PROXY protocol and is not a trusted proxy"
                ));
                return Err(refused());
            }
            return Ok((from, true));
        }
        let mut reader = HeaderReader::default();
        loop {
            let length = match tcp.read(reader.space()).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => length,
            };
            match reader.received(length) {
                Ok(None) => {}
                Ok(Some(Source::Client(client))) => return Ok((client.into(), true)),
                Ok(Some(Source::Local)) => return Ok((from, true)),
                Ok(Some(Source::Unknown)) => return Ok((from, false)),
                Err(wrong) => {
                    self.complain(format_args!("{from}: the trusted proxy is refused: {wrong}"));
                    return Err(refused());
                }
            }
        }
    }

    /// Logs what any client can cause as often as it likes.
    fn complain(&self, what: std::fmt::Arguments<'_>) {
        let now = Instant::now();
        let mut limiter = lock(&self.limiter);
        if let Some(count) = limiter.tick(now) {
            log::warn!("api: {count} more such lines were left out");
        }
        if limiter.permits(now) {
            log::warn!("api: {what}");
        }
    }

    async fn converse<S>(
        self: &Arc<Self>,
        stream: S,
        (origin, proxies): (Origin, Option<&Proxies>),
        place: &Arc<Place>,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|mut request: Request<Incoming>| async move {
            let upgrade = hyper::upgrade::on(&mut request);
            let headers = request.headers();
            let origin = proxies.map_or(origin, |proxies| origin_of(origin, headers, proxies));
            let mut answer = self.respond(request, origin, place).await;
            if let Some(work) = answer.upgrade.take() {
                tokio::spawn(upgraded(upgrade, work, place.clone()));
            }
            Ok::<_, Infallible>(response(answer))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(TIMEOUT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            // Places are few: who has its answer leaves.
            .keep_alive(false)
            // Some clients close their direction behind the request.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        timeout(LIFE, connection).await?.map_err(io::Error::other)
    }

    async fn respond(&self, request: Request<Incoming>, origin: Origin, place: &Place) -> Answer {
        let (parts, mut body) = request.into_parts();
        let head = Head::of(&parts, origin);
        let admitted = match self.site.turn(&head) {
            Err(answer) => Err(answer),
            Ok(turn) => {
                tokio::time::sleep_until(turn.into()).await;
                self.site.admit(&head)
            }
        };
        let admitted = admitted.and_then(|client| {
            if client == Client::Known {
                place.is_known();
            }
            let is_long = body.size_hint().lower() > MAX_BODY as u64;
            if is_long {
                Err(too_long())
            } else {
                Ok(())
            }
        });
        if let Err(answer) = admitted {
            // Who asks first has not sent the body.
            if !parts.headers.contains_key(EXPECT) {
                let _ = timeout(PARTING, drop_body(&mut body)).await;
            }
            return answer;
        }
        let bytes = match timeout(TIMEOUT, Limited::new(&mut body, MAX_BODY).collect()).await {
            Err(_) => return Answer::error(408, "the body of the request took too long"),
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(e)) if e.is::<LengthLimitError>() => {
                let _ = timeout(PARTING, drop_body(&mut body)).await;
                return too_long();
            }
            Ok(Err(_)) => return Answer::error(400, "the body of the request is not complete"),
        };
        let site = self.site.clone();
        let work = move || site.answer(&Head::of(&parts, origin), &bytes);
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|_| Answer::error(500, "the gateway failed; its log says more"))
    }
}

/// Where a request comes from that a trusted proxy, or a client at `origin`, has sent.
fn origin_of(origin: Origin, headers: &HeaderMap, proxies: &Proxies) -> Origin {
    let values = headers.get_all("x-forwarded-for").iter().map(HeaderValue::as_bytes);
    let found = forwarded_for(origin.from, values, proxies);
    if let Some(entry) = found.malformed {
        let entry = String::from_utf8_lossy(&entry[..entry.len().min(80)]);
        log::debug!(
            "api: {}: X-Forwarded-For: {entry:?} is not an address; {} counts",
            origin.from,
            found.client
        );
    }
    let says_https = || the_only(headers, "x-forwarded-proto").is_some_and(|by| by == "https");
    let is_secure = origin.is_secure || proxies.trusts(origin.from.ip) && says_https();
    Origin { from: found.client, is_secure }
}

/// Waits until the answer is sent, and uses the connection. The client keeps its place.
async fn upgraded(connection: OnUpgrade, work: Upgrade, _place: Arc<Place>) {
    match timeout(TIMEOUT, connection).await {
        Ok(Ok(connection)) => work.0(TokioIo::new(connection)).await,
        Ok(Err(e)) => log::debug!("api: upgrade: {e}"),
        Err(_) => log::debug!("api: upgrade: the answer took too long"),
    }
}

async fn secured(acceptor: &SslAcceptor, tcp: TcpStream) -> io::Result<SslStream<TcpStream>> {
    let mut stream = SslStream::new(Ssl::new(acceptor.context())?, tcp)?;
    timeout(TIMEOUT, Pin::new(&mut stream).accept()).await?.map_err(io::Error::other)?;
    Ok(stream)
}

async fn drop_body(body: &mut Incoming) {
    let mut left = MAX_PARTING;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            break;
        }
    }
}

fn too_long() -> Answer {
    Answer::error(413, "the body is too long")
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let Answer { status, headers: more, content_type, body, upgrade: _ } = answer;
    let mut response = Response::new(Full::new(match body {
        Content::Text(text) => Bytes::from_owner(text),
        Content::Embedded(bytes) => Bytes::from_static(bytes),
    }));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if !content_type.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    // Answers hold tokens and the state of now.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in more {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_largest_network_gives_way() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut clients = Clients::default();
        let mut tasks = Vec::new();
        for (number, host) in [1, 2, 2, 3, 2, 1].into_iter().enumerate() {
            let task = runtime.spawn(std::future::pending::<()>());
            let stranger = (IpAddr::from([192, 0, 2, host]), task.abort_handle());
            clients.strangers.insert(number as u64, stranger);
            tasks.push(task);
        }
        let mut gone = Vec::new();
        while clients.first_to_go().is_some() {
            let left: Vec<u64> = clients.strangers.keys().copied().collect();
            let is_new = |number: &u64| !left.contains(number) && !gone.contains(number);
            let new: Vec<u64> = (0..6).filter(is_new).collect();
            gone.extend(new);
        }
        // Host 2 has three; then each of 1 and 2 has two, of which 1 has the oldest.
        assert_eq!(gone, [1, 0, 2, 3, 4, 5]);
    }
}
