//! The whole path between a local program and a local service, by the programs that users run:
//! `gateway`, `agent`, `send` and `access`, with or without TLS. A test can kill each of them, or
//! take the place of one end with a raw WebSocket.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::Service;

use crate::certificates::{self, Authority};
use crate::folder::Folder;
use crate::process::{program, Lines, Process};
use crate::queue::Key;
use crate::streams::{limited, Door};
use crate::tunnel_end::{Stream, TunnelEnd};
use crate::wait::{self, TIMEOUT};
use crate::{gateways, logs, sockets, ACCESS_TOKEN, DEVICE_TOKEN};

/// The tunnel of every path.
pub const TUNNEL: &str = "t1";
/// The file with the certificate that clients trust.
const CA: &str = "ca.pem";
/// What the programs read if nothing names a proxy.
const PROXY_VARIABLES: [&str; 7] =
    ["https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"];
const LISTENING: &str = "listening on ";

/// What a path consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub tls: bool,
    /// Whether the access side asks for the session extensions.
    pub extensions: bool,
}

impl Kind {
    pub const PLAIN: Kind = Kind { tls: false, extensions: true };
    pub const TLS: Kind = Kind { tls: true, extensions: true };
    pub const WITHOUT_EXTENSIONS: Kind = Kind { tls: false, extensions: false };
}

/// One of this project's programs, and what it logs.
pub struct Program {
    pub process: Process,
    log: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts the program with these arguments. Its standard input and output are piped.
    pub fn start(arguments: &[&str]) -> Self {
        Program::start_command(Command::new(program()).args(arguments))
    }

    /// Starts a command that becomes the program.
    pub fn start_command(command: &mut Command) -> Self {
        logs::keep();
        // The proxy of the machine that runs the tests is not theirs.
        for variable in PROXY_VARIABLES {
            if command.get_envs().all(|(name, _)| name != variable) {
                command.env_remove(variable);
            }
        }
        command
            .env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN)
            .env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE_TOKEN)
            .env("RUST_LOG", "debug")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Process::start(command);
        let stderr = process.child().stderr.take().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let all = log.clone();
        let each = move |part: &[u8]| all.lock().unwrap().extend_from_slice(part);
        // Read all the time: a full pipe would stop the program.
        let reader = Some(thread::spawn(move || logs::tee_each(stderr, each)));
        Program { process, log, reader }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }

    /// Waits until its log contains a text.
    pub fn expect_log(&self, text: &str) {
        wait::until(&format!("the log contains {text:?}"), || self.log().contains(text));
    }

    /// The address in the line that says so.
    pub fn address(&mut self) -> SocketAddr {
        let mut line = String::new();
        BufReader::new(self.process.take_stdout()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix(LISTENING);
        let address = address.unwrap_or_else(|| panic!("{line:?}; the log: {}", self.log()));
        address.parse().unwrap()
    }

    /// Waits for its end; its status and the whole log.
    pub fn finish(&mut self) -> (ExitStatus, String) {
        let status = self.process.wait();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        (status, self.log())
    }

    /// It must end with status 1 and an error that a user can read.
    pub fn fails(&mut self) -> String {
        let (status, log) = self.finish();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("aiot-tunnel: "), "{log}");
        log
    }
}

/// `access --listen`, and where it listens.
pub struct Access {
    pub program: Program,
    pub address: SocketAddr,
}

impl Access {
    /// A local program's connection.
    pub fn connect(&self) -> TcpStream {
        limited(TcpStream::connect_timeout(&self.address, TIMEOUT).unwrap())
    }
}

/// The gateway, with everything that belongs to its tunnel.
pub struct Path {
    pub kind: Kind,
    pub gateway: Program,
    /// The arguments that start the gateway again at its address.
    arguments: Vec<String>,
    address: SocketAddr,
    /// Has certified the gateway.
    authority: Option<Authority>,
    folder: Folder,
}

impl Path {
    pub fn new(kind: Kind) -> Self {
        Path::with_gateway(kind, &[])
    }

