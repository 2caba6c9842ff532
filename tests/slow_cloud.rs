//! A cloud that takes bytes slowly is slow, not dead.

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use aiot_tunnel::*;
use common::*;

#[test]
fn a_cloud_that_takes_a_long_upload_slowly_is_not_taken_for_dead() {
    const LENGTH: usize = 40_000_000;
    let source = service("source", |mut stream| {
        let _ = stream.write_all(&pattern(1, LENGTH));
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    });
    let limits = Limits {
        ping_interval: Duration::from_millis(50),
        pong_timeout: Duration::from_millis(800),
        ..Limits::default()
    };
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(source).limits(limits));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "source"), 0);
    // As a link with a rate limit: the kernels' buffers hold seconds of data before a ping.
    let began = Instant::now();
    let mut received = 0;
    while received < LENGTH / 6 {
        received += device.receive_data("s", 1).len();
        let due = Duration::from_micros(received as u64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    assert!(running.events.try_recv().is_err(), "the device has disconnected");
}
