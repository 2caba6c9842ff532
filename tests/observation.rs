//! What `Handle::tunnels` shows of tunnels and their sessions.

use std::net::TcpListener;
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::{params, Cloud};
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::services::{echo, service};
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use serde_json::json;

/// The status of the one tunnel that there is.
fn only(handle: &Handle) -> TunnelStatus {
    let mut tunnels = handle.tunnels();
    assert_eq!(tunnels.len(), 1, "{tunnels:?}");
    tunnels.remove(0)
}

/// Waits for a status of the one tunnel.
fn wait_for(handle: &Handle, what: &str, holds: impl Fn(&TunnelStatus) -> bool) -> TunnelStatus {
    wait::until(what, || handle.tunnels().first().is_some_and(&holds));
    only(handle)
}

fn is_waiting(status: &TunnelStatus) -> bool {
    matches!(status.state, TunnelState::Waiting { .. })
}

#[test]
fn a_tunnel_that_cannot_connect_shows_its_error_and_its_next_attempt() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let began = SystemTime::now();
    let running = Running::start(plain());
    assert!(running.handle.tunnels().is_empty());
    running.handle.add(&id("t"), params("127.0.0.1", closed)).unwrap();
    let status = wait_for(&running.handle, "the first failure", is_waiting);
    assert_eq!((status.id.as_str(), &*status.host), ("t", "127.0.0.1"));
    assert_eq!((status.port.get(), status.attempts), (closed, 1));
    let error = status.last_error.as_deref().unwrap_or_default();
    assert!(error.contains("refused"), "{error:?}");
    let TunnelState::Waiting { retry_at, .. } = status.state else { panic!("{status:?}") };
    let soon = SystemTime::now() + Duration::from_secs(5);
    assert!(retry_at > began && retry_at < soon && status.since <= soon);
    wait_for(&running.handle, "a second attempt", |status| status.attempts == 2);
}

#[test]
fn a_tunnels_states_follow_its_connection() {
    let cloud = Cloud::plain();
    let mut running = Running::start(plain());
    let handle = running.handle.clone();
    handle.add(&id("t"), cloud.params()).unwrap();
    // The connection is accepted by the kernel, the handshake by nobody yet.
    let status = wait_for(&handle, "the first attempt", |status| {
        status.attempts == 1 && status.port.get() > 0
    });
    assert_eq!((status.state, &status.last_error), (TunnelState::Connecting, &None));
    let device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    let open = only(&handle);
    assert_eq!((open.state, open.attempts, &open.last_error), (TunnelState::Connected, 0, &None));
    assert!(open.since <= SystemTime::now() && open.sessions.is_empty());

    drop(device);
    running.expect(EventKind::Disconnect, "t");
    let device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    let again = only(&handle);
    assert_eq!(again.state, TunnelState::Connected);
    // It tells why the former connection was lost.
    assert!(again.last_error.is_some() && again.since > open.since);

    let other = Cloud::plain();
    handle.update(&id("t"), other.params()).unwrap();
    running.expect(EventKind::Disconnect, "t");
    let _moved = other.accept();
    running.expect(EventKind::Connect, "t");
    let moved = only(&handle);
    assert_eq!((moved.port.get(), &moved.last_error), (other.address().port(), &None));
    drop(device);

    handle.add(&id("a"), cloud.params()).unwrap();
    let _second = cloud.accept();
    running.expect(EventKind::Connect, "a");
    let ids: Vec<_> = handle.tunnels().into_iter().map(|status| status.id.to_string()).collect();
    assert_eq!(ids, ["a", "t"]);
    handle.delete(&id("t")).unwrap();
    running.expect(EventKind::Disconnect, "t");
    assert_eq!(only(&handle).id.as_str(), "a");
    running.stop();
    assert!(handle.tunnels().is_empty());
}

#[test]
fn an_expired_tunnel_is_no_longer_listed() {
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params()).unwrap();
    assert!(cloud.accept_if(|_| Some(401)).is_none());
    running.expect(EventKind::Expired, "t");
    assert!(running.handle.tunnels().is_empty());
}

#[test]
fn sessions_are_listed_with_their_bytes_each_way() {
    let cloud = Cloud::plain();
    // Sends twice what it gets.
    let twice = service("twice", |mut stream| {
        use std::io::{Read, Write};
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..length]).unwrap();
            stream.write_all(&buffer[..length]).unwrap();
        }
    });
    let running = Running::start(plain().service(twice).service(echo("e")));
    let handle = &running.handle;
    handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    assert_eq!(device.create("s1", "twice"), 0);
    assert_eq!(device.create("s2", "e"), 0);
    assert_eq!(device.create("refused", "nobody"), 2);
    device.data("s1", b"hello");
    device.receive_data("s1", 10);
    device.data("s1", b"world!");
    device.receive_data("s1", 12);
    device.data("s2", b"x");
    device.receive_data("s2", 1);

    let sessions = only(handle).sessions;
    let seen: Vec<_> = sessions
        .iter()
        .map(|s| (&*s.id, &*s.service_type, s.bytes_from_cloud, s.bytes_to_cloud))
        .collect();
    assert_eq!(seen, [("s1", "twice", 11, 22), ("s2", "e", 1, 1)]);
    assert!(sessions.iter().all(|s| s.age < TIMEOUT) && sessions[0].age >= sessions[1].age);

    device.send(json!({"frame_type": 3, "session_id": "s1", "frame_id": 5}), b"{\"code\":0}");
    assert_eq!(device.receive().0["frame_type"], 1);
    wait_for(handle, "the release", |status| status.sessions.len() == 1);
    assert_eq!(only(handle).sessions[0].id, "s2");
    drop(device);
    running.expect(EventKind::Connect, "t");
    running.expect(EventKind::Disconnect, "t");
    assert!(only(handle).sessions.is_empty());
}

