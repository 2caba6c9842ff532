//! The terminal in the browser, with a real ssh, a real sshd, and a device of the library. The test is the
//! browser: it speaks the language of the terminal's WebSocket.

use std::fs;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::gateway::{AuditEvent, Gateway, Way};
use aiot_tunnel::{ConnectParams, EventKind, Service, Token};
use aiot_tunnel_console::terminal::{LoginName, Request, Terminals};
use aiot_tunnel_registry::{ListedTunnel, Options, Registry};
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::gateways::tunnel;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::process::{in_a_child, is_scene, program, test_again, Process};
use aiot_tunnel_testkit::ssh::{Ssh, LOGIN, PASSWORD};
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{logs, random, services, skip, DEVICE_TOKEN};
use tokio::sync::watch;
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

const CLIENT: &str = "192.0.2.7:40912";
/// Most output that may come before it is said to be taken.
const WINDOW: usize = 256 * 1024;
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";

/// A gateway with its terminals and the tunnel `t1`.
struct Place {
    registry: Arc<Registry>,
    terminals: Terminals,
    /// Of each session that is over: client, way, why.
    ended: Arc<Mutex<Vec<(String, Way, String)>>>,
    folder: Folder,
}

impl Place {
    fn new() -> Self {
        logs::keep();
        let ended = Arc::new(Mutex::new(Vec::new()));
        let kept = ended.clone();
        let builder = Gateway::builder().audit(move |event| {
            if let AuditEvent::SessionEnded { client, way, why, .. } = event {
                let (client, why) = ((*client).to_owned(), (*why).to_owned());
                kept.lock().unwrap().push((client, *way, why));
            }
        });
        let options = Options {
            store: None,
            store_grace: Duration::ZERO,
            list: vec![ListedTunnel { config: tunnel("t1"), expire: None }],
            public_url: None,
            is_secure: false,
            platform: None,
            observer: None,
        };
        let registry = Registry::start(builder, "127.0.0.1:0".parse().unwrap(), options).unwrap();
        let folder = Folder::new();
        // A name that would mean something to ssh or to a shell.
        let directory = folder.file("keys of ${HOME} \"100%\" $(id)'");
        let terminals = Terminals::new(registry.clone(), program(), directory).unwrap();
        Place { registry, terminals, ended, folder }
    }

    /// A device with these services, connected to the tunnel.
    fn device(&self, service: Service) -> Running {
        let device = Running::start(plain().service(service));
        let address = self.registry.gateway().local_addr();
        let (host, port) = (address.ip().to_string(), address.port().try_into().unwrap());
        let token = Token::new(DEVICE_TOKEN).unwrap();
        let params = ConnectParams::new(&host, port, "/tunnel/t1/dest", token).unwrap();
        device.handle.add(&id("t1"), params).unwrap();
        device.expect(EventKind::Connect, "t1");
        device
    }

    fn open(&self) -> Browser {
        Browser::open(&self.terminals, "t1")
    }

    /// A browser that has logged in.
    fn log_in(&self) -> Browser {
        let mut browser = self.open();
        browser.expect("Are you sure you want to continue connecting");
        browser.keys("yes\n");
        browser.expect("password:");
        browser.keys(&format!("{PASSWORD}\n"));
        browser.expect("$ ");
        browser
    }

    fn host_keys(&self) -> PathBuf {
        fs::read_dir(self.folder.path()).unwrap().next().unwrap().unwrap().path()
    }

    fn sessions(&self) -> usize {
        self.registry.gateway().activity(&id("t1")).unwrap().sessions
    }

    /// The processes of its terminals.
    fn processes(&self) -> Vec<String> {
        processes(&self.host_keys())
    }

    fn expect_no_process(&self) {
        wait::until("the end of ssh", || self.processes().is_empty());
        wait::until("nobody waits for ssh's status", || zombies() == 0);
    }
}

/// A service that answers nothing, until the other end closes.
fn silent() -> Service {
    services::service("_SSH", |stream| {
        let _ = std::io::copy(&mut &stream, &mut std::io::sink());
    })
}

/// The names of the processes whose working directory this is.
fn processes(directory: &Path) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let here = all.filter(|process| {
        fs::read_link(process.join("cwd")).is_ok_and(|working| working == directory)
    });
    here.filter_map(|process| fs::read_to_string(process.join("comm")).ok()).collect()
}

