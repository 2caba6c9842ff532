//! The access side, as a program, against the embedded gateway and against one written from the
//! specification with tungstenite.
#![cfg(feature = "cli")]

#[path = "common/certificate.rs"]
mod certificate;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::access::{self, Client};
use aiot_tunnel::gateway::{Gateway, TunnelConfig};
use aiot_tunnel::{ConnectParams, EventKind, Manager, Port, Security, Service, Token, TunnelId};
use serde_json::{json, Value};
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::{Message, WebSocket};

mod common;
use common::{ACCESS_TOKEN as ACCESS, DEVICE_TOKEN as DEVICE};

/// Nothing in these tests takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway that says what a test wants.
struct Fake(TcpListener);

/// One access side at a fake gateway.
struct Operator(WebSocket<TcpStream>);

impl Fake {
    fn new() -> Self {
        common::logs::keep();
        Fake(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn url(&self) -> String {
        format!("ws://{}", self.0.local_addr().unwrap())
    }

    #[allow(clippy::result_large_err)]
    fn accept(&self) -> Operator {
        let tcp = common::accept(&self.0);
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let check = |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/tunnel/t1/source");
            assert_eq!(request.headers()["tunnel-access-token"], ACCESS);
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        Operator(tungstenite::accept_hdr(tcp, check).unwrap())
    }

    #[allow(clippy::result_large_err)]
    fn refuse(&self, status: u16) {
        let tcp = common::accept(&self.0);
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let refuse = |_: &Request, _: Response| {
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = status.try_into().unwrap();
            Err(refusal)
        };
        assert!(tungstenite::accept_hdr(tcp, refuse).is_err());
    }
}

impl Operator {
    fn send(&mut self, header: Value, payload: &[u8]) {
        let header = header.to_string();
        let mut bytes = (header.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(payload);
        self.0.send(Message::binary(bytes)).unwrap();
    }

    fn receive(&mut self) -> (Value, Vec<u8>) {
        loop {
            let Message::Binary(bytes) = self.0.read().unwrap() else { continue };
            let end = 2 + usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
            return (serde_json::from_slice(&bytes[2..end]).unwrap(), bytes[end..].to_vec());
        }
    }

    /// Answers a session_create.
    fn answer(&mut self, session: &str, payload: &str) {
        let (create, _) = self.receive();
        assert_eq!((&create["frame_type"], &create["service_type"]), (&json!(2), &json!("_SSH")));
        let frame_id = &create["frame_id"];
        let header = json!({"frame_type": 1, "frame_id": frame_id, "session_id": session});
        self.send(header, payload.as_bytes());
    }

    fn data(&mut self, session: &str, payload: &[u8]) {
        self.send(json!({"frame_type": 4, "session_id": session, "frame_id": 1}), payload);
    }

    fn release(&mut self, session: &str, payload: &str) {
        let header = json!({"frame_type": 3, "session_id": session, "frame_id": 2});
        self.send(header, payload.as_bytes());
    }

    /// What comes for a session up to its release, and the release's code.
    fn receive_all(&mut self, session: &str) -> (Vec<u8>, i64) {
        let mut bytes = Vec::new();
        loop {
            let (header, payload) = self.receive();
            assert_eq!(header["session_id"], session);
            if header["frame_type"] == 3 {
                let status: Value = serde_json::from_slice(&payload).unwrap();
                return (bytes, status["code"].as_i64().unwrap());
            }
            bytes.extend(payload);
        }
    }

    fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.0.read() {
                Ok(Message::Close(frame)) => {
                    let _ = self.0.flush();
                    return frame.map(|frame| frame.code.into());
                }
                Ok(_) => {}
                Err(e) => panic!("{e}"),
            }
        }
    }
}

const OK: &str = r#"{"code":0,"msg":"ok"}"#;
/// What a device says when its service has closed the connection.
const BYE: &str = r#"{"code":1,"msg":"service _SSH closed the connection"}"#;

/// The program; killed if the test ends before it does.
struct Program(Option<Child>, Option<thread::JoinHandle<String>>);

impl Program {
    fn access(url: &str, more: &[&str]) -> Self {
        Program::start(&[&["access", "--url", url, "--tunnel", "t1"], more].concat())
    }

    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(common::program());
        command
            .args(arguments)
            .env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS)
            .env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE)
            .env("RUST_LOG", "trace")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Read all the while: a full pipe would stop it.
        let stderr = child.stderr.take().unwrap();
        let log =
            thread::spawn(move || String::from_utf8_lossy(&common::logs::tee(stderr)).into_owned());
        Program(Some(child), Some(log))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn stdin(&mut self) -> ChildStdin {
        self.child().stdin.take().unwrap()
    }

    /// The address of `--listen`.
    fn address(&mut self) -> SocketAddr {
        let mut line = String::new();
        BufReader::new(self.child().stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim_end().strip_prefix("listening on ").unwrap().parse().unwrap()
    }

    fn interrupt(&mut self) {
        let pid = self.child().id() as libc::pid_t;
        // SAFETY: no memory is involved, and the pid is that of a child not yet waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    }

    /// Waits without reading stdout.
    fn wait_unread(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child().try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the program does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end; its log must not hold the token.
    fn finish(mut self) -> Output {
        let child = self.0.take().unwrap();
        let mut output = child.wait_with_output().unwrap();
        let log = self.1.take().unwrap().join().unwrap();
        assert!(!log.contains("hush-"), "{log}");
        output.stderr = log.into_bytes();
        output
    }

    fn fails_with(self, text: &str) {
        let output = self.finish();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(text), "{text:?} is not in {log}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect()
}

/// Everything up to the reset that must come in the end.
fn read_until_reset(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => bytes,
        other => panic!("{other:?} after {} bytes", bytes.len()),
    }
}

#[test]
fn a_refusal_is_told_with_its_code_and_words() {
    let fake = Fake::new();
    let program = Program::access(&fake.url(), &["--stdio"]);
    let mut operator = fake.accept();
    operator.answer("", r#"{"code":1,"msg":"ten are\nenough"}"#);
    assert_eq!(operator.close_code(), Some(1000));
    program.fails_with(r#"session refused: code 1, "ten are\nenough""#);
}

#[test]
fn a_wrong_token_ends_the_program() {
    for mode in [&["--stdio"][..], &["--listen", "127.0.0.1:0"]] {
        let fake = Fake::new();
        let program = Program::access(&fake.url(), mode);
        fake.refuse(401);
        program.fails_with("refuses the token");
    }
    let fake = Fake::new();
    let program = Program::access(&fake.url(), &["--stdio"]);
    fake.refuse(404);
    program.fails_with("HTTP 404");
}

#[test]
fn a_token_that_expires_ends_the_program() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    program.address();
    let mut operator = fake.accept();
    let frame = tungstenite::protocol::CloseFrame { code: 4001.into(), reason: "".into() };
    operator.0.close(Some(frame)).unwrap();
    assert_eq!(operator.close_code(), Some(4001));
    program.fails_with("refuses the token");
}

#[test]
fn every_byte_before_a_release_comes_out_of_stdout() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    // Never closed: the release alone ends the program.
    let _stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    let sent = pattern(3_000_000);
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        for chunk in sent.chunks(4096) {
            operator.data("s1", chunk);
            operator.data("s2", b"another's");
        }
        operator.release("s1", BYE);
        operator.close_code()
    });
    let output = program.finish();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == expected, "{} bytes", output.stdout.len());
    assert_eq!(writer.join().unwrap(), Some(1000));
}

