//! A client and a service that exchange bytes over one TCP stream, by a script from a seed: with
//! pauses, half-closes, resets and deaths of either end. What each of them saw is judged by one
//! rule: a stream ends in order only if the far end has ended it in order and nothing is missing.
//!
//! The two ends are in one process and share an [`Exchanges`]. What lies between them, and what
//! harms it, is not known here.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use crate::faults::Damage;
use crate::random::{self, magnitude, permille, Generator};
use crate::sockets::{is_temporary, ready, reset_on_close};
use crate::wait;

/// An end that sees nothing happen for so long hangs. Pauses come on top.
const SILENCE: Duration = Duration::from_secs(60);
/// A service begins no later than this after the end of its client: the client's connection may wait
/// for a session for 30 s.
const LATE: Duration = Duration::from_secs(60);
/// What a client sends first: which exchange this is.
const HEAD: usize = 16;
/// Mixed into an exchange's number, so that a head cannot be taken for other bytes.
const MARK: u64 = 0x6578_6368_616e_6765;

/// What one end does when it has sent everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Ends its direction and goes on reading.
    HalfCloses,
    /// Keeps its direction open until the other has ended.
    Waits,
}

/// How an end leaves before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// It resets the stream.
    Resets,
    /// It dies: the kernel closes its socket.
    Dies,
}

/// What one end does.
#[derive(Clone, Debug)]
pub struct Part {
    /// Bytes that it sends, without the head.
    pub bytes: usize,
    /// Sends only when the other direction has ended: an answer to a whole request.
    pub answers: bool,
    pub then: Then,
    /// Leaves when so many bytes have been sent and received in all.
    pub leaves: Option<(usize, Leaves)>,
    /// Reads nothing for so long when so many bytes have been received. In the order of the bytes.
    pub pauses: Vec<(usize, Duration)>,
}

/// What the scripts of a run may contain.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most bytes of a direction.
    pub bytes: u64,
    /// Ordinary pauses of a reader, in milliseconds.
    pub pause: u64,
    /// How many of a thousand exchanges have one long pause, and how long it is at most.
    pub long_pauses: u32,
    pub long_pause: u64,
    /// How many of a thousand ends leave before their time.
    pub leaves: u32,
}

/// One exchange as it should go.
#[derive(Clone, Debug)]
pub struct Script {
    pub seed: u64,
    /// Whether the tunnel between the ends has half-close. Otherwise a service is not told that its
    /// client has ended its direction, and a service that ends its direction ends both.
    pub extensions: bool,
    pub client: Part,
    pub service: Part,
}

impl Script {
    pub fn random(random: &mut Generator, extensions: bool, bounds: Bounds) -> Self {
        let seed = random.next_u64();
        let bytes = |random: &mut Generator| match random.random_range(0..8) {
            0 => 0,
            _ => magnitude(random, bounds.bytes) as usize,
        };
        let (up, down) = (bytes(random), bytes(random));
        let part = |random: &mut Generator, sends: usize, receives: usize| {
            let mut pauses: Vec<(usize, Duration)> = (0..random.random_range(0..3))
                .map(|_| {
                    let at = random.random_range(0..=receives);
                    (at, Duration::from_millis(magnitude(random, bounds.pause)))
                })
                .collect();
            pauses.sort();
            let leaves = permille(random, bounds.leaves).then(|| {
                let how = [Leaves::Resets, Leaves::Dies][random.random_range(0..2)];
                (random.random_range(0..=sends + receives), how)
            });
            let then = if permille(random, 250) { Then::Waits } else { Then::HalfCloses };
            Part { bytes: sends, answers: false, then, leaves, pauses }
        };
        let mut client = part(random, up, down);
        let mut service = part(random, down, up);
        if let (Some((_, how)), false) = (&mut client.leaves, extensions) {
            // Without half-close, nothing but a time-out would tell the service of its death.
            *how = Leaves::Resets;
        }
        if permille(random, bounds.long_pauses) {
            let time = Duration::from_millis(magnitude(random, bounds.long_pause));
            let (part, receives) =
                if permille(random, 500) { (&mut client, down) } else { (&mut service, up) };
            part.pauses.push((random.random_range(0..=receives), time));
            part.pauses.sort();
        }
        match random.random_range(0..4) {
            0 => (service.answers, client.then) = (true, Then::HalfCloses),
            1 if extensions => (client.answers, service.then) = (true, Then::HalfCloses),
            // Both would wait for each other.
            _ if client.then == Then::Waits => service.then = Then::HalfCloses,
            _ => {}
        }
        Script { seed, extensions, client, service }
    }

