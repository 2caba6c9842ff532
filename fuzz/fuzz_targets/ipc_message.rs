#![no_main]

include!("../../tests/ipc_message/property.rs");

libfuzzer_sys::fuzz_target!(|data: &[u8]| property(data));
