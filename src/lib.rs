//! The device side of a secure tunnel. A remote-login process keeps a WebSocket to the cloud, and
//! relays sessions (SSH, HTTP, anything that speaks TCP) to services on the device. So an
//! operator reaches a device behind a firewall or NAT.
//!
//! [`Manager`] is the place to begin; its documentation has a complete program.
//!
//! # Threads
//!
//! The library blocks and uses threads, as the tunnel component of the Link SDK does; there is no
//! asynchronous runtime.
//!
//! | thread | what it does |
//! | --- | --- |
//! | **start thread**, the caller's, inside [`Manager::run`] | executes commands, calls the event handler |
//! | **listen thread** ([`ipc::Listener`]), optional | receives commands from another process |
//! | one **worker** for each tunnel | connects, relays sessions |
//!
//! Commands come through a [`Handle`], which never blocks. [`Handle::tunnels`] shows what the tunnels
//! do. Events tell when they connect; [notices](Notice) tell why they fail, and of sessions.
//!
//! # Features
//!
//! None is on by default: a firmware pays for the device side only.
//!
//! | feature | adds |
//! | --- | --- |
//! | `access` | `access`: the operator's end of a tunnel |
//! | `gateway` | `gateway`: a stand-in for the cloud's tunnel service |
//! | `vendored` | OpenSSL, built from source and linked in |
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_debug_implementations, missing_docs)]

#[cfg(feature = "access")]
pub mod access;
#[doc(hidden)]
pub mod capi;
mod config;
mod device;
mod error;
mod event;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod ipc;
mod logging;
mod net;
pub mod process;
pub mod state;
mod status;
mod sys;

pub use config::{
    AddressFamily, Clock, ConnectParams, Limits, Network, Port, Proxy, Security, Service, Target,
    TlsConfig, Token, TunnelId,
};
pub use device::manager::{EventHandler, Handle, Manager, ManagerBuilder, NoticeHandler};
pub use device::subscribers::Observation;
pub use error::{Error, Result};
pub use event::{Event, EventKind};
pub use status::{Notice, NoticeKind, SessionStatus, TunnelState, TunnelStatus};

/// Another name of [`ipc`].
#[doc(hidden)]
pub mod listen {
    pub use crate::ipc::{ListenOptions as Options, *};
}
