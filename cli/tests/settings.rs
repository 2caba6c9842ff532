//! The agent's settings: every key by file, environment and option, and what is wrong with one that
//! cannot be used.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use aiot_tunnel_testkit::certificates::Identity;
use aiot_tunnel_testkit::folder::Folder;

/// A value of each key that is not its default, as the file has it and as an option has it. `@NAME`
/// stands for a file of the test.
const VALUES: &[(&str, &str, &str)] = &[
    ("bind", "\"10.0.0.1\"", "10.0.0.1"),
    ("ca", "\"@ca.pem\"", "@ca.pem"),
    ("client_cert", "\"@client.pem\"", "@client.pem"),
    ("client_key", "\"@client.key\"", "@client.key"),
    ("clock", "\"tolerant\"", "tolerant"),
    ("connect_timeout", "\"1500ms\"", "1500ms"),
    ("control_socket", "\"/run/other.sock\"", "/run/other.sock"),
    ("control_socket_mode", "0o660", "0o660"),
    ("control_socket_owner", "\"1:2\"", "1:2"),
    ("family", "\"ipv6\"", "ipv6"),
    ("handshake_timeout", "7", "7"),
    ("local_keepalive", "\"never\"", "never"),
    ("log_format", "\"json\"", "json"),
    ("log_level", "\"warn\"", "warn"),
    ("max_sessions", "3", "3"),
    ("max_tunnels", "0x10", "16"),
    ("on_event", "\"/bin/true\"", "/bin/true"),
    ("ping_interval", "\"1m\"", "1m"),
    ("plain", "true", "true"),
    ("pong_timeout", "\"2m\"", "2m"),
    ("proxy", "\"socks5://proxy.example:1080\"", "socks5://proxy.example:1080"),
    ("proxy_auth_file", "\"@proxy.auth\"", "@proxy.auth"),
    ("queue_key", "-77", "-77"),
    ("queue_mode", "\"0640\"", "0640"),
    ("queue_owner", "65534", "65534"),
    ("send_buffer", "\"8KiB\"", "8KiB"),
    ("session_buffer", "131072", "131072"),
    ("session_idle_timeout", "3600", "3600"),
    ("stall_timeout", "\"9s\"", "9s"),
];

/// What must be set as well.
fn partner(key: &str) -> Option<&'static str> {
    match key {
        "client_cert" => Some("client_key"),
        "client_key" => Some("client_cert"),
        "proxy_auth_file" => Some("proxy"),
        _ => None,
    }
}

fn folder() -> Folder {
    let folder = Folder::new();
    let identity = Identity::self_signed();
    folder.write("ca.pem", &identity.certificate);
    folder.write("client.pem", &identity.certificate);
    folder.write("client.key", &identity.key);
    folder.write("proxy.auth", "user:hush-password");
    folder
}

fn agent(folder: &Folder) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aiot-tunnel"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AIOT_TUNNEL_AGENT_") {
            command.env_remove(name);
        }
    }
    command.arg("agent").current_dir(folder.path());
    command
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// The settings in force: for each key its value and its origin.
fn printed_settings(output: Output) -> BTreeMap<String, (String, String)> {
    assert!(output.status.success(), "{output:?}");
    let text = text(output.stdout);
    let mut settings = BTreeMap::new();
    for line in text.lines().take_while(|line| !line.starts_with('[')) {
        let Some((setting, origin)) = line.trim_start_matches("# ").split_once(" # ") else {
            continue;
        };
        let (key, value) = setting.split_once('=').unwrap();
        settings.insert(key.trim().to_owned(), (value.trim().to_owned(), origin.to_owned()));
    }
    settings
}

fn value(of: &str, folder: &Folder) -> String {
    let path = folder.path().to_str().unwrap();
    of.replace('@', &format!("{path}/"))
}

fn expected(folder: &Folder, option: &str) -> String {
    let option = value(option, folder);
    match option.parse::<i64>() {
        Ok(number) if number.to_string() == option => option,
        _ if option == "true" => option,
        _ => format!("{option:?}"),
    }
}

