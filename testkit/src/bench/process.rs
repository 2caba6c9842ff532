//! Processes under measurement: started, pinned to a processor, told what to do. What they use is
//! read with [`procfs`].

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use aiot_tunnel::listen::{self, Command as Order};
use aiot_tunnel::{ConnectParams, Port, Token, TunnelId};
use rustix::process::Pid;
use rustix::thread::{sched_setaffinity, CpuSet};

use crate::process::{Lines, Process};
use crate::procfs;
use crate::queue::Key;
use crate::wait::TIMEOUT;

/// The two processors that the figures are for: the far end's and the device's.
pub const FAR: usize = 0;
pub const NEAR: usize = 1;

/// Moves all threads of a process to one processor. Threads that they start later follow them.
pub fn pin(process: u32, processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    for task in procfs::tasks(process) {
        let id = task.file_name().and_then(|name| name.to_str()?.parse().ok());
        let id = id.and_then(Pid::from_raw).expect("a thread's id");
        match sched_setaffinity(Some(id), &set) {
            // The thread has ended in the meantime.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => panic!("pin process {process} to processor {processor}: {e}"),
        }
    }
}

/// This benchmark's program, running again in another role.
pub struct Role {
    process: Process,
    lines: Lines,
}

impl Role {
    pub fn start(arguments: &[String]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process = Process::start(command.args(arguments).stdout(Stdio::piped()));
        let lines = process.lines();
        Role { process, lines }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The next line that it prints.
    pub fn next_line(&self) -> String {
        self.lines.next_line()
    }

    /// Writes a line to its standard input.
    pub fn say(&mut self, line: &str) {
        self.process.write(format!("{line}\n").as_bytes());
    }

    /// Ends its standard input.
    pub fn hang_up(&mut self) {
        drop(self.process.take_stdin());
    }
}

/// The C demo as a device: the shared library, which is told over its queue what to connect to.
pub struct Demo {
    process: Process,
    key: Key,
}

impl Demo {
    /// Starts the program `demo`; `ca` is a file.
    pub fn start(demo: &str, service: u16, ca: Option<&str>) -> Self {
        let key = Key::new();
        let mut command = Command::new(demo);
        command.args(["-p", &service.to_string(), "-k", &key.0.to_string(), "-s", "bench"]);
        if let Some(ca) = ca {
            command.args(["-c", ca]);
        }
        let mut process = Process::start(command.stdout(Stdio::piped()));
        // Read to the end, so that what it prints does not make it wait.
        let mut output = process.take_stdout();
        let (ready, listens) = mpsc::channel();
        thread::spawn(move || {
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
        listens.recv_timeout(TIMEOUT).expect("the demo listens in time");
        Demo { process, key }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Adds a tunnel to a cloud at this port.
    pub fn add(&self, tunnel: usize, port: u16) {
        let token = Token::new("hush-bench").unwrap();
        let params =
            ConnectParams::new("localhost", Port::new(port).unwrap(), "/tunnel/b/dest", token);
        let id = TunnelId::new(&format!("b{tunnel}")).unwrap();
        listen::send(self.key.0, &Order::Add(id, params.unwrap())).unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // In order, so that it removes its queue itself.
        self.process.terminate();
        self.process.wait_within(TIMEOUT);
    }
}
