//! The option structs and texts of the C surface: whatever bytes they hold, an answer from the
//! header comes back, and the instance goes on working.

use std::ffi::{c_char, c_void};
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::OnceLock;

use super::sysdep::aiot_sysdep_network_cred_t;
use super::tunnel::*;
use crate::state;

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

/// The beginning of `data` says what it is; the rest fills structs and texts.
pub(crate) fn options(data: &[u8]) {
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
    // SAFETY: the address of a live handle.
    assert_eq!(unsafe { aiot_tunnel_deinit(&mut handle) }, state::SUCCESS);
    assert!(handle.is_null());
}

fn setopt(handle: *mut c_void, option: u32, data: *mut c_void) -> i32 {
    // SAFETY: the callers below pass what the option needs.
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
fn pair() -> &'static (Vec<u8>, Vec<u8>) {
    use openssl::{asn1, ec, hash, nid, pkey, x509};
    static PAIR: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    let make = || -> Result<_, openssl::error::ErrorStack> {
        let group = ec::EcGroup::from_curve_name(nid::Nid::X9_62_PRIME256V1)?;
        let key = pkey::PKey::from_ec_key(ec::EcKey::generate(&group)?)?;
        let mut certificate = x509::X509::builder()?;
        certificate.set_pubkey(&key)?;
        certificate.set_not_before(&*asn1::Asn1Time::days_from_now(0)?)?;
        certificate.set_not_after(&*asn1::Asn1Time::days_from_now(1)?)?;
        certificate.sign(&key, hash::MessageDigest::sha256())?;
        Ok((certificate.build().to_pem()?, key.private_key_to_pem_pkcs8()?))
    };
    PAIR.get_or_init(|| make().expect("OpenSSL makes a certificate"))
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
            b"CERT" => pair().0.clone(),
            b"KEY" => pair().1.clone(),
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
    assert!(code != state::SUCCESS || option < 2, "a credential option that there is not");
    let both = [&cert, &key] == [&pair().0, &pair().1] && ca == pair().0;
    assert!(!both || option != 1 || code == state::SUCCESS, "a good pair is refused: {code}");
}

fn numbers(handle: *mut c_void, data: &[u8]) {
    let mut some = 0u8;
    for number in data.chunks_exact(4) {
        let number = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        // The options that there are dereference what they get.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn whatever_a_c_caller_passes_gets_an_answer(
            data in proptest::collection::vec(any::<u8>(), 0..700),
        ) {
            super::options(&data);
        }

        #[test]
        fn texts_of_a_command_are_taken_only_when_visible(
            update in any::<u8>(),
            fields in proptest::collection::vec("[a-z0-9/.\r\n\u{0}-\u{ff}]{0,127}", 5),
            port in "0*[0-9]{1,6}",
        ) {
            let mut data = vec![3, update];
            for (at, field) in fields.iter().enumerate() {
                let text = if at == 2 { &port } else { field };
                let mut bytes = text.as_bytes().to_vec();
                bytes.resize(128, 0);
                data.extend(bytes);
            }
            super::options(&data);
        }
    }
}
