//! What the gateway serves: the tunnels of the store and those of the list, which is a file that people
//! write. An id is in one of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aiot_tunnel::gateway::{
    Activity, Gateway, GatewayBuilder, StoredTunnel, TokenDigest, TokenKey, TunnelConfig,
};
use aiot_tunnel::{Token, TunnelId};
use aiot_tunnel_signal::{ConnectionData, Device, Notice, Platform, Sent};
use zeroize::Zeroizing;

use crate::key::new_token;
use crate::names::{self, from_now, of_millis, to_millis};
use crate::store::redis::Connection;
use crate::store::{Store, Stored};
use crate::{sync, Error, PublicUrl, Result};

/// How long the answer to a change waits until the broker has the message for the device.
const NOTIFY: Duration = Duration::from_secs(2);

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
    /// How long the tokens that are known still open a connection while the store cannot be reached.
    pub store_grace: Duration,
    /// The tunnels of the list.
    pub list: Vec<ListedTunnel>,
    /// The beginning of the URLs that are handed out. `None`: made of the address.
    pub public_url: Option<PublicUrl>,
    /// Whether the gateway serves `wss`.
    pub is_secure: bool,
    /// Tells devices of their tunnels.
    pub platform: Option<Platform>,
    /// Is told of each tunnel that changes, by whomever.
    pub observer: Option<Observer>,
}

/// Is told of changes. Must not block, nor call the registry.
pub struct Observer(Box<Observe>);

type Observe = dyn Fn(&str, Change) + Send + Sync;

impl Observer {
    /// Calls `observe` with the id of each tunnel that changes.
    pub fn new(observe: impl Fn(&str, Change) + Send + Sync + 'static) -> Self {
        Observer(Box::new(observe))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer(..)")
    }
}

/// What has become of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It has another token or expiry.
    Changed,
    /// It is gone.
    Removed,
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
    platform: Option<Platform>,
    observer: Option<Observer>,
    has_store: bool,
    store_grace: Duration,
    /// Locked by whoever changes tunnels, before `state`. `None`: there is none, or it is closed.
    store: Mutex<Option<Store>>,
    /// Never locked while somebody waits for the store.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The tunnels of the store, as far as is known.
    stored: HashMap<String, Stored>,
    listed: HashMap<String, Listed>,
    /// The store cannot be reached.
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Lost {
    since: Instant,
    why: String,
    /// The time of grace is over: tokens of the store open nothing.
    is_over: bool,
}

/// What is known of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The gateway has no store.
    NoStore,
    /// It can be reached.
    Good,
    /// It cannot be reached; known tokens are valid.
    Lost,
    /// It cannot be reached, and for too long.
    Over,
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
pub struct Issued {
    /// Its id.
    pub id: TunnelId,
    /// The device's new token, if there is one.
    pub device_token: Option<Zeroizing<String>>,
    /// The operators' new token, if there is one.
    pub access_token: Option<Zeroizing<String>>,
    /// When the tokens expire.
    pub expires: Option<SystemTime>,
    /// The message to the device.
    sent: Option<Sent>,
}

/// Which tokens are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    /// The device's.
    Device,
    /// The operators'.
    Access,
    /// The device's and the operators'.
    Both,
}

/// A tunnel and what it does.
pub struct Seen {
    /// What it does.
    pub activity: Activity,
    /// Only a tunnel of the store has it.
    pub of_store: Option<Times>,
}