#[test]
fn a_session_that_is_lost_fails_but_what_came_is_delivered() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    let _stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    operator.data("s1", b"half a sen");
    operator.release("s1", r#"{"code":3,"msg":"the device has gone"}"#);
    let output = program.finish();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b"half a sen"[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("session lost: code 3"));
}

#[test]
fn a_session_that_the_device_gives_up_fails_for_all_its_code_says() {
    for msg in ["service _SSH: Connection reset by peer (os error 104)", "the tunnel is closed"] {
        let fake = Fake::new();
        let mut program = Program::access(&fake.url(), &["--stdio"]);
        let _stdin = program.stdin();
        let mut operator = fake.accept();
        operator.answer("s1", OK);
        operator.data("s1", b"half a sen");
        operator.release("s1", &json!({"code": 1, "msg": msg}).to_string());
        assert_eq!(operator.close_code(), Some(1000));
        let output = program.finish();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b"half a sen"[..]));
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(log.contains(&format!("session lost: code 1, {msg:?}")), "{log}");
    }
}

#[test]
fn every_way_to_say_that_the_device_closed_is_an_orderly_end() {
    let foreign = r#"{"code":1,"msg":"session closed by device"}"#;
    for payload in [BYE, r#"{"code":1,"msg":"closed"}"#, foreign, r#"{"code":1}"#, ""] {
        let fake = Fake::new();
        let mut program = Program::access(&fake.url(), &["--stdio"]);
        let _stdin = program.stdin();
        let mut operator = fake.accept();
        operator.answer("s1", OK);
        operator.release("s1", payload);
        assert_eq!(operator.close_code(), Some(1000));
        let output = program.finish();
        assert!(output.status.success(), "{payload}");
    }
}

