//! Clients that are slow, silent, many, or send what is no request. The agent serves the others, and
//! its memory is bounded.

use super::*;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::{procfs, random};
use rand::RngExt;

const STATUS: &str = "{\"command\":\"status\"}\n";

#[test]
fn requests_are_answered_in_order_however_their_bytes_come() {
    let agent = Agent::start();
    let mut client = agent.client();
    // One byte at a time, with blank lines and another kind of line break.
    for byte in b"\n {\"command\":\"status\"}\r\n\n{\"command\":\"delete\",\"tunnel\":\"x\"}\n" {
        client.write([*byte]);
    }
    assert!(client.line()["status"]["tunnels"].is_array());
    assert_eq!(client.line(), json!({"ok": true}));
    // Many at once, and no line break at the end.
    let mut requests = String::new();
    for number in 0..2000 {
        requests += match number % 3 {
            0 => STATUS,
            1 => "{\"command\":\"delete\",\"tunnel\":\"x\"}\n",
            _ => "{\"command\":\"fly\"}\n",
        };
    }
    let stream = client.stream.get_ref().try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        (&stream).write_all((requests + STATUS.trim_end()).as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    });
    for number in 0..2000 {
        let answer = client.line();
        match number % 3 {
            0 => assert!(answer["status"].is_object(), "{answer}"),
            1 => assert_eq!(answer, json!({"ok": true})),
            _ => assert!(error(&answer).contains("unknown"), "{answer}"),
        }
    }
    assert!(client.line()["status"].is_object());
    client.expect_end();
    writer.join().unwrap();
    agent.end();
}

#[test]
fn a_client_of_netcat_gets_all_answers_after_its_end_of_file() {
    if Command::new("nc").arg("-h").output().is_err() {
        return aiot_tunnel_testkit::skip("netcat", "there is no nc");
    }
    let agent = Agent::start();
    let shell = "printf '%s\\n%s' \"$1\" \"$1\" | nc -N -U \"$0\"";
    let output =
        Command::new("sh").args(["-c", shell]).arg(&agent.path).arg(STATUS.trim()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        let answer: Value = serde_json::from_str(line).unwrap();
        assert_eq!(answer["ok"], json!(true));
    }
    agent.end();
}

#[test]
fn what_is_not_json_or_too_long_ends_the_connection_after_an_answer() {
    let agent = Agent::start();
    for (bytes, part) in [
        (&b"status\n"[..], "not JSON at column 1"),
        (b"{\"command\":\"status\"\n{\"command\":\"status\"}\n", "not JSON"),
        (b"\0\xff\xfe\n", "not JSON"),
        (b"{}trailing\n", "not JSON"),
        (&[b'{'; 8193], "more than 8192 bytes"),
        (&[b' '; 100_000], "more than 8192 bytes"),
    ] {
        let mut client = agent.client();
        client.write(bytes);
        assert!(error(&client.line()).contains(part));
        client.expect_end();
    }
    // The longest line is as good as any.
    let mut client = agent.client();
    client.write(format!("{:<8192}\n", STATUS.trim_end()));
    assert_eq!(client.line()["ok"], json!(true));
    agent.end();
}

/// The seed decides on everything.
#[test]
fn random_bytes_and_damaged_requests_change_nothing() {
    let agent = Agent::start();
    let valid = add("t", "127.0.0.1:9".parse().unwrap()).to_string();
    let before = procfs::descriptors(agent.id());
    for seed in 0..300 {
        let mut random = random::part(seed, 0);
        let mut bytes = match seed % 3 {
            0 => random::bytes(seed, random.random_range(1..20_000)),
            1 => valid.clone().into_bytes(),
            _ => format!("GET /metrics HTTP/1.1\r\nX: {valid}\r\n\r\n").into_bytes(),
        };
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        bytes.truncate(random.random_range(0..=bytes.len()));
        let mut client = agent.client();
        // The agent may end the connection before it has got everything.
        let _ = client.stream.get_mut().write_all(&bytes);
        if random.random() {
            let _ = client.stream.get_ref().shutdown(std::net::Shutdown::Write);
            client.is_ended();
        }
    }
    assert_eq!(agent.ask(json!({"command": "delete", "tunnel": "t"})), json!({"ok": true}));
    assert!(agent.status().is_object());
    wait::until("the clients have gone", || procfs::descriptors(agent.id()) <= before);
    agent.end();
}

