//! The gateway between two WebSocket clients by tungstenite.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use aiot_tunnel::gateway::{Gateway, GatewayBuilder, Side};
use aiot_tunnel::{Token, TunnelId};
use aiot_tunnel_models::handshake;
use aiot_tunnel_testkit::certificates::{connector, Identity};
use aiot_tunnel_testkit::frame::{self, code};
use aiot_tunnel_testkit::gateways::{connect, connect_over, tcp, tunnel, tunnel_with_tokens};
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::TIMEOUT;
use aiot_tunnel_testkit::{logs, ACCESS_TOKEN, DEVICE_TOKEN};
use proptest::prelude::*;
use serde_json::{json, Value};
use tungstenite::Message;

/// A client without TLS.
type Client = TunnelEnd<TcpStream>;

fn start(builder: GatewayBuilder) -> Gateway {
    logs::keep();
    builder.tunnel(tunnel("t1")).start("127.0.0.1:0".parse().unwrap()).unwrap()
}

fn gateway() -> (Gateway, TunnelId) {
    (start(Gateway::builder().session_limit(2)), TunnelId::new("t1").unwrap())
}

/// The device's end of the tunnel `t1`.
fn device(gateway: &Gateway) -> Client {
    connect(gateway.local_addr(), "/tunnel/t1/dest", Some(DEVICE_TOKEN)).unwrap()
}

/// An access side of the tunnel `t1`.
fn access(gateway: &Gateway) -> Client {
    connect(gateway.local_addr(), "/tunnel/t1/source", Some(ACCESS_TOKEN)).unwrap()
}

fn pair(gateway: &Gateway) -> (Client, Client) {
    (device(gateway), access(gateway))
}

/// Opens a session; the access side's frame id is `frame_id`.
fn open<D, A>(device: &mut TunnelEnd<D>, access: &mut TunnelEnd<A>, frame_id: u64) -> String
where
    D: Read + Write,
    A: Read + Write,
{
    let create = json!({"frame_type": 2, "frame_id": frame_id, "service_type": "_SSH"});
    access.send(create, b"");
    let (header, _) = device.receive();
    assert_eq!((&header["frame_type"], &header["service_type"]), (&json!(2), &json!("_SSH")));
    let session = header["session_id"].as_str().unwrap().to_owned();
    let mut answer = header.clone();
    answer["frame_type"] = json!(1);
    device.send(answer, br#"{"code":0,"msg":"ok"}"#);
    let (header, payload) = access.receive();
    assert_eq!((&header["frame_type"], &header["frame_id"]), (&json!(1), &json!(frame_id)));
    assert_eq!(header["session_id"], json!(session));
    assert_eq!(payload, br#"{"code":0,"msg":"ok"}"#);
    session
}

#[test]
fn only_the_right_token_opens_an_end() {
    let (gateway, _) = gateway();
    let status = |path, token| connect(gateway.local_addr(), path, token).err();
    assert_eq!(status("/tunnel/t1/dest", None), Some(401));
    assert_eq!(status("/tunnel/t1/dest", Some(ACCESS_TOKEN)), Some(401));
    assert_eq!(status("/tunnel/t1/source", Some(DEVICE_TOKEN)), Some(401));
    // An unknown tunnel is not an expired one.
    assert_eq!(status("/tunnel/t2/dest", Some(DEVICE_TOKEN)), Some(404));
    assert_eq!(status("/tunnel/t2/source", None), Some(404));
    assert_eq!(status("/tunnel/t1/other", Some(DEVICE_TOKEN)), Some(404));
    assert_eq!(status("/tunnel/t1/dest?x=y", Some(DEVICE_TOKEN)), None);
}

#[test]
fn a_session_is_relayed_both_ways_until_its_release() {
    let (gateway, _) = gateway();
    let (mut device, mut access) = pair(&gateway);
    let session = open(&mut device, &mut access, 41);

    let data = |n| json!({"frame_type": 4, "session_id": session, "frame_id": n});
    access.send(data(42), b"to the device");
    assert_eq!(device.receive().1, b"to the device");
    device.send(data(1), b"from the device");
    assert_eq!(access.receive().1, b"from the device");

    device.release(&session, 2, r#"{"code":1,"msg":"bye"}"#);
    let (header, payload) = access.receive();
    assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), 1));
    // Late data of an ended session is dropped. Data of a session that never existed is answered once.
    access.send(data(43), b"late");
    for n in 44..46 {
        access.send(json!({"frame_type": 4, "session_id": "made up", "frame_id": n}), b"x");
    }
    let (header, _) = access.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("made up")));
    open(&mut device, &mut access, 46);
}

