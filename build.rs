//! How the installed shared library is linked: by cargo-c, which switches on the feature `capi`.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
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
