//! Keeps a token for the `access` that ssh starts. Its environment would be ssh's, too, which sends
//! variables to the device if its configuration says so, and hands them to every command that it runs.
//! A descriptor does not get there: ssh closes those that it does not know. So a child process holds it
//! for as long as ssh runs.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{memfd_create, MemfdFlags};
use rustix::process::{getpid, getppid, set_parent_process_death_signal, Signal};

use crate::cli::HoldTokenArgs;
use crate::{ssh, Result};

/// Starts a process that holds a token until this process ends, whatever it becomes until then.
/// Returns the file that has the token. It is only in memory, and readable for this user alone.
pub(crate) fn hold(token: &str) -> Result<PathBuf> {
    let failed = |e: std::io::Error| format!("hold the token for ssh: {e}");
    let memory = memfd_create("token", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut file = File::from(memory);
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(token.as_bytes()).map_err(failed)?;
    let mut command = Command::new(ssh::this_program()?);
    command.arg("hold-token").arg(getpid().to_string());
    // Whoever waits for the end of ssh's output does not wait for the holder.
    command.stdin(file).stdout(Stdio::null()).stderr(Stdio::null());
    let holder = command.spawn().map_err(failed)?;
    Ok(PathBuf::from(format!("/proc/{}/fd/0", holder.id())))
}

/// Holds standard input until the parent ends.
pub(crate) fn run(args: &HoldTokenArgs) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    while getppid().is_some_and(|parent| parent.as_raw_nonzero().get() == args.parent) {
        std::thread::park();
    }
    Ok(())
}
