//! The device side over real sockets, against a cloud whose WebSocket is tungstenite's.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use aiot_tunnel::*;
use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::cloud::{params, Cloud};
use aiot_tunnel_testkit::frame::{self, code};
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::random;
use aiot_tunnel_testkit::services::{echo, service};
use aiot_tunnel_testkit::wait::{accept, TIMEOUT};
use serde_json::json;

#[test]
fn a_session_echoes_and_the_path_keeps_its_query() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("_SSH")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.path, "/tunnel/t/dest?x=1");
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "_SSH"), 0);
    device.data("s", b"hello");
    let (header, payload) = device.receive();
    assert_eq!((header["frame_type"].as_i64(), header["frame_id"].as_i64()), (Some(4), Some(1)));
    assert_eq!(payload, b"hello");
    running.handle.delete(&id("t")).unwrap();
    running.expect(EventKind::Disconnect, "t");
    let (header, _) = device.receive();
    assert_eq!(header["frame_type"], 3);
    assert!(device.receive_close().is_some());
}

#[test]
fn unknown_service_and_refused_port_are_answered_with_code_2() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = Service::new("refused", "127.0.0.1", Port::new(closed).unwrap()).unwrap();
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(refused));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("a", "nobody"), 2);
    assert_eq!(device.create("b", "refused"), 2);
}

#[test]
fn session_ids_that_share_a_prefix_do_not_touch_each_other() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("s1", "e"), 0);
    assert_eq!(device.create("s10", "e"), 0);
    device.data("s1", b"one");
    assert_eq!(device.receive_data("s1", 3), b"one");
    device.release("s1", 5, "{\"code\":0}");
    let (header, payload) = device.receive();
    assert_eq!((&header["frame_type"], &header["frame_id"]), (&json!(1), &json!(5)));
    assert_eq!(code(&payload), 0);
    device.data("s10", b"ten");
    assert_eq!(device.receive_data("s10", 3), b"ten");
}

#[test]
fn an_id_in_use_and_one_session_too_many_are_refused() {
    let cloud = Cloud::plain();
    let limits = Limits::new().with_max_sessions(2);
    let running = Running::start(plain().service(echo("e")).limits(limits));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("a", "e"), 0);
    assert_eq!(device.create("a", "e"), 2);
    assert_eq!(device.create("b", "e"), 0);
    assert_eq!(device.create("c", "e"), 1);
    device.data("a", b"still");
    assert_eq!(device.receive_data("a", 5), b"still");
}

#[test]
fn local_eof_delivers_every_byte_before_release() {
    let bytes = random::bytes(1, 3_000_000);
    let sent = bytes.clone();
    let source = service("source", move |mut stream| stream.write_all(&sent).unwrap());
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(source));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("s", "source"), 0);
    assert!(device.receive_data("s", bytes.len()) == bytes);
    let (header, payload) = device.receive();
    assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), 1));
    // Late data does not cause a second release.
    device.data("s", b"late");
    assert_eq!(device.create("next", "nobody"), 2);
}

#[test]
fn release_delivers_every_byte_to_a_slow_reader_before_end_of_file() {
    let bytes = random::bytes(2, 3_000_000);
    let (sender, received) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let sink = service("sink", move |mut stream| {
        gate.lock().unwrap().recv().unwrap();
        let mut all = Vec::new();
        let mut buffer = [0; 10_000];
        // It writes while it reads: the unread answer must not reset the connection.
        let _ = stream.write_all(b"busy");
        while let Ok(length) = stream.read(&mut buffer) {
            if length == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..length]);
        }
        sender.send(all).unwrap();
    });
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(sink));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("s", "sink"), 0);
    let writer = std::thread::spawn({
        let bytes = bytes.clone();
        move || {
            for chunk in bytes.chunks(4096) {
                device.data("s", chunk);
            }
            device.release("s", 5, "");
            device
        }
    });
    go.send(()).unwrap();
    assert!(received.recv_timeout(TIMEOUT).unwrap() == bytes);
    drop(writer.join().unwrap());
}

