//! Why a function of the C interface does not do what its caller asks: a state code for the caller, and
//! a line for the log, since the code alone names neither the argument nor the reason. A line never
//! holds the value of an argument, because the value may be a token.

use std::borrow::Cow;

use crate::error::Error;
use crate::logging::{warn, Code};
use crate::state;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    code: Code,
    /// The argument as the header calls it, for example `params.port`.
    argument: Cow<'static, str>,
    reason: Cow<'static, str>,
}

impl Refusal {
    pub(super) fn new(
        code: Code,
        argument: &'static str,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Refusal { code, argument: argument.into(), reason: reason.into() }
    }

    pub(super) fn null(argument: &'static str) -> Self {
        Refusal::new(Code::NullPointer, argument, "is NULL")
    }

    pub(super) fn out_of_range(
        argument: &'static str,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Refusal::new(Code::OutRange, argument, reason)
    }

    /// The refusal for an error of the Rust library that `argument` has caused.
    pub(super) fn of(argument: &'static str, error: &Error) -> Self {
        let code = match error.state_code() {
            state::USER_INPUT_OUT_RANGE => Code::OutRange,
            state::USER_INPUT_EXEC_DISABLED => Code::ExecDisabled,
            state::PORT_TLS_INVALID_SERVER_CERT => Code::ServerCert,
            state::PORT_TLS_INVALID_CLIENT_CERT => Code::ClientCert,
            state::PORT_TLS_INVALID_CLIENT_KEY => Code::ClientKey,
            state::TUNNEL_LIMIT => Code::TunnelLimit,
            state::TUNNEL_BUSY => Code::TunnelBusy,
            state::TUNNEL_RUNNING => Code::TunnelRunning,
            _ => Code::TunnelFailed,
        };
        let reason = match error {
            Error::InvalidInput { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        Refusal::new(code, argument, reason)
    }

    pub(super) fn code(&self) -> i32 {
        self.code as i32
    }

    pub(super) fn log(&self, function: &str) {
        warn!(self.code, "{function}: {}: {}", self.argument, self.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConnectParams, Port, Token};

    #[test]
    fn a_refusal_has_the_code_of_its_error() {
        for error in [
            Error::invalid("port", "0 is no port"),
            Error::InvalidCa("x".into()),
            Error::InvalidClientCert("x".into()),
            Error::InvalidClientKey("x".into()),
            Error::TunnelLimit(20),
            Error::Busy(4096),
            Error::AlreadyRunning,
            Error::Ended,
        ] {
            assert_eq!(Refusal::of("argument", &error).code(), error.state_code());
        }
    }

    #[test]
    fn a_refused_token_is_not_in_the_reason() {
        let error = Token::new("hush token").unwrap_err();
        assert!(!Refusal::of("params.token", &error).reason.contains("hush"));
        let port = Port::new(1).unwrap();
        let error = ConnectParams::new("a b", port, "/", Token::new("t").unwrap()).unwrap_err();
        assert_eq!(Refusal::of("params.host", &error).argument, "params.host");
    }
}
