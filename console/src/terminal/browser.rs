//! What the browser says, and what it is told in the end.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::WebSocketStream;

use super::wire::{Said, Untaken, MAX_TYPED, MESSAGE_COST};

/// After how long without a sign of it the browser is gone. It answers pings.
const SILENCE: Duration = Duration::from_secs(50);

pub(super) type Sink<S> = SplitSink<WebSocketStream<S>, Message>;
pub(super) type Stream<S> = SplitStream<WebSocketStream<S>>;

/// Why a terminal ends.
pub(super) struct End {
    pub(super) code: CloseCode,
    /// A sentence for the user. `None`: the browser is gone or has closed.
    pub(super) why: Option<String>,
    /// For the log, if it says something else.
    log: Option<String>,
}

impl End {
    pub(super) fn of(why: impl Into<String>) -> Self {
        End { code: CloseCode::Normal, why: Some(why.into()), log: None }
    }

    pub(super) fn gone(how: impl Into<String>) -> Self {
        End { code: CloseCode::Normal, why: None, log: Some(how.into()) }
    }

    pub(super) fn wrong(code: CloseCode, why: &str) -> Self {
        End { code, ..End::of(why) }
    }

    pub(super) fn for_log(&self) -> &str {
        self.log.as_deref().or(self.why.as_deref()).unwrap_or_default()
    }
}

/// Where what a browser says goes.
pub(super) struct Browser<'a> {
    pub(super) untaken: &'a Untaken,
    /// How many bytes ssh has not taken.
    pub(super) typed: &'a AtomicUsize,
    pub(super) typing: mpsc::UnboundedSender<Bytes>,
    pub(super) sizes: watch::Sender<[u64; 2]>,
    pub(super) used: &'a (dyn Fn() + Send + Sync),
}

impl Browser<'_> {
    /// Listens until the browser is gone, or is not understood.
    pub(super) async fn listen<S>(&self, stream: &mut Stream<S>) -> End
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            // A flood of messages that are there already does not hold up the others on this thread.
            tokio::task::coop::consume_budget().await;
            let message = match timeout(SILENCE, stream.next()).await {
                Err(_) => return End::gone("the browser gives no sign of life"),
                Ok(None) => return End::gone("the browser is gone"),
                Ok(Some(Err(Error::Capacity(_)))) => {
                    return End::wrong(CloseCode::Size, "a message from the browser is too long");
                }
                Ok(Some(Err(e))) => return End::gone(format!("the browser is gone: {e}")),
                Ok(Some(Ok(message))) => message,
            };
            match message {
                Message::Binary(bytes) if bytes.is_empty() => {}
                Message::Binary(bytes) => {
                    let cost = bytes.len() + MESSAGE_COST;
                    if self.typed.fetch_add(cost, Ordering::Relaxed) + cost > MAX_TYPED {
                        let why = "too much was pasted that the device has not taken";
                        return End::wrong(CloseCode::Size, why);
                    }
                    // A copy: the message may be a small part of a large buffer. Its receiver lives as long
                    // as this.
                    let _ = self.typing.send(Bytes::copy_from_slice(&bytes));
                }
                Message::Text(text) => {
                    let is_understood = match Said::parse(&text) {
                        Some(Said::Size(size)) => {
                            self.sizes.send_replace(size);
                            true
                        }
                        Some(Said::Taken(bytes)) => self.untaken.taken(bytes),
                        Some(Said::Used(is_used)) => {
                            if is_used {
                                (self.used)();
                            }
                            true
                        }
                        None => false,
                    };
                    if !is_understood {
                        let why = "a message from the browser was not understood";
                        return End::wrong(CloseCode::Protocol, why);
                    }
                }
                Message::Close(_) => return End::gone("the browser has closed it"),
                // The answers to pings are the WebSocket's.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }
}

/// Tells the browser why the terminal ends, and waits until it knows.
pub(super) async fn farewell<S>(
    sink: &mut Sink<S>,
    stream: &mut Stream<S>,
    end: End,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Some(why) = end.why {
        let why = serde_json::json!({ "end": why }).to_string();
        sink.send(Message::text(why)).await?;
    }
    sink.send(Message::Close(Some(CloseFrame { code: end.code, reason: "".into() }))).await?;
    while let Some(Ok(_)) = stream.next().await {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::net::UnixStream;
    use tokio::time::Instant;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::super::screen::{show_output, Output};
    use super::super::wire::MAX_MESSAGE;
    use super::super::SIZE;
    use super::*;

    type Socket = WebSocketStream<tokio::io::DuplexStream>;

    async fn sockets() -> [Socket; 2] {
        let (own, other) = duplex(64 * 1024);
        let own = WebSocketStream::from_raw_socket(own, Role::Server, None).await;
        [own, WebSocketStream::from_raw_socket(other, Role::Client, None).await]
    }

    /// Listens to a browser. Returns the end and how long it took.
    async fn listen(stream: &mut Stream<tokio::io::DuplexStream>) -> (End, Duration) {
        let (untaken, typed) = (Untaken::default(), AtomicUsize::new(0));
        let (sizes, _sizes) = watch::channel(SIZE);
        let (typing, _keys) = mpsc::unbounded_channel();
        let used = || ();
        let browser = Browser { untaken: &untaken, typed: &typed, typing, sizes, used: &used };
        let began = Instant::now();
        let end = browser.listen(stream).await;
        (end, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_without_a_sign_of_life_is_gone_within_a_minute() {
        let [server, _browser] = sockets().await;
        let (_sink, mut stream) = server.split();
        let (end, after) = listen(&mut stream).await;
        assert!(end.why.is_none());
        assert_eq!(after, SILENCE);
        assert!(SILENCE < Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_answers_pings_may_be_silent_for_hours() {
        let [server, mut browser] = sockets().await;
        let (mut sink, mut stream) = server.split();
        let (_far, mut near) = UnixStream::pair().unwrap();
        let (mut pty, _slave) = pty_process::open().unwrap();
        let (ssh, _) = pty.split();
        let mut output = Output::new(&mut near, ssh);
        let untaken = Untaken::default();
        let answers = async {
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(7200) {
                // Reading answers it.
                assert!(matches!(browser.next().await, Some(Ok(Message::Ping(_)))));
            }
            browser.close(None).await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (end, after) = listen(&mut stream) => {
                assert_eq!(end.for_log(), "the browser has closed it");
                assert_eq!(after.as_secs(), 7200);
            }
            _ = show_output(&mut output, &mut sink, &untaken) => panic!("the output has ended"),
            () = answers => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_typed_and_not_taken_is_limited() {
        let [server, mut browser] = sockets().await;
        let (_sink, mut stream) = server.split();
        let types = async {
            for _ in 0..=MAX_TYPED / MAX_MESSAGE {
                let _ = browser.send(Message::binary(vec![b'x'; MAX_MESSAGE])).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            (end, _) = listen(&mut stream) => assert_eq!(end.code, CloseCode::Size),
            () = types => {}
        }
    }
}
