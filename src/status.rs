//! What can be observed of running tunnels: their status
//! ([`Handle::tunnels`](crate::Handle::tunnels)) and their [`Notice`]s.
//!
//! Each tunnel has one [`TunnelRecord`], which its worker writes and which a snapshot reads. Its
//! lock is taken when a state changes or a session opens or closes, never for data: bytes are
//! counted in the session's own `Counters`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aiot_tunnel_proto::session::SessionRecord;
use parking_lot::Mutex;

use crate::config::{ConnectParams, Port, TunnelId};
use crate::logging::{one_line, Code};

/// Longest error text that is kept, in characters.
const MAX_ERROR: usize = 512;
/// The error text of a tunnel whose token is refused.
pub(crate) const TOKEN_REFUSED: &str = "the cloud refuses the token";

/// Why the cloud refuses a token, as far as it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It does not say more.
    Token,
    /// The token is right, and the tunnel has expired. Only our gateway says so.
    Expired,
}

impl Refusal {
    /// What to do, for the end of a log line.
    pub(crate) fn cure(self) -> &'static str {
        match self {
            Refusal::Token => "it is wrong or no longer valid: give the tunnel a new one",
            Refusal::Expired => {
                "the tunnel has expired: renew it at the gateway, and give it the token from there"
            }
        }
    }
}

/// A tunnel at one moment, from [`Handle::tunnels`](crate::Handle::tunnels).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelStatus {
    /// The tunnel's id.
    pub id: TunnelId,
    /// Host of the tunnel service that the tunnel connects to.
    pub host: String,
    /// Port of that service.
    pub port: Port,
    /// What the tunnel does now.
    pub state: TunnelState,
    /// The time from which it has been in that state, by the system's clock as it is set now. It
    /// is computed for each snapshot, so two snapshots may differ by some microseconds.
    pub since: SystemTime,
    /// Attempts to connect since the tunnel was last open, got its connection data or was told to
    /// reconnect; the one that is running counts. 0 while it is open.
    pub attempts: u32,
    /// Why the last attempt failed or the last connection was lost; at most 512 characters on one
    /// line, without secrets. It is kept when a later attempt succeeds. `None`: since the tunnel
    /// got its connection data, nothing has failed.
    pub last_error: Option<String>,
    /// The open sessions, the oldest first.
    pub sessions: Vec<SessionStatus>,
    /// Payload bytes from the cloud in all sessions that were opened since the tunnel was added, also
    /// in those that have ended, and also before an update.
    ///
    /// A session's share is final when it is no longer listed in `sessions`. Each byte that was
    /// accepted for the session counts; the last ones may still go to its local service after that.
    /// The bytes of a request that was refused do not count.
    pub bytes_from_cloud: u64,
    /// Payload bytes that were read from local services for the cloud, in the same sessions. When a
    /// session is cut, the cloud may not have got the last of them.
    pub bytes_to_cloud: u64,
    /// The number of sessions that were opened since the tunnel was added.
    pub sessions_opened: u64,
}

/// What a tunnel does. As text it is one word, such as `connected`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TunnelState {
    /// It connects: lookup, TCP, TLS or the WebSocket handshake is under way.
    Connecting,
    /// Its WebSocket is open.
    Connected,
    /// An attempt has failed, and the next one is to come.
    #[non_exhaustive]
    Waiting {
        /// The time of the next attempt, by the system's clock as it is set now.
        retry_at: SystemTime,
    },
}

impl fmt::Display for TunnelState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TunnelState::Connecting => "connecting",
            TunnelState::Connected => "connected",
            TunnelState::Waiting { .. } => "waiting",
        })
    }
}

/// An open session at one moment.
///
/// A session is listed from the time when its local service is connected until it is released.
/// The last bytes of a released session may still go to its service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStatus {
    /// The session's id, which the cloud has chosen.
    pub id: String,
    /// The service that the session is for.
    pub service_type: String,
    /// The time since the session was opened.
    pub age: Duration,
    /// Payload bytes that came from the cloud.
    pub bytes_from_cloud: u64,
    /// Payload bytes that were read from the local service for the cloud.
    pub bytes_to_cloud: u64,
}

/// What an [`Event`](crate::Event) does not say, about one tunnel. See
/// [`ManagerBuilder::on_notice`](crate::ManagerBuilder::on_notice).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notice {
    /// The tunnel to which it happened.
    pub tunnel_id: TunnelId,
    /// What happened.
    pub kind: NoticeKind,
    /// Notices of all tunnels that were dropped before this one, because 1024 of them waited already
    /// for a handler that was slower than the tunnels.
    pub dropped: u32,
}

