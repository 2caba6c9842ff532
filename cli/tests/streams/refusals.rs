//! A session that is not opened.

use super::*;

fn ends_in_a_reset(client: TcpStream) {
    let mut client = Reader::new(client);
    assert_eq!(client.read_to_end(), End::Reset);
    assert_eq!(client.taken, 0);
}

fn a_service_that_the_device_does_not_have_is_a_reset(kind: Kind) {
    let line = Line::new(kind);
    let access = line.path.listen("unknown");
    ends_in_a_reset(access.connect());
    access.program.expect_log("session refused: code 2");
}

fn a_service_that_refuses_is_a_reset(kind: Kind) {
    let path = Path::new(kind);
    let door = Door::new(SERVICE);
    let service = door.service();
    let _agent = path.agent(&[service]);
    drop(door);
    let access = path.listen(SERVICE);
    ends_in_a_reset(access.connect());
    access.program.expect_log("session refused: code 2");
}

fn a_session_over_the_limit_is_a_reset_after_its_time_in_the_queue(kind: Kind) {
    let door = Door::new(SERVICE);
    let path = Path::with_gateway(kind, &["--session-limit", "2"]);
    let _agent = path.agent(&[door.service()]);
    let access = path.listen_with(SERVICE, &["--queue-timeout", "1"]);
    let mut open: Vec<_> = (0..2).map(|_| (access.connect(), door.accept())).collect();
    ends_in_a_reset(access.connect());
    // The others are as before.
    for (client, service) in &mut open {
        streams::write(&*client, 0, 1000);
        Reader::new(service).read_up_to(1000);
    }
}

fn a_foreign_devices_refusal_is_a_reset(kind: Kind) {
    let path = Path::new(kind);
    let mut device = path.raw(true);
    let access = path.listen(SERVICE);
    let client = access.connect();
    device.answer(2);
    ends_in_a_reset(client);
}

fn a_refusal_fails_stdio(kind: Kind) {
    let line = Line::new(kind);
    let mut access = line.path.stdio("unknown");
    let log = access.fails_as(11);
    assert!(log.contains("session refused: code 2"), "{log}");
}

over_every_path! {
    a_service_that_the_device_does_not_have_is_a_reset
    a_service_that_refuses_is_a_reset
    a_session_over_the_limit_is_a_reset_after_its_time_in_the_queue
    a_foreign_devices_refusal_is_a_reset
    a_refusal_fails_stdio
}

#[test]
fn a_frozen_device_is_a_reset_after_the_time_for_its_answer() {
    let mut line = Line::new(Kind::PLAIN);
    let access = line.path.listen(SERVICE);
    line.agent.program.process.freeze();
    // The gateway gives a device 10 s for its answer.
    ends_in_a_reset(access.connect());
}

#[test]
fn a_device_that_is_away_is_a_reset_after_the_time_in_the_queue() {
    let path = Path::new(Kind::PLAIN);
    let access = path.listen_with(SERVICE, &["--queue-timeout", "1"]);
    ends_in_a_reset(access.connect());
    access.program.expect_log("the device was not connected in time");
    assert_eq!(access.program.log().matches("session refused").count(), 1);
}

#[test]
fn a_gateway_that_is_away_is_a_reset_after_the_time_in_the_queue() {
    let mut line = Line::new(Kind::PLAIN);
    let access = line.path.listen_with(SERVICE, &["--queue-timeout", "1"]);
    let (client, service) = (access.connect(), line.door.accept());
    line.path.gateway.process.kill();
    assert_eq!(Reader::new(client).read_to_end(), End::Reset);
    assert_eq!(Reader::new(service).read_to_end(), End::Reset);
    ends_in_a_reset(access.connect());
}
