//! The worker: the thread of one tunnel. It connects, relays, and connects again after a loss.

use std::cell::RefCell;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel_proto::connection::{Connection, End, Ping, Upkeep};
use aiot_tunnel_proto::device::{DeviceLimits, DeviceRelay, DeviceSide};
use aiot_tunnel_proto::frame::reason;
use aiot_tunnel_proto::relay::RelayLimits;
use aiot_tunnel_proto::session::SessionLimits;
use aiot_tunnel_proto::websocket::Role;

use super::control::{Control, Directive};
use super::log::{failure_code, log_progress, log_replaced, RelayObserver, Series};
use super::options::Options;
use super::poll::{turn, TunnelRelay, Waiter};
use super::retry::{Retry, MAX_REFUSAL_GAP};
use crate::config::{ConnectParams, Limits, TunnelId};
use crate::logging::{self, info, warn, Code};
use crate::net::addresses::History;
use crate::net::open::{Failure, OpenError, Opened, Opener};
use crate::net::resolver::Resolver;
use crate::net::Dialer;
use crate::status::{Refusal, TunnelRecord};
use crate::sys::{self, PollSet};

/// Stack of a worker, in bytes. The deepest call is OpenSSL's handshake; `docs/performance.md` says
/// how much of the stack it touches.
const STACK: usize = 256 * 1024;

/// A connection lost within this time counts as short. The second short connection in a row counts
/// as a failed attempt. Otherwise a cloud that accepts and closes at once would be called without a
/// pause.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// A connection that another device replaced within this time counts as a failed attempt. Two
/// devices with one token would otherwise replace each other without a pause. Twice the longest
/// retry gap, because that is how long the other device may wait before it comes back.
const REPLACED_SOON: Duration = Duration::from_secs(128);

/// How long the worker of a deleted tunnel waits for local services that take their last bytes
/// slowly.
const LEAVE: Duration = Duration::from_secs(60);

/// A report from a worker to the start thread.
pub(crate) struct Report {
    pub(crate) id: TunnelId,
    /// The worker's serial number.
    pub(crate) worker: u64,
    /// The epoch of the connection data that the report is about.
    pub(crate) epoch: u64,
    pub(crate) kind: ReportKind,
}

#[derive(Clone, Copy)]
pub(crate) enum ReportKind {
    Connected,
    Lost,
    Expired,
    /// The thread has nothing left to do and can be joined.
    Ended,
}

/// A running worker, as the start thread knows it.
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

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    pub(crate) fn join(self) {
        let _ = self.thread.join();
    }
}

/// Starts the worker thread of one tunnel.
///
/// # Errors
/// The thread or its waker cannot be created.
pub(crate) fn spawn(
    id: TunnelId,
    options: Arc<Options>,
    first: Directive,
    record: Arc<TunnelRecord>,
    report: impl Fn(Report) + Send + 'static,
) -> io::Result<Worker> {
    static SERIAL: AtomicUsize = AtomicUsize::new(1);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed) as u64;
    let control = Arc::new(Control::new(first)?);
    let of_thread = control.clone();
    let run = move || {
        logging::limit_this_thread();
        let mut thread = WorkerThread {
            resolver: Rc::new(Resolver::new(of_thread.waker.clone())),
            waiter: Waiter::new(id.clone(), of_thread),
            id,
            serial,
            options,
            current: None,
            record,
            report: Box::new(report),
            retry: Retry::default(),
            series: Series::default(),
            was_short: false,
            history: RefCell::default(),
            pause: None,
            leaving: false,
        };
        thread.run_despite_panics();
        logging::report_left_out();
        thread.tell(0, ReportKind::Ended);
    };
    let builder = thread::Builder::new().name("aiot-tunnel".into()).stack_size(STACK);
    let thread = sys::spawn(builder, run)?;
    Ok(Worker { serial, control, thread })
}

/// The connection data of the last directive, and its epoch.
struct Assignment {
    params: ConnectParams,
    epoch: u64,
}

/// The state of the worker thread.
struct WorkerThread {
    id: TunnelId,
    serial: u64,
    options: Arc<Options>,
    waiter: Waiter,
    current: Option<Rc<Assignment>>,
    /// The record that snapshots read.
    record: Arc<TunnelRecord>,
    report: Box<dyn Fn(Report) + Send>,
    retry: Retry,
    /// The failed attempts, for the log.
    series: Series,
    /// Whether the last connection was lost within [`SHORT_LIFE`].
    was_short: bool,
    resolver: Rc<Resolver>,
    /// What is known about the addresses of the cloud.
    history: RefCell<History>,
    /// When the next attempt may begin. `None`: at once.
    pause: Option<Instant>,
    /// The worker was told to leave.
    leaving: bool,
}

