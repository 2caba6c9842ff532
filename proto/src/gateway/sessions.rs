//! The sessions between the connections of one tunnel: what becomes of each frame, and how a session
//! begins and ends.

use std::time::{Duration, Instant};

use super::lane::Lane;
use super::{
    has_room, is_near, next, open_sender, Member, RefusalReason, Traffic, Tunnel, TunnelEvent,
    TunnelObserver,
};
use crate::connection::{Loss, Transport};
use crate::frame::{
    reason, release, response, status, write_acceptance, write_release, write_response, Credit,
    Extensions, Fields, Frame, FrameType, HeaderTemplate, Status, MAX_NAME,
};
use crate::websocket::Sender;
use crate::Side;

/// How long a device may take to answer a session_create. Then the session is refused.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCESS_LOST: &str = "the access side's connection is lost";
const DEVICE_LOST: &str = "the device's connection is lost";
/// Most bytes of an end's own text that are reported.
const MAX_TEXT: usize = 200;
/// A lane with at most this many waiting bytes goes first. A keystroke does not wait for a file.
const SHORT_LANE: usize = 4096;
/// One of this many turns goes to the lane that has waited longest, short or long.
const LANE_TURNS: u64 = 8;

/// A session between an access connection and the device.
pub(super) struct Session {
    pub(super) access: u64,
    /// The frame id of the access side's session_create. The response carries it.
    frame_id: u64,
    service_type: String,
    /// When an unanswered session_create counts as refused. `None` once it is answered.
    pub(super) deadline: Option<Instant>,
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
    /// What it has carried.
    moved: Traffic,
    /// Why it ends, once that is known.
    why: Option<String>,
}

impl Session {
    /// Whether the device has accepted the session and its bytes pass without flow control.
    pub(super) fn is_plain(&self) -> bool {
        self.deadline.is_none() && !self.extensions.credit
    }

    pub(super) fn lane(&self, to: Side) -> &Lane {
        match to {
            Side::Device => &self.to_device,
            Side::Access => &self.to_access,
        }
    }