#[test]
fn every_key_can_be_set_by_file_environment_and_option() {
    let folder = folder();
    let defaults = printed_settings(agent(&folder).arg("--print-config").output().unwrap());
    let keys: Vec<&str> = defaults.keys().map(String::as_str).collect();
    let tested: Vec<&str> = VALUES.iter().map(|(key, ..)| *key).collect();
    assert_eq!(keys, tested, "a key that this test does not know, or knows in vain");
    for (key, in_file, in_option) in VALUES {
        let option = format!("--{}", key.replace('_', "-"));
        let variable = format!("AIOT_TUNNEL_AGENT_{}", key.to_uppercase());
        let expected = expected(&folder, in_option);
        assert_ne!(defaults[*key].0, expected, "{key}: a default proves nothing");
        let mut lines = vec![format!("{key} = {}", value(in_file, &folder))];
        if let Some(partner) = partner(key) {
            let (_, in_file, _) = VALUES.iter().find(|(key, ..)| *key == partner).unwrap();
            lines.push(format!("{partner} = {}", value(in_file, &folder)));
        }
        folder.write("agent.toml", lines.join("\n"));
        let with_file = || {
            let mut agent = agent(&folder);
            agent.args(["--config", "agent.toml", "--print-config"]);
            agent
        };
        let of_file = printed_settings(with_file().output().unwrap());
        assert_eq!(of_file[*key], (expected.clone(), "agent.toml:1".to_owned()));
        // The environment outranks the file, and the option both; a partner stays in the file.
        let in_environment = value(in_option, &folder);
        let of_environment =
            printed_settings(with_file().env(&variable, &in_environment).output().unwrap());
        assert_eq!(of_environment[*key], (expected.clone(), variable.clone()));
        let argument = format!("{option}={in_environment}");
        let of_option = printed_settings(
            with_file().env(&variable, "nonsense").arg(&argument).output().unwrap(),
        );
        assert_eq!(of_option[*key], (expected, "option".to_owned()));
    }
}

