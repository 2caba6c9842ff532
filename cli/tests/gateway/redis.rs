//! Gateways that share a store in Redis. A test without redis-server says so and passes; scripts/setup
//! installs it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::redis::{Redis, PASSWORD};
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::{gateways, logs, skip, wait};
use serde_json::{json, Value};

use super::{run, soon, Gateway, Tokens, SOON};

/// Longest time that a request takes while the store does not answer.
const BOUND: Duration = Duration::from_secs(6);

struct Fleet {
    redis: Redis,
    folder: Folder,
    gateways: Vec<Gateway>,
}

impl Fleet {
    /// `None`, with a message, where a program is missing.
    fn new(test: &str, count: usize, more: &[&str]) -> Option<Self> {
        Fleet::of(Redis::new(), test, count, more)
    }

    fn of(redis: Result<Redis, String>, test: &str, count: usize, more: &[&str]) -> Option<Self> {
        let redis = redis.map_err(|why| skip(test, why)).ok()?;
        let mut fleet = Fleet { redis, folder: key_folder(), gateways: Vec::new() };
        for _ in 0..count {
            let gateway = fleet.gateway(more);
            fleet.gateways.push(gateway);
        }
        Some(fleet)
    }

    fn options(&self) -> Vec<String> {
        let file = |name: &str| self.folder.file(name).display().to_string();
        let (key, password) = (file("store.key"), file("store.password"));
        let options = ["--plain", "--store", &self.redis.url(), "--store-key-file", &key];
        let options = [&options[..], &["--store-password-file", &password]].concat();
        options.into_iter().map(str::to_owned).collect()
    }

    /// One more gateway.
    fn gateway(&self, more: &[&str]) -> Gateway {
        let options = self.options();
        let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
        options.extend(more);
        Gateway::with(&options)
    }
}

/// A folder with the key of a store and Redis's password.
fn key_folder() -> Folder {
    let folder = Folder::new();
    let key = run(&["gen-token"], &[]);
    let key = String::from_utf8(key.stdout).unwrap();
    logs::note_secret(key.trim().as_bytes());
    folder.write_secret("store.key", key);
    folder.write_secret("store.password", format!("{PASSWORD}\n"));
    folder
}

fn connect(gateway: &Gateway, path: &str, token: &str) -> TunnelEnd<TcpStream> {
    gateways::connect(gateway.address, path, Some(token)).unwrap()
}

fn health(gateway: &Gateway) -> (u16, Value) {
    let answer = gateway.request("GET", "/healthz", None, None);
    (answer.status, serde_json::from_str(&answer.body).unwrap())
}

fn is_degraded(gateway: &Gateway) -> bool {
    health(gateway) == (200, json!({"status": "degraded", "store": "unreachable"}))
}

fn is_well(gateway: &Gateway) -> bool {
    health(gateway) == (200, json!({"status": "ok", "store": "ok"}))
}

/// The end goes on: it answers to a session that is asked for.
fn goes_on(access: &mut TunnelEnd<TcpStream>, device: &mut TunnelEnd<TcpStream>, number: u64) {
    access.send(json!({"frame_type": 2, "frame_id": number, "service_type": "s"}), b"");
    let (create, _) = device.receive();
    let session = create["session_id"].as_str().unwrap().to_owned();
    device.send(
        json!({"frame_type": 1, "frame_id": create["frame_id"], "session_id": session}),
        br#"{"code": 0}"#,
    );
    assert_eq!(access.receive().0["frame_type"], json!(1));
}

