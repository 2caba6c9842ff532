//! The listen thread over a real message queue.

use aiot_tunnel::ipc::{self, Command, ListenOptions, Listener};
use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::queue::{Key, Queue, Semaphore};
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::skip;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};

#[test]
fn commands_on_the_queue_open_update_and_close_a_tunnel() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    let own = Key::new();
    let key = own.0;
    let options = ListenOptions::new().with_key(key);
    let listener = Listener::start(running.handle.clone(), options).unwrap();
    ipc::send(key, &Command::Add(id("t"), cloud.params())).unwrap();
    let _first = cloud.accept();
    running.expect(EventKind::Connect, "t");
    ipc::send(key, &Command::Update(id("t"), cloud.params())).unwrap();
    running.expect(EventKind::Disconnect, "t");
    let _second = cloud.accept();
    running.expect(EventKind::Connect, "t");
    ipc::send(key, &Command::Delete(id("t"))).unwrap();
    running.expect(EventKind::Disconnect, "t");
    listener.stop();
    // The listener removes the queue that it has made.
    assert!(ipc::send(key, &Command::Delete(id("t"))).is_err());
}

#[test]
fn a_listener_stops_while_its_queue_is_idle() {
    let (manager, own) = (plain().build().unwrap(), Key::new());
    let options = ListenOptions::new().with_key(own.0);
    let (sender, stopped) = std::sync::mpsc::channel();
    let listener = Listener::start(manager.handle(), options).unwrap();
    std::thread::spawn(move || {
        listener.stop();
        sender.send(()).unwrap();
    });
    stopped.recv_timeout(TIMEOUT).expect("it stops in time");
}

/// As with a queue to which this process may not send.
#[test]
fn a_listener_stops_although_nothing_can_be_sent_to_its_queue() {
    let (manager, own) = (plain().build().unwrap(), Key::new());
    let queue = Queue::new(own.0, 0o600);
    let options = ListenOptions::new().with_key(own.0);
    let listener = Listener::start(manager.handle(), options).unwrap();
    queue.fill();
    let (sender, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        listener.stop();
        sender.send(()).unwrap();
    });
    stopped.recv_timeout(TIMEOUT).expect("it stops in time");
}

#[test]
fn a_queue_has_one_listener_at_a_time() {
    let (manager, own) = (plain().build().unwrap(), Key::new());
    let start = || Listener::start(manager.handle(), ListenOptions::new().with_key(own.0));
    let first = start().unwrap();
    let error = start().unwrap_err().to_string();
    let process = format!("process {}", std::process::id());
    assert!(error.contains("another agent") && error.contains(&process), "{error}");
    first.stop();
    start().unwrap().stop();
}

#[test]
fn a_semaphore_of_a_stranger_does_not_keep_a_listener_from_starting() {
    const STRANGER: u32 = 54_321;
    let (manager, own) = (plain().build().unwrap(), Key::new());
    let semaphore = Semaphore::held(own.0);
    if !semaphore.give_to(STRANGER) {
        return skip("a stranger's semaphore", "giving a semaphore away needs root");
    }
    let options = ListenOptions::new().with_key(own.0);
    Listener::start(manager.handle(), options).unwrap().stop();
}

#[test]
fn a_queue_that_somebody_removes_is_made_anew() {
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    let own = Key::new();
    let key = own.0;
    let queue = Queue::new(key, 0o600);
    let options = ListenOptions::new().with_key(key);
    let listener = Listener::start(running.handle.clone(), options).unwrap();
    drop(queue);
    wait::until("a queue again", || ipc::send(key, &Command::Add(id("t"), cloud.params())).is_ok());
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    listener.stop();
    assert!(
        ipc::send(key, &Command::Delete(id("t"))).is_err(),
        "the listener removes the queue that it has made"
    );
}

#[test]
fn a_queue_that_others_may_write_to_is_narrowed_to_the_mode_of_the_options() {
    let manager = plain().build().unwrap();
    for (found, most, left) in [(0o666, 0o600, 0o600), (0o622, 0o620, 0o620), (0o600, 0o660, 0o600)]
    {
        let own = Key::new();
        let key = own.0;
        let queue = Queue::new(key, found);
        let options = ListenOptions::new().with_key(key).with_mode(most);
        let listener = Listener::start(manager.handle(), options).unwrap();
        assert_eq!(queue.mode(), left);
        listener.stop();
        // It existed before, so it stays.
        assert_eq!(queue.mode(), left);
    }
}

#[test]
fn a_queue_of_a_stranger_is_refused_unless_the_options_trust_its_owner() {
    const STRANGER: u32 = 54_321;
    let manager = plain().build().unwrap();
    let own = Key::new();
    let key = own.0;
    let queue = Queue::new(key, 0o600);
    if !queue.give_to(STRANGER) {
        return skip("a stranger's queue", "giving a queue away needs root");
    }
    let start = |owner| {
        Listener::start(manager.handle(), ListenOptions::new().with_key(key).with_owner(owner))
    };
    for owner in [None, Some(STRANGER + 1)] {
        let error = start(owner).expect_err("a stranger's queue").to_string();
        assert!(error.contains("uid 54321") && error.contains("ipcrm"), "{error}");
    }
    start(Some(STRANGER)).unwrap().stop();
}
