//! The secrets that are made here: tokens, and the key of their digests.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aiot_tunnel::gateway::TokenKey;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

use crate::{Error, Result};

/// A new token or API key: 256 random bits, as 43 characters that every shell and URL takes.
#[must_use]
pub fn new_token() -> Zeroizing<String> {
    let bytes = Zeroizing::new(rand::random::<[u8; 32]>());
    Zeroizing::new(BASE64URL_NOPAD.encode(&*bytes))
}

/// The file of the key that the store's digests were made with. It is locked while this value lives, so
/// that no second gateway uses the store.
pub(crate) struct KeyFile {
    pub(crate) key: TokenKey,
    _locked: File,
}

/// The key's file is beside the store's.
pub(crate) fn path_beside(store: &Path) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push(".key");
    path.into()
}

impl KeyFile {
    /// Reads the key. Makes a new one if there is none, and `may_make` agrees.
    pub(crate) fn open(path: &Path, may_make: bool) -> Result<Self> {
        let wrong =
            |why: &dyn std::fmt::Display| Error::Store(format!("{}: {why}", path.display()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let (mut file, is_new) = match options.open(path) {
            Ok(file) => (file, false),
            Err(e) if e.kind() == io::ErrorKind::NotFound && may_make => {
                (options.create_new(true).open(path).map_err(|e| wrong(&e))?, true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(wrong(&"the key of the store is missing, and without it no token of the \
                                   store is known; restore it from a backup, or move the store away"));
            }
            Err(e) => return Err(wrong(&e)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(wrong(&"another gateway uses the store; each gateway needs its own"));
            }
            Err(TryLockError::Error(e)) => return Err(wrong(&e)),
        }
        if is_new {
            let key = Zeroizing::new(rand::random::<[u8; 32]>());
            let text = Zeroizing::new(HEXLOWER_PERMISSIVE.encode(&*key) + "\n");
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(|e| wrong(&e))?;
            return Ok(KeyFile { key: TokenKey::new(*key), _locked: file });
        }
        let mut text = Zeroizing::new(String::new());
        let bad = "not the key of a store: 64 hexadecimal digits are expected";
        (&file).take(1024).read_to_string(&mut text).map_err(|_| wrong(&bad))?;
        let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).map(Zeroizing::new);
        let bytes = bytes.map_err(|_| wrong(&bad))?;
        let key = <[u8; 32]>::try_from(&bytes[..]).map_err(|_| wrong(&bad))?;
        Ok(KeyFile { key: TokenKey::new(key), _locked: file })
    }
}

/// The key of a store that several gateways share: the same [token](new_token) for all of them.
#[derive(Clone)]
pub struct SharedKey(TokenKey);

impl SharedKey {
    /// Reads it from the content of its file.
    ///
    /// # Errors
    /// It is none. The text is not quoted.
    pub fn read(text: &str) -> std::result::Result<Self, String> {
        let bytes = BASE64URL_NOPAD.decode(text.trim().as_bytes()).map(Zeroizing::new);
        let key = bytes.ok().and_then(|bytes| <[u8; 32]>::try_from(&bytes[..]).ok());
        key.map(|key| SharedKey(TokenKey::new(key))).ok_or_else(|| {
            "not a key of a store; make one with: aiot-tunnel gen-token --out FILE".to_owned()
        })
    }

    pub(crate) fn key(&self) -> &TokenKey {
        &self.0
    }
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_key_is_a_token_with_256_bits() {
        assert!(SharedKey::read(&(new_token().to_string() + "\n")).is_ok());
        for bad in ["", "hush", &"A".repeat(42), &"A".repeat(44), &"0".repeat(64)] {
            let why = SharedKey::read(bad).expect_err(bad);
            assert!(why.contains("gen-token") && !why.contains("hush"), "{why}");
        }
    }
}
