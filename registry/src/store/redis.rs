//! The store that several gateways share: a Redis server.
//!
//! | key | type | content |
//! | --- | --- | --- |
//! | `aiot-tunnel:schema` | string | the version of what follows |
//! | `aiot-tunnel:proof` | string | tells whether a key belongs to the store |
//! | `aiot-tunnel:tunnels` | hash | for each id its [`Record`], as JSON |
//! | `aiot-tunnel:changes` | stream | the ids of the latest changes, for the other gateways |
//!
//! Each change is one script, so that tunnel and stream change together, and none is made in a store of
//! another version. Nothing here waits without a limit: commands have [`ANSWER`], and a new connection is
//! made on a thread of its own, because a name lookup and a TLS handshake cannot be interrupted.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ::redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, TlsCertificates, Value,
};
use aiot_tunnel::gateway::{StoredTunnel, TokenDigest, TokenKey};
use aiot_tunnel_signal::Device;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::address::Place;
use super::{digest, proof_of, RedisAddress, Stored};
use crate::key::SharedKey;
use crate::names::{self, of_millis, to_millis};
use crate::{Error, Result};

/// The newest version that this program knows.
const SCHEMA: u64 = 1;
const SCHEMA_KEY: &str = "aiot-tunnel:schema";
const PROOF_KEY: &str = "aiot-tunnel:proof";
const TUNNELS: &str = "aiot-tunnel:tunnels";
const CHANGES: &str = "aiot-tunnel:changes";

/// Begins a store if there is none. Returns version and proof.
const BEGIN: &str = "
if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3]) == 0 then
  redis.call('SET', KEYS[1], ARGV[1])
  redis.call('SET', KEYS[2], ARGV[2])
end
return redis.call('MGET', KEYS[1], KEYS[2])";

/// What begins each script that changes something: -1 means that the store is not this version's.
/// Arguments: version, id, and what the script needs.
const GUARD: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end\n";
/// What ends it: the other gateways are told.
const TELL: &str =
    "\nredis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'id', ARGV[2])\nreturn 1";
const ADD: &str = "if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3]) == 0 then return 0 end";
const REPLACE: &str = "if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])";
const REMOVE: &str = "if redis.call('HDEL', KEYS[2], ARGV[2]) == 0 then return 0 end";

/// Time for name lookup, TCP, TLS and sign-in together.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for the answer to a command.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the server holds back the answer when there is no change.
const QUIET: Duration = Duration::from_millis(500);
/// Most changes that are taken at once. If there are more, everything is read.
const MOST_CHANGES: usize = 500;
/// About how many tunnels one answer has when all are read. An answer with all of them would hold up the
/// server: a million take it seconds.
const AT_ONCE: usize = 1000;
/// Where a scan begins, and what it is told at its end.
const BEGIN_OF_SCAN: &str = "0";
/// How often a change is tried when other gateways change the same tunnel.
const TRIES: usize = 5;

/// How to reach a Redis server.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisOptions {
    /// Where it is.
    pub address: RedisAddress,
    /// The key of the digests.
    pub key: SharedKey,
    /// The password, if the address has none.
    pub password: Option<Zeroizing<String>>,
    /// Certificates in PEM to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
}

impl std::fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisOptions").field("address", &self.address).finish_non_exhaustive()
    }
}

impl RedisOptions {
    /// Options without a password, which trust the system's certificates.
    #[must_use]
    pub fn new(address: RedisAddress, key: SharedKey) -> Self {
        RedisOptions { address, key, password: None, ca: None }
    }

    /// Checks everything that can be checked without the server.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the certificates cannot be used.
    pub fn check(&self) -> Result<()> {
        self.client().map(drop)
    }

