//! The gateway's part of the protocol: the connections of one tunnel, and the sessions between
//! them. Frames go from the device's connection to an access connection and back. The gateway has
//! no local streams.
//!
//! This module does not sleep and reads no clock; its owner does both.
//!
//! A session with flow control waits alone: the gateway keeps what was granted ([`lane`]). A
//! *plain* session, one without flow control, makes the connection wait that feeds it. The device's
//! connection is not read while an access connection with plain sessions is over its high-water
//! mark. An access connection with plain sessions is not read while the device's connection is over
//! its mark.
//!
//! An access connection with plain sessions that takes nothing for the stall timeout is closed with
//! code 1008 if there are other access connections, because it holds them up. Its sessions are
//! released towards the device (code 2), and the others go on.

mod bucket;
mod event;
mod lane;
mod sessions;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::connection::{Connection, Ping, Received, Transport, Upkeep};
use crate::log_limiter::LogLimiter;
use crate::schedule::RoundRobin;
use crate::session::RecentIds;
use crate::websocket::{close, Sender};
use crate::{Ready, Side};

use bucket::Bucket;
pub use event::{Member, RefusalReason, TunnelEvent, TunnelObserver};
use sessions::Session;

/// The high-water mark of a connection, in bytes. While this much waits to be sent to it, the
/// connections that feed it are not read.
pub const HIGH_WATER: usize = 256 * 1024;

/// Times and limits of the gateway's connections. The access side uses the same.
pub const UPKEEP: Upkeep = Upkeep {
    ping: Ping::AfterSilence(Duration::from_secs(30)),
    silence_limit: Duration::from_secs(90),
    shrink_interval: Duration::from_secs(30),
    high_water: HIGH_WATER,
    flood_limit: 4 * HIGH_WATER,
};

/// A connection over its high-water mark is still read, until this many bytes wait for it. So the
/// pings of a peer that reads nothing are heard.
const ANSWER_LIMIT: usize = 2 * HIGH_WATER;

/// Limits of one tunnel.
#[derive(Debug, Clone, Copy)]
pub struct TunnelLimits {
    /// The number of sessions the tunnel may have at once.
    pub sessions: usize,
    /// How long a full access connection may take nothing before it is closed. One that takes
    /// large steps has more time.
    pub stall: Duration,
    /// The bytes of sessions that each direction may carry in a second. `None`: as many as it can.
    pub rate: Option<u64>,
}

/// Bytes of sessions, without the tunnel's own overhead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Passed on to the device.
    pub to_device: u64,
    /// Passed on to access sides.
    pub to_access: u64,
}

impl Traffic {
    fn count(&mut self, to: Side, bytes: usize) {
        match to {
            Side::Device => self.to_device += bytes as u64,
            Side::Access => self.to_access += bytes as u64,
        }
    }
}

/// One tunnel: the device's connection, the access connections, and the sessions between them.
pub struct Tunnel<T: Transport, O> {
    limits: TunnelLimits,
    expires: Option<Instant>,
    device: Option<Connection<T>>,
    /// When a device was last connected.
    device_left: Option<Instant>,
    accesses: BTreeMap<u64, Connection<T>>,
    /// Connections in their closing handshake.
    leaving: Vec<Connection<T>>,
    sessions: HashMap<String, Session>,
    ended: RecentIds,
    next_access: u64,
    /// The next frame id. Frames from several sources meet on one connection, and their ids must
    /// increase there. So the gateway numbers all frames itself, except responses.
    next_frame: u64,
    /// Decides which access connection may feed the device first.
    turns: RoundRobin,
    /// Scratch memory for a header and a payload.
    head: Vec<u8>,
    payload: Vec<u8>,
    /// Counts the turns of the lanes.
    lane_turns: u64,
    traffic: Traffic,
    /// The rates of the two directions.
    to_device: Bucket,
    to_access: Bucket,
    limiter: LogLimiter,
    observer: O,
}

impl<T: Transport, O: TunnelObserver> Tunnel<T, O> {
    /// A tunnel without connections.
    pub fn new(limits: TunnelLimits, observer: O) -> Self {
        Tunnel {
            limits,
            expires: None,
            device: None,
            device_left: None,
            accesses: BTreeMap::new(),
            leaving: Vec::new(),
            sessions: HashMap::new(),
            ended: RecentIds::default(),
            next_access: 1,
            next_frame: 1,
            turns: RoundRobin::default(),
            head: Vec::new(),
            payload: Vec::new(),
            lane_turns: 0,
            traffic: Traffic::default(),
            to_device: Bucket::new(limits.rate),
            to_access: Bucket::new(limits.rate),
            limiter: LogLimiter::default(),
            observer,
        }
    }