    /// Between ends that stay, so that a sound tunnel delivers everything.
    pub fn plain(seed: u64, extensions: bool, bytes: usize) -> Self {
        let part = |then, answers| Part { bytes, answers, then, leaves: None, pauses: Vec::new() };
        Script {
            seed,
            extensions,
            client: part(Then::HalfCloses, false),
            service: part(Then::Waits, true),
        }
    }

    /// Whether every byte arrives and both ends see an orderly end, if nothing happens on the way.
    pub fn is_whole(&self) -> bool {
        let stay = self.client.leaves.is_none() && self.service.leaves.is_none();
        // Without half-close, a service must not end its direction before it has everything.
        stay && (self.extensions || self.service.then == Then::Waits || self.service.answers)
    }

    fn pauses(&self) -> Duration {
        let parts = self.client.pauses.iter().chain(&self.service.pauses);
        parts.map(|(_, time)| *time).sum()
    }
}

/// How an end saw its stream end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// An end of file.
    Orderly,
    Reset,
    /// It left itself.
    Left(Leaves),
    /// It never ended.
    Hangs,
    /// It never began.
    Refused,
}

/// What one end did and saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub sent: usize,
    /// It has ended its direction in order.
    pub finished: bool,
    pub received: usize,
    /// Received bytes that nobody sent.
    pub wrong: Option<String>,
    pub ended: Ended,
    pub began: Instant,
    pub at: Instant,
}

impl Seen {
    fn new() -> Self {
        let now = Instant::now();
        Seen {
            sent: 0,
            finished: false,
            received: 0,
            wrong: None,
            ended: Ended::Refused,
            began: now,
            at: now,
        }
    }
}

/// A mixing function (SplitMix64).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bytes of a stream from a position on. They depend on the stream and on the position, so that
/// a lost, doubled or exchanged part shows.
fn fill(salt: u64, from: usize, buffer: &mut [u8]) {
    let (mut at, mut rest) = (from, buffer);
    while !rest.is_empty() {
        let word = mix(salt ^ (at as u64 / 8)).to_le_bytes();
        let word = &word[at % 8..];
        let length = word.len().min(rest.len());
        let (part, next) = rest.split_at_mut(length);
        part.copy_from_slice(&word[..length]);
        (at, rest) = (at + length, next);
    }
}

/// One end at work. The stream is not blocking.
struct Player<'a> {
    stream: TcpStream,
    part: &'a Part,
    /// What the other end sends.
    expects: usize,
    extensions: bool,
    /// Of the bytes sent and received.
    salts: [u64; 2],
    random: Generator,
    seen: Seen,
    /// A write found the stream reset. A read reports an end of file then.
    is_reset: bool,
    /// Nothing can be sent any more.
    mute: bool,
    /// The end of the other direction, once it is known.
    end: Option<Ended>,
    paused: Option<Instant>,
    pauses: usize,
    moved: Instant,
}

