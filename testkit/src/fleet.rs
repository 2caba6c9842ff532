//! Two gateways behind HAProxy, with one Redis server: all four are real programs, with the configuration of
//! `packaging/fleet`. Only addresses, paths and passwords are other ones, and one port that needs a right.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{json, Value};
use tungstenite::{Error, HandshakeError};

use crate::certificates::{self, Authority};
use crate::folder::Folder;
use crate::path::Program;
use crate::process::{program, Process};
use crate::streams::limited;
use crate::tunnel_end::{Stream, TunnelEnd};
use crate::wait::{self, TIMEOUT};
use crate::{gateways, haproxy, logs};

/// The number of gateways.
pub const GATEWAYS: usize = 2;
/// The last numbers of the addresses in `packaging/fleet`.
const BALANCER: u8 = 10;
const FIRST: u8 = 11;
const STORE: u8 = 5;
/// The ports in `packaging/fleet`. Only root may have the first one.
const HTTPS: u16 = 443;
const UNPRIVILEGED: u16 = 8443;
const API: u16 = 8444;
const REDIS: u16 = 6379;
/// What the configuration has in the places of passwords.
const PASSWORDS: [(&str, &str); 2] =
    [("ADMIN-PASSWORD", "hush-fleet-admin"), ("GATEWAY-PASSWORD", "hush-fleet-gateway")];
const API_KEY: &str = "hush-fleet-api-key-0123456789";

/// A gateway of the fleet.
pub struct Member {
    /// `None`: it was killed.
    program: Option<Program>,
    arguments: Vec<String>,
    /// Where the balancer reaches it.
    pub address: SocketAddr,
    api: SocketAddr,
}

/// The tokens of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub device: String,
    pub access: String,
}

impl Tokens {
    fn of(answer: &Value) -> Self {
        let token = |name: &str| {
            let token = answer[name].as_str().unwrap_or_default();
            logs::note_secret(token.as_bytes());
            token.to_owned()
        };
        Tokens { device: token("device_token"), access: token("access_token") }
    }
}

pub struct Fleet {
    pub members: Vec<Member>,
    balancer: Process,
    /// `None`: it is stopped.
    store: Option<Process>,
    authority: Authority,
    /// The network of the addresses: nobody else's programs take a port there.
    network: [u8; 2],
    folder: Folder,
}

impl Fleet {
    /// Starts everything. `more`: further arguments of the gateways.
    ///
    /// # Errors
    /// A program is not installed.
    pub fn start(more: &[&str]) -> Result<Self, String> {
        let haproxy = haproxy::program()?;
        let redis = Command::new("redis-server").arg("--version").output();
        redis.map_err(|_| "there is no redis-server")?;
        for (_, password) in PASSWORDS {
            logs::note_secret(password.as_bytes());
        }
        logs::note_secret(API_KEY.as_bytes());
        let network = [rand::random_range(1..=254), rand::random()];
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = authority.identity(&address(network, BALANCER).to_string());
        folder.write_secret("gw.example.pem", [identity.certificate, identity.key].concat());
        folder.write_secret("api.key", API_KEY);
        folder.write_secret("redis.password", PASSWORDS[1].1);
        let key = Command::new(program()).arg("gen-token").output().unwrap();
        logs::note_secret(key.stdout.trim_ascii());
        folder.write_secret("store.key", key.stdout);

        let store = Some(start_store(&folder, network));
        let start = |number| Member::start(number, &folder, network, more);
        let members = (0..GATEWAYS).map(start).collect();
        let config = folder.write("haproxy.cfg", config("haproxy.cfg", &folder, network));
        let checked = Command::new(&haproxy).args(["-c", "-f", &config]).output().unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        let is_valid = checked.status.success() && !said.contains("WARNING");
        assert!(is_valid, "packaging/fleet/haproxy.cfg: {said}");
        let mut command = Command::new(haproxy);
        command.args(["-db", "-f", &config]).stdout(Stdio::null()).stderr(Stdio::null());
        let balancer = Process::start(&mut command);
        let mut fleet = Fleet { members, balancer, store, authority, network, folder };
        wait::until("haproxy listens", || {
            assert!(!fleet.balancer.has_ended(), "haproxy has ended");
            TcpStream::connect(fleet.address()).is_ok()
        });
        Ok(fleet)
    }

