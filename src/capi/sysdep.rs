//! `aiot_sysdep_api.h`: network credentials and the firmware's port file.

use std::ffi::{c_char, c_void, CStr};
use std::mem::{transmute, MaybeUninit};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::OnceLock;

use super::port;

/// How the connection to the cloud is secured. (Link SDK 4.x)
#[repr(C)]
#[derive(Clone, Copy)]
pub enum aiot_sysdep_network_cred_option_t {
    /// Plain text: no encryption, and the cloud is not authenticated. For laboratories only.
    AIOT_SYSDEP_NETWORK_CRED_NONE,
    /// TLS. The cloud's certificate is verified against x509_server_cert.
    AIOT_SYSDEP_NETWORK_CRED_SVRCERT_CA,
    /// TLS with a pre-shared key. Not supported: STATE_PORT_TLS_INVALID_CRED_OPTION.
    AIOT_SYSDEP_NETWORK_CRED_SVRCERT_PSK,
    /// Number of options; not an option itself.
    AIOT_SYSDEP_NETWORK_CRED_MAX,
}

/// Security of the connection to the cloud, for AIOT_TUNNELOPT_NETWORK_CRED. (Link SDK 4.x)
///
/// Set all bytes to zero before use. The library copies the structure and its strings; the caller
/// may free them as soon as aiot_tunnel_setopt returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct aiot_sysdep_network_cred_t {
    /// Plain text or TLS. The remaining members apply to TLS.
    pub option: MaybeUninit<aiot_sysdep_network_cred_option_t>,
    /// Ignored. The TLS library chooses the fragment size.
    pub max_tls_fragment: u32,
    /// Not 0: the TLS handshake names the host (SNI). The host name is verified in both cases.
    pub sni_enabled: u8,
    /// CA certificates that the cloud is verified against: PEM, one or several.
    pub x509_server_cert: *const c_char,
    /// Length of x509_server_cert in bytes, with or without a terminating NUL.
    pub x509_server_cert_len: u32,
    /// Client certificate, followed by its intermediate certificates: PEM. NULL without client
    /// authentication. Requires x509_client_privkey.
    pub x509_client_cert: *const c_char,
    /// Length of x509_client_cert in bytes, with or without a terminating NUL.
    pub x509_client_cert_len: u32,
    /// Private key of the client certificate: PEM (PKCS#8, or the traditional RSA and EC forms),
    /// not encrypted. NULL without client authentication.
    pub x509_client_privkey: *const c_char,
    /// Length of x509_client_privkey in bytes, with or without a terminating NUL.
    pub x509_client_privkey_len: u32,
    /// Ignored. May be NULL.
    pub tls_extend_info: *mut c_char,
}

/// Socket types of a port file. Declared for the port file; not used by this library.
/// (Link SDK 4.x)
#[repr(C)]
pub enum core_sysdep_socket_type_t {
    /// TCP client.
    CORE_SYSDEP_SOCKET_TCP_CLIENT,
    /// TCP server.
    CORE_SYSDEP_SOCKET_TCP_SERVER,
    /// UDP client.
    CORE_SYSDEP_SOCKET_UDP_CLIENT,
    /// UDP server.
    CORE_SYSDEP_SOCKET_UDP_SERVER,
}

/// Options of a port file's core_sysdep_network_setopt. Declared for the port file; not used by
/// this library. (Link SDK 4.x)
#[repr(C)]
pub enum core_sysdep_network_option_t {
    /// Data: core_sysdep_socket_type_t *.
    CORE_SYSDEP_NETWORK_SOCKET_TYPE,
    /// Data: char *, the host to connect to.
    CORE_SYSDEP_NETWORK_HOST,
    /// Data: char *, the address to use if the host name cannot be resolved.
    CORE_SYSDEP_NETWORK_BACKUP_IP,
    /// Data: uint16_t *.
    CORE_SYSDEP_NETWORK_PORT,
    /// Data: uint32_t *, milliseconds.
    CORE_SYSDEP_NETWORK_CONNECT_TIMEOUT_MS,
    /// Data: aiot_sysdep_network_cred_t *.
    CORE_SYSDEP_NETWORK_CRED,
    /// Data: core_sysdep_psk_t *.
    CORE_SYSDEP_NETWORK_PSK,
    /// Number of options; not an option itself.
    CORE_SYSDEP_NETWORK_MAX,
}

