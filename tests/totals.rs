//! What a tunnel counts over all its sessions, compared with what a test has moved.

use std::io::{Read, Write};
use std::sync::{mpsc, Arc, Mutex};
use std::time::Duration;

use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::services::{echo, service};
use aiot_tunnel_testkit::sockets::reset_on_close;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{frame, random};
use serde_json::json;

/// What the sessions of a tunnel have moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Moved {
    sessions: u64,
    from_cloud: u64,
    to_cloud: u64,
}

impl Moved {
    fn shown(handle: &Handle) -> Moved {
        let status = &handle.tunnels()[0];
        Moved {
            sessions: status.sessions_opened,
            from_cloud: status.bytes_from_cloud,
            to_cloud: status.bytes_to_cloud,
        }
    }
}

/// A test's own count, and the end at which it counts.
struct Load {
    device: TunnelEnd,
    moved: Moved,
    generator: random::Generator,
}

impl Load {
    fn create(&mut self, session: &str, service: &str) {
        assert_eq!(self.device.create(session, service), 0);
        self.moved.sessions += 1;
    }

    fn some_bytes(&mut self) -> Vec<u8> {
        let length = random::magnitude(&mut self.generator, 60_000) as usize;
        random::bytes(length as u64, length)
    }

    /// Moves bytes to a service that echoes, and back.
    fn echo(&mut self, session: &str) {
        let bytes = self.some_bytes();
        self.device.data(session, &bytes);
        assert_eq!(self.device.receive_data(session, bytes.len()), bytes);
        self.moved.from_cloud += bytes.len() as u64;
        self.moved.to_cloud += bytes.len() as u64;
    }

    /// Releases a session. The answer shows that the device has processed everything before.
    fn release(&mut self, session: &str) {
        self.device.release(session, 77, "{\"code\":0}");
        let (header, payload) = self.device.receive();
        assert_eq!((&header["frame_type"], &header["frame_id"]), (&json!(1), &json!(77)));
        assert_eq!(frame::code(&payload), 0);
    }

    /// Asks for a session that is refused, and sends it bytes all the same. They count nowhere.
    fn refused(&mut self) {
        assert_eq!(self.device.create("refused", "nobody"), 2);
        self.device.data("refused", b"for nobody");
        let (header, _) = self.device.receive();
        assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("refused")));
    }
}

const TOLD: usize = 70_000;

/// A service that takes a byte, sends [`TOLD`] bytes, and closes.
fn teller(name: &str) -> Service {
    service(name, |mut stream| {
        let mut go = [0];
        if stream.read_exact(&mut go).is_ok() {
            let _ = stream.write_all(&random::bytes(1, TOLD));
        }
    })
}

#[test]
fn totals_agree_with_what_was_moved_byte_for_byte_after_a_mixed_load() {
    let closed = Arc::new(Mutex::new(Moved::default()));
    let told = closed.clone();
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")).service(teller("teller")).on_notice(
        move |_, notice| {
            if let NoticeKind::SessionClosed(session) = &notice.kind {
                let mut closed = told.lock().unwrap();
                closed.sessions += 1;
                closed.from_cloud += session.bytes_from_cloud;
                closed.to_cloud += session.bytes_to_cloud;
            }
        },
    ));
    let handle = &running.handle;
    handle.add(&id("t"), cloud.params()).unwrap();
    let generator = random::part(16, 5);
    let mut load = Load { device: cloud.accept(), moved: Moved::default(), generator };
    running.expect(EventKind::Connect, "t");
    for round in 0..6 {
        for session in ["a", "b", "c"] {
            load.create(session, "e");
        }
        for _ in 0..5 {
            for session in ["a", "b", "c"] {
                load.echo(session);
            }
        }
        load.refused();
        // The service closes: everything that it has sent comes before the release.
        load.create("teller", "teller");
        load.device.data("teller", b"!");
        let (bytes, code) = load.device.receive_to_release("teller");
        assert_eq!((bytes.len(), code), (TOLD, 1));
        load.moved.from_cloud += 1;
        load.moved.to_cloud += TOLD as u64;
        // The cloud closes one session; the others are cut.
        load.release("a");
        assert_eq!(Moved::shown(handle), load.moved, "round {round}, two sessions open");
        match round % 3 {
            0 => {
                reset_on_close(&load.device.tcp);
                load.device = {
                    drop(load.device);
                    running.expect(EventKind::Disconnect, "t");
                    assert_eq!(Moved::shown(handle), load.moved, "round {round}, lost");
                    cloud.accept()
                };
            }
            1 => {
                handle.update(&id("t"), cloud.params()).unwrap();
                running.expect(EventKind::Disconnect, "t");
                load.device = cloud.accept();
            }
            _ => {
                handle.reconnect(&id("t")).unwrap();
                running.expect(EventKind::Disconnect, "t");
                load.device = cloud.accept();
            }
        }
        running.expect(EventKind::Connect, "t");
        assert_eq!(Moved::shown(handle), load.moved, "round {round}, connected again");
    }
    assert_eq!(load.moved.sessions, 24);
    wait::until("the notices of all sessions", || closed.lock().unwrap().sessions == 24);
    assert_eq!(*closed.lock().unwrap(), load.moved);
    // A tunnel that is added again begins from nothing.
    handle.delete(&id("t")).unwrap();
    handle.add(&id("t"), cloud.params()).unwrap();
    wait::until("the new tunnel", || {
        handle.tunnels().first().is_some_and(|tunnel| tunnel.sessions_opened == 0)
    });
    assert_eq!(Moved::shown(handle), Moved::default());
}

