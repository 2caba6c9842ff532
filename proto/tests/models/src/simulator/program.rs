//! The programs at the two far ends: a client and a service, each with a local stream to its side
//! of the tunnel.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;
use std::time::{Duration, Instant};

use aiot_tunnel_proto::session::LocalStream;

/// What the kernel keeps for a reader that does not read.
const CAPACITY: usize = 64 * 1024;

/// One direction of a local stream.
#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    fin: bool,
    reset: bool,
    /// The reader is gone.
    closed: bool,
}

/// How a program saw its stream end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saw {
    Eof,
    Reset,
}

/// What a program does when it has sent everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Ends its direction and goes on reading.
    HalfCloses,
    /// Resets the stream.
    Resets,
    /// Keeps its direction open until it sees the end of the other.
    Waits,
}

/// What a program does.
#[derive(Debug, Clone)]
pub struct Script {
    /// How many bytes it sends.
    pub sends: usize,
    pub then: Then,
    /// Sends only after it has seen the end of the other direction.
    pub after_eof: bool,
    /// Bytes in a second that it reads.
    pub reads: f64,
    /// From when until when it reads nothing, counted from its start.
    pub pause: Option<(Duration, Duration)>,
}

/// A program at one end of a session.
#[derive(Debug)]
pub struct Program {
    pub script: Script,
    salt: u64,
    /// Of what it receives.
    far_salt: u64,
    began: Instant,
    last: Instant,
    /// What it may read at present.
    allowance: f64,
    pub sent: usize,
    pub received: usize,
    /// It has ended its direction in order.
    pub ended: bool,
    /// It has reset the stream.
    pub has_reset: bool,
    pub saw: Option<Saw>,
    to_program: Queue,
    to_tunnel: Queue,
}

pub type SharedProgram = Rc<RefCell<Program>>;

/// The byte at a place of a stream.
fn byte(salt: u64, at: usize) -> u8 {
    let mixed = (at as u64 ^ salt.wrapping_mul(0x9e37_79b9)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 32) as u8
}

impl Program {
    /// `salts`: of what it sends, and of what it receives.
    pub fn new(script: Script, salts: (u64, u64), now: Instant) -> SharedProgram {
        Rc::new(RefCell::new(Program {
            script,
            salt: salts.0,
            far_salt: salts.1,
            began: now,
            last: now,
            allowance: 0.0,
            sent: 0,
            received: 0,
            ended: false,
            has_reset: false,
            saw: None,
            to_program: Queue::default(),
            to_tunnel: Queue::default(),
        }))
    }

    fn is_paused(&self, now: Instant) -> bool {
        let age = now.duration_since(self.began);
        self.script.pause.is_some_and(|(from, to)| (from..to).contains(&age))
    }

    /// Lets the program read and write. Returns whether it did anything.
    pub fn step(&mut self, now: Instant) -> bool {
        let before = (self.sent, self.received, self.ended, self.saw);
        if self.is_paused(now) {
            self.last = now;
        } else {
            self.read(now);
        }
        let may_send = !self.script.after_eof || self.saw == Some(Saw::Eof);
        if may_send && !self.has_reset {
            self.write();
        }
        before != (self.sent, self.received, self.ended, self.saw)
    }

    fn read(&mut self, now: Instant) {
        let time = now.duration_since(std::mem::replace(&mut self.last, now)).as_secs_f64();
        self.allowance = (self.allowance + time * self.script.reads).min(CAPACITY as f64);
        let most = if self.script.reads.is_finite() { self.allowance as usize } else { usize::MAX };
        let length = self.to_program.bytes.len().min(most);
        for value in self.to_program.bytes.drain(..length) {
            assert_eq!(value, byte(self.far_salt, self.received), "a byte is lost or out of order");
            self.received += 1;
        }
        self.allowance -= if self.script.reads.is_finite() { length as f64 } else { 0.0 };
        if self.to_program.bytes.is_empty() && self.saw.is_none() {
            if self.to_program.reset {
                self.saw = Some(Saw::Reset);
            } else if self.to_program.fin {
                self.saw = Some(Saw::Eof);
            }
        }
    }

    fn write(&mut self) {
        if self.to_tunnel.closed {
            return;
        }
        let room = CAPACITY - self.to_tunnel.bytes.len();
        let length = room.min(self.script.sends - self.sent);
        let (salt, at) = (self.salt, self.sent);
        self.to_tunnel.bytes.extend((at..at + length).map(|at| byte(salt, at)));
        self.sent += length;
        if self.sent < self.script.sends || self.ended {
            return;
        }
        match self.script.then {
            Then::HalfCloses => (self.ended, self.to_tunnel.fin) = (true, true),
            Then::Waits if self.saw == Some(Saw::Eof) => {
                (self.ended, self.to_tunnel.fin) = (true, true);
            }
            Then::Waits => {}
            Then::Resets => {
                self.has_reset = true;
                self.to_tunnel.reset = true;
                self.to_program.closed = true;
            }
        }
    }

    /// When the program does something by itself.
    pub fn next_event(&self, now: Instant) -> Option<Instant> {
        let pause_ends = self.script.pause.map(|(_, to)| self.began + to).filter(|at| *at > now);
        let reads_on = self.script.reads.is_finite() && !self.to_program.bytes.is_empty();
        let tick = (reads_on && !self.is_paused(now)).then(|| now + Duration::from_millis(100));
        pause_ends.into_iter().chain(tick).min()
    }
}

/// The tunnel's end of a local stream.
pub struct ProgramStream {
    program: SharedProgram,
    resets: bool,
}

impl ProgramStream {
    pub fn new(program: SharedProgram) -> Self {
        ProgramStream { program, resets: false }
    }

    pub fn is_readable(&self) -> bool {
        let queue = &self.program.borrow().to_tunnel;
        !queue.bytes.is_empty() || queue.fin || queue.reset
    }

    pub fn is_writable(&self) -> bool {
        let queue = &self.program.borrow().to_program;
        queue.closed || queue.bytes.len() < CAPACITY
    }
}

impl Drop for ProgramStream {
    fn drop(&mut self) {
        let mut program = self.program.borrow_mut();
        // The kernel resets a stream that is closed with unread bytes.
        let unread = !program.to_tunnel.bytes.is_empty();
        if self.resets || unread {
            program.to_program.reset = true;
        } else {
            program.to_program.fin = true;
        }
        program.to_tunnel.closed = true;
        program.to_tunnel.bytes.clear();
    }
}

impl LocalStream for ProgramStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let queue = &mut self.program.borrow_mut().to_tunnel;
        let length = buffer.len().min(queue.bytes.len());
        if length > 0 {
            return io::Read::read(&mut queue.bytes, &mut buffer[..length]);
        }
        match (queue.reset, queue.fin) {
            (true, _) => Err(ErrorKind::ConnectionReset.into()),
            (false, true) => Ok(0),
            (false, false) => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let queue = &mut self.program.borrow_mut().to_program;
        if queue.closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let mut written = 0;
        for slice in slices {
            let length = slice.len().min(CAPACITY - queue.bytes.len());
            queue.bytes.extend(&slice[..length]);
            written += length;
        }
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        match (written, wanted) {
            (0, 1..) => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(written),
        }
    }

    fn shut_down(&mut self) {
        self.program.borrow_mut().to_program.fin = true;
    }

    fn reset_on_close(&mut self, resets: bool) {
        self.resets = resets;
    }

    fn unacked(&self) -> usize {
        0
    }
}
