//! A cloud for one test: an unmodified tungstenite server with the test's hands on every frame.
#![allow(dead_code)]

pub mod logs;
pub mod queue;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::*;
use serde_json::{json, Value};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::{Message, WebSocket};

/// Nothing in these tests takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Nor does a device pause so long between two attempts in a test.
const COMES_AGAIN: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };

/// Every token in a test begins with `hush-`: that is what `scripts/scan-logs` looks for.
pub const DEVICE_TOKEN: &str = "hush-device-token";
/// The other end's.
pub const ACCESS_TOKEN: &str = "hush-access-token";

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Where devices connect.
pub struct Cloud {
    pub listener: TcpListener,
    acceptor: Option<openssl::ssl::SslAcceptor>,
}

impl Cloud {
    pub fn plain() -> Self {
        logs::keep();
        Cloud { listener: TcpListener::bind("127.0.0.1:0").unwrap(), acceptor: None }
    }

    pub fn tls(acceptor: openssl::ssl::SslAcceptor) -> Self {
        Cloud { acceptor: Some(acceptor), ..Cloud::plain() }
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub fn params(&self) -> ConnectParams {
        params("127.0.0.1", self.address().port())
    }

    /// The next device that connects.
    pub fn accept(&self) -> Device {
        self.accept_if(|_| None).unwrap()
    }

    /// The next device, refused with a status if `refuse` says so.
    pub fn accept_if(&self, refuse: impl Fn(&Request) -> Option<u16>) -> Option<Device> {
        self.admit(DEVICE_TOKEN, refuse)
    }

    /// The next device, which has a token of its own.
    pub fn accept_with_token(&self, token: &str) -> Device {
        self.admit(token, |_| None).unwrap()
    }

    #[allow(clippy::result_large_err)]
    fn admit(&self, token: &str, refuse: impl Fn(&Request) -> Option<u16>) -> Option<Device> {
        let tcp = accept(&self.listener);
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp.set_nodelay(true).unwrap();
        let raw = tcp.try_clone().unwrap();
        let stream: Box<dyn Stream> = match &self.acceptor {
            None => Box::new(tcp),
            Some(acceptor) => Box::new(acceptor.accept(tcp).ok()?),
        };
        let mut path = String::new();
        let answer = |request: &Request, mut response: Response| {
            assert_eq!(request.headers()["sec-websocket-protocol"], "aliyun.iot.securetunnel-v1.1");
            assert_eq!(request.headers()["tunnel-access-token"], token);
            path = request.uri().to_string();
            if let Some(status) = refuse(request) {
                let mut refusal = ErrorResponse::new(None);
                *refusal.status_mut() = status.try_into().unwrap();
                return Err(refusal);
            }
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        let socket = tungstenite::accept_hdr(stream, answer).ok()?;
        Some(Device { socket, raw, path })
    }
}

/// The next connection. Where none comes, the test fails, and does not wait for ever.
pub fn accept(listener: &TcpListener) -> TcpStream {
    use rustix::event::{poll, PollFd, PollFlags};
    let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&COMES_AGAIN)).unwrap();
    assert_eq!(ready, 1, "nobody connects in time");
    listener.accept().unwrap().0
}

