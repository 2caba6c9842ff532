//! Takes over changed settings while the gateway runs: the file of `--config` may have changed. Settings
//! that cannot be used leave everything as it was.

use std::sync::{Arc, PoisonError, RwLock};

use aiot_tunnel::gateway::Proxies;
use aiot_tunnel_registry::Registry;

use super::publish::Ports;
use super::{api_proxies, check_flags, limits, proxies};
use crate::settings::Settings;
use crate::{cli, output, Result};

/// Settings that take effect at once. The others are used once, at the start.
const LIVE: [&str; 12] = [
    "access-limit",
    "api-proxy-protocol",
    "connection-limit",
    "handshake-limit",
    "log-level",
    "proxy-protocol",
    "publish",
    "publish-limit",
    "publish-queue-timeout",
    "rate-limit",
    "session-limit",
    "trusted-proxy",
];

pub(super) struct Live {
    registry: Arc<Registry>,
    /// What the gateway was started with.
    started: Settings,
    /// What is in force, as far as it is live.
    current: Settings,
    ports: Ports,
    api_proxies: Arc<RwLock<Proxies>>,
}

impl Live {
    pub(super) fn new(
        registry: Arc<Registry>,
        settings: Settings,
        ports: Ports,
        api_proxies: Arc<RwLock<Proxies>>,
    ) -> Self {
        Live { registry, started: settings.clone(), current: settings, ports, api_proxies }
    }

    /// Reads the settings again.
    pub(super) fn reload(&mut self) {
        match self.take_over() {
            Ok(changed) if changed.is_empty() => log::info!("reload: no setting has changed"),
            Ok(changed) => {
                log::info!("reload: changed: {}; open sessions go on", changed.join(", "))
            }
            Err(e) => log::warn!("reload: {e}; all settings stay as they were"),
        }
    }

    /// Returns the keys of the settings that have changed.
    fn take_over(&mut self) -> Result<Vec<String>> {
        let (args, settings) = cli::gateway_again()?;
        check_flags(&args, &settings)?;
        // What can fail comes first.
        let plan = self.ports.plan(&args, &settings)?;
        let key = |option: &str| option.replace('-', "_");
        let later = self.started.changes(&settings).filter(|option| !LIVE.contains(option));
        let later: Vec<String> = later.map(key).collect();
        let changed = self.current.changes(&settings).filter(|option| LIVE.contains(option));
        let changed: Vec<String> = changed.map(key).collect();
        output::set_log_level(args.log_level);
        if !later.is_empty() {
            log::warn!("reload: {}: a change needs a restart of the gateway", later.join(", "));
        }
        let gateway = self.registry.gateway();
        gateway.set_limits(&limits(&args));
        gateway.set_proxies(proxies(&args));
        *self.api_proxies.write().unwrap_or_else(PoisonError::into_inner) = api_proxies(&args);
        self.ports.carry_out(plan, &args, gateway);
        self.current = settings;
        Ok(changed)
    }
}
