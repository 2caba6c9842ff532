//! A device in a process of its own: the test binary, executed again. So its memory can be
//! measured, and it can stand in a network namespace of its own.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use aiot_tunnel::*;
use serde_json::{json, Value};
use tungstenite::handshake::server::{Request, Response};

use super::common::{self, Device, PATIENCE};

/// Holds what the device is to be, as JSON.
const SPEC: &str = "AIOT_TUNNEL_TEST_DEVICE";
/// What the token in its environment must not be confused with: it comes on its stdin.
pub const TOKEN: &str = "hush-child-token";

/// What a device is to be. Times are in milliseconds.
pub fn spec(limits: Value, services: &[Service]) -> Value {
    let services: Vec<Value> = services
        .iter()
        .map(|service| json!([service.service_type(), service.target().to_string()]))
        .collect();
    json!({"limits": limits, "services": services})
}

pub struct DeviceProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl DeviceProcess {
    /// The test binary must have an ignored test `device_process` that calls [`device_main`].
    pub fn start(spec: &Value) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "device_process", "--ignored", "--nocapture", "--test-threads=1"])
            .env(SPEC, spec.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test harness writes lines, and beginnings of lines, of its own.
                if let Some((_, text)) = line.split_once('@') {
                    let _ = sender.send(text.to_owned());
                }
            }
        });
        let device = DeviceProcess { child, stdin, lines };
        device.expect("ready");
        device
    }

    pub fn command(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn add(&mut self, id: &str, host: &str, port: u16) {
        self.command(&format!("add {id} {host} {port} {TOKEN}"));
    }

    pub fn update(&mut self, id: &str, host: &str, port: u16) {
        self.command(&format!("update {id} {host} {port} {TOKEN}"));
    }

    /// The next thing it says.
    pub fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the device says something in time")
    }

    /// Waits for the next thing it says, which must be this.
    pub fn expect(&self, text: &str) {
        assert_eq!(self.next(), text);
    }

    /// What it has said in the meantime.
    pub fn said(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A line of `/proc/PID/status`: kibibytes, or a count.
    pub fn status(&self, field: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// From here on `VmHWM` is the peak since now.
    pub fn reset_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Tells it to stop, which it must do in time.
    pub fn stop(&mut self) {
        self.command("stop");
        while self.next() != "stopped" {}
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process. Ends with its stdin.
pub fn device_main() {
    let Ok(text) = std::env::var(SPEC) else { return };
    let spec: Value = serde_json::from_str(&text).unwrap();
    common::logs::keep();
    let mut builder = Manager::builder().security(Security::Plain).limits(limits(&spec["limits"]));
    for service in spec["services"].as_array().unwrap() {
        let text = |index: usize| service[index].as_str().unwrap();
        builder = builder.service(Service::at(text(0), text(1).parse().unwrap()).unwrap());
    }
    // Services within the device's own namespace.
    builder = builder.service(common::echo("own-echo"));
    let manager = builder
        .on_event(|_, event| say(&format!("{:?} {}", event.kind, event.tunnel_id)))
        .build()
        .unwrap();
    let handle = manager.handle();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            let params = |words: &[&str]| {
                let token = Token::new(words[2]).unwrap();
                ConnectParams::new(words[0], words[1].parse().unwrap(), "/tunnel/t/dest", token)
                    .unwrap()
            };
            match words[0] {
                "add" => handle.add(&common::id(words[1]), params(&words[2..])).unwrap(),
                "update" => handle.update(&common::id(words[1]), params(&words[2..])).unwrap(),
                "delete" => handle.delete(&common::id(words[1])).unwrap(),
                "lookup" => {
                    let found = (words[1], 0).to_socket_addrs();
                    let found = found.map(|found| found.map(|a| a.ip().to_string()).collect());
                    let found: Vec<String> = found.unwrap_or_default();
                    say(&format!("found {}", found.join(" ")));
                }
                "stop" => break,
                other => panic!("{other}?"),
            }
        }
        handle.stop();
    });
    say("ready");
    manager.run().unwrap();
    say("stopped");
}

fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "@{text}");
    let _ = stdout.flush();
}

fn limits(spec: &Value) -> Limits {
    let mut limits = Limits::default();
    let set = |name: &str, value: &mut Duration| {
        if let Some(millis) = spec[name].as_u64() {
            *value = Duration::from_millis(millis);
        }
    };
    set("stall_timeout", &mut limits.stall_timeout);
    set("handshake_timeout", &mut limits.handshake_timeout);
    set("connect_timeout", &mut limits.connect_timeout);
    set("ping_interval", &mut limits.ping_interval);
    set("pong_timeout", &mut limits.pong_timeout);
    limits
}

/// The cloud's end of one connection of a [`DeviceProcess`], by tungstenite.
#[allow(clippy::result_large_err)]
pub fn upgrade(tcp: TcpStream) -> Device {
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.set_write_timeout(Some(PATIENCE)).unwrap();
    tcp.set_nodelay(true).unwrap();
    let raw = tcp.try_clone().unwrap();
    let stream: Box<dyn common::Stream> = Box::new(tcp);
    let mut path = String::new();
    let answer = |request: &Request, mut response: Response| {
        path = request.uri().to_string();
        let protocol = request.headers()["sec-websocket-protocol"].clone();
        response.headers_mut().insert("sec-websocket-protocol", protocol);
        Ok(response)
    };
    let socket = tungstenite::accept_hdr(stream, answer).unwrap();
    Device { socket, raw, path }
}

/// That a session can be opened and echoes.
pub fn echoes(device: &mut Device, session: &str, service: &str) {
    assert_eq!(device.create(session, service), 0);
    device.data(session, b"are you there?");
    assert_eq!(device.receive_data(session, 14), b"are you there?");
    device.send(json!({"frame_type": 3, "session_id": session, "frame_id": 77}), b"{\"code\":0}");
    let (header, payload) = device.receive();
    assert_eq!((&header["frame_type"], &header["frame_id"]), (&json!(1), &json!(77)), "{header}");
    assert_eq!(common::code(&payload), 0);
}
