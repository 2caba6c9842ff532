//! How the system's ssh is run: in a pseudo-terminal, with a fixed list of options, and with a session of
//! the tunnel as its connection.
//!
//! ssh closes what it inherits, so it gets its connection by `ProxyUseFdpass`: the proxy command, which is
//! this program again ([`pass_connection`]), connects to a Unix socket of the gateway and hands the
//! connection over. That socket has a random abstract name, which only ssh's environment says, and takes
//! one connection, of a process of the gateway's own user.
//!
//! ssh's standard output is a socket, too. Writing to a terminal, ssh blocks: while nobody takes its output,
//! it would not see a Ctrl-C. Its prompts and messages come through the pseudo-terminal.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use pty_process::{Command, Pty};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{geteuid, kill_process, Pid, Signal};
use tokio::net::UnixListener;
use tokio::process::Child;
use tokio::time::timeout;

use super::login::LoginName;

/// How long ssh may take to end after SIGHUP.
const GRACE: Duration = Duration::from_secs(3);
/// Where programs are if the gateway's environment does not say it.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The environment variables of the proxy command. ssh starts a shell for it, which takes the words apart
/// again; values of variables stay whole.
const PROGRAM: &str = "AIOT_TUNNEL_PROGRAM";
const SOCKET: &str = "AIOT_TUNNEL_SOCKET";
/// The subcommand of the program that calls [`pass_connection`].
pub const SUBCOMMAND: &str = "pass-connection";

/// The name under which ssh knows every device. Each tunnel has a file of its own for it.
const HOST: &str = "device";

/// Nothing of the gateway's own user: neither configuration nor keys nor agent. No forwarding, no escape
/// character, no command on this machine.
const OPTIONS: [&str; 40] = [
    "PreferredAuthentications=keyboard-interactive,password",
    "PubkeyAuthentication=no",
    "HostbasedAuthentication=no",
    "GSSAPIAuthentication=no",
    "IdentityFile=none",
    "IdentityAgent=none",
    "IdentitiesOnly=yes",
    "AddKeysToAgent=no",
    "BatchMode=no",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ForwardX11Trusted=no",
    "GatewayPorts=no",
    "Tunnel=no",
    "EscapeChar=none",
    // Versions before 9.2 do not have it.
    "IgnoreUnknown=EnableEscapeCommandline",
    "EnableEscapeCommandline=no",
    "PermitLocalCommand=no",
    "KnownHostsCommand=none",
    "ControlMaster=no",
    "ControlPath=none",
    "ControlPersist=no",
    "HostKeyAlias=device",
    "StrictHostKeyChecking=ask",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "CheckHostIP=no",
    "HashKnownHosts=no",
    "VerifyHostKeyDNS=no",
    "CanonicalizeHostname=no",
    "RequestTTY=force",
    "RemoteCommand=none",
    "ConnectTimeout=30",
    "ConnectionAttempts=1",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    "TCPKeepAlive=no",
    "ProxyUseFdpass=yes",
    "ProxyCommand=\"$AIOT_TUNNEL_PROGRAM\" pass-connection",
];

/// ssh's arguments. `host_keys` is the name of a file in ssh's working directory, so that no character
/// of the directory's own path means anything to ssh.
fn arguments(login: &LoginName, host_keys: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-F".into(), "none".into()];
    let host_keys = format!("UserKnownHostsFile=./{}", host_keys.replace('%', "%%"));
    for option in OPTIONS.into_iter().chain([&*host_keys]) {
        arguments.extend(["-o".into(), option.into()]);
    }
    arguments.extend(["-l", login.as_str(), "--", HOST].map(OsString::from));
    arguments
}

/// An ssh that runs. It ends if the value is dropped.
pub(super) struct Ssh(Child);

/// Where its proxy command comes for a connection.
pub(super) struct Entrance(UnixListener);

/// What ssh shows and reads.
pub(super) struct Screen {
    /// Of what is typed, and of ssh's own prompts and messages.
    pub(super) pty: Pty,
    /// The output of the device.
    pub(super) output: tokio::net::UnixStream,
}

/// What ssh is run for.
pub(super) struct Login<'a> {
    /// The program `aiot-tunnel`.
    pub(super) program: &'a Path,
    pub(super) name: &'a LoginName,
    /// The directory of the host keys, and the file in it.
    pub(super) host_keys: (&'a Path, &'a str),
}

impl Ssh {
    /// Starts ssh.
    ///
    /// # Errors
    /// There is no ssh, or no pseudo-terminal or descriptor is left.
    pub(super) fn start(login: &Login<'_>) -> io::Result<(Self, Entrance, Screen)> {
        let name = format!("aiot-tunnel-terminal-{:032x}", rand::random::<u128>());
        let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (pty, slave) = pty_process::open().map_err(of_pty)?;
        let (output, stdout) = UnixStream::pair()?;
        output.set_nonblocking(true)?;
        let output = tokio::net::UnixStream::from_std(output)?;
        let (directory, file) = login.host_keys;
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let variables: [(&str, &OsStr); 5] = [
            ("PATH", &path),
            ("TERM", "xterm-256color".as_ref()),
            ("LANG", "C.UTF-8".as_ref()),
            (PROGRAM, login.program.as_os_str()),
            (SOCKET, name.as_ref()),
        ];
        let command = Command::new("ssh")
            .args(arguments(login.name, file))
            .env_clear()
            .envs(variables)
            .current_dir(directory)
            .stdout(OwnedFd::from(stdout))
            .kill_on_drop(true);
        let child = command.spawn(slave).map_err(of_pty)?;
        Ok((Ssh(child), Entrance(listener), Screen { pty, output }))
    }

