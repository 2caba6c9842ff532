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
/// Never called by two threads at once. While a thread is inside aiot_tunnel_start, a thread of the
/// library calls it, otherwise the thread that causes the line. The lines that lead to an event
/// come before the event, and all lines come before aiot_tunnel_start returns.
///
/// It may be slow: connections, sessions and commands do not wait for it. Lines for which there is
/// no room (128 KiB wait) are left out, and their number is reported. Two calls wait for a callback
/// that takes longer than a second for a line: aiot_tunnel_start, before it returns, and
/// aiot_state_set_logcb. So do not hold a lock that the callback takes while you wait for
/// aiot_tunnel_start or call aiot_tunnel_deinit.
///
/// It may call every function of this library; lines that these cause are not reported. It must
/// return normally (no longjmp, no C++ exception, no pthread_exit). The return value is ignored. (Link SDK 4.x)
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
    install("aiot_state_set_logcb", handler)
}

thread_local! {
    static INSIDE_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is inside the log callback, where it must wait for nothing that
/// may log.
pub(super) fn inside_log_callback() -> bool {
    INSIDE_CALLBACK.get()
}

pub(super) fn install(function: &str, handler: aiot_state_logcb_t) -> i32 {
    guard_code(function, || {
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