    /// `more`: further arguments of the gateway.
    pub fn with_gateway(kind: Kind, more: &[&str]) -> Self {
        Path::at(Ipv4Addr::LOCALHOST, kind, more)
    }

    /// With a gateway that listens on this address, which may be one of a namespace.
    pub fn at(host: Ipv4Addr, kind: Kind, more: &[&str]) -> Self {
        let folder = Folder::new();
        let authority = kind.tls.then(Authority::new);
        let files = authority.as_ref().map(|authority| {
            folder.write(CA, authority.pem());
            let identity = authority.identity(&host.to_string());
            (folder.write("server.pem", &identity.certificate), folder.write("key", &identity.key))
        });
        let listen = SocketAddr::from((host, 0)).to_string();
        let mut arguments = vec!["gateway", "--listen", &listen, "--tunnel", TUNNEL];
        match &files {
            Some((certificate, key)) => arguments.extend(["--cert", certificate, "--key", key]),
            None => arguments.push("--plain"),
        }
        arguments.extend(more);
        let mut gateway = Program::start(&arguments);
        let address = gateway.address();
        let mut arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        arguments[2] = address.to_string();
        Path { kind, gateway, arguments, address, authority, folder }
    }

    /// Starts the gateway again, at the same address. The former one has ended.
    pub fn restart_gateway(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.gateway = Program::start(&arguments);
        assert_eq!(self.gateway.address(), self.address);
    }

    /// Where the gateway listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that clients shall trust, as an argument.
    pub fn ca(&self) -> Option<String> {
        let path = self.authority.as_ref().map(|_| self.folder.file(CA));
        path.map(|path| path.into_os_string().into_string().unwrap())
    }

    /// An agent that offers these services, connected.
    pub fn agent(&self, services: &[Service]) -> Agent {
        let agent = Agent::start(self.ca().as_deref(), services);
        agent.send("add", Some(self.address));
        agent.events.expect(&format!("Connect {TUNNEL}"));
        agent
    }

    /// Makes the agent connect again.
    pub fn update(&self, agent: &Agent) {
        agent.send("update", Some(self.address));
    }

    /// The first arguments of an `access`.
    pub fn access_arguments(&self, service: &str) -> Vec<String> {
        let scheme = if self.kind.tls { "wss" } else { "ws" };
        let url = format!("{scheme}://{}", self.address);
        let mut arguments: Vec<String> =
            ["access", "--url", &url, "--tunnel", TUNNEL, "--service", service]
                .map(str::to_owned)
                .into();
        if let Some(ca) = self.ca() {
            arguments.extend(["--ca".to_owned(), ca]);
        }
        if !self.kind.extensions {
            arguments.push("--no-extensions".to_owned());
        }
        arguments
    }

    fn access(&self, service: &str, more: &[&str]) -> Program {
        let arguments = self.access_arguments(service);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Program::start(&[&arguments, more].concat())
    }

    pub fn listen(&self, service: &str) -> Access {
        self.listen_with(service, &[])
    }

    /// `more`: further arguments.
    pub fn listen_with(&self, service: &str, more: &[&str]) -> Access {
        self.listen_at(Ipv4Addr::LOCALHOST, service, more)
    }

    /// With a local port at this address.
    pub fn listen_at(&self, host: Ipv4Addr, service: &str, more: &[&str]) -> Access {
        let listen = SocketAddr::from((host, 0)).to_string();
        let mut program = self.access(service, &[&["--listen", &listen], more].concat());
        let address = program.address();
        Access { program, address }
    }

    pub fn stdio(&self, service: &str) -> Program {
        self.access(service, &["--stdio"])
    }

    /// Lets the connections of a listener reach this gateway, too.
    pub fn front(&self, listener: TcpListener) -> Front {
        Front::new(listener, self.address)
    }

