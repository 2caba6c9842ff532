//! The structures and texts that a C caller passes: whatever bytes they hold, the answer is one that the
//! header documents, and the instance goes on working.

use std::ffi::{c_char, c_void};
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::OnceLock;

use aiot_tunnel::capi::sysdep::aiot_sysdep_network_cred_t;
use aiot_tunnel::capi::tunnel::*;
use aiot_tunnel::state;

use crate::certificates::Identity;

/// What `aiot_tunnel_setopt` may answer to a service or a credential.
const SETOPT: [i32; 7] = [
    state::SUCCESS,
    state::USER_INPUT_NULL_POINTER,
    state::USER_INPUT_OUT_RANGE,
    state::PORT_TLS_INVALID_CRED_OPTION,
    state::PORT_TLS_INVALID_SERVER_CERT,
    state::PORT_TLS_INVALID_CLIENT_CERT,
    state::PORT_TLS_INVALID_CLIENT_KEY,
];
const COMMAND: [i32; 4] =
    [state::SUCCESS, state::USER_INPUT_OUT_RANGE, state::TUNNEL_LIMIT, state::TUNNEL_BUSY];

/// The first byte says what the rest is: a service, a credential, numbers of options, or a command.
pub fn check(data: &[u8]) {
    let mut handle = aiot_tunnel_init();
    assert!(!handle.is_null());
    let (what, rest) = data.split_first().unwrap_or((&0, &[]));
    match what % 4 {
        0 => service(handle, rest),
        1 => credential(handle, rest),
        2 => numbers(handle, rest),
        _ => command(handle, rest),
    }
    aiot_tunnel_stop(handle);
    assert!(aiot_tunnel_start(handle).is_null());
    // SAFETY: the address of a variable with a valid handle.
    assert_eq!(unsafe { aiot_tunnel_deinit(&mut handle) }, state::SUCCESS);
    assert!(handle.is_null());
}

fn setopt(handle: *mut c_void, option: u32, data: *mut c_void) -> i32 {
    // SAFETY: the callers below pass data of the type that the option needs, or NULL.
    unsafe { aiot_tunnel_setopt(handle, any_enum(option), data) }
}

/// What a C caller passes where an enum is expected.
fn any_enum<E>(number: u32) -> MaybeUninit<E> {
    const { assert!(size_of::<E>() == size_of::<u32>()) };
    // SAFETY: of the size just checked, and `MaybeUninit` may hold anything.
    unsafe { mem::transmute_copy(&number) }
}

fn service(handle: *mut c_void, data: &[u8]) {
    let mut bytes = [0u8; size_of::<aiot_tunnel_service_t>()];
    let length = data.len().min(bytes.len());
    bytes[..length].copy_from_slice(&data[..length]);
    let code = setopt(handle, 3, bytes.as_mut_ptr().cast());
    assert!(SETOPT.contains(&code), "{code}");
    let text = |at: usize| bytes[at..at + 128].split(|byte| *byte == 0).next().unwrap_or(&[]);
    if code == state::SUCCESS {
        assert!((1..128).contains(&text(0).len()) && (1..128).contains(&text(128).len()));
        assert!(text(128).iter().all(u8::is_ascii_graphic));
    }
}

/// A certificate and its key, which no mutation of bytes would find.
fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(Identity::self_signed)
}

/// Three texts, their lengths before them, and the option.
fn credential(handle: *mut c_void, data: &[u8]) {
    let (head, mut rest) = data.split_at(data.len().min(8));
    let byte = |at: usize| head.get(at).copied().unwrap_or(0);
    let mut text = |at: usize| {
        let length = usize::from(u16::from_le_bytes([byte(at), byte(at + 1)])).min(rest.len());
        let (text, after) = rest.split_at(length);
        rest = after;
        match text {
            b"CERT" => identity().certificate.clone(),
            b"KEY" => identity().key.clone(),
            other => other.to_vec(),
        }
    };
    let (ca, cert, key) = (text(2), text(4), text(6));
    let pointer = |text: &Vec<u8>| {
        if text.is_empty() {
            return ptr::null();
        }
        text.as_ptr().cast::<c_char>()
    };
    let option = u32::from(byte(0) % 5);
    let mut cred = aiot_sysdep_network_cred_t {
        option: any_enum(option),
        max_tls_fragment: 0,
        sni_enabled: byte(1),
        x509_server_cert: pointer(&ca),
        x509_server_cert_len: ca.len() as u32,
        x509_client_cert: pointer(&cert),
        x509_client_cert_len: cert.len() as u32,
        x509_client_privkey: pointer(&key),
        x509_client_privkey_len: key.len() as u32,
        tls_extend_info: ptr::null_mut(),
    };
    let code = setopt(handle, 2, ptr::from_mut(&mut cred).cast());
    assert!(SETOPT.contains(&code), "{code}");
    assert!(code != state::SUCCESS || option < 2, "a credential option that does not exist");
    let good = identity();
    let is_good = ca == good.certificate && cert == good.certificate && key == good.key;
    assert!(!is_good || option != 1 || code == state::SUCCESS, "a good pair is refused: {code}");
}

fn numbers(handle: *mut c_void, data: &[u8]) {
    let mut some = 0u8;
    for number in data.chunks_exact(4) {
        let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        // The options that exist dereference what they get.
        if number >= 4 {
            let code = setopt(handle, number, ptr::from_mut(&mut some).cast());
            assert_eq!(code, state::USER_INPUT_OUT_RANGE);
        }
        assert_eq!(setopt(handle, number, ptr::null_mut()), state::USER_INPUT_NULL_POINTER);
    }
}

/// Five fields of 128 bytes, as they stand in an IPC message.
fn command(handle: *mut c_void, data: &[u8]) {
    let mut bytes = [0u8; 5 * 128];
    let (update, rest) = data.split_first().unwrap_or((&0, &[]));
    let length = rest.len().min(bytes.len());
    bytes[..length].copy_from_slice(&rest[..length]);
    let mut field = |at: usize| bytes[at * 128..].as_mut_ptr().cast::<c_char>();
    let id = field(0);
    let mut params = aiot_tunnel_connect_param_t {
        host: field(1),
        port: field(2),
        path: field(3),
        token: field(4),
    };
    // SAFETY: fields of 128 bytes each, which is what is read without a NUL.
    let code = unsafe {
        match update % 3 {
            0 => aiot_tunnel_add(handle, id, &mut params),
            1 => aiot_tunnel_update(handle, id, &mut params),
            _ => aiot_tunnel_delete(handle, id),
        }
    };
    assert!(COMMAND.contains(&code), "{code}");
    let text = |at: usize| bytes[at * 128..][..128].split(|byte| *byte == 0).next().unwrap_or(&[]);
    if code == state::SUCCESS {
        assert!((1..128).contains(&text(0).len()));
        for at in if update % 3 < 2 { 1..5 } else { 0..0 } {
            assert!(text(at).len() < 128 && text(at).iter().all(u8::is_ascii_graphic));
        }
    }
}
