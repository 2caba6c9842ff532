//! Bytes as an upgrade request at the gateway.
#![no_main]

use aiot_tunnel_models::handshake::{request, request_head};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    request(&request_head(data));
});
