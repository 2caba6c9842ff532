//! Attacks from the network, from the cloud, and by other processes of the machine.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::*;
use aiot_tunnel_testkit::certificates::{Authority, Identity};
use aiot_tunnel_testkit::cloud::{params, Cloud};
use aiot_tunnel_testkit::frame::code;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::process::{is_scene, program, test_again, Lines, Process};
use aiot_tunnel_testkit::queue;
use aiot_tunnel_testkit::queue::Key;
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::wait::{self, accept, TIMEOUT};
use aiot_tunnel_testkit::{gateways, logs, skip, ACCESS_TOKEN, DEVICE_TOKEN};
use openssl::ssl::{
    SslAcceptor, SslAcceptorBuilder, SslConnector, SslMethod, SslOptions, SslVerifyMode, SslVersion,
};
use serde_json::json;

fn trusting(authority: &Authority) -> TlsConfig {
    TlsConfig::new().with_ca_pem(&authority.pem()).unwrap()
}

fn secured(config: TlsConfig) -> ManagerBuilder {
    Manager::builder().security(Security::Tls(config))
}

fn acceptor(authority: &Authority, name: &str) -> SslAcceptorBuilder {
    let identity = authority.identity(name);
    let mut builder = SslAcceptor::mozilla_intermediate(SslMethod::tls()).unwrap();
    builder.set_certificate(&identity.x509()).unwrap();
    builder.set_private_key(&identity.private_key()).unwrap();
    builder
}

/// The first bytes that a device sends to a server that sends nothing.
fn first_bytes(mut stream: &TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut bytes = vec![0; 4096];
    let length = stream.read(&mut bytes).unwrap_or(0);
    bytes.truncate(length);
    bytes
}

/// The TLS version of one handshake with a device, or why it failed.
fn handshake(acceptor: &SslAcceptor, listener: &TcpListener) -> Result<String, String> {
    let stream = accept(listener);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut stream = acceptor.accept(stream).map_err(|e| e.to_string())?;
    let version = stream.ssl().version_str().to_owned();
    // A device that trusts the server sends its request; otherwise it closes the connection.
    match stream.read(&mut [0; 1]) {
        Ok(1) => Ok(version),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn tls_below_1_2_is_refused_whatever_the_server_allows() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let with = |version: SslVersion| {
        let mut builder = acceptor(&authority, "127.0.0.1");
        builder.clear_options(SslOptions::NO_TLSV1_1 | SslOptions::NO_TLSV1_3);
        builder.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
        builder.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
        builder.set_max_proto_version(Some(version)).unwrap();
        builder.build()
    };

    // The server accepts TLS 1.1 from a client that asks for it.
    let old = with(SslVersion::TLS1_1);
    let client = thread::spawn(move || {
        let mut builder = SslConnector::builder(SslMethod::tls()).unwrap();
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
        builder.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
        builder.set_max_proto_version(Some(SslVersion::TLS1_1)).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        builder.build().connect("127.0.0.1", stream).unwrap().write_all(b"x").unwrap();
    });
    assert_eq!(handshake(&old, &listener).unwrap(), "TLSv1.1");
    client.join().unwrap();

    let running = Running::start(secured(trusting(&authority)));
    running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
    for version in [SslVersion::TLS1_1, SslVersion::TLS1] {
        handshake(&with(version), &listener).unwrap_err();
    }
    assert_eq!(handshake(&with(SslVersion::TLS1_2), &listener).unwrap(), "TLSv1.2");
    assert_eq!(handshake(&with(SslVersion::TLS1_3), &listener).unwrap(), "TLSv1.3");
    assert!(running.events.try_recv().is_err(), "no event of a tunnel that never opened");
}

#[test]
fn a_server_that_asks_for_a_renegotiation_is_refused() {
    use foreign_types::ForeignTypeRef;
    extern "C" {
        fn SSL_renegotiate(ssl: *mut openssl_sys::SSL) -> libc::c_int;
    }
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let running = Running::start(secured(trusting(&authority)));
    let port = listener.local_addr().unwrap().port();
    running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
    let mut acceptor = acceptor(&authority, "127.0.0.1");
    acceptor.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    let stream = accept(&listener);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut stream = acceptor.build().accept(stream).unwrap();
    assert_ne!(stream.read(&mut [0; 4096]).unwrap(), 0);
    // SAFETY: the session is alive, and its handshake done.
    assert_eq!(unsafe { SSL_renegotiate(stream.ssl().as_ptr()) }, 1);
    // This sends the request without waiting for the answer.
    stream.do_handshake().unwrap();
    let refusal = stream.read(&mut [0; 1]).unwrap_err().to_string();
    assert!(refusal.contains("no renegotiation"), "{refusal}");
}

#[test]
fn names_and_addresses_are_verified_with_and_without_sni() {
    let authority = Authority::new();
    for (host, certified, good) in [
        ("127.0.0.1", "127.0.0.1", true),
        ("localhost", "localhost", true),
        ("LOCALHOST", "localhost", true),
        ("127.0.0.1", "127.0.0.2", false),
        ("127.0.0.1", "localhost", false),
        ("localhost", "127.0.0.1", false),
        ("localhost", "localhost.example", false),
        ("localhost", "*", false),
    ] {
        for sni in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let running = Running::start(secured(trusting(&authority).with_sni(sni)));
            running.handle.add(&id("t"), params(host, port)).unwrap();
            let result = handshake(&acceptor(&authority, certified).build(), &listener);
            assert_eq!(result.is_ok(), good, "{host} by a certificate for {certified}: {result:?}");
        }
    }
}

