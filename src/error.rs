//! What can go wrong, one variant per cause, each with the state code that C callers know it by.

use std::io;

use crate::state;

/// Everything that a call of this crate can report.
///
/// No variant ever carries a token or a key, so an `Error` may be logged as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value does not fit its field: which field, and why.
    #[error("{field}: {reason}")]
    InvalidInput {
        /// The field, in the words of the documentation.
        field: &'static str,
        /// What is wrong with the value; never the value itself where it may be secret.
        reason: String,
    },
    /// The CA bundle holds no certificate that can be read.
    #[error("CA certificate: {0}")]
    InvalidCa(String),
    /// The client certificate cannot be read.
    #[error("client certificate: {0}")]
    InvalidClientCert(String),
    /// The client key cannot be read or does not belong to the certificate.
    #[error("client key: {0}")]
    InvalidClientKey(String),
    /// As many tunnels as [`Limits::max_tunnels`](crate::Limits) exist already.
    #[error("the limit of {0} tunnels is reached; delete one first")]
    TunnelLimit(usize),
    /// Commands wait for a start thread that does not take them.
    #[error("{0} commands already wait for the start thread")]
    Busy(usize),
    /// [`Manager::run`](crate::Manager::run) runs in another thread.
    #[error("the start thread already runs")]
    AlreadyRunning,
    /// The manager is gone.
    #[error("the manager has ended")]
    Ended,
    /// The IPC message is not one: why.
    #[error("IPC message: {0}")]
    InvalidMessage(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, on what.
        what: String,
        /// What went wrong.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Error::InvalidInput { field, reason: reason.into() }
    }

    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Error::Io { what: what.into(), source }
    }

    /// The state code that a C caller gets for this error (always negative).
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
            Error::Io { .. } => state::TUNNEL_FAILED,
        }
    }
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
