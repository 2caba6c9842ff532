//! A manager of the library, running for a test. No network end lives here.

use std::sync::{mpsc, Mutex};
use std::thread::{self, JoinHandle};

use aiot_tunnel::{Event, EventKind, Handle, Manager, ManagerBuilder, Security, TunnelId};

use crate::logs;
use crate::wait::TIMEOUT;

/// A builder for a device without TLS.
pub fn plain() -> ManagerBuilder {
    Manager::builder().security(Security::Plain)
}

pub fn id(text: &str) -> TunnelId {
    TunnelId::new(text).unwrap()
}

/// A manager on a thread of its own, with its events in a channel. Dropping it stops and joins it.
pub struct Running {
    pub handle: Handle,
    pub events: mpsc::Receiver<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(builder: ManagerBuilder) -> Self {
        logs::keep();
        let (sender, events) = mpsc::channel();
        let sender = Mutex::new(sender);
        let manager = builder
            .on_event(move |_, event| drop(sender.lock().unwrap().send(event.clone())))
            .build()
            .unwrap();
        let handle = manager.handle();
        let thread = thread::spawn(move || manager.run().unwrap());
        Running { handle, events, thread: Some(thread) }
    }

    /// Waits for the next event, which must be this one.
    pub fn expect(&self, kind: EventKind, tunnel: &str) {
        let event = self.events.recv_timeout(TIMEOUT).expect("an event in time");
        assert_eq!((event.kind, event.tunnel_id.as_str()), (kind, tunnel));
    }

    pub fn stop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
