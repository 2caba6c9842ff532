//! `aiot_state_api.h`: the log callback. The state codes in that header are those of
//! `src/state.rs`.

use std::cell::Cell;
use std::ffi::{c_char, c_void, CStr};
use std::mem::transmute;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
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
/// library calls it, otherwise the thread that causes the line. So a call that is refused, and writes a
/// line that says why, takes as long as the callback if no thread is inside aiot_tunnel_start. The same
/// holds for the listen thread's lines. The lines that lead to an event come before the event, and
/// all lines come before aiot_tunnel_start returns.
///
/// It may be slow: connections, sessions and commands do not wait for it. Lines for which there is
/// no room (128 KiB wait) are left out, and their number is reported. An event waits up to three
/// seconds for the lines that lead to it. Two calls wait until a call of the callback has returned:
/// aiot_tunnel_start, before it returns, and aiot_state_set_logcb. So do not hold a lock that the
/// callback takes while you wait for aiot_tunnel_start or call aiot_tunnel_deinit.
///
/// It may call every function of this library; lines that these cause are not reported. It must
/// return normally (no longjmp, no C++ exception, no pthread_exit). The return value is ignored.
/// (Link SDK 4.x)
pub type aiot_state_logcb_t = Option<unsafe extern "C" fn(code: i32, message: *mut c_char) -> i32>;

/// The function inside [`aiot_state_logcb_t`].
type LogFunction = unsafe extern "C" fn(i32, *mut c_char) -> i32;

/// Sets the function that receives the library's log lines, one for the whole process; NULL, the
/// initial state, switches them off. In a program that also contains the Link SDK's core, the name
/// is the core's, and the lines reach the callback that the core has; see aiot_tunnel_set_logcb.
///
/// May be called from any thread, at any time, before any init as well. When it returns, the
/// former callback no longer runs and will not be called again; it may therefore block for as
/// long as the former callback takes, except when that callback itself calls.
///
/// Returns STATE_SUCCESS. (Link SDK 4.x)
#[no_mangle]
pub extern "C" fn aiot_state_set_logcb(handler: aiot_state_logcb_t) -> i32 {
    // The core's function is meant, but this library comes first: the core's lines shall arrive, too.
    install("aiot_state_set_logcb", handler, core::set_handler)
}

