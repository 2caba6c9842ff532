//! One client of the socket. Its bytes are bounded in both directions, and nothing waits for it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;
use zeroize::Zeroizing;

use super::events::MAX_WAITING;
use super::protocol::{self, Answer, Refusal, Request, MAX_LINE};
use super::server::Agent;

/// While more than this waits for a client, its next request is not answered.
const MAX_ANSWERS: usize = 64 * 1024;
/// Bytes that are read and thrown away after the last answer. A close with unread bytes would make
/// the client see an error in place of the answer.
const MAX_DISCARDED: usize = 1024 * 1024;
const TOO_LONG: &str = "the line has more than 8192 bytes";

/// A connected client.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    pub(super) number: u64,
    /// What the last `poll` has found.
    pub(super) ready: PollFlags,
    input: Input,
    output: Output,
    state: State,
    /// An answer takes its time. Later requests wait for it.
    waits: bool,
    /// The client sends no more.
    has_ended: bool,
    pub(super) wants_events: bool,
    /// When it last sent something: the number of that turn of the server.
    pub(super) heard: u64,
}

enum State {
    /// Requests, one in each line.
    Requests,
    /// The header lines of an HTTP request.
    Head(Head),
    /// It has got its last answer. The number of bytes that were thrown away since.
    Leaving(usize),
}

struct Head {
    request: Vec<u8>,
    size: usize,
}

impl Client {
    pub(super) fn new(stream: UnixStream, number: u64, turn: u64) -> Self {
        Client {
            stream,
            number,
            ready: PollFlags::empty(),
            input: Input::default(),
            output: Output::default(),
            state: State::Requests,
            waits: false,
            has_ended: false,
            wants_events: false,
            heard: turn,
        }
    }

    /// A client for which there is no room: it gets this answer and has to leave.
    pub(super) fn refuse(&mut self, why: &str) {
        self.output.push(&protocol::line(&Answer::error(why)));
        self.leave();
        let _ = self.output.write_to(&self.stream);
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// What the server has to wait for.
    pub(super) fn interest(&self) -> PollFlags {
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, self.wants_input());
        interest.set(PollFlags::OUT, !self.output.is_empty());
        interest
    }

    /// Nothing that the client does matters now.
    pub(super) fn is_set_aside(&self) -> bool {
        self.waits && self.output.is_empty()
    }

    fn wants_input(&self) -> bool {
        !self.has_ended && !self.is_behind()
    }

    /// Its next request has to wait: it does not take its answers, or the last answer takes its time.
    fn is_behind(&self) -> bool {
        self.waits || self.output.len() >= MAX_ANSWERS
    }

    /// The answer that took its time.
    pub(super) fn end_wait(&mut self, line: &[u8]) {
        self.waits = false;
        self.output.push(line);
    }

    /// Does what can be done now. False: the client has gone.
    pub(super) fn serve(&mut self, agent: &Agent, turn: u64) -> bool {
        self.try_serve(agent, turn).unwrap_or(false)
    }

    fn try_serve(&mut self, agent: &Agent, turn: u64) -> io::Result<bool> {
        let may_read = self.ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        if may_read && self.wants_input() {
            match self.input.read_from(&self.stream) {
                Ok(0) => self.has_ended = true,
                Ok(_) if matches!(self.state, State::Leaving(_)) => {}
                Ok(_) => self.heard = turn,
                Err(e) if is_passing(&e) => {}
                Err(e) => return Err(e),
            }
        }
        loop {
            self.answer(agent);
            self.output.write_to(&self.stream)?;
            // It takes what it gets, so it may have more.
            if self.is_behind() || !self.input.has_line(self.has_ended) {
                break;
            }
        }
        if !self.output.is_empty() {
            return Ok(true);
        }
        Ok(match self.state {
            State::Leaving(discarded) => {
                // The client sees the end after its last answer.
                let _ = self.stream.shutdown(Shutdown::Write);
                !self.has_ended && discarded <= MAX_DISCARDED
            }
            _ if self.waits => true,
            _ if self.wants_events => !(self.has_ended && self.ready.contains(PollFlags::HUP)),
            _ => !self.has_ended,
        })
    }

    /// Adds events. False: too many wait already.
    pub(super) fn push_events(&mut self, lines: &[u8]) -> bool {
        if self.output.len() + lines.len() > MAX_WAITING {
            return false;
        }
        self.output.push(lines);
        self.output.write_to(&self.stream).is_ok()
    }

    /// Answers the requests that are there, until too much waits for the client.
    fn answer(&mut self, agent: &Agent) {
        while !self.is_behind() {
            if let State::Leaving(discarded) = &mut self.state {
                *discarded += self.input.clear();
                return;
            }
            let line = match self.input.next_line(self.has_ended) {
                Next::Line(line) => line,
                Next::Nothing => break,
                Next::TooLong => {
                    self.output.push(&protocol::line(&Answer::error(TOO_LONG)));
                    return self.leave();
                }
            };
            match &mut self.state {
                State::Requests if line.trim_ascii().is_empty() => {}
                State::Requests if super::metrics::is_http(line) => {
                    let size = line.len();
                    self.state = State::Head(Head { request: line.to_vec(), size });
                }
                State::Requests => match Request::parse(line) {
                    Ok(request) => {
                        self.wants_events |= request == Request::Events;
                        match agent.answer(request, self.number) {
                            Some(line) => self.output.push(&line),
                            None => self.waits = true,
                        }
                    }
                    Err(refusal) => {
                        let text = refusal.to_string();
                        self.output.push(&protocol::line(&Answer::error(&text)));
                        if matches!(refusal, Refusal::NotJson(_)) {
                            return self.leave();
                        }
                    }
                },
                State::Head(head) => {
                    head.size += line.len();
                    if line.trim_ascii().is_empty() || head.size > MAX_LINE {
                        return self.finish_http(agent);
                    }
                }
                State::Leaving(_) => {}
            }
        }
        if self.has_ended && matches!(self.state, State::Head(_)) {
            self.finish_http(agent);
        }
    }

