//! Secrets that come in the environment. A file of its own, since the program needs it too.

use std::ffi::{CStr, CString};

use zeroize::{Zeroize, Zeroizing};

/// The value of a variable, which is wiped where the kernel has put it, so that it no longer
/// stands in `/proc/PID/environ`, and removed, so that no child inherits it. `None` when it is not
/// set or not UTF-8. Only while the process has one thread, as with everything that changes the
/// environment.
pub(crate) fn take_variable(name: &str) -> Option<Zeroizing<String>> {
    let name = CString::new(name).ok()?;
    // SAFETY: a NUL-terminated name; the value is used before anything changes the environment.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: getenv gives a NUL-terminated text, and no other thread is there to change it.
    let length = unsafe { CStr::from_ptr(value) }.count_bytes();
    // SAFETY: so many bytes before the NUL; the environment's memory is writable.
    let bytes = unsafe { std::slice::from_raw_parts_mut(value.cast::<u8>(), length) };
    let text = std::str::from_utf8(bytes).ok().map(|text| Zeroizing::new(text.to_owned()));
    bytes.zeroize();
    // SAFETY: a NUL-terminated name; no other thread reads the environment.
    unsafe { libc::unsetenv(name.as_ptr()) };
    text
}
