//! What the program says to its user. What it does is tested by the library's tests/access.rs,
//! tests/security.rs and `make demo`.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aiot-tunnel"));
    for variable in ["AIOT_TUNNEL_DEVICE_TOKEN", "AIOT_TUNNEL_ACCESS_TOKEN", "RUST_LOG"] {
        command.env_remove(variable);
    }
    command.args(arguments).output().unwrap()
}

/// With tokens that nobody has given out.
fn run_with_tokens(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aiot-tunnel"));
    for variable in ["AIOT_TUNNEL_DEVICE_TOKEN", "AIOT_TUNNEL_ACCESS_TOKEN"] {
        command.env(variable, "hush");
    }
    command.env("RUST_LOG", "error").args(arguments).output().unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_shows_every_subcommand_its_options_and_examples() {
    let help = stdout(&["--help"]);
    for (subcommand, options) in [
        (
            "gateway",
            &[
                "--listen",
                "--cert",
                "--key",
                "--plain",
                "--tunnels",
                "--tunnel",
                "--device-token-file",
                "--access-token-file",
                "--expire",
                "--session-limit",
                "--connection-limit",
                "--handshake-limit",
                "--access-limit",
            ][..],
        ),
        (
            "access",
            &["--url", "--tunnel", "--service", "--listen", "--stdio", "--ca", "--token-file"],
        ),
        (
            "agent",
            &[
                "--service",
                "--ca",
                "--plain",
                "--client-cert",
                "--client-key",
                "--queue-key",
                "--queue-mode",
                "--queue-owner",
                "--control-socket",
                "--control-socket-mode",
                "--control-socket-owner",
            ],
        ),
        (
            "send",
            &[
                "--tunnel",
                "--host",
                "--port",
                "--path",
                "--token-file",
                "--control-socket",
                "--queue-key",
            ],
        ),
        (
            "signal",
            &[
                "--broker",
                "--region",
                "--instance",
                "--product-key",
                "--device-name",
                "--device-secret-file",
                "--username",
                "--password-file",
                "--client-id",
                "--ca",
                "--client-cert",
                "--client-key",
                "--control-socket",
                "--queue-key",
            ],
        ),
        ("status", &["--json", "--watch", "--interval", "--control-socket"]),
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(subcommand)), "{help}");
        let help = stdout(&[subcommand, "--help"]);
        for option in options {
            // A flag that takes `=false` is shown with it.
            let flag = format!("{option}[=");
            let is_it = |word: &str| word == *option || word.starts_with(&flag);
            let shows = |line: &str| line.split_whitespace().any(is_it);
            assert!(help.lines().any(shows), "{subcommand} {option}: {help}");
        }
        let example = format!("aiot-tunnel {subcommand} ");
        let (_, examples) = help.split_once("Examples:").expect("examples");
        assert!(examples.contains(&example) || examples.contains(example.trim_end()), "{help}");
    }
}

