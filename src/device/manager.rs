//! The start thread. It executes commands, starts and ends workers, and calls the event handler.
//!
//! It waits on one channel, which carries the commands and the reports of the workers. It does no
//! network I/O, so no network operation delays it. The event handler runs on this thread, one call
//! at a time, in the order of the events.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use super::control::Directive;
use super::options::Options;
use super::subscribers::{Observation, Subscribers};
use super::worker::{self, Report, ReportKind, Worker};
use crate::config::{ConnectParams, Limits, Network, Security, Service, Services, TunnelId};
use crate::error::{Error, Result};
use crate::event::{Event, EventKind};
use crate::logging::{self, info, warn, Code};
use crate::net::tls::TlsContext;
use crate::status::{Notice, NoticeSink, TunnelRecord, TunnelStatus};

/// Most commands that may wait for the start thread. A further one is refused, so that a flood from
/// the IPC queue cannot grow the process while an event handler sleeps.
const MAX_QUEUED_COMMANDS: usize = 4096;

/// Most notices that may wait for the start thread. A further one is dropped and counted, so that
/// sessions that open and close in a loop cannot grow the process while a handler sleeps.
const MAX_QUEUED_NOTICES: usize = 1024;

/// How long to wait before trying again to create a worker thread.
const SPAWN_RETRY: Duration = Duration::from_secs(1);

/// Most workers that end but have not ended, beyond those for which the tunnel limit has room. One that
/// delivers last bytes to slow local services ends late. Each uses a thread and a descriptor.
const SPARE_WORKERS: usize = 8;

/// Receives the events of all tunnels of a [`Manager`].
///
/// The start thread, inside [`Manager::run`], calls it for one event at a time, in the order of the
/// events. The handler may call every function of [`Handle`]. It may block: data still flows, and
/// only commands and further events wait. If it panics, the panic is logged and everything goes on.
pub type EventHandler = Arc<dyn Fn(&Handle, &Event) + Send + Sync>;

/// Receives the notices of all tunnels of a [`Manager`].
///
/// The start thread calls it as it calls the [`EventHandler`]: one call at a time for both of them, in
/// the order in which things happened. The same is allowed. While a handler blocks, at most 1024
/// notices wait; further ones are dropped, and [`Notice::dropped`] counts them. Events are never
/// dropped.
pub type NoticeHandler = Arc<dyn Fn(&Handle, &Notice) + Send + Sync>;

enum Message {
    Command(TunnelId, Command),
    /// Every tunnel connects again.
    ReconnectAll,
    Worker(Report),
    Notice(Notice),
    Stop,
}

enum Command {
    Add(ConnectParams),
    Update(ConnectParams),
    Reconnect,
    Delete,
}

/// The ids that will exist after all queued commands have been executed. With it, a call can report
/// that the tunnel limit is reached, although the start thread executes the command later.
#[derive(Default)]
struct Ledger {
    slots: HashMap<TunnelId, Slot>,
    /// The number of commands that wait in the channel.
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

    /// Whether another command may be queued.
    fn check(&self) -> Result<()> {
        if self.stopped {
            return Err(Error::Ended);
        }
        if self.queued >= MAX_QUEUED_COMMANDS {
            return Err(Error::Busy(self.queued));
        }
        Ok(())
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
    subscribers: Arc<Subscribers>,
}

/// The state of the notices on their way to the start thread.
#[derive(Default)]
struct NoticeQueue {
    /// Whether there is a handler for them.
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
    /// is deleted or its token expires; see [`ConnectParams::with_refusal_retry`]. If the id already exists, the start thread logs that and
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

    /// Makes a tunnel connect again at once, with the connection data that it has. An open tunnel is
    /// closed (DISCONNECT) before. One that waits for its next attempt makes it now, and its gaps start
    /// again from the shortest. If the id is unknown, the start thread logs that and ignores the
    /// command.
    ///
    /// # Errors
    /// [`Error::Busy`] or [`Error::Ended`]. In both cases, nothing is queued.
    pub fn reconnect(&self, id: &TunnelId) -> Result<()> {
        self.command(id, Command::Reconnect)
    }