/// A pre-shared key. Declared for the port file; not used by this library. (Link SDK 4.x)
#[repr(C)]
pub struct core_sysdep_psk_t {
    /// Name of the key.
    pub psk_id: *mut c_char,
    /// The key.
    pub psk: *mut c_char,
}

/// Address of the other end of a UDP socket. Declared for the port file; not used by this library.
/// (Link SDK 4.x)
#[repr(C)]
pub struct core_sysdep_addr_t {
    /// Address in text form.
    pub addr: [c_char; 16],
    /// Port.
    pub port: u16,
}

/// The port file: the operating system functions that the Link SDK needs. This library calls the
/// operating system directly and never uses these. The type is declared so that firmware compiles
/// and links without a change. (Link SDK 4.x)
#[repr(C)]
pub struct aiot_sysdep_portfile_t {
    /// Allocates memory.
    pub core_sysdep_malloc:
        Option<unsafe extern "C" fn(size: u32, name: *mut c_char) -> *mut c_void>,
    /// Frees memory.
    pub core_sysdep_free: Option<unsafe extern "C" fn(ptr: *mut c_void)>,
    /// Returns the time in milliseconds.
    pub core_sysdep_time: Option<unsafe extern "C" fn() -> u64>,
    /// Sleeps for the given number of milliseconds.
    pub core_sysdep_sleep: Option<unsafe extern "C" fn(time_ms: u64)>,
    /// Creates a network handle.
    pub core_sysdep_network_init: Option<unsafe extern "C" fn() -> *mut c_void>,
    /// Sets an option of a network handle.
    pub core_sysdep_network_setopt: Option<
        unsafe extern "C" fn(
            handle: *mut c_void,
            option: MaybeUninit<core_sysdep_network_option_t>,
            data: *mut c_void,
        ) -> i32,
    >,
    /// Connects.
    pub core_sysdep_network_establish: Option<unsafe extern "C" fn(handle: *mut c_void) -> i32>,
    /// Receives data.
    pub core_sysdep_network_recv: Option<
        unsafe extern "C" fn(
            handle: *mut c_void,
            buffer: *mut u8,
            len: u32,
            timeout_ms: u32,
            addr: *mut core_sysdep_addr_t,
        ) -> i32,
    >,
    /// Sends data.
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
    /// Creates a mutex.
    pub core_sysdep_mutex_init: Option<unsafe extern "C" fn() -> *mut c_void>,
    /// Locks a mutex.
    pub core_sysdep_mutex_lock: Option<unsafe extern "C" fn(mutex: *mut c_void)>,
    /// Unlocks a mutex.
    pub core_sysdep_mutex_unlock: Option<unsafe extern "C" fn(mutex: *mut c_void)>,
    /// Frees a mutex.
    pub core_sysdep_mutex_deinit: Option<unsafe extern "C" fn(mutex: *mut *mut c_void)>,
}

/// A port file for programs that contain no other one. Its functions work; of the sockets, only TCP
/// clients without TLS do, which is what the Link SDK's core needs below its own TLS. This library
/// calls none of them. (Link SDK 4.x)
///
/// A program with a port file of its own, for example the Link SDK's, defines this object itself,
/// and that definition is used. If it is in a shared library that comes after this one, this object
/// gets its content before main starts. If it is in a static library, name that library before
/// this one on the linker's command line; otherwise the linker takes this object and leaves the
/// other out, and a message on standard error says so when the core uses it.
#[no_mangle]
pub static mut g_aiot_sysdep_portfile: aiot_sysdep_portfile_t = port::PORT;

static PORTFILE: AtomicPtr<aiot_sysdep_portfile_t> = AtomicPtr::new(ptr::null_mut());

