//! What the gateway serves: the tunnels of the store and those of the list, which is a file that people
//! write. An id is in one of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aiot_tunnel::gateway::{
    Activity, Gateway, GatewayBuilder, StoredTunnel, TokenDigest, TokenKey, TunnelConfig,
};
use aiot_tunnel::{Token, TunnelId};
use zeroize::Zeroizing;

use crate::key::new_token;
use crate::names::{self, from_now};
use crate::store::{Store, Stored};
use crate::{Error, PublicUrl, Result};

/// A tunnel of the list.
#[derive(Debug, Clone)]
pub struct ListedTunnel {
    /// Its id and tokens. The expiry is not used.
    pub config: TunnelConfig,
    /// Seconds after which it expires, from when the gateway first saw the entry as it is.
    pub expire: Option<u64>,
}

/// What the registry begins with.
#[derive(Debug)]
pub struct Options {
    /// The store, if there is one.
    pub store: Option<Store>,
    /// The tunnels of the list.
    pub list: Vec<ListedTunnel>,
    /// The beginning of the URLs that are handed out. `None`: made of the address.
    pub public_url: Option<PublicUrl>,
    /// Whether the gateway serves `wss`.
    pub is_secure: bool,
}

/// How a new list differs from the one before, in tunnels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// New ones.
    pub added: usize,
    /// Ones with another token or expiry.
    pub changed: usize,
    /// Ones that are gone.
    pub removed: usize,
}

/// The tunnels of a running gateway. Dropping it ends the gateway.
#[derive(Debug)]
pub struct Registry {
    gateway: Gateway,
    key: TokenKey,
    url: PublicUrl,
    started: SystemTime,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    store: Option<Store>,
    listed: HashMap<String, Listed>,
}

/// An entry of the list, without its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    device_token: TokenDigest,
    access_token: TokenDigest,
    expire: Option<u64>,
    expires: Option<SystemTime>,
}

/// A tunnel with the tokens that were made for it. They are not kept.
pub(crate) struct Issued {
    pub(crate) id: TunnelId,
    pub(crate) device_token: Option<Zeroizing<String>>,
    pub(crate) access_token: Option<Zeroizing<String>>,
    pub(crate) expires: Option<SystemTime>,
}

/// Which tokens are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sides {
    Device,
    Access,
    Both,
}

/// A tunnel and what it does.
pub(crate) struct Seen {
    pub(crate) activity: Activity,
    /// Only a tunnel of the store has it.
    pub(crate) of_store: Option<Times>,
}

/// What only the store knows.
pub(crate) struct Times {
    pub(crate) created: SystemTime,
    pub(crate) rotated: Option<SystemTime>,
}

impl Registry {
    /// Starts the gateway with all tunnels.
    ///
    /// # Errors
    /// The store cannot be read, an id is in the store and in the list, or the gateway does not start.
    pub fn start(
        mut builder: GatewayBuilder,
        address: SocketAddr,
        options: Options,
    ) -> Result<Self> {
        let Options { store, list, public_url, is_secure } = options;
        let key = store.as_ref().map_or_else(TokenKey::random, |store| store.key().clone());
        let listed = listed(list, &key, &HashMap::new())?;
        builder = builder.token_key(key.clone());
        if let Some(store) = &store {
            not_in(store, &listed)?;
            for one in store.all()? {
                builder = builder.stored_tunnel(one.tunnel);
            }
        }
        for (id, one) in &listed {
            builder = builder.stored_tunnel(one.tunnel(id)?);
        }
        let gateway = builder.start(address).map_err(|e| Error::Invalid(e.to_string()))?;
        let scheme = if is_secure { "wss" } else { "ws" };
        let own_url = || PublicUrl::of_address(scheme, gateway.local_addr());
        let url = public_url.unwrap_or_else(own_url);
        let state = Mutex::new(State { store, listed });
        Ok(Registry { gateway, key, url, started: SystemTime::now(), state })
    }

    /// The gateway.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Ends the gateway, as [`Gateway::shutdown`] does.
    pub fn shutdown(self) {
        self.gateway.shutdown();
    }

