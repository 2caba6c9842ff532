//! What can go wrong, one variant per cause, each with the state code that C callers know it by.

use std::io;

/// State codes of the C surface (`aiot_state_api.h`), as the Link SDK numbers them.
///
/// Codes from `-0x1C84` down are this library's own.
pub mod state {
    /// Success.
    pub const SUCCESS: i32 = 0;
    /// A required pointer is NULL.
    pub const USER_INPUT_NULL_POINTER: i32 = -0x0101;
    /// A value is outside its documented range.
    pub const USER_INPUT_OUT_RANGE: i32 = -0x0102;
    /// The option does not exist.
    pub const USER_INPUT_UNKNOWN_OPTION: i32 = -0x0103;
    /// No host was given.
    pub const USER_INPUT_MISSING_HOST: i32 = -0x0108;
    /// The handle is not a live one.
    pub const USER_INPUT_EXEC_DISABLED: i32 = -0x0109;
    /// Out of memory.
    pub const SYS_DEPEND_MALLOC_FAILED: i32 = -0x0201;
    /// No network connection could be established.
    pub const SYS_DEPEND_NWK_EST_FAILED: i32 = -0x0203;
    /// The network connection is closed.
    pub const SYS_DEPEND_NWK_CLOSED: i32 = -0x0204;
    /// The network credential is not usable.
    pub const SYS_DEPEND_NWK_INVALID_CRED: i32 = -0x0208;
    /// The host name did not resolve.
    pub const PORT_NETWORK_DNS_FAILED: i32 = -0x0F0B;
    /// Connecting took too long.
    pub const PORT_NETWORK_CONNECT_TIMEOUT: i32 = -0x0F0F;
    /// Connecting failed.
    pub const PORT_NETWORK_CONNECT_FAILED: i32 = -0x0F10;
    /// The credential option cannot be used.
    pub const PORT_TLS_INVALID_CRED_OPTION: i32 = -0x0F16;
    /// The CA certificate is not valid PEM.
    pub const PORT_TLS_INVALID_SERVER_CERT: i32 = -0x0F18;
    /// The client certificate is not valid PEM.
    pub const PORT_TLS_INVALID_CLIENT_CERT: i32 = -0x0F19;
    /// The client key is not valid PEM, or does not belong to the certificate.
    pub const PORT_TLS_INVALID_CLIENT_KEY: i32 = -0x0F1A;
    /// The TLS handshake failed.
    pub const PORT_TLS_INVALID_HANDSHAKE: i32 = -0x0F23;
    /// Common code of the network adapter's log lines.
    pub const ADAPTER_COMMON: i32 = -0x1000;
    /// Common code of the tunnel's log lines.
    pub const TUNNEL_BASE: i32 = -0x1C80;
    /// A tunnel operation failed.
    pub const TUNNEL_FAILED: i32 = -0x1C81;
    /// A tunnel operation took too long.
    pub const TUNNEL_TIMEOUT: i32 = -0x1C82;
    /// The peer reset the tunnel.
    pub const TUNNEL_RESET: i32 = -0x1C83;
    /// The tunnel limit is reached (ours).
    pub const TUNNEL_LIMIT: i32 = -0x1C84;
    /// Too many commands wait for the start thread (ours).
    pub const TUNNEL_BUSY: i32 = -0x1C85;
    /// The start thread already runs (ours).
    pub const TUNNEL_RUNNING: i32 = -0x1C86;
}

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
