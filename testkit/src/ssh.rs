//! A throwaway sshd, and a configuration with which OpenSSH's programs log in to it. sshd serves one
//! connection on its standard input, so it needs no port of its own.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use aiot_tunnel::Service;
use rustix::process::getuid;

use crate::folder::Folder;
use crate::namespaces::mount_all_over;
use crate::process::Group;
use crate::streams::Door;

/// Where systems keep it; these directories are not in every user's PATH.
const SSHD: [&str; 3] = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"];

/// The program sshd, if it is installed.
pub fn sshd() -> Option<PathBuf> {
    SSHD.iter().map(PathBuf::from).find(|path| path.exists())
}

/// Who logs in with a password: see [`Ssh::with_password`].
pub const LOGIN: &str = "technician";
/// The password.
pub const PASSWORD: &str = "hush-password";
/// What `/etc/shadow` has of it: `openssl passwd -6 -salt testkitsalt`.
const SHADOW: &str =
    "$6$testkitsalt$fub45FG.4OELiF8dUGo42E41HOovgK1Fg.utQ2C2WyxUC6yP9Smv9PoKFiX9VMImo5qaB053GiC\
     2e37.oaC7F1";
/// The id of that user and group. No system gives it to anybody.
const ID: u32 = 64_123;

/// A server's keys and configuration. Its only user is the one who runs the test, by key, or [`LOGIN`], by
/// password.
pub struct Ssh {
    /// The connections that are served.
    servers: Arc<Mutex<Vec<Group>>>,
    folder: Folder,
    has_password: bool,
    _run: RunDirectory,
}

impl Ssh {
    /// # Errors
    /// A program is missing.
    pub fn new() -> Result<Self, String> {
        sshd().ok_or("there is no sshd")?;
        let folder = Folder::new();
        for name in ["host_key", "user_key"] {
            make_key(&folder.file(name))?;
        }
        let path = folder.path().display();
        let config = format!(
            "HostKey \"{path}/host_key\"\nAuthorizedKeysFile \"{path}/user_key.pub\"\n\
             PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        );
        folder.write("sshd_config", config);
        let (servers, _run) = (Arc::default(), RunDirectory::new());
        Ok(Ssh { servers, folder, has_password: false, _run })
    }

    /// A server to which [`LOGIN`] logs in with [`PASSWORD`]. The user, who is not root, exists in the
    /// server's mount namespace only, and has an empty home directory and `/bin/sh`.
    ///
    /// # Errors
    /// A program is missing, or this process may not mount anything.
    pub fn with_password() -> Result<Self, String> {
        if !getuid().is_root() {
            return Err("a user of its own needs root".to_owned());
        }
        let mut ssh = Ssh::new()?;
        ssh.has_password = true;
        let (folder, home) = (&ssh.folder, ssh.home());
        let config = format!(
            "HostKey \"{}/host_key\"\nPidFile none\nUsePAM no\nPubkeyAuthentication no\n\
             PasswordAuthentication yes\nAllowUsers {LOGIN}\nPrintMotd no\nPrintLastLog no\n",
            folder.path().display()
        );
        folder.write("sshd_config", config);
        let user = format!("{LOGIN}:x:{ID}:{ID}::{}:/bin/sh\n", home.display());
        let shadow = format!("{LOGIN}:{SHADOW}:19000:0:99999:7:::\n");
        for (file, line) in [("passwd", user), ("shadow", shadow)] {
            let system = fs::read_to_string(format!("/etc/{file}")).unwrap_or_default();
            folder.write_secret(file, system + &line);
        }
        // sshd takes down who logs in, with other programs' users.
        folder.write("utmp", "");
        let failed = |e: std::io::Error| e.to_string();
        for (directory, owner) in [(home, ID), (folder.file("log"), 0)] {
            fs::create_dir(&directory).map_err(failed)?;
            chown(&directory, Some(owner), Some(owner)).map_err(failed)?;
        }
        for (name, mode) in [("", 0o711), ("passwd", 0o644)] {
            fs::set_permissions(folder.file(name), Permissions::from_mode(mode)).map_err(failed)?;
        }
        let places = ssh.places();
        let tried = thread::spawn(move || mount_over_all(&places)).join().unwrap();
        tried.map_err(|e| format!("mount a user's files: {e}"))?;
        Ok(ssh)
    }

    /// Where [`LOGIN`] is after the login.
    pub fn home(&self) -> PathBuf {
        self.folder.file("home")
    }

    /// Gives the server another host key, as after a new installation.
    pub fn change_host_key(&self) {
        for name in ["host_key", "host_key.pub"] {
            fs::remove_file(self.folder.file(name)).unwrap();
        }
        make_key(&self.folder.file("host_key")).unwrap();
    }

    /// What stands in place of the system's files for the server.
    fn places(&self) -> Vec<(PathBuf, &'static str)> {
        if !self.has_password {
            return Vec::new();
        }
        let places = [
            ("passwd", "/etc/passwd"),
            ("shadow", "/etc/shadow"),
            ("log", "/var/log"),
            ("utmp", "/run/utmp"),
        ];
        let places = places.into_iter().filter(|(_, place)| Path::new(place).exists());
        places.map(|(name, place)| (self.folder.file(name), place)).collect()
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Serves one connection, for as long as the value lives.
    pub fn serve(&self, connection: TcpStream) {
        let server = serve(&self.folder.file("sshd_config"), &self.places(), connection);
        self.servers.lock().unwrap().push(server);
    }

    /// A local service of this name that serves every connection.
    pub fn service(&self, name: &str) -> Service {
        let door = Door::new(name);
        let service = door.service();
        let (config, servers) = (self.folder.file("sshd_config"), self.servers.clone());
        let places = self.places();
        door.serve(move |stream| servers.lock().unwrap().push(serve(&config, &places, stream)));
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

fn make_key(file: &Path) -> Result<(), String> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file);
    let output = command.output().map_err(|e| format!("ssh-keygen: {e}"))?;
    assert!(output.status.success(), "{output:?}");
    Ok(())
}

fn mount_over_all(places: &[(PathBuf, &str)]) -> std::io::Result<()> {
    let places: Vec<_> = places.iter().map(|(own, place)| (own.as_path(), *place)).collect();
    mount_all_over(&places)
}

fn serve(config: &Path, places: &[(PathBuf, &str)], connection: TcpStream) -> Group {
    let output = OwnedFd::from(connection.try_clone().unwrap());
    let mut command = Command::new(sshd().unwrap());
    command.args(["-i", "-e", "-f"]).arg(config);
    command.stdin(OwnedFd::from(connection)).stdout(output).stderr(Stdio::null());
    let start = || {
        if !places.is_empty() {
            mount_over_all(places).unwrap();
        }
        Group::spawn(&mut command)
    };
    // Mounts hold for the thread that makes them.
    thread::scope(|scope| scope.spawn(start).join().unwrap())
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
