//! docs/self-host.md, executed: each block of commands on its machine, which is a network namespace
//! with a home folder, an sshd and processes of its own. Without root, the test says so and passes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::namespaces::Namespace;
use aiot_tunnel_testkit::process::{program, Lines, Process};
use aiot_tunnel_testkit::skip;
use aiot_tunnel_testkit::ssh::sshd;

const TEST: &str = "docs/self-host.md";
const GATEWAY: &str = "10.79.1.1";
const DEVICE: &str = "10.79.1.2";
/// For each program that the page starts in the background.
const PATIENCE: Duration = Duration::from_secs(30);

/// The blocks of commands: the machine, and the text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut parts = page.split("\n```sh ");
    parts.next();
    for part in parts {
        let (machine, rest) = part.split_once('\n').unwrap();
        let (commands, _) = rest.split_once("\n```").unwrap();
        blocks.push((machine.to_owned(), commands.to_owned()));
    }
    blocks
}

/// A shell on a machine of its own. Everything there ends with it.
struct Machine {
    name: &'static str,
    shell: Process,
    lines: Lines,
    count: u32,
}

impl Machine {
    fn new(name: &'static str, network: &Namespace, folder: &Folder) -> Self {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--ipc",
            "--uts",
            "--pid",
            "--mount-proc",
            "--fork",
            "--kill-child",
            "sh",
        ]);
        command.env_clear().env("HOME", "/root").env("LC_ALL", "C");
        let path =
            format!("{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", folder.path().display());
        command.env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = network.within(|| Process::spawn(&mut command));
        let lines = shell.lines();
        let mut machine = Machine { name, shell, lines, count: 0 };
        let files = folder.path().display();
        machine.run(&format!(
            "set -e\nhostname {name}\nmount --bind {files}/hosts /etc/hosts\n\
             mount -t tmpfs tmpfs /run\nmkdir -m 755 /run/sshd\n\
             mount -t tmpfs -o mode=700 tmpfs /root\ncd /root\n\
             mkdir -m 700 .ssh\ncp {files}/key .ssh/id_ed25519\nchmod 600 .ssh/id_ed25519\n\
             cp {files}/key.pub .ssh/authorized_keys\n\
             printf 'BatchMode yes\\nStrictHostKeyChecking accept-new\\n' >.ssh/config\n\
             {sshd} -f {files}/sshd_config\nset +e",
            sshd = sshd().unwrap().display(),
        ));
        machine
    }

    /// Runs commands, and returns what they print. They must succeed.
    fn run(&mut self, commands: &str) -> String {
        self.count += 1;
        let mark = format!("end of part {}", self.count);
        self.shell.write(format!("{commands}\necho \"\n{mark}: $?\"\n").as_bytes());
        let mut printed = String::new();
        loop {
            let line = self.lines.next_line();
            if let Some(status) = line.strip_prefix(&mark) {
                assert_eq!(status, ": 0", "on {}:\n{commands}\n{printed}", self.name);
                return printed;
            }
            printed += &line;
            printed.push('\n');
        }
    }

    /// Waits until a log has a text.
    fn wait_for(&mut self, log: &str, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let content = self.run(&format!("cat {log} 2>/dev/null; true"));
            if content.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{log} on {} lacks {text:?}:\n{content}", self.name);
            self.run("sleep 0.05");
        }
    }
}

/// The two machines, with what a page's reader has before he begins.
fn machines(folder: &Folder) -> Result<(Machine, Machine), String> {
    sshd().ok_or("there is no sshd")?;
    let make = || Namespace::new().map_err(|e| format!("make a namespace: {e}"));
    let (gateway, device) = (make()?, make()?);
    device.try_ip(&format!("link add net type veth peer name net netns {}", gateway.path()))?;
    for (namespace, address) in [(&gateway, GATEWAY), (&device, DEVICE)] {
        namespace.try_ip("link set lo up")?;
        namespace.try_ip(&format!("addr add {address}/24 dev net"))?;
        namespace.try_ip("link set net up")?;
    }
    let probe = Command::new("unshare").args(["--mount", "--pid", "--fork", "true"]).output();
    let probe = probe.map_err(|e| format!("unshare: {e}"))?;
    if !probe.status.success() {
        return Err(String::from_utf8_lossy(&probe.stderr).into_owned());
    }
    fs::copy(program(), folder.file("aiot-tunnel")).unwrap();
    folder.write("hosts", format!("127.0.0.1 localhost\n{GATEWAY} gw.example\n"));
    for name in ["key", "host_key"] {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.file(name));
        let output = command.output().map_err(|e| format!("ssh-keygen: {e}"))?;
        assert!(output.status.success(), "{output:?}");
    }
    let path = folder.path().display();
    let config = format!(
        "HostKey {path}/host_key\nPidFile none\nStrictModes no\nUsePAM no\n\
         PasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    );
    folder.write("sshd_config", config);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Ok((Machine::new("gw", &gateway, folder), Machine::new("pump-17", &device, folder)))
}

#[test]
fn the_commands_of_the_page_lead_to_a_login() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/self-host.md");
    let blocks = blocks(&fs::read_to_string(page).unwrap());
    assert!((3..=10).contains(&blocks.len()), "{blocks:?}");
    let folder = Folder::new();
    let (mut gateway, mut device) = match machines(&folder) {
        Ok(machines) => machines,
        Err(why) => return skip(TEST, why),
    };
    let mut printed = String::new();
    for (machine, commands) in &blocks {
        let machine = match machine.as_str() {
            "gateway" => &mut gateway,
            "device" => &mut device,
            other => panic!("the page has a block for {other}"),
        };
        // A login without commands is a shell, which reads them from standard input.
        let input = match commands.starts_with("aiot-tunnel ssh") {
            true => " <<'END'\nhostname\nEND",
            false => "",
        };
        printed = machine.run(&format!("{commands}{input}"));
        if commands.ends_with("2>gateway.log &") {
            machine.wait_for("gateway.log", "the API listens on");
        }
        if commands.ends_with("2>agent.log &") {
            machine.wait_for("agent.log", "websocket pump-17 opened");
        }
    }
    assert!(printed.lines().any(|line| line == "pump-17"), "{printed}");
}
