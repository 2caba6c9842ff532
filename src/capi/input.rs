//! Reads what a C caller points to. Every byte is hostile until it is parsed: texts are scanned
//! within a bound, numbers are checked, enums are read as numbers.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::{ptr, slice, str};

use super::sysdep::{aiot_sysdep_network_cred_option_t, aiot_sysdep_network_cred_t};
use super::tunnel::{aiot_tunnel_connect_param_t, aiot_tunnel_service_t};
use super::Outcome;
use crate::config::{ConnectParams, Port, Security, Service, TlsConfig, Token, TunnelId};
use crate::error::Error;
use crate::state;

/// Longest text of the C surface, with its NUL: firmware passes 128-byte fields of an IPC
/// message straight through, and a hostile message may leave out the NUL.
const TEXT_SIZE: usize = 128;

pub(super) fn code(error: Error) -> i32 {
    error.state_code()
}

pub(super) fn non_null<T>(pointer: *const T) -> Outcome {
    if pointer.is_null() {
        return Err(state::USER_INPUT_NULL_POINTER);
    }
    Ok(())
}

/// The number behind a C enum, whatever it is.
pub(super) fn enum_number<E>(value: MaybeUninit<E>) -> u32 {
    const { assert!(size_of::<E>() == size_of::<u32>()) };
    // SAFETY: of the size just checked, and a C caller has set all its bytes.
    unsafe { value.as_ptr().cast::<u32>().read_unaligned() }
}

/// # Safety
/// `id` is not NULL and readable up to its NUL or for 128 bytes.
pub(super) unsafe fn tunnel_id(id: *const c_char) -> Outcome<TunnelId> {
    // SAFETY: as the caller promises.
    TunnelId::new(unsafe { text(id) }?).map_err(code)
}

/// # Safety
/// No member is NULL; each is readable up to its NUL or for 128 bytes.
pub(super) unsafe fn connect_params(
    params: &aiot_tunnel_connect_param_t,
) -> Outcome<ConnectParams> {
    // SAFETY: as the caller promises, for each of the four.
    let (host, port, path, token) = unsafe {
        (text(params.host)?, text(params.port)?, text(params.path)?, text(params.token)?)
    };
    let port = port.parse::<Port>().map_err(code)?;
    // From the caller's memory straight into the token, which is wiped when dropped.
    let token = Token::new(token).map_err(code)?;
    ConnectParams::new(host, port, path, token).map_err(code)
}

pub(super) fn service(service: &aiot_tunnel_service_t) -> Outcome<Service> {
    let port = u16::try_from(service.port).map_err(|_| state::USER_INPUT_OUT_RANGE)?;
    let port = Port::new(port).map_err(code)?;
    // SAFETY: arrays of 128 bytes, the bound of the scan.
    let (name, ip) = unsafe { (text(service.r#type.as_ptr())?, text(service.ip.as_ptr())?) };
    Service::new(name, ip, port).map_err(code)
}

/// # Safety
/// Each certificate and key is NULL or readable for the length beside it.
pub(super) unsafe fn security(cred: &aiot_sysdep_network_cred_t) -> Outcome<Security> {
    const NONE: u32 = aiot_sysdep_network_cred_option_t::AIOT_SYSDEP_NETWORK_CRED_NONE as u32;
    const CA: u32 = aiot_sysdep_network_cred_option_t::AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA as u32;
    match enum_number(cred.option) {
        NONE => return Ok(Security::Plain),
        CA => {}
        _ => return Err(state::PORT_TLS_INVALID_CRED_OPTION),
    }
    // SAFETY: as the caller promises, for each of the three.
    let (ca, cert, key) = unsafe {
        (
            pem(cred.x509_server_cert, cred.x509_server_cert_len),
            pem(cred.x509_client_cert, cred.x509_client_cert_len),
            pem(cred.x509_client_privkey, cred.x509_client_privkey_len),
        )
    };
    let ca = ca.ok_or(state::PORT_TLS_INVALID_SERVER_CERT)?;
    let tls = TlsConfig::new().with_sni(cred.sni_enabled != 0).with_ca_pem(ca).map_err(code)?;
    let tls = match (cert, key) {
        (None, None) => tls,
        (Some(cert), Some(key)) => tls.with_client_pem(cert, key).map_err(code)?,
        (Some(_), None) => return Err(state::PORT_TLS_INVALID_CLIENT_KEY),
        (None, Some(_)) => return Err(state::PORT_TLS_INVALID_CLIENT_CERT),
    };
    Ok(Security::Tls(tls))
}

/// A copy of the struct behind an option's `void *`. Firmware may point into a message, where
/// nothing is aligned.
///
/// # Safety
/// `data` is not NULL and readable for a `T`, for which every bit pattern is valid.
pub(super) unsafe fn copied<T: Copy>(data: *const c_void) -> T {
    // SAFETY: as the caller promises.
    unsafe { ptr::read_unaligned(data.cast()) }
}

/// The text before the NUL; an error when there is none within [`TEXT_SIZE`] bytes.
///
/// # Safety
/// `start` is not NULL, readable up to its NUL or for 128 bytes, and unchanged for `'a`.
unsafe fn text<'a>(start: *const c_char) -> Outcome<&'a str> {
    // SAFETY: as the caller promises; strnlen reads nothing behind the NUL.
    let length = unsafe { libc::strnlen(start, TEXT_SIZE) };
    if length == TEXT_SIZE {
        return Err(state::USER_INPUT_OUT_RANGE);
    }
    // SAFETY: just scanned.
    let bytes = unsafe { slice::from_raw_parts(start.cast::<u8>(), length) };
    str::from_utf8(bytes).map_err(|_| state::USER_INPUT_OUT_RANGE)
}

/// PEM text without the NULs at its end, which some callers count and some do not. `None` when
/// there is nothing.
///
/// # Safety
/// `start` is NULL or readable for `length` bytes, unchanged for `'a`.
unsafe fn pem<'a>(start: *const c_char, length: u32) -> Option<&'a [u8]> {
    let length = usize::try_from(length).ok().filter(|&n| n <= isize::MAX as usize)?;
    if start.is_null() || length == 0 {
        return None;
    }
    // SAFETY: as the caller promises; no longer than an object may be.
    let bytes = unsafe { slice::from_raw_parts(start.cast::<u8>(), length) };
    let end = bytes.iter().rposition(|&b| b != 0)? + 1;
    Some(&bytes[..end])
}
