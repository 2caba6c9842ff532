//! What outlives a restart, and what a change does to open connections.

use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::{gateways, services, wait};
use serde_json::{json, Value};

use super::{echoes, run, soon, stdout, Gateway, Tokens, SOON};

#[test]
fn a_tunnel_of_the_api_survives_a_restart_and_works() {
    let mut gateway = Gateway::start();
    let tokens = gateway.add("pump-17");
    gateway.restart();
    let service = services::echo("echo");
    let service = format!("echo={}", service.target());
    let _agent = gateway.agent("pump-17", &tokens.device, &service);
    wait::until("the device is online", || gateway.has_device("pump-17"));
    let (_access, address) = gateway.access("pump-17", &tokens.access, "echo");
    let mut client = TcpStream::connect(address).unwrap();
    echoes(&mut client, "hello");
    // The gateway counts bytes after it has passed them on.
    soon("the bytes are counted", || gateway.show("pump-17")["bytes_to_access"] == 5);
    let shown = gateway.show("pump-17");
    assert_eq!(shown["sessions"], 1);
    assert_eq!((&shown["bytes_to_device"], &shown["bytes_to_access"]), (&json!(5), &json!(5)));
    assert_eq!(shown["access"].as_array().unwrap().len(), 1);
    let (_, all) = gateway.ask("GET", "/tunnels", None);
    assert_eq!(all["tunnels"], json!([gateway.show("pump-17")]));

    // The agent and the access side come back by themselves.
    drop(client);
    gateway.restart();
    wait::until("the device is online again", || gateway.has_device("pump-17"));
    echoes(&mut TcpStream::connect(address).unwrap(), "hello again");
}

/// The fixture was made by the program before tunnels had devices.
#[test]
fn a_store_file_from_the_version_before_opens() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gateway/fixtures");
    let folder = Folder::new();
    for (from, to) in [("store-2.db", "tunnels.db"), ("store-2.db.key", "tunnels.db.key")] {
        folder.write_secret(to, fs::read(format!("{fixtures}/{from}")).unwrap());
    }
    let mut gateway = Gateway::in_folder(folder, &["--plain"]);
    for _ in 0..2 {
        for (path, token, status) in [
            ("/tunnel/kept/dest", "-1aYJV23qFgL7Z13T9fxA1Fo6hwh8Pp0V3IHWAdOVbA", 101),
            ("/tunnel/kept/source", "OWd_ujt5sbYs4V9pV7GxTrBZ5mymSrQV14WGcMbAxyI", 101),
            ("/tunnel/rotated/dest", "-zuYtJWHzBb6K5UmSASBbxSJhc-zbSGMPAROyFixu3c", 401),
            ("/tunnel/rotated/dest", "lDNY7m08GZONBqI5dr94xTEeQJIK80rS68dGi45OvLc", 101),
            ("/tunnel/expired/dest", "g4A7XBTJOWHAqkxB0cNlU92qLynrqSkdtJa5Igh8zdc", 401),
        ] {
            assert_eq!(gateway.admission(path, token), status, "{path}");
        }
        let shown = gateway.show("rotated");
        assert!(shown["rotated"].is_string() && shown["product_key"].is_null(), "{shown}");
        assert_eq!(gateway.show("expired")["state"], "expired");
        gateway.restart();
    }
    let body = json!({"id": "new", "product_key": "pk", "device_name": "d"});
    assert_eq!(gateway.ask("POST", "/tunnels", Some(body)).0, 201);
    assert_eq!(gateway.ask("POST", "/tunnels/kept/rotate", None).0, 200);
    gateway.restart();
    assert_eq!(gateway.show("new")["device_name"], "d");
}

/// Whoever copies the store's file and its key has everything.
#[test]
fn after_an_orderly_end_the_file_is_whole() {
    let mut gateway = Gateway::start();
    let tokens = gateway.add("t1");
    gateway.program.process.terminate();
    assert!(gateway.program.finish().0.success());
    let copy = Folder::new();
    for name in ["tunnels.db", "tunnels.db.key"] {
        copy.write_secret(name, fs::read(gateway.folder.file(name)).unwrap());
    }
    assert!(!gateway.folder.file("tunnels.db-wal").exists());
    let restored = Gateway::in_folder(copy, &["--plain"]);
    assert_eq!(restored.admission("/tunnel/t1/dest", &tokens.device), 101);
}

