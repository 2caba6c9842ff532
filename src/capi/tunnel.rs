//! `aiot_tunnel_api.h`: the remote-login engine.

use std::ffi::{c_char, c_uint, c_void, CStr};
use std::mem::{transmute, MaybeUninit};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::state::{aiot_state_logcb_t, install};
use super::{guard, guard_code, handle, input, Outcome};
use crate::config::{ConnectParams, TunnelId};
use crate::state;

/// What happened to a tunnel. (Link SDK 4.x)
#[repr(C)]
pub enum aiot_tunnel_event_type {
    /// The WebSocket to the cloud is open: sessions can be created.
    AIOT_TUNNEL_EVT_CONNECT,
    /// An open WebSocket was lost, deleted, updated, or the instance stops. Exactly one for each
    /// CONNECT.
    AIOT_TUNNEL_EVT_DISCONNECT,
    /// The cloud refuses the token. The tunnel is dropped; aiot_tunnel_update or aiot_tunnel_add
    /// with a fresh token brings it back.
    AIOT_TUNNEL_EVT_EXPIRED,
}

/// One event of one tunnel. (Link SDK 4.x)
#[repr(C)]
pub struct aiot_tunnel_event_t {
    /// What happened.
    pub r#type: aiot_tunnel_event_type,
    /// To which tunnel: the id given to aiot_tunnel_add, ended by NUL.
    pub tunnel_id: [c_char; 128],
}

/// A local TCP service that the device offers, for AIOT_TUNNELOPT_ADD_SERVICE. (Link SDK 4.x)
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_tunnel_service_t {
    /// The name that the access side asks for, e.g. "_SSH": 1 to 127 bytes of UTF-8 without
    /// control characters, and a NUL.
    pub r#type: [c_char; 128],
    /// Where the service listens, usually "127.0.0.1": an IPv4 or IPv6 address or a host name of
    /// 1 to 127 bytes, and a NUL.
    pub ip: [c_char; 128],
    /// The TCP port, 1 to 65535.
    pub port: c_uint,
}

/// Where and how a tunnel connects: what the cloud's notify message carries. Each text is read
/// up to its NUL, which must come within 128 bytes, and holds visible ASCII only. All of it
/// remains the caller's and may be freed when the call returns. (Link SDK 4.x)
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_tunnel_connect_param_t {
    /// Host name or address of the tunnel service; not empty.
    pub host: *mut c_char,
    /// Its port in decimal digits, 1 to 65535.
    pub port: *mut c_char,
    /// Path of the tunnel, e.g. "/tunnel/ID/dest"; a missing leading slash is added.
    pub path: *mut c_char,
    /// The access token. The library's copies are wiped after use; wipe yours, too.
    pub token: *mut c_char,
}

/// Options of aiot_tunnel_setopt. (Link SDK 4.x)
#[repr(C)]
pub enum aiot_tunnel_option_t {
    /// The function that receives the events. Data: the function itself, an
    /// aiot_tunnel_event_handler_t cast to void *.
    AIOT_TUNNELOPT_EVENT_HANDLER,
    /// The pointer that the event handler gets as its userdata. Data: the pointer itself. It
    /// remains the caller's, who keeps it valid for as long as the handler uses it.
    AIOT_TUNNELOPT_USERDATA,
    /// How connections made from now on are secured. Data: aiot_sysdep_network_cred_t *. Without
    /// this option they are in plain text.
    AIOT_TUNNELOPT_NETWORK_CRED,
    /// One more local service, for tunnels connected from now on; it replaces one of the same
    /// type. Data: aiot_tunnel_service_t *.
    AIOT_TUNNELOPT_ADD_SERVICE,
    /// The number of options; not an option.
    AIOT_TUNNELOPT_MAX,
}

/// Receives the events of all tunnels of a handle.
///
/// handle: the handle, to be used in calls from inside the handler.
/// event: what happened; the library's memory, valid until the handler returns.
/// userdata: the pointer set with AIOT_TUNNELOPT_USERDATA, or NULL.
///
/// Called only by the thread that is inside aiot_tunnel_start, one event at a time, in order. It
/// may take its time: data flows meanwhile, only commands and further events wait. It may call
/// every function of this library. It must return normally (no longjmp, no C++ exception).
/// (Link SDK 4.x)
pub type aiot_tunnel_event_handler_t = Option<
    unsafe extern "C" fn(
        handle: *mut c_void,
        event: *const aiot_tunnel_event_t,
        userdata: *mut c_void,
    ),
>;

/// The function behind [`aiot_tunnel_event_handler_t`].
pub(super) type EventFunction =
    unsafe extern "C" fn(*mut c_void, *const aiot_tunnel_event_t, *mut c_void);

