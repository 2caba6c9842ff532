//! The access side, as a program, against the embedded gateway and against a gateway that the test
//! plays with tungstenite.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::access::{self, Client};
use aiot_tunnel::gateway::Gateway;
use aiot_tunnel::{ConnectParams, EventKind, Manager, Port, Security, TlsConfig, Token};
use aiot_tunnel_testkit::certificates::Identity;
use aiot_tunnel_testkit::cloud::answer;
use aiot_tunnel_testkit::frame;
use aiot_tunnel_testkit::manager::{id, Running};
use aiot_tunnel_testkit::process::{program, Process};
use aiot_tunnel_testkit::random;
use aiot_tunnel_testkit::services::echo_until;
use aiot_tunnel_testkit::sockets::reset_on_close;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::{accept, TIMEOUT};
use aiot_tunnel_testkit::{gateways, logs};
use aiot_tunnel_testkit::{ACCESS_TOKEN as ACCESS, DEVICE_TOKEN as DEVICE};
use serde_json::json;

/// A gateway that the test plays.
struct Fake(TcpListener);

/// The fake gateway's end of an access side's connection.
struct Operator(TunnelEnd<TcpStream>);

impl Fake {
    fn new() -> Self {
        logs::keep();
        Fake(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn url(&self) -> String {
        format!("ws://{}", self.0.local_addr().unwrap())
    }

    fn accept(&self) -> Operator {
        self.accept_if(None).unwrap()
    }

    fn refuse(&self, status: u16) {
        assert!(self.accept_if(Some(status)).is_none());
    }

    fn accept_if(&self, refusal: Option<u16>) -> Option<Operator> {
        let tcp = accept(&self.0);
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        let (socket, path) = answer(tcp.try_clone().unwrap(), |request| {
            assert_eq!(request.headers()["tunnel-access-token"], ACCESS);
            refusal
        })?;
        assert_eq!(path, "/tunnel/t1/source");
        Some(Operator(TunnelEnd { socket, tcp, path }))
    }
}

impl Operator {
    /// Answers a session_create.
    fn answer(&mut self, session: &str, payload: &str) {
        let (create, _) = self.0.receive();
        assert_eq!((&create["frame_type"], &create["service_type"]), (&json!(2), &json!("_SSH")));
        let frame_id = &create["frame_id"];
        let header = json!({"frame_type": 1, "frame_id": frame_id, "session_id": session});
        self.0.send(header, payload.as_bytes());
    }

    fn data(&mut self, session: &str, payload: &[u8]) {
        self.0.data(session, payload);
    }

    fn release(&mut self, session: &str, payload: &str) {
        self.0.release(session, 2, payload);
    }

    /// The bytes of a session up to its release, and the release's code.
    fn receive_all(&mut self, session: &str) -> (Vec<u8>, i64) {
        let mut bytes = Vec::new();
        loop {
            let (header, payload) = self.0.receive();
            assert_eq!(header["session_id"], session);
            if header["frame_type"] == 3 {
                return (bytes, frame::code(&payload));
            }
            bytes.extend(payload);
        }
    }
}

/// The release code of a session that the access side cuts. A foreign device knows a cut by its code
/// alone.
const CUT: i64 = 2;
const OK: &str = r#"{"code":0,"msg":"ok"}"#;
/// A device's release after its service has closed the connection.
const BYE: &str = r#"{"code":1,"msg":"service _SSH closed the connection"}"#;

/// The program, and what it logs.
struct Program {
    process: Process,
    log: thread::JoinHandle<String>,
}

impl Program {
    fn access(url: &str, more: &[&str]) -> Self {
        Program::start(&[&["access", "--url", url, "--tunnel", "t1"], more].concat())
    }

    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS)
            .env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE)
            .env("RUST_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::start(&mut command);
        // Read all the time: a full pipe would stop the program.
        let stderr = process.child().stderr.take().unwrap();
        let log = thread::spawn(move || String::from_utf8_lossy(&logs::tee(stderr)).into_owned());
        Program { process, log }
    }

    fn stdin(&mut self) -> ChildStdin {
        self.process.take_stdin()
    }