    fn client(&self) -> Result<Client> {
        let RedisAddress { server, database, user, password } = &self.address;
        let mut settings = RedisConnectionInfo::default().set_db(*database).set_skip_set_lib_name();
        if let Some(password) = self.password.as_ref().or(password.as_ref()) {
            settings = settings.set_password(password.as_str());
        }
        if let Some(user) = user {
            settings = settings.set_username(user);
        }
        let address = match server {
            Place::Unix(path) => ConnectionAddr::Unix(path.clone()),
            Place::Tcp { host, port, tls: false } => ConnectionAddr::Tcp(host.clone(), *port),
            Place::Tcp { host, port, tls: true } => ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: false,
                tls_params: None,
            },
        };
        let info = |address: ConnectionAddr| -> ::redis::RedisResult<ConnectionInfo> {
            Ok(address.into_connection_info()?.set_redis_settings(settings))
        };
        let client = info(address).and_then(|info| match &self.ca {
            Some(pem) => {
                let root_cert = Some(pem.clone());
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
            }
            None => Client::open(info),
        });
        client.map_err(|e| Error::Invalid(format!("{}: {}", self.address, explain(&e))))
    }
}

/// A connection that is signed in.
pub(crate) struct Connection(::redis::Connection);

impl Connection {
    fn ask(&mut self, command: &Cmd) -> ::redis::RedisResult<Value> {
        command.query(&mut self.0)
    }
}

/// How to reach the server. Shared by those who use it.
pub(crate) struct Server {
    client: Client,
    /// Its address without a password.
    name: String,
    proof: String,
    /// An attempt to connect that takes too long. There is never a second one.
    pending: Mutex<Option<Receiver<::redis::RedisResult<::redis::Connection>>>>,
}

impl Server {
    /// Connects and signs in.
    pub(crate) fn connection(&self) -> Result<Connection> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = match pending.take() {
            Some(attempt) => attempt,
            None => {
                let (done, attempt) = mpsc::channel();
                let client = self.client.clone();
                let run = move || drop(done.send(client.get_connection_with_timeout(CONNECT)));
                let thread = thread::Builder::new().name("store-connect".into()).spawn(run);
                thread.map_err(|e| self.failed(&e))?;
                attempt
            }
        };
        let result = match attempt.recv_timeout(CONNECT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                *pending = Some(attempt);
                Err(io::Error::from(io::ErrorKind::TimedOut).into())
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("the client library failed").into())
            }
        };
        let connection = result.and_then(|connection| {
            connection.set_read_timeout(Some(ANSWER))?;
            connection.set_write_timeout(Some(ANSWER))?;
            Ok(Connection(connection))
        });
        connection.map_err(|e| self.failed(&explain(&e)))
    }

    /// Checks that the store is one of this version, with this key.
    pub(crate) fn check(&self, connection: &mut Connection) -> Result<()> {
        let answer = connection.ask(::redis::cmd("MGET").arg(SCHEMA_KEY).arg(PROOF_KEY));
        self.verify(&answer.map_err(|e| self.failed(&explain(&e)))?)
    }

    /// `answer` is version and proof.
    fn verify(&self, answer: &Value) -> Result<()> {
        let Value::Array(values) = answer else { return Err(self.failed(&STRANGE)) };
        let [schema, proof] = &values[..] else { return Err(self.failed(&STRANGE)) };
        let (Some(schema), Some(proof)) = (text(schema), text(proof)) else {
            return Err(self.failed(&EMPTIED));
        };
        match schema.parse::<u64>() {
            Ok(SCHEMA) => {}
            Ok(newer) if newer > SCHEMA => {
                return Err(self.failed(&format_args!(
                    "the store has version {newer}, and this program knows versions up to {SCHEMA}; \
                     use the program that wrote it, or a newer one"
                )));
            }
            _ => return Err(self.failed(&"not a store of tunnels")),
        }
        if proof != self.proof {
            return Err(self.failed(
                &"the store has another key; give --store-key-file the file that its other gateways \
                  use",
            ));
        }
        Ok(())
    }

    /// Begins to listen for changes, from now on.
    pub(crate) fn changes(self: Arc<Self>) -> Result<Changes> {
        let mut connection = self.connection()?;
        let failed = |e: RedisError| self.failed(&explain(&e));
        connection.0.set_read_timeout(Some(QUIET + ANSWER)).map_err(failed)?;
        let mut latest = ::redis::cmd("XREVRANGE");
        latest.arg(CHANGES).arg("+").arg("-").arg("COUNT").arg(1);
        let answer = connection.ask(&latest).map_err(failed)?;
        let entry = array(&answer).and_then(|entries| entries.first()).and_then(array);
        let last = entry.and_then(|entry| text(entry.first()?)).unwrap_or("0").to_owned();
        Ok(Changes { server: self.clone(), connection, last })
    }

    fn failed(&self, why: &dyn std::fmt::Display) -> Error {
        Error::Store(format!("{}: {why}", self.name))
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

const STRANGE: &str = "the server gives an answer that no Redis gives";
const EMPTIED: &str =
    "the store's tunnels are no longer there: the server may have started without \
                       its data; restore them, or restart the gateway to begin an empty store";

/// Listens for changes.
pub(crate) struct Changes {
    server: Arc<Server>,
    connection: Connection,
    /// The latest change that is known.
    last: String,
}

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    /// These tunnels. There may be none.
    Tunnels(Vec<String>),
    /// More than can be listed.
    Many,
}

