//! The settings that all workers of a manager share.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::{Limits, Services};
use crate::net::tls::TlsContext;

/// Options that the workers share. They are read when a connection is opened.
pub(crate) struct Options {
    pub(crate) limits: Limits,
    pub(super) services: Mutex<Arc<Services>>,
    pub(super) tls: Mutex<TlsContext>,
}

impl Options {
    pub(crate) fn services(&self) -> Arc<Services> {
        self.services.lock().clone()
    }

    pub(crate) fn tls(&self) -> TlsContext {
        self.tls.lock().clone()
    }
}
