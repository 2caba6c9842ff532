//! `aiot_state_api.h`: state codes and the log callback.

use std::cell::Cell;
use std::ffi::c_char;
use std::sync::Arc;

use super::guard_code;
use crate::logging;

/// Success. Every function that returns an int32_t state code returns this or one of the
/// negative values below. Unless marked "ours", name and value are the Link SDK's (4.x).
pub const STATE_SUCCESS: i32 = 0x0000;

/// Where the codes for faulty arguments begin. Never returned itself.
pub const STATE_USER_INPUT_BASE: i32 = -0x0100;
/// A pointer that must not be NULL is NULL.
pub const STATE_USER_INPUT_NULL_POINTER: i32 = -0x0101;
/// A value is outside its documented range, or a text is too long, empty, not terminated within
/// 128 bytes, or holds a byte that is not allowed.
pub const STATE_USER_INPUT_OUT_RANGE: i32 = -0x0102;
/// The option does not exist. Not returned by this library.
pub const STATE_USER_INPUT_UNKNOWN_OPTION: i32 = -0x0103;
/// No host was given. Not returned by this library.
pub const STATE_USER_INPUT_MISSING_HOST: i32 = -0x0108;
/// The handle is not a live one: its deinit was called, or it never came from an init.
pub const STATE_USER_INPUT_EXEC_DISABLED: i32 = -0x0109;

/// Where the codes for the system below begin. Never returned itself.
pub const STATE_SYS_DEPEND_BASE: i32 = -0x0200;
/// Out of memory. Not returned by this library.
pub const STATE_SYS_DEPEND_MALLOC_FAILED: i32 = -0x0201;
/// No network connection could be made. Not returned by this library.
pub const STATE_SYS_DEPEND_NWK_EST_FAILED: i32 = -0x0203;
/// The network connection is closed. Not returned by this library.
pub const STATE_SYS_DEPEND_NWK_CLOSED: i32 = -0x0204;
/// The network credential cannot be used. Not returned by this library.
pub const STATE_SYS_DEPEND_NWK_INVALID_CRED: i32 = -0x0208;

/// Where the codes for network and TLS begin. Never returned itself.
pub const STATE_PORT_BASE: i32 = -0x0F00;
/// Out of memory. Not returned by this library.
pub const STATE_PORT_MALLOC_FAILED: i32 = -0x0F03;
/// A host name did not resolve. In log lines only.
pub const STATE_PORT_NETWORK_DNS_FAILED: i32 = -0x0F0B;
/// Connecting took too long. Not returned by this library.
pub const STATE_PORT_NETWORK_CONNECT_TIMEOUT: i32 = -0x0F0F;
/// Code of the log line that reports the outcome of a WebSocket handshake. In log lines only.
pub const STATE_PORT_NETWORK_CONNECT_FAILED: i32 = -0x0F10;
/// The credential's option is PSK or unknown.
pub const STATE_PORT_TLS_INVALID_CRED_OPTION: i32 = -0x0F16;
/// The CA certificate is missing or is not PEM.
pub const STATE_PORT_TLS_INVALID_SERVER_CERT: i32 = -0x0F18;
/// The client certificate is not PEM, or is missing where there is a client key.
pub const STATE_PORT_TLS_INVALID_CLIENT_CERT: i32 = -0x0F19;
/// The client key is not PEM, is encrypted, belongs to another certificate, or is missing where
/// there is a client certificate.
pub const STATE_PORT_TLS_INVALID_CLIENT_KEY: i32 = -0x0F1A;
/// The TLS handshake failed. In log lines only.
pub const STATE_PORT_TLS_INVALID_HANDSHAKE: i32 = -0x0F23;

/// Code of the network adapter's log lines. In log lines only.
pub const STATE_ADAPTER_COMMON: i32 = -0x1000;

/// Where the tunnel's codes begin; the code of its usual log lines. Never returned itself.
pub const STATE_TUNNEL_BASE: i32 = -0x1C80;
/// A tunnel operation failed for a reason that has no code of its own.
pub const STATE_TUNNEL_FAILED: i32 = -0x1C81;
/// A tunnel operation took too long. In log lines only.
pub const STATE_TUNNEL_TIMEOUT: i32 = -0x1C82;
/// The peer reset the tunnel. In log lines only.
pub const STATE_TUNNEL_RESET: i32 = -0x1C83;
/// As many tunnels exist as an instance may have: 20. Ours; the Link SDK returns -1.
pub const STATE_TUNNEL_LIMIT: i32 = -0x1C84;
/// 4096 commands wait already for a start thread that does not take them. Ours.
pub const STATE_TUNNEL_BUSY: i32 = -0x1C85;
/// aiot_tunnel_start already runs for this handle, in another thread. Ours.
pub const STATE_TUNNEL_RUNNING: i32 = -0x1C86;