/// Makes an instance: no service, plain text, no event handler, no tunnel. It starts no thread
/// and opens nothing.
///
/// Returns a handle, to be given back with aiot_tunnel_deinit, or NULL when it cannot be made.
/// The handle is a number, not an address: do not dereference it. Every function below may be
/// called with it from any thread, several at once.
///
/// May be called from any thread. Does not block. (Link SDK 4.x)
#[no_mangle]
pub extern "C" fn aiot_tunnel_init() -> *mut c_void {
    guard(ptr::null_mut(), || handle::create().unwrap_or(ptr::null_mut()))
}

/// Sets an option of an instance, at any time, before or after aiot_tunnel_start.
///
/// option: one of aiot_tunnel_option_t.
/// data: what the option says; not NULL. Everything it points to is copied, texts included, and
/// may be freed at once; only the userdata pointer is kept as it is.
///
/// May be called from any thread, the event handler included. Does not block.
///
/// Returns (Link SDK 4.x, except as noted):
/// STATE_SUCCESS;
/// STATE_USER_INPUT_NULL_POINTER: handle or data is NULL;
/// STATE_USER_INPUT_OUT_RANGE: no such option; or (ours) a service with a text that does not end
/// within its array, an empty type or ip, a byte that is not allowed, or a port not in 1..65535;
/// STATE_USER_INPUT_EXEC_DISABLED (ours): the handle is not a live one;
/// and for a credential (ours):
/// STATE_PORT_TLS_INVALID_CRED_OPTION: PSK, or no such credential option;
/// STATE_PORT_TLS_INVALID_SERVER_CERT: no CA certificate, or not PEM;
/// STATE_PORT_TLS_INVALID_CLIENT_CERT: not PEM, or missing though there is a client key;
/// STATE_PORT_TLS_INVALID_CLIENT_KEY: not PEM, encrypted, of another certificate, or missing
/// though there is a client certificate.
/// After an error the former setting stands.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_setopt(
    handle: *mut c_void,
    option: MaybeUninit<aiot_tunnel_option_t>,
    data: *mut c_void,
) -> i32 {
    const EVENT_HANDLER: u32 = aiot_tunnel_option_t::AIOT_TUNNELOPT_EVENT_HANDLER as u32;
    const USERDATA: u32 = aiot_tunnel_option_t::AIOT_TUNNELOPT_USERDATA as u32;
    const NETWORK_CRED: u32 = aiot_tunnel_option_t::AIOT_TUNNELOPT_NETWORK_CRED as u32;
    const ADD_SERVICE: u32 = aiot_tunnel_option_t::AIOT_TUNNELOPT_ADD_SERVICE as u32;
    const MAX: u32 = aiot_tunnel_option_t::AIOT_TUNNELOPT_MAX as u32;
    guard_code(|| {
        input::non_null(handle)?;
        input::non_null(data)?;
        let option = input::enum_number(option);
        if option >= MAX {
            return Err(state::USER_INPUT_OUT_RANGE);
        }
        let instance = handle::get(handle)?;
        match option {
            EVENT_HANDLER => {
                // SAFETY: not NULL; with this option the caller passes such a function.
                let function = unsafe { transmute::<*mut c_void, EventFunction>(data) };
                instance.callback().set_function(function);
            }
            USERDATA => instance.callback().set_userdata(data),
            NETWORK_CRED => {
                // SAFETY: with this option the caller passes a credential; any bits are one.
                let cred = unsafe { input::copied(data) };
                // SAFETY: its texts are NULL or as long as it says.
                let security = unsafe { input::security(&cred) }?;
                instance.commands().set_security(security);
            }
            ADD_SERVICE => {
                // SAFETY: with this option the caller passes a service; any bits are one.
                let service = unsafe { input::copied(data) };
                instance.commands().add_service(input::service(&service)?);
            }
            _ => return Err(state::USER_INPUT_OUT_RANGE),
        }
        Ok(())
    })
}

