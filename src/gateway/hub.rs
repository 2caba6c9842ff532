//! One tunnel's connections and sessions: everything of it lives on one thread, in one `poll`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::{Side, TARGET};
use crate::cloud::frame::{release, response, status, Frame, FrameType, HeaderTemplate, Status};
use crate::cloud::websocket::Sender;
use crate::peer::Peer;
use crate::sys::{poll, Waker};

/// How long a device may take to answer a session_create.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Ended sessions whose late data is dropped without a word.
const REMEMBERED: usize = 256;

/// The close code of an expired token.
const EXPIRED: u16 = 4001;
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;

/// What a hub is told.
pub(super) enum Order {
    /// A connection that passed its handshake, and when the tunnel expires.
    Join(Side, Box<Peer>, Option<Instant>),
    ExpireAt(Option<Instant>),
    Stop,
}

struct Session {
    access: u64,
    /// The id of the access side's session_create; the response carries it.
    frame_id: u64,
    service_type: String,
    /// When an unanswered session_create counts as refused.
    deadline: Option<Instant>,
}

pub(super) struct Hub {
    name: String,
    orders: Receiver<Order>,
    waker: Arc<Waker>,
    session_limit: usize,
    expires: Option<Instant>,
    device: Option<Peer>,
    accesses: BTreeMap<u64, Peer>,
    /// Peers in their closing handshake.
    leaving: Vec<Peer>,
    sessions: HashMap<String, Session>,
    ended: VecDeque<String>,
    next_access: u64,
    next_frame: u64,
    stopping: bool,
}

impl Hub {
    pub(super) fn new(
        name: String,
        orders: Receiver<Order>,
        waker: Arc<Waker>,
        session_limit: usize,
    ) -> Self {
        Hub {
            name,
            orders,
            waker,
            session_limit,
            expires: None,
            device: None,
            accesses: BTreeMap::new(),
            leaving: Vec::new(),
            sessions: HashMap::new(),
            ended: VecDeque::new(),
            next_access: 1,
            next_frame: 1,
            stopping: false,
        }
    }

