//! Bytes as one tunnel frame.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aiot_tunnel_models::frame::check(data));
