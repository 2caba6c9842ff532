//! One tunnel's connections and sessions. It neither sleeps nor looks at a clock: its hub does.
//!
//! The protocol has no flow control per session, so the device is not read while an access
//! connection has [`FULL`] bytes waiting, and access connections are not read while the device
//! has. A full access connection that takes next to nothing for the stall time is closed with
//! code 1008, its sessions are released towards the device (code 2), and its siblings go on. A
//! device has longer, since it waits for its own services: [`DEVICE_STALL`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Side, TARGET};
use crate::cloud::frame::{release, response, status, Frame, FrameType, HeaderTemplate, Status};
use crate::cloud::websocket::Sender;
use crate::peer::{Peer, Received, Stream, Throttle, Wire, FULL};

/// How long a device may take to answer a session_create.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Ended sessions whose late data is dropped without a word.
const REMEMBERED: usize = 256;

/// Longest service type that is passed on: what a device can have configured.
const MAX_SERVICE_TYPE: usize = 127;
/// An access connection is read in spite of its own full buffer until so much waits for it.
const SWAMPED: usize = 2 * FULL;
/// A device releases sessions whose service stalls, ten seconds each by default, and reads
/// nothing meanwhile; one that takes next to nothing for this long is closed.
const DEVICE_STALL: Duration = Duration::from_secs(60);

/// Why a session is cut whose data the gateway could not keep.
const TOO_LONG: &str = "a data frame is longer than 64 KiB";

/// The close code of an expired token.
const EXPIRED: u16 = 4001;
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
/// The close code of a connection that holds others up.
const POLICY: u16 = 1008;

struct Session {
    access: u64,
    /// The id of the access side's session_create; the response carries it.
    frame_id: u64,
    service_type: String,
    /// When an unanswered session_create counts as refused.
    deadline: Option<Instant>,
    /// Header of its data frames, in either direction. Frames are not passed on as they came:
    /// where parsers disagree (field names in another case, say), each end would see its own.
    data: HeaderTemplate,
}

/// What a tunnel may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) sessions: usize,
    /// How long a full access connection may take next to nothing.
    pub(super) stall: Duration,
}

pub(super) struct Tunnel<W: Wire = Stream> {
    name: String,
    limits: Limits,
    expires: Option<Instant>,
    device: Option<Peer<W>>,
    accesses: BTreeMap<u64, Peer<W>>,
    /// Peers in their closing handshake.
    leaving: Vec<Peer<W>>,
    sessions: HashMap<String, Session>,
    ended: VecDeque<String>,
    next_access: u64,
    /// Frames of several sources meet on one connection, where ids must increase: all but a
    /// response's are the gateway's own.
    next_frame: u64,
    /// The access connection that may feed the device first; the turn after, it is the next.
    first: u64,
    /// Scratch for a header.
    head: Vec<u8>,
    throttle: Throttle,
}

