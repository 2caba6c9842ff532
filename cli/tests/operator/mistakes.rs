//! A newcomer's mistakes, and what the other ends do: each has one sentence that names the cause and
//! the cure, and an exit status of its own.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, SystemTime};

use aiot_tunnel::gateway::{Gateway, TunnelConfig};
use aiot_tunnel::Token;
use aiot_tunnel_testkit::certificates::{Authority, Identity};
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::manager::id;
use aiot_tunnel_testkit::path::{Kind, Line, Path};
use aiot_tunnel_testkit::process::program;
use aiot_tunnel_testkit::streams::Door;
use aiot_tunnel_testkit::{gateways, ACCESS_TOKEN, DEVICE_TOKEN};

use super::{fails, says};

/// `access` with the right token, for the tunnel t1.
fn access(url: &str, more: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(["access", "--url", url, "--tunnel", "t1"]).args(more);
    command.env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN);
    command
}

fn of(path: &Path, service: &str) -> Command {
    let mut command = Command::new(program());
    command.args(path.access_arguments(service)).arg("--stdio");
    command.env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN);
    command
}

fn gateway_with(tunnel: TunnelConfig) -> (Gateway, String) {
    let gateway = Gateway::builder().tunnel(tunnel).start("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("ws://{}", gateway.local_addr());
    (gateway, url)
}

#[test]
fn a_gateway_that_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    drop(listener);
    fails(&mut access(&url, &["--stdio"]), 3, &["nothing listens", "check"]);
    fails(&mut access(&url, &["--listen", ":0"]), 3, &["nothing listens", "check"]);
    fails(
        &mut access("ws://no..name", &["--stdio", "--proxy", "none"]),
        3,
        &["the name is unknown"],
    );
}

#[test]
fn a_wrong_ca() {
    let folder = Folder::new();
    let server = Identity::self_signed();
    let builder = Gateway::builder().tls_pem(&server.certificate, &server.key).unwrap();
    let gateway = builder.start("127.0.0.1:0".parse().unwrap()).unwrap();
    let ca = folder.write("ca.pem", Authority::new().pem());
    let url = format!("wss://{}", gateway.local_addr());
    fails(&mut access(&url, &["--stdio", "--ca", &ca]), 4, &["cannot trust", "--ca"]);
    let plain = url.replace("wss:", "ws:");
    fails(&mut access(&plain, &["--stdio"]), 3, &["expects TLS", "wss://"]);
}

#[test]
fn a_proxy_that_is_away_or_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = format!("http://{address}");
    let server = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap();
    });
    let command = |proxy: &str| access("ws://192.0.2.1:1", &["--stdio", "--proxy", proxy]);
    fails(&mut command(&proxy), 5, &["the proxy", "forbids", "ask its operator"]);
    server.join().unwrap();
    fails(&mut command(&proxy), 5, &["the proxy", "nothing listens"]);
}

#[test]
fn a_wrong_token_and_an_unknown_tunnel() {
    let (_gateway, url) = gateway_with(gateways::tunnel("t1"));
    let mut wrong = access(&url, &["--stdio"]);
    fails(
        wrong.env("AIOT_TUNNEL_ACCESS_TOKEN", "hush-wrong"),
        6,
        &["refuses the token", "new one"],
    );
    let (_gateway, url) = gateway_with(gateways::tunnel("t2"));
    fails(&mut access(&url, &["--stdio"]), 8, &["does not know the tunnel", "check the id"]);
}

#[test]
fn an_expired_tunnel_is_told_only_to_those_with_its_token() {
    let token = |text| Token::new(text).unwrap();
    let past = SystemTime::now() - Duration::from_secs(5);
    let tunnel = TunnelConfig::new(id("t1"), token(DEVICE_TOKEN), token(ACCESS_TOKEN));
    let (_gateway, url) = gateway_with(tunnel.with_expires(Some(past)));
    fails(&mut access(&url, &["--stdio"]), 7, &["has expired", "ask for a new"]);
    let mut wrong = access(&url, &["--stdio"]);
    fails(wrong.env("AIOT_TUNNEL_ACCESS_TOKEN", "hush-wrong"), 6, &["refuses the token"]);
}

