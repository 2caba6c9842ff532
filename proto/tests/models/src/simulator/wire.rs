//! A link between two ends of a connection: rate, delay, pauses, loss, and the death of an end.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::connection::Transport;

/// Most bytes that the sender's kernel takes.
const SEND_BUFFER: usize = 512 * 1024;
/// Most bytes that the receiver's kernel keeps unread.
const RECEIVE_BUFFER: usize = 256 * 1024;
const SEGMENT: usize = 1448;

/// The virtual clock. All parts of a world share it.
pub type Clock = Rc<Cell<Instant>>;

/// How a link behaves.
#[derive(Debug, Clone, Copy)]
pub struct LinkShape {
    /// Bytes in a second, in each direction.
    pub rate: f64,
    /// The time that a byte is under way.
    pub delay: Duration,
}

/// One direction of a link.
struct Pipe {
    shape: LinkShape,
    unsent: VecDeque<u8>,
    /// Segments under way, with the time of their arrival.
    flying: VecDeque<(Instant, Vec<u8>)>,
    flying_bytes: usize,
    /// Acknowledgements under way: the time, and the number of bytes in all.
    acks: VecDeque<(Instant, u64)>,
    received: VecDeque<u8>,
    arrived: u64,
    /// When the link is free for the next segment.
    free_at: Instant,
    written: u64,
    acked: u64,
    limit: usize,
    /// The sender has ended the direction.
    fin: bool,
    /// The direction ended in a reset.
    reset: bool,
    /// The receiver is gone.
    closed: bool,
}

impl Pipe {
    fn new(shape: LinkShape, now: Instant) -> Self {
        Pipe {
            shape,
            unsent: VecDeque::new(),
            flying: VecDeque::new(),
            flying_bytes: 0,
            acks: VecDeque::new(),
            received: VecDeque::new(),
            arrived: 0,
            free_at: now,
            written: 0,
            acked: 0,
            limit: SEND_BUFFER,
            fin: false,
            reset: false,
            closed: false,
        }
    }

    fn has_window(&self) -> bool {
        self.flying_bytes + self.received.len() < RECEIVE_BUFFER
    }

    /// Moves everything whose time has come.
    fn advance(&mut self, now: Instant) {
        while !self.unsent.is_empty() && self.has_window() && self.free_at <= now {
            let length = self.unsent.len().min(SEGMENT);
            let segment: Vec<u8> = self.unsent.drain(..length).collect();
            let time = Duration::from_secs_f64(length as f64 / self.shape.rate);
            self.free_at = self.free_at.max(now) + time;
            self.flying_bytes += length;
            self.flying.push_back((self.free_at + self.shape.delay, segment));
        }
        while let Some((at, _)) = self.flying.front().filter(|(at, _)| *at <= now) {
            self.acks.push_back((*at + self.shape.delay, 0));
            let Some((_, segment)) = self.flying.pop_front() else { break };
            self.flying_bytes -= segment.len();
            self.arrived += segment.len() as u64;
            if let Some(ack) = self.acks.back_mut() {
                ack.1 = self.arrived;
            }
            if !self.closed {
                self.received.extend(segment);
            }
        }
        while let Some((_, acked)) = self.acks.pop_front_if(|(at, _)| *at <= now) {
            self.acked = acked;
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let segment = (!self.unsent.is_empty() && self.has_window()).then_some(self.free_at);
        let arrival = self.flying.front().map(|(at, _)| *at);
        let ack = self.acks.front().map(|(at, _)| *at);
        [segment, arrival, ack].into_iter().flatten().min()
    }

    fn is_readable(&self) -> bool {
        let is_over = self.fin && self.unsent.is_empty() && self.flying.is_empty();
        !self.received.is_empty() || is_over || self.reset
    }

    fn is_writable(&self) -> bool {
        self.reset || self.closed || self.unsent.len() * 2 < self.limit.min(SEND_BUFFER)
    }
}

/// What both ends of a link share.
struct Line {
    pipes: [Pipe; 2],
    /// Until when nothing gets through.
    dead_until: Option<Instant>,
}

/// A handle on a link, for whoever disturbs it.
#[derive(Clone)]
pub struct Link {
    line: Rc<RefCell<Line>>,
    clock: Clock,
}

/// One end of a link.
pub struct LinkEnd {
    link: Link,
    /// Which pipe this end writes to. It reads from the other.
    out: usize,
}

impl Link {
    /// A link and its two ends.
    pub fn new(shape: LinkShape, clock: &Clock) -> (Link, LinkEnd, LinkEnd) {
        let now = clock.get();
        let line = Line { pipes: [Pipe::new(shape, now), Pipe::new(shape, now)], dead_until: None };
        let link = Link { line: Rc::new(RefCell::new(line)), clock: clock.clone() };
        let end = |out| LinkEnd { link: link.clone(), out };
        let (one, other) = (end(0), end(1));
        (link, one, other)
    }

