//! From the platform's message to ssh: mosquitto, `signal`, `agent`, `gateway`, `access` and OpenSSH. A
//! test whose programs are not installed says so and passes; scripts/setup installs them.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use aiot_tunnel_testkit::mosquitto::{Mosquitto, Subscriber};
use aiot_tunnel_testkit::path::{Kind, Path, Program, TUNNEL};
use aiot_tunnel_testkit::process::{program, Group, Lines, Process};
use aiot_tunnel_testkit::queue::Key;
use aiot_tunnel_testkit::ssh::Ssh;
use aiot_tunnel_testkit::{logs, skip, wait, ACCESS_TOKEN, DEVICE_TOKEN};
use serde_json::{json, Value};

const NOTIFY: &str = "/sys/pk/device-1/secure_tunnel/notify";
const REQUEST: &str = "/sys/pk/device-1/secure_tunnel/proxy/request";
const REPLY: &str = "/sys/pk/device-1/secure_tunnel/proxy/request_reply";
const SECRET: &str = "hush-device-secret";
/// HMAC-SHA256 of the sign-in's parameters with the secret above, from another implementation:
/// printf clientIdpk.device-1deviceNamedevice-1productKeypktimestamp2524608000000 |
///   openssl dgst -sha256 -hmac hush-device-secret
const PASSWORD: &str = "f479b7cfa2d69b309273c24ac080b26f3beb9b08752ae53d9d84d1c724f332f3";
/// ssh is done long before.
const SSH_TIMEOUT: Duration = Duration::from_secs(60);

/// How the signal process reaches the agent.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Socket,
    Queue,
}

/// A device with all that belongs to it.
struct Device {
    broker: Mosquitto,
    gateway: Path,
    ssh: Ssh,
    way: Way,
    key: Key,
    agent: Program,
    events: Lines,
    signal: Program,
    handed_over: Lines,
    requests: Subscriber,
}

impl Device {
    /// `None`, with a message, where a program is missing.
    fn new(test: &str, way: Way) -> Option<Self> {
        for secret in [SECRET, PASSWORD] {
            logs::note_secret(secret.as_bytes());
        }
        let ssh = Ssh::new().map_err(|why| skip(test, why)).ok()?;
        let broker = Mosquitto::new("device-1&pk", PASSWORD, "/sys/pk/device-1/#");
        let broker = broker.map_err(|why| skip(test, why)).ok()?;
        let requests = broker.subscribe(REQUEST);
        let gateway = Path::new(Kind::TLS);
        let key = Key::new();
        let (agent, events) = start_agent(&gateway, &ssh, &key, way);
        let secret = broker.folder().write("device.secret", format!("{SECRET}\n"));
        let (url, ca) = (broker.url(), broker.ca_file());
        let mut arguments = vec!["signal", "--broker", &url, "--ca", &ca];
        arguments.extend(["--product-key", "pk", "--device-name", "device-1"]);
        arguments.extend(["--device-secret-file", &secret]);
        let (socket, number) = (socket(&ssh), key.0.to_string());
        match way {
            Way::Socket => arguments.extend(["--control-socket", &socket]),
            Way::Queue => arguments.extend(["--queue-key", &number]),
        }
        let mut signal = Program::start(&arguments);
        let handed_over = signal.process.lines();
        let device =
            Device { broker, gateway, ssh, way, key, agent, events, signal, handed_over, requests };
        // At the start it asks, and this platform has no tunnel yet.
        device.requests.expect("{\"id\":");
        device.reply(json!({}));
        Some(device)
    }

    fn restart_agent(&mut self) {
        self.agent.process.kill();
        (self.agent, self.events) = start_agent(&self.gateway, &self.ssh, &self.key, self.way);
    }

    /// The connection data of the tunnel.
    fn data(&self, token: &str) -> Value {
        let address = self.gateway.address();
        json!({
            "schema": "wss", "path": format!("/tunnel/{TUNNEL}/dest"), "tunnel_id": TUNNEL,
            "host": address.ip().to_string(), "port": address.port().to_string(), "token": token,
            "token_expire": 86400, "udi": "user-1"
        })
    }

    fn connect(&self, token: &str) {
        let mut message = self.data(token);
        message["operation"] = json!("connect");
        self.broker.publish(NOTIFY, message.to_string());
    }

    fn update(&self, token: &str) {
        self.broker.publish(NOTIFY, self.data(token).to_string());
    }

    fn close(&self) {
        let message = json!({"tunnel_id": TUNNEL, "operation": "close", "close_reason": "done"});
        self.broker.publish(NOTIFY, message.to_string());
    }

