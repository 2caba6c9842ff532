//! connect -> relay -> retry: the life of one tunnel, on a thread of its own.

mod control;
mod dial;
#[cfg(any(test, fuzzing))]
pub(crate) mod property;
mod relay;
mod retry;
mod session;
#[cfg(test)]
mod turns;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cloud::{self, OpenError, Transport, Wait};
use crate::config::{ConnectParams, TunnelId};
use crate::logging::{info, warn, Code};
use crate::manager::Options;
use crate::status::TunnelRecord;
use crate::sys::{self, PollFd, PollSet};
use control::Control;
use dial::{Resolver, Sockets};
use relay::{End, Relay};
use retry::Retry;
use session::{Closing, State};

type TunnelRelay = Relay<Transport, Sockets>;

/// Stack of a worker. Its deepest caller is OpenSSL's handshake, which needs about 30 KiB.
const STACK: usize = 256 * 1024;

/// When the system has no memory even for a `poll`: how long until the next one.
const POLL_RETRY: Duration = Duration::from_millis(50);

/// A connection that is lost within this time does not reset the retry schedule twice in a row:
/// a cloud that accepts and closes would be called without a pause.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How long a worker whose tunnel is gone stays for services that take their last bytes slowly.
const LEAVE: Duration = Duration::from_secs(60);

/// Addresses that failed, as far back as they are remembered.
const MAX_FAILED: usize = 32;

/// What the start thread wants of a worker.
pub(crate) enum Directive {
    Connect {
        params: ConnectParams,
        epoch: u64,
    },
    /// Close the connection, hand on what local services are still to get, and end.
    Leave,
    /// End at once.
    Stop,
}

/// What a worker tells the start thread.
pub(crate) struct Report {
    pub(crate) id: TunnelId,
    /// The worker's serial number.
    pub(crate) worker: u64,
    /// The epoch of the connection data that it is about.
    pub(crate) epoch: u64,
    pub(crate) kind: ReportKind,
}

#[derive(Clone, Copy)]
pub(crate) enum ReportKind {
    Connected,
    Lost,
    Expired,
    /// Its thread has nothing left to do: it can be joined.
    Ended,
}

/// A running worker, as the start thread holds it.
pub(crate) struct Worker {
    serial: u64,
    control: Arc<Control>,
    thread: JoinHandle<()>,
}

impl Worker {
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    pub(crate) fn direct(&self, directive: Directive) {
        self.control.direct(directive);
    }

    pub(crate) fn join(self) {
        let _ = self.thread.join();
    }
}

/// Starts the worker of one tunnel.
pub(crate) fn spawn(
    id: TunnelId,
    options: Arc<Options>,
    first: Directive,
    record: Arc<TunnelRecord>,
    report: impl Fn(Report) + Send + 'static,
) -> io::Result<Worker> {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let control = Arc::new(Control::new(first)?);
    let control_of_life = control.clone();
    let life = move || Life {
        id,
        serial,
        options,
        resolver: Rc::new(Resolver::new(control_of_life.clone())),
        control: control_of_life,
        current: None,
        record,
        report: Box::new(report),
        retry: Retry::default(),
        early: Cell::default(),
        closing: RefCell::default(),
        failed: RefCell::default(),
        pause: None,
        leaving: false,
    };
    let thread = thread::Builder::new()
        .name("aiot-tunnel".into())
        .stack_size(STACK)
        .spawn(move || life().run())?;
    Ok(Worker { serial, control, thread })
}

/// The worker's own side.
struct Life {
    id: TunnelId,
    serial: u64,
    options: Arc<Options>,
    control: Arc<Control>,
    /// What to connect to, and the epoch of that directive.
    current: Option<(ConnectParams, u64)>,
    /// For snapshots.
    record: Arc<TunnelRecord>,
    report: Box<dyn Fn(Report) + Send>,
    retry: Retry,
    /// Whether the last connection was lost right after it was opened.
    early: Cell<bool>,
    /// Sessions of former connections whose last bytes still go to their services.
    closing: RefCell<Vec<Closing<TcpStream>>>,
    resolver: Rc<Resolver>,
    /// The cloud's addresses that failed since the last success, the latest last.
    failed: RefCell<Vec<SocketAddr>>,
    /// Until when the next attempt waits.
    pause: Option<Instant>,
    /// It was told to leave.
    leaving: bool,
}

/// How one connection ended.
enum Outcome {
    /// A directive waits.
    Directed,
    /// It was open, and is lost: try again at once.
    Lost,
    /// It was lost right after it was opened, and the one before it, too.
    LostEarly,
    /// It could not be opened: try again after a while.
    Failed,
    Expired,
}

impl Life {
    fn run(mut self) {
        self.keep_alive();
        self.tell(0, ReportKind::Ended);
    }