#[test]
fn bytes_that_linger_are_counted_before_the_disconnect_and_not_again() {
    const BYTES: usize = 200_000;
    let (go, gate) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let gate = Mutex::new(gate);
    let sleeper = service("sleeper", move |mut stream| {
        gate.lock().unwrap().recv().unwrap();
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        tell.send(bytes.len()).unwrap();
    });
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(sleeper));
    let handle = &running.handle;
    handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "sleeper"), 0);
    for chunk in random::bytes(3, BYTES).chunks(50_000) {
        device.data("s", chunk);
    }
    // The close is behind them on the same connection, so the device has got them all.
    device.close(1000);
    running.expect(EventKind::Disconnect, "t");
    let expected = Moved { sessions: 1, from_cloud: BYTES as u64, to_cloud: 0 };
    assert_eq!(Moved::shown(handle), expected);
    go.send(()).unwrap();
    assert_eq!(told.recv_timeout(TIMEOUT).expect("the service sees the end"), BYTES);
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(Moved::shown(handle), expected);
}

#[test]
fn a_session_closed_by_a_lost_connection_has_its_last_bytes_in_its_count() {
    let (go, gate) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let (close, closed) = mpsc::channel();
    let (gate, close) = (Mutex::new(gate), Mutex::new(close));
    let sleeper = service("sleeper", move |mut stream| {
        gate.lock().unwrap().recv().unwrap();
        let (mut buffer, mut received) = ([0; 65_536], 0);
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            received += length as u64;
        }
        tell.send(received).unwrap();
    });
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(sleeper).on_notice(move |_, notice| {
        if let NoticeKind::SessionClosed(session) = &notice.kind {
            close.lock().unwrap().send(session.bytes_from_cloud).unwrap();
        }
    }));
    let handle = &running.handle;
    handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "sleeper"), 0);
    // Without a pong, the session is full: the device has bytes that it has not processed.
    device.tcp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let chunk = random::bytes(9, 64 * 1024);
    loop {
        device.data("s", &chunk);
        device.ping(b"?");
        match device.socket.read() {
            Ok(message) if message.is_pong() => {}
            _ => break,
        }
    }
    let processed = Moved::shown(handle).from_cloud;
    reset_on_close(&device.tcp);
    drop(device);
    running.expect(EventKind::Disconnect, "t");
    let shown = Moved::shown(handle);
    assert!(shown.from_cloud > processed, "{shown:?}, {processed} before");
    assert_eq!(closed.recv_timeout(TIMEOUT).unwrap(), shown.from_cloud);
    go.send(()).unwrap();
    // What the service gets was counted before, though it is delivered only now.
    let received = told.recv_timeout(TIMEOUT).expect("the service sees the end");
    assert!(received > processed && received <= shown.from_cloud, "{received}, {shown:?}");
    assert_eq!(Moved::shown(handle), shown);
}
