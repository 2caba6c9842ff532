//! Non-blocking connects, writes that raise no SIGPIPE, and the number of unacked bytes.

use std::io::{self, IoSlice};
use std::mem;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::beyond_standard;

/// A TCP connect in progress. When it is ready for writing, it has succeeded or failed. If it is
/// given up after it has succeeded, the other end sees a reset, not an orderly end of nothing.
pub(crate) struct Connecting(TcpStream);

impl Connecting {
    /// Returns the connected, non-blocking stream, or the error of the connect. A close of the
    /// stream is a reset until [`reset_on_close`] says otherwise.
    pub(crate) fn finish(self) -> io::Result<TcpStream> {
        match self.0.take_error()? {
            Some(e) => Err(e),
            None => Ok(self.0),
        }
    }
}

impl AsFd for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where a connection leaves the machine. `None`: as the system chooses.
#[derive(Default)]
pub(crate) struct Origin<'a> {
    pub(crate) address: Option<IpAddr>,
    pub(crate) interface: Option<&'a str>,
}

/// A socket address in the kernel's form.
enum RawAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl RawAddress {
    fn new(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => RawAddress::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(v6) => RawAddress::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            }),
        }
    }
}

/// Begins to connect and does not block. The descriptor is close-on-exec, so child processes do not
/// inherit it.
pub(crate) fn connect(address: SocketAddr, origin: &Origin<'_>) -> io::Result<Connecting> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers. The result is checked before use.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a fresh descriptor that nothing else owns.
    let fd = beyond_standard(unsafe { OwnedFd::from_raw_fd(fd) })?;
    let stream = TcpStream::from(fd);
    reset_on_close(&stream, true);
    if let Some(name) = origin.interface {
        bind_to_interface(&stream, name)
            .map_err(|e| io::Error::new(e.kind(), format!("use the interface {name}: {e}")))?;
    }
    if let Some(own) = origin.address {
        bind(&stream, SocketAddr::new(own, 0))
            .map_err(|e| io::Error::new(e.kind(), format!("use the local address {own}: {e}")))?;
    }
    let result = match RawAddress::new(address) {
        RawAddress::V4(raw) => connect_raw(stream.as_raw_fd(), &raw),
        RawAddress::V6(raw) => connect_raw(stream.as_raw_fd(), &raw),
    };
    match result {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(Connecting(stream)),
    }
}

