//! Real proxies, from Debian's packages, in the network namespace of the caller's choice. Each has its
//! configuration in a folder of its own and ends with its value. Proxies that misbehave are the tests'
//! affair.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::folder::Folder;
use crate::namespaces::{mount_over, Namespace};
use crate::process::Group;
use crate::{logs, wait};

/// Where systems keep programs; some of these directories are not in every user's PATH.
const PROGRAMS: [&str; 3] = ["/usr/bin", "/usr/sbin", "/usr/local/sbin"];
/// Squid's program that checks passwords.
const NCSA_AUTH: &str = "/usr/lib/squid/basic_ncsa_auth";
const PORT: u16 = 3128;
/// Where shared memory has its names.
const SHARED: &str = "/dev/shm";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tinyproxy,
    Squid,
    Microsocks,
    Dante,
}

impl Kind {
    fn program(self) -> Result<PathBuf, String> {
        let name = match self {
            Kind::Tinyproxy => "tinyproxy",
            Kind::Squid => "squid",
            Kind::Microsocks => "microsocks",
            Kind::Dante => "danted",
        };
        let mut paths = PROGRAMS.iter().map(|folder| Path::new(folder).join(name));
        paths.find(|path| path.exists()).ok_or_else(|| format!("there is no {name}"))
    }

    fn scheme(self) -> &'static str {
        match self {
            Kind::Tinyproxy | Kind::Squid => "http",
            Kind::Microsocks | Kind::Dante => "socks5",
        }
    }
}

/// device 10.78.1.2 - 10.78.1.1 proxy 10.78.2.1 - 10.78.2.2 cloud. The proxy's machine does not
/// forward: the only way from the device to the cloud is a program there.
pub struct World {
    pub device: Namespace,
    proxy: Namespace,
    pub cloud: Namespace,
}

