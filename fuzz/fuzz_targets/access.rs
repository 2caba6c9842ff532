//! The life of an access side, whose gateway may be hostile.
#![no_main]

use aiot_tunnel_models::access::{run, Life};

libfuzzer_sys::fuzz_target!(|life: Life| run(&life));
