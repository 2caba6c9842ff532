//! The parts of the page that are the same for all. Those of the terminal that are not ours,
//! [xterm.js](https://xtermjs.org), were embedded when the program was built.
//!
//! xterm.js styles its rows by `style` elements and, for colours beyond the palette, by `style`
//! attributes. A Content-Security-Policy with `style-src 'self'` refuses both.

use data_encoding::HEXLOWER;
use openssl::sha::sha256;

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

/// A part of the page.
pub(crate) struct Asset {
    name: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) bytes: &'static [u8],
}

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

fn all() -> Vec<Asset> {
    let part = |name, content_type, text: &'static str| {
        let bytes = text.as_bytes();
        Asset { name, content_type, bytes }
    };
    let mut all = vec![
        part("style.css", CSS, include_str!("../web/style.css")),
        part("page.js", JS, include_str!("../web/page.js")),
        part("icon.svg", SVG, include_str!("../web/icon.svg")),
    ];
    if let Some(terminal) = terminal() {
        all.extend([
            part("terminal.js", JS, include_str!("../web/terminal.js")),
            part("xterm.js", JS, terminal.xterm_js),
            part("xterm.css", CSS, terminal.xterm_css),
            part("fit.js", JS, terminal.fit_js),
        ]);
    }
    all
}

/// The part with this name.
pub(crate) fn find(name: &str) -> Option<Asset> {
    all().into_iter().find(|asset| asset.name == name)
}

/// The address of a part, which changes with its content.
pub(crate) fn url(name: &str) -> String {
    let digest = sha256(find(name).map_or(&[], |asset| asset.bytes));
    format!("/assets/{name}?v={}", HEXLOWER.encode(&digest[..8]))
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