impl Player<'_> {
    fn play(mut self, silence: Duration) -> Seen {
        let mut buffer = vec![0; 64 * 1024];
        self.moved = Instant::now();
        loop {
            let now = Instant::now();
            self.paused.take_if(|until| now >= *until);
            if let Some((_, time)) = self.next_pause() {
                self.pauses += 1;
                self.paused = Some(now + time);
            }
            if let Some(how) = self.leaves() {
                self.seen.ended = Ended::Left(how);
                break;
            }
            self.finish();
            if let Some(end) = self.end {
                if end == Ended::Reset || self.mute {
                    self.seen.ended = end;
                    break;
                }
            }
            let deadline = self.moved + silence;
            if now >= deadline {
                self.seen.ended = Ended::Hangs;
                break;
            }
            let reads = self.end.is_none() && self.paused.is_none();
            let writes = !self.mute && self.may_send() && self.seen.sent < self.part.bytes;
            let wake = self.paused.unwrap_or(deadline).min(deadline);
            let is_ready = ready(&[(self.stream.as_fd(), reads, writes)], Some(wake))[0];
            if is_ready && reads {
                self.read(&mut buffer);
            }
            if is_ready && writes {
                self.write(&mut buffer);
            }
        }
        self.seen.at = Instant::now();
        self.seen
    }

    fn next_pause(&self) -> Option<(usize, Duration)> {
        let next = self.part.pauses.get(self.pauses).copied();
        next.filter(|(at, _)| self.paused.is_none() && self.seen.received >= *at)
    }

    /// Whether it leaves now. The caller closes the stream.
    fn leaves(&self) -> Option<Leaves> {
        let moved = self.seen.sent + self.seen.received;
        let (_, how) = self.part.leaves.filter(|(at, _)| moved >= *at)?;
        if how == Leaves::Resets {
            reset_on_close(&self.stream);
        }
        Some(how)
    }

    /// The other end has sent everything, as far as this end can know.
    fn has_everything(&self) -> bool {
        self.end.is_some() || !self.extensions && self.seen.received >= self.expects
    }

    fn may_send(&self) -> bool {
        !self.part.answers || self.has_everything()
    }

    /// Ends the sending direction if it is time.
    fn finish(&mut self) {
        let waits = self.part.then == Then::Waits && !self.has_everything();
        if self.mute || !self.may_send() || self.seen.sent < self.part.bytes || waits {
            return;
        }
        self.mute = true;
        // A stream that is reset meanwhile cannot be shut down.
        self.seen.finished = self.stream.shutdown(Shutdown::Write).is_ok();
    }

    fn read(&mut self, buffer: &mut [u8]) {
        let most = magnitude(&mut self.random, buffer.len() as u64) as usize;
        // A pause begins at its byte.
        let pause = self.part.pauses.get(self.pauses).map_or(usize::MAX, |(at, _)| *at);
        let most = most.min(pause - self.seen.received).max(1);
        match self.stream.read(&mut buffer[..most]) {
            Ok(0) if self.is_reset => self.end = Some(Ended::Reset),
            Ok(0) => self.end = Some(Ended::Orderly),
            Ok(length) => self.check(&buffer[..length]),
            Err(e) if is_temporary(&e) => return,
            Err(e) => {
                if e.kind() != io::ErrorKind::ConnectionReset {
                    self.seen.wrong.get_or_insert(format!("read: {e}"));
                }
                self.end = Some(Ended::Reset);
            }
        }
        self.moved = Instant::now();
    }

    fn check(&mut self, bytes: &[u8]) {
        let at = self.seen.received;
        let mut expected = vec![0; bytes.len()];
        fill(self.salts[1], at, &mut expected);
        self.seen.received += bytes.len();
        if bytes != expected || self.seen.received > self.expects {
            self.seen.wrong.get_or_insert(format!("wrong bytes after {at} of the stream"));
        }
    }

    fn write(&mut self, buffer: &mut [u8]) {
        let most = magnitude(&mut self.random, buffer.len() as u64) as usize;
        let part = &mut buffer[..most.min(self.part.bytes - self.seen.sent)];
        fill(self.salts[0], self.seen.sent, part);
        match self.stream.write(part) {
            Ok(length) => self.seen.sent += length,
            Err(e) if is_temporary(&e) => return,
            Err(e) => {
                // A broken pipe follows an orderly end, or a reset that a read has reported.
                self.is_reset |= e.kind() == io::ErrorKind::ConnectionReset;
                self.mute = true;
            }
        }
        self.moved = Instant::now();
    }
}

/// An exchange that a client has begun.
#[derive(Clone, Debug)]
struct Entry {
    script: Arc<Script>,
    /// Its service is at work.
    is_served: bool,
    served: Option<(Seen, Option<Arc<Damage>>)>,
}

