//! The port file of a program that has no other one: the functions behind `g_aiot_sysdep_portfile`. This
//! library calls none of them. A core of the Link SDK does, if the linker has taken this port file
//! instead of the core's, so they do what the SDK's do.

use std::ffi::{c_char, c_void, CStr};
use std::io::{self, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{ptr, slice, thread};

use super::core_codes as code;
use super::sysdep::{
    aiot_sysdep_portfile_t, core_sysdep_addr_t, core_sysdep_network_option_t,
    core_sysdep_network_option_t as option, core_sysdep_socket_type_t as socket_type,
    warn_if_the_core_was_left_out,
};
use super::{guard, input};
use crate::{state, sys};

pub(super) const PORT: aiot_sysdep_portfile_t = aiot_sysdep_portfile_t {
    core_sysdep_malloc: Some(malloc),
    core_sysdep_free: Some(free),
    core_sysdep_time: Some(time),
    core_sysdep_sleep: Some(sleep),
    core_sysdep_network_init: Some(network_init),
    core_sysdep_network_setopt: Some(network_setopt),
    core_sysdep_network_establish: Some(network_establish),
    core_sysdep_network_recv: Some(network_recv),
    core_sysdep_network_send: Some(network_send),
    core_sysdep_network_deinit: Some(network_deinit),
    core_sysdep_rand: Some(rand),
    core_sysdep_mutex_init: Some(mutex_init),
    core_sysdep_mutex_lock: Some(mutex_lock),
    core_sysdep_mutex_unlock: Some(mutex_unlock),
    core_sysdep_mutex_deinit: Some(mutex_deinit),
};

/// Whether a port file is this one.
pub(super) fn is_default(port: &aiot_sysdep_portfile_t) -> bool {
    let own = time as unsafe extern "C" fn() -> u64;
    port.core_sysdep_time.is_some_and(|function| ptr::fn_addr_eq(function, own))
}

unsafe extern "C" fn malloc(size: u32, _name: *mut c_char) -> *mut c_void {
    warn_if_the_core_was_left_out();
    // SAFETY: has no preconditions.
    unsafe { libc::malloc(size as usize) }
}

unsafe extern "C" fn free(memory: *mut c_void) {
    // SAFETY: the caller got the memory from `malloc`.
    unsafe { libc::free(memory) }
}

unsafe extern "C" fn time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

unsafe extern "C" fn sleep(time_ms: u64) {
    thread::sleep(Duration::from_millis(time_ms));
}

unsafe extern "C" fn rand(output: *mut u8, output_len: u32) {
    if output.is_null() {
        return;
    }
    // SAFETY: the caller's buffer has this length; it is filled before it is read.
    let output = unsafe {
        ptr::write_bytes(output, 0, output_len as usize);
        slice::from_raw_parts_mut(output, output_len as usize)
    };
    guard((), || rand::Rng::fill_bytes(&mut rand::rng(), output));
}

unsafe extern "C" fn mutex_init() -> *mut c_void {
    // SAFETY: a mutex of the C library gets memory of its size and alignment, and is initialised there.
    unsafe {
        let mutex =
            libc::malloc(size_of::<libc::pthread_mutex_t>()).cast::<libc::pthread_mutex_t>();
        if !mutex.is_null() {
            libc::pthread_mutex_init(mutex, ptr::null());
        }
        mutex.cast()
    }
}

unsafe extern "C" fn mutex_lock(mutex: *mut c_void) {
    if !mutex.is_null() {
        // SAFETY: the caller got the mutex from `mutex_init`.
        unsafe { libc::pthread_mutex_lock(mutex.cast()) };
    }
}

unsafe extern "C" fn mutex_unlock(mutex: *mut c_void) {
    if !mutex.is_null() {
        // SAFETY: the caller got the mutex from `mutex_init`, and has locked it.
        unsafe { libc::pthread_mutex_unlock(mutex.cast()) };
    }
}

unsafe extern "C" fn mutex_deinit(mutex: *mut *mut c_void) {
    if mutex.is_null() {
        return;
    }
    // SAFETY: the caller's variable holds NULL, or a mutex from `mutex_init` that nobody uses.
    unsafe {
        let memory = ptr::replace(mutex, ptr::null_mut());
        if !memory.is_null() {
            libc::pthread_mutex_destroy(memory.cast());
            libc::free(memory);
        }
    }
}

/// A TCP client, behind the port file's network handle.
struct Network {
    is_tcp_client: bool,
    host: String,
    backup: String,
    port: u16,
    connect_timeout: Duration,
    stream: Option<TcpStream>,
}

unsafe extern "C" fn network_init() -> *mut c_void {
    let network = Network {
        is_tcp_client: true,
        host: String::new(),
        backup: String::new(),
        port: 0,
        connect_timeout: Duration::from_secs(5),
        stream: None,
    };
    Box::into_raw(Box::new(network)).cast()
}

unsafe extern "C" fn network_setopt(
    handle: *mut c_void,
    what: MaybeUninit<core_sysdep_network_option_t>,
    data: *mut c_void,
) -> i32 {
    const SOCKET_TYPE: u32 = option::CORE_SYSDEP_NETWORK_SOCKET_TYPE as u32;
    const HOST: u32 = option::CORE_SYSDEP_NETWORK_HOST as u32;
    const BACKUP_IP: u32 = option::CORE_SYSDEP_NETWORK_BACKUP_IP as u32;
    const PORT: u32 = option::CORE_SYSDEP_NETWORK_PORT as u32;
    const TIMEOUT: u32 = option::CORE_SYSDEP_NETWORK_CONNECT_TIMEOUT_MS as u32;
    // SAFETY: the caller got the handle from `network_init`, and uses it in one thread at a time.
    let Some(network) = (unsafe { handle.cast::<Network>().as_mut() }) else {
        return code::PORT_INPUT_NULL_POINTER;
    };
    if data.is_null() {
        return code::PORT_INPUT_NULL_POINTER;
    }
    // SAFETY: with these options, the data is a string that ends in NUL.
    let text = || unsafe { CStr::from_ptr(data.cast()) }.to_string_lossy().into_owned();
    match input::enum_number(what) {
        SOCKET_TYPE => {
            // SAFETY: with this option, the data is a socket type, an `int`.
            let kind = unsafe { data.cast::<u32>().read_unaligned() };
            network.is_tcp_client = kind == socket_type::CORE_SYSDEP_SOCKET_TCP_CLIENT as u32;
        }
        HOST => network.host = text(),
        BACKUP_IP => network.backup = text(),
        // SAFETY: with this option, the data is a `uint16_t`.
        PORT => network.port = unsafe { data.cast::<u16>().read_unaligned() },
        TIMEOUT => {
            // SAFETY: with this option, the data is a `uint32_t`.
            let ms = unsafe { data.cast::<u32>().read_unaligned() };
            network.connect_timeout = Duration::from_millis(ms.max(1).into());
        }
        _ => return code::PORT_NETWORK_UNKNOWN_OPTION,
    }
    state::SUCCESS
}

unsafe extern "C" fn network_establish(handle: *mut c_void) -> i32 {
    // SAFETY: as in `network_setopt`.
    let Some(network) = (unsafe { handle.cast::<Network>().as_mut() }) else {
        return code::PORT_INPUT_NULL_POINTER;
    };
    guard(state::PORT_NETWORK_CONNECT_FAILED, || network.establish())
}

/// The stream of a network handle, if it is connected.
///
/// # Safety
/// As for `network_setopt`: the handle is NULL or from `network_init`, and no other thread uses it.
unsafe fn connected<'a>(handle: *mut c_void) -> Option<&'a mut TcpStream> {
    // SAFETY: the caller's promise.
    unsafe { handle.cast::<Network>().as_mut() }?.stream.as_mut()
}

unsafe extern "C" fn network_recv(
    handle: *mut c_void,
    buffer: *mut u8,
    len: u32,
    timeout_ms: u32,
    _addr: *mut core_sysdep_addr_t,
) -> i32 {
    // SAFETY: as in `network_setopt`.
    let stream = unsafe { connected(handle) };
    let Some(stream) = stream.filter(|_| !buffer.is_null()) else {
        return code::PORT_INPUT_NULL_POINTER;
    };
    // SAFETY: the caller's buffer has this length.
    let buffer = unsafe {
        ptr::write_bytes(buffer, 0, len as usize);
        slice::from_raw_parts_mut(buffer, len as usize)
    };
    let moved = in_time(buffer.len(), timeout_ms, |done, left| {
        stream.set_read_timeout(Some(left))?;
        stream.read(&mut buffer[done..])
    });
    moved.unwrap_or_else(|e| match e.kind() {
        ErrorKind::UnexpectedEof => code::PORT_NETWORK_RECV_CONNECTION_CLOSED,
        _ => code::PORT_NETWORK_RECV_FAILED,
    })
}

unsafe extern "C" fn network_send(
    handle: *mut c_void,
    buffer: *mut u8,
    len: u32,
    timeout_ms: u32,
    _addr: *mut core_sysdep_addr_t,
) -> i32 {
    // SAFETY: as in `network_setopt`.
    let stream = unsafe { connected(handle) };
    let Some(stream) = stream.filter(|_| !buffer.is_null()) else {
        return code::PORT_INPUT_NULL_POINTER;
    };
    // SAFETY: the caller's buffer has this length, and is not changed during the call.
    let buffer = unsafe { slice::from_raw_parts(buffer.cast_const(), len as usize) };
    let moved = in_time(buffer.len(), timeout_ms, |done, left| {
        stream.set_write_timeout(Some(left))?;
        stream.write(&buffer[done..])
    });
    moved.unwrap_or_else(|e| match e.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
            code::PORT_NETWORK_SEND_CONNECTION_CLOSED
        }
        _ => code::PORT_NETWORK_SEND_FAILED,
    })
}

