//! The local ports of an access side, and the accepted connections that have no session yet. They
//! wait here while there is no connection to the tunnel service.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::access::Pending;
use aiot_tunnel_proto::session::Lingering;
use aiot_tunnel_proto::Ready;

use super::{log, Forward, Settings};
use crate::net::LocalSocket;
use crate::sys;

/// How long the ports are left alone after a failed accept, for example when there are no
/// descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The listeners, and the local connections that wait.
pub(super) struct Listeners<'a> {
    forwards: Vec<(&'a TcpListener, Arc<str>)>,
    settings: &'a Settings,
    waiting: Vec<Pending<LocalSocket>>,
    /// The local streams of lost connections that still have bytes to deliver.
    lingering: Vec<Lingering<LocalSocket>>,
    /// Until when nothing is accepted. Kept until an accept succeeds.
    paused: Option<Instant>,
}

impl<'a> Listeners<'a> {
    /// # Errors
    /// A listener cannot be made non-blocking.
    pub(super) fn new(forwards: &'a [Forward], settings: &'a Settings) -> io::Result<Self> {
        for forward in forwards {
            forward.listener.set_nonblocking(true)?;
        }
        let forwards = forwards.iter();
        Ok(Listeners {
            forwards: forwards.map(|one| (&one.listener, one.service_type.clone())).collect(),
            settings,
            waiting: Vec::new(),
            lingering: Vec::new(),
            paused: None,
        })
    }

    /// The listeners, for `poll`. None while they are left alone.
    pub(super) fn fds(&self, now: Instant) -> impl Iterator<Item = BorrowedFd<'a>> + '_ {
        let paused = self.paused.is_some_and(|until| now < until);
        let forwards = self.forwards.iter().filter(move |_| !paused);
        forwards.map(|(listener, _)| -> BorrowedFd<'a> { (*listener).as_fd() })
    }

    /// When to look again even if `poll` reports nothing.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let waiting = self.waiting.iter().filter_map(Pending::until).min();
        let paused = self.paused.filter(|until| now < *until);
        let lingering = self.lingering.iter().map(|one| one.deadline(now));
        lingering.chain(waiting).chain(paused).min()
    }

    /// Accepts from the listeners that are ready. `ready` is in the order of [`fds`](Self::fds).
    pub(super) fn accept(&mut self, ready: &[Ready]) {
        let ready = ready.iter().enumerate().filter(|(_, ready)| ready.read);
        for (index, _) in ready {
            let Some((listener, service_type)) = self.forwards.get(index) else { break };
            match listener
                .accept()
                .and_then(|(stream, _)| self.prepare(sys::beyond_standard(stream)?))
            {
                Ok(local) => {
                    self.paused = None;
                    let until = Instant::now() + self.settings.queue_timeout;
                    self.waiting.push(Pending::new(local, service_type.clone(), Some(until)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => {
                    // One line says it until an accept succeeds.
                    if self.paused.is_none() {
                        log::warn!("accept: {e}; trying again");
                    }
                    self.paused = Some(Instant::now() + ACCEPT_PAUSE);
                }
            }
        }
    }

    fn prepare(&self, stream: TcpStream) -> io::Result<LocalSocket> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let local = LocalSocket::Tcp(stream);
        local.keep_alive(self.settings.local_keepalive);
        Ok(local)
    }

    /// Takes the connections that wait.
    pub(super) fn take(&mut self) -> Vec<Pending<LocalSocket>> {
        std::mem::take(&mut self.waiting)
    }

    /// Keeps connections that got no session before the tunnel's connection was lost.
    pub(super) fn give_back(&mut self, pending: Vec<Pending<LocalSocket>>) {
        self.waiting.splice(0..0, pending);
    }

    /// Keeps the local streams of a lost connection.
    pub(super) fn linger(&mut self, lingering: Vec<Lingering<LocalSocket>>) {
        self.lingering.extend(lingering);
    }

    /// Takes the local streams of lost connections.
    pub(super) fn take_lingering(&mut self) -> Vec<Lingering<LocalSocket>> {
        std::mem::take(&mut self.lingering)
    }

    /// Serves the local streams of lost connections, and resets the connections that have waited
    /// for too long.
    pub(super) fn step(&mut self, now: Instant) {
        self.lingering.retain_mut(|lingering| !lingering.step(now, &mut [0; 4096]));
        let before = self.waiting.len();
        self.waiting.retain(|pending| !pending.is_late(now));
        let count = before - self.waiting.len();
        if count > 0 {
            let limit = self.settings.queue_timeout;
            log::error!(
                "{count} local connection(s) were reset: the tunnel service could not be reached \
                 for {limit:?}"
            );
        }
    }
}