/// The exchanges that are under way.
#[derive(Default)]
pub struct Exchanges {
    entries: Mutex<HashMap<u64, Entry>>,
    next: AtomicU64,
    /// Services at work.
    pub active: AtomicUsize,
    /// What services saw that could not learn which exchange theirs was, and that is wrong.
    strays: Mutex<Vec<String>>,
}

impl Exchanges {
    /// Plays the client's part on a connection to the local port. `None`: the port refused it.
    pub fn run(&self, script: Script, connected: Option<TcpStream>) -> Exchange {
        let script = Arc::new(script);
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let entry = Entry { script: script.clone(), is_served: false, served: None };
        self.entries.lock().unwrap().insert(number, entry);
        let client = match connected {
            None => Seen::new(),
            Some(stream) => client(stream, number, &script),
        };
        Exchange { number, script, client }
    }

    /// Plays the service's part on a connection. `damage` tells what faults do to it on the way.
    pub fn serve(&self, stream: TcpStream, damage: Option<Arc<Damage>>) {
        self.active.fetch_add(1, Ordering::SeqCst);
        self.serve_one(stream, damage);
        self.active.fetch_sub(1, Ordering::SeqCst);
    }

    fn serve_one(&self, mut stream: TcpStream, damage: Option<Arc<Damage>>) {
        let stray = |what: String| self.strays.lock().unwrap().push(what);
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let (mut head, mut received) = ([0; HEAD], 0);
        while received < HEAD {
            match stream.read(&mut head[received..]) {
                Ok(0) => {
                    if !is_half_closed(damage.as_deref(), 0) {
                        stray(format!("a service saw an orderly end after {received} bytes"));
                    }
                    return;
                }
                Ok(length) => received += length,
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return,
                Err(e) => return stray(format!("a service received {received} bytes: {e}")),
            }
        }
        let [number, mark] =
            [&head[..8], &head[8..]].map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
        let script = {
            let mut entries = self.entries.lock().unwrap();
            if mark != mix(number ^ MARK) || number >= self.next.load(Ordering::SeqCst) {
                return stray(format!("a head that no client has sent: {head:x?}"));
            }
            let Some(entry) = entries.get_mut(&number) else {
                return stray(format!("a head of an exchange that is over: {number}"));
            };
            if entry.is_served || entry.served.is_some() {
                return stray(format!("a head that came twice: {number}"));
            }
            entry.is_served = true;
            entry.script.clone()
        };
        let salt = mix(script.seed);
        stream.set_nonblocking(true).unwrap();
        let _ = stream.set_nodelay(true);
        let player = Player {
            stream,
            part: &script.service,
            expects: script.client.bytes,
            extensions: script.extensions,
            salts: [!salt, salt],
            random: random::part(script.seed, 2),
            seen: Seen::new(),
            is_reset: false,
            mute: false,
            end: None,
            paused: None,
            pauses: 0,
            moved: Instant::now(),
        };
        let seen = player.play(SILENCE + script.pauses());
        if let Some(entry) = self.entries.lock().unwrap().get_mut(&number) {
            (entry.is_served, entry.served) = (false, Some((seen, damage)));
        }
    }

    /// Waits until no service is at work. An end that hangs ends by itself.
    pub fn settle(&self) {
        wait::until_within("every service has ended", 4 * SILENCE, || {
            self.active.load(Ordering::SeqCst) == 0
        });
    }

    /// Whether an exchange is over at its service, too.
    pub fn is_over(&self, exchange: &Exchange) -> bool {
        let entries = self.entries.lock().unwrap();
        entries.get(&exchange.number).is_none_or(|entry| match &entry.served {
            Some(_) => true,
            None => !entry.is_served && exchange.client.at.elapsed() > LATE,
        })
    }

    /// What is wrong with sessions that never became an exchange.
    pub fn strays(&self) -> Result<(), String> {
        match self.strays.lock().unwrap().first() {
            None => Ok(()),
            Some(stray) => Err(stray.clone()),
        }
    }

