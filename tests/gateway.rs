//! The gateway between two plain WebSocket clients.
#![cfg(feature = "gateway")]

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use aiot_tunnel::gateway::{Gateway, TunnelConfig};
use aiot_tunnel::{Token, TunnelId};
use serde_json::{json, Value};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Error, Message, WebSocket};

const SUBPROTOCOL: &str = "aliyun.iot.securetunnel-v1.1";

struct Client(WebSocket<TcpStream>);

fn connect(address: SocketAddr, path: &str, token: Option<&str>) -> Result<Client, u16> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    if let Some(token) = token {
        headers.insert("tunnel-access-token", token.parse().unwrap());
    }
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(Client(socket)),
        Err(tungstenite::HandshakeError::Failure(Error::Http(response))) => {
            Err(response.status().as_u16())
        }
        Err(e) => panic!("{e}"),
    }
}

impl Client {
    fn send(&mut self, header: Value, payload: &[u8]) {
        let header = header.to_string();
        let mut bytes = (header.len() as u16).to_be_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(payload);
        self.0.send(Message::binary(bytes)).unwrap();
    }

    fn receive(&mut self) -> (Value, Vec<u8>) {
        loop {
            let Message::Binary(bytes) = self.0.read().unwrap() else { continue };
            let end = 2 + usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
            return (serde_json::from_slice(&bytes[2..end]).unwrap(), bytes[end..].to_vec());
        }
    }

    fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.0.read() {
                Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(e) => panic!("{e}"),
            }
        }
    }
}

fn gateway() -> (Gateway, TunnelId) {
    let id = TunnelId::new("t1").unwrap();
    let gateway = Gateway::builder()
        .session_limit(2)
        .tunnel(TunnelConfig {
            id: id.clone(),
            device_token: Token::new("device-token").unwrap(),
            access_token: Token::new("access-token").unwrap(),
            expires: None,
        })
        .start("127.0.0.1:0".parse().unwrap())
        .unwrap();
    (gateway, id)
}

fn pair(gateway: &Gateway) -> (Client, Client) {
    let address = gateway.local_addr();
    let device = connect(address, "/tunnel/t1/dest", Some("device-token"));
    let access = connect(address, "/tunnel/t1/source", Some("access-token"));
    (device.unwrap_or_else(|e| panic!("{e}")), access.unwrap_or_else(|e| panic!("{e}")))
}

/// Opens a session; the access side's frame id is `frame_id`.
fn open(device: &mut Client, access: &mut Client, frame_id: u64) -> String {
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

fn code(payload: &[u8]) -> i64 {
    serde_json::from_slice::<Value>(payload).unwrap()["code"].as_i64().unwrap()
}

#[test]
fn only_the_right_token_opens_an_end() {
    let (gateway, _) = gateway();
    let status = |path, token| connect(gateway.local_addr(), path, token).err();
    assert_eq!(status("/tunnel/t1/dest", None), Some(401));
    assert_eq!(status("/tunnel/t1/dest", Some("access-token")), Some(401));
    assert_eq!(status("/tunnel/t1/source", Some("device-token")), Some(401));
    assert_eq!(status("/tunnel/t2/dest", Some("device-token")), Some(401));
    assert_eq!(status("/tunnel/t1/other", Some("device-token")), Some(404));
    assert_eq!(status("/tunnel/t1/dest?x=y", Some("device-token")), None);
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

    let release = json!({"frame_type": 3, "session_id": session, "frame_id": 2});
    device.send(release, br#"{"code":1,"msg":"bye"}"#);
    let (header, payload) = access.receive();
    assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), 1));
    // Late data of an ended session is dropped; data of one that never was is answered once.
    access.send(data(43), b"late");
    for n in 44..46 {
        access.send(json!({"frame_type": 4, "session_id": "made up", "frame_id": n}), b"x");
    }
    let (header, _) = access.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("made up")));
    open(&mut device, &mut access, 46);
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

    let device = connect(gateway.local_addr(), "/tunnel/t1/dest", Some("device-token"));
    let mut device = device.unwrap_or_else(|e| panic!("{e}"));
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
    assert!(gateway.expire(&id));
    assert_eq!(device.close_code(), Some(4001));
    assert_eq!(access.close_code(), Some(4001));
    let again = connect(gateway.local_addr(), "/tunnel/t1/dest", Some("device-token"));
    assert_eq!(again.err(), Some(401));
}

#[test]
fn much_data_passes_a_slow_reader_unharmed() {
    let (gateway, _) = gateway();
    let (mut device, mut access) = pair(&gateway);
    let session = open(&mut device, &mut access, 1);
    let writer = std::thread::spawn(move || {
        for n in 0..3000u32 {
            let header = json!({"frame_type": 4, "session_id": session, "frame_id": n + 1});
            device.send(header, &[n as u8; 4096]);
        }
        device
    });
    std::thread::sleep(Duration::from_millis(300));
    for n in 0..3000u32 {
        assert_eq!(access.receive().1, [n as u8; 4096]);
    }
    writer.join().unwrap();
}
