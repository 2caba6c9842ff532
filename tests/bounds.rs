//! A hostile cloud and hostile local services: the device, in a process of its own, stays within its
//! memory, the tunnel beside the attacked one goes on, and afterwards everything works.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;

use aiot_tunnel::*;
use aiot_tunnel_testkit::cloud::upgrade;
use aiot_tunnel_testkit::device_process::{self, spec, DeviceProcess, ECHO};
use aiot_tunnel_testkit::frame::{
    code, server, server_tunnel, tunnel, BINARY, FIRST_FRAGMENT, LAST_FRAGMENT, MIDDLE_FRAGMENT,
    PING, TEXT,
};
use aiot_tunnel_testkit::services::service;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::{self, accept};
use aiot_tunnel_testkit::{procfs, random};
use serde_json::{json, Value};

#[test]
#[ignore = "not a test: the device's process of the other tests"]
fn device_process() {
    device_process::main();
}

/// The most resident memory that one tunnel may cost, in KiB.
const MOST: u64 = 4 * 1024;
fn create(session: &str, frame_id: usize, service: &str) -> Vec<u8> {
    let header = json!({"frame_type": 2, "session_id": session, "frame_id": frame_id, "service_type": service});
    server_tunnel(&header.to_string(), b"")
}

fn data(session: &str, payload: &[u8]) -> Vec<u8> {
    server_tunnel(&json!({"frame_type": 4, "session_id": session}).to_string(), payload)
}

/// Limits for a test in which a second thread writes to the tunnel. The pong of the first one would get
/// into the middle of a frame, however slow the machine is.
fn without_pings(stall_timeout: u64) -> Value {
    json!({"stall_timeout": stall_timeout, "ping_interval": 3_600_000, "pong_timeout": 7_200_000})
}

/// A device under attack: one tunnel that is attacked, and one beside it.
struct Victim {
    process: DeviceProcess,
    listener: TcpListener,
    /// The attacked tunnel.
    device: TunnelEnd,
    sibling: TunnelEnd,
    turns: usize,
    resident: u64,
    descriptors: usize,
}

impl Victim {
    fn new(limits: Value, services: &[Service]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut process = DeviceProcess::start(&spec(limits, services));
        let mut open = |id: &str| {
            process.add(id, "127.0.0.1", port);
            let mut device = upgrade(accept(&listener));
            process.expect(&format!("Connect {id}"));
            // Warm up: code is loaded, stacks and buffers are touched.
            assert_eq!(device.create("warm", ECHO), 0);
            for seed in 0..8 {
                let bytes = random::bytes(seed, 32_000);
                device.data("warm", &bytes);
                assert!(device.receive_data("warm", bytes.len()) == bytes);
            }
            device
        };
        let (device, sibling) = (open("t"), open("sibling"));
        procfs::reset_peak(process.id());
        let resident = procfs::status(process.id(), "VmRSS");
        let descriptors = procfs::descriptors(process.id());
        Victim { process, listener, device, sibling, turns: 0, resident, descriptors }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.device.tcp.write_all(bytes).unwrap();
    }

    /// The tunnel beside the attacked one works: its old session and a fresh one.
    fn sibling_moves(&mut self) {
        self.turns += 1;
        let bytes = random::bytes(self.turns as u64, 10_000);
        self.sibling.data("warm", &bytes);
        assert!(self.sibling.receive_data("warm", bytes.len()) == bytes);
        self.sibling.check_echo(&format!("fresh{}", self.turns), ECHO);
    }

    /// The session from before the attack still works.
    fn warm_echoes(&mut self) {
        self.device.data("warm", b"still here?");
        assert_eq!(self.device.receive_data("warm", 11), b"still here?");
    }

    /// The connection is lost and made again.
    fn reconnects(&mut self) {
        self.process.expect("Disconnect t");
        self.device = upgrade(accept(&self.listener));
        self.process.expect("Connect t");
        assert_eq!(self.device.create("warm", ECHO), 0);
    }

    /// Memory stayed within its bound, everything works, and every session is closed.
    fn recovered(mut self, case: &str) {
        let peak = procfs::peak(self.process.id());
        let grown = peak.saturating_sub(self.resident);
        eprintln!("{case}: {} KiB resident before, {grown} KiB more at the peak", self.resident);
        assert!(grown < MOST, "{case}: {grown} KiB");
        self.warm_echoes();
        self.device.check_echo("fresh", ECHO);
        self.sibling_moves();
        wait::until("every session is closed", || {
            procfs::descriptors(self.process.id()) == self.descriptors
        });
        assert!(self.process.said().is_empty());
        self.process.stop();
    }
}