#[test]
fn services_and_tunnels_are_tables_of_the_file() {
    let folder = folder();
    folder.write("a token", "hush-t1\n");
    folder.write(
        "agent.toml",
        "[services]\n_SSH = \"127.0.0.1:22\"\n\"we.b\" = \"unix:/run/my app.sock\"\n\n\
         [[tunnel]]\nid = \"t1\"\nurl = \"wss://gw.example:8443\"\ntoken_file = \"a token\"\n",
    );
    let run = |command: &mut Command| text(command.output().unwrap().stdout);
    let with_file = || {
        let mut agent = agent(&folder);
        agent.args(["--config", "agent.toml", "--print-config"]);
        agent
    };
    let printed = run(&mut with_file());
    for part in [
        "_SSH = \"127.0.0.1:22\"",
        "# agent.toml:2\n",
        "\"we.b\" = \"unix:/run/my app.sock\"",
        "# agent.toml:3\n",
        "# agent.toml:6\nid = \"t1\"\nurl = \"wss://gw.example:8443\"\ntoken_file = \"a token\"\n",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    // What is printed is a file of settings with the same meaning.
    folder.write("printed.toml", &printed);
    let again = run(agent(&folder).args(["--config", "printed.toml", "--print-config"]));
    let settings = |text: &str| {
        let lines = text.lines().map(|line| line.split(" # ").next().unwrap().trim().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(settings(&printed), settings(&again));
    let printed = run(with_file()
        .env("AIOT_TUNNEL_AGENT_SERVICE", "a=[::1]:80; b=h:1")
        .env("AIOT_TUNNEL_AGENT_TUNNEL", "t2 wss://h/p a token;t3 wss://h a token"));
    for part in ["\na = \"[::1]:80\"", "\nb = \"h:1\"", "id = \"t2\"", "id = \"t3\"", "/p\""] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    assert!(!printed.contains("_SSH") && !printed.contains("t1"), "{printed}");
    assert!(!printed.contains("hush"), "{printed}");
}

/// Exit status 2 and one line, which begins with the place.
#[test]
fn a_wrong_setting_is_named_with_its_place_and_the_reason() {
    let folder = folder();
    folder.write("empty", "\n");
    // Otherwise a warning stands before the error.
    for secret in ["empty", "ca.pem", "client.key"] {
        let mode = Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.file(secret), mode).unwrap();
    }
    for (file, line) in [
        ("\ncolour = 1", "agent.toml:2: colour: there is no such key"),
        ("ping-interval = 1", "agent.toml:1: ping-interval: write ping_interval"),
        ("Ca = 1", "agent.toml:1: Ca: write ca"),
        ("ca = [", "agent.toml:1: "),
        ("ca = \"a\"\nca = \"b\"", "agent.toml:2: duplicate key"),
        ("ca = \"\"", "agent.toml:1: ca: must not be empty"),
        ("ca = \"nowhere.pem\"", "agent.toml:1: ca: nowhere.pem: No such file"),
        ("ca = \"client.key\"", "agent.toml:1: ca: client.key: CA certificate"),
        ("client_cert = \"client.pem\"", "agent.toml:1: client_cert: --client-key is required"),
        ("client_key = \"client.key\"", "agent.toml:1: client_key: --client-cert is required"),
        (
            "\nplain = true\nca = \"ca.pem\"",
            "agent.toml:3: ca: cannot be used with agent.toml:2: plain",
        ),
        ("plain = \"perhaps\"", "agent.toml:1: plain: not one of true, false"),
        ("max_sessions = 0", "agent.toml:1: max_sessions: must be at least 1"),
        ("queue_owner = \"me\"", "agent.toml:1: queue_owner: not a number"),
        ("on_event = \"/nowhere/x\"", "agent.toml:1: on_event: /nowhere/x: No such file"),
        ("on_event = \"ca.pem\"", "agent.toml:1: on_event: ca.pem: Permission denied"),
        ("on_event = \"/tmp\"", "agent.toml:1: on_event: /tmp: not a program"),
        ("ca = \"/dev/zero\"", "agent.toml:1: ca: /dev/zero: more than 16 MiB"),
        ("[[tunnel]]\nid = \"a b\"", "agent.toml:2: tunnel: id: must not have blanks"),
        ("max_tunnels = [1]", "agent.toml:1: max_tunnels: takes one value"),
        ("session_buffer = \"1KiB\"", "agent.toml:1: session_buffer: less than 64KiB"),
        ("ping_interval = 0", "agent.toml:1: ping_interval: must not be zero"),
        ("stall_timeout = 2026-11-26", "agent.toml:1: stall_timeout: a text or a number"),
        ("queue_mode = \"rw\"", "agent.toml:1: queue_mode: not permissions such as 0600"),
        ("log_format = \"xml\"", "agent.toml:1: log_format: not one of lk, text, json, journald"),
        ("log_level = \"loud\"", "agent.toml:1: log_level: not one of"),
        ("service = \"_SSH=h:1\"", "agent.toml:1: service: there is no such key"),
        ("services = \"h:1\"", "agent.toml:1: services: is a table: write [services]"),
        ("[services]\n\n_SSH = \"h\"", "agent.toml:3: services: service address"),
        ("tunnel = 1", "agent.toml:1: tunnel: is a list of tables: write [[tunnel]]"),
        (
            "[[tunnel]]\nid = \"t\"\nurl = \"wss://h\"",
            "agent.toml:1: tunnel: token_file is missing",
        ),
        ("[[tunnel]]\nname = \"t\"", "agent.toml:2: name: there is no such key"),
        (
            "[[tunnel]]\nid = \"t\"\nurl = \"http://h\"\ntoken_file = \"empty\"",
            "agent.toml:2: tunnel: url: \"http://h\" is no URL",
        ),
        (
            "[[tunnel]]\nid = \"t\"\nurl = \"wss://h\"\ntoken_file = \"empty\"",
            "agent.toml:2: tunnel: empty: it is empty",
        ),
        (
            "[[tunnel]]\nid = \"t\"\nurl = \"ws://h\"\ntoken_file = \"ca.pem\"",
            "agent.toml:2: tunnel: a ws:// URL is without TLS",
        ),
        ("proxy = \"ftp://p:1\"", "agent.toml:1: proxy: "),
        ("proxy = \"http://u:hush-p@p:1\"", "agent.toml:1: proxy: every user of this machine"),
        ("proxy_auth_file = \"empty\"", "agent.toml:1: proxy_auth_file: --proxy-auth-file needs"),
        ("bind = \"1.2.3.4:5\"", "agent.toml:1: bind: neither an address"),
        ("config = \"x\"", "agent.toml:1: config: there is no such key"),
    ] {
        folder.write("agent.toml", file);
        for action in ["--check", "--print-config"] {
            refused(agent(&folder).args(["--config", "agent.toml", action]), line);
        }
        refused(agent(&folder).args(["--config", "agent.toml"]), line);
    }
    folder.write("agent.toml", [b"a = 1\n# ".as_slice(), b"\xff"].concat());
    refused(agent(&folder).args(["--config", "agent.toml"]), "agent.toml:2: not UTF-8 text");
    folder.write("agent.toml", "");
    let misspelt =
        agent(&folder).arg("--check").env("AIOT_TUNNEL_AGENT_CAA", "x").output().unwrap();
    assert!(text(misspelt.stderr).contains("AIOT_TUNNEL_AGENT_CAA: there is no such setting"));
    refused(agent(&folder).args(["--config", "missing.toml"]), "missing.toml: No such file");
    refused(
        agent(&folder).env("AIOT_TUNNEL_AGENT_PONG_TIMEOUT", "soon"),
        "AIOT_TUNNEL_AGENT_PONG_TIMEOUT: not a time such as 30s",
    );
    refused(
        agent(&folder).env("AIOT_TUNNEL_AGENT_SERVICE", "a=h:1;a=h:2"),
        "AIOT_TUNNEL_AGENT_SERVICE: a is there twice",
    );
    let good = agent(&folder).args(["--config", "agent.toml", "--check"]).output().unwrap();
    assert_eq!(text(good.stdout), "agent.toml: the settings are valid\n");
    assert!(good.status.success() && good.stderr.is_empty());
}

fn refused(command: &mut Command, begins: &str) {
    let output = command.env_remove("RUST_LOG").output().unwrap();
    let said = text(output.stderr);
    assert!(said.starts_with(&format!("aiot-tunnel: {begins}")), "{begins}: {said}");
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
}

#[test]
fn a_device_without_an_end_is_no_file_of_settings() {
    let folder = folder();
    refused(
        agent(&folder).args(["--config", "/dev/zero", "--check"]),
        "/dev/zero: more than 16 MiB",
    );
}

#[test]
fn the_other_half_takes_its_settings_in_the_same_way() {
    let folder = folder();
    let signal = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aiot-tunnel"));
        command.args(["signal", "--config", "signal.toml"]).current_dir(folder.path());
        command
    };
    folder.write("signal.toml", "product_key = \"pk\"\ndevice_name = \"dn\"\nusername = \"u\"\n");
    refused(
        signal().args(["--broker", "mqtts://h", "--check"]),
        "signal.toml:3: username: the following required arguments were not provided: \
         --password-file",
    );
    refused(
        signal().args(["--broker", "mqtts://h", "--password-file", "missing"]),
        "--password-file: missing: No such file",
    );
    let printed = signal()
        .args(["--broker", "mqtts://h", "--print-config"])
        .env("AIOT_TUNNEL_SIGNAL_PASSWORD_FILE", "proxy.auth")
        .output()
        .unwrap();
    let printed = printed_settings(printed);
    for (key, value, origin) in [
        ("broker", "\"mqtts://h\"", "option"),
        ("password_file", "\"proxy.auth\"", "AIOT_TUNNEL_SIGNAL_PASSWORD_FILE"),
        ("product_key", "\"pk\"", "signal.toml:1"),
    ] {
        assert_eq!(printed[key], (value.to_owned(), origin.to_owned()));
    }
    folder.write("signal.toml", "broker = \"mqtts://h\"\nregion = \"r\"\n");
    refused(&mut signal(), "signal.toml:1: broker: the argument '--broker <URL>' cannot be used");
    folder.write("signal.toml", "qos = 1\n");
    refused(&mut signal(), "signal.toml:1: qos: there is no such key; aiot-tunnel signal --print");
}

#[test]
fn a_pipe_is_read_and_one_that_nobody_writes_to_does_not_stop_the_agent() {
    let folder = folder();
    let made = Command::new("mkfifo").arg(folder.file("pipe")).status().unwrap();
    assert!(made.success());
    // Nobody writes.
    refused(
        agent(&folder).args(["--tunnel", "t wss://h pipe", "--check"]),
        "--tunnel: pipe: it is",
    );
    let script = "printf hush-token | \"$0\" agent --tunnel 't wss://h /dev/stdin' --check && \
                  printf 'plain = true' | \"$0\" agent --config /dev/stdin --check";
    let program = env!("CARGO_BIN_EXE_aiot-tunnel");
    let output = Command::new("sh").args(["-c", script, program]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The writer does not write.
    let silent = std::fs::OpenOptions::new().read(true).write(true).open(folder.file("pipe"));
    refused(agent(&folder).args(["--config", "pipe"]), "pipe: nothing to read for 10 s");
    drop(silent);
}