    /// Reads so many bytes of its standard output.
    fn read_exact(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.process.child().stdout.as_mut().unwrap().read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The address of `--listen`.
    fn address(&mut self) -> SocketAddr {
        let mut line = String::new();
        BufReader::new(self.process.take_stdout()).read_line(&mut line).unwrap();
        line.trim_end().strip_prefix("listening on ").unwrap().parse().unwrap()
    }

    fn interrupt(&mut self) {
        self.process.interrupt();
    }

    /// Waits without reading its standard output.
    fn wait_unread(&mut self) {
        self.process.wait();
    }

    /// Waits for its end; its log must not contain the token.
    fn finish(mut self) -> Output {
        // A test that keeps it open has taken it.
        drop(self.process.child().stdin.take());
        let mut stdout = Vec::new();
        if let Some(mut pipe) = self.process.child().stdout.take() {
            pipe.read_to_end(&mut stdout).unwrap();
        }
        let status = self.process.wait();
        let log = self.log.join().unwrap();
        assert!(!log.contains("hush-"), "{log}");
        Output { status, stdout, stderr: log.into_bytes() }
    }

    fn fails_with(self, status: i32, text: &str) {
        let output = self.finish();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{log}");
        assert!(log.contains(text), "{text:?} is not in {log}");
    }
}

/// A program with `--stdio`, its standard input, and its session, which is open.
fn stdio_session() -> (Program, ChildStdin, Operator) {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    let stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    (program, stdin, operator)
}

/// A program that listens, over a tunnel that is open.
fn listening() -> (Fake, Program, SocketAddr, Operator) {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    let address = program.address();
    let operator = fake.accept();
    (fake, program, address, operator)
}

/// A local connection whose session `s1` is open.
fn session(address: SocketAddr, operator: &mut Operator) -> TcpStream {
    let local = TcpStream::connect(address).unwrap();
    local.set_read_timeout(Some(TIMEOUT)).unwrap();
    operator.answer("s1", OK);
    local
}

/// The bytes up to the reset that must come at the end.
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
    assert_eq!(operator.0.receive_close(), Some(1000));
    program.fails_with(13, r#"session refused: code 1, "ten are\nenough""#);
}

#[test]
fn a_wrong_token_ends_the_program() {
    for mode in [&["--stdio"][..], &["--listen", "127.0.0.1:0"]] {
        let fake = Fake::new();
        let program = Program::access(&fake.url(), mode);
        fake.refuse(401);
        program.fails_with(6, "refuses the token");
    }
    let fake = Fake::new();
    let program = Program::access(&fake.url(), &["--stdio"]);
    fake.refuse(404);
    program.fails_with(8, "HTTP 404");
}

#[test]
fn a_token_that_expires_ends_the_program() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    program.address();
    let mut operator = fake.accept();
    operator.0.close(4001);
    assert_eq!(operator.0.receive_close(), Some(4001));
    program.fails_with(7, "has expired");
}

#[test]
fn every_byte_before_a_release_comes_out_of_stdout() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    // It stays open: the release alone ends the program.
    let _stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    let sent = random::bytes(1, 3_000_000);
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        for chunk in sent.chunks(4096) {
            operator.data("s1", chunk);
            operator.data("s2", b"of another session");
        }
        operator.release("s1", BYE);
        operator.0.receive_close()
    });
    let output = program.finish();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == expected, "{} bytes", output.stdout.len());
    assert_eq!(writer.join().unwrap(), Some(1000));
}

#[test]
fn a_session_that_is_lost_fails_but_what_came_is_delivered() {
    let (program, _stdin, mut operator) = stdio_session();
    operator.data("s1", b"half a sen");
    operator.release("s1", r#"{"code":3,"msg":"the device has gone"}"#);
    let output = program.finish();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(17), &b"half a sen"[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("session lost: code 3"));
}

#[test]
fn a_session_that_the_device_gives_up_fails_for_all_its_code_says() {
    for (msg, status) in [
        ("service _SSH: Connection reset by peer (os error 104)", 16),
        ("the tunnel is closed", 17),
    ] {
        let (program, _stdin, mut operator) = stdio_session();
        operator.data("s1", b"half a sen");
        operator.release("s1", &json!({"code": 1, "msg": msg}).to_string());
        assert_eq!(operator.0.receive_close(), Some(1000));
        let output = program.finish();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(status), &b"half a sen"[..]));
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(log.contains(&format!("session lost: code 1, {msg:?}")), "{log}");
    }
}

