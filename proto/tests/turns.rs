//! Whose turn it is, and what a turn leaves behind: the relay in cases that only a sequence of many turns
//! leads to.

use std::time::Duration;

use aiot_tunnel_models::relay::{Limits, SharedService, World};
use aiot_tunnel_proto::session::MAX_BATCH;

const MANY: usize = 1 << 30;

/// A world with so many open sessions, whose services take everything.
fn world(sessions: usize) -> World {
    with_sessions(World::default(), sessions)
}

fn with_sessions(mut world: World, sessions: usize) -> World {
    for id in 0..sessions {
        world.cloud_creates(id, true, 1);
    }
    arrive_and_take(&mut world);
    for service in &*world.services.all() {
        service.borrow_mut().takes = MANY;
    }
    world
}

fn service(world: &World, nth: usize) -> SharedService {
    world.services.all()[nth].clone()
}

fn bytes_read(world: &World) -> Vec<usize> {
    world.services.all().iter().map(|service| service.borrow().read).collect()
}

/// All that the cloud has said arrives, and it takes everything.
fn arrive_and_take(world: &mut World) {
    {
        let mut wire = world.wire.state();
        (wire.arrived, wire.takes) = (MANY, MANY);
    }
    world.turn(false).unwrap();
    world.wire.state().takes = 0;
}

#[test]
fn no_session_waits_for_ever_where_the_cloud_takes_little_at_a_time() {
    let mut world = world(3);
    service(&world, 2).borrow_mut().sent = MANY;
    for _ in 0..2000 {
        // Two that always have a little to say, and one that has everything.
        for nth in 0..2 {
            let service = service(&world, nth);
            let mut service = service.borrow_mut();
            service.sent = service.read + 250;
        }
        world.wire.state().takes = 300;
        world.turn(false).unwrap();
    }
    let read = bytes_read(&world);
    let all: usize = read.iter().sum();
    assert!(read[0].abs_diff(read[1]) <= 500, "{read:?}");
    assert!(read[0] > all / 100 && read[2] > all / 4, "{read:?}");
}

#[test]
fn busy_sessions_have_the_same_share_however_the_room_comes() {
    for takes in [3000, 20_000, 33_000, 50_000] {
        let mut world = with_sessions(World::new(Limits::default()), 3);
        for service in &*world.services.all() {
            service.borrow_mut().sent = MANY;
        }
        let mut taken = 0;
        while taken < 20_000_000 {
            taken += takes;
            world.wire.state().takes = takes;
            world.turn(false).unwrap();
        }
        let read = bytes_read(&world);
        let (least, most) = (*read.iter().min().unwrap(), *read.iter().max().unwrap());
        // A turn is 60 KiB, and the first one comes of itself.
        assert!(least > 1_000_000 && most - least <= 2 * 61_440, "{takes}: {least} to {most}");
    }
}

#[test]
fn a_busy_service_with_a_small_window_keeps_its_share() {
    const TURN: usize = 61_440;
    let mut world = with_sessions(World::new(Limits::default()), 1);
    (0..2000).for_each(|_| world.cloud_sends(0, 4096, 1));
    let service = service(&world, 0);
    let received = |service: &SharedService| service.borrow().received.len();
    let mut turns = 0;
    while received(&service) < 4_000_000 {
        {
            let mut wire = world.wire.state();
            (wire.arrived, wire.takes) = (MANY, MANY);
        }
        // It has a burst to say, and nothing in the next turn.
        if turns % 2 == 0 {
            let mut service = service.borrow_mut();
            service.sent = service.read + TURN;
        }
        world.turn(false).unwrap();
        turns += 1;
    }
    // A turn more or less for the start.
    let (read, received) = (bytes_read(&world)[0], received(&service));
    assert!(received <= 2 * read + 4 * TURN, "{received} bytes down, {read} up");
}

#[test]
fn a_service_that_takes_its_bytes_just_after_it_was_found_full_does_not_stop_the_connection() {
    // The first turn writes four times before it waits. Room comes after each of them.
    for writes in 1..=4 {
        let mut world = world(1);
        let service = service(&world, 0);
        let frames = 4 * world.limits.session_buffer / 4096;
        (0..frames).for_each(|_| world.cloud_sends(0, 4096, 1));
        {
            let mut service = service.borrow_mut();
            (service.takes, service.takes_later) = (0, Some((writes, MANY)));
        }
        world.wire.state().arrived = MANY;
        while world.wakes() {
            world.turn(false).unwrap();
        }
        assert_eq!(service.borrow().received.len(), frames * 4096, "room after {writes} writes");
    }
}

#[test]
fn a_ping_gives_the_buffers_back() {
    let mut world = world(1);
    service(&world, 0).borrow_mut().sent = 1_000_000;
    while bytes_read(&world)[0] < 1_000_000 {
        arrive_and_take(&mut world);
    }
    world.cloud_sends(0, 4000, 1);
    arrive_and_take(&mut world);
    assert!(world.relay.connection().send_capacity() > 4096);
    world.now += world.limits.ping_interval;
    arrive_and_take(&mut world);
    assert!(world.relay.connection().send_capacity() < 64, "the ping alone");
    assert_eq!(world.relay.connection().receive_capacity(), 0);
    assert_eq!(world.relay.sessions()[0].batch(), (0, 0));
}

#[test]
fn frames_of_a_byte_each_are_handed_over_before_they_are_many() {
    let mut world = world(1);
    service(&world, 0).borrow_mut().takes = 1000;
    let count = 5 * MAX_BATCH;
    (0..count).for_each(|_| world.cloud_sends(0, 1, 1));
    arrive_and_take(&mut world);
    let session = &world.relay.sessions()[0];
    assert!(session.batch().1 <= MAX_BATCH);
    assert_eq!(session.waiting(), count - 1000);
    service(&world, 0).borrow_mut().takes = MANY;
    world.turn(false).unwrap();
    assert_eq!(service(&world, 0).borrow().received.len(), count);
}

#[test]
fn a_transport_that_has_room_and_takes_nothing_is_left_alone_for_a_while() {
    let mut world = world(1);
    let wants_room = |world: &World| world.relay.connection().wants_room(world.now);
    service(&world, 0).borrow_mut().sent = 100;
    world.turn(false).unwrap();
    // Whether there is room is not known yet.
    assert!(wants_room(&world));
    // Room is reported, though it takes nothing.
    world.turn(true).unwrap();
    assert!(!wants_room(&world));
    let next = world.relay.deadline(world.now);
    assert!(next <= world.now + Duration::from_secs(1));
    world.now = next;
    assert!(wants_room(&world));
    world.turn(false).unwrap();
    // There was no room: it is waited for, and not by the clock.
    assert!(wants_room(&world) && world.relay.deadline(world.now) > world.now);
    world.wire.state().takes = MANY;
    world.turn(false).unwrap();
    assert!(world.relay.connection().waiting() == 0 && !wants_room(&world));
}
