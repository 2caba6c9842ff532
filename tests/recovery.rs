//! One end fails: the other end is told, and the tunnel recovers.

use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use aiot_tunnel::gateway::Gateway;
use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::{params, Cloud};
use aiot_tunnel_testkit::frame::code;
use aiot_tunnel_testkit::gateways::tunnel;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::queue::{Key, Queue};
use aiot_tunnel_testkit::random;
use aiot_tunnel_testkit::services::{echo, service, BlackHole};
use aiot_tunnel_testkit::sockets::reset_on_close;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use serde_json::json;
use tungstenite::protocol::CloseFrame;

fn echo_once(device: &mut TunnelEnd, session: &str) {
    device.data(session, b"hello");
    assert_eq!(device.receive_data(session, 5), b"hello");
}

#[test]
fn a_reset_by_the_cloud_is_a_disconnect_and_a_connect_at_once() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "e"), 0);
    reset_on_close(&device.tcp);
    drop(device);
    running.expect(EventKind::Disconnect, "t");
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "e"), 0);
    echo_once(&mut device, "s");
}

#[test]
fn a_close_by_the_cloud_is_answered_and_the_tunnel_comes_back() {
    for close_code in [1000, 1001, 1011, 4000] {
        let cloud = Cloud::plain();
        let running = Running::start(plain().service(echo("e")));
        running.handle.add(&id("t"), cloud.params()).unwrap();
        let mut device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        device.close(close_code);
        device.receive_close();
        running.expect(EventKind::Disconnect, "t");
        let mut device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        assert_eq!(device.create("s", "e"), 0);
        echo_once(&mut device, "s");
    }
}

#[test]
fn a_gateway_that_does_not_know_the_tunnel_for_a_while_gets_the_device_back() {
    let gateway = Gateway::builder().tunnel(tunnel("t")).start("127.0.0.1:0".parse().unwrap());
    let gateway = gateway.unwrap();
    let address = gateway.local_addr();
    let running = Running::start(plain());
    running.handle.add(&id("t"), params("127.0.0.1", address.port())).unwrap();
    running.expect(EventKind::Connect, "t");
    gateway.shutdown();
    running.expect(EventKind::Disconnect, "t");

    let without = Gateway::builder().start(address).unwrap();
    wait::until("an attempt is answered with 404", || {
        let tunnels = running.handle.tunnels();
        let error = tunnels.first().expect("the tunnel is kept").last_error.clone();
        error.is_some_and(|error| error.contains("404"))
    });
    without.shutdown();
    let _with = Gateway::builder().tunnel(tunnel("t")).start(address).unwrap();
    // No EXPIRED came before.
    running.expect(EventKind::Connect, "t");
}

/// Closes a device's connection as the gateway does when another one takes its place.
fn replace(device: &mut TunnelEnd) {
    let frame = CloseFrame { code: 1000.into(), reason: "replaced by 192.0.2.7:4242".into() };
    device.socket.close(Some(frame)).unwrap();
    device.receive_close();
}

#[test]
fn a_device_that_is_replaced_waits_longer_each_time_however_long_it_was_connected() {
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let gaps = (0..5).map(|round| {
        let mut device = cloud.accept();
        let opened = Instant::now();
        running.expect(EventKind::Connect, "t");
        // Once it lives long enough that it would be opened again at once after another close.
        wait::until("a life that is not short", || {
            round != 2 || opened.elapsed() > Duration::from_millis(1100)
        });
        replace(&mut device);
        running.expect(EventKind::Disconnect, "t");
        let lost = Instant::now();
        wait::until("the next attempt is planned", || {
            let state = running.handle.tunnels()[0].state;
            matches!(state, TunnelState::Waiting { .. }) || lost.elapsed() > Duration::from_secs(1)
        });
        match running.handle.tunnels()[0].state {
            TunnelState::Waiting { retry_at, .. } => {
                retry_at.duration_since(SystemTime::now()).unwrap_or_default()
            }
            _ => Duration::ZERO,
        }
    });
    let seconds: Vec<u64> = gaps.map(|gap| gap.as_secs_f64().round() as u64).collect();
    assert_eq!(seconds, [1, 1, 1, 1, 2]);
}

#[test]
fn two_devices_with_one_token_do_not_replace_each_other_without_a_pause() {
    let gateway = Gateway::builder().tunnel(tunnel("t")).start("127.0.0.1:0".parse().unwrap());
    let gateway = gateway.unwrap();
    let address = gateway.local_addr();
    let connected = || {
        let running = Running::start(plain());
        running.handle.add(&id("t"), params("127.0.0.1", address.port())).unwrap();
        running.expect(EventKind::Connect, "t");
        running
    };
    let first = connected();
    let _second = connected();
    first.expect(EventKind::Disconnect, "t");
    wait::until("the first waits", || {
        matches!(first.handle.tunnels()[0].state, TunnelState::Waiting { .. })
    });
    let error = first.handle.tunnels()[0].last_error.clone().unwrap();
    assert!(error.contains("replaced by 127.0.0.1:"), "{error}");
}

#[test]
fn a_cloud_that_says_nothing_is_given_up_after_the_pong_timeout() {
    let cloud = Cloud::plain();
    let limits = Limits::default()
        .with_ping_interval(Duration::from_millis(200))
        .with_pong_timeout(Duration::from_millis(700));
    let running = Running::start(plain().service(echo("e")).limits(limits));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    // It reads nothing, so it answers no ping.
    let silent = cloud.accept();
    running.expect(EventKind::Connect, "t");
    running.expect(EventKind::Disconnect, "t");
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "e"), 0);
    echo_once(&mut device, "s");
    drop(silent);
}