/// Ends an instance, stops what still runs, closes all its tunnels, and sets *handle to NULL.
///
/// handle: the address of the handle; *handle is set to NULL first, so that other threads which
/// read it there get STATE_USER_INPUT_NULL_POINTER from now on.
///
/// May be called from any thread. When a thread is inside aiot_tunnel_start, deinit makes it
/// return and waits for that: usually under 200 ms, plus the time that an event handler takes.
/// Events arrive until then, and none after deinit has returned. So do not call it while you
/// hold a lock that the event handler takes. Called from inside the event handler or the log
/// callback it does not wait: no event follows, and aiot_tunnel_start returns soon after.
///
/// Returns:
/// STATE_SUCCESS (Link SDK 4.x);
/// STATE_USER_INPUT_NULL_POINTER: handle or *handle is NULL (Link SDK 4.x);
/// STATE_USER_INPUT_EXEC_DISABLED: *handle is not a live handle, e.g. another thread was faster
/// (ours).
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_deinit(handle: *mut *mut c_void) -> i32 {
    guard_code(|| {
        input::non_null(handle)?;
        // SAFETY: the address of the caller's variable. Atomic, since threads may race here.
        let variable = unsafe { AtomicPtr::from_ptr(handle) };
        let instance = handle::remove(variable.load(Ordering::Acquire))?;
        variable.store(ptr::null_mut(), Ordering::Release);
        instance.end();
        Ok(())
    })
}

/// Runs the tunnels of an instance on the calling thread. Its type is that of a pthread start
/// routine: pthread_create(&thread, NULL, aiot_tunnel_start, handle).
///
/// Blocks until aiot_tunnel_stop or aiot_tunnel_deinit; idle, it sleeps. Commands given before
/// are executed now, in their order. Before it returns, all tunnels are closed (DISCONNECT for
/// each that was open) and all threads of the instance have ended.
///
/// May be called from any thread, by one at a time for a handle.
///
/// Returns NULL after a stop (Link SDK 4.x); otherwise, at once, a pointer to a constant
/// int32_t that is valid forever and must be neither written to nor freed (ours):
/// STATE_USER_INPUT_NULL_POINTER: handle is NULL;
/// STATE_USER_INPUT_EXEC_DISABLED: the handle is not a live one;
/// STATE_TUNNEL_RUNNING: another thread is inside aiot_tunnel_start with this handle;
/// STATE_TUNNEL_FAILED: an internal error, reported on stderr.
#[no_mangle]
pub extern "C" fn aiot_tunnel_start(handle: *mut c_void) -> *mut c_void {
    static NULL_POINTER: i32 = state::USER_INPUT_NULL_POINTER;
    static EXEC_DISABLED: i32 = state::USER_INPUT_EXEC_DISABLED;
    static RUNNING: i32 = state::TUNNEL_RUNNING;
    static FAILED: i32 = state::TUNNEL_FAILED;
    let code = match guard(Err(FAILED), || handle::get(handle)?.run()) {
        Ok(()) => return ptr::null_mut(),
        Err(state::USER_INPUT_NULL_POINTER) => &NULL_POINTER,
        Err(state::USER_INPUT_EXEC_DISABLED) => &EXEC_DISABLED,
        Err(state::TUNNEL_RUNNING) => &RUNNING,
        Err(_) => &FAILED,
    };
    ptr::from_ref(code).cast_mut().cast()
}

/// Makes aiot_tunnel_start return, within 200 ms, even while a tunnel is connecting.
///
/// Cannot be taken back: an aiot_tunnel_start that comes later returns at once, and later
/// commands (add, update, delete) get STATE_USER_INPUT_EXEC_DISABLED.
///
/// May be called from any thread, the event handler included. Returns at once, without waiting
/// for aiot_tunnel_start.
///
/// Returns:
/// STATE_SUCCESS, also when it was stopped already (Link SDK 4.x);
/// STATE_USER_INPUT_NULL_POINTER: handle is NULL (Link SDK 4.x);
/// STATE_USER_INPUT_EXEC_DISABLED: the handle is not a live one (ours).
#[no_mangle]
pub extern "C" fn aiot_tunnel_stop(handle: *mut c_void) -> i32 {
    guard_code(|| {
        handle::get(handle)?.commands().stop();
        Ok(())
    })
}

/// Opens a tunnel. The command is queued and executed by the thread inside aiot_tunnel_start,
/// in the order of the calls; for an id that exists it is then logged and ignored
/// (aiot_tunnel_update is for that). The outcome is an event; a tunnel that cannot connect, or
/// loses its connection, tries again on its own until it is deleted or expired.
///
/// tunnel_id: 1 to 127 bytes of UTF-8 without control characters, and a NUL.
/// params: where to connect. Everything is copied and may be freed at once.
///
/// May be called from any thread, the event handler included, before aiot_tunnel_start, too.
/// Does not block.
///
/// Returns:
/// STATE_SUCCESS: queued (Link SDK 4.x);
/// STATE_USER_INPUT_NULL_POINTER: an argument or a member of params is NULL (Link SDK 4.x);
/// STATE_USER_INPUT_EXEC_DISABLED: the handle is not a live one, or was stopped (ours);
/// STATE_USER_INPUT_OUT_RANGE: a text has no NUL within 128 bytes or holds a byte that is not
/// allowed, the id or the host is empty, or the port is not a number in 1..65535 (ours);
/// STATE_TUNNEL_LIMIT: there are 20 tunnels already (ours);
/// STATE_TUNNEL_BUSY: 4096 commands wait already (ours).
/// After an error nothing is queued.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_add(
    handle: *mut c_void,
    tunnel_id: *mut c_char,
    params: *mut aiot_tunnel_connect_param_t,
) -> i32 {
    guard_code(|| {
        // SAFETY: texts and params are as this function's own caller promises.
        let (commands, id, params) = unsafe { connection(handle, tunnel_id, params) }?;
        commands.add(&id, params).map_err(input::code)
    })
}