#[test]
fn a_client_that_reads_no_answers_delays_nobody_and_costs_little() {
    let agent = Agent::start();
    agent.status();
    let before = procfs::memory(agent.id()).1;
    let mut deaf: Vec<UnixStream> = Vec::new();
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&agent.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        let requests = STATUS.repeat(1000).into_bytes();
        let mut written = 0;
        // Until nobody takes any more for some time: the agent has stopped reading.
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(200) {
            match stream.write(&requests[written % requests.len()..]) {
                Ok(length) => {
                    written += length;
                    last = Instant::now();
                }
                Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
            }
        }
        deaf.push(stream);
        assert!(agent.status().is_object());
    }
    // 64 KiB of answers for each, and what the allocator rounds up.
    let grown = procfs::memory(agent.id()).1.saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB");
    // One that begins to read gets whole lines.
    let stream = deaf.pop().unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut client = Client::new(stream);
    for _ in 0..2000 {
        assert_eq!(client.line()["ok"], json!(true));
    }
    drop((client, deaf));
    agent.end();
}

#[test]
fn silent_clients_make_room_for_a_new_one() {
    let agent = Agent::start();
    let before = procfs::descriptors(agent.id());
    let mut silent: Vec<Client> = (0..100).map(|_| agent.client()).collect();
    // One that has said something lately stays.
    let mut busy = agent.client();
    assert_eq!(busy.ask(json!({"command": "status"}))["ok"], json!(true));
    for _ in 0..20 {
        assert!(agent.status().is_object());
    }
    assert!(procfs::descriptors(agent.id()) <= before + 32);
    silent[0].expect_end();
    assert_eq!(busy.ask(json!({"command": "status"}))["ok"], json!(true));
    drop(silent);
    wait::until("the clients have gone", || procfs::descriptors(agent.id()) <= before + 1);
    agent.end();
}

#[test]
fn when_all_take_events_a_new_client_is_told_that_there_is_no_room() {
    let agent = Agent::start();
    let mut takers: Vec<Client> = (0..32).map(|_| agent.client()).collect();
    takers.iter_mut().for_each(Client::subscribe);
    let mut late = agent.client();
    assert!(error(&late.line()).contains("32 clients take events"));
    late.expect_end();
    let output = agent.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("32 clients take events"), "{output:?}");
    takers.pop();
    wait::until("there is room again", || agent.run(&["status"]).status.success());
    agent.end();
}

#[test]
fn a_client_that_reads_no_events_is_disconnected_and_others_get_all() {
    const SESSIONS: usize = 4000;
    let service = aiot_tunnel_testkit::services::echo("e");
    let agent = Agent::with(&["--service", &offer(&service)]);
    let cloud = Cloud::plain();
    let (mut deaf, mut keen) = (agent.client(), agent.client());
    deaf.subscribe();
    keen.subscribe();
    agent.add("t", cloud.address());
    let mut device = cloud.accept();
    keen.event("connect");
    let reader = std::thread::spawn(move || {
        let mut seen = (0, 0);
        while seen != (SESSIONS, SESSIONS) {
            match keen.line()["event"].as_str() {
                Some("session_opened") => seen.0 += 1,
                Some("session_closed") => seen.1 += 1,
                other => panic!("{other:?}"),
            }
        }
    });
    for number in 0..SESSIONS {
        let session = format!("{number:0>64}");
        assert_eq!(device.create(&session, "e"), 0);
        device.release(&session, 2, r#"{"code":0,"msg":"bye"}"#);
        assert_eq!(device.receive().0["frame_type"], 1);
    }
    reader.join().unwrap();
    // What waited in the kernel is there, and then the connection ends.
    let mut waited = Vec::new();
    let _ = deaf.stream.read_to_end(&mut waited);
    assert!(waited.len() > 1000 && waited.len() < 2 * 1024 * 1024, "{}", waited.len());
    let lines = waited.iter().filter(|byte| **byte == b'\n').count();
    assert!(lines < 2 * SESSIONS, "{lines}");
    assert!(agent.status().is_object());
    agent.end();
}
