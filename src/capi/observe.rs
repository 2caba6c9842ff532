//! `aiot_tunnel_api.h`, the part that the Link SDK does not have: limits, what can be observed of
//! running tunnels, and the listen thread.

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of, transmute, MaybeUninit};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{guard_code, handle, input, Outcome, Refusal};
use crate::ipc::ListenOptions;
use crate::logging::{one_line, Code};
use crate::status::{Notice, NoticeKind, SessionStatus, TunnelState, TunnelStatus, TOKEN_REFUSED};

/// Limits and times of an instance, for aiot_tunnel_set_limit. (Ours)
#[repr(C)]
pub enum aiot_tunnel_limit_t {
    /// Number of tunnels that may exist at once, at least 1. Default 20. Applies to the next
    /// aiot_tunnel_add.
    AIOT_TUNNEL_LIMIT_MAX_TUNNELS,
    /// Number of sessions that one tunnel may have at once, at least 1. Default 10.
    AIOT_TUNNEL_LIMIT_MAX_SESSIONS,
    /// Number of bytes from the cloud that may wait for one local service, at least 65536. Default
    /// 262144.
    AIOT_TUNNEL_LIMIT_SESSION_BUFFER,
    /// Number of bytes that may wait for the cloud before local services are no longer read, at least
    /// 8192. Default 131072.
    AIOT_TUNNEL_LIMIT_SEND_BUFFER,
    /// Milliseconds that a local service may take nothing while its buffer is full, before its
    /// session is released; at least 1. Default 10000.
    AIOT_TUNNEL_LIMIT_STALL_TIMEOUT_MS,
    /// Milliseconds for lookup, TCP, TLS and WebSocket handshake together, at least 1. Default 15000.
    AIOT_TUNNEL_LIMIT_HANDSHAKE_TIMEOUT_MS,
    /// Milliseconds for the connection to a local service, at least 1. Default 5000.
    AIOT_TUNNEL_LIMIT_CONNECT_TIMEOUT_MS,
    /// Milliseconds between two WebSocket pings, at least 1. Default 20000.
    AIOT_TUNNEL_LIMIT_PING_INTERVAL_MS,
    /// Milliseconds of silence of the cloud after which the connection counts as lost, at least 1.
    /// Default 60000.
    AIOT_TUNNEL_LIMIT_PONG_TIMEOUT_MS,
}

/// What a tunnel does. (Ours)
#[repr(C)]
#[derive(Clone, Copy)]
pub enum aiot_tunnel_state_t {
    /// Lookup, TCP, TLS or the WebSocket handshake is under way.
    AIOT_TUNNEL_STATE_CONNECTING,
    /// The WebSocket is open.
    AIOT_TUNNEL_STATE_CONNECTED,
    /// An attempt has failed, and the next one follows at retry_at_ms.
    AIOT_TUNNEL_STATE_WAITING,
}

/// A tunnel at one moment. Later versions may add members at the end; size tells which exist. (Ours)
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_tunnel_status_t {
    /// Size of the struct in bytes. For aiot_tunnel_get_status, the caller sets it to
    /// sizeof(aiot_tunnel_status_t); the library writes that many bytes at most.
    pub size: u32,
    /// What the tunnel does now.
    pub state: aiot_tunnel_state_t,
    /// The time from which it has been in that state: milliseconds since 1970 by the system's clock.
    pub since_ms: u64,
    /// The time of the next attempt, in the same unit. 0 unless the state is WAITING.
    pub retry_at_ms: u64,
    /// Attempts to connect since the tunnel was last open or got its connection data. 0 while it is
    /// open.
    pub attempts: u32,
    /// Number of open sessions.
    pub sessions: u32,
    /// Port of the tunnel service.
    pub port: u32,
    /// 0. Reserved.
    pub reserved: u32,
    /// The tunnel's id, NUL-terminated.
    pub tunnel_id: [c_char; 128],
    /// Host of the tunnel service, NUL-terminated.
    pub host: [c_char; 256],
    /// Why the last attempt failed or the last connection was lost: one line, NUL-terminated, cut at
    /// 511 bytes, without secrets. Empty if nothing has failed.
    pub last_error: [c_char; 512],
}

