//! Local services that are gone or hang must not keep the places of sessions.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use aiot_tunnel::{EventKind, Limits, Port, Service};
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::frame::code;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::sockets::reset_on_close;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::until_within;
use serde_json::json;

/// More sessions than a tunnel has places, for open and for ended ones together.
const MANY: usize = 20;

/// Asks for a session with half-close and flow control, until the device has a place for it.
fn create(device: &mut TunnelEnd<impl Read + Write>, session: &str, service: &str) {
    let header = json!({"frame_type": 2, "session_id": session, "frame_id": 7,
        "service_type": service, "ext": "eof,credit", "credit": 65_536});
    until_within("a place for the session", Duration::from_secs(30), || {
        device.send(header.clone(), b"");
        loop {
            let (answer, payload) = device.receive();
            if answer["frame_type"] == 1 && answer["frame_id"] == 7 {
                break code(&payload) == 0;
            }
        }
    });
}

/// A service that never reads, and whose kernel takes almost nothing either. Gives its streams.
fn deaf(name: &str) -> (Service, Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let port = Port::new(listener.local_addr().unwrap().port()).unwrap();
    let (keep, kept) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if keep.send(stream).is_err() {
                break;
            }
        }
    });
    (Service::new(name, "127.0.0.1", port).unwrap(), kept)
}

#[test]
fn services_that_reset_their_streams_keep_no_place() {
    let cloud = Cloud::plain();
    let (deaf, streams) = deaf("deaf");
    let running = Running::start(plain().service(deaf).service(echo("echo")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    for turn in 0..MANY {
        let session = format!("s{turn}");
        create(&mut device, &session, "deaf");
        device.data(&session, &[7; 60_000]);
        device.send(json!({"frame_type": 4, "session_id": session, "eof": true}), b"");
        let stream = streams.recv().unwrap();
        // Something has arrived, the rest waits in the device's kernel.
        stream.peek(&mut [0]).unwrap();
        reset_on_close(&stream);
        drop(stream);
        loop {
            let (header, _) = device.receive();
            if header["frame_type"] == 3 {
                break;
            }
        }
    }
    create(&mut device, "last", "echo");
}

#[test]
fn hanging_services_of_ended_sessions_give_their_places_to_newcomers() {
    let cloud = Cloud::plain();
    let (deaf, streams) = deaf("deaf");
    let mut limits = Limits::default();
    limits.stall_timeout = Duration::from_millis(200);
    let running = Running::start(plain().service(deaf).service(echo("echo")).limits(limits));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    let mut hanging = Vec::new();
    for turn in 0..MANY {
        // Half of them are cut, half end in order.
        let session = format!("s{turn}");
        create(&mut device, &session, "deaf");
        device.data(&session, &[7; 60_000]);
        let stream = streams.recv().unwrap();
        // Something has arrived, the rest waits in the device's kernel.
        stream.peek(&mut [0]).unwrap();
        hanging.push(stream);
        if turn % 2 == 1 {
            device.send(json!({"frame_type": 4, "session_id": session, "eof": true}), b"");
        }
        device.release(&session, 9, if turn % 2 == 0 { r#"{"code":2}"# } else { r#"{"code":0}"# });
    }
    create(&mut device, "last", "echo");
    drop(hanging);
}
