//! One end of the tunnel is not ours.

use super::cuts::Way;
use super::*;

fn open(line: &Line) -> (TunnelEnd, String, TcpStream) {
    let mut access = line.path.raw(false);
    let (code, session) = access.ask(SERVICE);
    assert_eq!(code, 0);
    (access, session, line.door.accept())
}

/// A foreign device's session with our access side: the device's end and the local program's.
fn at_a_client(path: &Path) -> (TunnelEnd, String, Access, TcpStream) {
    let mut device = path.raw(true);
    let access = path.listen(SERVICE);
    let client = access.connect();
    let session = device.answer(0);
    (device, session, access, client)
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
    let (mut device, session, _access, client) = at_a_client(&path);
    send(&mut device, &session, PART);
    device.release(&session, 2, r#"{"code":1,"msg":"closed"}"#);
    let mut client = Reader::new(client);
    assert_eq!(client.read_to_end(), End::Orderly);
    assert_eq!(client.taken, PART);
}

fn a_foreign_device_that_vanishes_is_a_reset_at_the_client(kind: Kind) {
    let path = Path::new(kind);
    let (mut device, session, _access, client) = at_a_client(&path);
    send(&mut device, &session, PART);
    let mut client = Reader::new(client);
    client.read_up_to(PART);
    device.tcp.shutdown(Shutdown::Both).unwrap();
    assert_eq!(client.read_to_end(), End::Reset);
}

fn an_upload_to_a_foreign_device_is_cut_with_the_access_side(kind: Kind) {
    for is_kill in [true, false] {
        let path = Path::new(kind);
        let (mut device, session, mut access, client) = at_a_client(&path);
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
