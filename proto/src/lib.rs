//! The secure-tunnel protocol (`aliyun.iot.securetunnel-v1.1`) without I/O.
//!
//! The owner implements the traits through which bytes come and go, and passes the time as an
//! argument. This package must not use sockets, clocks, threads, TLS or a log. The package
//! `aiot-tunnel` supplies them.
//!
//! From the bottom up: [`frame`] and [`websocket`] read and write bytes. [`handshake`] opens a
//! WebSocket. [`connection`] is an open WebSocket. [`session`] holds the byte streams inside it.
//! [`relay`] moves their bytes. [`device`], [`access`] and [`gateway`] are the three parties.
//! [`proxies`] finds the address of a client that comes through a proxy.
//!
//! The package is internal to the project. Its interface may change with any version.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod connection;
mod counters;
pub mod device;
pub mod frame;
pub mod gateway;
pub mod handshake;
mod log_limiter;
pub mod observer;
mod progress;
pub mod proxies;
pub mod relay;
mod schedule;
pub mod session;
mod timers;
pub mod websocket;

pub use log_limiter::LogLimiter;

/// What `poll` reported for one file descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// A read will not block. There is data, the end of the stream, or an error.
    pub read: bool,
    /// A write will not block. There is room, or an error.
    pub write: bool,
}

/// One of the two ends of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end at the device. Its path is `/tunnel/<id>/dest`.
    Device,
    /// The operator's end. Its path is `/tunnel/<id>/source`.
    Access,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Side::Device => Side::Access,
            Side::Access => Side::Device,
        }
    }
}