/// Says that a test cannot be run here, past libtest, which shows what it captures of failed tests
/// only. With `AIOT_TUNNEL_NO_SKIP=1`, where everything can be run, that is a failure.
pub fn skip(test: &str, why: impl std::fmt::Display) {
    let text = format!("{test} is SKIPPED: {why}\n");
    assert!(std::env::var_os("AIOT_TUNNEL_NO_SKIP").is_none_or(|set| set != "1"), "{text}");
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The `aiot-tunnel` program that cargo has built beside this executable, in `target/PROFILE`.
pub fn program() -> std::path::PathBuf {
    let executable = std::env::current_exe().unwrap();
    let program = executable.parent().and_then(|deps| deps.parent()).unwrap().join("aiot-tunnel");
    assert!(program.exists(), "no {}: cargo build -p aiot-tunnel-cli", program.display());
    program
}

/// A connected device, as the cloud sees it.
pub struct Device {
    pub socket: WebSocket<Box<dyn Stream>>,
    pub raw: TcpStream,
    pub path: String,
}

impl Device {
    pub fn send(&mut self, header: Value, payload: &[u8]) {
        self.send_raw(&frame(&header.to_string(), payload));
    }

    pub fn send_raw(&mut self, message: &[u8]) {
        self.socket.send(Message::binary(message.to_vec())).unwrap();
    }

    pub fn data(&mut self, session: &str, payload: &[u8]) {
        self.send(json!({"frame_type": 4, "session_id": session, "frame_id": 9}), payload);
    }

    /// The next frame from the device.
    pub fn receive(&mut self) -> (Value, Vec<u8>) {
        loop {
            if let Message::Binary(message) = self.socket.read().unwrap() {
                let length = usize::from(u16::from_be_bytes([message[0], message[1]]));
                let header = serde_json::from_slice(&message[2..2 + length]).unwrap();
                return (header, message[2 + length..].to_vec());
            }
        }
    }

    /// Asks for a session and gives the code of the answer.
    pub fn create(&mut self, session: &str, service: &str) -> i64 {
        let id = 1000 + session.len();
        self.send(
            json!({"frame_type": 2, "session_id": session, "frame_id": id, "service_type": service}),
            b"",
        );
        let (header, payload) = self.receive();
        assert_eq!(header["frame_type"], 1, "{header}");
        assert_eq!(header["session_id"], session);
        assert_eq!(header["frame_id"], id);
        assert_eq!(header["service_type"], service);
        code(&payload)
    }

    /// So many bytes of one session; nothing else may come in between.
    pub fn receive_data(&mut self, session: &str, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let (header, payload) = self.receive();
            assert_eq!(header["frame_type"], 4, "{header} {}", String::from_utf8_lossy(&payload));
            assert_eq!(header["session_id"], session);
            assert!(payload.len() <= 4096);
            bytes.extend(payload);
        }
        bytes
    }
}

pub fn code(payload: &[u8]) -> i64 {
    serde_json::from_slice::<Value>(payload).unwrap()["code"].as_i64().unwrap()
}

