//! A cloud that reads slowly is slow, not dead.

use std::io::Write;
use std::time::{Duration, Instant};

use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::random;
use aiot_tunnel_testkit::services::service;

#[test]
fn a_cloud_that_takes_a_long_upload_slowly_is_not_taken_for_dead() {
    /// Bytes a second. The bytes in the device's kernel need many times the pong timeout.
    const RATE: u64 = 60_000;
    const LENGTH: usize = 480_000;
    let source = service("source", |mut stream| {
        let chunk = random::bytes(1, 65_536);
        while stream.write_all(&chunk).is_ok() {}
    });
    let limits = Limits::new()
        .with_ping_interval(Duration::from_millis(50))
        .with_pong_timeout(Duration::from_secs(3));
    let cloud = Cloud::plain();
    // A small receive buffer: the cloud's kernel acknowledges in small steps.
    rustix::net::sockopt::set_socket_recv_buffer_size(&cloud.listener, 32 * 1024).unwrap();
    let running = Running::start(plain().service(source).limits(limits));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "source"), 0);
    // Like a link with a rate limit: a ping waits behind seconds of data.
    let mut received = 0;
    let began = Instant::now();
    while received < LENGTH {
        received += device.receive_data("s", 1).len();
        let due = Duration::from_micros(received as u64 * 1_000_000 / RATE);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        assert!(running.events.try_recv().is_err(), "the device has disconnected");
    }
}
