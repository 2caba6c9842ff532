//! Benchmarks of frames, WebSocket messages and single turns of the device's relay, all in memory:
//! the cost of a byte without system calls. `benches/tunnel` measures the whole.

mod memory;

use std::hint::black_box;
use std::io;

use aiot_tunnel_proto::frame::{Frame, FrameType, HeaderTemplate};
use aiot_tunnel_proto::websocket::{Incoming, Receiver, Role, Sender};
use criterion::measurement::WallTime;
use criterion::{criterion_group, criterion_main, BenchmarkGroup, Criterion, Throughput};

use memory::{wire, Rig};

/// Payload lengths: the protocol's longest, and that of a keystroke.
const PAYLOADS: [usize; 2] = [4096, 1];
/// A session id of the platform's length.
const SESSION: &str = "0f8c8a1e5d9b4c6fa1b2c3d4e5f60718";
/// The number of bytes received in one turn. The largest receive buffer is four times as large.
const RECEIVED: usize = 128 * 1024;

fn message(header: &str, payload: usize) -> Vec<u8> {
    let mut message = (header.len() as u16).to_be_bytes().to_vec();
    message.extend_from_slice(header.as_bytes());
    message.resize(message.len() + payload, 7);
    message
}

fn parse(criterion: &mut Criterion) {
    let fields = format!(r#""frame_type":4,"session_id":"{SESSION}""#);
    let headers = [
        ("frame_type, frame_id, session_id", format!(r#"{{{fields},"frame_id":123456789}}"#), 1),
        ("leading zero, as the C SDK writes", format!(r#"{{{fields},"frame_id":012345678}}"#), 1),
        (
            "with service_type",
            format!(r#"{{{fields},"frame_id":123456789,"service_type":"_SSH"}}"#),
            1,
        ),
        ("4 KiB of payload", format!(r#"{{{fields},"frame_id":123456789}}"#), 4096),
    ];
    let mut group = criterion.benchmark_group("frame: parse");
    for (name, header, payload) in headers {
        let message = message(&header, payload);
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| Frame::parse(black_box(&message)).unwrap().payload.len())
        });
    }
}

/// Writes a frame as the relay does: the session's header with the next id, then header and payload
/// into the send buffer. A sink takes the buffer's bytes.
fn write(criterion: &mut Criterion) {
    let template = HeaderTemplate::new(FrameType::DataTransport, SESSION, None);
    let mut group = criterion.benchmark_group("frame: write, masked");
    for payload in PAYLOADS {
        let payload = vec![7; payload];
        let mut sender = Sender::new(Role::Client);
        let (mut id, mut header) = (0, Vec::new());
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(format!("{} bytes of payload", payload.len()), |b| {
            b.iter(|| {
                id += 1;
                template.write(id, &mut header);
                sender.binary(&header, black_box(&payload));
                sender.flush(&mut io::sink()).unwrap()
            })
        });
    }
}

/// Converts bytes to messages. A copy into the receive buffer stands in for the kernel's copy.
fn receive(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("WebSocket: receive");
    for payload in PAYLOADS {
        let bytes = wire(RECEIVED, payload, 1);
        let mut receiver = Receiver::new(Role::Client);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("128 KiB of messages of {payload} bytes"), |b| {
            b.iter(|| {
                let (mut source, mut messages) = (black_box(&bytes[..]), 0);
                while !source.is_empty() {
                    receiver.fill(&mut source).unwrap();
                    while let Some(incoming) = receiver.peek().unwrap() {
                        messages += usize::from(matches!(incoming, Incoming::Binary { .. }));
                        receiver.consume();
                    }
                }
                messages
            })
        });
    }
}

fn turn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay: one turn");
    for sessions in [1, 10] {
        for payload in PAYLOADS {
            let mut rig = Rig::new(sessions, wire(RECEIVED, payload, sessions), 0);
            let name = format!("down, {payload} bytes a frame, sessions: {sessions}");
            turns(&mut group, &name, &mut rig);
        }
        for each in [64 * 1024, 1] {
            let mut rig = Rig::new(sessions, Vec::new(), each);
            let name = format!("up, {each} bytes a service, sessions: {sessions}");
            turns(&mut group, &name, &mut rig);
        }
    }
}

fn turns(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, rig: &mut Rig) {
    group.throughput(Throughput::Bytes(rig.bytes_a_turn as u64));
    group.bench_function(name, |b| b.iter(|| rig.turn()));
}

criterion_group!(benches, parse, write, receive, turn);
criterion_main!(benches);
