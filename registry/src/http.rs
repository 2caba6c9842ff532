//! The HTTP server of the API: one request for each connection, a thread for each.
//!
//! It is small on purpose: it reads a head and a body of limited size until a deadline, and writes an
//! answer. There is no chunked body, no pipeline and no second request in which two parsers could
//! differ. A runtime with an HTTP library would be twenty crates for six paths.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::proxies::{
    forwarded_for, looks_like_header, ClientAddress, HeaderReader, Proxies, Source,
};
use aiot_tunnel_proto::LogLimiter;
use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod, SslOptions};
use openssl::x509::X509;
use zeroize::Zeroizing;

use crate::api::{Answer, Api, Head};
use crate::{Error, Result};

/// Time for a request and its answer together, waiting for a turn not included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Longest body, in bytes. The largest that means something is some hundred bytes long.
const MAX_BODY: usize = 64 * 1024;
/// Connections at once. When there is one more, the oldest that has not shown the key gives way.
const MAX_CONNECTIONS: usize = 64;
/// After a failed accept, for example without a free descriptor.
const PAUSE: Duration = Duration::from_millis(100);
/// How long, and for how many bytes, the server still reads from a client after its answer.
const PARTING: Duration = Duration::from_secs(1);
const MAX_PARTING: usize = 1024 * 1024;
/// Stack of a thread, in bytes.
const STACK: usize = 512 * 1024;

/// The certificate of the API's listener. Cheap to clone; a new certificate is for new connections.
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

/// The proxies in front of the API's listener. New ones are for new connections.
pub type SharedProxies = Arc<RwLock<Proxies>>;

