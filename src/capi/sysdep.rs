//! `aiot_sysdep_api.h`: network credentials, and the port file that firmware hands over.

use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// How the cloud is authenticated. (Link SDK 4.x)
#[repr(C)]
#[derive(Clone, Copy)]
pub enum aiot_sysdep_network_cred_option_t {
    /// Plain text: no encryption, no authentication of the cloud. For labs.
    AIOT_SYSDEP_NETWORK_CRED_NONE,
    /// TLS; the cloud's certificate is verified against x509_server_cert.
    AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA,
    /// TLS with a pre-shared key. Refused: STATE_PORT_TLS_INVALID_CRED_OPTION.
    AIOT_SYSDEP_NETWORK_CRED_SVRCERT_PSK,
    /// The number of options; not an option.
    AIOT_SYSDEP_NETWORK_CRED_MAX,
}

/// The security of the connection to the cloud, for AIOT_TUNNELOPT_NETWORK_CRED. Zero it before
/// use. The library copies what it needs: structure and texts may be freed when setopt returns.
/// (Link SDK 4.x)
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_sysdep_network_cred_t {
    /// Plain text or TLS.
    pub option: MaybeUninit<aiot_sysdep_network_cred_option_t>,
    /// Ignored: the TLS library chooses the fragment size.
    pub max_tls_fragment: u32,
    /// Not 0: the TLS handshake names the host (SNI). The host name is verified either way.
    pub sni_enabled: u8,
    /// CA certificates to verify the cloud with: PEM text, one certificate or several.
    pub x509_server_cert: *const c_char,
    /// Its length in bytes, with or without the terminating NUL.
    pub x509_server_cert_len: u32,
    /// The client's own certificate, then its chain: PEM text. NULL without client
    /// authentication; needs a key.
    pub x509_client_cert: *const c_char,
    /// Its length in bytes, with or without the terminating NUL.
    pub x509_client_cert_len: u32,
    /// The key of the client's certificate: PEM text (PKCS#8 or the RSA and EC forms), not
    /// encrypted. NULL without client authentication.
    pub x509_client_privkey: *const c_char,
    /// Its length in bytes, with or without the terminating NUL.
    pub x509_client_privkey_len: u32,
    /// Ignored. May be NULL.
    pub tls_extend_info: *mut c_char,
}

/// Kinds of socket that a port file opens. Part of the port file's type; the library uses none.
/// (Link SDK 4.x)
#[repr(C)]
pub enum core_sysdep_socket_type_t {
    /// Connects over TCP.
    CORE_SYSDEP_SOCKET_TCP_CLIENT,
    /// Listens over TCP.
    CORE_SYSDEP_SOCKET_TCP_SERVER,
    /// Sends over UDP.
    CORE_SYSDEP_SOCKET_UDP_CLIENT,
    /// Receives over UDP.
    CORE_SYSDEP_SOCKET_UDP_SERVER,
}

/// Options of a port file's core_sysdep_network_setopt. Part of the port file's type; the
/// library uses none. (Link SDK 4.x)
#[repr(C)]
pub enum core_sysdep_network_option_t {
    /// Data: core_sysdep_socket_type_t *.
    CORE_SYSDEP_NETWORK_SOCKET_TYPE,
    /// Data: char *, the host to connect to.
    CORE_SYSDEP_NETWORK_HOST,
    /// Data: char *, the address to use when the host does not resolve.
    CORE_SYSDEP_NETWORK_BACKUP_IP,
    /// Data: uint16_t *.
    CORE_SYSDEP_NETWORK_PORT,
    /// Data: uint32_t *, milliseconds.
    CORE_SYSDEP_NETWORK_CONNECT_TIMEOUT_MS,
    /// Data: aiot_sysdep_network_cred_t *.
    CORE_SYSDEP_NETWORK_CRED,
    /// Data: core_sysdep_psk_t *.
    CORE_SYSDEP_NETWORK_PSK,
    /// The number of options; not an option.
    CORE_SYSDEP_NETWORK_MAX,
}

/// A pre-shared key. Part of the port file's interface; the library uses none. (Link SDK 4.x)
#[repr(C)]
pub struct core_sysdep_psk_t {
    /// The key's name.
    pub psk_id: *mut c_char,
    /// The key.
    pub psk: *mut c_char,
}

/// The address of a UDP peer. Part of the port file's type; the library uses none.
/// (Link SDK 4.x)
#[repr(C)]
pub struct core_sysdep_addr_t {
    /// The address as text.
    pub addr: [c_char; 16],
    /// The port.
    pub port: u16,
}

