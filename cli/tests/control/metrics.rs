//! `GET /metrics`, as Prometheus reads it.

use super::*;

use std::collections::{HashMap, HashSet};

use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::skip;

/// A page: each sample with its labels, as text. Panics where the format is broken.
fn parse(page: &str) -> HashMap<String, f64> {
    let is_name = |name: &str| {
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && name.starts_with("aiot_tunnel_")
    };
    assert!(page.ends_with('\n'));
    let (mut samples, mut families, mut current) = (HashMap::new(), HashSet::new(), ("", ""));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(families.insert(name), "the family {name} comes twice");
            current = (name, "");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current.0, "{line}");
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            current.1 = kind;
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        assert!(name == current.0 && !current.1.is_empty(), "{line}");
        assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{line}");
    }
    samples
}

/// An HTTP answer: its head and its body.
fn http(agent: &Agent, request: &str) -> (String, String) {
    let mut client = agent.client();
    client.write(request);
    let answer = client.rest();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    if !request.starts_with("HEAD") {
        assert_eq!(length, body.len().to_string());
    }
    (head.to_owned(), body.to_owned())
}

fn page(agent: &Agent) -> HashMap<String, f64> {
    parse(&http(agent, "GET /metrics HTTP/1.1\r\nHost: agent\r\n\r\n").1)
}

#[test]
fn each_method_path_and_version_has_its_answer() {
    let agent = Agent::start();
    for (request, status) in [
        ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK"),
        ("GET /metrics HTTP/1.0\r\n\r\n", "200 OK"),
        ("GET /metrics?a=b HTTP/1.1\n\n", "200 OK"),
        ("GET http://agent/metrics HTTP/1.1\r\n\r\n", "200 OK"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed"),
        ("DELETE /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("GET /metrics HTTP/2.0\r\n\r\n", "505 HTTP Version Not Supported"),
        ("GET /metrics\r\n\r\n", "400 Bad Request"),
        ("GET /metrics x HTTP/1.1\r\n\r\n", "400 Bad Request"),
    ] {
        let (head, body) = http(&agent, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {head}");
        assert_eq!(head.contains("\r\nAllow: GET, HEAD"), status.starts_with("405"), "{head}");
        match (status, request.starts_with("HEAD")) {
            (_, true) => assert_eq!(body, ""),
            ("200 OK", false) => {
                assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
                assert_eq!(parse(&body)["aiot_tunnel_tunnels"], 0.0);
            }
            _ => assert_eq!(body, format!("{status}\n")),
        }
    }
    // Header lines without end.
    let mut client = agent.client();
    client.write("GET /metrics HTTP/1.1\r\n");
    let line = format!("X: {}\r\n", "y".repeat(1000));
    for _ in 0..9 {
        client.write(&line);
    }
    assert!(client.rest().starts_with("HTTP/1.1 431 "));
    // A head that is not complete is answered when no more comes.
    let mut client = agent.client();
    client.write("GET /metrics HTTP/1.1\r\nHost: ag");
    client.half_close();
    assert!(client.rest().starts_with("HTTP/1.1 200 OK"));
    agent.end();
}

#[test]
fn curl_gets_the_page() {
    if Command::new("curl").arg("--version").output().is_err() {
        return skip("curl", "there is no curl");
    }
    let agent = Agent::start();
    let curl = |more: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail", "--unix-socket"]).arg(&agent.path).args(more);
        command.arg("http://agent/metrics").output().unwrap()
    };
    for more in [&[][..], &["--http1.0"], &["--compressed"]] {
        let output = curl(more);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(parse(&stdout(&output))["aiot_tunnel_tunnels"], 0.0);
    }
    assert!(curl(&["--head"]).status.success());
    // A body that nobody wants does not spoil the answer.
    let data = "x".repeat(50_000);
    let output = curl(&["--data", &data]);
    assert!(stderr(&output).contains("405"), "{output:?}");
    agent.end();
}

#[test]
fn the_page_tells_what_the_status_tells_and_no_counter_falls() {
    let service = echo("e");
    let agent = Agent::with(&["--service", &offer(&service)]);
    let cloud = Cloud::plain();
    let id = "a\"b\\c é";
    agent.add(id, cloud.address());
    let mut device = cloud.accept();
    wait::until("connected", || agent.status()["tunnels"][0]["state"] == "connected");
    let series = |name: &str| format!("aiot_tunnel_{name}{{tunnel=\"a\\\"b\\\\c é\"}}");
    let mut last = page(&agent);
    assert_eq!(last[&series("up")], 1.0);
    let mut check = |what: &str| {
        let (samples, status) = (page(&agent), agent.status());
        let tunnel = &status["tunnels"][0];
        for (name, field) in [
            ("sessions_opened_total", "sessions_opened"),
            ("bytes_from_cloud_total", "bytes_from_cloud"),
            ("bytes_to_cloud_total", "bytes_to_cloud"),
        ] {
            let value = samples[&series(name)];
            assert_eq!(value, tunnel[field].as_f64().unwrap(), "{what}: {name}");
        }
        let open = tunnel["sessions"].as_array().unwrap().len() as f64;
        assert_eq!(samples[&series("sessions")], open, "{what}");
        for (series, value) in &samples {
            if series.contains("_total") {
                assert!(*value >= *last.get(series).unwrap_or(&0.0), "{what}: {series}");
            }
        }
        last = samples;
    };
    talk(&mut device, "s1", "e");
    talk(&mut device, "s2", "e");
    check("two sessions");
    device.release("s1", 2, r#"{"code":0,"msg":"bye"}"#);
    wait::until("it has ended", || {
        agent.status()["tunnels"][0]["sessions"].as_array().unwrap().len() == 1
    });
    check("one session");
    let mut update = add(id, cloud.address());
    update["command"] = json!("update");
    assert_eq!(agent.ask(update), json!({"ok": true}));
    let mut device = cloud.accept();
    talk(&mut device, "s1", "e");
    check("after an update");
    assert_eq!(last[&series("sessions_opened_total")], 3.0);
    let connects = "aiot_tunnel_events_total{event=\"connect\"}";
    wait::until("both connects are counted", || page(&agent)[connects] == 2.0);
    let build = format!("aiot_tunnel_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(last[&build], 1.0);
    assert!(last["aiot_tunnel_start_time_seconds"] > 1e9);
    agent.end();
}
