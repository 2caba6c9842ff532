//! The tunnels that a gateway serves, beyond what its command line says: a [store](Store) that outlives
//! restarts, the [registry](Registry) that keeps store, list and gateway the same, and an HTTP API to
//! change and watch it ([`api`], [`http`]).
//!
//! SQLite and HTTP live here so that the library stays free of both. Nothing here relays a byte of a
//! tunnel: the library's gateway does.

pub mod api;
mod error;
mod guard;
pub mod http;
mod key;
mod metrics;
mod names;
mod registry;
mod store;
mod sync;

pub use api::{Api, ApiKey, Door};
pub use error::{Error, Result};
pub use key::{new_token, SharedKey};
pub use metrics::{state_of, Page};
pub use names::{PublicUrl, MAX_EXPIRE};
pub use registry::{Change, Changes, Health, Issued, ListedTunnel, Observer, Options, Registry, Seen, Sides, Times};
pub use store::{RedisAddress, RedisOptions, Store};
