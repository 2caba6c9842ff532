//! The start thread. It executes commands, starts and ends workers, and calls the event handler.
//!
//! It waits on one channel, which carries the commands and the reports of the workers. It does no
//! network I/O, so no network operation delays it. The event handler runs on this thread, one call
//! at a time, in the order of the events.

use std::collections::HashMap;
use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use super::control::Directive;
use super::options::Options;
use super::worker::{self, Report, ReportKind, Worker};
use crate::config::{ConnectParams, Limits, Security, Service, Services, TunnelId};
use crate::error::{Error, Result};
use crate::event::{Event, EventKind};
use crate::logging::{info, warn, Code};
use crate::net::tls::TlsContext;
use crate::status::{Notice, NoticeHandler, NoticeSink, TunnelRecord, TunnelStatus};

/// Most commands that may wait for the start thread. A further one is refused, so that a flood from
/// the IPC queue cannot grow the process while an event handler sleeps.
const MAX_QUEUED_COMMANDS: usize = 4096;

/// Most notices that may wait for the start thread. A further one is dropped and counted, so that
/// sessions that open and close in a loop cannot grow the process while a handler sleeps.
const MAX_QUEUED_NOTICES: usize = 1024;

/// How long to wait before trying again to create a worker thread.
const SPAWN_RETRY: Duration = Duration::from_secs(1);

/// Receives the events of all tunnels of a [`Manager`].
///
/// The start thread, inside [`Manager::run`], calls it for one event at a time, in the order of the
/// events. The handler may call every function of [`Handle`]. It may block: data still flows, and
/// only commands and further events wait. If it panics, the panic is logged and everything goes on.
pub type EventHandler = Arc<dyn Fn(&Handle, &Event) + Send + Sync>;

enum Message {
    Command(TunnelId, Command),
    Worker(Report),
    Notice(Notice),
    Stop,
}

enum Command {
    Add(ConnectParams),
    Update(ConnectParams),
    Delete,
}

/// The ids that will exist after all queued commands have been executed. With it, a call can report
/// that the tunnel limit is reached, although the start thread executes the command later.
#[derive(Default)]
struct Ledger {
    slots: HashMap<TunnelId, Slot>,
    queued: usize,
    /// No command is taken any more, because the manager was stopped or the start thread has ended.
    stopped: bool,
}

struct Slot {
    /// The number of commands for this id that wait in the channel.
    queued: usize,
    /// Whether the tunnel will exist after they have been executed.
    wanted: bool,
}

impl Ledger {
    fn wanted(&self) -> usize {
        self.slots.values().filter(|slot| slot.wanted).count()
    }
}

/// The records of the existing tunnels, in the order of their ids.
type Records = Vec<(TunnelId, Arc<TunnelRecord>)>;

struct Inner {
    options: Arc<Options>,
    ledger: Mutex<Ledger>,
    /// The records of the existing tunnels, for snapshots.
    records: Mutex<Records>,
    sender: Sender<Message>,
    handler: Mutex<Option<EventHandler>>,
    notice_handler: Mutex<Option<NoticeHandler>>,
    notices: Arc<NoticeQueue>,
}

/// The state of the notices on their way to the start thread.
#[derive(Default)]
struct NoticeQueue {
    /// Whether there is a handler.
    wanted: AtomicBool,
    queued: AtomicUsize,
    /// Dropped since the last one that was queued.
    dropped: AtomicU32,
}

