//! The sessions of one WebSocket and their local connections.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::session::{Local, Session, State, STALL_TIMEOUT};
use super::{Error, Result, TARGET};
use crate::cloud::frame::{
    lost, release, response, status, Frame, FrameType, HeaderTemplate, Status, MAX_PAYLOAD_SENT,
};
use crate::cloud::websocket::Sender;
use crate::peer::{is_temporary, Peer, Received, FULL};
use crate::sys::{poll, PollFd, Waker};

/// Longer than the 10 s that the gateway gives the device.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// Local connections are read while less than this waits for the tunnel.
const SEND_BUFFER: usize = 64 * 1024;
/// How often a lingering session looks whether all is delivered.
const LINGER_CHECK: Duration = Duration::from_millis(200);
/// How long the end may take when stopped; else, how long without getting on, unless there is
/// but one session to end.
const PATIENCE: Duration = Duration::from_secs(5);
const NORMAL: u16 = 1000;
const EXPIRED: [Option<u16>; 2] = [Some(4001), Some(401)];

/// One WebSocket with its sessions.
pub(super) struct Relay<'a> {
    peer: Peer,
    service_type: &'a str,
    stop: &'a Waker,
    sessions: BTreeMap<u64, Session>,
    next_key: u64,
    next_frame: u64,
    /// The session that may send first; the turn after, it is the next.
    first: u64,
    /// Whether it serves a listener: sessions have siblings, and their ends are for the log.
    listening: bool,
    /// The last session's end, for a relay that serves but one.
    outcome: Result<()>,
}

impl<'a> Relay<'a> {
    pub(super) fn new(peer: Peer, service_type: &'a str, stop: &'a Waker) -> Self {
        Relay {
            peer,
            service_type,
            stop,
            sessions: BTreeMap::new(),
            next_key: 1,
            next_frame: 1,
            first: 0,
            listening: false,
            outcome: Ok(()),
        }
    }

    /// Asks for a session.
    pub(super) fn open(&mut self, local: Local) {
        let frame_id = next(&mut self.next_frame);
        let mut head = Vec::new();
        HeaderTemplate::new(FrameType::SessionCreate, "", Some(self.service_type))
            .write(frame_id, &mut head);
        self.peer.sender().binary(&head, &[]);
        let deadline = Instant::now() + RESPONSE_TIMEOUT;
        let session = Session {
            local,
            state: State::Opening { frame_id, deadline },
            id: String::new(),
            data: None,
            waiting: Vec::new(),
            written: 0,
            stalled: None,
            is_cut: false,
        };
        self.sessions.insert(next(&mut self.next_key), session);
    }

    /// Serves until stopped, until the WebSocket ends, or, without a listener, until no session
    /// is left and the tunnel has taken everything.
    pub(super) fn run(&mut self, listener: Option<&TcpListener>) -> Result<()> {
        self.listening = listener.is_some();
        let mut stopped = false;
        while self.peer.is_open() && !stopped {
            if listener.is_none() && self.sessions.is_empty() && self.peer.waiting() == 0 {
                break;
            }
            stopped = self.turn(listener)?;
        }
        let was_open = self.peer.is_open();
        let lost = Error::Connection(self.peer.reason().to_owned());
        let expired = EXPIRED.contains(&self.peer.close_code());
        // A tunnel that ends after its last session has ended takes nothing from it.
        let is_over = |session: &Session| {
            matches!(session.state, State::Draining | State::Lingering { .. } | State::Ended)
        };
        let was_over = listener.is_none() && self.sessions.values().all(is_over);
        if !was_open {
            let cut_off = self.sessions.values_mut().filter(|session| !is_over(session));
            cut_off.for_each(|session| session.is_cut = true);
        }
        self.close(stopped);
        if was_open || was_over {
            return std::mem::replace(&mut self.outcome, Ok(()));
        }
        Err(if expired { Error::Unauthorized } else { lost })
    }

