//! The store: the tunnels that the API has made. It holds digests, never a token; their key is in a file.
//! It is an SQLite file of one gateway, or a Redis server that several gateways share.

mod address;
pub(crate) mod redis;
mod sqlite;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use aiot_tunnel::gateway::{StoredTunnel, TokenDigest, TokenKey};
use aiot_tunnel::Token;
use aiot_tunnel_signal::Device;

use crate::Result;

pub use address::RedisAddress;
pub use redis::RedisOptions;

const PROOF: &str = "aiot-tunnel-store";

/// A tunnel of the store.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) tunnel: StoredTunnel,
    pub(crate) created: SystemTime,
    /// When its tokens were last replaced.
    pub(crate) rotated: Option<SystemTime>,
    /// The device that is told of it.
    pub(crate) device: Option<Device>,
}

impl PartialEq for Stored {
    fn eq(&self, other: &Stored) -> bool {
        let tunnel = |one: &Stored| {
            let StoredTunnel { device_token, access_token, expires, .. } = one.tunnel;
            (device_token, access_token, expires)
        };
        self.tunnel.id == other.tunnel.id
            && tunnel(self) == tunnel(other)
            && (self.created, self.rotated) == (other.created, other.rotated)
            && self.device == other.device
    }
}

/// The open store.
pub struct Store(Kind);

enum Kind {
    Sqlite(Box<sqlite::Sqlite>),
    Redis(Box<redis::Redis>),
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.0 {
            Kind::Sqlite(_) => "sqlite",
            Kind::Redis(_) => "redis",
        };
        f.debug_tuple("Store").field(&kind).finish()
    }
}

impl Store {
    /// Opens an SQLite file, and makes it if there is none. Only its owner may read it, and no other
    /// gateway can open it meanwhile. Its key is beside it, in `FILE.key`.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store): a file cannot be opened, is something else, comes from a
    /// newer version, or its key is missing or another's.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Store(Kind::Sqlite(Box::new(sqlite::Sqlite::open(path)?))))
    }

    /// Connects to a Redis server, and begins a store there if there is none. Other gateways may use it
    /// at the same time, with the same key.
    ///
    /// # Errors
    /// [`Error::Store`](crate::Error::Store): the server cannot be reached, refuses the sign-in, has a
    /// store of a newer version, or one with another key.
    pub fn connect(options: RedisOptions) -> Result<Self> {
        Ok(Store(Kind::Redis(Box::new(redis::Redis::connect(options)?))))
    }

    /// The key of the digests.
    pub(crate) fn key(&self) -> &TokenKey {
        match &self.0 {
            Kind::Sqlite(store) => store.key(),
            Kind::Redis(store) => store.key(),
        }
    }

    /// The server, if other gateways may change the store.
    pub(crate) fn server(&self) -> Option<Arc<redis::Server>> {
        match &self.0 {
            Kind::Sqlite(_) => None,
            Kind::Redis(store) => Some(store.server()),
        }
    }

    /// Uses a new connection to the server.
    pub(crate) fn renew(&mut self, connection: redis::Connection) {
        if let Kind::Redis(store) = &mut self.0 {
            store.renew(connection);
        }
    }

    /// Whether there is a connection, as far as is known.
    pub(crate) fn is_connected(&self) -> bool {
        match &self.0 {
            Kind::Sqlite(_) => true,
            Kind::Redis(store) => store.is_connected(),
        }
    }

    pub(crate) fn all(&mut self) -> Result<Vec<Stored>> {
        match &mut self.0 {
            Kind::Sqlite(store) => store.all(),
            Kind::Redis(store) => store.all(),
        }
    }

    pub(crate) fn find(&mut self, id: &str) -> Result<Option<Stored>> {
        match &mut self.0 {
            Kind::Sqlite(store) => store.find(id),
            Kind::Redis(store) => store.find(id),
        }
    }

    /// Adds a tunnel, unless the id exists. Returns whether it has.
    pub(crate) fn add(&mut self, one: &Stored) -> Result<bool> {
        match &mut self.0 {
            Kind::Sqlite(store) => store.add(one),
            Kind::Redis(store) => store.add(one),
        }
    }

    /// Changes a tunnel. If another gateway changes it at the same time, `change` is called again.
    /// Returns the tunnel as it is now, or `None` if there is no such one.
    pub(crate) fn change(
        &mut self,
        id: &str,
        change: &mut dyn FnMut(&mut Stored) -> Result<()>,
    ) -> Result<Option<Stored>> {
        match &mut self.0 {
            Kind::Sqlite(store) => store.change(id, change),
            Kind::Redis(store) => store.change(id, change),
        }
    }

    /// Returns whether there was such a tunnel.
    pub(crate) fn remove(&mut self, id: &str) -> Result<bool> {
        match &mut self.0 {
            Kind::Sqlite(store) => store.remove(id),
            Kind::Redis(store) => store.remove(id),
        }
    }
}

/// The digest of a fixed text: it tells whether a key belongs to the store.
fn proof_of(key: &TokenKey) -> TokenDigest {
    // A text of visible ASCII is always a token.
    Token::new(PROOF).map_or(TokenDigest::from_bytes([0; 32]), |token| key.digest(&token))
}

fn digest(bytes: &[u8]) -> std::result::Result<TokenDigest, String> {
    let bytes = bytes.try_into().map_err(|_| "not a digest".to_owned())?;
    Ok(TokenDigest::from_bytes(bytes))
}
