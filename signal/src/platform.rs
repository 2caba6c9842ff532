//! The platform's end: publishes messages to devices, for a gateway that stands in for the platform.
//!
//! Messages wait in memory while the broker is away. Of each tunnel only the newest one waits, so that a
//! device is not told of what is no longer so. One message at a time is on its way, so that they arrive
//! in their order.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use aiot_tunnel::TunnelId;
use native_tls::TlsConnector;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Packet, QoS,
    TlsConfiguration, Transport,
};
use serde_json::json;
use tokio::select;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::retry::Retry;
use crate::text::printable;
use crate::{explain, Broker, Credentials, Device, Times};

/// Most messages that wait. The oldest are dropped.
const MOST_WAITING: usize = 10_000;
/// Some brokers end the connection when a message is not allowed. Others are sent before it from then on.
const MOST_ATTEMPTS: u32 = 3;
/// Most bytes of one MQTT packet.
const MOST_PACKET: usize = 64 * 1024;
/// How long the farewell to the broker may take.
const FAREWELL: Duration = Duration::from_millis(200);
/// A tunnel that never expires is said to live as long as 32 bits can say.
const LONGEST: u64 = i32::MAX as u64;

/// Where a device connects. `Debug` hides the token.
#[derive(Clone)]
#[non_exhaustive]
pub struct ConnectionData {
    /// Whether it uses TLS.
    pub is_secure: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path.
    pub path: String,
    /// The device's token.
    pub token: Zeroizing<String>,
    /// When the tunnel expires.
    pub expires: Option<SystemTime>,
}

impl ConnectionData {
    /// Data of a tunnel that never expires.
    #[must_use]
    pub fn new(is_secure: bool, host: &str, port: u16, path: &str, token: &str) -> Self {
        let token = Zeroizing::new(token.to_owned());
        let (host, path) = (host.to_owned(), path.to_owned());
        ConnectionData { is_secure, host, port, path, token, expires: None }
    }

    /// Sets when the tunnel expires.
    #[must_use]
    pub fn with_expires(mut self, at: Option<SystemTime>) -> Self {
        self.expires = at;
        self
    }
}

impl fmt::Debug for ConnectionData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionData")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// What a device is told.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notice {
    /// Open a tunnel.
    Connect(ConnectionData),
    /// Use new connection data.
    Update(ConnectionData),
    /// Close a tunnel, for this reason.
    Close(String),
}

impl Notice {
    /// The payload of the topic `.../secure_tunnel/notify`.
    #[must_use]
    pub fn payload(&self, tunnel: &TunnelId) -> Zeroizing<Vec<u8>> {
        let with = |data: &ConnectionData| {
            let left = data.expires.map(|at| at.duration_since(SystemTime::now()));
            let left = left.map_or(LONGEST, |left| left.unwrap_or_default().as_secs().min(LONGEST));
            json!({
                "schema": if data.is_secure { "wss" } else { "ws" },
                "path": data.path,
                "tunnel_id": tunnel.as_str(),
                "host": data.host,
                "port": data.port.to_string(),
                "token": data.token.as_str(),
                "token_expire": left,
                "udi": "",
            })
        };
        let mut message = match self {
            Notice::Connect(data) => {
                let mut message = with(data);
                message["operation"] = json!("connect");
                message
            }
            Notice::Update(data) => with(data),
            Notice::Close(reason) => json!({
                "tunnel_id": tunnel.as_str(),
                "operation": "close",
                "close_reason": reason,
            }),
        };
        let bytes = Zeroizing::new(serde_json::to_vec(&message).unwrap_or_default());
        if let Some(serde_json::Value::String(token)) = message.get_mut("token") {
            zeroize::Zeroize::zeroize(token);
        }
        bytes
    }
}

/// A connection to the broker that is kept, and the messages that wait for it. Dropping it ends both.
#[must_use = "dropping it ends it"]
pub struct Platform {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform").field("broker", &self.shared.broker).finish_non_exhaustive()
    }
}

/// A message that was handed to a [`Platform`].
#[derive(Debug)]
pub struct Sent {
    number: u64,
    is_delivered: Arc<AtomicBool>,
}

struct Shared {
    broker: Broker,
    credentials: Credentials,
    times: Times,
    connector: Option<TlsConnector>,
    state: Mutex<State>,
    /// A message has reached the broker or is gone, or the connection has changed.
    changed: Condvar,
    /// There is a message, or the end.
    wake: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    next: u64,
    /// The message that is on its way.
    in_flight: Option<u64>,
    is_connected: bool,
    is_stopping: bool,
}

struct Waiting {
    number: u64,
    topic: String,
    tunnel: TunnelId,
    payload: Zeroizing<Vec<u8>>,
    is_delivered: Arc<AtomicBool>,
    /// Connections that were lost while it was on its way.
    attempts: u32,
}

