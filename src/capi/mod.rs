//! The C interface: converts arguments, calls the Rust library, converts results. It is no part of the
//! Rust API: its types may change with any release. The module is visible, though not documented, so
//! that tests can call the exported functions.
//!
//! Each header has one file, whose comments are the C manual: `state.rs` (with `src/state.rs` and
//! `core_codes.rs`) becomes `include/aiot_state_api.h`, `sysdep.rs` becomes `aiot_sysdep_api.h`, `tunnel.rs` becomes
//! `aiot_tunnel_api.h` (`tests/c_headers.rs` generates them). `handle.rs` keeps the valid handles;
//! `input.rs` reads the memory that a C caller points to; `refusal.rs` logs what it refuses. `port.rs` is the
//! port file of a program without another one.
//!
//! A C caller may pass any integer where an enum is expected. Such values have the type
//! `MaybeUninit<Enum>`, which accepts every bit pattern and which cbindgen writes as the plain
//! enum. They are read as numbers and never become a Rust enum.
#![allow(non_camel_case_types, reason = "the names are the Link SDK's")]
#![allow(non_upper_case_globals, reason = "the names are the Link SDK's")]
#![allow(clippy::missing_safety_doc, reason = "the comments are written for the C reader")]
#![allow(rustdoc::broken_intra_doc_links, reason = "the comments are written for the C reader")]
#![allow(missing_debug_implementations, reason = "C types, some of them unreadable until checked")]

pub mod core_codes;
mod handle;
mod input;
pub mod observe;
mod port;
mod refusal;
pub mod state;
pub mod sysdep;
pub mod tunnel;

use std::panic::{catch_unwind, AssertUnwindSafe};

use refusal::Refusal;

use crate::state as code;
use crate::sys::cancellation;

/// Result of a function of the C interface.
type Outcome<T = ()> = Result<T, Refusal>;

/// Runs the body of an exported function. It stops a panic from crossing into C, and the caller's
/// thread from being cancelled in the body.
fn guard<T>(on_panic: T, body: impl FnOnce() -> T) -> T {
    let former = cancellation::disable();
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or(on_panic);
    cancellation::restore(former);
    result
}

/// [`guard`] for functions that return a state code. Logs a refusal, so that the caller learns which
/// argument it was and why.
fn guard_code(function: &str, body: impl FnOnce() -> Outcome) -> i32 {
    guard(code::TUNNEL_FAILED, || match body() {
        Ok(()) => code::SUCCESS,
        Err(refusal) => {
            refusal.log(function);
            refusal.code()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_state_code() {
        assert_eq!(guard_code("test", || panic!("on purpose")), code::TUNNEL_FAILED);
    }
}
