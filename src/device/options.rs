//! The settings that all workers of a manager share.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::{Limits, Network, Services};
use crate::net::tls::TlsContext;

/// Options that the workers share. Limits, TLS and the network are read when a connection is opened, services
/// when a session is.
pub(crate) struct Options {
    pub(super) limits: Mutex<Limits>,
    pub(super) services: Arc<Mutex<Services>>,
    pub(super) tls: Mutex<TlsContext>,
    pub(super) network: Mutex<Arc<Network>>,
}

impl Options {
    pub(crate) fn limits(&self) -> Limits {
        self.limits.lock().clone()
    }

    pub(crate) fn services(&self) -> Arc<Mutex<Services>> {
        self.services.clone()
    }

    pub(crate) fn tls(&self) -> TlsContext {
        self.tls.lock().clone()
    }

    pub(crate) fn network(&self) -> Arc<Network> {
        self.network.lock().clone()
    }
}