/// An open session at one moment. Later versions may add members at the end; size tells which exist.
/// (Ours)
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_tunnel_session_t {
    /// Size of the struct in bytes.
    pub size: u32,
    /// 0. Reserved.
    pub reserved: u32,
    /// Milliseconds since its local service was connected.
    pub age_ms: u64,
    /// Bytes that have come from the cloud for the local service.
    pub bytes_from_cloud: u64,
    /// Bytes that have come from the local service for the cloud.
    pub bytes_to_cloud: u64,
    /// The session's id as the cloud sends it, NUL-terminated, cut at 127 bytes. A question mark stands
    /// for each NUL, control character and invisible character.
    pub session_id: [c_char; 128],
    /// The service type as the cloud sends it, NUL-terminated, with question marks as in session_id.
    pub service_type: [c_char; 128],
}

/// Receives the tunnels of an instance, one in each call. The struct is valid until the function
/// returns. (Ours)
pub type aiot_tunnel_status_visitor_t =
    Option<unsafe extern "C" fn(tunnel: *const aiot_tunnel_status_t, userdata: *mut c_void)>;

/// Receives the sessions of a tunnel, one in each call. The struct is valid until the function
/// returns. (Ours)
pub type aiot_tunnel_session_visitor_t =
    Option<unsafe extern "C" fn(session: *const aiot_tunnel_session_t, userdata: *mut c_void)>;

/// Kinds of notice: what the Link SDK's three events do not say. Later versions may add kinds; ignore
/// those you do not know. (Ours)
#[repr(C)]
#[derive(Clone, Copy)]
pub enum aiot_tunnel_notice_type_t {
    /// An attempt to connect has failed, or an open connection was lost. code and text say why.
    AIOT_TUNNEL_NOTICE_FAILED,
    /// A session's local service is connected.
    AIOT_TUNNEL_NOTICE_SESSION_OPENED,
    /// A session is over. The byte counts are final.
    AIOT_TUNNEL_NOTICE_SESSION_CLOSED,
}

/// One notice of one tunnel. Later versions may add members at the end; size tells which exist. (Ours)
#[repr(C)]
pub struct aiot_tunnel_notice_t {
    /// Size of the struct in bytes.
    pub size: u32,
    /// What happened.
    pub r#type: aiot_tunnel_notice_type_t,
    /// For FAILED, the state code of the log line that reports it (negative); otherwise 0.
    pub code: i32,
    /// Notices that were dropped before this one, because the handler was slower than the tunnels.
    pub dropped: u32,
    /// Bytes that have come from the cloud; for SESSION_CLOSED.
    pub bytes_from_cloud: u64,
    /// Bytes that have gone to the cloud; for SESSION_CLOSED.
    pub bytes_to_cloud: u64,
    /// For FAILED, the reason: one line, NUL-terminated, cut at 511 bytes, without secrets.
    pub text: [c_char; 512],
    /// The tunnel's id, NUL-terminated.
    pub tunnel_id: [c_char; 128],
    /// For a session, its id as in aiot_tunnel_session_t; otherwise empty.
    pub session_id: [c_char; 128],
    /// For a session, its service type as in aiot_tunnel_session_t; otherwise empty.
    pub service_type: [c_char; 128],
}

/// Receives notices. handle, userdata, thread and what is allowed: as for
/// aiot_tunnel_event_handler_t. notice is valid until the handler returns. (Ours)
pub type aiot_tunnel_notice_handler_t = Option<
    unsafe extern "C" fn(
        handle: *mut c_void,
        notice: *const aiot_tunnel_notice_t,
        userdata: *mut c_void,
    ),
>;

/// The function inside [`aiot_tunnel_notice_handler_t`]. It may end its thread, which unwinds it.
pub(super) type NoticeFunction =
    unsafe extern "C-unwind" fn(*mut c_void, *const aiot_tunnel_notice_t, *mut c_void);

