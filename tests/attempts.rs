//! Attempts to connect: what one costs in the log, a refused token that is retried, and attempts on
//! demand.

use std::sync::{mpsc, Mutex};
use std::time::{Duration, SystemTime};

use aiot_tunnel::gateway::{Gateway, TunnelConfig};
use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::process::in_a_child;
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{logs, DEVICE_TOKEN};

/// A logger that keeps lines.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if let Some(kept) = logs::kept() {
            kept.log(record);
        }
        if record.target() == "aiot_tunnel" && record.level() <= log::LevelFilter::Info {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }
    fn flush(&self) {}
}

impl Lines {
    fn keep(&'static self) {
        log::set_logger(self).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        logs::keep();
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Checks that each line begins with its text.
fn assert_lines(lines: &[String], expected: &[&str]) {
    let fits = lines.iter().zip(expected).all(|(line, text)| line.starts_with(text));
    assert!(fits && lines.len() == expected.len(), "{lines:#?}\nexpected {expected:#?}");
}

fn only(handle: &Handle) -> TunnelStatus {
    let mut tunnels = handle.tunnels();
    assert_eq!(tunnels.len(), 1, "{tunnels:?}");
    tunnels.remove(0)
}

/// Waits until this attempt has failed. Returns the time of the next one.
fn wait_for_failure(handle: &Handle, attempt: u32) -> SystemTime {
    let failed = || {
        let status = handle.tunnels().into_iter().next()?;
        match status.state {
            TunnelState::Waiting { retry_at, .. } if status.attempts == attempt => Some(retry_at),
            _ => None,
        }
    };
    wait::until("a failed attempt", || failed().is_some());
    failed().unwrap()
}

const STEPS: [&str; 4] = [
    "[LK-1C80] start to create cloud channel",
    "[LK-1C80] connect remote service host 127.0.0.1, port ",
    "[LK-1000] success to establish tcp, fd=",
    "[LK-1000] local port: ",
];
const OPENED: [&str; 2] =
    ["[LK-0F10] open_cloud_proxy_channel success", "[LK-1C80] websocket t opened"];

#[test]
fn one_line_for_each_failed_attempt_after_the_first_and_a_count_at_the_end() {
    in_a_child("one_line_for_each_failed_attempt_after_the_first_and_a_count_at_the_end", || {
        LINES.keep();
        let cloud = Cloud::plain();
        let running = Running::start(plain());
        wait::until("the start", || !LINES.take().is_empty());
        running.handle.add(&id("t"), cloud.params()).unwrap();
        for attempt in 1..=4 {
            assert!(cloud.accept_if(|_| Some(503)).is_none());
            wait_for_failure(&running.handle, attempt);
            let lines = LINES.take();
            let failure = lines.last().unwrap();
            assert!(failure.starts_with("[LK-1C81] tunnel t: "), "{failure}");
            assert!(failure.contains("503"), "{failure}");
            assert!(failure.ends_with("; trying again in 1.0s"), "{failure}");
            let steps = if attempt == 1 { &STEPS[..] } else { &[] };
            assert_lines(&lines[..lines.len() - 1], steps);
        }
        let _device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        let count = "[LK-1C80] tunnel t: connected after 4 failed attempts in ";
        assert_lines(&LINES.take(), &[&STEPS[..], &OPENED, &[count]].concat());
    });
}

#[test]
fn a_token_that_is_refused_has_one_line_for_each_attempt_and_is_not_in_it() {
    in_a_child("a_token_that_is_refused_has_one_line_for_each_attempt_and_is_not_in_it", || {
        LINES.keep();
        let cloud = Cloud::plain();
        let running = Running::start(plain());
        wait::until("the start", || !LINES.take().is_empty());
        running.handle.add(&id("t"), cloud.params().with_refusal_retry(true)).unwrap();
        for attempt in 1..=2 {
            assert!(cloud.accept_if(|_| Some(401)).is_none());
            wait_for_failure(&running.handle, attempt);
            let refused = "[LK-1C81] tunnel t: the cloud refuses its token; trying again in ";
            let lines = LINES.take();
            let steps = if attempt == 1 { &STEPS[..] } else { &[] };
            assert_lines(&lines, &[steps, &[refused]].concat());
            assert!(!lines.concat().contains(DEVICE_TOKEN));
        }
        let _device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        let count = "[LK-1C80] tunnel t: connected after 2 failed attempts in ";
        assert_lines(&LINES.take(), &[&STEPS[..], &OPENED, &[count]].concat());
    });
}

#[test]
fn a_refusal_has_a_cure_and_an_expired_tunnel_is_told_from_a_wrong_token() {
    in_a_child("a_refusal_has_a_cure_and_an_expired_tunnel_is_told_from_a_wrong_token", || {
        LINES.keep();
        let token = |text: &str| Token::new(text).unwrap();
        let tunnel = |name, expires| {
            let tunnel = TunnelConfig::new(id(name), token(DEVICE_TOKEN), token("hush-access"));
            tunnel.with_expires(expires)
        };
        let past = SystemTime::now() - Duration::from_secs(5);
        let gateway = Gateway::builder();
        let gateway = gateway.tunnel(tunnel("old", Some(past))).tunnel(tunnel("new", None));
        let gateway = gateway.start("127.0.0.1:0".parse().unwrap()).unwrap();
        let running = Running::start(plain());
        let port = Port::new(gateway.local_addr().port()).unwrap();
        for (name, text, retries, cure) in [
            ("old", DEVICE_TOKEN, true, "the tunnel has expired: renew it"),
            (
                "new",
                "hush-wrong",
                true,
                "it is wrong or no longer valid: give the tunnel a new one",
            ),
            (
                "old",
                "hush-wrong",
                false,
                "it is wrong or no longer valid: give the tunnel a new one",
            ),
            ("old", DEVICE_TOKEN, false, "the tunnel has expired: renew it"),
        ] {
            let path = format!("/tunnel/{name}/dest");
            let params = ConnectParams::new("127.0.0.1", port, &path, token(text)).unwrap();
            running.handle.add(&id(name), params.with_refusal_retry(retries)).unwrap();
            let mut lines = Vec::new();
            let begin = format!("[LK-1C81] tunnel {name}: the cloud refuses its token; ");
            wait::until("the refusal", || {
                lines.append(&mut LINES.take());
                lines.iter().any(|line| line.starts_with(&begin))
            });
            let line = lines.iter().find(|line| line.starts_with(&begin)).unwrap();
            assert!(line.contains(cure), "{line}");
            assert_eq!(line.contains("; trying again in "), retries, "{line}");
            if retries {
                let mut error = String::new();
                wait::until("the error", || {
                    error = only(&running.handle).last_error.unwrap_or_default();
                    !error.is_empty()
                });
                assert_eq!(error.contains("the tunnel has expired"), name == "old", "{error}");
            }
            running.handle.delete(&id(name)).unwrap();
            wait::until("the tunnel is gone", || running.handle.tunnels().is_empty());
        }
    });
}

#[test]
fn a_tunnel_that_retries_a_refused_token_is_never_dropped() {
    let (sender, refusals) = mpsc::channel();
    let sender = Mutex::new(sender);
    let cloud = Cloud::plain();
    let running = Running::start(plain().on_notice(move |_, notice| {
        assert_eq!((notice.tunnel_id.as_str(), notice.dropped), ("t", 0));
        if notice.kind == NoticeKind::TokenRefused {
            sender.lock().unwrap().send(()).unwrap();
        }
    }));
    running.handle.add(&id("t"), cloud.params().with_refusal_retry(true)).unwrap();
    for attempt in 1..=2 {
        assert!(cloud.accept_if(|_| Some(401)).is_none());
        refusals.recv_timeout(TIMEOUT).expect("a notice of the refusal");
        wait_for_failure(&running.handle, attempt);
        let error = only(&running.handle).last_error.unwrap();
        assert_eq!(error, "the cloud refuses the token");
    }
    // An update starts afresh: it tries at once, and the gap is the shortest again.
    running.handle.update(&id("t"), cloud.params().with_refusal_retry(true)).unwrap();
    assert!(cloud.accept_if(|_| Some(401)).is_none());
    let retry_at = wait_for_failure(&running.handle, 1);
    let gap = retry_at.duration_since(SystemTime::now()).unwrap_or_default();
    assert!(gap <= Duration::from_secs(1), "{gap:?}");
    refusals.recv_timeout(TIMEOUT).expect("a notice of the refusal");
    for close_code in [4001, 401] {
        let mut device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        device.close(close_code);
        device.receive_close();
        running.expect(EventKind::Disconnect, "t");
        refusals.recv_timeout(TIMEOUT).expect("a notice of the refusal");
        wait_for_failure(&running.handle, 0);
    }
    // The refusals of connections that did not last count on: 1 s, 2 s and now up to 4 s.
    let TunnelState::Waiting { retry_at, .. } = only(&running.handle).state else { panic!() };
    let gap = retry_at.duration_since(SystemTime::now()).unwrap_or_default();
    assert!(gap > Duration::from_secs(1), "{gap:?}");
    let _device = cloud.accept();
    // No EXPIRED came before.
    running.expect(EventKind::Connect, "t");
}

#[test]
fn an_expired_tunnel_has_a_notice_of_the_refusal_too() {
    let (sender, notices) = mpsc::channel();
    let sender = Mutex::new(sender);
    let cloud = Cloud::plain();
    let running = Running::start(plain().on_notice(move |_, notice| {
        sender.lock().unwrap().send(notice.kind.clone()).unwrap();
    }));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    assert!(cloud.accept_if(|_| Some(401)).is_none());
    assert_eq!(notices.recv_timeout(TIMEOUT).unwrap(), NoticeKind::TokenRefused);
    running.expect(EventKind::Expired, "t");
}

#[test]
fn a_waiting_tunnel_reconnects_at_once_and_its_gaps_start_again() {
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params().with_refusal_retry(true)).unwrap();
    let mut retry_at = SystemTime::now();
    for attempt in 1..=4 {
        assert!(cloud.accept_if(|_| Some(401)).is_none());
        retry_at = wait_for_failure(&running.handle, attempt);
    }
    running.handle.reconnect(&id("t")).unwrap();
    assert!(cloud.accept_if(|_| Some(401)).is_none());
    // It has not waited for the end of the gap, which is 6 s at least.
    assert!(SystemTime::now() < retry_at);
    let next = wait_for_failure(&running.handle, 1);
    let gap = next.duration_since(SystemTime::now()).unwrap_or_default();
    assert!(gap <= Duration::from_secs(1), "{gap:?}");
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "t");
}

