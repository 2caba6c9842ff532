//! The ways from an operator to a service behind the device. All processes of the operator's side
//! run in the cloud's namespace, those of the device in the device's.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::link::{Link, CLOUD};
use aiot_tunnel_testkit::process::{program, Process};
use aiot_tunnel_testkit::queue::Key;
use aiot_tunnel_testkit::ssh::Ssh;
use aiot_tunnel_testkit::wait;

/// Each link has namespaces of its own, so that ports can be fixed.
pub const SERVICE_PORT: u16 = 9000;
const LOCAL_PORT: u16 = 7000;
const GATEWAY_PORT: u16 = 8443;
const SSH_PORT: u16 = 22;
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), LOCAL_PORT);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Two connections over the same link.
    Tcp,
    /// `ssh -R` from the device to an sshd beside the operator, with its defaults.
    Ssh,
    /// `agent` on the device; `gateway` and `access` beside the operator; TLS.
    Tunnel,
    /// The same with `access --no-extensions`: what a device can do alone.
    Foreign,
}

/// A way's processes. They end with it.
pub struct SetUp {
    address: SocketAddr,
    /// In the order in which they end.
    _processes: Vec<Process>,
    _ssh: Option<Ssh>,
    _key: Option<Key>,
    _folder: Folder,
}

impl SetUp {
    /// Where the operator connects.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::Tcp => "plain TCP",
            Way::Ssh => "ssh -R",
            Way::Tunnel => "aiot-tunnel, TLS",
            Way::Foreign => "aiot-tunnel, TLS, no extensions",
        }
    }

    /// Whether the program can leave the extensions out.
    pub fn has_foreign() -> bool {
        let help = Command::new(program()).args(["access", "--help"]).output().unwrap();
        String::from_utf8_lossy(&help.stdout).contains("--no-extensions")
    }

    pub fn set_up(self, link: &Link) -> SetUp {
        match self {
            Way::Tcp => SetUp {
                address: super::service_address(),
                _processes: Vec::new(),
                _ssh: None,
                _key: None,
                _folder: Folder::new(),
            },
            Way::Ssh => ssh_forward(link),
            Way::Tunnel => tunnel(link, &[]),
            Way::Foreign => tunnel(link, &["--no-extensions"]),
        }
    }
}

/// Waits until the operator's end of the way is open.
fn wait_for_port(link: &Link) {
    link.cloud.within(|| {
        wait::until("the operator's port", || {
            super::look();
            TcpStream::connect(LOCAL).is_ok()
        });
    });
}

fn ssh_forward(link: &Link) -> SetUp {
    let keys = Ssh::new().unwrap();
    let listener = link.cloud.within(|| TcpListener::bind((CLOUD, SSH_PORT)).unwrap());
    let mut command = Command::new("ssh");
    command
        .args(["-F", &keys.client_config("")])
        .args(["-N", "-o", "ExitOnForwardFailure=yes"])
        .args(["-R", &format!("{LOCAL}:127.0.0.1:{SERVICE_PORT}")])
        .arg(CLOUD.to_string());
    let client = link.device.within(|| Process::spawn(command.stdin(Stdio::null())));
    let accepted = wait::accept(&listener);
    link.cloud.within(|| keys.serve(accepted));
    wait_for_port(link);
    SetUp {
        address: LOCAL,
        _processes: vec![client],
        _ssh: Some(keys),
        _key: None,
        _folder: Folder::new(),
    }
}

fn tunnel(link: &Link, more: &[&str]) -> SetUp {
    let (folder, key) = (Folder::new(), Key::new());
    let authority = Authority::new();
    let identity = authority.identity(&CLOUD.to_string());
    let ca = folder.write("ca.pem", authority.pem());
    let certificate = folder.write("server.pem", &identity.certificate);
    let private_key = folder.write("server.key", &identity.key);
    let address = SocketAddr::from((CLOUD, GATEWAY_PORT));
    let (queue, port) = (key.0.to_string(), GATEWAY_PORT.to_string());
    let command = |arguments: &[&str]| {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("AIOT_TUNNEL_DEVICE_TOKEN", "hush-bench-device")
            .env("AIOT_TUNNEL_ACCESS_TOKEN", "hush-bench-access")
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped());
        command
    };
    let start = |arguments: &[&str]| Process::start(&mut command(arguments));
    let mut gateway = link.cloud.within(|| {
        let listen = address.to_string();
        start(&[
            "gateway",
            "--listen",
            &listen,
            "--tunnel",
            "t",
            "--cert",
            &certificate,
            "--key",
            &private_key,
        ])
    });
    gateway.lines().expect("listening");
    let service = format!("bench=127.0.0.1:{SERVICE_PORT}");
    let mut agent = link.device.within(|| {
        start(&[
            "agent",
            "--control-socket",
            "none",
            "--queue-key",
            &queue,
            "--ca",
            &ca,
            "--service",
            &service,
        ])
    });
    let events = agent.lines();
    wait::until("the agent's queue", || key.exists());
    let host = CLOUD.to_string();
    let add = ["send", "add", "--tunnel", "t", "--queue-key", &queue];
    let sent = command(&[&add[..], &["--host", &host, "--port", &port]].concat()).status();
    assert!(sent.unwrap().success());
    events.expect("Connect");
    let url = format!("wss://{address}");
    let listen = LOCAL.to_string();
    let arguments = [
        "access",
        "--url",
        &url,
        "--ca",
        &ca,
        "--tunnel",
        "t",
        "--service",
        "bench",
        "--listen",
        &listen,
    ];
    let mut access = link.cloud.within(|| start(&[&arguments[..], more].concat()));
    let lines = access.lines();
    lines.expect("listening");
    // Read to the end, so that what it prints does not make it wait.
    thread::spawn(move || lines.into_iter().for_each(drop));
    SetUp {
        address: LOCAL,
        _processes: vec![access, agent, gateway],
        _ssh: None,
        _key: Some(key),
        _folder: folder,
    }
}
