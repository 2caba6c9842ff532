//! A throwaway Redis server with a password, with or without TLS.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::certificates::Authority;
use crate::folder::Folder;
use crate::process::Process;
use crate::{logs, wait};

/// The password of its default user.
pub const PASSWORD: &str = "hush-redis-password";
/// How often to try another port if somebody takes the free one first.
const TRIES: usize = 5;

/// A server on this machine, by its settings. It can be stopped and started again.
pub struct Redis {
    folder: Folder,
    authority: Option<Authority>,
    port: u16,
    process: Option<Process>,
}

impl Redis {
    /// A server without TLS. It writes its data to a file when it is stopped.
    ///
    /// # Errors
    /// The program is missing.
    pub fn new() -> Result<Self, String> {
        Redis::with(None)
    }

    /// A server with TLS alone, whose certificate is for `localhost`.
    ///
    /// # Errors
    /// The program is missing.
    pub fn with_tls() -> Result<Self, String> {
        Redis::with(Some(Authority::new()))
    }

    fn with(authority: Option<Authority>) -> Result<Self, String> {
        logs::note_secret(PASSWORD.as_bytes());
        for program in ["redis-server", "redis-cli"] {
            let version = Command::new(program).arg("--version").output();
            version.map_err(|_| format!("there is no {program}"))?;
        }
        let folder = Folder::new();
        if let Some(authority) = &authority {
            let identity = authority.identity("localhost");
            folder.write("ca.pem", authority.pem());
            folder.write("server.pem", &identity.certificate);
            folder.write("server.key", &identity.key);
        }
        let mut redis = Redis { folder, authority, port: 0, process: None };
        for _ in 0..TRIES {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            redis.port = free.local_addr().unwrap().port();
            drop(free);
            if redis.try_start() {
                return Ok(redis);
            }
        }
        panic!("redis-server does not start");
    }

    /// Starts the server again after [`stop`](Self::stop), at the same address.
    pub fn start(&mut self) {
        assert!(self.try_start(), "redis-server does not start again");
    }

    /// Stops the server in order.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate();
            process.wait();
        }
    }

    /// Keeps the server from answering, or lets it go on.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server runs")
    }

    fn try_start(&mut self) -> bool {
        let (path, port) = (self.folder.path().display(), self.port);
        let ports = match self.authority {
            None => format!("port {port}\nunixsocket {path}/redis.sock\n"),
            Some(_) => format!(
                "port 0\ntls-port {port}\ntls-cert-file {path}/server.pem\ntls-key-file \
                 {path}/server.key\ntls-ca-cert-file {path}/ca.pem\ntls-auth-clients no\n"
            ),
        };
        // With a point in time for a save, the server saves when it ends.
        let config = format!(
            "bind 127.0.0.1\n{ports}requirepass {PASSWORD}\ndir {path}\nlogfile {path}/log\nsave 3600 1\n\
             daemonize no\n"
        );
        let config = self.folder.write_secret("redis.conf", config);
        let mut command = Command::new("redis-server");
        command.arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Process::start(&mut command);
        let mut is_ready = false;
        wait::until("redis-server listens or ends", || {
            is_ready = TcpStream::connect(("127.0.0.1", port)).is_ok();
            is_ready || process.has_ended()
        });
        let is_ready = is_ready && !process.has_ended();
        self.process = is_ready.then_some(process);
        is_ready
    }

    /// The URL, without the password.
    pub fn url(&self) -> String {
        match self.authority {
            None => format!("redis://127.0.0.1:{}", self.port),
            Some(_) => format!("rediss://localhost:{}", self.port),
        }
    }

    /// The URL of its Unix socket.
    pub fn unix_url(&self) -> String {
        format!("unix://{}", self.folder.file("redis.sock").display())
    }

    /// The URL with the password in it.
    pub fn url_with_password(&self) -> String {
        self.url().replace("://", &format!("://:{PASSWORD}@"))
    }

    /// The file with the CA's certificate.
    pub fn ca_file(&self) -> String {
        self.folder.file("ca.pem").into_os_string().into_string().unwrap()
    }

    /// Where it saves its data.
    pub fn dump(&self) -> PathBuf {
        self.folder.file("dump.rdb")
    }

    /// Runs a command with redis-cli, without TLS; what it answers.
    pub fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).env("REDISCLI_AUTH", PASSWORD);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}