pub(super) fn may_unwind(
    function: unsafe extern "C" fn(*mut c_void, *const aiot_tunnel_notice_t, *mut c_void),
) -> NoticeFunction {
    // SAFETY: the types differ only in what the callee may do: unwind.
    unsafe { transmute(function) }
}

/// Which message queue aiot_tunnel_listen_with reads, and who may write to it. (Ours)
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_tunnel_listen_t {
    /// Size of the struct in bytes; the caller sets it to sizeof(aiot_tunnel_listen_t).
    pub size: u32,
    /// Key of the queue. Not 0.
    pub key: i32,
    /// Permission bits that the queue may have, for example 0600. A queue that exists loses those
    /// beyond them.
    pub mode: u32,
    /// Not 0: owner names a user who may own the queue, besides root and the user of this process.
    pub has_owner: u32,
    /// User id of that user.
    pub owner: u32,
}

/// Sets a limit or a time of an instance. (Ours)
///
/// limit: one of aiot_tunnel_limit_t, which states unit, range and default.
/// value: the new value.
///
/// Applies to the connections that are opened from now on. May be called from any thread, also from
/// the event handler. Does not block. A refused call may wait for the log callback: see
/// aiot_state_logcb_t.
///
/// Returns a state code. After an error, the former value stays in effect.
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: handle is NULL.
/// - STATE_USER_INPUT_OUT_RANGE: the limit does not exist, or the value is out of its range.
/// - STATE_USER_INPUT_EXEC_DISABLED: the handle is not valid.
#[no_mangle]
pub extern "C" fn aiot_tunnel_set_limit(
    handle: *mut c_void,
    limit: MaybeUninit<aiot_tunnel_limit_t>,
    value: u32,
) -> i32 {
    use aiot_tunnel_limit_t::*;
    guard_code("aiot_tunnel_set_limit", || {
        let instance = handle::get(handle)?;
        let number = input::enum_number(limit);
        let count = value as usize;
        let time = Duration::from_millis(value.into());
        instance
            .commands()
            .change_limits(|limits| {
                match number {
                    n if n == AIOT_TUNNEL_LIMIT_MAX_TUNNELS as u32 => limits.max_tunnels = count,
                    n if n == AIOT_TUNNEL_LIMIT_MAX_SESSIONS as u32 => limits.max_sessions = count,
                    n if n == AIOT_TUNNEL_LIMIT_SESSION_BUFFER as u32 => {
                        limits.session_buffer = count
                    }
                    n if n == AIOT_TUNNEL_LIMIT_SEND_BUFFER as u32 => limits.send_buffer = count,
                    n if n == AIOT_TUNNEL_LIMIT_STALL_TIMEOUT_MS as u32 => {
                        limits.stall_timeout = time
                    }
                    n if n == AIOT_TUNNEL_LIMIT_HANDSHAKE_TIMEOUT_MS as u32 => {
                        limits.handshake_timeout = time;
                    }
                    n if n == AIOT_TUNNEL_LIMIT_CONNECT_TIMEOUT_MS as u32 => {
                        limits.connect_timeout = time;
                    }
                    n if n == AIOT_TUNNEL_LIMIT_PING_INTERVAL_MS as u32 => {
                        limits.ping_interval = time
                    }
                    n if n == AIOT_TUNNEL_LIMIT_PONG_TIMEOUT_MS as u32 => {
                        limits.pong_timeout = time
                    }
                    _ => return false,
                }
                true
            })
            .map_err(|e| Refusal::of("value", &e))?
            .then_some(())
            .ok_or_else(|| Refusal::out_of_range("limit", format!("{number} is no limit")))
    })
}

