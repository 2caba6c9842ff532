//! One direction ends, the other goes on.

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
