//! The C interface: converts arguments, calls the Rust library, converts results. It is no part of the
//! Rust API: its types may change with any release. The module is visible, though not documented, so
//! that tests can call the exported functions.
//!
//! Each header has one file, whose comments are the C manual: `state.rs` (with `src/state.rs`)
//! becomes `include/aiot_state_api.h`, `sysdep.rs` becomes `aiot_sysdep_api.h`, `tunnel.rs` becomes
//! `aiot_tunnel_api.h` (`tests/c_headers.rs` generates them). `handle.rs` keeps the valid handles;
//! `input.rs` reads the memory that a C caller points to.
//!
//! A C caller may pass any integer where an enum is expected. Such values have the type
//! `MaybeUninit<Enum>`, which accepts every bit pattern and which cbindgen writes as the plain
//! enum. They are read as numbers and never become a Rust enum.
#![allow(non_camel_case_types, reason = "the names are the Link SDK's")]
#![allow(non_upper_case_globals, reason = "the names are the Link SDK's")]
#![allow(clippy::missing_safety_doc, reason = "the comments are written for the C reader")]
#![allow(rustdoc::broken_intra_doc_links, reason = "the comments are written for the C reader")]
#![allow(missing_debug_implementations, reason = "C types, some of them unreadable until checked")]

mod handle;
mod input;
pub mod state;
pub mod sysdep;
pub mod tunnel;

use std::borrow::Cow;
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::error::Error;
use crate::logging::{warn, Code};
use crate::state as code;
use crate::sys::cancellation;

/// Result of a function of the C interface.
type Outcome<T = ()> = Result<T, Refusal>;

/// Why a call is refused. The caller gets the state code, the log gets the reason.
#[derive(Debug)]
struct Refusal {
    code: i32,
    why: Cow<'static, str>,
}

impl Refusal {
    fn new(code: i32, why: impl Into<Cow<'static, str>>) -> Self {
        Refusal { code, why: why.into() }
    }

    /// Logs the refusal and returns its state code. `function` is the function that was called.
    fn report(&self, function: &str) -> i32 {
        let number = self.code.unsigned_abs();
        warn!(Code::TunnelFailed, "{function} is refused: {} (-0x{number:04X})", self.why);
        self.code
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::new(error.state_code(), error.to_string())
    }
}

/// Runs the body of an exported function. It stops a panic from crossing into C, and the caller's
/// thread from being cancelled in the body.
fn guard<T>(on_panic: T, body: impl FnOnce() -> T) -> T {
    let former = cancellation::disable();
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or(on_panic);
    cancellation::restore(former);
    result
}

/// [`guard`] for functions that return a state code. `function` is the name of the function.
fn guard_code(function: &str, body: impl FnOnce() -> Outcome) -> i32 {
    guard(code::TUNNEL_FAILED, || match body() {
        Ok(()) => code::SUCCESS,
        Err(refusal) => refusal.report(function),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_state_code() {
        assert_eq!(guard_code("aiot_tunnel_stop", || panic!("on purpose")), code::TUNNEL_FAILED);
    }
}
