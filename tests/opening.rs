//! The opening handshake, as a server sees and answers it.

use std::io::{Read, Write};
use std::net::TcpStream;

use aiot_tunnel::EventKind;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::wait;
use tungstenite::handshake::derive_accept_key;

/// Reads the request: its `Sec-WebSocket-Key`.
fn read_request(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    key.expect("a key").to_owned()
}

#[test]
fn interim_answers_before_the_101_are_skipped() {
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut stream = wait::accept(&cloud.listener);
    let key = read_request(&mut stream);
    let accept = derive_accept_key(key.as_bytes());
    let answers = format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
         HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    // However they are cut.
    for byte in answers.bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    running.expect(EventKind::Connect, "t");
}