#[test]
fn a_device_shows_its_certificate_with_the_chain_up_to_a_root() {
    let authority = Authority::new();
    let intermediate = authority.intermediate();
    let Identity { certificate: own, key } = intermediate.identity("device");
    let chain = [own.clone(), intermediate.pem()].concat();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        for (shown, good) in [(&chain, true), (&own, false)] {
            let mut acceptor = acceptor(&authority, "127.0.0.1");
            acceptor.clear_options(SslOptions::NO_TLSV1_3);
            acceptor.set_max_proto_version(Some(version)).unwrap();
            acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
            acceptor.cert_store_mut().add_cert(authority.x509()).unwrap();
            let config = trusting(&authority).with_client_pem(shown, &key).unwrap();
            let running = Running::start(secured(config));
            running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
            let result = handshake(&acceptor.build(), &listener);
            assert_eq!(result.is_ok(), good, "{version:?}: {result:?}");
        }
    }
}

/// Whether a ClientHello has the extension server_name, number 0.
fn sni_of(record: &[u8]) -> bool {
    let number = |at: usize| usize::from(u16::from_be_bytes([record[at], record[at + 1]]));
    // Record header, message header, version, random; then session id, ciphers, compression.
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(record[at]);
    at += 2 + number(at);
    at += 1 + usize::from(record[at]);
    let end = at + 2 + number(at);
    at += 2;
    while at < end {
        if number(at) == 0 {
            return true;
        }
        at += 4 + number(at + 2);
    }
    false
}

#[test]
fn sni_names_hosts_and_never_addresses() {
    let authority = Authority::new();
    for (host, sni, sent) in [
        ("localhost", true, true),
        ("localhost", false, false),
        ("127.0.0.1", true, false),
        ("::1", true, false),
    ] {
        let Ok(listener) = TcpListener::bind(if host == "::1" { "[::1]:0" } else { "127.0.0.1:0" })
        else {
            continue; // a machine without IPv6
        };
        let port = listener.local_addr().unwrap().port();
        let running = Running::start(secured(trusting(&authority).with_sni(sni)));
        running.handle.add(&id("t"), params(host, port)).unwrap();
        let hello = first_bytes(&accept(&listener));
        assert_eq!(hello[0], 22, "a handshake record");
        let holds = hello.windows(host.len()).any(|bytes| bytes == host.as_bytes());
        assert_eq!(holds, sent, "{host} in the hello, SNI {sni}");
        let server_name = sni_of(&hello);
        assert_eq!(server_name, sent, "an SNI extension for {host}, SNI {sni}");
    }
}

