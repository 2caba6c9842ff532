//! Sessions that the gateway's own process opens: `Gateway::open_session`.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use aiot_tunnel::gateway::{AuditEvent, Gateway, LocalSession, Refusal, Way};
use aiot_tunnel::{ConnectParams, EventKind, Token};
use aiot_tunnel_testkit::gateways::tunnel;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{logs, random, services, DEVICE_TOKEN};

const CLIENT: &str = "192.0.2.7:1234";

/// What the audit has of a session or a refusal.
#[derive(Debug, Clone, PartialEq)]
enum Record {
    Ended { client: String, way: Way, bytes: (u64, u64) },
    Refused { client: String, way: Way, reason: Refusal },
}

/// A gateway with the tunnel `t1`, whose audit is kept.
fn gateway(sessions: usize) -> (Gateway, Arc<Mutex<Vec<Record>>>) {
    logs::keep();
    let records = Arc::new(Mutex::new(Vec::new()));
    let kept = records.clone();
    let gateway =
        Gateway::builder().tunnel(tunnel("t1")).session_limit(sessions).audit(move |event| {
            match event {
                AuditEvent::SessionEnded {
                    client, way, bytes_to_device, bytes_to_access, ..
                } => {
                    let (client, way) = ((*client).to_owned(), *way);
                    let bytes = (*bytes_to_device, *bytes_to_access);
                    kept.lock().unwrap().push(Record::Ended { client, way, bytes });
                }
                AuditEvent::Refused { client, way, reason, .. } => {
                    let (client, way, reason) = ((*client).to_owned(), *way, *reason);
                    kept.lock().unwrap().push(Record::Refused { client, way, reason });
                }
                _ => {}
            }
        });
    (gateway.start("127.0.0.1:0".parse().unwrap()).unwrap(), records)
}

/// A device of that tunnel, with the service `echo`.
fn device(gateway: &Gateway) -> Running {
    let device = Running::start(plain().service(services::echo("echo")));
    let address = gateway.local_addr();
    let params = ConnectParams::new(
        &address.ip().to_string(),
        address.port().try_into().unwrap(),
        "/tunnel/t1/dest",
        Token::new(DEVICE_TOKEN).unwrap(),
    );
    device.handle.add(&id("t1"), params.unwrap()).unwrap();
    device.expect(EventKind::Connect, "t1");
    device
}

fn open(gateway: &Gateway, service: &str) -> (UnixStream, LocalSession) {
    let (own, other) = UnixStream::pair().unwrap();
    own.set_read_timeout(Some(TIMEOUT)).unwrap();
    let session = gateway.open_session(other, &id("t1"), service, CLIENT).unwrap();
    (own, session)
}

/// The reason for which a session ends or is refused.
fn end(session: &LocalSession) -> String {
    wait::until("the end of the session", || session.end().is_some());
    session.end().unwrap()
}

#[test]
fn bytes_go_both_ways_and_the_audit_says_whose_they_were() {
    let (gateway, records) = gateway(10);
    let _device = device(&gateway);
    let (mut own, session) = open(&gateway, "echo");
    let bytes = random::bytes(1, 3_000_000);
    let mut writer = own.try_clone().unwrap();
    let sent = bytes.clone();
    let writes = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    own.read_to_end(&mut received).unwrap();
    writes.join().unwrap();
    assert!(received == bytes, "{} bytes", received.len());
    end(&session);
    let bytes = (bytes.len() as u64, bytes.len() as u64);
    let ended = Record::Ended { client: CLIENT.to_owned(), way: Way::Terminal, bytes };
    wait::until("the audit's line", || *records.lock().unwrap() == [ended.clone()]);
    // Nothing is left of the connection to the tunnel.
    let accesses = || gateway.activity(&id("t1")).unwrap().accesses.len();
    wait::until("the end of the access side", || accesses() == 0);
}

#[test]
fn a_session_that_cannot_be_had_ends_the_stream_at_once_and_says_why() {
    let (gateway, records) = gateway(1);
    let refused = |service: &str| {
        let (mut own, session) = open(&gateway, service);
        assert_eq!(own.read(&mut [0]).unwrap(), 0);
        end(&session)
    };
    let why = refused("echo");
    assert!(why.contains("device"), "{why}");
    let device = device(&gateway);
    let why = refused("other");
    assert!(why.contains("device"), "{why}");
    let (mut own, session) = open(&gateway, "echo");
    own.write_all(b"x").unwrap();
    own.read_exact(&mut [0]).unwrap();
    assert_eq!(session.end(), None);
    let why = refused("echo");
    assert!(why.contains("session"), "{why}");
    let reasons: Vec<_> = records.lock().unwrap().clone();
    let expected = [Refusal::DeviceAway, Refusal::Device, Refusal::Limit]
        .map(|reason| Record::Refused { client: CLIENT.to_owned(), way: Way::Terminal, reason });
    assert_eq!(reasons, expected);
    drop(device);
    assert_eq!(own.read(&mut [0]).unwrap(), 0);
    end(&session);
    gateway.remove_tunnel(&id("t1")).unwrap();
    let why = refused("echo");
    assert!(why.contains("no such tunnel"), "{why}");
    assert!(gateway.open_session(own, &id("t1"), "", CLIENT).is_err());
}

#[test]
fn a_removed_tunnel_and_a_gateway_that_stops_end_the_stream() {
    for ends in [
        |gateway: Gateway| {
            gateway.remove_tunnel(&id("t1")).unwrap();
            Some(gateway)
        },
        |gateway: Gateway| {
            gateway.shutdown();
            None
        },
    ] {
        let (gateway, _) = gateway(10);
        let _device = device(&gateway);
        let (mut own, session) = open(&gateway, "echo");
        own.write_all(b"x").unwrap();
        own.read_exact(&mut [0]).unwrap();
        let _gateway = ends(gateway);
        assert_eq!(own.read(&mut [0]).unwrap(), 0);
        end(&session);
    }
}
