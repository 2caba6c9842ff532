//! The secure-tunnel protocol (`aliyun.iot.securetunnel-v1.1`) without I/O.
//!
//! Bytes come and go through traits that the owner implements; the time is an argument. No socket,
//! clock, thread, TLS or log may be used here. `aiot-tunnel` is the library that does all that.
//!
//! From the bottom up: [`frame`] and [`websocket`] read and write bytes, [`handshake`] opens a
//! WebSocket, [`connection`] is an open one, [`session`] are the streams inside it, [`relay`] moves
//! their bytes. [`device`], [`access`] and [`gateway`] are the three ends.
//!
//! The package is internal to the project: its interface may change with any version.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod connection;
pub mod device;
pub mod frame;
pub mod gateway;
pub mod handshake;
mod log_limiter;
pub mod observer;
mod progress;
pub mod relay;
mod schedule;
pub mod session;
mod timers;
pub mod websocket;

pub use log_limiter::LogLimiter;

/// What `poll` found of a descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// A read will not block: data, end of file, or an error.
    pub read: bool,
    /// A write will not block: space, or an error.
    pub write: bool,
}

/// One of the two ends of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `/tunnel/<id>/dest`
    Device,
    /// `/tunnel/<id>/source`
    Access,
}