#[test]
fn every_way_to_say_that_the_device_closed_is_an_orderly_end() {
    let foreign = r#"{"code":1,"msg":"session closed by device"}"#;
    for payload in [BYE, r#"{"code":1,"msg":"closed"}"#, foreign, r#"{"code":1}"#, ""] {
        let (program, _stdin, mut operator) = stdio_session();
        operator.release("s1", payload);
        assert_eq!(operator.0.receive_close(), Some(1000));
        let output = program.finish();
        assert!(output.status.success(), "{payload}");
    }
}

#[test]
fn a_local_connection_of_a_lost_session_is_reset_when_what_came_is_delivered() {
    let (_fake, _program, address, mut operator) = listening();
    // More than the program queues: the kernels hold some of it when the session ends.
    let sent = random::bytes(1, 200_000);
    let mut lost = |end: &dyn Fn(&mut Operator)| {
        let mut local = TcpStream::connect(address).unwrap();
        local.set_read_timeout(Some(TIMEOUT)).unwrap();
        operator.answer("s1", OK);
        for chunk in sent.chunks(4096) {
            operator.data("s1", chunk);
        }
        end(&mut operator);
        assert!(read_until_reset(&mut local) == sent);
    };
    lost(&|operator| operator.release("s1", r#"{"code":2,"msg":"no"}"#));
    lost(&|operator| operator.release("s1", r#"{"code":3,"msg":"the device has gone"}"#));
    // Data too long to keep.
    lost(&|operator| operator.data("s1", &[0; 65_537]));
    assert_eq!(operator.receive_all("s1"), (Vec::new(), CUT));
    let mut local = TcpStream::connect(address).unwrap();
    local.set_read_timeout(Some(TIMEOUT)).unwrap();
    operator.answer("s2", OK);
    operator.data("s2", b"last words");
    drop(operator);
    assert_eq!(read_until_reset(&mut local), b"last words");
}

#[test]
fn an_upload_does_not_starve_a_later_session() {
    let (_fake, _program, address, mut operator) = listening();
    let mut uploading = TcpStream::connect(address).unwrap();
    operator.answer("s1", OK);
    let end = uploading.try_clone().unwrap();
    let upload = thread::spawn(move || while uploading.write_all(&[1; 65_536]).is_ok() {});
    let next = |operator: &mut Operator| {
        let (header, payload) = operator.0.receive();
        (header["session_id"].as_str().unwrap_or("").to_owned(), header, payload)
    };
    // From here on there is always more to send than the tunnel accepts.
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
                operator.0.send(answer, OK.as_bytes());
            }
            ("s2", _) => {
                assert_eq!(payload, b"and me?");
                break;
            }
            _ => before += payload.len(),
        }
        assert!(before < 100_000_000, "the later session starves");
    }
    end.shutdown(std::net::Shutdown::Both).unwrap();
    upload.join().unwrap();
}

#[test]
fn data_that_is_too_long_to_keep_fails_the_session() {
    for length in [65_537, 100_000] {
        let (program, _stdin, mut operator) = stdio_session();
        operator.data("s2", &vec![0; length]);
        operator.data("s1", b"half a sen");
        operator.data("s1", &vec![0; length]);
        operator.data("s1", b"tence");
        assert_eq!(operator.receive_all("s1"), (Vec::new(), CUT));
        assert_eq!(operator.0.receive_close(), Some(1000));
        let output = program.finish();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(16), &b"half a sen"[..]));
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
    reset_on_close(&local);
    drop(local);
    let (header, payload) = operator.0.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("s1")));
    let (_, msg) = frame::status(&payload);
    assert!(msg.starts_with("local connection: Connection reset"), "{msg}");
}

#[test]
fn a_gateway_that_is_lost_fails_the_session() {
    let (program, _stdin, mut operator) = stdio_session();
    operator.data("s1", b"last words");
    drop(operator);
    let output = program.finish();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(16), &b"last words"[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("end of stream"));
}

#[test]
fn a_close_after_the_release_is_no_failure() {
    let (program, _stdin, mut operator) = stdio_session();
    // More than the pipe and the program's buffers hold, so that the session is not over when the
    // close comes.
    let sent = random::bytes(1, 700_000);
    for chunk in sent.chunks(50_000) {
        operator.data("s1", chunk);
    }
    operator.release("s1", BYE);
    operator.0.socket.close(None).unwrap();
    let answered = thread::spawn(move || operator.0.receive_close());
    let output = program.finish();
    answered.join().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == sent, "{} bytes", output.stdout.len());
}