    /// Replaces the limits. What is there stays, even if it is more than there may be now.
    pub fn set_limits(&mut self, limits: TunnelLimits) {
        if self.limits.rate != limits.rate {
            self.to_device = Bucket::new(limits.rate);
            self.to_access = Bucket::new(limits.rate);
        }
        self.limits = limits;
    }

    /// Whether the tunnel has no connection, not even one in its closing handshake.
    pub fn is_empty(&self) -> bool {
        self.members().next().is_none()
    }

    /// Sets when the tunnel expires. At that time its connections are closed with code 4001.
    /// `None`: never.
    pub fn expire_at(&mut self, at: Option<Instant>) {
        self.expires = at;
    }

    /// When a device was last connected, for those who ask for one. `None`: not since the gateway
    /// started.
    pub fn device_left(&self) -> Option<Instant> {
        self.device_left
    }

    /// Sets when a device was last connected, if it was before this value was made.
    pub fn set_device_left(&mut self, at: Option<Instant>) {
        self.device_left = at;
    }

    /// Adds a connection. A new device connection replaces the old one, which is closed.
    pub fn join(&mut self, side: Side, member: Connection<T>, now: Instant) {
        match side {
            Side::Device => {
                if let Some(mut old) = self.device.take() {
                    let reason = format!("{}{}", close::REPLACED_BY, member.transport().peer());
                    old.close_saying(close::NORMAL, reason, now);
                    self.leave_device(old, now);
                }
                let from = &member.transport().peer();
                self.observer.event(TunnelEvent::DeviceConnected { from });
                self.device = Some(member);
            }
            Side::Access => {
                let key = next(&mut self.next_access);
                let from = &member.transport().peer();
                self.observer.event(TunnelEvent::AccessConnected { key, from });
                self.accesses.insert(key, member);
            }
        }
    }

    /// Drops connections in their closing handshake, the oldest first, as long as the transport of the
    /// device's connection says that there are too many.
    pub fn drop_closing(&mut self, now: Instant, are_too_many: impl Fn(&T) -> bool) {
        // The one that was replaced just now is told so.
        self.leaving.iter_mut().for_each(|member| member.flush(now));
        let Some(device) = &self.device else { return };
        while !self.leaving.is_empty() && are_too_many(device.transport()) {
            self.leaving.remove(0);
        }
    }

    /// The number of sessions that are open or being opened.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// What was passed on so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The number of ended sessions whose ids are remembered.
    pub fn remembered(&self) -> usize {
        self.ended.len()
    }

