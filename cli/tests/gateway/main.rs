//! A gateway that keeps tunnels, and its HTTP API. The programs are real ones.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::time::Duration;

use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::process::program;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{gateways, logs};
use serde_json::Value;

mod api;
mod audit;
mod front;
mod generate;
mod hostile;
mod live;
mod mistakes;
mod notify;
mod publish;
mod redis;
mod reload;
mod settings;
mod store;

/// What changes a tunnel takes effect on open connections within this time.
const SOON: Duration = Duration::from_secs(1);

/// A gateway with a store and an API, and what belongs to it.
struct Gateway {
    program: Program,
    address: SocketAddr,
    api: SocketAddr,
    key: String,
    folder: Folder,
    /// Arguments besides addresses, store and key.
    more: Vec<String>,
}

impl Gateway {
    fn start() -> Self {
        Gateway::with(&["--plain"])
    }

    fn with(more: &[&str]) -> Self {
        Gateway::in_folder(Folder::new(), more)
    }

    fn in_folder(folder: Folder, more: &[&str]) -> Self {
        let key = run(&["gen-token"], &[]);
        let key = String::from_utf8(key.stdout).unwrap().trim().to_owned();
        logs::note_secret(key.as_bytes());
        folder.write_secret("api.key", &key);
        let more: Vec<String> = more.iter().map(|&argument| argument.to_owned()).collect();
        let any = "127.0.0.1:0".parse().unwrap();
        let (program, address, api) = Gateway::spawn(&folder, any, &more);
        Gateway { program, address, api, key, folder, more }
    }

    fn spawn(
        folder: &Folder,
        listen: SocketAddr,
        more: &[String],
    ) -> (Program, SocketAddr, SocketAddr) {
        let mut command = Command::new(program());
        command.arg("gateway").args(["--listen", &listen.to_string(), "--api", "127.0.0.1:0"]);
        command.arg("--api-key-file").arg(folder.file("api.key"));
        if more.iter().all(|argument| argument != "--store") {
            command.arg("--store").arg(folder.file("tunnels.db"));
        }
        command.args(more);
        let mut program = Program::start_command(&mut command);
        let address = program.address();
        program.expect_log("the API listens on ");
        let log = program.log();
        let api = log.split("the API listens on ").nth(1).and_then(|rest| rest.lines().next());
        let api = api.unwrap_or_else(|| panic!("no API: {log}")).parse().unwrap();
        (program, address, api)
    }

    /// Ends it in order, and starts it again at its address.
    fn restart(&mut self) {
        self.program.process.terminate();
        let (status, log) = self.program.finish();
        assert!(status.success(), "{log}");
        (self.program, self.address, self.api) =
            Gateway::spawn(&self.folder, self.address, &self.more);
    }

    fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Asks with the key; the status and the body.
    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let answer = self.request(method, path, Some(&self.key), body.map(|body| body.to_string()));
        (answer.status, serde_json::from_str(&answer.body).unwrap_or(Value::Null))
    }

    fn request(&self, method: &str, path: &str, key: Option<&str>, body: Option<String>) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.api);
        if let Some(key) = key {
            request += &format!("Authorization: Bearer {key}\r\n");
        }
        if let Some(body) = &body {
            let length = body.len();
            request += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        self.send((request + "\r\n" + &body.unwrap_or_default()).as_bytes())
    }

    /// Sends these bytes and nothing more, and reads the answer.
    fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.api).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        Answer::parse(&answer)
    }

    /// Makes a tunnel; its tokens.
    fn add(&self, id: &str) -> Tokens {
        self.add_for(id, None)
    }

    fn add_for(&self, id: &str, expire: Option<u64>) -> Tokens {
        let body = serde_json::json!({"id": id, "expire": expire});
        let (status, issued) = self.ask("POST", "/tunnels", Some(body));
        assert_eq!(status, 201, "{issued}");
        Tokens::of(&issued)
    }

    /// What the API says of a tunnel.
    fn show(&self, id: &str) -> Value {
        let (status, shown) = self.ask("GET", &format!("/tunnels/{id}"), None);
        assert_eq!(status, 200, "{shown}");
        shown
    }

    /// Runs a subcommand with the API's address and key in the environment.
    fn run(&self, arguments: &[&str]) -> Output {
        let key = self.folder.file("api.key").display().to_string();
        run(arguments, &[("AIOT_TUNNEL_API", &self.url()), ("AIOT_TUNNEL_API_KEY_FILE", &key)])
    }

    /// The status with which an end of a tunnel is refused, or 101.
    fn admission(&self, path: &str, token: &str) -> u16 {
        gateways::connect(self.address, path, Some(token)).map_or_else(|status| status, |_| 101)
    }

    /// An agent that opens a tunnel by itself, with a token that it reads from a file.
    fn agent(&self, id: &str, token: &str, service: &str) -> Program {
        let file = self.folder.write_secret("device.token", token);
        let scheme =
            if self.more.iter().any(|argument| argument == "--plain") { "ws" } else { "wss" };
        let tunnel = format!("{id} {scheme}://{} {file}", self.address);
        let mut arguments = vec!["agent", "--control-socket", "none", "--queue-key", "off"];
        arguments.extend(["--tunnel", &tunnel, "--service", service]);
        let ca = self.folder.file("ca.pem").display().to_string();
        match scheme {
            "ws" => arguments.push("--plain"),
            _ => arguments.extend(["--ca", &ca]),
        }
        Program::start(&arguments)
    }

    /// A local port of the operator's end.
    fn access(&self, id: &str, token: &str, service: &str) -> (Program, SocketAddr) {
        let file = self.folder.write_secret("access.token", token);
        let scheme =
            if self.more.iter().any(|argument| argument == "--plain") { "ws" } else { "wss" };
        let url = format!("{scheme}://{}", self.address);
        let ca = self.folder.file("ca.pem").display().to_string();
        let mut arguments = vec!["access", "--url", &url, "--tunnel", id, "--service", service];
        arguments.extend(["--listen", "127.0.0.1:0", "--token-file", &file]);
        if scheme == "wss" {
            arguments.extend(["--ca", &ca]);
        }
        let mut access = Program::start(&arguments);
        let address = access.address();
        (access, address)
    }

    fn has_device(&self, id: &str) -> bool {
        self.show(id)["state"] == "online"
    }
}

struct Tokens {
    device: String,
    access: String,
}

impl Tokens {
    fn of(issued: &Value) -> Self {
        let token = |name: &str| {
            let token = issued[name].as_str().unwrap_or_default();
            logs::note_secret(token.as_bytes());
            token.to_owned()
        };
        Tokens { device: token("device_token"), access: token("access_token") }
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        Answer { status: status.unwrap(), head: head.to_owned(), body: body.to_owned() }
    }
}

/// Runs a subcommand to its end.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program());
    for variable in ["AIOT_TUNNEL_API", "AIOT_TUNNEL_API_KEY_FILE", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command.args(arguments).envs(environment.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Sends a line and expects it back.
fn echoes(stream: &mut TcpStream, line: &str) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    let mut back = vec![0; line.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, line.as_bytes());
}

/// A certificate for this machine in the folder's files; its CA in ca.pem.
fn certify(folder: &Folder, authority: &Authority) {
    let identity = authority.identity("127.0.0.1");
    folder.write_secret("server.key", &identity.key);
    folder.write("server.pem", &identity.certificate);
    folder.write("ca.pem", authority.pem());
}

/// Waits until something holds, at most for the time in which changes take effect.
fn soon(what: &str, holds: impl FnMut() -> bool) {
    wait::until_within(what, SOON, holds);
}