#[test]
fn data_that_is_too_long_to_keep_ends_its_session_at_both_ends() {
    let (gateway, _) = gateway();
    let (mut device, mut access) = pair(&gateway);
    let lengths = [(65_537, true), (100_000, true), (65_537, false), (100_000, false)];
    for (frame_id, (length, by_device)) in (1..).zip(lengths) {
        let session = open(&mut device, &mut access, frame_id);
        let data = json!({"frame_type": 4, "session_id": session, "frame_id": 1});
        let from = if by_device { &mut device } else { &mut access };
        from.send(data.clone(), &vec![0; length]);
        // Further data would look like the continuation.
        from.send(data, b"the rest");
        for (end, expected) in [(&mut device, 2), (&mut access, 3)] {
            let (header, payload) = end.receive();
            assert_eq!(
                (&header["frame_type"], &header["session_id"]),
                (&json!(3), &json!(session))
            );
            assert_eq!(code(&payload), expected);
            assert!(String::from_utf8_lossy(&payload).contains("longer than 64 KiB"));
        }
    }
    // A release ends its session, although nobody can read why.
    for (frame_id, by_device) in [(5, true), (6, false)] {
        let session = open(&mut device, &mut access, frame_id);
        let release = json!({"frame_type": 3, "session_id": session, "frame_id": 1});
        let from = if by_device { &mut device } else { &mut access };
        from.send(release, &vec![b'x'; 70_000]);
        for (end, expected) in [(&mut device, 2), (&mut access, 3)] {
            let (header, payload) = end.receive();
            assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), expected));
        }
    }
    // A session that is not answered yet.
    access.send(json!({"frame_type": 2, "frame_id": 9, "service_type": "_SSH"}), b"");
    let session = device.receive().0["session_id"].clone();
    device.send(json!({"frame_type": 4, "session_id": session, "frame_id": 1}), &[0; 65_537]);
    let (header, payload) = access.receive();
    assert_eq!((&header["frame_id"], code(&payload)), (&json!(9), 2));
    assert_eq!(code(&device.receive().1), 2);
}