#[test]
fn no_file_no_log_and_no_page_holds_a_token_or_the_key() {
    let gateway = Gateway::start();
    let tokens = gateway.add("t1");
    let _device = gateways::connect(gateway.address, "/tunnel/t1/dest", Some(&tokens.device));
    let (_, rotated) = gateway.ask("POST", "/tunnels/t1/rotate", None);
    let rotated = Tokens::of(&rotated);
    assert_eq!(gateway.request("GET", "/tunnels", Some(&tokens.access), None).status, 401);
    let secrets = [&tokens.device, &tokens.access, &rotated.device, &rotated.access, &gateway.key];
    let metrics = gateway.request("GET", "/metrics", Some(&gateway.key), None);
    assert_eq!(metrics.status, 200);
    let list = gateway.request("GET", "/tunnels", Some(&gateway.key), None);
    let shown = gateway.request("GET", "/tunnels/t1", Some(&gateway.key), None);
    let mut places = vec![
        ("metrics".to_owned(), metrics.body),
        ("list".to_owned(), list.body),
        ("tunnel".to_owned(), shown.body),
        ("log".to_owned(), gateway.program.log()),
    ];
    for name in ["cmdline", "environ"] {
        let path = format!("/proc/{}/{name}", gateway.program.process.id());
        places.push((name.to_owned(), String::from_utf8_lossy(&fs::read(path).unwrap()).into()));
    }
    let mut stores = 0;
    for file in fs::read_dir(gateway.folder.path()).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("tunnels.db") {
            stores += 1;
            places.push((name, String::from_utf8_lossy(&fs::read(path).unwrap()).into()));
        }
    }
    assert!(stores >= 2, "the store and its key");
    for (place, text) in places {
        for secret in secrets {
            assert!(!text.contains(secret.as_str()), "{place}");
        }
    }
}

#[test]
fn new_tokens_close_what_the_old_ones_have_opened() {
    let gateway = Gateway::start();
    let tokens = gateway.add("t1");
    let connect =
        |path, token: &str| gateways::connect(gateway.address, path, Some(token)).unwrap();
    let mut device = connect("/tunnel/t1/dest", &tokens.device);
    let mut access = connect("/tunnel/t1/source", &tokens.access);
    let asked = Instant::now();
    let (status, issued) =
        gateway.ask("POST", "/tunnels/t1/rotate", Some(json!({"side": "access"})));
    assert_eq!(status, 200);
    assert_eq!(issued["device_token"], json!(null));
    assert_eq!(access.receive_close(), Some(4001));
    assert!(asked.elapsed() < SOON);
    assert_eq!(gateway.admission("/tunnel/t1/source", &tokens.access), 401);
    let renewed = Tokens::of(&issued);
    assert_eq!(gateway.admission("/tunnel/t1/source", &renewed.access), 101);
    // The device was not concerned.
    assert!(gateway.has_device("t1"));

    let asked = Instant::now();
    let (_, issued) = gateway.ask("POST", "/tunnels/t1/rotate", None);
    assert_eq!(device.receive_close(), Some(4001));
    assert!(asked.elapsed() < SOON);
    let both = Tokens::of(&issued);
    assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 401);
    assert_eq!(gateway.admission("/tunnel/t1/dest", &both.device), 101);
    assert_eq!(gateway.admission("/tunnel/t1/source", &renewed.access), 401);
    assert_eq!(gateway.admission("/tunnel/t1/source", &both.access), 101);
    // A token opens its own side only.
    assert_eq!(gateway.admission("/tunnel/t1/source", &both.device), 401);
}