    /// [`reconnect`](Handle::reconnect) for all tunnels that exist when the start thread executes the
    /// command. It counts as one command.
    ///
    /// # Errors
    /// [`Error::Busy`] or [`Error::Ended`]. In both cases, nothing is queued.
    pub fn reconnect_all(&self) -> Result<()> {
        let mut ledger = self.0.ledger.lock();
        ledger.check()?;
        ledger.queued += 1;
        let _ = self.0.sender.send(Message::ReconnectAll);
        Ok(())
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

    /// No longer offers the service of this type. Its open sessions go on. Returns whether there was
    /// such a service.
    pub fn remove_service(&self, service_type: &str) -> bool {
        self.0.options.services.lock().remove(service_type)
    }

    /// Replaces all services, in one step. The sessions opened from now on get the new ones, also in
    /// open tunnels; open sessions go on with the service that they have. Of several services of one
    /// type, the last one counts.
    pub fn set_services(&self, services: impl IntoIterator<Item = Service>) {
        let services = services.into_iter().collect();
        *self.0.options.services.lock() = services;
    }

    /// Replaces all limits and times. [`max_tunnels`](Limits::max_tunnels) applies to the next
    /// [`add`](Handle::add): tunnels that exist stay. Everything else applies to the connections that
    /// are opened from now on, and to their sessions; [`reconnect_all`](Handle::reconnect_all) opens
    /// them now.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if a limit is out of its range. Nothing is changed in this case.
    pub fn set_limits(&self, limits: Limits) -> Result<()> {
        self.change_limits(|present| *present = limits)
    }

    /// Sets the security of the connections opened from now on.
    pub fn set_security(&self, security: Security) {
        *self.0.options.tls.lock() = TlsContext::new(security);
    }

    /// Sets the way to the tunnel service, for the connections opened from now on.
    pub fn set_network(&self, network: Network) {
        *self.0.options.network.lock() = Arc::new(network);
    }

    /// Replaces the event handler from the next event on. `None`: events are dropped.
    pub fn set_event_handler(&self, handler: Option<EventHandler>) {
        *self.0.handler.lock() = handler;
    }

    /// Replaces the notice handler from the next notice on. `None`, the initial state: notices are not
    /// made. When this is called from another thread, the former handler may still be running.
    pub fn set_notice_handler(&self, handler: Option<NoticeHandler>) {
        let mut present = self.0.notice_handler.lock();
        self.want_notices(handler.is_some());
        *present = handler;
    }

    /// Returns a channel with a copy of every event and every notice from now on, in their order. Any
    /// number of subscribers may exist besides the handlers. A subscriber never delays anything: at
    /// most 256 observations wait for it, and further ones are dropped and counted
    /// ([`Observation::Missed`]). A copy may be received before the handler has been called. The
    /// channel ends, after what waits in it, when the run of the manager has ended. Drop the receiver to
    /// unsubscribe.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::Receiver<Observation> {
        self.0.subscribers.add(|| self.0.ledger.lock().stopped)
    }

    /// Calls the event handler.
    fn deliver(&self, event: &Event) {
        // The handler is cloned and the lock released, because the handler may call
        // `set_event_handler`.
        let handler = self.0.handler.lock().clone();
        let Some(handler) = handler else { return };
        if catch_unwind(AssertUnwindSafe(|| handler(self, event))).is_err() {
            warn!(Code::TunnelFailed, "the event handler panicked");
        }
    }

