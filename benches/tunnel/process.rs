//! Processes under measurement: started, pinned to a processor, read through `/proc`, killed.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use aiot_tunnel::ipc::{self, Command as Order};
use aiot_tunnel::{ConnectParams, Port, Token, TunnelId};

/// Both processors of the machine that the figures are for.
pub const FAR: usize = 0;
pub const NEAR: usize = 1;

/// A child that does not outlive its value.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Self {
        Process(command.stdin(Stdio::piped()).spawn().expect("the program starts"))
    }

    /// This very program in another role.
    pub fn role(arguments: &[String]) -> Self {
        let program = std::env::current_exe().unwrap();
        Process::start(Command::new(program).args(arguments).stdout(Stdio::piped()))
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Writes to its standard input.
    pub fn say(&mut self, line: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Ends its standard input.
    pub fn hang_up(&mut self) {
        drop(self.0.stdin.take());
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn pin(&self, processor: usize) {
        pin(self.id(), processor);
    }

    /// [`cpu`] of this process.
    pub fn cpu(&self) -> f64 {
        cpu(self.id())
    }

    /// How often its threads went to sleep by themselves.
    pub fn sleeps(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten();
        let counts =
            tasks.map(|task| field(&task.path().join("status"), "voluntary_ctxt_switches"));
        counts.sum()
    }

    /// Resident and private memory, in KiB.
    pub fn memory(&self) -> (u64, u64) {
        let rollup = format!("/proc/{}/smaps_rollup", self.id());
        let of = |name| field(Path::new(&rollup), name);
        (of("Rss"), of("Private_Clean") + of("Private_Dirty"))
    }

    /// The most memory that was resident at once, in KiB.
    pub fn peak(&self) -> u64 {
        field(Path::new(&format!("/proc/{}/status", self.id())), "VmHWM")
    }

    pub fn threads(&self) -> usize {
        self.entries("task")
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        self.entries("fd")
    }

    fn entries(&self, of: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{of}", self.id())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn field(file: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Seconds of processor time that a process's threads have used, those that have ended left out.
pub fn cpu(process: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
    let nanos = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    nanos.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum::<u64>() as f64 / 1e9
}

/// All threads of a process on one processor.
pub fn pin(process: u32, processor: usize) {
    let pin = || {
        Command::new("taskset")
            .args(["-a", "-c", "-p", &processor.to_string(), &process.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("taskset is there")
    };
    // It fails when a thread ends under its eyes.
    assert!((0..10).any(|_| pin().success()), "taskset pins process {process}");
}

/// The C demo: the shared library, told over its queue what to connect to.
pub struct Device {
    pub process: Process,
    key: i32,
}

impl Device {
    pub fn start(demo: &str, service: u16, ca: Option<&str>) -> Self {
        let key = 0x4000_0000 | (rand::random::<i32>() & 0x3fff_ffff);
        let mut command = Command::new(demo);
        command.args(["-p", &service.to_string(), "-k", &key.to_string(), "-s", "bench"]);
        if let Some(ca) = ca {
            command.args(["-c", ca]);
        }
        let mut process = Process::start(command.stdout(Stdio::piped()));
        // What it prints must not make it wait.
        let mut output = process.0.stdout.take().unwrap();
        let (ready, listens) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
            while let Ok(length @ 1..) = output.read(&mut chunk) {
                if seen.len() < 4096 {
                    seen.extend_from_slice(&chunk[..length]);
                    if String::from_utf8_lossy(&seen).contains("Listen") {
                        let _ = ready.send(());
                    }
                }
            }
        });
        listens.recv_timeout(std::time::Duration::from_secs(20)).expect("the demo listens");
        Device { process, key }
    }

    pub fn add(&self, tunnel: usize, port: u16) {
        let token = Token::new("hush-bench").unwrap();
        let params =
            ConnectParams::new("localhost", Port::new(port).unwrap(), "/tunnel/b/dest", token);
        let id = TunnelId::new(&format!("b{tunnel}")).unwrap();
        ipc::send(self.key, &Order::Add(id, params.unwrap())).unwrap();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Asked to leave, so that it takes its queue along.
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.0.wait();
    }
}