impl Waiting {
    fn is_about_the_same(&self, other: &Waiting) -> bool {
        self.tunnel == other.tunnel && self.topic == other.topic
    }
}

/// Why a connection has ended.
enum End {
    Stop,
    Failed { why: String, is_refused: bool, stood: Option<Duration> },
}

impl Platform {
    /// Starts the thread and returns. The first connection is tried at once; failures are logged and tried
    /// again.
    ///
    /// # Errors
    /// [`Error::Invalid`] for TLS settings that OpenSSL does not take, [`Error::Io`] when the thread
    /// cannot be made.
    pub fn start(broker: Broker, credentials: Credentials, times: Times) -> Result<Self> {
        let connector = broker.connector()?;
        let failed = |what| move |source| Error::Io { what, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Name lookups, which cannot be interrupted.
            .max_blocking_threads(4)
            .build()
            .map_err(failed("create the MQTT client's runtime"))?;
        let (state, changed, wake) = (Mutex::default(), Condvar::new(), Notify::new());
        let shared =
            Arc::new(Shared { broker, credentials, times, connector, state, changed, wake });
        let own = shared.clone();
        let thread = thread::Builder::new().name("aiot-notify".into()).spawn(move || {
            runtime.block_on(run(own));
            runtime.shutdown_background();
        });
        let thread = Some(thread.map_err(failed("create the MQTT client's thread"))?);
        Ok(Platform { shared, thread })
    }

    /// Sends a message to a device, as soon as the broker is there. Does not block.
    pub fn send(&self, device: &Device, tunnel: &TunnelId, notice: &Notice) -> Sent {
        let is_delivered = Arc::new(AtomicBool::new(false));
        let mut state = self.shared.lock();
        state.next += 1;
        let number = state.next;
        let message = Waiting {
            number,
            topic: device.notify_topic(),
            tunnel: tunnel.clone(),
            payload: notice.payload(tunnel),
            is_delivered: is_delivered.clone(),
            attempts: 0,
        };
        state.add(message);
        drop(state);
        self.shared.changed.notify_all();
        self.shared.wake.notify_one();
        Sent { number, is_delivered }
    }

    /// Waits until the broker has a message, for this time at most, and not at all while there is no
    /// connection. Returns whether the broker has it. One that it has not got stays in the queue.
    #[must_use]
    pub fn is_delivered(&self, sent: &Sent, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut state = self.shared.lock();
        loop {
            if sent.is_delivered.load(Ordering::Relaxed) {
                return true;
            }
            let waits = state.waiting.iter().any(|message| message.number == sent.number);
            let left = until.saturating_duration_since(Instant::now());
            if !waits || !state.is_connected || left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Leaves the broker. Messages that wait are lost. It takes less than half a second.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.lock().is_stopping = true;
        self.shared.changed.notify_all();
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.end();
    }
}

impl State {
    /// Adds a message. It takes the place of one about the same tunnel of the same device.
    fn add(&mut self, message: Waiting) {
        let in_flight = self.in_flight;
        self.waiting
            .retain(|other| !other.is_about_the_same(&message) || Some(other.number) == in_flight);
        if self.waiting.len() >= MOST_WAITING {
            let index = usize::from(in_flight.is_some());
            if let Some(dropped) = self.waiting.remove(index) {
                let tunnel = printable(dropped.tunnel.as_str());
                log::warn!("notify: too many messages wait; that about tunnel {tunnel} is dropped");
            }
        }
        self.waiting.push_back(message);
    }

    /// The connection is new, or lost. What was on its way is sent again, unless there is a newer message.
    fn set_connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        let Some(number) = self.in_flight.take() else { return };
        let index = self.waiting.iter().position(|message| message.number == number);
        let Some(mut message) = index.and_then(|index| self.waiting.remove(index)) else { return };
        if self.waiting.iter().any(|other| other.is_about_the_same(&message)) {
            return;
        }
        message.attempts += 1;
        match message.attempts < MOST_ATTEMPTS {
            true => self.waiting.push_front(message),
            false => self.waiting.push_back(message),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_connected(&self, is_connected: bool) {
        self.lock().set_connected(is_connected);
        self.changed.notify_all();
    }

    fn delivered(&self) {
        let mut state = self.lock();
        if let Some(number) = state.in_flight.take() {
            let index = state.waiting.iter().position(|message| message.number == number);
            if let Some(message) = index.and_then(|index| state.waiting.remove(index)) {
                message.is_delivered.store(true, Ordering::Relaxed);
                log::debug!("notify: the broker has a message about tunnel {}", message.tunnel);
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Connects until the stop.
async fn run(shared: Arc<Shared>) {
    let broker = shared.broker.to_string();
    let mut retry = Retry::default();
    loop {
        let attempt = retry.attempts();
        let ended = tokio::spawn(connect(shared.clone(), attempt)).await;
        shared.set_connected(false);
        let end = ended.unwrap_or_else(|e| {
            let why = format!("the MQTT library failed: {}", printable(&e.to_string()));
            End::Failed { why, is_refused: false, stood: None }
        });
        let End::Failed { why, is_refused, stood } = end else { return };
        let what = if stood.is_some() { "lost the connection to" } else { "cannot connect to" };
        if let Some(stood) = stood {
            retry.stood(stood);
        }
        let gap = retry.failed(&shared.times, is_refused, rand::random());
        let (number, seconds) = (retry.attempts(), gap.as_secs_f64());
        log::warn!(
            "notify: {what} {broker}: {why}; failure {number}, next attempt in {seconds:.1} s"
        );
        let end = sleep(gap);
        tokio::pin!(end);
        loop {
            if shared.lock().is_stopping {
                return;
            }
            select! {
                () = &mut end => break,
                () = shared.wake.notified() => {}
            }
        }
    }
}

/// One connection to the broker.
async fn connect(shared: Arc<Shared>, failures: u32) -> End {
    let (client, mut events) = AsyncClient::new(mqtt_options(&shared), 4);
    let mut network = events.network_options();
    network.set_connection_timeout(shared.times.connect.as_secs().max(1));
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    let mut connected: Option<Instant> = None;
    // Until when the broker must have taken the message that is on its way.
    let mut deadline: Option<Instant> = None;
    let failed = |why: String, is_refused: bool, connected: Option<Instant>| End::Failed {
        why,
        is_refused,
        stood: connected.map(|since| since.elapsed()),
    };
    loop {
        let result = {
            // The future lives until it is done: it may be in the middle of a packet.
            let poll = events.poll();
            tokio::pin!(poll);
            loop {
                if shared.lock().is_stopping {
                    break None;
                }
                if connected.is_some() && deadline.is_none() {
                    let sent = send_next(&shared, &client);
                    deadline = sent.map(|()| Instant::now() + shared.times.connect);
                }
                let at = deadline.unwrap_or_else(Instant::now);
                select! {
                    result = &mut poll => break Some(result),
                    () = shared.wake.notified() => {}
                    () = sleep_until(at.into()), if deadline.is_some() => {
                        let why = "it does not confirm a message".to_owned();
                        return failed(why, false, connected);
                    }
                }
            }
        };
        match result {
            None => {
                if connected.is_some() {
                    farewell(&client, &mut events).await;
                }
                return End::Stop;
            }
            Some(Ok(Event::Incoming(Packet::ConnAck(_)))) => {
                connected = Some(Instant::now());
                shared.set_connected(true);
                let broker = &shared.broker;
                match failures {
                    0 => log::info!("notify: connected to {broker}"),
                    count => log::info!("notify: connected to {broker}, failures before: {count}"),
                }
            }
            Some(Ok(Event::Incoming(Packet::PubAck(_)))) => {
                deadline = None;
                shared.delivered();
            }
            Some(Ok(_)) => {}
            Some(Err(e)) => {
                let is_refused = matches!(
                    e,
                    ConnectionError::ConnectionRefused(
                        ConnectReturnCode::BadUserNamePassword
                            | ConnectReturnCode::NotAuthorized
                            | ConnectReturnCode::BadClientId
                            | ConnectReturnCode::RefusedProtocolVersion
                    )
                );
                let why = explain::explain(&e, shared.times.connect);
                return failed(why, is_refused, connected);
            }
        }
    }
}

/// Sends the next message, if there is one.
fn send_next(shared: &Shared, client: &AsyncClient) -> Option<()> {
    let mut state = shared.lock();
    let message = state.waiting.front()?;
    let (topic, payload) = (message.topic.clone(), message.payload.to_vec());
    let number = message.number;
    client.try_publish(topic, QoS::AtLeastOnce, false, payload).ok()?;
    state.in_flight = Some(number);
    Some(())
}

async fn farewell(client: &AsyncClient, events: &mut EventLoop) {
    if client.try_disconnect().is_ok() {
        let _ = timeout(FAREWELL, async { while events.poll().await.is_ok() {} }).await;
    }
}

fn mqtt_options(shared: &Shared) -> MqttOptions {
    let Shared { broker, credentials, times, connector, .. } = shared;
    let mut options = MqttOptions::new(credentials.client_id(), broker.host(), broker.port().get());
    options
        .set_keep_alive(Duration::from_secs(times.keep_alive.as_secs().max(1)))
        // Nothing is sent to this client.
        .set_clean_session(true)
        .set_max_packet_size(MOST_PACKET, MOST_PACKET);
    if let Some(username) = credentials.username() {
        options.set_credentials(username, credentials.expose_password().unwrap_or_default());
    }
    if let Some(connector) = connector {
        let tls = TlsConfiguration::NativeConnector(connector.clone());
        options.set_transport(Transport::tls_with_config(tls));
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message;

    fn tunnel(id: &str) -> TunnelId {
        TunnelId::new(id).unwrap()
    }

    fn data() -> ConnectionData {
        ConnectionData::new(true, "gw.example", 8443, "/tunnel/t1/dest", "hush-token")
    }

    #[test]
    fn a_device_reads_what_the_platform_writes() {
        let t1 = tunnel("t1");
        let read = |notice: Notice| Message::from_notify(&notice.payload(&t1)).unwrap();
        for (notice, is_connect) in
            [(Notice::Connect(data()), true), (Notice::Update(data()), false)]
        {
            let (id, params) = match read(notice) {
                Message::Connect(id, params) if is_connect => (id, params),
                Message::Update(id, params) if !is_connect => (id, params),
                other => panic!("{other:?}"),
            };
            assert_eq!(
                (id.as_str(), params.host(), params.path()),
                ("t1", "gw.example", "/tunnel/t1/dest")
            );
            assert_eq!((params.port().get(), params.token().expose()), (8443, "hush-token"));
        }
        let closed = Message::Close(t1.clone(), Some("removed".to_owned()));
        assert_eq!(read(Notice::Close("removed".to_owned())), closed);
        assert!(!format!("{:?}", Notice::Connect(data())).contains("hush"));
    }

    #[test]
    fn the_time_until_the_expiry_is_told_in_seconds() {
        let seconds = |expires: Option<SystemTime>| {
            let payload = Notice::Update(data().with_expires(expires)).payload(&tunnel("t1"));
            let message: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            message["token_expire"].as_u64().unwrap()
        };
        let now = SystemTime::now();
        assert!((3590..=3600).contains(&seconds(Some(now + Duration::from_secs(3600)))));
        assert_eq!(seconds(Some(now - Duration::from_secs(5))), 0);
        assert_eq!(seconds(None), LONGEST);
    }

    /// A message without a content.
    fn add(state: &mut State, topic: &str, id: &str) -> u64 {
        state.next += 1;
        let number = state.next;
        state.add(Waiting {
            number,
            topic: topic.to_owned(),
            tunnel: tunnel(id),
            payload: Zeroizing::default(),
            is_delivered: Arc::default(),
            attempts: 0,
        });
        number
    }

    fn numbers(state: &State) -> Vec<u64> {
        state.waiting.iter().map(|message| message.number).collect()
    }

    #[test]
    fn of_each_tunnel_the_newest_message_waits() {
        let mut state = State::default();
        let first = add(&mut state, "a", "t1");
        state.in_flight = Some(first);
        let second = add(&mut state, "a", "t1");
        let other = add(&mut state, "b", "t1");
        assert_eq!(numbers(&state), [first, second, other]);
        let third = add(&mut state, "a", "t1");
        assert_eq!(numbers(&state), [first, other, third]);
        // The one that was on its way is not sent again: there is a newer one.
        state.set_connected(false);
        assert_eq!(numbers(&state), [other, third]);
    }

    #[test]
    fn a_message_that_the_broker_does_not_take_holds_up_no_other() {
        let mut state = State::default();
        let (bad, good) = (add(&mut state, "a", "t1"), add(&mut state, "a", "t2"));
        for _ in 1..MOST_ATTEMPTS {
            state.in_flight = Some(bad);
            state.set_connected(false);
            assert_eq!(numbers(&state), [bad, good]);
        }
        state.in_flight = Some(bad);
        state.set_connected(false);
        assert_eq!(numbers(&state), [good, bad]);
    }

    #[test]
    fn not_too_many_messages_wait_and_what_is_on_its_way_stays() {
        let mut state = State::default();
        let first = add(&mut state, "a", "first");
        state.in_flight = Some(first);
        // Not by `add`, which looks at each message.
        for number in 1..MOST_WAITING as u64 {
            state.waiting.push_back(Waiting {
                number: first + number,
                topic: "a".to_owned(),
                tunnel: tunnel("other"),
                payload: Zeroizing::default(),
                is_delivered: Arc::default(),
                attempts: 0,
            });
        }
        state.next = first + MOST_WAITING as u64;
        let last = add(&mut state, "a", "last");
        assert_eq!(state.waiting.len(), MOST_WAITING);
        assert_eq!(state.waiting.front().map(|message| message.number), Some(first));
        assert_eq!(state.waiting.back().map(|message| message.number), Some(last));
    }
}