impl World {
    pub const CLOUD: Ipv4Addr = Ipv4Addr::new(10, 78, 2, 2);
    const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 78, 1, 1);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 78, 2, 1);
    /// Only the proxy's machine knows that this is the cloud's name.
    pub const NAME: &str = "gateway.test";

    /// # Errors
    /// This machine does not allow it; the text says what failed.
    pub fn new() -> Result<Self, String> {
        let make = || Namespace::new().map_err(|e| format!("make a namespace: {e}"));
        let world = World { device: make()?, proxy: make()?, cloud: make()? };
        let (device, proxy, cloud) = (&world.device, &world.proxy, &world.cloud);
        let there = proxy.path();
        device.try_ip(&format!("link add wan type veth peer name lan netns {there}"))?;
        cloud.try_ip(&format!("link add net type veth peer name net netns {there}"))?;
        for (namespace, name, address) in [
            (device, "wan", "10.78.1.2/24"),
            (proxy, "lan", "10.78.1.1/24"),
            (proxy, "net", "10.78.2.1/24"),
            (cloud, "net", "10.78.2.2/24"),
        ] {
            namespace.try_ip("link set lo up")?;
            namespace.try_ip(&format!("addr add {address} dev {name}"))?;
            namespace.try_ip(&format!("link set {name} up"))?;
        }
        Ok(world)
    }

    /// Starts a proxy and waits until it listens.
    ///
    /// # Errors
    /// Its program is not installed.
    pub fn start(&self, kind: Kind, credentials: Option<(&str, &str)>) -> Result<Proxy, String> {
        let program = kind.program()?;
        let folder = Folder::new();
        let service = format!("aiottunnel{:08x}", rand::random::<u32>());
        let mut command = Command::new(&program);
        match kind {
            Kind::Tinyproxy => command.arg("-d").arg("-c").arg(tinyproxy(&folder, credentials)),
            Kind::Squid => {
                command.args(["-N", "-n", &service, "-f", &squid(&folder, credentials)?])
            }
            Kind::Microsocks => {
                command.args(["-i", &World::INSIDE.to_string(), "-p", &PORT.to_string()]);
                if let Some((user, password)) = credentials {
                    command.args(["-u", user, "-P", password]);
                }
                &mut command
            }
            Kind::Dante => {
                assert!(credentials.is_none(), "dante knows the users of the system only");
                command.args(["-f", &dante(&folder), "-p", &folder.write("pid", "")])
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let hosts = folder.write("hosts", format!("{} {}\n", World::CLOUD, World::NAME));
        let process = self.proxy.within(|| {
            mount_over(&hosts, "/etc/hosts").unwrap();
            Group::spawn(&mut command)
        });
        let address = SocketAddr::from((World::INSIDE, PORT));
        let mut proxy = Proxy { kind, service, process, folder };
        self.device.within(|| {
            wait::until("the proxy listens", || {
                assert!(!proxy.process.0.has_ended(), "{program:?} has ended");
                TcpStream::connect(address).is_ok()
            });
        });
        if let Some((user, password)) = credentials {
            logs::note_secret(password.as_bytes());
            proxy.folder.write_secret("auth", format!("{user}:{password}\n"));
        }
        Ok(proxy)
    }
}

/// A running proxy.
pub struct Proxy {
    kind: Kind,
    /// The name under which Squid keeps shared memory.
    service: String,
    process: Group,
    folder: Folder,
}

impl Proxy {
    /// Its URL without credentials.
    pub fn url(&self) -> String {
        format!("{}://{}:{PORT}", self.kind.scheme(), World::INSIDE)
    }

    /// The file with its user and password, as `--proxy-auth-file` takes it.
    pub fn auth_file(&self) -> String {
        self.folder.file("auth").into_os_string().into_string().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.kind != Kind::Squid {
            return;
        }
        // Killed, it leaves its shared memory behind.
        self.process.0.kill();
        for entry in fs::read_dir(SHARED).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("{}-", self.service)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn tinyproxy(folder: &Folder, credentials: Option<(&str, &str)>) -> String {
    let mut config = format!("Port {PORT}\nListen {}\nTimeout 600\n", World::INSIDE);
    if let Some((user, password)) = credentials {
        config += &format!("BasicAuth {user} {password}\n");
    }
    folder.write("tinyproxy.conf", config)
}

fn squid(folder: &Folder, credentials: Option<(&str, &str)>) -> Result<String, String> {
    let path = folder.path().display();
    let mut config = String::new();
    if let Some((user, password)) = credentials {
        if !Path::new(NCSA_AUTH).exists() {
            return Err(format!("there is no {NCSA_AUTH}"));
        }
        let hash = Command::new("openssl").args(["passwd", "-apr1", password]).output();
        let hash = hash.map_err(|e| format!("openssl: {e}"))?;
        let users = format!("{user}:{}", String::from_utf8(hash.stdout).unwrap());
        let users = folder.write("users", users);
        config += &format!(
            "auth_param basic program {NCSA_AUTH} {users}\nauth_param basic children 1\n\
             acl signed_in proxy_auth REQUIRED\nhttp_access allow signed_in\n"
        );
    } else {
        config += "http_access allow all\n";
    }
    config += &format!(
        "http_port {}:{PORT}\nhosts_file {path}/hosts\nvisible_hostname proxy.test\n\
         access_log none\ncache_log /dev/null\ncache_store_log none\ncache deny all\n\
         pid_filename none\ncoredump_dir /tmp\npinger_enable off\nmax_filedescriptors 1024\n\
         shutdown_lifetime 0 seconds\ndns_nameservers 127.0.0.1\n",
        World::INSIDE
    );
    Ok(folder.write("squid.conf", config))
}

fn dante(folder: &Folder) -> String {
    let config = format!(
        "logoutput: /dev/null\ninternal: {} port = {PORT}\nexternal: {}\nclientmethod: none\n\
         socksmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n\
         client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n\
         socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}\n",
        World::INSIDE,
        World::OUTSIDE
    );
    folder.write("danted.conf", config)
}