#[test]
fn a_local_connection_of_a_lost_session_is_reset_when_what_came_is_delivered() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    let address = program.address();
    let mut operator = fake.accept();
    // More than waits in the program: the kernels have some of it when the session ends.
    let sent = pattern(200_000);
    let mut lost = |end: &dyn Fn(&mut Operator)| {
        let mut local = TcpStream::connect(address).unwrap();
        local.set_read_timeout(Some(PATIENCE)).unwrap();
        operator.answer("s1", OK);
        for chunk in sent.chunks(4096) {
            operator.data("s1", chunk);
        }
        end(&mut operator);
        assert!(read_until_reset(&mut local) == sent);
    };
    lost(&|operator| operator.release("s1", r#"{"code":2,"msg":"no"}"#));
    lost(&|operator| operator.release("s1", r#"{"code":3,"msg":"the device has gone"}"#));
    // Too long to keep, and too long for a message at all.
    lost(&|operator| operator.data("s1", &[0; 65_537]));
    assert_eq!(operator.receive_all("s1"), (Vec::new(), 0));
    let mut local = TcpStream::connect(address).unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    operator.answer("s2", OK);
    operator.data("s2", b"last words");
    drop(operator);
    assert_eq!(read_until_reset(&mut local), b"last words");
}

#[test]
fn an_upload_does_not_starve_a_later_session() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    let address = program.address();
    let mut operator = fake.accept();
    let mut uploading = TcpStream::connect(address).unwrap();
    operator.answer("s1", OK);
    let end = uploading.try_clone().unwrap();
    let upload = thread::spawn(move || while uploading.write_all(&[1; 65_536]).is_ok() {});
    let next = |operator: &mut Operator| {
        let (header, payload) = operator.receive();
        (header["session_id"].as_str().unwrap_or("").to_owned(), header, payload)
    };
    // From here on there is always more to send than the tunnel takes.
    for _ in 0..1000 {
        next(&mut operator);
    }
    let mut local = TcpStream::connect(address).unwrap();
    local.write_all(b"and me?").unwrap();
    let mut before = 0;
    loop {
        let (session, header, payload) = next(&mut operator);
        match (&*session, header["frame_type"].as_u64()) {
            ("", Some(2)) => {
                let frame_id = &header["frame_id"];
                let answer = json!({"frame_type": 1, "frame_id": frame_id, "session_id": "s2"});
                operator.send(answer, OK.as_bytes());
            }
            ("s2", _) => {
                assert_eq!(payload, b"and me?");
                break;
            }
            _ => before += payload.len(),
        }
        assert!(before < 100_000_000, "it is not heard");
    }
    end.shutdown(std::net::Shutdown::Both).unwrap();
    upload.join().unwrap();
}

#[test]
fn data_that_is_too_long_to_keep_fails_the_session() {
    for length in [65_537, 100_000] {
        let fake = Fake::new();
        let mut program = Program::access(&fake.url(), &["--stdio"]);
        let _stdin = program.stdin();
        let mut operator = fake.accept();
        operator.answer("s1", OK);
        operator.data("s2", &vec![0; length]);
        operator.data("s1", b"half a sen");
        operator.data("s1", &vec![0; length]);
        operator.data("s1", b"tence");
        assert_eq!(operator.receive_all("s1"), (Vec::new(), 0));
        assert_eq!(operator.close_code(), Some(1000));
        let output = program.finish();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b"half a sen"[..]));
        assert!(String::from_utf8_lossy(&output.stderr).contains("longer than 64 KiB"));
    }
}

