//! `send` over the socket.

use super::*;

use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::queue::Key;

fn succeeds(output: &Output) {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn send_adds_updates_reconnects_and_deletes() {
    let agent = Agent::start();
    let mut events = agent.client();
    events.subscribe();
    let (first, second) = (Cloud::plain(), Cloud::plain());
    let data = |cloud: &Cloud| {
        [
            "--host".to_owned(),
            "127.0.0.1".into(),
            "--port".into(),
            cloud.address().port().to_string(),
        ]
    };
    let send = |operation: &str, more: &[String]| {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let arguments = [&["send", operation, "--tunnel", "t"], &more[..]].concat();
        succeeds(&agent.run(&arguments));
    };
    send("add", &data(&first));
    assert_eq!(first.accept().path, "/tunnel/t/dest");
    events.event("connect");
    send("update", &[&data(&second)[..], &["--path".to_owned(), "/p?x=1".into()]].concat());
    events.event("disconnect");
    assert_eq!(second.accept().path, "/p?x=1");
    events.event("connect");
    send("reconnect", &[]);
    events.event("disconnect");
    let again = second.accept();
    events.event("connect");
    // All tunnels.
    succeeds(&agent.run(&["send", "reconnect"]));
    events.event("disconnect");
    let last = second.accept();
    events.event("connect");
    send("delete", &[]);
    events.event("disconnect");
    drop((again, last));
    wait::until("no tunnel is left", || agent.status()["tunnels"] == json!([]));
    agent.end();
}

#[test]
fn what_the_agent_refuses_is_an_error_with_its_reason() {
    let agent = Agent::start();
    for number in 0..20 {
        agent.add(&format!("t{number}"), "127.0.0.1:9".parse().unwrap());
    }
    let more = ["send", "add", "--tunnel", "more", "--host", "127.0.0.1", "--port", "9"];
    let output = agent.run(&more);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("the agent refuses: the limit of 20 tunnels"), "{text}");
    agent.end();
}

#[test]
fn a_queue_key_means_the_queue() {
    let agent = Agent::start();
    let key = Key::new().0.to_string();
    let mut command = Command::new(program());
    let output =
        command.args(["send", "delete", "--tunnel", "t", "--queue-key", &key]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("message queue"), "{output:?}");
    agent.end();
}

#[test]
fn an_agent_that_hangs_is_told_from_one_that_is_not_there() {
    let mut agent = Agent::start();
    agent.program.process.freeze();
    for arguments in [&["send", "delete", "--tunnel", "t"][..], &["status"]] {
        let output = agent.run(arguments);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains("has not answered within 3 seconds"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn a_server_that_is_no_agent_is_an_error() {
    let folder = Folder::new();
    let path = folder.file("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        for answer in ["hello\n", "{\"ok\":true}\n", "{\"ok\":tr", ""] {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    for part in ["not the answer of an agent", "without a status", "has ended", "has ended"] {
        let mut command = Command::new(program());
        let output = command.args(["status", "--control-socket"]).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(part), "{output:?}");
    }
    server.join().unwrap();
}

/// A file on a disk that hangs must not take the socket away, too.
#[test]
fn a_reload_that_hangs_holds_up_nobody() {
    let folder = Folder::new();
    let authority = Authority::new();
    let ca = folder.write("ca.pem", authority.pem());
    let agent = Agent::secured(&["--ca", &ca], &[]);
    fs::remove_file(&ca).unwrap();
    let made = Command::new("mkfifo").arg(&ca).status().unwrap();
    assert!(made.success());
    // Somebody has the pipe open, so the agent waits for what is written.
    let mut file = fs::File::options().read(true).write(true).open(&ca).unwrap();
    let mut reloading: Vec<Client> = (0..3).map(|_| agent.client()).collect();
    for client in &mut reloading {
        // The second request waits for the first one.
        client.write("{\"command\":\"reload\"}\n{\"command\":\"fly\"}");
        client.half_close();
    }
    // This one does not wait for its answer.
    drop(reloading.pop());
    super::costs::sleeps(&agent, std::time::Duration::from_millis(500));
    // The agent waits for the file.
    for _ in 0..10 {
        assert!(agent.status().is_object());
    }
    let mut more: Vec<Client> = (0..8).map(|_| agent.client()).collect();
    for client in &mut more {
        client.send(&json!({"command": "reload"}));
    }
    // Eight are under way: the three from before, and five of these.
    let mut refused = Vec::new();
    for client in more.iter_mut().skip(5) {
        refused.push(client.line());
    }
    assert!(refused.iter().all(|answer| error(answer).contains("reloads already")), "{refused:?}");
    // A file in place of the pipe, for those that read it afterwards.
    let place = folder.write("new.pem", authority.pem());
    fs::rename(place, &ca).unwrap();
    file.write_all(&authority.pem()).unwrap();
    drop(file);
    for client in &mut reloading {
        assert_eq!(client.line(), json!({"ok": true}));
        assert!(error(&client.line()).contains("unknown"));
        client.expect_end();
    }
    for client in more.iter_mut().take(5) {
        assert_eq!(client.line(), json!({"ok": true}));
    }
    succeeds(&agent.run(&["send", "reload"]));
    fs::write(&ca, "nothing").unwrap();
    let output = agent.run(&["send", "reload"]);
    assert!(stderr(&output).contains("the agent refuses: ") && stderr(&output).contains(&ca));
    agent.end();
}
