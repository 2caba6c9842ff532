//! `aiot_tunnel_api.h`: instances, tunnels, events.

use std::ffi::{c_char, c_uint, c_void, CStr};
use std::mem::{transmute, MaybeUninit};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::state::{aiot_state_logcb_t, install, log_to_the_core, warn_if_lines_cannot_arrive};
use super::{guard, guard_code, handle, input, Outcome, Refusal};
use crate::config::{ConnectParams, TunnelId};
use crate::state;
use crate::sys::cancellation;

/// Kinds of tunnel event. (Link SDK 4.x)
#[repr(C)]
pub enum aiot_tunnel_event_type {
    /// The WebSocket to the cloud is open. The cloud can create sessions from now on.
    AIOT_TUNNEL_EVT_CONNECT,
    /// An open WebSocket has ended: the connection was lost, the tunnel was deleted or updated, or
    /// the instance stopped. Each CONNECT is followed by exactly one DISCONNECT.
    AIOT_TUNNEL_EVT_DISCONNECT,
    /// The cloud refused the token. The tunnel is dropped and does not reconnect. Call
    /// aiot_tunnel_update or aiot_tunnel_add with a new token to open it again.
    AIOT_TUNNEL_EVT_EXPIRED,
}

/// One event of one tunnel. (Link SDK 4.x)
#[repr(C)]
pub struct aiot_tunnel_event_t {
    /// What happened.
    pub r#type: aiot_tunnel_event_type,
    /// The tunnel's id, as passed to aiot_tunnel_add; NUL-terminated.
    pub tunnel_id: [c_char; 128],
}

/// A local TCP service that the device offers. Pass it with AIOT_TUNNELOPT_ADD_SERVICE.
/// (Link SDK 4.x)
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_tunnel_service_t {
    /// Service type: the name that the access side asks for, for example "_SSH". 1 to 127 bytes of
    /// UTF-8 without control characters, NUL-terminated.
    pub r#type: [c_char; 128],
    /// Address of the service, usually "127.0.0.1": an IPv4 or IPv6 address or a host name. 1 to
    /// 127 bytes of visible ASCII, NUL-terminated.
    pub ip: [c_char; 128],
    /// TCP port of the service, 1 to 65535.
    pub port: c_uint,
}

/// Connection data of a tunnel, as the cloud's notify message carries it. (Link SDK 4.x)
///
/// Each member points to a NUL-terminated string of at most 127 bytes of visible ASCII: no blanks,
/// no control characters. The library copies all four strings. The caller keeps ownership and may
/// free them as soon as the call returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_tunnel_connect_param_t {
    /// Host name or address of the tunnel service. Not empty.
    pub host: *mut c_char,
    /// Port of the tunnel service: decimal digits, 1 to 65535.
    pub port: *mut c_char,
    /// Path of the tunnel, for example "/tunnel/ID/dest". A missing leading slash is added.
    pub path: *mut c_char,
    /// Access token. The library wipes its copies after use; wipe yours as well.
    pub token: *mut c_char,
}

/// Options of aiot_tunnel_setopt. (Link SDK 4.x)
#[repr(C)]
pub enum aiot_tunnel_option_t {
    /// The function that receives the events. Data: the function itself, an
    /// aiot_tunnel_event_handler_t cast to void *.
    AIOT_TUNNELOPT_EVENT_HANDLER,
    /// The pointer that the event handler receives as userdata. Data: the pointer itself. The
    /// caller keeps it valid for as long as the handler uses it.
    AIOT_TUNNELOPT_USERDATA,
    /// Security of the connections that are opened from now on. Data: aiot_sysdep_network_cred_t *.
    /// Without this option, connections are plain text.
    AIOT_TUNNELOPT_NETWORK_CRED,
    /// Adds a local service for the sessions opened from now on, also in open tunnels. A service of
    /// the same type is replaced. Data: aiot_tunnel_service_t *.
    AIOT_TUNNELOPT_ADD_SERVICE,
    /// Number of options; not an option itself.
    AIOT_TUNNELOPT_MAX,
}