impl<W: Wire> Tunnel<W> {
    pub(super) fn new(name: String, limits: Limits) -> Self {
        Tunnel {
            name,
            limits,
            expires: None,
            device: None,
            accesses: BTreeMap::new(),
            leaving: Vec::new(),
            sessions: HashMap::new(),
            ended: VecDeque::new(),
            next_access: 1,
            next_frame: 1,
            first: 0,
            head: Vec::new(),
            throttle: Throttle::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has no connection.
    pub(super) fn is_empty(&self) -> bool {
        self.members().next().is_none()
    }

    pub(super) fn expire_at(&mut self, at: Option<Instant>) {
        self.expires = at;
    }

    /// Takes a connection in; an older device connection gives way.
    pub(super) fn join(&mut self, side: Side, peer: Peer<W>, now: Instant) {
        match side {
            Side::Device => {
                if let Some(mut old) = self.device.take() {
                    old.close(NORMAL, "replaced by a new connection", now);
                    self.leave_device(old);
                }
                log::info!(target: TARGET, "tunnel {:?}: device connected", self.name);
                self.device = Some(peer);
            }
            Side::Access => {
                let key = next(&mut self.next_access);
                log::info!(target: TARGET, "tunnel {:?}: access {key} connected", self.name);
                self.accesses.insert(key, peer);
            }
        }
    }

    /// Closes every connection, and those that join until it is asked again.
    pub(super) fn stop(&mut self, now: Instant) {
        self.close_all(GOING_AWAY, "the gateway stops", now);
    }

    /// Its connections, and whether each is to be read.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Peer<W>, bool)> {
        let (read_device, read_accesses) = (self.reads_device(), self.reads_accesses());
        let device = self.device.iter().map(move |peer| (peer, read_device));
        let accesses = self.accesses.values();
        let accesses = accesses.map(move |peer| (peer, read_accesses && !is_swamped(peer)));
        device.chain(accesses).chain(self.leaving.iter().map(|peer| (peer, true)))
    }

    /// Reads from those that are ready, in the order of [`members`](Self::members).
    pub(super) fn receive(&mut self, now: Instant, ready: &[bool]) {
        let (read_device, read_accesses) = (self.reads_device(), self.reads_accesses());
        let device = self.device.iter_mut().map(|peer| (peer, read_device));
        let accesses = self.accesses.values_mut().map(|peer| {
            let reads = read_accesses && !is_swamped(peer);
            (peer, reads)
        });
        let leaving = self.leaving.iter_mut().map(|peer| (peer, true));
        for ((peer, reads), ready) in device.chain(accesses).chain(leaving).zip(ready) {
            peer.receive(now, *ready, reads);
        }
    }

    /// Does all there is to do.
    pub(super) fn step(&mut self, now: Instant) {
        if self.expires.is_some_and(|at| now >= at) {
            self.expires = None;
            log::info!(target: TARGET, "tunnel {:?} has expired", self.name);
            self.close_all(EXPIRED, "expired", now);
        }
        self.pump_device(now);
        self.pump_accesses(now);
        for peer in &mut self.leaving {
            peer.pump(now, |_, _| true);
        }
        self.give_up_unanswered(now);
        self.throttle.tick(now);
        self.tick(now);
        self.flush(now);
        self.part_with_stalled(now);
        self.dismiss(now);
    }

    /// A source is read while what it feeds has room.
    fn reads_device(&self) -> bool {
        !self.accesses.values().any(Peer::is_full)
            && !self.device.as_ref().is_some_and(Peer::is_full)
    }

    fn reads_accesses(&self) -> bool {
        !self.device.as_ref().is_some_and(Peer::is_full)
    }

    /// When [`step`](Self::step) has something to do, whatever the connections do.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let peers = self.members().map(|(peer, reads)| peer.deadline(now, reads));
        let stalls = self.accesses.values().filter_map(|peer| peer.stalls_at(self.limits.stall));
        let device_stalls = self.device.iter().filter_map(|peer| peer.stalls_at(DEVICE_STALL));
        let sessions = self.sessions.values().filter_map(|session| session.deadline);
        let own = sessions.chain(self.expires).chain(self.throttle.deadline());
        peers.chain(stalls).chain(device_stalls).chain(own).min()
    }

    fn close_all(&mut self, code: u16, reason: &str, now: Instant) {
        for peer in self.device.iter_mut().chain(self.accesses.values_mut()) {
            peer.close(code, reason, now);
        }
        self.dismiss(now);
    }

    fn pump_device(&mut self, now: Instant) {
        let Some(mut device) = self.device.take() else { return };
        if !device.is_full() && self.reads_device() {
            device.pump(now, |received, sender| {
                match received {
                    Received::Frame(frame) => self.take_from_device(&frame, sender, now),
                    Received::LostData(frame) => {
                        self.lost_by_device(&frame.session_id, sender, now);
                    }
                }
                sender.len() <= FULL && self.reads_device()
            });
        }
        self.device = Some(device);
    }

