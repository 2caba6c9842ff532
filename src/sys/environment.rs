//! Secrets in the environment.

use std::ffi::{CStr, CString};
use std::{fs, io};

use zeroize::{Zeroize, Zeroizing};

/// Takes a variable out of the environment and wipes its value. Fails, and changes nothing, when
/// the process has more than one thread.
pub(crate) fn take_variable(name: &str) -> io::Result<Option<Zeroizing<String>>> {
    let name = CString::new(name)?;
    // With one thread there is nobody who could read the environment now, or start another thread.
    if fs::read_dir("/proc/self/task")?.take(2).count() != 1 {
        return Err(io::Error::other("the process has more than one thread already"));
    }
    // SAFETY: a NUL-terminated name; the value is used before anything changes the environment.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return Ok(None);
    }
    // SAFETY: getenv gives a NUL-terminated text, and no other thread is there to change it.
    let length = unsafe { CStr::from_ptr(value) }.count_bytes();
    // SAFETY: so many bytes before the NUL; the environment's memory is writable.
    let bytes = unsafe { std::slice::from_raw_parts_mut(value.cast::<u8>(), length) };
    let text = std::str::from_utf8(bytes).ok().map(|text| Zeroizing::new(text.to_owned()));
    bytes.zeroize();
    // SAFETY: a NUL-terminated name; no other thread reads the environment.
    unsafe { libc::unsetenv(name.as_ptr()) };
    Ok(text)
}
