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

mod event;
mod lane;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::connection::{Connection, Ping, Received, Transport, Upkeep};
use crate::frame::{
    reason, release, response, status, write_acceptance, write_release, write_response, Credit,
    Extensions, Fields, Frame, FrameType, HeaderTemplate, Status, MAX_NAME,
};
use crate::log_limiter::LogLimiter;
use crate::schedule::RoundRobin;
use crate::session::RecentIds;
use crate::websocket::{close, Sender};
use crate::{Ready, Side};

pub use event::{TunnelEvent, TunnelObserver};
use lane::Lane;

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
/// A connection over its high-water mark is still read, until this many bytes wait for it. So the
/// pings of a peer that reads nothing are heard.
const ANSWER_LIMIT: usize = 2 * HIGH_WATER;
/// A lane with at most this many waiting bytes goes first. A keystroke does not wait for a file.
const SHORT_LANE: usize = 4096;

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
    /// The extensions that the access side offered; once the device has answered, those that hold.
    extensions: Extensions,
    /// With flow control, what waits in either direction.
    to_device: Lane,
    to_access: Lane,
    /// The session has ended. This release goes to this side once the lane to it is empty.
    release: Option<(Side, Vec<u8>)>,
}

impl Session {
    /// Whether the device has accepted the session and its bytes pass without flow control.
    fn is_plain(&self) -> bool {
        self.deadline.is_none() && !self.extensions.credit
    }

    fn lane(&self, to: Side) -> &Lane {
        match to {
            Side::Device => &self.to_device,
            Side::Access => &self.to_access,
        }
    }

    /// Whether a release waits for the end of this side, and nothing else does.
    fn releases_to(&self, to: Side) -> bool {
        let is_last = !self.lane(to).is_waiting();
        is_last && self.release.as_ref().is_some_and(|(side, _)| *side == to)
    }

    fn lane_mut(&mut self, to: Side) -> &mut Lane {
        match to {
            Side::Device => &mut self.to_device,
            Side::Access => &mut self.to_access,
        }
    }
}

