//! Brokers that send what no broker should. None of it crashes the library, fills the log, or brings a
//! token into the log.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use aiot_tunnel::ipc::Command;
use aiot_tunnel_signal::{
    Broker, Credentials, Device, HandOver, NotHandedOver, Options, Signal, Times,
};
use aiot_tunnel_testkit::wait;

const NOTIFY: &str = "/sys/pk/d/secure_tunnel/notify";
const CONNACK: [u8; 4] = [0x20, 2, 0, 0];

/// The lines of this process.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The tests share the lines.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Collector;

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        // The documentation of `Signal` says why a program leaves these lines out.
        if record.target().starts_with("rumqttc") {
            return;
        }
        LINES.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

/// The number of lines with a text.
fn lines_with(text: &str) -> usize {
    LINES.lock().unwrap().iter().filter(|line| line.contains(text)).count()
}

struct Agent;

impl HandOver for Agent {
    fn hand_over(&mut self, _: &Command) -> Result<(), NotHandedOver> {
        Ok(())
    }
}

/// A broker without TLS, and a library that connects to it.
fn start() -> (TcpListener, Signal) {
    // An address of this process alone: programs of other tests may still try a port of 127.0.0.1 that
    // was theirs before.
    let process = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, process[1] | 1, process[2], process[3] | 1);
    start_at(TcpListener::bind((address, 0)).unwrap())
}

fn start_at(listener: TcpListener) -> (TcpListener, Signal) {
    let _ = log::set_logger(&Collector);
    log::set_max_level(log::LevelFilter::Trace);
    LINES.lock().unwrap().clear();
    let address = listener.local_addr().unwrap();
    let broker: Broker = format!("mqtt://{address}").parse().unwrap();
    let device = Device::new("pk", "d").unwrap();
    let credentials = Credentials::password("pk.d", "user", "hush-password").unwrap();
    let mut times = Times::default();
    times.connect = Duration::from_secs(1);
    times.keep_alive = Duration::from_secs(1);
    times.retry_least = Duration::from_millis(10);
    times.retry_most = Duration::from_millis(20);
    let options = Options::new(device, broker, credentials).with_times(times);
    (listener, Signal::start(options, Agent).unwrap())
}

/// The next connection, once it has sent its CONNECT.
fn accept(listener: &TcpListener) -> TcpStream {
    let mut stream = wait::accept(listener);
    stream.set_read_timeout(Some(wait::TIMEOUT)).unwrap();
    let packet = read_packet(&mut stream);
    assert_eq!(packet[0], 0x10, "CONNECT");
    stream
}

/// One packet of fewer than 128 bytes, or the beginning of a longer one.
fn read_packet(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let mut packet = vec![0; usize::from(head[1])];
    stream.read_exact(&mut packet).unwrap();
    [&head[..], &packet].concat()
}

/// Answers the subscriptions; true answers.
fn answer_subscriptions(stream: &mut TcpStream, code: u8) {
    for _ in 0..2 {
        let packet = read_packet(stream);
        assert_eq!(packet[0], 0x82, "SUBSCRIBE");
        let _ = stream.write_all(&[0x90, 3, packet[2], packet[3], code]);
    }
}

fn publish(payload: &[u8]) -> Vec<u8> {
    let mut body = (NOTIFY.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(NOTIFY.as_bytes());
    body.extend_from_slice(payload);
    let mut packet = vec![0x30];
    let mut length = body.len();
    loop {
        let more = if length >= 128 { 0x80 } else { 0 };
        packet.push((length % 128) as u8 | more);
        length /= 128;
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

#[test]
fn whatever_a_broker_sends_the_next_connection_is_tried_and_no_token_is_logged() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let (listener, signal) = start();
    let token = publish(br#"{"tunnel_id":"t","token":"hush-token"}"#);
    let connect = [&[0x10, 24][..], b"\0\x04MQTT\x04\xc2\0\x3c\0\0\0\x04hush\0\x04hush"].concat();
    // In place of the CONNACK.
    let instead: [&[u8]; 9] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\nhush-body",
        &token,
        &connect,
        &[0x20, 2, 0, 9],
        &[0x20, 0],
        &[0x00, 0x00],
        &[0xff; 64],
        &[0x20, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[],
    ];
    for bytes in instead {
        let mut stream = accept(&listener);
        let _ = stream.write_all(bytes);
    }
    // After it.
    let after: [&[u8]; 8] = [
        &connect,
        &[0x30, 2, 0xff, 0xff],
        &[0x32, 4, 0, 0, 0, 0],
        &[0x40, 2, 0, 77],
        &[0x62, 2, 0, 77],
        &[0x90, 3, 0, 99, 7],
        &[0xd0, 1, 0],
        &[0x30, 0xff, 0xff, 0xff, 0x7f],
    ];
    for bytes in after {
        let mut stream = accept(&listener);
        let _ = stream.write_all(&CONNACK);
        let _ = stream.write_all(bytes);
    }
    // And after the subscriptions, one of which may be refused.
    for bytes in after {
        let mut stream = accept(&listener);
        let _ = stream.write_all(&CONNACK);
        answer_subscriptions(&mut stream, 1);
        let _ = stream.write_all(bytes);
    }
    drop(accept(&listener));
    signal.stop();
    assert_eq!(lines_with("hush"), 0, "{:?}", LINES.lock().unwrap());
    assert!(lines_with("next attempt in") >= 20);
}

#[test]
fn a_flood_of_junk_does_not_fill_the_log() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let (listener, signal) = start();
    let mut stream = accept(&listener);
    stream.write_all(&CONNACK).unwrap();
    answer_subscriptions(&mut stream, 1);
    let packet = publish(b"junk hush-junk");
    for _ in 0..10_000 {
        stream.write_all(&packet).unwrap();
    }
    // A ping is answered in its turn: everything before it has been looked at.
    stream.write_all(&publish(br#"{"tunnel_id":"t1","operation":"close"}"#)).unwrap();
    wait::until("20 lines", || lines_with("dropped a message") == 20);
    drop(stream);
    drop(accept(&listener));
    signal.stop();
    assert_eq!(lines_with("dropped a message"), 20);
    assert_eq!(lines_with("hush"), 0);
}

#[test]
fn a_refused_subscription_is_named_and_tried_again_slowly() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let (listener, signal) = start();
    let mut stream = accept(&listener);
    stream.write_all(&CONNACK).unwrap();
    answer_subscriptions(&mut stream, 0x80);
    wait::until("the line", || lines_with("refuses the subscription of /sys/pk/d") == 1);
    // Half a minute is the least gap after a refusal; somebody who asks does not wait for it.
    signal.handle().ask();
    drop(accept(&listener));
    signal.stop();
}

#[test]
fn a_broker_that_does_not_answer_the_subscriptions_has_a_deadline() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let (listener, signal) = start();
    let mut stream = accept(&listener);
    stream.write_all(&CONNACK).unwrap();
    drop(accept(&listener));
    assert_eq!(lines_with("does not answer the subscriptions"), 1);
    signal.stop();
}

#[test]
fn a_broker_that_answers_no_ping_is_given_up() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let (listener, signal) = start();
    let mut stream = accept(&listener);
    stream.write_all(&CONNACK).unwrap();
    answer_subscriptions(&mut stream, 1);
    drop(accept(&listener));
    assert_eq!(lines_with("does not answer a ping"), 1);
    signal.stop();
}

#[test]
fn a_broker_may_have_an_ipv6_address() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return aiot_tunnel_testkit::skip("an IPv6 address", "this machine has no IPv6");
    };
    let (listener, signal) = start_at(listener);
    drop(accept(&listener));
    signal.stop();
}
