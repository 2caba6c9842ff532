//! A whole path in virtual time: what happens on it, and to it.
#![no_main]

use aiot_tunnel_models::simulator::{Plan, World};

libfuzzer_sys::fuzz_target!(|plan: Plan| World::run_plan(plan));
