//! connect -> relay -> retry: the life of one tunnel.
use std::io;
use std::sync::Arc;

use crate::config::{ConnectParams, TunnelId};
use crate::manager::Options;

/// What the start thread wants of a worker.
pub(crate) enum Directive {
    Connect { params: ConnectParams, epoch: u64 },
    Stop,
}

pub(crate) struct Report {
    pub(crate) id: TunnelId,
    pub(crate) worker: u64,
    pub(crate) epoch: u64,
    pub(crate) kind: ReportKind,
}

pub(crate) enum ReportKind {
    Connected,
    Lost,
    Expired,
}

pub(crate) struct Worker;

impl Worker {
    pub(crate) fn serial(&self) -> u64 {
        0
    }
    pub(crate) fn direct(&self, _directive: Directive) {}
    pub(crate) fn join_if_finished(&mut self) -> bool {
        true
    }
    pub(crate) fn join(self) {}
}

pub(crate) fn spawn(
    _id: TunnelId,
    _options: Arc<Options>,
    _first: Directive,
    _report: impl Fn(Report) + Send + 'static,
) -> io::Result<Worker> {
    Ok(Worker)
}