#[test]
fn what_one_gateway_changes_takes_effect_at_all_within_a_second() {
    let Some(fleet) = Fleet::new("gateways that share a store", 2, &[]) else { return };
    let [one, other] = &fleet.gateways[..] else { unreachable!() };
    assert!(is_well(one) && is_well(other));
    let tokens = one.add("t1");
    soon("the other gateway knows the tunnel", || {
        other.admission("/tunnel/t1/dest", &tokens.device) == 101
    });
    let (status, answer) = other.ask("POST", "/tunnels", Some(json!({"id": "t1"})));
    assert_eq!(status, 409, "{answer}");
    assert_eq!(other.show("t1")["source"], "store");
    assert_eq!(other.show("t1")["created"], one.show("t1")["created"]);

    // Open connections of both gateways, and a rotation at the other one.
    let mut ends = [
        connect(one, "/tunnel/t1/dest", &tokens.device),
        connect(one, "/tunnel/t1/source", &tokens.access),
        connect(other, "/tunnel/t1/dest", &tokens.device),
    ];
    let asked = Instant::now();
    let (status, issued) = other.ask("POST", "/tunnels/t1/rotate", None);
    assert_eq!(status, 200, "{issued}");
    for end in &mut ends {
        assert_eq!(end.receive_close(), Some(4001));
    }
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    let rotated = Tokens::of(&issued);
    for gateway in [one, other] {
        assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 401);
        assert_eq!(gateway.admission("/tunnel/t1/dest", &rotated.device), 101);
        assert_eq!(gateway.show("t1")["rotated"], one.show("t1")["rotated"]);
    }

    let mut device = connect(other, "/tunnel/t1/dest", &rotated.device);
    let mut access = connect(one, "/tunnel/t1/source", &rotated.access);
    let asked = Instant::now();
    assert_eq!(one.ask("DELETE", "/tunnels/t1", None).0, 204);
    assert_eq!(device.receive_close(), Some(1001));
    assert_eq!(access.receive_close(), Some(1001));
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    for gateway in [one, other] {
        assert_eq!(gateway.admission("/tunnel/t1/dest", &rotated.device), 404);
        assert_eq!(gateway.ask("DELETE", "/tunnels/t1", None).0, 404);
        assert_eq!(gateway.ask("POST", "/tunnels/t1/rotate", None).0, 404);
    }
    // One that is made anew with the old id is another one.
    let again = other.add("t1");
    soon("the new tunnel is known", || one.admission("/tunnel/t1/dest", &again.device) == 101);
    assert_eq!(one.admission("/tunnel/t1/dest", &rotated.device), 401);
}

#[test]
fn a_tunnel_expires_at_all_gateways_and_is_renewed_at_all() {
    let Some(fleet) = Fleet::new("expiry at all gateways", 2, &[]) else { return };
    let [one, other] = &fleet.gateways[..] else { unreachable!() };
    let made = Instant::now();
    let tokens = one.add_for("t1", Some(3));
    soon("the tunnel is known", || other.admission("/tunnel/t1/dest", &tokens.device) == 101);
    let mut device = connect(one, "/tunnel/t1/dest", &tokens.device);
    let mut access = connect(other, "/tunnel/t1/source", &tokens.access);
    for end in [&mut device, &mut access] {
        assert_eq!(end.receive_close(), Some(4001));
        let lived = made.elapsed();
        assert!(lived > Duration::from_secs(2) && lived < Duration::from_secs(3) + SOON);
    }
    assert_eq!(other.ask("POST", "/tunnels/t1/rotate", None).0, 409);
    let body = json!({"side": "access", "expire": 3600});
    let (status, issued) = other.ask("POST", "/tunnels/t1/rotate", Some(body));
    assert_eq!(status, 200, "{issued}");
    // The device's token was not replaced.
    soon("the tunnel is renewed", || one.admission("/tunnel/t1/dest", &tokens.device) == 101);
}

#[test]
fn many_changes_at_once_reach_all_gateways() {
    const COUNT: usize = 200;
    let Some(fleet) = Fleet::new("many changes", 2, &[]) else { return };
    let [one, other] = &fleet.gateways[..] else { unreachable!() };
    // Both change the same tunnels.
    std::thread::scope(|scope| {
        for gateway in [one, other] {
            scope.spawn(move || {
                for number in 0..COUNT {
                    let body = json!({"id": format!("t{number}")});
                    let (status, answer) = gateway.ask("POST", "/tunnels", Some(body));
                    assert!(status == 201 || status == 409, "{answer}");
                    let path = format!("/tunnels/t{}/rotate", number / 2);
                    let (status, answer) = gateway.ask("POST", &path, None);
                    assert!(status == 200 || status == 409, "{answer}");
                }
            });
        }
    });
    let tunnels = |gateway: &Gateway| {
        let (_, all) = gateway.ask("GET", "/tunnels", None);
        let all = all["tunnels"].as_array().unwrap().clone();
        let part = |one: &Value| json!([one["id"], one["created"], one["rotated"]]);
        all.iter().map(part).collect::<Vec<_>>()
    };
    soon("both have the same", || tunnels(one) == tunnels(other));
    assert_eq!(tunnels(one).len(), COUNT);
}

