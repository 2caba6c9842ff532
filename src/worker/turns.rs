//! Whose turn it is, and what a turn leaves behind: the relay in cases that only a sequence of many
//! turns leads to.

use std::time::Duration;

use super::property::World;
use super::session::MAX_BATCH;
use crate::config::Limits;

const MANY: usize = 1 << 30;
/// How the world is to put frames on the wire.
const IN_ONE_PIECE: &[u8] = &[7; 4096];

/// A world with so many open sessions, whose services take everything.
fn world(sessions: usize) -> World<'static> {
    with_sessions(World::new(&[]), sessions)
}

fn with_sessions(mut world: World<'static>, sessions: usize) -> World<'static> {
    for n in 0..sessions {
        // Which session, and its service.
        world.input = [&[0, 0], &[1, 0], &[2, 0]][n];
        world.cloud_creates();
    }
    world.input = IN_ONE_PIECE;
    arrive_and_take(&mut world);
    for peer in &world.side.0.borrow().peers {
        peer.borrow_mut().takes = MANY;
    }
    world
}

/// All that the cloud has said arrives, and it takes everything.
fn arrive_and_take(world: &mut World) {
    {
        let mut wire = world.wire.0.borrow_mut();
        (wire.arrived, wire.takes) = (MANY, MANY);
    }
    world.turn(false).unwrap();
    world.wire.0.borrow_mut().takes = 0;
}

#[test]
fn no_session_waits_for_ever_where_the_cloud_takes_little_at_a_time() {
    let mut world = world(3);
    let peer = |world: &World, n: usize| world.side.0.borrow().peers[n].clone();
    peer(&world, 2).borrow_mut().sent = MANY;
    for _ in 0..2000 {
        // Two that always have a little to say, and one that has everything.
        for n in 0..2 {
            let peer = peer(&world, n);
            let mut peer = peer.borrow_mut();
            peer.sent = peer.read + 250;
        }
        world.wire.0.borrow_mut().takes = 300;
        world.turn(false).unwrap();
    }
    let read: Vec<usize> = (0..3).map(|n| peer(&world, n).borrow().read).collect();
    let all: usize = read.iter().sum();
    assert!(read[0].abs_diff(read[1]) <= 500, "{read:?}");
    assert!(read[0] > all / 100 && read[2] > all / 4, "{read:?}");
}

#[test]
fn busy_sessions_have_the_same_share_however_the_room_comes() {
    for takes in [3000, 20_000, 33_000, 50_000] {
        let mut world = with_sessions(World::with_limits(&[], Limits::default()), 3);
        for peer in &world.side.0.borrow().peers {
            peer.borrow_mut().sent = MANY;
        }
        let mut taken = 0;
        while taken < 20_000_000 {
            taken += takes;
            world.wire.0.borrow_mut().takes = takes;
            world.turn(false).unwrap();
        }
        let side = world.side.0.borrow();
        let read = side.peers.iter().map(|peer| peer.borrow().read);
        let (least, most) = (read.clone().min().unwrap(), read.max().unwrap());
        // A turn is 60 KiB, and the first one comes of itself.
        assert!(least > 1_000_000 && most - least <= 2 * 61_440, "{takes}: {least} to {most}");
    }
}

#[test]
fn a_ping_gives_the_buffers_back() {
    let mut world = world(1);
    world.side.0.borrow().peers[0].borrow_mut().sent = 1_000_000;
    let read = |world: &World| world.side.0.borrow().peers[0].borrow().read;
    while read(&world) < 1_000_000 {
        arrive_and_take(&mut world);
    }
    world.cloud_sends(0, 4000);
    arrive_and_take(&mut world);
    assert!(world.relay.link.sender.capacity() > 4096);
    world.now += world.limits.ping_interval;
    arrive_and_take(&mut world);
    assert!(world.relay.link.sender.capacity() < 64, "the ping alone");
    assert_eq!(world.relay.link.receiver.capacity(), 0);
    assert_eq!(world.relay.table.sessions[0].batch.capacity(), 0);
}

#[test]
fn frames_of_a_byte_each_are_handed_over_before_they_are_many() {
    let mut world = world(1);
    world.side.0.borrow().peers[0].borrow_mut().takes = 1000;
    let count = 5 * MAX_BATCH;
    (0..count).for_each(|_| world.cloud_sends(0, 1));
    arrive_and_take(&mut world);
    let session = &world.relay.table.sessions[0];
    assert!(session.batch.capacity() <= MAX_BATCH);
    assert_eq!(session.waiting(), count - 1000);
    world.side.0.borrow().peers[0].borrow_mut().takes = MANY;
    world.turn(false).unwrap();
    assert_eq!(world.side.0.borrow().peers[0].borrow().received.len(), count);
}

#[test]
fn a_transport_that_has_room_and_takes_nothing_is_left_alone_for_a_while() {
    let mut world = world(1);
    world.side.0.borrow().peers[0].borrow_mut().sent = 100;
    world.turn(false).unwrap();
    // Whether there is room is not known yet.
    assert!(world.relay.wants_room(world.now));
    // Room is reported, though it takes nothing.
    world.turn(true).unwrap();
    assert!(!world.relay.wants_room(world.now));
    let next = world.relay.deadline(world.now);
    assert!(next <= world.now + Duration::from_secs(1));
    world.now = next;
    assert!(world.relay.wants_room(world.now));
    world.turn(false).unwrap();
    // There was no room: it is waited for, and not by the clock.
    assert!(world.relay.wants_room(world.now) && world.relay.deadline(world.now) > world.now);
    world.wire.0.borrow_mut().takes = MANY;
    world.turn(false).unwrap();
    assert!(world.relay.link.sender.is_empty() && !world.relay.wants_room(world.now));
}
