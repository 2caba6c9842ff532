//! A device and an operator whose only way out is a proxy: real ones, in network namespaces. On
//! machines without namespaces or without a proxy's program, these tests say so and pass.

use std::io::Write;
use std::process::{Command, Stdio};

use aiot_tunnel::Service;
use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::{Agent, Program, TUNNEL};
use aiot_tunnel_testkit::process::program;
use aiot_tunnel_testkit::proxies::{Kind, Proxy, World};
use aiot_tunnel_testkit::ssh::Ssh;
use aiot_tunnel_testkit::streams::{self, content, Door};
use aiot_tunnel_testkit::{logs, skip, wait, ACCESS_TOKEN};

const USER: &str = "device-7";
const PASSWORD: &str = "hush-proxy-password";
const CREDENTIALS: Option<(&str, &str)> = Some((USER, PASSWORD));
const GATEWAY_PORT: u16 = 8443;

/// The cloud behind the proxy: a gateway whose certificate is for [`World::NAME`].
struct Scene {
    world: World,
    folder: Folder,
    ca: String,
    _gateway: Program,
}

impl Scene {
    fn new() -> Result<Self, String> {
        let world = World::new()?;
        let folder = Folder::new();
        let authority = Authority::new();
        let ca = folder.write("ca.pem", authority.pem());
        let identity = authority.identity(World::NAME);
        let certificate = folder.write("server.pem", &identity.certificate);
        let key = folder.write("key", &identity.key);
        let listen = format!("{}:{GATEWAY_PORT}", World::CLOUD);
        let mut arguments = vec!["gateway", "--listen", &listen, "--tunnel", TUNNEL];
        arguments.extend(["--cert", &certificate, "--key", &key]);
        let mut gateway = world.cloud.within(|| Program::start(&arguments));
        gateway.address();
        Ok(Scene { world, folder, ca, _gateway: gateway })
    }

    /// An agent on the device's machine, which is told to open the tunnel.
    fn agent(&self, services: &[Service], more: &[&str]) -> Agent {
        self.agent_as(Command::new(program()), services, more)
    }

    fn agent_as(&self, command: Command, services: &[Service], more: &[&str]) -> Agent {
        let start = || Agent::start_as(command, Some(&self.ca), services, more);
        let agent = self.world.device.within(start);
        agent.send_to("add", Some((World::NAME, GATEWAY_PORT)));
        agent
    }

    /// The arguments of an `access`.
    fn access_arguments(&self, service: &str, more: &[&str]) -> Vec<String> {
        let url = format!("wss://{}:{GATEWAY_PORT}", World::NAME);
        let mut arguments = vec!["access", "--url", &url, "--tunnel", TUNNEL, "--service", service];
        arguments.extend(["--ca", &self.ca]);
        arguments.extend(more);
        arguments.into_iter().map(str::to_owned).collect()
    }

