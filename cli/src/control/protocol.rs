//! The language of the socket: requests, answers, status and events. Every byte of a request may be
//! hostile, and may be a token's: no error text quotes one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aiot_tunnel::ipc::Command;
use aiot_tunnel::{
    ConnectParams, Error, EventKind, Notice, NoticeKind, Port, Service, SessionStatus, Token,
    TunnelId, TunnelState, TunnelStatus,
};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Longest line of a request, in bytes, without its line break.
pub(crate) const MAX_LINE: usize = 8 * 1024;

/// A request that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Command(Command),
    Status,
    Events,
    Reconnect(Option<TunnelId>),
    Reload,
}

/// Why a request cannot be understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not JSON: nobody knows what the next bytes are.
    NotJson(usize),
    /// JSON, and no request.
    Wrong(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotJson(column) => write!(f, "not JSON at column {column} of the line"),
            Refusal::Wrong(why) => f.write_str(why),
        }
    }
}

impl Request {
    /// Understands one line.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, Refusal> {
        let line = std::str::from_utf8(line).map_err(|e| Refusal::NotJson(e.valid_up_to() + 1))?;
        let fields: Fields = serde_json::from_str(line).map_err(|e| {
            // A value of another kind is found before the line was read to its end. serde's text would
            // quote the value.
            match serde_json::from_str::<IgnoredAny>(line) {
                Ok(_) if e.is_data() => Refusal::Wrong("a request is one JSON object".into()),
                Ok(_) => Refusal::NotJson(e.column()),
                Err(e) => Refusal::NotJson(e.column()),
            }
        })?;
        fields.request().map_err(Refusal::Wrong)
    }
}

/// A field's value. Requests have no other kinds.
enum Value {
    Text(Zeroizing<String>),
    Number(u64),
    Null,
    Other,
}

/// The known fields of a request, as they came.
#[derive(Default)]
struct Fields {
    command: Option<Value>,
    tunnel: Option<Value>,
    host: Option<Value>,
    port: Option<Value>,
    path: Option<Value>,
    token: Option<Value>,
    /// A field that came twice: two readers might understand two requests.
    twice: Option<&'static str>,
}

impl Fields {
    fn slot(&mut self, name: &str) -> Option<(&'static str, &mut Option<Value>)> {
        Some(match name {
            "command" => ("command", &mut self.command),
            "tunnel" => ("tunnel", &mut self.tunnel),
            "host" => ("host", &mut self.host),
            "port" => ("port", &mut self.port),
            "path" => ("path", &mut self.path),
            "token" => ("token", &mut self.token),
            _ => return None,
        })
    }

    fn request(self) -> Result<Request, String> {
        if let Some(name) = self.twice {
            return Err(format!("the field {name:?} is there twice"));
        }
        let command = text("command", &self.command)?.unwrap_or("");
        match command {
            "add" => Ok(Request::Command(Command::Add(self.tunnel()?, self.params()?))),
            "update" => Ok(Request::Command(Command::Update(self.tunnel()?, self.params()?))),
            "delete" => Ok(Request::Command(Command::Delete(self.tunnel()?))),
            "status" => Ok(Request::Status),
            "events" => Ok(Request::Events),
            "reconnect" => Ok(Request::Reconnect(match text("tunnel", &self.tunnel)? {
                Some(id) => Some(TunnelId::new(id).map_err(shown)?),
                None => None,
            })),
            "reload" => Ok(Request::Reload),
            "" => Err("the field \"command\" is missing".into()),
            _ => Err("the command is unknown; there are add, update, delete, status, events, \
                      reconnect and reload"
                .into()),
        }
    }

    fn tunnel(&self) -> Result<TunnelId, String> {
        TunnelId::new(needed("tunnel", &self.tunnel)?).map_err(shown)
    }

    fn params(&self) -> Result<ConnectParams, String> {
        let host = needed("host", &self.host)?;
        let port: Port = match &self.port {
            Some(Value::Number(number)) => {
                let number = u16::try_from(*number).map_err(|_| "port: not from 1 to 65535")?;
                Port::new(number).map_err(shown)?
            }
            _ => needed("port", &self.port)?.parse().map_err(shown)?,
        };
        let token = Token::new(needed("token", &self.token)?).map_err(shown)?;
        let path = match text("path", &self.path)? {
            Some(path) => path.to_owned(),
            None => format!("/tunnel/{}/dest", self.tunnel()?),
        };
        ConnectParams::new(host, port, &path, token).map_err(shown)
    }
}