/// Adds a header to the requests that open WebSockets, for example one that a load balancer in front of
/// the cloud wants. (Ours)
///
/// name: 1 to 127 letters, digits and hyphens, NUL-terminated. The headers that the request has anyway
/// are refused, and those that announce a body (Content-Length, Transfer-Encoding).
/// value: at most 127 bytes of visible ASCII and blanks, with no blank at either end, NUL-terminated. Not
/// a secret.
///
/// Applies to the later calls of aiot_tunnel_add and aiot_tunnel_update; not to commands from
/// aiot_tunnel_listen. There are at most 32 headers, which have at most 2048 bytes together. May be called from any thread. Does
/// not block. A refused call may wait for the log callback: see aiot_state_logcb_t.
///
/// Returns a state code. After an error, nothing is added.
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: an argument is NULL.
/// - STATE_USER_INPUT_OUT_RANGE: name or value is not valid, or there are too many headers.
/// - STATE_USER_INPUT_EXEC_DISABLED: the handle is not valid.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_add_header(
    handle: *mut c_void,
    name: *const c_char,
    value: *const c_char,
) -> i32 {
    guard_code("aiot_tunnel_add_header", || {
        input::non_null("handle", handle)?;
        input::non_null("name", name)?;
        input::non_null("value", value)?;
        let instance = handle::get(handle)?;
        // SAFETY: not NULL, and readable as the C caller promises.
        let (name, value) = unsafe { (input::text("name", name)?, input::text("value", value)?) };
        instance.add_header(name, value)
    })
}

/// Writes what a tunnel does now. (Ours)
///
/// tunnel_id: as for aiot_tunnel_add.
/// out: the caller sets out->size to sizeof(aiot_tunnel_status_t) before the call. The library writes
/// as many bytes as it knows, at most that many, and sets out->size to their number.
///
/// A tunnel is known from the time when the start thread executes its aiot_tunnel_add until it is
/// deleted or expires. May be called from any thread. Does not block, and does not delay data.
/// A refused call may wait for the log callback: see aiot_state_logcb_t.
///
/// Returns a state code:
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: an argument is NULL.
/// - STATE_USER_INPUT_OUT_RANGE: the id is not valid, or out->size is smaller than the struct's first
///   version.
/// - STATE_USER_INPUT_EXEC_DISABLED: the handle is not valid.
/// - STATE_TUNNEL_UNKNOWN: there is no tunnel with this id.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_get_status(
    handle: *mut c_void,
    tunnel_id: *const c_char,
    out: *mut aiot_tunnel_status_t,
) -> i32 {
    guard_code("aiot_tunnel_get_status", || {
        // SAFETY: what is not NULL is readable as the C caller promises.
        let tunnel = unsafe { tunnel(handle, tunnel_id) };
        input::non_null("out", out)?;
        let status = status_for_c(&tunnel?);
        // SAFETY: not NULL, and the caller has set the size.
        let room = unsafe { out.cast::<u32>().read_unaligned() } as usize;
        if room < size_of::<aiot_tunnel_status_t>() {
            return Err(Refusal::out_of_range("out->size", "smaller than the struct"));
        }
        // SAFETY: the caller's struct has at least this size.
        unsafe { out.write_unaligned(status) };
        Ok(())
    })
}

/// Calls a function for each tunnel of an instance, in the order of the ids. (Ours)
///
/// visitor: called on the calling thread before this function returns. It may call every function of
/// this library. It must return normally: no longjmp, no C++ exception, no pthread_exit.
/// userdata: passed to the visitor.
///
/// May be called from any thread. Does not block by itself, and does not delay data.
/// A refused call may wait for the log callback: see aiot_state_logcb_t.
///
/// Returns a state code:
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: handle or visitor is NULL.
/// - STATE_USER_INPUT_EXEC_DISABLED: the handle is not valid.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_for_each(
    handle: *mut c_void,
    visitor: aiot_tunnel_status_visitor_t,
    userdata: *mut c_void,
) -> i32 {
    guard_code("aiot_tunnel_for_each", || {
        let visitor = visitor.ok_or_else(|| Refusal::null("visitor"))?;
        for tunnel in handle::get(handle)?.commands().tunnels() {
            // SAFETY: the caller promised a function of this type; the status outlives the call.
            unsafe { visitor(&status_for_c(&tunnel), userdata) };
        }
        Ok(())
    })
}

