//! The HTML of the pages. Every text is escaped where it is written.

mod chart;
mod list;
mod terminal;
mod tunnel;

use std::time::SystemTime;

use aiot_tunnel::gateway::Activity;
use aiot_tunnel_registry::api::{self, encoded};
use aiot_tunnel_registry::state_of;
use maud::{html, Markup, DOCTYPE};

use crate::assets;
use crate::events::Event;
use crate::login::Login;

pub(crate) use list::list;
pub(crate) use terminal::terminal;
pub(crate) use tunnel::{issued, tunnel};

/// The address of the list.
pub(crate) const HOME: &str = "/";

/// The frame of each page.
fn frame(title: &str, login: Option<&Login>, main: &Markup) -> Markup {
    frame_with(title, login, main, &html! {})
}

/// The same, with more in its head.
fn frame_with(title: &str, login: Option<&Login>, main: &Markup, head: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · aiot-tunnel" }
                link rel="icon" type="image/svg+xml" href=(assets::url("icon.svg"));
                link rel="stylesheet" href=(assets::url("style.css"));
                script src=(assets::url("page.js")) defer {}
                (head)
            }
            body {
                a .skip href="#main" { "Skip to the content" }
                header {
                    a .brand href=(HOME) { "aiot-tunnel" span .brand-part { " gateway" } }
                    @if let Some(login) = login {
                        form method="post" action="/logout" {
                            (form_key(login))
                            button .quiet type="submit" { "Log out" }
                        }
                    }
                }
                main #main tabindex="-1" { (main) }
            }
        }
    }
}

/// What each form of a login contains.
fn form_key(login: &Login) -> Markup {
    html! { input type="hidden" name="form_key" value=(login.form_key()); }
}

/// The page on which one logs in.
pub(crate) fn login(problem: Option<&str>) -> Markup {
    let main = html! {
        section .login {
            h1 { "Log in" }
            @if let Some(problem) = problem {
                p .problem role="alert" { (problem) }
            }
            form method="post" action="/login" {
                label for="key" { "API key" }
                input #key name="key" type="password" autocomplete="current-password" required autofocus;
                p .hint { "The key is in the file of the gateway's " code { "--api-key-file" } "." }
                button type="submit" { "Log in" }
            }
        }
    };
    frame("Log in", None, &main)
}

/// A page that says what went wrong.
pub(crate) fn error(why: &str, login: Option<&Login>) -> Markup {
    let main = html! {
        h1 { "That did not work" }
        p .problem role="alert" { (why) }
        p { a href=(HOME) { "To the list of tunnels" } }
    };
    frame("Error", login, &main)
}

/// A text of an error as a sentence.
pub(crate) fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    let end = if text.ends_with('.') { "" } else { "." };
    first.into_iter().chain(characters).chain(end.chars()).collect()
}

/// The address of a tunnel's page.
pub(crate) fn address_of(id: &str) -> String {
    format!("/view/{}", encoded(id))
}

/// A time. The script writes it as the browser's user is used to.
fn time(at: SystemTime) -> Markup {
    let text = api::time(at);
    html! { time datetime=(text) { (text) } }
}

fn state(activity: &Activity) -> Markup {
    let state = state_of(activity);
    html! { span class={ "state " (state) } { (state) } }
}

/// A list of events, which the script keeps up to date.
fn events(events: &[Event], names_tunnels: bool) -> Markup {
    html! {
        section aria-labelledby="events-title" {
            h2 #events-title { "Last events" }
            div #events data-live {
                @if events.is_empty() {
                    p .hint { "Nothing has happened since the gateway started." }
                } @else {
                    ul .events {
                        @for event in events {
                            li .warning[event.is_warning] {
                                (time(event.at)) " "
                                @if names_tunnels && !event.tunnel.is_empty() {
                                    a href=(address_of(&event.tunnel)) { (event.tunnel) } " "
                                }
                                span { (event.text) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// When a tunnel expires, in a form.
fn expire_fields(prefix: &str, none: &str) -> Markup {
    html! {
        div .field {
            label for={ (prefix) "-expire" } { "Expires" }
            select id={ (prefix) "-expire" } name="expire" {
                option value="" { (none) }
                option value="3600" { "in 1 hour" }
                option value="86400" { "in 1 day" }
                option value="604800" { "in 7 days" }
                option value="2592000" { "in 30 days" }
                option value="other" { "after the seconds on the right" }
            }
        }
        div .field {
            label for={ (prefix) "-seconds" } { "Seconds" }
            input id={ (prefix) "-seconds" } name="seconds" type="text" inputmode="numeric"
                autocomplete="off" placeholder="90000";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_text_is_text() {
        let hostile = "<img src=x onerror=alert(1)>\"'&";
        let page = error(hostile, None).into_string();
        assert!(
            !page.contains("<img") && page.contains("&lt;img src=x onerror=alert(1)&gt;&quot;")
        );
        let event = Event {
            at: SystemTime::now(),
            tunnel: "\"><script>".to_owned(),
            text: hostile.to_owned(),
            is_warning: true,
        };
        let part = events(&[event], true).into_string();
        assert!(
            !part.contains("<img")
                && !part.contains("<script")
                && part.contains("/view/%22%3E%3Cscript%3E")
        );
    }

    #[test]
    fn a_sentence_has_a_capital_and_a_full_stop() {
        assert_eq!(sentence("there is no tunnel \"t1\""), "There is no tunnel \"t1\".");
        assert_eq!(sentence(""), ".");
        assert_eq!(sentence("Éa."), "Éa.");
    }
}