#[test]
fn a_message_of_16_mib_costs_its_session_and_nothing_else() {
    let mut victim = Victim::new(json!({}), &[]);
    victim.write(&server(BINARY, &vec![0; 16 << 20]));
    victim.warm_echoes();
    assert_eq!(victim.device.create("s", ECHO), 0);
    let header = json!({"frame_type": 4, "session_id": "s"}).to_string();
    victim.write(&server(BINARY, &tunnel(&header, &vec![0; 16 << 20])));
    let (header, payload) = victim.device.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("s")));
    assert_eq!(code(&payload), 1);
    victim.warm_echoes();
    victim.write(&server(TEXT, &vec![b'x'; 16 << 20]));
    victim.recovered("16 MiB");
}

#[test]
fn a_frame_that_announces_2_to_the_62_bytes_fails_the_connection_at_once() {
    let mut victim = Victim::new(json!({}), &[]);
    let announced = [&[BINARY, 127][..], &(1u64 << 62).to_be_bytes()].concat();
    victim.write(&announced);
    match victim.device.socket.read() {
        Ok(tungstenite::Message::Close(Some(close))) => assert_eq!(u16::from(close.code), 1009),
        other => panic!("{other:?}"),
    }
    victim.reconnects();
    victim.recovered("2^62");
}

#[test]
fn a_flood_of_garbage_frames_is_dropped_and_sessions_go_on() {
    let mut victim = Victim::new(json!({}), &[]);
    let garbage = [
        server(BINARY, b""),
        server(BINARY, &[0, 0]),
        server(BINARY, &[8, 1, b'{', b'}']),
        server(BINARY, &[0, 2, 0xff, 0xfe]),
        server(BINARY, &tunnel("[4,\"s\"]", b"x")),
        server(BINARY, &tunnel("{\"frame_type\":99,\"session_id\":\"warm\"}", b"x")),
        server(BINARY, &tunnel("{\"frame_type\":4,\"session_id\":7}", b"x")),
        server(BINARY, &tunnel("{\"frame_type\":2,\"session_id\":\"no-frame-id\"}", b"")),
        server(TEXT, b"text"),
        server(0x8A, b"a pong that nobody asked for"),
    ]
    .concat();
    for _ in 0..50 {
        for _ in 0..50 {
            victim.write(&garbage);
        }
        victim.warm_echoes();
        victim.sibling_moves();
    }
    victim.recovered("25,000 garbage frames");
}

#[test]
fn a_burst_of_1500_session_creates_is_answered_whole() {
    // Pings are so rare that none of them can help the waiting answers.
    let mut victim = Victim::new(json!({"ping_interval": 600_000, "pong_timeout": 1_200_000}), &[]);
    for (service, opened) in [("nobody-offers-this", 0), (ECHO, 9)] {
        let burst: Vec<u8> =
            (0..1500).flat_map(|n| create(&format!("burst-{n}"), 5000 + n, service)).collect();
        victim.write(&burst);
        let mut codes: HashMap<i64, usize> = HashMap::new();
        let mut open = Vec::new();
        for _ in 0..1500 {
            let (header, payload) = victim.device.receive();
            assert_eq!(header["frame_type"], 1);
            *codes.entry(code(&payload)).or_default() += 1;
            if code(&payload) == 0 {
                open.push(header["session_id"].as_str().unwrap().to_owned());
            }
        }
        assert_eq!(open.len(), opened, "{codes:?}");
        for session in &open {
            victim.device.release(session, 1, "{\"code\":0}");
            let (header, _) = victim.device.receive();
            assert_eq!(
                (&header["frame_type"], &header["session_id"]),
                (&json!(1), &json!(session))
            );
        }
        victim.sibling_moves();
    }
    victim.recovered("3,000 creates");
}

#[test]
fn headers_nested_as_deep_as_they_can_be_are_harmless() {
    let mut victim = Victim::new(json!({}), &[]);
    let deepest = [
        format!("{{\"x\":{}", "[".repeat(2000)),
        "[".repeat(2048),
        "{\"x\":".repeat(400),
        format!("{{\"frame_type\":99,\"x\":{}{}}}", "[".repeat(1000), "]".repeat(1000)),
        format!("{{\"frame_type\":99,\"x\":{}1{}}}", "{\"a\":".repeat(300), "}".repeat(300)),
    ];
    // Within the depth that a JSON parser allows, in each field of the protocol.
    let fields = ["frame_type", "session_id", "frame_id", "service_type", "ext", "credit", "eof"];
    let nested = |field: &str| {
        let (open, close) = ("[".repeat(120), "]".repeat(120));
        format!("{{\"frame_type\":1,\"session_id\":\"none\",\"{field}\":{open}{close}}}")
    };
    let deepest = deepest.into_iter().chain(fields.map(nested)).collect::<Vec<_>>();
    for _ in 0..200 {
        for header in &deepest {
            assert!(header.len() <= 2048);
            victim.write(&server(BINARY, &tunnel(header, b"x")));
        }
        victim.warm_echoes();
    }
    victim.recovered("nested headers");
}

