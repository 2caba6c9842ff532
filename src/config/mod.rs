//! Tunnel ids, connection data, services, security, limits and the way out. A value is checked when it is
//! made, so no other module checks it again. Nothing here does I/O.

mod ids;
mod limits;
mod network;
mod params;
mod proxy;
mod service;
mod text;
mod tls;
mod token;

pub use ids::{Port, TunnelId};
pub use limits::Limits;
#[cfg(any(feature = "access", feature = "gateway"))]
pub(crate) use limits::FIRST_WINDOW;
pub use network::{AddressFamily, Network};
pub use params::ConnectParams;
pub use proxy::Proxy;
pub(crate) use proxy::{Credentials, ProxyProtocol};
pub(crate) use service::Services;
pub use service::{Service, Target};
#[cfg(feature = "gateway")]
pub(crate) use tls::validity_problem;
pub(crate) use tls::ClientIdentity;
pub use tls::{Clock, Security, TlsConfig};
pub use token::Token;
