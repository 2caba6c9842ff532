//! The server's part of opening a connection: the TLS handshake, then the head of the request. Both
//! share one deadline.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::connection::Transport;
use aiot_tunnel_proto::handshake::{Head, HeadReader};
use openssl::ssl::SslAcceptor;

use super::open::{finish_tls, read_head, write_all, TlsError};
use super::read_ahead::ReadAhead;
use super::wait::HandshakeError;
use super::{Socket, Stream, Wait};

/// How long, and for how many bytes, the server still reads from a refused client.
const PARTING: Duration = Duration::from_secs(1);
const MAX_PARTING: usize = 256 * 1024;

/// Makes a non-blocking [`Stream`] from an accepted connection. With `tls`, does the TLS handshake.
/// Blocks in `wait`, until `deadline` at most.
///
/// # Errors
/// The errors of the socket and of the TLS handshake, `TimedOut`, and the error of an interrupted
/// wait.
pub(crate) fn secure(
    tcp: TcpStream,
    tls: Option<&SslAcceptor>,
    wait: &impl Wait,
    deadline: Instant,
) -> io::Result<Stream> {
    tcp.set_nonblocking(true)?;
    tcp.set_nodelay(true)?;
    let socket = Socket::new(tcp);
    let Some(tls) = tls else { return Ok(Stream::Plain(socket)) };
    let handshake = tls.accept(ReadAhead::new(socket)).into();
    finish_tls(handshake, wait, deadline).map_err(|e| match e {
        TlsError::Wait(e) => e.into(),
        TlsError::Failed(why) => io::Error::other(why),
    })
}

/// Reads the head of the request. Returns it with the bytes received behind it. `InvalidData` if
/// the head is too long.
pub(crate) fn read_request(
    stream: &mut Stream,
    wait: &impl Wait,
    deadline: Instant,
) -> io::Result<Head> {
    read_head(stream, &mut HeadReader::default(), wait, deadline).map_err(to_io)
}

/// Sends the answer that refuses a client, then reads and drops bytes for a while. If the socket
/// were closed with unread bytes, the kernel would reset the connection, and the client might not
/// see the answer.
pub(crate) fn refuse(
    mut stream: Stream,
    answer: &[u8],
    wait: &impl Wait,
    deadline: Instant,
) -> io::Result<()> {
    write_all(&mut stream, answer, wait, deadline).map_err(to_io)?;
    stream.shut_down();
    let until = deadline.min(Instant::now() + PARTING);
    let (mut scratch, mut left) = ([0; 4096], MAX_PARTING);
    let mut socket = stream.socket().tcp();
    while left > 0 && Instant::now() < until {
        match socket.read(&mut scratch) {
            Ok(0) => break,
            Ok(length) => left = left.saturating_sub(length),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if wait.wait(&[socket.as_fd()], false, until).is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    Ok(())
}

fn to_io(e: HandshakeError) -> io::Error {
    match e {
        HandshakeError::Wait(e) => e.into(),
        HandshakeError::Io(e) => e,
    }
}
