//! What the start thread leaves for a worker, and what wakes the worker for it.

use std::io;

use parking_lot::Mutex;

use super::Directive;
use crate::sys::Waker;

/// A mailbox for one directive. A newer one replaces an older one that was not taken yet, but
/// nothing replaces a stop.
pub(crate) struct Control {
    directive: Mutex<Option<Directive>>,
    pub(crate) waker: Waker,
}

impl Control {
    pub(crate) fn new(first: Directive) -> io::Result<Self> {
        Ok(Control { directive: Mutex::new(Some(first)), waker: Waker::new()? })
    }

    pub(crate) fn direct(&self, directive: Directive) {
        let mut slot = self.directive.lock();
        if !matches!(*slot, Some(Directive::Stop)) {
            *slot = Some(directive);
        }
        drop(slot);
        self.waker.wake();
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    pub(crate) fn waits(&self) -> bool {
        self.directive.lock().is_some()
    }

    pub(crate) fn take(&self) -> Option<Directive> {
        self.directive.lock().take()
    }
}
