//! The HTTP API: what each request does and what its answer says. `docs/openapi.json` describes it; a
//! test compares the two. No I/O happens here: [`http`](crate::http) does that.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use aiot_tunnel::gateway::{Peer, TokenDigest, TokenKey};
use aiot_tunnel::Token;
use aiot_tunnel_signal::Device;
use humantime::format_rfc3339_seconds;
use serde::Serialize;
use serde_json::{json, Map, Value};
use zeroize::{Zeroize, Zeroizing};

use crate::guard::{Guard, Turn};
use crate::http::{Answer, Client, Head, Site};
use crate::metrics;
use crate::names::MAX_EXPIRE;
use crate::registry::{Health, Issued, Registry, Seen, Sides};
use crate::{Error, Result};

/// Fewer characters than this can be guessed.
const LEAST_KEY: usize = 20;

/// The key that a client of the API presents. Only its digest is kept.
pub struct ApiKey {
    digester: TokenKey,
    digest: TokenDigest,
}

impl ApiKey {
    /// # Errors
    /// [`Error::Invalid`]: the key is no visible ASCII, or too short.
    pub fn new(key: &str) -> Result<Self> {
        let token = Token::new(key).map_err(|_| {
            Error::Invalid("the API key is not one word of at most 2048 visible characters".into())
        })?;
        if key.len() < LEAST_KEY {
            return Err(Error::Invalid(format!(
                "the API key has less than {LEAST_KEY} characters; make one with: aiot-tunnel gen-token"
            )));
        }
        let digester = TokenKey::random();
        Ok(ApiKey { digest: digester.digest(&token), digester })
    }