    fn finish_http(&mut self, agent: &Agent) {
        let State::Head(head) = &self.state else { return };
        let answer = super::metrics::http(&head.request, head.size > MAX_LINE, agent);
        self.output.push(&answer);
        self.leave();
    }

    fn leave(&mut self) {
        self.wants_events = false;
        self.state = State::Leaving(self.input.clear());
    }
}

/// Whether a read or write may be tried again later.
fn is_passing(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Bytes that a client has sent. They may hold tokens, so they are wiped; a client that has sent
/// nothing costs nothing.
#[derive(Default)]
struct Input {
    /// It never grows beyond its first capacity: a growing vector leaves copies behind.
    bytes: Zeroizing<Vec<u8>>,
    start: usize,
    /// Up to here there is no line break behind `start`.
    searched: usize,
}

enum Next<'a> {
    Line(&'a [u8]),
    Nothing,
    TooLong,
}

impl Input {
    /// Reads once. There is room, because complete lines are taken out before.
    fn read_from(&mut self, mut stream: &UnixStream) -> io::Result<usize> {
        if self.bytes.capacity() == 0 {
            self.bytes = Zeroizing::new(Vec::with_capacity(MAX_LINE + 1));
        }
        let length = self.bytes.len() - self.start;
        self.bytes.copy_within(self.start.., 0);
        self.searched -= self.start;
        self.start = 0;
        self.bytes.resize(MAX_LINE + 1, 0);
        let read = stream.read(&mut self.bytes[length..]);
        self.bytes.truncate(length + read.as_ref().map_or(0, |read| *read));
        self.give_back();
        read
    }

    /// The next line. The last one may have no line break.
    fn next_line(&mut self, has_ended: bool) -> Next<'_> {
        let rest = &self.bytes[self.searched..];
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            let line = self.start..self.bytes.len();
            if line.len() > MAX_LINE {
                return Next::TooLong;
            }
            if !has_ended || line.is_empty() {
                self.give_back();
                return Next::Nothing;
            }
            self.start = line.end;
            return Next::Line(&self.bytes[line]);
        };
        let line = self.start..self.searched + length;
        self.start = line.end + 1;
        self.searched = self.start;
        Next::Line(&self.bytes[line])
    }

    fn has_line(&self, has_ended: bool) -> bool {
        let rest = &self.bytes[self.start..];
        rest.contains(&b'\n') || (has_ended && !rest.is_empty())
    }

    /// Throws everything away. Returns how many bytes that were.
    fn clear(&mut self) -> usize {
        let length = self.bytes.len() - self.start;
        *self = Input::default();
        length
    }

    /// Frees the memory when there is nothing in it.
    fn give_back(&mut self) {
        if self.start == self.bytes.len() {
            *self = Input::default();
        }
    }
}

/// Bytes that wait for a client.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    written: usize,
}

impl Output {
    fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.written > 0 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes what the client takes now.
    fn write_to(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while !self.is_empty() {
            match stream.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(length) => self.written += length,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        *self = Output::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of an input that came in these parts.
    fn lines(parts: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let (mut one, other) = UnixStream::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        let mut input = Input::default();
        let mut lines = Vec::new();
        let mut take = |input: &mut Input, has_ended| loop {
            match input.next_line(has_ended) {
                Next::Line(line) => lines.push(Some(line.to_vec())),
                Next::Nothing => break,
                Next::TooLong => {
                    lines.push(None);
                    input.clear();
                }
            }
        };
        for part in parts {
            one.write_all(part).unwrap();
            while input.read_from(&other).is_ok_and(|length| length > 0) {
                take(&mut input, false);
            }
        }
        drop(one);
        assert_eq!(input.read_from(&other).unwrap(), 0);
        take(&mut input, true);
        assert_eq!(input.bytes.capacity(), 0, "no memory without bytes");
        lines
    }

    #[test]
    fn lines_are_found_however_they_come() {
        let line = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(lines(&[b"a\nb\n"]), [line("a"), line("b")]);
        assert_eq!(lines(&[b"a", b"b\nc", b"\n", b"\n"]), [line("ab"), line("c"), line("")]);
        assert_eq!(lines(&[b"a\nlast"]), [line("a"), line("last")]);
        assert_eq!(lines(&[]), []);
        let longest = "x".repeat(MAX_LINE);
        assert_eq!(lines(&[longest.as_bytes(), b"\na"]), [line(&longest), line("a")]);
        assert_eq!(lines(&[longest.as_bytes()]), [line(&longest)]);
        let pipelined = "ab\n".repeat(10_000);
        assert_eq!(lines(&[pipelined.as_bytes()]).len(), 10_000);
    }

    #[test]
    fn a_line_that_is_too_long_is_found_before_its_end() {
        assert_eq!(lines(&[&[b'x'; MAX_LINE + 1]]), [None]);
    }
}