    /// True when stopped.
    fn turn(&mut self, listener: Option<&TcpListener>) -> Result<bool> {
        let reads = self.reads_peer();
        let takes = self.peer.waiting() < SEND_BUFFER;
        let deadline = self.deadline(reads);
        let mut fds = vec![PollFd::new(self.stop.as_fd(), true, false), self.peer.poll_fd(reads)];
        fds.extend(self.sessions.values().map(|session| {
            let read = match session.state {
                State::Open => takes,
                State::Lingering { .. } => session.drops_input(),
                _ => false,
            };
            PollFd::new(session.local.as_fd(), read, session.waits() > 0)
        }));
        fds.extend(listener.map(|listener| PollFd::new(listener.as_fd(), true, false)));
        poll(&mut fds, Some(deadline))?;
        let ready: Vec<_> = fds.iter().map(PollFd::ready).collect();
        drop(fds);
        if ready[0].read {
            return Ok(true);
        }
        self.peer.receive(Instant::now(), ready[1].read, reads);
        let keys: Vec<u64> = self.sessions.keys().copied().collect();
        let readable = keys.iter().zip(&ready[2..]).filter(|(_, ready)| ready.read);
        self.send_locals(readable.map(|(key, _)| *key).collect());
        if let (Some(listener), Some(ready)) = (listener, ready.get(2 + keys.len())) {
            if ready.read {
                self.accept(listener);
            }
        }
        self.pump();
        self.settle();
        let reads = self.reads_peer();
        self.peer.tick(Instant::now(), reads);
        self.peer.flush(Instant::now());
        Ok(false)
    }

    fn reads_peer(&self) -> bool {
        self.sessions.values().all(|session| session.waits() < FULL)
    }

    fn deadline(&self, reads: bool) -> Instant {
        let now = Instant::now();
        let times = self.sessions.values().filter_map(|session| match session.state {
            State::Opening { deadline, .. } => Some(deadline),
            State::Lingering { .. } => Some(now + LINGER_CHECK),
            _ if self.listening => session.stalled.map(|since| since + STALL_TIMEOUT),
            _ => None,
        });
        times.fold(self.peer.deadline(now, reads), Instant::min)
    }

