//! Settings of the C library's allocator.

/// Makes glibc return freed large buffers to the system. They get memory mappings of their own. By
/// default, glibc raises the size limit for such mappings with each freed buffer, up to 32 MiB, and
/// keeps smaller buffers. The function also limits the number of arenas, because each arena keeps
/// memory of its own.
pub(crate) fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 64 * 1024;
        // SAFETY: mallopt takes numbers only. It ignores a value that it does not accept.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
            libc::mallopt(libc::M_ARENA_MAX, 2);
        }
    }
}
