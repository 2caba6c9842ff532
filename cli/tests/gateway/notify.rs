//! Messages to devices: from the API to a device that connects by itself. mosquitto, `signal`, `agent` and
//! `gateway` are real. A test without mosquitto says so and passes; scripts/setup installs it.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::mosquitto::{Mosquitto, PLATFORM, PLATFORM_PASSWORD};
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::process::Lines;
use aiot_tunnel_testkit::{logs, services, skip, wait};
use serde_json::{json, Value};

use super::{certify, echoes, run, stdout, Gateway, Tokens};

const NOTIFY: &str = "/sys/pk/device-1/secure_tunnel/notify";
const PASSWORD: &str = "hush-device-password";
/// An answer does not wait longer for a broker that is away.
const PROMPT: Duration = Duration::from_secs(2);

fn broker(test: &str) -> Option<Mosquitto> {
    for secret in [PASSWORD, PLATFORM_PASSWORD] {
        logs::note_secret(secret.as_bytes());
    }
    let broker = Mosquitto::new("device-1", PASSWORD, "/sys/pk/device-1/#");
    broker.map_err(|why| skip(test, why)).ok()
}

/// A gateway with TLS that tells devices by this broker.
fn gateway(broker: &Mosquitto) -> Gateway {
    let folder = Folder::new();
    certify(&folder, &Authority::new());
    let password = folder.write_secret("notify.password", format!("{PLATFORM_PASSWORD}\n"));
    let (cert, key) = (folder.file("server.pem"), folder.file("server.key"));
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let (url, ca) = (broker.url(), broker.ca_file());
    let options = ["--cert", &cert, "--key", &key, "--notify", &url, "--notify-ca", &ca];
    let user = ["--notify-user", PLATFORM, "--notify-password-file", &password];
    Gateway::in_folder(folder, &[&options[..], &user].concat())
}

fn add(gateway: &Gateway, id: &str) -> Value {
    let body = json!({"id": id, "product_key": "pk", "device_name": "device-1"});
    let (status, issued) = gateway.ask("POST", "/tunnels", Some(body));
    assert_eq!(status, 201, "{issued}");
    Tokens::of(&issued);
    issued
}

/// A device: an agent without a tunnel, and the program that hands it the platform's messages.
struct Device {
    _agent: Program,
    events: Lines,
    signal: Program,
    handed_over: Lines,
}

impl Device {
    fn start(gateway: &Gateway, broker: &Mosquitto, service: &str) -> Self {
        let file = |name: &str| gateway.folder.file(name).display().to_string();
        let (socket, ca) = (file("agent.sock"), file("ca.pem"));
        let arguments = ["agent", "--control-socket", &socket, "--queue-key", "off", "--ca", &ca];
        let mut agent = Program::start(&[&arguments[..], &["--service", service]].concat());
        let events = agent.process.lines();
        wait::until("the agent's socket", || UnixStream::connect(&socket).is_ok());
        let password = gateway.folder.write_secret("device.password", PASSWORD);
        let (url, ca) = (broker.url(), broker.ca_file());
        let arguments = ["signal", "--broker", &url, "--ca", &ca, "--control-socket", &socket];
        let who = ["--product-key", "pk", "--device-name", "device-1"];
        let user = ["--username", "device-1", "--password-file", &password];
        let mut signal = Program::start(&[&arguments[..], &who, &user].concat());
        let handed_over = signal.process.lines();
        signal.expect_log("asking the platform");
        Device { _agent: agent, events, signal, handed_over }
    }
}

#[test]
fn a_device_connects_by_itself_gets_new_tokens_and_lets_go_of_a_removed_tunnel() {
    let Some(broker) = broker("messages to a device") else { return };
    let gateway = gateway(&broker);
    gateway.program.expect_log("notify: connected to mqtts://");
    let service = services::echo("echo");
    let device = Device::start(&gateway, &broker, &format!("echo={}", service.target()));

    let issued = add(&gateway, "t1");
    assert_eq!(issued["notified"], json!(true));
    device.handed_over.expect("add t1");
    device.events.expect("Connect t1");
    let shown = gateway.show("t1");
    assert_eq!((&shown["product_key"], &shown["device_name"]), (&json!("pk"), &json!("device-1")));
    let tokens = Tokens::of(&issued);
    let (_access, address) = gateway.access("t1", &tokens.access, "echo");
    echoes(&mut TcpStream::connect(address).unwrap(), "hello");

    // The operator's token is not the device's affair.
    let (_, rotated) = gateway.ask("POST", "/tunnels/t1/rotate", Some(json!({"side": "access"})));
    assert_eq!((&rotated["notified"], &rotated["device_token"]), (&json!(null), &json!(null)));

    for _ in 0..3 {
        let before = gateway.show("t1")["device"]["address"].clone();
        let (status, rotated) =
            gateway.ask("POST", "/tunnels/t1/rotate", Some(json!({"side": "device"})));
        assert_eq!((status, &rotated["notified"]), (200, &json!(true)), "{rotated}");
        Tokens::of(&rotated);
        device.events.expect("Connect t1");
        // What the old token had opened is closed, so this connection has the new one.
        wait::until("the device is back", || {
            let now = gateway.show("t1");
            now["state"] == "online" && now["device"]["address"] != before
        });
    }
    assert_eq!(gateway.ask("DELETE", "/tunnels/t1", None).0, 204);
    device.handed_over.expect("delete t1");
    device.events.expect("Disconnect t1");
    device.signal.expect_log("the platform closes tunnel t1: the tunnel was removed");
    for secret in [&tokens.device, &tokens.access] {
        assert!(!gateway.program.log().contains(secret.as_str()));
    }
    assert!(!gateway.program.log().contains("rumqttc::"));
}