#[test]
fn data_with_an_unusable_header_ends_its_session_at_both_ends() {
    let (gateway, _) = gateway();
    let (mut device, mut access) = pair(&gateway);
    for (frame_id, by_device) in [(1, true), (2, false)] {
        let session = open(&mut device, &mut access, frame_id);
        let from = if by_device { &mut device } else { &mut access };
        let header = format!(r#"{{"frame_type":4,"session_id":"{session}","frame_id":-5}}"#);
        from.send_message(frame::tunnel(&header, b"lost"));
        from.send(json!({"frame_type": 4, "session_id": session, "frame_id": 1}), b"the rest");
        for (end, expected) in [(&mut device, 2), (&mut access, 3)] {
            let (header, payload) = end.receive();
            assert_eq!(
                (&header["frame_type"], &header["session_id"]),
                (&json!(3), &json!(session))
            );
            assert_eq!(code(&payload), expected);
        }
    }
}

/// A stream that can hold back what is written, so that all of it arrives at once.
#[derive(Debug)]
struct Corked {
    stream: TcpStream,
    held: Option<Vec<u8>>,
}

impl Read for Corked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Corked {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.held {
            Some(held) => held.write(bytes),
            None => self.stream.write(bytes),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_comes_in_one_piece_with_the_end_of_a_tls_connection_is_delivered() {
    let Identity { certificate, key } = Identity::self_signed();
    let gateway = start(Gateway::builder().tls_pem(&certificate, &key).unwrap());
    let connector = connector(&certificate);
    let join = |path, token| {
        let tcp = tcp(gateway.local_addr());
        let stream = Corked { stream: tcp.try_clone().unwrap(), held: None };
        let stream = connector.connect("127.0.0.1", stream).unwrap();
        connect_over(stream, tcp, path, Some(token)).unwrap_or_else(|e| panic!("{e}"))
    };
    // With a close frame before the end, and without one.
    for closes in [true, false] {
        let mut device = join("/tunnel/t1/dest", DEVICE_TOKEN);
        let mut access = join("/tunnel/t1/source", ACCESS_TOKEN);
        let session = open(&mut device, &mut access, 41);
        device.socket.get_mut().get_mut().held = Some(Vec::new());
        for n in 1..4 {
            let data = json!({"frame_type": 4, "session_id": session, "frame_id": n});
            device.send(data, &[n; 3000]);
        }
        device.release(&session, 4, r#"{"code":1,"msg":"bye"}"#);
        if closes {
            device.socket.close(None).unwrap();
        }
        let tls = device.socket.get_mut();
        tls.shutdown().unwrap();
        let corked = tls.get_mut();
        let held = corked.held.take().unwrap();
        corked.write_all(&held).unwrap();

        for n in 1..4 {
            assert_eq!(access.receive().1, [n; 3000]);
        }
        let (header, payload) = access.receive();
        assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), 1));
    }
}

#[test]
fn refusals_and_losses_have_their_codes() {
    let (gateway, _) = gateway();
    let (mut device, mut access) = pair(&gateway);
    let first = open(&mut device, &mut access, 1);
    open(&mut device, &mut access, 2);
    access.send(json!({"frame_type": 2, "frame_id": 3, "service_type": "_SSH"}), b"");
    let (header, payload) = access.receive();
    assert_eq!((&header["frame_id"], code(&payload)), (&json!(3), 1));

    drop(device);
    for _ in 0..2 {
        let (header, payload) = access.receive();
        assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), 3));
    }
    access.send(json!({"frame_type": 2, "frame_id": 4, "service_type": "_SSH"}), b"");
    assert_eq!(code(&access.receive().1), 2);

    let mut device = self::device(&gateway);
    let second = open(&mut device, &mut access, 5);
    assert_ne!(first, second);
    drop(access);
    let (header, payload) = device.receive();
    assert_eq!((&header["session_id"], code(&payload)), (&json!(second), 2));
}

#[test]
fn expiry_closes_both_ends_and_refuses_the_tokens() {
    let (gateway, id) = gateway();
    let (mut device, mut access) = pair(&gateway);
    gateway.expire(&id).unwrap();
    assert_eq!(device.receive_close(), Some(4001));
    assert_eq!(access.receive_close(), Some(4001));
    let again = connect(gateway.local_addr(), "/tunnel/t1/dest", Some(DEVICE_TOKEN));
    assert_eq!(again.err(), Some(401));
}

#[test]
fn a_tunnel_expires_at_the_time_of_its_configuration() {
    let (gateway, _) = gateway();
    let now = SystemTime::now();
    gateway.add_tunnel(tunnel("t1").with_expires(now - Duration::from_secs(3600))).unwrap();
    let late = connect(gateway.local_addr(), "/tunnel/t1/dest", Some(DEVICE_TOKEN));
    assert_eq!(late.err(), Some(401));
    gateway.add_tunnel(tunnel("t1").with_expires(now + Duration::from_secs(3600))).unwrap();
    let (mut device, mut access) = pair(&gateway);
    gateway.add_tunnel(tunnel("t1").with_expires(SystemTime::UNIX_EPOCH)).unwrap();
    assert_eq!(device.receive_close(), Some(4001));
    assert_eq!(access.receive_close(), Some(4001));
    gateway.add_tunnel(tunnel("t1")).unwrap();
    pair(&gateway);
}

#[test]
fn much_data_passes_a_slow_reader_unharmed() {
    let (gateway, _) = gateway();
    let (mut device, mut access) = pair(&gateway);
    let session = open(&mut device, &mut access, 1);
    let (sent, going) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        for n in 0..3000u32 {
            let header = json!({"frame_type": 4, "session_id": session, "frame_id": n + 1});
            device.send(header, &[n as u8; 4096]);
            if n == 100 {
                sent.send(()).unwrap();
            }
        }
        device
    });
    // More data than the gateway queues: the kernels hold the rest.
    going.recv_timeout(TIMEOUT).unwrap();
    for n in 0..3000u32 {
        assert_eq!(access.receive().1, [n as u8; 4096]);
    }
    writer.join().unwrap();
}

