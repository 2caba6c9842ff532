//! The session extensions at the device, in frames as the specification writes them.

use std::time::Duration;

use aiot_tunnel_models::relay::{Answer, ServiceEnd, SharedService, World, BAD_CREDITS};
use serde_json::Value;

const MANY: usize = 1 << 30;
const WINDOW: usize = 65_536;

/// A world whose cloud takes everything, and the frames of the device that were looked at.
struct Cloud {
    world: World,
    seen: usize,
}

impl Cloud {
    fn new() -> Self {
        Cloud { world: World::default(), seen: 0 }
    }

    /// A cloud with sessions `s0`, `s1` and so on, whose creates have these fields.
    fn with_sessions(count: usize, fields: &str) -> Self {
        let mut cloud = Cloud::new();
        (0..count).for_each(|id| cloud.creates(id, fields));
        cloud.hears();
        cloud
    }

    fn says(&mut self, header: &str, payload: &[u8]) {
        self.world.wire.state().frame(header, payload, 1);
        self.turn();
    }

    fn creates(&mut self, id: usize, fields: &str) {
        let frame_id = 700 + id;
        let header = format!(
            r#"{{"frame_type":2,"frame_id":{frame_id},"session_id":"s{id}","service_type":"v{id}"{fields}}}"#
        );
        self.says(&header, b"");
    }

