//! Network namespaces without names: they live as long as a descriptor or a process in them,
//! so nothing is left behind even by a test that is killed.
#![allow(dead_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

/// One network namespace.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> io::Result<Self> {
        thread::scope(|scope| {
            let made = scope.spawn(|| {
                // SAFETY: no pointers; it changes this thread, which ends here, and no other.
                check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
                File::open("/proc/thread-self/ns/net").map(Namespace)
            });
            made.join().unwrap()
        })
    }

    /// As `ip` takes it for a namespace's name.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `work` inside, on a thread of its own. Sockets and processes made there stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // SAFETY: no pointers; the descriptor is open; it changes this thread only.
                check(unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) }).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) {
        if let Err(e) = self.try_ip(arguments) {
            panic!("{e}");
        }
    }

    pub fn try_ip(&self, arguments: &str) -> Result<(), String> {
        let output = self.within(|| Command::new("ip").args(arguments.split(' ')).output());
        let output = output.map_err(|e| format!("ip {arguments}: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Puts a file in the place of another, for this thread and the processes that it starts.
pub fn mount_over(file: &str, place: &str) -> io::Result<()> {
    let (file, place) = (CString::new(file)?, CString::new(place)?);
    let (root, none) = (c"/", std::ptr::null());
    // SAFETY: no pointers; it changes this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the texts are NUL-terminated and live; the other pointers may be null.
    check(unsafe { libc::mount(none, root.as_ptr(), none, private, std::ptr::null()) })?;
    // SAFETY: as above.
    check(unsafe {
        libc::mount(file.as_ptr(), place.as_ptr(), none, libc::MS_BIND, std::ptr::null())
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