impl Notice {
    /// Makes a notice. The library makes its own notices; this function is for tests of a notice
    /// handler.
    pub fn new(tunnel_id: TunnelId, kind: NoticeKind) -> Self {
        Notice { tunnel_id, kind, dropped: 0 }
    }
}

/// What a [`Notice`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoticeKind {
    /// An attempt to connect has failed, or an open connection was lost.
    #[non_exhaustive]
    Failed {
        /// The [state code](crate::state) of the log line that reports it (negative).
        code: i32,
        /// The reason, as in [`TunnelStatus::last_error`].
        text: String,
    },
    /// The cloud refuses the tunnel's token. Either an event `Expired` follows, or the tunnel
    /// [tries again](crate::ConnectParams::with_refusal_retry).
    TokenRefused,
    /// A session's local service is connected.
    SessionOpened(SessionStatus),
    /// A session is over. Its byte counts are final.
    SessionClosed(SessionStatus),
}

/// Where a record sends its notices. Must not block.
pub(crate) type NoticeSink = Box<dyn Fn(NoticeKind) + Send + Sync>;

/// What is known of one tunnel: written by its worker, read by snapshots.
pub(crate) struct TunnelRecord {
    fields: Mutex<Fields>,
    notices: Option<NoticeSink>,
}

struct Fields {
    host: String,
    port: Port,
    phase: Phase,
    since: Instant,
    attempts: u32,
    last_error: Option<String>,
    sessions: Vec<Session>,
    /// Of the sessions that have ended.
    ended: Totals,
}

/// Sums over sessions.
#[derive(Clone, Copy, Default)]
struct Totals {
    sessions: u64,
    from_cloud: u64,
    to_cloud: u64,
}

impl Totals {
    fn add(&mut self, from_cloud: u64, to_cloud: u64) {
        self.sessions = self.sessions.saturating_add(1);
        self.from_cloud = self.from_cloud.saturating_add(from_cloud);
        self.to_cloud = self.to_cloud.saturating_add(to_cloud);
    }

    /// Adds a session that has ended.
    fn add_ended(&mut self, session: &Session) {
        let counters = session.record.counters();
        self.add(counters.received(), counters.sent());
    }
}

enum Phase {
    Connecting,
    Connected,
    Waiting { until: Instant },
}

struct Session {
    opened: Instant,
    record: Arc<SessionRecord>,
}

impl TunnelRecord {
    /// The record of a tunnel that has yet to connect.
    pub(crate) fn new(params: &ConnectParams) -> Self {
        TunnelRecord { fields: Mutex::new(Fields::new(params)), notices: None }
    }

    /// Sends a notice of each failure, and of each session's begin and end.
    pub(crate) fn with_notices(mut self, sink: NoticeSink) -> Self {
        self.notices = Some(sink);
        self
    }

    /// The tunnel gets new connection data; the history of the old ones is forgotten, but not the
    /// totals.
    pub(crate) fn restart(&self, params: &ConnectParams) {
        let mut fields = self.fields.lock();
        self.end_sessions(&mut fields);
        *fields = Fields { ended: fields.ended, ..Fields::new(params) };
    }

    /// The tunnel connects again with the same data, because it was told to.
    pub(crate) fn start_again(&self) {
        let mut fields = self.fields.lock();
        fields.attempts = 0;
        self.enter(&mut fields, Phase::Connecting);
    }

    /// An attempt to connect begins.
    pub(crate) fn connecting(&self) {
        let mut fields = self.fields.lock();
        fields.attempts = fields.attempts.saturating_add(1);
        self.enter(&mut fields, Phase::Connecting);
    }

    /// The WebSocket is open.
    pub(crate) fn connected(&self) {
        let mut fields = self.fields.lock();
        fields.attempts = 0;
        self.enter(&mut fields, Phase::Connected);
    }

    /// The next attempt comes at `until`.
    pub(crate) fn waiting(&self, until: Instant) {
        self.enter(&mut self.fields.lock(), Phase::Waiting { until });
    }

    /// [`failed_with`](Self::failed_with) the code that stands for no particular cause.
    pub(crate) fn failed(&self, why: &str) {
        self.failed_with(Code::TunnelFailed, why);
    }

    /// An attempt has failed, or a connection was lost. `why` may hold text from a peer.
    pub(crate) fn failed_with(&self, code: Code, why: &str) {
        let text: String = one_line(why).chars().take(MAX_ERROR).collect();
        let mut fields = self.fields.lock();
        self.end_sessions(&mut fields);
        self.notice(|| NoticeKind::Failed { code: code as i32, text: text.clone() });
        fields.last_error = Some(text);
    }