/// How many of this process's ssh have ended and were not waited for.
fn zombies() -> usize {
    let own = format!(" (ssh) Z {} ", std::process::id());
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| stat.contains(&own))
        .count()
}

/// What a browser says of its end of the terminal, and how it sees it.
struct Browser {
    socket: WebSocket<UnixStream>,
    /// What the terminal has written since the last text that was expected.
    output: Vec<u8>,
    /// Bytes of output in all.
    total: usize,
    /// Whether the output is said to be taken.
    takes: bool,
    login: watch::Sender<bool>,
    used: Arc<AtomicUsize>,
    server: Option<JoinHandle<()>>,
}

/// How a terminal ends: the sentence, and the code of the close frame.
#[derive(Debug, PartialEq)]
struct End(Option<String>, Option<u16>);

impl Browser {
    fn open(terminals: &Terminals, tunnel: &str) -> Self {
        let (own, other) = UnixStream::pair().unwrap();
        own.set_read_timeout(Some(TIMEOUT)).unwrap();
        own.set_write_timeout(Some(TIMEOUT)).unwrap();
        other.set_nonblocking(true).unwrap();
        let (login, ended) = watch::channel(false);
        let used = Arc::<AtomicUsize>::default();
        let count = used.clone();
        let request = Request {
            tunnel: id(tunnel),
            login: LoginName::new(LOGIN).unwrap(),
            client: CLIENT.to_owned(),
        };
        let terminals = terminals.clone();
        // As small as that of the gateway's HTTP server.
        let builder = thread::Builder::new().stack_size(512 * 1024);
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let stream = tokio::net::UnixStream::from_std(other).unwrap();
                let used = || {
                    count.fetch_add(1, Ordering::Relaxed);
                };
                terminals.run(stream, request, ended, used).await;
            });
        };
        let server = builder.spawn(serve).unwrap();
        Browser {
            socket: WebSocket::from_raw_socket(own, Role::Client, None),
            output: Vec::new(),
            total: 0,
            takes: true,
            login,
            used,
            server: Some(server),
        }
    }

    fn keys(&mut self, text: &str) {
        self.socket.send(Message::binary(text.as_bytes().to_vec())).unwrap();
    }

    fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    /// Sends a command, and waits for a text of its output.
    fn run(&mut self, command: &str, expected: &str) {
        self.keys(&format!("{command}\n"));
        self.expect(expected);
    }

    /// Reads a message. The error is the end.
    fn read(&mut self) -> Result<(), End> {
        let mut why = None;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            // A ping comes more often.
            assert!(Instant::now() < deadline, "nothing comes in time behind {:?}", self.text());
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    self.total += bytes.len();
                    self.output.extend(&bytes);
                    if self.takes {
                        // It may have ended meanwhile.
                        let _ = self.socket.send(taken(bytes.len()));
                    }
                    return Ok(());
                }
                Ok(Message::Text(text)) => {
                    let text: serde_json::Value = serde_json::from_str(&text).unwrap();
                    why = Some(text["end"].as_str().unwrap().to_owned());
                }
                Ok(Message::Close(frame)) => {
                    return Err(End(why, frame.map(|frame| frame.code.into())));
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(e)) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Err(End(why, None)),
            }
        }
    }

    fn text(&self) -> String {
        let from = self.output.len().saturating_sub(2000);
        String::from_utf8_lossy(&self.output[from..]).into_owned()
    }

    /// Waits for a text of the terminal's output; what comes behind it is kept.
    fn expect(&mut self, text: &str) {
        loop {
            let found = self.output.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                self.output.drain(..at + text.len());
                return;
            }
            if let Err(end) = self.read() {
                panic!("{end:?} instead of {text:?}; behind {:?}", self.text());
            }
        }
    }

    /// No output is there.
    fn expect_nothing(&mut self) {
        self.socket.get_ref().set_nonblocking(true).unwrap();
        let next = loop {
            match self.socket.read() {
                Ok(Message::Ping(_)) => {}
                next => break next,
            }
        };
        let is_blocked = matches!(&next,
            Err(tungstenite::Error::Io(e)) if e.kind() == ErrorKind::WouldBlock);
        assert!(is_blocked, "{next:?}");
        self.socket.get_ref().set_nonblocking(false).unwrap();
    }

    /// Reads to the end.
    fn end(&mut self) -> End {
        let end = loop {
            if let Err(end) = self.read() {
                break end;
            }
        };
        // The answer to the close frame.
        let _ = self.socket.flush();
        self.server.take().unwrap().join().unwrap();
        end
    }

    /// The sentence of an orderly end.
    fn why(&mut self) -> String {
        let End(why, code) = self.end();
        assert_eq!(code, Some(1000), "{why:?}");
        why.unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.socket.get_ref().shutdown(Shutdown::Both);
        let server = self.server.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(server.is_none_or(|ended| ended.is_ok()));
        }
    }
}