/// Receives the events of all tunnels of an instance. (Link SDK 4.x)
///
/// handle: the instance's handle, for calls from inside the handler.
/// event: the event. The library owns it; it is valid until the handler returns.
/// userdata: the pointer set with AIOT_TUNNELOPT_USERDATA, or NULL.
///
/// Only the thread inside aiot_tunnel_start calls the handler: one event at a time, in order. The
/// handler may block. Data keeps flowing meanwhile; only commands and further events wait. The
/// handler may call every function of this library. It must not be left by longjmp or by a C++
/// exception.
///
/// It should return. If it ends its thread (pthread_exit), the instance ends as after
/// aiot_tunnel_stop, but the remaining events are not delivered. The thread ends when all threads of
/// the instance have ended. Cancellation of the thread (pthread_cancel) is off inside the handler. If
/// the handler switches it on and is cancelled, that is the same as pthread_exit.
pub type aiot_tunnel_event_handler_t = Option<
    unsafe extern "C" fn(
        handle: *mut c_void,
        event: *const aiot_tunnel_event_t,
        userdata: *mut c_void,
    ),
>;

/// The function inside [`aiot_tunnel_event_handler_t`]. It may end its thread, which unwinds it.
pub(super) type EventFunction =
    unsafe extern "C-unwind" fn(*mut c_void, *const aiot_tunnel_event_t, *mut c_void);

/// Creates an instance without services, event handler or tunnels. Connections are plain text until
/// AIOT_TUNNELOPT_NETWORK_CRED is set. No thread is started and no descriptor is opened.
/// (Link SDK 4.x)
///
/// The handle is a number, not an address: do not dereference it. Several threads may use one
/// handle at the same time. Release it with aiot_tunnel_deinit.
///
/// May be called from any thread. Does not block.
///
/// From the first call on, the library's log lines go to the callback of the Link SDK's core, if the
/// program contains the core; see aiot_tunnel_set_logcb.
///
/// Returns a handle, or NULL after an internal error, described on stderr. If there is no memory, the
/// process ends (abort), as in every function of this library.
#[no_mangle]
pub extern "C" fn aiot_tunnel_init() -> *mut c_void {
    guard(ptr::null_mut(), || {
        log_to_the_core();
        handle::create().unwrap_or_else(|refusal| {
            refusal.log("aiot_tunnel_init");
            ptr::null_mut()
        })
    })
}

/// Sets an option of an instance, before or after aiot_tunnel_start. (Link SDK 4.x)
///
/// option: one of aiot_tunnel_option_t.
/// data: the value, as described at the option; not NULL. The library copies the structure and the
/// strings it points to; the caller may free them as soon as the call returns. The userdata pointer
/// is kept as it is.
///
/// May be called from any thread, also from the event handler. Does not block. A refused call
/// may wait for the log callback: see aiot_state_logcb_t.
///
/// Returns a state code. After an error, the former value stays in effect.
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: handle or data is NULL.
/// - STATE_USER_INPUT_OUT_RANGE: the option does not exist. Also (ours): in a service, a string is
///   not NUL-terminated, the type or the ip is empty, a byte is not allowed, or the port is outside
///   1 to 65535.
/// - STATE_USER_INPUT_EXEC_DISABLED (ours): the handle is not valid.
///
/// For a credential also (ours):
/// - STATE_PORT_TLS_INVALID_CRED_OPTION: the credential option is PSK or unknown.
/// - STATE_PORT_TLS_INVALID_SERVER_CERT: the CA certificate is missing or not PEM.
/// - STATE_PORT_TLS_INVALID_CLIENT_CERT: the client certificate is not PEM, or there is a client
///   key without a client certificate.
/// - STATE_PORT_TLS_INVALID_CLIENT_KEY: the client key is not PEM, is encrypted, does not belong to
///   the client certificate, or is missing although there is a client certificate.
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
    guard_code("aiot_tunnel_setopt", || {
        input::non_null("handle", handle)?;
        input::non_null("data", data)?;
        let option = input::enum_number(option);
        if option >= MAX {
            return Err(Refusal::out_of_range("option", format!("{option} is no option")));
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
                // SAFETY: this option's data is a credential; every bit pattern is valid.
                let cred = unsafe { input::copied(data) };
                // SAFETY: each text is NULL or has the length that the credential states.
                let security = unsafe { input::security(&cred) }?;
                instance.commands().set_security(security);
            }
            ADD_SERVICE => {
                // SAFETY: this option's data is a service; every bit pattern is valid.
                let service = unsafe { input::copied(data) };
                instance.commands().add_service(input::service(&service)?);
            }
            _ => return Err(Refusal::out_of_range("option", format!("{option} is no option"))),
        }
        Ok(())
    })
}

