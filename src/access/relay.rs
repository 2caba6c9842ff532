//! One connection of the access side and its local streams: how it waits, accepts and ends.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::{AccessLimits, AccessRelay, AccessSide, Pending};
use aiot_tunnel_proto::connection::{Connection, Ping, Upkeep};
use aiot_tunnel_proto::frame::{reason, Extensions};
use aiot_tunnel_proto::gateway;
use aiot_tunnel_proto::observer::{Event, Observer};
use aiot_tunnel_proto::relay::RelayLimits;
use aiot_tunnel_proto::session::{Lingering, SessionLimits, WindowLimits};
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::LogLimiter;

use super::listeners::Listeners;
use super::stdio::Output;
use super::{log, Error, Result, Settings, Traffic};
use crate::config::FIRST_WINDOW;
use crate::net::open::Opened;
use crate::net::{LocalSocket, Stream};
use crate::sys::{PollSet, Waker};

/// Size limit of a local buffer, in bytes.
const SESSION_BUFFER: usize = 256 * 1024;
/// The high-water mark of the send buffer, in bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// How long a local program may take nothing while its full local buffer holds up the others.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last bytes may take at the end. After a stop, this is the limit in all. When a
/// listening client loses its connection, it is the limit without progress. The single session of
/// `stdio` has no limit.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// Some proxies cut a connection that was silent for 30 s.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Most sessions whose first windows are set aside from [`TUNNEL_WINDOW`].
const SESSIONS: u64 = 16;
/// The largest window of a session, and the sum of all windows, in bytes.
const SESSION_WINDOW: u64 = 2 * 1024 * 1024;
const TUNNEL_WINDOW: u64 = 4 * 1024 * 1024;

const UPKEEP: Upkeep =
    Upkeep { ping: Ping::Every(PING_INTERVAL), high_water: SEND_BUFFER, ..gateway::UPKEEP };

/// Records how sessions end.
struct Outcomes {
    /// Whether there may be several sessions. Then their ends go to the log. Otherwise the end of
    /// the only session is the result.
    listening: bool,
    result: Result<()>,
    traffic: Traffic,
    /// Set when the only session is cut.
    cut: Option<Arc<AtomicBool>>,
}

impl Outcomes {
    fn failed(&mut self, error: Error) {
        if self.listening {
            log::error!("{error}");
        } else {
            self.cut();
            self.result = Err(error);
        }
    }

    fn cut(&self) {
        if let Some(cut) = &self.cut {
            cut.store(true, Ordering::SeqCst);
        }
    }
}

impl Observer for Outcomes {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Failed(e) => self.failed(Error::of_session(e)),
            Event::Cut { reason, .. } => self.failed(Error::Lost(reason.to_owned())),
            Event::Dropped(what) => log::warn!("{what}"),
            Event::LeftOut(count) => {
                log::warn!("{count} more such lines were left out");
            }
            Event::Opened(record) => self.traffic.opened(record),
            Event::Closed { id } => self.traffic.closed(id),
            Event::Pinged => log::report(Instant::now()),
            _ => {}
        }
    }
}

