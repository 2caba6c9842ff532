//! Keeps threads out of OpenSSL while the process exits.
//!
//! If somebody else in the process has initialised OpenSSL before this library, OpenSSL frees its own
//! data when `exit` is called, while workers may still be inside it. So each use of OpenSSL passes a
//! gate. A handler of `exit`, which runs before OpenSSL's because it was registered after it, closes the
//! gate and waits until nobody is inside. After that, a use of OpenSSL fails as a lost connection does,
//! and what OpenSSL has allocated is left to the end of the process. Nothing blocks: a program that
//! stops its instances in an exit handler of its own still can.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Once;
use std::time::{Duration, Instant};
use std::{mem, thread};

use crate::sys;

/// Set in a counter when the gate is closed.
const CLOSED: usize = 1 << (usize::BITS - 1);
/// How long the exit waits for threads that are inside. The longest stay is one step of a handshake.
const PATIENCE: Duration = Duration::from_secs(2);
const SHARDS: usize = 8;

/// The number of threads inside. A thread counts in one shard, so that workers on different processors
/// do not share a cache line.
#[repr(align(64))]
struct Shard(AtomicUsize);

static GATE: [Shard; SHARDS] = [const { Shard(AtomicUsize::new(0)) }; SHARDS];

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

fn shard() -> &'static AtomicUsize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // A thread that is ending may have no thread-local values any more.
    let index = SHARD.try_with(|shard| match shard.get() {
        Some(index) => index,
        None => {
            let index = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
            shard.set(Some(index));
            index
        }
    });
    &GATE[index.unwrap_or(0)].0
}

/// A thread's stay inside OpenSSL.
pub(crate) struct Inside(&'static AtomicUsize);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Enters. `None` if the process exits.
pub(crate) fn enter() -> Option<Inside> {
    let shard = shard();
    let inside = Inside(shard);
    let before = shard.fetch_add(1, Ordering::AcqRel);
    (before & CLOSED == 0).then_some(inside)
}

/// The error of a use of OpenSSL while the process exits.
pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the process exits")
}

/// Registers the exit handler, once. Call it after OpenSSL was initialised.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| sys::at_exit(close));
}

extern "C" fn close() {
    for Shard(count) in &GATE {
        count.fetch_or(CLOSED, Ordering::AcqRel);
    }
    let deadline = Instant::now() + PATIENCE;
    let busy = || GATE.iter().any(|Shard(count)| count.load(Ordering::Acquire) & !CLOSED != 0);
    while busy() && Instant::now() < deadline {
        thread::yield_now();
    }
}

/// A value of OpenSSL's that is freed only while the gate is open.
pub(crate) struct Gated<T>(Option<T>);

impl<T> Gated<T> {
    pub(crate) fn new(value: T) -> Self {
        Gated(Some(value))
    }

    pub(crate) fn get(&self) -> &T {
        self.0.as_ref().expect("taken only when it is consumed")
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("taken only when it is consumed")
    }

    pub(crate) fn into_inner(mut self) -> T {
        self.0.take().expect("taken only here")
    }
}

impl<T> Drop for Gated<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        match enter() {
            Some(_inside) => drop(value),
            None => mem::forget(value),
        }
    }
}
