//! A sequence of operations at the device's relay.
#![no_main]

use aiot_tunnel_models::relay::{Operation, World};
use aiot_tunnel_models::Sequence;

libfuzzer_sys::fuzz_target!(|operations: Sequence<Operation>| World::run(&operations.0));
