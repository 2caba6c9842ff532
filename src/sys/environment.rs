//! Removes secrets from the environment.

use std::ffi::{CStr, CString};
use std::{fs, io};

use zeroize::{Zeroize, Zeroizing};

/// Removes a variable from the environment and wipes its value. Returns the value. Fails and
/// changes nothing if the process has more than one thread.
pub(crate) fn take_variable(name: &str) -> io::Result<Option<Zeroizing<String>>> {
    let name = CString::new(name)?;
    // If this is the only thread, no other can read the environment now or start another thread.
    if fs::read_dir("/proc/self/task")?.take(2).count() != 1 {
        return Err(io::Error::other("the process has more than one thread already"));
    }
    // SAFETY: `name` is NUL-terminated. The value is used before anything changes the environment.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return Ok(None);
    }
    // SAFETY: getenv returns a NUL-terminated text, and there is no other thread to change it.
    let length = unsafe { CStr::from_ptr(value) }.count_bytes();
    // SAFETY: `length` bytes stand before the NUL, and the memory of the environment is writable.
    let bytes = unsafe { std::slice::from_raw_parts_mut(value.cast::<u8>(), length) };
    let text = std::str::from_utf8(bytes).ok().map(|text| Zeroizing::new(text.to_owned()));
    bytes.zeroize();
    // SAFETY: `name` is NUL-terminated, and no other thread reads the environment.
    unsafe { libc::unsetenv(name.as_ptr()) };
    Ok(text)
}
