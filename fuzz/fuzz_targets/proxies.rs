//! Bytes as what a proxy says of a client: a header of the PROXY protocol, and `X-Forwarded-For`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aiot_tunnel_models::proxies::check(data));
