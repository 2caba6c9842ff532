//! A TLS connector from [`Security`].

use std::sync::Arc;

use native_tls::{Protocol, TlsConnector};
use parking_lot::Mutex;

use crate::config::Security;

/// A security setting and, once it is needed, the connector made from it. Shared by the
/// workers: the root certificates are parsed and kept once, not once a tunnel.
#[derive(Clone)]
pub(crate) struct TlsContext(Arc<Context>);

struct Context {
    security: Security,
    /// Held while it is made: native-tls parses all system roots, which takes a tenth of a
    /// second, and twenty workers that start together must not each do so.
    connector: Mutex<Option<TlsConnector>>,
}

impl TlsContext {
    pub(crate) fn new(security: Security) -> Self {
        TlsContext(Arc::new(Context { security, connector: Mutex::new(None) }))
    }

    /// The connector, `None` when plain text was asked for.
    pub(crate) fn connector(&self) -> Result<Option<TlsConnector>, native_tls::Error> {
        let Security::Tls(config) = &self.0.security else { return Ok(None) };
        let mut made = self.0.connector.lock();
        if let Some(connector) = &*made {
            return Ok(Some(connector.clone()));
        }
        let mut builder = TlsConnector::builder();
        builder.min_protocol_version(Some(Protocol::Tlsv12)).use_sni(config.sni);
        if let Some(roots) = &config.roots {
            builder.disable_built_in_roots(true);
            for root in roots {
                builder.add_root_certificate(root.clone());
            }
        }
        if let Some(identity) = &config.identity {
            builder.identity(identity.clone());
        }
        let connector = builder.build()?;
        *made = Some(connector.clone());
        Ok(Some(connector))
    }
}
