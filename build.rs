//! The time stamp of the build, and how the installed shared library is linked: by cargo-c, which
//! switches on the feature `capi`.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// In seconds.
const DAY: u64 = 86_400;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rustc-env=AIOT_TUNNEL_BUILD_TIME={}", build_time());
    let installed = env::var_os("CARGO_FEATURE_CAPI").is_some();
    if installed && env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // Every exported symbol gets a version node, named as the soname that cargo-c sets. Rust
        // has a version script of its own, beside which no linker takes another one; of the
        // linkers only GNU ld knows this switch.
        println!("cargo:rustc-cdylib-link-arg=-fuse-ld=bfd");
        println!("cargo:rustc-cdylib-link-arg=-Wl,--default-symver");
        // The library stays in memory after dlclose: a thread of it may still be running.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}

/// The time of the build, in seconds since 1970: `SOURCE_DATE_EPOCH`, which makes builds reproducible, or
/// the beginning of this day. It is made once: later builds in the same folder keep it.
fn build_time() -> u64 {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.trim().parse().expect("SOURCE_DATE_EPOCH is a number of seconds"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            now / DAY * DAY
        }
    }
}
