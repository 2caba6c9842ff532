//! The MQTT client: connects to the broker again and again, subscribes, asks, and checks what comes.
//!
//! Each connection has an event loop of its own, so nothing of a broken one reaches the next one. The
//! broker keeps the session: what is published while the device is away comes later. A panic in the MQTT
//! library costs the connection only.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use aiot_tunnel_proto::LogLimiter;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Outgoing,
    Packet, Publish, QoS, SubAck, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::select;
use tokio::time::{sleep, sleep_until, timeout};

use crate::asking::Reason;
use crate::explain;
use crate::ledger::Taken;
use crate::message::{Message, Rejected, Reply};
use crate::retry::Retry;
use crate::signal::Shared;
use crate::text::printable;
use crate::Options;

/// Most bytes of one MQTT packet from the broker. The platform's own limit is 256 KiB.
const MOST_IN: usize = 256 * 1024 + 1024;
const MOST_OUT: usize = 64 * 1024;
/// How long the farewell to the broker may take.
const FAREWELL: Duration = Duration::from_millis(200);
/// Lines about messages in one period, and as many about those that are dropped: junk does not hide what
/// the platform says.
const LINES: u32 = 20;

/// Why a connection has ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The library is to stop.
    Stop,
    /// The connection failed or was lost. `is_refused`: soon trying again would not help.
    Failed { why: String, is_refused: bool, stood: Option<Duration> },
    /// A packet was too long for this client.
    TooLong { stood: Option<Duration> },
}

/// Connects until the stop.
pub(crate) async fn run(shared: Arc<Shared>) {
    let broker = shared.options.broker.to_string();
    let mut retry = Retry::default();
    let mut lines = Lines::default();
    // The broker drops the session, and with it a packet that it would send again and again.
    let mut is_clean = false;
    while !shared.lock().is_stopping {
        let (connection, events) =
            Connection::new(shared.clone(), is_clean, retry.attempts(), std::mem::take(&mut lines));
        let (end, used) = match tokio::spawn(connection.run(events)).await {
            Ok(ended) => ended,
            Err(e) => {
                let why = format!("the MQTT library failed: {}", printable(&e.to_string()));
                let end = End::Failed { why, is_refused: false, stood: None };
                (end, Lines::default())
            }
        };
        lines = used;
        is_clean = matches!(end, End::TooLong { .. });
        let (why, is_refused, stood) = match end {
            End::Stop => return,
            End::Failed { why, is_refused, stood } => (why, is_refused, stood),
            End::TooLong { stood } => {
                let why = format!(
                    "it sent a packet of more than {MOST_IN} bytes; the messages that wait there are \
                     dropped"
                );
                (why, false, stood)
            }
        };
        let what = if stood.is_some() { "lost the connection to" } else { "cannot connect to" };
        if let Some(stood) = stood {
            retry.stood(stood);
        }
        let gap = retry.failed(&shared.options.times, is_refused, rand::random());
        let (number, seconds) = (retry.attempts(), gap.as_secs_f64());
        log::warn!("{what} {broker}: {why}; failure {number}, next attempt in {seconds:.1} s");
        pause(&shared, gap).await;
    }
}

/// Waits before the next attempt. A request that somebody wants ends the pause.
async fn pause(shared: &Shared, gap: Duration) {
    let end = sleep(gap);
    tokio::pin!(end);
    loop {
        {
            let state = shared.lock();
            if state.is_stopping || state.asking.wants_now() {
                return;
            }
        }
        select! {
            () = &mut end => return,
            () = shared.wake.notified() => {}
        }
    }
}

/// Limits the lines that a broker can cause.
struct Lines {
    /// About messages that are taken.
    taken: LogLimiter,
    /// About messages that are dropped.
    dropped: LogLimiter,
}

impl Default for Lines {
    fn default() -> Self {
        let limiter = || LogLimiter::with_lines(LogLimiter::WINDOW, LINES);
        Lines { taken: limiter(), dropped: limiter() }
    }
}

impl Lines {
    /// Says how many lines were left out, after their period. The pings see to it that this is called.
    fn tick(&mut self, now: Instant) {
        if let Some(count) = self.taken.tick(now) {
            log::info!("{count} more messages were taken; their lines are left out");
        }
        if let Some(count) = self.dropped.tick(now) {
            log::warn!("{count} more messages were dropped; their lines are left out");
        }
    }
}

