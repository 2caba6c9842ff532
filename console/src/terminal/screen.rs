//! The bytes between the browser and ssh.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::SinkExt;
use pty_process::{ReadPty, WritePty};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval_at, Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use super::browser::Sink;
use super::wire::{self, Untaken, MESSAGE_COST};

/// How often the browser is asked whether it is there.
const PING: Duration = Duration::from_secs(20);
/// Longest messages to the browser: of the device's output, and of ssh's own.
const PIECE: usize = 32 * 1024;
const SMALL_PIECE: usize = 4 * 1024;

/// Writes what is typed, and sets the size of the terminal.
pub(super) async fn write_input(
    input: &mut WritePty<'_>,
    keys: &mut mpsc::UnboundedReceiver<Bytes>,
    sizes: &mut watch::Receiver<[u64; 2]>,
    typed: &AtomicUsize,
) -> Infallible {
    let mut waiting = Bytes::new();
    loop {
        tokio::select! {
            Ok(()) = sizes.changed() => {
                let size = *sizes.borrow_and_update();
                if let Err(e) = input.resize(wire::size(size)) {
                    log::debug!("terminal: resize: {e}");
                }
            }
            written = input.write(&waiting), if !waiting.is_empty() => match written {
                Ok(length) => {
                    typed.fetch_sub(length, Ordering::Relaxed);
                    let _ = waiting.split_to(length);
                    if waiting.is_empty() {
                        typed.fetch_sub(MESSAGE_COST, Ordering::Relaxed);
                    }
                }
                // ssh has ended, which its output tells.
                Err(_) => std::future::pending().await,
            },
            Some(more) = keys.recv(), if waiting.is_empty() => waiting = more,
        }
    }
}

/// What ssh shows.
pub(super) struct Output<'a> {
    /// The device's. `None`: it has ended.
    device: Option<&'a mut UnixStream>,
    /// ssh's own. `None`: it has ended.
    ssh: Option<ReadPty<'a>>,
    buffers: [Vec<u8>; 2],
}

impl<'a> Output<'a> {
    pub(super) fn new(device: &'a mut UnixStream, ssh: ReadPty<'a>) -> Self {
        let buffers = [vec![0; PIECE], vec![0; SMALL_PIECE]];
        Output { device: Some(device), ssh: Some(ssh), buffers }
    }

    /// Reads what may be sent. `None`: the end. Nothing is lost if the future is dropped.
    async fn read(&mut self, untaken: &Untaken) -> Option<Bytes> {
        let Output { device, ssh, buffers: [large, small] } = self;
        loop {
            let room = untaken.room().await;
            let (large, small) = (shortened(large, room), shortened(small, room));
            // What ssh says comes behind the device's last words. An error is an end, too: that of a
            // pseudo-terminal which nobody has open any more.
            tokio::select! {
                biased;
                Some(length) = read(device.as_deref_mut(), large) => match length {
                    0 => *device = None,
                    length => return Some(Bytes::copy_from_slice(&large[..length])),
                },
                Some(length) = read(ssh.as_mut(), small) => match length {
                    0 => *ssh = None,
                    length => return Some(Bytes::copy_from_slice(&small[..length])),
                },
                else => return None,
            }
        }
    }
}

fn shortened(buffer: &mut [u8], room: usize) -> &mut [u8] {
    let length = buffer.len().min(room);
    &mut buffer[..length]
}

/// `None`: there is nothing to read from.
async fn read(from: Option<&mut (impl AsyncRead + Unpin)>, buffer: &mut [u8]) -> Option<usize> {
    Some(from?.read(buffer).await.unwrap_or(0))
}

/// Sends ssh's output as far as the browser shows it, and asks whether the browser is there. Returns at the
/// end of the output.
///
/// # Errors
/// The WebSocket's.
pub(super) async fn show_output<S>(
    output: &mut Output<'_>,
    sink: &mut Sink<S>,
    untaken: &Untaken,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval_at(Instant::now() + PING, PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            piece = output.read(untaken) => match piece {
                Some(piece) => {
                    untaken.sent(piece.len());
                    Message::Binary(piece)
                }
                None => return Ok(()),
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        sink.send(message).await?;
    }
}
