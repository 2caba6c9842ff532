//! Commands to a manager that has ended are refused: nobody would execute them.

use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::{params, Cloud};
use aiot_tunnel_testkit::manager::{id, plain, Running};

fn assert_ended(handle: &Handle) {
    let outcomes = [
        handle.add(&id("new"), params("127.0.0.1", 1)),
        handle.update(&id("t"), params("127.0.0.1", 1)),
        handle.delete(&id("t")),
        handle.reconnect(&id("t")),
        handle.reconnect_all(),
    ];
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Ended), "{error}");
        assert_eq!(error.state_code(), state::USER_INPUT_EXEC_DISABLED);
    }
    handle.stop();
}

#[test]
fn commands_after_a_stop_are_refused() {
    let cloud = Cloud::plain();
    let mut running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    running.handle.stop();
    // At once, though the run may not have returned yet.
    assert_ended(&running.handle);
    running.expect(EventKind::Disconnect, "t");
    running.stop();
    assert_ended(&running.handle);
}

#[test]
fn commands_are_refused_when_the_manager_is_gone() {
    let manager = plain().build().unwrap();
    let handle = manager.handle();
    handle.add(&id("t"), params("127.0.0.1", 1)).unwrap();
    drop(manager);
    assert_ended(&handle);
}

#[test]
fn commands_are_refused_inside_the_handler_of_the_last_event() {
    let cloud = Cloud::plain();
    let (sender, outcomes) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let manager = plain().on_event(move |handle, event| match event.kind {
        EventKind::Connect => handle.stop(),
        _ => sender.lock().unwrap().send(handle.delete(&event.tunnel_id)).unwrap(),
    });
    let manager = manager.build().unwrap();
    manager.handle().add(&id("t"), cloud.params()).unwrap();
    let device = std::thread::spawn(move || cloud.accept());
    manager.run().unwrap();
    drop(device.join());
    assert!(matches!(outcomes.recv().unwrap(), Err(Error::Ended)));
}
