//! The terminal that `status --watch` paints, and its restoration.

use std::io::{self, IsTerminal, Write};

use rustix::termios::tcgetwinsize;

use super::table;
use crate::process::on_signal;
use crate::Result;

/// Size of a terminal that does not tell its own.
const ROWS: usize = 24;

/// The screen of its own that most terminals have, without a cursor.
const OPEN: &str = "\x1b[?1049h\x1b[?25l";
/// Back to what was there before.
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

/// Standard output, which is a terminal.
#[derive(Clone, Copy)]
pub(super) struct Terminal(());

impl Terminal {
    pub(super) fn of_stdout() -> Option<Self> {
        io::stdout().is_terminal().then_some(Terminal(()))
    }

    /// Columns and rows.
    pub(super) fn size(self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (size.ws_col.into(), size.ws_row.into())
            }
            _ => (table::WIDTH, ROWS),
        }
    }

    /// Opens a screen. SIGINT and SIGTERM close it and end the program.
    pub(super) fn open_screen(self) -> Result<Screen> {
        on_signal(|| {
            // While this thread holds it, nobody paints.
            let mut stdout = io::stdout().lock();
            close(&mut stdout);
            std::process::exit(0);
        })?;
        let screen = Screen(self);
        let mut stdout = io::stdout().lock();
        stdout.write_all(OPEN.as_bytes())?;
        stdout.flush()?;
        Ok(screen)
    }
}

/// An open screen. Dropping it closes it.
pub(super) struct Screen(Terminal);

impl Screen {
    /// Paints a text, as far as there is room. Nothing flickers: each line replaces the one before.
    pub(super) fn show(&self, text: &str) -> io::Result<()> {
        let (_, rows) = self.0.size();
        let lines: Vec<&str> = text.lines().collect();
        let mut painted = String::from(HOME);
        let (shown, more) = match lines.len() > rows {
            true => (rows - 1, lines.len() - rows + 1),
            false => (lines.len(), 0),
        };
        for (index, line) in lines[..shown].iter().enumerate() {
            painted += if index == 0 { "" } else { "\r\n" };
            painted += line;
            painted += CLEAR_LINE;
        }
        if more > 0 {
            painted += &format!("\r\n... {more} more lines{CLEAR_LINE}");
        }
        painted += CLEAR_REST;
        let mut stdout = io::stdout().lock();
        stdout.write_all(painted.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        close(&mut io::stdout().lock());
    }
}

fn close(stdout: &mut impl Write) {
    let _ = stdout.write_all(CLOSE.as_bytes());
    let _ = stdout.flush();
}
