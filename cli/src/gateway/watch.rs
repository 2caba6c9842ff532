//! Tells when one of some files may have changed, by inotify. The folders are watched, not the files:
//! editors and certificate tools put a new file in the place of the old one.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use rustix::io::Errno;

/// What is written in several steps, such as a certificate and its key, is looked at when nothing has
/// happened for so long.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Calls `changed` after each change in the folders of the files, until it returns false.
pub(super) fn files(files: &[PathBuf], changed: impl Fn() -> bool) -> io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    loop {
        // Again each time: a link may lead to another folder now.
        for folder in folders(files) {
            add(&fd, &folder)?;
        }
        wait(&fd, None)?;
        while wait(&fd, Some(&QUIET))? {}
        if !changed() {
            return Ok(());
        }
    }
}

/// Where the files are, and where the files are that they are links to.
fn folders(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let of = |path: &Path| match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let links = files.iter().filter_map(|path| path.canonicalize().ok());
    files.iter().map(|path| of(path)).chain(links.map(|path| of(&path))).collect()
}

fn add(fd: &OwnedFd, folder: &Path) -> io::Result<()> {
    use inotify::WatchFlags as On;
    let what = On::CLOSE_WRITE | On::MOVED_TO | On::MOVED_FROM | On::CREATE | On::DELETE;
    match inotify::add_watch(fd, folder, what | On::ONLYDIR) {
        Ok(_) => Ok(()),
        // It is being replaced.
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(io::Error::other(format!("{}: {e}", folder.display()))),
    }
}

/// Waits for events and drops them: what has changed, the files themselves tell. Returns false after
/// `timeout`.
fn wait(fd: &OwnedFd, timeout: Option<&Timespec>) -> io::Result<bool> {
    loop {
        match poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(fd, &mut buffer);
    loop {
        match events.next() {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}