#[test]
fn a_removed_tunnel_is_unknown_at_once() {
    let mut gateway = Gateway::start();
    let tokens = gateway.add("t1");
    let connect =
        |path, token: &str| gateways::connect(gateway.address, path, Some(token)).unwrap();
    let mut device = connect("/tunnel/t1/dest", &tokens.device);
    let mut access = connect("/tunnel/t1/source", &tokens.access);
    let asked = Instant::now();
    assert_eq!(gateway.ask("DELETE", "/tunnels/t1", None).0, 204);
    assert_eq!(device.receive_close(), Some(1001));
    assert_eq!(access.receive_close(), Some(1001));
    assert!(asked.elapsed() < SOON);
    for _ in 0..2 {
        assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 404);
        assert_eq!(gateway.ask("GET", "/tunnels/t1", None).0, 404);
        assert_eq!(gateway.ask("DELETE", "/tunnels/t1", None).0, 404);
        gateway.restart();
    }
}

#[test]
fn a_gateway_that_ends_releases_its_sessions_with_code_4() {
    let mut gateway = Gateway::start();
    let tokens = gateway.add("t1");
    let connect =
        |path, token: &str| gateways::connect(gateway.address, path, Some(token)).unwrap();
    let mut device = connect("/tunnel/t1/dest", &tokens.device);
    let mut access = connect("/tunnel/t1/source", &tokens.access);
    let mut ask = |frame_id: u64| {
        access.send(json!({"frame_type": 2, "frame_id": frame_id, "service_type": "s"}), b"");
        device.receive().0
    };
    let (open, unanswered) = (ask(1), ask(2));
    let session = open["session_id"].as_str().unwrap().to_owned();
    device.send(
        json!({"frame_type": 1, "frame_id": open["frame_id"], "session_id": session}),
        br#"{"code": 0}"#,
    );
    assert_eq!(access.receive().0["frame_type"], json!(1));
    gateway.program.process.terminate();
    // Two releases for the device; for the operator one, and the refusal that it waits for.
    for (end, types) in [(&mut device, [3, 3]), (&mut access, [1, 3])] {
        let mut frames = [end.receive(), end.receive()];
        frames.sort_by_key(|(header, _)| header["frame_type"].as_u64());
        for ((header, payload), kind) in frames.iter().zip(types) {
            let status: Value = serde_json::from_slice(payload).unwrap();
            assert_eq!(header["frame_type"], json!(kind));
            assert_eq!(status["code"], json!(if kind == 3 { 4 } else { 2 }), "{status}");
        }
        assert_eq!(end.receive_close(), Some(1001));
    }
    assert!(unanswered["session_id"].is_string());
    let (status, log) = gateway.program.finish();
    assert!(status.success(), "{log}");
}

#[test]
fn an_expiry_holds_to_the_second_and_can_be_renewed() {
    let mut gateway = Gateway::start();
    let made = Instant::now();
    let tokens = gateway.add_for("t1", Some(3));
    let mut device =
        gateways::connect(gateway.address, "/tunnel/t1/dest", Some(&tokens.device)).unwrap();
    assert_eq!(device.receive_close(), Some(4001));
    let lived = made.elapsed();
    assert!(lived > Duration::from_secs(2) && lived < Duration::from_secs(3) + SOON, "{lived:?}");
    for _ in 0..2 {
        assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 401);
        soon("the tunnel has expired", || gateway.show("t1")["state"] == "expired");
        let (status, answer) = gateway.ask("POST", "/tunnels/t1/rotate", None);
        assert_eq!(status, 409);
        assert!(answer["error"].as_str().unwrap().contains("give expire"), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("--expire"), "{answer}");
        gateway.restart();
    }
    let (_, issued) = gateway.ask("POST", "/tunnels/t1/rotate", Some(json!({"expire": 3600})));
    let renewed = Tokens::of(&issued);
    assert_eq!(gateway.admission("/tunnel/t1/dest", &renewed.device), 101);
}

