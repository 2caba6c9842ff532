//! Bytes as a message of the IPC queue.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aiot_tunnel_testkit::properties::ipc_message::check(data));
