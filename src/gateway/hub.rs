//! The thread of one tunnel. It receives orders from the gateway, and has one `poll` over all
//! connections of the tunnel, and over the clients of its published ports.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::gateway::{Traffic, Tunnel, TunnelLimits};
use aiot_tunnel_proto::{Ready, Side};
use crossbeam_channel::Receiver;

use super::activity::Record;
use super::log::{LogLimits, TunnelLog};
use super::published::{Origins, Publisher};
use super::{GatewayConnection, MemberEnd, MemberStream, TARGET};
use crate::sys::{PollSet, Waker};

/// How long to wait at most. Without connections there is no deadline.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// How often ports and tunnel exchange bytes before the next `poll`. An answer to what a client has sent
/// takes two: the bytes, and the credit for more of them.
const EXCHANGES: usize = 2;

/// An order from the gateway to a hub.
pub(super) enum Order {
    /// Adds a connection after its handshake.
    Join {
        side: Side,
        member: Box<GatewayConnection>,
        /// When the tunnel expires.
        expires: Option<Instant>,
        /// Of a published port: the port, and where its sessions come from.
        port: Option<(Box<Publisher>, Arc<Origins>)>,
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
    /// The published ports that are connected.
    ports: Vec<Publisher>,
    polled: PollSet,
    ready: Vec<Ready>,
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
        Hub {
            name,
            tunnel,
            log,
            activity,
            counted,
            orders,
            waker,
            stopping: false,
            ports: Vec::new(),
            polled: PollSet::default(),
            ready: Vec::new(),
        }
    }

    /// Serves until the gateway stops, or until there is no connection and `may_end` agrees, which is
    /// told when a device was last connected. Stays while it owes the log a count.
    pub(super) fn run(mut self, may_end: impl Fn(&Receiver<Order>, Option<Instant>) -> bool) {
        loop {
            let has_members = !self.tunnel.is_empty() || !self.ports.is_empty();
            let is_idle = !has_members && self.orders.is_empty();
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
            self.exchange(now);
            self.send_home(now);
            self.count();
            self.log.report(&self.name, now, false);
        }
    }

    /// Blocks until there is something to do. Then serves the published ports, and receives from the
    /// connections that are ready.
    fn wait(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let Hub { tunnel, ports, polled, waker, stopping, .. } = self;
        polled.clear();
        polled.push(waker.as_fd(), true, false);
        let mut has_work = false;
        let mut members = 0;
        for (member, reads) in tunnel.members() {
            let (reads, wants_room) = (reads && member.reads(), member.wants_room(now));
            match &member.transport().stream {
                MemberEnd::Network(stream) => polled.push(stream.as_fd(), reads, wants_room),
                MemberEnd::Port(pipe) => {
                    has_work |= reads && pipe.is_readable() || wants_room && pipe.is_writable();
                    polled.push(waker.as_fd(), false, false);
                }
            }
            members += 1;
        }
        let deadline = tunnel.deadline(now).into_iter().chain(self.log.deadline());
        let mut deadline = deadline.fold(now + LONGEST_WAIT, Instant::min);
        let mut registered = Vec::with_capacity(ports.len());
        for port in ports.iter() {
            let at = port.deadline(now).unwrap_or(deadline);
            registered.push((port.register(polled, now, *stopping), at));
            deadline = deadline.min(at);
        }
        let ready = polled.poll(if has_work { now } else { deadline })?;
        self.ready.clear();
        self.ready.extend(&ready[1..=members]);
        if ready[0].read {
            waker.reset();
        }
        let now = Instant::now();
        let mut at = 1 + members;
        for (port, (count, deadline)) in ports.iter_mut().zip(registered) {
            let ready = &ready[at..at + count];
            if now >= deadline || ready.iter().any(|ready| ready.read || ready.write) {
                port.serve(ready, now, *stopping);
            }
            at += count;
        }
        self.receive(now);
        Ok(())
    }

    /// Receives from the connections that are ready, and from those of the published ports.
    fn receive(&mut self, now: Instant) {
        for ((member, reads), ready) in self.tunnel.members().zip(&mut self.ready) {
            if let MemberEnd::Port(pipe) = &member.transport().stream {
                ready.read = reads && member.reads() && pipe.is_readable();
                ready.write = member.wants_room(now) && pipe.is_writable();
            }
        }
        self.tunnel.receive(now, &self.ready);
    }

    /// Passes on between the published ports and the tunnel what the last step brought.
    fn exchange(&mut self, now: Instant) {
        for _ in 0..EXCHANGES {
            let mut has_moved = false;
            for port in self.ports.iter_mut().filter(|port| port.has_input()) {
                port.exchange(&[], now);
                port.close_idle(now);
                has_moved = true;
            }
            let is_readable = |stream: &MemberStream| match &stream.stream {
                MemberEnd::Port(pipe) => pipe.is_readable(),
                MemberEnd::Network(_) => false,
            };
            let mut members = self.tunnel.members();
            if !has_moved || !members.any(|(member, _)| is_readable(member.transport())) {
                return;
            }
            drop(members);
            self.ready.iter_mut().for_each(|ready| *ready = Ready::default());
            self.ready.resize(self.tunnel.members().count(), Ready::default());
            self.receive(now);
            self.tunnel.step(now);
        }
    }

    /// Sends the ports home whose connections are over.
    fn send_home(&mut self, now: Instant) {
        self.ports
            .extract_if(.., |port| port.wants_home())
            .for_each(|port| Box::new(port).go_home(now));
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
            Order::Join { side, member, expires, port } => {
                self.tunnel.expire_at(expires);
                let (port, origins) = port.unzip();
                self.ports.extend(port.map(|port| *port));
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
            Order::Revoke(side) => self.tunnel.revoke(side, now, |member| !member.is_port()),
            Order::Stop => {
                self.stopping = true;
                self.tunnel.end(now);
            }
            Order::Remove => {
                self.stopping = true;
                self.tunnel.remove(now);
            }
        }
    }
}