#[test]
fn the_end_of_stdin_comes_after_its_bytes_however_slow_the_gateway_is() {
    let fake = Fake::new();
    let arguments = ["--stdio", "--half-close-timeout", "1"];
    let mut program = Program::access(&fake.url(), &arguments);
    let mut stdin = program.stdin();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    let sent = random::bytes(1, 12_000_000);
    let expected = sent.clone();
    let (ended, written) = std::sync::mpsc::channel();
    let writer = thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        drop(stdin);
        ended.send(Instant::now()).unwrap();
    });
    let mut bytes = Vec::new();
    let mut since = None;
    // After the end of stdin the gateway is so slow that the buffers take longer than a close may.
    let code = loop {
        let (header, payload) = operator.0.receive();
        if header["frame_type"] == 3 {
            break frame::code(&payload);
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
    assert_eq!(operator.0.receive_close(), Some(1000));
    assert!(program.finish().status.success());
}

#[test]
fn an_interrupt_ends_the_program_though_nobody_reads_its_stdout() {
    let (mut program, _stdin, mut operator) = stdio_session();
    for chunk in random::bytes(1, 400_000).chunks(4096) {
        operator.data("s1", chunk);
    }
    operator.0.ping(b"have you got it?");
    assert!(operator.0.socket.read().unwrap().is_pong());
    program.interrupt();
    program.wait_unread();
    let (_, code) = operator.receive_all("s1");
    assert_eq!(code, CUT);
    assert_eq!(operator.0.receive_close(), Some(1000));
}

/// Nothing comes but the end, and the end is a reset.
fn assert_is_reset(local: &mut TcpStream) {
    let error = local.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn an_interrupt_ends_listening_and_its_sessions() {
    let (_fake, mut program, address, mut operator) = listening();
    let mut local = session(address, &mut operator);
    operator.data("s1", b"there you are");
    let mut bytes = [0; 13];
    local.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"there you are");
    program.interrupt();
    assert_eq!(operator.receive_all("s1"), (Vec::new(), CUT));
    assert_eq!(operator.0.receive_close(), Some(1000));
    drop(operator);
    assert_is_reset(&mut local);
    assert!(program.finish().status.success());
    assert!(TcpStream::connect(address).is_err(), "it no longer listens");
}

#[test]
fn without_descriptors_for_newcomers_the_open_sessions_do_not_notice() {
    use rustix::process::{prlimit, Pid, Resource, Rlimit};
    let (_fake, mut program, address, mut operator) = listening();
    let mut local = session(address, &mut operator);
    let mut echo = |turns: u8| {
        for turn in 0..turns {
            local.write_all(&[turn]).unwrap();
            assert_eq!(operator.0.receive_data("s1", 1), [turn]);
            operator.data("s1", &[turn]);
            let mut byte = [0];
            local.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [turn]);
        }
    };
    echo(1);
    // From now on it can open none.
    let pid = program.process.id();
    let is_open = |fd: &u64| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).is_ok();
    let free = (0..).find(|fd| !is_open(fd));
    let limit = Rlimit { current: free, maximum: Some(4096) };
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit).unwrap();
    let newcomers: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    let begun = Instant::now();
    echo(200);
    let taken = begun.elapsed();
    assert!(taken < Duration::from_secs(5), "200 echoes took {taken:.1?}");
    // They are served as soon as there are descriptors.
    let limit = Rlimit { current: Some(4096), maximum: Some(4096) };
    prlimit(Pid::from_raw(pid as i32), Resource::Nofile, limit).unwrap();
    for _ in 0..newcomers.len() {
        let (create, _) = operator.0.receive();
        assert_eq!(create["frame_type"], 2);
    }
    program.interrupt();
    let output = program.finish();
    let log = String::from_utf8_lossy(&output.stderr);
    let lines = log.lines().filter(|line| line.contains("accept: ")).count();
    assert!((1..=3).contains(&lines), "{lines} lines: {log}");
}

#[test]
fn an_interrupt_ends_a_connect_that_nobody_answers() {
    // It accepts and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", silent.local_addr().unwrap());
    let mut program = Program::access(&url, &["--stdio"]);
    let _stream = accept(&silent);
    program.interrupt();
    program.wait_unread();
}

