//! The gateway's page: tunnels to look at, tokens to make, and a terminal in the browser. It stands beside
//! the API, on the same listener.
//!
//! The server renders all HTML. A little script fetches the same page again and takes over what has
//! changed; without it, everything but the terminal works.

pub mod assets;
mod events;
mod form;
mod login;
mod pages;
mod rates;
mod site;
pub mod terminal;

pub use events::Events;
pub use site::{Console, Options};
