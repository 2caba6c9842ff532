//! A tunnel's thread: orders from the gateway, and one `poll` over all of its connections.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::tunnel::Tunnel;
use super::{Side, TARGET};
use crate::peer::Peer;
use crate::sys::{poll, PollFd, Waker};

/// What a hub is told.
pub(super) enum Order {
    /// A connection that passed its handshake, and when the tunnel expires.
    Join(Side, Box<Peer>, Option<Instant>),
    ExpireAt(Option<Instant>),
    Stop,
}

pub(super) struct Hub {
    tunnel: Tunnel,
    orders: Receiver<Order>,
    waker: Arc<Waker>,
    stopping: bool,
}

impl Hub {
    pub(super) fn new(tunnel: Tunnel, orders: Receiver<Order>, waker: Arc<Waker>) -> Self {
        Hub { tunnel, orders, waker, stopping: false }
    }

    /// Serves until told to stop, or until no connection is left and `may_end` agrees.
    pub(super) fn run(mut self, may_end: impl Fn(&Receiver<Order>) -> bool) {
        loop {
            let is_idle = self.tunnel.is_empty() && self.orders.is_empty();
            if is_idle && (self.stopping || may_end(&self.orders)) {
                return;
            }
            if let Err(e) = self.wait() {
                // Out of memory; what is there to serve with? A new hub comes with the next one.
                log::error!(target: TARGET, "tunnel {:?}: poll: {e}", self.tunnel.name());
                self.tunnel.stop(Instant::now());
                std::thread::sleep(super::ACCEPT_PAUSE);
            }
            let now = Instant::now();
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order, now);
            }
            self.tunnel.step(now);
        }
    }

    /// Sleeps until there is something to do, and receives from who is ready.
    fn wait(&mut self) -> io::Result<()> {
        let deadline = self.tunnel.deadline(Instant::now());
        let mut fds = vec![PollFd::new(self.waker.as_fd(), true, false)];
        fds.extend(self.tunnel.members().map(|(peer, reads)| peer.poll_fd(reads)));
        poll(&mut fds, deadline)?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.ready().read).collect();
        drop(fds);
        if ready[0] {
            self.waker.reset();
        }
        self.tunnel.receive(Instant::now(), &ready[1..]);
        Ok(())
    }

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Join(side, peer, expires) => {
                self.tunnel.expire_at(expires);
                self.tunnel.join(side, *peer, now);
                if self.stopping {
                    self.tunnel.stop(now);
                }
            }
            Order::ExpireAt(at) => self.tunnel.expire_at(at),
            Order::Stop => {
                self.stopping = true;
                self.tunnel.stop(now);
            }
        }
    }
}
