//! What the terminal's page is made of that is not ours: [xterm.js](https://xtermjs.org), embedded when
//! the program was built.
//!
//! xterm.js styles its rows by `style` elements and, for colours beyond the palette, by `style`
//! attributes. A Content-Security-Policy with `style-src 'self'` refuses both.

/// Files of xterm.js. Each begins with the notice that must accompany it, and refers to no other.
#[derive(Debug)]
#[non_exhaustive]
pub struct TerminalAssets {
    /// A script that defines `Terminal`.
    pub xterm_js: &'static str,
    pub xterm_css: &'static str,
    /// A script that defines `FitAddon.FitAddon`.
    pub fit_js: &'static str,
}

/// `None` if the program was built without the packages.
#[must_use]
pub fn terminal() -> Option<&'static TerminalAssets> {
    include!(concat!(env!("OUT_DIR"), "/terminal.rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_scripts_are_whole_and_ask_for_nothing_else() {
        let Some(assets) = terminal() else { return };
        assert!(assets.xterm_js.len() > 100_000 && assets.xterm_js.contains("Terminal"));
        assert!(assets.fit_js.contains("FitAddon") && assets.xterm_css.contains(".xterm"));
        for text in [assets.xterm_js, assets.fit_js, assets.xterm_css] {
            assert!(
                text.starts_with("/*!\n@xterm/") && text.contains("Permission is hereby granted")
            );
            assert!(!text.contains("sourceMappingURL"));
        }
    }
}