#[test]
fn a_service_name_of_2_kb_is_refused_or_dropped() {
    let mut victim = Victim::new(json!({}), &[]);
    for turn in 0..200 {
        // A header of more than 2048 bytes is malformed and not answered.
        victim.write(&create("beyond", turn, &"n".repeat(2048)));
        let fits = "n".repeat(1960);
        let name = format!("fits{turn}");
        assert_eq!(victim.device.create(&name, &fits), 2);
    }
    victim.recovered("service names of 2 KB");
}

#[test]
fn a_local_service_that_never_reads_while_64_mb_come_costs_its_session_only() {
    let (keep, kept) = mpsc::channel();
    let deaf = service("deaf", move |stream| keep.send(stream).unwrap());
    let mut victim = Victim::new(without_pings(500), &[deaf]);
    assert_eq!(victim.device.create("deaf", "deaf"), 0);
    let mut raw = victim.device.tcp.try_clone().unwrap();
    let flood = thread::spawn(move || {
        let chunk = data("deaf", &[7; 65_536]);
        for _ in 0..1024 {
            raw.write_all(&chunk).unwrap();
        }
    });
    // The other tunnel goes on meanwhile.
    for _ in 0..20 {
        victim.sibling_moves();
    }
    let (header, payload) = victim.device.receive();
    assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(3), &json!("deaf")));
    assert_eq!(code(&payload), 1);
    flood.join().unwrap();
    victim.recovered("a deaf service and 64 MB");
    drop(kept);
}

#[test]
fn nine_deaf_services_filled_to_the_brim_stay_within_the_tunnels_memory() {
    let (keep, kept) = mpsc::channel();
    let deaf = service("deaf", move |stream| keep.send(stream).unwrap());
    let mut victim = Victim::new(without_pings(300), &[deaf]);
    for round in 0..3 {
        for n in 0..9 {
            assert_eq!(victim.device.create(&format!("deaf{round}-{n}"), "deaf"), 0);
        }
        // Each session is sent more than the kernel and its buffer hold. All of them fill up before
        // the first one stops the tunnel.
        let mut raw = victim.device.tcp.try_clone().unwrap();
        let flood = thread::spawn(move || {
            for _ in 0..256 {
                for n in 0..9 {
                    raw.write_all(&data(&format!("deaf{round}-{n}"), &[7; 32_768])).unwrap();
                }
            }
        });
        let mut released = 0;
        while released < 9 {
            let (header, _) = victim.device.receive();
            assert_eq!(header["frame_type"], 3, "{header}");
            released += 1;
        }
        flood.join().unwrap();
        victim.sibling_moves();
    }
    victim.recovered("nine deaf services");
    drop(kept);
}

#[test]
fn a_cloud_that_does_not_read_while_a_service_sends_64_mb_stops_the_service_and_loses_nothing() {
    const ALL: usize = 64 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let source = service("source", move |mut stream| {
        for n in 0..ALL / 65_536 {
            stream.write_all(&random::bytes(n as u64, 65_536)).unwrap();
            count.fetch_add(65_536, Ordering::SeqCst);
        }
    });
    let mut victim = Victim::new(json!({}), &[source]);
    assert_eq!(victim.device.create("s", "source"), 0);
    loop {
        let before = written.load(Ordering::SeqCst);
        for _ in 0..10 {
            victim.sibling_moves();
        }
        if before > 0 && written.load(Ordering::SeqCst) == before {
            break;
        }
    }
    assert!(written.load(Ordering::SeqCst) < ALL, "nothing stops the service");
    let (mut received, mut chunk) = (Vec::new(), 0);
    while chunk < ALL / 65_536 {
        let (header, payload) = victim.device.receive();
        assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(4), &json!("s")));
        received.extend(payload);
        while received.len() >= 65_536 {
            let expected = random::bytes(chunk as u64, 65_536);
            assert!(received.drain(..65_536).eq(expected), "chunk {chunk} is wrong");
            chunk += 1;
        }
    }
    assert!(received.is_empty());
    let (header, payload) = victim.device.receive();
    assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), 1));
    victim.recovered("a deaf cloud and 64 MB");
}

