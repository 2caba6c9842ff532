//! The platform's messages. Every byte of a payload is hostile until it is parsed. No text of this file
//! quotes a payload: it may hold a token.

use std::fmt;

use aiot_tunnel::{ConnectParams, Port, Token, TunnelId};
use serde_json::{Map, Value};
use zeroize::Zeroize;

use crate::text::printable;

/// What a message asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Open a tunnel.
    Connect(TunnelId, ConnectParams),
    /// Give a tunnel new connection data.
    Update(TunnelId, ConnectParams),
    /// Close a tunnel. The text is the platform's reason, fit for a log line.
    Close(TunnelId, Option<String>),
}

impl Message {
    /// Reads a payload of the topic `.../secure_tunnel/notify`.
    ///
    /// # Errors
    /// [`Rejected`] says which field is wrong, and never quotes the payload.
    pub fn from_notify(payload: &[u8]) -> Result<Self, Rejected> {
        Fields::parse(payload)?.message()
    }

    /// The tunnel that the message is about.
    pub fn tunnel(&self) -> &TunnelId {
        match self {
            Message::Connect(id, _) | Message::Update(id, _) | Message::Close(id, _) => id,
        }
    }
}

/// An answer to a request for connection data.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reply {
    /// The number of the request, if the answer names one.
    pub id: Option<u64>,
    /// The connection data. `None`: the platform has no tunnel for this device.
    pub message: Option<Message>,
}

impl Reply {
    /// Reads a payload of the topic `.../secure_tunnel/proxy/request_reply`.
    ///
    /// # Errors
    /// [`Rejected`], also for an answer with an error code.
    pub fn parse(payload: &[u8]) -> Result<Self, Rejected> {
        let mut fields = Fields::parse(payload)?;
        let id = fields.number("id")?;
        match fields.number("code")? {
            None | Some(0 | 200) => {}
            Some(code) => {
                let why = fields.0.get("message").and_then(Value::as_str).map(printable);
                let why = why.map_or(String::new(), |why| format!(" ({why})"));
                return Err(Rejected(format!("the platform reports error code {code}{why}")));
            }
        }
        let message = match fields.0.remove("data") {
            None | Some(Value::Null) => None,
            Some(Value::Object(data)) if data.is_empty() => None,
            Some(Value::Object(data)) => Some(Fields(data).message()?),
            Some(_) => return Err(rejected("data is not an object")),
        };
        Ok(Reply { id, message })
    }
}

/// Why a message is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected(pub(crate) String);

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Rejected {}

fn rejected(why: impl Into<String>) -> Rejected {
    Rejected(why.into())
}

/// The fields of a JSON object. A token among them is wiped when they are dropped.
struct Fields(Map<String, Value>);

impl Drop for Fields {
    fn drop(&mut self) {
        for name in ["token", "data"] {
            wipe(self.0.get_mut(name));
        }
    }
}

fn wipe(value: Option<&mut Value>) {
    match value {
        Some(Value::String(text)) => text.zeroize(),
        Some(Value::Object(fields)) => wipe(fields.get_mut("token")),
        _ => {}
    }
}