#[test]
fn version_is_the_packages() {
    assert_eq!(stdout(&["--version"]), concat!("aiot-tunnel ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// Exit status 2 and a text that names the argument and the reason.
#[test]
fn a_wrong_argument_is_named_with_the_reason() {
    let access = ["access", "--url", "wss://h", "--tunnel", "t1"];
    let with = |more: &[&'static str]| [&access[..], more].concat();
    let long = "s".repeat(128);
    for (arguments, parts) in [
        (&["agent", "--service", "_SSH"][..], ["--service", "TYPE=HOST:PORT"]),
        (&["agent", "--service", "_SSH=h:0"], ["_SSH=h:0", "from 1 to 65535"]),
        (&["agent", "--service", "a=unix:/run/\n"], ["--service", "control character"]),
        (&["agent", "--queue-mode", "rw"], ["--queue-mode", "permissions such as 0600"]),
        (&["agent", "--plain", "--ca", "ca.pem"], ["--plain", "--ca"]),
        (&["send", "add", "--tunnel", ""], ["--tunnel", "must not be empty"]),
        (&["send", "add", "--tunnel", "a\tb"], ["--tunnel", "control character"]),
        (&["send", "open", "--tunnel", "t1"], ["open", "add, update, delete"]),
        (&["send", "add", "--tunnel", "t1", "--port", "0"], ["--port", "from 1 to 65535"]),
        (&access, ["--listen", "required"]),
        (&with(&["--listen", "127.0.0.1:65536"]), ["--listen", "no port from 0 to 65535"]),
        (&with(&["--listen", "8080"]), ["--listen", "HOST:PORT"]),
        (&with(&["--listen", "127.0.0.1:0="]), ["--listen", "service type"]),
        (&[&access[..], &["--stdio", "--service", &long]].concat(), ["--service", "127"]),
        (&["agent", "--queue-key", "0"], ["--queue-key", "nobody can reach"]),
        (&["send", "delete", "--tunnel", "t1", "--queue-key", "0"], ["--queue-key", "private"]),
        (&["agent", "--queue-key", "none"], ["--queue-key", "neither a number nor off"]),
        (&["agent", "--control-socket", "agent.sock"], ["--control-socket", "absolute path"]),
        (&["agent", "--control-socket-mode", "rw"], ["--control-socket-mode", "such as 0600"]),
        (&["agent", "--control-socket-owner", "me"], ["--control-socket-owner", "UID:GID"]),
        (&["send", "delete"], ["--tunnel", "required"]),
        (
            &["send", "reload", "--control-socket", "/s", "--queue-key", "1"],
            ["--control-socket", "cannot be used with"],
        ),
        (&["status", "--interval", "2"], ["--watch", "required"]),
        (&["status", "--watch", "--interval", "0"], ["--interval", "from 0.1 to 86400"]),
        (&["gateway", "--cert", "server.pem"], ["--key", "required"]),
        (&["signal", "--broker", "wss://h"], ["--broker", "mqtts://HOST"]),
        (&["signal", "--username", "u"], ["--password-file", "required"]),
        (&["signal", "--region", "r", "--instance", "i"], ["--region", "--instance"]),
        (&["fly"], ["fly", "subcommand"]),
    ] {
        let output = run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?}: no {part:?} in {text}");
        }
    }
}

/// Exit status 2 and one line, where several arguments do not fit together.
#[test]
fn arguments_that_make_no_sense_together_are_wrong_arguments() {
    let access = ["access", "--stdio", "--url"];
    let with = |more: &[&'static str]| [&access[..], more].concat();
    for (arguments, part) in [
        (vec!["gateway", "--tunnel", "t1"], "--cert and --key for TLS, or --plain"),
        (vec!["gateway", "--plain"], "--tunnels FILE or --tunnel ID"),
        (with(&["h:1", "--tunnel", "t1"]), "no URL such as wss://host:port"),
        (with(&["wss://h"]), "--tunnel ID"),
        (with(&["wss://h/path", "--tunnel", "t1"]), "leave --tunnel out"),
        (with(&["ws://h", "--tunnel", "t1", "--ca", "ca.pem"]), "--ca needs a wss:// URL"),
        (vec!["send", "add", "--tunnel", "t1"], "add and update need --host and --port"),
        (with(&["ws://", "--tunnel", "t1"]), "names no host"),
        (with(&["ws://h:65536", "--tunnel", "t1"]), "port"),
        (with(&["ws://h h", "--tunnel", "t1"]), "host"),
        (vec!["send", "update", "--tunnel", "t1", "--port", "1"], "--host and --port"),
        (vec!["send", "reload", "--tunnel", "t1"], "leave --tunnel out"),
        (vec!["send", "reconnect", "--queue-key", "1"], "add, update and delete only"),
        (vec!["signal", "--broker", "mqtt://h"], "--product-key and --device-name"),
        (vec!["signal", "--product-key", "p", "--device-name", "d"], "--broker URL"),
        (vec!["signal", "--product-key", "p/q", "--device-name", "d"], "product key"),
        (vec!["signal", "--product-key", "p", "--device-name", "d", "--region", "/"], "region"),
        (
            vec![
                "signal",
                "--product-key",
                "p",
                "--device-name",
                "d",
                "--broker",
                "mqtt://h",
                "--ca",
                "ca.pem",
            ],
            "mqtts://",
        ),
        (
            vec![
                "signal",
                "--product-key",
                "p",
                "--device-name",
                "d",
                "--region",
                "r",
                "--device-secret-file",
                "/nowhere/secret",
            ],
            "/nowhere/secret: No such file",
        ),
    ] {
        let output = run_with_tokens(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.starts_with("aiot-tunnel: ") && text.contains(part), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    }
}

#[test]
fn a_missing_token_or_file_is_a_wrong_argument() {
    let access = ["access", "--stdio", "--url"];
    let with = |more: &[&'static str]| [&access[..], more].concat();
    for (arguments, part) in [
        (vec!["gateway", "--plain", "--tunnel", "t1"], "set AIOT_TUNNEL_DEVICE_TOKEN"),
        (with(&["wss://h", "--tunnel", "t1"]), "set AIOT_TUNNEL_ACCESS_TOKEN"),
        (with(&["wss://h", "--tunnel", "t1", "--ca", "/nowhere/ca"]), "/nowhere/ca: No such file"),
        (
            vec!["send", "add", "--tunnel", "t1", "--host", "h", "--port", "1"],
            "set AIOT_TUNNEL_DEVICE_TOKEN",
        ),
    ] {
        let output = run(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.starts_with("aiot-tunnel: ") && text.contains(part), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    }
}

/// Exit status 1 and one line that says what to do.
#[test]
fn a_failure_says_what_was_attempted_or_what_to_do() {
    for (arguments, part) in [
        (vec!["send", "delete", "--tunnel", "t1", "--queue-key", "12345679"], "message queue"),
        (
            vec!["send", "reload", "--control-socket", "/nowhere/s"],
            "no agent listens on /nowhere/s",
        ),
        (vec!["status", "--control-socket", "/nowhere/s"], "no agent listens on /nowhere/s"),
    ] {
        let output = run(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.starts_with("aiot-tunnel: ") && text.contains(part), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    }
}