#[test]
fn a_lost_tunnel_is_opened_anew_for_those_who_listen() {
    let (fake, mut program, address, mut operator) = listening();
    let mut local = session(address, &mut operator);
    operator.data("s1", b"last words");
    drop(operator);
    assert_eq!(read_until_reset(&mut local), b"last words");

    let mut operator = fake.accept();
    let mut local = session(address, &mut operator);
    operator.data("s1", b"again");
    operator.release("s1", BYE);
    let mut bytes = Vec::new();
    local.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"again");
    program.interrupt();
    assert_eq!(operator.0.receive_close(), Some(1000));
    assert!(program.finish().status.success());
}

#[test]
fn a_local_program_that_still_sends_gets_every_byte_before_the_release() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--listen", "127.0.0.1:0"]);
    let mut local = TcpStream::connect(program.address()).unwrap();
    local.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut operator = fake.accept();
    operator.answer("s1", OK);
    let sent = random::bytes(1, 8_000_000);
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        for chunk in sent.chunks(4096) {
            operator.data("s1", chunk);
        }
        operator.release("s1", BYE);
        operator
    });
    // When the session ends, its tail is in the kernels' buffers, with something unread.
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
    device: Running,
    gateway: Gateway,
}

impl Tunnel {
    fn new(gateway: Gateway, security: Security) -> Self {
        let echo = echo_until("_SSH", |bytes| bytes == b"bye");
        let device = Running::start(Manager::builder().security(security).service(echo));
        let params = params(gateway.local_addr(), "/tunnel/t1/dest", DEVICE);
        device.handle.add(&id("t1"), params).unwrap();
        device.expect(EventKind::Connect, "t1");
        Tunnel { device, gateway }
    }

    fn plain() -> Self {
        Tunnel::new(gateway(None), Security::Plain)
    }
}

fn params(address: SocketAddr, path: &str, token: &str) -> ConnectParams {
    let (host, port) = (address.ip().to_string(), Port::new(address.port()).unwrap());
    ConnectParams::new(&host, port, path, Token::new(token).unwrap()).unwrap()
}

fn gateway(tls: Option<&Identity>) -> Gateway {
    logs::keep();
    let mut builder = Gateway::builder();
    if let Some(Identity { certificate, key }) = tls {
        builder = builder.tls_pem(certificate, key).unwrap();
    }
    builder.tunnel(gateways::tunnel("t1")).start("127.0.0.1:0".parse().unwrap()).unwrap()
}

/// A file that is removed with its value.
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

/// The connection and the status of the gateway's answer to a request for this path with this token.
fn status(address: SocketAddr, path: &str, token: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
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
        assert_eq!(status(address, &path, "hush-nothing").1, "404");
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
    for (limits, device_first) in [
        (["--access-limit", "1", "--connection-limit", "9"], false),
        (["--access-limit", "9", "--connection-limit", "2"], true),
    ] {
        let mut program = Program::start(&[&serve[..], &limits].concat());
        let address = program.address();
        let device = device_first.then(|| status(address, "/tunnel/t1/dest", DEVICE));
        assert!(device.as_ref().is_none_or(|(_, let_in)| let_in == "101"));
        let (_access, let_in) = status(address, "/tunnel/t1/source", ACCESS);
        assert_eq!(let_in, "101");
        assert_eq!(status(address, "/tunnel/t1/source", ACCESS).1, "503");
        // The device takes over the place of its own connection.
        assert_eq!(status(address, "/tunnel/t1/dest", DEVICE).1, "101");
        program.interrupt();
        assert!(program.finish().status.success());
    }
}

#[test]
fn much_data_goes_to_the_device_and_back_past_a_slow_reader() {
    let tunnel = Tunnel::plain();
    let url = format!("ws://{}", tunnel.gateway.local_addr());
    let mut program = Program::access(&url, &["--listen", "127.0.0.1:0"]);
    let mut local = TcpStream::connect(program.address()).unwrap();
    local.set_read_timeout(Some(TIMEOUT)).unwrap();
    let sent = random::bytes(1, 20_000_000);
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
    assert_is_reset(&mut local);
    assert!(program.finish().status.success());
}

