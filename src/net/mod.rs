//! The network: sockets, TLS, name lookups and the connects. This module knows no sessions. It
//! blocks only in [`Wait`], which the caller can interrupt.

#[cfg(feature = "gateway")]
pub(crate) mod accept;
pub(crate) mod addresses;
mod clock;
pub(crate) mod dial;
mod exit;
mod explain;
pub(crate) mod local;
pub(crate) mod open;
pub(crate) mod read_ahead;
pub(crate) mod resolver;
pub(crate) mod stream;
pub(crate) mod tls;
mod wait;

pub(crate) use dial::Dialer;
pub(crate) use local::LocalSocket;
pub(crate) use stream::{Socket, Stream};
#[cfg(any(feature = "access", feature = "gateway"))]
pub(crate) use wait::UntilStopped;
pub(crate) use wait::{Wait, WaitError};
