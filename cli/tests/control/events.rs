//! The events that clients get.

use super::*;

use std::net::TcpListener;

use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::procfs;
use aiot_tunnel_testkit::services::echo;

#[test]
fn each_event_has_its_tunnel_and_its_time() {
    let service = echo("e");
    let agent = Agent::with(&["--service", &offer(&service)]);
    let mut client = agent.client();
    client.subscribe();
    let cloud = Cloud::plain();
    agent.add("t \"1\"", cloud.address());
    let mut device = cloud.accept();
    let mut next = |kind: &str| {
        let event = client.line();
        assert_eq!(
            (&event["event"], &event["tunnel"]),
            (&json!(kind), &json!("t \"1\"")),
            "{event}"
        );
        let time = event["time"].as_str().unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok() && time.ends_with('Z'), "{event}");
        event
    };
    next("connect");
    talk(&mut device, "s1", "e");
    let opened = next("session_opened");
    assert_eq!(opened["session"]["service"], "e");
    device.release("s1", 2, r#"{"code":0,"msg":"bye"}"#);
    let closed = next("session_closed");
    assert_eq!(closed["session"]["id"], "s1");
    assert_eq!(closed["session"]["bytes_from_cloud"], closed["session"]["bytes_to_cloud"]);
    // The cloud refuses the token.
    device.close(4001);
    next("disconnect");
    next("token_refused");
    next("expired");
    assert_eq!(agent.status()["tunnels"], json!([]));
    agent.end();
}

#[test]
fn a_failed_attempt_tells_its_reason() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.subscribe();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    agent.add("t", address);
    let failed = client.event("failed");
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains(&address.to_string()) && error.contains("refused"), "{error}");
    wait::until("the status tells it", || agent.status()["tunnels"][0]["last_error"] == error);
    wait::until("it waits", || agent.status()["tunnels"][0]["state"] == "waiting");
    agent.end();
}

/// `printf ... | nc -N` must show events until its user ends it.
#[test]
fn a_half_closed_client_gets_events_until_it_leaves() {
    let agent = Agent::start();
    let before = procfs::descriptors(agent.id());
    let cloud = Cloud::plain();
    let mut client = agent.client();
    client.write("{\"command\":\"events\"}");
    client.half_close();
    assert_eq!(client.line(), json!({"ok": true}));
    agent.add("t", cloud.address());
    let _device = cloud.accept();
    client.event("connect");
    assert_eq!(agent.ask(json!({"command": "delete", "tunnel": "t"})), json!({"ok": true}));
    client.event("disconnect");
    drop(client);
    wait::until("its place is free", || procfs::descriptors(agent.id()) <= before);
    agent.end();
}

#[test]
fn a_client_may_ask_while_it_takes_events_and_gets_the_last_ones() {
    let agent = Agent::start();
    let cloud = Cloud::plain();
    let mut client = agent.client();
    client.subscribe();
    client.subscribe();
    client.send(&add("t", cloud.address()));
    assert_eq!(client.line(), json!({"ok": true}));
    let _device = cloud.accept();
    client.event("connect");
    client.send(&json!({"command": "status"}));
    assert_eq!(client.line()["status"]["tunnels"][0]["state"], "connected");
    // The agent ends, and with it the tunnel.
    agent.end();
    assert!(client.rest().contains("\"disconnect\""));
}
