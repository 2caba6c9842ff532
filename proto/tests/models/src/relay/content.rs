//! What the streams of the model hold: bytes that tell their stream and their place in it.

use std::sync::OnceLock;

use super::IDS;

/// The salt of what the cloud sends for a session id.
pub(super) fn down(session: usize) -> usize {
    session
}

/// The salt of what the `nth` service of a session id sends.
pub(super) fn up(session: usize, nth: usize) -> usize {
    IDS + session + nth * IDS
}

/// A stream's bytes from a position on, in parts; streams differ by their salt.
pub(crate) fn content(
    salt: usize,
    at: usize,
    length: usize,
) -> impl Iterator<Item = &'static [u8]> {
    let table = table();
    let (mut at, mut left) = ((salt * 7919 + at) % table.len(), length);
    std::iter::from_fn(move || {
        let part = &table[at..(at + left).min(table.len())];
        (at, left) = ((at + part.len()) % table.len(), left - part.len());
        (!part.is_empty()).then_some(part)
    })
}

pub(crate) fn assert_content(what: &str, salt: usize, at: usize, bytes: &[u8]) {
    let mut rest = bytes;
    for part in content(salt, at, bytes.len()) {
        assert!(rest.starts_with(part), "{what}: bytes lost, reordered or another session's");
        rest = &rest[part.len()..];
    }
}

/// Random bytes, the same in every run. Their number is prime.
fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut state = 1u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        (0..65_521).map(|_| next()).collect()
    })
}
