//! The thread of one tunnel. It receives orders from the gateway, and has one `poll` over all
//! connections of the tunnel.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use aiot_tunnel_proto::gateway::{Traffic, Tunnel, TunnelLimits};
use aiot_tunnel_proto::{Ready, Side};
use crossbeam_channel::Receiver;

use super::activity::Record;
use super::log::{LogLimits, TunnelLog};
use super::published::Origins;
use super::{GatewayConnection, MemberStream, TARGET};
use crate::sys::{poll, PollFd, Waker};

/// An order from the gateway to a hub.
pub(super) enum Order {
    /// Adds a connection after its handshake.
    Join {
        side: Side,
        member: Box<GatewayConnection>,
        /// When the tunnel expires.
        expires: Option<Instant>,
        /// Of a published port: where its sessions come from.
        origins: Option<Arc<Origins>>,
    },
    ExpireAt(Option<Instant>),
    /// The limits are other ones.
    Limits(TunnelLimits),
    /// The token of this side is no longer valid.
    Revoke(Side),
    /// The gateway stops.
    Stop,
    /// The tunnel is removed.
    Remove,
}

pub(super) struct Hub {
    name: String,
    tunnel: Tunnel<MemberStream, TunnelLog>,
    log: LogLimits,
    activity: Arc<Record>,
    /// What `activity` knows of.
    counted: Traffic,
    orders: Receiver<Order>,
    waker: Arc<Waker>,
    stopping: bool,
}

impl Hub {
    pub(super) fn new(
        name: String,
        tunnel: Tunnel<MemberStream, TunnelLog>,
        log: LogLimits,
        activity: Arc<Record>,
        orders: Receiver<Order>,
        waker: Arc<Waker>,
    ) -> Self {
        let counted = Traffic::default();
        Hub { name, tunnel, log, activity, counted, orders, waker, stopping: false }
    }

    /// Serves until the gateway stops, or until there is no connection and `may_end` agrees, which is
    /// told when a device was last connected. Stays while it owes the log a count.
    pub(super) fn run(mut self, may_end: impl Fn(&Receiver<Order>, Option<Instant>) -> bool) {
        loop {
            let is_idle = self.tunnel.is_empty() && self.orders.is_empty();
            if is_idle && self.stopping {
                return self.log.report(&self.name, Instant::now(), true);
            }
            let device_left = self.tunnel.device_left();
            if is_idle && self.log.deadline().is_none() && may_end(&self.orders, device_left) {
                return;
            }
            if let Err(e) = self.wait() {
                // The system has no memory, so the tunnel cannot be served. Its next connection
                // gets a new hub.
                log::error!(target: TARGET, "tunnel {:?}: poll: {e}", self.name);
                self.tunnel.stop(Instant::now());
                std::thread::sleep(super::ACCEPT_PAUSE);
            }
            let now = Instant::now();
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order, now);
            }
            self.tunnel.step(now);
            self.count();
            self.log.report(&self.name, now, false);
        }
    }

    /// Blocks until there is something to do, then receives from the connections that are ready.
    fn wait(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let deadline = self.tunnel.deadline(now).into_iter().chain(self.log.deadline()).min();
        let mut fds = vec![PollFd::new(self.waker.as_fd(), true, false)];
        fds.extend(self.tunnel.members().map(|(member, reads)| {
            let stream = &member.transport().stream;
            PollFd::new(stream.as_fd(), reads && member.reads(), member.wants_room(now))
        }));
        poll(&mut fds, deadline)?;
        let ready: Vec<Ready> = fds.iter().map(PollFd::ready).collect();
        drop(fds);
        if ready[0].read {
            self.waker.reset();
        }
        self.tunnel.receive(Instant::now(), &ready[1..]);
        Ok(())
    }

    fn count(&mut self) {
        let traffic = self.tunnel.traffic();
        let more = Traffic {
            to_device: traffic.to_device - self.counted.to_device,
            to_access: traffic.to_access - self.counted.to_access,
        };
        self.counted = traffic;
        self.activity.count(self.tunnel.session_count(), more);
    }

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Join { side, member, expires, origins } => {
                self.tunnel.expire_at(expires);
                self.tunnel.observer_mut().origins = origins;
                self.tunnel.join(side, *member, now);
                self.tunnel.drop_closing(now, |device| device.permit.is_over());
                if self.stopping {
                    self.tunnel.end(now);
                }
            }
            Order::ExpireAt(at) => self.tunnel.expire_at(at),
            Order::Limits(limits) => self.tunnel.set_limits(limits),
            // A published port has no token.
            Order::Revoke(side) => self.tunnel.revoke(side, now, |member| !member.is_own),
            Order::Stop => {
                self.stopping = true;
                self.tunnel.end(now);
            }
            Order::Remove => {
                self.stopping = true;
                self.tunnel.stop(now);
            }
        }
    }
}