impl Fields {
    fn parse(payload: &[u8]) -> Result<Self, Rejected> {
        match serde_json::from_slice(payload) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(_) => Err(rejected("not a JSON object")),
            // The parser's own text may quote the payload.
            Err(e) => Err(rejected(format!("not JSON (line {}, column {})", e.line(), e.column()))),
        }
    }

    fn message(&self) -> Result<Message, Rejected> {
        let id = TunnelId::new(self.text("tunnel_id")?).map_err(|e| rejected(e.to_string()))?;
        match self.optional_text("operation")? {
            Some("connect") => Ok(Message::Connect(id.clone(), self.params(&id)?)),
            None => Ok(Message::Update(id.clone(), self.params(&id)?)),
            Some("close") => {
                let reason = self.0.get("close_reason").and_then(Value::as_str).map(printable);
                Ok(Message::Close(id, reason))
            }
            Some(_) => Err(rejected("operation is neither connect nor close")),
        }
    }

    fn params(&self, id: &TunnelId) -> Result<ConnectParams, Rejected> {
        let invalid = |e: aiot_tunnel::Error| rejected(e.to_string());
        if !matches!(self.optional_text("schema")?, None | Some("wss" | "ws")) {
            return Err(rejected("schema is neither wss nor ws"));
        }
        let port: Port = match self.0.get("port") {
            Some(Value::String(text)) => text.parse().map_err(invalid)?,
            Some(Value::Number(number)) => {
                let number = number.as_u64().and_then(|number| u16::try_from(number).ok());
                Port::new(number.unwrap_or(0)).map_err(|_| rejected("port: not a port"))?
            }
            _ => return Err(rejected("port is missing, or neither text nor number")),
        };
        let path = match self.optional_text("path")? {
            Some(path) => path.to_owned(),
            None => format!("/tunnel/{id}/dest"),
        };
        let token = self.text("token")?;
        if token.is_empty() {
            return Err(rejected("token is empty"));
        }
        let token = Token::new(token).map_err(invalid)?;
        ConnectParams::new(self.text("host")?, port, &path, token).map_err(invalid)
    }

    fn text(&self, name: &str) -> Result<&str, Rejected> {
        let text = self.optional_text(name)?;
        text.ok_or_else(|| rejected(format!("{name} is missing")))
    }

    fn optional_text(&self, name: &str) -> Result<Option<&str>, Rejected> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(rejected(format!("{name} is not a text"))),
        }
    }

    /// A number, also one in quotes.
    fn number(&self, name: &str) -> Result<Option<u64>, Rejected> {
        let number = match self.0.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Number(number)) => number.as_u64(),
            Some(Value::String(text)) => text.parse().ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| rejected(format!("{name} is not a number")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOKEN: &str = "hush-signal-token";

    fn notify() -> Value {
        json!({
            "schema": "wss", "path": "/tunnel/t1/dest", "tunnel_id": "t1", "host": "gw.example",
            "port": "443", "token": TOKEN, "token_expire": 86400, "operation": "connect",
            "udi": "x", "unknown": {"token": []}
        })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut message = notify();
        message[name] = value;
        message
    }

    fn without(name: &str) -> Value {
        let mut message = notify();
        message.as_object_mut().unwrap().remove(name);
        message
    }

    fn read(message: &Value) -> Result<Message, Rejected> {
        Message::from_notify(message.to_string().as_bytes())
    }

    fn params() -> ConnectParams {
        let token = Token::new(TOKEN).unwrap();
        ConnectParams::new("gw.example", Port::new(443).unwrap(), "/tunnel/t1/dest", token).unwrap()
    }

    fn id() -> TunnelId {
        TunnelId::new("t1").unwrap()
    }

    #[test]
    fn connect_close_and_an_absent_operation_have_their_meanings() {
        let connect = Ok(Message::Connect(id(), params()));
        assert_eq!(read(&notify()), connect);
        assert_eq!(read(&with("port", json!(443))), connect);
        assert_eq!(read(&without("schema")), connect);
        assert_eq!(read(&without("path")), connect);
        assert_eq!(read(&without("operation")), Ok(Message::Update(id(), params())));
        assert_eq!(read(&with("operation", Value::Null)), Ok(Message::Update(id(), params())));
        let close = json!({"tunnel_id": "t1", "operation": "close", "close_reason": "by\nuser"});
        assert_eq!(read(&close), Ok(Message::Close(id(), Some("by\\nuser".to_owned()))));
        let close = json!({"tunnel_id": "t1", "operation": "close", "close_reason": 7});
        assert_eq!(read(&close), Ok(Message::Close(id(), None)));
    }

    #[test]
    fn a_wrong_field_is_named_and_the_token_is_not_quoted() {
        for (message, field) in [
            (with("port", json!("0")), "port"),
            (with("port", json!("https")), "port"),
            (with("port", json!(65536)), "port"),
            (with("port", json!(-1)), "port"),
            (with("port", json!(1.5)), "port"),
            (with("port", json!([443])), "port"),
            (without("port"), "port"),
            (without("host"), "host"),
            (with("host", json!("a b")), "host"),
            (with("host", json!("")), "host"),
            (with("host", json!({})), "host"),
            (with("host", json!("h".repeat(254))), "host"),
            (with("path", json!("/a\r\nX: y")), "path"),
            (with("path", json!("p".repeat(2049))), "path"),
            (without("token"), "token"),
            (with("token", json!("")), "token"),
            (with("token", json!("hush-signal-token with blank")), "token"),
            (with("token", json!("t".repeat(2049))), "token"),
            (with("token", json!([TOKEN])), "token"),
            (without("tunnel_id"), "tunnel_id"),
            (with("tunnel_id", json!("")), "tunnel id"),
            (with("tunnel_id", json!("a\nb")), "tunnel id"),
            (with("tunnel_id", json!("i".repeat(128))), "tunnel id"),
            (with("tunnel_id", json!(7)), "tunnel_id"),
            (with("operation", json!("open")), "operation"),
            (with("operation", json!(1)), "operation"),
            (with("schema", json!("https")), "schema"),
        ] {
            let text = read(&message).expect_err(field).to_string();
            assert!(text.contains(field), "{text}: {message}");
            assert!(!text.contains("hush") && text.len() < 200, "{text}");
        }
    }

    #[test]
    fn junk_is_rejected() {
        let long = format!("{{\"tunnel_id\":\"{}\"}}", "x".repeat(10_000));
        let deep = "[".repeat(100_000);
        let texts: [&[u8]; 9] = [
            b"",
            b"{",
            b"null",
            b"[]",
            b"7",
            b"\xff\xfe",
            b"{\"token\":\"hush-1\"",
            long.as_bytes(),
            deep.as_bytes(),
        ];
        for junk in texts {
            let text = Message::from_notify(junk).unwrap_err().to_string();
            assert!(!text.contains("hush") && text.len() < 200, "{text}");
            assert!(junk == long.as_bytes() || Reply::parse(junk).is_err());
        }
    }

    #[test]
    fn an_answer_has_its_fields_inside_data() {
        let read = |reply: Value| Reply::parse(reply.to_string().as_bytes());
        let data = without("operation");
        let update = Some(Message::Update(id(), params()));
        for (number, code) in [(json!(1000), json!(200)), (json!("1000"), json!("200"))] {
            let reply = read(json!({"id": number, "code": code, "data": data})).unwrap();
            assert_eq!((reply.id, &reply.message), (Some(1000), &update));
        }
        assert_eq!(read(json!({"data": data})).unwrap(), Reply { id: None, message: update });
        for empty in [json!({"id": 1, "code": 200}), json!({"id": 1, "data": {}}), json!({})] {
            assert_eq!(read(empty).unwrap().message, None);
        }
        for (reply, part) in [
            (json!({"id": 1, "code": 6205, "message": "no\ndevice", "data": data}), "6205 (no\\n"),
            (json!({"id": 1, "code": {}, "data": data}), "code"),
            (json!({"id": 1.5, "data": data}), "id"),
            (json!({"id": 1, "data": [data]}), "data"),
            (json!({"id": 1, "data": without("host")}), "host"),
        ] {
            let text = read(reply).unwrap_err().to_string();
            assert!(text.contains(part) && !text.contains("hush"), "{text}");
        }
    }
}