#[test]
fn the_counters_are_the_bytes_of_the_sessions() {
    let gateway = Gateway::start();
    let tokens = gateway.add("t1");
    let connect =
        |path, token: &str| gateways::connect(gateway.address, path, Some(token)).unwrap();
    let mut device = connect("/tunnel/t1/dest", &tokens.device);
    let mut access = connect("/tunnel/t1/source", &tokens.access);
    access.send(json!({"frame_type": 2, "frame_id": 1, "service_type": "s"}), b"");
    let (create, _) = device.receive();
    let session = create["session_id"].as_str().unwrap().to_owned();
    device.send(
        json!({"frame_type": 1, "frame_id": create["frame_id"], "session_id": session}),
        br#"{"code": 0}"#,
    );
    access.receive();
    access.data(&session, &[7; 1000]);
    access.data(&session, &[8; 24]);
    device.data(&session, &[9; 4096]);
    for (end, length) in [(&mut device, 1024), (&mut access, 4096)] {
        let mut received = 0;
        while received < length {
            let (header, payload) = end.receive();
            assert_eq!(header["frame_type"], json!(4));
            received += payload.len();
        }
    }
    access.release(&session, 2, r#"{"code": 0}"#);
    assert_eq!(device.receive().0["frame_type"], json!(3));
    drop(device);
    wait::until("the device has left", || !gateway.has_device("t1"));
    let shown = gateway.show("t1");
    assert_eq!(
        (&shown["bytes_to_device"], &shown["bytes_to_access"]),
        (&json!(1024), &json!(4096))
    );
    assert_eq!((&shown["sessions"], &shown["sessions_opened"]), (&json!(0), &json!(1)));
    assert!(shown["device_last_seen"].is_string() && shown["device"].is_null(), "{shown}");
    let metrics = gateway.request("GET", "/metrics", Some(&gateway.key), None).body;
    for line in [
        r#"aiot_tunnel_gateway_bytes_to_device_total{tunnel="t1"} 1024"#,
        r#"aiot_tunnel_gateway_bytes_to_access_total{tunnel="t1"} 4096"#,
        r#"aiot_tunnel_gateway_access_connections{tunnel="t1"} 1"#,
        r#"aiot_tunnel_gateway_tunnels{state="offline"} 1"#,
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
    }
}

#[test]
fn a_rate_delays_a_transfer_and_not_a_keystroke() {
    // 800 kbit are 100,000 bytes a second.
    const LENGTH: usize = 300_000;
    let gateway = Gateway::with(&["--plain", "--rate-limit", "800kbit"]);
    let tokens = gateway.add("t1");
    let service = services::echo("echo");
    let _agent = gateway.agent("t1", &tokens.device, &format!("echo={}", service.target()));
    wait::until("the device is online", || gateway.has_device("t1"));
    let (_access, address) = gateway.access("t1", &tokens.access, "echo");
    let begun = Instant::now();
    let mut bulk = TcpStream::connect(address).unwrap();
    let mut writer = bulk.try_clone().unwrap();
    let sent = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &[7; LENGTH]));
    let mut line = TcpStream::connect(address).unwrap();
    echoes(&mut line, "first");
    let mut keys = 0;
    while gateway.show("t1")["bytes_to_device"].as_u64().unwrap() < LENGTH as u64 / 2 {
        echoes(&mut line, "key");
        keys += 1;
    }
    // Behind the other half, they would not come.
    assert!(keys > 0);
    let mut back = vec![0; LENGTH];
    bulk.set_read_timeout(Some(wait::TIMEOUT)).unwrap();
    std::io::Read::read_exact(&mut bulk, &mut back).unwrap();
    sent.join().unwrap().unwrap();
    assert!(back.iter().all(|byte| *byte == 7));
    // What may be ahead of the rate is 5,000 bytes, and a frame.
    let least = Duration::from_secs_f64((LENGTH - 5_000 - 4_096) as f64 / 100_000.0);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    let shown = gateway.show("t1");
    let length = LENGTH + "first".len() + keys * "key".len();
    assert_eq!(
        (&shown["bytes_to_device"], &shown["bytes_to_access"]),
        (&json!(length), &json!(length))
    );
}