    /// Where devices and operators connect to.
    pub fn address(&self) -> SocketAddr {
        (address(self.network, BALANCER), UNPRIVILEGED).into()
    }

    /// The CA that has certified the balancer, in PEM.
    pub fn ca(&self) -> Vec<u8> {
        self.authority.pem()
    }

    /// Makes a tunnel by one of the gateways.
    pub fn add(&self, gateway: usize, id: &str) -> Tokens {
        let (status, answer) =
            self.members[gateway].ask("POST", "/tunnels", Some(json!({ "id": id })));
        assert_eq!(status, 201, "{answer}");
        Tokens::of(&answer)
    }

    /// Replaces the tokens of a tunnel by one of the gateways.
    pub fn rotate(&self, gateway: usize, id: &str) -> Option<Tokens> {
        let path = format!("/tunnels/{id}/rotate");
        let (status, answer) = self.members[gateway].ask("POST", &path, None);
        assert_eq!(status, 200, "{answer}");
        Some(Tokens::of(&answer))
    }

    /// Removes a tunnel by one of the gateways.
    pub fn remove(&self, gateway: usize, id: &str) -> Option<Tokens> {
        let (status, answer) = self.members[gateway].ask("DELETE", &format!("/tunnels/{id}"), None);
        assert_eq!(status, 204, "{answer}");
        None
    }

    /// The gateways that have a tunnel's device.
    pub fn places(&self, id: &str) -> Vec<usize> {
        let has = |member: &Member| {
            let path = format!("/tunnels/{id}");
            member.is_running() && member.ask("GET", &path, None).1["state"] == "online"
        };
        (0..GATEWAYS).filter(|number| has(&self.members[*number])).collect()
    }

    /// Connects an end of a tunnel by the balancer.
    ///
    /// # Errors
    /// The HTTP status of a refusal.
    pub fn connect(&self, path: &str, token: &str) -> Result<TunnelEnd, u16> {
        let tcp = limited(TcpStream::connect(self.address()).unwrap());
        let connector = certificates::connector(&self.ca());
        let host = self.address().ip().to_string();
        let stream: Box<dyn Stream> =
            Box::new(connector.connect(&host, tcp.try_clone().unwrap()).unwrap());
        gateways::connect_over(stream, tcp, path, Some(token)).map_err(|e| match e {
            HandshakeError::Failure(Error::Http(response)) => response.status().as_u16(),
            e => panic!("{path}: {e}"),
        })
    }

    /// Kills a gateway.
    pub fn kill(&mut self, gateway: usize) {
        if let Some(mut program) = self.members[gateway].program.take() {
            program.process.kill();
        }
    }

    /// Stops a gateway in order.
    pub fn stop(&mut self, gateway: usize) {
        if let Some(mut program) = self.members[gateway].program.take() {
            program.process.terminate();
            let (status, log) = program.finish();
            assert!(status.success(), "{log}");
        }
    }

    /// The process of a gateway that runs.
    pub fn process(&mut self, gateway: usize) -> &mut Process {
        &mut self.members[gateway].program.as_mut().expect("the gateway runs").process
    }

    /// Starts a gateway again.
    pub fn restart(&mut self, gateway: usize) {
        self.members[gateway].run();
    }

    /// Stops the store in order.
    pub fn stop_store(&mut self) {
        if let Some(mut store) = self.store.take() {
            store.terminate();
            store.wait();
        }
    }

    pub fn start_store(&mut self) {
        self.store = Some(start_store(&self.folder, self.network));
    }

