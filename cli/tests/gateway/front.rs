//! A gateway behind proxies. haproxy is a real one, which connects from 127.0.0.3.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;

use aiot_tunnel_testkit::certificates::{self, Authority};
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::haproxy::{Haproxy, Mode};
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::sockets::connect_from;
use aiot_tunnel_testkit::tunnel_end::{Stream, TunnelEnd};
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{gateways, services, skip};
use tungstenite::{Error, HandshakeError, Message};

use super::{certify, echoes, Answer, Gateway};

/// A client's address, as it appears in the log.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);
/// Of the tests' own connections, which play a proxy.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2 with these addresses and whatever else.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [V2, &[command, family], &length, rest].concat()
}

/// Opens a WebSocket over what is connected already.
fn open(
    stream: Box<dyn Stream>,
    tcp: TcpStream,
    path: &str,
    token: &str,
) -> Result<TunnelEnd, u16> {
    gateways::connect_over(stream, tcp, path, Some(token)).map_err(|e| match e {
        HandshakeError::Failure(Error::Http(response)) => response.status().as_u16(),
        e => panic!("{path}: {e}"),
    })
}

fn timed(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// A client of a proxy or of a gateway; with a CA, in TLS. `first`: what it sends before anything else.
fn connect(
    from: Ipv4Addr,
    to: SocketAddr,
    ca: Option<&str>,
    first: &[u8],
    (path, token): (&str, &str),
) -> Result<TunnelEnd, u16> {
    let mut tcp = timed(connect_from(from, to));
    tcp.write_all(first).unwrap();
    let stream: Box<dyn Stream> = match ca {
        None => Box::new(tcp.try_clone().unwrap()),
        Some(ca) => {
            let ca = std::fs::read(ca).unwrap();
            let tls = certificates::connector(&ca);
            Box::new(tls.connect("127.0.0.1", tcp.try_clone().unwrap()).unwrap())
        }
    };
    open(stream, tcp, path, token)
}

/// The reason of the close frame that comes next.
fn close_reason(end: &mut TunnelEnd) -> String {
    loop {
        if let Message::Close(frame) = end.socket.read().unwrap() {
            return frame.unwrap().reason.to_string();
        }
    }
}

/// Real programs and raw clients at both ends of a proxy. Every place must show the client's address.
/// `with_port`: the proxy tells the client's port, too.
fn the_clients_are_seen(mut proxy: Haproxy, gateway: &Gateway, ca: &str, with_port: bool) {
    let address = proxy.address();
    let tokens = gateway.add("t1");
    let dest = "/tunnel/t1/dest";
    let at = |ip: Ipv4Addr| if with_port { format!("{ip}:") } else { ip.to_string() };
    let device = |from, token: &str| connect(from, address, Some(ca), b"", (dest, token));
    assert_eq!(device(CLIENT, "hush-wrong").err(), Some(401));
    gateway.program.expect_log(&format!("Device at {}", at(CLIENT)));
    let refused = &gateway.audited_events("refusal", 1)[0];
    assert!(refused["client"].as_str().unwrap().starts_with(&at(CLIENT)), "{refused}");

    let mut first = device(CLIENT, &tokens.device).unwrap();
    let shown = || gateway.show("t1")["device"]["address"].as_str().unwrap_or_default().to_owned();
    wait::until("the device is shown", || shown().starts_with(&at(CLIENT)));
    let second = device(OTHER, &tokens.device).unwrap();
    let reason = close_reason(&mut first);
    assert!(reason.contains(&at(OTHER)), "{reason}");
    drop((first, second));

    // The programs connect from 127.0.0.1.
    let service = services::echo("echo");
    let (url, file) = (format!("wss://{address}"), |name: &str, token: &str| {
        gateway.folder.write_secret(name, token)
    });
    let tunnel = format!("t1 {url} {}", file("device.token", &tokens.device));
    let service = format!("echo={}", service.target());
    let _agent = Program::start(&[
        "agent",
        "--control-socket",
        "none",
        "--queue-key",
        "off",
        "--ca",
        ca,
        "--tunnel",
        &tunnel,
        "--service",
        &service,
    ]);
    let own = at(Ipv4Addr::LOCALHOST);
    wait::until("the agent is shown", || shown().starts_with(&own));
    let token = file("access.token", &tokens.access);
    let mut access = Program::start(&[
        "access",
        "--url",
        &url,
        "--tunnel",
        "t1",
        "--service",
        "echo",
        "--listen",
        "127.0.0.1:0",
        "--token-file",
        &token,
        "--ca",
        ca,
    ]);
    let local = access.address();
    let mut client = TcpStream::connect(local).unwrap();
    echoes(&mut client, "through the proxy");
    drop(client);
    let session = &gateway.audited_events("session", 1)[0];
    assert!(session["client"].as_str().unwrap().starts_with(&own), "{session}");
    assert!(proxy.is_running());
    let log = gateway.program.log();
    let lines = log.lines().filter(|line| line.contains("tunnel \"t1\""));
    let wrong: Vec<_> = lines.filter(|line| line.contains("127.0.0.3")).collect();
    assert!(wrong.is_empty(), "the proxy stands for its clients: {wrong:?}");
}

#[test]
fn websockets_go_through_haproxy_which_ends_tls_and_the_clients_are_seen() {
    let gateway = Gateway::audited(&["--trusted-proxy", "127.0.0.3"]);
    match Haproxy::start(Mode::Http, gateway.address) {
        Ok(proxy) => {
            let ca = proxy.ca_file();
            the_clients_are_seen(proxy, &gateway, &ca, false);
        }
        Err(why) => skip("haproxy with X-Forwarded-For", why),
    }
}

/// A gateway with a certificate for 127.0.0.1.
fn with_tls(more: &[&str]) -> (Gateway, String) {
    let folder = Folder::new();
    certify(&folder, &Authority::new());
    let file = |name: &str| folder.file(name).display().to_string();
    let (cert, key, ca, audit) =
        (file("server.pem"), file("server.key"), file("ca.pem"), file("audit.log"));
    let own = ["--cert", &cert, "--key", &key, "--audit-log", &audit];
    (Gateway::in_folder(folder, &[&own, more].concat()), ca)
}

fn passes_tls_on(mode: Mode) {
    let (gateway, ca) = with_tls(&["--trusted-proxy", "127.0.0.3", "--proxy-protocol"]);
    match Haproxy::start(mode, gateway.address) {
        Ok(proxy) => the_clients_are_seen(proxy, &gateway, &ca, true),
        Err(why) => skip(&format!("haproxy, {mode:?}"), why),
    }
}

#[test]
fn tls_goes_through_haproxy_with_version_2_and_the_clients_are_seen() {
    passes_tls_on(Mode::Version2);
}

#[test]
fn tls_goes_through_haproxy_with_version_1_and_the_clients_are_seen() {
    passes_tls_on(Mode::Version1);
}

/// The start of TLS arrives in one packet with the header, and the header in pieces: nothing is lost.
#[test]
fn a_handshake_right_behind_a_header_keeps_its_bytes() {
    let (gateway, ca) = with_tls(&["--trusted-proxy", "127.0.0.5", "--proxy-protocol"]);
    let tokens = gateway.add("t1");
    let addresses = [192, 0, 2, 7, 192, 0, 2, 2, 1, 2, 0, 22];
    let with_more = [&addresses[..], &[0x04, 0, 3, 1, 2, 3], &[0xee; 3000]].concat();
    let v6 = [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[7], &[0; 16], &[1, 2, 0, 22]].concat();
    for (header, expected) in [
        (b"PROXY TCP4 192.0.2.7 192.0.2.2 258 22\r\n".to_vec(), "192.0.2.7:258"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::2 258 22\r\n".to_vec(), "[2001:db8::7]:258"),
        (b"PROXY UNKNOWN 192.0.2.7 junk\r\n".to_vec(), "127.0.0.5:"),
        (v2(0x21, 0x11, &addresses), "192.0.2.7:258"),
        (v2(0x21, 0x11, &with_more), "192.0.2.7:258"),
        (v2(0x21, 0x21, &v6), "[2001:db8::7]:258"),
        (v2(0x20, 0x11, &addresses), "127.0.0.5:"),
        (v2(0x21, 0x00, b""), "127.0.0.5:"),
    ] {
        let before = gateway.program.log().len();
        let tcp = timed(connect_from(PROXY, gateway.address));
        let first = TogetherWith { tcp: tcp.try_clone().unwrap(), header };
        let tls = certificates::connector(&std::fs::read(&ca).unwrap());
        let stream = tls.connect("127.0.0.1", first).unwrap();
        let end = open(Box::new(stream), tcp, "/tunnel/t1/dest", &tokens.device).unwrap();
        let is_seen = || gateway.program.log()[before..].contains(&format!("from {expected}"));
        let is_shown = || {
            let shown = gateway.show("t1");
            shown["device"]["address"].as_str().is_some_and(|from| from.starts_with(expected))
        };
        wait::until(&format!("{expected} is seen"), || is_seen() || is_shown());
        drop(end);
    }
}

/// Sends a header in one piece with the first bytes that are written.
#[derive(Debug)]
struct TogetherWith {
    tcp: TcpStream,
    header: Vec<u8>,
}

impl Read for TogetherWith {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.tcp.read(buffer)
    }
}

impl Write for TogetherWith {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let header = std::mem::take(&mut self.header);
        self.tcp.write_all(&[&header, bytes].concat())?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the gateway answers to these bytes until it closes the connection.
fn answer(from: Ipv4Addr, to: SocketAddr, pieces: &[&[u8]]) -> String {
    let mut tcp = timed(connect_from(from, to));
    for piece in pieces {
        if tcp.write_all(piece).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    // It may be reset, with unread bytes.
    let _ = tcp.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(token: &str, more: &str) -> Vec<u8> {
    format!(
        "GET /tunnel/t1/dest HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         tunnel-access-token: {token}\r\n{more}\r\n"
    )
    .into_bytes()
}

#[test]
fn a_wrong_header_of_a_trusted_proxy_is_refused_with_a_line() {
    let gateway = Gateway::with(&[
        "--plain",
        "--trusted-proxy",
        "127.0.0.5",
        "--proxy-protocol",
        "--handshake-limit",
        "4",
    ]);
    let tokens = gateway.add("t1");
    let request = request(&tokens.device, "");
    let long = ["PROXY UNKNOWN ", &"x".repeat(200), "\r\n"].concat();
    for (header, why) in [
        // None at all.
        (Vec::new(), "does not begin with a header of the PROXY protocol"),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x01\x02\x03\x04\x05".to_vec(),
            "does not begin",
        ),
        (vec![0xff; 64], "does not begin"),
        (long.into_bytes(), "is too long"),
        (
            b"PROXY TCP4 192.0.2.7 192.0.2.2 70000 22\r\n".to_vec(),
            "is not a line of the expected form",
        ),
        (
            b"PROXY TCP6 192.0.2.7 192.0.2.2 258 22\r\n".to_vec(),
            "is not a line of the expected form",
        ),
        (v2(0x21, 0x12, &[0; 12]), "is not of a TCP connection"),
        (v2(0x21, 0x21, &[0; 12]), "too short for its addresses"),
        (v2(0x31, 0x11, &[0; 12]), "unknown version or command"),
        (v2(0x21, 0x11, &[0; 60_000]), "is too long"),
    ] {
        let before = gateway.program.log().len();
        let answer = answer(PROXY, gateway.address, &[&header, &request]);
        assert_eq!(answer, "", "{header:?}");
        let is_said = || {
            let log = gateway.program.log();
            let said = log[before..].lines().any(|line| {
                line.contains("127.0.0.5:") && line.contains("trusted proxy") && line.contains(why)
            });
            // The fifth line and later ones are limited.
            said || log.matches("the trusted proxy is refused").count() >= 5
        };
        wait::until(why, is_said);
    }
    // The right one still opens the door.
    let mut tcp = timed(connect_from(PROXY, gateway.address));
    tcp.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.2 258 22\r\n").unwrap();
    tcp.write_all(&request).unwrap();
    let mut status = [0; 12];
    tcp.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 101");
}

/// Proxies that hold all places with half a header: others are served meanwhile, and no place is held for
/// ever.
#[test]
fn a_slow_or_truncated_header_holds_up_nobody() {
    let gateway = Gateway::with(&[
        "--plain",
        "--trusted-proxy",
        "127.0.0.5",
        "--proxy-protocol",
        "--handshake-limit",
        "2",
    ]);
    let tokens = gateway.add("t1");
    let mut slow: Vec<TcpStream> = Vec::new();
    for part in [&b"P"[..], b"PROXY TCP4 192.0.2", &V2[..7], &v2(0x21, 0x11, &[0; 12])[..20]] {
        let mut tcp = timed(connect_from(PROXY, gateway.address));
        tcp.write_all(part).unwrap();
        slow.push(tcp);
    }
    let (path, header) = ("/tunnel/t1/dest", b"PROXY TCP4 192.0.2.7 192.0.2.2 258 22\r\n");
    let device = connect(PROXY, gateway.address, None, header, (path, &tokens.device));
    assert!(device.is_ok(), "while others are slow");
    let stranger = connect(CLIENT, gateway.address, None, b"", (path, "hush-wrong"));
    assert_eq!(stranger.err(), Some(401));
    for mut tcp in slow {
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    // Truncated: the proxy closes its side.
    for part in [&b""[..], b"PROX", &V2[..12]] {
        let mut tcp = timed(connect_from(PROXY, gateway.address));
        tcp.write_all(part).unwrap();
        tcp.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    assert!(!gateway.program.log().contains("panicked"));
}

#[test]
fn what_strangers_say_of_their_address_changes_nothing() {
    let with_option = Gateway::audited(&["--trusted-proxy", "127.0.0.5", "--proxy-protocol"]);
    let without = Gateway::audited(&["--trusted-proxy", "127.0.0.5"]);
    let v1 = b"PROXY TCP4 192.0.2.7 192.0.2.2 258 22\r\n".to_vec();
    let version_2 = v2(0x21, 0x11, &[192, 0, 2, 7, 192, 0, 2, 2, 1, 2, 0, 22]);
    for (gateway, refusal) in [(&with_option, ""), (&without, "HTTP/1.1 400")] {
        let tokens = gateway.add("t1");
        for header in [&v1, &version_2] {
            let answer = answer(
                CLIENT,
                gateway.address,
                &[&[&header[..], &request(&tokens.device, "")].concat()],
            );
            assert!(
                answer.starts_with(refusal) && (answer.is_empty() == refusal.is_empty()),
                "{answer}"
            );
        }
        let forged = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-For: 127.0.0.5\r\n";
        let refused = answer(CLIENT, gateway.address, &[&request("hush-wrong", forged)]);
        assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
        let line = &gateway.audited_events("refusal", 1)[0];
        assert!(line["client"].as_str().unwrap().starts_with("127.0.0.2:"), "{line}");
        assert!(!gateway.program.log().contains("192.0.2.7"));
    }
    with_option
        .program
        .expect_log("refused: it sends a header of the PROXY protocol and is not a trusted proxy");
}

#[test]
fn forged_chains_do_not_hide_a_client() {
    let gateway =
        Gateway::audited(&["--trusted-proxy", "127.0.0.5", "--trusted-proxy", "10.0.0.0/8"]);
    gateway.add("t1");
    let mut expected = Vec::new();
    for (headers, client) in [
        ("", "127.0.0.5:"),
        ("X-Forwarded-For: 198.51.100.1\r\n", "198.51.100.1"),
        ("X-Forwarded-For: 203.0.113.9, 198.51.100.2\r\n", "198.51.100.2"),
        ("X-Forwarded-For: 203.0.113.9\r\nX-FORWARDED-FOR: 198.51.100.3\r\n", "198.51.100.3"),
        ("X-Forwarded-For: 10.9.9.9, 198.51.100.4, 10.0.0.2\r\n", "198.51.100.4"),
        ("X-Forwarded-For: 203.0.113.9, unknown\r\n", "127.0.0.5:"),
        ("X-Forwarded-For: 203.0.113.9, \x01\u{fc}, 10.0.0.3\r\n", "10.0.0.3"),
        ("X-Forwarded-For: 203.0.113.9, [2001:db8::5]:1\r\n", "[2001:db8::5]:1"),
        ("X-Forwarded-For:\r\n", "127.0.0.5:"),
    ] {
        let refused = answer(PROXY, gateway.address, &[&request("hush-wrong", headers)]);
        let bad = headers.contains('\x01');
        assert!(
            refused.starts_with(if bad { "HTTP/1.1 400" } else { "HTTP/1.1 401" }),
            "{refused}"
        );
        if !bad {
            expected.push(client);
        }
        let lines = gateway.audited_events("refusal", expected.len());
        let last = lines.last().unwrap();
        assert!(last["client"].as_str().unwrap().starts_with(expected.last().unwrap()), "{last}");
    }
    gateway.program.expect_log("\"unknown\" is not an address");
    assert!(!gateway.program.log().contains("203.0.113.9"));
    // A proxy that does not know its client vouches for nothing that the client has written.
    let gateway = Gateway::audited(&["--trusted-proxy", "127.0.0.5", "--proxy-protocol"]);
    gateway.add("t1");
    let forged = request("hush-wrong", "X-Forwarded-For: 203.0.113.9\r\n");
    answer(PROXY, gateway.address, &[&[&b"PROXY UNKNOWN\r\n"[..], &forged].concat()]);
    let line = &gateway.audited_events("refusal", 1)[0];
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.5:"), "{line}");
}

/// A request to the API through a proxy, without TLS.
fn ask(from: Ipv4Addr, to: SocketAddr, first: &[u8], key: &str, more: &str) -> Answer {
    let mut tcp = timed(connect_from(from, to));
    let request =
        format!("GET /tunnels HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{more}\r\n");
    tcp.write_all(&[first, request.as_bytes()].concat()).unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap();
    Answer::parse(&answer)
}

/// Wrong keys from one client behind a proxy slow that client, and not the others behind it.
fn guesses_are_counted(gateway: &Gateway, told: impl Fn(&str) -> (Vec<u8>, String) + Sync) {
    let ask = |client: &str, key: &str| {
        let (first, more) = told(client);
        ask(PROXY, gateway.api, &first, key, &more).status
    };
    for _ in 0..5 {
        assert_eq!(ask("192.0.2.7", "hush-wrong-key-of-the-api"), 401);
    }
    gateway.program.expect_log("api: 192.0.2.7: a wrong key");
    thread::scope(|scope| {
        let guess = || ask("192.0.2.7", "hush-wrong-key-of-the-api");
        let guesses: Vec<_> = (0..20).map(|_| scope.spawn(guess)).collect();
        wait::until("some are refused", || {
            guesses.iter().filter(|one| one.is_finished()).count() > 8
        });
        // Its turns are taken for some seconds.
        assert_eq!(ask("192.0.2.7", &gateway.key), 429);
        assert_eq!(ask("192.0.2.8", &gateway.key), 200);
        let statuses: Vec<u16> = guesses.into_iter().map(|one| one.join().unwrap()).collect();
        assert!(statuses.contains(&429) && statuses.contains(&401), "{statuses:?}");
    });
}

#[test]
fn the_api_counts_guesses_of_each_client_behind_a_proxy() {
    let gateway = Gateway::with(&["--plain", "--trusted-proxy", "127.0.0.5"]);
    // What stands before is the client's own, to look like somebody else each time.
    guesses_are_counted(&gateway, |client| {
        (Vec::new(), format!("X-Forwarded-For: {}, {client}\r\n", rand::random::<u32>()))
    });
    // Without a trusted proxy, everything comes from one address.
    let forged = "X-Forwarded-For: 192.0.2.9\r\n";
    assert_eq!(ask(CLIENT, gateway.api, b"", "hush-wrong-key-of-the-api", forged).status, 401);
    gateway.program.expect_log("api: 127.0.0.2: a wrong key");
    assert!(!gateway.program.log().contains("192.0.2.9"));
}

#[test]
fn the_api_counts_guesses_of_each_client_behind_a_balancer() {
    let gateway =
        Gateway::with(&["--plain", "--trusted-proxy", "127.0.0.5", "--api-proxy-protocol"]);
    guesses_are_counted(&gateway, |client| {
        let header = format!("PROXY TCP4 {client} 192.0.2.2 258 22\r\n");
        (header.into_bytes(), "X-Forwarded-For: 203.0.113.9\r\n".to_owned())
    });
    for (from, header, why) in [
        (PROXY, &b""[..], "does not begin with a header"),
        (CLIENT, b"PROXY TCP4 192.0.2.9 192.0.2.2 258 22\r\n", "is not a trusted proxy"),
    ] {
        let request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        let refused = answer(from, gateway.api, &[&[header, request.as_bytes()].concat()]);
        assert_eq!(refused, "");
        gateway.program.expect_log(why);
    }
    assert!(!gateway.program.log().contains("203.0.113.9"));
}

#[test]
fn the_api_goes_through_haproxy() {
    let gateway = Gateway::with(&["--plain", "--trusted-proxy", "127.0.0.3"]);
    let proxy = match Haproxy::start(Mode::Http, gateway.api) {
        Ok(proxy) => proxy,
        Err(why) => return skip("the API behind haproxy", why),
    };
    let url = format!("https://{}", proxy.address());
    let key = gateway.folder.file("api.key").display().to_string();
    let ca = proxy.ca_file();
    let output = super::run(
        &["tunnel", "add", "t1", "--api", &url, "--api-key-file", &key, "--ca", &ca],
        &[],
    );
    let issued = super::stdout(&output);
    aiot_tunnel_testkit::logs::note_secret(issued.as_bytes());
    gateway.program.expect_log("api: 127.0.0.1: tunnel \"t1\"");
}

#[test]
fn settings_that_cannot_work_are_refused_with_the_reason() {
    for (arguments, why) in [
        (&["--trusted-proxy", "10.0.0.1/8"][..], "write 10.0.0.0/8, or 10.0.0.1"),
        (&["--trusted-proxy", "proxy.example"], "such as 192.0.2.1 or 10.0.0.0/8"),
        (&["--proxy-protocol"], "--proxy-protocol: needs --trusted-proxy"),
        (&["--api-proxy-protocol"], "--api-proxy-protocol: needs --trusted-proxy"),
        (&["--trusted-proxy", "::1", "--api-proxy-protocol"], "--api-proxy-protocol: needs --api"),
    ] {
        let arguments = [&["gateway", "--plain", "--check", "--store", "x.db"], arguments].concat();
        let output = super::run(&arguments, &[]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains(why), "{error}");
    }
}

#[test]
fn a_trusted_proxy_that_can_tell_nothing_is_warned_of() {
    let folder = Folder::new();
    certify(&folder, &Authority::new());
    let file = |name: &str| folder.file(name).display().to_string();
    let (cert, key, store) = (file("server.pem"), file("server.key"), file("tunnels.db"));
    let common = ["gateway", "--check", "--store", &store, "--trusted-proxy", "10.0.0.0/8"];
    for (more, warns) in [
        (&["--cert", &cert, "--key", &key][..], true),
        (&["--cert", &cert, "--key", &key, "--proxy-protocol"], false),
        (&["--plain"], false),
    ] {
        let output = super::run(&[&common, more].concat(), &[]);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        assert_eq!(log.contains("--trusted-proxy has no effect"), warns, "{log}");
    }
}