/// Binds the address and serves the API on threads of its own, until the process ends. Returns the
/// address, whose port may have been 0.
///
/// # Errors
/// The address cannot be bound, or no thread can be created.
pub fn serve(
    api: Arc<Api>,
    address: SocketAddr,
    tls: Tls,
    proxies: SharedProxies,
) -> Result<SocketAddr> {
    let failed = |e: io::Error| Error::Invalid(format!("listen on {address} for the API: {e}"));
    let listener = TcpListener::bind(address).map_err(failed)?;
    let own = listener.local_addr().map_err(failed)?;
    let server = Arc::new(Server {
        api,
        tls,
        proxies,
        limiter: Mutex::default(),
        clients: Mutex::default(),
        left: Condvar::new(),
    });
    let run = move || server.accept(&listener);
    let thread = thread::Builder::new().name("api".into()).stack_size(STACK).spawn(run);
    thread.map_err(failed)?;
    Ok(own)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Server {
    api: Arc<Api>,
    tls: Tls,
    proxies: SharedProxies,
    /// Of lines that any client can cause.
    limiter: Mutex<LogLimiter>,
    clients: Mutex<Clients>,
    /// One of them has left.
    left: Condvar,
}

#[derive(Default)]
struct Clients {
    count: usize,
    next: u64,
    /// Those that have not shown the key, the oldest first, to cut them off.
    strangers: BTreeMap<u64, TcpStream>,
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
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept().and_then(|(tcp, from)| {
                let cut = tcp.try_clone()?;
                let place = self.place(cut);
                let server = self.clone();
                let run = move || server.serve(tcp, from.into(), &place);
                let thread = thread::Builder::new().name("api-client".into()).stack_size(STACK);
                thread.spawn(run).map(drop)
            });
            if let Err(e) = accepted {
                log::debug!("api: accept: {e}");
                thread::sleep(PAUSE);
            }
        }
    }

    /// Waits for a place. While there is none, strangers give way.
    fn place(self: &Arc<Self>, cut: TcpStream) -> Place {
        let mut clients = lock(&self.clients);
        while clients.count >= MAX_CONNECTIONS {
            if let Some((_, oldest)) = clients.strangers.pop_first() {
                let _ = oldest.shutdown(Shutdown::Both);
            }
            clients = self.left.wait(clients).unwrap_or_else(PoisonError::into_inner);
        }
        clients.count += 1;
        clients.next += 1;
        let number = clients.next;
        clients.strangers.insert(number, cut);
        Place { server: self.clone(), number }
    }

    fn serve(&self, tcp: TcpStream, from: ClientAddress, place: &Place) {
        let tls = lock(&self.tls.0).clone();
        let proxies = self.proxies.read().unwrap_or_else(PoisonError::into_inner).clone();
        let outcome = tcp.set_nodelay(true).and_then(|()| {
            let mut timed = Timed { tcp, deadline: Instant::now() + TIMEOUT };
            let (from, vouches) = self.client_of_connection(&mut timed, from, &proxies)?;
            match tls {
                // What passes on TLS has not read the request, and vouches for nothing in it.
                Some(acceptor) => {
                    let stream = acceptor.accept(timed).map_err(io::Error::other)?;
                    self.converse(stream, (from, None), place, |stream| stream.get_mut())
                }
                None => {
                    let proxies = Some(&proxies).filter(|_| vouches);
                    self.converse(timed, (from, proxies), place, |stream| stream)
                }
            }
        });
        if let Err(e) = outcome {
            log::debug!("api: {from}: {e}");
        }
    }

    /// The client of a connection, by its header of the PROXY protocol if there must be one, and whether
    /// `X-Forwarded-For` may count. It may not if the proxy does not know who has written the request.
    fn client_of_connection(
        &self,
        timed: &mut Timed,
        from: ClientAddress,
        proxies: &Proxies,
    ) -> io::Result<(ClientAddress, bool)> {
        if !proxies.send_header() {
            return Ok((from, true));
        }
        let refused = || io::Error::other("refused");
        if !proxies.trusts(from.ip) {
            let mut first = [0; 16];
            let length = timed.peek(&mut first)?;
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
            let length = match timed.read(reader.space()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
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

    fn converse<S: Read + Write>(
        &self,
        mut stream: S,
        from: (ClientAddress, Option<&Proxies>),
        place: &Place,
        timed: fn(&mut S) -> &mut Timed,
    ) -> io::Result<()> {
        let answer = match read_head(&mut stream) {
            Ok((bytes, length)) => {
                let (head, rest) = bytes.split_at(length);
                self.respond(&mut stream, from, place, (head, rest), timed)?
            }
            Err(Refusal::Answer(answer)) => answer,
            Err(Refusal::Lost(e)) => return Err(e),
        };
        // Whoever was too slow is told so.
        let end = &mut timed(&mut stream).deadline;
        *end = (*end).max(Instant::now() + PARTING);
        stream.write_all(&written(&answer))?;
        stream.flush()?;
        // If the socket were closed with unread bytes, the client might not see the answer.
        let timed = timed(&mut stream);
        timed.tcp.shutdown(Shutdown::Write)?;
        timed.deadline = timed.deadline.min(Instant::now() + PARTING);
        let (mut scratch, mut left) = ([0; 4096], MAX_PARTING);
        while left > 0 {
            match timed.read(&mut scratch) {
                Ok(0) | Err(_) => break,
                Ok(length) => left = left.saturating_sub(length),
            }
        }
        Ok(())
    }

    /// Reads the rest of a request and does what it asks for.
    fn respond<S: Read + Write>(
        &self,
        stream: &mut S,
        (from, proxies): (ClientAddress, Option<&Proxies>),
        place: &Place,
        (head, rest): (&[u8], &[u8]),
        timed: fn(&mut S) -> &mut Timed,
    ) -> io::Result<Answer> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        if let Err(e) = request.parse(head) {
            return Ok(match e {
                httparse::Error::TooManyHeaders => Answer::error(431, "too many header lines"),
                _ => Answer::error(400, "this is no HTTP request"),
            });
        }
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Ok(Answer::error(400, "this is no HTTP request"));
        };
        let head = Head {
            method,
            target,
            authorization: the_only(request.headers, "authorization"),
            content_type: the_only(request.headers, "content-type"),
            from: proxies
                .map_or(from, |proxies| client_of_request(from, request.headers, proxies))
                .ip,
        };
        let wait = |until: Instant| {
            let now = Instant::now();
            if until > now {
                thread::sleep(until - now);
                timed(stream).deadline += until - now;
            }
        };
        if let Err(answer) = self.api.admit(&head, wait) {
            return Ok(answer);
        }
        place.is_known();
        let length = match body_length(request.headers) {
            Ok(length) => length,
            Err(answer) => return Ok(answer),
        };
        if length > MAX_BODY {
            return Ok(Answer::error(413, "the body is too long"));
        }
        let mut body = rest[..rest.len().min(length)].to_vec();
        if body.len() < length {
            let expects = the_only(request.headers, "expect");
            if expects.is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let already = body.len();
            body.resize(length, 0);
            match stream.read_exact(&mut body[already..]) {
                Ok(()) => {}
                Err(e) if is_timeout(&e) => return Ok(too_slow()),
                Err(e) => return Err(e),
            }
        }
        let mut answer = self.api.answer(&head, &body);
        if method == "HEAD" {
            // A body would be taken for the next answer.
            answer.body.clear();
        }
        Ok(answer)
    }
}

