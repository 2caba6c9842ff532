//! Counts what the sessions of a client move.

use std::sync::Arc;

use aiot_tunnel_proto::session::SessionRecord;
use parking_lot::Mutex;

/// The bytes that a [`Client`](super::Client) has moved. Another thread may read it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    open: Vec<Arc<SessionRecord>>,
    /// Of the sessions that have ended.
    received: u64,
    sent: u64,
}

impl Traffic {
    /// Payload bytes from the device, of all sessions.
    #[must_use]
    pub fn received(&self) -> u64 {
        let records = self.0.lock();
        let open = records.open.iter().map(|record| record.counters().received());
        records.received + open.sum::<u64>()
    }

    /// Payload bytes to the device, of all sessions.
    #[must_use]
    pub fn sent(&self) -> u64 {
        let records = self.0.lock();
        let open = records.open.iter().map(|record| record.counters().sent());
        records.sent + open.sum::<u64>()
    }

    /// The number of open sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.0.lock().open.len()
    }

    pub(super) fn opened(&self, record: &Arc<SessionRecord>) {
        self.0.lock().open.push(record.clone());
    }

    pub(super) fn closed(&self, id: &str) {
        let mut records = self.0.lock();
        let Some(at) = records.open.iter().position(|record| record.id() == id) else { return };
        let record = records.open.swap_remove(at);
        records.end(&record);
    }

    /// A connection begins: no session of a former one is left.
    pub(super) fn begin(&self) {
        let mut records = self.0.lock();
        for record in std::mem::take(&mut records.open) {
            records.end(&record);
        }
    }
}

impl Records {
    fn end(&mut self, record: &SessionRecord) {
        self.received += record.counters().received();
        self.sent += record.counters().sent();
    }
}