/// How one attempt and its connection ended.
enum Outcome {
    /// There is a directive.
    Directed,
    /// The connection was open and is lost. The next attempt begins at once.
    Lost,
    /// The connection was open and was lost too soon. The next attempt begins after the retry gap.
    LostSoon,
    /// The connection could not be opened. The next attempt begins after the retry gap.
    Failed(Failure),
    /// The cloud refuses the token.
    Refused(Refusal),
}

impl WorkerThread {
    fn run_despite_panics(&mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
            // The logger itself may panic.
            let _ = catch_unwind(|| {
                warn!(
                    Code::TunnelFailed,
                    "tunnel {}: its worker panicked; connecting again", self.id
                );
            });
            // A lingering local stream may be the cause of the panic.
            self.waiter.give_up_lingering();
            self.record.failed("the worker panicked");
            if let Some(current) = &self.current {
                self.tell(current.epoch, ReportKind::Lost);
            }
            let gap = self.retry.after_failure(rand::random());
            self.pause_for(gap);
        }
    }

    /// Opens one connection after the other, until it is told to stop or to leave.
    fn run(&mut self) {
        // A panic may have interrupted the leaving.
        while !self.leaving {
            if let Some(until) = self.pause.take() {
                self.waiter.sleep(Some(until));
            }
            match self.waiter.control.take() {
                Some(Directive::Stop) => break,
                Some(Directive::Leave) => {
                    self.leaving = true;
                    self.waiter.linger(LEAVE);
                    break;
                }
                Some(Directive::Connect { params, epoch, since }) => {
                    self.retry.clear();
                    self.series.clear();
                    let is_new = self.current.as_ref().is_none_or(|current| current.epoch < since);
                    match is_new {
                        true => self.record.restart(&params),
                        false => self.record.start_again(),
                    }
                    self.current = Some(Rc::new(Assignment { params, epoch }));
                }
                None => {}
            }
            match self.current.clone() {
                Some(current) => self.attempt(&current),
                None => self.waiter.sleep(None),
            }
        }
        self.waiter.give_up_lingering();
    }

    /// Opens and serves one connection, and acts on how it ended.
    fn attempt(&mut self, current: &Assignment) {
        match self.connection(current) {
            Outcome::Directed => {}
            Outcome::Lost => self.retry.clear(),
            Outcome::LostSoon => {
                let gap = self.retry.after_failure(rand::random());
                info!(Code::Tunnel, "tunnel {}: trying again in {gap:.1?}", self.id);
                self.pause_for(gap);
            }
            Outcome::Failed(failure) => {
                let gap = self.retry.after_failure(rand::random());
                let code = failure_code(&failure);
                warn!(code, "tunnel {}: {failure}; trying again in {gap:.1?}", self.id);
                self.record.failed_with(code, &failure.to_string());
                self.pause_for(gap);
            }
            Outcome::Refused(why) if current.params.retries_refusal() => {
                let gap = self.retry.after_refusal(rand::random());
                warn!(
                    Code::TunnelFailed,
                    "tunnel {}: the cloud refuses its token; trying again in {gap:.1?}; {}",
                    self.id,
                    why.cure()
                );
                self.record.refused(why);
                self.pause_for(gap);
            }
            Outcome::Refused(why) => {
                let cure = why.cure();
                warn!(
                    Code::TunnelFailed,
                    "tunnel {}: the cloud refuses its token; {cure}", self.id
                );
                self.record.refused(why);
                self.tell(current.epoch, ReportKind::Expired);
                self.current = None;
            }
        }
    }

    /// Delays the next attempt.
    fn pause_for(&mut self, gap: Duration) {
        let until = Instant::now() + gap;
        self.record.waiting(until);
        self.pause = Some(until);
    }

    fn tell(&self, epoch: u64, kind: ReportKind) {
        (self.report)(Report { id: self.id.clone(), worker: self.serial, epoch, kind });
    }

    /// Opens and serves one connection, from the name lookup to its end.
    fn connection(&mut self, current: &Assignment) -> Outcome {
        self.record.connecting();
        let began = Instant::now();
        let outcome = match self.open_with_few_lines(&current.params) {
            Ok(opened) => return self.serve(opened, current.epoch),
            Err(OpenError::Interrupted) => return Outcome::Directed,
            Err(OpenError::Unauthorized) => Outcome::Refused(Refusal::Token),
            Err(OpenError::Expired) => Outcome::Refused(Refusal::Expired),
            Err(OpenError::Failed(failure)) => Outcome::Failed(failure),
        };
        self.series.failed(began);
        outcome
    }

    /// Serves an open connection until its end. Its stack frame is large, and must not lie above that
    /// of OpenSSL's handshake.
    #[inline(never)]
    fn serve(&mut self, opened: Opened, epoch: u64) -> Outcome {
        info!(Code::Tunnel, "websocket {} opened", self.id);
        self.series.end(&self.id);
        self.record.connected();
        self.tell(epoch, ReportKind::Connected);
        let since = Instant::now();
        let mut relay = self.relay(opened, since);
        let end = self.run_relay(&mut relay);
        if end.is_none() {
            relay.close(reason::TUNNEL_CLOSED, Instant::now());
        }
        let lived = since.elapsed();
        // It receives the last bytes and closes the sessions, so the counts are final from here on.
        self.waiter.keep_lingering(relay.into_lingering(Instant::now()));
        match end {
            None => self.closed_as_directed(),
            Some(end) => self.lost(&end, epoch, lived),
        }
    }

    /// Opens a connection. The steps of the first attempt of a series are logged as they are made,
    /// those of a further one only if it succeeds: its failure costs one line.
    fn open_with_few_lines(&self, params: &ConnectParams) -> Result<Opened, OpenError> {
        if self.series.is_empty() {
            return self.open(params);
        }
        let (opened, steps) = logging::hold(|| self.open(params));
        if opened.is_ok() {
            steps.write();
        }
        opened
    }

    fn open(&self, params: &ConnectParams) -> Result<Opened, OpenError> {
        let opener = Opener {
            wait: &self.waiter,
            resolver: &self.resolver,
            network: &self.options.network(),
            history: &self.history,
            progress: &|step| log_progress(params, step),
        };
        let deadline = Instant::now() + self.options.limits().handshake_timeout;
        opener.open(params, &self.options.tls(), deadline)
    }

    fn relay(&self, opened: Opened, now: Instant) -> TunnelRelay {
        let limits = &self.options.limits();
        let connection =
            Connection::new(opened.stream, Role::Client, &opened.rest, upkeep(limits), now);
        let dialer = Dialer {
            services: self.options.services(),
            resolver: self.resolver.clone(),
            keep_alive: limits.local_keepalive,
            connect_timeout: limits.connect_timeout,
        };
        let side = DeviceSide::new(
            dialer,
            DeviceLimits {
                max_sessions: limits.max_sessions,
                connect_timeout: limits.connect_timeout,
            },
        );
        let session = SessionLimits {
            session_buffer: limits.session_buffer,
            stall_timeout: Some(limits.stall_timeout),
            half_close_timeout: None,
            idle_timeout: limits.session_idle_timeout,
            window: limits.window(),
        };
        let relay_limits = RelayLimits { session, log_window: limits.ping_interval };
        let observer = RelayObserver { id: self.id.clone(), record: self.record.clone() };
        DeviceRelay::new(connection, side, relay_limits, observer, self.waiter.take_lingering())
    }

    /// Relays until the connection ends. Returns `None` if there is a directive first.
    fn run_relay(&self, relay: &mut TunnelRelay) -> Option<End> {
        let mut set = PollSet::default();
        while !self.waiter.control.waits() {
            if let Err(e) = turn(relay, &self.waiter.control, &mut set) {
                return Some(End::Receive(format!("poll: {e}")));
            }
            if let Some(end) = relay.end() {
                return Some(end.clone());
            }
        }
        None
    }

    fn closed_as_directed(&self) -> Outcome {
        info!(Code::Tunnel, "end the cloud channel.");
        info!(Code::Tunnel, "close cloud channel!");
        info!(Code::Tunnel, "websocket {} closed", self.id);
        info!(Code::Adapter, "adapter_network_deinit");
        Outcome::Directed
    }

    fn lost(&mut self, end: &End, epoch: u64, lived: Duration) -> Outcome {
        if !end.is_expired() {
            warn!(Code::TunnelReset, "tunnel {}: {end}", self.id);
            self.record.failed_with(Code::TunnelReset, &end.to_string());
        }
        info!(Code::Tunnel, "websocket {} closed", self.id);
        info!(Code::Tunnel, "end the cloud channel.");
        info!(Code::Tunnel, "close cloud channel!");
        info!(Code::Adapter, "adapter_network_deinit");
        self.tell(epoch, ReportKind::Lost);
        if end.is_expired() {
            // One that is refused soon after each success waits longer each time.
            if lived > MAX_REFUSAL_GAP {
                self.retry.clear();
            }
            return Outcome::Refused(Refusal::Token);
        }
        if let Some(address) = end.replaced_by().filter(|_| lived < REPLACED_SOON) {
            if self.retry.replaced() {
                log_replaced(&self.id, address);
            }
            return Outcome::LostSoon;
        }
        let is_short = lived < SHORT_LIFE;
        // Two connections lost at once, one after the other, count as a failed attempt.
        let was_short = std::mem::replace(&mut self.was_short, is_short);
        if was_short && is_short {
            return Outcome::LostSoon;
        }
        Outcome::Lost
    }
}

fn upkeep(limits: &Limits) -> Upkeep {
    Upkeep {
        ping: Ping::Every(limits.ping_interval),
        silence_limit: limits.pong_timeout,
        shrink_interval: limits.ping_interval,
        high_water: limits.send_buffer,
        // The limit cannot be reached: the connection is not read while that much waits to be sent.
        flood_limit: usize::MAX,
    }
}