    /// A raw end of the tunnel at the gateway: a device, or else an access side. It speaks the
    /// platform's protocol without extensions.
    pub fn raw(&self, is_device: bool) -> TunnelEnd {
        let tcp = limited(TcpStream::connect(self.address).unwrap());
        let clone = tcp.try_clone().unwrap();
        let stream: Box<dyn Stream> = match &self.authority {
            None => Box::new(clone),
            Some(authority) => {
                let connector = certificates::connector(&authority.pem());
                let host = self.address.ip().to_string();
                Box::new(connector.connect(&host, clone).unwrap())
            }
        };
        let (side, token) =
            if is_device { ("dest", DEVICE_TOKEN) } else { ("source", ACCESS_TOKEN) };
        let path = format!("/tunnel/{TUNNEL}/{side}");
        gateways::connect_over(stream, tcp, &path, Some(token))
            .unwrap_or_else(|e| panic!("{path}: {e}"))
    }
}

/// Hands the connections of a listener on to a gateway, until it is dropped. So an address can stay
/// while gateways come and go.
pub struct Front {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    fn new(listener: TcpListener, gateway: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let thread = thread::spawn(move || {
            let mut open = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                let soon = Some(Instant::now() + Duration::from_millis(10));
                if !sockets::wait(&mut [sockets::interest(&listener, true, false)], soon) {
                    continue;
                }
                let client = listener.accept().unwrap().0;
                if let Ok(server) = TcpStream::connect(gateway) {
                    copy(&client, &server);
                    copy(&server, &client);
                    open.extend([client, server]);
                }
            }
            for stream in open {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        Front { stop, thread: Some(thread) }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Copies on a thread of its own, until either end closes; then both are closed.
fn copy(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// A path with one service, whose connections the test takes.
pub struct Line {
    pub path: Path,
    pub agent: Agent,
    pub door: Door,
}

impl Line {
    /// The name of the service.
    pub const SERVICE: &str = "s";

    pub fn new(kind: Kind) -> Self {
        let door = Door::new(Line::SERVICE);
        let path = Path::new(kind);
        let agent = path.agent(&[door.service()]);
        Line { path, agent, door }
    }

    /// A session: `access --listen`, the local program's end and the local service's end.
    pub fn session(&self) -> (Access, TcpStream, TcpStream) {
        let access = self.path.listen(Line::SERVICE);
        let client = access.connect();
        (access, client, self.door.accept())
    }
}

/// An agent and its queue.
pub struct Agent {
    pub program: Program,
    /// The events that it prints.
    pub events: Lines,
    key: Key,
}

impl Agent {
    /// Trusts the certificates of the file `ca`, or else speaks without TLS.
    pub fn start(ca: Option<&str>, services: &[Service]) -> Self {
        Agent::start_as(Command::new(program()), ca, services, &[])
    }

    /// The same, with a command that becomes the program, and with further arguments.
    pub fn start_as(
        mut command: Command,
        ca: Option<&str>,
        services: &[Service],
        more: &[&str],
    ) -> Self {
        let key = Key::new();
        command.args(["agent", "--control-socket", "none", "--queue-key", &key.0.to_string()]);
        match ca {
            Some(ca) => command.args(["--ca", ca]),
            None => command.arg("--plain"),
        };
        for service in services {
            command
                .args(["--service", &format!("{}={}", service.service_type(), service.target())]);
        }
        let mut program = Program::start_command(command.args(more));
        let events = program.process.lines();
        wait::until("the agent's queue", || key.exists());
        Agent { program, events, key }
    }

    /// Sends a command; `add` and `update` name the gateway's address.
    pub fn send(&self, operation: &str, gateway: Option<SocketAddr>) {
        let gateway = gateway.map(|address| (address.ip().to_string(), address.port()));
        self.send_to(operation, gateway.as_ref().map(|(host, port)| (&**host, *port)));
    }

    /// Sends a command; `add` and `update` name the gateway's host and port.
    pub fn send_to(&self, operation: &str, gateway: Option<(&str, u16)>) {
        let key = self.key.0.to_string();
        let mut command = Command::new(program());
        command.args(["send", operation, "--tunnel", TUNNEL, "--queue-key", &key]);
        if let Some((host, port)) = gateway {
            command.args(["--host", host, "--port", &port.to_string()]);
        }
        let output = command.env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE_TOKEN).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
