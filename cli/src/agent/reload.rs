//! Takes over changed settings while the tunnels stay open.

use aiot_tunnel::{Handle, TunnelId};

use super::config::{Config, Tunnel};
use super::Services;
use crate::cli;
use crate::settings::Settings;

/// Settings that are used once, at the start.
const AT_START: [&str; 9] = [
    "control-socket",
    "control-socket-mode",
    "control-socket-owner",
    "log-format",
    "log-level",
    "on-event",
    "queue-key",
    "queue-mode",
    "queue-owner",
];

pub(super) struct Reloader {
    handle: Handle,
    settings: Settings,
    /// The tunnels of the settings. Others came as commands, and are left alone.
    tunnels: Vec<Tunnel>,
    services: Services,
}

impl Reloader {
    pub(super) fn new(
        handle: Handle,
        settings: Settings,
        config: Config,
        services: Services,
    ) -> Self {
        Reloader { handle, settings, tunnels: config.tunnels, services }
    }

    /// Reads the settings and their files again. With an error, everything stays as it is.
    pub(super) fn reload(&mut self) -> Result<(), String> {
        let loaded = cli::agent_again().and_then(|(args, settings)| {
            Config::load(&args, &settings).map(|config| (settings, config))
        });
        let (settings, config) = loaded.map_err(|e| {
            log::warn!("reload: {e}; the settings stay as they were");
            e.to_string()
        })?;
        let later: Vec<&str> = AT_START
            .into_iter()
            .filter(|option| self.settings.differs(&settings, option))
            .collect();
        if !later.is_empty() {
            log::warn!("reload: {}: changes after a restart of the agent", later.join(", "));
        }
        self.settings = settings;
        self.apply(config);
        log::info!("reload: the settings are in force; open tunnels stay as they are");
        Ok(())
    }

    /// Reads the file of a token that was refused: it may hold a new one.
    pub(super) fn token_refused(&mut self, id: &TunnelId) {
        let Some(tunnel) = self.tunnels.iter_mut().find(|tunnel| tunnel.id == *id) else { return };
        match tunnel.refresh() {
            Ok(false) => {}
            Ok(true) => {
                log::info!("tunnel {id}: its file has a new token");
                log_refused(id, self.handle.update(id, tunnel.params.clone()));
            }
            Err(e) => log::warn!("tunnel {id}: {e}; its last token is tried again"),
        }
    }

    fn apply(&mut self, config: Config) {
        let handle = &self.handle;
        handle.set_services(config.services.clone());
        *super::lock(&self.services) = config.services;
        handle.set_security(config.security);
        handle.set_network(config.network);
        if let Err(e) = handle.set_limits(config.limits) {
            log::warn!("reload: {e}");
        }
        let find = |tunnels: &[Tunnel], id: &TunnelId| {
            tunnels.iter().find(|tunnel| tunnel.id == *id).map(|tunnel| tunnel.params.clone())
        };
        for Tunnel { id, .. } in &self.tunnels {
            if find(&config.tunnels, id).is_none() {
                log_refused(id, handle.delete(id));
            }
        }
        for Tunnel { id, params, .. } in &config.tunnels {
            match find(&self.tunnels, id) {
                Some(old) if old == *params => {}
                // One that a command has added takes the data of the settings.
                _ => log_refused(id, handle.update(id, params.clone())),
            }
        }
        self.tunnels = config.tunnels;
    }
}

fn log_refused(id: &TunnelId, result: aiot_tunnel::Result<()>) {
    if let Err(e) = result {
        log::warn!("reload: tunnel {id}: {e}");
    }
}
