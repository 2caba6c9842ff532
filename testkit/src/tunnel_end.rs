//! One end of a tunnel in a test's hands: a WebSocket by tungstenite that carries tunnel frames.
//!
//! [`cloud`](crate::cloud) accepts such an end from a device, [`gateways`](crate::gateways) connects
//! one to a gateway. How a connection is made does not belong here.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{json, Value};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, WebSocket};

use crate::frame;
use crate::sockets::is_temporary;
use crate::wait::TIMEOUT;

/// A plain or a TLS stream.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct TunnelEnd<S = Box<dyn Stream>> {
    pub socket: WebSocket<S>,
    /// The TCP connection below WebSocket and TLS.
    pub tcp: TcpStream,
    /// The path that the client has asked for.
    pub path: String,
}

impl<S: Read + Write> TunnelEnd<S> {
    /// Sends one tunnel frame.
    pub fn send(&mut self, header: Value, payload: &[u8]) {
        self.send_message(frame::tunnel(&header.to_string(), payload));
    }

    /// Sends one binary message, whatever is in it.
    pub fn send_message(&mut self, message: Vec<u8>) {
        self.socket.send(Message::binary(message)).unwrap();
    }

    /// Sends data of a session.
    pub fn data(&mut self, session: &str, payload: &[u8]) {
        self.send(json!({"frame_type": 4, "session_id": session, "frame_id": 9}), payload);
    }

    /// Ends a session; the payload is a status in JSON.
    pub fn release(&mut self, session: &str, frame_id: u64, payload: &str) {
        let header = json!({"frame_type": 3, "session_id": session, "frame_id": frame_id});
        self.send(header, payload.as_bytes());
    }

    pub fn ping(&mut self, payload: &'static [u8]) {
        self.socket.send(Message::Ping(payload.into())).unwrap();
    }

    /// Sends a close frame with a code.
    pub fn close(&mut self, code: u16) {
        self.socket.close(Some(CloseFrame { code: code.into(), reason: "".into() })).unwrap();
    }

    /// The next tunnel frame. Pings and pongs before it are left out.
    pub fn receive(&mut self) -> (Value, Vec<u8>) {
        loop {
            if let Message::Binary(message) = self.socket.read().unwrap() {
                let (header, payload) = frame::parse_tunnel(&message);
                return (header, payload.to_vec());
            }
        }
    }

    /// The next tunnel frame, if one comes within a time. The time is one for each read.
    pub fn receive_within(&mut self, time: Duration) -> Option<(Value, Vec<u8>)> {
        self.tcp.set_read_timeout(Some(time)).unwrap();
        let received = loop {
            match self.socket.read() {
                Ok(Message::Binary(message)) => {
                    let (header, payload) = frame::parse_tunnel(&message);
                    break Some((header, payload.to_vec()));
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(e)) if is_temporary(&e) => break None,
                Err(e) => panic!("{e}"),
            }
        };
        self.tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        received
    }

    /// Waits for a close frame, answers it, and gives its code. Frames before it are left out.
    pub fn receive_close(&mut self) -> Option<u16> {
        loop {
            if let Message::Close(frame) = self.socket.read().unwrap() {
                let _ = self.socket.flush();
                return frame.map(|frame| frame.code.into());
            }
        }
    }

    /// Asks a device for a session; the code of its answer.
    pub fn create(&mut self, session: &str, service: &str) -> i64 {
        let id = 1000 + session.len();
        self.send(
            json!({"frame_type": 2, "session_id": session, "frame_id": id, "service_type": service}),
            b"",
        );
        let (header, payload) = self.receive();
        assert_eq!(header["frame_type"], 1, "{header}");
        assert_eq!(header["session_id"], session);
        assert_eq!(header["frame_id"], id);
        assert_eq!(header["service_type"], service);
        frame::code(&payload)
    }

    /// Asks a gateway for a session, as an access side does; the answer's code and the session's id.
    pub fn ask(&mut self, service: &str) -> (i64, String) {
        self.send(json!({"frame_type": 2, "frame_id": 1, "service_type": service}), b"");
        let (header, payload) = self.receive();
        assert_eq!(
            (&header["frame_type"], &header["frame_id"]),
            (&json!(1), &json!(1)),
            "{header}"
        );
        let id = header["session_id"].as_str().unwrap_or_default();
        (frame::code(&payload), id.to_owned())
    }

    /// Answers the next request for a session, as a device does that speaks the platform's protocol
    /// and nothing else; the session's id.
    pub fn answer(&mut self, code: i64) -> String {
        let (create, _) = self.receive();
        assert_eq!(create["frame_type"], 2, "{create}");
        let id = create["session_id"].as_str().expect("a session's id").to_owned();
        let header = json!({
            "frame_type": 1,
            "frame_id": create["frame_id"],
            "session_id": id,
            "service_type": create["service_type"],
        });
        self.send(header, json!({"code": code, "msg": "said by a test"}).to_string().as_bytes());
        id
    }

    /// Receives a session's data up to its release; the bytes, and the release's code.
    pub fn receive_to_release(&mut self, session: &str) -> (Vec<u8>, i64) {
        let mut bytes = Vec::new();
        loop {
            let (header, payload) = self.receive();
            if header["session_id"] != session {
                continue;
            }
            match header["frame_type"].as_u64() {
                Some(3) => return (bytes, frame::code(&payload)),
                Some(4) => bytes.extend(payload),
                _ => {}
            }
        }
    }

    /// Receives so many bytes of one session; no other frame may come in between.
    pub fn receive_data(&mut self, session: &str, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let (header, payload) = self.receive();
            assert_eq!(header["frame_type"], 4, "{header} {}", String::from_utf8_lossy(&payload));
            assert_eq!(header["session_id"], session);
            assert!(payload.len() <= 4096);
            bytes.extend(payload);
        }
        bytes
    }

    /// Checks that a session can be opened, echoes, and can be released.
    pub fn check_echo(&mut self, session: &str, service: &str) {
        assert_eq!(self.create(session, service), 0);
        self.data(session, b"are you there?");
        assert_eq!(self.receive_data(session, 14), b"are you there?");
        self.release(session, 77, "{\"code\":0}");
        let (header, payload) = self.receive();
        assert_eq!(
            (&header["frame_type"], &header["frame_id"]),
            (&json!(1), &json!(77)),
            "{header}"
        );
        assert_eq!(frame::code(&payload), 0);
    }
}
