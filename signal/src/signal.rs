//! The running library: its options, its two threads, and what they share.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aiot_tunnel::TunnelId;
use native_tls::TlsConnector;
use tokio::sync::Notify;

use crate::asking::{Asking, Reason};
use crate::client;
use crate::error::{Error, Result};
use crate::hand_over::{HandOver, NotHandedOver};
use crate::ledger::Ledger;
use crate::{Broker, Credentials, Device};

/// The agent is tried again after this time, and after twice as long each further time.
const AGENT_RETRY: Duration = Duration::from_secs(1);
const AGENT_RETRY_MOST: Duration = Duration::from_secs(30);

/// What a [`Signal`] needs to know.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Which device this is.
    pub device: Device,
    /// Where the broker is.
    pub broker: Broker,
    /// How to sign in.
    pub credentials: Credentials,
    /// Times and gaps.
    pub times: Times,
}

impl Options {
    /// Options with the default times.
    pub fn new(device: Device, broker: Broker, credentials: Credentials) -> Self {
        Options { device, broker, credentials, times: Times::default() }
    }

    /// Sets [`times`](Self::times).
    #[must_use]
    pub fn with_times(mut self, times: Times) -> Self {
        self.times = times;
        self
    }
}

/// Times and gaps. A gap grows from its least to its most value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Times {
    /// Name lookup, TCP, TLS and the broker's answer together; also the answer to a subscription.
    /// Default: 15 s. Whole seconds count.
    pub connect: Duration,
    /// Time between two pings. Default: 60 s. The platform takes 30 to 1200 s. Whole seconds count.
    pub keep_alive: Duration,
    /// Least gap between two attempts to connect. Default: 1 s.
    pub retry_least: Duration,
    /// Most. Default: 64 s.
    pub retry_most: Duration,
    /// Least gap after the broker has refused the sign-in. Default: 30 s.
    pub refused_least: Duration,
    /// Most. Default: 300 s.
    pub refused_most: Duration,
    /// Least gap between two requests for connection data. Default: 1 s.
    pub ask_least: Duration,
    /// Most: while tokens are refused again and again. Default: 300 s.
    pub ask_most: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Times {
            connect: seconds(15),
            keep_alive: seconds(60),
            retry_least: seconds(1),
            retry_most: seconds(64),
            refused_least: seconds(30),
            refused_most: seconds(300),
            ask_least: seconds(1),
            ask_most: seconds(300),
        }
    }
}

/// Receives the platform's messages and hands them to the agent, until it is stopped. Dropping it stops
/// it, as [`stop`](Self::stop) does.
///
/// Its own log lines hold no secret, and a broker can cause only a limited number of them. The MQTT
/// library `rumqttc` makes lines, too; one of them quotes packets that a broker must not send, and a
/// broker knows the password. So leave lines with the target `rumqttc` out of the log.
#[must_use = "dropping it stops it"]
pub struct Signal {
    shared: Arc<Shared>,
    network: Option<JoinHandle<()>>,
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// What other threads may tell a [`Signal`]. Cheap to clone; no call blocks.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle(..)")
    }
}

/// Shared by the two threads and the handles.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) connector: Option<TlsConnector>,
    state: Mutex<State>,
    /// Signalled when the agent is owed something, and at the stop.
    owed: Condvar,
    /// Signalled when a request is wanted, and at the stop.
    pub(crate) wake: Notify,
}

pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) asking: Asking,
    pub(crate) is_stopping: bool,
    /// The agent is to be tried now, whatever the gap.
    is_agent_back: bool,
}

impl Signal {
    /// Starts the threads and returns. The first connection is tried at once; failures are logged and
    /// tried again.
    ///
    /// # Errors
    /// [`Error::Invalid`] for TLS settings that OpenSSL does not take, [`Error::Io`] when a thread
    /// cannot be made.
    pub fn start(options: Options, hand_over: impl HandOver) -> Result<Self> {
        Self::start_with(options, |_| hand_over)
    }

