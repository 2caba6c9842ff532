//! The errors of the library. Each variant stands for one cause and has the state code that C
//! callers get.

use std::io;

use crate::config::TunnelId;
use crate::state;

/// Why a call of this crate failed.
///
/// No variant holds a token or a key, so an `Error` may be logged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value does not fit its field.
    #[error("{field}: {reason}")]
    InvalidInput {
        /// The name of the field, as in the documentation.
        field: &'static str,
        /// What is wrong with the value. The value itself is included only if it is not secret.
        reason: String,
    },
    /// The CA bundle holds no certificate, or one of them cannot be read.
    #[error("CA certificate: {0}")]
    InvalidCa(String),
    /// The client certificate cannot be read.
    #[error("client certificate: {0}")]
    InvalidClientCert(String),
    /// The client key cannot be read, is encrypted, or belongs to another certificate.
    #[error("client key: {0}")]
    InvalidClientKey(String),
    /// As many tunnels exist as [`Limits::max_tunnels`](crate::Limits::max_tunnels) allows.
    #[error("the limit of {0} tunnels is reached; delete one first")]
    TunnelLimit(usize),
    /// The queue of commands is full, because the start thread does not take them. The number is
    /// that of the waiting commands.
    #[error("{0} commands already wait for the start thread")]
    Busy(usize),
    /// Another thread is inside [`Manager::run`](crate::Manager::run).
    #[error("the start thread already runs")]
    AlreadyRunning,
    /// The manager takes no more commands, because it was stopped, its run has ended, or it was
    /// dropped.
    #[error("the manager has ended; it takes no more commands")]
    Ended,
    /// The gateway has no tunnel with this id.
    #[error("the gateway serves no tunnel {0}")]
    UnknownTunnel(TunnelId),
    /// The bytes are not an IPC message, for this reason.
    #[error("IPC message: {0}")]
    InvalidMessage(String),
    /// Nobody has taken a command from the message queue with this key.
    #[error(
        "message queue {0:#x}: nobody reads it; start an agent, which then executes the command, or \
         remove the queue with the command (ipcrm -Q {0:#x})"
    )]
    NobodyReads(i32),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, and on which object.
        what: String,
        /// The error of the system call.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Error::InvalidInput { field, reason: reason.into() }
    }

    /// Whether the value for this field was refused.
    pub(crate) fn is_about(&self, name: &str) -> bool {
        matches!(self, Error::InvalidInput { field, .. } if *field == name)
    }

    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Error::Io { what: what.into(), source }
    }

    /// The state code that a C caller gets for this error. Always negative. See [`state`].
    pub fn state_code(&self) -> i32 {
        match self {
            Error::InvalidInput { .. } | Error::InvalidMessage(_) => state::USER_INPUT_OUT_RANGE,
            Error::InvalidCa(_) => state::PORT_TLS_INVALID_SERVER_CERT,
            Error::InvalidClientCert(_) => state::PORT_TLS_INVALID_CLIENT_CERT,
            Error::InvalidClientKey(_) => state::PORT_TLS_INVALID_CLIENT_KEY,
            Error::TunnelLimit(_) => state::TUNNEL_LIMIT,
            Error::Busy(_) => state::TUNNEL_BUSY,
            Error::AlreadyRunning => state::TUNNEL_RUNNING,
            Error::Ended => state::USER_INPUT_EXEC_DISABLED,
            Error::UnknownTunnel(_) | Error::NobodyReads(_) | Error::Io { .. } => {
                state::TUNNEL_FAILED
            }
        }
    }
}

/// The result of the calls of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
