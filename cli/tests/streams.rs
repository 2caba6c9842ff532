//! A stream through a tunnel behaves as a TCP connection does, whatever happens on the way: it ends
//! in order only where every byte has arrived, and it lasts for as long as both ends want it.
//!
//! All programs are real ones: `gateway`, `agent`, `send`, `access --listen` and `access --stdio`.
//! Where a test needs shorter times than the programs have, gateway and device run in the test. A
//! foreign end is a raw WebSocket that knows the platform's protocol and no extension.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::gateway::Gateway;
use aiot_tunnel::{EventKind, Limits};
use aiot_tunnel_testkit::certificates::Identity;
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::frame;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::path::{Access, Agent, Kind, Path, Program, TUNNEL};
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::sockets::reset_on_close;
use aiot_tunnel_testkit::streams::{
    self, content, limited, round_trip, writing, Door, End, Reader,
};
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait;
use aiot_tunnel_testkit::{gateways, ACCESS_TOKEN};
use serde_json::json;

/// The service that is a [`Door`].
const SERVICE: &str = "s";
/// So much of a stream has arrived when it is cut. More is on its way.
const PART: usize = 300_000;
/// A service answers so long after the request has ended: longer than the programs need to pass
/// that end on.
const ANSWER_DELAY: Duration = Duration::from_millis(500);
/// A session that nothing holds up answers a byte within this time, on a busy machine as well.
const PROMPT: Duration = Duration::from_secs(2);