#[test]
fn after_failures_of_tls_every_attempt_still_begins_with_tls() {
    let running = Running::start(secured(TlsConfig::new()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    running.handle.add(&id("t"), params("localhost", port)).unwrap();
    let answers: [&[u8]; 4] = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\n\r\n",
        // handshake_failure and protocol_version, the answers of a server without TLS 1.2.
        b"\x15\x03\x01\x00\x02\x02\x28\x15\x03\x01\x00\x02\x02\x46",
        b"",
    ];
    for answer in answers {
        let mut stream = accept(&listener);
        let mut bytes = first_bytes(&stream);
        assert_eq!(bytes[..2], [22, 3], "{}", String::from_utf8_lossy(&bytes));
        let _ = stream.write_all(answer);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // Further bytes, if any, are not the request.
        let _ = stream.read_to_end(&mut bytes);
        for secret in [&b"GET "[..], b"/tunnel/", DEVICE_TOKEN.as_bytes()] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
    assert!(running.events.try_recv().is_err());
}

#[test]
fn redirects_are_never_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = elsewhere.local_addr().unwrap();
    let cloud = Cloud::plain();
    let running = Running::start(plain());
    running.handle.add(&id("t"), cloud.params()).unwrap();
    for status in [301, 302, 307, 308] {
        let mut stream = accept(&cloud.listener);
        let request = first_bytes(&stream);
        assert!(request.starts_with(b"GET /tunnel/t/dest?x=1 HTTP/1.1\r\n"));
        let answer = format!(
            "HTTP/1.1 {status} Moved\r\nLocation: ws://{there}/\r\nContent-Length: 0\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
    }
    // It has connected here again each time, and does so now.
    let _device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    elsewhere.set_nonblocking(true).unwrap();
    assert_eq!(elsewhere.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn control_bytes_in_hosts_paths_tokens_and_names_are_refused() {
    let port = Port::new(443).unwrap();
    let token = || Token::new(DEVICE_TOKEN).unwrap();
    for bad in
        ["a\r\nX-Evil: 1", "a\nb", "a\0b", "a b", "a\tb", "a\x7fb", "a\x1bb", "ä", "a\u{85}b"]
    {
        assert!(Token::new(bad).is_err(), "{bad:?}");
        assert!(ConnectParams::new(bad, port, "/", token()).is_err(), "{bad:?}");
        assert!(ConnectParams::new("h", port, bad, token()).is_err(), "{bad:?}");
        assert!(Service::new("_SSH", bad, port).is_err(), "{bad:?}");
        if bad.contains(char::is_control) {
            assert!(Service::new(bad, "127.0.0.1", port).is_err(), "{bad:?}");
            assert!(TunnelId::new(bad).is_err(), "{bad:?}");
        }
    }
    for bad in ["h/p", "h?q", "u@h", "h#f", "[h", "h\\p", ""] {
        assert!(ConnectParams::new(bad, port, "/", token()).is_err(), "{bad:?}");
    }
    let error = Token::new("hush-\r\n").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hush"), "the error quotes the token");
}

#[test]
fn only_configured_services_are_reached_whatever_the_cloud_asks_for() {
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    let (cloud, port) = (Cloud::plain(), trap.local_addr().unwrap().port());
    let running = Running::start(plain().service(echo("_SSH")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    let asked = [
        format!("127.0.0.1:{port}"),
        format!("_SSH=127.0.0.1:{port}"),
        format!("_SSH@127.0.0.1:{port}"),
        format!("_SSH\r\nHost: 127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}/"),
        "_ssh".into(),
        "_SSH ".into(),
        " _SSH".into(),
        "_SSH\0".into(),
        "_SSH\0x".into(),
        "../_SSH".into(),
        "_SSH/../_SSH".into(),
        "_SS".into(),
        "_SSHH".into(),
        "*".into(),
        "".into(),
    ];
    for (n, service) in asked.iter().enumerate() {
        let session = format!("s{n}");
        device.send(
            json!({"frame_type": 2, "session_id": session, "frame_id": 7, "service_type": service,
                "host": "127.0.0.1", "ip": "127.0.0.1", "port": port, "path": "/"}),
            format!("127.0.0.1:{port}").as_bytes(),
        );
        let (header, payload) = device.receive();
        assert_eq!((&header["frame_type"], &header["session_id"]), (&json!(1), &json!(session)));
        assert_eq!(code(&payload), 2, "{service:?}");
        // No control byte of the cloud's comes back unescaped.
        assert!(!payload.iter().any(|byte| byte.is_ascii_control()), "{payload:?}");
    }
    assert_eq!(device.create("good", "_SSH"), 0);
    trap.set_nonblocking(true).unwrap();
    assert_eq!(trap.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn no_debug_text_holds_a_token_or_a_key() {
    let authority = Authority::new();
    let Identity { certificate, key } = authority.identity("client");
    let key_line = String::from_utf8(key.clone()).unwrap().lines().nth(2).unwrap().to_owned();
    let tls = trusting(&authority).with_client_pem(&certificate, &key).unwrap();
    let token = Token::new(DEVICE_TOKEN).unwrap();
    let port = Port::new(443).unwrap();
    let connect = ConnectParams::new("h", port, "/p", token.clone()).unwrap();
    let service = Service::new("_SSH", "127.0.0.1", port).unwrap();
    let options = ipc::ListenOptions::default();
    let event = Event::new(EventKind::Connect, id("t"));
    let error = Error::InvalidInput { field: "f", reason: "r".into() };
    let add = ipc::Command::Add(id("t"), connect.clone());
    let update = ipc::Command::Update(id("t"), connect.clone());
    let (id, limits) = (id("t"), Limits::default());
    let security = Security::Tls(tls.clone());
    let tunnel = gateways::tunnel("t");
    let builder = Manager::builder().security(security.clone()).service(service.clone());
    let manager = Manager::builder().security(security.clone()).build().unwrap();
    let handle = manager.handle();
    handle.add(&id, connect.clone()).unwrap();
    let own = queue::Key::new();
    let listener = ipc::Listener::start(handle.clone(), ipc::ListenOptions::new().with_key(own.0));
    let (listener, target) = (listener.unwrap(), service.target());
    let gateway_builder = gateway::Gateway::builder().tunnel(tunnel.clone());
    let served = gateway::Gateway::builder().tunnel(tunnel.clone());
    let served = served.start("127.0.0.1:0".parse().unwrap()).unwrap();
    let client = access::Client::new(connect.clone(), security.clone(), "_SSH").unwrap();
    let stop = client.stop_handle();
    let all: [&dyn std::fmt::Debug; 23] = [
        &token,
        &connect,
        &tls,
        &security,
        &add,
        &update,
        &service,
        target,
        &options,
        &event,
        &error,
        &id,
        &port,
        &limits,
        &tunnel,
        &builder,
        &manager,
        &handle,
        &listener,
        &gateway_builder,
        &served,
        &client,
        &stop,
    ];
    for value in all {
        for text in [format!("{value:?}"), format!("{value:#?}")] {
            let lower = text.to_lowercase();
            assert!(!lower.contains("hush-") && !lower.contains("private"), "{text}");
            assert!(!text.contains(&key_line), "{text}");
        }
    }
}

/// Where `needle` begins. The C library searches fast in debug builds, too.
fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    // SAFETY: both slices with their own lengths.
    let found = unsafe {
        libc::memmem(haystack.as_ptr().cast(), haystack.len(), needle.as_ptr().cast(), needle.len())
    };
    (!found.is_null()).then(|| found.addr() - haystack.as_ptr().addr())
}

/// A process that holds a token: this test program again, or the program under test.
struct Holder {
    process: Process,
    lines: Lines,
}

impl Holder {
    fn new(command: &mut Command) -> Self {
        let mut process = Process::start(command.stdout(Stdio::piped()));
        let lines = process.lines();
        Holder { process, lines }
    }

    /// The places in its memory that hold the secret. `None` if this user may not read its memory.
    fn holds(&self, secret: &[u8]) -> Option<Vec<String>> {
        use std::os::unix::fs::FileExt;
        let pid = self.process.id();
        let memory = fs::File::open(format!("/proc/{pid}/mem")).ok()?;
        let mut found = Vec::new();
        for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
            let (span, rest) = line.split_once(' ').unwrap();
            if !rest.starts_with('r') || rest.contains("[vvar") || rest.contains("[vsyscall") {
                continue;
            }
            let (begin, end) = span.split_once('-').unwrap();
            let [begin, end] = [begin, end].map(|n| u64::from_str_radix(n, 16).unwrap());
            let mut bytes = vec![0; (end - begin) as usize];
            let Ok(length) = memory.read_at(&mut bytes, begin) else { continue };
            let bytes = &bytes[..length];
            let mut from = 0;
            while let Some(at) = position(&bytes[from..], secret).map(|at| from + at) {
                let around = &bytes[at.saturating_sub(32)..(at + 80).min(length)];
                let around = String::from_utf8_lossy(around).into_owned();
                found.push(format!("{:#x} {rest}: {around:?}", begin + at as u64));
                from = at + 1;
            }
        }
        Some(found)
    }

    /// Waits until no place in its memory holds the secret.
    fn expect_wiped(&self, what: &str, secret: &[u8]) {
        let deadline = Instant::now() + TIMEOUT / 2;
        while let Some(found) = self.holds(secret) {
            if found.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{what} is left: {found:#?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The child's part: a device that opens and closes a tunnel on demand, with TLS if it gets a folder
/// with a CA, a certificate and a key.
fn hold_a_token() {
    fn line() -> zeroize::Zeroizing<Vec<u8>> {
        let mut line = zeroize::Zeroizing::new(Vec::with_capacity(4096));
        let mut byte = [0];
        // Unbuffered, so that no buffer of std keeps the token.
        while rustix::io::read(rustix::stdio::stdin(), &mut byte) == Ok(1) && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        line
    }
    let text = |line: &[u8]| std::str::from_utf8(line).unwrap().to_owned();
    let port: Port = text(&line()).parse().unwrap();
    let folder = text(&line());
    let security = if folder.is_empty() {
        Security::Plain
    } else {
        let file = |name| zeroize::Zeroizing::new(fs::read(format!("{folder}/{name}")).unwrap());
        let tls = TlsConfig::new().with_ca_pem(&file("ca")).unwrap();
        Security::Tls(tls.with_client_pem(&file("cert"), &file("key")).unwrap())
    };
    let mut running = Running::start(Manager::builder().security(security));
    {
        let token = line();
        let token = Token::new(std::str::from_utf8(&token).unwrap()).unwrap();
        let params = ConnectParams::new("localhost", port, "/p", token).unwrap();
        running.handle.add(&id("t"), params).unwrap();
    }
    running.expect(EventKind::Connect, "t");
    println!("connected");
    line();
    running.handle.delete(&id("t")).unwrap();
    running.expect(EventKind::Disconnect, "t");
    println!("deleted");
    line();
    running.stop();
    drop(running);
    println!("dropped");
    line();
}

/// A folder for a key. It is removed whatever happens.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("aiot-wiped-{:016x}", rand::random::<u64>());
        let folder = Folder(std::env::temp_dir().join(name));
        fs::DirBuilder::new().mode(0o700).create(&folder.0).unwrap();
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn check_wiped(test: &str, with_tls: bool) {
    let authority = Authority::new();
    let identity = authority.identity("client");
    let token = format!("hush-{:032x}", rand::random::<u128>());
    logs::note_secret(token.as_bytes());
    let cloud = if with_tls { Cloud::tls(authority.acceptor("localhost")) } else { Cloud::plain() };
    let folder = Folder::new();
    fs::write(folder.0.join("ca"), authority.pem()).unwrap();
    fs::write(folder.0.join("cert"), &identity.certificate).unwrap();
    fs::write(folder.0.join("key"), &identity.key).unwrap();

    let mut holder = Holder::new(&mut test_again(test));
    let place = if with_tls { folder.0.to_str().unwrap() } else { "" };
    holder.process.write(format!("{}\n{place}\n{token}\n", cloud.address().port()).as_bytes());
    let mut device = cloud.accept_with_token(&token);
    let reader = thread::spawn(move || while device.socket.read().is_ok() {});
    holder.lines.expect("connected");
    drop(folder);
    let Some(found) = holder.holds(token.as_bytes()) else {
        return skip(test, "this user may not read a child's memory");
    };
    assert!(!found.is_empty(), "the token is there while the tunnel is");
    holder.process.write(b"\n");
    holder.lines.expect("deleted");
    holder.expect_wiped("the token of a deleted tunnel", token.as_bytes());
    holder.process.write(b"\n");
    holder.lines.expect("dropped");
    holder.expect_wiped("the token", token.as_bytes());
    // The key as OpenSSL uses it, a little-endian number. Not its encoding: each time OpenSSL parses a
    // key, it leaves a copy of the encoding in memory that it frees (docs/security.md).
    let number = identity.private_key().ec_key().unwrap().private_key().to_vec_padded(32).unwrap();
    let reversed: Vec<u8> = number.iter().rev().copied().collect();
    holder.expect_wiped("the key", &reversed);
    for line in String::from_utf8(identity.key).unwrap().lines().filter(|line| line.len() > 40) {
        holder.expect_wiped("a line of the key", line.as_bytes());
    }
    holder.process.write(b"\n");
    reader.join().unwrap();
}

#[test]
fn tokens_are_wiped_from_memory_plain() {
    const TEST: &str = "tokens_are_wiped_from_memory_plain";
    if is_scene(TEST) {
        return hold_a_token();
    }
    check_wiped(TEST, false);
}

#[test]
fn tokens_and_keys_are_wiped_from_memory_tls() {
    const TEST: &str = "tokens_and_keys_are_wiped_from_memory_tls";
    if is_scene(TEST) {
        return hold_a_token();
    }
    check_wiped(TEST, true);
}

#[test]
fn without_a_ca_of_its_own_an_agent_trusts_the_systems_roots_and_shows_its_certificate() {
    let (authority, other) = (Authority::new(), Authority::new());
    let mut acceptor = acceptor(&authority, "127.0.0.1");
    acceptor.clear_options(SslOptions::NO_TLSV1_3);
    acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    acceptor.cert_store_mut().add_cert(authority.x509()).unwrap();
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for (roots, trusted) in [(&authority, true), (&other, false)] {
        let identity = authority.identity("device");
        let folder = Folder::new();
        let file = |name: &str, content: &[u8]| {
            let path = folder.0.join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let own = Key::new();
        let queue = own.0.to_string();
        let mut command = Command::new(program());
        command
            .args(["agent", "--control-socket", "none", "--queue-key", &queue])
            .arg("--client-cert")
            .arg(file("cert", &identity.certificate))
            .arg("--client-key")
            .arg(file("key", &identity.key))
            .env("SSL_CERT_FILE", file("roots", &roots.pem()))
            .env("SSL_CERT_DIR", folder.0.join("none"));
        let mut agent = Holder::new(logs::keep_of(&mut command));
        wait::until("the agent's queue", || {
            let mut command = Command::new(program());
            command
                .args(["send", "add", "--tunnel", "t", "--queue-key", &queue])
                .args(["--host", "127.0.0.1", "--port", &port])
                .env("AIOT_TUNNEL_DEVICE_TOKEN", DEVICE_TOKEN)
                .stderr(Stdio::null());
            logs::keep_of(&mut command).stdout(Stdio::null()).status().unwrap().success()
        });
        match handshake(&acceptor, &listener) {
            Ok(version) => assert!(trusted && version == "TLSv1.3", "{version}"),
            Err(e) => assert!(!trusted, "{e}"),
        }
        // In order, so that it removes its queue.
        agent.process.terminate();
        assert!(agent.process.wait().success());
    }
}

#[test]
fn no_process_shows_its_token_in_the_process_list_or_its_environment() {
    let (device, access) = (format!("{DEVICE_TOKEN}-shown"), format!("{ACCESS_TOKEN}-shown"));
    let unseen = |holder: &Holder| {
        for file in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{}/{file}", holder.process.id())).unwrap();
            assert!(!text.windows(5).any(|bytes| bytes == b"hush-"), "in {file}");
        }
    };
    let mut command = Command::new(program());
    command
        .args(["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnel", "t"])
        .env("AIOT_TUNNEL_DEVICE_TOKEN", &device)
        .env("AIOT_TUNNEL_ACCESS_TOKEN", &access);
    let gateway = Holder::new(logs::keep_of(&mut command));
    let line = gateway.lines.expect("listening on");
    unseen(&gateway);
    let address = line.rsplit(' ').next().unwrap();
    let mut command = Command::new(program());
    command
        .args(["access", "--tunnel", "t", "--listen", "127.0.0.1:0"])
        .args(["--url", &format!("ws://{address}")])
        .env("AIOT_TUNNEL_ACCESS_TOKEN", &access);
    let access = Holder::new(logs::keep_of(&mut command));
    access.lines.expect("listening on");
    unseen(&access);

    // The key removes the queue that an agent leaves behind when it is killed.
    let own = Key::new();
    let key = own.0.to_string();
    let mut command = Command::new(program());
    command.args(["agent", "--plain", "--control-socket", "none", "--queue-key", &key]);
    let mut agent = Holder::new(logs::keep_of(&mut command));
    let (host, port) = address.rsplit_once(':').unwrap();
    let send = || {
        let mut command = Command::new(program());
        command
            .args(["send", "add", "--tunnel", "t", "--queue-key", &key])
            .args(["--host", host, "--port", port])
            .env("AIOT_TUNNEL_DEVICE_TOKEN", &device)
            .stderr(Stdio::null());
        logs::keep_of(&mut command).stdout(Stdio::null()).status().unwrap().success()
    };
    // This fails until the agent has made its queue.
    wait::until("the agent's queue", send);
    agent.lines.expect("Connect t");
    unseen(&agent);
    // In order, so that it removes its queue.
    agent.process.terminate();
    assert!(agent.process.wait().success());
}
