//! The log of the programs. Nothing waits for its reader, a remote party cannot fill it, and what is
//! left out is counted.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use aiot_tunnel::ipc;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::gateways::connect;
use aiot_tunnel_testkit::manager::id;
use aiot_tunnel_testkit::process::Process;
use aiot_tunnel_testkit::queue::Key;
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{logs, ACCESS_TOKEN, DEVICE_TOKEN};
use serde_json::json;
use tungstenite::protocol::CloseFrame;

/// With the level trace, so many sessions make more lines than a pipe and the queue hold.
const MORE_THAN_A_PIPE_HOLDS: usize = 800;

fn command(arguments: &[&str], level: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aiot-tunnel"));
    command
        .args(arguments)
        .env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN)
        .env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE_TOKEN)
        .env("RUST_LOG", level)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The program's log, read on a thread of its own.
fn read_log(process: &mut Process) -> thread::JoinHandle<String> {
    let stderr = process.child().stderr.take().unwrap();
    thread::spawn(move || String::from_utf8_lossy(&logs::tee(stderr)).into_owned())
}

/// An agent, the cloud that it connects to, and the cloud's end of its tunnel `t`.
struct Agent {
    process: Process,
    cloud: Cloud,
    key: Key,
}

impl Agent {
    fn start(more: &[&str], level: &str) -> Self {
        let key = Key::new();
        let queue = key.0.to_string();
        let arguments = ["agent", "--plain", "--control-socket", "none", "--queue-key", &queue];
        let arguments = [&arguments, more].concat();
        let process = Process::start(&mut command(&arguments, level));
        Agent { process, cloud: Cloud::plain(), key }
    }

    fn add(&self) -> TunnelEnd {
        let add = ipc::Command::Add(id("t"), self.cloud.params());
        wait::until("the agent's queue", || ipc::send(self.key.0, &add).is_ok());
        self.cloud.accept()
    }

    /// Ends it. The result is its log.
    fn end(mut self, log: thread::JoinHandle<String>) -> String {
        self.process.terminate();
        assert!(self.process.wait().success());
        log.join().unwrap()
    }
}

/// A gateway that serves the tunnel `t1`, and its address.
fn gateway(level: &str) -> (Process, SocketAddr) {
    let arguments = ["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnel", "t1"];
    let mut process = Process::start(&mut command(&arguments, level));
    let line = process.lines().next_line();
    let address = line.strip_prefix("listening on ").unwrap().parse().unwrap();
    (process, address)
}

fn device(gateway: SocketAddr) -> TunnelEnd<TcpStream> {
    at_once(connect(gateway, "/tunnel/t1/dest", Some(DEVICE_TOKEN)).unwrap())
}

fn access(gateway: SocketAddr) -> TunnelEnd<TcpStream> {
    at_once(connect(gateway, "/tunnel/t1/source", Some(ACCESS_TOKEN)).unwrap())
}

/// An end whose frames do not wait for each other in the kernel.
fn at_once(end: TunnelEnd<TcpStream>) -> TunnelEnd<TcpStream> {
    end.tcp.set_nodelay(true).unwrap();
    end
}

fn lines_with(log: &str, part: &str) -> usize {
    log.lines().filter(|line| line.contains(part)).count()
}

#[test]
fn an_agent_whose_log_nobody_reads_goes_on_and_ends() {
    let mut agent = Agent::start(&[], "trace");
    let mut device = agent.add();
    for _ in 0..MORE_THAN_A_PIPE_HOLDS {
        assert_eq!(device.create("s", "nobody"), 2);
    }
    // When the reader comes back, it gets what waits, and the number of the others.
    let mut stderr = agent.process.child().stderr.take().unwrap();
    let (found, finds) = mpsc::channel();
    thread::spawn(move || {
        let (mut log, mut chunk) = (String::new(), [0; 4096]);
        while !log.contains(" lines were left out here") {
            let length = stderr.read(&mut chunk).unwrap();
            assert!(length > 0, "{log}");
            log += &String::from_utf8_lossy(&chunk[..length]);
        }
        let _ = found.send((log, stderr));
    });
    let (log, _unread) = finds.recv_timeout(TIMEOUT).expect("the number of the lines left out");
    // Again, so that the end finds a full pipe.
    for _ in 0..MORE_THAN_A_PIPE_HOLDS {
        assert_eq!(device.create("s", "nobody"), 2);
    }
    agent.process.terminate();
    assert!(agent.process.wait().success());
    assert!(!log.contains("hush-"), "{log}");
}

#[test]
fn a_gateway_whose_log_nobody_reads_goes_on_and_ends() {
    let (mut process, address) = gateway("trace");
    let mut one = access(address);
    for frame_id in 0..MORE_THAN_A_PIPE_HOLDS {
        one.send(json!({"frame_type": 2, "frame_id": frame_id, "service_type": "_SSH"}), b"");
        // The device is not connected.
        assert_eq!(one.receive().0["frame_id"], json!(frame_id));
    }
    let (mut device, mut another) = (device(address), access(address));
    another.send(json!({"frame_type": 2, "frame_id": 1, "service_type": "_SSH"}), b"");
    assert_eq!(device.receive().0["frame_type"], 2);
    drop((device, another, one));
    process.terminate();
    assert!(process.wait().success());
}

