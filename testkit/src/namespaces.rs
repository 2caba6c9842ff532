//! Network namespaces without names. They live as long as a descriptor or a process in them, so
//! even a test that is killed leaves nothing behind. Networks made of them are the tests' affair.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::mount::{mount_bind, mount_change, MountPropagationFlags};
use rustix::thread::{move_into_link_name_space, LinkNameSpaceType, UnshareFlags};

/// One network namespace.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> io::Result<Self> {
        thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(UnshareFlags::NEWNET)?;
                File::open("/proc/thread-self/ns/net").map(Namespace)
            });
            made.join().unwrap()
        })
    }

    /// A path that the command `ip` accepts as a namespace's name.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` inside, on a thread of its own. Sockets and processes made there stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.0.as_fd(), network).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs the command `ip` inside.
    pub fn ip(&self, arguments: &str) {
        if let Err(e) = self.try_ip(arguments) {
            panic!("{e}");
        }
    }

    /// Runs the command `ip` inside; the error says what it printed.
    pub fn try_ip(&self, arguments: &str) -> Result<(), String> {
        self.try_run("ip", arguments)
    }

    /// Runs a command inside; the error says what it printed.
    pub fn try_run(&self, program: &str, arguments: &str) -> Result<(), String> {
        let output = self.within(|| Command::new(program).args(arguments.split(' ')).output());
        let output = output.map_err(|e| format!("{program} {arguments}: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {arguments}: {}", said.trim()))
    }
}

/// Replaces a file by another one, for this thread and the processes that it starts.
pub fn mount_over(file: &str, place: &str) -> io::Result<()> {
    mount_all_over(&[(Path::new(file), place)])
}

/// Replaces files and directories by others, for this thread and the processes that it starts.
pub fn mount_all_over(replacements: &[(&Path, &str)]) -> io::Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    for (own, place) in replacements {
        mount_bind(*own, *place)?;
    }
    Ok(())
}

/// Gives this thread a namespace of its own.
fn unshare(namespace: UnshareFlags) -> io::Result<()> {
    assert!(!namespace.contains(UnshareFlags::FILES));
    // SAFETY: the table of descriptors stays shared, which is what the function's promise is about.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespace) }?)
}