fn bind_to_interface(stream: &TcpStream, name: &str) -> io::Result<()> {
    let length = name.len() as libc::socklen_t;
    let (fd, level, option) = (stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    // SAFETY: the kernel reads `length` bytes of a live text and keeps no pointer to it.
    match unsafe { libc::setsockopt(fd, level, option, name.as_ptr().cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bind(stream: &TcpStream, address: SocketAddr) -> io::Result<()> {
    fn bind_raw<T>(fd: libc::c_int, address: &T) -> libc::c_int {
        let length = mem::size_of::<T>() as libc::socklen_t;
        // SAFETY: `address` is a live socket address structure and `length` is its size.
        unsafe { libc::bind(fd, std::ptr::from_ref(address).cast(), length) }
    }
    let on: libc::c_int = 1;
    // The port is chosen by the connect, so that it need not be one that nobody else uses.
    set_option(stream, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &on);
    let result = match RawAddress::new(address) {
        RawAddress::V4(raw) => bind_raw(stream.as_raw_fd(), &raw),
        RawAddress::V6(raw) => bind_raw(stream.as_raw_fd(), &raw),
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn connect_raw<T>(fd: i32, address: &T) -> io::Result<()> {
    let length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: `address` is a live socket address structure and `length` is its size.
    let result = unsafe { libc::connect(fd, std::ptr::from_ref(address).cast(), length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Connects to a Unix stream socket and returns the connected, non-blocking stream. `WouldBlock` if
/// the listener's backlog is full.
pub(crate) fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: an all-zero `sockaddr_un` is a valid value of that plain structure.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    // The last byte must stay NUL.
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path is too long"));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers. The result is checked before use.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a fresh descriptor that nothing else owns.
    let stream = UnixStream::from(beyond_standard(unsafe { OwnedFd::from_raw_fd(fd) })?);
    connect_raw(stream.as_raw_fd(), &address).map(|()| stream)
}

/// Writes the slices in order, as far as the socket takes them. std's `write_vectored` would raise
/// SIGPIPE in a host program that does not ignore the signal.
pub(crate) fn send_vectored(stream: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: an all-zero `msghdr` is a valid, empty one.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len().min(libc::UIO_MAXIOV as usize) as _;
    // SAFETY: `IoSlice` has the layout of `iovec` (std guarantees it), the slices outlive the call,
    // and sendmsg only reads them.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(sent as usize)
    }
}

/// Writes as much as the socket takes. With `more`, the kernel holds the bytes back until more are
/// written or [`push`] is called, for 200 ms at most. So the peer does not wake up for this part
/// alone.
pub(crate) fn send(stream: &TcpStream, bytes: &[u8], more: bool) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: pointer and length are those of a live slice, which send only reads.
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sends the bytes that the kernel holds back. No more bytes follow.
pub(crate) fn push(stream: &TcpStream) {
    // Setting the option sends at once, even if it is set already (tcp(7)).
    let _ = stream.set_nodelay(true);
}

/// Limits the bytes that may wait in the kernel before they are sent. Without the limit, the kernel
/// queues megabytes, and on a slow link a keystroke would wait behind them. A kernel that does not
/// know the option ignores it.
pub(crate) fn limit_queue(stream: &TcpStream, bytes: libc::c_int) {
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, &bytes);
}

/// Decides whether the later close of the socket is a reset. The other end cannot mistake a reset
/// for an orderly end. The kernel also closes the sockets of a process that is killed. A listener
/// passes this on to the connections that it accepts.
pub(crate) fn reset_on_close(stream: &impl AsRawFd, resets: bool) {
    let linger = libc::linger { l_onoff: resets.into(), l_linger: 0 };
    // This does not fail for an open socket. For any other, nothing changes.
    set_option(stream, libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// Makes the kernel probe the other end after `idle` without traffic. Three unanswered probes, ten
/// seconds apart, end the connection.
pub(crate) fn keep_alive(stream: &TcpStream, idle: Duration) {
    let seconds = libc::c_int::try_from(idle.as_secs().max(1)).unwrap_or(libc::c_int::MAX);
    let (interval, count): (libc::c_int, libc::c_int) = (10, 3);
    let on: libc::c_int = 1;
    // The kernel limits the time to 32,767 s. A larger value changes nothing.
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, &seconds.min(32_767));
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, &interval);
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, &count);
    set_option(stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &on);
}

fn set_option<T>(stream: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: &T) {
    let length = mem::size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads `length` bytes of a live value and keeps no pointer to it.
    unsafe { libc::setsockopt(stream.as_raw_fd(), level, name, value, length) };
}

/// The number of written bytes that the other end's kernel has not acknowledged (`SIOCOUTQ`).
pub(crate) fn unacked(stream: &TcpStream) -> usize {
    // The same number as SIOCOUTQ.
    queue_length(stream, libc::TIOCOUTQ)
}

/// The shortest round trip of the last minutes, as the kernel has measured it. `None`: the kernel does
/// not tell, or has measured none.
pub(crate) fn least_round_trip(stream: &TcpStream) -> Option<Duration> {
    /// Where `struct tcp_info` has `tcpi_min_rtt`, 32 bits, in microseconds.
    const MIN_RTT: usize = 148;
    let info = tcp_info::<{ MIN_RTT + 4 }>(stream)?;
    let micros = u32::from_ne_bytes(info[MIN_RTT..].try_into().ok()?);
    // The kernel's value before the first measurement is the largest one.
    (micros != u32::MAX).then(|| Duration::from_micros(micros.into()))
}

/// Whether the connection is over in both directions: reset, given up by the kernel, or closed.
pub(crate) fn is_dead(stream: &TcpStream) -> bool {
    /// `TCP_CLOSE` of the kernel's TCP states.
    const CLOSED: u8 = 7;
    tcp_info::<1>(stream).is_some_and(|[state]| state == CLOSED)
}

/// The first bytes of the kernel's `struct tcp_info`. `None` if it has fewer.
fn tcp_info<const LENGTH: usize>(stream: &TcpStream) -> Option<[u8; LENGTH]> {
    let mut info = [0; LENGTH];
    let mut length = LENGTH as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to a live array.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    (result == 0 && length as usize == LENGTH).then_some(info)
}

/// The number of written bytes that the kernel has not sent yet (`SIOCOUTQNSD`).
pub(crate) fn unsent(stream: &TcpStream) -> usize {
    const SIOCOUTQNSD: libc::c_ulong = 0x894b;
    queue_length(stream, SIOCOUTQNSD as _)
}

fn queue_length(stream: &TcpStream, request: libc::Ioctl) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one int to `count`.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), request, &mut count) };
    if result == 0 {
        count as usize
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_kernel_tells_the_shortest_round_trip() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let round_trip = least_round_trip(&stream).unwrap();
        assert!(round_trip < Duration::from_secs(60), "{round_trip:?}");
    }

    #[test]
    fn what_waits_for_more_is_sent_when_it_is_pushed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nodelay(true).unwrap();
        assert_eq!(send(&stream, b"part", true).unwrap(), 4);
        assert_eq!(unsent(&stream), 4);
        push(&stream);
        assert_eq!(unsent(&stream), 0);
    }
}
