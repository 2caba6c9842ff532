//! The gateway's page in a real browser, and what it refuses. The programs are real ones.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use aiot_tunnel_testkit::browser::{Browser, BrowserPage, Screen};
use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::process::program;
use aiot_tunnel_testkit::{logs, skip};
use serde_json::json;

mod forgery;
mod markup;
mod pictures;
mod raw;
mod terminal;
mod walk;

const SMALL: Screen = Screen { width: 375, height: 667, dark: false };
const LARGE: Screen = Screen { width: 1280, height: 800, dark: false };
/// A gateway with a store, API and page.
struct Gateway {
    program: Program,
    address: SocketAddr,
    page: SocketAddr,
    is_secure: bool,
    key: String,
    folder: Folder,
}

impl Gateway {
    fn start(more: &[&str]) -> Self {
        let folder = Folder::new();
        let key = Command::new(program()).arg("gen-token").output().unwrap();
        let key = String::from_utf8(key.stdout).unwrap().trim().to_owned();
        logs::note_secret(key.as_bytes());
        folder.write_secret("api.key", &key);
        let identity = Authority::new().identity("127.0.0.1");
        folder.write_secret("server.key", &identity.key);
        folder.write("server.pem", &identity.certificate);
        let is_secure = more.contains(&"--api-tls");
        let mut command = Command::new(program());
        command.args(["gateway", "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", "--page"]);
        command.arg("--api-key-file").arg(folder.file("api.key"));
        command.arg("--store").arg(folder.file("tunnels.db"));
        match is_secure {
            true => {
                command.arg("--cert").arg(folder.file("server.pem"));
                command.arg("--key").arg(folder.file("server.key"));
            }
            false => {
                command.arg("--plain");
            }
        }
        let mut program = Program::start_command(command.args(more));
        let address = program.address();
        program.expect_log("the API listens on ");
        let log = program.log();
        let page = log.split("the API listens on ").nth(1).unwrap().lines().next().unwrap();
        Gateway { page: page.parse().unwrap(), program, address, is_secure, key, folder }
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.page)
    }

    /// Makes a tunnel by the API; its tokens, the device's first.
    fn add(&self, id: &str) -> (String, String) {
        let body = json!({"id": id}).to_string();
        let key = format!("Authorization: Bearer {}", self.key);
        let answer =
            self.send("POST", "/tunnels", &[&key, "Content-Type: application/json"], &body);
        assert_eq!(answer.status, 201, "{}", answer.body);
        let issued: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let token = |name: &str| {
            let token = issued[name].as_str().unwrap().to_owned();
            logs::note_secret(token.as_bytes());
            token
        };
        (token("device_token"), token("access_token"))
    }

    /// A file with a token, which its program reads again and again.
    fn secret(&self, token: &str) -> String {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.folder.write_secret(&format!("{number}.token"), token)
    }

    /// A device of a tunnel.
    fn agent(&self, id: &str, token: &str, services: &[String]) -> Program {
        let file = self.secret(token);
        let tunnel = format!("{id} ws://{} {file}", self.address);
        let options = ["agent", "--plain", "--control-socket", "none", "--queue-key", "off"];
        let services = services.iter().flat_map(|service| ["--service", service]);
        let arguments = options.into_iter().chain(["--tunnel", &tunnel]).chain(services);
        Program::start(&arguments.collect::<Vec<_>>())
    }

    /// A port that leads to a service of a tunnel.
    fn access(&self, id: &str, token: &str, service: &str) -> (Program, SocketAddr) {
        let file = self.secret(token);
        let url = format!("ws://{}", self.address);
        let options = ["access", "--url", &url, "--listen", "127.0.0.1:0", "--token-file", &file];
        let more = ["--tunnel", id, "--service", service];
        let mut access = Program::start(&[&options[..], &more].concat());
        let address = access.address();
        (access, address)
    }

    /// Opens the page and logs in.
    fn log_in(&self, page: &BrowserPage) {
        page.open(&self.url("/"));
        page.click("#key");
        page.type_text(&self.key);
        page.press("Enter");
        page.until_text("h1", "Tunnels");
    }
}

/// A browser, or the word that the test is skipped.
fn browser(test: &str) -> Option<Browser> {
    Browser::start().map_err(|why| skip(test, why)).ok()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(aiot_tunnel_testkit::wait::TIMEOUT)).unwrap();
    stream
}
