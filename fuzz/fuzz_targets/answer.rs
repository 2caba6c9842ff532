//! Bytes as the cloud's answer to the opening handshake.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aiot_tunnel_models::handshake::answer(data));
