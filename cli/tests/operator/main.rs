//! The operator's side: `ssh`, `ssh-config`, `access` with profiles, exit statuses and messages. The
//! programs are real ones. docs/access.md is what is tested here.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use aiot_tunnel::Service;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::{Agent, Kind, Path};
use aiot_tunnel_testkit::process::{program, Process};
use aiot_tunnel_testkit::ACCESS_TOKEN;

mod config;
mod listen;
mod mistakes;
mod ssh;
mod token;

/// A gateway, an agent, and an operator's folder with a configuration.
struct Scene {
    path: Path,
    _agent: Agent,
    home: Folder,
}

impl Scene {
    fn new(kind: Kind, services: &[Service]) -> Self {
        let path = Path::new(kind);
        let agent = path.agent(services);
        Scene { path, _agent: agent, home: Folder::new() }
    }

    fn url(&self) -> String {
        let scheme = if self.path.kind.tls { "wss" } else { "ws" };
        format!("{scheme}://{}", self.path.address())
    }

    /// Writes the only profile, with further lines and a file for the token.
    fn profile(&self, more: &str) {
        fs::create_dir_all(self.home.file("aiot-tunnel/tokens")).unwrap();
        self.home.write_secret("aiot-tunnel/tokens/t1", ACCESS_TOKEN);
        let ca = self.path.ca().map(|ca| format!("ca = {ca:?}\n")).unwrap_or_default();
        let text = format!("[profile.plant]\nurl = \"{}\"\n{ca}{more}\n", self.url());
        self.home.write("aiot-tunnel/config.toml", text);
    }

    /// The program, with the operator's configuration and nothing else.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments);
        self.settle(&mut command);
        command
    }

    /// Makes a command see the configuration, and no token.
    fn settle(&self, command: &mut Command) {
        command.env("XDG_CONFIG_HOME", self.home.path()).env_remove("AIOT_TUNNEL_ACCESS_TOKEN");
    }
}

const TOKEN_FILE: &str = "token_file = \"tokens/{tunnel}\"";

/// Runs a command without input; its exit status, standard output and standard error.
fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let mut process =
        Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut stdout = process.take_stdout();
    let mut stderr = process.child().stderr.take().unwrap();
    let (mut printed, mut said) = (String::new(), String::new());
    std::thread::scope(|scope| {
        scope.spawn(|| stdout.read_to_string(&mut printed).unwrap());
        stderr.read_to_string(&mut said).unwrap();
    });
    let status = process.wait();
    assert!(!said.contains("hush-"), "{said}");
    (status.code(), printed, said)
}

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// The command must fail with this status, and with one line that has these parts.
fn fails(command: &mut Command, status: i32, parts: &[&str]) -> String {
    let (is, _, said) = run(command);
    assert_eq!(is, Some(status), "{command:?}: {said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("aiot-tunnel: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    says(lines[0], parts);
    said
}

fn set_mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
