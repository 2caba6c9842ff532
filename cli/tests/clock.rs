//! A clock that says 1970, as on a device that has just started. libfaketime makes it, loaded into the
//! program: the command `faketime` would stay between, and a test could not end what it has started.
//! Without that library, these tests say so and pass.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use aiot_tunnel_testkit::certificates::{Authority, Identity};
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::{Agent, Program, TUNNEL};
use aiot_tunnel_testkit::process::program;
use aiot_tunnel_testkit::skip;

/// As libfaketime takes it: from then on, the clock runs.
const EARLY: &str = "@1970-01-02 00:00:00";
/// Where libfaketime keeps what the processes of one clock share.
const SHARED: &str = "/dev/shm";

/// The library, on every architecture of Debian.
fn libfaketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    let mut paths = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    paths.find(|path| path.exists())
}

/// Removes what libfaketime leaves behind in a process that is killed.
struct Traces(u32);

impl Drop for Traces {
    fn drop(&mut self) {
        for name in ["faketime_shm_", "sem.faketime_sem_"] {
            let _ = fs::remove_file(format!("{SHARED}/{name}{}", self.0));
        }
    }
}

/// A gateway with this certificate.
struct Scene {
    _gateway: Program,
    folder: Folder,
    port: u16,
}

impl Scene {
    fn new(identity: &Identity) -> Self {
        let folder = Folder::new();
        let certificate = folder.write("server.pem", &identity.certificate);
        let key = folder.write_secret("key", &identity.key);
        let mut gateway = Program::start(&[
            "gateway",
            "--listen",
            "127.0.0.1:0",
            "--tunnel",
            TUNNEL,
            "--cert",
            &certificate,
            "--key",
            &key,
        ]);
        let port = gateway.address().port();
        Scene { _gateway: gateway, folder, port }
    }

    fn ca(&self, ca: &Authority) -> String {
        self.folder.write("ca.pem", ca.pem())
    }

    /// What an operator's program says that cannot connect. One that can would not end.
    fn refusal(&self, ca: &Authority, clock: &str) -> String {
        let url = format!("wss://127.0.0.1:{}", self.port);
        let mut command = at_1970();
        command.args(["access", "--url", &url, "--tunnel", TUNNEL, "--stdio"]);
        command.args(["--clock", clock, "--ca", &self.ca(ca)]);
        Program::start_command(&mut command).fails()
    }

    /// An agent that is told to open the tunnel.
    fn agent(&self, command: Command, ca: &Authority, clock: &str) -> Agent {
        let agent = Agent::start_as(command, Some(&self.ca(ca)), &[], &["--clock", clock]);
        agent.send_to("add", Some(("127.0.0.1", self.port)));
        agent
    }
}

/// The program, with a clock that begins in 1970.
fn at_1970() -> Command {
    let mut command = Command::new(program());
    command.env("LD_PRELOAD", libfaketime().unwrap()).env("FAKETIME", EARLY).env("TZ", "UTC");
    // Waits last as long as ever.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
    command
}

fn can_run(test: &str) -> bool {
    let is_there = libfaketime().is_some();
    if !is_there {
        skip(test, "there is no libfaketime");
    }
    is_there
}

#[test]
fn a_clock_before_the_build_is_named_as_the_reason() {
    if !can_run("a clock before the build") {
        return;
    }
    let ca = Authority::new();
    let scene = Scene::new(&ca.identity("127.0.0.1"));
    let log = scene.refusal(&ca, "strict");
    for part in ["this machine's clock is wrong", "Jan  2 00:00:0", " 1970 GMT", "was built on"] {
        assert!(log.contains(part), "{log}");
    }
    let agent = scene.agent(at_1970(), &ca, "strict");
    let _traces = Traces(agent.program.process.id());
    agent.program.expect_log("this machine's clock is wrong");
    assert!(agent.events.so_far().is_empty());
}

#[test]
fn a_tolerant_program_connects_and_says_why_each_time() {
    if !can_run("a tolerant program") {
        return;
    }
    let ca = Authority::new();
    let scene = Scene::new(&ca.identity("127.0.0.1"));
    let agent = scene.agent(at_1970(), &ca, "tolerant");
    let _traces = Traces(agent.program.process.id());
    agent.events.expect(&format!("Connect {TUNNEL}"));
    let warning = "the certificate of 127.0.0.1 is accepted even if it is not valid yet";
    assert_eq!(agent.program.log().matches(warning).count(), 1, "{}", agent.program.log());
    agent.send_to("update", Some(("127.0.0.1", scene.port)));
    agent.events.expect(&format!("Connect {TUNNEL}"));
    assert_eq!(agent.program.log().matches(warning).count(), 2, "{}", agent.program.log());
    // With the system's roots, here those of a file that OpenSSL is told of.
    let url = format!("wss://127.0.0.1:{}", scene.port);
    let mut command = at_1970();
    command.args(["access", "--url", &url, "--tunnel", TUNNEL, "--listen", "127.0.0.1:0"]);
    command.args(["--clock", "tolerant"]).env("SSL_CERT_FILE", scene.ca(&ca));
    let access = Program::start_command(&mut command);
    let _traces_of_access = Traces(access.process.id());
    access.expect_log("connected to the tunnel");
    assert!(access.log().contains(warning), "{}", access.log());
}

#[test]
fn a_tolerant_program_accepts_nothing_else() {
    if !can_run("what a tolerant program refuses") {
        return;
    }
    let (ca, foreign) = (Authority::new(), Authority::new().intermediate());
    let name = "127.0.0.1";
    for (identity, trusted, expected) in [
        (ca.long_expired_identity(name), &ca, "certificate has expired"),
        (ca.identity(name), &foreign, "a CA that is not trusted"),
        (ca.identity("127.0.0.9"), &ca, "another name"),
    ] {
        let scene = Scene::new(&identity);
        for clock in ["tolerant", "strict"] {
            let log = scene.refusal(trusted, clock);
            // At 1970, a strict program may find a certificate too new before it looks at the rest.
            let too_new = clock == "strict" && log.contains("this machine's clock is wrong");
            assert!(log.contains(expected) || too_new, "{clock}: {log}");
        }
        let agent = scene.agent(at_1970(), trusted, "tolerant");
        let _traces = Traces(agent.program.process.id());
        agent.program.expect_log(expected);
        assert!(agent.events.so_far().is_empty());
    }
}

#[test]
fn while_the_clock_may_be_right_a_tolerant_program_is_strict() {
    let ca = Authority::new();
    let scene = Scene::new(&ca.future_identity("127.0.0.1"));
    let agent = scene.agent(Command::new(program()), &ca, "tolerant");
    agent.program.expect_log("its certificate is not valid yet; set this machine's clock");
    assert!(agent.events.so_far().is_empty());
    let scene = Scene::new(&ca.expired_identity("127.0.0.1"));
    let agent = scene.agent(Command::new(program()), &ca, "tolerant");
    agent.program.expect_log("its certificate has expired");
    assert!(agent.events.so_far().is_empty());
}
