//! How the store is reached, and that its secrets stay secret.

use super::*;

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