    /// Moves what is under way. Returns whether anything may have changed for an end.
    pub fn advance(&self) {
        let now = self.clock.get();
        let mut line = self.line.borrow_mut();
        if line.dead_until.is_none_or(|until| now >= until) {
            line.dead_until = None;
            line.pipes.iter_mut().for_each(|pipe| pipe.advance(now));
        }
    }

    /// When the next byte moves.
    pub fn next_event(&self) -> Option<Instant> {
        let line = self.line.borrow();
        match line.dead_until {
            Some(until) => Some(until),
            None => line.pipes.iter().filter_map(Pipe::next_event).min(),
        }
    }

    /// Resets the connection.
    pub fn cut(&self) {
        for pipe in &mut self.line.borrow_mut().pipes {
            pipe.reset = true;
            pipe.unsent.clear();
            pipe.flying.clear();
            pipe.flying_bytes = 0;
        }
    }

    /// Lets nothing through for a while. Nothing is lost.
    pub fn pause(&self, time: Duration) {
        self.line.borrow_mut().dead_until = Some(self.clock.get() + time);
    }

    /// Whether an end still holds the link.
    pub fn is_over(&self) -> bool {
        Rc::strong_count(&self.line) == 1
    }
}

impl LinkEnd {
    pub fn is_readable(&self) -> bool {
        self.link.line.borrow().pipes[1 - self.out].is_readable()
    }

    pub fn is_writable(&self) -> bool {
        self.link.line.borrow().pipes[self.out].is_writable()
    }

    /// Whether the other end has closed its direction, read or not.
    pub fn is_closed(&self) -> bool {
        let line = self.link.line.borrow();
        let pipe = &line.pipes[1 - self.out];
        pipe.reset || pipe.fin && pipe.unsent.is_empty() && pipe.flying.is_empty()
    }
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        let mut line = self.link.line.borrow_mut();
        line.pipes[self.out].fin = true;
        line.pipes[1 - self.out].closed = true;
    }
}

impl Read for LinkEnd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut line = self.link.line.borrow_mut();
        let pipe = &mut line.pipes[1 - self.out];
        let length = buffer.len().min(pipe.received.len());
        if length > 0 {
            return pipe.received.read(&mut buffer[..length]);
        }
        match pipe.reset {
            true => Err(ErrorKind::ConnectionReset.into()),
            false if pipe.is_readable() => Ok(0),
            false => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for LinkEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = self.link.line.borrow_mut();
        let pipe = &mut line.pipes[self.out];
        if pipe.reset || pipe.closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let length = bytes.len().min(SEND_BUFFER.saturating_sub(pipe.unsent.len()));
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        pipe.unsent.extend(&bytes[..length]);
        pipe.written += length as u64;
        let now = self.link.clock.get();
        if line.dead_until.is_none() {
            line.pipes[self.out].advance(now);
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for LinkEnd {
    fn written(&self) -> u64 {
        self.link.line.borrow().pipes[self.out].written
    }

    fn unacked(&self) -> usize {
        let line = self.link.line.borrow();
        let pipe = &line.pipes[self.out];
        (pipe.written - pipe.acked) as usize
    }

    fn unsent(&self) -> usize {
        self.link.line.borrow().pipes[self.out].unsent.len()
    }

    fn round_trip(&self) -> Option<Duration> {
        Some(2 * self.link.line.borrow().pipes[self.out].shape.delay)
    }

    fn limit_unsent(&mut self, bytes: usize) {
        self.link.line.borrow_mut().pipes[self.out].limit = bytes;
    }

    fn shut_down(&mut self) {
        self.link.line.borrow_mut().pipes[self.out].fin = true;
    }
}