/// Stops an instance, closes all its tunnels, frees it and sets *handle to NULL. (Link SDK 4.x)
///
/// handle: address of the variable that holds the handle. The variable is set to NULL before the
/// wait described below, so a thread that reads it from then on gets STATE_USER_INPUT_NULL_POINTER,
/// not a stale handle.
///
/// May be called from any thread. If a thread is inside aiot_tunnel_start, that call is made to
/// return, and aiot_tunnel_deinit waits for it: usually less than 200 ms, plus the time that the
/// event handler takes. Events may arrive during the wait, and never after aiot_tunnel_deinit has
/// returned. aiot_tunnel_start names the one kind of thread that may remain. Do not hold a lock that
/// the event handler takes: the wait would never end.
///
/// Inside a handler or the log callback, aiot_tunnel_deinit does not wait, whichever instance the
/// handler belongs to. No further call of the released instance's handlers begins, and its
/// aiot_tunnel_start returns soon afterwards. A call of its handlers that runs in another thread at
/// that time goes on.
///
/// Returns a state code:
/// - STATE_SUCCESS
/// - STATE_USER_INPUT_NULL_POINTER: handle or *handle is NULL.
/// - STATE_USER_INPUT_EXEC_DISABLED (ours): the handle is not valid, for example because another
///   thread has just released it.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_deinit(handle: *mut *mut c_void) -> i32 {
    guard_code("aiot_tunnel_deinit", || {
        input::non_null("handle", handle)?;
        // SAFETY: the address of the caller's variable. Atomic: several threads may get here.
        let variable = unsafe { AtomicPtr::from_ptr(handle) };
        let instance = handle::remove(variable.load(Ordering::Acquire))?;
        variable.store(ptr::null_mut(), Ordering::Release);
        instance.end();
        Ok(())
    })
}

/// Runs the tunnels of an instance on the calling thread. (Link SDK 4.x)
///
/// The type is that of a pthread start routine:
/// pthread_create(&thread, NULL, aiot_tunnel_start, handle).
///
/// Blocks until aiot_tunnel_stop or aiot_tunnel_deinit is called. The thread sleeps while there is
/// nothing to do. Commands that were queued before the call are executed first, in the order of
/// their calls. Before the function returns, all tunnels are closed, with a DISCONNECT for each
/// open one, and all threads of the instance have ended.
///
/// One kind of thread remains: a lookup of a host name that the system has not answered yet cannot be
/// interrupted. All instances of the process share at most 16 threads for lookups. Each ends when the
/// system's resolver gives up, usually after 10 to 30 s. The library therefore stays in memory after
/// dlclose.
///
/// May be called from any thread, but only one thread at a time may be inside it for one handle.
///
/// To end the thread, call aiot_tunnel_stop or aiot_tunnel_deinit, then pthread_join. Cancellation of
/// the thread (pthread_cancel) is off inside this function: it neither ends nor delays it. It acts at
/// the first cancellation point after the return.
///
/// Returns NULL after a stop. On an error (ours) it returns at once, with a pointer to an int32_t
/// that holds the state code. That memory belongs to the library and is valid forever: neither
/// write to it nor free it.
/// - STATE_USER_INPUT_NULL_POINTER: handle is NULL.
/// - STATE_USER_INPUT_EXEC_DISABLED: the handle is not valid.
/// - STATE_TUNNEL_RUNNING: another thread is inside aiot_tunnel_start with this handle.
/// - STATE_TUNNEL_FAILED: an internal error, described on stderr.
#[no_mangle]
pub extern "C-unwind" fn aiot_tunnel_start(handle: *mut c_void) -> *mut c_void {
    // If the event handler ends its thread, the handler and this function are unwound. Unwinding
    // must meet nothing in here that has to be dropped or that catches panics: that would abort the
    // process. So all that has to be dropped is kept aside (`handle::RUNS`), and each `guard` returns
    // before the handler is called.
    let former = cancellation::disable();
    let mut result = guard(Err(state::TUNNEL_FAILED), || {
        warn_if_lines_cannot_arrive();
        let started = handle::get(handle).and_then(handle::start);
        started.map_err(|refusal| {
            refusal.log("aiot_tunnel_start");
            refusal.code()
        })
    });
    while result.is_ok() {
        match guard(Err(state::TUNNEL_FAILED), || Ok(handle::next_call())) {
            Ok(Some(call)) => call.make(),
            Ok(None) => break,
            Err(code) => result = Err(code),
        }
    }
    cancellation::restore(former);
    result.map_or_else(lasting, |()| ptr::null_mut())
}