impl Changes {
    /// Waits for changes, for half a second at most.
    pub(crate) fn next(&mut self) -> Result<Changed> {
        let mut read = ::redis::cmd("XREAD");
        read.arg("COUNT").arg(MOST_CHANGES).arg("BLOCK").arg(QUIET.as_millis() as u64);
        read.arg("STREAMS").arg(CHANGES).arg(&self.last);
        let answer = self.connection.ask(&read);
        let answer = answer.map_err(|e| self.server.failed(&explain(&e)))?;
        let mut ids = Vec::new();
        // [[stream, [[number, [name, value, ...]], ...]]], or nothing.
        let stream = array(&answer).and_then(|streams| streams.first()).and_then(array);
        let entries = stream.and_then(|stream| array(stream.get(1)?)).unwrap_or_default();
        for entry in entries {
            let entry = array(entry).unwrap_or_default();
            let number = entry.first().and_then(text);
            let number = number.ok_or_else(|| self.server.failed(&STRANGE))?;
            self.last = number.to_owned();
            let id = entry.get(1).and_then(|fields| text(array(fields)?.get(1)?));
            ids.extend(id.map(str::to_owned));
        }
        match entries.len() < MOST_CHANGES {
            true => Ok(Changed::Tunnels(ids)),
            false => Ok(Changed::Many),
        }
    }
}

/// The open store.
pub(crate) struct Redis {
    server: Arc<Server>,
    key: TokenKey,
    /// `None`: it was lost.
    connection: Option<Connection>,
}

impl Redis {
    pub(crate) fn connect(options: RedisOptions) -> Result<Self> {
        let key = options.key.key().clone();
        let server = Server {
            client: options.client()?,
            name: options.address.to_string(),
            proof: HEXLOWER.encode(proof_of(&key).as_bytes()),
            pending: Mutex::default(),
        };
        let mut connection = server.connection()?;
        let mut begin = ::redis::cmd("EVAL");
        begin.arg(BEGIN).arg(3).arg(SCHEMA_KEY).arg(PROOF_KEY).arg(TUNNELS);
        begin.arg(SCHEMA).arg(&server.proof);
        let answer = connection.ask(&begin).map_err(|e| server.failed(&explain(&e)))?;
        server.verify(&answer)?;
        Ok(Redis { server: Arc::new(server), key, connection: Some(connection) })
    }

    pub(super) fn key(&self) -> &TokenKey {
        &self.key
    }

    pub(super) fn server(&self) -> Arc<Server> {
        self.server.clone()
    }

