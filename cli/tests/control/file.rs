//! The socket's file: its rights, and what is at its path before and after.

use super::*;

use std::os::unix::fs::{symlink, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use aiot_tunnel::ipc;
use aiot_tunnel_testkit::manager::id;
use aiot_tunnel_testkit::queue::Key;
use aiot_tunnel_testkit::skip;

/// An agent at a path, from which nobody waits for anything yet.
fn agent_at(path: &Path, more: &[&str]) -> Program {
    let mut command = Command::new(program());
    command.args(["agent", "--plain", "--queue-key", "off", "--control-socket"]);
    Program::start_command(command.arg(path).args(more))
}

fn answers(path: &Path) -> bool {
    UnixStream::connect(path).is_ok_and(|stream| {
        Client::new(stream).ask(json!({"command": "status"}))["ok"] == json!(true)
    })
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn there_is_no_moment_in_which_others_may_connect() {
    for (wanted, arguments) in [
        (0o600, &[][..]),
        (0o660, &["--control-socket-mode", "0660"]),
        (0o622, &["--control-socket-mode", "622"]),
    ] {
        let folder = Folder::new();
        let path = folder.file("new/agent.sock");
        let mut command = Command::new("sh");
        // Without a umask, a socket would have all permissions.
        command.args(["-c", "umask 0; exec \"$0\" \"$@\""]).arg(program());
        command.args(["agent", "--plain", "--queue-key", "off", "--control-socket"]);
        let mut agent = Program::start_command(command.arg(&path).args(arguments));
        let mut seen = Vec::new();
        wait::until_within("the agent listens", TIMEOUT, || {
            // Looks often: the moment would be short.
            for _ in 0..10_000 {
                if let Ok(found) = fs::symlink_metadata(&path) {
                    let mode = found.permissions().mode() & 0o777;
                    if seen.last() != Some(&mode) {
                        seen.push(mode);
                    }
                }
            }
            answers(&path)
        });
        assert!(seen.iter().all(|mode| mode & !wanted == 0), "{seen:?}");
        assert_eq!(mode(&path), wanted);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        agent.process.terminate();
        assert!(agent.finish().0.success());
        assert!(!path.exists());
    }
}

#[test]
fn the_owner_of_the_socket_may_connect_and_nobody_else() {
    if !is_root() {
        return skip("the socket's owner", "giving a file away needs root");
    }
    let agent = Agent::with(&["--control-socket-owner", "65534:65533"]);
    let found = fs::metadata(&agent.path).unwrap();
    assert_eq!((found.uid(), found.gid(), mode(&agent.path)), (NOBODY, 65_533, 0o600));
    let copy = program_for_all(&agent.folder);
    let run = |uid: u32, operation: &[&str]| {
        let mut command = Command::new(&copy);
        command.args(operation).arg("--control-socket").arg(&agent.path);
        command.uid(uid).gid(uid).current_dir("/").output().unwrap()
    };
    let output = run(NOBODY, &["status"]);
    assert!(output.status.success(), "{output:?}");
    for operation in [&["status"][..], &["send", "delete", "--tunnel", "t"]] {
        let output = run(NOBODY - 1, operation);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = stderr(&output);
        assert!(
            text.contains("permission denied; run this as root or as the agent's user"),
            "{text}"
        );
        assert!(text.contains(agent.path.to_str().unwrap()) && text.lines().count() == 1, "{text}");
    }
    agent.end();
}

#[test]
fn the_socket_of_an_agent_that_was_killed_is_replaced() {
    let mut agent = Agent::start();
    agent.program.process.kill();
    assert!(fs::symlink_metadata(&agent.path).unwrap().file_type().is_socket());
    let output = agent.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("no agent listens on") && text.contains("start one"), "{text}");
    let mut next = agent_at(&agent.path, &[]);
    wait::until("the next agent listens", || answers(&agent.path));
    next.process.terminate();
    assert!(next.finish().0.success());
    assert!(!agent.path.exists());
}

#[test]
fn a_second_agent_leaves_the_first_one_its_socket() {
    let agent = Agent::start();
    let log = agent_at(&agent.path, &[]).fails();
    let process = format!("(process {})", agent.id());
    for part in [agent.path.to_str().unwrap(), "another agent", &process, "--control-socket"] {
        assert!(log.contains(part), "no {part:?} in {log}");
    }
    assert!(answers(&agent.path));
    agent.end();
}

/// Each of them finds the same dead socket. None may remove the new one of another.
#[test]
fn of_agents_that_start_at_once_exactly_one_gets_the_path() {
    let folder = Folder::new();
    let path = folder.file("agent.sock");
    drop(UnixListener::bind(&path).unwrap());
    let mut agents: Vec<Program> = (0..8).map(|_| agent_at(&path, &[])).collect();
    wait::until("all but one have ended", || {
        let ended = agents.iter_mut().map(|agent| agent.process.has_ended());
        ended.filter(|has_ended| *has_ended).count() == 7
    });
    assert!(answers(&path));
    for agent in &mut agents {
        match agent.process.has_ended() {
            true => assert!(agent.fails().contains("another agent")),
            false => {
                agent.process.terminate();
                assert!(agent.finish().0.success());
            }
        }
    }
    assert!(!path.exists());
}

#[test]
fn what_is_no_dead_socket_is_never_removed() {
    let folder = Folder::new();
    let target = folder.file("target");
    let _live = UnixListener::bind(&target).unwrap();
    let file = PathBuf::from(folder.write("file", "content"));
    let directory = folder.file("directory");
    fs::create_dir(&directory).unwrap();
    let link = folder.file("link");
    symlink(&target, &link).unwrap();
    for path in [&file, &directory, &link] {
        let before = fs::symlink_metadata(path).unwrap().ino();
        let log = agent_at(path, &[]).fails();
        assert!(log.contains(path.to_str().unwrap()) && log.contains("no socket"), "{log}");
        assert_eq!(fs::symlink_metadata(path).unwrap().ino(), before);
    }
    // A socket of another kind that is in use.
    let datagrams = folder.file("datagrams");
    let _datagrams = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
    let log = agent_at(&datagrams, &[]).fails();
    assert!(log.contains("cannot tell"), "{log}");
    assert!(datagrams.exists());
}

#[test]
fn a_path_that_cannot_be_made_is_an_error_with_the_path() {
    for path in ["/proc/nothing/agent.sock", "/dev/null/agent.sock"] {
        let log = agent_at(Path::new(path), &[]).fails();
        let folder = Path::new(path).parent().unwrap().to_str().unwrap();
        assert!(log.contains(folder), "{log}");
    }
}

#[test]
fn a_socket_of_another_agent_is_not_removed_at_the_end() {
    let mut agent = Agent::start();
    fs::remove_file(&agent.path).unwrap();
    let other = UnixListener::bind(&agent.path).unwrap();
    agent.program.process.terminate();
    assert!(agent.program.finish().0.success());
    assert!(agent.path.exists());
    drop(other);
}

#[test]
fn an_ordinary_user_is_warned_once_and_goes_on_without_the_default_socket() {
    if !is_root() {
        return skip("an ordinary user's agent", "another user's process needs root");
    }
    let (key, folder) = (Key::new(), Folder::new());
    let mut command = Command::new(program_for_all(&folder));
    command.args(["agent", "--plain", "--queue-key", &key.0.to_string()]);
    command.uid(NOBODY).gid(NOBODY).current_dir("/");
    let mut agent = Program::start_command(&mut command);
    let nobody = ipc::Command::Delete(id("nobody"));
    let taken = || ipc::send_and_wait(key.0, &nobody, Duration::from_secs(1)).is_ok();
    wait::until("the agent reads its queue", taken);
    agent.process.terminate();
    let (status, log) = agent.finish();
    assert!(status.success(), "{log}");
    let warnings: Vec<&str> =
        log.lines().filter(|line| line.contains("no control socket: /run/aiot-tunnel")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("WARN") && warnings[0].contains("--control-socket"), "{log}");
}

/// All programs with their defaults, in a mount namespace with a /run of its own.
#[test]
fn the_programs_meet_at_the_default_path() {
    const SCRIPT: &str = r#"
        mount -t tmpfs none /run || exit 77
        "$0" agent --plain --queue-mode 0622 & agent=$!
        for look in $(seq 1000); do
            [ -S /run/aiot-tunnel/agent.sock ] && break
            kill -0 $agent && sleep 0.02 || exit 1
        done
        "$0" status --json && "$0" send delete --tunnel t && "$0" send reconnect || exit 2
        "$0" agent --plain --queue-key off && exit 3
        # Users who may not use the socket may use the queue, if it is for them.
        other="setpriv --reuid 65534 --regid 65534 --clear-groups"
        $other "$0" send delete --tunnel t || exit 6
        $other "$0" send reconnect && exit 7
        stat -c '%a %n' /run/aiot-tunnel /run/aiot-tunnel/agent.sock
        kill $agent; wait $agent || exit 4
        [ -e /run/aiot-tunnel/agent.sock ] && exit 5
        "$0" send delete --tunnel t; [ $? = 1 ] && echo the end
    "#;
    let folder = Folder::new();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--ipc", "sh", "-c", SCRIPT]).arg(program_for_all(&folder));
    let output = match command.env("RUST_LOG", "warn").output() {
        Ok(output) if !matches!(output.status.code(), Some(77)) && is_root() => output,
        _ => return skip("the default path", "no mount namespaces"),
    };
    let (text, errors) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{output:?}");
    for part in
        ["{\"version\":", "755 /run/aiot-tunnel\n", "600 /run/aiot-tunnel/agent.sock\n", "the end"]
    {
        assert!(text.contains(part), "no {part:?} in {output:?}");
    }
    let second = "/run/aiot-tunnel/agent.sock: another agent (process ";
    assert!(errors.contains(second), "{errors}");
    assert!(errors.contains("no agent listens on /run/aiot-tunnel/agent.sock"), "{errors}");
    assert!(errors.contains("message queue 0x4d2"), "{errors}");
    let denied = "agent.sock: permission denied; run this as root or as the agent's user\n";
    assert!(errors.contains(denied), "{errors}");
}

#[test]
fn where_no_queue_can_be_the_agent_names_the_control_socket() {
    const SCRIPT: &str = r#"
        echo 0 > /proc/sys/kernel/msgmni || exit 77
        "$0" agent --plain --control-socket none; exit $?
    "#;
    let mut command = Command::new("unshare");
    command.args(["--ipc", "--mount-proc", "--fork", "--pid", "sh", "-c", SCRIPT]).arg(program());
    let output = match command.env("RUST_LOG", "warn").output() {
        Ok(output) if !matches!(output.status.code(), Some(77)) && is_root() => output,
        _ => return skip("a system without queues", "no namespaces for IPC"),
    };
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("use the control socket, with --queue-key off"), "{output:?}");
}
