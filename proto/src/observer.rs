//! What happens in a relay, for an owner that logs or counts it. Nothing is written here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::SessionError;
use crate::connection::Dropped;
use crate::log_limiter::LogLimiter;
use crate::session::Counters;

/// Something that happened. Texts of the peer may hold any character.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The cloud asks for a session.
    Requested {
        /// The session.
        id: &'a str,
        /// The service that it is for.
        service_type: &'a str,
    },
    /// A session is open at both ends.
    Opened {
        /// The session.
        id: &'a str,
        /// The service that it is for.
        service_type: &'a str,
        /// Its bytes.
        counters: &'a Arc<Counters>,
    },
    /// A session is refused.
    Refused {
        /// The session.
        id: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// One of the ends has released a session.
    Released {
        /// The session.
        id: &'a str,
    },
    /// A session that was open has left the table.
    Closed {
        /// The session.
        id: &'a str,
    },
    /// A session has lost bytes and ends in a reset.
    Cut {
        /// The session.
        id: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// On the access side: a session was refused, or did not end in order.
    Failed(&'a SessionError),
    /// On the access side: the device ends a session with words that tell of a loss.
    Odd(&'a SessionError),
    /// A message was dropped.
    Dropped(&'a Dropped),
    /// A session_create without frame_id or session_id was dropped.
    Incomplete,
    /// Data for a session that does not exist was dropped.
    UnknownSession {
        /// The session.
        id: &'a str,
    },
    /// So many of the limited events above were not told.
    LeftOut(u32),
    /// The connection was pinged.
    Pinged,
    /// The peer has answered a ping.
    Pong,
}

/// Learns what happens.
pub trait Observer {
    /// Learns of one event.
    fn event(&mut self, event: Event<'_>);
}

/// Nobody wants to know.
impl Observer for () {
    fn event(&mut self, _: Event<'_>) {}
}

/// An observer, and a limit on what a peer can make it hear.
pub struct Journal<O> {
    /// The observer.
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

    /// Tells an event that the peer can cause as often as it likes.
    pub(crate) fn tell_limited(&mut self, now: Instant, event: Event<'_>) {
        if self.limiter.permits(now) {
            self.observer.event(event);
        }
    }

    /// Tells an event that only matters while the peer behaves.
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
