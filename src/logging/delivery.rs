//! Brings the lines to the sink, which is the C caller's callback and may be slow.
//!
//! While a manager runs, a thread of its own calls the sink, and the lines wait for it in a queue of
//! limited size. So no worker waits for the sink. Lines for which there is no room are left out and
//! counted. The thread begins with the first line and ends before the last manager's run returns: a
//! program may unload the library then. While no manager runs, the caller's own thread calls the
//! sink.
//!
//! Callers expect the lines that lead to an event before the event. So the start thread calls
//! [`settle`] before each event.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{call_sink, line, Code, Line, HAS_SINK, INSIDE_SINK};
use crate::sys;

/// Most bytes of lines that wait for the sink.
const MAX_WAITING: usize = 128 * 1024;
/// How long to wait for the sink. Long enough for a busy machine: callers rely on the order of lines
/// and events.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many times as long the end waits for a sink that takes lines, but slowly.
const LAST_WAITS: u32 = 2;
/// How long the thread rests after a line of a group, before it waits to be woken. A worker that wakes
/// nobody has its answer out sooner.
const REST: Duration = Duration::from_millis(5);
/// Lines that follow each other within this time are a group.
const GROUP: Duration = Duration::from_millis(100);
/// Stack of the thread, in bytes. The C caller's callback runs on it.
const STACK: usize = 256 * 1024;

static QUEUE: Mutex<Queue> = Mutex::new(Queue::new());
/// Signalled after every change of [`QUEUE`] that somebody may wait for.
static CHANGED: Condvar = Condvar::new();

struct Queue {
    /// The managers that run.
    managers: usize,
    thread: Option<JoinHandle<()>>,
    /// The number of the present thread. A thread with another number ends.
    generation: u64,
    lines: VecDeque<Line>,
    /// The bytes of the waiting lines.
    bytes: usize,
    /// Lines that were left out since the last report.
    left_out: u64,
    /// How many lines were queued, and how many of them have left the queue and the sink.
    queued: u64,
    done: u64,
    /// Somebody has waited for the sink in vain, and it has taken no line since.
    is_stuck: bool,
    /// A thread that waits calls the sink itself.
    is_helped: bool,
    /// The thread rests and looks for lines soon.
    is_resting: bool,
}

type Guard = MutexGuard<'static, Queue>;

/// Keeps the thread while a manager runs.
pub(crate) struct Delivering(());

impl Delivering {
    pub(crate) fn begin() -> Self {
        QUEUE.lock().managers += 1;
        Delivering(())
    }
}

