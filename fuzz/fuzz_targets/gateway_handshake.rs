#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aiot_tunnel::fuzzing::gateway_handshake(data));