/// Each promise over each kind of path.
macro_rules! over_every_path {
    ($($promise:ident)*) => {
        mod plain {
            $(#[test] fn $promise() { super::$promise(super::Kind::PLAIN); })*
        }
        mod tls {
            $(#[test] fn $promise() { super::$promise(super::Kind::TLS); })*
        }
        mod without_extensions {
            $(#[test] fn $promise() { super::$promise(super::Kind::WITHOUT_EXTENSIONS); })*
        }
    };
}

/// The same, where both ends speak the extensions or where it does not matter.
macro_rules! plain_and_tls {
    ($($promise:ident)*) => {
        mod plain {
            $(#[test] fn $promise() { super::$promise(super::Kind::PLAIN); })*
        }
        mod tls {
            $(#[test] fn $promise() { super::$promise(super::Kind::TLS); })*
        }
    };
}

/// A path with one service, whose connections the test takes.
struct Line {
    path: Path,
    agent: Agent,
    door: Door,
}

impl Line {
    fn new(kind: Kind) -> Self {
        let door = Door::new(SERVICE);
        let path = Path::new(kind);
        let agent = path.agent(&[door.service()]);
        Line { path, agent, door }
    }

    /// A session: `access --listen`, the local program's end and the local service's end.
    fn session(&self) -> (Access, TcpStream, TcpStream) {
        let access = self.path.listen(SERVICE);
        let client = access.connect();
        (access, client, self.door.accept())
    }
}

/// The ways in which a stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    GatewayKilled,
    GatewayStopped,
    AgentKilled,
    AgentStopped,
    AccessKilled,
    AccessStopped,
    Deleted,
    Updated,
}

impl Way {
    fn cut(self, line: &mut Line, access: &mut Program) {
        match self {
            Way::GatewayKilled => line.path.gateway.process.kill(),
            Way::GatewayStopped => line.path.gateway.process.terminate(),
            Way::AgentKilled => line.agent.program.process.kill(),
            Way::AgentStopped => line.agent.program.process.terminate(),
            Way::AccessKilled => access.process.kill(),
            Way::AccessStopped => access.process.terminate(),
            Way::Deleted => line.agent.send("delete", None),
            Way::Updated => line.path.update(&line.agent),
        }
    }
}

fn an_upload_is_reset_at_both_ends(way: Way, kind: Kind) {
    let mut line = Line::new(kind);
    let (mut access, client, service) = line.session();
    let uploading = writing(client);
    let mut service = Reader::new(service);
    service.read_up_to(PART);
    way.cut(&mut line, &mut access.program);
    assert_eq!(service.read_to_end(), End::Reset, "at the service, after {}", service.taken);
    assert_eq!(uploading.join().unwrap(), End::Reset, "at the client");
}

fn a_download_is_reset_at_both_ends(way: Way, kind: Kind) {
    let mut line = Line::new(kind);
    let (mut access, client, service) = line.session();
    let downloading = writing(service);
    let mut client = Reader::new(client);
    client.read_up_to(PART);
    way.cut(&mut line, &mut access.program);
    assert_eq!(client.read_to_end(), End::Reset, "at the client, after {}", client.taken);
    assert_eq!(downloading.join().unwrap(), End::Reset, "at the service");
}

fn a_quiet_session_is_reset_at_both_ends(way: Way, kind: Kind) {
    let mut line = Line::new(kind);
    let (mut access, mut client, service) = line.session();
    streams::write(&mut client, 0, 5);
    let (mut client, mut service) = (Reader::new(client), Reader::new(service));
    service.read_up_to(5);
    way.cut(&mut line, &mut access.program);
    assert_eq!(service.read_to_end(), End::Reset, "at the service");
    assert_eq!(client.read_to_end(), End::Reset, "at the client");
}

fn stdio_fails_and_its_service_is_reset(way: Way, kind: Kind) {
    let mut line = Line::new(kind);
    let mut access = line.path.stdio(SERVICE);
    let stdin = access.process.take_stdin();
    let mut stdout = Reader::new(access.process.take_stdout());
    let service = line.door.accept();
    let downloading = writing(service.try_clone().unwrap());
    stdout.read_up_to(PART);
    streams::write(&stdin, 0, PART);
    let mut service = Reader::new(service);
    service.read_up_to(PART);
    way.cut(&mut line, &mut access);
    stdout.read_to_end();
    if way == Way::AccessKilled {
        access.finish();
    } else {
        access.fails();
    }
    // The error is for the first of the two that asks for it.
    let ends = [downloading.join().unwrap(), service.read_to_end()];
    assert!(ends.contains(&End::Reset), "at the service: {ends:?}");
}

macro_rules! cut_in_every_way {
    ($($way:ident: $value:ident,)*) => {
        $(mod $way {
            use super::{Kind, Way};
            cut_in_every_way!(@promises $value:
                an_upload_is_reset_at_both_ends
                a_download_is_reset_at_both_ends
                a_quiet_session_is_reset_at_both_ends
                stdio_fails_and_its_service_is_reset
            );
            over_every_path! {
                an_upload_is_reset_at_both_ends
                a_download_is_reset_at_both_ends
                a_quiet_session_is_reset_at_both_ends
                stdio_fails_and_its_service_is_reset
            }
        })*
    };
    (@promises $value:ident: $($promise:ident)*) => {
        $(fn $promise(kind: Kind) { super::$promise(Way::$value, kind); })*
    };
}

cut_in_every_way! {
    the_gateway_is_killed: GatewayKilled,
    the_gateway_is_stopped: GatewayStopped,
    the_agent_is_killed: AgentKilled,
    the_agent_is_stopped: AgentStopped,
    the_access_side_is_killed: AccessKilled,
    the_access_side_is_stopped: AccessStopped,
    the_tunnel_is_deleted: Deleted,
    the_tunnel_is_updated: Updated,
}

/// What a service or a client cuts itself is cut at the other end, too.
mod resets {
    use super::*;

    const MIB: usize = 1 << 20;

    fn a_service_that_resets_after_a_mebibyte_is_seen_to_reset(kind: Kind) {
        let line = Line::new(kind);
        let (_access, client, service) = line.session();
        streams::write(&service, 0, MIB);
        let mut client = Reader::new(client);
        client.read_up_to(MIB / 2);
        reset_on_close(&service);
        drop(service);
        assert_eq!(client.read_to_end(), End::Reset, "after {}", client.taken);
    }

    fn a_service_that_resets_fails_stdio(kind: Kind) {
        let line = Line::new(kind);
        let mut access = line.path.stdio(SERVICE);
        let _stdin = access.process.take_stdin();
        let service = line.door.accept();
        streams::write(&service, 0, PART);
        let mut stdout = Reader::new(access.process.take_stdout());
        stdout.read_up_to(PART);
        reset_on_close(&service);
        drop(service);
        stdout.read_to_end();
        access.fails();
    }

    fn a_client_that_resets_is_seen_to_reset(kind: Kind) {
        let line = Line::new(kind);
        let (_access, client, service) = line.session();
        streams::write(&client, 0, PART);
        let mut service = Reader::new(service);
        service.read_up_to(PART);
        reset_on_close(&client);
        drop(client);
        assert_eq!(service.read_to_end(), End::Reset);
    }

    over_every_path! {
        a_service_that_resets_after_a_mebibyte_is_seen_to_reset
        a_service_that_resets_fails_stdio
        a_client_that_resets_is_seen_to_reset
    }
}

/// A session that is not opened.
mod refusals {
    use super::*;

    fn ends_in_a_reset(client: TcpStream) {
        let mut client = Reader::new(client);
        assert_eq!(client.read_to_end(), End::Reset);
        assert_eq!(client.taken, 0);
    }

    fn a_service_that_the_device_does_not_have_is_a_reset(kind: Kind) {
        let line = Line::new(kind);
        let access = line.path.listen("unknown");
        ends_in_a_reset(access.connect());
        access.program.expect_log("session refused: code 2");
    }

    fn a_service_that_refuses_is_a_reset(kind: Kind) {
        let path = Path::new(kind);
        let door = Door::new(SERVICE);
        let service = door.service();
        let _agent = path.agent(&[service]);
        drop(door);
        let access = path.listen(SERVICE);
        ends_in_a_reset(access.connect());
        access.program.expect_log("session refused: code 2");
    }

    fn a_session_over_the_limit_is_a_reset_after_its_time_in_the_queue(kind: Kind) {
        let door = Door::new(SERVICE);
        let path = Path::with_gateway(kind, &["--session-limit", "2"]);
        let _agent = path.agent(&[door.service()]);
        let access = path.listen_with(SERVICE, &["--queue-timeout", "1"]);
        let mut open: Vec<_> = (0..2).map(|_| (access.connect(), door.accept())).collect();
        ends_in_a_reset(access.connect());
        // The others are as before.
        for (client, service) in &mut open {
            streams::write(&*client, 0, 1000);
            Reader::new(service).read_up_to(1000);
        }
    }

    fn a_foreign_devices_refusal_is_a_reset(kind: Kind) {
        let path = Path::new(kind);
        let mut device = path.raw(true);
        let access = path.listen(SERVICE);
        let client = access.connect();
        device.answer(2);
        ends_in_a_reset(client);
    }

    fn a_refusal_fails_stdio(kind: Kind) {
        let line = Line::new(kind);
        let mut access = line.path.stdio("unknown");
        let log = access.fails();
        assert!(log.contains("session refused: code 2"), "{log}");
    }

    over_every_path! {
        a_service_that_the_device_does_not_have_is_a_reset
        a_service_that_refuses_is_a_reset
        a_session_over_the_limit_is_a_reset_after_its_time_in_the_queue
        a_foreign_devices_refusal_is_a_reset
        a_refusal_fails_stdio
    }

    #[test]
    fn a_frozen_device_is_a_reset_after_the_time_for_its_answer() {
        let mut line = Line::new(Kind::PLAIN);
        let access = line.path.listen(SERVICE);
        line.agent.program.process.freeze();
        // The gateway gives a device 10 s for its answer.
        ends_in_a_reset(access.connect());
    }

    #[test]
    fn a_device_that_is_away_is_a_reset_after_the_time_in_the_queue() {
        let path = Path::new(Kind::PLAIN);
        let access = path.listen_with(SERVICE, &["--queue-timeout", "1"]);
        ends_in_a_reset(access.connect());
        access.program.expect_log("the device was not connected in time");
        assert_eq!(access.program.log().matches("session refused").count(), 1);
    }

    #[test]
    fn a_gateway_that_is_away_is_a_reset_after_the_time_in_the_queue() {
        let mut line = Line::new(Kind::PLAIN);
        let access = line.path.listen_with(SERVICE, &["--queue-timeout", "1"]);
        let (client, service) = (access.connect(), line.door.accept());
        line.path.gateway.process.kill();
        assert_eq!(Reader::new(client).read_to_end(), End::Reset);
        assert_eq!(Reader::new(service).read_to_end(), End::Reset);
        ends_in_a_reset(access.connect());
    }
}

/// One direction ends, the other goes on.
mod half_close {
    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
    /// More than all buffers on the way hold.
    const UPLOAD: usize = 20 << 20;

    /// Answers when the request has ended.
    fn answer_late(service: TcpStream, length: usize) {
        let mut service = service;
        let mut request = Vec::new();
        service.read_to_end(&mut request).unwrap();
        assert_eq!(request, REQUEST);
        thread::sleep(ANSWER_DELAY);
        streams::write(&service, 0, length);
    }

    fn a_request_that_has_ended_is_answered(kind: Kind) {
        let line = Line::new(kind);
        let (_access, mut client, service) = line.session();
        client.write_all(REQUEST).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let answering = thread::spawn(move || answer_late(service, PART));
        let mut client = Reader::new(client);
        assert_eq!(client.read_to_end(), End::Orderly);
        assert_eq!(client.taken, PART);
        answering.join().unwrap();
    }

    fn stdio_delivers_the_answer_to_a_request_that_has_ended(kind: Kind) {
        let line = Line::new(kind);
        let mut access = line.path.stdio(SERVICE);
        access.process.write(REQUEST);
        drop(access.process.take_stdin());
        let service = line.door.accept();
        let answering = thread::spawn(move || answer_late(service, PART));
        let mut stdout = Reader::new(access.process.take_stdout());
        stdout.read_to_end();
        assert_eq!(stdout.taken, PART);
        let (status, log) = access.finish();
        assert!(status.success(), "{log}");
        answering.join().unwrap();
    }

    fn a_service_that_has_said_all_still_takes_an_upload(kind: Kind) {
        let line = Line::new(kind);
        let (_access, client, service) = line.session();
        streams::write(&service, 0, PART);
        service.shutdown(Shutdown::Write).unwrap();
        let mut reader = Reader::new(client.try_clone().unwrap());
        assert_eq!(reader.read_to_end(), End::Orderly);
        assert_eq!(reader.taken, PART);
        let uploading = thread::spawn(move || {
            streams::write(&client, 0, UPLOAD);
            client.shutdown(Shutdown::Write).unwrap();
        });
        let mut service = Reader::new(service);
        assert_eq!(service.read_to_end(), End::Orderly);
        assert_eq!(service.taken, UPLOAD);
        uploading.join().unwrap();
    }

    fn a_stream_that_has_half_ended_is_still_cut_by_a_kill(kind: Kind) {
        let mut line = Line::new(kind);
        let (_access, mut client, mut service) = line.session();
        client.write_all(REQUEST).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        service.read_to_end(&mut Vec::new()).unwrap();
        streams::write(&service, 0, PART);
        let mut client = Reader::new(client);
        client.read_up_to(PART);
        line.agent.program.process.kill();
        assert_eq!(client.read_to_end(), End::Reset);
    }

    plain_and_tls! {
        a_request_that_has_ended_is_answered
        stdio_delivers_the_answer_to_a_request_that_has_ended
        a_service_that_has_said_all_still_takes_an_upload
        a_stream_that_has_half_ended_is_still_cut_by_a_kill
    }

    /// Without the extension, the service is not told of the client's end; it answers all the same.
    fn without_the_extension_an_answer_comes_after_the_clients_end(line: &Line) {
        let (access, mut client, mut service) = line.session();
        client.write_all(REQUEST).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut request = vec![0; REQUEST.len()];
        service.read_exact(&mut request).unwrap();
        thread::sleep(ANSWER_DELAY);
        streams::write(&service, 0, PART);
        drop(service);
        let mut client = Reader::new(client);
        assert_eq!(client.read_to_end(), End::Orderly);
        assert_eq!(client.taken, PART);
        drop(access);
    }

    #[test]
    fn a_device_that_was_not_asked_for_extensions_answers_after_the_clients_end() {
        let line = Line::new(Kind::WITHOUT_EXTENSIONS);
        without_the_extension_an_answer_comes_after_the_clients_end(&line);
    }

    fn a_foreign_devices_answer_comes_after_the_clients_end(kind: Kind) {
        let path = Path::new(kind);
        let mut device = path.raw(true);
        let access = path.listen(SERVICE);
        let mut client = access.connect();
        client.write_all(REQUEST).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let session = device.answer(0);
        assert_eq!(device.receive_data(&session, REQUEST.len()), REQUEST);
        // A release would have come by now.
        let early = device.receive_within(ANSWER_DELAY);
        assert!(early.is_none(), "the session has ended with the request: {early:?}");
        for part in content(0, PART).chunks(4096) {
            device.data(&session, part);
        }
        device.release(&session, 2, r#"{"code":1,"msg":"bye"}"#);
        let mut client = Reader::new(client);
        assert_eq!(client.read_to_end(), End::Orderly);
        assert_eq!(client.taken, PART);
    }

    mod foreign {
        use super::Kind;
        fn a_foreign_devices_answer_comes_after_the_clients_end(kind: Kind) {
            super::a_foreign_devices_answer_comes_after_the_clients_end(kind);
        }
        plain_and_tls! { a_foreign_devices_answer_comes_after_the_clients_end }
    }

    #[test]
    fn a_foreign_device_that_never_answers_is_released_after_the_half_close_timeout() {
        let path = Path::new(Kind::PLAIN);
        let mut device = path.raw(true);
        let access = path.listen_with(SERVICE, &["--half-close-timeout", "1"]);
        let mut client = access.connect();
        client.write_all(REQUEST).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let session = device.answer(0);
        let (request, code) = device.receive_to_release(&session);
        assert_eq!((&request[..], code), (REQUEST, 0));
        // Whether an answer would have come, nobody knows.
        assert_eq!(Reader::new(client).read_to_end(), End::Reset);
    }
}

/// One end of the tunnel is not ours.
mod foreign {
    use super::*;

    fn open(line: &Line) -> (TunnelEnd, String, TcpStream) {
        let mut access = line.path.raw(false);
        let (code, session) = access.ask(SERVICE);
        assert_eq!(code, 0);
        (access, session, line.door.accept())
    }

    fn send(end: &mut TunnelEnd, session: &str, length: usize) {
        for part in content(0, length).chunks(4096) {
            end.data(session, part);
        }
    }

    fn a_foreign_access_sides_release_is_an_orderly_end_after_every_byte(kind: Kind) {
        let line = Line::new(kind);
        let (mut access, session, service) = open(&line);
        send(&mut access, &session, PART);
        access.release(&session, 2, r#"{"code":0,"msg":"done"}"#);
        let mut service = Reader::new(service);
        assert_eq!(service.read_to_end(), End::Orderly);
        assert_eq!(service.taken, PART);
    }

    fn a_foreign_access_side_that_vanishes_is_a_reset_at_the_service(kind: Kind) {
        let line = Line::new(kind);
        let (mut access, session, service) = open(&line);
        send(&mut access, &session, PART);
        let mut service = Reader::new(service);
        service.read_up_to(PART);
        access.tcp.shutdown(Shutdown::Both).unwrap();
        assert_eq!(service.read_to_end(), End::Reset);
    }

    fn an_upload_of_a_foreign_access_side_is_reset_when_the_device_goes(kind: Kind) {
        for way in [Way::AgentKilled, Way::AgentStopped, Way::Deleted, Way::Updated] {
            let mut line = Line::new(kind);
            let (mut access, session, service) = open(&line);
            send(&mut access, &session, PART);
            let mut service = Reader::new(service);
            service.read_up_to(PART);
            match way {
                Way::AgentKilled => line.agent.program.process.kill(),
                Way::AgentStopped => line.agent.program.process.terminate(),
                Way::Deleted => line.agent.send("delete", None),
                _ => line.path.update(&line.agent),
            }
            assert_eq!(service.read_to_end(), End::Reset, "{way:?}");
        }
    }

    fn a_service_that_ends_releases_a_foreign_access_side_after_every_byte(kind: Kind) {
        let line = Line::new(kind);
        let (mut access, session, service) = open(&line);
        streams::write(&service, 0, PART);
        send(&mut access, &session, 1000);
        let mut reader = Reader::new(service);
        reader.read_up_to(1000);
        drop(reader);
        let (bytes, code) = access.receive_to_release(&session);
        streams::check(0, &bytes);
        assert_eq!((bytes.len(), code), (PART, 1));
    }

    fn a_foreign_devices_release_is_an_orderly_end_after_every_byte(kind: Kind) {
        let path = Path::new(kind);
        let mut device = path.raw(true);
        let access = path.listen(SERVICE);
        let client = access.connect();
        let session = device.answer(0);
        send(&mut device, &session, PART);
        device.release(&session, 2, r#"{"code":1,"msg":"closed"}"#);
        let mut client = Reader::new(client);
        assert_eq!(client.read_to_end(), End::Orderly);
        assert_eq!(client.taken, PART);
    }

    fn a_foreign_device_that_vanishes_is_a_reset_at_the_client(kind: Kind) {
        let path = Path::new(kind);
        let mut device = path.raw(true);
        let access = path.listen(SERVICE);
        let client = access.connect();
        let session = device.answer(0);
        send(&mut device, &session, PART);
        let mut client = Reader::new(client);
        client.read_up_to(PART);
        device.tcp.shutdown(Shutdown::Both).unwrap();
        assert_eq!(client.read_to_end(), End::Reset);
    }

    fn an_upload_to_a_foreign_device_is_cut_with_the_access_side(kind: Kind) {
        for is_kill in [true, false] {
            let path = Path::new(kind);
            let mut device = path.raw(true);
            let mut access = path.listen(SERVICE);
            let client = access.connect();
            let session = device.answer(0);
            let uploading = writing(client);
            device.receive_data(&session, PART);
            if is_kill {
                access.program.process.kill();
            } else {
                access.program.process.terminate();
            }
            // The device cannot know of a cut otherwise: codes 0 and 1 are orderly ends.
            let (_, code) = device.receive_to_release(&session);
            assert!(code >= 2, "is_kill: {is_kill}, code {code}");
            assert_eq!(uploading.join().unwrap(), End::Reset);
        }
    }

    plain_and_tls! {
        a_foreign_access_sides_release_is_an_orderly_end_after_every_byte
        a_foreign_access_side_that_vanishes_is_a_reset_at_the_service
        an_upload_of_a_foreign_access_side_is_reset_when_the_device_goes
        a_service_that_ends_releases_a_foreign_access_side_after_every_byte
        a_foreign_devices_release_is_an_orderly_end_after_every_byte
        a_foreign_device_that_vanishes_is_a_reset_at_the_client
        an_upload_to_a_foreign_device_is_cut_with_the_access_side
    }

    /// An agent whose cloud the test plays.
    fn at_a_foreign_cloud(door: &Door) -> (Agent, Cloud, TunnelEnd) {
        let cloud = Cloud::plain();
        let agent = Agent::start(None, &[door.service()]);
        agent.send("add", Some(cloud.address()));
        let device = cloud.accept();
        agent.events.expect("Connect");
        (agent, cloud, device)
    }

    #[test]
    fn a_foreign_clouds_release_codes_from_2_on_reset_the_service() {
        let door = Door::new(SERVICE);
        let (_agent, _cloud, mut device) = at_a_foreign_cloud(&door);
        for code in [2, 3, 4, 17] {
            let session = format!("s{code}");
            assert_eq!(device.create(&session, SERVICE), 0);
            let mut service = Reader::new(door.accept());
            send(&mut device, &session, PART);
            service.read_up_to(PART);
            device.release(&session, 77, &json!({"code": code, "msg": "gone"}).to_string());
            assert_eq!(service.read_to_end(), End::Reset, "code {code}");
            let (header, _) = device.receive();
            assert_eq!(header["frame_type"], 1, "{header}");
        }
    }

    #[test]
    fn a_foreign_cloud_that_vanishes_resets_the_service() {
        let door = Door::new(SERVICE);
        let (_agent, _cloud, mut device) = at_a_foreign_cloud(&door);
        assert_eq!(device.create("s1", SERVICE), 0);
        let mut service = Reader::new(door.accept());
        send(&mut device, "s1", PART);
        service.read_up_to(PART);
        drop(device);
        assert_eq!(service.read_to_end(), End::Reset);
    }

    #[test]
    fn a_device_that_was_not_asked_for_extensions_sends_none() {
        let door = Door::new(SERVICE);
        let (_agent, _cloud, mut device) = at_a_foreign_cloud(&door);
        device.send(
            json!({"frame_type": 2, "session_id": "s1", "frame_id": 5, "service_type": SERVICE}),
            b"",
        );
        let service = door.accept();
        streams::write(&service, 0, PART);
        drop(service);
        let mut taken = 0;
        loop {
            let (header, payload) = device.receive();
            for field in ["ext", "credit", "eof"] {
                assert!(header.get(field).is_none(), "{header}");
            }
            match header["frame_type"].as_u64() {
                Some(3) => break,
                Some(4) => taken += payload.len(),
                _ => {}
            }
        }
        assert_eq!(taken, PART);
    }

    /// What the program `access` asks a foreign cloud for.
    fn request(more: &[&str]) -> serde_json::Value {
        let cloud = Cloud::plain();
        let url = format!("ws://{}", cloud.address());
        let arguments = ["access", "--url", &url, "--tunnel", TUNNEL, "--stdio"];
        let mut access = Program::start(&[&arguments, more].concat());
        let _stdin = access.process.take_stdin();
        let mut operator = cloud.accept_with_token(ACCESS_TOKEN);
        operator.receive().0
    }

    #[test]
    fn access_asks_for_both_extensions_unless_told_not_to() {
        let create = request(&[]);
        let extensions = create["ext"].as_str().unwrap_or_default();
        let mut names: Vec<&str> = extensions.split(',').collect();
        names.sort_unstable();
        assert_eq!(names, ["credit", "eof"], "{create}");
        assert!(create["credit"].as_u64().is_some_and(|credit| credit > 0), "{create}");
        let create = request(&["--no-extensions"]);
        assert!(create.get("ext").is_none() && create.get("credit").is_none(), "{create}");
    }

    #[test]
    fn a_foreign_clouds_release_codes_from_2_on_reset_the_client() {
        let cloud = Cloud::plain();
        let url = format!("ws://{}", cloud.address());
        let arguments = ["access", "--url", &url, "--tunnel", TUNNEL, "--service", SERVICE];
        let mut program = Program::start(&[&arguments[..], &["--listen", "127.0.0.1:0"]].concat());
        let address = program.address();
        let access = Access { program, address };
        let mut operator = cloud.accept_with_token(ACCESS_TOKEN);
        for code in [2, 3, 4, 17] {
            let client = access.connect();
            // An access side may answer a release.
            let frames = std::iter::repeat_with(|| operator.receive().0);
            let create = frames.into_iter().find(|header| header["frame_type"] == 2).unwrap();
            let session = format!("s{code}");
            let frame_id = &create["frame_id"];
            operator.send(
                json!({"frame_type": 1, "frame_id": frame_id, "session_id": session}),
                br#"{"code":0}"#,
            );
            send(&mut operator, &session, PART);
            operator.release(&session, 2, &json!({"code": code, "msg": "gone"}).to_string());
            let mut client = Reader::new(client);
            assert_eq!(client.read_to_end(), End::Reset, "code {code}");
            assert_eq!(client.taken, PART);
        }
    }
}

/// The extensions on the wire, by a raw peer written from their description.
mod extensions {
    use super::*;

    const CREDIT: usize = 100_000;

    struct Session {
        _agent: Agent,
        _cloud: Cloud,
        device: TunnelEnd,
        door: Door,
        service: TcpStream,
        /// What the device has granted in its answer.
        granted: usize,
    }

    fn open(extensions: &str, credit: usize) -> Session {
        let door = Door::new(SERVICE);
        let cloud = Cloud::plain();
        let agent = Agent::start(None, &[door.service()]);
        agent.send("add", Some(cloud.address()));
        let mut device = cloud.accept();
        device.send(
            json!({"frame_type": 2, "session_id": "s1", "frame_id": 5, "service_type": SERVICE,
                "ext": extensions, "credit": credit}),
            b"",
        );
        let service = door.accept();
        let (header, payload) = device.receive();
        assert_eq!(header["frame_type"], 1, "{header}");
        assert!(String::from_utf8_lossy(&payload).contains("\"code\":0"), "{header}");
        let mut agreed: Vec<&str> = header["ext"].as_str().unwrap_or_default().split(',').collect();
        agreed.sort_unstable();
        assert_eq!(agreed, ["credit", "eof"], "{header}");
        let granted = header["credit"].as_u64().expect("credit in the answer") as usize;
        Session { _agent: agent, _cloud: cloud, device, door, service, granted }
    }

    fn send(device: &mut TunnelEnd, more: serde_json::Value, payload: &[u8]) {
        let mut header = json!({"frame_type": 4, "session_id": "s1", "frame_id": 9});
        let fields = header.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        device.send(header, payload);
    }

    /// What comes for the session until it ends, or until nothing has come for a while.
    #[derive(Default, Debug)]
    struct Said {
        data: usize,
        credit: usize,
        eof: bool,
        release: Option<i64>,
    }

    fn listen(device: &mut TunnelEnd, until: impl Fn(&Said) -> bool) -> Said {
        let mut said = Said::default();
        while !until(&said) && said.release.is_none() {
            let Some((header, payload)) = device.receive_within(ANSWER_DELAY) else { break };
            said.credit += header["credit"].as_u64().unwrap_or(0) as usize;
            said.eof |= header["eof"] == true;
            match header["frame_type"].as_u64() {
                Some(3) => said.release = Some(frame::code(&payload)),
                Some(4) => {
                    streams::check(said.data, &payload);
                    said.data += payload.len();
                }
                _ => {}
            }
        }
        said
    }

    #[test]
    fn a_device_agrees_to_the_extensions_it_knows_and_ignores_the_others() {
        open("eof,colour,credit", CREDIT);
    }

    #[test]
    fn a_device_sends_what_it_was_granted_and_no_more() {
        let mut session = open("eof,credit", CREDIT);
        let writer = session.service.try_clone().unwrap();
        let writing = writing(writer);
        let said = listen(&mut session.device, |_| false);
        assert_eq!(said.data, CREDIT, "{said:?}");
        send(&mut session.device, json!({"credit": 1000}), b"");
        let before = said.data;
        let mut more = 0;
        while more < 1000 {
            let (_, payload) = session.device.receive();
            streams::check(before + more, &payload);
            more += payload.len();
        }
        assert_eq!(more, 1000);
        drop(session.device);
        assert_eq!(writing.join().unwrap(), End::Reset);
    }

    #[test]
    fn a_service_that_takes_everything_is_granted_more() {
        let mut session = open("eof,credit", CREDIT);
        let mut service = Reader::new(session.service.try_clone().unwrap());
        let mut sent = 0;
        let mut may = session.granted;
        while sent < 4 << 20 {
            let part = content(sent, may.min(4096));
            if part.is_empty() {
                let said = listen(&mut session.device, |said| said.credit > 0);
                assert!(said.credit > 0, "no further credit after {sent} bytes: {said:?}");
                may += said.credit;
                continue;
            }
            send(&mut session.device, json!({}), &part);
            (sent, may) = (sent + part.len(), may - part.len());
            service.read_up_to(sent);
        }
    }

    /// Sends for as long as it is granted more; the bytes sent. The service takes nothing, but the
    /// kernels do.
    fn fill(session: &mut Session) -> usize {
        let (mut sent, mut may) = (0, session.granted);
        loop {
            let part = content(sent, may.min(4096));
            if part.is_empty() {
                let said = listen(&mut session.device, |said| said.credit > 0);
                assert_eq!(said.release, None, "{said:?}");
                if said.credit == 0 {
                    return sent;
                }
                may += said.credit;
                continue;
            }
            send(&mut session.device, json!({}), &part);
            (sent, may) = (sent + part.len(), may - part.len());
            assert!(sent < 64 << 20, "it is granted without end");
        }
    }

    /// A session without extensions on the same tunnel.
    fn sibling(session: &mut Session) -> TcpStream {
        session.device.send(
            json!({"frame_type": 2, "session_id": "s2", "frame_id": 6, "service_type": SERVICE}),
            b"",
        );
        let mut sibling = session.door.accept();
        session.device.data("s2", b"k");
        sibling.read_exact(&mut [0]).unwrap();
        sibling
    }

    #[test]
    fn a_service_that_takes_nothing_is_granted_no_more_than_the_window() {
        let mut session = open("eof,credit", CREDIT);
        let sent = fill(&mut session);
        // Another session of the same tunnel is not held up.
        sibling(&mut session);
        // When the service takes everything, nothing was lost.
        let mut service = Reader::new(session.service.try_clone().unwrap());
        service.read_up_to(sent);
    }

    #[test]
    fn more_than_was_granted_cuts_the_session_and_no_other() {
        let mut session = open("eof,credit", CREDIT);
        let sent = fill(&mut session);
        send(&mut session.device, json!({}), &content(sent, 1));
        session.device.receive_to_release("s1");
        sibling(&mut session);
        let mut service = Reader::new(session.service.try_clone().unwrap());
        assert_eq!(service.read_to_end(), End::Reset);
        assert!(service.taken <= sent);
    }

    #[test]
    fn hostile_credit_does_no_harm() {
        for credit in [json!(-1), json!(u64::MAX), json!(1.5), json!("9"), json!(i64::MAX)] {
            let mut session = open("eof,credit", CREDIT);
            for _ in 0..3 {
                send(&mut session.device, json!({"credit": credit}), b"");
            }
            sibling(&mut session);
        }
    }

    #[test]
    fn eof_ends_one_direction_and_both_release_the_session() {
        let mut session = open("eof,credit", CREDIT);
        send(&mut session.device, json!({"eof": true}), &content(0, 1000));
        let mut service = Reader::new(session.service.try_clone().unwrap());
        assert_eq!(service.read_to_end(), End::Orderly);
        assert_eq!(service.taken, 1000);
        streams::write(&session.service, 0, CREDIT / 2);
        session.service.shutdown(Shutdown::Write).unwrap();
        let said = listen(&mut session.device, |_| false);
        assert_eq!((said.data, said.eof, said.release), (CREDIT / 2, true, Some(1)), "{said:?}");
    }

    #[test]
    fn a_release_before_the_eof_resets_the_service() {
        let mut session = open("eof,credit", CREDIT);
        send(&mut session.device, json!({}), &content(0, 1000));
        let mut service = Reader::new(session.service.try_clone().unwrap());
        service.read_up_to(1000);
        session.device.release("s1", 2, r#"{"code":0,"msg":"closed"}"#);
        assert_eq!(service.read_to_end(), End::Reset);
    }

    #[test]
    fn data_after_the_eof_cuts_the_session() {
        let mut session = open("eof,credit", CREDIT);
        send(&mut session.device, json!({"eof": true}), &content(0, 1000));
        send(&mut session.device, json!({}), &content(1000, 1000));
        session.device.receive_to_release("s1");
    }
}

/// Slow is not stalled.
mod slow {
    use super::*;

    /// The stall time of device and gateway in the tests that shorten it.
    const STALL: Duration = Duration::from_millis(500);
    /// Several stall times.
    const LONG: Duration = Duration::from_millis(3500);
    const FILE: usize = 16 << 20;

    /// A path whose device and gateway run in the test, with short stall times; the access side is
    /// the program.
    struct Scaled {
        _gateway: Gateway,
        _device: Running,
        url: String,
        door: Door,
        extensions: bool,
    }

    impl Scaled {
        fn new(extensions: bool) -> Self {
            let door = Door::new(SERVICE);
            let gateway = Gateway::builder()
                .tunnel(gateways::tunnel(TUNNEL))
                .stall_timeout(STALL)
                .start("127.0.0.1:0".parse().unwrap())
                .unwrap();
            let limits = Limits::new().with_stall_timeout(STALL);
            let builder = plain().limits(limits).service(door.service()).service(echo("echo"));
            let device = Running::start(builder);
            let port = gateway.local_addr().port();
            let params = aiot_tunnel::ConnectParams::new(
                "127.0.0.1",
                aiot_tunnel::Port::new(port).unwrap(),
                &format!("/tunnel/{TUNNEL}/dest"),
                aiot_tunnel::Token::new(aiot_tunnel_testkit::DEVICE_TOKEN).unwrap(),
            );
            device.handle.add(&id(TUNNEL), params.unwrap()).unwrap();
            device.expect(EventKind::Connect, TUNNEL);
            let url = format!("ws://{}", gateway.local_addr());
            Scaled { _gateway: gateway, _device: device, url, door, extensions }
        }

        fn access(&self, service: &str, more: &[&str]) -> Program {
            let mut arguments =
                vec!["access", "--url", &self.url, "--tunnel", TUNNEL, "--service", service];
            if !self.extensions {
                arguments.push("--no-extensions");
            }
            arguments.extend(more);
            Program::start(&arguments)
        }

        fn listen(&self, service: &str) -> Access {
            let mut program = self.access(service, &["--listen", "127.0.0.1:0"]);
            let address = program.address();
            Access { program, address }
        }
    }

    fn a_service_that_pauses_gets_everything(door: &Door, access: &Access, pause: Duration) {
        let client = access.connect();
        let service = door.accept();
        let uploading = thread::spawn(move || {
            streams::write(&client, 0, FILE);
            client.shutdown(Shutdown::Write).unwrap();
            Reader::new(client).read_to_end()
        });
        let mut service = Reader::new(service);
        service.read_up_to(FILE / 8);
        // The service is busy with something else, such as its flash memory.
        thread::sleep(pause);
        service.read_up_to(FILE);
        drop(service);
        assert_eq!(uploading.join().unwrap(), End::Orderly);
    }

    #[test]
    fn a_service_that_pauses_for_many_stall_times_gets_everything() {
        let scaled = Scaled::new(true);
        a_service_that_pauses_gets_everything(&scaled.door, &scaled.listen(SERVICE), LONG);
    }

    #[test]
    fn without_extensions_a_lone_service_that_pauses_gets_everything() {
        let scaled = Scaled::new(false);
        a_service_that_pauses_gets_everything(&scaled.door, &scaled.listen(SERVICE), LONG);
    }

    fn a_service_that_pauses_for_15_seconds_gets_everything(kind: Kind) {
        let line = Line::new(kind);
        let access = line.path.listen(SERVICE);
        a_service_that_pauses_gets_everything(&line.door, &access, Duration::from_secs(15));
    }

    /// The reader of stdout pauses, and a new session opens meanwhile.
    fn a_reader_of_stdout_that_pauses_gets_everything(line: &Line, pause: Duration) {
        const LENGTH: usize = 52_000_000;
        let mut access = line.path.stdio(SERVICE);
        let stdin = access.process.take_stdin();
        let mut stdout = Reader::new(access.process.take_stdout());
        let service = line.door.accept();
        let downloading = thread::spawn(move || {
            service.set_write_timeout(None).unwrap();
            streams::write(&service, 0, LENGTH);
        });
        stdout.read_up_to(LENGTH / 100);
        let (other, began) = (line.path.listen(SERVICE), Instant::now());
        let (mut client, mut service) = (other.connect(), line.door.accept());
        client.write_all(b"k").unwrap();
        service.read_exact(&mut [0]).unwrap();
        assert!(began.elapsed() < PROMPT, "another session waits: {:?}", began.elapsed());
        thread::sleep(pause.saturating_sub(began.elapsed()));
        assert_eq!(stdout.read_to_end(), End::Orderly);
        assert_eq!(stdout.taken, LENGTH);
        // The service's end is not the end of stdin.
        drop(stdin);
        let (status, log) = access.finish();
        assert!(status.success(), "{log}");
        downloading.join().unwrap();
    }

    fn stdout_that_nobody_reads_holds_up_no_other_session(kind: Kind) {
        let line = Line::new(kind);
        a_reader_of_stdout_that_pauses_gets_everything(&line, Duration::from_secs(1));
    }

    fn a_reader_of_stdout_that_pauses_for_35_seconds_gets_everything(kind: Kind) {
        let line = Line::new(kind);
        a_reader_of_stdout_that_pauses_gets_everything(&line, Duration::from_secs(35));
    }

    /// A session whose receiver is slow, beside one that echoes; both last for `time`.
    fn beside_an_echo(
        sender: TcpStream,
        receiver: TcpStream,
        mut echo: TcpStream,
        rate: usize,
        time: Duration,
    ) {
        round_trip(&mut echo);
        sender.set_write_timeout(None).unwrap();
        let sending = writing(sender);
        let (over, is_over) = mpsc::channel::<()>();
        let typing = thread::spawn(move || {
            let mut worst = Duration::ZERO;
            while is_over.try_recv() == Err(mpsc::TryRecvError::Empty) {
                worst = worst.max(round_trip(&mut echo));
                thread::sleep(Duration::from_millis(10));
            }
            worst
        });
        let mut receiver = Reader::new(receiver);
        if rate == 0 {
            thread::sleep(time);
        } else {
            receiver.read_slowly(rate, time);
        }
        over.send(()).unwrap();
        let worst = typing.join().expect("the sibling lives");
        assert!(!sending.is_finished(), "the slow session has ended");
        assert!(worst < PROMPT, "the sibling's echo took {worst:?}");
        drop(receiver);
        sending.join().unwrap();
    }

    /// The service's end is slow, or else the client's.
    fn slow_beside_an_echo(door: &Door, access: &Access, echo: TcpStream, case: Case) {
        let (client, service) = (access.connect(), door.accept());
        match case.at_service {
            true => beside_an_echo(client, service, echo, case.rate, case.time),
            false => beside_an_echo(service, client, echo, case.rate, case.time),
        }
    }

    #[derive(Clone, Copy)]
    struct Case {
        at_service: bool,
        /// Bytes a second.
        rate: usize,
        time: Duration,
    }

    fn scaled(at_service: bool, rate: usize) {
        let scaled = Scaled::new(true);
        // One access side for both sessions, so that they share a WebSocket at each end.
        let (access, echoing) = (scaled.listen(SERVICE), scaled.listen("echo"));
        let case = Case { at_service, rate, time: LONG };
        slow_beside_an_echo(&scaled.door, &access, echoing.connect(), case);
    }

    #[test]
    fn a_service_that_reads_20_kb_a_second_is_kept_and_holds_up_nobody() {
        scaled(true, 20_000);
    }

    #[test]
    fn a_service_that_reads_100_kb_a_second_is_kept_and_holds_up_nobody() {
        scaled(true, 100_000);
    }

    #[test]
    fn a_service_that_takes_nothing_is_kept_and_holds_up_nobody() {
        scaled(true, 0);
    }

    #[test]
    fn a_client_that_reads_20_kb_a_second_is_kept_and_holds_up_nobody() {
        scaled(false, 20_000);
    }

    #[test]
    fn a_client_that_takes_nothing_is_kept_and_holds_up_nobody() {
        scaled(false, 0);
    }

    /// Two sessions of one access side: a service that echoes what begins with `E`, and writes
    /// without end otherwise.
    #[test]
    fn a_client_that_takes_nothing_holds_up_no_session_of_the_same_access_side() {
        let line = Line::new(Kind::PLAIN);
        let access = line.path.listen(SERVICE);
        let (client, service) = (access.connect(), line.door.accept());
        let (mut typist, mut echoing) = (access.connect(), line.door.accept());
        let written = Arc::new(AtomicUsize::new(0));
        let count = written.clone();
        let flooding = thread::spawn(move || {
            service.set_write_timeout(None).unwrap();
            let mut service = &service;
            while service.write_all(&[7; 4096]).is_ok() {
                count.fetch_add(4096, Ordering::SeqCst);
            }
        });
        thread::spawn(move || {
            let mut byte = [0];
            while echoing.read_exact(&mut byte).is_ok() && echoing.write_all(&byte).is_ok() {}
        });
        // The flood stands still once all buffers are full.
        let (mut seen, mut since) = (0, Instant::now());
        wait::until("the flood stands still", || {
            let now = written.load(Ordering::SeqCst);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            seen > 0 && since.elapsed() > ANSWER_DELAY
        });
        for turn in 0..100 {
            let time = round_trip(&mut typist);
            assert!(time < PROMPT, "round trip {turn} took {time:?}");
        }
        drop(client);
        flooding.join().unwrap();
    }

    fn long(kind: Kind, at_service: bool, rate: usize) {
        let door = Door::new(SERVICE);
        let path = Path::new(kind);
        let _agent = path.agent(&[door.service(), echo("echo")]);
        let (access, echoing) = (path.listen(SERVICE), path.listen("echo"));
        let case = Case { at_service, rate, time: Duration::from_secs(60) };
        slow_beside_an_echo(&door, &access, echoing.connect(), case);
        // A later connection is served.
        let (client, service) = (access.connect(), door.accept());
        streams::write(&client, 0, PART);
        Reader::new(service).read_up_to(PART);
    }

    fn a_slow_service_is_kept_for_a_minute(kind: Kind) {
        for rate in [20_000, 100_000] {
            long(kind, true, rate);
        }
    }

    fn a_slow_client_is_kept_for_a_minute(kind: Kind) {
        long(kind, false, 20_000);
    }

    fn ends_that_take_nothing_are_kept_for_a_minute(kind: Kind) {
        long(kind, true, 0);
        long(kind, false, 0);
    }

    macro_rules! long_ones {
        ($($promise:ident)*) => {
            mod plain {
                $(#[test] #[ignore = "takes up to two minutes"]
                fn $promise() { super::$promise(super::Kind::PLAIN); })*
                #[test]
                fn stdout_that_nobody_reads_holds_up_no_other_session() {
                    super::stdout_that_nobody_reads_holds_up_no_other_session(super::Kind::PLAIN);
                }
            }
            mod tls {
                $(#[test] #[ignore = "takes up to two minutes"]
                fn $promise() { super::$promise(super::Kind::TLS); })*
                #[test]
                fn stdout_that_nobody_reads_holds_up_no_other_session() {
                    super::stdout_that_nobody_reads_holds_up_no_other_session(super::Kind::TLS);
                }
            }
        };
    }

    long_ones! {
        a_service_that_pauses_for_15_seconds_gets_everything
        a_reader_of_stdout_that_pauses_for_35_seconds_gets_everything
        a_slow_service_is_kept_for_a_minute
        a_slow_client_is_kept_for_a_minute
        ends_that_take_nothing_are_kept_for_a_minute
    }

    /// A client that is slow does not keep `access` from noticing that its gateway is gone.
    #[test]
    fn a_lost_gateway_is_noticed_beside_a_client_that_takes_nothing() {
        let mut line = Line::new(Kind::PLAIN);
        let (access, client, service) = line.session();
        let downloading = writing(service);
        let mut client = Reader::new(client);
        client.read_up_to(PART);
        line.path.gateway.process.kill();
        access.program.expect_log("connecting again");
        assert_eq!(downloading.join().unwrap(), End::Reset);
        assert_eq!(client.read_to_end(), End::Reset);
    }
}

/// More local connections than a tunnel may have sessions.
mod queue {
    use super::*;

    /// A browser's page.
    const CONNECTIONS: usize = 40;
    const IMAGE: usize = 50_000;

    fn forty_connections_at_once_are_all_served_by_ten_sessions(kind: Kind) {
        let door = Door::new(SERVICE);
        let path = Path::new(kind);
        let _agent = path.agent(&[door.service()]);
        door.serve(|mut service| {
            let mut request = [0; 3];
            if service.read_exact(&mut request).is_ok() {
                streams::write(&service, 0, IMAGE);
            }
        });
        let access = path.listen(SERVICE);
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let mut client = access.connect();
                client.write_all(b"GET").unwrap();
                client
            })
            .collect();
        let served: Vec<_> = clients
            .into_iter()
            .map(|client| {
                thread::spawn(move || {
                    let mut client = Reader::new(client);
                    (client.read_to_end(), client.taken)
                })
            })
            .collect();
        for (number, client) in served.into_iter().enumerate() {
            assert_eq!(client.join().unwrap(), (End::Orderly, IMAGE), "connection {number}");
        }
    }

    fn a_connection_waits_for_a_session_to_end(kind: Kind) {
        let door = Door::new(SERVICE);
        let path = Path::with_gateway(kind, &["--session-limit", "1"]);
        let _agent = path.agent(&[door.service()]);
        let access = path.listen(SERVICE);
        let (first, service) = (access.connect(), door.accept());
        let second = access.connect();
        streams::write(&second, 0, 1000);
        streams::write(&first, 0, PART);
        Reader::new(service.try_clone().unwrap()).read_up_to(PART);
        drop((first, service));
        Reader::new(door.accept()).read_up_to(1000);
    }

    over_every_path! {
        forty_connections_at_once_are_all_served_by_ten_sessions
        a_connection_waits_for_a_session_to_end
    }

    #[test]
    fn a_connection_waits_for_a_gateway_that_comes_back() {
        // The port stays the test's: it hands connections to the gateway of the moment.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = listener.local_addr().unwrap();
        let door = Door::new(SERVICE);
        let mut path = Path::new(Kind::PLAIN);
        let agent = path.agent(&[door.service()]);
        let relayed = path.front(listener.try_clone().unwrap());
        let url = format!("ws://{front}");
        let arguments = ["access", "--url", &url, "--tunnel", TUNNEL, "--service", SERVICE];
        let mut program = Program::start(&[&arguments[..], &["--listen", "127.0.0.1:0"]].concat());
        let address = program.address();
        let access = Access { program, address };
        let (client, service) = (access.connect(), door.accept());
        streams::write(&client, 0, 1);
        Reader::new(service).read_up_to(1);
        drop(client);
        // The gateway goes, and with it all connections.
        path.gateway.process.kill();
        drop(relayed);
        access.program.expect_log("connecting again");
        let client = access.connect();
        streams::write(&client, 0, 1000);
        // Another one comes.
        drop(agent);
        let path = Path::new(Kind::PLAIN);
        let _agent = path.agent(&[door.service()]);
        let _relayed = path.front(listener);
        Reader::new(door.accept()).read_up_to(1000);
    }

    #[test]
    fn a_connection_waits_for_a_device_that_comes_back() {
        let door = Door::new(SERVICE);
        let path = Path::new(Kind::PLAIN);
        let access = path.listen(SERVICE);
        let client = access.connect();
        streams::write(&client, 0, 1000);
        path.gateway.expect_log("the device is not connected");
        let _agent = path.agent(&[door.service()]);
        Reader::new(door.accept()).read_up_to(1000);
    }

    #[test]
    fn several_ports_share_one_connection_to_the_gateway() {
        let (a, b) = (Door::new("a"), Door::new("b"));
        let path = Path::with_gateway(Kind::PLAIN, &["--access-limit", "1"]);
        let _agent = path.agent(&[a.service(), b.service()]);
        let arguments = path.access_arguments("a");
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend(["--listen", "localhost:0=a", "--listen", "127.0.0.1:0=b"]);
        let mut program = Program::start(&arguments);
        let lines = program.process.lines();
        for (door, byte) in [(&a, b'a'), (&b, b'b')] {
            let line = lines.expect("listening on ");
            let address = line.split_whitespace().find_map(|word| word.parse().ok());
            let address: std::net::SocketAddr = address.unwrap_or_else(|| panic!("{line}"));
            let mut client = limited(TcpStream::connect(address).unwrap());
            client.write_all(&[byte]).unwrap();
            let mut taken = [0];
            door.accept().read_exact(&mut taken).unwrap();
            assert_eq!(taken, [byte]);
        }
    }
}

/// Tunnels that a gateway does not know, and two devices with one token.
mod tunnels {
    use super::*;

    #[test]
    fn a_gateway_tells_an_unknown_tunnel_from_a_wrong_token() {
        let gateway = Gateway::builder()
            .tunnel(gateways::tunnel(TUNNEL))
            .start("127.0.0.1:0".parse().unwrap())
            .unwrap();
        let address = gateway.local_addr();
        for side in ["dest", "source"] {
            let path = format!("/tunnel/unknown/{side}");
            assert_eq!(gateways::connect(address, &path, Some("hush")).err(), Some(404));
            let path = format!("/tunnel/{TUNNEL}/{side}");
            assert_eq!(gateways::connect(address, &path, Some("hush")).err(), Some(401));
        }
    }

    fn a_device_tries_again_where_its_tunnel_is_not_known(kind: Kind) {
        let identity = Identity::self_signed();
        let folder = Folder::new();
        let ca = folder.write("ca.pem", &identity.certificate);
        let cloud = match kind.tls {
            true => Cloud::tls(identity.acceptor()),
            false => Cloud::plain(),
        };
        let agent = Agent::start(kind.tls.then_some(&ca), &[echo("e")]);
        agent.send("add", Some(cloud.address()));
        for status in [404, 403, 500, 503] {
            assert!(cloud.accept_if(|_| Some(status)).is_none());
        }
        let mut device = cloud.accept();
        agent.events.expect("Connect");
        device.check_echo("s", "e");
        assert!(!agent.program.log().contains("xpired"), "{}", agent.program.log());
    }

    plain_and_tls! { a_device_tries_again_where_its_tunnel_is_not_known }

    /// Without a back-off, two devices take the tunnel from each other many times a second.
    #[test]
    fn two_devices_with_one_token_back_off_and_say_so_once() {
        const TIME: Duration = Duration::from_secs(6);
        const SAME_TOKEN: &str = "another device uses the same token";
        let path = Path::new(Kind::PLAIN);
        let first = path.agent(&[echo("e")]);
        let second = path.agent(&[echo("e")]);
        for agent in [&first, &second] {
            agent.program.expect_log(SAME_TOKEN);
        }
        let lives = |agent: &Agent| {
            let events = agent.events.so_far();
            events.iter().filter(|line| line.starts_with("Connect")).count()
        };
        let (_, _) = (lives(&first), lives(&second));
        thread::sleep(TIME);
        let takeovers = lives(&first) + lives(&second);
        assert!(takeovers <= 10, "{takeovers} in {TIME:?}");
        for agent in [&first, &second] {
            let log = agent.program.log();
            let said: Vec<_> = log.lines().filter(|line| line.contains(SAME_TOKEN)).collect();
            assert!(said.len() == 1 && said[0].contains("127.0.0.1:"), "{log}");
        }
    }
}