fn taken(bytes: usize) -> Message {
    Message::text(format!("{{\"taken\":{bytes}}}"))
}

/// An sshd, or a note that this machine cannot have one.
fn sshd(test: &str) -> Option<Ssh> {
    Ssh::with_password().map_err(|why| skip(test, why)).ok()
}

#[test]
fn a_user_logs_in_types_resizes_and_leaves() {
    let Some(ssh) = sshd("a_user_logs_in_types_resizes_and_leaves") else { return };
    let place = Place::new();
    let _device = place.device(ssh.service("_SSH"));
    let mut browser = place.open();
    browser.say("{\"size\":[100,30]}");
    browser.expect("Are you sure you want to continue connecting");
    assert!(!place.terminals.knows_host_key(&id("t1")));
    browser.keys("yes\n");
    browser.expect("password:");
    browser.keys("wrong\n");
    browser.expect("Permission denied");
    browser.expect("password:");
    assert_eq!(place.processes(), ["ssh\n"], "the proxy command has ended");
    browser.keys(&format!("{PASSWORD}\n"));
    browser.expect("$ ");
    assert!(place.terminals.knows_host_key(&id("t1")));
    browser.run("echo $((6*7)) $(whoami)", &format!("42 {LOGIN}"));
    browser.run("stty size", "30 100");
    browser.say("{\"size\":[132,43]}");
    // The new size takes its way through ssh.
    let sized = |size: &str| {
        format!("until stty size | grep -q '^{size}$'; do sleep 0.05; done; echo is''{size}")
    };
    browser.run(&sized("43 132"), "is43 132");
    browser.say("{\"size\":[0,99999]}");
    browser.run(&sized("1000 1"), "is1000 1");
    browser.say("{\"size\":[80,24]}");
    browser.run("echo \"<$TERM>\"", "<xterm-256color>");
    browser.run("echo in=$(env | grep -c AIOT_TUNNEL)", "in=0");
    // There is no escape character.
    browser.run("\n~.\necho st''ill", "still");
    browser.run("\n~C\n~^Z\necho a''gain", "again");
    // What is typed does not tell whether the user is there: a terminal answers questions by itself.
    assert_eq!(browser.used.load(Ordering::Relaxed), 0);
    browser.say("{\"used\":true}");
    wait::until("the sign of the user", || browser.used.load(Ordering::Relaxed) == 1);
    browser.keys("exit\n");
    assert_eq!(browser.why(), "ssh ended");
    place.expect_no_process();
    wait::until("the audit's line", || !place.ended.lock().unwrap().is_empty());
    let (client, way, _) = place.ended.lock().unwrap().remove(0);
    assert_eq!((&*client, way), (CLIENT, Way::Terminal));

    // Now the host key is known. Nobody but the gateway's user reads it.
    let file = place.host_keys().join("t1");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let mut browser = place.open();
    browser.expect("password:");
    assert!(!browser.text().contains("continue connecting"));
    browser.keys(&format!("{PASSWORD}\n"));
    browser.expect("$ ");
    browser.keys("exit 7\n");
    assert_eq!(browser.why(), "ssh ended with status 7");
}

