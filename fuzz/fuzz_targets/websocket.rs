//! Bytes as WebSocket messages, however they arrive.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aiot_tunnel_models::websocket::check(data));