#[test]
fn a_session_asked_for_right_after_the_devices_101_reaches_the_device() {
    let (gateway, _) = gateway();
    let mut access = access(&gateway);
    let mut before = None;
    for n in 1..=300 {
        let mut device = device(&gateway);
        access.send(json!({"frame_type": 2, "frame_id": n, "service_type": "_SSH"}), b"");
        if before.replace(n).is_some() {
            // The answer for the device that this one has replaced.
            let (header, payload) = access.receive();
            assert_eq!((&header["frame_id"], code(&payload)), (&json!(n - 1), 2));
        }
        let (header, _) = device.receive();
        assert_eq!(header["frame_type"], 2, "the {n}th");
    }
}

/// Reads to the end; whether the last frame is a close frame with this code. It reads fast, because
/// the gateway gives a peer only 2 s to read its close frame.
fn ends_with_close(stream: &mut TcpStream, code: u16) -> bool {
    let close = frame::server(frame::CLOSE, &code.to_be_bytes());
    let (mut last, mut chunk) = (Vec::new(), vec![0; 1 << 20]);
    while !last.ends_with(&close) {
        match stream.read(&mut chunk) {
            Ok(length) if length > 0 => last.extend_from_slice(&chunk[..length]),
            _ => return false,
        }
        last.drain(..last.len().saturating_sub(close.len()));
    }
    true
}

#[test]
fn an_access_connection_that_reads_nothing_is_closed_and_its_siblings_go_on() {
    let gateway = start(Gateway::builder().stall_timeout(Duration::from_millis(300)));
    let (mut device, mut silent) = pair(&gateway);
    let mut sibling = access(&gateway);
    let stuck = open(&mut device, &mut silent, 1);
    let moving = open(&mut device, &mut sibling, 1);
    let device_tcp = device.tcp.try_clone().unwrap();
    let closed = std::thread::spawn(move || {
        // The first frame to the device is the release.
        assert_eq!(device_tcp.peek(&mut [0]).unwrap(), 1);
        ends_with_close(&mut silent.tcp, 1008)
    });
    // More data than all kernels on the way hold.
    for n in 0..400 {
        device.send(json!({"frame_type": 4, "session_id": stuck, "frame_id": n}), &[7; 65_536]);
    }
    device.send(json!({"frame_type": 4, "session_id": moving, "frame_id": 9}), b"go on");
    assert_eq!(sibling.receive().1, b"go on");
    let (header, payload) = device.receive();
    assert_eq!(
        (&header["frame_type"], &header["session_id"], code(&payload)),
        (&json!(3), &json!(stuck), 2)
    );
    assert!(closed.join().unwrap());
    sibling.send(json!({"frame_type": 4, "session_id": moving, "frame_id": 9}), b"and back");
    assert_eq!(device.receive().1, b"and back");
}

/// Whether a connection ends with a frame that holds this text.
fn ends_with(stream: &mut TcpStream, text: &[u8]) -> bool {
    let mut all = Vec::new();
    // It may be reset after the text.
    let _ = stream.read_to_end(&mut all);
    all.windows(text.len()).any(|bytes| bytes == text)
}

/// The head of the gateway's answer to these bytes, or as much of it as comes.
fn answer(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = tcp(address);
    // The gateway need not read all of it.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(length) if length > 0 => answer.extend_from_slice(&chunk[..length]),
            _ => break,
        }
    }
    String::from_utf8(answer).unwrap()
}

