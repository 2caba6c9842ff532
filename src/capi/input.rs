//! Reads the memory that a C caller points to. Nothing in it is trusted: strings are scanned up to
//! a bound, numbers are checked, enums are read as numbers.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::{ptr, slice, str};

use super::sysdep::{aiot_sysdep_network_cred_option_t, aiot_sysdep_network_cred_t};
use super::tunnel::{aiot_tunnel_connect_param_t, aiot_tunnel_service_t};
use super::{Outcome, Refusal};
use crate::config::{ConnectParams, Port, Security, Service, TlsConfig, Token, TunnelId};
use crate::logging::Code;

/// Size of the longest string of the C interface, with its NUL. Firmware passes the 128-byte fields
/// of an IPC message on as they are, and a hostile message may have no NUL in them.
const TEXT_SIZE: usize = 128;

pub(super) fn non_null<T>(argument: &'static str, pointer: *const T) -> Outcome {
    if pointer.is_null() {
        return Err(Refusal::null(argument));
    }
    Ok(())
}

/// The number in a C enum, valid or not.
pub(super) fn enum_number<E>(value: MaybeUninit<E>) -> u32 {
    const { assert!(size_of::<E>() == size_of::<u32>()) };
    // SAFETY: the size was checked above, and the C caller has set all bytes.
    unsafe { value.as_ptr().cast::<u32>().read_unaligned() }
}

/// # Safety
/// `id` is not NULL and readable up to its NUL or for 128 bytes.
pub(super) unsafe fn tunnel_id(id: *const c_char) -> Outcome<TunnelId> {
    const ARGUMENT: &str = "tunnel_id";
    // SAFETY: as the caller promises.
    let id = unsafe { text(ARGUMENT, id) }?;
    TunnelId::new(id).map_err(|e| Refusal::of(ARGUMENT, &e))
}

/// # Safety
/// No member is NULL; each is readable up to its NUL or for 128 bytes.
pub(super) unsafe fn connect_params(
    params: &aiot_tunnel_connect_param_t,
) -> Outcome<ConnectParams> {
    // SAFETY: as the caller promises, for each of the four.
    let (host, port, path, token) = unsafe {
        (
            text("params.host", params.host)?,
            text("params.port", params.port)?,
            text("params.path", params.path)?,
            text("params.token", params.token)?,
        )
    };
    let port = port.parse::<Port>().map_err(|e| Refusal::of("params.port", &e))?;
    // No copy in between: the token is wiped when dropped.
    let token = Token::new(token).map_err(|e| Refusal::of("params.token", &e))?;
    ConnectParams::new(host, port, path, token).map_err(|e| {
        let argument = if e.is_about("path") { "params.path" } else { "params.host" };
        Refusal::of(argument, &e)
    })
}

pub(super) fn service(service: &aiot_tunnel_service_t) -> Outcome<Service> {
    let port = u16::try_from(service.port)
        .map_err(|_| Refusal::out_of_range("service.port", "greater than 65535"))?;
    let port = Port::new(port).map_err(|e| Refusal::of("service.port", &e))?;
    // SAFETY: both are arrays of 128 bytes, the bound of the scan.
    let (name, ip) = unsafe {
        (text("service.type", service.r#type.as_ptr())?, text("service.ip", service.ip.as_ptr())?)
    };
    Service::new(name, ip, port).map_err(|e| {
        let argument = if e.is_about("host") { "service.ip" } else { "service.type" };
        Refusal::of(argument, &e)
    })
}

/// # Safety
/// Each certificate and key is NULL or readable for the length beside it.
pub(super) unsafe fn security(cred: &aiot_sysdep_network_cred_t) -> Outcome<Security> {
    const NONE: u32 = aiot_sysdep_network_cred_option_t::AIOT_SYSDEP_NETWORK_CRED_NONE as u32;
    const CA: u32 = aiot_sysdep_network_cred_option_t::AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA as u32;
    match enum_number(cred.option) {
        NONE => return Ok(Security::Plain),
        CA => {}
        _ => {
            let reason = "neither NONE nor SVRCERT_CA; pre-shared keys are not supported";
            return Err(Refusal::new(Code::CredOption, "cred.option", reason));
        }
    }
    // SAFETY: as the caller promises, for each of the three.
    let (ca, cert, key) = unsafe {
        (
            pem(cred.x509_server_cert, cred.x509_server_cert_len),
            pem(cred.x509_client_cert, cred.x509_client_cert_len),
            pem(cred.x509_client_privkey, cred.x509_client_privkey_len),
        )
    };
    let missing = |code, argument| Refusal::new(code, argument, "NULL or empty");
    let ca = ca.ok_or_else(|| missing(Code::ServerCert, "cred.x509_server_cert"))?;
    let tls = TlsConfig::new()
        .with_sni(cred.sni_enabled != 0)
        .with_ca_pem(ca)
        .map_err(|e| Refusal::of("cred.x509_server_cert", &e))?;
    let tls = match (cert, key) {
        (None, None) => tls,
        (Some(cert), Some(key)) => tls
            .with_client_pem(cert, key)
            .map_err(|e| Refusal::of("cred.x509_client_cert and cred.x509_client_privkey", &e))?,
        (Some(_), None) => return Err(missing(Code::ClientKey, "cred.x509_client_privkey")),
        (None, Some(_)) => return Err(missing(Code::ClientCert, "cred.x509_client_cert")),
    };
    Ok(Security::Tls(tls))
}

/// Copies the struct that an option's `void *` points to. It may be unaligned: firmware may point
/// into a message.
///
/// # Safety
/// `data` is not NULL and readable for a `T`, for which every bit pattern is valid.
pub(super) unsafe fn copied<T: Copy>(data: *const c_void) -> T {
    // SAFETY: as the caller promises.
    unsafe { ptr::read_unaligned(data.cast()) }
}

/// The string before the NUL. An error if there is no NUL within [`TEXT_SIZE`] bytes.
///
/// # Safety
/// `start` is not NULL, readable up to its NUL or for 128 bytes, and unchanged for `'a`.
pub(super) unsafe fn text<'a>(argument: &'static str, start: *const c_char) -> Outcome<&'a str> {
    // SAFETY: as the caller promises; strnlen does not read beyond the NUL.
    let length = unsafe { libc::strnlen(start, TEXT_SIZE) };
    if length == TEXT_SIZE {
        return Err(Refusal::out_of_range(argument, "no NUL within 128 bytes"));
    }
    // SAFETY: strnlen has read these bytes.
    let bytes = unsafe { slice::from_raw_parts(start.cast::<u8>(), length) };
    str::from_utf8(bytes).map_err(|_| Refusal::out_of_range(argument, "not UTF-8"))
}

/// PEM text without the NULs at its end: some callers include them in the length, some do not.
/// `None` if there is no text.
///
/// # Safety
/// `start` is NULL or readable for `length` bytes, unchanged for `'a`.
unsafe fn pem<'a>(start: *const c_char, length: u32) -> Option<&'a [u8]> {
    let length = usize::try_from(length).ok().filter(|&n| n <= isize::MAX as usize)?;
    if start.is_null() || length == 0 {
        return None;
    }
    // SAFETY: as the caller promises; the length was checked against the largest object size.
    let bytes = unsafe { slice::from_raw_parts(start.cast::<u8>(), length) };
    let end = bytes.iter().rposition(|&b| b != 0)? + 1;
    Some(&bytes[..end])
}
