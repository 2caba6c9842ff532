//! What the programs say about a wrong setting, and about a connection that cannot be opened: what
//! is wrong, where, and what to do.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use aiot_tunnel::gateway::Gateway;
use aiot_tunnel::ipc;
use aiot_tunnel_testkit::certificates::{Authority, Identity};
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::id;
use aiot_tunnel_testkit::process::Process;
use aiot_tunnel_testkit::queue::{Key, Queue};
use aiot_tunnel_testkit::{gateways, wait, ACCESS_TOKEN, DEVICE_TOKEN};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aiot-tunnel"));
    command
        .args(arguments)
        .env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN)
        .env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE_TOKEN)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// Runs the program. The result is its exit status and its standard error, which is short.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = command(arguments);
    let mut process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    let status = process.wait();
    let mut text = String::new();
    process.child().stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(!text.contains("hush-"), "{text}");
    (status.code(), text)
}

/// Runs the program, which must fail with this status. The result is its standard error.
fn fails(arguments: &[&str], expected: i32) -> String {
    let (status, text) = run(arguments);
    assert_eq!(status, Some(expected), "{arguments:?}: {text}");
    text
}

/// A directory for the files of one test. Removed with them.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("aiot-tunnel-{}-{:08x}", std::process::id(), rand());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, content: &[u8], mode: u32) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A number that no other test of this machine has.
fn rand() -> u32 {
    Key::new().0 as u32
}

/// A server that answers each connection with these bytes, whatever it gets.
fn answers(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(bytes);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read(&mut [0; 4096]);
            });
        }
    });
    address
}

/// What `access` says when it cannot connect to this URL. One line that begins with a sentence and
/// ends with the original text in brackets. It must end with this status.
fn cannot_connect(url: &str, more: &[&str], expected: i32) -> String {
    let tunnel = ["access", "--url", url, "--tunnel", "t1", "--stdio", "--proxy", "none"];
    let (status, text) = run(&[&tunnel, more].concat());
    assert_eq!(status, Some(expected), "{text}");
    let line = text.strip_prefix("aiot-tunnel: ").unwrap_or_else(|| panic!("{text}"));
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.ends_with("]\n") && line.contains(" ["), "{line}");
    let (sentence, _) = line.split_once(" [").unwrap();
    let jargon = ["error:", "os error", "routines", ".c:"];
    assert!(!jargon.iter().any(|word| sentence.contains(word)), "{line}");
    line.to_owned()
}

fn says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
}

#[test]
fn a_wrong_ca_is_named_with_the_server_and_the_option() {
    let (server, other) = (Identity::self_signed(), Identity::self_signed());
    let builder = Gateway::builder().tls_pem(&server.certificate, &server.key).unwrap();
    let gateway = builder.start("127.0.0.1:0".parse().unwrap()).unwrap();
    let folder = Folder::new();
    let ca = folder.file("ca.pem", &other.certificate, 0o644);
    let address = gateway.local_addr().to_string();
    for more in [&["--ca", &*ca][..], &[]] {
        let line = cannot_connect(&format!("wss://{address}"), more, 4);
        says(
            &line,
            &[&format!("cannot trust {address}: "), "CA", "--ca", "certificate verify failed"],
        );
    }
}

#[test]
fn a_server_without_tls_is_told_from_one_that_is_wrong() {
    for bytes in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let address = answers(bytes).to_string();
        let line = cannot_connect(&format!("wss://{address}"), &[], 4);
        says(&line, &[&format!("cannot connect to {address}: "), "does not speak TLS", "ws://"]);
    }
}

#[test]
fn a_server_with_tls_that_gets_plain_text_is_explained() {
    let server = Identity::self_signed();
    let builder = Gateway::builder().tls_pem(&server.certificate, &server.key).unwrap();
    let gateway = builder.start("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = gateway.local_addr().to_string();
    let line = cannot_connect(&format!("ws://{address}"), &[], 3);
    says(&line, &[&address, "TLS", "wss://"]);
}

#[test]
fn an_answer_of_http_says_what_the_status_means() {
    for (bytes, expected, parts) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..],
            3,
            ["proxy", "Upgrade and Connection", "HTTP 400"],
        ),
        (b"HTTP/1.1 503 Busy\r\n\r\n", 9, ["cannot serve", "later", "HTTP 503"]),
        (b"HTTP/1.1 200 OK\r\n\r\n", 3, ["no tunnel service", "check the address", "HTTP 200"]),
    ] {
        let address = answers(bytes).to_string();
        let line = cannot_connect(&format!("ws://{address}"), &[], expected);
        says(&line, &[&address]);
        says(&line, &parts);
    }
}

