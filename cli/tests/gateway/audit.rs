//! The audit log and the log's reasons and addresses.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{gateways, services};
use serde_json::Value;

use super::Gateway;

impl Gateway {
    /// One whose audit log is in its folder.
    pub(super) fn audited(more: &[&str]) -> Self {
        let folder = Folder::new();
        let file = folder.file("audit.log").display().to_string();
        Gateway::in_folder(folder, &[&["--plain", "--audit-log", &file], more].concat())
    }

    fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.file("audit.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until the audit log has so many lines that tell of this.
    pub(super) fn audited_events(&self, event: &str, count: usize) -> Vec<Value> {
        let events = || -> Vec<Value> {
            self.audit().into_iter().filter(|line| line["event"] == event).collect()
        };
        wait::until(&format!("{count} lines about a {event}"), || events().len() >= count);
        let events = events();
        assert_eq!(events.len(), count, "{events:?}");
        events
    }

    /// The sum of a counter over all tunnels.
    fn metric(&self, name: &str) -> u64 {
        let page = self.request("GET", "/metrics", Some(&self.key), None).body;
        let name = format!("aiot_tunnel_gateway_{name}{{");
        let lines = page.lines().filter(|line| line.starts_with(&name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

/// Sends so many bytes, of which the service takes the first as a number and sends as many back.
fn exchange(port: SocketAddr, up: usize, down: usize, orderly: bool) {
    let mut stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut request = (down as u64).to_be_bytes().to_vec();
    request.resize(up, 7);
    let mut sender = stream.try_clone().unwrap();
    let sends = thread::spawn(move || {
        sender.write_all(&request).unwrap();
        if orderly {
            sender.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut answer = vec![0; down];
    stream.read_exact(&mut answer).unwrap();
    sends.join().unwrap();
    if orderly {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn the_audit_of_a_mixed_load_adds_up_with_what_was_moved_and_with_every_page() {
    let publish = "127.0.0.1:0=t1:answer";
    let gateway = Gateway::audited(&["--publish", publish, "--session-limit", "50"]);
    let tokens = gateway.add("t1");
    let service = services::service("answer", |mut stream| {
        let mut head = [0; 8];
        if stream.read_exact(&mut head).is_err() {
            return;
        }
        let mut left = stream.try_clone().unwrap();
        let answers = thread::spawn(move || {
            let answer = vec![9; u64::from_be_bytes(head) as usize];
            let _ = left.write_all(&answer).and_then(|()| left.shutdown(Shutdown::Write));
        });
        let _ = stream.read_to_end(&mut Vec::new());
        answers.join().unwrap();
    });
    let _agent = gateway.agent("t1", &tokens.device, &format!("answer={}", service.target()));
    let (_access, access) = gateway.access("t1", &tokens.access, "answer");
    let published = gateway.published();
    let (mut sent, mut answered, mut clients) = (0, 0, Vec::new());
    for number in 0..24_usize {
        let (up, down) = (8 + number * 40_961, number * 65_537 % 700_001);
        (sent, answered) = (sent + up as u64, answered + down as u64);
        let port = if number % 2 == 0 { access } else { published };
        clients.push(thread::spawn(move || exchange(port, up, down, true)));
    }
    clients.into_iter().for_each(|client| client.join().unwrap());

    let sessions = gateway.audited_events("session", 24);
    let sum = |key: &str| sessions.iter().map(|line| line[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("bytes_to_device"), sum("bytes_to_access")), (sent, answered));
    wait::until("no session is open", || gateway.show("t1")["sessions"] == 0);
    let shown = gateway.show("t1");
    assert_eq!(shown["bytes_to_device"].as_u64(), Some(sent));
    assert_eq!(shown["bytes_to_access"].as_u64(), Some(answered));
    assert_eq!(gateway.metric("bytes_to_device_total"), sent);
    assert_eq!(gateway.metric("bytes_to_access_total"), answered);
    for way in ["access", "published"] {
        let of_way = sessions.iter().filter(|line| line["way"] == way);
        assert_eq!(of_way.count(), 12);
    }
    for line in &sessions {
        assert_eq!((&line["tunnel"], &line["service"]), (&"t1".into(), &"answer".into()));
        assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert!(line["seconds"].as_f64().unwrap() >= 0.0);
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
        assert!(line["why"].as_str().unwrap().starts_with("released by the "), "{line}");
        let id = line["session"].as_str().unwrap();
        gateway.program.expect_log(&format!("session {id} ended: "));
    }
}

#[test]
fn a_refusal_says_its_true_reason_to_the_gateways_owner_only() {
    let gateway = Gateway::audited(&["--access-limit", "1"]);
    let tokens = gateway.add("t1");
    let expired = gateway.add_for("old", Some(1));
    wait::until("the tunnel has expired", || gateway.show("old")["state"] == "expired");
    let _first = gateways::connect(gateway.address, "/tunnel/t1/source", Some(&tokens.access));
    let cases = [
        ("/tunnel/none/dest", &tokens.device, 404, "device", "unknown_tunnel"),
        ("/tunnel/t1/dest", &tokens.access, 401, "device", "wrong_token"),
        ("/tunnel/t1/source", &tokens.device, 401, "access", "wrong_token"),
        ("/tunnel/old/dest", &expired.device, 401, "device", "expired"),
        ("/tunnel/t1/source", &tokens.access, 503, "access", "limit"),
    ];
    for (path, token, status, ..) in cases {
        assert_eq!(gateway.admission(path, token), status, "{path}");
    }
    let refusals = gateway.audited_events("refusal", cases.len());
    for ((.., way, reason), line) in cases.iter().zip(&refusals) {
        assert_eq!((&line["way"], &line["reason"]), (&(*way).into(), &(*reason).into()));
        assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
    }
    let client = refusals[1]["client"].as_str().unwrap();
    let log =
        format!("tunnel \"t1\": Device at {client} is refused: 401 Unauthorized: wrong token");
    gateway.program.expect_log(&log);
    gateway.program.expect_log("there is no such tunnel");
    gateway.program.expect_log("the tunnel has expired");
    let audit = fs::read_to_string(gateway.folder.file("audit.log")).unwrap();
    for secret in [&tokens.device, &tokens.access, &expired.device] {
        assert!(!audit.contains(secret.as_str()));
    }
}

#[test]
fn a_renamed_audit_log_is_opened_again_after_a_signal() {
    let mut gateway = Gateway::audited(&[]);
    assert_eq!(gateway.admission("/tunnel/one/dest", "wrong"), 404);
    gateway.audited_events("refusal", 1);
    fs::rename(gateway.folder.file("audit.log"), gateway.folder.file("audit.log.1")).unwrap();
    gateway.program.process.hang_up();
    // The file comes with the next line, so that it is never without one.
    wait::until("the new file has a line", || {
        assert_eq!(gateway.admission("/tunnel/two/dest", "wrong"), 404);
        gateway.folder.file("audit.log").exists() && !gateway.audit().is_empty()
    });
    assert!(gateway.audit().iter().all(|line| line["tunnel"] == "two"));
}

#[test]
fn a_full_disk_stops_no_session() {
    let gateway = Gateway::with(&["--plain", "--audit-log", "/dev/full"]);
    let tokens = gateway.add("t1");
    let service = services::echo("echo");
    let _agent = gateway.agent("t1", &tokens.device, &format!("echo={}", service.target()));
    let (_access, address) = gateway.access("t1", &tokens.access, "echo");
    for _ in 0..3 {
        super::echoes(&mut TcpStream::connect(address).unwrap(), "hello");
    }
    gateway.program.expect_log("audit log /dev/full: No space left on device");
    super::echoes(&mut TcpStream::connect(address).unwrap(), "still here");
}