/// One connection to the broker.
struct Connection {
    shared: Arc<Shared>,
    client: AsyncClient,
    notify: String,
    reply: String,
    /// Since when it stands.
    connected: Option<Instant>,
    /// Until when the broker must have answered the subscriptions.
    deadline: Option<Instant>,
    /// The packet ids of the subscriptions that are not answered, in their order: notify, reply.
    subscriptions: Vec<(u16, String)>,
    answered: usize,
    is_subscribed: bool,
    /// The number of the last request.
    number: u64,
    failures: u32,
    lines: Lines,
}

impl Connection {
    fn new(shared: Arc<Shared>, is_clean: bool, failures: u32, lines: Lines) -> (Self, EventLoop) {
        let options = mqtt_options(&shared, is_clean);
        let (client, mut events) = AsyncClient::new(options, 16);
        let mut network = events.network_options();
        network.set_connection_timeout(shared.options.times.connect.as_secs().max(1));
        network.set_tcp_nodelay(true);
        events.set_network_options(network);
        let device = &shared.options.device;
        let connection = Connection {
            client,
            notify: device.notify_topic(),
            reply: device.reply_topic(),
            connected: None,
            deadline: None,
            subscriptions: Vec::new(),
            answered: 0,
            is_subscribed: false,
            number: u64::from(rand::random::<u32>() >> 1),
            failures,
            lines,
            shared,
        };
        (connection, events)
    }