    pub(super) fn renew(&mut self, connection: Connection) {
        self.connection = Some(connection);
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// All tunnels. A tunnel that others change meanwhile is there as it was or as it is: its change is told.
    pub(super) fn all(&mut self) -> Result<Vec<Stored>> {
        self.check()?;
        // One may come twice.
        let mut all = HashMap::new();
        let mut cursor = BEGIN_OF_SCAN.to_owned();
        loop {
            let mut scan = ::redis::cmd("HSCAN");
            scan.arg(TUNNELS).arg(&cursor).arg("COUNT").arg(AT_ONCE);
            let answer = self.ask(&scan, "")?;
            let part = match array(&answer) {
                Some([next, fields]) => text(next).zip(array(fields)),
                _ => None,
            };
            let (next, fields) = part.ok_or_else(|| self.server.failed(&STRANGE))?;
            for pair in fields.chunks_exact(2) {
                let read = match (text(&pair[0]), text(&pair[1])) {
                    (Some(id), Some(record)) => Record::read(id, record),
                    _ => Err("a tunnel".to_owned()),
                };
                match read {
                    Ok(one) => drop(all.insert(one.tunnel.id.as_str().to_owned(), one)),
                    Err(what) => {
                        let server = &self.server;
                        log::warn!("{server}: {what} cannot be read; it is left out");
                    }
                }
            }
            if next == BEGIN_OF_SCAN {
                break;
            }
            next.clone_into(&mut cursor);
        }
        // What was emptied meanwhile has not lost its tunnels.
        self.check()?;
        Ok(all.into_values().collect())
    }

    /// Checks that the store is one of this version, with this key.
    fn check(&mut self) -> Result<()> {
        let server = &self.server;
        let connection = self.connection.as_mut().ok_or_else(|| server.failed(&LOST))?;
        let checked = server.check(connection);
        if checked.is_err() {
            self.connection = None;
        }
        checked
    }

    pub(super) fn find(&mut self, id: &str) -> Result<Option<Stored>> {
        Ok(self.record(id)?.map(|(one, _)| one))
    }

    /// A tunnel, and its record.
    fn record(&mut self, id: &str) -> Result<Option<(Stored, String)>> {
        let answer = self.ask(::redis::cmd("HGET").arg(TUNNELS).arg(id), "")?;
        let Some(record) = text(&answer) else { return Ok(None) };
        match Record::read(id, record) {
            Ok(one) => Ok(Some((one, record.to_owned()))),
            Err(what) => Err(self.server.failed(&format_args!("{what} cannot be read"))),
        }
    }

    pub(super) fn add(&mut self, one: &Stored) -> Result<bool> {
        let record = Record::of(one);
        self.carry_out(ADD, &[one.tunnel.id.as_str(), &record])
    }

    pub(super) fn change(
        &mut self,
        id: &str,
        change: &mut dyn FnMut(&mut Stored) -> Result<()>,
    ) -> Result<Option<Stored>> {
        for _ in 0..TRIES {
            let Some((mut one, before)) = self.record(id)? else { return Ok(None) };
            change(&mut one)?;
            if self.carry_out(REPLACE, &[id, &before, &Record::of(&one)])? {
                return Ok(Some(one));
            }
        }
        let why = format!("another gateway changes the tunnel {id:?} at the same time; try again");
        Err(Error::Conflict(why))
    }

    pub(super) fn remove(&mut self, id: &str) -> Result<bool> {
        self.carry_out(REMOVE, &[id])
    }

    /// Runs a script that changes a tunnel. `arguments` begin with its id.
    fn carry_out(&mut self, script: &str, arguments: &[&str]) -> Result<bool> {
        let mut run = ::redis::cmd("EVAL");
        run.arg(format!("{GUARD}{script}{TELL}")).arg(3).arg(SCHEMA_KEY).arg(TUNNELS).arg(CHANGES);
        run.arg(SCHEMA).arg(arguments);
        let unknown = "; whether the change was made is not known";
        match self.ask(&run, unknown)? {
            Value::Int(1) => Ok(true),
            Value::Int(0) => Ok(false),
            _ => {
                // What is wrong with the store, the next connection tells.
                self.connection = None;
                Err(self.server.failed(&"the store is no longer one of this version"))
            }
        }
    }

    /// `but` is what to say as well if there was no answer.
    fn ask(&mut self, command: &Cmd, but: &str) -> Result<Value> {
        let server = &self.server;
        let connection = self.connection.as_mut().ok_or_else(|| server.failed(&LOST))?;
        connection.ask(command).map_err(|e| match e.code() {
            // The server has answered.
            Some(_) => server.failed(&explain(&e)),
            None => {
                // It is not used again: its next answer could be that to this command.
                self.connection = None;
                server.failed(&format_args!("{}{but}", explain(&e)))
            }
        })
    }
}

const LOST: &str = "there is no connection";

/// A tunnel as it is stored. Times are in milliseconds since 1970, digests in hexadecimal digits.
#[derive(Serialize, Deserialize)]
struct Record {
    device: String,
    access: String,
    created: i64,
    expires: Option<i64>,
    rotated: Option<i64>,
    product_key: Option<String>,
    device_name: Option<String>,
}

impl Record {
    fn of(one: &Stored) -> String {
        let hex = |token: TokenDigest| HEXLOWER.encode(token.as_bytes());
        let record = Record {
            device: hex(one.tunnel.device_token),
            access: hex(one.tunnel.access_token),
            created: to_millis(one.created),
            expires: one.tunnel.expires.map(to_millis),
            rotated: one.rotated.map(to_millis),
            product_key: one.device.as_ref().map(|device| device.product_key().to_owned()),
            device_name: one.device.as_ref().map(|device| device.device_name().to_owned()),
        };
        serde_json::to_string(&record).unwrap_or_default()
    }

