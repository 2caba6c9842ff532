//! Published ports: plain TCP clients, no access process.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::services;
use aiot_tunnel_testkit::ssh::Ssh;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};

use super::{certify, echoes, Gateway};

impl Gateway {
    /// The address of a published port: of the first that the log names.
    pub(super) fn published(&self) -> SocketAddr {
        const BEGIN: &str = "published port ";
        self.program.expect_log(BEGIN);
        let log = self.program.log();
        let rest = log.split(BEGIN).nth(1).unwrap();
        rest.split(": ").next().unwrap().parse().unwrap()
    }
}

fn connect(port: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// Reads to the end, which must be a reset.
fn is_reset(mut stream: TcpStream) {
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) + at / 251 + seed) as u8).collect()
}

/// Sends a request, ends the stream, and reads the answer.
fn asks(port: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut client = connect(port);
    let mut sender = client.try_clone().unwrap();
    let bytes = request.to_vec();
    let sends = std::thread::spawn(move || {
        sender.write_all(&bytes).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    sends.join().unwrap();
    answer
}

/// What `systemctl restart` does: SIGTERM, SIGKILL after the unit's TimeoutStopSec, and a new start.
#[test]
fn a_restart_ends_in_time_and_brings_everything_back_at_the_same_ports() {
    let unit = include_str!("../../../packaging/aiot-tunnel-gateway.service");
    let setting = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name));
    // Without KillMode, systemd signals all processes of the unit. There is one.
    assert_eq!((setting("KillMode="), setting("KillSignal=")), (None, None));
    let limit = Duration::from_secs(setting("TimeoutStopSec=").unwrap().parse().unwrap());

    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let publish = format!("{free}=t1:echo");
    let mut gateway = Gateway::with(&["--plain", "--publish", &publish]);
    let tokens = gateway.add("t1");
    let service = services::echo("echo");
    let agent = gateway.agent("t1", &tokens.device, &format!("echo={}", service.target()));
    let (access, local) = gateway.access("t1", &tokens.access, "echo");
    let mut clients = [connect(free), connect(local)];
    for client in &mut clients {
        echoes(client, "before");
    }
    // Others connect and say nothing, or begin a handshake.
    let _silent = [connect(gateway.address), connect(gateway.api), connect(free)];
    let mut half = connect(gateway.address);
    half.write_all(b"GET /tunnel/t1/dest HTTP/1.1\r\n").unwrap();

    gateway.program.process.terminate();
    wait::until_within("the end of the gateway", limit, || gateway.program.process.has_ended());
    clients.into_iter().for_each(is_reset);
    gateway.restart();
    for port in [free, local] {
        wait::until("sessions are there again", || {
            let mut client = connect(port);
            let mut back = [0; 5];
            client.write_all(b"after").is_ok() && client.read_exact(&mut back).is_ok()
        });
    }
    // Both ends were told, and came back by themselves.
    for program in [&agent, &access] {
        program.expect_log("the peer closed the connection with code 1001");
    }
}

#[test]
fn a_plain_client_reaches_the_service_and_each_direction_ends_alone() {
    let folder = Folder::new();
    let authority = Authority::new();
    certify(&folder, &authority);
    let (cert, key) = (folder.file("server.pem"), folder.file("server.key"));
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let publish = "127.0.0.1:0=t1:late";
    let more = ["--cert", &cert, "--key", &key, "--publish", publish];
    let gateway = Gateway::in_folder(folder, &more);
    let tokens = gateway.add("t1");
    // Answers only after the end of the request.
    let service = services::service("late", |mut stream| {
        let mut request = Vec::new();
        if stream.read_to_end(&mut request).is_ok() {
            request.reverse();
            let _ = stream.write_all(&request);
        }
    });
    let _agent = gateway.agent("t1", &tokens.device, &format!("late={}", service.target()));
    let port = gateway.published();
    let mut clients = Vec::new();
    for seed in 0..4 {
        clients.push(std::thread::spawn(move || {
            let mut request = pattern(3_000_000, seed);
            let answer = asks(port, &request);
            request.reverse();
            assert!(answer == request, "{} bytes came back", answer.len());
        }));
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    wait::until("every session has ended", || gateway.show("t1")["sessions"] == 0);
    let shown = gateway.show("t1");
    assert_eq!(
        (&shown["bytes_to_device"], &shown["bytes_to_access"]),
        (&12_000_000.into(), &12_000_000.into())
    );
}

#[test]
fn a_stream_that_was_cut_ends_in_a_reset() {
    let gateway = Gateway::with(&["--plain", "--publish", "127.0.0.1:0=t1:echo"]);
    let tokens = gateway.add("t1");
    let service = services::echo("echo");
    let agent = gateway.agent("t1", &tokens.device, &format!("echo={}", service.target()));
    let mut client = connect(gateway.published());
    echoes(&mut client, "hello");
    drop(agent);
    is_reset(client);
}

#[test]
fn a_client_waits_for_the_device_but_not_for_ever_and_not_with_too_many_others() {
    let more = ["--plain", "--publish", "127.0.0.1:0=t1:echo", "--publish-limit", "2"];
    let gateway = Gateway::with(&more);
    let port = gateway.published();
    // The tunnel is not known yet.
    is_reset(connect(port));
    gateway.program.expect_log("is refused: there is no such tunnel");

    let tokens = gateway.add("t1");
    let mut first = connect(port);
    first.write_all(b"early").unwrap();
    gateway.program.expect_log("session_create refused: the device is not connected");
    let second = connect(port);
    is_reset(connect(port));
    gateway.program.expect_log("is refused: the limit of 2 clients of the port");
    drop(second);
    let service = services::echo("echo");
    let _agent = gateway.agent("t1", &tokens.device, &format!("echo={}", service.target()));
    let mut back = [0; 5];
    first.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"early");
}