/// They are read in parts.
#[test]
fn a_gateway_knows_thousands_of_tunnels() {
    const COUNT: usize = 5_000;
    let Some(fleet) = Fleet::new("thousands of tunnels", 1, &[]) else { return };
    let gateway = &fleet.gateways[0];
    let tokens = gateway.add("t0");
    let copies = format!(
        "for i = 1, {COUNT} do redis.call('HSET', KEYS[1], 't' .. i, redis.call('HGET', KEYS[1], 't0')) end"
    );
    fleet.redis.run(&["EVAL", &copies, "1", "aiot-tunnel:tunnels"]);
    let knows = |gateway: &Gateway, count: usize| {
        let (_, all) = gateway.ask("GET", "/tunnels", None);
        all["tunnels"].as_array().is_some_and(|all| all.len() == count)
    };
    let other = fleet.gateway(&[]);
    assert!(knows(&other, COUNT + 1));
    assert_eq!(other.admission(&format!("/tunnel/t{COUNT}/dest"), &tokens.device), 101);
    // Nothing has told the first one.
    fleet.redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    wait::until("the gateway has compared", || knows(gateway, COUNT + 1));
    let removal = format!("for i = 1, {COUNT} do redis.call('HDEL', KEYS[1], 't' .. i) end");
    fleet.redis.run(&["EVAL", &removal, "1", "aiot-tunnel:tunnels"]);
    fleet.redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    wait::until("the gateways have compared", || knows(gateway, 1) && knows(&other, 1));
}

/// What is in a gateway's list is that gateway's.
#[test]
fn a_tunnel_of_the_list_is_not_changed_by_another_gateway() {
    let Some(fleet) = Fleet::new("a list beside the store", 1, &[]) else { return };
    let list = r#"[{"id": "t1", "device_token": "hush-d", "access_token": "hush-a"}]"#;
    let list = fleet.folder.write_secret("tunnels.json", list);
    let with_list = fleet.gateway(&["--tunnels", &list]);
    let tokens = fleet.gateways[0].add("t1");
    with_list.program.expect_log("which is in the list of this one, too");
    assert_eq!(with_list.show("t1")["source"], "list");
    assert_eq!(with_list.admission("/tunnel/t1/dest", "hush-d"), 101);
    assert_eq!(with_list.admission("/tunnel/t1/dest", &tokens.device), 401);
    assert_eq!(with_list.ask("DELETE", "/tunnels/t1", None).0, 409);
    assert_eq!(fleet.gateways[0].ask("DELETE", "/tunnels/t1", None).0, 204);
    let made = fleet.gateways[0].add("t2");
    soon("later changes are told", || with_list.admission("/tunnel/t2/dest", &made.device) == 101);
    assert_eq!(with_list.admission("/tunnel/t1/dest", "hush-d"), 101);
}

#[test]
fn while_redis_is_away_tunnels_go_on_and_nothing_can_be_changed() {
    let Some(mut fleet) = Fleet::new("redis is away", 2, &[]) else { return };
    let tokens = fleet.gateways[0].add("t1");
    let gone = fleet.gateways[0].add("t2");
    let known = || fleet.gateways[1].admission("/tunnel/t2/dest", &gone.device) == 101;
    soon("the tunnels are known", known);
    let mut device = connect(&fleet.gateways[1], "/tunnel/t1/dest", &tokens.device);
    let mut access = connect(&fleet.gateways[1], "/tunnel/t1/source", &tokens.access);
    let mut removed = connect(&fleet.gateways[1], "/tunnel/t2/dest", &gone.device);
    fleet.redis.stop();
    for gateway in &fleet.gateways {
        wait::until("the gateway says so", || is_degraded(gateway));
        assert_eq!(gateway.admission("/tunnel/t1/dest", &gone.device), 401);
        let metrics = gateway.request("GET", "/metrics", Some(&gateway.key), None).body;
        assert!(metrics.contains("\naiot_tunnel_gateway_store_up 0\n"), "{metrics}");
        assert_eq!(gateway.show("t1")["source"], "store");
        for (method, path) in
            [("POST", "/tunnels"), ("POST", "/tunnels/t1/rotate"), ("DELETE", "/tunnels/t1")]
        {
            let (status, answer) = gateway.ask(method, path, None);
            assert_eq!(status, 503, "{answer}");
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains("cannot be reached, so nothing was changed"), "{error}");
        }
    }
    goes_on(&mut access, &mut device, 1);
    let one = &fleet.gateways[1];
    let mut second = connect(one, "/tunnel/t1/source", &tokens.access);
    goes_on(&mut second, &mut device, 1);

    // What has changed meanwhile takes effect afterwards.
    fleet.redis.start();
    assert_eq!(fleet.redis.run(&["HDEL", "aiot-tunnel:tunnels", "t2"]), "1");
    // A gateway may have been faster than that change.
    fleet.redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert_eq!(removed.receive_close(), Some(1001));
    goes_on(&mut access, &mut device, 2);
    let mut made = Value::Null;
    wait::until("tunnels can be made again", || {
        let (status, answer) = fleet.gateways[0].ask("POST", "/tunnels", Some(json!({"id": "t3"})));
        made = answer;
        status == 201
    });
    let made = Tokens::of(&made);
    let one = &fleet.gateways[1];
    wait::until("the gateway is well again", || is_well(one));
    soon("changes are told again", || one.admission("/tunnel/t3/dest", &made.device) == 101);
    assert!(one.program.log().contains("the store is there again"));
}