/// The port file: what the Link SDK needs of the operating system. This library brings its own
/// and never calls these; they are accepted so that firmware links unchanged. (Link SDK 4.x)
#[repr(C)]
pub struct aiot_sysdep_portfile_t {
    /// Allocates memory.
    pub core_sysdep_malloc:
        Option<unsafe extern "C" fn(size: u32, name: *mut c_char) -> *mut c_void>,
    /// Frees memory.
    pub core_sysdep_free: Option<unsafe extern "C" fn(ptr: *mut c_void)>,
    /// Tells the time in milliseconds.
    pub core_sysdep_time: Option<unsafe extern "C" fn() -> u64>,
    /// Sleeps for milliseconds.
    pub core_sysdep_sleep: Option<unsafe extern "C" fn(time_ms: u64)>,
    /// Makes a network handle.
    pub core_sysdep_network_init: Option<unsafe extern "C" fn() -> *mut c_void>,
    /// Configures a network handle.
    pub core_sysdep_network_setopt: Option<
        unsafe extern "C" fn(
            handle: *mut c_void,
            option: core_sysdep_network_option_t,
            data: *mut c_void,
        ) -> i32,
    >,
    /// Connects.
    pub core_sysdep_network_establish: Option<unsafe extern "C" fn(handle: *mut c_void) -> i32>,
    /// Receives.
    pub core_sysdep_network_recv: Option<
        unsafe extern "C" fn(
            handle: *mut c_void,
            buffer: *mut u8,
            len: u32,
            timeout_ms: u32,
            addr: *mut core_sysdep_addr_t,
        ) -> i32,
    >,
    /// Sends.
    pub core_sysdep_network_send: Option<
        unsafe extern "C" fn(
            handle: *mut c_void,
            buffer: *mut u8,
            len: u32,
            timeout_ms: u32,
            addr: *mut core_sysdep_addr_t,
        ) -> i32,
    >,
    /// Closes and frees a network handle.
    pub core_sysdep_network_deinit: Option<unsafe extern "C" fn(handle: *mut *mut c_void) -> i32>,
    /// Fills a buffer with random bytes.
    pub core_sysdep_rand: Option<unsafe extern "C" fn(output: *mut u8, output_len: u32)>,
    /// Makes a mutex.
    pub core_sysdep_mutex_init: Option<unsafe extern "C" fn() -> *mut c_void>,
    /// Locks a mutex.
    pub core_sysdep_mutex_lock: Option<unsafe extern "C" fn(mutex: *mut c_void)>,
    /// Unlocks a mutex.
    pub core_sysdep_mutex_unlock: Option<unsafe extern "C" fn(mutex: *mut c_void)>,
    /// Frees a mutex.
    pub core_sysdep_mutex_deinit: Option<unsafe extern "C" fn(mutex: *mut *mut c_void)>,
}

/// A port file for programs that link no other: all its members are NULL, since nothing of this
/// library calls them. A program that has one of its own, e.g. the Link SDK's, defines this
/// object itself. (Link SDK 4.x)
#[no_mangle]
pub static mut g_aiot_sysdep_portfile: aiot_sysdep_portfile_t = aiot_sysdep_portfile_t {
    core_sysdep_malloc: None,
    core_sysdep_free: None,
    core_sysdep_time: None,
    core_sysdep_sleep: None,
    core_sysdep_network_init: None,
    core_sysdep_network_setopt: None,
    core_sysdep_network_establish: None,
    core_sysdep_network_recv: None,
    core_sysdep_network_send: None,
    core_sysdep_network_deinit: None,
    core_sysdep_rand: None,
    core_sysdep_mutex_init: None,
    core_sysdep_mutex_lock: None,
    core_sysdep_mutex_unlock: None,
    core_sysdep_mutex_deinit: None,
};

static PORTFILE: AtomicPtr<aiot_sysdep_portfile_t> = AtomicPtr::new(ptr::null_mut());

/// Remembers a port file for aiot_sysdep_get_portfile; nothing else is done with it.
///
/// portfile: remains the caller's and is never dereferenced here. NULL forgets the former one.
///
/// May be called from any thread, at any time. Does not block. (Link SDK 4.x)
#[no_mangle]
pub extern "C" fn aiot_sysdep_set_portfile(portfile: *mut aiot_sysdep_portfile_t) {
    PORTFILE.store(portfile, Ordering::Release);
}

/// Returns the pointer that aiot_sysdep_set_portfile was given last, or NULL.
///
/// May be called from any thread, at any time. Does not block. (Link SDK 4.x)
#[no_mangle]
pub extern "C" fn aiot_sysdep_get_portfile() -> *mut aiot_sysdep_portfile_t {
    PORTFILE.load(Ordering::Acquire)
}