    /// The observer.
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.observer
    }

    /// Closes the connections of one side with code 4001, because its token is no longer valid: those
    /// that `has_token` says have shown it.
    pub fn revoke(&mut self, side: Side, now: Instant, has_token: impl Fn(&T) -> bool) {
        self.observer.event(TunnelEvent::Revoked(side));
        let why = "the token is no longer valid";
        match side {
            Side::Device => {
                self.device.iter_mut().for_each(|device| device.close(close::EXPIRED, why, now));
            }
            Side::Access => {
                let accesses = self.accesses.values_mut();
                let accesses = accesses.filter(|access| has_token(access.transport()));
                accesses.for_each(|access| access.close(close::EXPIRED, why, now));
            }
        }
        self.dismiss(now);
    }

    /// The gateway ends, and may come back: releases every session with code 4, then does as
    /// [`stop`](Self::stop).
    pub fn end(&mut self, now: Instant) {
        self.release_for_update();
        self.stop(now);
    }

    /// Closes every connection with code 1001. The closing handshakes still need
    /// [`step`](Self::step).
    pub fn stop(&mut self, now: Instant) {
        self.close_all(close::GOING_AWAY, "the gateway stops", now);
    }

    /// The gateway no longer has the tunnel. Does as [`stop`](Self::stop), and tells the peers why.
    pub fn remove(&mut self, now: Instant) {
        for member in self.device.iter_mut().chain(self.accesses.values_mut()) {
            member.close_saying(close::GOING_AWAY, close::REMOVED.to_owned(), now);
        }
        self.dismiss(now);
    }

    /// The tunnel's connections. The flag tells whether the connection is to be read now.
    pub fn members(&self) -> impl Iterator<Item = (&Connection<T>, bool)> {
        let read_device = self.reads_device();
        let device = self.device.iter().map(move |member| (member, read_device));
        let accesses = self.accesses.iter();
        let accesses = accesses.map(|(key, member)| (member, self.reads_access(*key, member)));
        device.chain(accesses).chain(self.leaving.iter().map(|member| (member, true)))
    }

    /// Reads from the connections that are ready. `ready` is in the order of
    /// [`members`](Self::members).
    pub fn receive(&mut self, now: Instant, ready: &[Ready]) {
        let reads: Vec<bool> = self.members().map(|(_, reads)| reads).collect();
        let members = self.device.iter_mut().chain(self.accesses.values_mut());
        for ((member, reads), ready) in members.chain(&mut self.leaving).zip(reads).zip(ready) {
            member.ready(ready.read, ready.write);
            if reads && !member.has_messages() {
                member.receive(now, usize::MAX);
            }
        }
    }

    /// Processes the received messages and the deadlines, then writes what the connections take.
    pub fn step(&mut self, now: Instant) {
        if self.expires.is_some_and(|at| now >= at) {
            self.expires = None;
            self.observer.event(TunnelEvent::Expired);
            self.close_all(close::EXPIRED, "expired", now);
        }
        self.to_device.fill(now);
        self.to_access.fill(now);
        self.pump_device(now);
        self.pump_accesses(now);
        self.pass_lanes();
        self.pass_credits();
        for member in &mut self.leaving {
            while member.peek(now).is_some() {
                member.consume();
            }
        }
        self.give_up_unanswered(now);
        if let Some(count) = self.limiter.tick(now) {
            self.observer.event(TunnelEvent::LeftOut(count));
        }
        self.tick(now);
        self.flush(now);
        self.part_with_stalled(now);
        self.dismiss(now);
    }

    fn reads_device(&self) -> bool {
        self.device.as_ref().is_none_or(has_room_for_answers) && self.accesses_have_room()
    }

    /// Whether no access connection keeps the device from being read.
    fn accesses_have_room(&self) -> bool {
        let is_full = |(key, member): (&u64, &Connection<T>)| {
            (member.over_high_water() || !self.to_access.is_open()) && self.has_plain_session(*key)
        };
        !self.accesses.iter().any(is_full)
    }

    fn reads_access(&self, key: u64, member: &Connection<T>) -> bool {
        has_room_for_answers(member) && self.device_has_room(key)
    }

    /// Whether the device's connection does not keep this access connection from being read.
    fn device_has_room(&self, key: u64) -> bool {
        let is_full = !self.to_device.is_open()
            || self.device.as_ref().is_some_and(Connection::over_high_water);
        !(is_full && self.has_plain_session(key))
    }

    /// Whether an access connection has a session that cannot wait alone.
    fn has_plain_session(&self, key: u64) -> bool {
        self.sessions.values().any(|session| session.access == key && session.is_plain())
    }

    /// Whether bytes wait in a lane although their connection has room.
    fn has_work(&self) -> bool {
        self.sessions.values().any(|session| {
            let has_room = |to| self.is_open(to) && self.member(session, to).is_some_and(has_room);
            let waits = |to| session.lane(to).is_waiting() || session.releases_to(to);
            [Side::Device, Side::Access].into_iter().any(|to| waits(to) && has_room(to))
        })
    }

    /// Whether the rate of this direction allows more at present.
    fn is_open(&self, to: Side) -> bool {
        match to {
            Side::Device => self.to_device.is_open(),
            Side::Access => self.to_access.is_open(),
        }
    }

    /// The connection to one end of a session.
    fn member(&self, session: &Session, side: Side) -> Option<&Connection<T>> {
        match side {
            Side::Device => self.device.as_ref(),
            Side::Access => self.accesses.get(&session.access),
        }
    }

    /// When [`step`](Self::step) has to be called even if no connection is ready.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.has_work() {
            return Some(now);
        }
        let members = self.members().map(|(member, reads)| member.deadline(now, reads));
        let holds_up = |(key, _): &(&u64, &Connection<T>)| self.holds_up_others(**key);
        let accesses = self.accesses.iter().filter(holds_up);
        let stalls = accesses.filter_map(|(_, member)| member.stalls_at(self.limits.stall));
        let sessions = self.sessions.values().filter_map(|session| session.deadline);
        let rates = [self.to_device.opens_at(), self.to_access.opens_at()].into_iter().flatten();
        // An idle tunnel does not wake up for it.
        let rates = rates.filter(|_| !self.sessions.is_empty());
        let own = sessions.chain(self.expires).chain(self.limiter.deadline()).chain(rates);
        members.chain(stalls).chain(own).min()
    }

    fn close_all(&mut self, code: u16, reason: &'static str, now: Instant) {
        for member in self.device.iter_mut().chain(self.accesses.values_mut()) {
            member.close(code, reason, now);
        }
        self.dismiss(now);
    }

    fn pump_device(&mut self, now: Instant) {
        let Some(mut device) = self.device.take() else { return };
        while has_room_for_answers(&device) && self.accesses_have_room() {
            let Some((received, sender)) = device.peek(now) else { break };
            match received {
                Received::Frame(frame, _) => self.take_from_device(&frame, sender, now),
                Received::Dropped { what, loss } => {
                    self.limited(now, TunnelEvent::Dropped(Member::Device, &what));
                    if let Some(loss) = loss {
                        self.lost_by_device(&loss, sender, now);
                    }
                }
                Received::Pong => {}
            }
            device.consume();
        }
        self.device = Some(device);
    }

    /// Lets the access connections go first in turn. Otherwise one that fills the device's buffer
    /// each time would starve the others.
    fn pump_accesses(&mut self, now: Instant) {
        let keys = self.turns.turn(self.accesses.keys().copied().collect());
        for key in keys {
            let Some(mut access) = self.accesses.remove(&key) else { continue };
            while has_room_for_answers(&access) && self.device_has_room(key) {
                let Some((received, sender)) = access.peek(now) else { break };
                match received {
                    Received::Frame(frame, _) => self.take_from_access(key, &frame, sender, now),
                    Received::Dropped { what, loss } => {
                        self.limited(now, TunnelEvent::Dropped(Member::Access(key), &what));
                        if let Some(loss) = loss {
                            self.lost_by_access(key, &loss, sender, now);
                        }
                    }
                    Received::Pong => {}
                }
                access.consume();
            }
            self.accesses.insert(key, access);
        }
    }

    /// Reports an event that a peer can cause as often as it likes.
    fn limited(&mut self, now: Instant, event: TunnelEvent<'_>) {
        if self.limiter.permits(now) {
            self.observer.event(event);
        }
    }

    fn tick(&mut self, now: Instant) {
        let reads: Vec<bool> = self.members().map(|(_, reads)| reads).collect();
        let members = self.device.iter_mut().chain(self.accesses.values_mut());
        let mut shrunk = false;
        for (member, reads) in members.chain(&mut self.leaving).zip(reads) {
            shrunk |= member.tick(now, reads).shrunk;
        }
        if shrunk {
            self.shrink_lanes();
            self.payload = Vec::new();
        }
    }

    fn flush(&mut self, now: Instant) {
        let members = self.device.iter_mut().chain(self.accesses.values_mut());
        members.chain(&mut self.leaving).for_each(|member| member.flush(now));
    }

    /// Whether a full access connection keeps others from being served.
    fn holds_up_others(&self, key: u64) -> bool {
        self.accesses.len() > 1 && self.has_plain_session(key)
    }

    fn part_with_stalled(&mut self, now: Instant) {
        let keys: Vec<u64> = self.accesses.keys().copied().collect();
        for key in keys.into_iter().filter(|key| self.holds_up_others(*key)).collect::<Vec<_>>() {
            let Some(member) = self.accesses.get_mut(&key) else { continue };
            if member.is_stalled(now, self.limits.stall) {
                self.observer.event(TunnelEvent::Stalled(Member::Access(key)));
                member.close(close::POLICY, "it takes nothing and holds up the others", now);
            }
        }
    }

    /// Moves connections that are no longer open out of the tunnel and releases their sessions.
    fn dismiss(&mut self, now: Instant) {
        if let Some(device) = self.device.take_if(|device| !device.is_open()) {
            self.leave_device(device, now);
        }
        let closed = self.accesses.iter().filter(|(_, member)| !member.is_open());
        for key in closed.map(|(key, _)| *key).collect::<Vec<_>>() {
            let Some(member) = self.accesses.remove(&key) else { continue };
            let why = &member_end(&member);
            self.observer.event(TunnelEvent::AccessLeft { key, why });
            self.leaving.push(member);
            self.release_all(|session| session.access == key);
        }
        self.flush(now);
        self.leaving.retain(|member| !member.is_gone());
    }

    fn leave_device(&mut self, device: Connection<T>, now: Instant) {
        self.device_left = Some(now);
        self.observer.event(TunnelEvent::DeviceLeft { why: &member_end(&device) });
        self.leaving.push(device);
        self.release_all(|_| true);
    }
}

fn open_sender<T: Transport>(member: Option<&mut Connection<T>>) -> Option<&mut Sender> {
    member.filter(|member| member.is_open()).map(Connection::sender)
}

/// Whether a connection is below its high-water mark and takes frames.
fn has_room<T: Transport>(member: &Connection<T>) -> bool {
    member.is_open() && !member.over_high_water()
}

/// Whether the other end is in this process.
fn is_near<T: Transport>(member: &Connection<T>) -> bool {
    member.transport().is_near()
}

fn has_room_for_answers<T: Transport>(member: &Connection<T>) -> bool {
    member.waiting() <= ANSWER_LIMIT
}

fn next(counter: &mut u64) -> u64 {
    *counter += 1;
    *counter - 1
}

fn member_end<T: Transport>(member: &Connection<T>) -> String {
    member.end().map(ToString::to_string).unwrap_or_default()
}