    /// In turn, so that one that fills the device's buffer each time does not starve the rest.
    fn pump_accesses(&mut self, now: Instant) {
        let mut keys: Vec<u64> = self.accesses.keys().copied().collect();
        let first = keys.partition_point(|key| *key < self.first);
        keys.rotate_left(first);
        self.first = keys.first().map_or(0, |key| key + 1);
        for key in keys {
            let Some(mut access) = self.accesses.remove(&key) else { continue };
            if self.reads_accesses() && !is_swamped(&access) {
                access.pump(now, |received, sender| {
                    match received {
                        Received::Frame(frame) => self.take_from_access(key, &frame, sender, now),
                        Received::LostData(frame) => {
                            self.lost_by_access(key, &frame.session_id, sender, now);
                        }
                    }
                    sender.len() <= SWAMPED && self.reads_accesses()
                });
            }
            self.accesses.insert(key, access);
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
        // Nothing follows a close frame.
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
                    // It waits for a response, and knows no session that could be released.
                    let msg = status(response::REFUSED, "the device released it unanswered");
                    respond(access, id, session, &msg);
                } else {
                    let frame_id = next(&mut self.next_frame);
                    send_release(access, id, frame_id, frame.payload);
                }
                log::info!(target: TARGET, "tunnel {:?}: device released {id:?}", self.name);
                self.end(id);
            }
            FrameType::CommonResponse => {
                // A second one would answer nothing.
                if session.deadline.take().is_none() {
                    return;
                }
                respond(access, id, session, frame.payload);
                if Status::parse(frame.payload).is_none_or(|status| status.code != 0) {
                    log::info!(target: TARGET, "tunnel {:?}: device refused {id:?}", self.name);
                    self.end(id);
                }
            }
            FrameType::SessionCreate => {
                let what = format_args!("tunnel {:?}: session_create from a device", self.name);
                self.throttle.complain(now, what);
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
                send_release(device, id, frame_id, frame.payload);
                log::info!(target: TARGET, "tunnel {:?}: access released {id:?}", self.name);
                self.end(id);
            }
            FrameType::CommonResponse | FrameType::SessionCreate => {}
        }
    }

    fn lost_by_device(&mut self, id: &str, device: &mut Sender, now: Instant) {
        let Some(session) = self.sessions.get(id) else {
            return self.report_unknown(id, release::ACCESS_LOST, device, now);
        };
        let access = self.accesses.get_mut(&session.access);
        cut(&self.name, id, session, open_sender(access), Some(device), &mut self.next_frame);
        self.end(id);
    }

    fn lost_by_access(&mut self, key: u64, id: &str, access: &mut Sender, now: Instant) {
        let Some(session) = self.sessions.get(id).filter(|session| session.access == key) else {
            return self.report_unknown(id, release::DEVICE_LOST, access, now);
        };
        let device = open_sender(self.device.as_mut());
        cut(&self.name, id, session, Some(access), device, &mut self.next_frame);
        self.end(id);
    }

    fn create(&mut self, access_key: u64, frame: &Frame<'_>, access: &mut Sender, now: Instant) {
        let Some(frame_id) = frame.frame_id else {
            let what = format_args!("tunnel {:?}: session_create without frame_id", self.name);
            self.throttle.complain(now, what);
            return;
        };
        let too_long = frame.service_type.len() > MAX_SERVICE_TYPE;
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
            let what = format_args!("tunnel {:?}: session_create refused: {msg}", self.name);
            self.throttle.complain(now, what);
            respond(access, "", &session, &status(code, msg));
        };
        if too_long {
            // Its header would be too long for the device, which would never answer.
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
        log::info!(
            target: TARGET,
            "tunnel {:?}: session {id} for {:?}", self.name, session.service_type
        );
        self.sessions.insert(id, session);
    }

    /// Data of no session: tells its sender once.
    fn report_unknown(&mut self, id: &str, code: u8, sender: &mut Sender, now: Instant) {
        if id.is_empty() || self.ended.iter().any(|ended| ended == id) {
            return;
        }
        let what = format_args!("tunnel {:?}: data for unknown session {id:?}", self.name);
        self.throttle.complain(now, what);
        let frame_id = next(&mut self.next_frame);
        send_release(sender, id, frame_id, &status(code, "no such session"));
        self.remember(id);
    }

    fn end(&mut self, id: &str) {
        self.sessions.remove(id);
        self.remember(id);
    }

    fn remember(&mut self, id: &str) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(id.to_owned());
    }

    fn give_up_unanswered(&mut self, now: Instant) {
        let late = |session: &Session| session.deadline.is_some_and(|deadline| now >= deadline);
        let late: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, session)| late(session))
            .map(|(id, _)| id.clone())
            .collect();
        for id in late {
            let Some(session) = self.sessions.get(&id) else { continue };
            if let Some(access) = open_sender(self.accesses.get_mut(&session.access)) {
                let msg = status(response::REFUSED, "timeout: the device did not answer");
                respond(access, &id, session, &msg);
            }
            self.end(&id);
            if let Some(device) = open_sender(self.device.as_mut()) {
                let msg = status(release::BY_ACCESS, "answered too late");
                send_release(device, &id, next(&mut self.next_frame), &msg);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        let (read_device, read_accesses) = (self.reads_device(), self.reads_accesses());
        self.device.iter_mut().for_each(|peer| peer.tick(now, read_device));
        for peer in self.accesses.values_mut() {
            peer.tick(now, read_accesses && !is_swamped(peer));
        }
        self.leaving.iter_mut().for_each(|peer| peer.tick(now, true));
    }

    fn flush(&mut self, now: Instant) {
        let members = self.device.iter_mut().chain(self.accesses.values_mut());
        members.chain(&mut self.leaving).for_each(|peer| peer.flush(now));
    }

    fn part_with_stalled(&mut self, now: Instant) {
        let device = self.device.iter_mut().map(|peer| (peer, DEVICE_STALL));
        let accesses = self.accesses.values_mut().map(|peer| (peer, self.limits.stall));
        for (peer, limit) in device.chain(accesses) {
            if peer.is_stalled(now, limit) {
                log::warn!(target: TARGET, "tunnel {:?}: a connection takes nothing", self.name);
                peer.close(POLICY, "it takes nothing and holds others up", now);
            }
        }
    }

    /// Parts with peers that are open no more, and with their sessions.
    fn dismiss(&mut self, now: Instant) {
        if let Some(device) = self.device.take_if(|device| !device.is_open()) {
            self.leave_device(device);
        }
        let closed = self.accesses.iter().filter(|(_, peer)| !peer.is_open());
        for key in closed.map(|(key, _)| *key).collect::<Vec<_>>() {
            let Some(peer) = self.accesses.remove(&key) else { continue };
            let reason = peer.reason();
            log::info!(target: TARGET, "tunnel {:?}: access {key} left: {reason}", self.name);
            self.leaving.push(peer);
            self.release_all(|session| session.access == key);
        }
        self.flush(now);
        self.leaving.retain(|peer| !peer.is_gone());
    }

    fn leave_device(&mut self, device: Peer<W>) {
        let reason = device.reason();
        log::info!(target: TARGET, "tunnel {:?}: device left: {reason}", self.name);
        self.leaving.push(device);
        self.release_all(|_| true);
    }

    /// Ends sessions that lost one of their sides, and tells the other.
    fn release_all(&mut self, concerned: impl Fn(&Session) -> bool) {
        let ids: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, session)| concerned(session))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            let Some(session) = self.sessions.get(&id) else { continue };
            if self.accesses.contains_key(&session.access) {
                let access = open_sender(self.accesses.get_mut(&session.access));
                let msg = "the device's connection is lost";
                match (access, session.deadline) {
                    // It waits for a response, not for a release.
                    (Some(access), Some(_)) => {
                        respond(access, &id, session, &status(response::REFUSED, msg));
                    }
                    (Some(access), None) => {
                        let msg = status(release::DEVICE_LOST, msg);
                        send_release(access, &id, next(&mut self.next_frame), &msg);
                    }
                    (None, _) => {}
                }
            } else if let Some(device) = open_sender(self.device.as_mut()) {
                let msg = status(release::ACCESS_LOST, "the access side's connection is lost");
                send_release(device, &id, next(&mut self.next_frame), &msg);
            }
            self.end(&id);
        }
    }
}