    /// Takes over a new list. Connections of tunnels that stay as they were go on. After an error,
    /// everything is as before.
    ///
    /// # Errors
    /// An entry is wrong, or its id is in the store.
    pub fn set_list(&self, list: Vec<ListedTunnel>) -> Result<Changes> {
        let mut state = self.state();
        let new = listed(list, &self.key, &state.listed)?;
        if let Some(store) = &state.store {
            not_in(store, &new)?;
        }
        // All are checked before the first one is changed.
        let tunnels = new.iter().map(|(id, one)| Ok((id, one.tunnel(id)?)));
        let tunnels: Vec<(&String, StoredTunnel)> = tunnels.collect::<Result<_>>()?;
        let mut changes = Changes::default();
        for (id, tunnel) in &tunnels {
            match state.listed.get(*id) {
                Some(old) if *old == new[*id] => continue,
                Some(_) => changes.changed += 1,
                None => changes.added += 1,
            }
            self.put(tunnel)?;
        }
        for id in state.listed.keys().filter(|id| !new.contains_key(*id)) {
            self.take_away(&names::id(id)?);
            changes.removed += 1;
        }
        drop(tunnels);
        state.listed = new;
        Ok(changes)
    }

    pub(crate) fn url(&self) -> &PublicUrl {
        &self.url
    }

    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// Makes a tunnel. `id` may be left out.
    pub(crate) fn add(&self, id: Option<&str>, expire: Option<u64>) -> Result<Issued> {
        let state = self.state();
        let store = writable(&state)?;
        let id = match id {
            Some(id) => names::id(id)?,
            None => names::id(&names::new_id())?,
        };
        let exists = || Error::Conflict(format!("a tunnel with the id {:?} exists", id.as_str()));
        if state.listed.contains_key(id.as_str()) {
            return Err(exists());
        }
        let (device, access) = (self.new_digest()?, self.new_digest()?);
        let expires = expire.map(from_now);
        let tunnel = StoredTunnel::new(id.clone(), device.1, access.1).with_expires(expires);
        let one = Stored { tunnel, created: SystemTime::now(), rotated: None };
        if !store.add(&one)? {
            return Err(exists());
        }
        self.put(&one.tunnel)?;
        let (device_token, access_token) = (Some(device.0), Some(access.0));
        Ok(Issued { id, device_token, access_token, expires })
    }

    /// Replaces tokens, and the expiry if `expire` has one.
    pub(crate) fn rotate(&self, id: &str, sides: Sides, expire: Option<u64>) -> Result<Issued> {
        let state = self.state();
        let store = changeable(&state, id)?;
        let mut one = store.find(id)?.ok_or_else(|| unknown(id))?;
        let tunnel = &mut one.tunnel;
        if let Some(seconds) = expire {
            tunnel.expires = Some(from_now(seconds));
        } else if tunnel.expires.is_some_and(|at| at <= SystemTime::now()) {
            let why = format!("the tunnel {id:?} has expired; give expire to renew it");
            return Err(Error::Conflict(why));
        }
        let replace = |of: &mut TokenDigest, is_meant: bool| -> Result<_> {
            if !is_meant {
                return Ok(None);
            }
            let (token, digest) = self.new_digest()?;
            *of = digest;
            Ok(Some(token))
        };
        let device_token = replace(&mut tunnel.device_token, sides != Sides::Access)?;
        let access_token = replace(&mut tunnel.access_token, sides != Sides::Device)?;
        one.rotated = Some(SystemTime::now());
        store.update(&one)?;
        self.put(&one.tunnel)?;
        let Stored { tunnel: StoredTunnel { id, expires, .. }, .. } = one;
        Ok(Issued { id, device_token, access_token, expires })
    }

    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let state = self.state();
        if !changeable(&state, id)?.remove(id)? {
            return Err(unknown(id));
        }
        self.take_away(&names::id(id)?);
        Ok(())
    }

    pub(crate) fn find(&self, id: &str) -> Result<Seen> {
        let state = self.state();
        let name = names::id(id).map_err(|_| unknown(id))?;
        let activity = self.gateway.activity(&name).ok_or_else(|| unknown(id))?;
        let of_store = match &state.store {
            Some(store) => store.find(id)?.map(Times::of),
            None => None,
        };
        Ok(Seen { activity, of_store })
    }

    /// All tunnels, in the order of their ids.
    pub(crate) fn all(&self) -> Result<Vec<Seen>> {
        let state = self.state();
        let stored = state.store.as_ref().map(Store::all).transpose()?.unwrap_or_default();
        let id_of = |one: &Stored| one.tunnel.id.as_str().to_owned();
        let mut stored: HashMap<String, Stored> =
            stored.into_iter().map(|one| (id_of(&one), one)).collect();
        let mut all = BTreeMap::new();
        for activity in self.gateway.activities() {
            let id = activity.id.as_str().to_owned();
            let of_store = stored.remove(&id).map(Times::of);
            all.insert(id, Seen { activity, of_store });
        }
        Ok(all.into_values().collect())
    }

    /// What all tunnels do, in the order of their ids, without a look at the store.
    pub(crate) fn activities(&self) -> Vec<Activity> {
        let mut all = self.gateway.activities();
        all.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, tunnel: &StoredTunnel) -> Result<()> {
        self.gateway.put_tunnel(tunnel).map_err(|e| Error::Invalid(e.to_string()))
    }

    fn take_away(&self, id: &TunnelId) {
        // It may have none only if it was removed already.
        let _ = self.gateway.remove_tunnel(id);
    }

    fn new_digest(&self) -> Result<(Zeroizing<String>, TokenDigest)> {
        let token = new_token();
        let digest = Token::new(&token).map(|token| self.key.digest(&token));
        Ok((token, digest.map_err(|e| Error::Invalid(e.to_string()))?))
    }
}