const UPGRADE: &str = "Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn no_trick_makes_an_access_token_a_device_token() {
    let (gateway, _) = gateway();
    let status = |target: &str, tokens: &[&str]| {
        let tokens: String =
            tokens.iter().map(|token| format!("tunnel-access-token: {token}\r\n")).collect();
        let request = format!("GET {target} HTTP/1.1\r\n{UPGRADE}{tokens}\r\n");
        answer(gateway.local_addr(), request.as_bytes())[9..12].to_owned()
    };
    assert_eq!(status("/tunnel/t1/dest", &[DEVICE_TOKEN]), "101");
    assert_eq!(status("/tunnel/t1/source", &[ACCESS_TOKEN]), "101");
    for (target, expected) in [
        ("/tunnel/t1/dest", "401"),
        ("/tunnel/t1/dest?/tunnel/t1/source", "401"),
        ("/tunnel/t1/dest/../source", "404"),
        ("/tunnel/t1/source/../dest", "404"),
        ("/tunnel/t1/source/", "404"),
        ("/tunnel/t1/./dest", "404"),
        ("/tunnel/t1//dest", "404"),
        ("//tunnel/t1/dest", "404"),
        ("/tunnel//dest", "404"),
        ("/tunnel/%74%31/dest", "404"),
        ("/tunnel/t1/%64est", "404"),
        ("/tunnel/t1%2Fdest", "404"),
        ("/tunnel/t1/dest%00", "404"),
        ("/tunnel/t1/dest#/source", "404"),
        ("/tunnel/t1/DEST", "404"),
        ("http://gateway/tunnel/t1/dest", "404"),
        ("http://gateway/tunnel/t1/source", "404"),
    ] {
        assert_eq!(status(target, &[ACCESS_TOKEN]), expected, "{target}");
    }
    for target in ["/tunnel/t1/dest", "/tunnel/t1/source"] {
        for tokens in [
            [ACCESS_TOKEN, DEVICE_TOKEN],
            [DEVICE_TOKEN, ACCESS_TOKEN],
            [DEVICE_TOKEN, DEVICE_TOKEN],
            [ACCESS_TOKEN, ""],
        ] {
            assert_eq!(status(target, &tokens), "400", "{target} {tokens:?}");
        }
        let both = format!("{ACCESS_TOKEN}, {DEVICE_TOKEN}");
        for token in [
            &both,
            "",
            &ACCESS_TOKEN[..9],
            &format!("{ACCESS_TOKEN}x"),
            &format!("{DEVICE_TOKEN}x"),
        ] {
            assert_eq!(status(target, &[token]), "401", "{target} {token}");
        }
    }
}

#[test]
fn garbage_and_endless_heads_are_answered_and_forgotten() {
    let (gateway, _) = gateway();
    let address = gateway.local_addr();
    let long = format!("GET /tunnel/t1/dest HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(17_000));
    assert!(answer(address, long.as_bytes()).starts_with("HTTP/1.1 431 "));
    let endless = "GET /tunnel/t1/dest HTTP/1.1\r\n".to_owned() + &"x: y\r\n".repeat(30_000);
    assert!(answer(address, endless.as_bytes()).starts_with("HTTP/1.1 431 "));
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"\0\0\0\0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
    ] {
        assert!(answer(address, garbage).starts_with("HTTP/1.1 400 "), "{garbage:?}");
    }
    // The client can read the refusal although its request is followed by more bytes.
    let request = format!("GET /tunnel/t1/dest HTTP/1.1\r\n{UPGRADE}\r\n{}", "z".repeat(100_000));
    assert!(answer(address, request.as_bytes()).starts_with("HTTP/1.1 401 "));
    pair(&gateway);
}