#[test]
fn an_answer_whose_head_is_too_long_is_told_from_a_lost_connection() {
    let head = format!("HTTP/1.1 101 Ok\r\nX-Long: {}\r\n\r\n", "x".repeat(60_000));
    let address = answers(head.leak().as_bytes()).to_string();
    let line = cannot_connect(&format!("ws://{address}"), &[], 3);
    says(&line, &[&address, "the head of its answer is too long", "16 KiB"]);
}

#[test]
fn a_server_that_greets_and_waits_is_refused_at_its_first_bytes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        // Until the client closes.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let line = cannot_connect(&format!("ws://{address}"), &[], 3);
    says(&line, &[&address, "no tunnel service", "not HTTP"]);
    server.join().unwrap();
}

#[test]
fn a_tunnel_that_the_gateway_does_not_know_is_named() {
    let gateway = Gateway::builder().start("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = gateway.local_addr().to_string();
    let line = cannot_connect(&format!("ws://{address}"), &[], 8);
    says(&line, &[&address, "does not know the tunnel (/tunnel/t1/source)", "HTTP 404"]);
}

#[test]
fn a_gateway_that_is_down_and_a_name_that_is_unknown_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let line = cannot_connect(&format!("ws://{address}"), &[], 3);
    says(&line, &[&format!("cannot connect to {address}: "), "nothing listens", "refused"]);
    // A name that no name server is asked about.
    let line = cannot_connect("wss://no..name:8443", &[], 3);
    says(&line, &["cannot connect to no..name:8443: ", "the name is unknown", "look up no..name"]);
}

#[test]
fn a_list_of_tunnels_that_cannot_be_meant_is_refused_and_the_entry_is_named() {
    let folder = Folder::new();
    let entry = |id: &str, more: &str| {
        format!(r#"{{"id":"{id}","device_token":"hush-d","access_token":"hush-a"{more}}}"#)
    };
    let good = entry("good", "");
    for (list, parts) in [
        ("[]".to_owned(), &["no tunnel"][..]),
        (format!("[{good},{},{good}]", entry("t2", "")), &["entry 3", "\"good\"", "entry 1"]),
        (format!("[{good},{}]", entry("t2", ",\"expire\":0")), &["entry 2", "\"t2\"", "expire"]),
        (format!("[{}]", entry("", "")), &["entry 1", "empty"]),
        (format!("[{good},{}]", entry("t2", "").replace("hush-d", "")), &["entry 2", "token"]),
        (format!("[{}]", entry("t2", "").replace("hush-d", "hush-a")), &["entry 1", "differ"]),
        (format!("[{}]", entry("t2", "").replace("hush-d", "hush d")), &["entry 1", "token"]),
        (format!("[{good},{}]", entry("a/b", "")), &["entry 2", "\"a/b\"", "path"]),
        (format!("[{}]", entry("a b", "")), &["entry 1", "\"a b\"", "path"]),
    ] {
        let file = folder.file("tunnels.json", list.as_bytes(), 0o600);
        let arguments = ["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnels", &file];
        let text = fails(&arguments, 22);
        says(&text, &[&file]);
        says(&text, parts);
    }
    for limit in ["--session-limit", "--connection-limit", "--access-limit", "--expire"] {
        let arguments = ["gateway", "--plain", "--tunnel", "t1", limit, "0"];
        let (status, text) = run(&arguments);
        assert_eq!(status, Some(2), "{text}");
        says(&text, &[limit]);
    }
}

/// A gateway for the tunnel `t1`, and where it listens. The shell runs `first` before.
fn gateway_after(first: &str, arguments: &[&str]) -> (Process, SocketAddr) {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{first}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_aiot-tunnel")]);
    shell.args(["gateway", "--plain", "--tunnel", "t1", "--listen", "127.0.0.1:0"]).args(arguments);
    shell
        .env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN)
        .env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE_TOKEN);
    let mut process = Process::start(shell.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let line = process.lines().next_line();
    let address = line.strip_prefix("listening on ").unwrap().parse().unwrap();
    (process, address)
}

