//! Test fixtures of aiot-tunnel: what its tests and benchmarks need and the library does not.
//!
//! Here live fixtures that more than one test or benchmark uses: the ends of a connection, local
//! services, certificates, failing networks, child processes. Tests and benchmarks themselves may
//! not live here, nor may any protocol code of the library be used here: a fixture that speaks the
//! protocol does so on tungstenite and with [`frame`], so that no test checks the library against
//! itself. [`properties`] are the exception: tests and fuzz targets share them, and their subject is the
//! library's own interface. This package is not published, and only development builds depend on it.

pub mod bench;
pub mod browser;
pub mod certificates;
pub mod cloud;
pub mod device_process;
pub mod exchange;
pub mod faults;
pub mod fleet;
pub mod folder;
pub mod frame;
pub mod gateways;
pub mod haproxy;
pub mod kills;
pub mod link;
pub mod logs;
pub mod manager;
pub mod mosquitto;
pub mod namespaces;
pub mod path;
pub mod process;
pub mod procfs;
pub mod properties;
pub mod proxies;
pub mod queue;
pub mod random;
pub mod redis;
pub mod services;
pub mod sockets;
pub mod ssh;
pub mod streams;
pub mod traffic;
pub mod troubles;
pub mod tunnel_end;
pub mod wait;

/// The device's token. Every token in a test begins with `hush-`: `scripts/scan-logs` looks for
/// that.
pub const DEVICE_TOKEN: &str = "hush-device-token";
/// The access side's token.
pub const ACCESS_TOKEN: &str = "hush-access-token";

/// Reports that this machine cannot run a test. The line goes to standard error directly, because
/// libtest shows captured output of failed tests only. `AIOT_TUNNEL_NO_SKIP=1` turns a skipped test
/// into a failure, for machines that can run every test.
pub fn skip(test: &str, why: impl std::fmt::Display) {
    use std::io::Write;
    let text = format!("{test} is SKIPPED: {why}\n");
    assert!(std::env::var_os("AIOT_TUNNEL_NO_SKIP").is_none_or(|set| set != "1"), "{text}");
    let _ = std::io::stderr().write_all(text.as_bytes());
}
