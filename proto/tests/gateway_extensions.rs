//! The session extensions at the gateway, in frames as the specification writes them.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::connection::{Connection, Transport};
use aiot_tunnel_proto::gateway::{Tunnel, TunnelLimits, UPKEEP};
use aiot_tunnel_proto::websocket::{Role, Sender};
use aiot_tunnel_proto::{Ready, Side};
use serde_json::Value;

/// The byte stream between the gateway and one end.
#[derive(Default)]
struct Pipe {
    to_gateway: Vec<u8>,
    from_gateway: Vec<u8>,
    written: u64,
    is_paused: bool,
}

#[derive(Clone, Default)]
struct Line(Rc<RefCell<Pipe>>);

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let input = &mut self.0.borrow_mut().to_gateway;
        let length = buffer.len().min(input.len());
        buffer[..length].copy_from_slice(&input[..length]);
        input.drain(..length);
        if length == 0 {
            Err(ErrorKind::WouldBlock.into())
        } else {
            Ok(length)
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        if pipe.is_paused {
            return Err(ErrorKind::WouldBlock.into());
        }
        pipe.from_gateway.extend_from_slice(bytes);
        pipe.written += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Line {
    fn written(&self) -> u64 {
        self.0.borrow().written
    }
    fn unacked(&self) -> usize {
        0
    }
}

/// A gateway with a device and an access side.
struct Path {
    tunnel: Tunnel<Line, ()>,
    now: Instant,
    device: Line,
    access: Line,
}

type Heard = Vec<(Value, Vec<u8>)>;

impl Path {
    fn new() -> Self {
        let limits = TunnelLimits { sessions: 10, stall: Duration::from_secs(10), rate: None };
        let (mut tunnel, now) = (Tunnel::new(limits, ()), Instant::now());
        let (device, access) = (Line::default(), Line::default());
        for (side, line) in [(Side::Device, &device), (Side::Access, &access)] {
            tunnel.join(side, Connection::new(line.clone(), Role::Server, b"", UPKEEP, now), now);
        }
        Path { tunnel, now, device, access }
    }

    fn line(&self, side: Side) -> &Line {
        if side == Side::Device {
            &self.device
        } else {
            &self.access
        }
    }

    fn says(&mut self, side: Side, header: &str, payload: &[u8]) {
        let mut sender = Sender::new(Role::Client);
        let length = (header.len() as u16).to_be_bytes();
        sender.binary(&[&length[..], header.as_bytes()].concat(), payload);
        sender.flush(&mut self.line(side).0.borrow_mut().to_gateway).unwrap();
        self.turns();
    }

    fn turns(&mut self) {
        for _ in 0..50 {
            let all = |(_, read)| Ready { read, write: true };
            let ready: Vec<Ready> = self.tunnel.members().map(all).collect();
            self.tunnel.receive(self.now, &ready);
            self.tunnel.step(self.now);
        }
    }

    /// The frames that came to an end since the last call.
    fn hears(&mut self, side: Side) -> Heard {
        let bytes = std::mem::take(&mut self.line(side).0.borrow_mut().from_gateway);
        let mut rest = &bytes[..];
        let mut frames = Vec::new();
        while let [0x82, length, after @ ..] = rest {
            let (length, after) = match length {
                126 => (usize::from(u16::from_be_bytes([after[0], after[1]])), &after[2..]),
                127 => (u64::from_be_bytes(after[..8].try_into().unwrap()) as usize, &after[8..]),
                length => (usize::from(*length), after),
            };
            let (message, after) = after.split_at(length);
            let header = usize::from(u16::from_be_bytes([message[0], message[1]]));
            let (header, payload) = message[2..].split_at(header);
            frames.push((serde_json::from_slice(header).unwrap(), payload.to_vec()));
            rest = after;
        }
        assert!(rest.is_empty());
        frames
    }

    /// Opens a session. Returns its id, and what the two ends were told.
    fn opens(&mut self, offer: &str, terms: &str) -> (String, Value, Value) {
        let header = format!(r#"{{"frame_type":2,"frame_id":1,"service_type":"_SSH"{offer}}}"#);
        self.says(Side::Access, &header, b"");
        let (create, _) = self.hears(Side::Device).remove(0);
        let id = create["session_id"].as_str().unwrap().to_owned();
        let header = format!(
            r#"{{"frame_type":1,"frame_id":{},"session_id":"{id}"{terms}}}"#,
            create["frame_id"]
        );
        self.says(Side::Device, &header, br#"{"code":0,"msg":"success"}"#);
        let (response, _) = self.hears(Side::Access).remove(0);
        assert_eq!((&response["frame_type"], &response["frame_id"]), (&1.into(), &1.into()));
        (id, create, response)
    }

    fn sends(&mut self, side: Side, id: &str, fields: &str, payload: &[u8]) {
        let header = format!(r#"{{"frame_type":4,"frame_id":9,"session_id":"{id}"{fields}}}"#);
        self.says(side, &header, payload);
    }
}

fn credit(heard: &Heard) -> u64 {
    heard.iter().map(|(header, _)| header["credit"].as_u64().unwrap_or_default()).sum()
}

#[test]
fn the_fields_pass_and_nothing_else() {
    let mut path = Path::new();
    let (id, create, response) = path.opens(
        r#","ext":"zip,eof,credit","credit":5000,"zip":9"#,
        r#","ext":"eof,credit,zip","credit":7000,"zip":9"#,
    );
    assert_eq!((&create["ext"], &create["credit"]), (&"eof,credit".into(), &5000.into()));
    assert_eq!((&response["ext"], &response["credit"]), (&"eof,credit".into(), &7000.into()));
    assert!(create["zip"].is_null() && response["zip"].is_null());
    path.sends(Side::Access, &id, r#","credit":11"#, b"abc");
    let heard = path.hears(Side::Device);
    assert_eq!(credit(&heard), 11);
    assert_eq!(heard.iter().map(|(_, payload)| &payload[..]).collect::<Vec<_>>().concat(), b"abc");
    path.sends(Side::Access, &id, r#","eof":true"#, b"d");
    let (header, payload) = path.hears(Side::Device).remove(0);
    assert_eq!((&header["eof"], &payload[..]), (&true.into(), &b"d"[..]));
}

#[test]
fn a_device_that_knows_no_extension_gets_none() {
    let mut path = Path::new();
    let (id, _, response) = path.opens(r#","ext":"eof,credit","credit":5000"#, "");
    assert!(response["ext"].is_null() && response["credit"].is_null());
    path.sends(Side::Access, &id, r#","eof":true,"credit":-1"#, b"abc");
    let (header, payload) = path.hears(Side::Device).remove(0);
    assert!(header["eof"].is_null() && header["credit"].is_null() && payload == b"abc");
}

#[test]
fn what_a_device_declined_leaves_the_others_their_room() {
    let mut path = Path::new();
    for _ in 0..3 {
        path.opens(r#","ext":"credit","credit":2097152"#, "");
    }
    let terms = r#","ext":"credit","credit":1"#;
    let (_, create, _) = path.opens(r#","ext":"credit","credit":2097152"#, terms);
    assert_eq!(create["credit"], 2_097_152);
}

#[test]
fn a_frame_that_is_too_long_changes_nothing_in_a_session_that_has_ended() {
    let mut path = Path::new();
    let terms = r#","ext":"eof,credit","credit":400000"#;
    let (id, ..) = path.opens(r#","ext":"eof,credit","credit":400000"#, terms);
    path.device.0.borrow_mut().is_paused = true;
    (0..10).for_each(|_| path.sends(Side::Access, &id, "", &[7; 40_000]));
    let header = format!(r#"{{"frame_type":3,"frame_id":10,"session_id":"{id}"}}"#);
    path.says(Side::Access, &header, br#"{"code":0,"msg":"closed"}"#);
    path.sends(Side::Device, &id, "", &[7; 65_537]);
    path.device.0.borrow_mut().is_paused = false;
    path.now += Duration::from_millis(200);
    path.turns();
    let mut heard = path.hears(Side::Device);
    let (header, status) = heard.pop().unwrap();
    assert_eq!(header["frame_type"], 3);
    assert_eq!(status, br#"{"code":0,"msg":"closed"}"#);
    assert_eq!(heard.iter().map(|(_, payload)| payload.len()).sum::<usize>(), 400_000);
    assert!(path.hears(Side::Access).iter().all(|(header, _)| header["frame_type"] != 3));
}
