//! A device in a process of its own: the test program, run again. So its memory can be measured,
//! and it can have a network namespace of its own.
//!
//! A test program that uses this has an ignored test named `device_process` that calls [`main`].
//! Tests of devices in the test's own process use [`manager`](crate::manager).

use std::io::Write;
use std::net::ToSocketAddrs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use aiot_tunnel::{ConnectParams, Limits, Manager, Security, Service, Token};
use serde_json::{json, Value};

use crate::manager::id;
use crate::process::{test_again, Lines, Process};
use crate::{logs, services};

/// The environment variable with the device's configuration, in JSON.
const SPEC: &str = "AIOT_TUNNEL_TEST_DEVICE";
/// The device's token, which comes on its standard input.
pub const TOKEN: &str = "hush-child-token";
/// The echo service that every device offers, in its own namespace.
pub const ECHO: &str = "own-echo";
/// Begins each line that is for the parent: libtest writes lines, and beginnings of lines, too.
const MARK: &str = "@";

/// A device's configuration. Times are in milliseconds.
pub fn spec(limits: Value, services: &[Service]) -> Value {
    let services: Vec<Value> = services
        .iter()
        .map(|service| json!([service.service_type(), service.target().to_string()]))
        .collect();
    json!({"limits": limits, "services": services})
}

pub struct DeviceProcess {
    process: Process,
    lines: Lines,
}

impl DeviceProcess {
    pub fn start(spec: &Value) -> Self {
        let mut command = test_again("device_process");
        command.arg("--ignored").env(SPEC, spec.to_string()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let lines = process.lines_after(MARK);
        let device = DeviceProcess { process, lines };
        device.expect("ready");
        device
    }

    pub fn command(&mut self, line: &str) {
        self.process.write(format!("{line}\n").as_bytes());
    }

    pub fn add(&mut self, id: &str, host: &str, port: u16) {
        self.command(&format!("add {id} {host} {port} {TOKEN}"));
    }

    pub fn update(&mut self, id: &str, host: &str, port: u16) {
        self.command(&format!("update {id} {host} {port} {TOKEN}"));
    }

    /// The device's next line.
    pub fn next_line(&self) -> String {
        self.lines.next_line()
    }

    /// Waits for the device's next line, which must be this one.
    pub fn expect(&self, line: &str) {
        assert_eq!(self.next_line(), line);
    }

    /// The device's lines that were not taken yet.
    pub fn said(&self) -> Vec<String> {
        self.lines.so_far()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Tells the device to stop, and waits until it has.
    pub fn stop(&mut self) {
        self.command("stop");
        while self.next_line() != "stopped" {}
        assert!(self.process.wait().success());
    }
}

/// The child's part. It ends with its standard input.
pub fn main() {
    let Ok(text) = std::env::var(SPEC) else { return };
    let spec: Value = serde_json::from_str(&text).unwrap();
    logs::keep();
    let mut builder = Manager::builder().security(Security::Plain).limits(limits(&spec["limits"]));
    for service in spec["services"].as_array().unwrap() {
        let text = |index: usize| service[index].as_str().unwrap();
        let target = text(1).parse().unwrap();
        builder = builder.service(Service::at(text(0), target).unwrap());
    }
    builder = builder.service(services::echo(ECHO));
    let manager = builder
        .on_event(|_, event| say(&format!("{:?} {}", event.kind, event.tunnel_id)))
        .build()
        .unwrap();
    let handle = manager.handle();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            let params = |words: &[&str]| {
                let token = Token::new(words[2]).unwrap();
                ConnectParams::new(words[0], words[1].parse().unwrap(), "/tunnel/t/dest", token)
                    .unwrap()
            };
            match words[0] {
                "add" => handle.add(&id(words[1]), params(&words[2..])).unwrap(),
                "update" => handle.update(&id(words[1]), params(&words[2..])).unwrap(),
                "delete" => handle.delete(&id(words[1])).unwrap(),
                "lookup" => say(&format!("found {}", lookup(words[1]).join(" "))),
                "stop" => break,
                other => panic!("an unknown command: {other}"),
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
    let _ = writeln!(stdout, "{MARK}{text}");
    let _ = stdout.flush();
}

/// The addresses of a name, in the resolver's order.
fn lookup(name: &str) -> Vec<String> {
    let found = (name, 0).to_socket_addrs();
    found.map(|found| found.map(|address| address.ip().to_string()).collect()).unwrap_or_default()
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