    /// Judges an exchange whose service has ended, too. `reason`: something has happened, on the way
    /// or at an end, that may cut it. `may_be_unknown`: a fault may have ended the service's stream
    /// before the service knew which exchange it was.
    pub fn judge(
        &self,
        exchange: &Exchange,
        may_be_unknown: bool,
        reason: impl FnOnce(Option<&Seen>, Option<&Damage>) -> bool,
    ) -> Result<Verdict, String> {
        let entry = self.entries.lock().unwrap().remove(&exchange.number);
        let served = entry.and_then(|entry| entry.served);
        let damage = served.as_ref().and_then(|(_, damage)| damage.as_deref());
        let service = served.as_ref().map(|(seen, _)| seen);
        let verdict = judge(exchange, service, damage, may_be_unknown).and_then(|verdict| {
            let is_unknown = may_be_unknown && service.is_none();
            let has_reason = verdict == Verdict::Complete || is_unknown || reason(service, damage);
            match has_reason || !exchange.script.is_whole() {
                true => Ok(verdict),
                false => Err("cut without a reason".to_owned()),
            }
        });
        verdict.map_err(|wrong| format!("{wrong}: {exchange:?}, service: {service:?}, {damage:?}"))
    }
}

fn client(mut stream: TcpStream, number: u64, script: &Script) -> Seen {
    let salt = mix(script.seed);
    let head = [number.to_be_bytes(), mix(number ^ MARK).to_be_bytes()].concat();
    let _ = stream.set_nodelay(true);
    // Into an empty buffer. If the stream has ended already, that is seen below.
    let sent = stream.write_all(&head);
    stream.set_nonblocking(true).unwrap();
    let player = Player {
        stream,
        part: &script.client,
        expects: script.service.bytes,
        extensions: script.extensions,
        salts: [salt, !salt],
        random: random::part(script.seed, 1),
        seen: Seen::new(),
        is_reset: sent.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset),
        mute: false,
        end: None,
        paused: None,
        pauses: 0,
        moved: Instant::now(),
    };
    player.play(SILENCE + script.pauses())
}

/// An exchange that is over at its client.
#[derive(Debug)]
pub struct Exchange {
    number: u64,
    pub script: Arc<Script>,
    pub client: Seen,
}

/// How an exchange went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both ends saw everything and an orderly end.
    Complete,
    /// An end left before its time.
    Left,
    /// It was cut, and whoever lacks something knows it.
    Reported,
}

/// Judges what both ends of an exchange saw.
pub fn judge(
    exchange: &Exchange,
    service: Option<&Seen>,
    damage: Option<&Damage>,
    may_be_unknown: bool,
) -> Result<Verdict, String> {
    let (script, client) = (&*exchange.script, &exchange.client);
    let is_unknown = may_be_unknown && service.is_none();
    judge_end("the client", client, service, is_half_closed(damage, 1) || is_unknown)?;
    if let Some(service) = service {
        // Without half-close, a device takes the end of a service's stream for a close of both.
        let closed_itself = !script.extensions && service.finished;
        judge_end(
            "the service",
            service,
            Some(client),
            is_half_closed(damage, 0) || closed_itself,
        )?;
    }
    let is_complete = |one: &Seen, far: &Part| {
        one.ended == Ended::Orderly && one.received == far.bytes && one.wrong.is_none()
    };
    let complete = is_complete(client, &script.service)
        && service.is_some_and(|service| {
            // Without half-close, a service that ends its direction closes the session.
            is_complete(service, &script.client)
                || !script.extensions && service.received == script.client.bytes && service.finished
        });
    let left = |seen: &Seen| matches!(seen.ended, Ended::Left(_));
    let left = left(client) || service.is_some_and(left);
    Ok(match (complete, left) {
        (true, _) => Verdict::Complete,
        (_, true) => Verdict::Left,
        _ => Verdict::Reported,
    })
}

/// Whether a fault ended this direction in a way that looks like an orderly end.
fn is_half_closed(damage: Option<&Damage>, direction: usize) -> bool {
    damage.is_some_and(|damage| damage.half_closed[direction].load(Ordering::SeqCst))
}