    /// Waits for its end. Returns its exit status; `None`: a signal has ended it.
    pub(super) async fn wait(&mut self) -> Option<i32> {
        self.0.wait().await.ok()?.code()
    }

    /// Ends it, if it runs.
    pub(super) async fn end(&mut self) {
        if let Some(id) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // Until it has been waited for, the id is its own.
            let _ = kill_process(id, Signal::HUP);
        }
        if timeout(GRACE, self.0.wait()).await.is_err() {
            let _ = self.0.kill().await;
        }
    }
}

impl Entrance {
    /// Waits for ssh's connection, which is to lead to the device.
    pub(super) async fn connection(&self) -> io::Result<UnixStream> {
        let mut others = 0_u32;
        loop {
            let connection = self.0.accept().await?.0.into_std()?;
            if socket_peercred(&connection)?.uid == geteuid() {
                return Ok(connection);
            }
            others += 1;
            if others == 1 {
                log::warn!("terminal: another user of this machine has connected to ssh's socket");
            }
        }
    }
}

fn of_pty(e: pty_process::Error) -> io::Error {
    match e {
        pty_process::Error::Io(e) => e,
        pty_process::Error::Rustix(e) => e.into(),
        e => io::Error::other(e.to_string()),
    }
}

/// The proxy command of ssh: connects to the gateway's socket, which the environment names, and hands the
/// connection to ssh through standard output.
///
/// # Errors
/// There is no such socket, or ssh does not take the connection.
pub fn pass_connection() -> io::Result<()> {
    let name = std::env::var_os(SOCKET).ok_or_else(|| {
        io::Error::other(format!("{SOCKET} is not set; only the gateway calls this"))
    })?;
    let address = SocketAddr::from_abstract_name(name.as_encoded_bytes())?;
    let connection = UnixStream::connect_addr(&address)?;
    let descriptors = [connection.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    message.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(rustix::stdio::stdout(), &[IoSlice::new(&[0])], &mut message, SendFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn arguments_of(login: &str, host_keys: &str) -> Vec<OsString> {
        arguments(&LoginName::new(login).unwrap(), host_keys)
    }

    #[test]
    fn nothing_but_the_login_name_and_the_file_of_host_keys_varies() {
        let (one, other) = (arguments_of("root", "t1"), arguments_of("pi", "a%2Fb"));
        assert_eq!(one.len(), other.len());
        let differing = one.iter().zip(&other).filter(|(one, other)| one != other);
        let differing: Vec<_> = differing.map(|(_, other)| other.to_str().unwrap()).collect();
        assert_eq!(differing, ["UserKnownHostsFile=./a%%2Fb", "pi"]);
    }

    /// `ssh -G` prints the configuration that it would use.
    #[test]
    fn ssh_understands_every_option_and_uses_nothing_of_its_user() {
        let mut command = std::process::Command::new("ssh");
        command.arg("-G").args(arguments_of("pi", "a%2Fb")).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap());
        let output = match command.output() {
            Ok(output) => output,
            Err(e) => return aiot_tunnel_testkit::skip("ssh_understands_every_option", e),
        };
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for line in [
            "user pi",
            "hostname device",
            "hostkeyalias device",
            "userknownhostsfile ./a%2Fb",
            "globalknownhostsfile /dev/null",
            "stricthostkeychecking ask",
            "identityfile none",
            "identityagent none",
            "pubkeyauthentication false",
            "preferredauthentications keyboard-interactive,password",
            "clearallforwardings yes",
            "forwardagent no",
            "forwardx11 no",
            "tunnel false",
            "escapechar none",
            "permitlocalcommand no",
            "controlmaster false",
            "proxyusefdpass yes",
            "requesttty force",
        ] {
            assert!(text.lines().any(|one| one == line), "no line {line:?} in:\n{text}");
        }
        for absent in ["localforward", "remoteforward", "dynamicforward", "sendenv", "controlpath"]
        {
            let found = text.lines().find(|line| line.starts_with(absent));
            assert_eq!(found.filter(|line| !line.ends_with(" none")), None);
        }
    }

    #[test]
    fn the_proxy_command_names_the_variables_and_the_subcommand() {
        let proxy = OPTIONS.iter().find(|option| option.starts_with("ProxyCommand=")).unwrap();
        assert!(proxy.contains(&format!("\"${PROGRAM}\" {SUBCOMMAND}")));
    }
}
