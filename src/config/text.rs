//! The rules that texts from outside must keep. A text that passes cannot change the shape of a
//! header, a URL or a log line.

use crate::error::{Error, Result};

/// Longest tunnel id and service type, in bytes. The C structs hold 127 and a NUL.
pub(super) const MAX_NAME: usize = 127;
/// Longest host name, in bytes (RFC 1035).
pub(super) const MAX_HOST: usize = 253;
/// Longest path and longest token, in bytes.
pub(super) const MAX_PATH: usize = 2048;

/// Takes the brackets off an IPv6 address.
pub(super) fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

/// A tunnel id or a service type: 1 to 127 bytes without control characters.
pub(super) fn check_name(field: &'static str, text: &str) -> Result<()> {
    check_length(field, text, 1, MAX_NAME)?;
    if text.chars().any(char::is_control) {
        return Err(Error::invalid(field, "holds a control character"));
    }
    Ok(())
}

/// A host name or address, without brackets: 1 to 253 bytes of visible ASCII. It reaches the
/// resolver, the certificate check and the `Host` header.
pub(super) fn check_host(host: &str) -> Result<()> {
    check_visible("host", host, 1, MAX_HOST)?;
    if host.contains(['/', '?', '#', '@', '[', ']', '\\']) {
        return Err(Error::invalid("host", "not a host name or address"));
    }
    Ok(())
}

/// `least` (0 or 1) to `most` bytes of visible ASCII.
pub(super) fn check_visible(
    field: &'static str,
    text: &str,
    least: usize,
    most: usize,
) -> Result<()> {
    check_length(field, text, least, most)?;
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::invalid(field, "holds a byte that is not visible ASCII"));
    }
    Ok(())
}

fn check_length(field: &'static str, text: &str, least: usize, most: usize) -> Result<()> {
    match text.len() {
        length if length < least => Err(Error::invalid(field, "must not be empty")),
        length if length > most => {
            Err(Error::invalid(field, format!("has {length} bytes; {most} are allowed")))
        }
        _ => Ok(()),
    }
}