/// The text of a field. `null` is as good as no field.
fn text<'a>(name: &str, value: &'a Option<Value>) -> Result<Option<&'a str>, String> {
    match value {
        Some(Value::Text(text)) => Ok(Some(text)),
        None | Some(Value::Null) => Ok(None),
        Some(_) => Err(format!("the field {name:?} is not a text")),
    }
}

fn needed<'a>(name: &str, value: &'a Option<Value>) -> Result<&'a str, String> {
    text(name, value)?.ok_or_else(|| format!("the field {name:?} is missing"))
}

fn shown(error: Error) -> String {
    error.to_string()
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<String>()? {
                    let Some((name, slot)) = fields.slot(&name) else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    if slot.replace(map.next_value()?).is_some() {
                        fields.twice = Some(name);
                    }
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(Zeroizing::new(text.to_owned())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(Value::Number(number))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
                Ok(Value::Other)
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Value, A::Error> {
                IgnoredAny.visit_seq(seq).map(|_| Value::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
                IgnoredAny.visit_map(map).map(|_| Value::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A request as a client writes it.
#[derive(Default, Serialize)]
pub(crate) struct RequestLine<'a> {
    pub(crate) command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tunnel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<&'a str>,
}

impl<'a> RequestLine<'a> {
    pub(crate) fn new(command: &'a str, tunnel: Option<&'a TunnelId>) -> Self {
        let tunnel = tunnel.map(TunnelId::as_str);
        RequestLine { command, tunnel, ..RequestLine::default() }
    }

    pub(crate) fn of(command: &'a Command) -> Self {
        let (name, id, params) = match command {
            Command::Add(id, params) => ("add", id, Some(params)),
            Command::Update(id, params) => ("update", id, Some(params)),
            Command::Delete(id) => ("delete", id, None),
            _ => unreachable!("this program makes no other commands"),
        };
        let line = RequestLine::new(name, Some(id));
        let Some(params) = params else { return line };
        RequestLine {
            host: Some(params.host()),
            port: Some(params.port().get()),
            path: Some(params.path()),
            token: Some(params.token().expose()),
            ..line
        }
    }
}

/// An answer.
#[derive(Serialize)]
pub(crate) struct Answer<'a> {
    pub(crate) ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<&'a Status>,
}

impl<'a> Answer<'a> {
    pub(crate) const OK: Answer<'static> = Answer { ok: true, error: None, status: None };

    pub(crate) fn error(error: &'a str) -> Self {
        Answer { ok: false, error: Some(error), status: None }
    }

    pub(crate) fn status(status: &'a Status) -> Self {
        Answer { status: Some(status), ..Answer::OK }
    }
}

/// One line of JSON.
pub(crate) fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What the agent does at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) since: String,
    pub(crate) services: BTreeMap<String, String>,
    pub(crate) tunnels: Vec<Tunnel>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tunnel {
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) state: String,
    pub(crate) since: String,
    pub(crate) attempts: u32,
    pub(crate) retry_at: Option<String>,
    pub(crate) last_error: Option<String>,
    pub(crate) bytes_from_cloud: u64,
    pub(crate) bytes_to_cloud: u64,
    pub(crate) sessions_opened: u64,
    pub(crate) sessions: Vec<Session>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) service: String,
    /// Seconds.
    pub(crate) age: f64,
    pub(crate) bytes_from_cloud: u64,
    pub(crate) bytes_to_cloud: u64,
}

impl Status {
    pub(crate) fn new(since: SystemTime, services: &[Service], tunnels: &[TunnelStatus]) -> Self {
        let address =
            |service: &Service| (service.service_type().to_owned(), service.target().to_string());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: timestamp(since),
            services: services.iter().map(address).collect(),
            tunnels: tunnels.iter().map(Tunnel::new).collect(),
        }
    }
}

