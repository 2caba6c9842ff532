//! A C caller gets a state code for a refusal. The log, and the log callback, get the reason.

use std::ffi::{c_char, c_void, CStr};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::Mutex;

use aiot_tunnel::capi::state::aiot_state_set_logcb;
use aiot_tunnel::capi::tunnel::*;
use aiot_tunnel::state;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

unsafe extern "C" fn callback(_: i32, message: *mut c_char) -> i32 {
    // SAFETY: the library passes a text that ends in NUL.
    let line = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    LINES.lock().unwrap().push(line);
    0
}

/// The one line that was written since the last call.
fn line() -> String {
    let mut lines = std::mem::take(&mut *LINES.lock().unwrap());
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

fn text(text: &CStr) -> *mut c_char {
    text.as_ptr().cast_mut()
}

#[test]
fn every_refusal_of_a_call_has_a_line_with_its_reason() {
    assert_eq!(aiot_state_set_logcb(Some(callback)), 0);
    let handle = aiot_tunnel_init();
    let token = c"hush-device-token";
    let add = |host: &CStr, port: &CStr, token: &CStr| {
        let mut params = aiot_tunnel_connect_param_t {
            host: text(host),
            port: text(port),
            path: text(c"/tunnel/t/dest"),
            token: text(token),
        };
        // SAFETY: the texts and the params outlive the call.
        unsafe { aiot_tunnel_add(handle, text(c"t"), &mut params) }
    };
    for (code, parts) in [
        (add(c"h", c"70000", token), ["params.port: ", "65535"]),
        (add(c"h", c"", token), ["params.port: ", "65535"]),
        (add(c"", c"443", token), ["params.host: ", "empty"]),
        (add(c"h", c"443", c"hush device"), ["params.token: ", "visible"]),
    ] {
        let line = LINES.lock().unwrap().remove(0);
        assert_eq!(code, state::USER_INPUT_OUT_RANGE);
        assert!(line.contains("[LK-0102] aiot_tunnel_add: "), "{line}");
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
        assert!(!line.contains("hush"), "{line}");
    }
    // SAFETY: NULL is an argument that the function checks.
    let code = unsafe { aiot_tunnel_add(handle, null_mut(), null_mut()) };
    assert_eq!(code, state::USER_INPUT_NULL_POINTER);
    assert!(line().contains("[LK-0101] aiot_tunnel_add: tunnel_id: is NULL"));

    let mut service = aiot_tunnel_service_t { r#type: [0; 128], ip: [0; 128], port: 22 };
    service.r#type[0] = b'x' as c_char;
    let option = MaybeUninit::new(aiot_tunnel_option_t::AIOT_TUNNELOPT_ADD_SERVICE);
    let data: *mut c_void = (&raw mut service).cast();
    // SAFETY: the data is a service.
    let code = unsafe { aiot_tunnel_setopt(handle, option, data) };
    assert_eq!(code, state::USER_INPUT_OUT_RANGE);
    assert!(line().contains("aiot_tunnel_setopt: service.ip: "));

    let mut released = handle;
    // SAFETY: the address of a handle.
    assert_eq!(unsafe { aiot_tunnel_deinit(&mut released) }, 0);
    assert_eq!(aiot_tunnel_stop(handle), state::USER_INPUT_EXEC_DISABLED);
    assert!(line().contains("aiot_tunnel_stop: handle: not valid"));
    assert!(!aiot_tunnel_start(handle).is_null());
    assert!(line().contains("aiot_tunnel_start: handle: not valid"));
    assert_eq!(aiot_state_set_logcb(None), 0);
}
