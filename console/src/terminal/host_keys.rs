//! The host keys that ssh remembers: a file for each tunnel.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aiot_tunnel::TunnelId;
use rustix::process::geteuid;

/// Longest name of a file on Linux.
const MAX_NAME: usize = 255;

/// A directory that only this user may enter.
#[derive(Debug)]
pub(super) struct HostKeys(PathBuf);

impl HostKeys {
    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// The system's; others may put keys there.
    pub(super) fn in_directory(path: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let found = std::fs::metadata(&path)?;
        if found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
            let why = "others may write there, or own it; host keys need a directory of the gateway's user \
                       alone (chmod 700)";
            return Err(io::Error::other(why));
        }
        Ok(HostKeys(path))
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0
    }

    /// Makes the tunnel's file if it is not there. Returns its name.
    pub(super) fn prepare(&self, tunnel: &TunnelId) -> io::Result<String> {
        let name = file_name(tunnel)?;
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.0.join(&name))?;
        Ok(name)
    }

    /// Whether a key of the tunnel's device is remembered.
    pub(super) fn knows(&self, tunnel: &TunnelId) -> bool {
        let file = file_name(tunnel).map(|name| self.0.join(name));
        file.and_then(std::fs::metadata).is_ok_and(|file| file.len() > 0)
    }

    /// Whether there was a key to forget.
    pub(super) fn forget(&self, tunnel: &TunnelId) -> io::Result<bool> {
        let known = self.knows(tunnel);
        match std::fs::remove_file(self.0.join(file_name(tunnel)?)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(known),
        }
    }
}

/// The id, percent-encoded: one component of a path, and without a character that ssh's options treat
/// specially, other than the per cent sign.
fn file_name(tunnel: &TunnelId) -> io::Result<String> {
    let mut name = String::new();
    for (at, byte) in tunnel.as_str().bytes().enumerate() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-_.:@+,".contains(&byte);
        // Neither "..", nor a hidden file.
        if is_plain && (at > 0 || byte != b'.') {
            name.push(byte.into());
        } else {
            name += &format!("%{byte:02X}");
        }
    }
    if name.len() > MAX_NAME {
        let why = "the tunnel's id is too long for the name of a file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use aiot_tunnel_testkit::folder::Folder;

    use super::*;

    fn id(text: &str) -> TunnelId {
        TunnelId::new(text).unwrap()
    }

    #[test]
    fn a_directory_in_which_others_may_write_is_refused() {
        let folder = Folder::new();
        let path = folder.file("keys");
        std::fs::create_dir(&path).unwrap();
        let allow = |mode| std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        for mode in [0o777, 0o770, 0o702] {
            allow(mode);
            let refused = HostKeys::in_directory(path.clone()).unwrap_err();
            assert!(refused.to_string().contains("chmod 700"));
        }
        allow(0o755);
        assert!(HostKeys::in_directory(path.clone()).is_ok());
    }

    #[test]
    fn each_id_has_a_file_of_its_own_in_the_directory() {
        for (tunnel, name) in [
            ("t1", "t1"),
            ("pump-7.north", "pump-7.north"),
            (".", "%2E"),
            ("..", "%2E."),
            ("a/b", "a%2Fb"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            ("50%", "50%25"),
            ("$HOME ~\"'", "%24HOME%20%7E%22%27"),
            ("\u{fc}", "%C3%BC"),
        ] {
            assert_eq!(file_name(&id(tunnel)).unwrap(), name);
        }
        assert!(file_name(&id(&"%".repeat(127))).is_err());
        assert_eq!(file_name(&id(&"a".repeat(127))).unwrap().len(), 127);
    }

    #[test]
    fn nobody_else_reads_the_files_and_a_key_is_forgotten_alone() {
        let folder = Folder::new();
        let keys = HostKeys::in_directory(folder.file("a/keys")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(keys.directory()), 0o700);
        for tunnel in ["t1", "t2"] {
            let name = keys.prepare(&id(tunnel)).unwrap();
            let file = keys.directory().join(name);
            assert_eq!(mode(&file), 0o600);
            assert!(!keys.knows(&id(tunnel)));
            std::fs::write(&file, "device ssh-ed25519 AAAA\n").unwrap();
            keys.prepare(&id(tunnel)).unwrap();
            assert!(keys.knows(&id(tunnel)));
        }
        assert!(keys.forget(&id("t1")).unwrap());
        assert!(!keys.knows(&id("t1")) && keys.knows(&id("t2")));
        assert!(!keys.forget(&id("t1")).unwrap());
    }
}