/// Receives log lines.
///
/// code: the line's state code (zero or negative).
/// message: the whole line, "[seconds.milliseconds][LK-code] text", ended by CR LF and a NUL.
/// The memory is the library's and is valid, and may be written to, until the callback returns.
///
/// Called from any thread of the library and from those that call into it, but never by two
/// threads at once; all logging waits while it runs, so it should be quick. It may call every
/// function of this library; lines that these cause are not reported. It must return normally
/// (no longjmp, no C++ exception). The return value is ignored. (Link SDK 4.x)
pub type aiot_state_logcb_t = Option<unsafe extern "C" fn(code: i32, message: *mut c_char) -> i32>;

/// Sets the function that receives the library's log lines, one for the whole process; NULL, the
/// initial state, switches them off.
///
/// May be called from any thread, at any time, before any init as well. When it returns, the
/// former callback no longer runs and will not be called again; it may therefore block for as
/// long as the former callback takes, except when that callback itself calls.
///
/// Returns STATE_SUCCESS. (Link SDK 4.x)
#[no_mangle]
pub extern "C" fn aiot_state_set_logcb(handler: aiot_state_logcb_t) -> i32 {
    install(handler)
}

thread_local! {
    static INSIDE_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is inside the log callback, where it must wait for nothing that
/// may log.
pub(super) fn inside_log_callback() -> bool {
    INSIDE_CALLBACK.get()
}

pub(super) fn install(handler: aiot_state_logcb_t) -> i32 {
    guard_code(|| {
        logging::set_sink(handler.map(|handler| -> logging::Sink {
            Arc::new(move |code, line| {
                let mut message = Vec::with_capacity(line.len() + 1);
                message.extend_from_slice(line.as_bytes());
                message.push(0);
                INSIDE_CALLBACK.set(true);
                // SAFETY: the caller promised a function of this type; the message is writable,
                // ends in NUL (a line holds no other) and outlives the call.
                unsafe { handler(code, message.as_mut_ptr().cast()) };
                INSIDE_CALLBACK.set(false);
            })
        }));
        Ok(())
    })
}

/// The header has literals, since it is generated from this file alone; the library uses
/// `error::state`. They are the same numbers.
const _: () = {
    use crate::error::state;
    assert!(STATE_SUCCESS == state::SUCCESS);
    assert!(STATE_USER_INPUT_NULL_POINTER == state::USER_INPUT_NULL_POINTER);
    assert!(STATE_USER_INPUT_OUT_RANGE == state::USER_INPUT_OUT_RANGE);
    assert!(STATE_USER_INPUT_UNKNOWN_OPTION == state::USER_INPUT_UNKNOWN_OPTION);
    assert!(STATE_USER_INPUT_MISSING_HOST == state::USER_INPUT_MISSING_HOST);
    assert!(STATE_USER_INPUT_EXEC_DISABLED == state::USER_INPUT_EXEC_DISABLED);
    assert!(STATE_SYS_DEPEND_MALLOC_FAILED == state::SYS_DEPEND_MALLOC_FAILED);
    assert!(STATE_SYS_DEPEND_NWK_EST_FAILED == state::SYS_DEPEND_NWK_EST_FAILED);
    assert!(STATE_SYS_DEPEND_NWK_CLOSED == state::SYS_DEPEND_NWK_CLOSED);
    assert!(STATE_SYS_DEPEND_NWK_INVALID_CRED == state::SYS_DEPEND_NWK_INVALID_CRED);
    assert!(STATE_PORT_NETWORK_DNS_FAILED == state::PORT_NETWORK_DNS_FAILED);
    assert!(STATE_PORT_NETWORK_CONNECT_TIMEOUT == state::PORT_NETWORK_CONNECT_TIMEOUT);
    assert!(STATE_PORT_NETWORK_CONNECT_FAILED == state::PORT_NETWORK_CONNECT_FAILED);
    assert!(STATE_PORT_TLS_INVALID_CRED_OPTION == state::PORT_TLS_INVALID_CRED_OPTION);
    assert!(STATE_PORT_TLS_INVALID_SERVER_CERT == state::PORT_TLS_INVALID_SERVER_CERT);
    assert!(STATE_PORT_TLS_INVALID_CLIENT_CERT == state::PORT_TLS_INVALID_CLIENT_CERT);
    assert!(STATE_PORT_TLS_INVALID_CLIENT_KEY == state::PORT_TLS_INVALID_CLIENT_KEY);
    assert!(STATE_PORT_TLS_INVALID_HANDSHAKE == state::PORT_TLS_INVALID_HANDSHAKE);
    assert!(STATE_ADAPTER_COMMON == state::ADAPTER_COMMON);
    assert!(STATE_TUNNEL_BASE == state::TUNNEL_BASE);
    assert!(STATE_TUNNEL_FAILED == state::TUNNEL_FAILED);
    assert!(STATE_TUNNEL_TIMEOUT == state::TUNNEL_TIMEOUT);
    assert!(STATE_TUNNEL_RESET == state::TUNNEL_RESET);
    assert!(STATE_TUNNEL_LIMIT == state::TUNNEL_LIMIT);
    assert!(STATE_TUNNEL_BUSY == state::TUNNEL_BUSY);
    assert!(STATE_TUNNEL_RUNNING == state::TUNNEL_RUNNING);
};
