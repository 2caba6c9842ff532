//! Between the cloud and the sessions: what each message, byte and tick leads to. The hot path.
//!
//! A turn is: take what the cloud sent, hand it to the local services, read the local services,
//! send it off. Each step is bounded, so a busy session delays its siblings by one turn at most.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::{Closing, Local, Outlet, Session, State, MAX_BATCH};
use crate::cloud::frame::{
    self, lost, release, response, Frame, FrameType, HeaderTemplate, Malformed, MAX_PAYLOAD_SENT,
};
use crate::cloud::websocket::{Incoming, Receiver, Sender};
use crate::cloud::{means_expired, ByteStream, Link};
use crate::config::{Limits, Services, Target, TunnelId};
use crate::logging::{debug, info, warn, Code, Complaints};
use crate::status::TunnelRecord;
use crate::sys::Ready;

/// One read from a local service at most.
const READ: usize = 15 * 4096;
/// How long until a transport that has room and takes nothing is offered it again.
const STUCK: Duration = Duration::from_millis(100);
/// Session ids whose end the cloud knows of; data for them is late, not wrong.
const REMEMBERED: usize = 256;

/// Why a connection is over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Lost(String),
    /// The cloud says that the token is no longer valid.
    Expired,
}

/// What is left to do for a frame.
#[derive(PartialEq, Eq)]
enum Step {
    Done,
    /// The session at this index has no room for it, or must hand over its batch first.
    Flush(usize),
    /// The session at this index is released by the cloud.
    Released(usize),
}

/// One open connection and its sessions. It reads no clock and waits for nothing: the worker says
/// what is ready and what time it is.
pub(crate) struct Relay<T: ByteStream, L: Local> {
    pub(crate) link: Link<T>,
    pub(crate) table: Table<L>,
    scratch: Vec<u8>,
    /// The sessions that are ready to be read, in the order of their reads.
    order: Vec<usize>,
    /// The busy session whose turn it is to be read, and how many bytes it has left of it.
    first: usize,
    left: usize,
    /// The other session that is read first: the one for which there was no room the last time.
    first_short: usize,
    /// The others left no room for busy ones the last time.
    starved: bool,
    /// The session whose full buffer stops the reading of the WebSocket.
    blocked: Option<usize>,
    /// The transport may have more to read than `poll` knows of.
    pub(crate) readable: bool,
    /// Whole messages wait in the receive buffer for room for their answers.
    undealt: bool,
    /// The last flush left bytes behind.
    backlog: bool,
    /// `poll` found room in the transport.
    pub(crate) writable: bool,
    /// It took nothing all the same: until when it is not asked again.
    stuck: Option<Instant>,
    /// Bytes that the cloud's kernel had acknowledged at the last ping, and had yet to.
    acknowledged: u64,
    unsent: usize,
    /// A close frame was sent or is to be: no other frame may follow.
    closed: bool,
    last_heard: Instant,
    next_ping: Instant,
}

/// The sessions, and the answers that frames lead to.
pub(crate) struct Table<L: Local> {
    pub(crate) sessions: Vec<Session<L>>,
    pub(crate) closing: Vec<Closing<L::Stream>>,
    gone: VecDeque<String>,
    id: TunnelId,
    services: Arc<Services>,
    limits: Limits,
    local: L,
    frame_id: u64,
    header: Vec<u8>,
    /// About a cloud that breaks the protocol, until the next ping.
    complaints: Complaints,
    /// The connection is over: no session is opened any more.
    over: bool,
    /// For snapshots.
    pub(crate) record: Option<Arc<TunnelRecord>>,
}

impl<T: ByteStream, L: Local> Relay<T, L> {
    pub(crate) fn new(
        link: Link<T>,
        id: TunnelId,
        services: Arc<Services>,
        limits: Limits,
        local: L,
        closing: Vec<Closing<L::Stream>>,
        now: Instant,
    ) -> Self {
        let next_ping = now + limits.ping_interval;
        let table = Table {
            sessions: Vec::new(),
            closing,
            gone: VecDeque::new(),
            id,
            services,
            limits,
            local,
            frame_id: 0,
            header: Vec::new(),
            complaints: Complaints::default(),
            over: false,
            record: None,
        };
        Relay {
            link,
            table,
            scratch: Vec::new(),
            order: Vec::new(),
            first: 0,
            left: READ,
            first_short: 0,
            starved: false,
            blocked: None,
            readable: true,
            undealt: false,
            backlog: false,
            writable: false,
            stuck: None,
            acknowledged: 0,
            unsent: 0,
            closed: false,
            last_heard: now,
            next_ping,
        }
    }