#[test]
fn a_client_that_has_waited_for_too_long_is_reset() {
    let more = ["--plain", "--publish", "127.0.0.1:0=t1:echo", "--publish-queue-timeout", "300ms"];
    let gateway = Gateway::with(&more);
    gateway.add("t1");
    let client = connect(gateway.published());
    let from = client.local_addr().unwrap();
    is_reset(client);
    gateway.program.expect_log(&format!("client {from} of the published port"));
}

#[test]
fn new_tokens_leave_published_sessions_alone_and_a_removed_tunnel_ends_them() {
    let gateway = Gateway::with(&["--plain", "--publish", "127.0.0.1:0=t1:echo"]);
    let tokens = gateway.add("t1");
    let service = services::echo("echo");
    let _agent = gateway.agent("t1", &tokens.device, &format!("echo={}", service.target()));
    let mut client = connect(gateway.published());
    echoes(&mut client, "hello");
    let body = serde_json::json!({"side": "access"});
    let (status, answer) = gateway.ask("POST", "/tunnels/t1/rotate", Some(body));
    assert_eq!(status, 200, "{answer}");
    gateway.program.expect_log("the access token is no longer valid");
    echoes(&mut client, "still here");
    gateway.ask("DELETE", "/tunnels/t1", None);
    is_reset(client);
}

#[test]
fn a_service_may_be_told_the_clients_address_by_the_proxy_protocol() {
    let folder = Folder::new();
    let settings = "[[publish]]\nlisten = \"127.0.0.1:0\"\ntunnel = \"t1\"\nservice = \"banner\"\n\
                    proxy_protocol = true\n";
    folder.write("gateway.toml", settings);
    let config = folder.file("gateway.toml").display().to_string();
    let gateway = Gateway::in_folder(folder, &["--plain", "--config", &config]);
    let tokens = gateway.add("t1");
    // The client says nothing before the service has the header.
    let service = services::service("banner", |mut stream| {
        let mut header = [0; 28];
        if stream.read_exact(&mut header).is_ok() {
            let _ = stream.write_all(&header);
        }
    });
    let _agent = gateway.agent("t1", &tokens.device, &format!("banner={}", service.target()));
    let port = gateway.published();
    let mut client = connect(port);
    let mut header = [0; 28];
    client.read_exact(&mut header).unwrap();
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
    expected.extend(client.local_addr().unwrap().port().to_be_bytes());
    expected.extend(port.port().to_be_bytes());
    assert_eq!(header[..], expected);
}

#[test]
fn ssh_goes_through_a_published_port() {
    let Ok(ssh) = Ssh::new() else { return eprintln!("skipped: ssh is not installed") };
    let gateway = Gateway::with(&["--plain", "--publish", "127.0.0.1:0=t1:_SSH"]);
    let tokens = gateway.add("t1");
    let service = ssh.service("_SSH");
    let _agent = gateway.agent("t1", &tokens.device, &format!("_SSH={}", service.target()));
    let config = ssh.client_config("");
    let port = gateway.published().port().to_string();
    let mut command = Command::new("ssh");
    command.args(["-F", &config, "-p", &port, "127.0.0.1", "echo published; exit 7"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(output.stdout, b"published\n");
}

#[test]
fn a_gateway_that_ends_tells_both_ends_and_the_audit_why() {
    let folder = Folder::new();
    let file = folder.file("audit.log").display().to_string();
    let more = ["--plain", "--publish", "127.0.0.1:0=t1:echo", "--audit-log", &file];
    let mut gateway = Gateway::in_folder(folder, &more);
    let tokens = gateway.add("t1");
    let service = services::echo("echo");
    let _agent = gateway.agent("t1", &tokens.device, &format!("echo={}", service.target()));
    let mut client = connect(gateway.published());
    echoes(&mut client, "hello");
    gateway.program.process.terminate();
    is_reset(client);
    let (status, log) = gateway.program.finish();
    assert!(status.success(), "{log}");
    let audit = std::fs::read_to_string(gateway.folder.file("audit.log")).unwrap();
    assert!(audit.contains("\"why\":\"the gateway ends\""), "{audit}");
    assert!(audit.contains("\"bytes_to_device\":5"), "{audit}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let publish = format!("{address}=t1");
    let output = super::run(
        &["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnel", "t1", "--publish", &publish],
        &[("AIOT_TUNNEL_DEVICE_TOKEN", "hush-device"), ("AIOT_TUNNEL_ACCESS_TOKEN", "hush-access")],
    );
    assert_eq!(output.status.code(), Some(19));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(&format!("--publish: cannot listen on {address}: ")), "{error}");
}
