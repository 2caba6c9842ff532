//! The life of one of the gateway's tunnels.
#![no_main]

use aiot_tunnel_models::gateway::{Step, World};
use aiot_tunnel_models::Sequence;

libfuzzer_sys::fuzz_target!(|steps: Sequence<Step>| World::run(&steps.0));
