//! Writes log lines about a tunnel of the device. The texts of the Link SDK are kept.

use std::sync::Arc;

use aiot_tunnel_proto::observer::{Event, Observer};

use crate::config::{ConnectParams, TunnelId};
use crate::logging::{debug, info, warn, Code};
use crate::net::open::{Failure, Progress};
use crate::status::TunnelRecord;

/// Logs a step of an attempt.
pub(super) fn log_progress(params: &ConnectParams, step: Progress) {
    let (host, port) = (params.host(), params.port());
    match step {
        Progress::Connecting => {
            info!(Code::Tunnel, "start to create cloud channel");
            info!(Code::Tunnel, "connect remote service host {host}, port {port}");
        }
        Progress::Connected { fd, local_port } => {
            info!(Code::Adapter, "success to establish tcp, fd={fd}");
            info!(Code::Adapter, "local port: {local_port}");
        }
        Progress::ThroughProxy(proxy) => {
            info!(Code::Adapter, "the proxy {proxy} has connected to {host}, port {port}");
        }
        Progress::Securing => info!(
            Code::Adapter,
            "establish tls connection with server(host='{host}', port=[{port}])"
        ),
        Progress::Secured => info!(Code::Adapter, "success to establish tls connection"),
        Progress::NoSubprotocol => {
            warn!(Code::Tunnel, "the server names no subprotocol; using the connection");
        }
        Progress::Detour(text) => warn!(Code::Tunnel, "{text}"),
        Progress::Opened => info!(Code::Channel, "open_cloud_proxy_channel success"),
    }
}

/// Logs why an attempt failed. Returns the code of the line.
pub(super) fn log_failure(id: &TunnelId, failure: &Failure) -> Code {
    let code = match failure {
        Failure::Lookup(_) => Code::Dns,
        Failure::Connect(_) | Failure::Proxy(_) => Code::Channel,
        Failure::TimedOut(_) => Code::TunnelTimeout,
        Failure::Tls(_) => Code::Handshake,
        Failure::Status(..) | Failure::Answer(_) => Code::TunnelFailed,
        Failure::Broken(_) => Code::TunnelReset,
    };
    warn!(code, "tunnel {id}: {failure}");
    code
}

/// Logs that another device took the place of this one. Each of the two would go on to replace the
/// other, so it says what is to be done.
pub(super) fn log_replaced(id: &TunnelId, address: &str) {
    warn!(
        Code::TunnelFailed,
        "tunnel {id}: another device uses the same token and has taken this one's place, from \
         {address}; both wait longer and longer before they connect again; give each device a tunnel \
         of its own"
    );
}

/// Writes the log lines of one tunnel, and records its open sessions.
pub(super) struct RelayObserver {
    pub(super) id: TunnelId,
    pub(super) record: Arc<TunnelRecord>,
}

impl Observer for RelayObserver {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Requested { id, service_type } => {
                info!(Code::Tunnel, "new session session_id:{id}, type {service_type}");
            }
            Event::Opened(record) => {
                self.record.session_opened(record.clone());
            }
            Event::Closed { id } => self.record.session_closed(id),
            Event::Released { id } => info!(Code::Tunnel, "release the session: {id}"),
            Event::Refused { id, reason } => {
                warn!(Code::TunnelFailed, "session {id} is refused: {reason}");
            }
            Event::Cut { id, reason } => warn!(Code::TunnelFailed, "session {id}: {reason}"),
            Event::Dropped(what) => warn!(Code::TunnelFailed, "{what}"),
            Event::Incomplete => warn!(
                Code::TunnelFailed,
                "a session_create without frame_id or session_id is dropped"
            ),
            Event::UnknownSession { id } => {
                warn!(Code::TunnelFailed, "data for unknown session {id} is dropped");
            }
            Event::LeftOut(count) => {
                warn!(Code::TunnelFailed, "{count} more such messages were dropped");
            }
            Event::Pinged => debug!(Code::Tunnel, "websocket {} ping", self.id),
            Event::Pong => debug!(Code::Tunnel, "websocket {} pong", self.id),
            _ => {}
        }
    }
}
