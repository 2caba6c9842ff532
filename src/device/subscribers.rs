//! Those who get a copy of every event and every notice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};

use parking_lot::Mutex;

use crate::event::Event;
use crate::status::Notice;

/// Most observations that wait for one subscriber. A further one is dropped and counted. The channel
/// has its memory from the start.
const MAX_WAITING: usize = 256;

/// What a subscriber receives; see [`Handle::subscribe`](crate::Handle::subscribe).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Observation {
    /// What the [`EventHandler`](crate::EventHandler) gets.
    Event(Event),
    /// What the [`NoticeHandler`](crate::NoticeHandler) gets.
    Notice(Notice),
    /// So many observations were dropped before the next one, because this subscriber was slower than
    /// the tunnels.
    Missed(u32),
}

/// The subscribers of one manager.
#[derive(Default)]
pub(super) struct Subscribers {
    list: Mutex<Vec<Subscriber>>,
    /// The length of the list, for those who only want to know whether there is anybody.
    count: AtomicUsize,
}

struct Subscriber {
    sender: SyncSender<Observation>,
    /// Dropped since the last observation that was sent.
    missed: u32,
}

impl Subscribers {
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Adds a subscriber, unless `has_ended` says that there is nothing to come.
    pub(super) fn add(&self, has_ended: impl FnOnce() -> bool) -> Receiver<Observation> {
        let (sender, receiver) = mpsc::sync_channel(MAX_WAITING);
        let mut list = self.list.lock();
        if !has_ended() {
            list.push(Subscriber { sender, missed: 0 });
            self.count.store(list.len(), Ordering::Release);
        }
        receiver
    }

    /// Sends a copy to each of them. Forgets those who have dropped their receivers. Does not block.
    pub(super) fn send(&self, observation: &Observation) {
        if self.is_empty() {
            return;
        }
        let mut list = self.list.lock();
        list.retain_mut(|subscriber| subscriber.send(observation.clone()));
        self.count.store(list.len(), Ordering::Release);
    }

    /// Nothing more comes: each receiver ends behind what waits in it.
    pub(super) fn end(&self) {
        let mut list = self.list.lock();
        list.clear();
        self.count.store(0, Ordering::Release);
    }
}

impl Subscriber {
    /// Returns whether there is still a receiver.
    fn send(&mut self, observation: Observation) -> bool {
        let sent = match self.missed {
            0 => Ok(()),
            missed => self.sender.try_send(Observation::Missed(missed)),
        };
        let sent = sent.and_then(|()| {
            self.missed = 0;
            self.sender.try_send(observation)
        });
        match sent {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed = self.missed.saturating_add(1);
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TunnelId;
    use crate::event::EventKind;

    fn event(name: &str) -> Observation {
        Observation::Event(Event::new(EventKind::Connect, TunnelId::new(name).unwrap()))
    }

    #[test]
    fn a_slow_subscriber_is_told_how_much_it_has_missed_and_delays_nobody() {
        let subscribers = Subscribers::default();
        let (slow, quick) = (subscribers.add(|| false), subscribers.add(|| false));
        for n in 0..MAX_WAITING + 10 {
            subscribers.send(&event(&n.to_string()));
            assert_eq!(quick.recv().unwrap(), event(&n.to_string()));
        }
        for n in 0..MAX_WAITING {
            assert_eq!(slow.recv().unwrap(), event(&n.to_string()));
        }
        subscribers.send(&event("later"));
        assert_eq!(slow.recv().unwrap(), Observation::Missed(10));
        assert_eq!(slow.recv().unwrap(), event("later"));
        drop(slow);
        subscribers.send(&event("last"));
        drop(quick);
        assert!(!subscribers.is_empty());
        subscribers.send(&event("for nobody"));
        assert!(subscribers.is_empty());
    }

    #[test]
    fn a_subscription_ends_behind_what_waits_in_it() {
        let subscribers = Subscribers::default();
        let receiver = subscribers.add(|| false);
        subscribers.send(&event("t"));
        subscribers.end();
        assert!(subscribers.is_empty());
        assert_eq!(receiver.into_iter().collect::<Vec<_>>(), [event("t")]);
        assert!(subscribers.add(|| true).recv().is_err());
    }
}