#[test]
fn a_redis_that_does_not_answer_holds_up_nothing_for_long() {
    let Some(mut fleet) = Fleet::new("a redis that hangs", 1, &[]) else { return };
    fleet.gateways[0].add("t1");
    fleet.redis.process().freeze();
    let gateway = &fleet.gateways[0];
    let begun = Instant::now();
    let (status, answer) = gateway.ask("POST", "/tunnels", Some(json!({"id": "t2"})));
    assert_eq!(status, 503, "{answer}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    wait::until("the gateway says so", || is_degraded(gateway));
    // Now nobody waits.
    let begun = Instant::now();
    assert_eq!(gateway.ask("POST", "/tunnels", None).0, 503);
    assert_eq!(gateway.ask("GET", "/tunnels", None).0, 200);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    fleet.redis.process().thaw();
    wait::until("the gateway is well again", || is_well(gateway));
    let (status, answer) = gateway.ask("POST", "/tunnels", Some(json!({"id": "t4"})));
    assert_eq!(status, 201, "{answer}");
}

#[test]
fn after_the_time_of_grace_known_tokens_open_nothing() {
    let Some(mut fleet) = Fleet::new("the time of grace", 1, &["--store-grace", "1s"]) else {
        return;
    };
    let tokens = fleet.gateways[0].add("t1");
    let gateway = &fleet.gateways[0];
    let mut device = connect(gateway, "/tunnel/t1/dest", &tokens.device);
    let mut access = connect(gateway, "/tunnel/t1/source", &tokens.access);
    fleet.redis.stop();
    let over = (503, json!({"status": "unavailable", "store": "unreachable"}));
    wait::until("the time is over", || health(gateway) == over);
    // The device tries again; a wrong token is still a wrong one.
    assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 503);
    assert_eq!(gateway.admission("/tunnel/t1/source", &tokens.access), 503);
    assert_eq!(gateway.admission("/tunnel/t1/source", &tokens.device), 401);
    goes_on(&mut access, &mut device, 1);
    fleet.redis.start();
    wait::until("the gateway is well again", || is_well(gateway));
    assert_eq!(gateway.admission("/tunnel/t1/source", &tokens.access), 101);
    goes_on(&mut access, &mut device, 2);
}

#[test]
fn a_redis_that_has_lost_its_data_removes_no_tunnel() {
    let Some(fleet) = Fleet::new("a redis without its data", 1, &[]) else { return };
    let gateway = &fleet.gateways[0];
    let tokens = gateway.add("t1");
    let mut device = connect(gateway, "/tunnel/t1/dest", &tokens.device);
    let mut access = connect(gateway, "/tunnel/t1/source", &tokens.access);
    fleet.redis.run(&["FLUSHALL"]);
    // The next change finds it.
    let (status, answer) = gateway.ask("POST", "/tunnels", Some(json!({"id": "t2"})));
    assert_eq!(status, 503, "{answer}");
    wait::until("the gateway says so", || is_degraded(gateway));
    gateway.program.expect_log("may have started without its data");
    goes_on(&mut access, &mut device, 1);
    assert_eq!(fleet.redis.run(&["EXISTS", "aiot-tunnel:tunnels"]), "0");
    // A gateway that starts begins an empty store; then the tunnels are gone.
    let second = fleet.gateway(&[]);
    assert_eq!(device.receive_close(), Some(1001));
    wait::until("both are well", || is_well(gateway) && is_well(&second));
}

