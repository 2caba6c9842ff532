//! What several benchmarks share: the far end of a tunnel, the local service, and the processes that
//! are measured. Nothing here may be slow: what is measured is the device, not the benchmark.
//! Measurements and tables are the benchmarks' own.

pub mod far;
pub mod process;
pub mod service;

/// The name of a transport in tables.
pub fn transport(tls: bool) -> &'static str {
    if tls {
        "TLS"
    } else {
        "plain"
    }
}
