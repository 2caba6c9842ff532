//! The C caller's log callback may be as slow as it likes: nobody else waits for it.

use std::ffi::{c_char, CStr};
use std::sync::{mpsc, Mutex};

use aiot_tunnel::capi::state::aiot_state_set_logcb;
use aiot_tunnel::EventKind;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::services::echo;

/// What the callback waits for once it has seen the line of a new session.
static GATE: Mutex<Option<mpsc::Receiver<()>>> = Mutex::new(None);
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

unsafe extern "C" fn callback(_: i32, message: *mut c_char) -> i32 {
    // SAFETY: the library passes a text that ends in NUL.
    let line = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    let is_session = line.contains("new session session_id:slow,");
    LINES.lock().unwrap().push(line);
    if is_session {
        let gate = GATE.lock().unwrap().take().expect("one such line");
        let _ = gate.recv();
    }
    0
}

fn count(part: &str) -> usize {
    LINES.lock().unwrap().iter().filter(|line| line.contains(part)).count()
}

#[test]
fn a_log_callback_that_hangs_stops_no_tunnel_and_gets_its_lines_later() {
    let (open, gate) = mpsc::channel();
    *GATE.lock().unwrap() = Some(gate);
    assert_eq!(aiot_state_set_logcb(Some(callback)), 0);
    let cloud = Cloud::plain();
    let mut running = Running::start(plain().service(echo("e")));
    // Dropped before the manager, so that a failure of the test does not wait for the callback.
    let open = open;
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    // The callback hangs from here on.
    assert_eq!(device.create("slow", "e"), 0);
    device.data("slow", b"hello");
    assert_eq!(device.receive_data("slow", 5), b"hello");
    for _ in 0..100 {
        device.check_echo("s", "e");
    }
    // Commands and other tunnels do not wait, either.
    running.handle.add(&id("other"), cloud.params()).unwrap();
    let _other = cloud.accept();
    running.expect(EventKind::Connect, "other");
    assert_eq!(count("release the session"), 0);
    // It goes on, and gets the lines that have waited.
    open.send(()).unwrap();
    running.stop();
    assert!(count("release the session") > 0);
    assert_eq!(count("remote proxy thread exit!"), 1);
    // No line comes after it was removed.
    assert_eq!(aiot_state_set_logcb(None), 0);
    let lines = LINES.lock().unwrap().len();
    drop(Running::start(plain()));
    assert_eq!(LINES.lock().unwrap().len(), lines);
}