/// A connection to the gateway from another address of this machine.
fn from_elsewhere(gateway: &Gateway) -> TcpStream {
    use rustix::net::{bind, connect, socket, AddressFamily, SocketType};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    connect(&socket, &gateway.local_addr()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

#[test]
fn who_holds_handshakes_open_loses_them_to_newcomers_and_to_time() {
    let slow = Duration::from_secs(600);
    let gateway = start(Gateway::builder().handshake_limit(4).handshake_timeout(slow));
    let mut idle: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = from_elsewhere(&gateway);
            let _ = stream.write_all(b"GET /tunnel/t1/dest HTTP/1.1\r\nx: ");
            stream
        })
        .collect();
    // A client with another address does not wait for them.
    for (end, token) in [("dest", DEVICE_TOKEN), ("source", ACCESS_TOKEN)] {
        let request = format!(
            "GET /tunnel/t1/{end} HTTP/1.1\r\n{UPGRADE}tunnel-access-token: {token}\r\n\r\n"
        );
        assert!(answer(gateway.local_addr(), request.as_bytes()).starts_with("HTTP/1.1 101 "));
    }
    // The first of them was cut off.
    match idle[0].read(&mut [0; 10]) {
        Ok(length) => assert_eq!(length, 0),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
    drop(gateway);

    let short = Duration::from_millis(200);
    let gateway = start(Gateway::builder().handshake_timeout(short));
    let mut dripping = TcpStream::connect(gateway.local_addr()).unwrap();
    dripping.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    // A byte from time to time does not extend the time limit.
    loop {
        let written = dripping.write_all(b"x");
        match dripping.read(&mut [0; 10]) {
            Ok(0) => break,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && written.is_ok() => {}
            Err(_) => break,
            Ok(_) => panic!("an answer to nothing"),
        }
        assert!(Instant::now() < deadline, "the connection is still open");
    }
}

#[test]
fn of_many_clients_that_come_at_once_each_is_admitted_at_its_first_attempt() {
    const CLIENTS: usize = 400;
    let gateway = start(Gateway::builder().access_limit(CLIENTS).handshake_limit(4));
    let request = format!(
        "GET /tunnel/t1/source HTTP/1.1\r\n{UPGRADE}tunnel-access-token: {ACCESS_TOKEN}\r\n\r\n"
    );
    // On a slow network, nobody's request has arrived whole when the last client connects.
    let (first, rest) = request.as_bytes().split_at(20);
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| tcp(gateway.local_addr())).collect();
    for client in &mut clients {
        client.write_all(first).unwrap();
    }
    for client in &mut clients {
        client.write_all(rest).unwrap();
    }
    for client in &mut clients {
        let mut answer = [0; 13];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101 ");
    }
}

#[test]
fn more_connections_than_allowed_are_told_so_until_one_goes() {
    let gateway = start(Gateway::builder().access_limit(2).connection_limit(4));
    gateway.add_tunnel(tunnel("t2")).unwrap();
    let address = gateway.local_addr();
    let join = |path: &str, token| connect(address, path, Some(token));
    let first = join("/tunnel/t1/source", ACCESS_TOKEN).ok().unwrap();
    let _second = join("/tunnel/t1/source", ACCESS_TOKEN).ok().unwrap();
    assert_eq!(join("/tunnel/t1/source", ACCESS_TOKEN).err(), Some(503));
    // A tunnel whose access connections are all in use still admits its device, and the gateway
    // still admits another tunnel.
    let _device = join("/tunnel/t1/dest", DEVICE_TOKEN).ok().unwrap();
    let _other = join("/tunnel/t2/source", ACCESS_TOKEN).ok().unwrap();
    assert_eq!(join("/tunnel/t2/dest", DEVICE_TOKEN).err(), Some(503));
    assert_eq!(join("/tunnel/t2/dest", ACCESS_TOKEN).err(), Some(401));
    drop(first);
    let deadline = Instant::now() + TIMEOUT;
    while let Err(status) = join("/tunnel/t1/source", ACCESS_TOKEN) {
        assert_eq!(status, 503);
        assert!(Instant::now() < deadline, "the place does not become free");
    }
}

#[test]
fn a_device_replaces_its_own_connection_although_no_place_is_left() {
    let gateway = start(Gateway::builder().connection_limit(2));
    let mut first = device(&gateway);
    let mut access = access(&gateway);
    assert_eq!(
        connect(gateway.local_addr(), "/tunnel/t1/source", Some(ACCESS_TOKEN)).err(),
        Some(503)
    );
    // None of them answers the close frame.
    let replaced: Vec<Client> = (0..20).map(|_| device(&gateway)).collect();
    assert!(ends_with(&mut first.tcp, b"replaced by 127.0.0.1"));
    let mut last = device(&gateway);
    open(&mut last, &mut access, 1);
    drop(replaced);
    drop(access);
    // The places are counted right afterwards: one more access side, and no more.
    let deadline = Instant::now() + TIMEOUT;
    let again = loop {
        match connect(gateway.local_addr(), "/tunnel/t1/source", Some(ACCESS_TOKEN)) {
            Ok(client) => break client,
            Err(status) => assert_eq!(status, 503),
        }
        assert!(Instant::now() < deadline, "the place does not become free");
    };
    assert_eq!(
        connect(gateway.local_addr(), "/tunnel/t1/source", Some(ACCESS_TOKEN)).err(),
        Some(503)
    );
    drop(again);
}

