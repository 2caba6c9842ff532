//! Child processes of tests: the program under test, and the test program itself, run again. None
//! of them outlives its value. What `/proc` tells about them is in [`procfs`](crate::procfs).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{kill_process, kill_process_group, Pid, Signal};

use crate::wait::TIMEOUT;

/// Names the test that a child shall play its part of.
const SCENE: &str = "AIOT_TUNNEL_TEST_SCENE";

/// The `aiot-tunnel` program that cargo has built beside this executable, in `target/PROFILE`.
pub fn program() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let mut folder = executable.parent().unwrap();
    // Tests and benchmarks are one level down.
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap();
    }
    let program = folder.join(format!("aiot-tunnel{}", std::env::consts::EXE_SUFFIX));
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    };
    assert!(
        program.exists(),
        "there is no {}; build it: cargo build --workspace --profile {profile} --bin aiot-tunnel",
        program.display()
    );
    program
}

/// A child that is killed when its value is dropped.
pub struct Process(Child);

impl Process {
    /// Starts a program with its standard input piped.
    pub fn start(command: &mut Command) -> Self {
        Process::spawn(command.stdin(Stdio::piped()))
    }

    /// Starts a program whose standard input is the command's.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn();
        let program = command.get_program().to_string_lossy();
        Process(child.unwrap_or_else(|e| panic!("start {program}: {e}")))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Writes to its standard input.
    pub fn write(&mut self, bytes: &[u8]) {
        self.0.stdin.as_mut().expect("an open standard input").write_all(bytes).unwrap();
    }

    /// Its standard input. Dropping it is the end of file.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.0.stdin.take().expect("an open standard input")
    }

    /// Its piped standard output.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.0.stdout.take().expect("a piped standard output")
    }

    /// The lines of its piped standard output.
    pub fn lines(&mut self) -> Lines {
        self.lines_after("")
    }

    /// What follows the first `mark` in each line of its piped standard output; lines without it
    /// are left out.
    pub fn lines_after(&mut self, mark: &'static str) -> Lines {
        let stdout = BufReader::new(self.take_stdout());
        let (sender, lines) = mpsc::channel();
        // Reads to the end, whoever listens: a full pipe would stop the child.
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some((_, text)) = line.split_once(mark) {
                    let _ = sender.send(text.to_owned());
                }
            }
        });
        Lines(lines)
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Sends SIGINT.
    pub fn interrupt(&mut self) {
        self.signal(Signal::INT);
    }

    /// Sends SIGTERM.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGHUP.
    pub fn hang_up(&mut self) {
        self.signal(Signal::HUP);
    }

    /// Sends SIGUSR1.
    pub fn user_signal(&mut self) {
        self.signal(Signal::USR1);
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Stops it as a debugger would: it keeps its sockets and does nothing. A drop ends it all the
    /// same.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        // Once it has been waited for, its id may be another process's.
        if !self.has_ended() {
            kill_process(Pid::from_child(&self.0), signal).unwrap();
        }
    }

    /// Waits for its end; panics after [`TIMEOUT`].
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(TIMEOUT).unwrap_or_else(|| panic!("process {} does not end", self.id()))
    }

    /// Waits for its end, for so long.
    pub fn wait_within(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if Instant::now() >= deadline => return None,
                None => thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child with all processes that it starts: they end with its value, too.
pub struct Group(pub Process);

impl Group {
    /// Starts a program whose standard input is the command's.
    pub fn spawn(command: &mut Command) -> Self {
        Group(Process::spawn(command.process_group(0)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.0.id() as i32) {
            // An error says that none is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Lines that a child writes.
pub struct Lines(mpsc::Receiver<String>);

impl Lines {
    /// The next line; panics if none comes in time.
    pub fn next_line(&self) -> String {
        self.0.recv_timeout(TIMEOUT).expect("a line of the child in time")
    }

    /// The next line that contains a text; panics if none comes in time.
    pub fn expect(&self, text: &str) -> String {
        loop {
            let line = self.0.recv_timeout(TIMEOUT);
            let line = line.unwrap_or_else(|_| panic!("the child does not say {text:?} in time"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The lines that are there and were not taken yet.
    pub fn so_far(&self) -> Vec<String> {
        self.0.try_iter().collect()
    }
}

impl IntoIterator for Lines {
    type Item = String;
    type IntoIter = mpsc::IntoIter<String>;

    /// All lines until the child closes its standard output.
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// This test program again, with one test only. In the child, [`is_scene`] holds for that test.
pub fn test_again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(SCENE, test);
    command
}

/// Whether this process is the child that [`test_again`] has made for a test.
pub fn is_scene(test: &str) -> bool {
    std::env::var_os(SCENE).is_some_and(|name| name == *test)
}

/// Runs a test's body in a process of its own, because it would disturb other tests.
pub fn in_a_child(test: &str, body: fn()) {
    if is_scene(test) {
        return body();
    }
    let output = test_again(test).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{text}", output.status);
    assert!(text.contains("1 passed"), "{text}");
}