/// Ends a program, and returns its standard error.
fn log_of(mut process: Process) -> String {
    process.terminate();
    assert!(process.wait().success());
    let mut log = String::new();
    process.child().stderr.take().unwrap().read_to_string(&mut log).unwrap();
    log
}

#[test]
fn a_gateway_raises_its_limit_of_open_files_and_warns_if_that_is_not_enough() {
    let (process, _) = gateway_after("ulimit -Sn 100", &["--connection-limit", "100"]);
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let figures: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(figures[0], figures[1]);
    assert!(!log_of(process).contains("file descriptors"));

    let (process, _) = gateway_after("ulimit -n 400", &[]);
    let log = log_of(process);
    assert_eq!(log.matches("file descriptors").count(), 1, "{log}");
    says(&log, &["2368", "400", "LimitNOFILE"]);
}

#[test]
fn with_few_descriptors_one_address_does_not_lock_out_the_others() {
    // With 60, those who wait leave some free. With 24, accepting fails.
    for limit in ["ulimit -n 60", "ulimit -n 24"] {
        let (process, address) = gateway_after(limit, &["--handshake-limit", "4"]);
        let flood: Vec<TcpStream> = (0..300).map(|_| from(2, address)).collect();
        for _ in 0..3 {
            let mut newcomer = from(3, address);
            let request = format!(
                "GET /tunnel/t1/dest HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n\
                 Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 tunnel-access-token: {DEVICE_TOKEN}\r\n\r\n"
            );
            newcomer.write_all(request.as_bytes()).unwrap();
            let mut status = [0; 12];
            newcomer.read_exact(&mut status).unwrap();
            assert_eq!(&status, b"HTTP/1.1 101");
        }
        drop(flood);
        log_of(process);
    }
}

/// A connection from 127.0.0.`last`.
fn from(last: u8, to: SocketAddr) -> TcpStream {
    use rustix::net::{bind, connect, socket, AddressFamily, SocketType};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait::TIMEOUT)).unwrap();
    stream
}

/// The log of a gateway that is started and ended.
fn log_of_a_gateway(arguments: &[&str]) -> String {
    let mut command = command(&[&["gateway", "--tunnel", "t1"], arguments].concat());
    let mut process = Process::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    process.lines().next_line();
    log_of(process)
}

#[test]
fn settings_that_work_and_are_not_safe_are_warned_about_once() {
    let folder = Folder::new();
    let authority = Authority::new();
    let (good, old) = (authority.identity("localhost"), authority.expired_identity("localhost"));
    let cert = folder.file("good.pem", &good.certificate, 0o644);
    let old_cert = folder.file("old.pem", &old.certificate, 0o644);
    let token = folder.file("token", b"hush-token\n", 0o600);
    let private = |name, identity: &Identity| folder.file(name, &identity.key, 0o600);
    let (key, old_key) = (private("good.key", &good), private("old.key", &old));
    let open_key = folder.file("open.key", &good.key, 0o644);
    let open_token = folder.file("open-token", b"hush-token\n", 0o604);
    let tls = |cert, key| vec!["--listen", "127.0.0.1:0", "--cert", cert, "--key", key];
    let with = |more: &[&'static str], file| [more, &[file]].concat();
    for (arguments, part) in [
        (tls(&cert, &open_key), "open.key holds a secret"),
        (tls(&old_cert, &old_key), "the server certificate has expired"),
        (
            [&["--plain", "--listen", "127.0.0.1:0"][..], &["--device-token-file", &open_token]]
                .concat(),
            "open-token holds a secret",
        ),
        (vec!["--plain", "--listen", "0.0.0.0:0"], "--plain without TLS"),
    ] {
        let log = log_of_a_gateway(&arguments);
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(part), "{arguments:?}: {log}");
    }
    for arguments in [
        tls(&cert, &key),
        with(&["--plain", "--listen", "127.0.0.1:0", "--device-token-file"], &*token),
    ] {
        let log = log_of_a_gateway(&arguments);
        assert!(!log.contains("WARN"), "{arguments:?}: {log}");
    }
}

