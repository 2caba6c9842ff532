//! A throwaway sshd, and a configuration with which OpenSSH's programs log in to it. sshd serves one
//! connection on its standard input, so it needs no port of its own.

use std::fs;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use aiot_tunnel::Service;
use rustix::process::getuid;

use crate::folder::Folder;
use crate::process::Group;
use crate::streams::Door;

/// Where systems keep it; these directories are not in every user's PATH.
const SSHD: [&str; 3] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"];

/// The program sshd, if it is installed.
pub fn sshd() -> Option<PathBuf> {
    SSHD.iter().map(PathBuf::from).find(|path| path.exists())
}

/// A server's keys and configuration. Its only user is the one who runs the test.
pub struct Ssh {
    /// The connections that are served.
    servers: Arc<Mutex<Vec<Group>>>,
    folder: Folder,
    _run: RunDirectory,
}

impl Ssh {
    /// # Errors
    /// A program is missing.
    pub fn new() -> Result<Self, String> {
        sshd().ok_or("there is no sshd")?;
        let folder = Folder::new();
        for name in ["host_key", "user_key"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.file(name));
            let output = command.output().map_err(|e| format!("ssh-keygen: {e}"))?;
            assert!(output.status.success(), "{output:?}");
        }
        let path = folder.path().display();
        let config = format!(
            "HostKey \"{path}/host_key\"\nAuthorizedKeysFile \"{path}/user_key.pub\"\n\
             PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        );
        folder.write("sshd_config", config);
        Ok(Ssh { servers: Arc::default(), folder, _run: RunDirectory::new() })
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Serves one connection, for as long as the value lives.
    pub fn serve(&self, connection: TcpStream) {
        let server = serve(&self.folder.file("sshd_config"), connection);
        self.servers.lock().unwrap().push(server);
    }

    /// A local service of this name that serves every connection.
    pub fn service(&self, name: &str) -> Service {
        let door = Door::new(name);
        let service = door.service();
        let (config, servers) = (self.folder.file("sshd_config"), self.servers.clone());
        door.serve(move |stream| servers.lock().unwrap().push(serve(&config, stream)));
        service
    }

    /// A configuration file for `ssh -F`, with further lines.
    pub fn client_config(&self, more: &str) -> String {
        let path = self.folder.path().display();
        let config = format!(
            "User {}\nIdentityFile \"{path}/user_key\"\nIdentitiesOnly yes\nBatchMode yes\n\
             StrictHostKeyChecking no\nUserKnownHostsFile \"{path}/known_hosts\"\nLogLevel ERROR\n\
             {more}\n",
            user()
        );
        self.folder.write("ssh_config", config)
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // Their threads may live longer.
        self.servers.lock().unwrap().clear();
    }
}

fn serve(config: &Path, connection: TcpStream) -> Group {
    let output = OwnedFd::from(connection.try_clone().unwrap());
    let mut command = Command::new(sshd().unwrap());
    command.args(["-i", "-e", "-f"]).arg(config);
    command.stdin(OwnedFd::from(connection)).stdout(output).stderr(Stdio::null());
    Group::spawn(&mut command)
}

/// The name of the user who runs the test.
fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// sshd, started by root, insists on this directory. It is removed with the last user if it was not
/// there before.
const RUN: &str = "/run/sshd";
static USERS: Mutex<(usize, bool)> = Mutex::new((0, false));

struct RunDirectory;

impl RunDirectory {
    fn new() -> Self {
        let mut users = USERS.lock().unwrap();
        if getuid().is_root() && !Path::new(RUN).exists() {
            users.1 = fs::create_dir(RUN).is_ok();
        }
        users.0 += 1;
        RunDirectory
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        let mut users = USERS.lock().unwrap();
        users.0 -= 1;
        if users.0 == 0 && std::mem::take(&mut users.1) {
            let _ = fs::remove_dir(RUN);
        }
    }
}