impl Tunnel {
    fn new(tunnel: &TunnelStatus) -> Self {
        let retry_at = match tunnel.state {
            TunnelState::Waiting { retry_at, .. } => Some(timestamp(retry_at)),
            _ => None,
        };
        Tunnel {
            id: tunnel.id.as_str().to_owned(),
            host: tunnel.host.clone(),
            port: tunnel.port.get(),
            state: tunnel.state.to_string(),
            since: timestamp(tunnel.since),
            attempts: tunnel.attempts,
            retry_at,
            last_error: tunnel.last_error.clone(),
            bytes_from_cloud: tunnel.bytes_from_cloud,
            bytes_to_cloud: tunnel.bytes_to_cloud,
            sessions_opened: tunnel.sessions_opened,
            sessions: tunnel.sessions.iter().map(Session::new).collect(),
        }
    }
}

impl Session {
    fn new(session: &SessionStatus) -> Self {
        Session {
            id: session.id.clone(),
            service: session.service_type.clone(),
            age: session.age.as_millis() as f64 / 1000.0,
            bytes_from_cloud: session.bytes_from_cloud,
            bytes_to_cloud: session.bytes_to_cloud,
        }
    }
}

/// What an event is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventName {
    Connect,
    Disconnect,
    Expired,
    Failed,
    TokenRefused,
    SessionOpened,
    SessionClosed,
}

impl EventName {
    pub(crate) const ALL: [EventName; 7] = [
        EventName::Connect,
        EventName::Disconnect,
        EventName::Expired,
        EventName::Failed,
        EventName::TokenRefused,
        EventName::SessionOpened,
        EventName::SessionClosed,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            EventName::Connect => "connect",
            EventName::Disconnect => "disconnect",
            EventName::Expired => "expired",
            EventName::Failed => "failed",
            EventName::TokenRefused => "token_refused",
            EventName::SessionOpened => "session_opened",
            EventName::SessionClosed => "session_closed",
        }
    }
}

/// One event of one tunnel.
#[derive(Serialize)]
pub(crate) struct Event<'a> {
    pub(crate) event: EventName,
    tunnel: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<Session>,
    time: String,
}

impl<'a> Event<'a> {
    /// What the library tells its event handler, now. `None`: it has no name here.
    pub(crate) fn of_event(event: &'a aiot_tunnel::Event) -> Option<Self> {
        let name = match event.kind {
            EventKind::Connect => EventName::Connect,
            EventKind::Disconnect => EventName::Disconnect,
            EventKind::Expired => EventName::Expired,
            _ => return None,
        };
        Some(Event::now(name, &event.tunnel_id))
    }

    /// What the library tells its notice handler, now. `None`: it has no name here.
    pub(crate) fn of_notice(notice: &'a Notice) -> Option<Self> {
        let now = |name| Event::now(name, &notice.tunnel_id);
        Some(match &notice.kind {
            NoticeKind::Failed { text, .. } => {
                Event { error: Some(text), ..now(EventName::Failed) }
            }
            NoticeKind::TokenRefused => now(EventName::TokenRefused),
            NoticeKind::SessionOpened(session) => {
                Event { session: Some(Session::new(session)), ..now(EventName::SessionOpened) }
            }
            NoticeKind::SessionClosed(session) => {
                Event { session: Some(Session::new(session)), ..now(EventName::SessionClosed) }
            }
            _ => return None,
        })
    }

    fn now(event: EventName, tunnel: &'a TunnelId) -> Self {
        let time = timestamp(SystemTime::now());
        Event { event, tunnel: tunnel.as_str(), error: None, session: None, time }
    }
}

/// The last second that the format has: the end of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

