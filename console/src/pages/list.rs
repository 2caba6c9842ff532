//! The list of tunnels.

use aiot_tunnel::gateway::Activity;
use aiot_tunnel_registry::{state_of, Health};
use form_urlencoded::Serializer;
use maud::{html, Markup};

use super::chart::{chart, rate};
use super::{address_of, events, expire_fields, form_key, frame, state, HOME};
use crate::form::Fields;
use crate::login::Login;
use crate::Console;

/// Tunnels on one page.
const ON_A_PAGE: usize = 100;
/// Events on the page.
const EVENTS: usize = 30;
const STATES: [&str; 3] = ["online", "offline", "expired"];

/// The list. `query` says which part of it: `q` (a part of the id), `state` and `page`.
pub(crate) fn list(console: &Console, query: &Fields, login: &Login) -> Markup {
    let all = console.registry.activities();
    let (text, wanted) = (query.get("q"), query.get("state"));
    let is_meant = |one: &&Activity| {
        one.id.as_str().contains(text) && (wanted.is_empty() || state_of(one) == wanted)
    };
    let found: Vec<&Activity> = all.iter().filter(is_meant).collect();
    let pages = found.len().div_ceil(ON_A_PAGE).max(1);
    let number = query.get("page").parse().unwrap_or(1).clamp(1, pages);
    let shown = found.iter().skip((number - 1) * ON_A_PAGE).take(ON_A_PAGE);
    let main = html! {
        h1 { "Tunnels" }
        (overview(console, &all))
        section aria-label="List of tunnels" {
            form .filter method="get" action=(HOME) role="search" {
                div .field {
                    label for="q" { "Id contains" }
                    input #q name="q" type="search" value=(text) autocomplete="off";
                }
                div .field {
                    label for="state" { "State" }
                    select #state name="state" {
                        option value="" { "all" }
                        @for state in STATES {
                            option value=(state) selected[wanted == state] { (state) }
                        }
                    }
                }
                button type="submit" { "Show" }
            }
            @if all.is_empty() {
                p .empty { "There is no tunnel yet. Make one below." }
            } @else if found.is_empty() {
                p .empty { "No tunnel is like that. " a href=(HOME) { "Show all" } }
            } @else {
                (table(console, shown.copied()))
            }
            @if pages > 1 {
                nav .pages aria-label="Pages of the list" {
                    @if number > 1 {
                        a href=(page_address(text, wanted, number - 1)) rel="prev" { "Previous" }
                    }
                    span { "Page " (number) " of " (pages) ", " (found.len()) " tunnels" }
                    @if number < pages {
                        a href=(page_address(text, wanted, number + 1)) rel="next" { "Next" }
                    }
                }
            }
        }
        @if console.registry.health() != Health::NoStore {
            (form(console, login))
        } @else {
            p .hint {
                "This gateway keeps no tunnels of its own: they are in a list, which is a file. Start the \
                 gateway with " code { "--store" } " to make tunnels here."
            }
        }
        (events(&console.events.last(EVENTS, None), true))
    };
    frame("Tunnels", Some(login), &main)
}

/// What all tunnels do together.
fn overview(console: &Console, all: &[Activity]) -> Markup {
    let samples = console.rates.of_all();
    let now = samples.last().copied().unwrap_or_default();
    let sessions: usize = all.iter().map(|one| one.sessions).sum();
    html! {
        section .overview aria-label="Overview" {
            dl #counts data-live {
                @for name in STATES {
                    div {
                        dt { (name) }
                        dd { (all.iter().filter(|one| state_of(one) == name).count()) }
                    }
                }
                div { dt { "sessions" } dd { (sessions) } }
                div .to-device { dt { "to devices" } dd { (rate(now.to_device)) } }
                div .to-access { dt { "from devices" } dd { (rate(now.to_access)) } }
            }
            div #chart data-live { (chart(&samples, "All tunnels")) }
            div #health data-live {
                @match console.registry.health() {
                    Health::Lost => p .problem role="alert" {
                        "The store of the tunnels cannot be reached. Known tokens still open connections; \
                         nothing can be changed."
                    },
                    Health::Over => p .problem role="alert" {
                        "The store of the tunnels cannot be reached, and its time of grace is over: there \
                         are no new connections. Open ones go on."
                    },
                    Health::Good | Health::NoStore => {}
                }
            }
        }
    }
}

fn table<'a>(console: &Console, shown: impl Iterator<Item = &'a Activity>) -> Markup {
    html! {
        table {
            caption .unseen { "Tunnels, in the order of their ids" }
            thead {
                tr {
                    th scope="col" { "Id" }
                    th scope="col" { "State" }
                    th scope="col" { "Device" }
                    th scope="col" .number { "Sessions" }
                    th scope="col" { "Rates" }
                }
            }
            tbody #rows data-rows {
                @for one in shown {
                    (row(console, one))
                }
            }
        }
    }
}

fn row(console: &Console, one: &Activity) -> Markup {
    let id = one.id.as_str();
    let samples = console.rates.of(id);
    html! {
        tr id={ "row-" (id) } {
            th scope="row" { a href=(address_of(id)) { (id) } }
            td id={ "state-" (id) } data-live { (state(one)) }
            td id={ "device-" (id) } data-live data-label="Device" {
                @match &one.device {
                    Some(peer) => (peer.address),
                    None => span .hint { "–" },
                }
            }
            td id={ "sessions-" (id) } .number data-live data-label="Sessions" { (one.sessions) }
            td id={ "rates-" (id) } data-live data-label="Rates" {
                @match samples.last() {
                    Some(_) => (chart(&samples, id)),
                    None => span .hint { "–" },
                }
            }
        }
    }
}

fn form(console: &Console, login: &Login) -> Markup {
    html! {
        section aria-labelledby="create-title" {
            h2 #create-title { "New tunnel" }
            form .create method="post" action="/create" {
                (form_key(login))
                div .field {
                    label for="create-id" { "Id" }
                    input #create-id name="id" type="text" autocomplete="off" spellcheck="false"
                        placeholder="one is chosen";
                }
                (expire_fields("create", "never"))
                @if console.registry.tells_devices() {
                    div .field {
                        label for="create-key" { "Product key" }
                        input #create-key name="product_key" type="text" autocomplete="off" spellcheck="false";
                    }
                    div .field {
                        label for="create-device" { "Device name" }
                        input #create-device name="device_name" type="text" autocomplete="off" spellcheck="false";
                    }
                }
                button type="submit" { "Make" }
            }
        }
    }
}

fn page_address(text: &str, state: &str, number: usize) -> String {
    let mut query = Serializer::new(String::new());
    query.append_pair("q", text).append_pair("state", state);
    format!("{HOME}?{}", query.append_pair("page", &number.to_string()).finish())
}
