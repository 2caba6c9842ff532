//! `aiot_state_api.h`: the log callback. The state codes in that header are those of
//! `src/state.rs`.

use std::cell::Cell;
use std::ffi::c_char;
use std::sync::Arc;

use super::guard_code;
use crate::logging;

/// Receives log lines.
///
/// code: the line's state code (zero or negative).
/// message: the whole line, "[seconds.milliseconds][LK-code] text", ended by CR LF and a NUL.
/// The memory is the library's and is valid, and may be written to, until the callback returns.
///
/// Called from any thread of the library and from those that call into it, but never by two
/// threads at once; all logging waits while it runs, so it should be quick. It may call every
/// function of this library; lines that these cause are not reported. It must return normally
/// (no longjmp, no C++ exception, no pthread_exit). The return value is ignored. (Link SDK 4.x)
pub type aiot_state_logcb_t = Option<unsafe extern "C" fn(code: i32, message: *mut c_char) -> i32>;

/// Sets the function that receives the library's log lines, one for the whole process; NULL, the
/// initial state, switches them off.
///
/// May be called from any thread, at any time, before any init as well. When it returns, the
/// former callback no longer runs and will not be called again; it may therefore block for as
/// long as the former callback takes, except when that callback itself calls.
///
/// Returns STATE_SUCCESS. (Link SDK 4.x)
#[no_mangle]
pub extern "C" fn aiot_state_set_logcb(handler: aiot_state_logcb_t) -> i32 {
    install(handler)
}

thread_local! {
    static INSIDE_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is inside the log callback, where it must wait for nothing that
/// may log.
pub(super) fn inside_log_callback() -> bool {
    INSIDE_CALLBACK.get()
}

pub(super) fn install(handler: aiot_state_logcb_t) -> i32 {
    guard_code(|| {
        logging::set_sink(handler.map(|handler| -> logging::Sink {
            Arc::new(move |code, line| {
                let mut message = Vec::with_capacity(line.len() + 1);
                message.extend_from_slice(line.as_bytes());
                message.push(0);
                INSIDE_CALLBACK.set(true);
                // SAFETY: the caller promised a function of this type; the message is writable,
                // ends in NUL (a line holds no other) and outlives the call.
                unsafe { handler(code, message.as_mut_ptr().cast()) };
                INSIDE_CALLBACK.set(false);
            })
        }));
        Ok(())
    })
}