/// UTC, with whole seconds. A device's clock may be anywhere, so times that the format does not
/// have become the nearest that it has.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let time = time.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(LAST_SECOND));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Request, Refusal> {
        Request::parse(text.as_bytes())
    }

    fn wrong(text: &str) -> String {
        match parse(text) {
            Err(Refusal::Wrong(why)) => why,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn id(text: &str) -> TunnelId {
        TunnelId::new(text).unwrap()
    }

    fn params(path: &str) -> ConnectParams {
        let token = Token::new("hush-token").unwrap();
        ConnectParams::new("gw.example", Port::new(443).unwrap(), path, token).unwrap()
    }

    #[test]
    fn every_request_is_understood() {
        let add =
            r#"{"command":"add","tunnel":"t","host":"gw.example","port":443,"token":"hush-token"}"#;
        let expected = Request::Command(Command::Add(id("t"), params("/tunnel/t/dest")));
        assert_eq!(parse(add).unwrap(), expected);
        // A port as text, a path, unknown fields of every kind, and null for what is left out.
        let update = r#" { "x":[{"command":1}], "port":"443", "command":"update", "tunnel":"t",
            "host":"gw.example", "token":"hush-token", "path":"/p", "y":1.5e3, "z":null } "#;
        let expected = Request::Command(Command::Update(id("t"), params("/p")));
        assert_eq!(parse(update).unwrap(), expected);
        for (text, expected) in [
            (r#"{"command":"delete","tunnel":"t"}"#, Request::Command(Command::Delete(id("t")))),
            (r#"{"command":"status"}"#, Request::Status),
            (r#"{"command":"events"}"#, Request::Events),
            (r#"{"command":"reconnect"}"#, Request::Reconnect(None)),
            (r#"{"command":"reconnect","tunnel":null}"#, Request::Reconnect(None)),
            (r#"{"command":"reconnect","tunnel":"t"}"#, Request::Reconnect(Some(id("t")))),
            (r#"{"command":"reload"}"#, Request::Reload),
        ] {
            assert_eq!(parse(text).unwrap(), expected);
        }
    }

    #[test]
    fn a_client_writes_what_the_server_understands() {
        for command in [
            Command::Add(id("t"), params("/p?q=\"")),
            Command::Update(id("a \" b"), params("/")),
            Command::Delete(id("é")),
        ] {
            let line = line(&RequestLine::of(&command));
            assert_eq!(Request::parse(&line).unwrap(), Request::Command(command));
        }
    }

    #[test]
    fn a_request_that_cannot_be_done_is_refused_with_the_field() {
        let base = r#""command":"add","tunnel":"t","host":"h","token":"hush-token""#;
        for (text, part) in [
            ("{}", "\"command\" is missing"),
            (r#"{"command":null}"#, "\"command\" is missing"),
            (r#"{"command":7}"#, "\"command\" is not a text"),
            (r#"{"command":"hush-fly"}"#, "unknown"),
            (r#"{"command":"delete"}"#, "\"tunnel\" is missing"),
            (r#"{"command":"delete","tunnel":""}"#, "tunnel id"),
            (r#"{"command":"delete","tunnel":"a\nb"}"#, "tunnel id"),
            (r#"{"command":"reconnect","tunnel":1}"#, "\"tunnel\" is not a text"),
            (r#"{"command":"status","command":"status"}"#, "\"command\" is there twice"),
            (&format!("{{{base}}}"), "\"port\" is missing"),
            (&format!("{{{base},\"port\":0}}"), "port"),
            (&format!("{{{base},\"port\":65536}}"), "port"),
            (&format!("{{{base},\"port\":-1}}"), "\"port\" is not a text"),
            (&format!("{{{base},\"port\":\"x\"}}"), "port"),
            (&format!("{{{base},\"port\":1,\"path\":\"a b\"}}"), "path"),
            (
                r#"{"command":"add","tunnel":"t","host":"h","port":1,"token":["hush-token"]}"#,
                "token",
            ),
            (
                r#"{"command":"add","tunnel":"t","host":"h","port":1,"token":"hush \u0007"}"#,
                "token",
            ),
            (r#"{"command":"add","tunnel":"t","host":"h","port":1}"#, "\"token\" is missing"),
            ("[]", "JSON object"),
            (r#""hush-token""#, "JSON object"),
            (r#"["add","t"]"#, "JSON object"),
            ("null", "JSON object"),
        ] {
            let why = wrong(text);
            assert!(why.contains(part), "{text}: {why}");
            assert!(!why.contains("hush"), "{text}: {why}");
        }
    }

    #[test]
    fn what_is_not_json_is_told_from_a_wrong_request() {
        let deep = "[".repeat(8000);
        for bad in ["{", "status", "{\"command\":\"status\"", "{\"a\":\"\u{1}\"}", "{}x", &deep] {
            assert!(matches!(parse(bad), Err(Refusal::NotJson(_))), "{bad}");
        }
        assert!(matches!(Request::parse(b"{\"a\":\"\xff\"}"), Err(Refusal::NotJson(_))));
        let inside = format!("{{\"x\":{}", "[".repeat(8000));
        assert!(matches!(parse(&inside), Err(Refusal::NotJson(_))));
    }

    #[test]
    fn every_time_has_a_text() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(timestamp(at(1)), "1970-01-01T00:00:01Z");
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(9)), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(at(1 << 50)), "9999-12-31T23:59:59Z");
    }
}