fn ten_sessions_at_once(cloud: Cloud, security: Security) {
    const EACH: usize = 4_000_000;
    let running = Running::start(Manager::builder().security(security).service(echo("e")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    let names: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
    for name in &names {
        assert_eq!(device.create(name, "e"), 0);
    }
    let bytes: Vec<Vec<u8>> = (0..10).map(|n| random::bytes(n, EACH)).collect();
    let mut sent = [0; 10];
    let mut received: HashMap<String, Vec<u8>> = HashMap::new();
    let (sizes, mut turn) = ([1, 4096, 100, 3000, 65_536, 17, 4095], 0);
    // At most this much is on its way, so that this single thread cannot deadlock with itself.
    const WINDOW: usize = 400_000;
    let mut total = 0;
    while total < 10 * EACH {
        let under_way = sent.iter().sum::<usize>() - total;
        if under_way < WINDOW && sent.iter().any(|sent| *sent < EACH) {
            let n = turn % 10;
            let length = sizes[turn % sizes.len()].min(EACH - sent[n]);
            turn += 1;
            if length > 0 {
                device.data(&names[n], &bytes[n][sent[n]..sent[n] + length]);
                sent[n] += length;
            }
            continue;
        }
        let (header, payload) = device.receive();
        assert_eq!(header["frame_type"], 4);
        total += payload.len();
        received.entry(header["session_id"].as_str().unwrap().into()).or_default().extend(payload);
    }
    for (name, bytes) in names.iter().zip(&bytes) {
        assert!(received[name] == *bytes, "{name}");
    }
}

#[test]
fn ten_sessions_at_once_keep_every_byte_plain() {
    ten_sessions_at_once(Cloud::plain(), Security::Plain);
}

#[test]
fn ten_sessions_at_once_keep_every_byte_tls() {
    let authority = Authority::new();
    let tls = TlsConfig::new().with_ca_pem(&authority.pem()).unwrap();
    ten_sessions_at_once(Cloud::tls(authority.acceptor("127.0.0.1")), Security::Tls(tls));
}

#[test]
fn malformed_frames_are_dropped_and_the_session_beside_them_goes_on() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("s", "e"), 0);
    let long =
        format!("{{\"frame_type\":2,\"frame_id\":1,\"session_id\":\"{}\"}}", "s".repeat(257));
    let nested = format!("{{\"x\":{}", "[".repeat(2000));
    let malformed: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        vec![0, 0],
        vec![8, 1, b'{', b'}'],
        vec![0, 50, b'{', b'}'],
        frame::tunnel("\u{0}\u{1}", b""),
        vec![0, 2, 0xff, 0xfe],
        frame::tunnel("[4,\"s\",1]", b"x"),
        frame::tunnel("{\"frame_type\":77,\"session_id\":\"s\"}", b"x"),
        frame::tunnel("{\"frame_type\":2,\"session_id\":\"x\",\"service_type\":\"e\"}", b""),
        frame::tunnel("{\"frame_type\":2,\"frame_id\":1,\"service_type\":\"e\"}", b""),
        frame::tunnel(&long, b""),
        frame::tunnel(&nested, b""),
    ];
    for (index, message) in malformed.into_iter().enumerate() {
        device.send_message(message);
        let text = format!("after {index}");
        device.data("s", text.as_bytes());
        assert_eq!(device.receive_data("s", text.len()), text.as_bytes());
    }
    device.socket.send(tungstenite::Message::text("text")).unwrap();
    // A message that is far too long for a frame.
    device.send_message(vec![0; 16 << 20]);
    device.data("other", b"unknown");
    let (header, payload) = device.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("other")));
    assert_eq!(code(&payload), 1);
    device.data("other", b"answered once only");
    device.data("s", b"end");
    assert_eq!(device.receive_data("s", 3), b"end");
}