    /// Serves until told to stop, or until no connection is left and `may_end` agrees.
    pub(super) fn run(mut self, may_end: impl Fn(&Receiver<Order>) -> bool) {
        loop {
            if self.is_idle() && (self.stopping || may_end(&self.orders)) {
                return;
            }
            if let Err(e) = self.turn() {
                log::error!(target: TARGET, "tunnel {:?}: poll: {e}", self.name);
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        let members = self.device.iter().count() + self.accesses.len() + self.leaving.len();
        members == 0 && self.orders.is_empty()
    }

    fn turn(&mut self) -> io::Result<()> {
        self.wait()?;
        let now = Instant::now();
        while let Ok(order) = self.orders.try_recv() {
            self.obey(order);
        }
        if self.expires.is_some_and(|at| now >= at) {
            self.expires = None;
            log::info!(target: TARGET, "tunnel {:?} has expired", self.name);
            self.close_all(EXPIRED, "expired");
        }
        self.pump_device();
        for key in self.accesses.keys().copied().collect::<Vec<_>>() {
            self.pump_access(key);
        }
        for peer in &mut self.leaving {
            peer.pump(|_, _, _| true);
        }
        self.give_up_unanswered(now);
        self.tick(now);
        self.flush();
        self.dismiss();
        Ok(())
    }

    /// Sleeps until there is something to do, and receives from who is ready.
    fn wait(&mut self) -> io::Result<()> {
        let (read_device, read_access) = (self.reads_device(), self.reads_accesses());
        let deadline = self.deadline(read_device, read_access);
        let mut fds = vec![crate::sys::PollFd::new(self.waker.as_fd(), true, false)];
        fds.extend(self.device.iter().map(|peer| peer.poll_fd(read_device)));
        fds.extend(self.accesses.values().map(|peer| peer.poll_fd(read_access)));
        fds.extend(self.leaving.iter().map(|peer| peer.poll_fd(true)));
        poll(&mut fds, deadline)?;
        let ready: Vec<_> = fds.iter().map(crate::sys::PollFd::ready).collect();
        drop(fds);
        if ready[0].read {
            self.waker.reset();
        }
        let device = self.device.iter_mut().map(|peer| (peer, read_device));
        let accesses = self.accesses.values_mut().map(|peer| (peer, read_access));
        let leaving = self.leaving.iter_mut().map(|peer| (peer, true));
        for ((peer, reads), ready) in device.chain(accesses).chain(leaving).zip(&ready[1..]) {
            if ready.read || reads && peer.is_held() {
                peer.receive();
            }
        }
        Ok(())
    }

    /// A source is read while what it feeds has room.
    fn reads_device(&self) -> bool {
        !self.accesses.values().any(Peer::is_full)
            && !self.device.as_ref().is_some_and(Peer::is_full)
    }

    fn reads_accesses(&self) -> bool {
        !self.device.as_ref().is_some_and(Peer::is_full)
    }

    fn deadline(&self, read_device: bool, read_access: bool) -> Option<Instant> {
        let now = Instant::now();
        let members = self.device.iter().chain(self.accesses.values()).chain(&self.leaving);
        let times = members.map(Peer::deadline);
        let times = times.chain(self.sessions.values().filter_map(|session| session.deadline));
        let times = times.chain(self.expires);
        let device = self.device.iter().any(|peer| read_device && peer.is_held());
        let access = self.accesses.values().any(|peer| read_access && peer.is_held());
        let leaving = self.leaving.iter().any(Peer::is_held);
        let at_once = (device || access || leaving).then_some(now);
        times.chain(at_once).min()
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Join(_, mut peer, _) if self.stopping => {
                peer.close(GOING_AWAY, "the gateway stops");
                self.leaving.push(*peer);
            }
            Order::Join(Side::Device, peer, expires) => {
                self.expires = expires;
                if let Some(mut old) = self.device.take() {
                    old.close(NORMAL, "replaced by a new connection");
                    self.leave_device(old);
                }
                log::info!(target: TARGET, "tunnel {:?}: device connected", self.name);
                self.device = Some(*peer);
            }
            Order::Join(Side::Access, peer, expires) => {
                self.expires = expires;
                let key = self.next_access;
                self.next_access += 1;
                log::info!(target: TARGET, "tunnel {:?}: access {key} connected", self.name);
                self.accesses.insert(key, *peer);
            }
            Order::ExpireAt(at) => self.expires = at,
            Order::Stop => {
                self.stopping = true;
                self.close_all(GOING_AWAY, "the gateway stops");
            }
        }
    }

    fn close_all(&mut self, code: u16, reason: &str) {
        for peer in self.device.iter_mut().chain(self.accesses.values_mut()) {
            peer.close(code, reason);
        }
        self.dismiss();
    }

    fn pump_device(&mut self) {
        let Some(mut device) = self.device.take() else { return };
        if self.reads_device() {
            device.pump(|frame, message, sender| {
                self.take_from_device(&frame, message, sender);
                self.reads_device()
            });
        }
        self.device = Some(device);
    }

    fn pump_access(&mut self, key: u64) {
        let Some(mut access) = self.accesses.remove(&key) else { return };
        if self.reads_accesses() {
            access.pump(|frame, message, sender| {
                self.take_from_access(key, &frame, message, sender);
                self.reads_accesses()
            });
        }
        self.accesses.insert(key, access);
    }

    fn take_from_device(&mut self, frame: &Frame<'_>, message: &[u8], device: &mut Sender) {
        let id = &*frame.session_id;
        let Some(session) = self.sessions.get_mut(id) else {
            if frame.frame_type == FrameType::DataTransport {
                self.report_unknown(id, release::ACCESS_LOST, device);
            }
            return;
        };
        let Some(access) = self.accesses.get_mut(&session.access).map(Peer::sender) else { return };
        match frame.frame_type {
            FrameType::DataTransport => access.binary(message, &[]),
            FrameType::SessionRelease => {
                access.binary(message, &[]);
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
                log::warn!(target: TARGET, "tunnel {:?}: session_create from a device", self.name);
            }
        }
    }

    fn take_from_access(
        &mut self,
        key: u64,
        frame: &Frame<'_>,
        message: &[u8],
        access: &mut Sender,
    ) {
        if frame.frame_type == FrameType::SessionCreate {
            return self.create(key, frame, access);
        }
        let id = &*frame.session_id;
        if self.sessions.get(id).is_none_or(|session| session.access != key) {
            if frame.frame_type == FrameType::DataTransport {
                self.report_unknown(id, release::DEVICE_LOST, access);
            }
            return;
        }
        let Some(device) = self.device_sender() else { return };
        match frame.frame_type {
            FrameType::DataTransport => device.binary(message, &[]),
            FrameType::SessionRelease => {
                device.binary(message, &[]);
                log::info!(target: TARGET, "tunnel {:?}: access released {id:?}", self.name);
                self.end(id);
            }
            FrameType::CommonResponse | FrameType::SessionCreate => {}
        }
    }

    fn device_sender(&mut self) -> Option<&mut Sender> {
        self.device.as_mut().filter(|device| device.is_open()).map(Peer::sender)
    }

    fn create(&mut self, access_key: u64, frame: &Frame<'_>, access: &mut Sender) {
        let Some(frame_id) = frame.frame_id else {
            log::warn!(target: TARGET, "tunnel {:?}: session_create without frame_id", self.name);
            return;
        };
        let service_type = frame.service_type.to_string();
        let id = format!("{:032x}", rand::random::<u128>());
        let deadline = Some(Instant::now() + RESPONSE_TIMEOUT);
        let session = Session { access: access_key, frame_id, service_type, deadline };
        let refuse = |access: &mut Sender, code, msg: &str| {
            log::info!(target: TARGET, "session_create refused: {msg}");
            respond(access, "", &session, &status(code, msg));
        };
        if self.sessions.len() >= self.session_limit {
            let msg = format!("the tunnel has {} sessions already", self.session_limit);
            return refuse(access, response::SESSION_LIMIT, &msg);
        }
        let own_frame_id = self.next_frame;
        let Some(device) = self.device_sender() else {
            return refuse(access, response::REFUSED, "the device is not connected");
        };
        let mut head = Vec::new();
        HeaderTemplate::new(FrameType::SessionCreate, &id, Some(&session.service_type))
            .write(own_frame_id, &mut head);
        device.binary(&head, &[]);
        self.next_frame += 1;
        log::info!(
            target: TARGET,
            "tunnel {:?}: session {id} for {:?}", self.name, session.service_type
        );
        self.sessions.insert(id, session);
    }

    /// Data of no session: tells its sender once.
    fn report_unknown(&mut self, id: &str, code: u8, sender: &mut Sender) {
        if id.is_empty() || self.ended.iter().any(|ended| ended == id) {
            return;
        }
        log::warn!(target: TARGET, "tunnel {:?}: data for unknown session {id:?}", self.name);
        let frame_id = self.frame_id();
        send_release(sender, id, frame_id, code, "no such session");
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

    fn frame_id(&mut self) -> u64 {
        self.next_frame += 1;
        self.next_frame - 1
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
            if let Some(access) = self.accesses.get_mut(&session.access) {
                let msg = status(response::REFUSED, "timeout: the device did not answer");
                respond(access.sender(), &id, session, &msg);
            }
            self.end(&id);
            let frame_id = self.frame_id();
            if let Some(device) = self.device_sender() {
                send_release(device, &id, frame_id, release::BY_ACCESS, "answered too late");
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        let (read_device, read_access) = (self.reads_device(), self.reads_accesses());
        self.device.iter_mut().for_each(|peer| peer.tick(now, read_device));
        self.accesses.values_mut().for_each(|peer| peer.tick(now, read_access));
        self.leaving.iter_mut().for_each(|peer| peer.tick(now, true));
    }

    fn flush(&mut self) {
        let members = self.device.iter_mut().chain(self.accesses.values_mut());
        members.chain(&mut self.leaving).for_each(Peer::flush);
    }

    /// Parts with peers that are open no more, and with their sessions.
    fn dismiss(&mut self) {
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
        self.leaving.iter_mut().for_each(Peer::flush);
        self.leaving.retain(|peer| !peer.is_gone());
        self.flush();
    }

    fn leave_device(&mut self, device: Peer) {
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
            let frame_id = self.frame_id();
            let Some(session) = self.sessions.get(&id) else { continue };
            if let Some(access) = self.accesses.get_mut(&session.access) {
                let msg = "the device's connection is lost";
                match session.deadline {
                    // It waits for a response, not for a release.
                    Some(_) => {
                        respond(access.sender(), &id, session, &status(response::REFUSED, msg));
                    }
                    None if access.is_open() => {
                        send_release(access.sender(), &id, frame_id, release::DEVICE_LOST, msg);
                    }
                    None => {}
                }
            } else if let Some(device) = self.device_sender() {
                let msg = "the access side's connection is lost";
                send_release(device, &id, frame_id, release::ACCESS_LOST, msg);
            }
            self.end(&id);
        }
    }
}

fn respond(access: &mut Sender, id: &str, session: &Session, payload: &[u8]) {
    let mut head = Vec::new();
    HeaderTemplate::new(FrameType::CommonResponse, id, Some(&session.service_type))
        .write(session.frame_id, &mut head);
    access.binary(&head, payload);
}

fn send_release(sender: &mut Sender, id: &str, frame_id: u64, code: u8, msg: &str) {
    let mut head = Vec::new();
    HeaderTemplate::new(FrameType::SessionRelease, id, None).write(frame_id, &mut head);
    sender.binary(&head, &status(code, msg));
}