    /// Calls the notice handler.
    fn deliver_notice(&self, notice: &Notice) {
        let handler = self.0.notice_handler.lock().clone();
        let Some(handler) = handler else { return };
        if catch_unwind(AssertUnwindSafe(|| handler(self, notice))).is_err() {
            warn!(Code::TunnelFailed, "the notice handler panicked");
        }
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

    /// Whether notices are made from now on. [`Run::next`] returns them.
    pub(crate) fn want_notices(&self, wanted: bool) {
        self.0.notices.wanted.store(wanted, Ordering::Release);
    }

    /// Queues the notices of one tunnel for the start thread. Holds no `Handle`, because the records
    /// are part of it.
    fn notice_sink(&self, id: &TunnelId) -> NoticeSink {
        let (queue, subscribers) = (self.0.notices.clone(), self.0.subscribers.clone());
        let (sender, id) = (self.0.sender.clone(), id.clone());
        Box::new(move |kind| {
            if !queue.wanted.load(Ordering::Acquire) && subscribers.is_empty() {
                return;
            }
            if queue.queued.fetch_add(1, Ordering::AcqRel) >= MAX_QUEUED_NOTICES {
                queue.queued.fetch_sub(1, Ordering::AcqRel);
                queue.dropped.fetch_add(1, Ordering::AcqRel);
                return;
            }
            let _ = sender.send(Message::Notice(Notice::new(id.clone(), kind)));
        })
    }

    fn command(&self, id: &TunnelId, command: Command) -> Result<()> {
        let mut ledger = self.0.ledger.lock();
        ledger.check()?;
        let known = ledger.slots.get(id).is_some_and(|slot| slot.wanted);
        let wanted = match command {
            Command::Add(_) | Command::Update(_) => true,
            Command::Reconnect => known,
            Command::Delete => false,
        };
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
    network: Network,
    handler: Option<EventHandler>,
    notice_handler: Option<NoticeHandler>,
}

impl fmt::Debug for ManagerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerBuilder")
            .field("services", &self.services)
            .field("security", &self.security)
            .field("limits", &self.limits)
            .field("network", &self.network)
            .field("handler", &self.handler.is_some())
            .field("notice_handler", &self.notice_handler.is_some())
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

    /// Sets the way to the tunnel service: proxy, local address or interface, address family. Default:
    /// [`Network::new`], which uses no proxy and does not read the environment.
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
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

    /// Sets the notice handler; see [`NoticeHandler`]. Without a handler, notices are not made.
    pub fn on_notice(mut self, handler: impl Fn(&Handle, &Notice) + Send + Sync + 'static) -> Self {
        self.notice_handler = Some(Arc::new(handler));
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
            network: Mutex::new(Arc::new(self.network)),
        });
        let handle = Handle(Arc::new(Inner {
            options,
            ledger: Mutex::default(),
            records: Mutex::default(),
            sender,
            handler: Mutex::new(self.handler),
            notice_handler: Mutex::default(),
            notices: Arc::default(),
            subscribers: Arc::default(),
        }));
        handle.set_notice_handler(self.notice_handler);
        Ok(Manager { handle, receiver, running: Arc::default() })
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
    receiver: Receiver<Message>,
    /// Whether there is a [`Run`].
    running: Arc<AtomicBool>,
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
        let mut run = self.begin()?;
        while let Some(observation) = run.next() {
            match observation {
                Observation::Event(event) => self.handle.deliver(&event),
                Observation::Notice(notice) => self.handle.deliver_notice(&notice),
                Observation::Missed(_) => {}
            }
        }
        Ok(())
    }

    /// Makes the calling thread the start thread. [`Run::next`] is what it has to do.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`].
    pub(crate) fn begin(&self) -> Result<Run> {
        if self.running.swap(true, Ordering::Acquire) {
            return Err(Error::AlreadyRunning);
        }
        info!(Code::Tunnel, "remote proxy thread start!");
        Ok(Run {
            handle: self.handle.clone(),
            receiver: self.receiver.clone(),
            running: self.running.clone(),
            tunnels: HashMap::new(),
            leaving: Vec::new(),
            spawn_at: None,
            deeds: VecDeque::new(),
            stopping: false,
            _delivering: logging::Delivering::begin(),
        })
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.handle.stop();
        if !self.running.load(Ordering::Acquire) {
            self.handle.0.subscribers.end();
        }
    }
}

/// One tunnel as the start thread knows it.
struct Tunnel {
    params: ConnectParams,
    record: Arc<TunnelRecord>,
    /// Every update and every reconnect raises it. Reports with an older epoch are ignored.
    epoch: u64,
    /// The epoch with which it got `params`.
    since: u64,
    /// Whether the last event of the tunnel was CONNECT.
    connected: bool,
    /// `None` if no thread could be created for it yet.
    worker: Option<Worker>,
}