pub fn frame(header: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub fn params(host: &str, port: u16) -> ConnectParams {
    let token = Token::new(DEVICE_TOKEN).unwrap();
    ConnectParams::new(host, Port::new(port).unwrap(), "/tunnel/t/dest?x=1", token).unwrap()
}

pub fn id(text: &str) -> TunnelId {
    TunnelId::new(text).unwrap()
}

/// A manager on its start thread, its events in a channel; stopped and joined when dropped.
pub struct Running {
    pub handle: Handle,
    pub events: mpsc::Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(builder: ManagerBuilder) -> Self {
        logs::keep();
        let (sender, events) = mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let manager = builder
            .on_event(move |_, event| drop(sender.lock().unwrap().send(event.clone())))
            .build()
            .unwrap();
        let handle = manager.handle();
        let thread = thread::spawn(move || manager.run().unwrap());
        Running { handle, events, thread: Some(thread) }
    }

    /// Waits for the next event, which must be this one.
    pub fn expect(&self, kind: EventKind, tunnel: &str) {
        let event = self.events.recv_timeout(PATIENCE).expect("an event in time");
        assert_eq!((event.kind, event.tunnel_id.as_str()), (kind, tunnel));
    }

    pub fn stop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A local service: every connection is served by `serve` on a thread of its own.
pub fn service(name: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = Port::new(listener.local_addr().unwrap().port()).unwrap();
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    Service::new(name, "127.0.0.1", port).unwrap()
}

pub fn echo(name: &str) -> Service {
    service(name, |mut stream| {
        let mut buffer = [0; 65536];
        while let Ok(length) = stream.read(&mut buffer) {
            if length == 0 || stream.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    })
}

pub fn plain() -> ManagerBuilder {
    Manager::builder().security(Security::Plain)
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A throwaway CA and server certificates, made with OpenSSL.
pub struct Authority {
    key: openssl::pkey::PKey<openssl::pkey::Private>,
    certificate: openssl::x509::X509,
}

impl Authority {
    pub fn new() -> Self {
        let key = new_key();
        let certificate = certify(&key, "test CA", None, None, 1);
        Authority { key, certificate }
    }

    /// An intermediate CA that this one has certified.
    pub fn intermediate(&self) -> Self {
        let key = new_key();
        let certificate = certify(&key, "test intermediate CA", Some(self), None, 1);
        Authority { key, certificate }
    }

    pub fn pem(&self) -> Vec<u8> {
        self.certificate.to_pem().unwrap()
    }

    /// A certificate for `name` and its key.
    pub fn certificate_and_key(
        &self,
        name: &str,
    ) -> (openssl::x509::X509, openssl::pkey::PKey<openssl::pkey::Private>) {
        let key = new_key();
        (certify(&key, name, Some(self), Some(name), 1), key)
    }

    /// A server as today's are, in TLS 1.3; `days` may be negative for a certificate that has
    /// expired.
    pub fn acceptor(&self, name: &str, days: i64) -> openssl::ssl::SslAcceptor {
        use openssl::ssl::{SslAcceptor, SslMethod};
        let key = new_key();
        let certificate = certify(&key, name, Some(self), Some(name), days);
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_certificate(&certificate).unwrap();
        acceptor.set_private_key(&key).unwrap();
        acceptor.build()
    }
}

fn new_key() -> openssl::pkey::PKey<openssl::pkey::Private> {
    use openssl::ec::{EcGroup, EcKey};
    let group = EcGroup::from_curve_name(openssl::nid::Nid::X9_62_PRIME256V1).unwrap();
    let key = openssl::pkey::PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    logs::note_secret(&key.private_key_to_pem_pkcs8().unwrap());
    key
}

fn certify(
    key: &openssl::pkey::PKey<openssl::pkey::Private>,
    common_name: &str,
    issuer: Option<&Authority>,
    host: Option<&str>,
    days: i64,
) -> openssl::x509::X509 {
    use openssl::asn1::Asn1Time;
    use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName};
    use openssl::x509::{X509Builder, X509NameBuilder};

    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", common_name).unwrap();
    let name = name.build();
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    let serial = openssl::bn::BigNum::from_u32(rand::random()).unwrap();
    builder.set_serial_number(&serial.to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    let issuer_name = issuer.map_or(&*name, |ca| ca.certificate.subject_name());
    builder.set_issuer_name(issuer_name).unwrap();
    builder.set_pubkey(key).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = now.as_secs() as i64;
    let time = |offset: i64| Asn1Time::from_unix(now + offset * 86_400).unwrap();
    builder.set_not_before(&time(days.min(0) - 1)).unwrap();
    builder.set_not_after(&time(days)).unwrap();
    if host.is_none() {
        let constraints = BasicConstraints::new().critical().ca().build().unwrap();
        builder.append_extension(constraints).unwrap();
    }
    if let Some(host) = host {
        let mut names = SubjectAlternativeName::new();
        match host.parse::<std::net::IpAddr>() {
            Ok(_) => names.ip(host),
            Err(_) => names.dns(host),
        };
        let context = builder.x509v3_context(issuer.map(|ca| &*ca.certificate), None);
        let names = names.build(&context).unwrap();
        builder.append_extension(names).unwrap();
    }
    let signer = issuer.map_or(key, |ca| &ca.key);
    builder.sign(signer, openssl::hash::MessageDigest::sha256()).unwrap();
    builder.build()
}
