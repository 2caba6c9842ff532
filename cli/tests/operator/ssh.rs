//! `aiot-tunnel ssh`, and ssh, scp and rsync with the printed configuration.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use aiot_tunnel_testkit::path::Kind;
use aiot_tunnel_testkit::process::program;
use aiot_tunnel_testkit::skip;
use aiot_tunnel_testkit::ssh::Ssh;
use aiot_tunnel_testkit::streams::content;
use aiot_tunnel_testkit::{wait, ACCESS_TOKEN};

use super::{fails, run, says, Scene, TOKEN_FILE};

/// A device with sshd, an operator with a profile, and the rest of ssh's configuration.
struct Login {
    scene: Scene,
    ssh: Ssh,
}

impl Login {
    /// `None`, with a message, where a program is missing.
    fn new(test: &str, client: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let has = |name| std::env::split_paths(&path).any(|folder| folder.join(name).exists());
        if !has("ssh") || !has(client) {
            skip(test, format_args!("there is no {client}"));
            return None;
        }
        let ssh = Ssh::new().map_err(|why| skip(test, why)).ok()?;
        let scene = Scene::new(Kind::TLS, &[ssh.service("_SSH")]);
        scene.profile(TOKEN_FILE);
        Some(Login { scene, ssh })
    }

    /// The file of ssh's configuration, with what `ssh-config` prints in it.
    fn config(&self, arguments: &[&str]) -> String {
        let (status, printed, said) =
            run(&mut self.scene.command(&[&["ssh-config"], arguments].concat()));
        assert_eq!(status, Some(0), "{said}");
        self.ssh.client_config(&printed)
    }

    fn run(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(name);
        self.scene.settle(command.args(arguments));
        let (status, printed, said) = run(&mut command);
        assert_eq!(status, Some(0), "{command:?}: {said}");
        printed
    }
}

#[test]
fn ssh_logs_in_with_the_name_of_the_tunnel_alone() {
    let Some(login) = Login::new("aiot-tunnel ssh", "ssh") else { return };
    let config = login.ssh.client_config("");
    let ssh = |arguments: &[&str]| {
        run(&mut login.scene.command(&[&["ssh", "-F", &config], arguments].concat()))
    };
    let (status, printed, said) = ssh(&["t1", "echo", "hello; exit 7"]);
    assert_eq!((status, &*printed), (Some(7), "hello\n"), "{said}");
    // The key is remembered under the tunnel and the gateway.
    let known = fs::read_to_string(login.ssh.folder().file("known_hosts")).unwrap();
    let port = login.scene.path.address().port();
    says(&known, &[&format!("t1.tunnel.127.0.0.1-{port} ")]);
    assert_eq!(known.lines().count(), 1, "{known}");
    // ssh's own options, before and behind, and a user that is not there.
    let (status, printed, said) = ssh(&["-T", "-o", "SendEnv=X", "t1", "-q", "cat", "/dev/null"]);
    assert_eq!((status, &*printed), (Some(0), ""), "{said}");
    let (status, _, said) = ssh(&["-v", "nobody-here@t1"]);
    assert_eq!(status, Some(255), "{said}");
    says(&said, &["nobody-here"]);
}

#[test]
fn no_process_shows_the_token() {
    let Some(login) = Login::new("ps", "ps") else { return };
    let config = login.config(&[]);
    let all = login.run("ssh", &["-F", &config, "t1.tunnel", "ps", "axww", "-o", "args"]);
    says(&all, &["access", "--stdio"]);
    assert!(!all.contains(ACCESS_TOKEN), "{all}");
    let mut command = login.scene.command(&["ssh", "-F", &config, "t1", "ps axww -o args"]);
    let (_, all, said) = run(&mut command);
    says(&all, &["--tunnel=t1 --stdio"]);
    assert!(!all.contains(ACCESS_TOKEN) && said.is_empty(), "{all}{said}");
}

