//! The C surface: translate, call, translate back. It is no part of the Rust API: its types may
//! change with any release, and Rust callers use the crate's own types. The module is visible,
//! though not documented, so that tests can call the exported functions.
//!
//! One file per header, and its comments are the C manual: `state.rs`, with the codes of
//! `src/state.rs`, becomes `include/aiot_state_api.h`, `sysdep.rs` `aiot_sysdep_api.h`, `tunnel.rs` `aiot_tunnel_api.h`
//! (`tests/c_headers.rs` generates them). `handle.rs` knows which handles are alive, `input.rs`
//! reads what a C caller points to.
//!
//! A C caller may pass anything where an enum is expected. Such values are `MaybeUninit<Enum>`
//! here, which accepts every bit pattern and which cbindgen writes as the plain enum; they are
//! read as numbers and never become a Rust enum.
#![allow(non_camel_case_types, reason = "the names are the Link SDK's")]
#![allow(non_upper_case_globals, reason = "the names are the Link SDK's")]
#![allow(clippy::missing_safety_doc, reason = "the comments are written for the C reader")]
#![allow(rustdoc::broken_intra_doc_links, reason = "the comments are written for the C reader")]
#![allow(missing_debug_implementations, reason = "C types, some of them unreadable until checked")]

mod handle;
mod input;
#[cfg(any(test, fuzzing))]
pub(crate) mod property;
pub mod state;
pub mod sysdep;
pub mod tunnel;

use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::state as code;

/// What a function of ours reports to C: `Err` carries the state code.
type Outcome<T = ()> = Result<T, i32>;

/// Runs the body of an exported function. No panic crosses into C.
fn guard<T>(on_panic: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(on_panic)
}

/// [`guard`] for the many functions that return a state code.
fn guard_code(body: impl FnOnce() -> Outcome) -> i32 {
    guard(code::TUNNEL_FAILED, || match body() {
        Ok(()) => code::SUCCESS,
        Err(number) => number,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_state_code() {
        assert_eq!(guard_code(|| panic!("on purpose")), code::TUNNEL_FAILED);
    }
}
