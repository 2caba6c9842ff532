//! `status`: what it counts, and how it looks.

use super::*;

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;

use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::path::{Kind, Path, TUNNEL};
use aiot_tunnel_testkit::process::Process;
use aiot_tunnel_testkit::services::{echo, service};
use aiot_tunnel_testkit::streams;
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use rustix::termios::{tcsetwinsize, Winsize};

/// Bytes that the services of a test have received and sent.
#[derive(Default)]
struct Moved {
    received: AtomicU64,
    sent: AtomicU64,
}

/// Reads a request, which begins with its length, and answers with so many bytes.
fn answering(name: &str, answer: usize, moved: &Arc<Moved>) -> Service {
    let moved = moved.clone();
    service(name, move |mut stream| {
        let mut length = [0; 8];
        stream.read_exact(&mut length).unwrap();
        let mut request = vec![0; u64::from_be_bytes(length) as usize];
        stream.read_exact(&mut request).unwrap();
        streams::check(0, &request);
        moved.received.fetch_add(request.len() as u64 + 8, Ordering::SeqCst);
        streams::write(&mut stream, 0, answer);
        moved.sent.fetch_add(answer as u64, Ordering::SeqCst);
    })
}

/// Sends a request of so many bytes, and reads the answer to its end.
fn exchange(mut stream: TcpStream, request: usize) -> u64 {
    stream.write_all(&(request as u64).to_be_bytes()).unwrap();
    streams::write(&mut stream, 0, request);
    std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
}