#[test]
fn a_tunnel_that_expires_while_it_is_used() {
    let (gateway, url) = gateway_with(gateways::tunnel("t1"));
    let device = "/tunnel/t1/dest";
    let mut device = gateways::connect(gateway.local_addr(), device, Some(DEVICE_TOKEN)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fails(&mut access(&url, &["--stdio"]), 7, &["has expired", "ask for a new"]);
        });
        device.receive();
        gateway.expire(&id("t1")).unwrap();
    });
}

#[test]
fn a_tunnel_that_is_removed_while_it_is_used() {
    let (gateway, url) = gateway_with(gateways::tunnel("t1"));
    let device = "/tunnel/t1/dest";
    let mut device = gateways::connect(gateway.local_addr(), device, Some(DEVICE_TOKEN)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fails(&mut access(&url, &["--stdio"]), 8, &["the tunnel was removed", "another one"]);
        });
        device.receive();
        gateway.remove_tunnel(&id("t1")).unwrap();
    });
}

#[test]
fn a_file_that_is_missing_is_a_wrong_argument() {
    let folder = Folder::new();
    let key = folder.write_secret("no.pem", "hush-this-is-no-certificate");
    let url = "wss://127.0.0.1:1";
    for (option, file, parts) in [
        ("--ca", "nowhere.pem", &["--ca: nowhere.pem: No such file", "is looked for in /"][..]),
        ("--ca", "/nowhere/ca.pem", &["--ca: /nowhere/ca.pem: No such file", "check the name"]),
        ("--ca", &key, &["--ca: ", "no.pem: ", "the ca.pem of gen-cert"]),
        ("--token-file", "/nowhere", &["--token-file: /nowhere: No such file", "check the name"]),
        ("--token-file", "/", &["--token-file: /: Is a directory", "name a file"]),
        ("--token-file", "/dev/null", &["--token-file: ", "empty"]),
    ] {
        fails(&mut access(url, &["--stdio", option, file]), 2, parts);
    }
    let mut without = access(url, &["--stdio"]);
    fails(without.env_remove("AIOT_TUNNEL_ACCESS_TOKEN"), 2, &["no access token", "--help"]);
    fails(without.env("AIOT_TUNNEL_ACCESS_TOKEN", ""), 2, &["empty"]);
}

#[test]
fn a_gateway_that_is_lost_during_a_session() {
    let mut line = Line::new(Kind::PLAIN);
    let mut program = line.path.stdio(Line::SERVICE);
    let _service = line.door.accept();
    line.path.gateway.process.kill();
    let (status, log) = program.finish();
    assert_eq!(status.code(), Some(16), "{log}");
    says(&log, &["the connection to the tunnel service is lost", "try again"]);
}

#[test]
fn a_device_that_is_away_and_since_when() {
    let path = Path::new(Kind::PLAIN);
    fails(&mut of(&path, "s"), 10, &["not connected", "(not since the gateway started)", "power"]);
    let door = Door::new("s");
    let mut agent = path.agent(&[door.service()]);
    agent.program.process.terminate();
    agent.program.process.wait();
    path.gateway.expect_log("device disconnected");
    // Also when the gateway has had no connection at all in between.
    for _ in 0..2 {
        fails(&mut of(&path, "s"), 10, &["the device is not connected", " (for ", " s)", "power"]);
    }
}

#[test]
fn a_wrong_service_and_one_that_does_not_run() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = dead.local_addr().unwrap().port();
    drop(dead);
    let service = |name: &str| {
        aiot_tunnel::Service::new(name, "127.0.0.1", aiot_tunnel::Port::new(port).unwrap()).unwrap()
    };
    let path = Path::new(Kind::PLAIN);
    let _agent = path.agent(&[service("_SSH"), service("web")]);
    fails(&mut of(&path, "x"), 11, &["no service x, only _SSH, web; choose", "--service"]);
    fails(&mut of(&path, "web"), 12, &["cannot connect to its service", "runs", "refused"]);
}

