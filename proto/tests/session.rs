//! How a session ends for its local stream, in cases that need no random input.

use std::time::Duration;

use aiot_tunnel_models::relay::{Limits, ServiceEnd, World};

const MANY: usize = 1 << 30;

/// A world with one open session, whose service takes nothing.
fn world() -> World {
    // The cloud may be silent for longer than a stream may linger.
    let pong_timeout = Duration::from_secs(3600);
    let mut world = World::new(Limits { pong_timeout, ..Limits::default() });
    world.cloud_creates(0, true, 1);
    arrive(&mut world);
    assert_eq!(world.relay.sessions().len(), 1);
    world
}

/// All that the cloud has said arrives, and it takes everything.
fn arrive(world: &mut World) {
    {
        let mut wire = world.wire.state();
        (wire.arrived, wire.takes) = (MANY, MANY);
    }
    world.turn(false).unwrap();
}

fn is_reset(world: &World) -> bool {
    world.services.all()[0].borrow().reset
}

#[test]
fn a_reset_that_a_write_was_told_of_is_no_orderly_end() {
    let mut world = world();
    world.services.all()[0].borrow_mut().ends(ServiceEnd::ResetOnWrite);
    world.cloud_sends(0, 4, 1);
    // The write is told, and the next read finds an end of file.
    arrive(&mut world);
    arrive(&mut world);
    assert_eq!(world.release_of(0).unwrap(), "service v0: connection reset");
}

#[test]
fn a_lingering_stream_that_is_given_up_is_reset() {
    let mut world = world();
    world.cloud_sends(0, 1000, 1);
    world.cloud_releases(0, false, 1);
    arrive(&mut world);
    assert!(world.relay.sessions().is_empty());
    assert_eq!(world.relay.lingering()[0].waiting(), 1000);
    world.now += 6 * world.limits.stall_timeout - Duration::from_millis(1);
    arrive(&mut world);
    assert!(world.relay.lingering().len() == 1 && !is_reset(&world));
    world.now += Duration::from_millis(1);
    arrive(&mut world);
    assert!(world.relay.lingering().is_empty() && is_reset(&world));
}

#[test]
fn a_lingering_stream_that_gets_on_is_not_given_up() {
    let mut world = world();
    world.cloud_sends(0, 1000, 1);
    world.cloud_releases(0, false, 1);
    arrive(&mut world);
    for _ in 0..5 {
        world.now += world.limits.stall_timeout - Duration::from_millis(1);
        world.services.all()[0].borrow_mut().takes += 200;
        arrive(&mut world);
    }
    assert!(world.relay.lingering().is_empty() && !is_reset(&world));
    assert_eq!(world.services.all()[0].borrow().received.len(), 1000);
}

#[test]
fn a_lingering_stream_that_is_dropped_with_bytes_left_is_reset() {
    let mut world = world();
    world.cloud_sends(0, 1000, 1);
    arrive(&mut world);
    let services = world.services.clone();
    let lingering = world.relay.into_lingering(world.now);
    assert_eq!((lingering.len(), lingering[0].waiting()), (1, 1000));
    drop(lingering);
    assert!(services.all()[0].borrow().reset);
}

#[test]
fn a_connection_that_is_gone_does_not_keep_the_last_bytes_awake() {
    let mut world = world();
    world.cloud_sends(0, 1000, 1);
    arrive(&mut world);
    world.wire.state().closed = true;
    assert!(world.turn(false).is_err());
    world.relay.cut_all(world.now);
    assert!(world.relay.connection().is_gone() && !world.relay.lingering().is_empty());
    assert!(world.relay.deadline(world.now) > world.now, "its owner would spin");
}