#[test]
fn a_service_that_hangs_on_connect_is_refused_in_time_and_its_siblings_go_on() {
    let hole = BlackHole::new();
    let port = Port::new(hole.address().port()).unwrap();
    let hangs = Service::new("hangs", "127.0.0.1", port).unwrap();
    let limits = Limits::default().with_connect_timeout(Duration::from_secs(1));
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")).service(hangs).limits(limits));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("s", "e"), 0);
    let create = |name: &str| json!({"frame_type": 2, "session_id": name, "frame_id": 7, "service_type": "hangs"});
    device.send(create("h"), b"");
    // The sibling echoes until the answer comes.
    let mut echoes = 0;
    let (header, payload) = loop {
        device.data("s", b"x");
        let (header, payload) = device.receive();
        if header["frame_type"] == 1 {
            break (header, payload);
        }
        assert_eq!(payload, b"x");
        echoes += 1;
    };
    assert!(echoes > 0);
    assert_eq!(device.receive_data("s", 1), b"x");
    assert_eq!((&header["session_id"], &header["frame_id"]), (&json!("h"), &json!(7)));
    assert_eq!(code(&payload), 2);
    assert!(String::from_utf8_lossy(&payload).contains("timed out"));
    echo_once(&mut device, "s");
    drop(hole);
}

#[test]
fn a_service_that_resets_ends_its_session_and_no_other() {
    let (come, gate) = mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let resets = service("resets", move |stream| {
        gate.lock().unwrap().recv().unwrap();
        reset_on_close(&stream);
    });
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")).service(resets));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("s", "e"), 0);
    assert_eq!(device.create("r", "resets"), 0);
    come.send(()).unwrap();
    let (header, payload) = device.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("r")));
    assert_eq!(code(&payload), 1);
    echo_once(&mut device, "s");
    assert_eq!(device.create("r", "e"), 0);
    echo_once(&mut device, "r");
}

#[test]
fn data_flows_while_an_event_handler_blocks() {
    let cloud = Cloud::plain();
    let (entered, in_handler) = mpsc::channel();
    let (release, gate) = mpsc::channel::<()>();
    let (entered, gate) = (std::sync::Mutex::new(entered), std::sync::Mutex::new(gate));
    let manager = plain()
        .service(echo("e"))
        .on_event(move |_, event| {
            entered.lock().unwrap().send(event.kind).unwrap();
            let _ = gate.lock().unwrap().recv();
        })
        .build()
        .unwrap();
    let handle = manager.handle();
    let thread = std::thread::spawn(move || manager.run().unwrap());
    handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(in_handler.recv_timeout(TIMEOUT).unwrap(), EventKind::Connect);
    assert_eq!(device.create("s", "e"), 0);
    echo_once(&mut device, "s");
    // The worker connects again on its own; the events wait.
    drop(device);
    let mut device = cloud.accept();
    assert_eq!(device.create("s", "e"), 0);
    echo_once(&mut device, "s");
    assert!(in_handler.try_recv().is_err());
    handle.stop();
    drop(release);
    thread.join().unwrap();
    assert_eq!(in_handler.recv_timeout(TIMEOUT).unwrap(), EventKind::Disconnect);
}

#[test]
fn the_default_times_are_those_of_the_documents() {
    let limits = Limits::default();
    let seconds = [
        (limits.stall_timeout, 10),
        (limits.handshake_timeout, 15),
        (limits.connect_timeout, 5),
        (limits.ping_interval, 20),
        (limits.pong_timeout, 60),
    ];
    for (time, documented) in seconds {
        assert_eq!(time, Duration::from_secs(documented));
    }
}

#[test]
fn a_full_queue_refuses_a_command_at_once_and_takes_the_next_when_it_is_read() {
    let own = Key::new();
    let key = own.0;
    let _queue = Queue::new(key, 0o600);
    let delete = listen::Command::Delete(id("nobody"));
    let mut queued = 0;
    // The queue is not read: a send that waited would wait for ever.
    while listen::send(key, &delete).is_ok() {
        queued += 1;
    }
    assert!(queued > 0);
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    let options = ipc::ListenOptions::new().with_key(key);
    let listener = listen::Listener::start(running.handle.clone(), options).unwrap();
    wait::until("there is room again", || {
        listen::send(key, &listen::Command::Add(id("t"), cloud.params())).is_ok()
    });
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    listener.stop();
}

#[test]
fn a_deleted_tunnel_still_hands_on_what_it_has_received() {
    const CHUNK: usize = 64 * 1024;
    let (go, wait) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let sleeper = service("sleeper", move |mut stream| {
        wait.lock().unwrap().recv().unwrap();
        let mut bytes = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
        tell.send(bytes).unwrap();
    });
    let cloud = Cloud::plain();
    // More than the kernel's buffers hold.
    let limits = Limits::default().with_session_buffer(8 * 1024 * 1024);
    let running = Running::start(plain().service(sleeper).limits(limits));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "sleeper"), 0);
    // A pong shows that the device has processed everything before the ping. When no pong comes,
    // the session's buffer is full.
    let sent = random::bytes(7, 64 * 1024 * 1024);
    let mut processed = 0;
    device.tcp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    for chunk in sent.chunks(CHUNK) {
        device.data("s", chunk);
        device.ping(b"?");
        match device.socket.read() {
            Ok(message) if message.is_pong() => processed += CHUNK,
            _ => break,
        }
    }
    assert!(processed < sent.len());
    running.handle.delete(&id("t")).unwrap();
    running.expect(EventKind::Disconnect, "t");
    // The worker has closed the connection before the service reads another byte.
    device.tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
    while device.socket.read().is_ok() {}
    go.send(()).unwrap();
    let received = told.recv_timeout(TIMEOUT).expect("the service sees the end");
    assert!(received.len() >= processed, "{} of {processed} bytes", received.len());
    assert!(sent.starts_with(&received));
}