/// The text of a refusal has a limit.
#[test]
fn a_device_with_many_services_names_some() {
    let path = Path::new(Kind::PLAIN);
    let port = aiot_tunnel::Port::new(1).unwrap();
    let name = |number: usize| format!("service-with-a-long-name-{number:02}");
    let service = |number| aiot_tunnel::Service::new(&name(number), "127.0.0.1", port).unwrap();
    let services: Vec<_> = (0..20).map(service).collect();
    let _agent = path.agent(&services);
    let said =
        fails(&mut of(&path, "x"), 11, &[&format!("no service x, only {}, ", name(0)), ", ...; "]);
    assert!(!said.contains(&name(19)), "{said}");
}

#[test]
fn a_tunnel_with_too_many_sessions() {
    let path = Path::with_gateway(Kind::PLAIN, &["--session-limit", "1"]);
    let door = Door::new("s");
    let _agent = path.agent(&[door.service()]);
    let access = path.listen("s");
    let (_client, _service) = (access.connect(), door.accept());
    fails(&mut of(&path, "s"), 13, &["as many sessions as it may have", "end one", "1 sessions"]);
}

#[test]
fn a_gateway_with_too_many_operators() {
    let path = Path::with_gateway(Kind::PLAIN, &["--access-limit", "1"]);
    let door = Door::new("s");
    let _agent = path.agent(&[door.service()]);
    let access = path.listen("s");
    access.program.expect_log("connected to the tunnel");
    fails(&mut of(&path, "s"), 9, &["cannot serve the connection now", "later"]);
}

/// A device as others make them answers with its own words, or not at all, and the cloud with its codes.
#[test]
fn other_devices_and_clouds() {
    let path = Path::new(Kind::PLAIN);
    let mut device = path.raw(true);
    let mut answer = |code: i64, words: &str, release: Option<i64>| {
        let mut program = path.stdio("s");
        let (create, _) = device.receive();
        let id = create["session_id"].as_str().unwrap().to_owned();
        let header = serde_json::json!({
            "frame_type": 1, "session_id": id, "frame_id": create["frame_id"], "service_type": "s"
        });
        let payload = serde_json::json!({ "code": code, "msg": words }).to_string();
        device.send(header, payload.as_bytes());
        if let Some(code) = release {
            device.release(&id, 1, &format!("{{\"code\":{code},\"msg\":\"words\"}}"));
        }
        let (status, log) = program.finish();
        (status.code(), log)
    };
    let (status, log) = answer(101_671, "no", None);
    assert_eq!(status, Some(15), "{log}");
    says(&log, &["refuses the session", "101671"]);
    let (status, log) = answer(2, "no service s here", None);
    assert_eq!(status, Some(11), "{log}");
    for (code, status, part) in [(4, 18, "is being updated"), (3, 17, "lost its connection")] {
        let (is, log) = answer(0, "", Some(code));
        assert_eq!(is, Some(status), "{log}");
        says(&log, &[part, "try again", &format!("code {code}")]);
    }
}

#[test]
fn a_device_that_does_not_answer() {
    let path = Path::new(Kind::PLAIN);
    let _device = path.raw(true);
    fails(&mut of(&path, "s"), 14, &["did not answer", "name of the service"]);
}

#[test]
fn a_device_that_is_lost_during_a_session() {
    let mut line = Line::new(Kind::PLAIN);
    let mut program = line.path.stdio(Line::SERVICE);
    let _service = line.door.accept();
    line.agent.program.process.kill();
    let (status, log) = program.finish();
    assert_eq!(status.code(), Some(17), "{log}");
    says(&log, &["the device lost its connection", "try again"]);
}

#[test]
fn a_port_in_use() {
    let line = Line::new(Kind::PLAIN);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let url = format!("ws://{}", line.path.address());
    let parts = ["cannot listen on", &address, "another program uses the port", "choose another"];
    fails(&mut access(&url, &["--listen", &address]), 19, &parts);
    let foreign = "192.0.2.1:0";
    fails(&mut access(&url, &["--listen", foreign]), 19, &["an address of this machine"]);
}