impl Listed {
    fn tunnel(&self, id: &str) -> Result<StoredTunnel> {
        let tunnel = StoredTunnel::new(names::id(id)?, self.device_token, self.access_token);
        Ok(tunnel.with_expires(self.expires))
    }
}

impl Times {
    fn of(one: Stored) -> Self {
        Times { created: one.created, rotated: one.rotated }
    }
}

/// The entries of a list. One that is as `before` keeps its time of expiry.
fn listed(
    list: Vec<ListedTunnel>,
    key: &TokenKey,
    before: &HashMap<String, Listed>,
) -> Result<HashMap<String, Listed>> {
    let mut all = HashMap::new();
    for ListedTunnel { config, expire } in list {
        let id = config.id.as_str();
        let mut one = Listed {
            device_token: key.digest(&config.device_token),
            access_token: key.digest(&config.access_token),
            expire,
            expires: None,
        };
        let is_same = |old: &&Listed| {
            let tokens = |one: &Listed| (one.device_token, one.access_token);
            tokens(old) == tokens(&one) && old.expire == expire
        };
        one.expires = match before.get(id).filter(is_same) {
            Some(old) => old.expires,
            None => expire.map(from_now),
        };
        if all.insert(id.to_owned(), one).is_some() {
            return Err(Error::Conflict(format!("two tunnels have the id {id:?}")));
        }
    }
    Ok(all)
}

/// Checks that no tunnel of the list is in the store.
fn not_in(store: &Store, listed: &HashMap<String, Listed>) -> Result<()> {
    if listed.is_empty() {
        return Ok(());
    }
    let stored = store.all()?;
    let ids: HashSet<&str> = stored.iter().map(|one| one.tunnel.id.as_str()).collect();
    let mut both: Vec<&String> = listed.keys().filter(|id| ids.contains(id.as_str())).collect();
    both.sort();
    match both.first() {
        Some(id) => Err(Error::Conflict(format!(
            "the tunnel {id:?} is in the store, too; remove it there (aiot-tunnel tunnel remove), or \
             give it another id"
        ))),
        None => Ok(()),
    }
}

fn writable(state: &State) -> Result<&Store> {
    state.store.as_ref().ok_or_else(|| {
        Error::Conflict(
            "the gateway keeps no tunnels of its own; start it with --store FILE".into(),
        )
    })
}

/// The store, if the tunnel is not one of the list.
fn changeable<'a>(state: &'a State, id: &str) -> Result<&'a Store> {
    if state.listed.contains_key(id) {
        return Err(Error::Conflict(format!(
            "the tunnel {id:?} is in the gateway's list, which is a file; change it there"
        )));
    }
    match &state.store {
        Some(store) => Ok(store),
        None => Err(unknown(id)),
    }
}

fn unknown(id: &str) -> Error {
    Error::Unknown(format!("there is no tunnel {id:?}"))
}
