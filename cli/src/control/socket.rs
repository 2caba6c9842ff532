//! The socket's file: made with its final rights at most, never in place of a live one, and removed
//! only while it is this process's own.

use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{lchown, DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{fchmod, flock, FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    bind, connect, listen, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};

use super::options::Options;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;
/// How long to wait for another process that begins at the same path at this moment.
const TURN: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Why there is no socket. The text names the path.
#[derive(Debug)]
pub(crate) enum NoSocket {
    /// Something is there that must stay.
    Taken(String),
    /// The system refuses something.
    Failed(String),
}

impl fmt::Display for NoSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (NoSocket::Taken(why) | NoSocket::Failed(why)) = self;
        f.write_str(why)
    }
}

impl std::error::Error for NoSocket {}

type Result<T> = std::result::Result<T, NoSocket>;

/// The file of a listening socket. Dropping it removes the file if it is still this one.
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Listens at the path of the options.
pub(super) fn open(options: &Options) -> Result<(UnixListener, SocketFile)> {
    let path = &options.path;
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_folder(folder).map_err(|e| failed(folder, e))?;
    let _turn = Turn::take(folder);
    make_room(path)?;
    listen_at(options).map_err(|e| failed(path, e))
}

fn failed(path: &Path, e: io::Error) -> NoSocket {
    NoSocket::Failed(format!("{}: {e}", path.display()))
}

fn listen_at(options: &Options) -> io::Result<(UnixListener, SocketFile)> {
    let path = &options.path;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux makes the file with the permissions of the socket, less the umask. So there is no moment
    // in which the file has more. The owner is still this process's user, so nobody else gets any.
    fchmod(&socket, Mode::from_raw_mode(options.mode & 0o600))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    let found = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.clone(), device: found.dev(), inode: found.ino() };
    if let Some(owner) = options.owner {
        let given = lchown(path, Some(owner.uid), owner.gid);
        given.map_err(|e| io::Error::new(e.kind(), format!("give it to {owner}: {e}")))?;
    }
    fs::set_permissions(path, Permissions::from_mode(options.mode))?;
    listen(&socket, BACKLOG)?;
    Ok((UnixListener::from(socket), file))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the last folder of the path, if it is missing: /run is empty after each boot.
fn make_folder(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(folder) {
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o755)),
        Err(_) if folder.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

/// The turn of one process to look at a path and to replace what is there. Two that begin at once
/// would both find the same dead socket, and the second would remove the first one's.
struct Turn(#[allow(dead_code)] Option<File>);

impl Turn {
    /// Whoever may read the folder may hold its lock, so it is not waited for for ever.
    fn take(folder: &Path) -> Self {
        let Ok(folder) = File::open(folder) else { return Turn(None) };
        let deadline = Instant::now() + TURN;
        while flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= deadline {
                return Turn(None);
            }
            thread::sleep(LOOK_AGAIN);
        }
        Turn(Some(folder))
    }
}

/// Removes a socket at the path to which nobody listens. Everything else stays, and is an error.
fn make_room(path: &Path) -> Result<()> {
    let shown = path.display();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(path, e)),
    };
    if !found.file_type().is_socket() {
        let what = format!("{shown}: there is a file that is no socket; it stays as it is");
        return Err(NoSocket::Taken(what));
    }
    match listener_of(path) {
        Ok(process) => {
            let process = process.map_or(String::new(), |id| format!(" (process {id})"));
            Err(NoSocket::Taken(format!(
                "{shown}: another agent{process} listens there; stop it, or choose another path with \
                 --control-socket"
            )))
        }
        Err(Errno::CONNREFUSED) => {
            let removed = fs::remove_file(path);
            removed.map_err(|e| {
                NoSocket::Failed(format!(
                    "{shown}: remove the socket of an agent that has ended: {e}"
                ))
            })?;
            log::debug!("{shown}: removed the socket of an agent that has ended");
            Ok(())
        }
        Err(e) => {
            let what = format!("{shown}: cannot tell whether an agent listens there: {e}");
            Err(NoSocket::Failed(what))
        }
    }
}

/// The process that listens to a socket; `CONNREFUSED` when there is none.
fn listener_of(path: &Path) -> std::result::Result<Option<i32>, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Ok(()) => {
            let process = socket_peercred(&probe).ok();
            Ok(process.map(|peer| peer.pid.as_raw_nonzero().get()))
        }
        // Its queue of clients is full.
        Err(Errno::AGAIN) => Ok(None),
        Err(e) => Err(e),
    }
}
