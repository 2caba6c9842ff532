//! Calls a function at the end of a thread, however the thread ends.

use std::ffi::c_void;
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Once;

use super::at_exit;

/// The key whose destructor calls the function, plus 1. 0: there is none.
static KEY: AtomicUsize = AtomicUsize::new(0);

/// Calls `function` at the end of the calling thread, in place of an earlier one. `None`: calls none.
///
/// The destructors of Rust's thread-locals are not enough. If the main thread of a program ends with
/// `pthread_exit`, glibc does not run them. If they do run, that is before `function`.
pub(crate) fn at_thread_end(function: Option<fn()>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(create_key);
    let Some(key) = KEY.load(Ordering::Acquire).checked_sub(1) else { return };
    let value = function.map_or(ptr::null(), |function| function as *const c_void);
    // SAFETY: the key was created and not deleted. The value is not dereferenced.
    unsafe { libc::pthread_setspecific(key as libc::pthread_key_t, value) };
}

fn create_key() {
    let mut key = 0;
    // SAFETY: the key is written to `key`. Its destructor is part of this library, which deletes the
    // key before it is unloaded.
    if unsafe { libc::pthread_key_create(&mut key, Some(call)) } == 0 {
        KEY.store(key as usize + 1, Ordering::Release);
        at_exit(delete_key);
    }
}

extern "C" fn delete_key() {
    if let Some(key) = KEY.swap(0, Ordering::AcqRel).checked_sub(1) {
        // SAFETY: the key was created, and only the one who takes it deletes it.
        unsafe { libc::pthread_key_delete(key as libc::pthread_key_t) };
    }
}

unsafe extern "C" fn call(value: *mut c_void) {
    // SAFETY: a value that is not NULL was made from a `fn()`.
    let function = unsafe { transmute::<*mut c_void, fn()>(value) };
    function();
}
