//! Handlers of `exit`.

/// Calls `handler` when the process exits, or when the library that contains this code is unloaded:
/// before all handlers that are registered already. Does nothing if there is no memory for it.
pub(crate) fn at_exit(handler: extern "C" fn()) {
    // SAFETY: the handler is part of this library, whose handlers run before it is unloaded.
    unsafe { libc::atexit(handler) };
}
