//! Tells when one of some files may have changed, by inotify. The folders are watched, not the files:
//! editors and certificate tools put a new file in the place of the old one.

use std::collections::BTreeSet;
use std::fs;
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

/// Most links on the way to a file.
const MOST_LINKS: usize = 40;

/// Calls `changed` when the watch has begun and after each change in the folders of the files, until it
/// returns false.
pub(super) fn files(files: &[PathBuf], changed: impl Fn() -> bool) -> io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    loop {
        // Again each time: a link may lead to another folder now.
        for folder in folders(files) {
            match add(&fd, &folder) {
                // A link is seldom changed, and its folder may be closed to this user.
                Err(e) if !files.iter().any(|file| of(file) == folder) => log::debug!("{e}"),
                result => result?,
            }
        }
        // What has changed before tells nobody.
        if !changed() {
            return Ok(());
        }
        wait(&fd, None)?;
        while wait(&fd, Some(&QUIET))? {}
    }
}

/// Where the files are, and where each link is on the way to them.
fn folders(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    files.iter().for_each(|file| follow(file, &mut folders, MOST_LINKS));
    folders
}

/// The folder of a file.
fn of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn follow(file: &Path, folders: &mut BTreeSet<PathBuf>, links: usize) {
    folders.insert(of(file));
    let mut parts = file.components();
    let mut way = PathBuf::new();
    while let Some(part) = parts.next() {
        let folder = way.clone();
        way.push(part);
        if let Some(links) = links.checked_sub(1) {
            if let Ok(target) = fs::read_link(&way) {
                folders.insert(of(&way));
                return follow(&folder.join(target).join(parts.as_path()), folders, links);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use aiot_tunnel_testkit::folder::Folder;

    use super::*;

    #[test]
    fn every_link_on_the_way_to_a_file_is_watched() {
        let folder = Folder::new();
        let at = |name: &str| folder.file(name);
        for name in ["near", "far", "far/v1"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("far/v1/list.json"), "[]").unwrap();
        symlink("v1", at("far/cur")).unwrap();
        symlink("../far/cur/list.json", at("near/list.json")).unwrap();
        let found = folders(&[at("near/list.json")]);
        let names: BTreeSet<PathBuf> =
            found.iter().filter_map(|folder| folder.canonicalize().ok()).collect();
        for name in ["near", "far", "far/v1"] {
            assert!(names.contains(&at(name).canonicalize().unwrap()), "{name}: {names:?}");
        }
        assert_eq!(folders(&["list.json".into()]), BTreeSet::from([PathBuf::from(".")]));
        // Links in a circle.
        symlink("two", at("one")).unwrap();
        symlink("one", at("two")).unwrap();
        assert!(folders(&[at("one")]).len() < 10);
    }
}