/// Stores a port file for aiot_sysdep_get_portfile. The library does not use it otherwise.
/// (Link SDK 4.x)
///
/// portfile: stays the caller's and is never dereferenced. NULL removes the stored one.
///
/// In a program that also contains the Link SDK's core, the core's function is meant. If the call
/// reaches this one because this library comes first, it is passed on to the core's. If the linker
/// has left the core's out, because the core is a static library that comes after this one, a
/// message on standard error says so.
///
/// May be called from any thread, at any time. Does not block.
#[allow(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "passed on, and the core's contract is the same"
)]
#[no_mangle]
pub extern "C" fn aiot_sysdep_set_portfile(portfile: *mut aiot_sysdep_portfile_t) {
    PORTFILE.store(portfile, Ordering::Release);
    match beside::SET.get() {
        // SAFETY: the core's function of this name has this type.
        Some(next) => unsafe { transmute::<*mut c_void, SetFunction>(next)(portfile) },
        None => warn_if_the_core_was_left_out(),
    }
}

/// Returns the pointer that was last passed to aiot_sysdep_set_portfile, or NULL. (Link SDK 4.x)
///
/// May be called from any thread, at any time. Does not block.
#[no_mangle]
pub extern "C" fn aiot_sysdep_get_portfile() -> *mut aiot_sysdep_portfile_t {
    match beside::GET.get() {
        // SAFETY: the core's function of this name has this type.
        Some(next) => unsafe { transmute::<*mut c_void, GetFunction>(next)() },
        None => PORTFILE.load(Ordering::Acquire),
    }
}

type SetFunction = unsafe extern "C" fn(*mut aiot_sysdep_portfile_t);
type GetFunction = unsafe extern "C" fn() -> *mut aiot_sysdep_portfile_t;

/// The core is in the program, and yet its port file, or its functions for it, are not: the linker took
/// this library's first, and then had no reason to take the core's out of its archive.
pub(super) fn warn_if_the_core_was_left_out() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if super::state::core_is_linked() && !SAID.swap(true, Ordering::Relaxed) {
        eprintln!(
            "libaiot_tunnel: the Link SDK's core uses the port file of this library, because \
             -laiot_tunnel comes before the core's static library, and the linker has left the core's \
             port file out. Name the core's library before -laiot_tunnel."
        );
    }
}

/// The core's definitions, in a program that finds this library's first.
mod beside {
    use super::*;

    pub(super) static SET: Next = Next::new(c"aiot_sysdep_set_portfile");
    pub(super) static GET: Next = Next::new(c"aiot_sysdep_get_portfile");
    static PORT: Next = Next::new(c"g_aiot_sysdep_portfile");

    /// A symbol of a shared library that is searched after the one that contains this code.
    pub(super) struct Next {
        name: &'static CStr,
        found: OnceLock<Option<usize>>,
    }

    impl Next {
        const fn new(name: &'static CStr) -> Self {
            Next { name, found: OnceLock::new() }
        }

        pub(super) fn get(&self) -> Option<*mut c_void> {
            let look_up = || {
                // SAFETY: the name ends in NUL.
                let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
                (!found.is_null()).then(|| found.expose_provenance())
            };
            self.found.get_or_init(look_up).map(ptr::with_exposed_provenance_mut)
        }
    }

    /// Gives the program's port file the content of the core's, when the program has taken the object
    /// from this library. Runs before main, so that the program sees only the core's.
    extern "C" fn adopt_the_cores_port() {
        let Some(next) = PORT.get() else { return };
        // SAFETY: the name ends in NUL.
        let ours = unsafe { libc::dlsym(libc::RTLD_DEFAULT, PORT.name.as_ptr()) };
        if ours.is_null() || ours == next {
            return;
        }
        let (ours, next) = (ours.cast::<aiot_sysdep_portfile_t>(), next.cast_const().cast());
        // SAFETY: both are objects of this type. Nothing of the program runs yet.
        unsafe {
            if port::is_default(&*ours) {
                ptr::copy_nonoverlapping::<aiot_sysdep_portfile_t>(next, ours, 1);
            }
        }
    }

    #[used]
    #[cfg_attr(target_os = "linux", link_section = ".init_array")]
    static BEFORE_MAIN: extern "C" fn() = adopt_the_cores_port;
}