    /// Whether the WebSocket is to be read: not while a full session stops it, nor while a
    /// cloud that reads nothing lets our answers pile up.
    pub(crate) fn wants_cloud(&self) -> bool {
        self.blocked.is_none() && self.link.sender.len() < 2 * self.table.limits.send_buffer
    }

    /// Whether there is something to deal with that `poll` knows nothing of.
    pub(crate) fn is_ready(&self) -> bool {
        (self.readable || self.undealt) && self.wants_cloud()
    }

    /// Whether local services are to be read.
    pub(crate) fn wants_local(&self) -> bool {
        self.link.sender.len() < self.table.limits.send_buffer
    }

    /// Whether to wait for room in the transport. Where there is room but TLS wants to read before it
    /// writes, as in a renegotiation, that would return at once, again and again.
    pub(crate) fn wants_room(&self, now: Instant) -> bool {
        !self.link.sender.is_empty() && self.stuck.is_none_or(|until| now >= until)
    }

    /// The nearest time at which [`tick`](Self::tick) has something to do.
    pub(crate) fn deadline(&self, now: Instant) -> Instant {
        let limits = &self.table.limits;
        let mut nearest = self.next_ping.min(self.last_heard + limits.pong_timeout);
        nearest = self.stuck.map_or(nearest, |until| nearest.min(until));
        for session in &self.table.sessions {
            match (&session.state, session.blocked_since) {
                (State::Dialing { deadline, .. }, _) => nearest = nearest.min(*deadline),
                (State::Open(_), Some(since)) => {
                    nearest = nearest.min(since + limits.stall_timeout)
                }
                (State::Open(_), None) => {}
            }
        }
        self.table
            .closing
            .iter()
            .fold(nearest, |nearest, closing| nearest.min(closing.deadline(now)))
    }

    /// Deals with what `poll` found: the WebSocket when it is readable, and of the sessions those
    /// that are ready, in the table's order.
    pub(crate) fn turn(&mut self, now: Instant, ready: &[Ready]) -> Result<(), End> {
        let read = self.locals(now, ready);
        // Before the reading, which one of these may have stopped.
        self.table.expire_sessions(now, &mut self.link.sender);
        // With much to send, no more is received than was read: neither direction starves the other.
        let received = self.receive(now, if read < READ { usize::MAX } else { read });
        self.ping(now);
        let sent = self.send(now);
        self.step_closing(now);
        received.and(sent)?;
        let patience = self.table.limits.pong_timeout;
        if now >= self.last_heard + patience {
            return Err(End::Lost(format!("nothing from the cloud for {patience:?}")));
        }
        Ok(())
    }