#[cfg(any(test, fuzzing))]
impl<W: Wire> Tunnel<W> {
    pub(super) fn check_bounds(&self) {
        // A buffer's length of pongs may come on top.
        let most = SWAMPED + FULL / 2 + 4096;
        let members = self.device.iter().chain(self.accesses.values()).chain(&self.leaving);
        members.for_each(|peer| assert!(peer.waiting() <= most, "{} wait", peer.waiting()));
        assert!(self.sessions.len() <= self.limits.sessions);
        assert!(self.ended.len() <= REMEMBERED);
    }

    pub(super) fn session_count(&self) -> usize {
        self.sessions.len()
    }
}

fn open_sender<W: Wire>(peer: Option<&mut Peer<W>>) -> Option<&mut Sender> {
    peer.filter(|peer| peer.is_open()).map(Peer::sender)
}

fn is_swamped<W: Wire>(peer: &Peer<W>) -> bool {
    peer.waiting() > SWAMPED
}

fn respond(access: &mut Sender, id: &str, session: &Session, payload: &[u8]) {
    let mut head = Vec::new();
    HeaderTemplate::new(FrameType::CommonResponse, id, Some(&session.service_type))
        .write(session.frame_id, &mut head);
    access.binary(&head, payload);
}

fn send_release(sender: &mut Sender, id: &str, frame_id: u64, payload: &[u8]) {
    let mut head = Vec::new();
    HeaderTemplate::new(FrameType::SessionRelease, id, None).write(frame_id, &mut head);
    sender.binary(&head, payload);
}

/// Data of a session did not get through. It must not go on as if nothing were missing: it is
/// lost for both ends.
fn cut(
    tunnel: &str,
    id: &str,
    session: &Session,
    access: Option<&mut Sender>,
    device: Option<&mut Sender>,
    next_frame: &mut u64,
) {
    log::warn!(target: TARGET, "tunnel {tunnel:?}: session {id:?} is cut: {TOO_LONG}");
    match (access, session.deadline) {
        // It waits for a response, not for a release.
        (Some(access), Some(_)) => {
            respond(access, id, session, &status(response::REFUSED, TOO_LONG));
        }
        (Some(access), None) => {
            let msg = status(release::DEVICE_LOST, TOO_LONG);
            send_release(access, id, next(next_frame), &msg);
        }
        (None, _) => {}
    }
    if let Some(device) = device {
        let msg = status(release::ACCESS_LOST, TOO_LONG);
        send_release(device, id, next(next_frame), &msg);
    }
}

fn next(counter: &mut u64) -> u64 {
    *counter += 1;
    *counter - 1
}