#[test]
fn the_program_tunnel_does_what_the_api_does() {
    let gateway = Gateway::start();
    let added = gateway.run(&["tunnel", "add", "pump-17", "--expire", "24h", "--json"]);
    let added = serde_json::from_str(&stdout(&added)).unwrap();
    let tokens = Tokens::of(&added);
    assert_eq!(gateway.admission("/tunnel/pump-17/dest", &tokens.device), 101);
    assert_eq!(added["url"], json!(format!("ws://{}", gateway.address)));
    let made = stdout(&gateway.run(&["tunnel", "add"]));
    assert!(made.starts_with("tunnel         t-"), "{made}");
    let list = stdout(&gateway.run(&["tunnel", "list"]));
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.lines().nth(1).unwrap().starts_with("pump-17"), "{list}");

    let folder = gateway.folder.file("tokens").display().to_string();
    let shown = stdout(&gateway.run(&["tunnel", "rotate", "pump-17", "--save", &folder]));
    let token = |side: &str| {
        let file = gateway.folder.file(&format!("tokens/pump-17.{side}.token"));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    let (device, access) = (token("device"), token("access"));
    assert!(!shown.contains(&device) && !shown.contains(&access), "{shown}");
    assert_eq!(gateway.admission("/tunnel/pump-17/dest", &tokens.device), 401);
    assert_eq!(gateway.admission("/tunnel/pump-17/dest", &device), 101);
    assert_eq!(gateway.admission("/tunnel/pump-17/source", &access), 101);
    assert!(stdout(&gateway.run(&["tunnel", "show", "pump-17"])).contains("tokens replaced  20"));
    stdout(&gateway.run(&["tunnel", "remove", "pump-17"]));
    assert_eq!(gateway.admission("/tunnel/pump-17/dest", &device), 404);
}

/// Exit status and one line that names the cause and the cure.
#[test]
fn a_mistake_with_tunnel_is_one_sentence() {
    let gateway = Gateway::start();
    gateway.add("t1");
    let key = gateway.folder.file("api.key").display().to_string();
    let wrong = gateway.folder.write_secret("wrong.key", "hush-this-is-another-key");
    let url = gateway.url();
    let with_key = |more: &[&'static str]| {
        let mut arguments = vec!["tunnel".to_owned()];
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        arguments.extend(["--api", &url, "--api-key-file", &key].map(str::to_owned));
        arguments
    };
    let own = |arguments: &[&str]| arguments.iter().map(|&a| a.to_owned()).collect::<Vec<_>>();
    for (arguments, status, parts) in [
        (
            own(&["tunnel", "list", "--api", &url]),
            2,
            ["--api-key-file", "AIOT_TUNNEL_API_KEY_FILE"],
        ),
        (
            own(&["tunnel", "list", "--api", &url, "--api-key-file", &wrong]),
            6,
            ["the API key is wrong", "--api-key-file"],
        ),
        (
            own(&["tunnel", "list", "--api", "http://127.0.0.1:1", "--api-key-file", &key]),
            3,
            ["Connection refused", "with --api?"],
        ),
        (
            own(&["tunnel", "list", "--api", "127.0.0.1:1", "--api-key-file", &key]),
            2,
            ["no URL such as", "http://"],
        ),
        (with_key(&["show", "t2"]), 8, ["there is no tunnel", "t2"]),
        (with_key(&["show"]), 2, ["name the tunnel's", "ID"]),
        (with_key(&["add", "t1"]), 15, ["t1", "exists"]),
        (with_key(&["add", "a/b"]), 15, ["tunnel id", "visible ASCII"]),
        (with_key(&["list", "t1"]), 2, ["an ID has no meaning", "list"]),
        (with_key(&["list", "--expire", "1h"]), 2, ["--expire has no meaning", "list"]),
        (with_key(&["add", "--expire", "0"]), 2, ["--expire", "must not be zero"]),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = run(&arguments, &[]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        let line = error.lines().next().unwrap();
        for part in parts {
            assert!(line.contains(part), "{arguments:?}: {error}");
        }
        assert!(!error.contains("hush-"), "{error}");
    }
}