#[test]
fn a_data_frame_or_release_with_an_unusable_header_cuts_its_session() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("beside", "e"), 0);
    for (frame_type, fields) in [
        (4, r#""frame_id":-5"#),
        (4, r#""frame_id":9223372036854775808"#),
        (4, r#""frame_id":"x""#),
        (4, r#""frame_id":1,"service_type":5"#),
        (4, r#""frame_id":1,"frame_id":2"#),
        (3, r#""frame_id":-5"#),
    ] {
        assert_eq!(device.create("s", "e"), 0);
        let header = format!(r#"{{"frame_type":{frame_type},"session_id":"s",{fields}}}"#);
        device.send_message(frame::tunnel(&header, b"lost"));
        // Later data would look like the continuation.
        device.data("s", b"the rest");
        let (released, payload) = device.receive();
        assert_eq!((&released["frame_type"], &released["session_id"]), (&json!(3), &json!("s")));
        assert!(String::from_utf8_lossy(&payload).contains("unusable header"), "{fields}");
        device.data("beside", b"goes on");
        assert_eq!(device.receive_data("beside", 7), b"goes on");
    }
}

#[test]
fn http_401_and_close_4001_expire_the_tunnel_and_update_brings_it_back() {
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params()).unwrap();
    assert!(cloud.accept_if(|_| Some(401)).is_none());
    running.expect(EventKind::Expired, "t");
    running.handle.update(&id("t"), cloud.params()).unwrap();
    for close_code in [4001, 401] {
        let mut device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        device.close(close_code);
        running.expect(EventKind::Disconnect, "t");
        running.expect(EventKind::Expired, "t");
        running.handle.add(&id("t"), cloud.params()).unwrap();
    }
    drop(cloud.accept());
}

#[test]
fn a_lost_connection_is_made_anew_and_update_reconnects() {
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params()).unwrap();
    drop(cloud.accept());
    running.expect(EventKind::Connect, "t");
    running.expect(EventKind::Disconnect, "t");
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    running.handle.update(&id("t"), cloud.params()).unwrap();
    running.expect(EventKind::Disconnect, "t");
    device.receive_close();
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "t");
}

#[test]
fn twenty_tunnels_work_the_21st_is_refused_and_update_needs_no_slot() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    let mut devices = Vec::new();
    for n in 0..20 {
        running.handle.add(&id(&format!("t{n}")), cloud.params()).unwrap();
        devices.push(cloud.accept());
        running.expect(EventKind::Connect, &format!("t{n}"));
    }
    for device in &mut devices {
        assert_eq!(device.create("s", "e"), 0);
        device.data("s", b"x");
        assert_eq!(device.receive_data("s", 1), b"x");
    }
    let refused = running.handle.add(&id("t20"), cloud.params()).unwrap_err();
    assert_eq!(refused.state_code(), state::TUNNEL_LIMIT);
    running.handle.update(&id("t7"), cloud.params()).unwrap();
    running.expect(EventKind::Disconnect, "t7");
    let _again = cloud.accept();
    running.expect(EventKind::Connect, "t7");
    running.handle.delete(&id("t3")).unwrap();
    running.handle.add(&id("t20"), cloud.params()).unwrap();
    running.expect(EventKind::Disconnect, "t3");
}

#[test]
fn no_byte_of_the_request_leaves_the_device_before_the_certificate_is_good() {
    let (authority, other) = (Authority::new(), Authority::new());
    for (acceptor, why) in [
        (other.acceptor("127.0.0.1"), "wrong CA"),
        (authority.expired_acceptor("127.0.0.1"), "expired"),
        (authority.acceptor("elsewhere.example"), "wrong host name"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tls = TlsConfig::new().with_ca_pem(&authority.pem()).unwrap();
        let running = Running::start(Manager::builder().security(Security::Tls(tls)));
        let port = listener.local_addr().unwrap().port();
        running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
        let tcp = accept(&listener);
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut received = Vec::new();
        // In TLS 1.3 the server may finish before the client refuses. Then it reads nothing.
        if let Ok(mut stream) = acceptor.accept(tcp) {
            let _ = stream.read_to_end(&mut received);
        }
        assert!(received.is_empty(), "{why}: {}", String::from_utf8_lossy(&received));
    }
}

#[test]
fn stop_is_prompt_while_tunnels_connect_and_it_is_sticky() {
    // It answers nothing: the handshake never ends.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut running = Running::start(plain());
    let port = silent.local_addr().unwrap().port();
    running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
    let _held = accept(&silent);
    running.stop();
    let manager = plain().build().unwrap();
    manager.handle().stop();
    manager.run().unwrap();
}

#[test]
fn a_reader_that_takes_nothing_does_not_hold_its_siblings_for_ever() {
    let (keep, kept) = mpsc::channel();
    let deaf = service("deaf", move |stream| keep.send(stream).unwrap());
    let limits = Limits::new().with_stall_timeout(Duration::from_millis(300));
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(deaf).service(echo("e")).limits(limits));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("deaf", "deaf"), 0);
    assert_eq!(device.create("e", "e"), 0);
    for _ in 0..1024 {
        device.data("deaf", &[0; 65_536]);
    }
    device.data("e", b"alive");
    let mut released = false;
    loop {
        let (header, payload) = device.receive();
        if header["session_id"] == "deaf" {
            assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), 1));
            assert!(!std::mem::replace(&mut released, true), "released twice");
        } else {
            assert_eq!(payload, b"alive");
            break;
        }
    }
    assert!(released);
    drop(kept);
}