/// Sends commands to a [`Manager`]. Its functions may be called from any thread, also from the
/// event handler. None of them blocks. Cheap to clone.
///
/// Commands are queued. The start thread executes them in the order of the calls. Commands sent
/// before [`Manager::run`] wait for it. The outcome of a command is an [`Event`].
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ledger = self.0.ledger.lock();
        f.debug_struct("Handle")
            .field("tunnels", &ledger.wanted())
            .field("queued", &ledger.queued)
            .field("stopped", &ledger.stopped)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// Opens a tunnel. The tunnel connects, and connects again after a failure or a loss, until it
    /// is deleted or its token expires. If the id already exists, the start thread logs that and
    /// ignores the command. Use [`update`](Handle::update) to change an existing tunnel.
    ///
    /// # Errors
    /// [`Error::TunnelLimit`], [`Error::Busy`] or [`Error::Ended`]. In all cases, nothing is
    /// queued.
    pub fn add(&self, id: &TunnelId, params: ConnectParams) -> Result<()> {
        self.command(id, Command::Add(params))
    }

    /// Gives a tunnel new connection data. An open tunnel is closed (DISCONNECT) and then connects
    /// with the new data. An unknown id is added.
    ///
    /// # Errors
    /// [`Error::Busy`] or [`Error::Ended`]. For an unknown id also [`Error::TunnelLimit`]. In all
    /// cases, nothing is queued.
    pub fn update(&self, id: &TunnelId, params: ConnectParams) -> Result<()> {
        self.command(id, Command::Update(params))
    }

    /// Closes a tunnel and its sessions. If the id is unknown, the start thread logs that and
    /// ignores the command.
    ///
    /// # Errors
    /// [`Error::Busy`] or [`Error::Ended`]. In both cases, nothing is queued.
    pub fn delete(&self, id: &TunnelId) -> Result<()> {
        self.command(id, Command::Delete)
    }

    /// Ends [`Manager::run`]. This call returns at once. `run` returns within 200 ms, even while a
    /// tunnel is connecting. (With many more than the default of 20 tunnels, it takes 0.2 to 0.3 ms
    /// for each.) A stop is final: a later `run` returns at once, and later commands return
    /// [`Error::Ended`].
    pub fn stop(&self) {
        let mut ledger = self.0.ledger.lock();
        if !ledger.stopped {
            ledger.stopped = true;
            // The send fails if the manager was dropped. Then there is no run to end.
            let _ = self.0.sender.send(Message::Stop);
        }
    }

    /// Returns the existing tunnels in the order of their ids, with the state of each.
    ///
    /// A tunnel is listed from the moment when the start thread executes its `add` until it is
    /// deleted or expires. After a stop the list is empty. The state of a tunnel may be some
    /// microseconds ahead of its event. The call is cheap, does not delay the data of any session,
    /// and may be repeated as often as needed.
    #[must_use]
    pub fn tunnels(&self) -> Vec<TunnelStatus> {
        // The list is copied, so that the start thread does not wait for the snapshots.
        let records = self.0.records.lock().clone();
        records.into_iter().map(|(id, record)| record.snapshot(id)).collect()
    }

    /// Offers a local service to the sessions opened from now on, also in open tunnels. It replaces a
    /// service of the same type.
    pub fn add_service(&self, service: Service) {
        self.0.options.services.lock().put(service);
    }

    /// Sets the security of the connections opened from now on.
    pub fn set_security(&self, security: Security) {
        *self.0.options.tls.lock() = TlsContext::new(security);
    }

    /// Replaces the event handler from the next event on. `None`: events are dropped.
    pub fn set_event_handler(&self, handler: Option<EventHandler>) {
        *self.0.handler.lock() = handler;
    }

    /// Changes limits for the connections opened from now on. Returns what `change` returns.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if a limit is out of its range then. Nothing is changed in this case.
    pub(crate) fn change_limits<T>(&self, change: impl FnOnce(&mut Limits) -> T) -> Result<T> {
        let mut limits = self.0.options.limits.lock();
        let mut changed = limits.clone();
        let result = change(&mut changed);
        changed.check()?;
        *limits = changed;
        Ok(result)
    }

    /// Replaces the handler of notices, which the start thread calls. `None`: no notices are made.
    pub(crate) fn set_notice_handler(&self, handler: Option<NoticeHandler>) {
        self.0.notices.wanted.store(handler.is_some(), Ordering::Release);
        *self.0.notice_handler.lock() = handler;
    }

    /// Queues the notices of one tunnel for the start thread. Holds no `Handle`, because the records
    /// are part of it.
    fn notice_sink(&self, id: &TunnelId) -> NoticeSink {
        let (queue, sender, id) = (self.0.notices.clone(), self.0.sender.clone(), id.clone());
        Box::new(move |kind| {
            if !queue.wanted.load(Ordering::Acquire) {
                return;
            }
            if queue.queued.fetch_add(1, Ordering::AcqRel) >= MAX_QUEUED_NOTICES {
                queue.queued.fetch_sub(1, Ordering::AcqRel);
                queue.dropped.fetch_add(1, Ordering::AcqRel);
                return;
            }
            let _ = sender.send(Message::Notice(Notice { tunnel_id: id.clone(), kind }));
        })
    }

    fn command(&self, id: &TunnelId, command: Command) -> Result<()> {
        let mut ledger = self.0.ledger.lock();
        if ledger.stopped {
            return Err(Error::Ended);
        }
        if ledger.queued >= MAX_QUEUED_COMMANDS {
            return Err(Error::Busy(ledger.queued));
        }
        let wanted = !matches!(command, Command::Delete);
        let known = ledger.slots.get(id).is_some_and(|slot| slot.wanted);
        let most = self.0.options.limits.lock().max_tunnels;
        if wanted && !known && ledger.wanted() >= most {
            return Err(Error::TunnelLimit(most));
        }
        ledger.queued += 1;
        let slot = ledger.slots.entry(id.clone()).or_insert(Slot { queued: 0, wanted });
        slot.queued += 1;
        slot.wanted = wanted;
        // The command is sent under the lock, so that ledger and channel have the same order.
        let _ = self.0.sender.send(Message::Command(id.clone(), command));
        Ok(())
    }
}