#[test]
fn another_host_key_is_refused_until_the_old_one_is_forgotten() {
    let Some(ssh) = sshd("another_host_key_is_refused") else { return };
    let place = Place::new();
    let _device = place.device(ssh.service("_SSH"));
    let mut browser = place.open();
    browser.expect("continue connecting");
    browser.keys("yes\n");
    browser.expect("password:");
    drop(browser);
    ssh.change_host_key();
    let mut browser = place.open();
    browser.expect("REMOTE HOST IDENTIFICATION HAS CHANGED");
    assert_eq!(browser.why(), "ssh ended with status 255");
    assert!(place.terminals.forget_host_key(&id("t1")).unwrap());
    let mut browser = place.open();
    browser.expect("continue connecting");
    browser.keys("no\n");
    browser.expect("Host key verification failed");
    assert_eq!(browser.why(), "ssh ended with status 255");
    assert!(!place.terminals.knows_host_key(&id("t1")));
}

#[test]
fn a_paste_of_a_megabyte_arrives_whole_although_all_of_it_is_echoed() {
    let Some(ssh) = sshd("a_paste_of_a_megabyte_arrives_whole") else { return };
    let place = Place::new();
    let _device = place.device(ssh.service("_SSH"));
    let mut browser = place.log_in();
    let mut paste = String::new();
    for line in random::bytes(1, 1024 * 1024 / 2).chunks(35) {
        paste.extend(line.iter().map(|byte| format!("{byte:02x}")));
        paste.push('\n');
    }
    browser.keys("cat >paste; echo bytes=$(wc -c <paste)\n");
    browser.expect("wc -c <paste");
    // In one message.
    browser.keys(&paste);
    browser.keys(CTRL_D);
    // The terminal may write it in the middle of the echo.
    browser.expect(&format!("bytes={}", paste.len()));
    assert!(fs::read_to_string(ssh.home().join("paste")).unwrap() == paste);
}

#[test]
fn an_endless_output_waits_for_the_browser_and_not_for_ctrl_c() {
    let Some(ssh) = sshd("an_endless_output_waits_for_the_browser") else { return };
    let place = Place::new();
    let _device = place.device(ssh.service("_SSH"));
    let mut browser = place.log_in();
    browser.takes = false;
    // What came up to now was taken.
    let before = browser.total;
    let is_running = || processes(&ssh.home()).iter().any(|name| name == "yes\n");
    browser.keys("yes\n");
    while browser.total - before < WINDOW {
        browser.read().unwrap();
    }
    assert_eq!(browser.total - before, WINDOW);
    assert!(is_running());
    browser.keys(CTRL_C);
    wait::until("the end of yes", || !is_running());
    browser.expect_nothing();
    browser.takes = true;
    browser.socket.send(taken(WINDOW)).unwrap();
    browser.run("echo en''ough", "enough");
}

#[test]
fn whatever_ends_the_terminal_ends_ssh() {
    let Some(ssh) = sshd("whatever_ends_the_terminal_ends_ssh") else { return };
    let place = Place::new();
    let mut device = place.device(ssh.service("_SSH"));

    // The user's login ends.
    let mut browser = place.log_in();
    browser.login.send_replace(true);
    assert_eq!(browser.why(), "your login has ended");
    place.expect_no_process();

    // The browser goes, in order or not.
    let again = || {
        let mut browser = place.open();
        browser.expect("password:");
        browser.keys(&format!("{PASSWORD}\n"));
        browser.expect("$ ");
        browser
    };
    let mut browser = again();
    browser.socket.close(None).unwrap();
    assert_eq!(browser.end().0, None);
    place.expect_no_process();
    let browser = again();
    browser.socket.get_ref().shutdown(Shutdown::Both).unwrap();
    place.expect_no_process();

    // The browser says what nobody understands.
    for (wrong, code) in [
        (Message::text("{\"size\":[80]}"), 1002),
        (Message::text("hello"), 1002),
        (Message::text(" ".repeat(1000)), 1002),
        (taken(1 << 40), 1002),
        (Message::binary(vec![b'x'; 2 * 1024 * 1024 + 1]), 1009),
    ] {
        let mut browser = place.open();
        browser.expect("password:");
        // It may be refused before all of it is sent.
        let _ = browser.socket.send(wrong);
        let End(why, told) = browser.end();
        assert_eq!(told, Some(code), "{why:?}");
        place.expect_no_process();
    }

    // The device goes.
    let mut browser = again();
    device.stop();
    assert_eq!(browser.why(), "ssh ended with status 255");
    place.expect_no_process();
    wait::until("no device", || {
        place.registry.gateway().activity(&id("t1")).unwrap().device.is_none()
    });
    let _device = place.device(ssh.service("_SSH"));

    // The tunnel is removed.
    let mut browser = again();
    place.registry.gateway().remove_tunnel(&id("t1")).unwrap();
    let why = browser.why();
    assert!(why.starts_with("the session has ended: "), "{why}");
    place.expect_no_process();
}