    /// Whatever panics, until a stop.
    fn keep_alive(&mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.live())).is_err() {
            // It may be the logger that panics.
            let _ = catch_unwind(|| {
                warn!(
                    Code::TunnelFailed,
                    "tunnel {}: its worker panicked; connecting anew", self.id
                );
            });
            // One of these may be what panics.
            self.give_up_closing();
            self.record.failed("its worker panicked");
            if let Some((_, epoch)) = self.current {
                self.tell(epoch, ReportKind::Lost);
            }
            self.pause_after_failure();
        }
    }

    /// From connection to connection, until a stop.
    fn live(&mut self) {
        loop {
            if self.leaving {
                // A panic has cut the leave-taking short.
                return;
            }
            if let Some(until) = self.pause.take() {
                self.sleep(Some(until));
            }
            match self.control.take() {
                Some(Directive::Stop) => return self.give_up_closing(),
                Some(Directive::Leave) => {
                    self.leaving = true;
                    return self.leave();
                }
                Some(Directive::Connect { params, epoch }) => {
                    self.retry.clear();
                    self.record.restart(&params);
                    self.current = Some((params, epoch));
                }
                None => {}
            }
            let Some((params, epoch)) = &self.current else {
                self.sleep(None);
                continue;
            };
            let epoch = *epoch;
            self.record.connecting();
            match self.connection(params, epoch) {
                Outcome::Directed => {}
                Outcome::Lost => self.retry.clear(),
                // Opened and lost at once, again and again: no better than not opened.
                Outcome::LostEarly | Outcome::Failed => {
                    let gap = self.pause_after_failure();
                    info!(Code::Tunnel, "tunnel {}: trying again in {gap:.1?}", self.id);
                }
                Outcome::Expired => {
                    warn!(Code::TunnelFailed, "tunnel {}: the cloud refuses its token", self.id);
                    self.tell(epoch, ReportKind::Expired);
                    self.current = None;
                }
            }
        }
    }

    /// Lets the next attempt wait; for how long.
    fn pause_after_failure(&mut self) -> Duration {
        let gap = self.retry.after_failure(rand::random());
        let until = Instant::now() + gap;
        self.record.waiting(until);
        self.pause = Some(until);
        gap
    }

    /// Stays until local services have what they are still to get.
    fn leave(&self) {
        let until = Instant::now() + LEAVE;
        while !self.closing.borrow().is_empty() && Instant::now() < until {
            if self.control.waits() {
                break;
            }
            self.poll_with(&mut [], Some(until));
        }
        self.give_up_closing();
    }

    fn give_up_closing(&self) {
        self.closing.take().into_iter().for_each(Closing::give_up);
    }

    fn tell(&self, epoch: u64, kind: ReportKind) {
        (self.report)(Report { id: self.id.clone(), worker: self.serial, epoch, kind });
    }

    /// Sleeps until a directive waits or the time has come.
    fn sleep(&self, until: Option<Instant>) {
        while !self.control.waits() && until.is_none_or(|until| Instant::now() < until) {
            self.poll_with(&mut [], until);
        }
    }

    /// One connection, from the first lookup to its end.
    fn connection(&self, params: &ConnectParams, epoch: u64) -> Outcome {
        let limits = &self.options.limits;
        let deadline = Instant::now() + limits.handshake_timeout;
        let link = match cloud::open(params, &self.options.tls(), self, deadline) {
            Ok(link) => link,
            Err(OpenError::Interrupted) => return Outcome::Directed,
            Err(OpenError::Expired) => return Outcome::Expired,
            Err(OpenError::Failed(code, text)) => {
                warn!(code, "tunnel {}: {text}", self.id);
                self.record.failed(&text);
                return Outcome::Failed;
            }
        };
        info!(Code::Tunnel, "websocket {} opened", self.id);
        self.record.connected();
        self.tell(epoch, ReportKind::Connected);
        self.failed.borrow_mut().clear();
        let opened = Instant::now();

        let mut relay = Relay::new(
            link,
            self.id.clone(),
            self.options.services(),
            limits.clone(),
            Sockets(self.resolver.clone()),
            self.closing.take(),
            opened,
        );
        relay.table.record = Some(self.record.clone());
        let end = self.relay(&mut relay);
        let outcome = match &end {
            None => {
                relay.close(Instant::now());
                info!(Code::Tunnel, "end the cloud channel.");
                info!(Code::Tunnel, "close cloud channel!");
                info!(Code::Tunnel, "websocket {} closed", self.id);
                info!(Code::Adapter, "adapter_network_deinit");
                Outcome::Directed
            }
            Some(end) => {
                if let End::Lost(why) = end {
                    warn!(Code::TunnelReset, "tunnel {}: {why}", self.id);
                    self.record.failed(why);
                }
                info!(Code::Tunnel, "websocket {} closed", self.id);
                info!(Code::Tunnel, "end the cloud channel.");
                info!(Code::Tunnel, "close cloud channel!");
                info!(Code::Adapter, "adapter_network_deinit");
                self.tell(epoch, ReportKind::Lost);
                let early = opened.elapsed() < SHORT_LIFE;
                match end {
                    End::Expired => Outcome::Expired,
                    End::Lost(_) if self.early.replace(early) && early => Outcome::LostEarly,
                    End::Lost(_) => Outcome::Lost,
                }
            }
        };
        // While a session stops the reading, `poll` does not say what there is to read.
        relay.link.transport.arm();
        let (mut transport, closing) = relay.into_closing(Instant::now());
        transport.shut_down();
        *self.closing.borrow_mut() = closing;
        outcome
    }

    /// Relays until the connection ends, or a directive waits (`None`).
    fn relay(&self, relay: &mut TunnelRelay) -> Option<End> {
        let mut set = PollSet::default();
        loop {
            if self.control.waits() {
                return None;
            }
            if let Err(end) = self.turn(relay, &mut set) {
                return Some(end);
            }
        }
    }

    /// One wait, and everything that it found ready.
    fn turn(&self, relay: &mut TunnelRelay, set: &mut PollSet) -> Result<(), End> {
        let (wants_cloud, wants_local) = (relay.wants_cloud(), relay.wants_local());
        let now = Instant::now();
        let wants_room = relay.wants_room(now);
        let deadline = if relay.is_ready() { now } else { relay.deadline(now) };

        let table = &relay.table;
        set.clear();
        set.push(self.control.waker.as_fd(), true, false);
        set.push(relay.link.transport.as_fd(), wants_cloud, wants_room);
        for session in &table.sessions {
            match &session.state {
                State::Open(outlet) => {
                    set.push(outlet.stream.as_fd(), wants_local, !session.parked.is_empty())
                }
                State::Dialing { dial, .. } => match dial.fd() {
                    Some(fd) => set.push(fd, false, true),
                    None => set.push(self.control.waker.as_fd(), false, false),
                },
            }
        }
        for closing in &table.closing {
            set.push(closing.outlet.stream.as_fd(), closing.wants_read(), closing.wants_write());
        }
        let ready = set.poll(deadline).map_err(|e| End::Lost(format!("poll: {e}")))?;
        if ready[0].read {
            self.control.waker.reset();
        }
        if ready[1].read {
            relay.link.transport.arm();
            relay.readable = true;
        }
        if ready[1].write {
            relay.writable = true;
            // TLS may have waited for it to go on reading.
            relay.readable = true;
        }

        let count = relay.table.sessions.len();
        relay.turn(Instant::now(), &ready[2..2 + count])
    }

    /// Waits on `fds` and the waker, while the closing sessions go on.
    fn poll_with(&self, fds: &mut [(BorrowedFd<'_>, bool)], deadline: Option<Instant>) -> bool {
        let mut closing = self.closing.borrow_mut();
        let mut polled = Vec::with_capacity(1 + fds.len() + closing.len());
        polled.push(PollFd::new(self.control.waker.as_fd(), true, false));
        polled.extend(fds.iter().map(|(fd, write)| PollFd::new(*fd, !write, *write)));
        polled.extend(
            closing
                .iter()
                .map(|c| PollFd::new(c.outlet.stream.as_fd(), c.wants_read(), c.wants_write())),
        );
        let now = Instant::now();
        let nearest = closing.iter().map(|closing| closing.deadline(now)).chain(deadline).min();
        if let Err(e) = sys::poll(&mut polled, nearest) {
            warn!(Code::TunnelFailed, "tunnel {}: poll: {e}; trying again", self.id);
            thread::sleep(POLL_RETRY);
            return false;
        }
        if polled[0].ready().read {
            self.control.waker.reset();
        }
        let ready = polled[1..1 + fds.len()].iter().any(|fd| fd.ready() != Default::default());
        drop(polled);
        if !closing.is_empty() {
            let (now, mut scratch) = (Instant::now(), [0; 8192]);
            closing.retain_mut(|closing| !closing.step(now, &mut scratch));
        }
        ready
    }
}

impl Wait for Life {
    fn wait(&self, fd: BorrowedFd<'_>, write: bool, deadline: Instant) -> Result<(), OpenError> {
        loop {
            if self.control.waits() {
                return Err(OpenError::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(cloud::timed_out("connect", self.options.limits.handshake_timeout));
            }
            if self.poll_with(&mut [(fd, write)], Some(deadline)) {
                return Ok(());
            }
        }
    }

    fn resolve(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, OpenError> {
        let failed = |e: io::Error| OpenError::Failed(Code::Dns, format!("look up {host}: {e}"));
        let lookup = self.resolver.look_up(host, port).map_err(failed)?;
        loop {
            if let Some(result) = lookup.poll() {
                let mut addresses = result.map_err(failed)?;
                // Those that failed come last: one may take the connection and never say a word,
                // in whatever order the name server lists them.
                let failures = self.failed.borrow();
                addresses.sort_by_key(|address| failures.iter().position(|a| a == address));
                return Ok(addresses);
            }
            if self.control.waits() {
                return Err(OpenError::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(cloud::timed_out("look up", self.options.limits.handshake_timeout));
            }
            self.poll_with(&mut [], Some(deadline));
        }
    }

    fn tries(&self, address: SocketAddr) {
        let mut failed = self.failed.borrow_mut();
        failed.retain(|other| *other != address);
        if failed.len() == MAX_FAILED {
            failed.remove(0);
        }
        failed.push(address);
    }
}
