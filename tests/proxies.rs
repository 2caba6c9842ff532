//! Proxies that misbehave: each costs one attempt with one clear reason, never a hang, and nothing
//! that a proxy says is repeated. Real proxies are in the tests of the program.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use aiot_tunnel::*;
use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::cloud::{params, upgrade};
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::wait::{self, accept, TIMEOUT};
use tungstenite::handshake::derive_accept_key;

const PASSWORD: &str = "hush-proxy";
const HOST: &str = "cloud.invalid";
const OK: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// A place where a device believes a proxy to be.
struct Fake {
    listener: TcpListener,
    scheme: &'static str,
    credentials: bool,
}

impl Fake {
    fn new(scheme: &'static str, credentials: bool) -> Self {
        Fake { listener: TcpListener::bind("127.0.0.1:0").unwrap(), scheme, credentials }
    }

    fn network(&self) -> Network {
        let address = self.listener.local_addr().unwrap();
        let proxy: Proxy = format!("{}://{address}", self.scheme).parse().unwrap();
        Network::new().with_proxy(match self.credentials {
            true => proxy.with_credentials("user", PASSWORD).unwrap(),
            false => proxy,
        })
    }

    /// A device that is on its way to the cloud.
    fn device(&self, builder: ManagerBuilder, timeout: Duration) -> Running {
        let limits = Limits::new().with_handshake_timeout(timeout);
        let running = Running::start(builder.limits(limits).network(self.network()));
        running.handle.add(&id("t"), params(HOST, 4433)).unwrap();
        running
    }

    fn accept(&self) -> TcpStream {
        let tcp = accept(&self.listener);
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    }

    /// The reason that a device gives after it has met this proxy.
    fn reason(&self, speak: impl FnOnce(TcpStream) + Send) -> String {
        self.reason_with(plain(), TIMEOUT, speak)
    }

    fn reason_with(
        &self,
        builder: ManagerBuilder,
        timeout: Duration,
        speak: impl FnOnce(TcpStream) + Send,
    ) -> String {
        let running = self.device(builder, timeout);
        let mut reason = None;
        thread::scope(|scope| {
            scope.spawn(|| speak(self.accept()));
            wait::until("the attempt has failed", || {
                reason = running.handle.tunnels().pop().and_then(|tunnel| tunnel.last_error);
                reason.is_some()
            });
            drop(running);
        });
        let reason = reason.unwrap();
        let port = self.listener.local_addr().unwrap().port();
        assert!(reason.contains(&format!("{}://127.0.0.1:{port}", self.scheme)), "{reason}");
        for secret in ["hush-", "evil"] {
            assert!(!reason.contains(secret), "{reason}");
        }
        assert_eq!(reason.lines().count(), 1, "{reason}");
        reason
    }
}

/// The head of a request. The proxy may not read more.
fn head(tcp: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(bytes::<1>(tcp));
    }
    String::from_utf8(head).unwrap()
}

fn bytes<const N: usize>(tcp: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    tcp.read_exact(&mut bytes).unwrap();
    bytes
}

/// Writes as long as the other end listens.
fn write_endlessly(tcp: &mut TcpStream, part: &[u8]) {
    while tcp.write_all(part).is_ok() {}
}

/// Waits until the device hangs up.
fn hangs_up(mut tcp: TcpStream) {
    let _ = std::io::copy(&mut tcp, &mut std::io::sink());
}

fn one_by_one(tcp: &mut TcpStream, bytes: &[u8]) {
    for byte in bytes {
        tcp.write_all(&[*byte]).unwrap();
    }
}

#[test]
fn the_request_names_the_cloud_and_signs_in() {
    let fake = Fake::new("http", true);
    let running = fake.device(plain().service(echo("e")), TIMEOUT);
    let mut tcp = fake.accept();
    let request = head(&mut tcp);
    assert!(request.starts_with("CONNECT cloud.invalid:4433 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nHost: cloud.invalid:4433\r\n"), "{request}");
    // "user:hush-proxy"
    let basic = "\r\nProxy-Authorization: Basic dXNlcjpodXNoLXByb3h5\r\n";
    assert!(request.contains(basic), "{request}");
    one_by_one(&mut tcp, OK);
    let mut device = upgrade(tcp);
    running.expect(EventKind::Connect, "t");
    device.check_echo("s", "e");
}

