//! Holds back the lines of a piece of work until it is known whether they are of use.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;

use log::Level;

use super::{takers, write, Code};

/// Most lines that are held; the oldest make room. A host with many addresses has some for each.
const MOST: usize = 64;

thread_local! {
    /// Apart from the lines, because it has no destructor: a thread may log at its very end.
    static IS_HOLDING: Cell<bool> = const { Cell::new(false) };
    static HELD: RefCell<VecDeque<HeldLine>> = const { RefCell::new(VecDeque::new()) };
}

struct HeldLine {
    level: Level,
    code: Code,
    text: String,
}

/// Lines that were held back. If it is dropped, they are never written.
#[must_use]
pub(crate) struct Held(VecDeque<HeldLine>);

impl Held {
    /// Writes the lines now, in their order.
    pub(crate) fn write(self) {
        for line in self.0 {
            write(line.level, line.code, format_args!("{}", line.text));
        }
    }
}

/// Does some work, and holds back the lines that this thread has meanwhile. Warnings and errors are
/// written at once nevertheless.
pub(crate) fn hold<T>(work: impl FnOnce() -> T) -> (T, Held) {
    /// Ends the holding also after a panic.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            IS_HOLDING.set(false);
            HELD.take();
        }
    }
    let _end = End;
    IS_HOLDING.set(true);
    let result = work();
    (result, Held(HELD.take()))
}

/// Whether a line is held back, or would be if anybody took it.
pub(super) fn keeps(level: Level, code: Code, text: fmt::Arguments<'_>) -> bool {
    if level < Level::Info || !IS_HOLDING.get() {
        return false;
    }
    if takers(level) != (false, false) {
        // Made before the list is borrowed: it may run code that logs.
        let text = text.to_string();
        HELD.with_borrow_mut(|lines| {
            if lines.len() == MOST {
                lines.pop_front();
            }
            lines.push_back(HeldLine { level, code, text });
        });
    }
    true
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;
    use crate::logging::info;

    #[test]
    fn lines_are_held_while_the_work_goes_on_and_no_longer() {
        assert!(!keeps(Level::Info, Code::Tunnel, format_args!("at once")));
        let (result, held) = hold(|| {
            assert!(keeps(Level::Info, Code::Tunnel, format_args!("a step")));
            assert!(keeps(Level::Debug, Code::Tunnel, format_args!("a detail")));
            assert!(!keeps(Level::Warn, Code::Tunnel, format_args!("a warning")));
            7
        });
        assert_eq!(result, 7);
        assert!(!IS_HOLDING.get());
        held.write();
    }

    #[test]
    fn work_that_panics_holds_nothing_back_afterwards() {
        let panicked = catch_unwind(|| {
            let _ = hold(|| {
                info!(Code::Tunnel, "a step");
                panic!("on purpose");
            });
        });
        assert!(panicked.is_err() && !IS_HOLDING.get());
    }
}