#[test]
fn a_terminal_that_cannot_be_says_why() {
    let place = Place::new();
    let why = |tunnel: &str| Browser::open(&place.terminals, tunnel).why();
    assert_eq!(why("t1"), "the device is not connected");
    assert_eq!(why("t2"), "there is no tunnel t2");
    assert_eq!(place.processes(), [""; 0]);

    let mut device = place.device(silent());
    let terminals = place.terminals.clone().with_limit(1);
    let one = Browser::open(&terminals, "t1");
    wait::until("a session", || place.sessions() == 1);
    let why = Browser::open(&terminals, "t1").why();
    assert_eq!(why, "the gateway has as many terminals open as it may have: 1");
    drop(one);
    wait::until("a place", || Browser::open(&terminals, "t1").has_started(&place));

    device.stop();
    wait::until("no device", || {
        place.registry.gateway().activity(&id("t1")).unwrap().device.is_none()
    });
    let _device = place.device(services::echo("other"));
    let why = Browser::open(&terminals, "t1").why();
    assert!(why.starts_with("the session has ended: refused by the device"), "{why}");
    place.expect_no_process();
}

impl Browser {
    /// Whether ssh runs for it.
    fn has_started(&mut self, place: &Place) -> bool {
        let is_over = || self.server.as_ref().is_none_or(JoinHandle::is_finished);
        wait::until("ssh or the end", || !place.processes().is_empty() || is_over());
        !is_over()
    }
}

#[test]
fn a_gateway_that_ends_or_is_killed_leaves_no_ssh_behind() {
    const TEST: &str = "a_gateway_that_ends_or_is_killed_leaves_no_ssh_behind";
    let terminal = || {
        let place = Place::new();
        let device = place.device(silent());
        let browser = place.open();
        wait::until("a session", || place.sessions() == 1);
        wait::until("ssh alone", || place.processes() == ["ssh\n"]);
        (place, device, browser)
    };
    if is_scene(TEST) {
        let (place, _device, _browser) = terminal();
        println!("@{}", place.folder.path().display());
        loop {
            thread::park();
        }
    }
    let (place, _device, mut browser) = terminal();
    place.registry.gateway().stop();
    browser.why();
    place.expect_no_process();

    let mut gateway = Process::start(test_again(TEST).stdout(Stdio::piped()));
    let folder = PathBuf::from(gateway.lines_after("@").next_line());
    let directory = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    assert_eq!(processes(&directory), ["ssh\n"]);
    gateway.kill();
    wait::until("the end of ssh", || processes(&directory).is_empty());
    fs::remove_dir_all(folder).unwrap();
}

/// An ssh that ignores SIGHUP is killed.
#[test]
fn an_ssh_that_does_not_end_is_killed() {
    in_a_child("an_ssh_that_does_not_end_is_killed", || {
        let place = Place::new();
        let _device = place.device(services::echo("_SSH"));
        let file = place.folder.file("ssh");
        let directory = place.host_keys();
        fs::write(&file, "#!/bin/sh\ntrap '' HUP\necho rea''dy\nwhile :; do sleep 0.1; done\n")
            .unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        let path = std::env::var("PATH").unwrap();
        std::env::set_var("PATH", format!("{}:{path}", place.folder.path().display()));
        let mut browser = place.open();
        browser.expect("ready");
        browser.login.send_replace(true);
        assert_eq!(browser.why(), "your login has ended");
        wait::until("the end of ssh", || processes(&directory).is_empty());
        wait::until("nobody waits for ssh's status", || zombies() == 0);
        std::env::set_var("PATH", place.folder.path());
        fs::remove_file(&file).unwrap();
        let why = place.open().why();
        assert!(why.contains("has no ssh"), "{why}");
    });
}
