//! TLS records without application data, in any number: neither end of a tunnel works on them
//! without end.
//!
//! OpenSSL does not return from a read before there is data for its caller, so such records once
//! held the thread that read them for as long as they came.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::gateway::Gateway;
use aiot_tunnel::*;
use aiot_tunnel_testkit::certificates::{connector, Authority, Identity};
use aiot_tunnel_testkit::cloud::{answer, params};
use aiot_tunnel_testkit::gateways::{connect_over, tcp, tunnel};
use aiot_tunnel_testkit::manager::{id, Running};
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::{accept, TIMEOUT};
use aiot_tunnel_testkit::{logs, random, ACCESS_TOKEN, DEVICE_TOKEN};
use foreign_types::ForeignTypeRef;
use openssl::ssl::SslStream;
use rand::RngExt;
use serde_json::json;

extern "C" {
    fn SSL_key_update(ssl: *mut openssl_sys::SSL, kind: libc::c_int) -> libc::c_int;
    fn SSL_new_session_ticket(ssl: *mut openssl_sys::SSL) -> libc::c_int;
}

/// A TLS 1.3 message that brings no application data.
#[derive(Debug, Clone, Copy)]
enum Message {
    KeyUpdate,
    SessionTicket,
}

/// Only a flood that is read without end takes so long.
const FLOOD_TIMEOUT: Duration = Duration::from_secs(60);

/// Sends such a message. Returns false if the other end is gone.
fn send(stream: &mut SslStream<TcpStream>, message: Message) -> bool {
    let ssl = stream.ssl().as_ptr();
    let queued = match message {
        // SAFETY: the session is alive, and its handshake done. 0 asks for no answer.
        Message::KeyUpdate => unsafe { SSL_key_update(ssl, 0) },
        // SAFETY: the same.
        Message::SessionTicket => unsafe { SSL_new_session_ticket(ssl) },
    };
    assert_eq!(queued, 1);
    // OpenSSL ignores that a session ticket cannot be sent.
    stream.do_handshake().is_ok() && stream.get_ref().peer_addr().is_ok()
}

/// Sends such messages until the other end is gone. Returns whether it went in time.
fn flood(stream: &mut SslStream<TcpStream>, message: Message) -> bool {
    flood_with(stream, || message)
}

fn flood_with(stream: &mut SslStream<TcpStream>, mut next: impl FnMut() -> Message) -> bool {
    let deadline = Instant::now() + FLOOD_TIMEOUT;
    while Instant::now() < deadline {
        if !send(stream, next()) {
            return true;
        }
    }
    false
}

/// No test waits for this limit: what ends a flood is its length.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(600);

/// A device that trusts the authority, and a listener to which its tunnel connects.
fn device(authority: &Authority) -> (Running, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tls = TlsConfig::new().with_ca_pem(&authority.pem()).unwrap();
    let limits = Limits::new().with_handshake_timeout(HANDSHAKE_TIMEOUT);
    let builder = Manager::builder().security(Security::Tls(tls)).limits(limits);
    let running = Running::start(builder);
    let port = listener.local_addr().unwrap().port();
    running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
    (running, listener)
}

#[test]
fn a_server_that_sends_records_without_data_and_without_end_is_dropped() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("127.0.0.1");
    for message in [Message::KeyUpdate, Message::SessionTicket] {
        let (running, listener) = device(&authority);
        let stream = acceptor.accept(accept(&listener)).unwrap();
        let (mut socket, _) = answer(stream, |_| None).unwrap();
        running.expect(EventKind::Connect, "t");
        assert!(flood(socket.get_mut(), message), "{message:?}s are read without end");
        running.expect(EventKind::Disconnect, "t");
    }
}

/// Seeds of the mixed records.
const MIXES: u64 = 4;

