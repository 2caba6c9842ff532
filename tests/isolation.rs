//! One tunnel in trouble changes nothing for the others.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use aiot_tunnel::*;
use aiot_tunnel_testkit::manager::id;
use aiot_tunnel_testkit::troubles::{Fleet, Kind, Trouble, OTHERS};

/// Whether a SYN to this port waits for its answer.
fn waits_for_syn_ack(port: u16) -> bool {
    const SYN_SENT: &str = "02";
    let sockets = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let remote = format!(":{port:04X}");
    sockets.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&remote) && fields[3] == SYN_SENT
    })
}

/// The bytes that have come and were not read yet. `None` if the other end has hung up.
fn unread(mut tcp: &TcpStream) -> Option<Vec<u8>> {
    tcp.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    match tcp.read_to_end(&mut bytes) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Some(bytes),
        _ => None,
    }
}

/// While the trouble lasts, the other nineteen tunnels echo and can be deleted, added and updated.
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
    // The trouble has lasted: its tunnel has not given up.
    match &trouble {
        Trouble::BlackHole(hole) => {
            let port = hole.address().port();
            assert!(waits_for_syn_ack(port), "the tunnel no longer connects");
        }
        Trouble::EndlessHandshake(tcp) => {
            let hello = unread(tcp).expect("the tunnel has not hung up");
            assert_eq!(hello.first(), Some(&22), "it has begun a handshake");
        }
        Trouble::Flood { flood, .. } => assert!(!flood.is_finished(), "the flood has ended"),
    }
    assert_eq!(fleet.over(trouble) > 0, matches!(kind, Kind::Flood(_)));
    // Its slot is free again.
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
