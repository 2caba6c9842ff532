//! A throwaway MQTT broker: mosquitto with TLS, with its clients as the platform. What the messages
//! mean is the tests' affair.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::certificates::Authority;
use crate::folder::Folder;
use crate::process::{Lines, Process};
use crate::wait;

/// Where systems keep it; the first of these directories is not in every user's PATH.
const MOSQUITTO: [&str; 3] =
    ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];
/// The user who plays the platform and may read and write everything.
pub const PLATFORM: &str = "platform";
/// Its password.
pub const PLATFORM_PASSWORD: &str = "hush-platform";
/// How often to try another port if somebody takes the free one first.
const TRIES: usize = 5;

/// A broker on this machine, by its settings. It can be stopped and started again.
pub struct Mosquitto {
    folder: Folder,
    authority: Authority,
    port: u16,
    /// Further lines of its configuration.
    more: String,
    process: Option<Process>,
}

impl Mosquitto {
    /// A broker that lets in only users with a password. `topics`: what `user` may read and write.
    ///
    /// # Errors
    /// A program is missing.
    pub fn new(user: &str, password: &str, topics: &str) -> Result<Self, String> {
        Mosquitto::with(user, password, topics, "")
    }

    /// The same with further lines of configuration.
    ///
    /// # Errors
    /// A program is missing.
    pub fn with(user: &str, password: &str, topics: &str, more: &str) -> Result<Self, String> {
        program().ok_or("there is no mosquitto")?;
        let version = Command::new("mosquitto_pub").arg("--help").output();
        version.map_err(|_| "there is no mosquitto_pub")?;
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = authority.identity("localhost");
        folder.write("ca.pem", authority.pem());
        folder.write("server.pem", &identity.certificate);
        folder.write("server.key", &identity.key);
        let acl = format!(
            "user {PLATFORM}\ntopic readwrite #\n\nuser {user}\ntopic readwrite {topics}\n"
        );
        folder.write("acl", acl);
        folder.write("passwords", "");
        let mut broker =
            Mosquitto { folder, authority, port: 0, more: more.to_owned(), process: None };
        broker.set_password(PLATFORM, PLATFORM_PASSWORD);
        broker.set_password(user, password);
        for _ in 0..TRIES {
            broker.port = free_port();
            if broker.try_start() {
                return Ok(broker);
            }
        }
        panic!("mosquitto does not start");
    }

    /// Gives a user another password. The broker learns of it when it starts.
    pub fn set_password(&self, user: &str, password: &str) {
        let mut command = Command::new("mosquitto_passwd");
        command.arg("-b").arg(self.folder.file("passwords")).args([user, password]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Starts the broker again after [`stop`](Self::stop), at the same address.
    pub fn start(&mut self) {
        assert!(self.try_start(), "mosquitto does not start again");
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate();
            process.wait();
        }
    }

    fn try_start(&mut self) -> bool {
        let path = self.folder.path().display();
        let config = format!(
            "listener {port} 127.0.0.1\ncafile {path}/ca.pem\ncertfile {path}/server.pem\n\
             keyfile {path}/server.key\nallow_anonymous false\npassword_file {path}/passwords\n\
             acl_file {path}/acl\npersistence true\npersistence_location {path}/\n\
             log_dest file {path}/log\nlog_type all\n{user}{more}\n",
            port = self.port,
            // Root's mosquitto would become another user, who may not read the files.
            user = if rustix::process::getuid().is_root() { "user root\n" } else { "" },
            more = self.more,
        );
        let config = self.folder.write("mosquitto.conf", config);
        let mut command = Command::new(program().unwrap());
        command.args(["-c", &config]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        let mut is_ready = false;
        wait::until("mosquitto listens or ends", || {
            is_ready = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
            is_ready || process.has_ended()
        });
        let is_ready = is_ready && !process.has_ended();
        self.process = is_ready.then_some(process);
        is_ready
    }

    /// The port. The certificate is for `localhost`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its address with TLS.
    pub fn url(&self) -> String {
        format!("mqtts://localhost:{}", self.port)
    }

    /// The CA that has certified it.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The file with the CA's certificate.
    pub fn ca_file(&self) -> String {
        self.folder.file("ca.pem").into_os_string().into_string().unwrap()
    }

    /// What the broker has logged.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.folder.file("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// A folder for more files.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Publishes a message as the platform, and waits until the broker has it.
    pub fn publish(&self, topic: &str, payload: impl AsRef<[u8]>) {
        self.publish_with(topic, payload, &["-q", "1"]);
    }

    /// The same with other options of `mosquitto_pub`.
    pub fn publish_with(&self, topic: &str, payload: impl AsRef<[u8]>, options: &[&str]) {
        let mut command = self.client("mosquitto_pub", topic);
        // An empty message has an option of its own.
        command.arg(if payload.as_ref().is_empty() { "-n" } else { "-s" });
        command.args(options).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        process.write(payload.as_ref());
        drop(process.take_stdin());
        let status = process.wait();
        assert!(status.success(), "mosquitto_pub: {status}");
    }

    /// Receives what is published on a topic, one message a line, as the platform.
    pub fn subscribe(&self, topic: &str) -> Subscriber {
        let mut command = self.client("mosquitto_sub", topic);
        command.args(["-q", "1", "-d"]).stdout(Stdio::piped()).stderr(Stdio::null());
        // With a pipe as its output, it would keep the lines.
        let mut process = Process::start(
            Command::new("stdbuf")
                .arg("-oL")
                .args(argv(&command))
                .stdout(Stdio::piped())
                .stderr(Stdio::null()),
        );
        let lines = process.lines();
        lines.expect("Subscribed");
        Subscriber { _process: process, lines }
    }

    fn client(&self, program: &str, topic: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-h", "localhost", "-p", &self.port.to_string(), "-t", topic]);
        command.args(["-u", PLATFORM, "-P", PLATFORM_PASSWORD, "--cafile", &self.ca_file()]);
        command
    }
}

/// Messages that arrive on a topic.
pub struct Subscriber {
    _process: Process,
    lines: Lines,
}

impl Subscriber {
    /// The next message that contains a text; panics if none comes in time.
    pub fn expect(&self, text: &str) -> String {
        self.lines.expect(text)
    }

    /// The messages that are there and were not taken yet.
    pub fn so_far(&self) -> Vec<String> {
        self.lines.so_far().into_iter().filter(|line| line.starts_with('{')).collect()
    }
}

fn argv(command: &Command) -> Vec<std::ffi::OsString> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(std::ffi::OsStr::to_owned).collect()
}

/// The program mosquitto, if it is installed.
fn program() -> Option<PathBuf> {
    MOSQUITTO.iter().map(PathBuf::from).find(|path| path.exists())
}

/// A port that was free a moment ago: mosquitto cannot say which port it has picked.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