/// A pointer to a state code, valid forever.
fn lasting(code: i32) -> *mut c_void {
    static NULL_POINTER: i32 = state::USER_INPUT_NULL_POINTER;
    static EXEC_DISABLED: i32 = state::USER_INPUT_EXEC_DISABLED;
    static RUNNING: i32 = state::TUNNEL_RUNNING;
    static FAILED: i32 = state::TUNNEL_FAILED;
    let code = match code {
        state::USER_INPUT_NULL_POINTER => &NULL_POINTER,
        state::USER_INPUT_EXEC_DISABLED => &EXEC_DISABLED,
        state::TUNNEL_RUNNING => &RUNNING,
        _ => &FAILED,
    };
    ptr::from_ref(code).cast_mut().cast()
}

/// Makes aiot_tunnel_start return within 200 ms, even while a tunnel is connecting. (Link SDK 4.x)
///
/// A stop is final: a later aiot_tunnel_start with this handle returns at once, and later commands
/// (add, update, delete) return STATE_USER_INPUT_EXEC_DISABLED.
///
/// May be called from any thread, also from the event handler. Does not wait for aiot_tunnel_start
/// to return.
///
/// Do not call it in a signal handler: it takes a lock, and the interrupted thread may hold that lock.
/// (In the Link SDK, it sets a flag.) Set a flag of your own there and call it elsewhere, or block the
/// signal and wait for it with sigwait in a thread of its own. The threads of the library take no
/// signals.
///
/// Returns a state code:
/// - STATE_SUCCESS, also if the instance was already stopped.
/// - STATE_USER_INPUT_NULL_POINTER: handle is NULL.
/// - STATE_USER_INPUT_EXEC_DISABLED (ours): the handle is not valid.
#[no_mangle]
pub extern "C" fn aiot_tunnel_stop(handle: *mut c_void) -> i32 {
    guard_code("aiot_tunnel_stop", || {
        handle::get(handle)?.commands().stop();
        Ok(())
    })
}

/// Opens a tunnel. (Link SDK 4.x)
///
/// The command is queued. The thread inside aiot_tunnel_start executes the commands in the order of
/// their calls. The outcome is reported as an event. A tunnel that cannot connect, or that loses
/// its connection, tries again by itself until it is deleted or expires. If a tunnel with this id
/// exists when the command is executed, the command is logged and ignored; aiot_tunnel_update
/// changes an existing tunnel.
///
/// tunnel_id: 1 to 127 bytes of UTF-8 without control characters, NUL-terminated.
/// params: the connection data.
///
/// The library copies the id and the connection data. The caller may free them as soon as the call
/// returns.
///
/// May be called from any thread, also from the event handler and before aiot_tunnel_start. Does
/// not block. A refused call may wait for the log callback: see aiot_state_logcb_t.
///
/// Returns a state code. After an error, nothing is queued.
/// - STATE_SUCCESS: the command is queued.
/// - STATE_USER_INPUT_NULL_POINTER: an argument or a member of params is NULL.
/// - STATE_USER_INPUT_EXEC_DISABLED (ours): the handle is not valid, or the instance was stopped.
/// - STATE_USER_INPUT_OUT_RANGE (ours): a string has no NUL within 128 bytes or contains a byte
///   that is not allowed, the id or the host is empty, or the port is not a number from 1 to 65535.
/// - STATE_TUNNEL_LIMIT (ours): the instance has 20 tunnels already.
/// - STATE_TUNNEL_BUSY (ours): 4096 commands are waiting already.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_add(
    handle: *mut c_void,
    tunnel_id: *mut c_char,
    params: *mut aiot_tunnel_connect_param_t,
) -> i32 {
    guard_code("aiot_tunnel_add", || {
        // SAFETY: texts and params are readable as the C caller promises.
        let (commands, id, params) = unsafe { connection(handle, tunnel_id, params) }?;
        commands.add(&id, params).map_err(|e| Refusal::of("tunnel_id", &e))
    })
}