#[test]
fn a_snapshot_holds_no_token() {
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params()).unwrap();
    assert!(cloud.accept_if(|_| Some(500)).is_none());
    let status = wait_for(&running.handle, "the refusal", |s| s.last_error.is_some());
    assert!(!format!("{status:?}").contains("hush-"), "{status:?}");
}

#[test]
fn subscribers_get_what_the_handlers_get_until_the_run_ends() {
    let cloud = Cloud::plain();
    let mut running = Running::start(plain().service(echo("e")));
    let handle = running.handle.clone();
    let (first, second) = (handle.subscribe(), handle.subscribe());
    handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    device.check_echo("s", "e");
    drop(second);
    device.close(1001);
    running.expect(EventKind::Disconnect, "t");
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    running.stop();
    let seen: Vec<String> = first
        .into_iter()
        .map(|observation| match observation {
            Observation::Event(event) => event.to_string(),
            Observation::Notice(notice) => match notice.kind {
                NoticeKind::SessionOpened(session) => format!("opened {}", session.id),
                NoticeKind::SessionClosed(session) => {
                    assert_eq!(session.bytes_from_cloud, session.bytes_to_cloud);
                    assert_ne!(session.bytes_to_cloud, 0);
                    format!("closed {}", session.id)
                }
                NoticeKind::Failed { code, text, .. } => {
                    assert!(text.contains("1001"), "{text}");
                    format!("failed {code:x}")
                }
                other => format!("{other:?}"),
            },
            other => format!("{other:?}"),
        })
        .collect();
    let failed = format!("failed {:x}", state::TUNNEL_RESET);
    let expected = [
        "Connect t",
        "opened s",
        "closed s",
        &*failed,
        "Disconnect t",
        "Connect t",
        "Disconnect t",
    ];
    assert_eq!(seen, expected);
    assert!(handle.subscribe().recv().is_err());
}

#[test]
fn a_notice_handler_may_be_exchanged_and_may_panic() {
    let (sender, notices) = mpsc::channel();
    let sender = Mutex::new(sender);
    let (call, called) = mpsc::channel();
    let call = Mutex::new(call);
    let cloud = Cloud::plain();
    let running = Running::start(plain().on_notice(move |_, _| {
        call.lock().unwrap().send(()).unwrap();
        panic!("on purpose");
    }));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    assert!(cloud.accept_if(|_| Some(500)).is_none());
    called.recv_timeout(TIMEOUT).unwrap();
    running.handle.set_notice_handler(Some(Arc::new(move |handle, notice| {
        // Every call of the handle is allowed here.
        handle.delete(&notice.tunnel_id).unwrap();
        sender.lock().unwrap().send(notice.clone()).unwrap();
    })));
    // The worker waits, and the next attempt fails as well.
    assert!(cloud.accept_if(|_| Some(500)).is_none());
    let notice = notices.recv_timeout(TIMEOUT).unwrap();
    assert!(matches!(notice.kind, NoticeKind::Failed { .. }), "{notice:?}");
    wait::until("the tunnel is deleted", || running.handle.tunnels().is_empty());
    running.handle.set_notice_handler(None);
    // The sender in the former handler is gone.
    wait::until("the end", || matches!(notices.try_recv(), Err(TryRecvError::Disconnected)));
}

#[test]
fn notices_that_a_slow_handler_has_no_room_for_are_counted() {
    let (release, gate) = mpsc::channel::<()>();
    let (sender, dropped) = mpsc::channel();
    let (gate, sender) = (Mutex::new(gate), Mutex::new(sender));
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")).on_notice(move |_, notice| {
        let _ = gate.lock().unwrap().recv();
        sender.lock().unwrap().send(notice.dropped).unwrap();
    }));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    // Each has two notices.
    const SESSIONS: u32 = 600;
    for _ in 0..SESSIONS {
        device.check_echo("s", "e");
    }
    drop(release);
    let (mut handled, mut lost) = (0, 0);
    while handled + lost < 2 * SESSIONS {
        lost += dropped.recv_timeout(TIMEOUT).expect("a notice in time");
        handled += 1;
    }
    assert_eq!(handled + lost, 2 * SESSIONS);
    // The first one was in the handler's hands.
    assert!((1024..=1025).contains(&handled), "{handled} handled, {lost} dropped");
}
