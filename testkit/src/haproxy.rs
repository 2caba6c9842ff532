//! A real proxy in front of a server: haproxy, which connects to the server from an address of its own, so
//! that the server can tell it from its clients.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::certificates::Authority;
use crate::folder::Folder;
use crate::process::Process;
use crate::wait;

/// Where systems keep it; the first of these directories is not in every user's PATH.
const HAPROXY: [&str; 3] = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy", "/usr/bin/haproxy"];
/// How often to try another port if somebody takes the free one first.
const TRIES: usize = 5;

/// How it passes on what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It ends TLS, and tells the client's address in `X-Forwarded-For`.
    Http,
    /// It passes bytes on behind a header of the PROXY protocol, version 1.
    Version1,
    /// The same with version 2, and with what else it knows.
    Version2,
}

/// A running haproxy.
pub struct Haproxy {
    process: Process,
    port: u16,
    /// Its configuration, its certificate, and its CA's in `ca.pem`.
    folder: Folder,
}

impl Haproxy {
    /// The address from which it connects to the server.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

    /// Starts it in front of a server.
    ///
    /// # Errors
    /// It is not installed.
    pub fn start(mode: Mode, server: SocketAddr) -> Result<Self, String> {
        let program = program()?;
        let folder = Folder::new();
        let authority = Authority::new();
        let identity = authority.identity("127.0.0.1");
        folder.write("ca.pem", authority.pem());
        folder.write("both.pem", [identity.certificate, identity.key].concat());
        for _ in 0..TRIES {
            let port = free_port();
            let config = folder.write("haproxy.cfg", config(mode, port, server, &folder));
            let mut command = Command::new(&program);
            command.args(["-db", "-f", &config]).stdout(Stdio::null()).stderr(Stdio::null());
            let mut process = Process::start(&mut command);
            let mut is_ready = false;
            wait::until("haproxy listens or ends", || {
                is_ready = TcpStream::connect(("127.0.0.1", port)).is_ok();
                is_ready || process.has_ended()
            });
            if is_ready && !process.has_ended() {
                return Ok(Haproxy { process, port, folder });
            }
        }
        panic!("haproxy does not start");
    }

    /// Where its clients connect to.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The file with the CA of its certificate.
    pub fn ca_file(&self) -> String {
        self.folder.file("ca.pem").display().to_string()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        !self.process.has_ended()
    }
}

/// The program.
///
/// # Errors
/// It is not installed.
pub fn program() -> Result<PathBuf, String> {
    let program = HAPROXY.iter().map(PathBuf::from).find(|path| path.exists());
    program.ok_or_else(|| "there is no haproxy".to_owned())
}

fn config(mode: Mode, port: u16, server: SocketAddr, folder: &Folder) -> String {
    let (kind, bind, more, send) = match mode {
        Mode::Http => {
            let certificate = folder.file("both.pem").display().to_string();
            let bind = format!("ssl crt {certificate} alpn http/1.1");
            ("http", bind, "option forwardfor", "check")
        }
        Mode::Version1 => ("tcp", String::new(), "", "send-proxy check check-send-proxy"),
        Mode::Version2 => {
            let send = "send-proxy-v2 proxy-v2-options crc32c,unique-id check check-send-proxy";
            ("tcp", String::new(), "unique-id-format %[uuid()]", send)
        }
    };
    let source = Haproxy::ADDRESS;
    format!(
        "global\n  maxconn 200\n\
         defaults\n  mode {kind}\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
         timeout tunnel 60s\n\
         frontend front\n  bind 127.0.0.1:{port} {bind}\n  {more}\n  default_backend back\n\
         backend back\n  source {source}\n  server one {server} {send}\n"
    )
}

/// A port that was free a moment ago: haproxy cannot say which port it has picked.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