/// Configures and makes a [`Manager`]. [`Manager::builder`] returns one.
#[derive(Default)]
#[must_use]
pub struct ManagerBuilder {
    services: Services,
    security: Security,
    limits: Limits,
    handler: Option<EventHandler>,
}

impl fmt::Debug for ManagerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerBuilder")
            .field("services", &self.services)
            .field("security", &self.security)
            .field("limits", &self.limits)
            .field("handler", &self.handler.is_some())
            .finish()
    }
}

impl ManagerBuilder {
    /// Offers a local service. It replaces a service of the same type.
    pub fn service(mut self, service: Service) -> Self {
        self.services.put(service);
        self
    }

    /// Sets the security of the connections to the tunnel service. Default: TLS with the system's
    /// root certificates.
    pub fn security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// Sets limits and times. Default: [`Limits::default`].
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the event handler; see [`EventHandler`]. Without a handler, events are dropped.
    pub fn on_event(mut self, handler: impl Fn(&Handle, &Event) + Send + Sync + 'static) -> Self {
        self.handler = Some(Arc::new(handler));
        self
    }

    /// Makes the manager. This starts no thread and opens no connection; [`Manager::run`] does.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if a limit is out of its range.
    pub fn build(self) -> Result<Manager> {
        self.limits.check()?;
        let (sender, receiver) = crossbeam_channel::unbounded();
        let options = Arc::new(Options {
            limits: Mutex::new(self.limits),
            services: Arc::new(Mutex::new(self.services)),
            tls: Mutex::new(TlsContext::new(self.security)),
        });
        let handle = Handle(Arc::new(Inner {
            options,
            ledger: Mutex::default(),
            records: Mutex::default(),
            sender,
            handler: Mutex::new(self.handler),
            notice_handler: Mutex::default(),
            notices: Arc::default(),
        }));
        Ok(Manager { handle, receiver: Mutex::new(receiver) })
    }
}