/// Calls a function for each open session of a tunnel, the oldest first. (Ours)
///
/// tunnel_id: as for aiot_tunnel_add.
/// visitor, userdata, threads: as for aiot_tunnel_for_each.
///
/// Returns a state code:
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: handle, tunnel_id or visitor is NULL.
/// - STATE_USER_INPUT_OUT_RANGE: the id is not valid.
/// - STATE_USER_INPUT_EXEC_DISABLED: the handle is not valid.
/// - STATE_TUNNEL_UNKNOWN: there is no tunnel with this id.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_for_each_session(
    handle: *mut c_void,
    tunnel_id: *const c_char,
    visitor: aiot_tunnel_session_visitor_t,
    userdata: *mut c_void,
) -> i32 {
    guard_code("aiot_tunnel_for_each_session", || {
        let visitor = visitor.ok_or_else(|| Refusal::null("visitor"))?;
        // SAFETY: what is not NULL is readable as the C caller promises.
        for session in unsafe { tunnel(handle, tunnel_id) }?.sessions {
            // SAFETY: the caller promised a function of this type; the session outlives the call.
            unsafe { visitor(&session_for_c(&session), userdata) };
        }
        Ok(())
    })
}

/// Sets the function that receives the notices of an instance: why attempts fail, and which sessions
/// open and close. (Ours)
///
/// handler: NULL, the initial state: notices are not made.
/// userdata: passed to the handler.
///
/// The thread inside aiot_tunnel_start calls the handler, as it calls the event handler: one call at
/// a time. At most 1024 notices wait for it; further ones are dropped and counted. When this function
/// is called from another thread, the former handler may still be running.
///
/// May be called from any thread. Does not block. A refused call may wait for the log callback: see
/// aiot_state_logcb_t.
///
/// Returns a state code:
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: handle is NULL.
/// - STATE_USER_INPUT_EXEC_DISABLED: the handle is not valid.
#[no_mangle]
pub extern "C" fn aiot_tunnel_set_notice_handler(
    handle: *mut c_void,
    handler: aiot_tunnel_notice_handler_t,
    userdata: *mut c_void,
) -> i32 {
    guard_code("aiot_tunnel_set_notice_handler", || {
        let instance = handle::get(handle)?;
        instance.callback().set_notice_function(handler, userdata);
        instance.commands().want_notices(handler.is_some());
        Ok(())
    })
}

/// Starts the listen thread: it receives the commands of another process from a System V message
/// queue and executes them as aiot_tunnel_add, aiot_tunnel_delete and aiot_tunnel_update do. (Ours)
///
/// key: key of the queue, not 0; the Link SDK's demos use 1234. The queue is created with mode 0600
/// if it does not exist. A queue that exists must belong to root or to the user of this process. A
/// queue that is removed while the thread listens is created again.
///
/// A message has type 1 and 644 bytes: the operation as an int (1 add, 0 delete, 2 update), then
/// tunnel id, host, port, path and token with 128 bytes each. An invalid message is logged and
/// dropped. The thread runs until aiot_tunnel_deinit, which removes the queue if it was created here.
///
/// A queue has one listener at a time, of this library or of the program aiot-tunnel. A System V semaphore
/// with the same key makes sure of that. It is removed with the listener. If the process is killed, queue
/// and semaphore stay and do no harm: the next listener uses them.
///
/// May be called from any thread. Does not wait for messages.
///
/// Returns a state code:
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: handle is NULL.
/// - STATE_USER_INPUT_OUT_RANGE: key is 0.
/// - STATE_USER_INPUT_EXEC_DISABLED: the handle is not valid.
/// - STATE_TUNNEL_RUNNING: the instance has a listen thread already.
/// - STATE_TUNNEL_FAILED: the queue or the thread cannot be made, the queue belongs to another user, or
///   another listener reads it. The log says why. A kernel without System V message queues is one reason.
#[no_mangle]
pub extern "C" fn aiot_tunnel_listen(handle: *mut c_void, key: i32) -> i32 {
    guard_code("aiot_tunnel_listen", || listen(handle, ListenOptions::new().with_key(key)))
}

