//! The page with the terminal.

use aiot_tunnel_registry::api::encoded;
use form_urlencoded::Serializer;
use maud::{html, Markup};

use super::{address_of, frame_with};
use crate::assets;
use crate::login::Login;
use crate::terminal::LoginName;

/// The page with the terminal. `nonce` is that of its policy.
pub(crate) fn terminal(id: &str, name: &LoginName, nonce: &str, login: &Login) -> Markup {
    let query = Serializer::new(String::new()).append_pair("login", name.as_str()).finish();
    let head = html! {
        link rel="stylesheet" href=(assets::url("xterm.css"));
        script src=(assets::url("xterm.js")) defer {}
        script src=(assets::url("fit.js")) defer {}
        script src=(assets::url("terminal.js")) nonce=(nonce) defer {}
    };
    let main = html! {
        div .terminal-bar {
            h1 { "Terminal of " span .id { (name) "@" (id) } }
            div .check {
                input #terminal-reader type="checkbox";
                label for="terminal-reader" { "Screen reader" }
            }
            button #terminal-again .quiet type="button" hidden { "Connect again" }
            a #terminal-close .button href=(address_of(id)) { "Close" }
            p #terminal-state role="status" { "Connecting" noscript { ": the terminal needs JavaScript" } }
        }
        div #terminal role="region" aria-label="Terminal" data-form-key=(login.form_key())
            data-socket={ "/terminal/" (encoded(id)) "?" (query) } {}
        p .hint { "Ctrl+F6 leads out of the terminal by the keyboard. The terminal ends with your login." }
    };
    frame_with(&format!("Terminal of {id}"), Some(login), &main, &head)
}
