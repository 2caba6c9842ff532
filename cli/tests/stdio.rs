//! `access --stdio` tells the truth about standard input and standard output: what cannot be read or
//! written cuts the session, and each direction ends by itself.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;

use aiot_tunnel_testkit::path::{Kind, Line};
use aiot_tunnel_testkit::process::{program, Process};
use aiot_tunnel_testkit::sockets::reset_on_close;
use aiot_tunnel_testkit::streams::{self, End, Reader};
use aiot_tunnel_testkit::ACCESS_TOKEN;

/// More than the sockets and windows on the way hold.
const UPLOAD: usize = 1_000_000;
/// What fits everywhere.
const LITTLE: usize = 1000;

/// `access --stdio` with this standard input and output, by way of a shell command that ends in
/// `"$@"`.
fn stdio(line: &Line, shell: &str, stdin: impl Into<Stdio>, stdout: impl Into<Stdio>) -> Process {
    let mut command = Command::new("sh");
    command
        .args(["-c", shell, "sh"])
        .arg(program())
        .args(line.path.access_arguments(Line::SERVICE))
        .arg("--stdio")
        .env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN)
        .env("RUST_LOG", "warn")
        .stdin(stdin)
        .stdout(stdout)
        .stderr(Stdio::piped());
    Process::spawn(&mut command)
}

const PLAINLY: &str = "exec \"$@\"";

/// It must end with status 1 and an error that contains these parts.
fn fails(mut process: Process, parts: &[&str]) {
    let status = process.wait();
    let mut text = String::new();
    process.child().stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

fn is_cut(service: TcpStream) {
    let mut service = Reader::new(service);
    assert_eq!(service.read_to_end(), End::Reset, "at the service, after {}", service.taken);
}

#[test]
fn an_upload_goes_on_after_the_service_has_said_all() {
    for kind in [Kind::PLAIN, Kind::TLS] {
        let line = Line::new(kind);
        let mut access = stdio(&line, PLAINLY, Stdio::piped(), Stdio::piped());
        let (stdin, stdout) = (access.take_stdin(), access.take_stdout());
        let service = line.door.accept();
        streams::write(&service, 0, LITTLE);
        service.shutdown(Shutdown::Write).unwrap();
        // The reader of standard output sees the end, although the session goes on.
        let mut stdout = Reader::new(stdout);
        assert_eq!((stdout.read_to_end(), stdout.taken), (End::Orderly, LITTLE));
        let uploading = thread::spawn(move || streams::write(stdin, 0, UPLOAD));
        let mut service = Reader::new(service);
        assert_eq!((service.read_to_end(), service.taken), (End::Orderly, UPLOAD));
        uploading.join().unwrap();
        assert!(access.wait().success());
    }
}

#[test]
fn a_socket_that_is_stdin_and_stdout_half_closes_after_the_service_has_said_all() {
    let line = Line::new(Kind::PLAIN);
    let (local, remote) = pair();
    let fd = OwnedFd::from(remote);
    let mut access = stdio(&line, PLAINLY, fd.try_clone().unwrap(), fd);
    let service = line.door.accept();
    streams::write(&service, 0, LITTLE);
    service.shutdown(Shutdown::Write).unwrap();
    let mut reader = Reader::new(local.try_clone().unwrap());
    assert_eq!((reader.read_to_end(), reader.taken), (End::Orderly, LITTLE));
    let uploading = thread::spawn(move || {
        streams::write(&local, 0, UPLOAD);
        local.shutdown(Shutdown::Write).unwrap();
    });
    let mut service = Reader::new(service);
    assert_eq!((service.read_to_end(), service.taken), (End::Orderly, UPLOAD));
    uploading.join().unwrap();
    assert!(access.wait().success());
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (streams::limited(local), listener.accept().unwrap().0)
}

#[test]
fn a_reader_of_stdout_that_goes_away_cuts_the_session() {
    for kind in [Kind::PLAIN, Kind::WITHOUT_EXTENSIONS] {
        let line = Line::new(kind);
        let mut access = stdio(&line, PLAINLY, Stdio::piped(), Stdio::piped());
        let (_stdin, stdout) = (access.take_stdin(), access.take_stdout());
        let mut service = line.door.accept();
        streams::write(&service, 0, LITTLE);
        let mut stdout = Reader::new(stdout);
        stdout.read_up_to(LITTLE);
        drop(stdout);
        // The only byte for a reader that is gone: nothing follows that could fail as well.
        service.write_all(b"x").unwrap();
        is_cut(service);
        fails(access, &["standard output", "Broken pipe"]);
    }
}

#[test]
fn a_stdout_without_room_cuts_the_session() {
    for kind in [Kind::PLAIN, Kind::WITHOUT_EXTENSIONS] {
        let line = Line::new(kind);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut access = stdio(&line, PLAINLY, Stdio::piped(), full);
        let _stdin = access.take_stdin();
        let mut service = line.door.accept();
        service.write_all(b"x").unwrap();
        is_cut(service);
        fails(access, &["standard output", "No space left"]);
    }
}

#[test]
fn a_stdin_that_is_reset_cuts_the_session_behind_what_came() {
    for kind in [Kind::PLAIN, Kind::WITHOUT_EXTENSIONS] {
        let line = Line::new(kind);
        let (local, remote) = pair();
        let access = stdio(&line, PLAINLY, OwnedFd::from(remote), Stdio::null());
        let service = line.door.accept();
        streams::write(&local, 0, LITTLE);
        let mut reader = Reader::new(service.try_clone().unwrap());
        reader.read_up_to(LITTLE);
        reset_on_close(&local);
        drop(local);
        is_cut(service);
        fails(access, &["standard input", "reset"]);
    }
}

#[test]
fn a_stdin_that_cannot_be_read_cuts_the_session() {
    for kind in [Kind::PLAIN, Kind::WITHOUT_EXTENSIONS] {
        let line = Line::new(kind);
        let access = stdio(&line, PLAINLY, File::open("/").unwrap(), Stdio::null());
        is_cut(line.door.accept());
        fails(access, &["standard input", "Is a directory"]);
    }
}

#[test]
fn a_stdin_or_stdout_that_is_not_open_for_it_is_refused_at_once() {
    let line = Line::new(Kind::PLAIN);
    for (shell, part) in [
        ("exec \"$@\" >&-", "standard output is closed"),
        ("exec \"$@\" </dev/null 1</dev/null", "standard output is not open for writing"),
        ("exec \"$@\" <&-", "standard input is closed"),
        ("exec \"$@\" 0>/dev/null", "standard input is not open for reading"),
    ] {
        fails(stdio(&line, shell, Stdio::null(), Stdio::null()), &[part]);
    }
}