    /// The cloud refuses the token.
    pub(crate) fn refused(&self, why: Refusal) {
        let mut fields = self.fields.lock();
        self.end_sessions(&mut fields);
        self.notice(|| NoticeKind::TokenRefused);
        fields.last_error = Some(match why {
            Refusal::Token => TOKEN_REFUSED.to_owned(),
            Refusal::Expired => format!("{TOKEN_REFUSED}: the tunnel has expired"),
        });
    }

    /// A session's local service is connected. The worker counts the bytes in `record`.
    pub(crate) fn session_opened(&self, record: Arc<SessionRecord>) {
        let session = Session { opened: Instant::now(), record };
        let mut fields = self.fields.lock();
        self.notice(|| NoticeKind::SessionOpened(session.status(session.opened)));
        fields.sessions.push(session);
    }

    /// A session is no longer open. Of the open sessions, no two have one id.
    /// Its counts are final.
    pub(crate) fn session_closed(&self, id: &str) {
        let Fields { sessions, ended, .. } = &mut *self.fields.lock();
        for session in sessions.extract_if(.., |session| session.record.id() == id) {
            ended.add_ended(&session);
            self.notice(|| NoticeKind::SessionClosed(session.status(Instant::now())));
        }
    }

    fn enter(&self, fields: &mut Fields, phase: Phase) {
        fields.phase = phase;
        fields.since = Instant::now();
        // A new connection has no session yet, and none is open without a connection.
        self.end_sessions(fields);
    }

    /// Ends what is left after a panic: usually, the relay has closed all sessions.
    fn end_sessions(&self, fields: &mut Fields) {
        let Fields { sessions, ended, .. } = fields;
        for session in sessions.drain(..) {
            ended.add_ended(&session);
            self.notice(|| NoticeKind::SessionClosed(session.status(Instant::now())));
        }
    }

    fn notice(&self, kind: impl FnOnce() -> NoticeKind) {
        if let Some(sink) = &self.notices {
            sink(kind());
        }
    }

    pub(crate) fn snapshot(&self, id: TunnelId) -> TunnelStatus {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let ago = |time: Instant| now.saturating_duration_since(time);
        let fields = self.fields.lock();
        let state = match fields.phase {
            Phase::Connecting => TunnelState::Connecting,
            Phase::Connected => TunnelState::Connected,
            Phase::Waiting { until } => {
                let left = until.saturating_duration_since(now);
                TunnelState::Waiting { retry_at: clock.checked_add(left).unwrap_or(clock) }
            }
        };
        // Each count is read once, so that the totals fit the sessions that are listed.
        let sessions: Vec<_> = fields.sessions.iter().map(|session| session.status(now)).collect();
        let mut totals = fields.ended;
        for session in &sessions {
            totals.add(session.bytes_from_cloud, session.bytes_to_cloud);
        }
        TunnelStatus {
            id,
            host: fields.host.clone(),
            port: fields.port,
            state,
            since: clock.checked_sub(ago(fields.since)).unwrap_or(clock),
            attempts: fields.attempts,
            last_error: fields.last_error.clone(),
            sessions,
            bytes_from_cloud: totals.from_cloud,
            bytes_to_cloud: totals.to_cloud,
            sessions_opened: totals.sessions,
        }
    }
}

/// The sessions of a tunnel that was deleted end with its record.
impl Drop for TunnelRecord {
    fn drop(&mut self) {
        self.end_sessions(&mut self.fields.lock());
    }
}

impl Fields {
    fn new(params: &ConnectParams) -> Self {
        Fields {
            host: params.host().to_owned(),
            port: params.port(),
            phase: Phase::Connecting,
            since: Instant::now(),
            attempts: 0,
            last_error: None,
            sessions: Vec::new(),
            ended: Totals::default(),
        }
    }
}

