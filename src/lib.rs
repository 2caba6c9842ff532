//! The device side of a secure tunnel: a remote-login process keeps a WebSocket to the cloud
//! and relays sessions (SSH, HTTP, anything TCP) to local services.
//!
//! Synchronous and threaded, after the tunnel component of the Link SDK: a **start thread**
//! ([`Manager::run`]) that takes commands and runs the event handler, a **listen thread**
//! ([`ipc`]) that receives commands from another process, and one **worker** per tunnel.
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_debug_implementations, missing_docs)]

#[cfg(feature = "access")]
pub mod access;
#[doc(hidden)]
pub mod capi;
mod cloud;
mod config;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod ipc;
mod logging;
mod manager;
#[cfg(any(feature = "gateway", feature = "access"))]
mod peer;
pub mod process;
pub mod state;
mod status;
mod sys;
mod worker;

pub use config::{
    ConnectParams, Limits, Port, Security, Service, Target, TlsConfig, Token, TunnelId,
};
pub use error::{Error, Result};
pub use event::{Event, EventKind};
pub use manager::{EventHandler, Handle, Manager, ManagerBuilder};
pub use status::{SessionStatus, TunnelState, TunnelStatus};

/// [`ipc`] under the name of its thread.
#[doc(hidden)]
pub mod listen {
    pub use crate::ipc::{ListenOptions as Options, *};
}