#[test]
fn a_local_reset_is_told_and_no_orderly_end() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    let mut operator = fake.accept();
    let local = TcpStream::connect(program.address()).unwrap();
    operator.answer("s1", OK);
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: SO_LINGER reads one `linger`, and the pointer is to one of the length given.
    let set = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&local),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            std::ptr::from_ref(&linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
    drop(local);
    let (header, payload) = operator.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("s1")));
    let status: Value = serde_json::from_slice(&payload).unwrap();
    let msg = status["msg"].as_str().unwrap();
    assert!(msg.starts_with("local connection: Connection reset"), "{msg}");
}

#[test]
fn a_gateway_that_is_lost_fails_the_session() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    let _stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    operator.data("s1", b"last words");
    drop(operator);
    let output = program.finish();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b"last words"[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("end of stream"));
}

#[test]
fn a_close_after_the_release_is_no_failure() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    let _stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    // More than all that is on the way to whoever reads stdout takes, so that the session is not
    // over when the close comes.
    let sent = pattern(700_000);
    for chunk in sent.chunks(50_000) {
        operator.data("s1", chunk);
    }
    operator.release("s1", BYE);
    operator.0.close(None).unwrap();
    let answered = thread::spawn(move || operator.close_code());
    let output = program.finish();
    answered.join().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == sent, "{} bytes", output.stdout.len());
}

#[test]
fn the_end_of_stdin_comes_after_its_bytes_however_slow_the_gateway_is() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    let mut stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    let sent = pattern(12_000_000);
    let expected = sent.clone();
    let (ended, written) = std::sync::mpsc::channel();
    let writer = thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        drop(stdin);
        ended.send(Instant::now()).unwrap();
    });
    let mut bytes = Vec::new();
    let mut since = None;
    // Slower than any buffer's worth once stdin has ended: longer than a close may take.
    let code = loop {
        let (header, payload) = operator.receive();
        if header["frame_type"] == 3 {
            break serde_json::from_slice::<Value>(&payload).unwrap()["code"].clone();
        }
        bytes.extend(payload);
        since = since.or_else(|| written.try_recv().ok());
        if since.is_some_and(|since: Instant| since.elapsed() < Duration::from_secs(4)) {
            thread::sleep(Duration::from_millis(30));
        }
    };
    writer.join().unwrap();
    assert!(bytes == expected, "{} of {} bytes", bytes.len(), expected.len());
    assert_eq!(code, 0);
    assert_eq!(operator.close_code(), Some(1000));
    assert!(program.finish().status.success());
}

#[test]
fn an_interrupt_ends_the_program_though_nobody_reads_its_stdout() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    let _stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    for chunk in pattern(400_000).chunks(4096) {
        operator.data("s1", chunk);
    }
    operator.0.send(Message::Ping(b"have you got it?"[..].into())).unwrap();
    assert!(operator.0.read().unwrap().is_pong());
    program.interrupt();
    program.wait_unread();
    let (_, code) = operator.receive_all("s1");
    assert_eq!(code, 0);
    assert_eq!(operator.close_code(), Some(1000));
}