#[test]
fn a_service_that_closes_is_an_orderly_end_in_the_real_devices_words() {
    let tunnel = Tunnel::plain();
    let url = format!("ws://{}", tunnel.gateway.local_addr());
    let mut program = Program::access(&url, &["--stdio"]);
    let mut stdin = program.stdin();
    stdin.write_all(b"bye").unwrap();
    // Stdout ends with the service's stream, though stdin is open.
    let mut stdout = Vec::new();
    program.process.take_stdout().read_to_end(&mut stdout).unwrap();
    assert_eq!(stdout, b"bye");
    drop(stdin);
    let output = program.finish();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_device_that_takes_its_leave_is_understood_with_tls_as_without() {
    let identity = Identity::self_signed();
    let config = TlsConfig::new().with_ca_pem(&identity.certificate).unwrap();
    let ca = Scratch::new("leave-ca", &identity.certificate);
    let secure = Tunnel::new(gateway(Some(&identity)), Security::Tls(config));
    for (tunnel, scheme, more) in
        [(Tunnel::plain(), "ws", &[][..]), (secure, "wss", &["--ca", ca.0.to_str().unwrap()])]
    {
        let url = format!("{scheme}://{}", tunnel.gateway.local_addr());
        let mut program = Program::access(&url, &[&["--stdio"], more].concat());
        let mut stdin = program.stdin();
        stdin.write_all(b"there and back").unwrap();
        assert_eq!(program.read_exact(14), b"there and back");
        // The release and the end of the connection leave the device together.
        tunnel.device.handle.delete(&id("t1")).unwrap();
        program.fails_with(17, "the tunnel is closed");
    }
}

#[test]
fn tls_works_with_the_right_ca_and_fails_with_a_wrong_one() {
    let identity = Identity::self_signed();
    let config = TlsConfig::new().with_ca_pem(&identity.certificate).unwrap();
    let tunnel = Tunnel::new(gateway(Some(&identity)), Security::Tls(config));
    let address = tunnel.gateway.local_addr();
    let url = format!("wss://{address}");
    let right = Scratch::new("ca", &identity.certificate);
    let wrong = Scratch::new("wrong-ca", &Identity::self_signed().certificate);

    let arguments = ["--stdio", "--ca", right.0.to_str().unwrap()];
    let mut program = Program::access(&url, &arguments);
    let mut stdin = program.stdin();
    stdin.write_all(b"there and back").unwrap();
    assert_eq!(program.read_exact(14), b"there and back");
    drop(stdin);
    assert!(program.finish().status.success());

    for arguments in [&["--stdio", "--ca", wrong.0.to_str().unwrap()][..], &["--stdio"]] {
        Program::access(&url, arguments).fails_with(4, "is not trusted here");
    }
    // A gateway with TLS does not answer plain text.
    let plain = Program::access(&format!("ws://{address}"), &["--stdio"]);
    plain.fails_with(3, "connect with TLS (wss://");
    // Garbage does not disturb the gateway.
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

    // No device: the local connection waits for one, is reset, and it goes on listening.
    let client = client(ACCESS).with_queue_timeout(Duration::from_millis(100));
    let stop = client.stop_handle();
    let port = listener.local_addr().unwrap();
    let listening = thread::spawn(move || client.listen(&listener));
    for _ in 0..2 {
        let mut local = TcpStream::connect(port).unwrap();
        local.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_is_reset(&mut local);
    }
    stop.stop();
    listening.join().unwrap().unwrap();
}

#[test]
fn data_before_the_answer_cuts_the_session() {
    let (_fake, _program, address, mut operator) = listening();
    operator.data("s1", b"lost");
    let (header, _) = operator.0.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("s1")));
    let mut local = session(address, &mut operator);
    assert_eq!(read_until_reset(&mut local), b"");
    assert_eq!(operator.receive_all("s1"), (Vec::new(), CUT));
    // The id is free again.
    let mut local = session(address, &mut operator);
    operator.data("s1", b"there");
    operator.release("s1", BYE);
    let mut bytes = Vec::new();
    local.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"there");
}

#[test]
fn data_before_the_answer_fails_stdio() {
    let fake = Fake::new();
    let mut program = Program::access(&fake.url(), &["--stdio"]);
    let _stdin = program.stdin();
    let mut operator = fake.accept();
    operator.data("s1", b"lost");
    operator.answer("s1", OK);
    program.fails_with(15, "data of the session came before the answer");
}

#[test]
fn a_second_session_with_an_id_in_use_is_refused_and_the_first_goes_on() {
    let (_fake, _program, address, mut operator) = listening();
    let mut first = session(address, &mut operator);
    let mut second = session(address, &mut operator);
    assert_eq!(read_until_reset(&mut second), b"");
    operator.data("s1", b"to the first");
    operator.release("s1", BYE);
    let mut bytes = Vec::new();
    first.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"to the first");
}
