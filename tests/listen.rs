//! The listen thread over a real message queue.

mod common;

use std::time::Duration;

use aiot_tunnel::listen::{self, Command, Listener, Options};
use aiot_tunnel::*;
use common::*;

/// A key of this test's own.
fn free_key() -> i32 {
    0x4000_0000 | (rand::random::<i32>() & 0x3fff_ffff)
}

#[test]
fn commands_on_the_queue_open_update_and_close_a_tunnel() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    let key = free_key();
    let options = Options { key, ..Options::default() };
    let listener = Listener::start(running.handle.clone(), options).unwrap();
    listen::send(key, &Command::Add(id("t"), cloud.params())).unwrap();
    let _first = cloud.accept();
    running.expect(EventKind::Connect, "t");
    listen::send(key, &Command::Update(id("t"), cloud.params())).unwrap();
    running.expect(EventKind::Disconnect, "t");
    let _second = cloud.accept();
    running.expect(EventKind::Connect, "t");
    listen::send(key, &Command::Delete(id("t"))).unwrap();
    running.expect(EventKind::Disconnect, "t");
    listener.stop();
    // The queue that the listener has made goes with it.
    assert!(listen::send(key, &Command::Delete(id("t"))).is_err());
}

#[test]
fn a_listener_stops_while_its_queue_is_idle() {
    let manager = plain().build().unwrap();
    let options = Options { key: free_key(), ..Options::default() };
    let (sender, stopped) = std::sync::mpsc::channel();
    let listener = Listener::start(manager.handle(), options).unwrap();
    std::thread::spawn(move || {
        listener.stop();
        sender.send(()).unwrap();
    });
    stopped.recv_timeout(Duration::from_secs(10)).expect("stops in time");
}