/// One connection and its sessions.
pub(super) struct Relay<'a> {
    relay: AccessRelay<Stream, LocalSocket, Outcomes>,
    stop: &'a Waker,
    /// The state of stdout, if that is where the only session's bytes go.
    output: Option<&'a Output>,
    polled: PollSet,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        opened: Opened,
        settings: &Settings,
        traffic: &Traffic,
        stop: &'a Waker,
        lingering: Option<Vec<Lingering<LocalSocket>>>,
    ) -> Self {
        let listening = lingering.is_some();
        let now = Instant::now();
        let connection = Connection::new(opened.stream, Role::Client, &opened.rest, UPKEEP, now);
        let session = SessionLimits {
            session_buffer: SESSION_BUFFER,
            stall_timeout: listening.then_some(STALL_TIMEOUT),
            half_close_timeout: Some(settings.half_close_timeout),
            idle_timeout: None,
            window: WindowLimits {
                first: FIRST_WINDOW,
                session: SESSION_WINDOW,
                growth: TUNNEL_WINDOW - SESSIONS * FIRST_WINDOW,
            },
        };
        let limits = RelayLimits { session, log_window: LogLimiter::WINDOW };
        let outcomes = Outcomes { listening, result: Ok(()), traffic: traffic.clone(), cut: None };
        let extensions = if settings.extensions { Extensions::ALL } else { Extensions::NONE };
        let side = AccessSide::new(AccessLimits { extensions }, now);
        let relay =
            AccessRelay::new(connection, side, limits, outcomes, lingering.unwrap_or_default());
        Relay { relay, stop, output: None, polled: PollSet::default() }
    }

    /// Asks the device for a session for this local stream, whose bytes go to stdout.
    pub(super) fn open(&mut self, local: LocalSocket, service_type: &Arc<str>, output: &'a Output) {
        self.output = Some(output);
        self.relay.observer_mut().cut = Some(output.cut().clone());
        let pending = Pending::new(local, service_type.clone(), None);
        self.relay.open(pending, Instant::now());
    }

    /// Serves until it is stopped, its stdout fails or the connection ends. Without listeners, it also ends when no
    /// session is left and everything has been sent. Blocks. Local streams that have no session yet
    /// come from the listeners and go back to them.
    ///
    /// # Errors
    /// The connection was lost. Without listeners, also the error of the session.
    pub(super) fn run(&mut self, mut listeners: Option<&mut Listeners<'_>>) -> Result<()> {
        let mut stopped = false;
        let is_single = listeners.is_none();
        while !stopped && self.relay.end().is_none() {
            let is_done = self.relay.is_idle() && self.relay.connection().waiting() == 0;
            if is_single && is_done {
                break;
            }
            if let Some(listeners) = &mut listeners {
                let now = Instant::now();
                listeners.take().into_iter().for_each(|pending| self.relay.open(pending, now));
            }
            stopped = self.turn(listeners.as_deref_mut(), None)?;
        }
        let lost = self.relay.end().cloned();
        // If the last session had already ended, the loss of the connection takes nothing from it.
        let was_over = is_single && self.relay.is_over();
        if lost.is_some() && !was_over {
            self.relay.observer_mut().cut();
        }
        if let (Some(listeners), false) = (listeners, stopped) {
            // What has no session yet, and what is still being delivered, waits for the next
            // connection.
            listeners.give_back(self.relay.side_mut().take_pending());
            listeners.linger(self.relay.take_lingering(Instant::now()));
        }
        let failure = self.failure();
        self.close(stopped, failure.as_deref(), !is_single)?;
        if stopped && is_single && !was_over {
            return Err(Error::Lost(failure.unwrap_or_else(|| reason::STOPPED.to_owned())));
        }
        match lost {
            Some(end) if !was_over && end.is_expired() => Err(Error::Expired),
            Some(end) if !was_over && end.is_removed() => Err(Error::removed()),
            Some(end) if !was_over => {
                // With listeners, the client does so itself.
                let cure = if is_single { "; try again" } else { "" };
                Err(Error::Disconnected(format!(
                    "the connection to the tunnel service is lost: {end}{cure}"
                )))
            }
            _ => std::mem::replace(&mut self.relay.observer_mut().result, Ok(())),
        }
    }

    /// The reason with which the session is cut after the failure of stdout.
    fn failure(&self) -> Option<String> {
        let failure = self.output.and_then(Output::failure);
        failure.map(|why| format!("{}{why}", reason::LOCAL_CONNECTION))
    }

    /// Does one `poll` and handles everything it reports. Returns true if the client was stopped or
    /// stdout has failed.
    fn turn(
        &mut self,
        listeners: Option<&mut Listeners<'_>>,
        until: Option<Instant>,
    ) -> Result<bool> {
        let relay = &mut self.relay;
        let now = Instant::now();
        let (wants_input, wants_local) = (relay.wants_input(), relay.wants_local());
        let wants_room = relay.connection().wants_room(now);
        let deadline = relay.deadline(now);
        let set = &mut self.polled;
        set.clear();
        set.push(self.stop.as_fd(), until.is_none(), false);
        let gateway = relay.connection().transport().as_fd();
        let watches_end = relay.watches_end();
        match watches_end {
            true => set.push_until_closed(gateway, wants_room),
            false => set.push(gateway, wants_input, wants_room),
        }
        for session in relay.sessions() {
            let wants_read = wants_local && session.wants_read();
            match session.stream() {
                Some(stream) => set.push(stream.as_fd(), wants_read, session.wants_write()),
                None => set.push(self.stop.as_fd(), false, false),
            }
        }
        for lingering in relay.lingering() {
            let (read, write) = (lingering.wants_read(), lingering.wants_write());
            set.push(lingering.stream().as_fd(), read, write);
        }
        let count = relay.sessions().len();
        let mut from = 2 + count + relay.lingering().len();
        if let Some(output) = self.output {
            set.push(output.failed(), until.is_none(), false);
            from += 1;
        }
        let mut deadlines = vec![deadline];
        deadlines.extend(until);
        if let Some(listeners) = &listeners {
            listeners.fds(now).for_each(|fd| set.push(fd, true, false));
            deadlines.extend(listeners.deadline(now));
        }
        let ready = set.poll(deadlines.into_iter().min().unwrap_or(deadline))?;
        let has_failed = self.output.is_some() && ready[from - 1].read;
        let stopped = ready[0].read || has_failed;
        relay.connection_mut().ready(wants_input && ready[1].read, ready[1].write);
        if watches_end && ready[1].read {
            relay.connection_mut().hang_up();
        }
        relay.turn(Instant::now(), &ready[2..2 + count]);
        if let Some(listeners) = listeners {
            listeners.accept(&ready[from..]);
        }
        if let Some(output) = self.output.filter(|_| has_failed) {
            output.discard();
        }
        Ok(stopped)
    }

    /// Delivers the last bytes in both directions, then closes the connection. `failure`: stdout has
    /// failed.
    fn close(&mut self, mut stopped: bool, failure: Option<&str>, listening: bool) -> Result<()> {
        let begun = Instant::now();
        if self.relay.end().is_some() {
            self.relay.cut_all(begun);
        } else if let Some(failure) = failure {
            self.relay.fail(failure, begun);
        } else if stopped {
            self.relay.close(reason::STOPPED, begun);
        } else {
            self.relay.close_gently("done", begun);
        }
        let (mut since, mut left) = (begun, usize::MAX);
        while !(self.relay.connection().is_gone() && self.relay.lingering().is_empty()) {
            let now = Instant::now();
            let waiting = self.relay.lingering().iter().map(|lingering| lingering.waiting()).sum();
            if waiting < left && !stopped {
                (since, left) = (now, waiting);
            }
            let give_up = (listening || stopped).then_some(since + LAST_BYTES);
            if give_up.is_some_and(|at| now >= at) {
                break;
            }
            // After a stop, the waker stays ready, so it is no longer polled.
            let until = if stopped { give_up } else { None };
            if self.turn(None, until)? && !stopped {
                (stopped, since) = (true, Instant::now());
            }
        }
        Ok(())
    }
}