#[test]
fn a_log_that_cannot_be_written_changes_nothing() {
    let (gone, nobody) = rustix::pipe::pipe().unwrap();
    drop(gone);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(nobody), Stdio::from(full)] {
        let queue = Key::new();
        let key = queue.0.to_string();
        let arguments = ["agent", "--plain", "--control-socket", "none", "--queue-key", &key];
        let mut command = command(&arguments, "trace");
        let mut process = Process::start(command.stderr(stderr));
        let cloud = Cloud::plain();
        let add = ipc::Command::Add(id("t"), cloud.params());
        wait::until("the agent's queue", || ipc::send(queue.0, &add).is_ok());
        let mut device = cloud.accept();
        assert_eq!(device.create("s", "nobody"), 2);
        process.terminate();
        assert!(process.wait().success());
    }
    // An error text that cannot be written does not change the exit status.
    for path in ["/dev/full", "/dev/null"] {
        let stderr = File::options().write(true).open(path).unwrap();
        let mut command = command(&["gateway", "--plain"], "info");
        assert_eq!(command.stderr(stderr).status().unwrap().code(), Some(2), "{path}");
    }
}

#[test]
fn the_second_signal_ends_the_program_at_once() {
    let (mut process, address) = gateway("info");
    let mut device = device(address);
    process.terminate();
    // The gateway has begun to end: it waits for the answer to its close frame, but there is none.
    let header = read_frame_header(&mut device.tcp);
    assert_eq!(header & 0x0f, 8, "a close frame");
    process.terminate();
    assert_eq!(process.wait().signal(), Some(15));
}

/// The first byte of the next WebSocket frame.
fn read_frame_header(stream: &mut TcpStream) -> u8 {
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    byte[0]
}

#[test]
fn sessions_that_come_and_go_do_not_fill_the_devices_log() {
    let service = echo("e");
    let mut agent = Agent::start(&["--service", &format!("e={}", service.target())], "info");
    let log = read_log(&mut agent.process);
    let mut device = agent.add();
    for _ in 0..1000 {
        assert_eq!(device.create("s", "e"), 0);
        device.release("s", 2, r#"{"code":0,"msg":"bye"}"#);
        assert_eq!(device.receive().0["frame_type"], 1);
    }
    let begun = std::time::Instant::now();
    let log = agent.end(log);
    assert!(begun.elapsed() < TIMEOUT);
    let lines = lines_with(&log, "new session") + lines_with(&log, "release the session");
    assert!((100..1000).contains(&lines), "{lines} lines");
    assert!(log.contains(" more lines of this tunnel were left out"), "{log}");
    // The connection's own lines are there.
    assert!(log.contains("websocket t opened"), "{log}");
}

#[test]
fn sessions_that_come_and_go_do_not_fill_the_gateways_log() {
    let (mut process, address) = gateway("info");
    let log = read_log(&mut process);
    let (mut device, mut access) = (device(address), access(address));
    for frame_id in 0..1000 {
        access.send(json!({"frame_type": 2, "frame_id": frame_id, "service_type": "_SSH"}), b"");
        let (mut header, _) = device.receive();
        header["frame_type"] = json!(1);
        device.send(header, br#"{"code":0,"msg":"ok"}"#);
        let (header, _) = access.receive();
        let session = header["session_id"].as_str().unwrap().to_owned();
        access.release(&session, frame_id, r#"{"code":0,"msg":"bye"}"#);
        assert_eq!(device.receive().0["frame_type"], 3);
    }
    drop((device, access));
    process.terminate();
    assert!(process.wait().success());
    let log = log.join().unwrap();
    let lines = lines_with(&log, "tunnel \"t1\"");
    assert!((100..1000).contains(&lines), "{lines} lines");
    assert!(log.contains(" more lines were left out"), "{log}");
    assert!(log.contains("device connected"), "{log}");
}

#[test]
fn connections_that_come_and_go_do_not_fill_the_gateways_log() {
    let (mut process, address) = gateway("info");
    let log = read_log(&mut process);
    for _ in 0..300 {
        let mut access = access(address);
        access.socket.close(None).unwrap();
        access.receive_close();
    }
    process.terminate();
    assert!(process.wait().success());
    let log = log.join().unwrap();
    let lines = lines_with(&log, "tunnel \"t1\": access");
    assert!((50..300).contains(&lines), "{lines} lines");
    assert!(log.contains(" more lines were left out"), "{log}");
}

#[test]
fn a_second_device_with_the_same_token_is_reported_once_with_its_address() {
    let mut agent = Agent::start(&[], "info");
    let log = read_log(&mut agent.process);
    let mut device = agent.add();
    for _ in 0..3 {
        let reason = "replaced by 192.0.2.7:4242".into();
        device.socket.close(Some(CloseFrame { code: 1000.into(), reason })).unwrap();
        device.receive_close();
        device = agent.cloud.accept();
    }
    let _ = device.tcp.write_all(b"");
    let log = agent.end(log);
    let told =
        "another device uses the same token and has taken this one's place, from 192.0.2.7:4242";
    assert_eq!(lines_with(&log, told), 1, "{log}");
}