unsafe extern "C" fn network_deinit(handle: *mut *mut c_void) -> i32 {
    if handle.is_null() {
        return code::PORT_INPUT_NULL_POINTER;
    }
    // SAFETY: the caller's variable holds NULL, or a handle from `network_init` that nobody uses.
    unsafe {
        let network = ptr::replace(handle, ptr::null_mut()).cast::<Network>();
        if network.is_null() {
            return code::PORT_INPUT_NULL_POINTER;
        }
        drop(Box::from_raw(network));
    }
    state::SUCCESS
}

impl Network {
    fn establish(&mut self) -> i32 {
        if !self.is_tcp_client {
            return code::PORT_UDP_CLIENT_NOT_IMPLEMENT;
        }
        if self.host.is_empty() {
            return code::PORT_MISSING_HOST;
        }
        let look_up = |host: &str| {
            let addresses = (host, self.port).to_socket_addrs();
            addresses.map(|found| found.collect::<Vec<SocketAddr>>()).unwrap_or_default()
        };
        let mut addresses = look_up(&self.host);
        if addresses.is_empty() && !self.backup.is_empty() {
            addresses = look_up(&self.backup);
        }
        if addresses.is_empty() {
            return state::PORT_NETWORK_DNS_FAILED;
        }
        let mut code = state::PORT_NETWORK_CONNECT_FAILED;
        for address in addresses {
            let connected = TcpStream::connect_timeout(&address, self.connect_timeout);
            match connected.and_then(sys::beyond_standard) {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return state::SUCCESS;
                }
                Err(e) if e.kind() == ErrorKind::TimedOut => {
                    code = state::PORT_NETWORK_CONNECT_TIMEOUT;
                }
                Err(_) => {}
            }
        }
        code
    }
}