/// An agent that reads the queue of a key.
fn agent(key: &Key) -> Process {
    let key_text = key.0.to_string();
    let arguments = ["agent", "--plain", "--control-socket", "none", "--queue-key", &key_text];
    let mut command = command(&arguments);
    let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    let nobody = ipc::Command::Delete(id("nobody"));
    // The queue may have been there before.
    let taken = || ipc::send_and_wait(key.0, &nobody, wait::TIMEOUT).is_ok();
    wait::until("the agent reads its queue", taken);
    process
}

#[test]
fn a_command_that_nobody_takes_is_a_failure() {
    let key = Key::new();
    let _left_behind = Queue::new(key.0, 0o600);
    let text = fails(&["send", "delete", "--tunnel", "t", "--queue-key", &key.0.to_string()], 1);
    says(&text, &["nobody reads it", "start an agent", "ipcrm"]);
}

#[test]
fn a_second_agent_on_one_queue_is_refused_until_the_first_is_gone() {
    let key = Key::new();
    let mut first = agent(&key);
    let key_text = key.0.to_string();
    let text =
        fails(&["agent", "--plain", "--control-socket", "none", "--queue-key", &key_text], 1);
    says(&text, &["another agent", &format!("process {}", first.id()), "another key"]);
    // Killed, it leaves its queue behind, but nothing that stops the next one.
    first.child().kill().unwrap();
    first.wait();
    let mut second = agent(&key);
    second.terminate();
    assert!(second.wait().success());
}

#[test]
fn an_add_of_a_tunnel_that_exists_is_answered_in_the_log_with_what_to_do() {
    let key = Key::new();
    let mut agent = agent(&key);
    let cloud = Cloud::plain();
    let port = cloud.address().port().to_string();
    let queue = key.0.to_string();
    let add = ["send", "add", "--tunnel", "t", "--host", "127.0.0.1", "--port", &port];
    let add = [&add[..], &["--path", "/tunnel/t/dest", "--queue-key", &queue]].concat();
    assert!(command(&add).status().unwrap().success());
    let _device = cloud.accept();
    assert!(command(&add).status().unwrap().success());
    agent.terminate();
    assert!(agent.wait().success());
    let mut log = String::new();
    agent.child().stderr.take().unwrap().read_to_string(&mut log).unwrap();
    says(&log, &["reopen tunnel_id t !", "tunnel t exists and stays as it is; use update"]);
}

#[test]
fn a_gateway_names_the_reason_of_every_refusal() {
    let mut command = command(&[
        "gateway",
        "--plain",
        "--listen",
        "127.0.0.1:0",
        "--tunnel",
        "t1",
        "--access-limit",
        "1",
    ]);
    let mut process = Process::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let line = process.lines().next_line();
    let address = line.strip_prefix("listening on ").unwrap().parse().unwrap();
    let connect = |path: &str, token| gateways::connect(address, path, Some(token));
    assert_eq!(connect("/tunnel/t2/dest", DEVICE_TOKEN).err(), Some(404));
    assert_eq!(connect("/tunnel/t1/dest", ACCESS_TOKEN).err(), Some(401));
    assert_eq!(connect("/nowhere", ACCESS_TOKEN).err(), Some(404));
    let mut device = connect("/tunnel/t1/dest", DEVICE_TOKEN).unwrap();
    let mut access = connect("/tunnel/t1/source", ACCESS_TOKEN).unwrap();
    assert_eq!(connect("/tunnel/t1/source", ACCESS_TOKEN).err(), Some(503));
    let create = serde_json::json!({"frame_type": 2, "frame_id": 1, "service_type": "web"});
    access.send(create, b"");
    let (mut header, _) = device.receive();
    header["frame_type"] = serde_json::json!(1);
    device.send(header, br#"{"code":2,"msg":"no service web here"}"#);
    assert_eq!(access.receive().0["frame_type"], 1);
    process.terminate();
    assert!(process.wait().success());
    let mut log = String::new();
    process.child().stderr.take().unwrap().read_to_string(&mut log).unwrap();
    for parts in [
        ["\"t2\"", "404", "no such tunnel"],
        ["\"t1\"", "401", "wrong token"],
        ["127.0.0.1", "404", "not a path of a tunnel"],
        ["\"t1\"", "503", "limit of 1"],
        ["WARN", "device refused", "no service web here"],
    ] {
        let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
        assert!(log.lines().any(|line| has_all(&line)), "no line with {parts:?}: {log}");
    }
}