/// `one` saw an orderly end only if its far end has ended in order and nothing is missing.
/// `excused`: an orderly end says nothing here.
fn judge_end(what: &str, one: &Seen, far: Option<&Seen>, excused: bool) -> Result<(), String> {
    if let Some(wrong) = &one.wrong {
        return Err(format!("{what}: {wrong}"));
    }
    if one.received > far.map_or(0, |far| far.sent) {
        return Err(format!("{what} received more than was sent"));
    }
    if one.ended == Ended::Hangs {
        return Err(format!("{what} hangs"));
    }
    if one.ended != Ended::Orderly || excused {
        return Ok(());
    }
    let Some(far) = far else { return Err(format!("{what} saw an orderly end of nothing")) };
    // The kernel ends the stream of a program that dies in order.
    if !far.finished && far.ended != Ended::Left(Leaves::Dies) {
        return Err(format!("{what} saw an orderly end of a stream that was cut"));
    }
    if one.received < far.sent {
        return Err(format!("{what} saw an orderly end of a part"));
    }
    Ok(())
}

/// A service on a port of its own, until it is dropped.
pub struct Service {
    pub port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub fn start(exchanges: &Arc<Exchanges>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, exchanges) = (stop.clone(), exchanges.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let exchanges = exchanges.clone();
                thread::spawn(move || exchanges.serve(stream, None));
            }
        });
        Service { port, stop, thread: Some(thread) }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Its thread waits for a connection.
        let _ = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes a connection whose other end is served on a thread of its own, for a fault proxy.
pub fn served(damage: &Arc<Damage>, exchanges: &Arc<Exchanges>) -> io::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    let (damage, exchanges) = (damage.clone(), exchanges.clone());
    // Counted before its thread runs, so that nobody believes that all services have ended.
    exchanges.active.fetch_add(1, Ordering::SeqCst);
    thread::Builder::new().name("service".into()).spawn(move || {
        exchanges.serve(accepted, Some(damage));
        exchanges.active.fetch_sub(1, Ordering::SeqCst);
    })?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 300_000;

    /// What a path does to the answer of a service.
    #[derive(Clone, Copy)]
    enum Path {
        Sound,
        /// Leaves out one byte.
        Hole,
        /// Ends in order after a part.
        Ends,
        /// Resets after a part.
        Resets,
    }

    /// A request and an answer over a path.
    fn judged(path: Path, has_reason: bool) -> Result<Verdict, String> {
        let exchanges = Arc::new(Exchanges::default());
        let service = Service::start(&exchanges);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let target = SocketAddr::from(([127, 0, 0, 1], service.port));
        let relay = thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let service = TcpStream::connect(target).unwrap();
            let (from, to) = (client.try_clone().unwrap(), service.try_clone().unwrap());
            let up = thread::spawn(move || {
                let _ = io::copy(&mut &from, &mut &to);
                let _ = to.shutdown(Shutdown::Write);
            });
            let mut answer = Vec::new();
            (&service).read_to_end(&mut answer).unwrap();
            up.join().unwrap();
            match path {
                Path::Sound => {}
                Path::Hole => drop(answer.remove(BYTES / 2)),
                Path::Ends | Path::Resets => answer.truncate(BYTES / 2),
            }
            (&client).write_all(&answer).unwrap();
            if let Path::Resets = path {
                reset_on_close(&client);
            }
        });
        let script = Script::plain(1, true, BYTES);
        let exchange = exchanges.run(script, TcpStream::connect(address).ok());
        relay.join().unwrap();
        exchanges.settle();
        exchanges.strays()?;
        exchanges.judge(&exchange, false, |_, _| has_reason)
    }

    #[test]
    fn only_a_reset_with_a_reason_excuses_a_missing_byte() {
        assert_eq!(judged(Path::Sound, false), Ok(Verdict::Complete));
        assert_eq!(judged(Path::Resets, true), Ok(Verdict::Reported));
        for (path, wrong) in [
            (Path::Resets, "cut without a reason"),
            (Path::Hole, "wrong bytes"),
            (Path::Ends, "an orderly end of a part"),
        ] {
            let text = judged(path, matches!(path, Path::Hole | Path::Ends)).unwrap_err();
            assert!(text.contains(wrong), "{text}");
        }
    }
}