    /// Reads the WebSocket as far as it is readable, one buffer and `most` bytes go, and deals
    /// with it.
    fn receive(&mut self, now: Instant, mut most: usize) -> Result<(), End> {
        self.deal(now)?;
        let mut over = None;
        while self.readable && most > 0 && self.wants_cloud() && !self.link.receiver.is_full() {
            let mut source = Read::take(&mut self.link.transport, most as u64);
            match self.link.receiver.fill(&mut source) {
                Ok(0) => over = Some("the cloud closed the connection".into()),
                Ok(length) => {
                    most -= length;
                    self.last_heard = now;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => over = Some(format!("receive from the cloud: {e}")),
            }
            if let Some(reason) = over {
                // What came before the end counts.
                self.deal(now)?;
                return Err(End::Lost(reason));
            }
        }
        self.deal(now)?;
        if self.blocked.is_some() {
            // Only silence while we read counts.
            self.last_heard = now;
        }
        Ok(())
    }

    /// Deals with the messages in the receive buffer, until it is empty or a session is full.
    fn deal(&mut self, now: Instant) -> Result<(), End> {
        self.blocked = None;
        let result = self.deal_messages(now);
        for (index, session) in self.table.sessions.iter_mut().enumerate() {
            if session.waiting() > 0 {
                session.flush(&self.link.receiver, now);
            }
            if self.blocked != Some(index) {
                session.blocked_since = None;
            }
        }
        result
    }

    fn deal_messages(&mut self, now: Instant) -> Result<(), End> {
        let Relay { link: Link { receiver, sender, .. }, table, blocked, undealt, closed, .. } =
            self;
        let hard_limit = 2 * table.limits.send_buffer;
        *undealt = true;
        while sender.len() < hard_limit {
            let incoming = match receiver.peek() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => {
                    *undealt = false;
                    break;
                }
                Err(violation) => {
                    *closed = true;
                    sender.close(Some(violation.close_code()));
                    return Err(End::Lost(format!("WebSocket protocol: {violation}")));
                }
            };
            match incoming {
                Incoming::Binary { message, at } => match Frame::parse(message) {
                    Ok(frame) => {
                        let at = at.map(|at| at + message.len() - frame.payload.len());
                        match table.frame(frame, at, sender, now) {
                            Step::Done => {}
                            Step::Released(index) => {
                                let session = &mut table.sessions[index];
                                info!(Code::Tunnel, "release the session: {}", session.id);
                                session.flush(receiver, now);
                                match session.state {
                                    State::Open(_) => table.close(index, now),
                                    // What it was sent still goes to its service.
                                    _ if session.waiting() > 0 => session.released = true,
                                    State::Dialing { .. } => {
                                        let why = "released before it was connected";
                                        table.release(index, why, sender, now);
                                    }
                                }
                            }
                            Step::Flush(index) => {
                                let session = &mut table.sessions[index];
                                let before = (session.waiting(), session.batched);
                                session.flush(receiver, now);
                                if (session.waiting(), session.batched) != before {
                                    continue;
                                }
                                session.blocked_since.get_or_insert(now);
                                *blocked = Some(index);
                                break;
                            }
                        }
                    }
                    Err(e) => {
                        table.complain(format_args!("a malformed frame is dropped: {e}"));
                        if matches!(e, Malformed::Payload(_)) {
                            if let Some(index) = table.find_lossy(message) {
                                table.cut_lossy(index, receiver, sender, now);
                            }
                        }
                    }
                },
                Incoming::TooLong { head, length } => {
                    table.complain(format_args!("a message of {length} bytes is dropped"));
                    if let Some(index) = table.find_lossy(head) {
                        table.cut_lossy(index, receiver, sender, now);
                    }
                }
                Incoming::Text => table.complain(format_args!("a text message is dropped")),
                Incoming::Ping(payload) => sender.pong(payload),
                Incoming::Pong => debug!(Code::Tunnel, "websocket {} pong", table.id),
                Incoming::Close(code) => {
                    *closed = true;
                    sender.close(code);
                    return Err(match code {
                        Some(code) if means_expired(code) => End::Expired,
                        Some(code) => End::Lost(format!("the cloud closed it with code {code}")),
                        None => End::Lost("the cloud closed it".into()),
                    });
                }
            }
            receiver.consume();
        }
        Ok(())
    }

    /// Moves the sessions' local sides on, as `poll` found them ready; the bytes that were read.
    fn locals(&mut self, now: Instant, ready: &[Ready]) -> usize {
        let read = self.read_locals(now, ready);
        // A read may have ended a session; then the next turn sees to the others.
        if self.table.sessions.len() != ready.len() {
            return read;
        }
        for index in (0..ready.len()).rev().filter(|index| ready[*index].write) {
            let session = &mut self.table.sessions[index];
            if let State::Dialing { dial, .. } = &mut session.state {
                if let Some(result) = self.table.local.step(dial, true) {
                    self.table.dialed(index, result, &mut self.link.sender, now);
                }
            } else {
                session.write_parked(now);
            }
        }
        read
    }