/// The client of a request that came from `from`.
fn client_of_request(
    from: ClientAddress,
    headers: &[httparse::Header<'_>],
    proxies: &Proxies,
) -> ClientAddress {
    let named =
        |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("x-forwarded-for");
    let values = headers.iter().filter(named).map(|header| header.value);
    let found = forwarded_for(from, values, proxies);
    if let Some(entry) = found.malformed {
        let entry = String::from_utf8_lossy(&entry[..entry.len().min(80)]);
        log::debug!(
            "api: {from}: X-Forwarded-For: {entry:?} is not an address; {} counts",
            found.client
        );
    }
    found.client
}

/// Why a head was not read.
enum Refusal {
    Answer(Answer),
    Lost(io::Error),
}

/// What was received, and how many bytes of it are the head. The head may hold the key.
type Received = (Zeroizing<Vec<u8>>, usize);

fn read_head(stream: &mut impl Read) -> std::result::Result<Received, Refusal> {
    // It never grows, so that no copy of the key is left behind.
    let mut bytes = Zeroizing::new(vec![0; MAX_HEAD]);
    let mut filled = 0;
    loop {
        let from = filled;
        filled += match stream.read(&mut bytes[from..]) {
            Ok(0) if filled == 0 => return Err(Refusal::Lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(0) if filled < MAX_HEAD => {
                return Err(Refusal::Answer(Answer::error(400, "the request is not complete")));
            }
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) if is_timeout(&e) => return Err(Refusal::Answer(too_slow())),
            Err(e) => return Err(Refusal::Lost(e)),
        };
        // Empty lines before a request are skipped by the parser.
        let begin = bytes[..filled].iter().take_while(|byte| b"\r\n".contains(byte)).count();
        // The end may have begun in what came before.
        let look = from.saturating_sub(3).max(begin);
        let end = bytes[look.min(filled)..filled].windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            bytes.truncate(filled);
            return Ok((bytes, look + end + 4));
        }
        if filled == MAX_HEAD {
            return Err(Refusal::Answer(Answer::error(431, "the head of the request is too long")));
        }
    }
}

/// The value of a header that stands there once.
fn the_only<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let mut all = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let (first, second) = (all.next()?, all.next());
    std::str::from_utf8(first.value).ok().filter(|_| second.is_none()).map(str::trim)
}

fn body_length(headers: &[httparse::Header<'_>]) -> std::result::Result<usize, Answer> {
    let has = |name: &str| headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if has("transfer-encoding") {
        return Err(Answer::error(411, "give the length of the body: Content-Length"));
    }
    if !has("content-length") {
        return Ok(0);
    }
    let digits = the_only(headers, "content-length")
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits {
        // More digits than a number has are too long a body.
        Some(digits) => Ok(digits.parse().unwrap_or(usize::MAX)),
        None => Err(Answer::error(400, "Content-Length is not a number")),
    }
}

fn too_slow() -> Answer {
    Answer::error(408, "the request took too long")
}

fn is_timeout(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// An answer as it goes over the wire. It may hold tokens.
fn written(answer: &Answer) -> Zeroizing<Vec<u8>> {
    let Answer { status, headers, content_type, body } = answer;
    let mut head = format!("HTTP/1.1 {status} {}\r\n", phrase(*status));
    if *status != 204 {
        head += &format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    // Answers hold tokens and the state of now.
    head += "Cache-Control: no-store\r\nConnection: close\r\n\r\n";
    let mut bytes = Zeroizing::new(Vec::with_capacity(head.len() + body.len()));
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "",
    }
}

/// A socket whose reads and writes together have one deadline.
#[derive(Debug)]
struct Timed {
    tcp: TcpStream,
    deadline: Instant,
}

impl Timed {
    fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(self.left()?)?;
        self.tcp.peek(buffer)
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(self.left()?)?;
        self.tcp.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(self.left()?)?;
        self.tcp.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