/// The rest of an opening whose server began to answer early.
fn accepts_after_early_hints(mut tcp: TcpStream, running: &Running) {
    let request = head(&mut tcp);
    let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
    let accept = derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    tcp.write_all(answer.as_bytes()).unwrap();
    running.expect(EventKind::Connect, "t");
    drop(tcp);
    running.expect(EventKind::Disconnect, "t");
}

const EARLY: &[u8] = b"HTTP/1.1 103 Early Hints\r\n\r\n";

#[test]
fn what_follows_the_answer_of_an_http_proxy_is_the_clouds() {
    let fake = Fake::new("http", false);
    let running = fake.device(plain(), TIMEOUT);
    let mut tcp = fake.accept();
    head(&mut tcp);
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    tcp.write_all(&[interim, OK, EARLY].concat()).unwrap();
    accepts_after_early_hints(tcp, &running);
}

#[test]
fn what_follows_the_answer_of_a_socks5_proxy_is_the_clouds() {
    let fake = Fake::new("socks5", true);
    let running = fake.device(plain(), TIMEOUT);
    let mut tcp = fake.accept();
    assert_eq!(bytes(&mut tcp), [5, 2, 0, 2]);
    one_by_one(&mut tcp, &[5, 2]);
    assert_eq!(&bytes::<17>(&mut tcp), b"\x01\x04user\x0ahush-proxy");
    one_by_one(&mut tcp, &[1, 0]);
    assert_eq!(&bytes::<20>(&mut tcp), b"\x05\x01\x00\x03\x0dcloud.invalid\x11\x51");
    // The proxy's own address may be a name.
    let reply = [5, 0, 0, 3, 4, b'e', b'v', b'i', b'l', 0, 80];
    tcp.write_all(&[&reply[..], EARLY].concat()).unwrap();
    accepts_after_early_hints(tcp, &running);
}

#[test]
fn tls_begins_behind_the_answer_of_the_proxy_and_checks_the_clouds_name() {
    let authority = Authority::new();
    let tls = || {
        let config = TlsConfig::new().with_ca_pem(&authority.pem()).unwrap();
        Manager::builder().security(Security::Tls(config))
    };
    for (name, expected) in [(HOST, None), ("127.0.0.1", Some("another name"))] {
        let fake = Fake::new("http", false);
        let acceptor = authority.acceptor(name);
        let serve = |mut tcp: TcpStream| {
            head(&mut tcp);
            tcp.write_all(OK).unwrap();
            let stream = acceptor.accept(tcp).ok()?;
            aiot_tunnel_testkit::cloud::answer(stream, |_| None)
        };
        match expected {
            Some(expected) => {
                let reason = fake.reason_with(tls(), TIMEOUT, |tcp| drop(serve(tcp)));
                assert!(reason.contains(expected), "{reason}");
            }
            None => {
                let running = fake.device(tls(), TIMEOUT);
                let _device = serve(fake.accept()).unwrap();
                running.expect(EventKind::Connect, "t");
            }
        }
    }
    let fake = Fake::new("http", false);
    let reason = fake.reason_with(tls(), TIMEOUT, |mut tcp| {
        head(&mut tcp);
        tcp.write_all(&[OK, b"evil bytes that are not TLS"].concat()).unwrap();
        hangs_up(tcp);
    });
    assert!(reason.contains("does not speak TLS"), "{reason}");
}

#[test]
fn each_refusal_of_an_http_proxy_is_explained_and_not_repeated() {
    for (status, credentials, expected) in [
        (407, false, "asks for a user name and a password"),
        (407, true, "refuses the user name or the password"),
        (401, true, "refuses the user name or the password"),
        (403, false, "forbids the connection to cloud.invalid:4433"),
        (502, false, "cannot connect to cloud.invalid:4433"),
        (504, false, "cannot connect to cloud.invalid:4433"),
        (302, false, "refuses the connection to cloud.invalid:4433"),
        (101, false, "refuses the connection to cloud.invalid:4433"),
        (405, false, "is no proxy that can be used"),
    ] {
        let fake = Fake::new("http", credentials);
        let reason = fake.reason(|mut tcp| {
            head(&mut tcp);
            let answer = format!("HTTP/1.1 {status} evil\r\nX: evil\r\n\r\n<p>evil</p>");
            tcp.write_all(answer.as_bytes()).unwrap();
        });
        assert!(
            reason.contains(expected) && reason.contains(&format!("HTTP {status}")),
            "{reason}"
        );
    }
}