    /// Reads the local services that are ready, as far as there is room. Those whose last read
    /// was short go first: a keystroke does not wait for a file. The busy ones take turns at
    /// [`READ`] bytes each, in however many reads. Where there was no room for all, neither the
    /// short ones at the back nor the busy ones wait again.
    fn read_locals(&mut self, now: Instant, ready: &[Ready]) -> usize {
        let Relay { link: Link { sender, .. }, table, scratch, order, first, left, .. } = self;
        let (count, limit) = (ready.len(), table.limits.send_buffer);
        let is_bulk = |index: usize, table: &Table<L>| table.sessions[index].is_bulk;
        let ready_from = |from: usize, bulk: bool| {
            let in_turn = (from..from + count).map(move |index| index % count);
            let table = &*table;
            in_turn.filter(move |index| ready[*index].read && is_bulk(*index, table) == bulk)
        };
        order.clear();
        order.extend(ready_from(self.first_short, false));
        let short = order.len();
        order.extend(ready_from(*first, true));
        if order.is_empty() {
            return 0;
        }
        if std::mem::take(&mut self.starved) {
            order.rotate_left(short);
        }
        scratch.resize(READ, 0);
        let (mut read, mut read_bulk) = (0, false);
        // In the table's order, so that those at the back can be taken out first.
        let mut ended: Vec<(usize, Option<io::Error>)> = Vec::new();
        let mut end = |index, error| {
            ended.insert(ended.partition_point(|(other, _)| *other < index), (index, error))
        };
        for (position, &index) in order.iter().enumerate() {
            let Some(room @ 1..) = limit.checked_sub(sender.len()) else {
                if !is_bulk(index, table) {
                    self.first_short = index;
                }
                let left_out = &order[position..];
                self.starved = !read_bulk && left_out.iter().any(|index| is_bulk(*index, table));
                break;
            };
            let session = &mut table.sessions[index];
            let State::Open(outlet) = &mut session.state else { continue };
            let takes_turns = session.is_bulk;
            read_bulk |= takes_turns;
            if takes_turns && index != *first {
                (*first, *left) = (index, READ);
            }
            let most = if takes_turns { *left } else { READ };
            let share = room.max(MAX_PAYLOAD_SENT).min(most);
            match outlet.read(&mut scratch[..share]) {
                Ok(0) => end(index, None),
                Ok(length) => {
                    for payload in scratch[..length].chunks(MAX_PAYLOAD_SENT) {
                        table.frame_id += 1;
                        session.header.write(table.frame_id, &mut table.header);
                        sender.binary(&table.header, payload);
                    }
                    session.counters.add_to_cloud(length);
                    read += length;
                    // One that was cut short had more.
                    session.is_bulk = length == share || length > MAX_PAYLOAD_SENT.min(limit / 32);
                    if takes_turns {
                        *left -= length;
                        if length < share || *left == 0 {
                            (*first, *left) = (index + 1, READ);
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => end(index, Some(e)),
            }
        }
        while let Some((index, error)) = ended.pop() {
            let session = &self.table.sessions[index];
            let message = match error {
                None => format!("service {} closed the connection", session.service_type),
                Some(e) => format!("service {}: {e}", session.service_type),
            };
            self.table.release(index, &message, &mut self.link.sender, now);
        }
        read
    }

    /// Sends what waits for the cloud.
    fn send(&mut self, now: Instant) -> Result<(), End> {
        let before = self.link.sender.len();
        let result = self.link.sender.flush(&mut self.link.transport);
        // The kernel's queue was full and has room again: the cloud takes bytes, so it lives,
        // though its pong may stand far behind what it sends, or our ping behind what we send.
        let left = self.link.sender.len();
        let is_stuck = std::mem::take(&mut self.writable) && left > 0 && left == before;
        self.stuck = is_stuck.then(|| now + STUCK);
        if std::mem::replace(&mut self.backlog, left > 0) && left < before {
            self.last_heard = now;
        }
        result.map(drop).map_err(|e| End::Lost(format!("send to the cloud: {e}")))
    }

    /// Pings when it is time to.
    fn ping(&mut self, now: Instant) {
        if now < self.next_ping {
            return;
        }
        let limits = &self.table.limits;
        self.next_ping = now + limits.ping_interval;
        debug!(Code::Tunnel, "websocket {} ping", self.table.id);
        // Before the ping stands in it.
        self.link.sender.shrink();
        if self.link.sender.len() < 2 * limits.send_buffer {
            self.link.sender.ping();
        }
        // Of a long upload the kernel may hold more than the link moves in all that time, and our
        // ping stands behind it. A silent cloud's kernel has nothing left to acknowledge.
        let unsent = self.link.transport.unsent();
        let acknowledged = self.link.transport.written().saturating_sub(unsent as u64);
        if self.unsent > 0 && acknowledged > self.acknowledged {
            self.last_heard = now;
        }
        (self.acknowledged, self.unsent) = (acknowledged, unsent);
        self.link.transport.shrink();
        self.link.receiver.shrink();
        self.scratch = Vec::new();
        for session in &mut self.table.sessions {
            session.batch.shrink_to_fit();
        }
        self.table.forgive();
    }

    fn step_closing(&mut self, now: Instant) {
        if !self.table.closing.is_empty() {
            self.scratch.resize(READ, 0);
            let scratch = &mut self.scratch;
            self.table.closing.retain_mut(|closing| !closing.step(now, scratch));
        }
    }

    /// From now on what was received is handed on whatever room there is, and no session is
    /// opened: the connection is over.
    fn conclude(&mut self) {
        self.table.over = true;
        self.table.limits.session_buffer = usize::MAX;
        self.table.limits.send_buffer = usize::MAX / 2;
    }

    /// Says goodbye: every session is released, the WebSocket closed. Sends what goes at once.
    pub(crate) fn close(&mut self, now: Instant) {
        self.conclude();
        let _ = self.deal(now);
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        for index in (0..self.table.sessions.len()).rev() {
            self.table.release(index, lost::TUNNEL_CLOSED, &mut self.link.sender, now);
        }
        self.link.sender.close(Some(1000));
    }

    /// Ends the connection and gives back the sessions that still have bytes for their service.
    pub(crate) fn into_closing(mut self, now: Instant) -> (T, Vec<Closing<L::Stream>>) {
        let _ = self.send(now);
        if !self.closed {
            self.conclude();
            // Its last words may stand in the kernel behind a failed write.
            self.readable = true;
            let _ = self.receive(now, usize::MAX);
        }
        for index in (0..self.table.sessions.len()).rev() {
            self.table.close(index, now);
        }
        (self.link.transport, self.table.closing)
    }
}

impl<L: Local> Table<L> {
    /// The session of an id, as long as the cloud has not released it.
    fn find(&self, id: &str) -> Option<usize> {
        self.sessions.iter().position(|session| session.id == id && !session.released)
    }

    /// The session of a data frame that was too long to keep: it has lost bytes.
    fn find_lossy(&self, head: &[u8]) -> Option<usize> {
        let frame = Frame::parse_header(head).ok()?;
        let is_data = frame.frame_type == FrameType::DataTransport;
        is_data.then(|| self.find(&frame.session_id)).flatten()
    }

    /// Deals with one frame from the cloud; `at` is where its payload stands in the buffer.
    fn frame(
        &mut self,
        frame: Frame<'_>,
        at: Option<usize>,
        sender: &mut Sender,
        now: Instant,
    ) -> Step {
        match frame.frame_type {
            FrameType::DataTransport => return self.data(&frame, at, sender),
            FrameType::SessionCreate => self.create(&frame, sender, now),
            FrameType::SessionRelease => {
                if let Some(frame_id) = frame.frame_id {
                    let id = &frame.session_id;
                    respond(
                        sender,
                        id,
                        &frame.service_type,
                        frame_id,
                        response::SUCCESS,
                        "released",
                    );
                }
                if let Some(index) = self.find(&frame.session_id) {
                    return Step::Released(index);
                }
            }
            // The cloud's answer to a release of ours.
            FrameType::CommonResponse => {}
        }
        Step::Done
    }

    fn data(&mut self, frame: &Frame<'_>, at: Option<usize>, sender: &mut Sender) -> Step {
        let Some(index) = self.find(&frame.session_id) else {
            self.unknown_session(&frame.session_id, sender);
            return Step::Done;
        };
        let session = &mut self.sessions[index];
        let length = frame.payload.len();
        if length == 0 {
            return Step::Done;
        }
        let waiting = session.waiting();
        let is_full = waiting > 0 && waiting + length > self.limits.session_buffer;
        if is_full || session.batch.len() == MAX_BATCH {
            return Step::Flush(index);
        }
        match at {
            Some(at) => {
                session.batch.push(at..at + length);
                session.batched += length;
            }
            None if session.batched > 0 => return Step::Flush(index),
            None => session.parked.push(frame.payload),
        }
        session.counters.add_from_cloud(length);
        Step::Done
    }

    fn unknown_session(&mut self, id: &str, sender: &mut Sender) {
        if id.is_empty() || self.gone.iter().any(|gone| gone == id) {
            return;
        }
        self.complain(format_args!("data for unknown session {id} is dropped"));
        self.send_release(id, lost::UNKNOWN, sender);
    }

    fn complain(&mut self, what: std::fmt::Arguments<'_>) {
        if self.complaints.count() {
            warn!(Code::TunnelFailed, "{what}");
        }
    }

    fn forgive(&mut self) {
        if let more @ 1.. = self.complaints.forgive() {
            warn!(Code::TunnelFailed, "{more} more such messages were dropped");
        }
    }

    /// Begins to connect to a service, or says with which code and why not.
    fn admit(&self, id: &str, service_type: &str) -> Result<L::Dial, (u8, String)> {
        if self.over {
            return Err((response::REFUSED, lost::TUNNEL_CLOSED.into()));
        }
        if self.find(id).is_some() {
            return Err((response::REFUSED, "the session id is in use".into()));
        }
        let most = self.limits.max_sessions;
        let open = self.sessions.iter().filter(|session| !session.released).count();
        let alive = self.sessions.len() + self.closing.len();
        if open >= most || alive >= most + (most / 2).max(1) {
            return Err((response::SESSION_LIMIT, format!("the limit of {most} sessions")));
        }
        let Some(service) = self.services.get(service_type) else {
            return Err((response::REFUSED, format!("no service {service_type} here")));
        };
        let dial = match service.target() {
            Target::Tcp { host, port } => self.local.dial(host, port.get()),
            Target::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        };
        dial.map_err(|e| {
            let why = format!("connect to {} (service {service_type}): {e}", service.target());
            (response::REFUSED, why)
        })
    }

    fn create(&mut self, frame: &Frame<'_>, sender: &mut Sender, now: Instant) {
        let (id, service_type) = (&*frame.session_id, &*frame.service_type);
        let Some(frame_id) = frame.frame_id.filter(|_| !id.is_empty()) else {
            let what = "a session_create without frame_id or session_id is dropped";
            return self.complain(format_args!("{what}"));
        };
        if !self.complaints.are_many() {
            info!(Code::Tunnel, "new session session_id:{id}, type {service_type}");
        }
        let dial = match self.admit(id, service_type) {
            Ok(dial) => dial,
            Err((code, why)) => {
                self.complain(format_args!("session {id} is refused: {why}"));
                return respond(sender, id, service_type, frame_id, code, &why);
            }
        };
        self.gone.retain(|gone| gone != id);
        let deadline = now + self.limits.connect_timeout;
        self.sessions.push(Session {
            id: id.to_owned(),
            service_type: service_type.to_owned(),
            state: State::Dialing { dial, deadline, create_id: frame_id },
            header: HeaderTemplate::new(FrameType::DataTransport, id, None),
            batch: Vec::new(),
            batched: 0,
            parked: Default::default(),
            blocked_since: None,
            is_bulk: false,
            released: false,
            counters: Arc::default(),
        });
        let index = self.sessions.len() - 1;
        if let State::Dialing { dial, .. } = &mut self.sessions[index].state {
            if let Some(result) = self.local.step(dial, false) {
                self.dialed(index, result, sender, now);
            }
        }
    }

    /// A local connect has ended: answers the `session_create`.
    fn dialed(
        &mut self,
        index: usize,
        result: io::Result<L::Stream>,
        sender: &mut Sender,
        now: Instant,
    ) {
        let session = &mut self.sessions[index];
        let State::Dialing { create_id, .. } = session.state else { return };
        match result {
            Ok(stream) => {
                session.state = State::Open(Outlet::new(stream));
                let (id, service) = (&session.id, &session.service_type);
                let text = if session.released { "connected and released" } else { "success" };
                respond(sender, id, service, create_id, response::SUCCESS, text);
                session.write_parked(now);
                if session.released {
                    self.close(index, now);
                } else if let Some(record) = &self.record {
                    let (id, service) = (&session.id, &session.service_type);
                    record.session_opened(id, service, session.counters.clone());
                }
            }
            Err(e) => self.undialed(index, create_id, &e.to_string(), sender),
        }
    }

    fn undialed(&mut self, index: usize, create_id: u64, why: &str, sender: &mut Sender) {
        let session = self.sessions.remove(index);
        let (id, service_type) = (&session.id, &session.service_type);
        let at = self.services.get(service_type);
        let at = at.map(|service| service.target().to_string());
        let text = format!("connect to {} (service {service_type}): {why}", at.unwrap_or_default());
        self.complain(format_args!("session {id} is refused: {text}"));
        respond(sender, id, service_type, create_id, response::REFUSED, &text);
    }

    /// Ends sessions whose time is up.
    fn expire_sessions(&mut self, now: Instant, sender: &mut Sender) {
        for index in (0..self.sessions.len()).rev() {
            let session = &mut self.sessions[index];
            match &mut session.state {
                State::Dialing { dial, deadline, create_id } => {
                    let (expired, create_id) = (now >= *deadline, *create_id);
                    // A name may have been found in the meantime.
                    match self.local.step(dial, false) {
                        Some(result) => self.dialed(index, result, sender, now),
                        None if expired => self.undialed(index, create_id, "timed out", sender),
                        None => {}
                    }
                }
                State::Open(outlet) => {
                    if let Some(e) = outlet.take_failure() {
                        let why = format!("service {}: {e}", session.service_type);
                        self.cut(index, &why, sender, now);
                        continue;
                    }
                    let since = session.blocked_since;
                    if since.is_some_and(|since| now >= since + self.limits.stall_timeout) {
                        // Nothing of what waits can be written: there is nothing to wait for.
                        let mut session = self.sessions.remove(index);
                        if let State::Open(outlet) = &mut session.state {
                            outlet.abort();
                        }
                        let why = lost::STALLED;
                        warn!(Code::TunnelFailed, "session {}: {why}", session.id);
                        self.forget(&session.id);
                        self.say_released(&session.id, why, sender);
                    }
                }
            }
        }
    }

    /// A data frame was too long to keep: what came before it is handed on, and no more.
    fn cut_lossy(&mut self, index: usize, receiver: &Receiver, sender: &mut Sender, now: Instant) {
        self.sessions[index].flush(receiver, now);
        self.cut(index, lost::FRAME_TOO_LONG, sender, now);
    }

    /// Releases a session that has lost bytes for its service, which must not take what it gets
    /// for all.
    fn cut(&mut self, index: usize, why: &str, sender: &mut Sender, now: Instant) {
        let session = &mut self.sessions[index];
        if let State::Open(outlet) = &mut session.state {
            warn!(Code::TunnelFailed, "session {}: {why}", session.id);
            outlet.abort();
        }
        self.release(index, why, sender, now);
    }

    /// Ends a session from our side: by a release, or by the answer that its create awaits.
    fn release(&mut self, index: usize, why: &str, sender: &mut Sender, now: Instant) {
        if let State::Dialing { create_id, .. } = self.sessions[index].state {
            let session = self.sessions.remove(index);
            self.complain(format_args!("session {} is refused: {why}", session.id));
            let (id, service) = (&session.id, &session.service_type);
            return respond(sender, id, service, create_id, response::REFUSED, why);
        }
        let id = self.sessions[index].id.clone();
        self.close(index, now);
        self.say_released(&id, why, sender);
    }

    fn say_released(&mut self, id: &str, why: &str, sender: &mut Sender) {
        info!(Code::Tunnel, "release the session: {id}");
        self.send_release(id, why, sender);
    }

    fn send_release(&mut self, id: &str, why: &str, sender: &mut Sender) {
        self.frame_id += 1;
        HeaderTemplate::new(FrameType::SessionRelease, id, None)
            .write(self.frame_id, &mut self.header);
        sender.binary(&self.header, &frame::status(release::BY_DEVICE, why));
        if self.gone.len() == REMEMBERED {
            self.gone.pop_front();
        }
        self.gone.push_back(id.to_owned());
    }

    /// An open session ends, for snapshots.
    fn forget(&self, id: &str) {
        if let Some(record) = &self.record {
            record.session_closed(id);
        }
    }

    /// Takes a session out of the table; its last bytes still go to the local service.
    fn close(&mut self, index: usize, now: Instant) {
        let session = self.sessions.remove(index);
        if let State::Open(outlet) = session.state {
            if !session.released {
                self.forget(&session.id);
            }
            let stall = self.limits.stall_timeout;
            let mut closing = Closing::new(outlet, session.parked, stall, now);
            if !closing.step(now, &mut [0; 4096]) {
                self.closing.push(closing);
            }
        }
    }
}

fn respond(sender: &mut Sender, id: &str, service: &str, frame_id: u64, code: u8, msg: &str) {
    let mut header = Vec::new();
    HeaderTemplate::new(FrameType::CommonResponse, id, Some(service)).write(frame_id, &mut header);
    sender.binary(&header, &frame::status(code, msg));
}
