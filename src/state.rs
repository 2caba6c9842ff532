//! State codes: the numbers by which C callers and log lines know an outcome.
//!
//! This is the one table of them. The library uses these constants, and `tests/c_headers.rs`
//! writes them, with the prefix `STATE_`, into `include/aiot_state_api.h`. So the comments are
//! written for the C reader, and every value is a literal, which is all that cbindgen reads.
//!
//! Names and values are the Link SDK's (4.x). Codes from `-0x1C84` down are this library's own.

/// Success. Every function that returns an int32_t state code returns this or one of the
/// negative values below. Unless marked "ours", name and value are the Link SDK's (4.x).
pub const SUCCESS: i32 = 0x0000;

/// Where the codes for faulty arguments begin. Never returned itself.
pub const USER_INPUT_BASE: i32 = -0x0100;
/// A pointer that must not be NULL is NULL.
pub const USER_INPUT_NULL_POINTER: i32 = -0x0101;
/// A value is outside its documented range, or a text is too long, empty, not terminated within
/// 128 bytes, or holds a byte that is not allowed.
pub const USER_INPUT_OUT_RANGE: i32 = -0x0102;
/// The option does not exist. Not returned by this library.
pub const USER_INPUT_UNKNOWN_OPTION: i32 = -0x0103;
/// No host was given. Not returned by this library.
pub const USER_INPUT_MISSING_HOST: i32 = -0x0108;
/// The handle is not a live one: its deinit was called, or it never came from an init. Or the
/// handle was stopped, and takes no more commands.
pub const USER_INPUT_EXEC_DISABLED: i32 = -0x0109;

/// Where the codes for the system below begin. Never returned itself.
pub const SYS_DEPEND_BASE: i32 = -0x0200;
/// Out of memory. Not returned by this library.
pub const SYS_DEPEND_MALLOC_FAILED: i32 = -0x0201;
/// No network connection could be made. Not returned by this library.
pub const SYS_DEPEND_NWK_EST_FAILED: i32 = -0x0203;
/// The network connection is closed. Not returned by this library.
pub const SYS_DEPEND_NWK_CLOSED: i32 = -0x0204;
/// The network credential cannot be used. Not returned by this library.
pub const SYS_DEPEND_NWK_INVALID_CRED: i32 = -0x0208;

/// Where the codes for network and TLS begin. Never returned itself.
pub const PORT_BASE: i32 = -0x0F00;
/// Out of memory. Not returned by this library.
pub const PORT_MALLOC_FAILED: i32 = -0x0F03;
/// A host name did not resolve. In log lines only.
pub const PORT_NETWORK_DNS_FAILED: i32 = -0x0F0B;
/// Connecting took too long. Not returned by this library.
pub const PORT_NETWORK_CONNECT_TIMEOUT: i32 = -0x0F0F;
/// Code of the log line that reports the outcome of a WebSocket handshake. In log lines only.
pub const PORT_NETWORK_CONNECT_FAILED: i32 = -0x0F10;
/// The credential's option is PSK or unknown.
pub const PORT_TLS_INVALID_CRED_OPTION: i32 = -0x0F16;
/// The CA certificate is missing or is not PEM.
pub const PORT_TLS_INVALID_SERVER_CERT: i32 = -0x0F18;
/// The client certificate is not PEM, or is missing where there is a client key.
pub const PORT_TLS_INVALID_CLIENT_CERT: i32 = -0x0F19;
/// The client key is not PEM, is encrypted, belongs to another certificate, or is missing where
/// there is a client certificate.
pub const PORT_TLS_INVALID_CLIENT_KEY: i32 = -0x0F1A;
/// The TLS handshake failed. In log lines only.
pub const PORT_TLS_INVALID_HANDSHAKE: i32 = -0x0F23;

/// Code of the network adapter's log lines. In log lines only.
pub const ADAPTER_COMMON: i32 = -0x1000;

/// Where the tunnel's codes begin; the code of its usual log lines. Never returned itself.
pub const TUNNEL_BASE: i32 = -0x1C80;
/// A tunnel operation failed for a reason that has no code of its own.
pub const TUNNEL_FAILED: i32 = -0x1C81;
/// A tunnel operation took too long. In log lines only.
pub const TUNNEL_TIMEOUT: i32 = -0x1C82;
/// The peer reset the tunnel. In log lines only.
pub const TUNNEL_RESET: i32 = -0x1C83;
/// As many tunnels exist as an instance may have: 20. Ours; the Link SDK returns -1.
pub const TUNNEL_LIMIT: i32 = -0x1C84;
/// 4096 commands wait already for a start thread that does not take them. Ours.
pub const TUNNEL_BUSY: i32 = -0x1C85;
/// aiot_tunnel_start already runs for this handle, in another thread. Ours.
pub const TUNNEL_RUNNING: i32 = -0x1C86;
/// No tunnel has this id. Ours.
pub const TUNNEL_UNKNOWN: i32 = -0x1C87;
