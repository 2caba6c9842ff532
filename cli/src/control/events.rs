//! Events on their way from the agent's threads to the server's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aiot_tunnel::{Event, Notice};
use rustix::event::{eventfd, EventfdFlags};

use super::protocol::{self, EventName};
use crate::Result;

/// Most bytes of events that wait for the server, or for one client.
pub(super) const MAX_WAITING: usize = 256 * 1024;

/// Where the agent puts its events. Does nothing but count while no client wants them: an event
/// must not wake a thread for nobody. Cheap to clone. Nothing here blocks.
#[derive(Clone)]
pub(crate) struct Events(Arc<Shared>);

struct Shared {
    /// Wakes the server.
    wake: OwnedFd,
    queue: Mutex<Queue>,
    counts: [AtomicU64; EventName::ALL.len()],
}

#[derive(Default)]
struct Queue {
    /// Clients that want events.
    subscribers: usize,
    /// Lines for all of them.
    lines: Vec<u8>,
    /// There was no room for a line.
    is_cut: bool,
    /// Answers that took their time, each for the client with this number.
    answers: Vec<(u64, Vec<u8>)>,
    stop: bool,
}

/// What the server finds when it is woken.
#[derive(Default)]
pub(super) struct Woken {
    pub(super) lines: Vec<u8>,
    /// Lines are missing, so whoever wants all events must be told.
    pub(super) is_cut: bool,
    pub(super) answers: Vec<(u64, Vec<u8>)>,
    pub(super) stop: bool,
}

impl Events {
    pub(crate) fn new() -> Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| format!("make an event descriptor: {e}"))?;
        Ok(Events(Arc::new(Shared { wake, queue: Mutex::default(), counts: Default::default() })))
    }

    /// Passes on an event of the library.
    pub(crate) fn event(&self, event: &Event) {
        if let Some(event) = protocol::Event::of_event(event) {
            self.push(&event);
        }
    }

    /// Passes on a notice of the library.
    pub(crate) fn notice(&self, notice: &Notice) {
        if notice.dropped > 0 {
            self.cut();
        }
        if let Some(event) = protocol::Event::of_notice(notice) {
            self.push(&event);
        }
    }

    fn push(&self, event: &protocol::Event) {
        self.0.counts[event.event as usize].fetch_add(1, Ordering::Relaxed);
        let mut queue = self.lock();
        if queue.subscribers == 0 || queue.is_cut {
            return;
        }
        let line = protocol::line(event);
        match queue.lines.len() + line.len() > MAX_WAITING {
            true => queue.is_cut = true,
            false => queue.lines.extend_from_slice(&line),
        }
        drop(queue);
        self.wake();
    }

    /// Events are missing.
    fn cut(&self) {
        let mut queue = self.lock();
        if queue.subscribers == 0 {
            return;
        }
        queue.is_cut = true;
        drop(queue);
        self.wake();
    }

    /// How many there were of each kind since the start.
    pub(super) fn counts(&self) -> impl Iterator<Item = (EventName, u64)> + '_ {
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        EventName::ALL.into_iter().zip(counts)
    }

    pub(super) fn add_subscriber(&self) {
        self.lock().subscribers += 1;
    }

    pub(super) fn set_subscribers(&self, number: usize) {
        self.lock().subscribers = number;
    }

    /// Passes on the answer for the client with this number.
    pub(super) fn answer(&self, client: u64, line: Vec<u8>) {
        self.lock().answers.push((client, line));
        self.wake();
    }

    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.wake();
    }

    /// Takes what waits. The server calls it when [`waker`](Self::waker) is readable.
    pub(super) fn take(&self) -> Woken {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.0.wake, &mut counter);
        let mut queue = self.lock();
        Woken {
            lines: std::mem::take(&mut queue.lines),
            is_cut: std::mem::take(&mut queue.is_cut),
            answers: std::mem::take(&mut queue.answers),
            stop: queue.stop,
        }
    }

    pub(super) fn waker(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    /// A counter that is full wakes as well.
    fn wake(&self) {
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
