//! One tunnel in trouble changes nothing for the others.

mod common;
#[path = "common/troubles.rs"]
mod troubles;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use aiot_tunnel::*;
use common::*;
use troubles::*;

/// Whether a SYN to this port waits for an answer.
fn asks_to_connect(port: u16) -> bool {
    const SYN_SENT: &str = "02";
    let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    sockets.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&remote) && fields[3] == SYN_SENT
    })
}

/// What has come and was not read yet. `None` where the other end has hung up.
fn unread(mut tcp: &TcpStream) -> Option<Vec<u8>> {
    tcp.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    match tcp.read_to_end(&mut bytes) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Some(bytes),
        _ => None,
    }
}

/// While the trouble lasts, the nineteen echo, and can be deleted, added and updated.
fn others_go_on(kind: Kind) {
    let mut fleet = Fleet::new();
    let trouble = fleet.trouble(kind);
    for _ in 0..5 {
        for n in 0..OTHERS {
            fleet.round_trip(n);
        }
    }
    let handle = fleet.running.handle.clone();
    handle.delete(&id("t0")).unwrap();
    fleet.running.expect(EventKind::Disconnect, "t0");
    handle.add(&id("t0"), fleet.cloud.params()).unwrap();
    fleet.others[0] = fleet.connected(0);
    handle.update(&id("t1"), fleet.cloud.params()).unwrap();
    fleet.running.expect(EventKind::Disconnect, "t1");
    fleet.others[1] = fleet.connected(1);
    let refused = handle.add(&id("t20"), fleet.cloud.params()).unwrap_err();
    assert_eq!(refused.state_code(), state::TUNNEL_LIMIT);
    for n in 0..OTHERS {
        fleet.round_trip(n);
    }
    // It did last: nobody has given up.
    match &trouble {
        Trouble::Silence { listener, .. } if kind == Kind::BlackHole => {
            let port = listener.local_addr().unwrap().port();
            assert!(asks_to_connect(port), "nobody connects any more");
        }
        Trouble::Silence { queue, .. } => {
            let hello = unread(queue.last().unwrap()).expect("the tunnel has not hung up");
            assert_eq!(hello.first(), Some(&22), "it has begun a handshake");
        }
        Trouble::Flood { flood, .. } => assert!(!flood.is_finished(), "the flood has ended"),
    }
    assert_eq!(fleet.over(trouble) > 0, matches!(kind, Kind::Flood(_)));
    // And the slot of the one can be had again.
    handle.add(&id("t19"), fleet.cloud.params()).unwrap();
    drop(fleet.connected(19));
}

#[test]
fn a_tunnel_that_connects_to_a_black_hole_does_not_touch_the_others() {
    others_go_on(Kind::BlackHole);
}

#[test]
fn a_tls_handshake_without_end_does_not_touch_the_other_tunnels() {
    others_go_on(Kind::EndlessHandshake);
}

#[test]
fn a_flooded_tunnel_does_not_stop_the_others() {
    others_go_on(Kind::Flood(None));
}