#[test]
fn services_are_replaced_and_removed_without_touching_open_sessions() {
    let named = |name: &'static str| {
        service("e", move |mut stream| {
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                if stream.write_all(name.as_bytes()).is_err() {
                    break;
                }
            }
        })
    };
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(named("old")).service(echo("other")));
    let handle = &running.handle;
    handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    let answers = |device: &mut aiot_tunnel_testkit::tunnel_end::TunnelEnd, session, name: &str| {
        device.data(session, b"?");
        assert_eq!(device.receive_data(session, name.len()), name.as_bytes());
    };
    assert_eq!(device.create("a", "e"), 0);
    answers(&mut device, "a", "old");
    handle.set_services([named("first"), named("new"), echo("third")]);
    assert_eq!(device.create("b", "e"), 0);
    // Of two services of one type, the last one counts.
    answers(&mut device, "b", "new");
    answers(&mut device, "a", "old");
    assert_eq!(device.create("c", "other"), 2);
    assert_eq!(device.create("c", "third"), 0);
    assert!(handle.remove_service("e"));
    assert!(!handle.remove_service("e"));
    assert_eq!(device.create("d", "e"), 2);
    answers(&mut device, "b", "new");
    handle.set_services([]);
    assert_eq!(device.create("d", "third"), 2);
    answers(&mut device, "c", "?");
    assert!(running.events.try_recv().is_err());
}

#[test]
fn new_limits_apply_to_the_next_connection_and_bad_ones_change_nothing() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    let handle = &running.handle;
    handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    handle.set_limits(Limits::new().with_max_sessions(1).with_max_tunnels(1)).unwrap();
    assert_eq!(device.create("a", "e"), 0);
    assert_eq!(device.create("b", "e"), 0);
    let refused = handle.add(&id("u"), cloud.params()).unwrap_err();
    assert!(matches!(refused, Error::TunnelLimit(1)), "{refused}");
    let refused = handle.set_limits(Limits::new().with_max_sessions(0)).unwrap_err();
    assert!(refused.to_string().starts_with("max_sessions"), "{refused}");
    handle.reconnect_all().unwrap();
    running.expect(EventKind::Disconnect, "t");
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("a", "e"), 0);
    assert_eq!(device.create("b", "e"), 1);
}