    async fn run(mut self, mut events: EventLoop) -> (End, Lines) {
        let end = loop {
            // The future lives until it is done: it may be in the middle of a packet.
            let poll = events.poll();
            tokio::pin!(poll);
            let result = loop {
                if self.shared.lock().is_stopping {
                    break None;
                }
                let due = self.due();
                let at = due.unwrap_or_else(Instant::now);
                select! {
                    result = &mut poll => break Some(result),
                    () = self.shared.wake.notified() => {}
                    () = sleep_until(at.into()), if due.is_some() => {
                        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                            break None;
                        }
                        self.ask_if_due();
                    }
                }
            };
            let now = Instant::now();
            self.lines.tick(now);
            let outcome = match result {
                Some(Ok(event)) => self.event(event),
                Some(Err(e)) => Err(self.failed(&e)),
                None if self.shared.lock().is_stopping => Err(End::Stop),
                None => Err(self.end("it does not answer the subscriptions".to_owned(), false)),
            };
            if let Err(end) = outcome {
                break end;
            }
        };
        if matches!(end, End::Stop) && self.connected.is_some() {
            self.farewell(&mut events).await;
        }
        (end, self.lines)
    }

    /// The next time at which something is to be done.
    fn due(&self) -> Option<Instant> {
        let asking =
            if self.is_subscribed { self.shared.lock().asking.due(Instant::now()) } else { None };
        [asking, self.deadline].into_iter().flatten().min()
    }

    fn ask_if_due(&mut self) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        if !self.is_subscribed || state.asking.due(now).is_none_or(|due| due > now) {
            return;
        }
        state.asking.asked(now);
        drop(state);
        self.number += 1;
        let body = format!("{{\"id\":{},\"params\":{{}}}}", self.number);
        let topic = self.shared.options.device.request_topic();
        match self.client.try_publish(topic, QoS::AtLeastOnce, false, body) {
            Ok(()) => log::info!("asking the platform for connection data"),
            Err(e) => log::warn!("cannot ask the platform for connection data: {e}"),
        }
    }

    fn event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => self.subscribe(),
            Event::Outgoing(Outgoing::Subscribe(id)) => {
                let topic = match self.subscriptions.len() {
                    0 => self.notify.clone(),
                    _ => self.reply.clone(),
                };
                self.subscriptions.push((id, topic));
                Ok(())
            }
            Event::Incoming(Packet::SubAck(answer)) => self.subscribed(&answer),
            Event::Incoming(Packet::Publish(publish)) => {
                self.published(&publish);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn subscribe(&mut self) -> Result<(), End> {
        let now = Instant::now();
        self.connected = Some(now);
        self.deadline = Some(now + self.shared.options.times.connect);
        for topic in [&self.notify, &self.reply] {
            let result = self.client.try_subscribe(topic, QoS::AtLeastOnce);
            result.map_err(|e| self.end(format!("cannot subscribe: {e}"), false))?;
        }
        Ok(())
    }

    fn subscribed(&mut self, answer: &SubAck) -> Result<(), End> {
        let Some((_, topic)) = self.subscriptions.iter().find(|(id, _)| *id == answer.pkid) else {
            return Ok(());
        };
        let is_refused = answer.return_codes.contains(&SubscribeReasonCode::Failure);
        if is_refused && *topic == self.notify {
            let why = format!(
                "it refuses the subscription of {topic}; check the product key, the device name, and \
                 what this user may read"
            );
            return Err(self.end(why, true));
        }
        if is_refused {
            log::warn!("the broker refuses the subscription of {topic}; requests have no answers");
        }
        self.answered += 1;
        if self.answered < 2 {
            return Ok(());
        }
        self.deadline = None;
        self.is_subscribed = true;
        let broker = &self.shared.options.broker;
        match self.failures {
            0 => log::info!("connected to {broker}"),
            1 => log::info!("connected to {broker}, after 1 failure"),
            count => log::info!("connected to {broker}, after {count} failures"),
        }
        self.shared.lock().asking.want(Reason::Now);
        self.ask_if_due();
        Ok(())
    }

    fn published(&mut self, publish: &Publish) {
        let size = publish.payload.len();
        if let Err(why) = self.take(publish) {
            if self.lines.dropped.permits(Instant::now()) {
                let topic = printable(&publish.topic);
                log::warn!("dropped a message of {size} bytes on {topic}: {why}");
            }
        }
    }

    fn take(&mut self, publish: &Publish) -> Result<(), Rejected> {
        let is_notify = publish.topic == self.notify;
        if !is_notify && publish.topic != self.reply {
            return Err(Rejected("not a topic of this device".to_owned()));
        }
        // Nobody knows how old it is.
        if publish.retain {
            return Err(Rejected("retained by the broker; publish it without retain".to_owned()));
        }
        let message = if is_notify {
            Message::from_notify(&publish.payload)?
        } else {
            let reply = Reply::parse(&publish.payload)?;
            if reply.id.is_some_and(|id| id != self.number) {
                log::debug!("the platform answers another request than the last one");
            }
            match reply.message {
                Some(message) => message,
                None => {
                    self.line(log::Level::Info, "the platform has no tunnel for this device");
                    return Ok(());
                }
            }
        };
        let tunnel = printable(message.tunnel().as_str());
        let line = match &message {
            Message::Connect(..) => format!("the platform opens tunnel {tunnel}"),
            Message::Update(..) => format!("the platform sends connection data of tunnel {tunnel}"),
            Message::Close(_, None) => format!("the platform closes tunnel {tunnel}"),
            Message::Close(_, Some(why)) => format!("the platform closes tunnel {tunnel}: {why}"),
        };
        let taken = self.shared.lock().ledger.take(message);
        match taken {
            Taken::Owed => {
                self.shared.owes();
                self.line(log::Level::Info, &line);
            }
            Taken::Identical => {
                self.line(log::Level::Info, &format!("{line}, which the agent has already"));
            }
        }
        Ok(())
    }

    /// A line that a message has caused.
    fn line(&mut self, level: log::Level, text: &str) {
        if self.lines.taken.permits(Instant::now()) {
            log::log!(level, "{text}");
        }
    }

    fn failed(&self, error: &ConnectionError) -> End {
        if explain::is_too_long(error) {
            return End::TooLong { stood: self.stood() };
        }
        let is_refused = matches!(
            error,
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::BadUserNamePassword
                    | ConnectReturnCode::NotAuthorized
                    | ConnectReturnCode::BadClientId
                    | ConnectReturnCode::RefusedProtocolVersion
            )
        );
        self.end(explain::explain(error, self.shared.options.times.connect), is_refused)
    }

    fn end(&self, why: String, is_refused: bool) -> End {
        End::Failed { why, is_refused, stood: self.stood() }
    }

    fn stood(&self) -> Option<Duration> {
        self.connected.filter(|_| self.is_subscribed).map(|since| since.elapsed())
    }

    /// Tells the broker that the connection ends in order.
    async fn farewell(&self, events: &mut EventLoop) {
        if self.client.try_disconnect().is_ok() {
            let _ = timeout(FAREWELL, async { while events.poll().await.is_ok() {} }).await;
        }
    }
}

fn mqtt_options(shared: &Shared, is_clean: bool) -> MqttOptions {
    let Options { broker, credentials, times, .. } = &shared.options;
    let mut options = MqttOptions::new(credentials.client_id(), broker.host(), broker.port().get());
    options
        .set_keep_alive(Duration::from_secs(times.keep_alive.as_secs().max(1)))
        .set_clean_session(is_clean)
        .set_max_packet_size(MOST_IN, MOST_OUT);
    if let Some(username) = credentials.username() {
        options.set_credentials(username, credentials.expose_password().unwrap_or_default());
    }
    if let Some(connector) = &shared.connector {
        let tls = TlsConfiguration::NativeConnector(connector.clone());
        options.set_transport(Transport::tls_with_config(tls));
    }
    options
}