#[test]
fn fragments_without_end_are_bounded_and_a_message_in_fragments_arrives() {
    let mut victim = Victim::new(json!({}), &[]);
    let message = tunnel("{\"frame_type\":4,\"session_id\":\"warm\"}", b"in pieces");
    // 100,000 empty fragments are legal and cost nothing.
    let mut bytes = server(FIRST_FRAGMENT, &message[..10]);
    for _ in 0..100_000 {
        bytes.extend(server(MIDDLE_FRAGMENT, b""));
    }
    bytes.extend(server(PING, b"between"));
    for byte in &message[10..] {
        bytes.extend(server(MIDDLE_FRAGMENT, &[*byte]));
    }
    bytes.extend(server(LAST_FRAGMENT, b""));
    victim.write(&bytes);
    assert_eq!(victim.device.receive_data("warm", 9), b"in pieces");
    victim.sibling_moves();

    // More than 64 MiB of fragments fail the connection.
    let mut raw = victim.device.tcp.try_clone().unwrap();
    let endless = thread::spawn(move || {
        raw.write_all(&server(FIRST_FRAGMENT, b"")).unwrap();
        let more = server(MIDDLE_FRAGMENT, &[0; 65_536]);
        while raw.write_all(&more).is_ok() {}
    });
    victim.reconnects();
    endless.join().unwrap();
    victim.recovered("endless fragments");
}

#[test]
fn a_flood_of_pings_whose_pongs_are_not_read_stops_being_read() {
    let mut victim = Victim::new(without_pings(10_000), &[]);
    let mut raw = victim.device.tcp.try_clone().unwrap();
    let pings = server(PING, &[b'p'; 125]).repeat(500);
    raw.set_nonblocking(true).unwrap();
    let (mut sent, mut refused) = (0, 0);
    while refused < 20 {
        match raw.write(&pings[sent % pings.len()..]) {
            Ok(length) => (sent, refused) = (sent + length, 0),
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::WouldBlock, "{e}");
                refused += 1;
                victim.sibling_moves();
            }
        }
    }
    raw.set_nonblocking(false).unwrap();
    // The cloud reads again. The rest of the last ping follows, and a session's data behind it.
    let mut rest = pings[sent % pings.len()..].to_vec();
    rest.extend(data("warm", b"behind them"));
    let writer = thread::spawn(move || raw.write_all(&rest).unwrap());
    assert_eq!(victim.device.receive_data("warm", 11), b"behind them");
    writer.join().unwrap();
    victim.recovered("a flood of pings");
}

#[test]
fn a_cloud_that_floods_and_takes_nothing_is_given_up_after_the_pong_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let limits = json!({"ping_interval": 300, "pong_timeout": 1000});
    let mut process = DeviceProcess::start(&spec(limits, &[]));
    process.add("t", "127.0.0.1", listener.local_addr().unwrap().port());
    let device = upgrade(accept(&listener));
    process.expect("Connect t");
    procfs::reset_peak(process.id());
    let resident = procfs::status(process.id(), "VmRSS");
    let mut raw = device.tcp.try_clone().unwrap();
    let flood = thread::spawn(move || {
        let pings = server(PING, &[b'p'; 125]).repeat(500);
        while raw.write_all(&pings).is_ok() {}
    });
    process.expect("Disconnect t");
    let mut again = upgrade(accept(&listener));
    process.expect("Connect t");
    again.check_echo("s", ECHO);
    let grown = procfs::peak(process.id()).saturating_sub(resident);
    assert!(grown < MOST, "{grown} KiB");
    drop(device);
    flood.join().unwrap();
    process.stop();
}

#[test]
fn answers_that_had_to_wait_for_room_need_no_other_event_to_go_on() {
    // Pings are so rare that none of them can help the waiting answers.
    let mut victim = Victim::new(json!({"ping_interval": 600_000, "pong_timeout": 1_200_000}), &[]);
    const BURST: usize = 2500;
    for turn in 0..20 {
        // The answers are more than twice as long as the requests: those to one read do not fit.
        let burst: Vec<u8> =
            (0..BURST).flat_map(|n| data(&format!("{}", turn * BURST + n), b"")).collect();
        victim.write(&burst);
        for _ in 0..BURST {
            assert_eq!(victim.device.receive().0["frame_type"], 3);
        }
    }
    victim.recovered("answers longer than their requests");
}

#[test]
fn a_cloud_that_writes_single_bytes_is_understood() {
    let mut victim = Victim::new(json!({}), &[]);
    for byte in data("warm", b"byte by byte") {
        victim.write(&[byte]);
    }
    assert_eq!(victim.device.receive_data("warm", 12), b"byte by byte");
    for byte in server(PING, b"slow").into_iter().chain(create("slow", 4242, ECHO)) {
        victim.write(&[byte]);
    }
    let (header, payload) = victim.device.receive();
    assert_eq!((&header["frame_id"], code(&payload)), (&json!(4242), 0));
    let released = json!({"frame_type": 3, "session_id": "slow", "frame_id": 1}).to_string();
    for byte in server(BINARY, &tunnel(&released, b"")) {
        victim.write(&[byte]);
    }
    assert_eq!(victim.device.receive().0["frame_id"], 1);
    victim.recovered("single bytes");
}