    /// A data frame of a session with these fields.
    fn sends(&mut self, id: usize, fields: &str, payload: &[u8]) {
        let header = format!(r#"{{"frame_type":4,"frame_id":9,"session_id":"s{id}"{fields}}}"#);
        self.says(&header, payload);
    }

    fn releases(&mut self, id: usize) {
        let header = format!(r#"{{"frame_type":3,"session_id":"s{id}"}}"#);
        self.says(&header, br#"{"code":0,"msg":"done"}"#);
    }

    /// The worker's turns, until it would sleep.
    fn turn(&mut self) {
        for _ in 0..100 {
            {
                let mut wire = self.world.wire.state();
                (wire.arrived, wire.takes) = (MANY, MANY);
            }
            self.world.turn(false).unwrap();
            if !self.world.wakes() {
                return;
            }
        }
    }

    /// The frames that came since the last call.
    fn hears(&mut self) -> Vec<(Value, Vec<u8>)> {
        let mut frames = self.world.frames_of_device();
        let new = frames.split_off(self.seen);
        self.seen += new.len();
        new
    }

    /// The payload bytes, the credit, the end and the release of a session that came since the last
    /// call.
    fn heard(&mut self, id: usize) -> (usize, u64, bool, Option<String>) {
        let mut heard = (0, 0, false, None);
        for (header, payload) in self.hears() {
            if header["session_id"] != format!("s{id}") {
                continue;
            }
            if header["frame_type"] == 3 {
                let status: Value = serde_json::from_slice(&payload).unwrap();
                assert_eq!(status["code"], 1);
                heard.3 = Some(status["msg"].as_str().unwrap().to_owned());
            } else if header["frame_type"] == 4 {
                heard.0 += payload.len();
                heard.1 += header["credit"].as_u64().unwrap_or_default();
                heard.2 |= header["eof"] == true;
            }
        }
        heard
    }

    fn service(&self, nth: usize) -> SharedService {
        self.world.services.all()[nth].clone()
    }

    fn is_reset(&self, nth: usize) -> bool {
        self.service(nth).borrow().reset
    }
}

const BOTH: &str = r#","ext":"eof,credit","credit":1000"#;

#[test]
fn the_device_accepts_the_extensions_that_it_knows() {
    for (fields, names, credit) in [
        (r#","ext":"eof,credit","credit":1000"#, Some("eof,credit"), true),
        (r#","ext":"zip, credit ,eof","credit":0"#, Some("eof,credit"), true),
        (r#","ext":"eof""#, Some("eof"), false),
        (r#","ext":"credit","credit":1"#, Some("credit"), true),
        (r#","ext":"eof,credit""#, Some("eof"), false),
        (r#","ext":"eof,credit","credit":-1"#, Some("eof"), false),
        (r#","ext":"eof,credit","credit":"1""#, Some("eof"), false),
        (r#","ext":"credit","credit":9223372036854775808"#, None, false),
        (r#","ext":["eof"]"#, None, false),
        (r#","ext":"EOF""#, None, false),
        (r#","credit":1000"#, None, false),
        ("", None, false),
    ] {
        let mut cloud = Cloud::new();
        cloud.creates(0, fields);
        let (header, _) = cloud.hears().remove(0);
        assert_eq!((&header["frame_type"], &header["frame_id"]), (&1.into(), &700.into()));
        assert_eq!(header["ext"].as_str(), names, "{fields}");
        assert_eq!(header["credit"].as_u64(), credit.then_some(WINDOW as u64), "{fields}");
    }
}

#[test]
fn a_session_without_agreement_ignores_the_fields() {
    let mut cloud = Cloud::with_sessions(1, "");
    cloud.service(0).borrow_mut().takes = MANY;
    cloud.sends(0, r#","eof":true"#, b"abc");
    for text in BAD_CREDITS {
        cloud.sends(0, &format!(r#","credit":{text}"#), b"d");
    }
    assert_eq!(cloud.service(0).borrow().received, b"abcdddddddd");
    assert!(!cloud.service(0).borrow().shut);
    cloud.service(0).borrow_mut().sent = 100_000;
    cloud.turn();
    assert_eq!(cloud.heard(0), (100_000, 0, false, None));
}

#[test]
fn each_direction_ends_alone_and_the_device_releases_behind_both() {
    for service_is_last in [true, false] {
        let mut cloud = Cloud::with_sessions(1, BOTH);
        cloud.service(0).borrow_mut().takes = MANY;
        for ends_service in [!service_is_last, service_is_last] {
            if ends_service {
                cloud.service(0).borrow_mut().sent += 10;
                cloud.service(0).borrow_mut().ends(ServiceEnd::InOrder);
                cloud.turn();
                assert_eq!(cloud.service(0).borrow().shut, service_is_last);
            } else {
                cloud.sends(0, r#","eof":true"#, b"abc");
                let service = cloud.service(0);
                let service = service.borrow();
                assert!(service.shut && service.received == b"abc");
            }
            let is_over = cloud.world.relay.sessions().is_empty();
            assert_eq!(is_over, ends_service == service_is_last, "service last: {service_is_last}");
        }
        let (bytes, _, eof, why) = cloud.heard(0);
        assert_eq!((bytes, eof), (10, true));
        assert_eq!(why.as_deref(), Some("service v0 closed the connection"));
        assert!(!cloud.is_reset(0));
    }
}

#[test]
fn the_end_waits_behind_the_bytes_and_the_release_behind_their_delivery() {
    let mut cloud = Cloud::with_sessions(1, BOTH);
    cloud.sends(0, r#","eof":true"#, &[7; 5000]);
    cloud.service(0).borrow_mut().ends(ServiceEnd::InOrder);
    cloud.turn();
    let service = cloud.service(0);
    assert!(!service.borrow().shut && cloud.heard(0).3.is_none());
    service.borrow_mut().takes = 4999;
    cloud.turn();
    assert!(!service.borrow().shut && cloud.heard(0).3.is_none());
    service.borrow_mut().takes = 1;
    cloud.turn();
    assert!(service.borrow().shut && cloud.heard(0).3.is_some());
}

#[test]
fn a_release_before_both_ends_cuts_the_stream() {
    // Nobody, the cloud, the service, both have ended.
    for (cloud_ends, service_ends) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut cloud = Cloud::with_sessions(1, BOTH);
        cloud.sends(0, if cloud_ends { r#","eof":true"# } else { "" }, b"abc");
        if service_ends {
            cloud.service(0).borrow_mut().ends(ServiceEnd::InOrder);
            cloud.turn();
        }
        cloud.releases(0);
        cloud.service(0).borrow_mut().takes = MANY;
        cloud.turn();
        // What came is delivered all the same.
        assert_eq!(cloud.service(0).borrow().received, b"abc");
        assert_eq!(cloud.is_reset(0), !(cloud_ends && service_ends));
    }
}

#[test]
fn a_session_without_half_close_ends_in_order_with_its_release() {
    let mut cloud = Cloud::with_sessions(1, r#","ext":"credit","credit":5"#);
    cloud.service(0).borrow_mut().takes = MANY;
    cloud.sends(0, "", b"abc");
    cloud.releases(0);
    cloud.service(0).borrow_mut().ends(ServiceEnd::InOrder);
    cloud.turn();
    assert!(cloud.service(0).borrow().shut && !cloud.is_reset(0));
}

#[test]
fn the_device_sends_no_more_than_it_was_granted() {
    let mut cloud = Cloud::with_sessions(1, BOTH);
    cloud.service(0).borrow_mut().sent = 10_000;
    cloud.turn();
    assert_eq!(cloud.heard(0).0, 1000);
    cloud.sends(0, r#","credit":0"#, b"");
    assert_eq!(cloud.heard(0).0, 0);
    cloud.sends(0, r#","credit":5000"#, b"");
    cloud.turn();
    assert_eq!(cloud.heard(0).0, 5000);
    // Credit may come with data, and behind the end of the cloud's direction.
    cloud.sends(0, r#","eof":true,"credit":7"#, b"x");
    cloud.sends(0, r#","credit":3"#, b"");
    cloud.turn();
    let (bytes, credit, eof, why) = cloud.heard(0);
    assert_eq!((bytes, credit, eof, why), (10, 0, false, None));
}

/// One session breaks the protocol. It is cut, and a sibling goes on.
fn is_cut_alone(why: &str, breaks: impl FnOnce(&mut Cloud)) {
    let mut cloud = Cloud::with_sessions(2, BOTH);
    cloud.sends(0, "", b"abc");
    breaks(&mut cloud);
    assert_eq!(cloud.heard(0).3.as_deref(), Some(why));
    cloud.service(0).borrow_mut().takes = MANY;
    cloud.turn();
    assert!(cloud.is_reset(0) && cloud.service(0).borrow().received.starts_with(b"abc"));
    cloud.service(1).borrow_mut().takes = MANY;
    cloud.service(1).borrow_mut().sent = 5;
    cloud.sends(1, r#","eof":true"#, b"def");
    assert!(cloud.service(1).borrow().shut && !cloud.is_reset(1));
    assert_eq!(cloud.service(1).borrow().received, b"def");
    cloud.turn();
    assert_eq!(cloud.heard(1), (5, 0, false, None));
    // What comes late for the first stays without effect.
    cloud.sends(0, r#","credit":1"#, b"x");
    assert!(cloud.hears().is_empty());
}

#[test]
fn hostile_credit_cuts_its_session_alone() {
    for text in BAD_CREDITS {
        is_cut_alone("an impossible credit", |cloud| {
            cloud.sends(0, &format!(r#","credit":{text}"#), b"");
        });
    }
    is_cut_alone("an impossible credit", |cloud| {
        cloud.sends(0, r#","credit":9223372036854775000"#, b"");
    });
}

#[test]
fn more_data_than_was_granted_cuts_its_session_alone() {
    is_cut_alone("more data than was granted", |cloud| {
        cloud.sends(0, "", &vec![1; WINDOW - 3]);
        assert_eq!(cloud.heard(0).3, None);
        cloud.sends(0, "", b"x");
    });
}

#[test]
fn data_behind_the_end_cuts_its_session_alone() {
    is_cut_alone("data after the end of the stream", |cloud| {
        cloud.sends(0, r#","eof":true"#, b"");
        cloud.sends(0, r#","eof":true"#, b"");
        assert_eq!(cloud.heard(0).3, None);
        cloud.sends(0, "", b"x");
    });
}

#[test]
fn hostile_credit_for_a_session_that_is_being_opened_refuses_it() {
    let mut cloud = Cloud::new();
    cloud.world.services.next_connect(0, Answer::Later);
    cloud.creates(0, BOTH);
    cloud.sends(0, r#","credit":-1"#, b"");
    let (header, payload) = cloud.hears().remove(0);
    let status: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!((&header["frame_type"], &status["code"]), (&1.into(), &2.into()));
    assert!(header["ext"].is_null() && header["credit"].is_null());
}

#[test]
fn a_service_that_takes_nothing_stands_still_alone() {
    let mut cloud = Cloud::with_sessions(2, BOTH);
    cloud.service(1).borrow_mut().takes = MANY;
    cloud.sends(0, "", &vec![1; WINDOW]);
    for _ in 0..50 {
        cloud.sends(1, "", &[2; 4096]);
        assert!(cloud.world.relay.wants_input());
    }
    cloud.world.now += 3 * cloud.world.limits.stall_timeout;
    cloud.turn();
    assert_eq!(cloud.service(1).borrow().received.len(), 50 * 4096);
    assert_eq!(cloud.heard(0), (0, 0, false, None));
    assert_eq!(cloud.world.relay.sessions()[0].waiting(), WINDOW);
    cloud.service(0).borrow_mut().takes = MANY;
    cloud.turn();
    // All is granted again at once.
    assert!(cloud.heard(0).1 >= WINDOW as u64);
}

#[test]
fn what_is_granted_in_a_tunnel_has_a_limit_whatever_stands_still() {
    let mut cloud = Cloud::with_sessions(3, BOTH);
    let mut granted = [WINDOW as u64; 3];
    let mut sent = [0; 3];
    // One after the other takes a lot, and then nothing more.
    for id in 0..3 {
        for _ in 0..40 {
            cloud.service(id).borrow_mut().takes = MANY;
            cloud.world.now += Duration::from_millis(25);
            while sent[id] < granted[id] {
                let length = (granted[id] - sent[id]).min(65_536);
                cloud.sends(id, "", &vec![1; length as usize]);
                sent[id] += length;
            }
            granted[id] += cloud.heard(id).1;
        }
        cloud.service(id).borrow_mut().takes = 0;
        let length = (granted[id] - sent[id]) as usize;
        for part in vec![1; length].chunks(65_536) {
            cloud.sends(id, "", part);
        }
        sent[id] = granted[id];
    }
    let held: usize = cloud.world.relay.sessions().iter().map(|one| one.waiting()).sum();
    assert!(held <= 3 * WINDOW + 256 * 1024, "{held}");
}

#[test]
fn bytes_that_a_service_did_not_take_are_no_orderly_end() {
    let mut cloud = Cloud::with_sessions(1, BOTH);
    cloud.service(0).borrow_mut().ends(ServiceEnd::InOrder);
    cloud.turn();
    cloud.service(0).borrow_mut().ends(ServiceEnd::Gone);
    cloud.sends(0, r#","eof":true"#, b"abc");
    assert!(cloud.heard(0).3.is_some());
    assert!(cloud.is_reset(0));
}