/// Limits of one tunnel.
#[derive(Debug, Clone, Copy)]
pub struct TunnelLimits {
    /// The number of sessions the tunnel may have at once.
    pub sessions: usize,
    /// How long a full access connection may take nothing before it is closed. One that takes
    /// large steps has more time.
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
    /// Scratch memory for a header and a payload.
    head: Vec<u8>,
    payload: Vec<u8>,
    /// Counts the turns of the lanes.
    lane_turns: u64,
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
            payload: Vec::new(),
            lane_turns: 0,
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
            member.over_high_water() && self.has_plain_session(*key)
        };
        !self.accesses.iter().any(is_full)
    }

    fn reads_access(&self, key: u64, member: &Connection<T>) -> bool {
        has_room_for_answers(member) && self.device_has_room(key)
    }

    /// Whether the device's connection does not keep this access connection from being read.
    fn device_has_room(&self, key: u64) -> bool {
        let is_full = self.device.as_ref().is_some_and(Connection::over_high_water);
        !(is_full && self.has_plain_session(key))
    }

    /// Whether an access connection has a session that cannot wait alone.
    fn has_plain_session(&self, key: u64) -> bool {
        self.sessions.values().any(|session| session.access == key && session.is_plain())
    }

    /// Whether bytes wait in a lane although their connection has room.
    fn has_work(&self) -> bool {
        self.sessions.values().any(|session| {
            let has_room = |to| self.member(session, to).is_some_and(has_room);
            let waits = |to| session.lane(to).is_waiting() || session.releases_to(to);
            [Side::Device, Side::Access].into_iter().any(|to| waits(to) && has_room(to))
        })
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
        let own = sessions.chain(self.expires).chain(self.limiter.deadline());
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
            while has_room_for_answers(&access) && self.device_has_room(key) {
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
        if session.release.is_some() {
            return;
        }
        match frame.frame_type {
            FrameType::DataTransport if session.deadline.is_some() => {
                // The access side would drop the data, and the session would go on with a gap.
                self.cut(id, "data before the response", Some((Side::Device, device)));
            }
            FrameType::DataTransport => self.pass(Side::Access, frame, Some(device)),
            FrameType::SessionRelease => {
                self.observer.event(TunnelEvent::Released(Side::Device, id));
                if session.deadline.is_some() {
                    // The session is not open yet. The access side waits for a response and cannot
                    // release it.
                    let msg = status(response::REFUSED, "the device released it unanswered");
                    self.refuse(id, &msg);
                } else {
                    self.release(id, Side::Access, frame.payload);
                }
            }
            FrameType::CommonResponse => {
                // Only the first response answers the session_create. Further ones are dropped.
                if session.deadline.is_none() {
                    return;
                }
                let status = Status::parse(frame.payload);
                if status.as_ref().is_some_and(|status| status.code == 0) {
                    self.accept(frame);
                } else {
                    let why = status.map_or("an answer without a code".to_owned(), |s| s.msg);
                    self.observer.event(TunnelEvent::DeviceRefused { id, why: &why });
                    self.refuse(id, frame.payload);
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
        if session.release.is_some() {
            return;
        }
        match frame.frame_type {
            FrameType::DataTransport => self.pass(Side::Device, frame, Some(access)),
            FrameType::SessionRelease => {
                self.observer.event(TunnelEvent::Released(Side::Access, id));
                self.release(id, Side::Device, frame.payload);
            }
            FrameType::CommonResponse | FrameType::SessionCreate => {}
        }
    }

    /// The device has accepted a session. Passes the answer on.
    fn accept(&mut self, frame: &Frame<'_>) {
        let held = self.held(Side::Device);
        let Tunnel { sessions, accesses, .. } = self;
        let Some(session) = sessions.get_mut(&*frame.session_id) else { return };
        session.deadline = None;
        session.extensions = session.extensions.and(frame.extensions);
        if !session.extensions.credit {
            // The lanes are not used. What was offered for them stands in nobody's way.
            (session.to_device, session.to_access) = Default::default();
        }
        let mut credit = 0;
        match frame.credit {
            _ if !session.extensions.credit => {}
            Credit::Bytes(bytes) if session.to_device.add_credit(bytes) => {
                credit = session.to_device.pass_credit(held);
            }
            // The device grants nothing, so the access side may send nothing.
            _ => {}
        }
        let Some(access) = open_sender(accesses.get_mut(&session.access)) else { return };
        let fields = Fields { extensions: session.extensions, credit, eof: false };
        let (id, service_type) = (&*frame.session_id, &session.service_type);
        write_acceptance(access, id, service_type, session.frame_id, fields, frame.payload);
    }

    /// Refuses a session that the device has not accepted.
    fn refuse(&mut self, id: &str, payload: &[u8]) {
        let Some(session) = self.sessions.get(id) else { return };
        if let Some(access) = open_sender(self.accesses.get_mut(&session.access)) {
            respond(access, id, session, payload);
        }
        self.end(id);
    }

    /// Passes a data frame on to the other end, or keeps it for its lane's next turn. `from` is the
    /// sender of the connection that the frame came from.
    fn pass(&mut self, to: Side, frame: &Frame<'_>, from: Option<&mut Sender>) {
        let id = &*frame.session_id;
        let Tunnel { sessions, accesses, device, head, next_frame, .. } = self;
        let Some(session) = sessions.get_mut(id) else { return };
        let eof = frame.eof && session.extensions.eof;
        let has_credit = session.extensions.credit;
        let mut violation = None;
        if session.lane(to).ended && !frame.payload.is_empty() {
            violation = Some(reason::DATA_AFTER_END);
        } else if has_credit && !session.lane_mut(to).admit(frame.payload.len()) {
            violation = Some(reason::OVER_CREDIT);
        }
        match frame.credit {
            Credit::Bytes(bytes)
                if has_credit && !session.lane_mut(to.other()).add_credit(bytes) =>
            {
                violation = Some(reason::BAD_CREDIT);
            }
            Credit::Invalid if has_credit => violation = Some(reason::BAD_CREDIT),
            _ => {}
        }
        if let Some(why) = violation {
            return self.cut(id, why, from.map(|from| (to.other(), from)));
        }
        if has_credit && frame.payload.is_empty() && !eof {
            return;
        }
        let member = match to {
            Side::Device => device.as_mut(),
            Side::Access => accesses.get_mut(&session.access),
        };
        // No frame may follow a close frame.
        let Some(member) = member.filter(|member| member.is_open()) else { return };
        let lane = session.lane_mut(to);
        lane.ended |= eof;
        if has_credit && (lane.is_waiting() || member.over_high_water()) {
            lane.push(frame.payload);
            lane.eof_waits |= eof;
            return;
        }
        let fields = Fields { eof, ..Fields::default() };
        session.data.write_with(next(next_frame), fields, head);
        member.sender().binary(head, frame.payload);
    }

    /// Passes on what waits in the lanes, as far as the connections have room. The lanes of a
    /// connection take turns; short ones go first.
    fn pass_lanes(&mut self) {
        while self.pass_lane(Side::Device, 0) {}
        for key in self.accesses.keys().copied().collect::<Vec<_>>() {
            while self.pass_lane(Side::Access, key) {}
        }
        let is_over = |session: &Session| {
            session.release.as_ref().is_some_and(|(to, _)| !session.lane(*to).is_waiting())
        };
        for id in self.ids_of(is_over) {
            let Some((to, payload)) = self.sessions.get_mut(&id).and_then(|one| one.release.take())
            else {
                continue;
            };
            self.write_release(&id, to, &payload);
            self.end(&id);
        }
    }

    /// Gives one lane of a connection a turn. Returns false if none waits or there is no room.
    fn pass_lane(&mut self, to: Side, access: u64) -> bool {
        let Tunnel { sessions, accesses, device, head, payload, next_frame, .. } = self;
        let member = match to {
            Side::Device => device.as_mut(),
            Side::Access => accesses.get_mut(&access),
        };
        let Some(member) = member.filter(|member| has_room(member)) else { return false };
        let of_member = |session: &&mut Session| {
            (to == Side::Device || session.access == access) && session.lane(to).is_waiting()
        };
        let turn = |session: &&mut Session| {
            let lane = session.lane(to);
            (lane.waiting() > SHORT_LANE, lane.served)
        };
        let Some(session) = sessions.values_mut().filter(of_member).min_by_key(turn) else {
            return false;
        };
        self.lane_turns += 1;
        let (served, most) = (self.lane_turns, member.payload_size());
        let lane = session.lane_mut(to);
        lane.served = served;
        lane.next(most, payload);
        let eof = lane.waiting() == 0 && std::mem::take(&mut lane.eof_waits);
        let fields = Fields { eof, ..Fields::default() };
        session.data.write_with(next(next_frame), fields, head);
        member.sender().binary(head, payload);
        true
    }

    /// What all lanes of a direction may hold at present.
    fn held(&self, to: Side) -> u64 {
        self.sessions.values().map(|session| session.lane(to).held()).sum()
    }

    /// Tells the senders what the receivers have granted, as far as the gateway can keep it.
    fn pass_credits(&mut self) {
        for to in [Side::Device, Side::Access] {
            let mut held = self.held(to);
            let Tunnel { sessions, accesses, device, head, next_frame, .. } = self;
            for session in sessions.values_mut() {
                let from = match to.other() {
                    Side::Device => device.as_mut(),
                    Side::Access => accesses.get_mut(&session.access),
                };
                let is_open = session.release.is_none() && session.deadline.is_none();
                let Some(from) = from.filter(|from| has_room(from) && is_open) else { continue };
                if session.lane(to).ended {
                    continue;
                }
                let credit = session.lane_mut(to).pass_credit(held);
                if credit > 0 {
                    held += credit;
                    let fields = Fields { credit, ..Fields::default() };
                    session.data.write_with(next(next_frame), fields, head);
                    from.sender().binary(head, &[]);
                }
            }
        }
    }

    /// One end has released a session. The release goes to the other end behind what waits for it.
    fn release(&mut self, id: &str, to: Side, payload: &[u8]) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.lane_mut(to.other()).clear();
        if session.lane(to).is_waiting() {
            session.release = Some((to, payload.to_vec()));
        } else {
            self.write_release(id, to, payload);
            self.end(id);
        }
    }

    fn write_release(&mut self, id: &str, to: Side, payload: &[u8]) {
        let Some(session) = self.sessions.get(id) else { return };
        let member = match to {
            Side::Device => self.device.as_mut(),
            Side::Access => self.accesses.get_mut(&session.access),
        };
        if let Some(sender) = open_sender(member) {
            write_release(sender, id, next(&mut self.next_frame), payload);
        }
    }

    fn lost_by_device(&mut self, id: &str, device: &mut Sender, now: Instant) {
        match self.sessions.get(id) {
            None => return self.report_unknown(id, release::ACCESS_LOST, device, now),
            // It has ended already.
            Some(session) if session.release.is_some() => return,
            Some(_) => {}
        }
        self.cut(id, reason::FRAME_TOO_LONG, Some((Side::Device, device)));
    }

    fn lost_by_access(&mut self, key: u64, id: &str, access: &mut Sender, now: Instant) {
        match self.sessions.get(id).filter(|session| session.access == key) {
            None => return self.report_unknown(id, release::DEVICE_LOST, access, now),
            // It has ended already.
            Some(session) if session.release.is_some() => return,
            Some(_) => {}
        }
        self.cut(id, reason::FRAME_TOO_LONG, Some((Side::Access, access)));
    }

    /// Ends a session that lost data or broke the protocol, and tells both ends. Otherwise they
    /// would continue with a gap in the stream. `from` is the connection that is being read.
    fn cut(&mut self, id: &str, why: &str, from: Option<(Side, &mut Sender)>) {
        let Some(session) = self.sessions.get(id) else { return };
        self.observer.event(TunnelEvent::Cut { id, why });
        let is_open = session.deadline.is_none();
        let (to_device, to_access) =
            (status(release::ACCESS_LOST, why), status(release::DEVICE_LOST, why));
        let mut other = None;
        match from {
            Some((Side::Device, device)) => {
                write_release(device, id, next(&mut self.next_frame), &to_device);
                other = Some(Side::Access);
            }
            Some((Side::Access, access)) => {
                other = Some(Side::Device);
                if is_open {
                    write_release(access, id, next(&mut self.next_frame), &to_access);
                } else {
                    // The access side waits for a response, not for a release.
                    respond(access, id, session, &status(response::REFUSED, why));
                }
            }
            None => {}
        }
        match other {
            Some(Side::Access) if !is_open => self.refuse(id, &status(response::REFUSED, why)),
            Some(Side::Access) => self.release(id, Side::Access, &to_access),
            _ => self.release(id, Side::Device, &to_device),
        }
    }

    fn create(&mut self, access_key: u64, frame: &Frame<'_>, access: &mut Sender, now: Instant) {
        let Some(frame_id) = frame.frame_id else {
            return self.limited(now, TunnelEvent::Incomplete);
        };
        let too_long = frame.service_type.len() > MAX_NAME;
        let service_type = if too_long { "" } else { &*frame.service_type };
        let id = format!("{:032x}", rand::random::<u128>());
        let mut extensions = frame.extensions;
        let mut to_access = Lane::default();
        extensions.credit &= match frame.credit {
            Credit::Bytes(bytes) => to_access.add_credit(bytes),
            Credit::Absent | Credit::Invalid => false,
        };
        let mut session = Session {
            access: access_key,
            frame_id,
            service_type: service_type.to_owned(),
            deadline: Some(now + RESPONSE_TIMEOUT),
            data: HeaderTemplate::new(FrameType::DataTransport, &id, None),
            extensions,
            to_device: Lane::default(),
            to_access,
            release: None,
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
        let held: u64 = self.sessions.values().map(|one| one.to_access.held()).sum();
        let credit = if extensions.credit { session.to_access.pass_credit(held) } else { 0 };
        let fields = Fields { extensions, credit, eof: false };
        HeaderTemplate::new(FrameType::SessionCreate, &id, Some(&session.service_type)).write_with(
            next(&mut self.next_frame),
            fields,
            &mut self.head,
        );
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
        if !self.reads_device() {
            // The answers may have come, unread.
            let deadlines = self.sessions.values_mut().filter_map(|one| one.deadline.as_mut());
            deadlines.for_each(|deadline| *deadline = now + RESPONSE_TIMEOUT);
            return;
        }
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
                let msg = status(release::ACCESS_LOST, reason::TOO_LATE);
                write_release(device, &id, next(&mut self.next_frame), &msg);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        let reads: Vec<bool> = self.members().map(|(_, reads)| reads).collect();
        let members = self.device.iter_mut().chain(self.accesses.values_mut());
        for (member, reads) in members.chain(&mut self.leaving).zip(reads) {
            member.tick(now, reads);
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
            if !self.accesses.contains_key(&session.access) {
                let msg = status(release::ACCESS_LOST, "the access side's connection is lost");
                match session.release {
                    // The device has released it itself.
                    Some((Side::Access, _)) => self.end(&id),
                    Some((Side::Device, _)) => {}
                    None => self.release(&id, Side::Device, &msg),
                }
                continue;
            }
            let msg = "the device's connection is lost";
            match (&session.release, session.deadline) {
                (Some((Side::Device, _)), _) => self.end(&id),
                (Some((Side::Access, _)), _) => {}
                // The access side waits for a response, not for a release.
                (None, Some(_)) => self.refuse(&id, &status(response::REFUSED, msg)),
                (None, None) => {
                    self.release(&id, Side::Access, &status(release::DEVICE_LOST, msg));
                }
            }
        }
    }
}

fn open_sender<T: Transport>(member: Option<&mut Connection<T>>) -> Option<&mut Sender> {
    member.filter(|member| member.is_open()).map(Connection::sender)
}

/// Whether a connection is below its high-water mark and takes frames.
fn has_room<T: Transport>(member: &Connection<T>) -> bool {
    member.is_open() && !member.over_high_water()
}

fn has_room_for_answers<T: Transport>(member: &Connection<T>) -> bool {
    member.waiting() <= ANSWER_LIMIT
}

fn respond(access: &mut Sender, id: &str, session: &Session, payload: &[u8]) {
    write_response(access, id, &session.service_type, session.frame_id, payload);
}

fn next(counter: &mut u64) -> u64 {
    *counter += 1;
    *counter - 1
}

fn member_end<T: Transport>(member: &Connection<T>) -> String {
    member.end().map(ToString::to_string).unwrap_or_default()
}