/// Runs the tunnels of one remote-login process. Several managers may exist in one process. After a
/// manager was dropped, its handles return [`Error::Ended`].
///
/// ```no_run
/// use aiot_tunnel::{ConnectParams, Manager, Port, Service, Token, TunnelId};
///
/// let ssh = Service::new("_SSH", "127.0.0.1", Port::new(22)?)?;
/// let manager = Manager::builder()
///     .service(ssh)
///     .on_event(|_handle, event| println!("{event}"))
///     .build()?;
/// let handle = manager.handle();
/// let start_thread = std::thread::spawn(move || manager.run());
///
/// let token = Token::new(&std::env::var("TUNNEL_TOKEN").unwrap())?;
/// let params = ConnectParams::new("tunnel.example.com", Port::new(443)?, "/tunnel/t1/dest", token)?;
/// handle.add(&TunnelId::new("t1")?, params)?;
/// // ...
/// handle.stop();
/// start_thread.join().unwrap()?;
/// # Ok::<(), aiot_tunnel::Error>(())
/// ```
pub struct Manager {
    handle: Handle,
    /// Locked by the thread that is inside `run`.
    receiver: Mutex<Receiver<Message>>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl Manager {
    /// A builder with no service, TLS with the system's root certificates, and the default
    /// limits.
    pub fn builder() -> ManagerBuilder {
        ManagerBuilder::default()
    }

    /// Returns a handle for sending commands.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs the tunnels on the calling thread. Blocks until [`Handle::stop`]. The thread sleeps
    /// while there is nothing to do. Before `run` returns, it closes every open tunnel (DISCONNECT)
    /// and joins every worker thread.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`] at once, if another thread is inside `run`.
    pub fn run(&self) -> Result<()> {
        let receiver = self.receiver.try_lock().ok_or(Error::AlreadyRunning)?;
        info!(Code::Tunnel, "remote proxy thread start!");
        // A panic ends the run, too. Then the manager must also take no more commands.
        let _ended = StopOnDrop(&self.handle);
        let mut start_thread = StartThread {
            handle: &self.handle,
            tunnels: HashMap::new(),
            leaving: Vec::new(),
            spawn_at: None,
        };
        start_thread.run(&receiver);
        info!(Code::Tunnel, "remote proxy thread exit!");
        Ok(())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

/// Stops the manager when it is dropped, so that no command is accepted that would never be
/// executed.
struct StopOnDrop<'a>(&'a Handle);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// One tunnel as the start thread knows it.
struct Tunnel {
    params: ConnectParams,
    record: Arc<TunnelRecord>,
    /// Every update raises it. Reports with an older epoch are ignored.
    epoch: u64,
    /// Whether the last event of the tunnel was CONNECT.
    connected: bool,
    /// `None` if no thread could be created for it yet.
    worker: Option<Worker>,
}

struct StartThread<'a> {
    handle: &'a Handle,
    tunnels: HashMap<TunnelId, Tunnel>,
    /// Workers that were told to end and are still to be joined.
    leaving: Vec<Worker>,
    /// When to try again to create the missing worker threads.
    spawn_at: Option<Instant>,
}

impl StartThread<'_> {
    fn run(&mut self, receiver: &Receiver<Message>) {
        loop {
            if self.handle.0.ledger.lock().stopped {
                break;
            }
            if self.spawn_at.is_some_and(|time| Instant::now() >= time) {
                self.spawn_missing();
            }
            let message = match self.spawn_at {
                None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(time) => receiver.recv_deadline(time),
            };
            match message {
                Ok(Message::Command(id, command)) => self.execute(id, command),
                Ok(Message::Worker(report)) => self.report(report),
                Ok(Message::Notice(notice)) => self.notify(&notice),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        self.stop();
    }

    fn execute(&mut self, id: TunnelId, command: Command) {
        match command {
            Command::Add(_) if self.tunnels.contains_key(&id) => {
                warn!(Code::Tunnel, "reopen tunnel_id {id} !");
            }
            Command::Add(params) => self.create(&id, params),
            Command::Update(params) => self.update(&id, params),
            Command::Delete => self.delete(&id),
        }
        let mut ledger = self.handle.0.ledger.lock();
        ledger.queued -= 1;
        if let Some(slot) = ledger.slots.get_mut(&id) {
            slot.queued -= 1;
        }
        self.settle(&mut ledger, &id);
    }

    /// Removes an id from the ledger if there is neither a tunnel nor a queued command for it.
    fn settle(&self, ledger: &mut Ledger, id: &TunnelId) {
        let idle = ledger.slots.get(id).is_some_and(|slot| slot.queued == 0);
        if idle && !self.tunnels.contains_key(id) {
            ledger.slots.remove(id);
        }
    }

    fn create(&mut self, id: &TunnelId, params: ConnectParams) {
        let record = TunnelRecord::new(&params).with_notices(self.handle.notice_sink(id));
        let record = Arc::new(record);
        let mut records = self.handle.0.records.lock();
        let at = records.partition_point(|(other, _)| other < id);
        records.insert(at, (id.clone(), record.clone()));
        drop(records);
        let worker = self.spawn(id, &params, 0, &record);
        let tunnel = Tunnel { params, record, epoch: 0, connected: false, worker };
        self.tunnels.insert(id.clone(), tunnel);
    }

    fn update(&mut self, id: &TunnelId, params: ConnectParams) {
        let Some(tunnel) = self.tunnels.get_mut(id) else {
            return self.create(id, params);
        };
        tunnel.epoch += 1;
        tunnel.params = params.clone();
        let epoch = tunnel.epoch;
        let was_connected = std::mem::take(&mut tunnel.connected);
        if was_connected {
            self.emit(EventKind::Disconnect, id);
        }
        if let Some(Tunnel { worker: Some(worker), .. }) = self.tunnels.get(id) {
            worker.direct(Directive::Connect { params, epoch });
        }
    }

    fn delete(&mut self, id: &TunnelId) {
        match self.tunnels.remove(id) {
            Some(tunnel) => self.retire(id, tunnel, Directive::Leave),
            None => warn!(Code::Tunnel, "close tunnel_id {id} not found!"),
        }
    }

    fn retire(&mut self, id: &TunnelId, tunnel: Tunnel, how: Directive) {
        self.handle.0.records.lock().retain(|(other, _)| other != id);
        if tunnel.connected {
            self.emit(EventKind::Disconnect, id);
        }
        if let Some(worker) = tunnel.worker {
            worker.direct(how);
            self.leaving.push(worker);
        }
    }

    fn report(&mut self, report: Report) {
        if matches!(report.kind, ReportKind::Ended) {
            // A worker ends only when it was told to, so it is among the leaving ones.
            let ended = self.leaving.extract_if(.., |worker| worker.serial() == report.worker);
            return ended.for_each(Worker::join);
        }
        let Some(tunnel) = self.tunnels.get_mut(&report.id) else { return };
        let current = tunnel.worker.as_ref().map(Worker::serial) == Some(report.worker)
            && tunnel.epoch == report.epoch;
        if !current {
            return;
        }
        match report.kind {
            ReportKind::Connected if !tunnel.connected => {
                tunnel.connected = true;
                self.emit(EventKind::Connect, &report.id);
            }
            ReportKind::Lost if tunnel.connected => {
                tunnel.connected = false;
                self.emit(EventKind::Disconnect, &report.id);
            }
            ReportKind::Expired => {
                let tunnel = self.tunnels.remove(&report.id);
                if let Some(tunnel) = tunnel {
                    self.retire(&report.id, tunnel, Directive::Leave);
                }
                // This must come before the event, because the handler may add the tunnel again.
                let mut ledger = self.handle.0.ledger.lock();
                self.settle(&mut ledger, &report.id);
                drop(ledger);
                self.emit(EventKind::Expired, &report.id);
            }
            ReportKind::Connected | ReportKind::Lost | ReportKind::Ended => {}
        }
    }

    fn emit(&self, kind: EventKind, id: &TunnelId) {
        // The handler is cloned and the lock released, because the handler may call
        // `set_event_handler`.
        let handler = self.handle.0.handler.lock().clone();
        let Some(handler) = handler else { return };
        let event = Event { kind, tunnel_id: id.clone() };
        if catch_unwind(AssertUnwindSafe(|| handler(self.handle, &event))).is_err() {
            warn!(Code::TunnelFailed, "the event handler panicked");
        }
    }

    fn notify(&self, notice: &Notice) {
        let queue = &self.handle.0.notices;
        queue.queued.fetch_sub(1, Ordering::AcqRel);
        let handler = self.handle.0.notice_handler.lock().clone();
        let Some(handler) = handler else { return };
        let dropped = queue.dropped.swap(0, Ordering::AcqRel);
        if catch_unwind(AssertUnwindSafe(|| handler(notice, dropped))).is_err() {
            warn!(Code::TunnelFailed, "the handler of notices panicked");
        }
    }

    fn spawn(
        &mut self,
        id: &TunnelId,
        params: &ConnectParams,
        epoch: u64,
        record: &Arc<TunnelRecord>,
    ) -> Option<Worker> {
        let sender = self.handle.0.sender.clone();
        let report = move |report| drop(sender.send(Message::Worker(report)));
        let options = self.handle.0.options.clone();
        let directive = Directive::Connect { params: params.clone(), epoch };
        match worker::spawn(id.clone(), options, directive, record.clone(), report) {
            Ok(worker) => Some(worker),
            Err(e) => {
                warn!(Code::TunnelFailed, "tunnel {id}: create its worker: {e}; trying again");
                let retry_at = Instant::now() + SPAWN_RETRY;
                record.failed(&format!("create its worker: {e}"));
                record.waiting(retry_at);
                self.spawn_at = Some(retry_at);
                None
            }
        }
    }

    fn spawn_missing(&mut self) {
        self.spawn_at = None;
        let missing: Vec<TunnelId> = self
            .tunnels
            .iter()
            .filter(|(_, tunnel)| tunnel.worker.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in missing {
            let Some(tunnel) = self.tunnels.get(&id) else { continue };
            let (params, epoch, record) =
                (tunnel.params.clone(), tunnel.epoch, tunnel.record.clone());
            let worker = self.spawn(&id, &params, epoch, &record);
            if let Some(tunnel) = self.tunnels.get_mut(&id) {
                tunnel.worker = worker;
            }
        }
    }

    /// Tells all workers to stop before it joins any, so that they end at the same time.
    fn stop(&mut self) {
        self.leaving.iter().for_each(|worker| worker.direct(Directive::Stop));
        for (id, tunnel) in std::mem::take(&mut self.tunnels) {
            self.retire(&id, tunnel, Directive::Stop);
        }
        for worker in self.leaving.drain(..) {
            worker.join();
        }
    }
}