    /// The platform's answer to a request.
    fn reply(&self, data: Value) {
        self.broker.publish(REPLY, json!({"id": 1, "code": 200, "data": data}).to_string());
    }

    fn event(&self, event: &str) {
        self.events.expect(&format!("{event} {TUNNEL}"));
    }

    /// `ssh device echo ...`; what it prints, or `None` if it fails.
    fn ssh(&self) -> Option<String> {
        let quoted = |word: &[u8]| format!("'{}'", String::from_utf8_lossy(word));
        let mut words = vec![quoted(program().as_os_str().as_bytes())];
        let arguments = self.gateway.access_arguments("_SSH");
        words.extend(arguments.iter().map(|word| quoted(word.as_bytes())));
        let proxy = words.join(" ").replace('%', "%%");
        let more = format!("HostName device.invalid\nProxyCommand {proxy} --stdio");
        let config = self.ssh.client_config(&more);
        let mut command = Command::new("ssh");
        command.args(["-F", &config, "device", "echo hello from the device"]);
        command.env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut group = Group::spawn(&mut command);
        let lines = group.0.lines();
        let status = group.0.wait_within(SSH_TIMEOUT).expect("ssh ends in time");
        drop(group);
        status.success().then(|| lines.into_iter().collect())
    }

    fn ssh_works(&self) {
        assert_eq!(self.ssh().as_deref(), Some("hello from the device"));
    }

    /// Ends the signal process; its log must not hold a secret, and it has no file open.
    fn finish(mut self) {
        let open = format!("/proc/{}/fd", self.signal.process.id());
        for descriptor in std::fs::read_dir(open).unwrap().flatten() {
            // One that was closed meanwhile has no name any more.
            let file = std::fs::read_link(descriptor.path()).unwrap_or_default();
            let is_file = file.starts_with("/") && !file.starts_with("/dev");
            assert!(!is_file, "{}", file.display());
        }
        self.signal.process.terminate();
        let (status, log) = self.signal.finish();
        assert!(status.success(), "{status}: {log}");
        // The MQTT library's lines might hold one.
        for secret in [DEVICE_TOKEN, "hush-wrong", SECRET, PASSWORD, "rumqttc::"] {
            assert!(!log.contains(secret), "{log}");
        }
    }
}

fn socket(ssh: &Ssh) -> String {
    ssh.folder().file("agent.sock").into_os_string().into_string().unwrap()
}

fn start_agent(gateway: &Path, ssh: &Ssh, key: &Key, way: Way) -> (Program, Lines) {
    let service = ssh.service("_SSH");
    let service = format!("_SSH={}", service.target());
    let (ca, socket, number) = (gateway.ca().unwrap(), socket(ssh), key.0.to_string());
    let mut arguments = vec!["agent", "--ca", &ca, "--service", &service];
    match way {
        Way::Socket => arguments.extend(["--control-socket", &socket, "--queue-key", "off"]),
        Way::Queue => arguments.extend(["--control-socket", "none", "--queue-key", &number]),
    }
    let mut agent = Program::start(&arguments);
    let events = agent.process.lines();
    match way {
        Way::Socket => wait::until("the agent's socket", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        }),
        Way::Queue => wait::until("the agent's queue", || key.exists()),
    }
    (agent, events)
}

fn one_message_leads_to_ssh_and_close_ends_it(test: &str, way: Way) {
    let Some(device) = Device::new(test, way) else { return };
    device.connect(DEVICE_TOKEN);
    device.handed_over.expect(&format!("add {TUNNEL}"));
    device.event("Connect");
    device.ssh_works();
    // Redelivered messages do not disturb it.
    device.connect(DEVICE_TOKEN);
    device.update(DEVICE_TOKEN);
    device.reply(device.data(DEVICE_TOKEN));
    device.broker.publish(NOTIFY, b"junk");
    device.signal.expect_log("dropped a message of 4 bytes");
    device.ssh_works();
    assert_eq!(device.events.so_far(), [""; 0]);
    device.close();
    device.handed_over.expect(&format!("delete {TUNNEL}"));
    device.event("Disconnect");
    assert_eq!(device.ssh(), None);
    device.finish();
}

#[test]
fn one_message_leads_to_ssh_and_close_ends_it_by_the_control_socket() {
    one_message_leads_to_ssh_and_close_ends_it("a message by the socket", Way::Socket);
}

#[test]
fn one_message_leads_to_ssh_and_close_ends_it_by_the_queue() {
    one_message_leads_to_ssh_and_close_ends_it("a message by the queue", Way::Queue);
}