#[test]
fn whatever_records_a_server_mixes_the_device_serves_it_or_drops_it() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("127.0.0.1");
    for seed in 0..MIXES {
        let mut random = random::part(seed, 0);
        let (running, listener) = device(&authority);
        let stream = acceptor.accept(accept(&listener)).unwrap();
        let tcp = stream.get_ref().try_clone().unwrap();
        let (socket, path) = answer(stream, |_| None).unwrap();
        running.expect(EventKind::Connect, "t");
        let mut cloud = TunnelEnd { socket, tcp, path };
        let mut any = move || match random.random_range(0..4) {
            0 => Message::SessionTicket,
            _ => Message::KeyUpdate,
        };
        // Some records without data between frames are nothing unusual.
        for round in 0..20 {
            for _ in 0..round {
                assert!(send(cloud.socket.get_mut(), any()), "seed {seed}: dropped too early");
            }
            assert_eq!(cloud.create(&format!("s{round}"), "none"), 2);
        }
        assert!(flood_with(cloud.socket.get_mut(), any), "seed {seed}: read without end");
        running.expect(EventKind::Disconnect, "t");
    }
}

#[test]
fn a_server_that_repeats_its_wish_for_a_handshake_without_end_is_dropped() {
    const HELLO_REQUEST: [u8; 9] = [22, 3, 3, 0, 4, 0, 0, 0, 0];
    let (_running, listener) = device(&Authority::new());
    let mut stream = accept(&listener);
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    let flood = HELLO_REQUEST.repeat(1000);
    let deadline = Instant::now() + FLOOD_TIMEOUT;
    // A ClientHello must come first. OpenSSL skips every HelloRequest while it waits for an answer.
    assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
    while stream.write_all(&flood).is_ok() {
        assert!(Instant::now() < deadline, "HelloRequests are read without end");
    }
}

type TlsEnd = TunnelEnd<SslStream<TcpStream>>;

/// A gateway with TLS and the tunnel `t1`, and the certificate that clients trust.
fn gateway() -> (Gateway, Vec<u8>) {
    logs::keep();
    let Identity { certificate, key } = Identity::self_signed();
    let gateway = Gateway::builder().tls_pem(&certificate, &key).unwrap();
    let gateway = gateway.tunnel(tunnel("t1")).handshake_timeout(HANDSHAKE_TIMEOUT);
    (gateway.start("127.0.0.1:0".parse().unwrap()).unwrap(), certificate)
}

/// A TLS connection to the gateway, before any request.
fn secured(gateway: &Gateway, certificate: &[u8]) -> (SslStream<TcpStream>, TcpStream) {
    let tcp = tcp(gateway.local_addr());
    let stream = tcp.try_clone().unwrap();
    (connector(certificate).connect("127.0.0.1", stream).unwrap(), tcp)
}

fn join(gateway: &Gateway, certificate: &[u8], path: &str, token: &str) -> TlsEnd {
    let (stream, tcp) = secured(gateway, certificate);
    connect_over(stream, tcp, path, Some(token)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn an_access_side_that_floods_the_gateway_with_key_updates_does_not_hold_its_tunnel_up() {
    let (gateway, certificate) = gateway();
    let mut device = join(&gateway, &certificate, "/tunnel/t1/dest", DEVICE_TOKEN);
    let mut access = join(&gateway, &certificate, "/tunnel/t1/source", ACCESS_TOKEN);
    let mut hostile = join(&gateway, &certificate, "/tunnel/t1/source", ACCESS_TOKEN);
    access.send(json!({"frame_type": 2, "frame_id": 1, "service_type": "_SSH"}), b"");
    let (mut header, _) = device.receive();
    let session = header["session_id"].as_str().unwrap().to_owned();
    header["frame_type"] = json!(1);
    device.send(header, br#"{"code":0,"msg":"ok"}"#);
    assert_eq!(access.receive().0["frame_type"], 1);
    let flooding = thread::spawn(move || flood(hostile.socket.get_mut(), Message::KeyUpdate));
    while !flooding.is_finished() {
        access.data(&session, b"are you there?");
        assert_eq!(device.receive().1, b"are you there?");
        device.data(&session, b"yes");
        assert_eq!(access.receive().1, b"yes");
    }
    assert!(flooding.join().unwrap(), "key updates are read without end");
    gateway.shutdown();
}

#[test]
fn a_client_that_floods_the_gateway_in_place_of_a_request_does_not_hold_it_up() {
    let (gateway, certificate) = gateway();
    let (mut stream, _tcp) = secured(&gateway, &certificate);
    assert!(flood(&mut stream, Message::KeyUpdate), "key updates are read without end");
    gateway.shutdown();
}
