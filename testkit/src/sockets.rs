//! Socket options and readiness, for fixtures that control a socket exactly. No protocol here.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{bind, connect, socket_with, AddressFamily, SocketFlags, SocketType};

/// Makes the close of a connection reset it: what it has not sent yet is dropped.
pub fn reset_on_close(stream: &TcpStream) {
    set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

/// Connects from one of this machine's addresses, such as `127.0.0.2`.
pub fn connect_from(source: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else { panic!("not an IPv4 address: {to}") };
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = socket.unwrap();
    bind(&socket, &SocketAddrV4::new(source, 0)).unwrap();
    connect(&socket, &to).unwrap();
    TcpStream::from(socket)
}

/// One descriptor to wait for. Without any interest a hang-up still ends the wait: [`ready`] leaves
/// such descriptors out.
pub fn interest<Fd: AsFd>(fd: &Fd, read: bool, write: bool) -> PollFd<'_> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, read);
    flags.set(PollFlags::OUT, write);
    PollFd::new(fd, flags)
}

/// Waits until one of them is ready, or the deadline has come; `None` waits without a deadline.
/// Returns whether one is ready.
pub fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> bool {
    let timeout = deadline.map(|deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
    });
    match poll(fds, timeout.as_ref()) {
        Ok(ready) => ready > 0,
        Err(rustix::io::Errno::INTR) => false,
        Err(e) => panic!("poll: {e}"),
    }
}

/// A descriptor, and whether to wait until it can be read and written.
pub type Interest<'a> = (BorrowedFd<'a>, bool, bool);

/// Waits as [`wait`] does; which of them are ready. Those without any interest never are.
pub fn ready(interests: &[Interest<'_>], deadline: Option<Instant>) -> Vec<bool> {
    let wanted = |(_, read, write): &Interest<'_>| *read || *write;
    let mut fds: Vec<PollFd<'_>> = interests
        .iter()
        .filter(|each| wanted(each))
        .map(|(fd, read, write)| interest(fd, *read, *write))
        .collect();
    wait(&mut fds, deadline);
    let mut polled = fds.iter().map(|fd| !fd.revents().is_empty());
    interests.iter().map(|each| wanted(each) && polled.next() == Some(true)).collect()
}

/// Whether a non-blocking operation is to be tried again later.
pub fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