#[test]
fn neither_token_nor_password_is_anywhere() {
    let Some(mut fleet) = Fleet::new("secrets and redis", 1, &[]) else { return };
    let gateway = &fleet.gateways[0];
    let tokens = gateway.add("t1");
    let (_, rotated) = gateway.ask("POST", "/tunnels/t1/rotate", None);
    let rotated = Tokens::of(&rotated);
    let _device = connect(gateway, "/tunnel/t1/dest", &rotated.device);
    let key = fs::read_to_string(fleet.folder.file("store.key")).unwrap().trim().to_owned();
    let metrics = gateway.request("GET", "/metrics", Some(&gateway.key), None).body;
    fleet.redis.run(&["SAVE"]);
    let dump = fs::read(fleet.redis.dump()).unwrap();
    fleet.redis.stop();
    let gateway = &fleet.gateways[0];
    wait::until("the gateway says so", || is_degraded(gateway));
    let (_, refused) = gateway.ask("POST", "/tunnels", None);
    let mut places = vec![
        ("dump", dump),
        ("metrics", metrics.into()),
        ("refusal", refused.to_string().into()),
        ("log", gateway.program.log().into()),
    ];
    for name in ["cmdline", "environ"] {
        let path = format!("/proc/{}/{name}", gateway.program.process.id());
        places.push((name, fs::read(path).unwrap()));
    }
    let holds = |place: &[u8], text: &str| place.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds(&places[0].1, "aiot-tunnel:tunnels") && holds(&places[0].1, "t1"));
    for (name, place) in places {
        let tokens = [&tokens.device, &tokens.access, &rotated.device, &rotated.access];
        for secret in tokens.into_iter().chain([&key, &PASSWORD.to_owned()]) {
            assert!(!holds(&place, secret), "{name}");
        }
    }
}

/// The URL may hold the password, in the environment and in the file.
#[test]
fn a_password_in_the_url_is_not_shown() {
    let test = "a password in the URL";
    let Some(fleet) = Fleet::new(test, 0, &[]) else { return };
    let url = fleet.redis.url_with_password();
    let key = fleet.folder.file("store.key").display().to_string();
    let text = |output: &Output| {
        let all = [&output.stdout[..], &output.stderr].concat();
        String::from_utf8(all).unwrap()
    };
    let settings = format!("plain = true\nstore = {url:?}\nstore_key_file = {key:?}\n");
    let config = fleet.folder.write_secret("gateway.toml", settings);
    let printed = run(&["gateway", "--config", &config, "--print-config"], &[]);
    assert!(text(&printed).contains("store = \"redis://:***@127.0.0.1:"), "{}", text(&printed));
    let variable = ("AIOT_TUNNEL_GATEWAY_STORE", &url[..]);
    let of_variable = run(&["gateway", "--print-config"], &[variable]);
    let option = ["gateway", "--plain", "--store", &url, "--store-key-file", &key];
    let refused = run(&option, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused).contains("--store-password-file"), "{}", text(&refused));
    let wrong = url.replace("@127.0.0.1:", "@127.0.0.1:x");
    let wrong = run(&["gateway", "--plain", "--check"], &[("AIOT_TUNNEL_GATEWAY_STORE", &wrong)]);
    assert_eq!(wrong.status.code(), Some(2));
    for output in [&printed, &of_variable, &refused, &wrong] {
        assert!(!text(output).contains(PASSWORD), "{}", text(output));
    }

    // Both work, and the password leaves the environment.
    let by_file = Gateway::with(&[
        "--config",
        &config,
        "--store",
        &fleet.redis.url(),
        "--store-password-file",
        &fleet.folder.file("store.password").display().to_string(),
    ]);
    by_file.add("t1");
    let mut command = std::process::Command::new(aiot_tunnel_testkit::process::program());
    command.args(["gateway", "--plain", "--listen", "127.0.0.1:0", "--store-key-file", &key]);
    command.env(variable.0, variable.1);
    let mut program = aiot_tunnel_testkit::path::Program::start_command(&mut command);
    program.address();
    let environment = fs::read(format!("/proc/{}/environ", program.process.id())).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains(PASSWORD));
    assert!(!program.log().contains(PASSWORD));
}