thread_local! {
    static INSIDE_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is inside the log callback, where it must wait for nothing that
/// may log.
pub(super) fn inside_log_callback() -> bool {
    INSIDE_CALLBACK.get()
}

/// The callback that the C caller has set, an `aiot_state_logcb_t`. NULL: none.
static CALLBACK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// Whether the sink was installed because the program contains the core.
static CORE_HAS_THE_SINK: AtomicBool = AtomicBool::new(false);

/// Sets the callback for the exported function called `function`. `also` gets the callback, too.
pub(super) fn install(
    function: &str,
    handler: aiot_state_logcb_t,
    also: fn(aiot_state_logcb_t),
) -> i32 {
    guard_code(function, || {
        // Before the sink looks for the new callback: the lines that wait are for the former one.
        logging::settle();
        also(handler);
        let callback = handler.map_or(ptr::null_mut(), |handler| handler as *mut c_void);
        CALLBACK.store(callback, Ordering::Release);
        let wanted = handler.is_some() || core::handler().is_some();
        // Waits for the former callback, also if the sink stays the same.
        logging::set_sink(wanted.then(sink));
        Ok(())
    })
}

/// Sends the log lines to the callback of the Link SDK's core, if the program contains the core and
/// the caller has set no other one.
pub(super) fn log_to_the_core() {
    if core::handler().is_some() && !CORE_HAS_THE_SINK.swap(true, Ordering::AcqRel) {
        logging::set_sink(Some(sink()));
    }
}

/// Whether the program contains the Link SDK's core.
pub(super) fn core_is_linked() -> bool {
    core::handler().is_some()
}

/// The program sets its callback with another `aiot_state_set_logcb`, the core's, but the object in which
/// the core keeps it cannot be found: no line would arrive, and nobody would know why.
pub(super) fn warn_if_lines_cannot_arrive() {
    static SAID: AtomicBool = AtomicBool::new(false);
    let none = CALLBACK.load(Ordering::Acquire).is_null() && !core_is_linked();
    if none && defined_elsewhere(c"aiot_state_set_logcb") && !SAID.swap(true, Ordering::Relaxed) {
        eprintln!(
            "libaiot_tunnel: the Link SDK's core does not receive the log lines of this library, because \
             the program does not export the core's g_logcb_handler. Link with \
             -Wl,-u,g_logcb_handler, or name the core before -laiot_tunnel, or set a callback with \
             aiot_tunnel_set_logcb."
        );
    }
}

/// Whether the program finds the exported function `name` in another place than this library.
fn defined_elsewhere(name: &CStr) -> bool {
    let holder = |address: *const c_void| {
        // SAFETY: the structure holds integers and pointers only, for which zero is a value.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: any address may be asked for; the result is written to the structure.
        (unsafe { libc::dladdr(address, &mut info) } != 0).then_some(info.dli_fbase)
    };
    // SAFETY: the name ends in NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    let ours: *const AtomicBool = &raw const CORE_HAS_THE_SINK;
    !found.is_null() && holder(found) != holder(ours.cast())
}

/// Calls the callback that is set at the time of the line.
fn sink() -> logging::Sink {
    Arc::new(|code, line| {
        let Some(handler) = callback() else { return };
        let mut message = Vec::with_capacity(line.len() + 1);
        message.extend_from_slice(line.as_bytes());
        message.push(0);
        INSIDE_CALLBACK.set(true);
        // SAFETY: whoever set the callback promised a function of this type; the message is
        // writable, ends in NUL (a line holds no other) and outlives the call.
        unsafe { handler(code, message.as_mut_ptr().cast()) };
        INSIDE_CALLBACK.set(false);
    })
}

fn callback() -> aiot_state_logcb_t {
    let own = CALLBACK.load(Ordering::Acquire);
    if own.is_null() {
        return core::handler()?.get();
    }
    // SAFETY: `install` has stored a function of this type.
    Some(unsafe { transmute::<*mut c_void, LogFunction>(own) })
}

/// The object in which the Link SDK's core keeps the callback of its `aiot_state_set_logcb`.
mod core {
    use super::*;

    // A weak reference: its address is NULL in a program without the core. Rust has no stable way to
    // write one, so the assembler makes a word that holds the address.
    std::arch::global_asm!(
        ".weak g_logcb_handler",
        ".pushsection .data.rel.ro.aiot_tunnel_core_logcb,\"aw\",%progbits",
        ".balign 8",
        ".globl aiot_tunnel_core_logcb",
        ".hidden aiot_tunnel_core_logcb",
        ".type aiot_tunnel_core_logcb, %object",
        "aiot_tunnel_core_logcb:",
        ".dc.a g_logcb_handler",
        ".size aiot_tunnel_core_logcb, . - aiot_tunnel_core_logcb",
        ".popsection",
    );

    extern "C" {
        static aiot_tunnel_core_logcb: *const Handler;
    }

    /// Written by the core without a lock.
    #[repr(transparent)]
    pub(super) struct Handler(AtomicPtr<c_void>);

    pub(super) fn handler() -> Option<&'static Handler> {
        // SAFETY: the word was written by the linker; it holds NULL, or the address of an object of
        // the core's that has the size of a function pointer and lives as long as the program.
        unsafe { ptr::read_volatile(&raw const aiot_tunnel_core_logcb).as_ref() }
    }

    pub(super) fn set_handler(function: aiot_state_logcb_t) {
        if let Some(handler) = handler() {
            let function = function.map_or(ptr::null_mut(), |function| function as *mut c_void);
            handler.0.store(function, Ordering::Release);
        }
    }

    impl Handler {
        pub(super) fn get(&self) -> aiot_state_logcb_t {
            let function = self.0.load(Ordering::Acquire);
            // SAFETY: the core keeps a function of this type, or NULL, which is `None`.
            unsafe { transmute::<*mut c_void, aiot_state_logcb_t>(function) }
        }
    }
}
