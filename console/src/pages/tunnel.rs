//! A tunnel, and the tokens that were made for it.

use aiot_tunnel::gateway::Activity;
use aiot_tunnel_registry::{Issued, Seen};
use maud::{html, Markup};

use super::chart::{chart, rate};
use super::{address_of, events, expire_fields, form_key, frame, state, time, HOME};
use crate::assets;
use crate::events::bytes;
use crate::login::Login;
use crate::Console;

/// Events on the page.
const EVENTS: usize = 50;

/// A tunnel.
pub(crate) fn tunnel(console: &Console, tunnel: &Seen, login: &Login) -> Markup {
    let activity = &tunnel.activity;
    let id = activity.id.as_str();
    let main = html! {
        p { a href=(HOME) { "All tunnels" } }
        h1 { "Tunnel " span .id { (id) } }
        (facts(console, tunnel))
        (terminal(console, activity, login))
        @if tunnel.of_store.is_some() {
            (changes(id, login))
        } @else {
            p .hint { "This tunnel is in the gateway's list, which is a file; change it there." }
        }
        (events(&console.events.last(EVENTS, Some(id)), false))
    };
    frame(id, Some(login), &main)
}

fn facts(console: &Console, tunnel: &Seen) -> Markup {
    let (activity, times) = (&tunnel.activity, tunnel.of_store.as_ref());
    let id = activity.id.as_str();
    let samples = console.rates.of(id);
    let now = samples.last().copied().unwrap_or_default();
    html! {
        section aria-label="What it does" {
            dl #facts .facts data-live {
                div { dt { "State" } dd { (state(activity)) } }
                div {
                    dt { "Device" }
                    dd {
                        @match (&activity.device, activity.device_left) {
                            (Some(peer), _) => { (peer.address) ", since " (time(peer.since)) }
                            (None, Some(left)) => { "not connected since " (time(left)) }
                            (None, None) => "not connected since the gateway started",
                        }
                    }
                }
                div {
                    dt { "Operators" }
                    dd {
                        @if activity.accesses.is_empty() { "none" }
                        @for (at, peer) in activity.accesses.iter().enumerate() {
                            @if at > 0 { br; }
                            (peer.address) ", since " (time(peer.since))
                        }
                    }
                }
                div {
                    dt { "Sessions" }
                    dd { (activity.sessions) " open, " (activity.sessions_opened) " in all" }
                }
                div .to-device {
                    dt { "To the device" }
                    dd { (bytes(activity.bytes_to_device)) ", " (rate(now.to_device)) }
                }
                div .to-access {
                    dt { "From the device" }
                    dd { (bytes(activity.bytes_to_access)) ", " (rate(now.to_access)) }
                }
                @if let Some(device) = times.and_then(|times| times.device.as_ref()) {
                    div { dt { "Told by messages" } dd { (device.product_key()) "/" (device.device_name()) } }
                }
                @if let Some(times) = times {
                    div { dt { "Made" } dd { (time(times.created)) } }
                    @if let Some(rotated) = times.rotated {
                        div { dt { "New tokens" } dd { (time(rotated)) } }
                    }
                }
                div {
                    dt { "Expires" }
                    dd {
                        @match activity.expires {
                            Some(at) => (time(at)),
                            None => "never",
                        }
                    }
                }
            }
            div #chart data-live { (chart(&samples, "This tunnel")) }
        }
    }
}

fn terminal(console: &Console, activity: &Activity, login: &Login) -> Markup {
    let address = address_of(activity.id.as_str());
    html! {
        section aria-labelledby="terminal-title" {
            h2 #terminal-title { "Terminal" }
            @if let Some(terminals) = console.terminals() {
                form .create method="get" action={ (address) "/terminal" } {
                    div .field {
                        label for="terminal-login" { "User of the device" }
                        input #terminal-login name="login" type="text" value="root" required maxlength="64"
                            autocomplete="off" autocapitalize="none" spellcheck="false";
                    }
                    button type="submit" { "Open" }
                }
                @if terminals.knows_host_key(&activity.id) {
                    form .create method="post" action={ (address) "/forget-host-key" } {
                        (form_key(login))
                        p .hint { "The device's host key is remembered." }
                        button .quiet type="submit" { "Forget it" }
                    }
                }
            } @else if assets::terminal().is_none() {
                p .hint { "This program was built without the terminal: its packages were not there." }
            } @else {
                p .hint { "Start the gateway with " code { "--terminal" } " to log in to the device here." }
            }
        }
    }
}

fn changes(id: &str, login: &Login) -> Markup {
    let address = address_of(id);
    html! {
        section aria-labelledby="rotate-title" {
            h2 #rotate-title { "New tokens" }
            form .create method="post" action={ (address) "/rotate" } {
                (form_key(login))
                div .field {
                    label for="rotate-side" { "Replace the token of" }
                    select #rotate-side name="side" {
                        option value="both" { "both sides" }
                        option value="device" { "the device" }
                        option value="access" { "the operators" }
                    }
                }
                (expire_fields("rotate", "as before"))
                button type="submit" { "Replace" }
            }
            p .hint { "Connections with the old token end." }
        }
        section aria-labelledby="remove-title" {
            h2 #remove-title { "Remove" }
            form .create method="post" action={ (address) "/remove" } {
                (form_key(login))
                div .check {
                    input #remove-sure name="sure" type="checkbox" value="yes" required;
                    label for="remove-sure" { "Remove this tunnel and end its connections" }
                }
                button .danger type="submit" { "Remove" }
            }
        }
    }
}

/// The tokens that were made for a tunnel. They are shown this once.
pub(crate) fn issued(console: &Console, issued: &Issued, login: &Login) -> Markup {
    let id = issued.id.as_str();
    let url = console.registry.url();
    let main = html! {
        h1 { "Tokens of " span .id { (id) } }
        p .notice role="status" {
            "They are shown only now: the gateway keeps digests of them. Save each in a file that nobody \
             else may read."
        }
        @if let Some(token) = &issued.device_token {
            (secret("device-token", "Token of the device", token))
        }
        @if let Some(token) = &issued.access_token {
            (secret("access-token", "Token of the operators", token))
        }
        dl .facts {
            div { dt { "URL for both" } dd { code { (url) } } }
            div {
                dt { "Expires" }
                dd {
                    @match issued.expires {
                        Some(at) => (time(at)),
                        None => "never",
                    }
                }
            }
            @if let Some(is_notified) = console.registry.is_notified(issued) {
                div {
                    dt { "Message to the device" }
                    dd { @if is_notified { "delivered to the broker" } @else { "not delivered yet" } }
                }
            }
        }
        p { a .button href=(address_of(id)) { "Done" } }
    };
    frame("Tokens", Some(login), &main)
}

/// A text that can be copied.
fn secret(name: &str, label: &str, text: &str) -> Markup {
    html! {
        div .secret {
            label for=(name) { (label) }
            div {
                input id=(name) type="text" readonly value=(text) autocomplete="off" spellcheck="false";
                button .quiet type="button" hidden data-copy=(name) { "Copy" span .unseen { " the " (label) } }
            }
        }
    }
}