#[test]
fn an_interrupt_ends_listening_and_its_sessions() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    let address = program.address();
    let mut operator = fake.accept();
    let mut local = TcpStream::connect(address).unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    operator.answer("s1", OK);
    operator.data("s1", b"there you are");
    let mut bytes = [0; 13];
    local.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"there you are");
    program.interrupt();
    assert_eq!(operator.receive_all("s1"), (Vec::new(), 0));
    assert_eq!(operator.close_code(), Some(1000));
    drop(operator);
    assert_eq!(local.read(&mut bytes).unwrap(), 0);
    assert!(program.finish().status.success());
    assert!(TcpStream::connect(address).is_err(), "it does not listen any more");
}

#[test]
fn an_interrupt_ends_a_connect_that_nobody_answers() {
    // It accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", silent.local_addr().unwrap());
    let mut program = Program::access(&url, &["--stdio"]);
    let _stream = common::accept(&silent);
    program.interrupt();
    program.wait_unread();
}

#[test]
fn a_lost_tunnel_is_opened_anew_for_those_who_listen() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    let address = program.address();
    let mut operator = fake.accept();
    let mut local = TcpStream::connect(address).unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    operator.answer("s1", OK);
    operator.data("s1", b"last words");
    drop(operator);
    assert_eq!(read_until_reset(&mut local), b"last words");

    let mut operator = fake.accept();
    let mut local = TcpStream::connect(address).unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    operator.answer("s1", OK);
    operator.data("s1", b"again");
    operator.release("s1", BYE);
    let mut bytes = Vec::new();
    local.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"again");
    program.interrupt();
    assert_eq!(operator.close_code(), Some(1000));
    assert!(program.finish().status.success());
}

#[test]
fn a_local_program_that_still_sends_gets_every_byte_before_the_release() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    let mut local = TcpStream::connect(program.address()).unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    let sent = pattern(8_000_000);
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        for chunk in sent.chunks(4096) {
            operator.data("s1", chunk);
        }
        operator.release("s1", BYE);
        operator
    });
    // The tail is in kernels' buffers when the session ends, and something unread with it.
    let mut bytes = vec![0; 4_000_000];
    local.read_exact(&mut bytes).unwrap();
    local.write_all(b"unread").unwrap();
    let _operator = writer.join().unwrap();
    local.write_all(b"more of it").unwrap();
    local.read_to_end(&mut bytes).unwrap();
    assert!(bytes == expected, "{} of {} bytes", bytes.len(), expected.len());
}

/// A real gateway and a real device with an echo service, which closes after `bye`.
struct Tunnel {
    gateway: Gateway,
    handle: aiot_tunnel::Handle,
    device: Option<thread::JoinHandle<()>>,
}

impl Tunnel {
    fn new(gateway: Gateway, security: Security) -> Self {
        let echo = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Port::new(echo.local_addr().unwrap().port()).unwrap();
        thread::spawn(move || {
            for mut stream in echo.incoming().flatten() {
                thread::spawn(move || {
                    let mut buffer = [0; 65_536];
                    while let Ok(length @ 1..) = stream.read(&mut buffer) {
                        let written = stream.write_all(&buffer[..length]);
                        if written.is_err() || &buffer[..length] == b"bye" {
                            break;
                        }
                    }
                });
            }
        });
        let (sender, connected) = std::sync::mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let manager = Manager::builder()
            .security(security)
            .service(Service::new("_SSH", "127.0.0.1", port).unwrap())
            .on_event(move |_, event| {
                if event.kind == EventKind::Connect {
                    let _ = sender.lock().unwrap().send(());
                }
            })
            .build()
            .unwrap();
        let handle = manager.handle();
        let device = Some(thread::spawn(move || manager.run().unwrap()));
        let address = gateway.local_addr();
        let params = params(address, "/tunnel/t1/dest", DEVICE);
        handle.add(&TunnelId::new("t1").unwrap(), params).unwrap();
        connected.recv_timeout(PATIENCE).unwrap();
        Tunnel { gateway, handle, device }
    }

    fn plain() -> Self {
        Tunnel::new(gateway(None), Security::Plain)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.handle.stop();
        self.device.take().unwrap().join().unwrap();
    }
}

