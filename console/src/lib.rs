//! The gateway's page: tunnels to look at, and a terminal in the browser.

pub mod assets;
pub mod terminal;