impl Tunnel {
    fn directive(&self) -> Directive {
        Directive::Connect { params: self.params.clone(), epoch: self.epoch, since: self.since }
    }
}

/// The work of the start thread. It owns no frame of that thread's stack, so that a caller in C can
/// keep it aside while its event handler runs, and drop it if the handler ends the thread.
///
/// Dropping it stops the manager, also after a panic: no command must be accepted that would never
/// be executed. It also ends and joins all workers.
pub(crate) struct Run {
    handle: Handle,
    receiver: Receiver<Message>,
    running: Arc<AtomicBool>,
    tunnels: HashMap<TunnelId, Tunnel>,
    /// Workers that were told to end and are still to be joined.
    leaving: Vec<Worker>,
    /// When to try again to create the missing worker threads.
    spawn_at: Option<Instant>,
    /// What the last message led to and is still to be done, in this order.
    deeds: VecDeque<Deed>,
    stopping: bool,
    /// Dropped last: the lines of the end come before the start thread returns.
    _delivering: logging::Delivering,
}

/// One thing to do after a message. The handler of an event runs before the next one is done.
enum Deed {
    Deliver(Observation),
    /// Gives the tunnel's worker its present connection data.
    Connect(TunnelId),
    /// Tells a worker to end.
    Retire(Worker, Directive),
}

impl Run {
    /// Executes commands until there is something to deliver. Returns `None` at the end. Blocks.
    pub(crate) fn next(&mut self) -> Option<Observation> {
        loop {
            match self.deeds.pop_front() {
                Some(Deed::Deliver(observation)) => {
                    // The lines that led to an event come before it. Notices do not wait: there may be
                    // many, and the log callback may be slow.
                    if matches!(observation, Observation::Event(_)) {
                        logging::settle();
                    }
                    self.handle.0.subscribers.send(&observation);
                    return Some(observation);
                }
                Some(Deed::Connect(id)) => self.direct_to_connect(&id),
                Some(Deed::Retire(worker, how)) => {
                    worker.direct(how);
                    self.leaving.push(worker);
                }
                None if self.stopping => {
                    self.leaving.drain(..).for_each(Worker::join);
                    return None;
                }
                None => self.step(),
            }
        }
    }

