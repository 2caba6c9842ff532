//! The process runs out of a resource, or a worker panics. The log says so, the tunnel tries again,
//! and everything works as before as soon as there is enough again.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::process::in_a_child;
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::{logs, procfs, wait};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

/// A logger that keeps lines, and panics at a line that the test has chosen.
struct Lines {
    seen: Mutex<Vec<String>>,
    panics_left: AtomicUsize,
    panic_at: Mutex<Option<&'static str>>,
}

static LINES: Lines = Lines {
    seen: Mutex::new(Vec::new()),
    panics_left: AtomicUsize::new(0),
    panic_at: Mutex::new(None),
};

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if let Some(kept) = logs::kept() {
            kept.log(record);
        }
        if record.target() != "aiot_tunnel" || record.level() > log::LevelFilter::Info {
            return;
        }
        let line = record.args().to_string();
        let chosen = self.panic_at.lock().unwrap().is_some_and(|text| line.contains(text));
        self.seen.lock().unwrap().push(line);
        let take = |left: usize| left.checked_sub(1);
        if chosen && self.panics_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
        {
            panic!("on purpose");
        }
    }
    fn flush(&self) {}
}

impl Lines {
    fn keep(&'static self) {
        log::set_logger(self).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        // Raises the level if the log is kept.
        logs::keep();
    }
    fn panic_at(&self, text: &'static str, times: usize) {
        *self.panic_at.lock().unwrap() = Some(text);
        self.panics_left.store(times, Ordering::SeqCst);
    }
    fn count(&self, text: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }
}

fn descriptors() -> usize {
    procfs::descriptors(std::process::id())
}

fn threads() -> usize {
    procfs::threads(std::process::id())
}

/// Opens files until the process may open no more.
fn use_all_descriptors() -> Vec<fs::File> {
    let limit = Rlimit { current: Some(64), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect()
}

/// Opens a session that echoes.
fn echoes(device: &mut TunnelEnd, session: &str) {
    assert_eq!(device.create(session, "_e"), 0);
    device.data(session, b"still here");
    assert_eq!(device.receive_data(session, 10), b"still here");
}

#[test]
fn without_descriptors_a_tunnel_tries_again_until_there_are_some() {
    in_a_child("without_descriptors_a_tunnel_tries_again_until_there_are_some", || {
        LINES.keep();
        let cloud = Cloud::plain();
        let running = Running::start(plain().service(echo("_e")));
        let files = use_all_descriptors();
        // At least three lines, a second apart: it does not try as fast as it can.
        running.handle.add(&id("t"), cloud.params()).unwrap();
        wait::until("a line about descriptors", || LINES.count("os error 24") >= 3);
        assert!(LINES.count("") < 100, "{} lines", LINES.count(""));
        drop(files);
        let mut device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        echoes(&mut device, "s");
    });
}

#[test]
fn without_descriptors_a_session_is_refused_and_its_siblings_go_on() {
    in_a_child("without_descriptors_a_session_is_refused_and_its_siblings_go_on", || {
        LINES.keep();
        let cloud = Cloud::plain();
        let running = Running::start(plain().service(echo("_e")));
        running.handle.add(&id("t"), cloud.params()).unwrap();
        let mut device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        echoes(&mut device, "first");
        let before = descriptors();
        let files = use_all_descriptors();
        for n in 0..5 {
            assert_eq!(device.create(&format!("refused-{n}"), "_e"), 2);
        }
        assert_eq!(LINES.count("os error 24"), 5);
        device.data("first", b"as before");
        assert_eq!(device.receive_data("first", 9), b"as before");
        drop(files);
        assert_eq!(descriptors(), before, "descriptors are left behind");
        echoes(&mut device, "second");
    });
}

#[test]
fn tunnels_that_come_and_go_in_a_burst_use_a_bounded_number_of_descriptors() {
    in_a_child("tunnels_that_come_and_go_in_a_burst_use_a_bounded_number_of_descriptors", || {
        LINES.keep();
        let cloud = Cloud::plain();
        let manager = plain().build().unwrap();
        let handle = manager.handle();
        let token = Token::new("hush-t").unwrap();
        let nobody = ConnectParams::new("127.0.0.1", Port::new(1).unwrap(), "/", token).unwrap();
        for n in 0..1500 {
            handle.add(&id(&format!("t{n}")), nobody.clone()).unwrap();
            handle.delete(&id(&format!("t{n}"))).unwrap();
        }
        handle.add(&id("last"), cloud.params()).unwrap();
        // A worker has an eventfd and a connection.
        let most = (descriptors() + 2 * (20 + 8) + 16) as u64;
        let limit = Rlimit { current: Some(most), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, limit).unwrap();
        let thread = std::thread::spawn(move || manager.run());
        let _device = cloud.accept();
        assert_eq!(LINES.count("os error 24"), 0);
        handle.stop();
        thread.join().unwrap().unwrap();
    });
}

#[test]
fn a_panicking_worker_becomes_a_disconnect_and_a_retry() {
    in_a_child("a_panicking_worker_becomes_a_disconnect_and_a_retry", || {
        LINES.keep();
        let cloud = Cloud::plain();
        let running = Running::start(plain().service(echo("_e")));
        running.handle.add(&id("sibling"), cloud.params()).unwrap();
        let mut sibling = cloud.accept();
        running.expect(EventKind::Connect, "sibling");
        running.handle.add(&id("t"), cloud.params()).unwrap();
        let mut device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        echoes(&mut device, "s");
        wait::until("the threads", || threads() >= 4);
        let before = (descriptors(), threads());
        for round in 0..3 {
            // The relay logs this line in the middle of its work.
            LINES.panic_at("new session session_id:boom", 1);
            let header = serde_json::json!(
                {"frame_type": 2, "session_id": "boom", "frame_id": 5, "service_type": "_e"});
            device.send(header, b"");
            running.expect(EventKind::Disconnect, "t");
            device = cloud.accept();
            running.expect(EventKind::Connect, "t");
            assert_eq!(LINES.count("its worker panicked"), round + 1);
            echoes(&mut device, "s");
            echoes(&mut sibling, &format!("s{round}"));
        }
        // A panic while it connects is no disconnect.
        LINES.panic_at("success to establish tcp", 2);
        running.handle.update(&id("t"), cloud.params()).unwrap();
        running.expect(EventKind::Disconnect, "t");
        let mut lost = 0;
        device = loop {
            match cloud.accept_if(|_| None) {
                Some(device) => break device,
                None => lost += 1,
            }
        };
        assert_eq!(lost, 2);
        running.expect(EventKind::Connect, "t");
        echoes(&mut device, "s");
        wait::until("nothing is left behind", || {
            // The sibling has three more sessions now, each with both of its ends here.
            descriptors() <= before.0 + 6 + 2 && threads() <= before.1 + 6 + 2
        });
    });
}

#[test]
fn a_panicking_event_handler_stops_nothing() {
    let cloud = Cloud::plain();
    let manager = plain().on_event(|_, _| panic!("on purpose")).build().unwrap();
    let handle = manager.handle();
    let thread = std::thread::spawn(move || manager.run());
    handle.add(&id("t"), cloud.params()).unwrap();
    let _device = cloud.accept();
    handle.update(&id("t"), cloud.params()).unwrap();
    let _device = cloud.accept();
    handle.stop();
    thread.join().unwrap().unwrap();
}