    /// The same, for a way to the agent that needs the [`Handle`].
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub fn start_with<H: HandOver>(
        options: Options,
        hand_over: impl FnOnce(Handle) -> H,
    ) -> Result<Self> {
        let connector = options.broker.connector()?;
        let failed = |what| move |source| Error::Io { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Name lookups, which cannot be interrupted.
            .max_blocking_threads(4)
            .build()
            .map_err(failed("create the MQTT client's runtime"))?;
        let state = State {
            ledger: Ledger::default(),
            asking: Asking::new(options.times.ask_least, options.times.ask_most),
            is_stopping: false,
            is_agent_back: false,
        };
        let shared = Arc::new(Shared {
            options,
            connector,
            state: Mutex::new(state),
            owed: Condvar::new(),
            wake: Notify::new(),
        });
        let (for_network, for_agent) = (shared.clone(), shared.clone());
        let hand_over = hand_over(Handle(shared.clone()));
        let network = thread::Builder::new().name("aiot-signal-mqtt".into()).spawn(move || {
            runtime.block_on(client::run(for_network));
            // A name lookup may hang; nobody waits for it.
            runtime.shutdown_background();
        });
        let network = Some(network.map_err(failed("create the MQTT client's thread"))?);
        let signal = Signal { shared, network };
        thread::Builder::new()
            .name("aiot-signal-agent".into())
            .spawn(move || for_agent.serve_agent(hand_over))
            .map_err(failed("create the thread for the agent"))?;
        Ok(signal)
    }

    /// For other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Leaves the broker and stops. It takes less than half a second. A command that is on its way to
    /// the agent is not waited for.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.lock().is_stopping = true;
        self.shared.owed.notify_all();
        self.shared.wake.notify_one();
        if let Some(network) = self.network.take() {
            let _ = network.join();
        }
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        self.end();
    }
}

impl Handle {
    /// Asks the platform for connection data, now or as soon as the broker is connected. If it is not,
    /// the next attempt to connect begins at once.
    pub fn ask(&self) {
        self.want(Reason::Now);
    }

    /// The agent says that a tunnel has expired. The platform is asked for new connection data.
    pub fn expired(&self, tunnel: &TunnelId) {
        self.0.lock().ledger.expired(tunnel);
        self.want(Reason::Lost);
    }

    /// The agent's events are seen from now on. If they were seen before, the agent may have started
    /// again and lost its tunnels: it gets what is known again, and the platform is asked for what is not.
    pub fn agent_connected(&self) {
        let mut state = self.0.lock();
        let is_again = state.ledger.agent_connected();
        state.is_agent_back = true;
        drop(state);
        self.0.owed.notify_all();
        if is_again {
            self.want(Reason::Lost);
        }
    }

    /// The agent's events are not seen any more.
    pub fn agent_disconnected(&self) {
        self.0.lock().ledger.agent_disconnected();
    }

    fn want(&self, reason: Reason) {
        self.0.lock().asking.want(reason);
        self.0.wake.notify_one();
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent is owed something.
    pub(crate) fn owes(&self) {
        self.owed.notify_all();
    }

    /// The thread for the agent: hands over what is owed, until the stop.
    fn serve_agent(&self, mut hand_over: impl HandOver) {
        let mut failures: u32 = 0;
        while let Some((number, command)) = self.next_owed(failures) {
            match hand_over.hand_over(&command) {
                Ok(()) => {
                    if failures > 0 {
                        log::info!("the agent takes commands again, after {failures} failed tries");
                    }
                    failures = 0;
                    self.lock().ledger.handed_over(number);
                }
                Err(NotHandedOver::Refused(why)) => {
                    failures = 0;
                    log::warn!("the agent does not take a command: {why}");
                    self.lock().ledger.refused(number);
                }
                Err(NotHandedOver::Unreachable(why)) => {
                    if failures == 0 {
                        log::warn!("cannot reach the agent: {why}; trying again until it is there");
                    }
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    /// Waits until the agent is owed something and, after failures, until it is time to try again.
    /// `None` at the stop.
    fn next_owed(&self, failures: u32) -> Option<(u64, aiot_tunnel::ipc::Command)> {
        let gap = match failures {
            0 => Duration::ZERO,
            _ => AGENT_RETRY.saturating_mul(1 << (failures - 1).min(8)).min(AGENT_RETRY_MOST),
        };
        let not_before = Instant::now() + gap;
        let mut state = self.lock();
        loop {
            if state.is_stopping {
                return None;
            }
            let left = match std::mem::take(&mut state.is_agent_back) {
                true => Duration::ZERO,
                false => not_before.saturating_duration_since(Instant::now()),
            };
            state = match state.ledger.next() {
                Some(owed) if left.is_zero() => return Some(owed),
                Some(_) => {
                    let waited = self.owed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.owed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