    /// # Errors
    /// The tunnel's name.
    fn read(id: &str, text: &str) -> std::result::Result<Stored, String> {
        let token = |hex: &str| digest(&HEXLOWER.decode(hex.as_bytes()).ok()?).ok();
        let read = || {
            let record: Record = serde_json::from_str(text).ok()?;
            let (device, access) = (token(&record.device)?, token(&record.access)?);
            let tunnel = StoredTunnel::new(names::id(id).ok()?, device, access)
                .with_expires(record.expires.map(of_millis));
            let rotated = record.rotated.map(of_millis);
            let device = match (&record.product_key, &record.device_name) {
                (Some(key), Some(name)) => Some(Device::new(key, name).ok()?),
                _ => None,
            };
            Some(Stored { tunnel, created: of_millis(record.created), rotated, device })
        };
        read().filter(|one| one.tunnel.device_token != one.tunnel.access_token).ok_or_else(|| {
            // Whoever may write there may write anything.
            let short: String = id.chars().take(100).collect();
            format!("tunnel {short:?}")
        })
    }
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Says in plain words what went wrong, and what to check. What the client library says stands in
/// brackets.
fn explain(e: &RedisError) -> String {
    let why = match (e.kind(), e.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS")) => {
            "it refuses the sign-in; check the user in --store, and --store-password-file"
        }
        (_, Some("NOAUTH")) => "it wants a password; give --store-password-file",
        (_, Some("NOPERM")) => {
            "the user of --store may not do this there; packaging/fleet/redis.conf \
                                names the rights that the gateway needs"
        }
        (_, Some("WRONGTYPE")) => "not a store of tunnels",
        (_, Some("READONLY")) => {
            "it is a replica, which takes no changes; give the address of the \
                                  primary"
        }
        (_, Some("LOADING")) => "it still loads its data",
        (_, Some("MISCONF" | "OOM")) => "it takes no changes; look at the server's disk and memory",
        _ if e.is_connection_refusal() => {
            "nothing listens there; check the address, and whether Redis runs"
        }
        _ if e.is_timeout() => "it does not answer in time",
        _ if e.to_string().contains("certificate") => {
            "its certificate is not trusted; name its CA with --store-ca"
        }
        _ if e.to_string().contains("SSL") => {
            "TLS fails; check whether it speaks TLS on this port, or use redis://"
        }
        _ if e.is_connection_dropped() => "the connection was lost",
        _ => "it cannot be used",
    };
    let raw: String =
        e.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    format!("{why} [{raw}]")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_junk_is_not() {
        let token = |byte| TokenDigest::from_bytes([byte; 32]);
        let id = names::id("t1").unwrap();
        let tunnel = StoredTunnel::new(id, token(1), token(2)).with_expires(names::from_now(60));
        let created = of_millis(to_millis(SystemTime::now()));
        let device = Some(Device::new("pk", "device-1").unwrap());
        let one = Stored { tunnel, created, rotated: None, device };
        let record = Record::of(&one);
        assert!(Record::read("t1", &record).unwrap() == one);
        for (id, record) in [
            ("a/b", &record[..]),
            ("t1", ""),
            ("t1", "{}"),
            ("t1", &record.replace("01", "0")),
            ("t1", &record.replace("01", "02")),
            ("t1", &record.replace("created", "made")),
            ("t1", &record.replace("device-1", "a/b")),
        ] {
            assert!(Record::read(id, record).is_err(), "{id} {record}");
        }
        let long = Record::read(&"x\n".repeat(500), "hush").unwrap_err();
        assert!(long.len() < 500 && !long.contains('\n') && !long.contains("hush"), "{long}");
    }
}