#[test]
fn an_expired_token_leads_to_a_request_and_a_new_connection() {
    let Some(device) = Device::new("an expired token", Way::Socket) else { return };
    device.connect(DEVICE_TOKEN);
    device.event("Connect");
    device.update("hush-wrong");
    device.event("Disconnect");
    device.event("Expired");
    // The platform answers with a token that is good.
    device.requests.expect("{\"id\":");
    device.reply(device.data(DEVICE_TOKEN));
    device.event("Connect");
    device.ssh_works();
    device.finish();
}

#[test]
fn an_agent_that_starts_again_gets_its_tunnels_and_the_platform_is_asked() {
    let Some(mut device) = Device::new("an agent that starts again", Way::Socket) else { return };
    device.connect(DEVICE_TOKEN);
    device.event("Connect");
    device.restart_agent();
    device.requests.expect("{\"id\":");
    device.event("Connect");
    device.ssh_works();
    // Identical data is not handed over a second time.
    device.reply(device.data(DEVICE_TOKEN));
    device.signal.expect_log("which the agent has already");
    device.close();
    device.event("Disconnect");
    device.finish();
}

#[test]
fn a_message_for_an_agent_that_is_away_waits_for_it() {
    let Some(mut device) = Device::new("an agent that is away", Way::Socket) else { return };
    device.agent.process.kill();
    device.signal.expect_log("the agent has left");
    device.connect(DEVICE_TOKEN);
    device.signal.expect_log("cannot reach the agent");
    device.restart_agent();
    device.event("Connect");
    device.finish();
}

/// SIGUSR1 asks; so it also ends the wait after a refused sign-in, which is long.
#[test]
fn a_signal_asks_at_once_and_a_refused_sign_in_says_what_to_check() {
    let Some(mut device) = Device::new("SIGUSR1", Way::Socket) else { return };
    device.signal.process.user_signal();
    device.requests.expect("{\"id\":");
    device.broker.stop();
    device.broker.set_password("device-1&pk", "hush-wrong");
    device.broker.start();
    device.signal.expect_log("check the secret");
    device.broker.stop();
    device.broker.set_password("device-1&pk", PASSWORD);
    device.broker.start();
    device.requests = device.broker.subscribe(REQUEST);
    device.signal.process.user_signal();
    device.requests.expect("{\"id\":");
    device.connect(DEVICE_TOKEN);
    device.event("Connect");
    device.finish();
}

/// A firmware with an MQTT client of its own.
#[test]
fn the_business_process_in_c_opens_and_closes_a_tunnel() {
    let test = "the business process in C";
    let ssh = match Ssh::new() {
        Ok(ssh) => ssh,
        Err(why) => return skip(test, why),
    };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/business_process.c");
    let example = ssh.folder().file("business_process");
    // The flags of `make c-demo`.
    let output = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2", source, "-o"])
        .arg(&example)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(_) => return skip(test, "there is no C compiler"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let gateway = Path::new(Kind::TLS);
    let key = Key::new();
    let (_agent, events) = start_agent(&gateway, &ssh, &key, Way::Queue);
    let run = |input: &[&str], arguments: &[&str]| {
        let mut command = Command::new(&example);
        command.arg(key.0.to_string()).args(arguments).stderr(Stdio::piped());
        let mut process = Process::start(&mut command);
        // One whose arguments are wrong ends without reading.
        let _ = process.take_stdin().write_all(input.concat().as_bytes());
        process.wait()
    };
    let address = gateway.address();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let path = format!("/tunnel/{TUNNEL}/dest");
    let data = [TUNNEL, &host, &port, &path];
    let token = [DEVICE_TOKEN, "\n"];
    assert!(run(&token, &[&["add"], &data[..]].concat()).success());
    events.expect(&format!("Connect {TUNNEL}"));
    assert!(run(&token, &[&["update"], &data[..]].concat()).success());
    events.expect(&format!("Disconnect {TUNNEL}"));
    events.expect(&format!("Connect {TUNNEL}"));
    assert!(run(&[], &["delete", TUNNEL]).success());
    events.expect(&format!("Disconnect {TUNNEL}"));
    // What does not fit is refused, not cut.
    let long = "x".repeat(128);
    assert!(!run(&token, &["add", &long, &host, &port, &path]).success());
    assert!(!run(&[&long, "\n"], &[&["add"], &data[..]].concat()).success());
    assert!(!run(&token, &["add", TUNNEL]).success());
    assert!(!run(&token, &[&["open"], &data[..]].concat()).success());
    assert_eq!(events.so_far(), [""; 0]);
}