impl Drop for Delivering {
    /// Waits for the thread if this was the last manager. Lines that the sink does not take in time
    /// are dropped. A call of the sink that has begun is waited for, because it cannot be ended.
    fn drop(&mut self) {
        // A slow sink gets more time than one that takes nothing.
        (0..LAST_WAITS).for_each(|_| settle());
        let mut queue = QUEUE.lock();
        queue.managers -= 1;
        if queue.managers > 0 {
            return;
        }
        queue.generation += 1;
        queue.clear();
        let thread = queue.thread.take();
        drop(queue);
        CHANGED.notify_all();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Brings one line to the sink, at once or through the queue.
pub(super) fn deliver(line: Line) {
    let mut queue = QUEUE.lock();
    if queue.managers == 0 {
        drop(queue);
        return call_sink(&line);
    }
    queue.push(line);
    if queue.thread.is_none() {
        let generation = queue.generation;
        let run = move || call_sinks(generation);
        let builder = thread::Builder::new().name("aiot-log".into()).stack_size(STACK);
        queue.thread = sys::spawn(builder, run).ok();
    }
    let wakes = !queue.is_resting || queue.bytes > MAX_WAITING / 2;
    drop(queue);
    if wakes {
        CHANGED.notify_all();
    }
}

/// Waits until the sink has taken the lines that were written so far, for three seconds at most.
/// Does not wait again until a sink that takes nothing takes a line. If the thread could not be
/// created, the caller's own thread calls the sink.
pub(crate) fn settle() {
    if !HAS_SINK.load(Ordering::Acquire) || INSIDE_SINK.get() {
        return;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut queue = QUEUE.lock();
    let target = queue.queued;
    if queue.is_resting {
        CHANGED.notify_all();
    }
    while queue.done < target && !queue.is_stuck && queue.is_served() {
        if queue.thread.is_none() && !queue.is_helped {
            queue = help(queue, target, deadline);
            if Instant::now() >= deadline {
                return;
            }
        } else if CHANGED.wait_until(&mut queue, deadline).timed_out() {
            queue.is_stuck = true;
        }
    }
}

/// Calls the sink in place of the thread that could not be created.
fn help(mut queue: Guard, target: u64, deadline: Instant) -> Guard {
    // One thread at a time: the lines stay in order.
    queue.is_helped = true;
    while queue.thread.is_none() && Instant::now() < deadline {
        // Those of other threads that come meanwhile are not its affair.
        if queue.done >= target && !queue.lines.is_empty() {
            break;
        }
        let Some(line) = queue.next() else { break };
        queue = give(queue, line);
    }
    queue.is_helped = false;
    CHANGED.notify_all();
    queue
}

/// Calls the sink with a line from the queue.
fn give(queue: Guard, line: Line) -> Guard {
    drop(queue);
    call_sink(&line);
    let mut queue = QUEUE.lock();
    queue.done += 1;
    queue.is_stuck = false;
    CHANGED.notify_all();
    queue
}

/// The thread.
fn call_sinks(generation: u64) {
    let mut queue = QUEUE.lock();
    let (mut has_rested, mut last) = (true, None);
    loop {
        if queue.is_helped {
            CHANGED.wait(&mut queue);
        } else if let Some(line) = queue.next() {
            queue = give(queue, line);
            let before = last.replace(Instant::now());
            has_rested = before.is_none_or(|before| before.elapsed() > GROUP);
        } else if queue.generation != generation {
            return;
        } else if has_rested {
            CHANGED.wait(&mut queue);
        } else {
            queue.is_resting = true;
            CHANGED.wait_for(&mut queue, REST);
            queue.is_resting = false;
            has_rested = true;
        }
    }
}

impl Queue {
    const fn new() -> Self {
        Queue {
            managers: 0,
            thread: None,
            generation: 0,
            lines: VecDeque::new(),
            bytes: 0,
            left_out: 0,
            queued: 0,
            done: 0,
            is_stuck: false,
            is_helped: false,
            is_resting: false,
        }
    }

    /// Whether somebody brings the lines to the sink, or there are some to bring.
    fn is_served(&self) -> bool {
        self.thread.is_some() || self.is_helped || !self.lines.is_empty()
    }

    fn push(&mut self, line: Line) {
        if self.bytes + line.text.len() > MAX_WAITING {
            self.left_out += 1;
            return;
        }
        let report = self.report();
        for line in report.into_iter().chain([line]) {
            self.bytes += line.text.len();
            self.queued += 1;
            self.lines.push_back(line);
        }
    }

    fn next(&mut self) -> Option<Line> {
        if let Some(line) = self.lines.pop_front() {
            self.bytes -= line.text.len();
            return Some(line);
        }
        let report = self.report();
        self.queued += u64::from(report.is_some());
        report
    }

    /// The line about those that were left out.
    fn report(&mut self) -> Option<Line> {
        match mem::take(&mut self.left_out) {
            0 => None,
            count => {
                let text = format!("{count} lines were left out: the log callback is too slow");
                Some(line(Code::Tunnel, &text))
            }
        }
    }

    /// Drops the lines and frees their memory.
    fn clear(&mut self) {
        self.done += self.lines.len() as u64;
        self.lines = VecDeque::new();
        (self.bytes, self.left_out) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_room_are_left_out_and_counted() {
        let mut queue = Queue::new();
        let text = "x".repeat(1024);
        let push = |queue: &mut Queue| queue.push(Line { code: -1, text: text.clone() });
        for _ in 0..MAX_WAITING / 1024 + 3 {
            push(&mut queue);
        }
        assert_eq!(queue.left_out, 3);
        let first = queue.next().unwrap();
        assert_eq!(first.text, text);
        // The report stands where the lines are missing.
        push(&mut queue);
        let mut texts = std::iter::from_fn(|| queue.next()).map(|line| line.text);
        assert_eq!(texts.by_ref().filter(|line| *line == text).count(), MAX_WAITING / 1024);
        assert_eq!((queue.bytes, queue.left_out), (0, 0));
    }
}