    fn is(&self, presented: &str) -> bool {
        Token::new(presented).is_ok_and(|token| self.digester.digest(&token) == self.digest)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

impl Answer {
    fn json(status: u16, body: &impl Serialize) -> Self {
        let mut text = serde_json::to_string(body).unwrap_or_default();
        text.push('\n');
        Answer::text(status, "application/json", text)
    }

    /// An error, as JSON: one sentence that says what is wrong.
    #[must_use]
    pub fn error(status: u16, why: &str) -> Self {
        Answer::json(status, &json!({ "error": why }))
    }
}

impl From<Error> for Answer {
    fn from(e: Error) -> Self {
        let status = e.status();
        if status == 503 {
            log::error!("api: {e}");
        }
        Answer::error(status, &e.to_string())
    }
}

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Resource {
    Health,
    Metrics,
    Tunnels,
    Tunnel(String),
    Rotate(String),
}

impl Resource {
    /// `None`: there is no such path.
    fn of(path: &str) -> Option<Self> {
        // The first part is before the first slash: it is empty.
        match path.split('/').collect::<Vec<_>>()[..] {
            ["", "healthz"] => Some(Resource::Health),
            ["", "metrics"] => Some(Resource::Metrics),
            ["", "tunnels"] => Some(Resource::Tunnels),
            ["", "tunnels", id] if !id.is_empty() => decoded(id).map(Resource::Tunnel),
            ["", "tunnels", id, "rotate"] if !id.is_empty() => decoded(id).map(Resource::Rotate),
            _ => None,
        }
    }

    fn methods(&self) -> &'static [&'static str] {
        match self {
            Resource::Health | Resource::Metrics => &["GET"],
            Resource::Tunnels => &["GET", "POST"],
            Resource::Tunnel(_) => &["GET", "DELETE"],
            Resource::Rotate(_) => &["POST"],
        }
    }
}

/// A part of a path without its percent signs. `None`: it is no text.
#[must_use]
pub fn decoded(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                bytes.push(u8::try_from(16 * high + low).ok()?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// The key, and what slows those who guess it. All who present the key share one.
#[derive(Debug)]
pub struct Door {
    key: ApiKey,
    guard: Mutex<Guard>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

impl Door {
    /// The door that this key opens.
    #[must_use]
    pub fn new(key: ApiKey) -> Self {
        Door { key, guard: Mutex::default() }
    }

    /// When a client may present a key.
    ///
    /// # Errors
    /// Why it shall come later.
    pub fn turn(&self, from: IpAddr) -> std::result::Result<Instant, &'static str> {
        match self.guard().turn(from, Instant::now()) {
            Turn::At(turn) => Ok(turn),
            Turn::Refuse => {
                Err("too many wrong keys came from this address; try again in some seconds")
            }
        }
    }

    /// Whether the key is the right one. Call it when the client has its turn.
    pub fn opens(&self, from: IpAddr, presented: &str) -> bool {
        let is_right = self.key.is(presented);
        if !is_right && self.guard().failed(from, Instant::now()) {
            log::warn!("api: {from}: a wrong key");
        }
        is_right
    }

    fn guard(&self) -> std::sync::MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The API of a registry.
#[derive(Debug)]
pub struct Api {
    registry: Arc<Registry>,
    door: Arc<Door>,
}

impl Site for Api {
    fn turn(&self, head: &Head<'_>) -> std::result::Result<Instant, Answer> {
        if Resource::of(head.path) == Some(Resource::Health) {
            return Ok(Instant::now());
        }
        self.door.turn(head.from).map_err(|why| Answer::error(429, why).with("retry-after", "5"))
    }

    fn admit(&self, head: &Head<'_>) -> std::result::Result<Client, Answer> {
        if Resource::of(head.path) == Some(Resource::Health) {
            return Ok(Client::Stranger);
        }
        let presented = head.header("authorization").and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("Bearer").then(|| key.trim())
        });
        let why = match presented {
            Some(presented) if self.door.opens(head.from, presented) => return Ok(Client::Known),
            // Who shows no key does not guess.
            None => "give the API key: Authorization: Bearer KEY",
            Some(_) => "the API key is wrong; it is in the file of the gateway's --api-key-file",
        };
        Err(Answer::error(401, why).with("www-authenticate", "Bearer"))
    }

    fn answer(&self, head: &Head<'_>, body: &[u8]) -> Answer {
        let Some(resource) = Resource::of(head.path) else {
            return Answer::error(404, "there is no such path; docs/openapi.json lists all");
        };
        let methods = resource.methods();
        if !methods.contains(&head.method) {
            let allowed = methods.join(", ");
            let why = format!("this path takes {allowed}");
            return Answer::error(405, &why).with("allow", allowed);
        }
        self.carry_out(head, &resource, body).unwrap_or_else(Answer::from)
    }
}

impl Api {
    /// The API of a registry, for clients with the key of this door.
    #[must_use]
    pub fn new(registry: Arc<Registry>, door: Arc<Door>) -> Self {
        Api { registry, door }
    }

    /// Whether the API has this path.
    #[must_use]
    pub fn has(path: &str) -> bool {
        Resource::of(path).is_some()
    }

    fn carry_out(&self, head: &Head<'_>, resource: &Resource, body: &[u8]) -> Result<Answer> {
        let registry = &self.registry;
        let said = |what: &str, id: &str| log::info!("api: {}: tunnel {id:?} {what}", head.from);
        match (head.method, resource) {
            (_, Resource::Health) => {
                let (code, status, store) = match registry.health() {
                    Health::NoStore => (200, "ok", "none"),
                    Health::Good => (200, "ok", "ok"),
                    // The gateway still does its work.
                    Health::Lost => (200, "degraded", "unreachable"),
                    Health::Over => (503, "unavailable", "unreachable"),
                };
                Ok(Answer::json(code, &json!({ "status": status, "store": store })))
            }
            (_, Resource::Metrics) => {
                Ok(Answer::text(200, metrics::CONTENT_TYPE, metrics::text(registry)))
            }
            ("POST", Resource::Tunnels) => {
                let mut fields = match Fields::of(head, body) {
                    Ok(fields) => fields,
                    Err(answer) => return Ok(answer),
                };
                let (id, expire) = (fields.text("id")?, fields.seconds("expire")?);
                let device = fields.device()?;
                fields.end()?;
                let issued = registry.add(id.as_deref(), expire, device)?;
                said("is added", issued.id.as_str());
                let at = format!("/tunnels/{}", encoded(issued.id.as_str()));
                Ok(self.issued(201, &issued).with("location", at))
            }
            (_, Resource::Tunnels) => {
                let tunnels: Vec<Value> = registry.all().iter().map(|one| self.seen(one)).collect();
                Ok(Answer::json(200, &json!({ "tunnels": tunnels })))
            }
            ("DELETE", Resource::Tunnel(id)) => {
                registry.remove(id)?;
                said("is removed", id);
                Ok(Answer::empty(204))
            }
            (_, Resource::Tunnel(id)) => Ok(Answer::json(200, &self.seen(&registry.find(id)?))),
            (_, Resource::Rotate(id)) => {
                let mut fields = match Fields::of(head, body) {
                    Ok(fields) => fields,
                    Err(answer) => return Ok(answer),
                };
                let sides = match fields.text("side")?.as_deref() {
                    None | Some("both") => Sides::Both,
                    Some("device") => Sides::Device,
                    Some("access") => Sides::Access,
                    Some(_) => {
                        return Err(Error::Invalid("side: not one of device, access, both".into()));
                    }
                };
                let expire = fields.seconds("expire")?;
                fields.end()?;
                let issued = registry.rotate(id, sides, expire)?;
                said("has new tokens", id);
                Ok(self.issued(200, &issued))
            }
        }
    }

    /// The only answer with tokens.
    fn issued(&self, status: u16, issued: &Issued) -> Answer {
        let url = self.registry.url();
        let token = |token: &Option<Zeroizing<String>>| token.as_ref().map(|t| t.to_string());
        let mut body = json!({
            "id": issued.id.as_str(),
            "device_token": token(&issued.device_token),
            "access_token": token(&issued.access_token),
            "url": url.to_string(),
            "device_url": url.of(&issued.id, "dest"),
            "access_url": url.of(&issued.id, "source"),
            "expires": issued.expires.map(time),
            "notified": self.registry.is_notified(issued),
        });
        let answer = Answer::json(status, &body);
        for side in ["device_token", "access_token"] {
            if let Some(Value::String(token)) = body.get_mut(side) {
                token.zeroize();
            }
        }
        answer
    }

    fn seen(&self, seen: &Seen) -> Value {
        let (activity, url) = (&seen.activity, self.registry.url());
        let peer = |peer: &Peer| json!({ "address": peer.address, "since": time(peer.since) });
        let times = seen.of_store.as_ref();
        let device = times.and_then(|times| times.device.as_ref());
        json!({
            "id": activity.id.as_str(),
            "source": if times.is_some() { "store" } else { "list" },
            "state": metrics::state_of(activity),
            "device": activity.device.as_ref().map(peer),
            "device_last_seen": activity.device_left.map(time),
            "access": activity.accesses.iter().map(peer).collect::<Vec<_>>(),
            "sessions": activity.sessions,
            "sessions_opened": activity.sessions_opened,
            "bytes_to_device": activity.bytes_to_device,
            "bytes_to_access": activity.bytes_to_access,
            "device_url": url.of(&activity.id, "dest"),
            "access_url": url.of(&activity.id, "source"),
            "product_key": device.map(Device::product_key),
            "device_name": device.map(Device::device_name),
            "created": times.map(|times| time(times.created)),
            "rotated": times.and_then(|times| times.rotated).map(time),
            "expires": activity.expires.map(time),
        })
    }
}

/// A time as the API writes it: RFC 3339, in UTC, to the second.
#[must_use]
pub fn time(at: SystemTime) -> String {
    // Later times have five digits in their year, which RFC 3339 has not.
    let latest = std::time::UNIX_EPOCH + std::time::Duration::from_secs(253_402_300_799);
    format_rfc3339_seconds(at.clamp(std::time::UNIX_EPOCH, latest)).to_string()
}

/// An id as a part of a path.
#[must_use]
pub fn encoded(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let mut text = String::new();
    for byte in id.bytes() {
        match plain(byte) {
            true => text.push(byte.into()),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// The fields of a body, which may be empty.
struct Fields(Map<String, Value>);

impl Fields {
    fn of(head: &Head<'_>, body: &[u8]) -> std::result::Result<Self, Answer> {
        if body.is_empty() {
            return Ok(Fields(Map::new()));
        }
        let kind = head.header("content-type").and_then(|kind| kind.split(';').next());
        if kind.map(str::trim).is_none_or(|kind| !kind.eq_ignore_ascii_case("application/json")) {
            return Err(Answer::error(
                415,
                "the body must be JSON: Content-Type: application/json",
            ));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Fields(fields)),
            Ok(_) => Err(Answer::error(400, "the body must be a JSON object")),
            // serde's own text may quote the body.
            Err(e) => {
                let (line, column) = (e.line(), e.column());
                let why = format!("line {line}, column {column}: the body is not JSON");
                Err(Answer::error(400, &why))
            }
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Error::Invalid(format!("{name}: a text is expected"))),
        }
    }

    fn seconds(&mut self, name: &str) -> Result<Option<u64>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Number(number)) => {
                // JSON has no integers: 60.0 is one, too.
                let float = number.as_f64().filter(|seconds| seconds.fract() == 0.0);
                let seconds = number.as_u64().or(float.map(|seconds| seconds as u64));
                let seconds = seconds.filter(|seconds| (1..=MAX_EXPIRE).contains(seconds));
                seconds.map(Some).ok_or_else(|| wrong_seconds(name))
            }
            Some(_) => Err(wrong_seconds(name)),
        }
    }

    /// The device that the tunnel is for.
    fn device(&mut self) -> Result<Option<Device>> {
        match (self.text("product_key")?, self.text("device_name")?) {
            (Some(key), Some(name)) => {
                let device = Device::new(&key, &name);
                Ok(Some(device.map_err(|e| Error::Invalid(e.to_string()))?))
            }
            (None, None) => Ok(None),
            _ => Err(Error::Invalid("give both product_key and device_name, or neither".into())),
        }
    }

    /// All fields have been taken.
    fn end(self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::Invalid(format!("{name:?}: there is no such field"))),
        }
    }
}

/// The error of a field that is no time after which a tunnel may expire.
#[must_use]
pub fn wrong_seconds(name: &str) -> Error {
    Error::Invalid(format!("{name}: a whole number of seconds from 1 to {MAX_EXPIRE} is expected"))
}
