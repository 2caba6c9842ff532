//! Every setting of the gateway by file, environment and option, and what is wrong with one that
//! cannot be used.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::process::program;

use super::{certify, stdout};

/// A value of each key that is not its default, and what must be set as well.
const VALUES: &[(&str, &str, &[&str])] = &[
    ("access_limit", "7", &[]),
    ("access_token_file", "access.token", &["tunnel"]),
    ("api", "127.0.0.1:1", &["api_key_file"]),
    ("api_key_file", "api.key", &["api"]),
    ("api_proxy_protocol", "true", &[]),
    ("api_tls", "true", &[]),
    ("audit_log", "audit.log", &[]),
    ("cert", "server.pem", &["key"]),
    ("connection_limit", "8", &[]),
    ("device_token_file", "device.token", &["tunnel"]),
    ("expire", "60", &["tunnel"]),
    ("handshake_limit", "9", &[]),
    ("host_keys", "host-keys", &[]),
    ("key", "server.key", &["cert"]),
    ("legacy_tls", "true", &[]),
    ("listen", "[::1]:1", &[]),
    ("log_format", "json", &[]),
    ("log_level", "warn", &[]),
    ("notify", "mqtts://mqtt.example", &["store"]),
    ("notify_ca", "ca.pem", &["notify", "store"]),
    ("notify_password_file", "mqtt.password", &["notify", "notify_user", "store"]),
    ("notify_user", "gateway", &["notify", "notify_password_file", "store"]),
    ("page", "true", &[]),
    ("plain", "true", &[]),
    ("proxy_protocol", "true", &[]),
    ("public_url", "wss://gw.example:1", &[]),
    ("publish_limit", "12", &[]),
    ("publish_queue_timeout", "5s", &[]),
    ("rate_limit", "2Mbit", &[]),
    ("session_limit", "11", &[]),
    ("store", "tunnels.db", &[]),
    ("store_ca", "ca.pem", &["store"]),
    ("store_grace", "1m", &[]),
    ("store_key_file", "store.key", &["store"]),
    ("store_password_file", "store.password", &["store"]),
    ("terminal", "true", &[]),
    ("trusted_proxy", "10.0.0.0/8", &[]),
    ("tunnel", "t1", &[]),
    ("tunnels", "tunnels.json", &[]),
];

fn gateway(folder: &Folder) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AIOT_TUNNEL_") {
            command.env_remove(name);
        }
    }
    command.arg("gateway").current_dir(folder.path());
    command
}

/// For each key its value and its origin.
fn printed(output: Output) -> BTreeMap<String, (String, String)> {
    let text = stdout(&output);
    let lines = text.lines().filter_map(|line| line.trim_start_matches("# ").split_once(" # "));
    let settings = lines.filter_map(|(setting, origin)| {
        let (key, value) = setting.split_once('=')?;
        let value = value.trim().trim_matches('"').to_owned();
        Some((key.trim().to_owned(), (value, origin.to_owned())))
    });
    settings.collect()
}

#[test]
fn every_key_can_be_set_by_file_environment_and_option() {
    let folder = Folder::new();
    let defaults = printed(gateway(&folder).arg("--print-config").output().unwrap());
    let keys: Vec<&str> = defaults.keys().map(String::as_str).collect();
    let tested: Vec<&str> = VALUES.iter().map(|(key, ..)| *key).collect();
    assert_eq!(keys, tested, "a key that this test does not know, or knows in vain");
    let line = |key: &str| {
        let (_, value, _) = VALUES.iter().find(|(other, ..)| *other == key).unwrap();
        match value.parse::<u64>().is_ok() || *value == "true" {
            true => format!("{key} = {value}\n"),
            false => format!("{key} = {value:?}\n"),
        }
    };
    for &(key, value, partners) in VALUES {
        assert_ne!(defaults[key].0, value, "{key}: a default proves nothing");
        let option = format!("--{}={value}", key.replace('_', "-"));
        let variable = format!("AIOT_TUNNEL_GATEWAY_{}", key.to_uppercase());
        let partners: String = partners.iter().map(|partner| line(partner)).collect();
        folder.write("gateway.toml", line(key) + &partners);
        let with_file = || {
            let mut command = gateway(&folder);
            command.args(["--config", "gateway.toml", "--print-config"]);
            command
        };
        let expected = |origin: &str| (value.to_owned(), origin.to_owned());
        let of_file = printed(with_file().output().unwrap());
        assert_eq!(of_file[key], expected("gateway.toml:1"));
        let of_variable = printed(with_file().env(&variable, value).output().unwrap());
        assert_eq!(of_variable[key], expected(&variable));
        let of_option =
            printed(with_file().env(&variable, "nonsense").arg(&option).output().unwrap());
        assert_eq!(of_option[key], expected("option"));
    }
}