#[test]
fn a_store_of_a_newer_version_or_with_another_key_is_refused() {
    let Some(fleet) = Fleet::new("another store", 1, &[]) else { return };
    let gateway = &fleet.gateways[0];
    gateway.add("t1");
    let second = |fleet: &Fleet| {
        let mut options =
            vec!["gateway".to_owned(), "--listen".to_owned(), "127.0.0.1:0".to_owned()];
        options.extend(fleet.options());
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let output = run(&options, &[]);
        assert_eq!(output.status.code(), Some(23));
        String::from_utf8(output.stderr).unwrap()
    };
    let key = fs::read(fleet.folder.file("store.key")).unwrap();
    fleet.folder.write_secret("store.key", run(&["gen-token"], &[]).stdout);
    let error = second(&fleet);
    assert!(error.contains("has another key; give --store-key-file the file"), "{error}");
    fleet.folder.write_secret("store.key", key);
    fleet.redis.run(&["SET", "aiot-tunnel:schema", "2"]);
    let error = second(&fleet);
    assert!(error.contains("version 2") && error.contains("a newer one"), "{error}");
    // The one that runs changes nothing there.
    assert_eq!(gateway.ask("POST", "/tunnels", Some(json!({"id": "t2"}))).0, 503);
    assert_eq!(fleet.redis.run(&["HLEN", "aiot-tunnel:tunnels"]), "1");
    wait::until("the gateway says so", || is_degraded(gateway));
    fleet.redis.run(&["SET", "aiot-tunnel:schema", "1"]);
    wait::until("the gateway is well again", || is_well(gateway));
    fleet.folder.write_secret("store.password", "hush-wrong");
    let error = second(&fleet);
    assert!(error.contains("refuses the sign-in"), "{error}");
    // Junk that somebody has written is left out.
    fleet.redis.run(&["HSET", "aiot-tunnel:tunnels", "t9", "{}"]);
    fleet.folder.write_secret("store.password", PASSWORD);
    let third = fleet.gateway(&[]);
    assert_eq!(third.show("t1")["id"], "t1");
    assert_eq!(third.ask("GET", "/tunnels/t9", None).0, 404);
    assert!(third.program.log().contains("\"t9\" cannot be read"));
}

#[test]
fn redis_is_reached_by_tls_and_by_a_unix_socket() {
    let test = "redis by TLS";
    let Some(fleet) = Fleet::of(Redis::with_tls(), test, 0, &[]) else { return };
    let ca = fleet.redis.ca_file();
    fleet.gateway(&["--store-ca", &ca]).add("t1");
    let mut options = vec!["gateway".to_owned()];
    options.extend(fleet.options());
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let output = run(&options, &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(23), "{error}");
    assert!(error.contains("not trusted; name its CA with --store-ca"), "{error}");

    let Some(fleet) = Fleet::new(test, 1, &[]) else { return };
    fleet.gateways[0].add("t1");
    let file = |name: &str| fleet.folder.file(name).display().to_string();
    let by_socket = Gateway::with(&[
        "--plain",
        "--store",
        &fleet.redis.unix_url(),
        "--store-key-file",
        &file("store.key"),
        "--store-password-file",
        &file("store.password"),
    ]);
    assert_eq!(by_socket.show("t1")["source"], "store");
}