    fn access(&self, service: &str, more: &[&str]) -> Program {
        let arguments = self.access_arguments(service, more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.world.device.within(|| Program::start(&arguments))
    }

    /// Sends a file up and down through a session, and compares every byte.
    fn moves_bytes(&self, door: &Door, more: &[&str]) {
        const LENGTH: usize = 300_000;
        let mut access = self.access("s", &[&["--listen", "127.0.0.1:0"], more].concat());
        let address = access.address();
        let connect = || streams::limited(std::net::TcpStream::connect(address).unwrap());
        let client = self.world.device.within(connect);
        let service = door.accept();
        for (from, to) in [(&client, &service), (&service, &client)] {
            std::thread::scope(|scope| {
                scope.spawn(|| streams::write(from, 0, LENGTH));
                let mut received = vec![0; LENGTH];
                std::io::Read::read_exact(&mut &*to, &mut received).unwrap();
                streams::check(0, &received);
            });
        }
        no_secret(&access.log());
    }
}

/// The password, alone and as Basic authentication encodes it.
fn no_secret(log: &str) {
    let pair = openssl_base64(&format!("{USER}:{PASSWORD}"));
    for secret in ["hush-", pair.as_str()] {
        assert!(!log.contains(secret), "{log}");
    }
}

fn openssl_base64(text: &str) -> String {
    let mut child = Command::new("base64")
        .args(["-w", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// Starts the scene and a proxy, or says that the test is skipped.
fn scene(test: &str, kind: Kind, credentials: Option<(&str, &str)>) -> Option<(Scene, Proxy)> {
    let made = Scene::new().and_then(|scene| {
        let proxy = scene.world.start(kind, credentials)?;
        Ok((scene, proxy))
    });
    made.map_err(|why| skip(test, why)).ok()
}

/// Both ends reach the gateway through the proxy, by its name, which only the proxy can look up.
fn a_session_goes_through(test: &str, kind: Kind, credentials: Option<(&str, &str)>) {
    let Some((scene, proxy)) = scene(test, kind, credentials) else { return };
    let (url, auth) = (proxy.url(), proxy.auth_file());
    let mut options = vec!["--proxy", &url];
    if credentials.is_some() {
        options.extend(["--proxy-auth-file", &auth]);
    }
    let door = scene.world.device.within(|| Door::new("s"));
    let agent = scene.agent(&[door.service()], &options);
    agent.events.expect(&format!("Connect {TUNNEL}"));
    scene.moves_bytes(&door, &options);
    no_secret(&agent.program.log());
}

#[test]
fn a_session_goes_through_tinyproxy() {
    a_session_goes_through("a session through tinyproxy", Kind::Tinyproxy, None);
}

#[test]
fn a_session_goes_through_tinyproxy_with_a_password() {
    a_session_goes_through("tinyproxy with a password", Kind::Tinyproxy, CREDENTIALS);
}

#[test]
fn a_session_goes_through_squid_with_a_password() {
    a_session_goes_through("squid with a password", Kind::Squid, CREDENTIALS);
}

#[test]
fn a_session_goes_through_microsocks() {
    a_session_goes_through("a session through microsocks", Kind::Microsocks, None);
}

#[test]
fn a_session_goes_through_microsocks_with_a_password() {
    a_session_goes_through("microsocks with a password", Kind::Microsocks, CREDENTIALS);
}

#[test]
fn a_session_goes_through_dante() {
    a_session_goes_through("a session through dante", Kind::Dante, None);
}

/// ssh logs in to the device, whose only way out is the proxy.
fn ssh_logs_in(test: &str, kind: Kind, credentials: Option<(&str, &str)>) {
    let Some((scene, proxy)) = scene(test, kind, credentials) else { return };
    let ssh = match Ssh::new() {
        Ok(ssh) => ssh,
        Err(why) => return skip(test, why),
    };
    let (url, auth) = (proxy.url(), proxy.auth_file());
    let mut options = vec!["--proxy", &url];
    if credentials.is_some() {
        options.extend(["--proxy-auth-file", &auth]);
    }
    let service = scene.world.device.within(|| ssh.service("_SSH"));
    let agent = scene.agent(&[service], &options);
    agent.events.expect(&format!("Connect {TUNNEL}"));
    let access = scene.access_arguments("_SSH", &[&options[..], &["--stdio"]].concat());
    let program = program().display().to_string();
    let words = std::iter::once(program).chain(access).map(|word| format!("'{word}'"));
    let way = format!("ProxyCommand {}", words.collect::<Vec<_>>().join(" "));
    let config = ssh.client_config(&way);
    let sent = content(0, 200_000);
    let file = scene.folder.write("input", &sent);
    let output = scene.world.device.within(|| {
        Command::new("ssh")
            .args(["-F", &config, "device", "cat"])
            .env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN)
            .stdin(std::fs::File::open(file).unwrap())
            .output()
            .unwrap()
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == sent, "{}: {said}", output.status);
    no_secret(&said);
    no_secret(&agent.program.log());
}

#[test]
fn ssh_logs_in_through_an_http_proxy() {
    ssh_logs_in("ssh through tinyproxy", Kind::Tinyproxy, None);
}

#[test]
fn ssh_logs_in_through_an_http_proxy_with_a_password() {
    ssh_logs_in("ssh through tinyproxy with a password", Kind::Tinyproxy, CREDENTIALS);
}

#[test]
fn ssh_logs_in_through_a_socks5_proxy_with_a_password() {
    ssh_logs_in("ssh through microsocks", Kind::Microsocks, CREDENTIALS);
}

/// One line an attempt, and further attempts.
fn a_wrong_password_is_said(test: &str, kind: Kind, file: Option<&str>, expected: &str) {
    let Some((scene, proxy)) = scene(test, kind, CREDENTIALS) else { return };
    let url = proxy.url();
    let auth = file.map(|line| {
        logs::note_secret(b"hush-wrong");
        scene.folder.write_secret("wrong", line)
    });
    let mut options = vec!["--proxy", &url];
    if let Some(auth) = &auth {
        options.extend(["--proxy-auth-file", auth]);
    }
    let agent = scene.agent(&[], &options);
    let count = |log: &str, text: &str| log.matches(text).count();
    wait::until("three attempts", || count(&agent.program.log(), "trying again in") >= 3);
    let log = agent.program.log();
    let reasons: Vec<&str> = log.lines().filter(|line| line.contains(expected)).collect();
    let attempts = count(&log, "trying again in");
    assert!((attempts..=attempts + 1).contains(&reasons.len()), "{attempts} attempts: {log}");
    assert!(reasons.iter().all(|line| line.contains(&url)), "{reasons:?}");
    assert_eq!(count(&log, " WARN "), reasons.len(), "{log}");
    assert!(agent.events.so_far().is_empty());
    no_secret(&log);
    no_secret(&scene.access("s", &[&["--stdio"], &options[..]].concat()).fails());
}

#[test]
fn a_wrong_password_for_an_http_proxy_is_said_in_one_line_and_tried_again() {
    let test = "a wrong password for tinyproxy";
    let wrong = format!("{USER}:hush-wrong\n");
    let expected = "refuses the user name or the password";
    a_wrong_password_is_said(test, Kind::Tinyproxy, Some(&wrong), expected);
}

#[test]
fn a_wrong_password_for_a_socks5_proxy_is_said_in_one_line_and_tried_again() {
    let test = "a wrong password for microsocks";
    let wrong = format!("{USER}:hush-wrong\n");
    let expected = "refuses the user name or the password";
    a_wrong_password_is_said(test, Kind::Microsocks, Some(&wrong), expected);
}

#[test]
fn a_password_that_is_missing_is_said_in_one_line_and_tried_again() {
    let test = "no password for tinyproxy";
    let expected = "asks for a user name and a password";
    a_wrong_password_is_said(test, Kind::Tinyproxy, None, expected);
}

#[test]
fn the_environment_names_the_proxy_unless_an_option_or_no_proxy_says_otherwise() {
    let test = "a proxy of the environment";
    let Some((scene, proxy)) = scene(test, Kind::Tinyproxy, CREDENTIALS) else { return };
    let address = proxy.url().replace("http://", "");
    let url = format!("http://{USER}:{PASSWORD}@{address}");
    let command = |no_proxy: &str| {
        let mut command = Command::new(program());
        command.env("HTTPS_PROXY", &url).env("NO_PROXY", no_proxy);
        command
    };
    let agent = scene.agent_as(command("other.test"), &[], &[]);
    agent.events.expect(&format!("Connect {TUNNEL}"));
    no_secret(&agent.program.log());
    drop(agent);
    for (no_proxy, more) in [("*.test", &[][..]), ("", &["--proxy", "none"])] {
        let agent = scene.agent_as(command(no_proxy), &[], more);
        // Without the proxy, nobody knows the name.
        agent.program.expect_log("the name is unknown");
        assert!(!agent.program.log().contains("the proxy"), "{}", agent.program.log());
    }
}

#[test]
fn the_way_to_the_proxy_keeps_to_the_address_the_interface_and_the_family() {
    let Some((scene, proxy)) = scene("a bound way to the proxy", Kind::Tinyproxy, None) else {
        return;
    };
    let url = proxy.url();
    for way in [["--bind", "10.78.1.2"], ["--bind", "wan"], ["--family", "ipv4"]] {
        let agent = scene.agent(&[], &[&["--proxy", &url], &way[..]].concat());
        agent.events.expect(&format!("Connect {TUNNEL}"));
    }
    // An interface that leads nowhere, although the routing table knows the way.
    scene.world.device.ip("link add idle type veth peer name other");
    for (way, expected) in [
        (["--bind", "idle"], "there is no way to it"),
        (["--bind", "wwan7"], "use the interface wwan7: No such device"),
        (["--bind", "10.78.1.9"], "use the local address 10.78.1.9: Cannot assign"),
        (["--family", "ipv6"], "no address that may be used"),
    ] {
        let agent = scene.agent(&[], &[&["--proxy", &url], &way[..]].concat());
        agent.program.expect_log(expected);
        assert!(agent.events.so_far().is_empty());
    }
}

#[test]
fn a_proxy_that_cannot_reach_the_gateway_is_named_with_what_to_do() {
    for (kind, expected) in [
        (Kind::Tinyproxy, "cannot connect to nowhere.test:8443"),
        (Kind::Microsocks, "cannot connect to nowhere.test:8443"),
    ] {
        let Some((scene, proxy)) = scene("a gateway that is away", kind, None) else { return };
        let url = proxy.url();
        let url_of_gateway = format!("wss://nowhere.test:{GATEWAY_PORT}");
        let arguments = ["access", "--url", &url_of_gateway, "--tunnel", "t", "--stdio"];
        let arguments = [&arguments[..], &["--proxy", &url]].concat();
        let log = scene.world.device.within(|| Program::start(&arguments)).fails();
        assert!(log.contains(expected) && log.contains(&url), "{log}");
    }
}