#[test]
fn a_gateway_runs_with_a_file_of_settings() {
    let folder = Folder::new();
    certify(&folder, &Authority::new());
    let list = r#"[{"id": "t1", "device_token": "hush-d", "access_token": "hush-a"}]"#;
    folder.write_secret("tunnels.json", list);
    let file = "cert = \"server.pem\"\nkey = \"server.key\"\ntunnels = \"tunnels.json\"\nlisten = \"127.0.0.1:0\"\n";
    folder.write("gateway.toml", file);
    let check = gateway(&folder).args(["--config", "gateway.toml", "--check"]).output().unwrap();
    assert_eq!(stdout(&check), "gateway.toml: the settings are valid\n");
    let mut program = Program::start_command(gateway(&folder).args(["--config", "gateway.toml"]));
    program.address();
}

/// One line that names the place, the key and the reason.
#[test]
fn a_wrong_setting_is_named_with_its_place_and_the_reason() {
    let folder = Folder::new();
    certify(&folder, &Authority::new());
    folder.write_secret("short.key", "hush-short");
    folder.write_secret("good.key", "hush-a-key-that-is-long");
    let plain = "plain = true\ntunnel = \"t1\"\n";
    for (file, parts) in [
        ("lisen = 1", &["gateway.toml:1", "lisen", "no such key"][..]),
        ("listen = \"8443\"", &["gateway.toml:1", "listen", "socket address"]),
        ("session_limit = 0", &["gateway.toml:1", "session_limit"]),
        ("public_url = \"https://gw\"", &["gateway.toml:1", "public_url", "wss://"]),
        (
            "plain = true\ncert = \"server.pem\"\nkey = \"server.key\"",
            &["gateway.toml:1", "plain", "--cert"],
        ),
        ("plain = true\nlegacy_tls = true", &["gateway.toml:2", "legacy_tls", "--cert"]),
        ("plain = true\napi_tls = true", &["gateway.toml:2", "api_tls", "--cert"]),
        ("plain = true\npage = true", &["gateway.toml:2", "page", "--api"]),
        ("plain = true\nterminal = true", &["gateway.toml:2", "terminal", "--page"]),
        (
            &format!("{plain}api = \"127.0.0.1:0\"\napi_key_file = \"good.key\"\npage = true\nterminal = true"),
            &["gateway.toml:6", "terminal", "--host-keys"],
        ),
        ("cert = \"server.pem\"", &["gateway.toml:1", "cert", "--key"]),
        ("api = \"127.0.0.1:0\"", &["gateway.toml:1", "api", "--api-key-file"]),
        (
            &format!("{plain}api = \"127.0.0.1:0\"\napi_key_file = \"short.key\""),
            &["gateway.toml:4", "api_key_file", "less than 20", "gen-token"],
        ),
        (
            &format!("{plain}api = \"127.0.0.1:0\"\napi_key_file = \"none.key\""),
            &["gateway.toml:4", "api_key_file", "No such file"],
        ),
    ] {
        folder.write("gateway.toml", file);
        let output =
            gateway(&folder).args(["--config", "gateway.toml", "--check"]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{file}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        for part in parts {
            assert!(error.contains(part), "{file}: {part}: {error}");
        }
        assert!(!error.contains("hush-"), "{error}");
    }
    // A port in use, and a store that is none: failures of the system, not of the settings.
    folder.write(
        "gateway.toml",
        plain.to_owned() + "store = \"server.pem\"\nlisten = \"127.0.0.1:0\"",
    );
    let output = gateway(&folder)
        .args(["--config", "gateway.toml"])
        .env("AIOT_TUNNEL_DEVICE_TOKEN", "hush-d")
        .env("AIOT_TUNNEL_ACCESS_TOKEN", "hush-a")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(23));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("server.pem: not a store of tunnels"), "{error}");
}
