//! Turns the text that stands behind the options in `--help` into sections of a page.
//!
//! That text has paragraphs at the margin, indented blocks that keep their line breaks, and headings: a
//! line at the margin that ends with a colon and has a block right below.

use std::iter::Peekable;
use std::str::Lines;

use clap_mangen::roff::{bold, roman, Roff};

/// Writes the sections. What stands before the first heading has the heading NOTES.
pub(super) fn sections(roff: &mut Roff, text: &str) {
    let mut has_section = false;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let is_indented = |line: &str| line.starts_with(' ');
        let heading = line.strip_suffix(':').filter(|line| !line.contains(['.', ',', ';', '"']));
        match (heading, lines.peek()) {
            (Some(heading), Some(next)) if is_indented(next) => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
                has_section = true;
                block(roff, take_indented(&mut lines));
                // What follows is not about these examples.
                if lines.peek().is_some_and(|next| !next.ends_with(':')) {
                    has_section = false;
                }
                continue;
            }
            _ => {}
        }
        if !has_section {
            roff.control("SH", ["NOTES"]);
            has_section = true;
        } else {
            roff.control("PP", []);
        }
        let mut paragraph = vec![line];
        while let Some(next) = lines.next_if(|next| !next.is_empty() && !is_indented(next)) {
            paragraph.push(next);
        }
        roff.text([roman(paragraph.join(" "))]);
        if lines.peek().is_some_and(|next| is_indented(next)) {
            block(roff, take_indented(&mut lines));
        }
    }
}

/// Takes indented lines. An empty line between two of them is one of them.
fn take_indented<'a>(lines: &mut Peekable<Lines<'a>>) -> Vec<&'a str> {
    let mut taken = Vec::new();
    while let Some(line) = lines.peek().copied() {
        let mut after = lines.clone();
        after.next();
        let belongs = match line {
            "" => after.peek().is_some_and(|next| next.starts_with(' ')),
            line => line.starts_with(' '),
        };
        if !belongs {
            break;
        }
        lines.next();
        taken.push(line.strip_prefix("  ").unwrap_or(line));
    }
    taken
}

/// Writes lines that keep their breaks.
pub(super) fn block<'a>(roff: &mut Roff, lines: impl IntoIterator<Item = &'a str>) {
    roff.control("PP", []);
    roff.control("nf", []);
    for line in lines {
        // A command is bold, as in the pages of other programs.
        match line.trim_start().starts_with("aiot-tunnel ") {
            true => roff.text([bold(line)]),
            false => roff.text([roman(line)]),
        };
    }
    roff.control("fi", []);
}