/// aiot_tunnel_listen with another mode and another owner of the queue. (Ours)
///
/// options: read during the call.
///
/// State codes: as for aiot_tunnel_listen. STATE_USER_INPUT_OUT_RANGE also if options->size is smaller
/// than the struct, or the mode has other bits than 0666.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_listen_with(
    handle: *mut c_void,
    options: *const aiot_tunnel_listen_t,
) -> i32 {
    guard_code("aiot_tunnel_listen_with", || {
        input::non_null("handle", handle)?;
        input::non_null("options", options)?;
        // SAFETY: not NULL, and the caller has set the size.
        let size = unsafe { options.cast::<u32>().read_unaligned() } as usize;
        if size < size_of::<aiot_tunnel_listen_t>() {
            return Err(Refusal::out_of_range("options->size", "smaller than the struct"));
        }
        // SAFETY: the struct is as large as its size says; every bit pattern is valid.
        let options: aiot_tunnel_listen_t = unsafe { input::copied(options.cast()) };
        if options.mode & !0o666 != 0 {
            return Err(Refusal::out_of_range("options->mode", "has bits beyond 0666"));
        }
        let owner = (options.has_owner != 0).then_some(options.owner);
        let wanted = ListenOptions::new().with_key(options.key).with_mode(options.mode);
        listen(handle, wanted.with_owner(owner))
    })
}

fn listen(handle: *mut c_void, options: ListenOptions) -> Outcome {
    let instance = handle::get(handle)?;
    // Key 0 is IPC_PRIVATE: a queue that no other process can find.
    if options.key == 0 {
        return Err(Refusal::out_of_range("key", "0 is not a key that another process can use"));
    }
    instance.listen(options)
}

/// # Safety
/// `tunnel_id` is NULL, or readable up to its NUL or for 128 bytes.
unsafe fn tunnel(handle: *mut c_void, tunnel_id: *const c_char) -> Outcome<TunnelStatus> {
    input::non_null("handle", handle)?;
    input::non_null("tunnel_id", tunnel_id)?;
    let instance = handle::get(handle)?;
    // SAFETY: as the caller promises.
    let id = unsafe { input::tunnel_id(tunnel_id) }?;
    let unknown = || Refusal::new(Code::TunnelUnknown, "tunnel_id", "there is no such tunnel");
    instance.commands().tunnels().into_iter().find(|tunnel| tunnel.id == id).ok_or_else(unknown)
}

fn status_for_c(tunnel: &TunnelStatus) -> aiot_tunnel_status_t {
    let (state, retry_at) = match tunnel.state {
        TunnelState::Connecting => (aiot_tunnel_state_t::AIOT_TUNNEL_STATE_CONNECTING, 0),
        TunnelState::Connected => (aiot_tunnel_state_t::AIOT_TUNNEL_STATE_CONNECTED, 0),
        TunnelState::Waiting { retry_at } => {
            (aiot_tunnel_state_t::AIOT_TUNNEL_STATE_WAITING, ms_since_1970(retry_at))
        }
    };
    aiot_tunnel_status_t {
        size: size_of::<aiot_tunnel_status_t>() as u32,
        state,
        since_ms: ms_since_1970(tunnel.since),
        retry_at_ms: retry_at,
        attempts: tunnel.attempts,
        sessions: u32::try_from(tunnel.sessions.len()).unwrap_or(u32::MAX),
        port: tunnel.port.get().into(),
        reserved: 0,
        tunnel_id: array(tunnel.id.as_str()),
        host: array(&tunnel.host),
        last_error: array(tunnel.last_error.as_deref().unwrap_or_default()),
    }
}