/// Gives a tunnel new connection data: an open one is closed (DISCONNECT) and connected anew
/// (CONNECT); for an unknown id it is aiot_tunnel_add. Queued like that.
///
/// Arguments, threads and codes: see aiot_tunnel_add. STATE_TUNNEL_LIMIT is returned for an
/// unknown id only. (Link SDK 4.x)
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_update(
    handle: *mut c_void,
    tunnel_id: *mut c_char,
    params: *mut aiot_tunnel_connect_param_t,
) -> i32 {
    guard_code(|| {
        // SAFETY: texts and params are as this function's own caller promises.
        let (commands, id, params) = unsafe { connection(handle, tunnel_id, params) }?;
        commands.update(&id, params).map_err(input::code)
    })
}

/// Closes a tunnel and its sessions (DISCONNECT when it was open). Queued like aiot_tunnel_add;
/// an unknown id is then logged and ignored.
///
/// tunnel_id: see aiot_tunnel_add.
///
/// May be called from any thread, the event handler included. Does not block.
///
/// Returns:
/// STATE_SUCCESS: queued (Link SDK 4.x);
/// STATE_USER_INPUT_NULL_POINTER: an argument is NULL (Link SDK 4.x);
/// STATE_USER_INPUT_EXEC_DISABLED: the handle is not a live one, or was stopped (ours);
/// STATE_USER_INPUT_OUT_RANGE: the id is empty, has no NUL within 128 bytes or holds a byte
/// that is not allowed (ours);
/// STATE_TUNNEL_BUSY: 4096 commands wait already (ours).
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_delete(handle: *mut c_void, tunnel_id: *mut c_char) -> i32 {
    guard_code(|| {
        input::non_null(handle)?;
        input::non_null(tunnel_id)?;
        let instance = handle::get(handle)?;
        // SAFETY: not NULL; a text as this function's own caller promises.
        let id = unsafe { input::tunnel_id(tunnel_id) }?;
        instance.commands().delete(&id).map_err(input::code)
    })
}

/// aiot_state_set_logcb under a name that is this library's own, for programs that contain the
/// Link SDK's core as well, where that name is taken. Both set the same callback. (Ours)
#[no_mangle]
pub extern "C" fn aiot_tunnel_set_logcb(handler: aiot_state_logcb_t) -> i32 {
    install(handler)
}

/// Returns the version of the library that is running, "MAJOR.MINOR.PATCH", ended by NUL; that
/// of the header is AIOT_TUNNEL_VERSION. The memory is the library's and valid forever.
///
/// May be called from any thread. Does not block. (Ours)
#[no_mangle]
pub extern "C" fn aiot_tunnel_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a NUL within the version"),
        };
    VERSION.as_ptr()
}

/// The arguments of add and update. Checked in this order: NULL pointers, the handle, values.
///
/// # Safety
/// What is not NULL is readable: `params` as a struct, texts up to their NUL or for 128 bytes.
unsafe fn connection(
    handle: *mut c_void,
    tunnel_id: *const c_char,
    params: *const aiot_tunnel_connect_param_t,
) -> Outcome<(crate::manager::Handle, TunnelId, ConnectParams)> {
    input::non_null(handle)?;
    input::non_null(tunnel_id)?;
    input::non_null(params)?;
    // SAFETY: not NULL and, as the caller promises, readable; any bits are such a struct.
    let params: aiot_tunnel_connect_param_t = unsafe { input::copied(params.cast()) };
    for text in [params.host, params.port, params.path, params.token] {
        input::non_null(text)?;
    }
    let instance = handle::get(handle)?;
    // SAFETY: not NULL, and readable as the caller promises.
    let (id, params) = unsafe { (input::tunnel_id(tunnel_id)?, input::connect_params(&params)?) };
    Ok((instance.commands(), id, params))
}