fn params(address: SocketAddr, path: &str, token: &str) -> ConnectParams {
    let (host, port) = (address.ip().to_string(), Port::new(address.port()).unwrap());
    ConnectParams::new(&host, port, path, Token::new(token).unwrap()).unwrap()
}

fn gateway(tls: Option<&(Vec<u8>, Vec<u8>)>) -> Gateway {
    common::logs::keep();
    let mut builder = Gateway::builder();
    if let Some((certificate, key)) = tls {
        common::logs::note_secret(key);
        builder = builder.tls_pem(certificate, key).unwrap();
    }
    let tunnel = TunnelConfig::new(
        TunnelId::new("t1").unwrap(),
        Token::new(DEVICE).unwrap(),
        Token::new(ACCESS).unwrap(),
    );
    builder.tunnel(tunnel).start("127.0.0.1:0".parse().unwrap()).unwrap()
}

/// A file that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let name = format!("access-{name}-{}", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, bytes).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The status that the gateway answers a request for this path and token with.
fn status(address: SocketAddr, path: &str, token: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         tunnel-access-token: {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    (stream, String::from_utf8_lossy(&line[9..]).into_owned())
}

#[test]
fn strangers_do_not_fill_the_gateways_log() {
    let begun = Instant::now();
    let serve = ["gateway", "--listen", "127.0.0.1:0", "--plain", "--tunnel", "t1"];
    let mut program = Program::start(&serve);
    let address = program.address();
    for n in 0..100 {
        let path = format!("/tunnel/made-up-{n}/dest");
        assert_eq!(status(address, &path, "hush-nothing").1, "401");
    }
    program.interrupt();
    let output = program.finish();
    let log = String::from_utf8_lossy(&output.stderr);
    let lines = log.lines().filter(|line| line.contains("made-up-")).count();
    let windows = 1 + begun.elapsed().as_secs() as usize / 30;
    assert!((20..=20 * windows).contains(&lines), "{lines} lines in {windows} windows: {log}");
}

#[test]
fn the_gateways_limits_can_be_set() {
    let serve = ["gateway", "--listen", "127.0.0.1:0", "--plain", "--tunnel", "t1"];
    let limits = ["--access-limit", "1", "--connection-limit", "2"];
    let mut program = Program::start(&[&serve[..], &limits].concat());
    let address = program.address();
    let (_access, let_in) = status(address, "/tunnel/t1/source", ACCESS);
    assert_eq!(let_in, "101");
    assert_eq!(status(address, "/tunnel/t1/source", ACCESS).1, "503");
    let (_device, let_in) = status(address, "/tunnel/t1/dest", DEVICE);
    assert_eq!(let_in, "101");
    assert_eq!(status(address, "/tunnel/t1/dest", DEVICE).1, "503");
    program.interrupt();
    assert!(program.finish().status.success());
}

#[test]
fn much_data_goes_to_the_device_and_back_past_a_slow_reader() {
    let tunnel = Tunnel::plain();
    let url = format!("ws://{}", tunnel.gateway.local_addr());
    let mut program = Program::access(&url, &["--listen", "127.0.0.1:0"]);
    let mut local = TcpStream::connect(program.address()).unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = pattern(20_000_000);
    let expected = sent.clone();
    let mut sink = local.try_clone().unwrap();
    let writer = thread::spawn(move || sink.write_all(&sent).unwrap());
    let mut bytes = vec![0; expected.len()];
    for (n, chunk) in bytes.chunks_mut(100_000).enumerate() {
        local.read_exact(chunk).unwrap();
        if n < 40 {
            thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(bytes == expected);
    writer.join().unwrap();
    program.interrupt();
    let mut end = Vec::new();
    local.read_to_end(&mut end).unwrap();
    assert_eq!(end.len(), 0);
    assert!(program.finish().status.success());
}

#[test]
fn a_service_that_closes_is_an_orderly_end_in_the_real_devices_words() {
    let tunnel = Tunnel::plain();
    let url = format!("ws://{}", tunnel.gateway.local_addr());
    let mut program = Program::access(&url, &["--stdio"]);
    let mut stdin = program.stdin();
    stdin.write_all(b"bye").unwrap();
    let output = program.finish();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"bye");
}

#[test]
fn a_device_that_takes_its_leave_is_understood_with_tls_as_without() {
    let pair = certificate::self_signed();
    let config = aiot_tunnel::TlsConfig::new().with_ca_pem(&pair.0).unwrap();
    let ca = Scratch::new("leave-ca", &pair.0);
    let secure = Tunnel::new(gateway(Some(&pair)), Security::Tls(config));
    for (tunnel, scheme, more) in
        [(Tunnel::plain(), "ws", &[][..]), (secure, "wss", &["--ca", ca.0.to_str().unwrap()])]
    {
        let url = format!("{scheme}://{}", tunnel.gateway.local_addr());
        let mut program = Program::access(&url, &[&["--stdio"], more].concat());
        let mut stdin = program.stdin();
        stdin.write_all(b"there and back").unwrap();
        let mut echo = [0; 14];
        program.child().stdout.as_mut().unwrap().read_exact(&mut echo).unwrap();
        // Its last words and the end of the connection leave it together.
        tunnel.handle.delete(&TunnelId::new("t1").unwrap()).unwrap();
        program.fails_with("the tunnel is closed");
    }
}

#[test]
fn tls_works_with_the_right_ca_and_fails_with_a_wrong_one() {
    let pair = certificate::self_signed();
    let config = aiot_tunnel::TlsConfig::new().with_ca_pem(&pair.0).unwrap();
    let tunnel = Tunnel::new(gateway(Some(&pair)), Security::Tls(config));
    let address = tunnel.gateway.local_addr();
    let url = format!("wss://{address}");
    let (right, wrong) =
        (Scratch::new("ca", &pair.0), Scratch::new("wrong-ca", &certificate::self_signed().0));

    let arguments = ["--stdio", "--ca", right.0.to_str().unwrap()];
    let mut program = Program::access(&url, &arguments);
    let mut stdin = program.stdin();
    stdin.write_all(b"there and back").unwrap();
    let mut echo = [0; 14];
    program.child().stdout.as_mut().unwrap().read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"there and back");
    drop(stdin);
    assert!(program.finish().status.success());

    for arguments in [&["--stdio", "--ca", wrong.0.to_str().unwrap()][..], &["--stdio"]] {
        Program::access(&url, arguments).fails_with("TLS:");
    }
    // Plain text towards a gateway that wants TLS is answered with none.
    let plain = Program::access(&format!("ws://{address}"), &["--stdio"]);
    plain.fails_with("connection to the tunnel service");
    // Garbage does not disturb it.
    for garbage in [&b"\x16\x03\x01\x40\x00\x01"[..], b"GET / HTTP/1.1\r\n\r\n", b"\0"] {
        TcpStream::connect(address).unwrap().write_all(garbage).unwrap();
    }
    let arguments = ["--stdio", "--ca", right.0.to_str().unwrap()];
    let mut program = Program::access(&url, &arguments);
    drop(program.stdin());
    assert!(program.finish().status.success());
}

#[test]
fn a_client_in_a_program_can_be_stopped_and_says_what_was_wrong() {
    let gateway = gateway(None);
    let address = gateway.local_addr();
    let client = |token| {
        let params = params(address, "/tunnel/t1/source", token);
        Client::new(params, Security::Plain, "_SSH").unwrap()
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = client(DEVICE).listen(&listener);
    assert!(matches!(refused, Err(access::Error::Unauthorized)), "{refused:?}");

    // No device: the session is refused, its local connection ends, and it goes on listening.
    let client = client(ACCESS);
    let stop = client.stop_handle();
    let port = listener.local_addr().unwrap();
    let listening = thread::spawn(move || client.listen(&listener));
    for _ in 0..2 {
        let mut local = TcpStream::connect(port).unwrap();
        local.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(local.read(&mut [0; 1]).unwrap(), 0);
    }
    stop.stop();
    listening.join().unwrap().unwrap();
}
