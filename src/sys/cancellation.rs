//! Thread cancellation (`pthread_cancel`).

use libc::c_int;

/// A thread's former cancellation state, for [`restore`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cancellation(c_int);

/// Makes the calling thread ignore cancellation. A cancellation would end the thread in the middle of
/// a Rust function, and that aborts the process.
///
/// Not a guard that restores the state when it is dropped: callers of C code must have no destructors
/// (`capi::tunnel`).
pub(crate) fn disable() -> Cancellation {
    #[cfg(not(target_os = "android"))]
    {
        const DISABLE: c_int = 1;
        let mut former = 0;
        // SAFETY: the function writes one int to `former`.
        unsafe { pthread_setcancelstate(DISABLE, &mut former) };
        Cancellation(former)
    }
    // Threads cannot be cancelled there.
    #[cfg(target_os = "android")]
    Cancellation(0)
}

/// Makes the calling thread end at its next cancellation point if it is cancelled, or was.
#[cfg(not(target_os = "android"))]
pub(crate) fn enable() {
    const ENABLE: c_int = 0;
    // SAFETY: the function may be asked for no former state.
    unsafe { pthread_setcancelstate(ENABLE, std::ptr::null_mut()) };
}

/// Gives the calling thread its former state back. A cancellation that came meanwhile acts at the
/// thread's next cancellation point.
pub(crate) fn restore(former: Cancellation) {
    #[cfg(not(target_os = "android"))]
    // SAFETY: the state is one that the function returned. It may be asked for no former state.
    unsafe {
        pthread_setcancelstate(former.0, std::ptr::null_mut());
    }
    #[cfg(target_os = "android")]
    let _ = former.0;
}

#[cfg(not(target_os = "android"))]
extern "C-unwind" {
    /// Not in the crate libc. A thread whose cancellation is asynchronous, which no caller of this
    /// library may use, would be unwound from here.
    fn pthread_setcancelstate(state: c_int, former: *mut c_int) -> c_int;
}
