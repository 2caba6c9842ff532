//! The gateway's part of the protocol: the connections of one tunnel, and the sessions between
//! them. Frames go from the device's connection to an access connection and back. The gateway has
//! no local streams.
//!
//! This module does not sleep and reads no clock; its owner does both. The protocol has no flow
//! control per session. So the device's connection is not read while an access connection is over
//! its high-water mark, and access connections are not read while the device's connection is. An
//! access connection that stays full and takes next to nothing for the stall timeout is closed with
//! code 1008. Its sessions are released towards the device (code 2), and the other access
//! connections go on. A device has more time, because it may wait for its own services: see
//! `DEVICE_STALL`.

mod event;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::connection::{Connection, Ping, Received, Transport, Upkeep};
use crate::frame::{
    reason, release, response, status, write_release, write_response, Frame, FrameType,
    HeaderTemplate, Status, MAX_NAME,
};
use crate::log_limiter::LogLimiter;
use crate::schedule::RoundRobin;
use crate::session::RecentIds;
use crate::websocket::{close, Sender};
use crate::{Ready, Side};

pub use event::{TunnelEvent, TunnelObserver};

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

/// How long a device may take to answer a session_create. Then the session is refused.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// An access connection over its high-water mark is still read, until this many bytes wait for it.
const ACCESS_LIMIT: usize = 2 * HIGH_WATER;
/// How long a full device connection may take next to nothing before it is closed. A device
/// releases sessions whose services stall, by default after ten seconds each, and reads nothing
/// meanwhile.
const DEVICE_STALL: Duration = Duration::from_secs(60);

struct Session {
    access: u64,
    /// The frame id of the access side's session_create. The response carries it.
    frame_id: u64,
    service_type: String,
    /// When an unanswered session_create counts as refused. `None` once it is answered.
    deadline: Option<Instant>,
    /// The header of the session's data frames, in either direction. The gateway writes its own
    /// header and does not pass on the one it received: if two JSON parsers disagree about a header
    /// (for example about field names in another case), the two ends must not read different things
    /// from it.
    data: HeaderTemplate,
}

/// Limits of one tunnel.
#[derive(Debug, Clone, Copy)]
pub struct TunnelLimits {
    /// The number of sessions the tunnel may have at once.
    pub sessions: usize,
    /// How long a full access connection may take next to nothing before it is closed.
    pub stall: Duration,
}