#[test]
fn an_http_proxy_that_sends_rubbish_costs_one_attempt() {
    type Speak = fn(&mut TcpStream);
    let no_proxy = "is no proxy that can be used";
    let cases: [(&str, Speak); 9] = [
        (no_proxy, |tcp| write_endlessly(tcp, b"HTTP/1.1 200 evil\r\nX: evil\r\n")),
        (no_proxy, |tcp| write_endlessly(tcp, b"HTTP/1.1 102 evil\r\n\r\n")),
        (no_proxy, |tcp| tcp.write_all(b"SSH-2.0-evil\r\n").unwrap()),
        (no_proxy, |tcp| tcp.write_all(b"\x15\x03\x01evil").unwrap()),
        (no_proxy, |tcp| tcp.write_all(b"\x05\x00").unwrap()),
        (no_proxy, |tcp| tcp.write_all(b"HTTP/1.1 2000 evil\r\n\r\n").unwrap()),
        (no_proxy, |tcp| tcp.write_all(b"HTTP/evil\r\n\r\n").unwrap()),
        ("ended the connection in place of an answer", |_| {}),
        ("ended the connection in place of an answer", |tcp| {
            tcp.write_all(b"HTTP/1.1 200 evil\r\n").unwrap();
        }),
    ];
    for (expected, speak) in cases {
        let fake = Fake::new("http", false);
        let reason = fake.reason(|mut tcp| {
            head(&mut tcp);
            speak(&mut tcp);
        });
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn each_refusal_of_a_socks5_proxy_is_explained_and_costs_one_attempt() {
    let unreachable = "cannot connect to cloud.invalid:4433";
    let no_proxy = "is no proxy that can be used";
    let ended = "ended the connection in place of an answer";
    let chosen: &[u8] = &[5, 0];
    for (credentials, answers, expected) in [
        (false, [&[5, 0xff][..], &[]], "asks for a user name and a password"),
        (true, [&[5, 0xff], &[]], "refuses the user name or the password"),
        (true, [&[5, 2], &[1, 1]], "refuses the user name or the password"),
        (true, [&[5, 2], &[5, 0]], no_proxy),
        (false, [&[5, 2], &[]], no_proxy),
        (false, [&[4, 0], &[]], no_proxy),
        (false, [b"H", &[]], no_proxy),
        (false, [&[], &[]], ended),
        (false, [&[5], &[]], ended),
        (false, [chosen, &[5, 1, 0, 1]], unreachable),
        (false, [chosen, &[5, 2, 0, 1]], "forbids the connection to cloud.invalid:4433"),
        (false, [chosen, &[5, 3, 0, 1]], unreachable),
        (false, [chosen, &[5, 4, 0, 1]], unreachable),
        (false, [chosen, &[5, 5, 0, 1]], unreachable),
        (false, [chosen, &[5, 6, 0, 1]], unreachable),
        (false, [chosen, &[5, 7, 0, 1]], no_proxy),
        (false, [chosen, &[5, 8, 0, 1]], "refuses the connection"),
        (false, [chosen, &[5, 99, 0, 1]], "refuses the connection"),
        (false, [chosen, &[5, 0, 0, 2]], no_proxy),
        (false, [chosen, &[5, 0, 0, 3, 255, b'e']], ended),
        (false, [chosen, &[5, 0, 0, 1, 10, 0]], ended),
    ] {
        let fake = Fake::new("socks5", credentials);
        let reason = fake.reason(|mut tcp| {
            let [_, count] = bytes(&mut tcp);
            let _ = tcp.read(&mut vec![0; count.into()]).unwrap();
            tcp.write_all(answers[0]).unwrap();
            if !answers[1].is_empty() {
                let _ = tcp.read(&mut [0; 512]).unwrap();
                tcp.write_all(answers[1]).unwrap();
            }
        });
        assert!(reason.contains(expected), "{answers:?}: {reason}");
    }
}

#[test]
fn a_proxy_that_stalls_or_drips_ends_with_the_attempts_time() {
    const SHORT: Duration = Duration::from_millis(500);
    let in_time = "does not answer in time";
    let drips = |mut tcp: TcpStream| {
        while tcp.write_all(b"HTTP/1.1 200 evil"[..1].as_ref()).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    };
    let fake = Fake::new("http", false);
    let reason = fake.reason_with(plain(), SHORT, hangs_up);
    assert!(reason.contains(in_time), "{reason}");
    let reason = Fake::new("socks5", false).reason_with(plain(), SHORT, hangs_up);
    assert!(reason.contains(in_time), "{reason}");
    let reason = fake.reason_with(plain(), SHORT, move |mut tcp| {
        tcp.write_all(b"HTTP/1.1 200 ").unwrap();
        drips(tcp);
    });
    assert!(reason.contains(in_time), "{reason}");
    // It answers, and then nothing comes from the cloud.
    let reason = fake.reason_with(plain(), SHORT, |mut tcp| {
        head(&mut tcp);
        tcp.write_all(OK).unwrap();
        hangs_up(tcp);
    });
    assert!(reason.contains("cloud.invalid:4433 (through the proxy http://"), "{reason}");
}

#[test]
fn a_proxy_that_stalls_does_not_delay_commands() {
    for scheme in ["http", "socks5"] {
        let fake = Fake::new(scheme, false);
        // Longer than any test waits.
        let mut running = fake.device(plain(), 10 * TIMEOUT);
        let held = fake.accept();
        running.handle.delete(&id("t")).unwrap();
        wait::until("the tunnel is gone", || running.handle.tunnels().is_empty());
        hangs_up(held);
        running.stop();
    }
}

#[test]
fn a_new_way_out_is_taken_by_the_next_connection() {
    let fake = Fake::new("http", false);
    let running = fake.device(plain(), TIMEOUT);
    let mut tcp = fake.accept();
    let other = Fake::new("socks5", false);
    running.handle.set_network(other.network());
    head(&mut tcp);
    tcp.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap();
    assert_eq!(bytes(&mut other.accept()), [5, 1, 0]);
}

#[test]
fn a_proxy_that_is_away_is_named() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy: Proxy = format!("http://u:hush-x@{address}").parse().unwrap();
    let running = Running::start(plain().network(Network::new().with_proxy(proxy)));
    running.handle.add(&id("t"), params(HOST, 1)).unwrap();
    let mut reason = None;
    wait::until("the attempt has failed", || {
        reason = running.handle.tunnels().pop().and_then(|tunnel| tunnel.last_error);
        reason.is_some()
    });
    let reason = reason.unwrap();
    let expected = format!("cannot connect to the proxy http://{address}: nothing listens there");
    assert!(reason.contains(&expected) && !reason.contains("hush"), "{reason}");
}

#[test]
fn a_local_end_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let elsewhere: std::net::IpAddr = "192.0.2.1".parse().unwrap();
    for (network, expected) in [
        (Network::new().with_bind_address(elsewhere), "use the local address 192.0.2.1"),
        (Network::new().with_bind_interface("no-such-if").unwrap(), "use the interface no-such-if"),
        (Network::new().with_family(AddressFamily::Ipv6), "no address that may be used"),
    ] {
        let running = Running::start(plain().network(network));
        running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
        let mut reason = None;
        wait::until("the attempt has failed", || {
            reason = running.handle.tunnels().pop().and_then(|tunnel| tunnel.last_error);
            reason.is_some()
        });
        let reason = reason.unwrap();
        assert!(reason.contains(expected), "{reason}");
    }
    let own: std::net::IpAddr = "127.0.0.2".parse().unwrap();
    let running = Running::start(plain().network(Network::new().with_bind_address(own)));
    running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
    assert_eq!(accept(&listener).peer_addr().unwrap().ip(), own);
}