    /// Whether a release waits for the end of this side, and nothing else does.
    pub(super) fn releases_to(&self, to: Side) -> bool {
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

impl<T: Transport, O: TunnelObserver> Tunnel<T, O> {
    pub(super) fn take_from_device(
        &mut self,
        frame: &Frame<'_>,
        device: &mut Sender,
        now: Instant,
    ) {
        let id = &*frame.session_id;
        let Some(session) = self.sessions.get_mut(id) else {
            if frame.frame_type == FrameType::DataTransport {
                self.report_unknown(id, Member::Device, device, now);
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
                let is_unanswered = session.deadline.is_some();
                self.ends(id, told("released by the device", frame.payload));
                if is_unanswered {
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
                    self.accept(frame, device);
                    self.observer.event(TunnelEvent::SessionAccepted(id));
                } else {
                    let why = status.map_or("an answer without a code".to_owned(), |s| s.msg);
                    self.observer.event(TunnelEvent::DeviceRefused { id, why: &why });
                    self.ends(id, told("refused by the device", frame.payload));
                    self.refuse(id, frame.payload);
                }
            }
            FrameType::SessionCreate => {
                self.limited(now, TunnelEvent::CreateFromDevice);
            }
        }
    }

    pub(super) fn take_from_access(
        &mut self,
        key: u64,
        frame: &Frame<'_>,
        access: &mut Sender,
        now: Instant,
    ) {
        if frame.frame_type == FrameType::SessionCreate {
            return self.create(key, frame, access, now);
        }
        let id = &*frame.session_id;
        let Some(session) = self.sessions.get(id).filter(|session| session.access == key) else {
            if frame.frame_type == FrameType::DataTransport {
                self.report_unknown(id, Member::Access(key), access, now);
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
                self.ends(id, told("released by the access side", frame.payload));
                self.release(id, Side::Device, frame.payload);
            }
            FrameType::CommonResponse | FrameType::SessionCreate => {}
        }
    }

    /// The device has accepted a session. Passes the answer on.
    fn accept(&mut self, frame: &Frame<'_>, device: &mut Sender) {
        let held = self.held(Side::Device);
        let Tunnel { sessions, accesses, .. } = self;
        let Some(session) = sessions.get_mut(&*frame.session_id) else { return };
        session.extensions = session.extensions.and(frame.extensions);
        if !session.extensions.credit {
            // The lanes are not used. What was offered for them stands in nobody's way.
            (session.to_device, session.to_access) = Default::default();
        }
        let mut credit = 0;
        match frame.credit {
            _ if !session.extensions.credit => {}
            Credit::Bytes(bytes) if session.to_device.add_credit(bytes) => {
                let access = accesses.get(&session.access);
                credit = session.to_device.pass_credit(held, access.is_some_and(is_near));
            }
            // The device grants nothing yet.
            Credit::Absent => {}
            Credit::Bytes(_) | Credit::Invalid => {
                let id = &*frame.session_id;
                return self.cut(id, reason::BAD_CREDIT, Some((Side::Device, device)));
            }
        }
        session.deadline = None;
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
        self.end_session(id);
    }

    /// Passes a data frame on to the other end, or keeps it for its lane's next turn. `from` is the
    /// sender of the connection that the frame came from.
    fn pass(&mut self, to: Side, frame: &Frame<'_>, from: Option<&mut Sender>) {
        let id = &*frame.session_id;
        let is_open = self.is_open(to);
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
        if has_credit && (lane.is_waiting() || member.over_high_water() || !is_open) {
            lane.push(frame.payload);
            lane.eof_waits |= eof;
            return;
        }
        let fields = Fields { eof, ..Fields::default() };
        session.data.write_with(next(next_frame), fields, head);
        member.sender().binary(head, frame.payload);
        session.moved.count(to, frame.payload.len());
        self.count(to, frame.payload.len());
    }

    /// Passes on what waits in the lanes, as far as the connections have room. The lanes of a
    /// connection take turns; short ones go first.
    pub(super) fn pass_lanes(&mut self) {
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
            self.end_session(&id);
        }
    }

    /// Gives one lane of a connection a turn. Returns false if none waits or there is no room.
    fn pass_lane(&mut self, to: Side, access: u64) -> bool {
        if !self.is_open(to) {
            return false;
        }
        let Tunnel { sessions, accesses, device, head, payload, next_frame, .. } = self;
        let member = match to {
            Side::Device => device.as_mut(),
            Side::Access => accesses.get_mut(&access),
        };
        let Some(member) = member.filter(|member| has_room(member)) else { return false };
        let of_member = |session: &&mut Session| {
            (to == Side::Device || session.access == access) && session.lane(to).is_waiting()
        };
        // Long lanes have a turn of their own, so that many short ones do not starve them.
        let is_for_all = self.lane_turns.is_multiple_of(LANE_TURNS);
        let turn = |session: &&mut Session| {
            let lane = session.lane(to);
            (lane.waiting() > SHORT_LANE && !is_for_all, lane.served)
        };
        let Some(session) = sessions.values_mut().filter(of_member).min_by_key(turn) else {
            return false;
        };
        self.lane_turns += 1;
        let (served, most) = (self.lane_turns, member.payload_size());
        let lane = session.lane_mut(to);
        lane.served = served;
        let length = most.min(lane.waiting());
        let eof = lane.waiting() == length && std::mem::take(&mut lane.eof_waits);
        let fields = Fields { eof, ..Fields::default() };
        session.data.write_with(next(next_frame), fields, head);
        member.sender().binary(head, session.lane(to).front(length, payload));
        session.lane_mut(to).remove(length);
        session.moved.count(to, length);
        self.count(to, length);
        true
    }

    /// Bytes of a session were passed on.
    fn count(&mut self, to: Side, bytes: usize) {
        self.traffic.count(to, bytes);
        match to {
            Side::Device => self.to_device.take(bytes),
            Side::Access => self.to_access.take(bytes),
        }
    }

    /// Frees the buffers of lanes in which nothing waits.
    pub(super) fn shrink_lanes(&mut self) {
        for session in self.sessions.values_mut() {
            session.to_device.shrink();
            session.to_access.shrink();
        }
    }

    /// What all lanes of a direction may hold at present.
    fn held(&self, to: Side) -> u64 {
        self.sessions.values().map(|session| session.lane(to).held()).sum()
    }

    /// Tells the senders what the receivers have granted, as far as the gateway can keep it.
    pub(super) fn pass_credits(&mut self) {
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
                let credit = session.lane_mut(to).pass_credit(held, is_near(from));
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
            self.end_session(id);
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

    pub(super) fn lost_by_device(&mut self, loss: &Loss<'_>, device: &mut Sender, now: Instant) {
        let id = &*loss.session_id;
        match self.sessions.get(id) {
            None => return self.report_unknown(id, Member::Device, device, now),
            // It has ended already.
            Some(session) if session.release.is_some() => return,
            Some(_) => {}
        }
        self.cut(id, loss.reason, Some((Side::Device, device)));
    }

    pub(super) fn lost_by_access(
        &mut self,
        key: u64,
        loss: &Loss<'_>,
        access: &mut Sender,
        now: Instant,
    ) {
        let id = &*loss.session_id;
        match self.sessions.get(id).filter(|session| session.access == key) {
            None => return self.report_unknown(id, Member::Access(key), access, now),
            // It has ended already.
            Some(session) if session.release.is_some() => return,
            Some(_) => {}
        }
        self.cut(id, loss.reason, Some((Side::Access, access)));
    }

    /// Ends a session that lost data or broke the protocol, and tells both ends. Otherwise they
    /// would continue with a gap in the stream. `from` is the connection that is being read.
    fn cut(&mut self, id: &str, why: &str, from: Option<(Side, &mut Sender)>) {
        self.ends(id, format!("cut: {why}"));
        let Some(session) = self.sessions.get(id) else { return };
        let is_open = session.deadline.is_none();
        self.observer.event(TunnelEvent::Cut { id, why });
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
            return self.limited(now, TunnelEvent::Incomplete(Member::Access(access_key)));
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
            moved: Traffic::default(),
            why: None,
        };
        let mut refuse = |access: &mut Sender, reason, code, msg: &str| {
            let Session { access: key, frame_id, service_type, .. } = &session;
            self.observer.event(TunnelEvent::Refused {
                access: *key,
                frame_id: *frame_id,
                service_type,
                reason,
                why: msg,
                is_logged: self.limiter.permits(now),
            });
            respond(access, "", &session, &status(code, msg));
        };
        if too_long {
            // The device could not read a header of this length and would never answer.
            let why = "the service type is over 127 bytes long";
            return refuse(access, RefusalReason::Invalid, response::REFUSED, why);
        }
        if self.sessions.len() >= self.limits.sessions {
            let msg = format!("the tunnel has {} sessions already", self.limits.sessions);
            return refuse(access, RefusalReason::SessionLimit, response::SESSION_LIMIT, &msg);
        }
        let Some(device) = open_sender(self.device.as_mut()) else {
            let why = not_connected(self.device_left, now);
            return refuse(access, RefusalReason::DeviceAway, response::REFUSED, &why);
        };
        let held: u64 = self.sessions.values().map(|one| one.to_access.held()).sum();
        let credit = if extensions.credit { session.to_access.pass_credit(held, false) } else { 0 };
        let fields = Fields { extensions, credit, eof: false };
        HeaderTemplate::new(FrameType::SessionCreate, &id, Some(&session.service_type)).write_with(
            next(&mut self.next_frame),
            fields,
            &mut self.head,
        );
        device.binary(&self.head, &[]);
        let service_type = &*session.service_type;
        let (access, frame_id) = (session.access, session.frame_id);
        let created = TunnelEvent::SessionCreated { id: &id, service_type, access, frame_id };
        self.observer.event(created);
        self.sessions.insert(id, session);
    }

    /// Handles data for an unknown session. Tells the sender once that the session does not exist.
    fn report_unknown(&mut self, id: &str, from: Member, sender: &mut Sender, now: Instant) {
        if id.is_empty() || self.ended.contains(id) {
            return;
        }
        self.limited(now, TunnelEvent::UnknownSession(from, id));
        let code = match from {
            Member::Device => release::ACCESS_LOST,
            Member::Access(_) => release::DEVICE_LOST,
        };
        let frame_id = next(&mut self.next_frame);
        write_release(sender, id, frame_id, &status(code, reason::UNKNOWN_SESSION));
        self.ended.push(id);
    }

    /// Notes why a session ends. The first reason counts.
    fn ends(&mut self, id: &str, why: String) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.why.get_or_insert(why);
        }
    }

    fn end_session(&mut self, id: &str) {
        if let Some(session) = self.sessions.remove(id) {
            let why = session.why.as_deref().unwrap_or_default();
            let (was_open, moved) = (session.deadline.is_none(), session.moved);
            self.observer.event(TunnelEvent::SessionEnded { id, was_open, moved, why });
        }
        self.ended.push(id);
    }

    fn ids_of(&self, concerned: impl Fn(&Session) -> bool) -> Vec<String> {
        let concerned = self.sessions.iter().filter(|(_, session)| concerned(session));
        concerned.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn give_up_unanswered(&mut self, now: Instant) {
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
            let timeout = why.to_owned();
            if let Some(access) = open_sender(self.accesses.get_mut(&session.access)) {
                respond(access, &id, session, &status(response::REFUSED, why));
            }
            self.ends(&id, timeout);
            self.end_session(&id);
            if let Some(device) = open_sender(self.device.as_mut()) {
                let msg = status(release::ACCESS_LOST, reason::TOO_LATE);
                write_release(device, &id, next(&mut self.next_frame), &msg);
            }
        }
    }

    /// Ends all sessions, because the gateway ends, and tells both ends.
    pub(super) fn release_for_update(&mut self) {
        let why = "the gateway ends";
        let msg = status(release::UPDATE, why);
        for id in self.ids_of(|_| true) {
            let is_open = self.sessions.get(&id).is_some_and(|session| session.deadline.is_none());
            self.write_release(&id, Side::Device, &msg);
            self.ends(&id, why.to_owned());
            if is_open {
                self.write_release(&id, Side::Access, &msg);
                self.end_session(&id);
            } else {
                // The access side waits for a response, not for a release.
                self.refuse(&id, &status(response::REFUSED, why));
            }
        }
    }

    /// Ends the sessions that lost one of their ends, and tells the remaining end.
    pub(super) fn release_all(&mut self, concerned: impl Fn(&Session) -> bool) {
        for id in self.ids_of(concerned) {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            let has_access = self.accesses.contains_key(&session.access);
            let lost = if has_access { DEVICE_LOST } else { ACCESS_LOST };
            session.why.get_or_insert_with(|| lost.to_owned());
            let Some(session) = self.sessions.get(&id) else { continue };
            if !self.accesses.contains_key(&session.access) {
                let msg = status(release::ACCESS_LOST, ACCESS_LOST);
                match session.release {
                    // The device has released it itself.
                    Some((Side::Access, _)) => self.end_session(&id),
                    // The release waited behind data for the device, which is gone as well now.
                    Some((Side::Device, _)) if self.device.is_none() => self.end_session(&id),
                    Some((Side::Device, _)) => {}
                    None => self.release(&id, Side::Device, &msg),
                }
                continue;
            }
            let msg = DEVICE_LOST;
            match (&session.release, session.deadline) {
                (Some((Side::Device, _)), _) => self.end_session(&id),
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

/// Says that no device is connected, and since when.
fn not_connected(left: Option<Instant>, now: Instant) -> String {
    let since = match left {
        Some(left) => format!("for {}", span(now.saturating_duration_since(left))),
        None => "not since the gateway started".to_owned(),
    };
    format!("{} ({since})", response::NOT_CONNECTED)
}

/// A time for people.
fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// What one end says with a release or a refusal.
fn told(what: &str, payload: &[u8]) -> String {
    match Status::parse(payload) {
        Some(Status { code, msg, .. }) => {
            let text = &msg[..msg.floor_char_boundary(MAX_TEXT)];
            format!("{what}: code {code}, {text:?}")
        }
        None => format!("{what}, with no reason"),
    }
}

fn respond(access: &mut Sender, id: &str, session: &Session, payload: &[u8]) {
    write_response(access, id, &session.service_type, session.frame_id, payload);
}
