//! The agent as a device maker runs it: a file of settings, signals, hooks, the service manager.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::process::{Lines, Process};
use aiot_tunnel_testkit::queue::Key;
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::{wait, DEVICE_TOKEN};
use serde_json::Value;

const TOKEN: &str = DEVICE_TOKEN;

/// A device: its files, and the agent while it runs.
struct Device {
    folder: Folder,
    key: Key,
    process: Option<Process>,
}

impl Device {
    fn new() -> Self {
        let device = Device { folder: Folder::new(), key: Key::new(), process: None };
        device.write_token("t1.token", TOKEN);
        device
    }

    fn write_token(&self, name: &str, token: &str) {
        self.folder.write(name, token);
        fs::set_permissions(self.folder.file(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn write_settings(&self, more: &str) {
        let key = self.key.0;
        self.folder.write(
            "agent.toml",
            format!("plain = true\nqueue_key = {key}\ncontrol_socket = \"none\"\n{more}"),
        );
    }

    /// Starts the agent. The result are its events.
    fn start(&mut self, more: impl FnOnce(&mut Command) -> &mut Command) -> Lines {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aiot-tunnel"));
        command.args(["agent", "--config", "agent.toml"]).current_dir(self.folder.path());
        command.env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(self.log_file());
        let mut process = Process::start(more(&mut command));
        let lines = process.lines();
        self.process = Some(process);
        lines
    }

    fn log_file(&self) -> fs::File {
        fs::OpenOptions::new().create(true).append(true).open(self.folder.file("log")).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.file("log")).unwrap()
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// Sends SIGHUP and waits until the settings have been read.
    fn reload(&mut self) {
        let reloads = |log: &str| {
            log.lines()
                .filter(|line| {
                    line.contains("reload: the set") || line.contains("stay as they were")
                })
                .count()
        };
        let before = reloads(&self.log());
        self.process().hang_up();
        wait::until("the end of the reload", || reloads(&self.log()) > before);
    }

    fn end(&mut self) {
        self.process().terminate();
        assert!(self.process().wait().success());
        assert!(!self.log().contains("hush"), "{}", self.log());
    }
}

fn tunnel(id: &str, cloud: &Cloud) -> String {
    let address = cloud.address();
    format!("[[tunnel]]\nid = \"{id}\"\nurl = \"ws://{address}\"\ntoken_file = \"t1.token\"\n")
}

fn services(service: &aiot_tunnel::Service, name: &str) -> String {
    format!("[services]\n{name} = \"{}\"\n", service.target())
}

#[test]
fn a_tunnel_of_the_settings_is_there_again_after_a_restart() {
    let (cloud, echo, mut device) = (Cloud::plain(), echo("echo"), Device::new());
    device.write_settings(&(services(&echo, "echo") + &tunnel("t1", &cloud)));
    for _ in 0..2 {
        let events = device.start(|command| command);
        let mut end = cloud.accept();
        assert_eq!(end.path, "/tunnel/t1/dest");
        end.check_echo("s1", "echo");
        events.expect("Connect t1");
        // As a loss of power, which leaves the queue behind.
        device.process().kill();
    }
}

#[test]
fn a_refused_token_is_tried_again_and_its_file_is_read_again() {
    let (cloud, mut device) = (Cloud::plain(), Device::new());
    let script = device.folder.file("hook");
    write_script(&script, "#!/bin/sh\necho $AIOT_TUNNEL_EVENT $AIOT_TUNNEL_ID >> events\n");
    device.write_settings(&format!("on_event = {script:?}\n{}", tunnel("t1", &cloud)));
    let events = device.start(|command| command);
    let unauthorized = |_: &_| Some(401);
    assert!(cloud.accept_if(unauthorized).is_none());
    // The gateway knows the token after all.
    let mut end = cloud.accept();
    events.expect("Connect t1");
    device.write_token("t1.token", "hush-the-next");
    end.close(4001);
    events.expect("Disconnect t1");
    let mut end = cloud.accept_with_token("hush-the-next");
    events.expect("Connect t1");
    assert_eq!(end.create("s", "_SSH"), 2);
    device.end();
    let log = device.log();
    assert!(log.contains("its file has a new token") && !log.contains("Expired"), "{log}");
    let said = fs::read_to_string(device.folder.file("events")).unwrap();
    assert!(said.starts_with("token_refused t1\nconnect t1\n"), "{said}");
}

#[test]
fn sighup_changes_services_and_tunnels_and_leaves_open_ones_alone() {
    let (cloud, second, mut device) = (Cloud::plain(), Cloud::plain(), Device::new());
    let (one, two) = (echo("one"), echo("two"));
    device.write_settings(&(services(&one, "one") + &tunnel("t1", &cloud)));
    let events = device.start(|command| command);
    let mut end = cloud.accept();
    events.expect("Connect t1");
    assert_eq!(end.create("s1", "one"), 0);
    // The settings are wrong, and stay as they were.
    device.write_settings("colour = 1");
    device.reload();
    assert!(device.log().contains("agent.toml:4: colour: there is no such key"));
    end.data("s1", b"a");
    assert_eq!(end.receive_data("s1", 1), b"a");
    // Another service and one more tunnel. The open session goes on.
    device
        .write_settings(&(services(&two, "two") + &tunnel("t1", &cloud) + &tunnel("t2", &second)));
    device.reload();
    let mut other = second.accept();
    events.expect("Connect t2");
    end.data("s1", b"b");
    assert_eq!(end.receive_data("s1", 1), b"b");
    assert_eq!((end.create("s2", "one"), end.create("s3", "two")), (2, 0));
    other.check_echo("s", "two");
    // A new token, and the second tunnel is gone.
    device.write_token("t1.token", "hush-new");
    device.write_settings(&(services(&two, "two") + &tunnel("t1", &cloud)));
    device.reload();
    assert_eq!(other.receive_close(), Some(1000));
    let mut end = cloud.accept_with_token("hush-new");
    end.check_echo("s", "two");
    device.write_settings(&("log_format = \"lk\"\n".to_owned() + &tunnel("t1", &cloud)));
    device.reload();
    assert!(device.log().contains("log-format: changes after a restart"), "{}", device.log());
    device.end();
}

#[test]
fn sigusr1_connects_every_tunnel_again() {
    let (cloud, mut device) = (Cloud::plain(), Device::new());
    device.write_settings(&tunnel("t1", &cloud));
    let events = device.start(|command| command);
    let mut end: TunnelEnd = cloud.accept();
    events.expect("Connect t1");
    device.process().user_signal();
    assert_eq!(end.receive_close(), Some(1000));
    events.expect("Disconnect t1");
    cloud.accept();
    events.expect("Connect t1");
    device.end();
}

fn write_script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_program_is_run_for_each_event_and_never_sees_a_token() {
    let (cloud, mut device) = (Cloud::plain(), Device::new());
    let script = device.folder.file("on event");
    write_script(&script, "#!/bin/sh\necho \"$AIOT_TUNNEL_EVENT $AIOT_TUNNEL_ID $AIOT_TUNNEL_TIME $AIOT_TUNNEL_ERROR\" >> events\nenv >> environment\n");
    device.write_settings(&format!("on_event = {script:?}\n{}", tunnel("t1", &cloud)));
    let events = device.start(|command| command.env("AIOT_TUNNEL_DEVICE_TOKEN", "hush-inherited"));
    assert!(cloud.accept_if(|_| Some(503)).is_none());
    assert!(cloud.accept_if(|_| Some(503)).is_none());
    let mut end = cloud.accept();
    events.expect("Connect t1");
    end.close(1000);
    let mut end = cloud.accept();
    events.expect("Connect t1");
    device.process().user_signal();
    end.receive_close();
    let _last = cloud.accept();
    let said = || fs::read_to_string(device.folder.file("events")).unwrap_or_default();
    wait::until("all events", || said().matches("connect t1").count() >= 5);
    let said = said();
    let said: Vec<&str> = said.lines().collect();
    assert!(said[0].starts_with("failed t1 20") && said[0].contains("503"), "{said:?}");
    let names: Vec<&str> = said[1..].iter().map(|line| line.split(' ').next().unwrap()).collect();
    let lost = names.iter().position(|name| *name == "failed");
    let names: Vec<&str> = names.into_iter().filter(|name| *name != "failed").collect();
    assert_eq!(names, ["connect", "disconnect", "connect", "disconnect", "connect"]);
    assert!(lost.is_none_or(|at| at == 1 || at == 2), "{said:?}");
    let environment = fs::read_to_string(device.folder.file("environment")).unwrap();
    assert!(!environment.contains("hush"), "{environment}");
    device.end();
}

#[test]
fn a_program_that_hangs_or_fails_stops_neither_tunnels_nor_the_end() {
    let mut device = Device::new();
    for script in
        ["#!/bin/sh\nwhile [ -e hook ]; do sleep 0.1; done\n", "#!/bin/sh\nexit 3\n", "no program"]
    {
        let cloud = Cloud::plain();
        let path = device.folder.file("hook");
        write_script(&path, script);
        device.write_settings(&format!("on_event = {path:?}\n{}", tunnel("t1", &cloud)));
        let events = device.start(|command| command);
        for _ in 0..3 {
            let mut end = cloud.accept();
            events.expect("Connect t1");
            device.process().user_signal();
            end.receive_close();
        }
        let _last = cloud.accept();
        if !script.contains("sleep") {
            wait::until("a line about the program", || device.log().contains("on_event: "));
        }
        device.end();
    }
    let log = device.log();
    assert!(log.contains("connect t1: exit status: 3"), "{log}");
    assert!(log.contains("Exec format error"), "{log}");
}

#[test]
fn the_log_has_the_format_of_the_settings() {
    for format in ["lk", "text", "json", "journald"] {
        let (cloud, mut device) = (Cloud::plain(), Device::new());
        device.write_settings(&format!("log_format = {format:?}\n{}", tunnel("t1", &cloud)));
        let events = device.start(|command| command.env("RUST_LOG", "info"));
        let end = cloud.accept();
        events.expect("Connect t1");
        device.process().hang_up();
        wait::until("the reload", || device.log().contains("reload: the settings"));
        device.end();
        drop(end);
        let log = device.log();
        let opened = log.lines().find(|line| line.contains("websocket t1 opened")).unwrap();
        let reload = log.lines().find(|line| line.contains("reload: the settings")).unwrap();
        match format {
            "lk" => {
                let (time, rest) = opened[1..].split_once("][LK-").unwrap();
                let (seconds, millis) = time.split_once('.').unwrap();
                assert!(seconds.parse::<u64>().is_ok() && millis.len() == 3, "{opened}");
                assert_eq!(&rest[4..], "] websocket t1 opened");
                assert!(reload.starts_with('['), "{reload}");
            }
            "text" => assert!(opened.contains(" INFO  aiot_tunnel] [LK-"), "{opened}"),
            "json" => {
                for line in log.lines() {
                    let line: Value = serde_json::from_str(line).unwrap();
                    assert!(line["time"].as_str().unwrap().ends_with('Z'));
                }
                let opened: Value = serde_json::from_str(opened).unwrap();
                assert!(opened["code"].as_str().unwrap().starts_with("LK-"), "{opened}");
                assert_eq!(opened["text"], "websocket t1 opened");
                assert_eq!(opened["level"], "info");
                let reload: Value = serde_json::from_str(reload).unwrap();
                assert_eq!(reload["code"], Value::Null);
            }
            _ => {
                assert!(log.lines().all(|line| line.starts_with('<')), "{log}");
                assert!(opened.starts_with("<6>[LK-"), "{opened}");
            }
        }
    }
}

#[test]
fn a_service_manager_is_told_of_the_start_the_reload_and_the_end() {
    let (cloud, mut device) = (Cloud::plain(), Device::new());
    device.write_settings(&tunnel("t1", &cloud));
    let path = device.folder.file("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(wait::TIMEOUT)).unwrap();
    device.start(|command| command.env("NOTIFY_SOCKET", &path));
    let said = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    assert_eq!(said(), "READY=1");
    device.process().hang_up();
    assert_eq!([said(), said()], ["RELOADING=1", "READY=1"]);
    device.end();
    assert_eq!(said(), "STOPPING=1");
}