    /// Waits for one message and acts on it.
    fn step(&mut self) {
        if self.handle.0.ledger.lock().stopped {
            return self.stop();
        }
        if self.spawn_at.is_some_and(|time| Instant::now() >= time) {
            self.spawn_missing();
        }
        let message = match self.spawn_at {
            None => self.receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(time) => self.receiver.recv_deadline(time),
        };
        match message {
            Ok(Message::Command(id, command)) => self.execute(id, command),
            Ok(Message::ReconnectAll) => self.reconnect_all(),
            Ok(Message::Worker(report)) => self.report(report),
            Ok(Message::Notice(notice)) => self.notify(notice),
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => self.stop(),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }

    fn execute(&mut self, id: TunnelId, command: Command) {
        match command {
            Command::Add(_) if self.tunnels.contains_key(&id) => {
                warn!(Code::Tunnel, "reopen tunnel_id {id} !");
                warn!(
                    Code::Tunnel,
                    "tunnel {id} exists and stays as it is; use update to change it"
                );
            }
            Command::Add(params) => self.create(&id, params),
            Command::Update(params) => self.update(&id, params),
            Command::Reconnect if self.tunnels.contains_key(&id) => self.reconnect(&id),
            Command::Reconnect => warn!(Code::Tunnel, "reconnect tunnel_id {id} not found!"),
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
        let first = Directive::Connect { params: params.clone(), epoch: 0, since: 0 };
        let worker = self.spawn(id, first, &record);
        let tunnel = Tunnel { params, record, epoch: 0, since: 0, connected: false, worker };
        self.tunnels.insert(id.clone(), tunnel);
    }

    fn update(&mut self, id: &TunnelId, params: ConnectParams) {
        let Some(tunnel) = self.tunnels.get_mut(id) else {
            return self.create(id, params);
        };
        tunnel.params = params;
        tunnel.since = tunnel.epoch + 1;
        self.reconnect(id);
    }

    /// Makes a tunnel connect again with its present connection data.
    fn reconnect(&mut self, id: &TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(id) else { return };
        tunnel.epoch += 1;
        let was_connected = std::mem::take(&mut tunnel.connected);
        if was_connected {
            self.emit(EventKind::Disconnect, id);
        }
        self.deeds.push_back(Deed::Connect(id.clone()));
    }

    fn reconnect_all(&mut self) {
        let mut ids: Vec<TunnelId> = self.tunnels.keys().cloned().collect();
        ids.sort_unstable();
        ids.iter().for_each(|id| self.reconnect(id));
        self.handle.0.ledger.lock().queued -= 1;
    }

    /// Gives the tunnel's worker its present connection data.
    fn direct_to_connect(&self, id: &TunnelId) {
        let Some(tunnel) = self.tunnels.get(id) else { return };
        if let Some(worker) = &tunnel.worker {
            worker.direct(tunnel.directive());
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
        self.deeds.extend(tunnel.worker.map(|worker| Deed::Retire(worker, how)));
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
                let mut ledger = self.handle.0.ledger.lock();
                self.settle(&mut ledger, &report.id);
                drop(ledger);
                self.emit(EventKind::Expired, &report.id);
            }
            ReportKind::Connected | ReportKind::Lost | ReportKind::Ended => {}
        }
    }

    fn emit(&mut self, kind: EventKind, id: &TunnelId) {
        let event = Event { kind, tunnel_id: id.clone() };
        self.deeds.push_back(Deed::Deliver(Observation::Event(event)));
    }

    fn notify(&mut self, mut notice: Notice) {
        let (queue, subscribers) = (&self.handle.0.notices, &self.handle.0.subscribers);
        queue.queued.fetch_sub(1, Ordering::AcqRel);
        if queue.wanted.load(Ordering::Acquire) || !subscribers.is_empty() {
            notice.dropped = queue.dropped.swap(0, Ordering::AcqRel);
            self.deeds.push_back(Deed::Deliver(Observation::Notice(notice)));
        }
    }

    fn spawn(
        &mut self,
        id: &TunnelId,
        first: Directive,
        record: &Arc<TunnelRecord>,
    ) -> Option<Worker> {
        self.make_room();
        let sender = self.handle.0.sender.clone();
        let report = move |report| drop(sender.send(Message::Worker(report)));
        let options = self.handle.0.options.clone();
        match worker::spawn(id.clone(), options, first, record.clone(), report) {
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

    /// Joins the workers that have ended: their reports wait behind the commands. If there are too many
    /// others, ends the oldest of them at once.
    fn make_room(&mut self) {
        self.leaving.extract_if(.., |worker| worker.has_ended()).for_each(Worker::join);
        let most = self.handle.0.options.limits.lock().max_tunnels + SPARE_WORKERS;
        let excess = (self.tunnels.len() + self.leaving.len() + 1).saturating_sub(most);
        let excess = excess.min(self.leaving.len());
        self.leaving[..excess].iter().for_each(|worker| worker.direct(Directive::Stop));
        self.leaving.drain(..excess).for_each(Worker::join);
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
            let (first, record) = (tunnel.directive(), tunnel.record.clone());
            let worker = self.spawn(&id, first, &record);
            if let Some(tunnel) = self.tunnels.get_mut(&id) {
                tunnel.worker = worker;
            }
        }
    }

    /// Tells all workers to stop. They are joined after the last of them was told, so that they end
    /// at the same time.
    fn stop(&mut self) {
        self.stopping = true;
        self.leaving.iter().for_each(|worker| worker.direct(Directive::Stop));
        for (id, tunnel) in std::mem::take(&mut self.tunnels) {
            self.retire(&id, tunnel, Directive::Stop);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.handle.stop();
        self.stop();
        // No handler is called any more.
        while self.next().is_some() {}
        self.handle.0.subscribers.end();
        info!(Code::Tunnel, "remote proxy thread exit!");
        self.running.store(false, Ordering::Release);
    }
}