#[test]
fn an_id_that_no_path_can_name_is_refused() {
    let (gateway, _) = gateway();
    for id in ["a/b", "a b", "a?b", "a#b", "é", ".", ".."] {
        assert!(gateway.add_tunnel(tunnel(id)).is_err(), "{id:?}");
    }
    for id in ["a%20b", "a.b", "...", "~!$&'()*+,;=:@-_"] {
        gateway.add_tunnel(tunnel(id)).unwrap();
        let path = format!("/tunnel/{id}/dest");
        let request =
            format!("GET {path} HTTP/1.1\r\n{UPGRADE}tunnel-access-token: {DEVICE_TOKEN}\r\n\r\n");
        assert!(answer(gateway.local_addr(), request.as_bytes()).contains(" 101 "), "{id:?}");
    }
}

#[test]
fn a_flooded_tunnel_and_a_flood_of_connections_leave_another_tunnel_alone() {
    let (gateway, _) = gateway();
    gateway.add_tunnel(tunnel("t2")).unwrap();
    let address = gateway.local_addr();
    let (mut device, mut access) = pair(&gateway);
    let over = AtomicBool::new(false);
    // These connect before the flood, which may cut handshakes off.
    let end = |client: Result<Client, u16>| client.unwrap_or_else(|e| panic!("{e}"));
    let mut client = end(connect(address, "/tunnel/t2/source", Some(ACCESS_TOKEN)));
    let _device = end(connect(address, "/tunnel/t2/dest", Some(DEVICE_TOKEN)));
    std::thread::scope(|scope| {
        // t2 sends garbage, creates and data without a session, and reads no answer.
        scope.spawn(move || {
            let create = json!({"frame_type": 2, "frame_id": 1, "service_type": "x"}).to_string();
            let create = frame::tunnel(&create, b"");
            for n in 0..5000u32 {
                let messages = [create.clone(), n.to_be_bytes().to_vec(), vec![0; 60_000]];
                for message in messages {
                    // The gateway may close the connection.
                    if client.socket.send(Message::binary(message)).is_err() {
                        return;
                    }
                }
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if let Ok(mut stream) = TcpStream::connect(address) {
                    let _ = stream.write_all(b"\x16\x03nonsense\r\n\r\n");
                }
            }
        });
        let session = open(&mut device, &mut access, 1);
        for n in 0..300 {
            let data = json!({"frame_type": 4, "session_id": session, "frame_id": n});
            access.send(data.clone(), &[n as u8; 500]);
            assert_eq!(device.receive().1, [n as u8; 500]);
            device.send(data, &[n as u8; 500]);
            assert_eq!(access.receive().1, [n as u8; 500]);
        }
        over.store(true, Ordering::Relaxed);
        // Ends the flood in the other tunnel if it is not over yet.
        gateway.expire(&TunnelId::new("t2").unwrap()).unwrap();
    });
}

#[test]
fn headers_are_the_gateways_own() {
    let (gateway, _) = gateway();
    let (mut device, mut access) = pair(&gateway);
    let session = open(&mut device, &mut access, 1);
    // A parser that ignores case would see another session here.
    let header = json!({
        "Session_Id": "another", "session_id": session, "frame_type": 4, "frame_id": 7, "x": {}
    });
    access.send(header, b"data");
    let (header, payload) = device.receive();
    let frame_id = header["frame_id"].clone();
    assert_eq!(header, json!({"frame_type": 4, "session_id": session, "frame_id": frame_id}));
    assert_eq!(payload, b"data");
    // A service type that no device has, so long that the header would exceed the limit.
    let create = json!({"frame_type": 2, "frame_id": 2, "service_type": "s".repeat(1990)});
    access.send(create, b"");
    let (header, payload) = access.receive();
    assert_eq!((&header["frame_id"], code(&payload)), (&json!(2), 2));
}