#[test]
fn ssh_does_not_have_the_token_of_the_environment() {
    let Some(login) = Login::new("the environment", "ssh") else { return };
    let config = login.ssh.client_config("");
    for (place, variable) in [
        ("", "AIOT_TUNNEL_ACCESS_TOKEN"),
        ("token_variable = \"MY_TOKEN\"", "AIOT_TUNNEL_ACCESS_TOKEN"),
        ("token_variable = \"MY_TOKEN\"", "MY_TOKEN"),
    ] {
        login.scene.profile(place);
        let mut command = login.scene.command(&["ssh", "-F", &config]);
        command.args(["-o", "PermitLocalCommand=yes", "-o", "LocalCommand=env; echo ssh $PPID"]);
        command.args(["t1", "echo", "hello"]).env(variable, ACCESS_TOKEN);
        let (status, printed, said) = run(&mut command);
        assert_eq!(status, Some(0), "{place}, {variable}: {said}");
        assert!(said.is_empty(), "{said}");
        says(&printed, &["PATH=", "hello\n"]);
        assert!(!printed.contains(ACCESS_TOKEN) && !printed.contains(variable), "{printed}");
        // What has held it ends with ssh.
        let process = printed.lines().find_map(|line| line.strip_prefix("ssh ")).unwrap();
        let holder = format!("\0hold-token\0{process}\0");
        wait::until("the holder's end", || !runs(&holder));
    }
    let mut command = login.scene.command(&["ssh", "-F", &config, "t1"]);
    let (status, _, said) = run(command.env("AIOT_TUNNEL_ACCESS_TOKEN", "hush-wrong"));
    assert_eq!(status, Some(255));
    says(&said, &["refuses the token"]);
}

/// Whether a process has these arguments.
fn runs(arguments: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap();
    let lines = processes.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    lines.into_iter().any(|line| String::from_utf8_lossy(&line).contains(arguments))
}

#[test]
fn ssh_reaches_a_host_of_the_printed_configuration() {
    let Some(login) = Login::new("ssh-config", "ssh") else { return };
    let config = login.config(&[]);
    assert_eq!(login.run("ssh", &["-F", &config, "t1.tunnel", "echo", "hello"]), "hello\n");
    assert_eq!(login.run("ssh", &["-F", &config, "t1.plant.tunnel", "echo", "hello"]), "hello\n");
    // The id keeps its capitals, which ssh takes from the name of a host.
    let mut command = Command::new("ssh");
    login.scene.settle(command.args(["-F", &config, "T1.tunnel"]));
    let (status, _, said) = run(&mut command);
    assert_eq!(status, Some(255));
    says(&said, &["tokens/T1: No such file"]);
    // The same names as with the other command.
    let mut command = login.scene.command(&["ssh", "-F", &config, "t1", "echo", "hello"]);
    assert_eq!(run(&mut command).0, Some(0));
    let known = fs::read_to_string(login.ssh.folder().file("known_hosts")).unwrap();
    let port = login.scene.path.address().port();
    let mut names: Vec<&str> = known.lines().filter_map(|line| line.split(' ').next()).collect();
    names.dedup();
    let name = |host| format!("{host}.127.0.0.1-{port}");
    assert_eq!(names, [name("t1.tunnel"), name("t1.plant.tunnel")], "{known}");
}

#[test]
fn scp_copies_a_file_both_ways() {
    const LENGTH: usize = 2_000_000;
    let Some(login) = Login::new("scp", "scp") else { return };
    let config = login.config(&[]);
    let folder = login.ssh.folder();
    let from = folder.write("from", content(0, LENGTH));
    let (there, back) = (folder.file("there"), folder.file("back"));
    let remote = format!("t1.tunnel:{}", there.display());
    login.run("scp", &["-q", "-F", &config, &from, &remote]);
    login.run("scp", &["-q", "-F", &config, &remote, back.to_str().unwrap()]);
    assert!(fs::read(back).unwrap() == content(0, LENGTH));
}

