//! The language of the terminal's WebSocket, and how much may be under way.
//!
//! From the browser: binary messages are what is typed; text messages are JSON: `{"size":[COLUMNS,ROWS]}`,
//! `{"taken":BYTES}`, which counts the output that the browser has shown since it last said so, or
//! `{"used":true}`: the user has pressed a key. A terminal also answers questions of the device by itself,
//! so what is typed does not tell. To the browser: binary messages are the terminal's output; the last message is `{"end":"WHY"}`.

use std::sync::atomic::{AtomicUsize, Ordering};

use pty_process::Size;
use serde::Deserialize;
use tokio::sync::Notify;

/// Most bytes of output that the browser has not shown. The pseudo-terminal and the tunnel hold up what
/// comes after them.
pub(super) const WINDOW: usize = 256 * 1024;
/// Longest message from the browser. A paste may be one message.
pub(super) const MAX_MESSAGE: usize = 2 * 1024 * 1024;
/// Most bytes typed or pasted that ssh has not taken. Reading no more instead would also hold up what the
/// browser says about its output, and ssh may take nothing until its output is taken.
pub(super) const MAX_TYPED: usize = 4 * 1024 * 1024;
/// What a message that waits costs beside its bytes.
pub(super) const MESSAGE_COST: usize = 64;
/// Longest text message. The longest that means something has some 30 bytes.
const MAX_TEXT: usize = 128;
/// Most columns and rows.
const MAX_CELLS: u64 = 1000;

/// What a browser says in a text message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Said {
    /// Columns, rows.
    Size([u64; 2]),
    Taken(usize),
    /// By the user.
    Used(bool),
}

impl Said {
    /// `None`: nothing that a browser may say.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(text).filter(|text| text.len() <= MAX_TEXT).and_then(|t| serde_json::from_str(t).ok())
    }
}

/// A size that every program can bear.
pub(super) fn size([columns, rows]: [u64; 2]) -> Size {
    let [columns, rows] = [columns, rows].map(|cells| cells.clamp(1, MAX_CELLS) as u16);
    Size::new(rows, columns)
}

/// The output that the browser has not shown.
#[derive(Default)]
pub(super) struct Untaken {
    bytes: AtomicUsize,
    fewer: Notify,
}

impl Untaken {
    /// Waits until more may be sent. Returns how much.
    pub(super) async fn room(&self) -> usize {
        loop {
            match WINDOW.saturating_sub(self.bytes.load(Ordering::Relaxed)) {
                0 => self.fewer.notified().await,
                room => return room,
            }
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns false if so much was never sent.
    pub(super) fn taken(&self, bytes: usize) -> bool {
        let fewer = |untaken: usize| untaken.checked_sub(bytes);
        let is_possible =
            self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok();
        self.fewer.notify_one();
        is_possible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_says_two_things_and_nothing_else_is_understood() {
        assert_eq!(Said::parse(r#"{"size":[80,24]}"#), Some(Said::Size([80, 24])));
        assert_eq!(Said::parse(r#" { "taken" : 7 } "#), Some(Said::Taken(7)));
        for wrong in [
            "",
            "x",
            "{}",
            "[]",
            r#"{"size":[80]}"#,
            r#"{"size":[80,24,1]}"#,
            r#"{"size":[-1,24]}"#,
            r#"{"size":[80.5,24]}"#,
            r#"{"size":["80","24"]}"#,
            r#"{"size":[1e99,24]}"#,
            r#"{"taken":-1}"#,
            r#"{"taken":"1"}"#,
            r#"{"taken":99999999999999999999999}"#,
            r#"{"taken":1,"size":[80,24]}"#,
            r#"{"taken":1,"x":1}"#,
            r#"{"end":"x"}"#,
            r#"{"Taken":1}"#,
            r#""taken""#,
            r#"{"taken":1}{"taken":1}"#,
        ] {
            assert_eq!(Said::parse(wrong), None, "{wrong}");
        }
        let long = format!("{{\"taken\":{}1}}", " ".repeat(MAX_TEXT));
        assert_eq!(Said::parse(&long), None);
    }

    #[test]
    fn sizes_are_those_of_a_terminal() {
        for ([columns, rows], expected) in [
            ([80, 24], Size::new(24, 80)),
            ([0, 0], Size::new(1, 1)),
            ([u64::MAX, 65_536], Size::new(1000, 1000)),
        ] {
            let (size, expected) = (size([columns, rows]), expected);
            assert_eq!(format!("{size:?}"), format!("{expected:?}"));
        }
    }

    #[test]
    fn what_was_never_sent_cannot_be_taken() {
        let untaken = Untaken::default();
        untaken.sent(10);
        assert!(untaken.taken(4) && untaken.taken(6));
        assert!(!untaken.taken(1));
        untaken.sent(1);
        assert!(!untaken.taken(usize::MAX));
    }
}