/// One tunnel: the device's connection, the access connections, and the sessions between them.
pub struct Tunnel<T: Transport, O> {
    limits: TunnelLimits,
    expires: Option<Instant>,
    device: Option<Connection<T>>,
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
    /// Scratch memory for a header.
    head: Vec<u8>,
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
            accesses: BTreeMap::new(),
            leaving: Vec::new(),
            sessions: HashMap::new(),
            ended: RecentIds::default(),
            next_access: 1,
            next_frame: 1,
            turns: RoundRobin::default(),
            head: Vec::new(),
            limiter: LogLimiter::default(),
            observer,
        }
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

    /// Adds a connection. A new device connection replaces the old one, which is closed.
    pub fn join(&mut self, side: Side, member: Connection<T>, now: Instant) {
        match side {
            Side::Device => {
                if let Some(mut old) = self.device.take() {
                    let reason = format!("{}{}", close::REPLACED_BY, member.transport().peer());
                    old.close_saying(close::NORMAL, reason, now);
                    self.leave_device(old);
                }
                self.observer.event(TunnelEvent::DeviceConnected);
                self.device = Some(member);
            }
            Side::Access => {
                let key = next(&mut self.next_access);
                self.observer.event(TunnelEvent::AccessConnected(key));
                self.accesses.insert(key, member);
            }
        }
    }

    /// The number of sessions that are open or being opened.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The number of ended sessions whose ids are remembered.
    pub fn remembered(&self) -> usize {
        self.ended.len()
    }

    /// Closes every connection with code 1001. The closing handshakes still need
    /// [`step`](Self::step).
    pub fn stop(&mut self, now: Instant) {
        self.close_all(close::GOING_AWAY, "the gateway stops", now);
    }

    /// The tunnel's connections. The flag tells whether the connection is to be read now.
    pub fn members(&self) -> impl Iterator<Item = (&Connection<T>, bool)> {
        let (read_device, read_accesses) = (self.reads_device(), self.reads_accesses());
        let device = self.device.iter().map(move |member| (member, read_device));
        let accesses = self.accesses.values();
        let accesses =
            accesses.map(move |member| (member, read_accesses && !over_access_limit(member)));
        device.chain(accesses).chain(self.leaving.iter().map(|member| (member, true)))
    }

    /// Reads from the connections that are ready. `ready` is in the order of
    /// [`members`](Self::members).
    pub fn receive(&mut self, now: Instant, ready: &[Ready]) {
        let (read_device, read_accesses) = (self.reads_device(), self.reads_accesses());
        let device = self.device.iter_mut().map(|member| (member, read_device));
        let accesses = self.accesses.values_mut().map(|member| {
            let reads = read_accesses && !over_access_limit(member);
            (member, reads)
        });
        let leaving = self.leaving.iter_mut().map(|member| (member, true));
        for ((member, reads), ready) in device.chain(accesses).chain(leaving).zip(ready) {
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
        self.pump_device(now);
        self.pump_accesses(now);
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

    /// The device is read only while it and every access connection are below their high-water
    /// marks.
    fn reads_device(&self) -> bool {
        !self.accesses.values().any(Connection::over_high_water)
            && !self.device.as_ref().is_some_and(Connection::over_high_water)
    }

    fn reads_accesses(&self) -> bool {
        !self.device.as_ref().is_some_and(Connection::over_high_water)
    }

    /// When [`step`](Self::step) has to be called even if no connection is ready.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let members = self.members().map(|(member, reads)| member.deadline(now, reads));
        let stalls =
            self.accesses.values().filter_map(|member| member.stalls_at(self.limits.stall));
        let device_stalls = self.device.iter().filter_map(|member| member.stalls_at(DEVICE_STALL));
        let sessions = self.sessions.values().filter_map(|session| session.deadline);
        let own = sessions.chain(self.expires).chain(self.limiter.deadline());
        members.chain(stalls).chain(device_stalls).chain(own).min()
    }

    fn close_all(&mut self, code: u16, reason: &'static str, now: Instant) {
        for member in self.device.iter_mut().chain(self.accesses.values_mut()) {
            member.close(code, reason, now);
        }
        self.dismiss(now);
    }

    fn pump_device(&mut self, now: Instant) {
        let Some(mut device) = self.device.take() else { return };
        while !device.over_high_water() && self.reads_device() {
            let Some((received, sender)) = device.peek(now) else { break };
            match received {
                Received::Frame(frame, _) => self.take_from_device(&frame, sender, now),
                Received::Dropped { what, lossy } => {
                    self.limited(now, TunnelEvent::Dropped(Side::Device, &what));
                    if let Some(frame) = lossy {
                        self.lost_by_device(&frame.session_id, sender, now);
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
            while !over_access_limit(&access) && self.reads_accesses() {
                let Some((received, sender)) = access.peek(now) else { break };
                match received {
                    Received::Frame(frame, _) => self.take_from_access(key, &frame, sender, now),
                    Received::Dropped { what, lossy } => {
                        self.limited(now, TunnelEvent::Dropped(Side::Access, &what));
                        if let Some(frame) = lossy {
                            self.lost_by_access(key, &frame.session_id, sender, now);
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

    fn take_from_device(&mut self, frame: &Frame<'_>, device: &mut Sender, now: Instant) {
        let id = &*frame.session_id;
        let Some(session) = self.sessions.get_mut(id) else {
            if frame.frame_type == FrameType::DataTransport {
                self.report_unknown(id, release::ACCESS_LOST, device, now);
            }
            return;
        };
        // No frame may follow a close frame.
        let access = self.accesses.get_mut(&session.access);
        let Some(access) = open_sender(access) else { return };
        match frame.frame_type {
            FrameType::DataTransport => {
                let frame_id = next(&mut self.next_frame);
                session.data.write(frame_id, &mut self.head);
                access.binary(&self.head, frame.payload);
            }
            FrameType::SessionRelease => {
                if session.deadline.is_some() {
                    // The session is not open yet. The access side waits for a response and cannot
                    // release it.
                    let msg = status(response::REFUSED, "the device released it unanswered");
                    respond(access, id, session, &msg);
                } else {
                    let frame_id = next(&mut self.next_frame);
                    write_release(access, id, frame_id, frame.payload);
                }
                self.observer.event(TunnelEvent::Released(Side::Device, id));
                self.end(id);
            }
            FrameType::CommonResponse => {
                // Only the first response answers the session_create. Further ones are dropped.
                if session.deadline.take().is_none() {
                    return;
                }
                respond(access, id, session, frame.payload);
                let status = Status::parse(frame.payload);
                if status.as_ref().is_none_or(|status| status.code != 0) {
                    let why = status.map_or("an answer without a code".to_owned(), |s| s.msg);
                    self.observer.event(TunnelEvent::DeviceRefused { id, why: &why });
                    self.end(id);
                }
            }
            FrameType::SessionCreate => {
                self.limited(now, TunnelEvent::CreateFromDevice);
            }
        }
    }

    fn take_from_access(&mut self, key: u64, frame: &Frame<'_>, access: &mut Sender, now: Instant) {
        if frame.frame_type == FrameType::SessionCreate {
            return self.create(key, frame, access, now);
        }
        let id = &*frame.session_id;
        let Some(session) = self.sessions.get(id).filter(|session| session.access == key) else {
            if frame.frame_type == FrameType::DataTransport {
                self.report_unknown(id, release::DEVICE_LOST, access, now);
            }
            return;
        };
        let Some(device) = open_sender(self.device.as_mut()) else { return };
        match frame.frame_type {
            FrameType::DataTransport => {
                let frame_id = next(&mut self.next_frame);
                session.data.write(frame_id, &mut self.head);
                device.binary(&self.head, frame.payload);
            }
            FrameType::SessionRelease => {
                let frame_id = next(&mut self.next_frame);
                write_release(device, id, frame_id, frame.payload);
                self.observer.event(TunnelEvent::Released(Side::Access, id));
                self.end(id);
            }
            FrameType::CommonResponse | FrameType::SessionCreate => {}
        }
    }

    fn lost_by_device(&mut self, id: &str, device: &mut Sender, now: Instant) {
        let Some(session) = self.sessions.get(id) else {
            return self.report_unknown(id, release::ACCESS_LOST, device, now);
        };
        self.observer.event(TunnelEvent::Cut { id, why: reason::FRAME_TOO_LONG });
        let access = self.accesses.get_mut(&session.access);
        cut(id, session, open_sender(access), Some(device), &mut self.next_frame);
        self.end(id);
    }

    fn lost_by_access(&mut self, key: u64, id: &str, access: &mut Sender, now: Instant) {
        let Some(session) = self.sessions.get(id).filter(|session| session.access == key) else {
            return self.report_unknown(id, release::DEVICE_LOST, access, now);
        };
        self.observer.event(TunnelEvent::Cut { id, why: reason::FRAME_TOO_LONG });
        let device = open_sender(self.device.as_mut());
        cut(id, session, Some(access), device, &mut self.next_frame);
        self.end(id);
    }

    fn create(&mut self, access_key: u64, frame: &Frame<'_>, access: &mut Sender, now: Instant) {
        let Some(frame_id) = frame.frame_id else {
            return self.limited(now, TunnelEvent::Incomplete);
        };
        let too_long = frame.service_type.len() > MAX_NAME;
        let service_type = if too_long { "" } else { &*frame.service_type };
        let id = format!("{:032x}", rand::random::<u128>());
        let session = Session {
            access: access_key,
            frame_id,
            service_type: service_type.to_owned(),
            deadline: Some(now + RESPONSE_TIMEOUT),
            data: HeaderTemplate::new(FrameType::DataTransport, &id, None),
        };
        let mut refuse = |access: &mut Sender, code, msg: &str| {
            if self.limiter.permits(now) {
                self.observer.event(TunnelEvent::Refused(msg));
            }
            respond(access, "", &session, &status(code, msg));
        };
        if too_long {
            // The device could not read a header of this length and would never answer.
            return refuse(access, response::REFUSED, "the service type is over 127 bytes long");
        }
        if self.sessions.len() >= self.limits.sessions {
            let msg = format!("the tunnel has {} sessions already", self.limits.sessions);
            return refuse(access, response::SESSION_LIMIT, &msg);
        }
        let Some(device) = open_sender(self.device.as_mut()) else {
            return refuse(access, response::REFUSED, "the device is not connected");
        };
        HeaderTemplate::new(FrameType::SessionCreate, &id, Some(&session.service_type))
            .write(next(&mut self.next_frame), &mut self.head);
        device.binary(&self.head, &[]);
        let service_type = &*session.service_type;
        self.observer.event(TunnelEvent::SessionCreated { id: &id, service_type });
        self.sessions.insert(id, session);
    }

    /// Handles data for an unknown session. Tells the sender once that the session does not exist.
    fn report_unknown(&mut self, id: &str, code: u8, sender: &mut Sender, now: Instant) {
        if id.is_empty() || self.ended.contains(id) {
            return;
        }
        self.limited(now, TunnelEvent::UnknownSession(id));
        let frame_id = next(&mut self.next_frame);
        write_release(sender, id, frame_id, &status(code, reason::UNKNOWN_SESSION));
        self.ended.push(id);
    }

    fn end(&mut self, id: &str) {
        self.sessions.remove(id);
        self.ended.push(id);
    }

    fn ids_of(&self, concerned: impl Fn(&Session) -> bool) -> Vec<String> {
        let concerned = self.sessions.iter().filter(|(_, session)| concerned(session));
        concerned.map(|(id, _)| id.clone()).collect()
    }

    fn give_up_unanswered(&mut self, now: Instant) {
        let late = |session: &Session| session.deadline.is_some_and(|deadline| now >= deadline);
        for id in self.ids_of(late) {
            let Some(session) = self.sessions.get(&id) else { continue };
            let why = "timeout: the device did not answer";
            self.observer.event(TunnelEvent::DeviceRefused { id: &id, why });
            if let Some(access) = open_sender(self.accesses.get_mut(&session.access)) {
                respond(access, &id, session, &status(response::REFUSED, why));
            }
            self.end(&id);
            if let Some(device) = open_sender(self.device.as_mut()) {
                let msg = status(release::BY_ACCESS, "answered too late");
                write_release(device, &id, next(&mut self.next_frame), &msg);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        let (read_device, read_accesses) = (self.reads_device(), self.reads_accesses());
        if let Some(device) = &mut self.device {
            device.tick(now, read_device);
        }
        for member in self.accesses.values_mut() {
            member.tick(now, read_accesses && !over_access_limit(member));
        }
        for member in &mut self.leaving {
            member.tick(now, true);
        }
    }

    fn flush(&mut self, now: Instant) {
        let members = self.device.iter_mut().chain(self.accesses.values_mut());
        members.chain(&mut self.leaving).for_each(|member| member.flush(now));
    }

    fn part_with_stalled(&mut self, now: Instant) {
        let device = self.device.iter_mut().map(|member| (member, DEVICE_STALL));
        let accesses = self.accesses.values_mut().map(|member| (member, self.limits.stall));
        for (member, limit) in device.chain(accesses) {
            if member.is_stalled(now, limit) {
                self.observer.event(TunnelEvent::Stalled);
                member.close(close::POLICY, "it takes nothing and holds up the others", now);
            }
        }
    }

    /// Moves connections that are no longer open out of the tunnel and releases their sessions.
    fn dismiss(&mut self, now: Instant) {
        if let Some(device) = self.device.take_if(|device| !device.is_open()) {
            self.leave_device(device);
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

    fn leave_device(&mut self, device: Connection<T>) {
        self.observer.event(TunnelEvent::DeviceLeft { why: &member_end(&device) });
        self.leaving.push(device);
        self.release_all(|_| true);
    }

    /// Ends the sessions that lost one of their ends, and tells the remaining end.
    fn release_all(&mut self, concerned: impl Fn(&Session) -> bool) {
        for id in self.ids_of(concerned) {
            let Some(session) = self.sessions.get(&id) else { continue };
            if self.accesses.contains_key(&session.access) {
                let access = open_sender(self.accesses.get_mut(&session.access));
                let msg = "the device's connection is lost";
                match (access, session.deadline) {
                    // The access side waits for a response, not for a release.
                    (Some(access), Some(_)) => {
                        respond(access, &id, session, &status(response::REFUSED, msg));
                    }
                    (Some(access), None) => {
                        let msg = status(release::DEVICE_LOST, msg);
                        write_release(access, &id, next(&mut self.next_frame), &msg);
                    }
                    (None, _) => {}
                }
            } else if let Some(device) = open_sender(self.device.as_mut()) {
                let msg = status(release::ACCESS_LOST, "the access side's connection is lost");
                write_release(device, &id, next(&mut self.next_frame), &msg);
            }
            self.end(&id);
        }
    }
}

fn open_sender<T: Transport>(member: Option<&mut Connection<T>>) -> Option<&mut Sender> {
    member.filter(|member| member.is_open()).map(Connection::sender)
}

fn over_access_limit<T: Transport>(member: &Connection<T>) -> bool {
    member.waiting() > ACCESS_LIMIT
}

fn respond(access: &mut Sender, id: &str, session: &Session, payload: &[u8]) {
    write_response(access, id, &session.service_type, session.frame_id, payload);
}

/// Ends a session that lost data, and tells both ends. Otherwise they would continue with a gap in
/// the stream.
fn cut(
    id: &str,
    session: &Session,
    access: Option<&mut Sender>,
    device: Option<&mut Sender>,
    next_frame: &mut u64,
) {
    match (access, session.deadline) {
        // The access side waits for a response, not for a release.
        (Some(access), Some(_)) => {
            respond(access, id, session, &status(response::REFUSED, reason::FRAME_TOO_LONG));
        }
        (Some(access), None) => {
            let msg = status(release::DEVICE_LOST, reason::FRAME_TOO_LONG);
            write_release(access, id, next(next_frame), &msg);
        }
        (None, _) => {}
    }
    if let Some(device) = device {
        let msg = status(release::ACCESS_LOST, reason::FRAME_TOO_LONG);
        write_release(device, id, next(next_frame), &msg);
    }
}

fn next(counter: &mut u64) -> u64 {
    *counter += 1;
    *counter - 1
}

fn member_end<T: Transport>(member: &Connection<T>) -> String {
    member.end().map(ToString::to_string).unwrap_or_default()
}
