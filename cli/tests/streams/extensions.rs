//! The extensions on the wire, by a raw peer written from their description.

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