/// The rights that packaging/fleet names are enough.
#[test]
fn a_user_with_the_documented_rights_will_do() {
    let Some(fleet) = Fleet::new("the rights in redis", 0, &[]) else { return };
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/fleet/redis.conf");
    let config = fs::read_to_string(config).unwrap();
    let rights = config.lines().find_map(|line| line.strip_prefix("user gateway ")).unwrap();
    let rights = format!("ACL SETUSER gateway {}", rights.replace("GATEWAY-PASSWORD", PASSWORD));
    assert_eq!(fleet.redis.run(&rights.split(' ').collect::<Vec<_>>()), "OK");
    let url = fleet.redis.url().replace("://", "://gateway@");
    let file = |name: &str| fleet.folder.file(name).display().to_string();
    let (key, password) = (file("store.key"), file("store.password"));
    let options = ["--plain", "--store", &url, "--store-key-file", &key];
    let gateway = Gateway::with(&[&options[..], &["--store-password-file", &password]].concat());
    gateway.add("t1");
    assert_eq!(gateway.ask("POST", "/tunnels/t1/rotate", None).0, 200);
    gateway.add("t2");
    assert_eq!(gateway.ask("DELETE", "/tunnels/t2", None).0, 204);
    let other = Gateway::with(&gateway.more.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(other.show("t1")["source"], "store");
    assert!(is_well(&gateway) && is_well(&other));
    for gateway in [&gateway, &other] {
        assert!(
            !gateway.program.log().contains("open connections go on"),
            "{}",
            gateway.program.log()
        );
    }
}

/// A server that accepts and says nothing.
#[test]
fn a_gateway_does_not_wait_for_ever_for_its_store() {
    let folder = key_folder();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let file = |name: &str| folder.file(name).display().to_string();
    let (key, password) = (file("store.key"), file("store.password"));
    for scheme in ["redis", "rediss"] {
        let url = format!("{scheme}://127.0.0.1:{port}");
        let options = ["gateway", "--plain", "--store", &url, "--store-key-file", &key];
        let begun = Instant::now();
        let output = run(&[&options[..], &["--store-password-file", &password]].concat(), &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(23), "{error}");
        assert!(error.contains("it does not answer in time"), "{error}");
        assert!(begun.elapsed() < wait::TIMEOUT, "{:?}", begun.elapsed());
    }
}

/// The server answers, and refuses: no change is made, and nothing else is disturbed.
#[test]
fn a_redis_that_takes_no_changes_is_no_lost_one() {
    let Some(fleet) = Fleet::new("a redis that takes no changes", 1, &[]) else { return };
    let gateway = &fleet.gateways[0];
    let tokens = gateway.add("t1");
    fleet.redis.run(&["CONFIG", "SET", "maxmemory", "1"]);
    fleet.redis.run(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    for _ in 0..3 {
        let (status, answer) = gateway.ask("POST", "/tunnels", Some(json!({"id": "t2"})));
        assert_eq!(status, 503, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("disk and memory"), "{answer}");
        assert!(is_well(gateway));
    }
    assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 101);
    assert_eq!(gateway.ask("GET", "/tunnels/t2", None).0, 404);
    fleet.redis.run(&["CONFIG", "SET", "maxmemory", "0"]);
    gateway.add("t2");
}

/// One line that names the place, the key and the reason.
#[test]
fn a_wrong_setting_of_the_store_is_named_with_the_reason() {
    let folder = key_folder();
    folder.write_secret("bad.key", "hush-bad");
    folder.write("none.pem", "");
    let path = |name: &str| folder.file(name).display().to_string();
    let (good, bad, missing) = (path("store.key"), path("bad.key"), path("missing.key"));
    let (password, none) = (path("store.password"), path("none.pem"));
    let redis = ["--store", "redis://127.0.0.1:1"];
    for (options, parts) in [
        (&redis[..], &["--store-key-file", "gen-token --out"][..]),
        (&["--store", "http://h"], &["--store", "a file, redis://"]),
        (&["--store", "redis://h:x"], &["--store", "redis://[USER"]),
        (&["--store-key-file", &good], &["--store"]),
        (
            &["--store", "f.db", "--store-key-file", &good],
            &["--store-key-file", "several gateways"],
        ),
        (&["--store", "f.db", "--store-ca", &none], &["--store-ca", "several gateways"]),
        (&[&redis[..], &["--store-key-file", &bad]].concat(), &["--store-key-file", "gen-token"]),
        (
            &[&redis[..], &["--store-key-file", &missing]].concat(),
            &["No such file", "copy it from"],
        ),
        (
            &[&redis[..], &["--store-key-file", &good, "--store-ca", &none]].concat(),
            &["--store-ca", "rediss://"],
        ),
        (
            &["--store", "rediss://h", "--store-key-file", &good, "--store-ca", &none],
            &["--store-ca", "none.pem"],
        ),
        (
            &["--store", "redis://:hush-p@h", "--store-key-file", &good],
            &["--store", "command line", "--store-password-file"],
        ),
        (&["--store", "f.db", "--store-grace", "0"], &["--store-grace", "zero"]),
    ] {
        let output = run(&[&["gateway", "--plain", "--check"], options].concat(), &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {error}");
        for part in parts {
            assert!(error.contains(part), "{options:?}: {part}: {error}");
        }
        assert!(!error.contains("hush-"), "{error}");
    }
    // Without a server: a failure of the system.
    let options = ["--store-key-file", &good, "--store-password-file", &password];
    let options = [&["gateway", "--plain"], &redis[..], &options].concat();
    let output = run(&options, &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(23), "{error}");
    assert!(error.contains("nothing listens there"), "{error}");
}