#[test]
fn frame_ids_increase_on_a_connection_whatever_its_sources_say() {
    let (gateway, _) = gateway();
    let (mut device, mut first) = pair(&gateway);
    let mut second = access(&gateway);
    let sessions = [open(&mut device, &mut first, 1), open(&mut device, &mut second, 1)];
    let mut last = 0;
    let mut check = |frame: (Value, Vec<u8>)| {
        let frame_id = frame.0["frame_id"].as_u64().unwrap();
        assert!(frame_id > last, "{frame_id} after {last}");
        last = frame_id;
    };
    for n in [700, 3, 3, 900] {
        for (access, session) in [&mut first, &mut second].into_iter().zip(&sessions) {
            access.send(json!({"frame_type": 4, "session_id": session, "frame_id": n}), b"x");
            check(device.receive());
        }
    }
    first.release(&sessions[0], 1, "{}");
    check(device.receive());
}

#[test]
fn a_removed_tunnel_is_closed_and_unknown_until_it_is_added_again() {
    let (gateway, id) = gateway();
    let (mut device, mut access) = pair(&gateway);
    gateway.remove_tunnel(&id).unwrap();
    let error = gateway.remove_tunnel(&id).unwrap_err();
    assert!(
        matches!(&error, aiot_tunnel::Error::UnknownTunnel(unknown) if *unknown == id),
        "{error}"
    );
    assert!(matches!(gateway.expire(&id), Err(aiot_tunnel::Error::UnknownTunnel(_))));
    let token = Token::new("hush-other").unwrap();
    assert!(matches!(
        gateway.set_token(&id, Side::Device, token),
        Err(aiot_tunnel::Error::UnknownTunnel(_))
    ));
    assert_eq!(device.receive_close(), Some(1001));
    assert_eq!(access.receive_close(), Some(1001));
    let again = connect(gateway.local_addr(), "/tunnel/t1/dest", Some(DEVICE_TOKEN));
    assert_eq!(again.err(), Some(404));
    gateway.add_tunnel(tunnel("t1")).unwrap();
    let (mut device, mut access) = pair(&gateway);
    open(&mut device, &mut access, 1);
}

#[test]
fn a_release_instead_of_an_answer_is_a_refusal() {
    let (gateway, _) = gateway();
    let (mut device, mut access) = pair(&gateway);
    access.send(json!({"frame_type": 2, "frame_id": 5, "service_type": "_SSH"}), b"");
    let session = device.receive().0["session_id"].clone();
    device.release(session.as_str().unwrap(), 1, r#"{"code":1,"msg":"no"}"#);
    let (header, payload) = access.receive();
    assert_eq!(
        (&header["frame_type"], &header["frame_id"], code(&payload)),
        (&json!(1), &json!(5), 2)
    );
}

/// Whether a gateway lets in a client that sends this head.
fn lets_in(head: &[u8]) -> bool {
    static GATEWAY: OnceLock<Gateway> = OnceLock::new();
    let gateway = GATEWAY.get_or_init(|| {
        let (device_token, access_token) = (handshake::DEVICE_TOKEN, handshake::ACCESS_TOKEN);
        let tunnel = tunnel_with_tokens(handshake::TUNNEL, device_token, access_token);
        Gateway::builder().tunnel(tunnel).start("127.0.0.1:0".parse().unwrap()).unwrap()
    });
    let mut client = tcp(gateway.local_addr());
    client.write_all(head).unwrap();
    if !head.ends_with(b"\r\n\r\n") {
        // The gateway waits for the rest of it.
        client.shutdown(Shutdown::Write).unwrap();
    }
    let mut status = [0; "HTTP/1.1 101".len()];
    let lets_in = client.read_exact(&mut status).is_ok_and(|()| status.ends_with(b"101"));
    // Its end is waited for, so that each client is alone.
    let _ = client.shutdown(Shutdown::Write);
    let _ = client.read_to_end(&mut Vec::new());
    lets_in
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn only_the_right_token_for_the_right_end_is_let_in(
        kind: u8,
        data in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "(/tunnel|/|t1|dest|source|\\.\\.|%2f|\\?|#|http://x| |\t|hush-access|hush-device|\r\n|tunnel-access-token|:|x){0,12}"
                .prop_map(String::into_bytes),
        ],
    ) {
        let mut head = handshake::request_head(&[&[kind][..], &data].concat());
        if let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            head.truncate(end + 4);
        }
        let claim = handshake::request(&head);
        let is_right = claim.is_some_and(|claim| claim.is_right());
        prop_assert_eq!(lets_in(&head), is_right, "{:?}", String::from_utf8_lossy(&head));
    }
}