impl Session {
    fn status(&self, now: Instant) -> SessionStatus {
        SessionStatus {
            id: self.record.id().to_owned(),
            service_type: self.record.service_type().to_owned(),
            age: now.saturating_duration_since(self.opened),
            bytes_from_cloud: self.record.counters().received(),
            bytes_to_cloud: self.record.counters().sent(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Token;

    fn record() -> TunnelRecord {
        let token = Token::new("hush-token").unwrap();
        let params = ConnectParams::new("h.example", Port::new(443).unwrap(), "/p", token);
        TunnelRecord::new(&params.unwrap())
    }

    fn snapshot(record: &TunnelRecord) -> TunnelStatus {
        record.snapshot(TunnelId::new("t").unwrap())
    }

    #[test]
    fn attempts_count_until_one_succeeds_and_its_error_stays() {
        let record = record();
        assert_eq!(snapshot(&record).attempts, 0);
        for attempt in 1..4 {
            record.connecting();
            assert_eq!(snapshot(&record).state, TunnelState::Connecting);
            record.failed("connection refused");
            record.waiting(Instant::now() + Duration::from_secs(100));
            let status = snapshot(&record);
            assert_eq!(status.attempts, attempt);
            let TunnelState::Waiting { retry_at } = status.state else { panic!("{status:?}") };
            let left = retry_at.duration_since(SystemTime::now()).unwrap();
            assert!(left <= Duration::from_secs(100) && left > Duration::from_secs(50));
        }
        record.connecting();
        record.connected();
        let status = snapshot(&record);
        assert_eq!((status.state, status.attempts), (TunnelState::Connected, 0));
        assert_eq!(status.last_error.as_deref(), Some("connection refused"));
    }

    #[test]
    fn an_error_text_from_a_peer_is_one_line_of_bounded_length() {
        let record = record();
        record.failed(&format!("a\r\nb{}", "é".repeat(10_000)));
        let text = snapshot(&record).last_error.unwrap();
        assert!(text.starts_with("a??b") && text.chars().count() == MAX_ERROR);
    }

    #[test]
    fn a_failure_and_the_begin_and_end_of_each_session_are_noticed() {
        let (sender, notices) = std::sync::mpsc::channel();
        let record = record().with_notices(Box::new(move |kind| sender.send(kind).unwrap()));
        record.connected();
        let session = Arc::new(SessionRecord::new("s1", "_SSH"));
        record.session_opened(session.clone());
        record.session_opened(Arc::new(SessionRecord::new("s2", "web")));
        session.counters().add_received(5);
        record.session_closed("s1");
        record.failed_with(Code::TunnelReset, "lost");
        drop(record);
        let notices: Vec<NoticeKind> = notices.iter().collect();
        let [opened, _, closed, other, failed] = &notices[..] else { panic!("{notices:?}") };
        assert!(matches!(opened, NoticeKind::SessionOpened(s) if s.id == "s1"));
        assert!(matches!(closed, NoticeKind::SessionClosed(s) if s.bytes_from_cloud == 5));
        assert!(matches!(other, NoticeKind::SessionClosed(s) if s.id == "s2"));
        let text = "lost".to_owned();
        assert_eq!(*failed, NoticeKind::Failed { code: Code::TunnelReset as i32, text });
    }

    #[test]
    fn sessions_are_listed_while_they_are_open_with_their_bytes() {
        let record = record();
        record.connected();
        let session = Arc::new(SessionRecord::new("s1", "_SSH"));
        record.session_opened(session.clone());
        record.session_opened(Arc::new(SessionRecord::new("s2", "web")));
        session.counters().add_received(5);
        session.counters().add_sent(7);
        session.counters().add_sent(1);
        let sessions = snapshot(&record).sessions;
        assert_eq!((&*sessions[0].id, &*sessions[0].service_type), ("s1", "_SSH"));
        assert_eq!((sessions[0].bytes_from_cloud, sessions[0].bytes_to_cloud), (5, 8));
        assert_eq!((sessions[1].bytes_from_cloud, sessions[1].bytes_to_cloud), (0, 0));
        record.session_closed("s1");
        assert_eq!(snapshot(&record).sessions.len(), 1);
        record.failed("lost");
        assert!(snapshot(&record).sessions.is_empty());
    }

    #[test]
    fn totals_hold_every_session_since_the_tunnel_was_added() {
        let record = record();
        let totals = || {
            let status = snapshot(&record);
            (status.sessions_opened, status.bytes_from_cloud, status.bytes_to_cloud)
        };
        assert_eq!(totals(), (0, 0, 0));
        for round in 0..3 {
            record.connected();
            // Two open sessions never have one id; later ones may.
            let session = Arc::new(SessionRecord::new("s", "_SSH"));
            record.session_opened(session.clone());
            session.counters().add_received(10);
            session.counters().add_sent(3);
            let expected = (round + 1, (round + 1) * 10, (round + 1) * 3);
            assert_eq!(totals(), expected);
            match round {
                0 => record.session_closed("s"),
                1 => record.failed("lost"),
                _ => {
                    let token = crate::config::Token::new("hush-new").unwrap();
                    let port = Port::new(1).unwrap();
                    record.restart(&ConnectParams::new("other", port, "/", token).unwrap());
                }
            }
            assert_eq!(totals(), expected);
        }
    }
}