    fn accept(&mut self, listener: &TcpListener) {
        match listener.accept() {
            Ok((stream, _)) => {
                let prepared = stream.set_nonblocking(true).and(stream.set_nodelay(true));
                match prepared {
                    Ok(()) => self.open(Local::Tcp(stream)),
                    Err(e) => log::warn!(target: TARGET, "local connection: {e}"),
                }
            }
            Err(e) if is_temporary(&e) => {}
            Err(e) => {
                log::warn!(target: TARGET, "accept: {e}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Sends what these local ends have, each its share of the room, and another one first each
    /// time: an upload must not starve its siblings.
    fn send_locals(&mut self, mut keys: Vec<u64>) {
        if keys.is_empty() {
            return;
        }
        let room = SEND_BUFFER.saturating_sub(self.peer.waiting());
        let share = (room / keys.len()).max(MAX_PAYLOAD_SENT);
        let first = keys.partition_point(|key| *key < self.first);
        keys.rotate_left(first);
        self.first = keys[0] + 1;
        for key in keys {
            self.send_local(key, share);
        }
    }

    /// Sends what the local end has, about its share of it, while the tunnel takes it.
    fn send_local(&mut self, key: u64, mut share: usize) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let (State::Open, Some(template)) = (&session.state, &session.data) else { return };
        let mut head = Vec::new();
        let mut payload = [0; MAX_PAYLOAD_SENT];
        while share > 0 && self.peer.waiting() < SEND_BUFFER {
            match session.local.read(&mut payload) {
                Ok(length) if length > 0 => {
                    share = share.saturating_sub(length);
                    template.write(next(&mut self.next_frame), &mut head);
                    self.peer.sender().binary(&head, &payload[..length]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                end => {
                    let frame_id = next(&mut self.next_frame);
                    // The other side must not take what it got for all.
                    let msg = match end {
                        Ok(_) => "closed".to_owned(),
                        Err(e) => format!("local connection: {e}"),
                    };
                    send_release(self.peer.sender(), &session.id, frame_id, &msg);
                    session.state = State::Draining;
                    return;
                }
            }
        }
    }

    fn pump(&mut self) {
        if !self.reads_peer() {
            return;
        }
        let (sessions, listening) = (&mut self.sessions, self.listening);
        let (outcome, service_type) = (&mut self.outcome, self.service_type);
        let next_frame = &mut self.next_frame;
        self.peer.pump(Instant::now(), |received, sender| {
            let frame = match received {
                Received::Frame(frame) => frame,
                Received::LostData(frame) => {
                    lost_data(sessions, outcome, &frame, sender, next_frame);
                    report(listening, outcome);
                    return true;
                }
            };
            match frame.frame_type {
                FrameType::CommonResponse => {
                    answered(sessions, outcome, &frame, sender, next_frame);
                    report(listening, outcome);
                    true
                }
                FrameType::SessionRelease => {
                    released(sessions, outcome, &frame, service_type, listening);
                    report(listening, outcome);
                    true
                }
                FrameType::DataTransport => {
                    let id = &frame.session_id;
                    let session = sessions.values_mut().find(|session| session.id == *id);
                    let Some(session) = session else { return true };
                    if matches!(session.state, State::Open) {
                        session.waiting.extend_from_slice(frame.payload);
                    }
                    session.waits() < FULL
                }
                FrameType::SessionCreate => true,
            }
        });
    }

    /// Writes to the local ends and parts with the sessions that are over.
    fn settle(&mut self) {
        let now = Instant::now();
        for session in self.sessions.values_mut() {
            let before = session.waits();
            let mut is_there = session.flush();
            let is_stuck = session.waits() >= FULL && session.waits() == before;
            session.stalled = if is_stuck { session.stalled.or(Some(now)) } else { None };
            if self.listening && session.stalled.is_some_and(|at| now >= at + STALL_TIMEOUT) {
                log::warn!(target: TARGET, "session ended: its local end takes nothing");
                (is_there, session.is_cut) = (false, true);
            }
            match session.state {
                State::Opening { deadline, .. } if now >= deadline => {
                    let msg = "no response within 15 s".to_owned();
                    self.outcome = Err(Error::Refused { code: 2, msg });
                    session.state = State::Ended;
                }
                State::Open if !is_there => {
                    let frame_id = next(&mut self.next_frame);
                    let msg = "the local program takes nothing more";
                    send_release(self.peer.sender(), &session.id, frame_id, msg);
                    session.state = State::Ended;
                }
                State::Draining if !is_there => session.state = State::Ended,
                State::Draining if session.waits() == 0 => {
                    if !session.is_cut {
                        session.local.end();
                    }
                    session.state = session.linger(now, usize::MAX, now);
                }
                State::Lingering { progress, left } => {
                    session.state = session.linger(progress, left, now);
                }
                _ => {}
            }
        }
        report(self.listening, &mut self.outcome);
        self.sessions.retain(|_, session| !matches!(session.state, State::Ended));
    }

    /// Delivers what was received and what was sent, then closes the WebSocket.
    fn close(&mut self, mut stopped: bool) {
        for session in self.sessions.values_mut() {
            if let (State::Open, true) = (&session.state, self.peer.is_open()) {
                let frame_id = next(&mut self.next_frame);
                send_release(self.peer.sender(), &session.id, frame_id, "stopped");
            }
            if matches!(session.state, State::Opening { .. } | State::Open) {
                session.state = State::Draining;
            }
        }
        let begun = Instant::now();
        if stopped {
            self.peer.close(NORMAL, "done", begun);
        } else {
            self.peer.close_gently(NORMAL, "done", begun);
        }
        let (mut since, mut left) = (begun, usize::MAX);
        self.settle();
        while !(self.peer.is_gone() && self.sessions.is_empty()) {
            let now = Instant::now();
            let waits = self.sessions.values().map(Session::waits).sum();
            if waits < left && !stopped {
                (since, left) = (now, waits);
            }
            let give_up = (self.listening || stopped).then_some(since + PATIENCE);
            if give_up.is_some_and(|at| now >= at) {
                return;
            }
            let mut fds =
                vec![self.peer.poll_fd(true), PollFd::new(self.stop.as_fd(), !stopped, false)];
            fds.extend(self.sessions.values().map(|session| {
                let lingers = matches!(session.state, State::Lingering { .. });
                let reads = lingers && session.drops_input();
                PollFd::new(session.local.as_fd(), reads, session.waits() > 0)
            }));
            let lingers = |session: &Session| matches!(session.state, State::Lingering { .. });
            let check = self.sessions.values().any(lingers).then_some(now + LINGER_CHECK);
            let peer = (!self.peer.is_gone()).then(|| self.peer.deadline(now, true));
            if poll(&mut fds, give_up.into_iter().chain(check).chain(peer).min()).is_err() {
                return;
            }
            let (readable, told) = (fds[0].ready().read, fds[1].ready().read);
            drop(fds);
            let now = Instant::now();
            if told {
                (stopped, since) = (true, now);
            }
            self.peer.receive(now, readable, true);
            self.peer.pump(now, |_, _| true);
            self.settle();
            self.peer.tick(now, true);
            self.peer.flush(now);
        }
    }
}

type Sessions = BTreeMap<u64, Session>;

fn answered(
    sessions: &mut Sessions,
    outcome: &mut Result<()>,
    frame: &Frame<'_>,
    sender: &mut Sender,
    next_frame: &mut u64,
) {
    let asked = |session: &&mut Session| match session.state {
        State::Opening { frame_id, .. } => frame.frame_id == Some(frame_id),
        _ => false,
    };
    let status = Status::parse(frame.payload);
    let code = status.as_ref().map_or(i64::from(response::REFUSED), |status| status.code);
    let Some(session) = sessions.values_mut().find(asked) else {
        // Its local end has gone meanwhile: a session that nobody wants.
        let in_use = sessions.values().any(|session| session.id == frame.session_id);
        if code == 0 && !frame.session_id.is_empty() && !in_use {
            send_release(sender, &frame.session_id, next(next_frame), "closed");
        }
        return;
    };
    if code == i64::from(response::SUCCESS) && !frame.session_id.is_empty() {
        session.id = frame.session_id.to_string();
        session.data = Some(HeaderTemplate::new(FrameType::DataTransport, &session.id, None));
        session.state = State::Open;
    } else {
        let msg = quoted(status);
        *outcome = Err(Error::Refused { code, msg });
        session.state = State::Ended;
    }
}

fn released(
    sessions: &mut Sessions,
    outcome: &mut Result<()>,
    frame: &Frame<'_>,
    service_type: &str,
    listening: bool,
) {
    let Some(session) = sessions.values_mut().find(|session| session.id == frame.session_id) else {
        return;
    };
    if !matches!(session.state, State::Open) {
        return;
    }
    let status = Status::parse(frame.payload);
    let code = status.as_ref().map_or(i64::from(release::BY_DEVICE), |status| status.code);
    let is_loss = code > i64::from(release::BY_DEVICE);
    let is_odd = status.as_ref().is_some_and(|status| tells_of_loss(&status.msg, service_type));
    session.is_cut = is_loss;
    session.state = State::Draining;
    if is_loss || is_odd && !listening {
        *outcome = Err(Error::Released { code, msg: quoted(status) });
    } else if is_odd {
        // The protocol has no code that tells a service's reset from its end.
        log::warn!(target: TARGET, "session ended by the device: {}", quoted(status));
    }
}

/// Whether these are our own device's words for a session that it could not bring to its end. The
/// words of other devices tell nothing: code 1 is an orderly end.
fn tells_of_loss(msg: &str, service_type: &str) -> bool {
    let of_service = msg.strip_prefix("service ").and_then(|msg| msg.strip_prefix(service_type));
    let failed = of_service.is_some_and(|reason| reason.starts_with(": "));
    let given_up = [lost::STALLED, lost::TUNNEL_CLOSED, lost::FRAME_TOO_LONG, lost::UNKNOWN];
    failed || given_up.contains(&msg)
}

/// Data of a session did not get through: it cannot go on.
fn lost_data(
    sessions: &mut Sessions,
    outcome: &mut Result<()>,
    frame: &Frame<'_>,
    sender: &mut Sender,
    next_frame: &mut u64,
) {
    let is_it = |session: &&mut Session| {
        session.id == frame.session_id && matches!(session.state, State::Open)
    };
    let Some(session) = sessions.values_mut().find(is_it) else { return };
    let msg = lost::FRAME_TOO_LONG;
    send_release(sender, &session.id, next(next_frame), msg);
    (session.is_cut, session.state) = (true, State::Draining);
    *outcome = Err(Error::Lost(msg));
}

/// Where sessions come and go, a failed one is for the log and not for the relay's caller.
fn report(listening: bool, outcome: &mut Result<()>) {
    if let (true, Err(e)) = (listening, &*outcome) {
        log::error!(target: TARGET, "{e}");
        *outcome = Ok(());
    }
}

/// A peer's words on one line, whatever they hold.
fn quoted(status: Option<Status>) -> String {
    format!("{:?}", status.map_or("no reason given".to_owned(), |status| status.msg))
}

fn send_release(sender: &mut Sender, id: &str, frame_id: u64, msg: &str) {
    let mut head = Vec::new();
    HeaderTemplate::new(FrameType::SessionRelease, id, None).write(frame_id, &mut head);
    sender.binary(&head, &status(release::BY_ACCESS, msg));
}

fn next(counter: &mut u64) -> u64 {
    *counter += 1;
    *counter - 1
}