    /// The processes, by name.
    pub fn processes(&self) -> Vec<(String, u32)> {
        let running = |(number, member): (usize, &Member)| {
            let program = member.program.as_ref()?;
            Some((format!("gateway {number}"), program.process.id()))
        };
        let store = self.store.as_ref().map(|store| ("store".to_owned(), store.id()));
        let gateways = self.members.iter().enumerate().filter_map(running);
        gateways.chain([("haproxy".to_owned(), self.balancer.id())]).chain(store).collect()
    }
}

impl Member {
    fn start(number: usize, folder: &Folder, network: [u8; 2], more: &[&str]) -> Self {
        let name = format!("gateway-{number}.toml");
        let own = address(network, FIRST + number as u8).to_string();
        let first = address(network, FIRST).to_string();
        let config = config("gateway.toml", folder, network).replace(&first, &own);
        let address = SocketAddr::new(own.parse().unwrap(), 0);
        let api = SocketAddr::new(own.parse().unwrap(), API);
        let config = folder.write_secret(&name, config);
        let arguments = ["gateway", "--config", &config, "--log-level", "info"];
        let arguments = [&arguments[..], more].concat().into_iter().map(str::to_owned).collect();
        let mut member = Member { program: None, arguments, address, api };
        member.run();
        member
    }

    fn run(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut program = Program::start(&arguments);
        self.address = program.address();
        program.expect_log("the API listens on ");
        self.program = Some(program);
    }

    pub fn is_running(&self) -> bool {
        self.program.is_some()
    }

    /// What it has logged since its start.
    pub fn log(&self) -> String {
        self.program.as_ref().map(Program::log).unwrap_or_default()
    }

    /// Asks its API with the key; the status and the body.
    pub fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {API_KEY}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.api,
            body.len()
        );
        let mut stream = TcpStream::connect(self.api).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        (status.unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// What it says of its health: the status and what is the matter.
    pub fn health(&self) -> (u16, String) {
        let (status, body) = self.ask("GET", "/healthz", None);
        (status, body["status"].as_str().unwrap_or_default().to_owned())
    }

    /// The status with which it refuses an end of a tunnel by itself, or 101.
    pub fn admission(&self, path: &str, token: &str) -> u16 {
        gateways::connect(self.address, path, Some(token)).map_or_else(|status| status, |_| 101)
    }
}

fn address([second, third]: [u8; 2], last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, second, third, last)
}

/// A file of `packaging/fleet` with the test's addresses, paths and passwords.
fn config(name: &str, folder: &Folder, network: [u8; 2]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/fleet").join(name);
    let mut text = std::fs::read_to_string(file).unwrap();
    let path = format!("{}/", folder.path().display());
    let prefix = address(network, 0).to_string();
    for (from, to) in [
        (format!("10.0.0.{BALANCER}:{HTTPS} "), format!("10.0.0.{BALANCER}:{UNPRIVILEGED} ")),
        ("10.0.0.".to_owned(), prefix.strip_suffix('0').unwrap().to_owned()),
        ("/etc/aiot-tunnel/".to_owned(), path.clone()),
        ("/etc/haproxy/".to_owned(), path),
    ] {
        text = text.replace(&from, &to);
    }
    for (place, password) in PASSWORDS {
        text = text.replace(place, password);
    }
    // Only root can change to another user.
    let of_root = ["user haproxy", "group haproxy", "chroot "];
    let lines = text.lines().filter(|line| {
        let line = line.trim_start();
        !of_root.iter().any(|start| line.starts_with(start))
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn start_store(folder: &Folder, network: [u8; 2]) -> Process {
    let path = folder.path().display();
    let own = config("redis.conf", folder, network);
    let config = format!("{own}dir {path}\nlogfile {path}/redis.log\ndaemonize no\n");
    let config = folder.write_secret("redis.conf", config);
    let mut command = Command::new("redis-server");
    command.arg(config).stdout(Stdio::null());
    let mut process = Process::start(&mut command);
    let address = SocketAddr::from((address(network, STORE), REDIS));
    wait::until("redis-server listens", || {
        assert!(!process.has_ended(), "redis-server has ended");
        TcpStream::connect(address).is_ok()
    });
    process
}
