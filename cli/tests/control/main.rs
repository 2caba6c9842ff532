//! The agent's control socket, and `send` and `status` over it. The programs are real ones.
//! docs/control.md is the language that is tested here.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};

use aiot_tunnel::Service;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::process::program;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::DEVICE_TOKEN;
use serde_json::{json, Value};

/// A user without rights.
const NOBODY: u32 = 65_534;

mod costs;
mod events;
mod file;
mod hostile;
mod metrics;
mod send;
mod status;

/// An agent without a message queue, whose socket is in a folder of its own.
struct Agent {
    program: Program,
    path: PathBuf,
    folder: Folder,
}

impl Agent {
    fn start() -> Self {
        Agent::with(&[])
    }

    /// `more`: further arguments.
    fn with(more: &[&str]) -> Self {
        Agent::secured(&["--plain"], more)
    }

    fn secured(security: &[&str], more: &[&str]) -> Self {
        let folder = Folder::new();
        let path = folder.file("agent.sock");
        let mut command = Command::new(program());
        command.args(["agent", "--queue-key", "off", "--control-socket"]);
        command.arg(&path).args(security).args(more);
        let program = Program::start_command(&mut command);
        let agent = Agent { program, path, folder };
        wait::until("the agent listens", || UnixStream::connect(&agent.path).is_ok());
        agent
    }

    fn id(&self) -> u32 {
        self.program.process.id()
    }

    fn client(&self) -> Client {
        Client::new(UnixStream::connect(&self.path).unwrap())
    }

    /// Asks over a connection of its own.
    fn ask(&self, request: Value) -> Value {
        self.client().ask(request)
    }

    fn status(&self) -> Value {
        self.ask(json!({"command": "status"}))["status"].take()
    }

    fn add(&self, id: &str, address: SocketAddr) {
        assert_eq!(self.ask(add(id, address)), json!({"ok": true}));
    }

    /// Runs `aiot-tunnel` with its socket.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.args(arguments).arg("--control-socket").arg(&self.path);
        command.env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE_TOKEN).env_remove("RUST_LOG");
        command.output().unwrap()
    }

    /// Ends it in order. The result is its log.
    fn end(mut self) -> String {
        self.program.process.terminate();
        let (status, log) = self.program.finish();
        assert!(status.success(), "{log}");
        assert!(!log.contains("hush-") && !log.contains("panicked"), "{log}");
        assert!(!self.path.exists());
        log
    }
}

/// The request that adds a tunnel.
fn add(id: &str, address: SocketAddr) -> Value {
    let (host, port) = (address.ip().to_string(), address.port());
    let mut request = json!({"command": "add", "tunnel": id, "host": host, "port": port});
    request["token"] = json!(DEVICE_TOKEN);
    if !id.chars().all(|c| c.is_ascii_graphic()) {
        // The default path would have the id in it.
        request["path"] = json!("/p");
    }
    request
}

/// The argument that offers a service.
fn offer(service: &Service) -> String {
    format!("{}={}", service.service_type(), service.target())
}

/// A client of the socket on which nothing waits for ever.
struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    fn send(&mut self, request: &Value) {
        self.write(format!("{request}\n"));
    }

    /// The next line; panics at the end of file.
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "not a whole line: {line:?}");
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, request: Value) -> Value {
        self.send(&request);
        self.line()
    }

    /// The next event of this kind; others are left out.
    fn event(&mut self, kind: &str) -> Value {
        loop {
            let event = self.line();
            if event["event"] == kind {
                return event;
            }
        }
    }

    fn subscribe(&mut self) {
        assert_eq!(self.ask(json!({"command": "events"})), json!({"ok": true}));
    }

    /// No more requests come, but answers are wanted.
    fn half_close(&mut self) {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Everything up to the end.
    fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.stream.read_to_string(&mut rest).unwrap();
        rest
    }

    fn expect_end(&mut self) {
        assert_eq!(self.rest(), "");
    }

    /// Waits until the agent has ended the connection, whatever waits in it.
    fn is_ended(&mut self) {
        let mut sink = Vec::new();
        // An error is an end as well: unread bytes of this client were thrown away.
        let _ = self.stream.read_to_end(&mut sink);
    }
}

/// Opens a session of an echo service, and moves 14 bytes each way.
fn talk(device: &mut TunnelEnd, session: &str, service: &str) {
    assert_eq!(device.create(session, service), 0);
    device.data(session, b"are you there?");
    assert_eq!(device.receive_data(session, 14), b"are you there?");
}

/// The error of an answer.
fn error(answer: &Value) -> &str {
    assert_eq!(answer["ok"], json!(false), "{answer}");
    answer["error"].as_str().unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program where every user may run it.
fn program_for_all(folder: &Folder) -> PathBuf {
    let copy = folder.file("aiot-tunnel");
    fs::copy(program(), &copy).unwrap();
    copy
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
