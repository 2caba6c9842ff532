//! Settings of a file that change while the gateway runs: what can takes effect on SIGHUP, and open
//! sessions go on.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::sockets::connect_from;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{gateways, services};

use super::{echoes, Gateway};

impl Gateway {
    /// One with a file of settings, and a device whose service is called by each of these names.
    fn configured(settings: &str, services: &[&str]) -> (Self, Program, aiot_tunnel::Service) {
        let folder = Folder::new();
        let file = folder.write("gateway.toml", settings);
        let gateway = Gateway::in_folder(folder, &["--plain", "--config", &file]);
        let tokens = gateway.add("t1");
        let echo = services::echo("echo");
        let token = gateway.folder.write_secret("device.token", &tokens.device);
        let tunnel = format!("t1 ws://{} {token}", gateway.address);
        let mut arguments =
            vec!["agent".to_owned(), "--plain".to_owned(), "--tunnel".to_owned(), tunnel];
        arguments.extend(["--control-socket", "none", "--queue-key", "off"].map(str::to_owned));
        for service in services {
            arguments.extend(["--service".to_owned(), format!("{service}={}", echo.target())]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let agent = Program::start(&arguments);
        wait::until("the device is online", || gateway.has_device("t1"));
        (gateway, agent, echo)
    }

    /// Writes the settings and sends the signal. Returns what was logged since, as soon as it has `text`.
    fn reconfigure(&mut self, settings: &str, text: &str) -> String {
        self.folder.write("gateway.toml", settings);
        let before = self.program.log().len();
        self.program.process.hang_up();
        let since = || self.program.log()[before..].to_owned();
        wait::until(&format!("{text:?} is in the log"), || since().contains(text));
        since()
    }

    /// The address of the published port that was opened last for a service.
    fn port(&self, service: &str) -> SocketAddr {
        let mark = format!(": service \"{service}\" of tunnel \"t1\"");
        self.program.expect_log(&mark);
        let log = self.program.log();
        let line = log.lines().rfind(|line| line.contains(&mark)).unwrap();
        let address = line.split("published port ").nth(1).unwrap();
        address.strip_suffix(&mark).unwrap().parse().unwrap()
    }
}

fn connect(port: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

fn is_reset(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Err(e) if e.kind() == ErrorKind::ConnectionReset)
}

fn publish(services: &[&str]) -> String {
    let table = |service: &&str| {
        format!("[[publish]]\nlisten = \"127.0.0.1:0\"\ntunnel = \"t1\"\nservice = \"{service}\"\n")
    };
    services.iter().map(table).collect()
}

#[test]
fn ports_and_limits_change_while_sessions_go_on() {
    let services = ["one", "two", "three"];
    let (mut gateway, _agent, _echo) = Gateway::configured(&publish(&["one"]), &services);
    let one = gateway.port("one");
    let mut first = connect(one);
    echoes(&mut first, "before");

    // One more port, and room for two sessions.
    let limits = "session_limit = 2\npublish_queue_timeout = \"200ms\"\n";
    let settings = format!("{limits}{}", publish(&["one", "two"]));
    let log = gateway.reconfigure(&settings, "reload: changed: ");
    assert!(log.contains("changed: publish, publish_queue_timeout, session_limit;"), "{log}");
    let two = gateway.port("two");
    let mut second = connect(two);
    echoes(&mut second, "on the new port");
    assert!(is_reset(&mut connect(one)), "a third session");
    echoes(&mut first, "goes on");

    // The first port is taken away, and its session with it.
    gateway.reconfigure(&format!("{limits}{}", publish(&["two"])), "reload: changed: publish;");
    assert!(is_reset(&mut first));
    assert_eq!(TcpStream::connect(one).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    echoes(&mut second, "still goes on");

    // Another service at the same address, which listens all the time.
    gateway.reconfigure(&format!("{limits}{}", publish(&["three"])), "reload: changed: publish;");
    assert_eq!(gateway.port("three"), two);
    assert!(is_reset(&mut second));
    echoes(&mut connect(two), "by another name");

    let log = gateway.reconfigure(&format!("{limits}{}", publish(&["three"])), "no setting has");
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn a_broken_file_is_refused_with_one_line_and_nothing_changes() {
    let good = publish(&["one"]);
    let (mut gateway, _agent, _echo) = Gateway::configured(&good, &["one", "two"]);
    let mut session = connect(gateway.port("one"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    for (broken, why) in [
        ("session_limit = \n".to_owned(), "gateway.toml:1: "),
        (format!("session_limit = 1\nno_such_key = 1\n{good}"), "gateway.toml:2: no_such_key: there is no"),
        (format!("session_limit = 0\n{good}"), "gateway.toml:1: session_limit: "),
        (format!("proxy_protocol = true\n{good}"), "gateway.toml:1: proxy_protocol: needs --trusted-proxy"),
        (format!("trusted_proxy = [\"10.0.0.1/8\"]\n{good}"), "write 10.0.0.0/8, or 10.0.0.1"),
        // The first of the two could be opened.
        (
            format!(
                "session_limit = 1\n{}[[publish]]\nlisten = \"{taken}\"\ntunnel = \"t1\"\nservice = \"one\"\n",
                publish(&["two"])
            ),
            "publish: cannot listen on 127.0.0.1:",
        ),
        (
            format!("[[publish]]\nlisten = \"127.0.0.1:0\"\ntunnel = \"t1\"\nservice = \"{}\"\n", "x".repeat(300)),
            "publish: ",
        ),
    ] {
        let log = gateway.reconfigure(&broken, "all settings stay as they were");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert!(lines.len() == 1 && lines[0].contains(why), "{why}: {log}");
        echoes(&mut session, "goes on");
    }
    std::fs::remove_file(gateway.folder.file("gateway.toml")).unwrap();
    gateway.program.process.hang_up();
    gateway.program.expect_log("gateway.toml: No such file");
    echoes(&mut connect(gateway.port("one")), "the port is open, and there is room");
    gateway.reconfigure(&good, "no setting has changed");
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_takes_effect() {
    let folder = Folder::new();
    let store = folder.file("tunnels.db").display().to_string();
    let settings = |listen: &str, more: &str| {
        format!("listen = \"{listen}\"\nstore = \"{store}{more}\"\nplain = true\n")
    };
    let file = folder.write("gateway.toml", settings("127.0.0.1:0", ""));
    let mut program = Program::start(&["gateway", "--config", &file]);
    let address = program.address();
    let new = settings("127.0.0.1:1", ".other") + "session_limit = 3\n";
    folder.write("gateway.toml", &new);
    for _ in 0..2 {
        // As long as it has not been restarted.
        let before = program.log().len();
        program.process.hang_up();
        let since = || program.log()[before..].to_owned();
        wait::until("the reload is in the log", || since().contains("reload: "));
        wait::until("the keys are named", || {
            since().contains("reload: listen, store: a change needs a restart of the gateway")
        });
    }
    program.expect_log("reload: changed: session_limit;");
    program.expect_log("reload: no setting has changed");
    assert_eq!(gateways::connect(address, "/tunnel/t1/dest", Some("hush-x")).err(), Some(404));
    assert!(!folder.file("tunnels.db.other").exists());
}

#[test]
fn proxies_and_the_log_level_change_while_it_runs() {
    let (mut gateway, _agent, _echo) = Gateway::configured("", &["one"]);
    let address = gateway.address;
    let refused = |header: &str| {
        let mut tcp = connect_from(Ipv4Addr::new(127, 0, 0, 5), address);
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        tcp.write_all(header.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = tcp.read_to_string(&mut answer);
        answer
    };
    let (header, request) = ("PROXY TCP4 192.0.2.7 192.0.2.2 258 22\r\n", "GET / HTTP/1.1\r\n\r\n");
    assert!(refused(&format!("{header}{request}")).starts_with("HTTP/1.1 400"));
    let trusted = "trusted_proxy = \"127.0.0.5\"\nproxy_protocol = true\n";
    gateway.reconfigure(trusted, "changed: proxy_protocol, trusted_proxy;");
    assert!(refused(&format!("{header}{request}")).starts_with("HTTP/1.1 404"));
    gateway.program.expect_log("192.0.2.7:258: a request is refused: 404");
    let not_sent = "does not begin with a header of the PROXY protocol";
    assert_eq!(refused(request), "");
    gateway.program.expect_log(not_sent);

    let quiet = "log_level = \"warn\"\npublic_url = \"wss://gw.example\"\n";
    gateway.reconfigure(quiet, "public_url: a change needs a restart");
    gateway.add("quiet");
    gateway.reconfigure("", "reload: changed: log_level");
    gateway.add("loud");
    gateway.program.expect_log("tunnel \"loud\"");
    assert!(!gateway.program.log().contains("tunnel \"quiet\""));
}
