//! `access --listen` for days: restarts of the gateway, signals, and the rates.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use aiot_tunnel_testkit::path::{Kind, Line, Program};
use aiot_tunnel_testkit::streams::limited;
use aiot_tunnel_testkit::wait;

/// A session through which a byte has gone and come back: both ends know that it is open.
fn session(line: &Line, address: SocketAddr) -> (TcpStream, TcpStream) {
    let mut client = limited(TcpStream::connect(address).unwrap());
    let mut service = line.door.accept();
    let mut byte = [0];
    client.write_all(b"x").unwrap();
    service.read_exact(&mut byte).unwrap();
    service.write_all(&byte).unwrap();
    client.read_exact(&mut byte).unwrap();
    (client, service)
}

fn is_reset(stream: &mut TcpStream) {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_listener_survives_restarts_of_the_gateway() {
    let mut line = Line::new(Kind::TLS);
    let access = line.path.listen(Line::SERVICE);
    for _ in 0..2 {
        let (mut client, _service) = session(&line, access.address);
        line.path.gateway.process.terminate();
        assert!(line.path.gateway.finish().0.success());
        // The open session is cut, not ended.
        is_reset(&mut client);
        line.path.restart_gateway();
    }
    // It waits for the gateway and the device.
    let _session = session(&line, access.address);
    let log = access.program.log();
    for (part, count) in [("code 1001; connecting again", 2), ("connected to the tunnel", 3)] {
        assert_eq!(log.matches(part).count(), count, "{part}: {log}");
    }
}

#[test]
fn sigint_ends_a_listener_in_order() {
    let line = Line::new(Kind::PLAIN);
    let mut access = line.path.listen(Line::SERVICE);
    let (mut client, mut service) = session(&line, access.address);
    access.program.process.interrupt();
    let (status, log) = access.program.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    // A session that was open is cut at both ends.
    is_reset(&mut client);
    is_reset(&mut service);
}

/// The bytes of the last line of rates that says so, by a mark.
fn has_rate(program: &Program, mark: &str) -> bool {
    program.log().lines().any(|line| line.starts_with("aiot-tunnel: down ") && line.contains(mark))
}

#[test]
fn verbose_shows_the_rates_and_otherwise_there_are_none() {
    let line = Line::new(Kind::PLAIN);
    let loud = line.path.listen_with(Line::SERVICE, &["-v"]);
    let quiet = line.path.listen(Line::SERVICE);
    let (_client, mut service) = (loud.connect(), line.door.accept());
    wait::until("a line without bytes", || {
        has_rate(&loud.program, "down 0 B/s, up 0 B/s, sessions 1")
    });
    service.write_all(&[0; 60_000]).unwrap();
    wait::until("a line with bytes", || has_rate(&loud.program, "kB/s, up 0 B/s, sessions 1"));
    assert!(!has_rate(&quiet.program, ""));
}