/// Gives a tunnel new connection data. An open tunnel is closed (DISCONNECT) and connects with the
/// new data (CONNECT). If the id is unknown, the tunnel is opened as by aiot_tunnel_add.
/// (Link SDK 4.x)
///
/// Queueing, arguments, threads and state codes are those of aiot_tunnel_add. STATE_TUNNEL_LIMIT is
/// returned only for an unknown id.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_update(
    handle: *mut c_void,
    tunnel_id: *mut c_char,
    params: *mut aiot_tunnel_connect_param_t,
) -> i32 {
    guard_code("aiot_tunnel_update", || {
        // SAFETY: texts and params are readable as the C caller promises.
        let (commands, id, params) = unsafe { connection(handle, tunnel_id, params) }?;
        commands.update(&id, params).map_err(|e| Refusal::of("tunnel_id", &e))
    })
}

/// Closes a tunnel and its sessions, with a DISCONNECT if it was open. (Link SDK 4.x)
///
/// The command is queued as by aiot_tunnel_add. If the id is unknown when the command is executed,
/// the command is logged and ignored.
///
/// tunnel_id: as for aiot_tunnel_add.
///
/// May be called from any thread, also from the event handler and before aiot_tunnel_start. Does
/// not block. A refused call may wait for the log callback: see aiot_state_logcb_t.
///
/// Returns a state code:
/// - STATE_SUCCESS: the command is queued.
/// - STATE_USER_INPUT_NULL_POINTER: an argument is NULL.
/// - STATE_USER_INPUT_EXEC_DISABLED (ours): the handle is not valid, or the instance was stopped.
/// - STATE_USER_INPUT_OUT_RANGE (ours): the id is empty, has no NUL within 128 bytes or contains a
///   byte that is not allowed.
/// - STATE_TUNNEL_BUSY (ours): 4096 commands are waiting already.
#[no_mangle]
pub unsafe extern "C" fn aiot_tunnel_delete(handle: *mut c_void, tunnel_id: *mut c_char) -> i32 {
    guard_code("aiot_tunnel_delete", || {
        input::non_null("handle", handle)?;
        input::non_null("tunnel_id", tunnel_id)?;
        let instance = handle::get(handle)?;
        // SAFETY: not NULL, and readable as the C caller promises.
        let id = unsafe { input::tunnel_id(tunnel_id) }?;
        instance.commands().delete(&id).map_err(|e| Refusal::of("tunnel_id", &e))
    })
}

/// Sets the log callback, like aiot_state_set_logcb, under a name that only this library uses.
/// Arguments, threads and result: see aiot_state_set_logcb. (Ours)
///
/// A program that also contains the Link SDK's core calls the core's aiot_state_set_logcb, and this
/// library's lines reach the callback set there. A callback set here takes precedence for this
/// library's lines; NULL returns them to the core's callback. Without the core, both functions set
/// the same callback.
#[no_mangle]
pub extern "C" fn aiot_tunnel_set_logcb(handler: aiot_state_logcb_t) -> i32 {
    install("aiot_tunnel_set_logcb", handler, |_| ())
}

/// Returns the version of the running library as "MAJOR.MINOR.PATCH", NUL-terminated.
/// AIOT_TUNNEL_VERSION is the version of the header. The string belongs to the library and is valid
/// forever. (Ours)
///
/// May be called from any thread. Does not block.
#[no_mangle]
pub extern "C" fn aiot_tunnel_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a NUL within the version"),
        };
    VERSION.as_ptr()
}

/// Checks and reads the arguments of add and update, in this order: NULL pointers, the handle,
/// values.
///
/// # Safety
/// What is not NULL is readable: `params` as a struct, texts up to their NUL or for 128 bytes.
unsafe fn connection(
    handle: *mut c_void,
    tunnel_id: *const c_char,
    params: *const aiot_tunnel_connect_param_t,
) -> Outcome<(crate::device::manager::Handle, TunnelId, ConnectParams)> {
    input::non_null("handle", handle)?;
    input::non_null("tunnel_id", tunnel_id)?;
    input::non_null("params", params)?;
    // SAFETY: not NULL, and readable as the caller promises; every bit pattern is valid.
    let params: aiot_tunnel_connect_param_t = unsafe { input::copied(params.cast()) };
    input::non_null("params.host", params.host)?;
    input::non_null("params.port", params.port)?;
    input::non_null("params.path", params.path)?;
    input::non_null("params.token", params.token)?;
    let instance = handle::get(handle)?;
    // SAFETY: not NULL, and readable as the caller promises.
    let (id, params) = unsafe { (input::tunnel_id(tunnel_id)?, input::connect_params(&params)?) };
    Ok((instance.commands(), id, instance.with_headers(params)?))
}
