//! One connection of the access side and its local streams: how it waits, accepts and ends.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::{AccessRelay, AccessSide, SessionError};
use aiot_tunnel_proto::connection::{Connection, Upkeep};
use aiot_tunnel_proto::gateway;
use aiot_tunnel_proto::observer::{Event, Observer};
use aiot_tunnel_proto::relay::RelayLimits;
use aiot_tunnel_proto::session::SessionLimits;
use aiot_tunnel_proto::websocket::Role;
use aiot_tunnel_proto::{LogLimiter, Ready};

use super::{log, Error, Result};
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
/// How long to wait after a failed accept, for example when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const UPKEEP: Upkeep = Upkeep { high_water: SEND_BUFFER, ..gateway::UPKEEP };

/// Records how sessions end.
struct Outcomes {
    /// Whether there may be several sessions. Then their ends go to the log. Otherwise the end of
    /// the only session is the result.
    listening: bool,
    result: Result<()>,
}

impl Outcomes {
    fn failed(&mut self, error: Error) {
        if self.listening {
            log::error!("{error}");
        } else {
            self.result = Err(error);
        }
    }
}

impl Observer for Outcomes {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Failed(e) => self.failed(Error::of_session(e)),
            // The protocol has no code that distinguishes a reset by the local service from its end
            // of file.
            Event::Odd(e @ SessionError::Released { msg, .. }) => {
                if self.listening {
                    log::warn!("session ended by the device: {msg}");
                } else {
                    self.failed(Error::of_session(e));
                }
            }
            Event::Cut { reason, .. } => self.failed(Error::Lost(reason.to_owned())),
            Event::Dropped(what) => log::warn!("{what}"),
            Event::LeftOut(count) => {
                log::warn!("{count} more such lines were left out");
            }
            Event::Pinged => log::report(Instant::now()),
            _ => {}
        }
    }
}

/// One connection and its sessions.
pub(super) struct Relay<'a> {
    relay: AccessRelay<Stream, LocalSocket, Outcomes>,
    stop: &'a Waker,
    polled: PollSet,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        opened: Opened,
        service_type: &str,
        stop: &'a Waker,
        listening: bool,
    ) -> Self {
        let now = Instant::now();
        let connection = Connection::new(opened.stream, Role::Client, &opened.rest, UPKEEP, now);
        let session = SessionLimits {
            session_buffer: SESSION_BUFFER,
            stall_timeout: listening.then_some(STALL_TIMEOUT),
        };
        let limits = RelayLimits { session, log_window: LogLimiter::WINDOW };
        let outcomes = Outcomes { listening, result: Ok(()) };
        let side = AccessSide::new(service_type);
        let relay = AccessRelay::new(connection, side, limits, outcomes, Vec::new());
        Relay { relay, stop, polled: PollSet::default() }
    }

    /// Asks the device for a session for this local stream.
    pub(super) fn open(&mut self, local: LocalSocket) {
        self.relay.open(local, Instant::now());
    }

    /// Serves until it is stopped or the connection ends. Without a listener, it also ends when no
    /// session is left and everything has been sent. Blocks.
    ///
    /// # Errors
    /// The connection was lost. Without a listener, also the error of the session.
    pub(super) fn run(&mut self, listener: Option<&TcpListener>) -> Result<()> {
        let mut stopped = false;
        while !stopped && self.relay.end().is_none() {
            let is_done = self.relay.is_idle() && self.relay.connection().waiting() == 0;
            if listener.is_none() && is_done {
                break;
            }
            stopped = self.turn(listener, None)?;
        }
        let lost = self.relay.end().cloned();
        // If the last session had already ended, the loss of the connection takes nothing from it.
        let was_over = listener.is_none() && self.relay.is_over();
        self.close(stopped, listener.is_some())?;
        match lost {
            Some(end) if !was_over && end.is_expired() => Err(Error::Unauthorized),
            Some(end) if !was_over => Err(Error::Connection(format!(
                "the connection to the tunnel service is lost: {end}"
            ))),
            _ => std::mem::replace(&mut self.relay.observer_mut().result, Ok(())),
        }
    }

    /// Does one `poll` and handles everything it reports. Returns true if the client was stopped.
    fn turn(&mut self, listener: Option<&TcpListener>, until: Option<Instant>) -> Result<bool> {
        let relay = &mut self.relay;
        let now = Instant::now();
        let (wants_input, wants_local) = (relay.wants_input(), relay.wants_local());
        let wants_room = relay.connection().wants_room(now);
        let deadline = relay.deadline(now);
        let set = &mut self.polled;
        set.clear();
        set.push(self.stop.as_fd(), until.is_none(), false);
        set.push(relay.connection().transport().as_fd(), wants_input, wants_room);
        for stream in relay.sessions() {
            let wants_write = stream.wants_write();
            match stream.stream() {
                Some(stream) => set.push(stream.as_fd(), wants_local, wants_write),
                None => set.push(self.stop.as_fd(), false, false),
            }
        }
        for lingering in relay.lingering() {
            let (read, write) = (lingering.wants_read(), lingering.wants_write());
            set.push(lingering.stream().as_fd(), read, write);
        }
        if let Some(listener) = listener {
            set.push(listener.as_fd(), true, false);
        }
        let count = relay.sessions().len();
        let ready = set.poll(until.map_or(deadline, |until| until.min(deadline)))?;
        let accepts = listener.filter(|_| ready.last().is_some_and(|ready: &Ready| ready.read));
        let stopped = ready[0].read;
        relay.connection_mut().ready(ready[1].read, ready[1].write);
        relay.turn(Instant::now(), &ready[2..2 + count]);
        if let Some(listener) = accepts {
            self.accept(listener);
        }
        Ok(stopped)
    }

    fn accept(&mut self, listener: &TcpListener) {
        match listener.accept() {
            Ok((stream, _)) => {
                let prepared = stream.set_nonblocking(true).and(stream.set_nodelay(true));
                match prepared {
                    Ok(()) => self.open(LocalSocket::Tcp(stream)),
                    Err(e) => log::warn!("local connection: {e}"),
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => {
                log::warn!("accept: {e}");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    /// Delivers the last bytes in both directions, then closes the connection.
    fn close(&mut self, mut stopped: bool, listening: bool) -> Result<()> {
        let begun = Instant::now();
        if self.relay.end().is_some() {
            self.relay.cut_all(begun);
        } else if stopped {
            self.relay.close("stopped", begun);
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
