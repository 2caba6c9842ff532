//! Text from elsewhere, made fit for a log line.

/// Most characters of a foreign text in a log line.
const MOST: usize = 120;

/// A foreign text with its control characters escaped, cut at 120 characters.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_text_is_one_short_line() {
        assert_eq!(printable("a\nb\u{1b}[1m"), "a\\nb\\u{1b}[1m");
        assert_eq!(printable(&"x".repeat(5000)), format!("{}...", "x".repeat(120)));
    }
}