/// What only the store knows.
pub struct Times {
    /// When it was made.
    pub created: SystemTime,
    /// When a token was last replaced.
    pub rotated: Option<SystemTime>,
    /// The device that messages go to.
    pub device: Option<Device>,
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
    ) -> Result<Arc<Self>> {
        let Options { mut store, store_grace, list, public_url, is_secure, platform, observer } =
            options;
        let key = store.as_ref().map_or_else(TokenKey::random, |store| store.key().clone());
        let listed = listed(list, &key, &HashMap::new())?;
        builder = builder.token_key(key.clone());
        let all = store.as_mut().map(Store::all).transpose()?.unwrap_or_default();
        let stored: HashMap<String, Stored> =
            all.into_iter().map(|one| (one.tunnel.id.as_str().to_owned(), one)).collect();
        not_in(&stored, &listed)?;
        for one in stored.values() {
            builder = builder.stored_tunnel(one.tunnel.clone());
        }
        for (id, one) in &listed {
            builder = builder.stored_tunnel(one.tunnel(id)?);
        }
        let gateway = builder.start(address).map_err(|e| match e {
            aiot_tunnel::Error::Io { source, .. } => Error::Listen(address, source),
            e => Error::Invalid(e.to_string()),
        })?;
        let scheme = if is_secure { "wss" } else { "ws" };
        let own_url = || PublicUrl::of_address(scheme, gateway.local_addr());
        let url = public_url.unwrap_or_else(own_url);
        if platform.is_some() {
            url.parts()?;
        }
        let server = store.as_ref().and_then(Store::server);
        let registry = Arc::new(Registry {
            gateway,
            key,
            url,
            started: SystemTime::now(),
            platform,
            observer,
            has_store: store.is_some(),
            store_grace,
            store: Mutex::new(store),
            state: Mutex::new(State { stored, listed, lost: None }),
        });
        if let Some(server) = server {
            sync::start(&registry, server)
                .map_err(|e| Error::Invalid(format!("create the store's thread: {e}")))?;
        }
        Ok(registry)
    }

    /// The gateway.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Ends the gateway, as [`Gateway::stop`] does, and closes the store. From then on nothing changes.
    pub fn stop(&self) {
        self.gateway.stop();
        drop(lock(&self.store).take());
    }

    /// Takes over a new list. Connections of tunnels that stay as they were go on. After an error,
    /// everything is as before.
    ///
    /// # Errors
    /// An entry is wrong, or its id is in the store.
    pub fn set_list(&self, list: Vec<ListedTunnel>) -> Result<Changes> {
        // No tunnel is added meanwhile.
        let _store = lock(&self.store);
        let mut state = self.state();
        let new = listed(list, &self.key, &state.listed)?;
        not_in(&state.stored, &new)?;
        // All are checked before the first one is changed.
        let tunnels = new.iter().map(|(id, one)| Ok((id, one.tunnel(id)?)));
        let tunnels: Vec<(&String, StoredTunnel)> = tunnels.collect::<Result<_>>()?;
        let mut changes = Changes::default();
        for (id, tunnel) in &tunnels {
            let change = match state.listed.get(*id) {
                Some(old) if *old == new[*id] => continue,
                Some(_) => Change::Changed,
                None => Change::Added,
            };
            match change {
                Change::Changed => changes.changed += 1,
                _ => changes.added += 1,
            }
            self.put(tunnel)?;
            self.tell_of(id, change);
        }
        for id in state.listed.keys().filter(|id| !new.contains_key(*id)) {
            self.take_away(&names::id(id)?);
            self.tell_of(id, Change::Removed);
            changes.removed += 1;
        }
        drop(tunnels);
        state.listed = new;
        Ok(changes)
    }

    /// The beginning of the URLs that are handed out.
    pub fn url(&self) -> &PublicUrl {
        &self.url
    }

    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// Makes a tunnel. `id` may be left out; `expire` is in seconds.
    ///
    /// # Errors
    /// The id is not a valid one, or taken; there is no store, or it cannot be reached.
    pub fn add(
        &self,
        id: Option<&str>,
        expire: Option<u64>,
        device: Option<Device>,
    ) -> Result<Issued> {
        let id = match id {
            Some(id) => names::id(id)?,
            None => names::id(&names::new_id())?,
        };
        let exists = || Error::Conflict(format!("a tunnel with the id {:?} exists", id.as_str()));
        let mut store = lock(&self.store);
        let store = self.writable(&mut store)?;
        if self.state().listed.contains_key(id.as_str()) {
            return Err(exists());
        }
        let (device_token, access_token) = (self.new_digest()?, self.new_digest()?);
        let expires = expire.map(from_now);
        let tunnel =
            StoredTunnel::new(id.clone(), device_token.1, access_token.1).with_expires(expires);
        let created = of_millis(to_millis(SystemTime::now()));
        let one = Stored { tunnel, created, rotated: None, device };
        if !store.add(&one)? {
            return Err(exists());
        }
        self.written(store, id.as_str(), Some(one.clone()))?;
        let sent = self.tell(&one, || Ok(Notice::Connect(self.data(&one, &device_token.0)?)));
        let (device_token, access_token) = (Some(device_token.0), Some(access_token.0));
        Ok(Issued { id, device_token, access_token, expires, sent })
    }

    /// Replaces tokens, and the expiry if `expire` has one, in seconds from now.
    ///
    /// # Errors
    /// There is no such tunnel, it is one of the list, it has expired, or the store cannot be reached.
    pub fn rotate(&self, id: &str, sides: Sides, expire: Option<u64>) -> Result<Issued> {
        let mut store = lock(&self.store);
        let store = self.changeable(&mut store, id)?;
        let mut tokens = (None, None);
        let changed = store.change(id, &mut |one| {
            let tunnel = &mut one.tunnel;
            if let Some(seconds) = expire {
                tunnel.expires = Some(from_now(seconds));
            } else if tunnel.expires.is_some_and(|at| at <= SystemTime::now()) {
                let why = format!("the tunnel {id:?} has expired; give expire to renew it, on the command line --expire TIME");
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
            let device = replace(&mut tunnel.device_token, sides != Sides::Access)?;
            let access = replace(&mut tunnel.access_token, sides != Sides::Device)?;
            tokens = (device, access);
            one.rotated = Some(of_millis(to_millis(SystemTime::now())));
            Ok(())
        })?;
        let one = changed.ok_or_else(|| unknown(id))?;
        let (id, expires) = (one.tunnel.id.clone(), one.tunnel.expires);
        self.written(store, id.as_str(), Some(one.clone()))?;
        let (device_token, access_token) = tokens;
        let sent = device_token
            .as_ref()
            .and_then(|token| self.tell(&one, || Ok(Notice::Update(self.data(&one, token)?))));
        Ok(Issued { id, device_token, access_token, expires, sent })
    }

    /// Removes a tunnel, and ends its connections.
    ///
    /// # Errors
    /// There is no such tunnel, it is one of the list, or the store cannot be reached.
    pub fn remove(&self, id: &str) -> Result<()> {
        let mut store = lock(&self.store);
        let store = self.changeable(&mut store, id)?;
        let one = match &self.platform {
            Some(_) => store.find(id)?,
            None => None,
        };
        if !store.remove(id)? {
            return Err(unknown(id));
        }
        self.written(store, id, None)?;
        if let Some(one) = one {
            self.tell(&one, || Ok(Notice::Close("the tunnel was removed".to_owned())));
        }
        Ok(())
    }

    /// Whether devices can be told of their tunnels.
    pub fn tells_devices(&self) -> bool {
        self.platform.is_some()
    }

    /// Whether the broker has the message to the device, after a short wait. `None`: there is none, because
    /// the tunnel has no device, or there is no broker.
    pub fn is_notified(&self, issued: &Issued) -> Option<bool> {
        let (platform, sent) = (self.platform.as_ref()?, issued.sent.as_ref()?);
        Some(platform.is_delivered(sent, NOTIFY))
    }

    /// Sends a message to a tunnel's device, if there is one. The store is locked meanwhile, so that
    /// messages have the order of the changes.
    fn tell(&self, one: &Stored, notice: impl FnOnce() -> Result<Notice>) -> Option<Sent> {
        let (platform, device) = (self.platform.as_ref()?, one.device.as_ref()?);
        match notice() {
            Ok(notice) => Some(platform.send(device, &one.tunnel.id, &notice)),
            Err(e) => {
                log::warn!("notify: {e}");
                None
            }
        }
    }

    /// What a device needs to connect.
    fn data(&self, one: &Stored, token: &str) -> Result<ConnectionData> {
        let (is_secure, host, port) = self.url.parts()?;
        let path = format!("/tunnel/{}/dest", one.tunnel.id);
        let data = ConnectionData::new(is_secure, host, port, &path, token);
        Ok(data.with_expires(one.tunnel.expires))
    }

    /// A tunnel.
    ///
    /// # Errors
    /// There is none with this id.
    pub fn find(&self, id: &str) -> Result<Seen> {
        let state = self.state();
        let name = names::id(id).map_err(|_| unknown(id))?;
        let activity = self.gateway.activity(&name).ok_or_else(|| unknown(id))?;
        Ok(Seen { activity, of_store: state.stored.get(id).map(Times::of) })
    }

    /// All tunnels, in the order of their ids.
    pub fn all(&self) -> Vec<Seen> {
        let state = self.state();
        let seen = |activity: Activity| {
            let of_store = state.stored.get(activity.id.as_str()).map(Times::of);
            (activity.id.as_str().to_owned(), Seen { activity, of_store })
        };
        let all: BTreeMap<_, _> = self.gateway.activities().into_iter().map(seen).collect();
        all.into_values().collect()
    }

    /// What is known of the store.
    pub fn health(&self) -> Health {
        match &self.state().lost {
            _ if !self.has_store => Health::NoStore,
            None => Health::Good,
            Some(lost) if lost.is_over => Health::Over,
            Some(_) => Health::Lost,
        }
    }

    /// Takes over the tunnels that others have changed.
    pub(crate) fn refresh(&self, ids: &[String]) -> Result<()> {
        let mut store = lock(&self.store);
        let Some(store) = store.as_mut() else { return Ok(()) };
        for id in ids {
            let now = store.find(id)?;
            self.take_over(&mut self.state(), id, now)?;
        }
        match store.is_connected() {
            true => Ok(()),
            false => Err(Error::Store("the connection to the store was lost".into())),
        }
    }

    /// Compares everything with the store.
    pub(crate) fn compare(&self) -> Result<()> {
        let mut store = lock(&self.store);
        store.as_mut().map_or(Ok(()), |store| self.compare_with(store))
    }

    /// Goes on with a new connection to the store.
    pub(crate) fn renew(&self, connection: Connection) -> Result<()> {
        let mut store = lock(&self.store);
        let Some(store) = store.as_mut() else { return Ok(()) };
        store.renew(connection);
        self.compare_with(store)
    }

    fn compare_with(&self, store: &mut Store) -> Result<()> {
        let all = store.all()?;
        let mut state = self.state();
        let there: HashSet<&str> = all.iter().map(|one| one.tunnel.id.as_str()).collect();
        let gone = state.stored.keys().filter(|id| !there.contains(id.as_str()));
        for id in gone.cloned().collect::<Vec<_>>() {
            self.take_over(&mut state, &id, None)?;
        }
        for one in all {
            let id = one.tunnel.id.as_str().to_owned();
            self.take_over(&mut state, &id, Some(one))?;
        }
        if let Some(lost) = state.lost.take() {
            let seconds = lost.since.elapsed().as_secs_f64();
            log::info!("the store is there again, after {seconds:.1} s");
        }
        Ok(())
    }

    /// The store cannot be reached.
    pub(crate) fn store_is_lost(&self, why: &str) {
        let mut state = self.state();
        match &mut state.lost {
            Some(lost) if lost.why == why => log::debug!("the store is still lost: {why}"),
            Some(lost) => {
                log::warn!("the store is still lost: {why}");
                lost.why = why.to_owned();
            }
            None => {
                let grace = humantime::format_duration(self.store_grace);
                log::warn!(
                    "{why}; open connections go on, known tokens are valid for {grace}, and no tunnel \
                     can be changed until the store is there again"
                );
                let why = why.to_owned();
                state.lost = Some(Lost { since: Instant::now(), why, is_over: false });
            }
        }
    }

    /// If the store has been lost for too long, its tokens open nothing from now on.
    pub(crate) fn end_grace(&self) {
        let mut state = self.state();
        let State { stored, lost: Some(lost), .. } = &mut *state else { return };
        if lost.is_over || lost.since.elapsed() < self.store_grace {
            return;
        }
        lost.is_over = true;
        let grace = humantime::format_duration(self.store_grace);
        log::error!(
            "the store has been lost for {grace}: its tunnels take no new connections until it is there \
             again; open connections go on"
        );
        for one in stored.values() {
            let _ = self.gateway.suspend_tunnel(&one.tunnel.id);
        }
    }

    /// What all tunnels do, in the order of their ids, without a look at the store.
    pub fn activities(&self) -> Vec<Activity> {
        let mut all = self.gateway.activities();
        all.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The store, for a change.
    fn writable<'a>(&self, store: &'a mut Option<Store>) -> Result<&'a mut Store> {
        if let Some(lost) = &self.state().lost {
            let why = &lost.why;
            return Err(Error::Store(format!(
                "the store of the tunnels cannot be reached, so nothing was changed; try again later \
                 ({why})"
            )));
        }
        store.as_mut().ok_or_else(|| {
            Error::Conflict(
                "the gateway keeps no tunnels of its own; start it with --store FILE".into(),
            )
        })
    }

    /// The store, for a change of a tunnel that is not one of the list.
    fn changeable<'a>(&self, store: &'a mut Option<Store>, id: &str) -> Result<&'a mut Store> {
        if self.state().listed.contains_key(id) {
            return Err(Error::Conflict(format!(
                "the tunnel {id:?} is in the gateway's list, which is a file; change it there"
            )));
        }
        match self.has_store {
            true => self.writable(store),
            false => Err(unknown(id)),
        }
    }

    /// A change is in the store, and takes effect. Another gateway may have made the next one already:
    /// what counts is what is there now.
    fn written(&self, store: &mut Store, id: &str, own: Option<Stored>) -> Result<()> {
        let now = match store.server() {
            // If it cannot be read, the next comparison sees to it.
            Some(_) => store.find(id).unwrap_or(own),
            None => own,
        };
        self.take_over(&mut self.state(), id, now)
    }

    /// Serves a tunnel of the store as it is now. `None`: it was removed.
    fn take_over(&self, state: &mut State, id: &str, now: Option<Stored>) -> Result<()> {
        let is_suspended = state.lost.as_ref().is_some_and(|lost| lost.is_over);
        let before = state.stored.get(id);
        if before == now.as_ref() && !is_suspended {
            return Ok(());
        }
        // A new tunnel with an old id is not the old one with new tokens.
        let is_other = match (before, &now) {
            (Some(before), Some(now)) => before.created != now.created,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if is_other {
            self.take_away(&names::id(id)?);
            state.stored.remove(id);
            self.tell_of(id, Change::Removed);
        }
        let Some(now) = now else { return Ok(()) };
        if state.listed.contains_key(id) {
            log::warn!(
                "another gateway has added the tunnel {id:?}, which is in the list of this one, too; \
                 the list counts here"
            );
            return Ok(());
        }
        self.put(&now.tunnel)?;
        match state.stored.get(id) {
            None => self.tell_of(id, Change::Added),
            Some(before) if *before != now => self.tell_of(id, Change::Changed),
            Some(_) => {}
        }
        state.stored.insert(id.to_owned(), now);
        Ok(())
    }

    fn tell_of(&self, id: &str, change: Change) {
        if let Some(Observer(observe)) = &self.observer {
            observe(id, change);
        }
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
    fn of(one: &Stored) -> Self {
        Times { created: one.created, rotated: one.rotated, device: one.device.clone() }
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
fn not_in(stored: &HashMap<String, Stored>, listed: &HashMap<String, Listed>) -> Result<()> {
    let mut both: Vec<&String> = listed.keys().filter(|id| stored.contains_key(*id)).collect();
    both.sort();
    match both.first() {
        Some(id) => Err(Error::Conflict(format!(
            "the tunnel {id:?} is in the store, too; remove it there (aiot-tunnel tunnel remove), or \
             give it another id"
        ))),
        None => Ok(()),
    }
}

fn unknown(id: &str) -> Error {
    Error::Unknown(format!("there is no tunnel {id:?}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