fn status_agrees_with_every_byte_of_a_mixed_load(kind: Kind) {
    let path = Path::new(kind);
    let moved = Arc::new(Moved::default());
    let services =
        [answering("big", 3_000_001, &moved), answering("small", 17, &moved), echo("echo")];
    let offers: Vec<String> = services.iter().map(offer).collect();
    let mut more = Vec::new();
    for offer in &offers {
        more.extend(["--service", offer]);
    }
    let ca = path.ca();
    let security: Vec<&str> = match &ca {
        Some(ca) => vec!["--ca", ca],
        None => vec!["--plain"],
    };
    let agent = Agent::secured(&security, &more);
    let mut events = agent.client();
    events.subscribe();
    agent.add(TUNNEL, path.address());
    events.event("connect");
    let (big, small) = (path.listen("big"), path.listen("small"));
    let load = |sessions: u64| {
        thread::scope(|scope| {
            for number in 0..3 {
                let (big, small) = (&big, &small);
                scope.spawn(move || {
                    for round in 0..sessions {
                        let request = (number * 70_001 + round * 1234) as usize;
                        assert_eq!(exchange(big.connect(), request), 3_000_001);
                        assert_eq!(exchange(small.connect(), request * 7), 17);
                    }
                });
            }
        });
    };
    load(3);
    // The tunnel gets new data meanwhile: what was moved stays counted.
    let closed = |agent: &Agent, sessions: u64| {
        wait::until("all sessions have ended", || {
            let tunnel = &agent.status()["tunnels"][0];
            tunnel["sessions"] == json!([]) && tunnel["sessions_opened"] == sessions
        });
    };
    closed(&agent, 18);
    let mut update = add(TUNNEL, path.address());
    update["command"] = json!("update");
    assert_eq!(agent.ask(update), json!({"ok": true}));
    // Of the session events so far, the sums are those of the load.
    let mut of_events = (0, 0);
    let mut next = |events: &mut Client, last: &str| loop {
        let event = events.line();
        match event["event"].as_str().unwrap() {
            "session_closed" => {
                of_events.0 += event["session"]["bytes_from_cloud"].as_u64().unwrap();
                of_events.1 += event["session"]["bytes_to_cloud"].as_u64().unwrap();
            }
            kind if kind == last => return of_events,
            _ => {}
        }
    };
    let sums = next(&mut events, "disconnect");
    let of_services = || (moved.received.load(Ordering::SeqCst), moved.sent.load(Ordering::SeqCst));
    assert_eq!(sums, of_services());
    next(&mut events, "connect");
    load(2);
    closed(&agent, 30);
    // A session that stays open counts, too.
    let echo = path.listen("echo");
    let mut open = echo.connect();
    streams::write(&mut open, 0, 100_003);
    let mut back = vec![0; 100_003];
    open.read_exact(&mut back).unwrap();
    streams::check(0, &back);
    let expected = (of_services().0 + 100_003, of_services().1 + 100_003);
    let output = agent.run(&["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stdout(&output).lines().count(), 1);
    let status: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let tunnel = &status["tunnels"][0];
    let bytes = |of: &Value| {
        (of["bytes_from_cloud"].as_u64().unwrap(), of["bytes_to_cloud"].as_u64().unwrap())
    };
    println!("{kind:?}: {expected:?} bytes in 31 sessions");
    assert_eq!(bytes(tunnel), expected);
    assert_eq!(tunnel["sessions_opened"], 31);
    assert_eq!(bytes(&tunnel["sessions"][0]), (100_003, 100_003));
    assert_eq!(tunnel["sessions"][0]["service"], "echo");
    drop(open);
    agent.end();
}

#[test]
fn status_agrees_with_every_byte_of_a_mixed_load_plain() {
    status_agrees_with_every_byte_of_a_mixed_load(Kind::PLAIN);
}

#[test]
fn status_agrees_with_every_byte_of_a_mixed_load_tls() {
    status_agrees_with_every_byte_of_a_mixed_load(Kind::TLS);
}

#[test]
fn status_agrees_with_every_byte_of_a_mixed_load_without_extensions() {
    status_agrees_with_every_byte_of_a_mixed_load(Kind::WITHOUT_EXTENSIONS);
}

#[test]
fn every_field_of_the_status_is_there() {
    let service = echo("e");
    let agent = Agent::with(&["--service", &offer(&service), "--service", "web=unix:/run/app"]);
    let cloud = Cloud::plain();
    agent.add("t1", cloud.address());
    let mut device = cloud.accept();
    talk(&mut device, "s1", "e");
    agent.add("t0", "127.0.0.1:9".parse().unwrap());
    wait::until("it waits", || agent.status()["tunnels"][0]["state"] == "waiting");
    let status = agent.status();
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().unwrap().keys().map(String::to_owned).collect()
    };
    assert_eq!(keys(&status), ["services", "since", "tunnels", "version"]);
    let target = service.target().to_string();
    assert_eq!(status["services"], json!({"e": target, "web": "unix:/run/app"}));
    let [waiting, open] = &status["tunnels"].as_array().unwrap()[..] else { panic!("{status}") };
    for tunnel in [waiting, open] {
        let fields = [
            "attempts",
            "bytes_from_cloud",
            "bytes_to_cloud",
            "host",
            "id",
            "last_error",
            "port",
            "retry_at",
            "sessions",
            "sessions_opened",
            "since",
            "state",
        ];
        assert_eq!(keys(tunnel), fields);
        assert!(humantime::parse_rfc3339(tunnel["since"].as_str().unwrap()).is_ok());
    }
    assert_eq!((&waiting["id"], &waiting["port"]), (&json!("t0"), &json!(9)));
    assert!(humantime::parse_rfc3339(waiting["retry_at"].as_str().unwrap()).is_ok());
    assert!(waiting["attempts"].as_u64().unwrap() >= 1);
    assert_eq!((&open["state"], &open["retry_at"]), (&json!("connected"), &json!(null)));
    let session = &open["sessions"][0];
    assert_eq!(keys(session), ["age", "bytes_from_cloud", "bytes_to_cloud", "id", "service"]);
    assert!(session["age"].as_f64().unwrap() < 60.0);
    agent.end();
}

#[test]
fn the_table_fits_80_columns() {
    let service = echo("e");
    let agent = Agent::with(&["--service", &offer(&service)]);
    let output = agent.run(&["status"]);
    assert!(stdout(&output).contains("No tunnels."), "{output:?}");
    let cloud = Cloud::plain();
    let id = "3f2504e0-4f89-11d3-9a0c-0305e82c3301-and-more";
    agent.add(id, cloud.address());
    let mut device = cloud.accept();
    talk(&mut device, "s1", "e");
    agent.add("down", "127.0.0.1:9".parse().unwrap());
    wait::until("it waits", || agent.status()["tunnels"][1]["state"] == "waiting");
    let output = agent.run(&["status"]);
    let text = stdout(&output);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    for part in ["3f2504e0-4f89-11d3", "connected", "waiting", "last error: ", "s1", "all so far"] {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
    agent.end();
}

#[test]
fn watch_on_a_pipe_appends_until_the_agent_ends() {
    let agent = Agent::start();
    let mut command = Command::new(program());
    command.args(["status", "--watch", "--json", "--interval", "0.1", "--control-socket"]);
    command.arg(&agent.path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watch = Process::start(&mut command);
    let lines = watch.lines();
    for _ in 0..3 {
        let status: Value = serde_json::from_str(&lines.next_line()).unwrap();
        assert_eq!(status["tunnels"], json!([]));
    }
    agent.end();
    assert_eq!(watch.wait().code(), Some(1));
    let mut text = String::new();
    watch.child().stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("the agent has ended") && text.lines().count() == 1, "{text}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let agent = Agent::start();
    let shell = "\"$0\" status --watch --json --interval 0.1 --control-socket \"$1\" | head -n 1";
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", shell]).arg(program()).arg(&agent.path);
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    agent.end();
}

/// A terminal of this size: the user's end, and the program's.
fn terminal(columns: u16, rows: u16) -> (File, OwnedFd) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let program = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&program, size).unwrap();
    (File::from(user), program.into())
}

/// Reads the user's end until a text comes. The result is everything until then.
fn until(user: &mut File, text: &str, seen: &mut Vec<u8>) {
    use rustix::event::{poll, PollFd, PollFlags, Timespec};
    let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
    while !String::from_utf8_lossy(seen).contains(text) {
        let mut fds = [PollFd::new(user, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "no {text:?} in time");
        let mut chunk = [0; 4096];
        let length = user.read(&mut chunk).unwrap();
        seen.extend_from_slice(&chunk[..length]);
    }
}

#[test]
fn watch_repaints_a_terminal_and_restores_it() {
    let service = echo("e");
    let mut agent = Agent::with(&["--service", &offer(&service)]);
    let cloud = Cloud::plain();
    agent.add("t1", cloud.address());
    let mut device = cloud.accept();
    talk(&mut device, "s1", "e");
    let (mut user, end) = terminal(80, 12);
    let mut command = Command::new(program());
    command.args(["status", "--watch", "--interval", "0.1", "--control-socket"]).arg(&agent.path);
    command.stdout(Stdio::from(end.as_fd().try_clone_to_owned().unwrap())).stderr(Stdio::piped());
    let mut watch = Process::start(&mut command);
    let mut seen = Vec::new();
    until(&mut user, "\x1b[?1049h\x1b[?25l", &mut seen);
    until(&mut user, "connected", &mut seen);
    seen.clear();
    // The next picture is painted over the last one.
    until(&mut user, "\x1b[H", &mut seen);
    until(&mut user, "0 B/s", &mut seen);
    // More lines than the terminal has.
    for number in 0..12 {
        agent.add(&format!("down{number}"), "127.0.0.1:9".parse().unwrap());
    }
    until(&mut user, " more lines\x1b[K\x1b[J", &mut seen);
    let text = String::from_utf8_lossy(&seen).into_owned();
    let pictures = text.split("\x1b[H").filter(|picture| picture.ends_with("\x1b[J"));
    let last = pictures.last().unwrap();
    assert_eq!(last.matches("\r\n").count(), 11, "{last:?}");
    for line in last.split("\r\n") {
        let line = line.replace("\x1b[K", "").replace("\x1b[J", "");
        assert!(line.chars().count() <= 80 && !line.contains('\x1b'), "{line:?}");
    }
    // It outlives the agent.
    agent.program.process.kill();
    seen.clear();
    until(&mut user, "no agent listens on", &mut seen);
    seen.clear();
    watch.interrupt();
    until(&mut user, "\x1b[?25h\x1b[?1049l", &mut seen);
    assert!(watch.wait().success());
}

#[test]
fn ids_from_the_cloud_do_not_control_the_terminal() {
    let service = echo("e");
    let agent = Agent::with(&["--service", &offer(&service)]);
    let cloud = Cloud::plain();
    agent.add("t", cloud.address());
    let mut device = cloud.accept();
    let hostile = "s\u{1b}]0;title\u{7}\u{9b}2J\u{202e}x";
    let code = device.create(hostile, "e");
    let output = agent.run(&["status"]);
    let text = stdout(&output);
    assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    assert_eq!(code == 0, text.contains("s?]0;title??"), "{code} {text}");
    agent.end();
}
