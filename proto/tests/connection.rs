//! An open WebSocket over a scripted byte stream.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use aiot_tunnel_proto::connection::{Connection, End, Transport};
use aiot_tunnel_proto::gateway::UPKEEP;
use aiot_tunnel_proto::websocket::{Role, Sender};

/// What each read brings.
struct Script {
    reads: VecDeque<io::Result<Vec<u8>>>,
    /// Whether it takes what is written.
    takes: bool,
    written: Vec<u8>,
    /// Whether reads that would block are pauses.
    pauses: bool,
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.reads.pop_front().unwrap_or(Err(ErrorKind::WouldBlock.into()))?;
        (&bytes[..]).read(buffer)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.takes {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.written.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Script {
    fn written(&self) -> u64 {
        0
    }
    fn unacked(&self) -> usize {
        0
    }
    fn has_paused(&self) -> bool {
        self.pauses && !self.reads.is_empty()
    }
}

/// A connection whose peer has said nothing yet.
fn connection<const N: usize>(
    reads: [io::Result<Vec<u8>>; N],
    takes: bool,
    now: Instant,
) -> Connection<Script> {
    let script = Script { reads: reads.into(), takes, written: Vec::new(), pauses: false };
    let mut connection = Connection::new(script, Role::Client, b"", UPKEEP, now);
    assert!(connection.peek(now).is_none());
    connection
}

/// What `poll` reports is read.
fn receive(connection: &mut Connection<Script>, now: Instant) {
    connection.ready(true, false);
    connection.receive(now, usize::MAX);
}

/// Deals with every message: how many there were.
fn deal(connection: &mut Connection<Script>, now: Instant) -> usize {
    let mut count = 0;
    while connection.peek(now).is_some() {
        connection.consume();
        count += 1;
    }
    count
}

fn written_by(queue: impl FnOnce(&mut Sender)) -> Vec<u8> {
    let (mut sender, mut bytes) = (Sender::new(Role::Server), Vec::new());
    queue(&mut sender);
    sender.flush(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_came_with_the_end_counts() {
    let now = Instant::now();
    let data = written_by(|sender| sender.binary(b"\0\x10{\"frame_type\":4}", b"x"));
    let close = written_by(|sender| sender.close(Some(4001)));
    for (end, why) in
        [(Ok(Vec::new()), "end of stream"), (Err(ErrorKind::ConnectionReset), "reset")]
    {
        let end = || end.clone().map_err(io::Error::from);
        let mut connection =
            self::connection([Ok(data.clone()), Ok(data.clone()), end()], true, now);
        receive(&mut connection, now);
        assert!(connection.is_open() && connection.has_input());
        let mut count = 0;
        // Its owner may take one at a time.
        while connection.has_input() {
            count += usize::from(connection.peek(now).is_some());
            connection.consume();
        }
        assert_eq!(count, 2);
        let end_text = connection.end().unwrap().to_string();
        assert!(connection.is_gone() && end_text.contains(why), "{end_text}");

        // A close frame is the end that counts, and is answered.
        let mut connection =
            self::connection([Ok(data.clone()), Ok(close.clone()), end()], true, now);
        receive(&mut connection, now);
        assert_eq!(deal(&mut connection, now), 1);
        assert_eq!(connection.end(), Some(&End::Peer { code: Some(4001), reason: String::new() }));
        assert!(connection.end().unwrap().is_expired());
        assert!(connection.waiting() > 0 && !connection.is_gone() && !connection.has_input());
    }
}

#[test]
fn a_lost_connection_is_waited_for_in_no_way_though_bytes_wait_for_it() {
    let now = Instant::now();
    let mut connection = connection([Err(ErrorKind::ConnectionReset.into())], false, now);
    connection.sender().ping();
    connection.flush(now);
    assert!(connection.reads() && connection.wants_room(now));
    receive(&mut connection, now);
    assert!(connection.is_gone() && connection.waiting() > 0);
    assert!(!connection.reads() && !connection.wants_room(now));
    assert!(!connection.has_input() && connection.deadline(now, true) == now);
}

#[test]
fn a_peer_that_is_heard_all_the_time_has_its_buffers_given_back_all_the_same() {
    let start = Instant::now();
    let pong = vec![0x8a, 0];
    let mut connection = connection([Ok(pong)], true, start);
    let now = start + UPKEEP.shrink_interval;
    receive(&mut connection, now);
    assert_eq!(deal(&mut connection, now), 1);
    assert!(connection.receive_capacity() > 0);
    let ticked = connection.tick(now, true);
    assert!(ticked.shrunk && connection.receive_capacity() == 0);
    assert!(!ticked.pinged && connection.waiting() == 0, "it is pinged");
}

#[test]
fn what_is_queued_when_the_peers_stream_ends_is_still_written() {
    let now = Instant::now();
    let data = written_by(|sender| sender.binary(b"\0\x10{\"frame_type\":4}", b"x"));
    let mut connection = connection([Ok(data), Ok(Vec::new())], true, now);
    receive(&mut connection, now);
    let (_, sender) = connection.peek(now).unwrap();
    sender.binary(b"\0\x10{\"frame_type\":4}", b"answer");
    connection.consume();
    assert_eq!(deal(&mut connection, now), 0);
    assert!(connection.is_gone() && connection.waiting() > 0);
    connection.flush(now);
    assert_eq!(connection.waiting(), 0);
}

#[test]
fn a_silent_peer_is_lost_once_what_it_sent_before_is_dealt_with() {
    let start = Instant::now();
    let data = written_by(|sender| sender.binary(b"\0\x10{\"frame_type\":4}", b"x"));
    let mut connection = connection([Ok(data.clone()), Ok(data)], true, start);
    receive(&mut connection, start);
    // Its owner has no room for the messages until the time is up.
    let now = start + UPKEEP.silence_limit;
    connection.flush(now);
    assert_eq!(connection.end(), Some(&End::Silence(UPKEEP.silence_limit)));
    assert!(!connection.is_gone() && connection.has_input());
    connection.receive(now, usize::MAX);
    assert_eq!(deal(&mut connection, now), 2);
    assert!(connection.is_gone());
    assert_eq!(connection.end(), Some(&End::Silence(UPKEEP.silence_limit)));
}

#[test]
fn a_transport_that_pauses_is_read_again_in_the_next_turn() {
    let now = Instant::now();
    let data = written_by(|sender| sender.binary(b"\0\x10{\"frame_type\":4}", b"x"));
    let pause = || Err(ErrorKind::WouldBlock.into());
    let reads = [pause(), pause(), Ok(data.clone()), pause(), Ok(data)];
    let script = Script { reads: reads.into(), takes: true, written: Vec::new(), pauses: true };
    let mut connection = Connection::new(script, Role::Client, b"", UPKEEP, now);
    let mut turns = 0;
    while connection.has_input() {
        // Nothing else is to be waited for.
        assert_eq!(connection.deadline(now, true), now);
        connection.receive(now, usize::MAX);
        assert!(connection.transport().reads.len() == [4, 3, 1, 0][turns]);
        deal(&mut connection, now);
        turns += 1;
    }
    assert_eq!(turns, 4);
    assert!(connection.deadline(now, true) > now);
}

#[test]
fn a_close_without_a_code_is_answered_with_an_empty_close() {
    let now = Instant::now();
    // Half a code is none.
    for close in [vec![0x88, 0], vec![0x88, 1, 3]] {
        let mut connection = connection([Ok(close)], true, now);
        receive(&mut connection, now);
        assert_eq!(deal(&mut connection, now), 0);
        connection.flush(now);
        assert_eq!(connection.end(), Some(&End::Peer { code: None, reason: String::new() }));
        let written = &connection.transport().written;
        // Masked, and without a payload: the code 1005 stands for this and must not be sent.
        assert!(written[..2] == [0x88, 0x80] && written.len() == 6, "{written:?}");
    }
}
