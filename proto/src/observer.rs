//! Events of a relay. The observer can log and count them. This module writes nothing itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::Dropped;
use crate::counters::SessionRecord;
use crate::log_limiter::LogLimiter;

/// Something that happened. Texts that came from the peer may hold any character.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The cloud asks for a session.
    Requested {
        /// The session id.
        id: &'a str,
        /// The service type.
        service_type: &'a str,
    },
    /// A session is open at both ends.
    Opened(
        /// Its names, and its bytes from now on.
        &'a Arc<SessionRecord>,
    ),
    /// This end refused a session.
    Refused {
        /// The session id.
        id: &'a str,
        /// Why it was refused.
        reason: &'a str,
    },
    /// One of the two ends released a session.
    Released {
        /// The session id.
        id: &'a str,
    },
    /// An open session left the session table.
    Closed {
        /// The session id.
        id: &'a str,
    },
    /// A session lost bytes. Its local stream is cut.
    Cut {
        /// The session id.
        id: &'a str,
        /// Why it was cut.
        reason: &'a str,
    },
    /// Access side only: a session was refused, or did not end in order.
    Failed(&'a SessionError),
    /// A message was dropped.
    Dropped(&'a Dropped),
    /// A session_create without frame_id or session_id was dropped.
    Incomplete,
    /// Data for a session that does not exist was dropped.
    UnknownSession {
        /// The session id.
        id: &'a str,
    },
    /// This many events were not reported, because the peer caused too many.
    LeftOut(u32),
    /// A ping was queued for the peer.
    Pinged,
    /// The peer answered a ping.
    Pong,
}

/// Why a session was not opened, or why it did not end in order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The gateway or the device refused the session.
    #[error("session refused: code {code}, {msg}")]
    Refused {
        /// The response code.
        code: i64,
        /// The text of the response, quoted.
        msg: String,
    },
    /// The session was released with a code or a text that tells of a loss of bytes.
    #[error("session lost: code {code}, {msg}")]
    Released {
        /// The release code.
        code: i64,
        /// The text of the release, quoted.
        msg: String,
    },
}

/// Receives the events of a relay.
pub trait Observer {
    /// Receives one event.
    fn event(&mut self, event: Event<'_>);
}

/// Ignores all events.
impl Observer for () {
    fn event(&mut self, _: Event<'_>) {}
}

/// An observer, with a limit on the number of events that a peer can cause.
pub struct Journal<O> {
    /// The observer that receives the events.
    pub observer: O,
    limiter: LogLimiter,
}

impl<O: Observer> Journal<O> {
    pub(crate) fn new(observer: O, window: Duration) -> Self {
        Journal { observer, limiter: LogLimiter::new(window) }
    }

    pub(crate) fn tell(&mut self, event: Event<'_>) {
        self.observer.event(event);
    }

    /// Reports an event that the peer can cause as often as it likes.
    pub(crate) fn tell_limited(&mut self, now: Instant, event: Event<'_>) {
        if self.limiter.permits(now) {
            self.observer.event(event);
        }
    }

    /// Reports an event only while the limit is not exhausted.
    pub(crate) fn tell_unless_limited(&mut self, event: Event<'_>) {
        if !self.limiter.is_exhausted() {
            self.observer.event(event);
        }
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        if let Some(count) = self.limiter.tick(now) {
            self.observer.event(Event::LeftOut(count));
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.limiter.deadline()
    }
}
