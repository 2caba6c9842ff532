//! The C library's allocator.

/// Makes large buffers mappings of their own, which go back to the system when they are freed, for
/// good: glibc would raise the size from which it does so with each freed buffer, up to 32 MiB,
/// and keep the rest. And lets threads share arenas, because each arena keeps memory of its own.
pub(crate) fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 64 * 1024;
        // SAFETY: numbers only; a value that is refused changes nothing.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
            libc::mallopt(libc::M_ARENA_MAX, 2);
        }
    }
}