#[test]
fn rsync_copies_a_folder_through_either() {
    const FILES: usize = 50;
    let Some(login) = Login::new("rsync", "rsync") else { return };
    let config = login.config(&[]);
    let from = login.ssh.folder().file("from");
    fs::create_dir(&from).unwrap();
    for number in 0..FILES {
        fs::write(from.join(number.to_string()), content(number, number * 500)).unwrap();
    }
    let own = format!("'{}' ssh -F '{config}'", program().display());
    for (name, rsh) in [("t1.tunnel", format!("ssh -F '{config}'")), ("t1", own)] {
        let to = login.ssh.folder().file(name);
        let target = format!("{name}:{}/", to.display());
        login.run("rsync", &["--archive", "--rsh", &rsh, &format!("{}/", from.display()), &target]);
        for number in 0..FILES {
            let bytes = fs::read(to.join(number.to_string())).unwrap();
            assert!(bytes == content(number, number * 500), "file {number}");
        }
    }
}

#[test]
fn paths_with_blanks_quotes_and_percent_signs_survive() {
    let Some(login) = Login::new("odd paths", "ssh") else { return };
    let odd = login.scene.home.file("it's a 100%h $HOME folder");
    fs::create_dir(&odd).unwrap();
    let link = odd.join("aiot-tunnel");
    // A copy, because a link leads to the path of the program itself.
    if fs::hard_link(program(), &link).is_err() {
        fs::copy(program(), &link).unwrap();
    }
    let file = odd.join("my config.toml");
    let folder = login.scene.home.file("aiot-tunnel");
    let text = fs::read_to_string(folder.join("config.toml")).unwrap();
    fs::write(&file, text).unwrap();
    symlink(folder.join("tokens"), odd.join("tokens")).unwrap();
    let file = file.to_str().unwrap();
    let mut command = Command::new(&link);
    login.scene.settle(command.args(["ssh-config", "--config", file]));
    command.env("XDG_CONFIG_HOME", "/nowhere");
    let (status, printed, said) = run(&mut command);
    assert_eq!(status, Some(0), "{said}");
    let config = login.ssh.client_config(&printed);
    assert_eq!(login.run("ssh", &["-F", &config, "t1.tunnel", "echo", "hello"]), "hello\n");
    let mut command = Command::new(&link);
    login
        .scene
        .settle(command.args(["ssh", "--config", file, "-F", &config, "t1", "echo", "hello"]));
    command.env("XDG_CONFIG_HOME", "/nowhere");
    let (status, printed, said) = run(&mut command);
    assert_eq!((status, &*printed), (Some(0), "hello\n"), "{said}");
}

#[test]
fn the_user_is_the_command_lines_or_the_profiles() {
    let Some(login) = Login::new("the user", "ssh") else { return };
    login.scene.profile(&format!("{TOKEN_FILE}\nuser = \"of-profile\""));
    // The configuration names a user, too; ssh -G shows who it would be.
    let config = login.ssh.client_config("");
    for (arguments, user) in [
        (&["t1"][..], "of-profile"),
        (&["of-line@t1"], "of-line"),
        (&["-l", "of-option", "t1"], "of-option"),
        (&["-oUser=of-option", "t1"], "of-option"),
        (&["t1", "-l", "of-option"], "of-option"),
    ] {
        let all = [&["ssh", "-G", "-F", &config], arguments].concat();
        let (_, printed, said) = run(&mut login.scene.command(&all));
        let line = printed.lines().find(|line| line.starts_with("user "));
        assert_eq!(line, Some(&*format!("user {user}")), "{arguments:?}: {said}");
    }
}

#[test]
fn a_machine_without_ssh_is_told_what_to_install() {
    let scene = Scene::new(Kind::PLAIN, &[]);
    scene.profile(TOKEN_FILE);
    let mut command = scene.command(&["ssh", "t1"]);
    fails(command.env("PATH", "/nowhere"), 1, &["ssh: No such file", "install OpenSSH"]);
}

#[test]
fn the_reason_of_a_failure_stands_above_that_of_ssh() {
    let Some(login) = Login::new("a failure", "ssh") else { return };
    login.scene.profile(&format!("{TOKEN_FILE}\nservice = \"web\""));
    let config = login.ssh.client_config("");
    let (status, _, said) = run(&mut login.scene.command(&["ssh", "-F", &config, "t1"]));
    assert_eq!(status, Some(255));
    says(&said, &["the device has no service web, only _SSH; choose one of them"]);
}
