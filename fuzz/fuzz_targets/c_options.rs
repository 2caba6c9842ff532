//! Bytes as what a C caller passes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aiot_tunnel_testkit::properties::c_options::check(data));