fn session_for_c(session: &SessionStatus) -> aiot_tunnel_session_t {
    aiot_tunnel_session_t {
        size: size_of::<aiot_tunnel_session_t>() as u32,
        reserved: 0,
        age_ms: u64::try_from(session.age.as_millis()).unwrap_or(u64::MAX),
        bytes_from_cloud: session.bytes_from_cloud,
        bytes_to_cloud: session.bytes_to_cloud,
        session_id: array(&one_line(&session.id)),
        service_type: array(&one_line(&session.service_type)),
    }
}

pub(super) fn notice_for_c(notice: &Notice) -> aiot_tunnel_notice_t {
    use aiot_tunnel_notice_type_t::*;
    let mut for_c = aiot_tunnel_notice_t {
        size: size_of::<aiot_tunnel_notice_t>() as u32,
        r#type: AIOT_TUNNEL_NOTICE_FAILED,
        code: 0,
        dropped: notice.dropped,
        bytes_from_cloud: 0,
        bytes_to_cloud: 0,
        text: [0; 512],
        tunnel_id: array(notice.tunnel_id.as_str()),
        session_id: [0; 128],
        service_type: [0; 128],
    };
    match &notice.kind {
        NoticeKind::Failed { code, text } => {
            for_c.code = *code;
            for_c.text = array(text);
        }
        NoticeKind::TokenRefused => {
            for_c.code = Code::TunnelFailed as i32;
            for_c.text = array(TOKEN_REFUSED);
        }
        NoticeKind::SessionOpened(session) => {
            for_c.r#type = AIOT_TUNNEL_NOTICE_SESSION_OPENED;
            for_c.session_id = array(&one_line(&session.id));
            for_c.service_type = array(&one_line(&session.service_type));
        }
        NoticeKind::SessionClosed(session) => {
            for_c.r#type = AIOT_TUNNEL_NOTICE_SESSION_CLOSED;
            for_c.session_id = array(&one_line(&session.id));
            for_c.service_type = array(&one_line(&session.service_type));
            for_c.bytes_from_cloud = session.bytes_from_cloud;
            for_c.bytes_to_cloud = session.bytes_to_cloud;
        }
    }
    for_c
}

fn ms_since_1970(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The text as a C string, cut between two characters if it is too long.
fn array<const N: usize>(text: &str) -> [c_char; N] {
    let mut bytes = [0; N];
    let end = (0..N).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    for (to, from) in bytes.iter_mut().zip(text[..end.min(text.len())].bytes()) {
        *to = from as c_char;
    }
    bytes
}

// Members are only ever added at the end.
const _: () = assert!(offset_of!(aiot_tunnel_status_t, size) == 0);
const _: () = assert!(offset_of!(aiot_tunnel_session_t, size) == 0);
const _: () = assert!(offset_of!(aiot_tunnel_notice_t, size) == 0);
const _: () = assert!(offset_of!(aiot_tunnel_listen_t, size) == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clouds_names_are_whole_and_printable() {
        let (id, service_type) = ("n\0ul\u{1b}".to_owned(), "_\nX\u{202E}".to_owned());
        let session = SessionStatus {
            id,
            service_type,
            age: Duration::ZERO,
            bytes_from_cloud: 0,
            bytes_to_cloud: 0,
        };
        let for_c = session_for_c(&session);
        assert_eq!(
            for_c.session_id[..7].iter().map(|b| *b as u8).collect::<Vec<_>>(),
            b"n?ul?\0\0"
        );
        assert_eq!(for_c.service_type[..5].iter().map(|b| *b as u8).collect::<Vec<_>>(), b"_?X?\0");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters_and_ends_in_nul() {
        let cut: [c_char; 4] = array("aéé");
        assert_eq!(cut.map(|byte| byte as u8), [b'a', 0xC3, 0xA9, 0]);
        assert_eq!(array::<4>("abcdef").map(|byte| byte as u8), *b"abc\0");
        assert_eq!(array::<4>("").map(|byte| byte as u8), [0; 4]);
    }
}