/// Repeats `step` until `len` bytes are moved or the time is over. Returns the number of moved bytes.
/// An end of the stream is an error unless some bytes came before.
fn in_time(
    len: usize,
    timeout_ms: u32,
    mut step: impl FnMut(usize, Duration) -> io::Result<usize>,
) -> io::Result<i32> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
    let mut done = 0;
    while done < len {
        // A timeout of zero would be none.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match step(done, left) {
            Ok(0) if done == 0 => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(0) => break,
            Ok(more) => done += more,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(i32::try_from(done).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_port_files_network_connects_sends_receives_and_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut port = listener.local_addr().unwrap().port();
        let echo = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
            stream
        });
        // SAFETY: each pointer is valid for its option, and the buffer has four bytes.
        unsafe {
            let mut network = network_init();
            let host = c"127.0.0.1".as_ptr().cast_mut().cast();
            let port = (&raw mut port).cast();
            assert_eq!(
                network_setopt(network, MaybeUninit::new(option::CORE_SYSDEP_NETWORK_HOST), host),
                0
            );
            assert_eq!(
                network_setopt(network, MaybeUninit::new(option::CORE_SYSDEP_NETWORK_PORT), port),
                0
            );
            assert_eq!(network_establish(network), 0);
            let mut buffer = *b"ping";
            let addr = ptr::null_mut();
            assert_eq!(network_send(network, buffer.as_mut_ptr(), 4, 5000, addr), 4);
            assert_eq!(network_recv(network, buffer.as_mut_ptr(), 4, 5000, addr), 4);
            assert_eq!(&buffer, b"ping");
            assert_eq!(network_recv(network, buffer.as_mut_ptr(), 4, 20, addr), 0);
            drop(echo.join().unwrap());
            let closed = network_recv(network, buffer.as_mut_ptr(), 4, 5000, addr);
            assert_eq!(closed, code::PORT_NETWORK_RECV_CONNECTION_CLOSED);
            assert_eq!(network_deinit(&raw mut network), 0);
            assert!(network.is_null());
        }
    }
}