#[test]
fn without_its_broker_the_gateway_goes_on_and_messages_wait() {
    let Some(mut broker) = broker("a broker that is away") else { return };
    let gateway = gateway(&broker);
    gateway.program.expect_log("notify: connected to mqtts://");
    let subscriber = broker.subscribe(NOTIFY);
    assert_eq!(add(&gateway, "t0")["notified"], json!(true));
    let message = subscriber.expect("\"t0\"");
    let message: Value = serde_json::from_str(&message).unwrap();
    assert_eq!((&message["operation"], &message["schema"]), (&json!("connect"), &json!("wss")));
    assert_eq!(message["path"], "/tunnel/t0/dest");
    assert_eq!(message["port"], json!(gateway.address.port().to_string()));
    drop(subscriber);

    broker.stop();
    gateway.program.expect_log("notify: lost the connection to mqtts://");
    let begun = Instant::now();
    for id in ["t1", "t2", "t3"] {
        assert_eq!(add(&gateway, id)["notified"], json!(false));
    }
    // Of each tunnel the newest message counts.
    let (_, rotated) = gateway.ask("POST", "/tunnels/t2/rotate", None);
    assert_eq!(rotated["notified"], json!(false));
    let newest = Tokens::of(&rotated);
    assert_eq!(gateway.ask("DELETE", "/tunnels/t3", None).0, 204);
    assert!(begun.elapsed() < 5 * PROMPT, "{:?}", begun.elapsed());

    broker.start();
    let subscriber = broker.subscribe(NOTIFY);
    let first: Value = serde_json::from_str(&subscriber.expect("\"t1\"")).unwrap();
    let second: Value = serde_json::from_str(&subscriber.expect("\"t2\"")).unwrap();
    let third: Value = serde_json::from_str(&subscriber.expect("\"t3\"")).unwrap();
    assert_eq!(first["operation"], "connect");
    assert_eq!((&second["operation"], &second["token"]), (&Value::Null, &json!(newest.device)));
    assert_eq!(third["operation"], "close");
    assert_eq!(add(&gateway, "t4")["notified"], json!(true));
    subscriber.expect("\"t4\"");
}

#[test]
fn the_program_tunnel_names_the_device_and_says_whether_it_was_told() {
    let Some(broker) = broker("tunnel add --device") else { return };
    let gateway = gateway(&broker);
    gateway.program.expect_log("notify: connected to mqtts://");
    let added = stdout(&gateway.run(&["tunnel", "add", "t1", "--device", "pk/device-1"]));
    assert!(added.contains("notified       the broker has the message"), "{added}");
    let shown = stdout(&gateway.run(&["tunnel", "show", "t1"]));
    assert!(shown.contains("device name      device-1\n"), "{shown}");
    let without = stdout(&gateway.run(&["tunnel", "add", "t2"]));
    assert!(!without.contains("notified"), "{without}");
    for bad in ["pk", "pk/", "/d", "pk/a/b", "p+/d"] {
        let output = gateway.run(&["tunnel", "add", "t3", "--device", bad]);
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
    let output = gateway.run(&["tunnel", "show", "t1", "--device", "pk/d"]);
    assert_eq!(output.status.code(), Some(2));
}

/// One line that names the place and the reason.
#[test]
fn a_wrong_setting_of_the_broker_is_named_with_the_reason() {
    let folder = Folder::new();
    folder.write("none.pem", "");
    folder.write_secret("empty", "");
    let (none, empty) = (folder.file("none.pem"), folder.file("empty"));
    let (none, empty) = (none.display().to_string(), empty.display().to_string());
    let plain = ["--notify", "mqtt://127.0.0.1:1"];
    let tls = ["--notify", "mqtts://127.0.0.1:1"];
    for (options, parts) in [
        (&["--notify", "http://h"][..], &["--notify", "mqtts://HOST"][..]),
        (&["--notify", "mqtts://u:hush-p@h"], &["--notify", "options of their own"]),
        (&["--notify-ca", &none], &["--notify"]),
        (&[&plain[..], &["--notify-ca", &none]].concat(), &["--notify-ca", "mqtts://"]),
        (&[&tls[..], &["--notify-ca", &none]].concat(), &["--notify-ca", "none.pem"]),
        (&[&tls[..], &["--notify-user", "u"]].concat(), &["--notify-password-file"]),
        (
            &[&tls[..], &["--notify-user", "u", "--notify-password-file", &empty]].concat(),
            &["--notify-password-file", "the file is empty"],
        ),
        (&[&plain[..], &["--listen", "0.0.0.0:0"]].concat(), &["needs --public-url"]),
    ] {
        let gateway = ["gateway", "--plain", "--store", "f.db", "--check"];
        let output = run(&[&gateway[..], options].concat(), &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {error}");
        for part in parts {
            assert!(error.contains(part), "{options:?}: {part}: {error}");
        }
        assert!(!error.contains("hush-"), "{error}");
    }
}