#[test]
fn an_open_tunnel_reconnects_in_order_with_the_same_data() {
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(echo("e")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "e"), 0);
    for _ in 0..3 {
        running.handle.reconnect(&id("t")).unwrap();
        running.expect(EventKind::Disconnect, "t");
        // The session is released before the connection closes.
        let (header, _) = device.receive();
        assert_eq!((&header["frame_type"], &header["session_id"]), (&3.into(), &"s".into()));
        assert_eq!(device.receive_close(), Some(1000));
        device = cloud.accept();
        running.expect(EventKind::Connect, "t");
        assert_eq!(device.path, "/tunnel/t/dest?x=1");
        assert_eq!(device.create("s", "e"), 0);
    }
    assert_eq!(only(&running.handle).last_error, None);
}

#[test]
fn all_tunnels_reconnect_and_an_unknown_one_changes_nothing() {
    let cloud = Cloud::plain();
    let limits = Limits::new().with_max_tunnels(3);
    let running = Running::start(plain().limits(limits));
    running.handle.reconnect_all().unwrap();
    running.handle.reconnect(&id("nobody")).unwrap();
    let mut devices = Vec::new();
    for name in ["a", "b", "c"] {
        running.handle.add(&id(name), cloud.params()).unwrap();
        devices.push(cloud.accept());
        running.expect(EventKind::Connect, name);
    }
    running.handle.reconnect(&id("nobody")).unwrap();
    running.handle.reconnect_all().unwrap();
    for name in ["a", "b", "c"] {
        running.expect(EventKind::Disconnect, name);
    }
    for device in &mut devices {
        device.receive_close();
    }
    devices.clear();
    let mut connected = Vec::new();
    for _ in 0..3 {
        devices.push(cloud.accept());
        let event = running.events.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(event.kind, EventKind::Connect);
        connected.push(event.tunnel_id.to_string());
    }
    connected.sort();
    assert_eq!(connected, ["a", "b", "c"]);
    // No reconnect took a place: three tunnels exist, and a fourth is one too many.
    let refused = running.handle.add(&id("d"), cloud.params()).unwrap_err();
    assert!(matches!(refused, Error::TunnelLimit(3)), "{refused}");
    running.handle.delete(&id("a")).unwrap();
    running.handle.reconnect(&id("a")).unwrap();
    running.expect(EventKind::Disconnect, "a");
    running.handle.add(&id("d"), cloud.params()).unwrap();
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "d");
}

#[test]
fn the_queue_of_commands_bounds_reconnects() {
    // Nobody runs the manager, so nothing is taken.
    let manager = plain().build().unwrap();
    let handle = manager.handle();
    let mut queued = 0;
    let refused = loop {
        let outcome = match queued % 2 {
            0 => handle.reconnect_all(),
            _ => handle.reconnect(&id(&format!("t{queued}"))),
        };
        match outcome {
            Ok(()) => queued += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, Error::Busy(4096)), "{refused}");
    assert_eq!(queued, 4096);
    assert!(matches!(handle.reconnect_all().unwrap_err(), Error::Busy(4096)));
}
