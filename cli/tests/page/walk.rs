//! What a user does, on a small and a large screen, light and dark, by the keyboard alone, and what the
//! page looks like then. The screenshots are in target/screenshots.

use aiot_tunnel_testkit::browser::{BrowserPage, Screen};
use aiot_tunnel_testkit::{logs, services, skip};
use serde_json::Value;

use super::{browser, Gateway, LARGE, SMALL};

/// Presses Tab until an element has the focus, which must show.
pub fn tab_to(page: &BrowserPage, selector: &str) {
    let is_there = format!("document.activeElement.matches({})", serde_json::json!(selector));
    for _ in 0..60 {
        page.press("Tab");
        if page.evaluate(&is_there) == true {
            let style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle");
            assert!(style != "none", "the focus does not show at {selector}");
            return;
        }
    }
    panic!("Tab does not lead to {selector}");
}

/// What must hold for whatever the page shows, light and dark. `expected` is part of the one error that
/// belongs to it.
pub fn check(page: &BrowserPage, screen: Screen, name: &str, expected: Option<&str>) {
    for (dark, scheme) in [(true, "dark"), (false, "light")] {
        page.show_on(Screen { dark, ..screen });
        let file = page.screenshot(&format!("{}-{scheme}-{name}", screen.width));
        match page.barriers() {
            Ok(found) => assert!(found.is_empty(), "{}: {found:?}", file.display()),
            Err(why) => skip("axe-core", why),
        }
    }
    let mut troubles = page.troubles();
    if let Some(expected) = expected {
        troubles.retain(|trouble| !trouble.contains(expected));
    }
    assert!(troubles.is_empty(), "{name}: {troubles:?}");
    let wide = page.evaluate("document.documentElement.scrollWidth > innerWidth");
    assert_eq!(wide, false, "{name}: it is wider than {} pixels", screen.width);
    // What a screen reader says of each control.
    let tree = page.call("Accessibility.getFullAXTree", Value::Null);
    let is_control = |node: &&Value| {
        let properties = node["properties"].as_array().into_iter().flatten();
        let mut focusable = properties.filter(|one| one["name"] == "focusable");
        focusable.any(|one| one["value"]["value"] == true)
            && !["RootWebArea", "main", "listitem"]
                .iter()
                .any(|role| node["role"]["value"] == *role)
    };
    for node in tree["nodes"].as_array().unwrap().iter().filter(is_control) {
        let name = node["name"]["value"].as_str().unwrap_or_default();
        assert!(!name.trim().is_empty(), "{node} has no name");
    }
}

fn walk(test: &str, screen: Screen) {
    let Some(browser) = browser(test) else { return };
    let gateway = Gateway::start(&[]);
    let page = browser.page(screen);
    let check = |state: &str, expected| check(&page, screen, state, expected);

    page.open(&gateway.url("/"));
    check("login", None);
    page.until("document.activeElement.id == 'key'");
    page.type_text("a wrong key");
    page.press("Enter");
    page.until_text("[role=alert]", "not the API key");
    check("login-wrong", Some("status of 401"));
    page.until("document.activeElement.id == 'key'");
    page.type_text(&gateway.key);
    page.press("Enter");
    page.until_text("h1", "Tunnels");
    page.until_text("main", "There is no tunnel yet");
    check("list-empty", None);

    tab_to(&page, "#create-id");
    page.type_text("plant-1:pump");
    tab_to(&page, ".create button");
    page.press("Enter");
    page.until_text("h1", "Tokens of plant-1:pump");
    let token = |id: &str| {
        let token = page.evaluate(&format!("document.getElementById('{id}').value"));
        logs::note_secret(token.as_str().unwrap().as_bytes());
        token.as_str().unwrap().to_owned()
    };
    let (device, access) = (token("device-token"), token("access-token"));
    check("tokens", None);
    tab_to(&page, "main a.button");
    page.press("Enter");
    page.until_text("h1", "Tunnel plant-1:pump");
    page.until_text("#facts", "not connected");
    check("tunnel-offline", None);

    // From here on the page follows by itself.
    let echo = services::echo("echo");
    let service = format!("echo={}", echo.target());
    let _agent = gateway.agent("plant-1:pump", &device, &[service]);
    page.until_text("#facts", "online");
    let (_access, port) = gateway.access("plant-1:pump", &access, "echo");
    let mut session = super::connect(port);
    std::io::Write::write_all(&mut session, b"hello").unwrap();
    page.until_text("#facts", "1 open, 1 in all");
    page.until_text("#events", "The device connected from 127.0.0.1");
    check("tunnel-online", None);
    drop(session);
    page.until_text("#events", "A session of echo");
    check("tunnel-events", None);

    tab_to(&page, "main a");
    page.press("Enter");
    page.until_text("h1", "Tunnels");
    page.until_text("#rows", "online");
    for number in 0..5 {
        gateway.add(&format!("site-{number}-with-a-name-of-some-length"));
    }
    page.until_text("#rows", "site-4");
    check("list", None);

    // Back to the tunnel by its link, and it is removed.
    page.open(&gateway.url("/view/plant-1%3Apump"));
    tab_to(&page, "#remove-sure");
    page.press(" ");
    tab_to(&page, ".danger");
    page.press("Enter");
    page.until_text("h1", "Tunnels");
    page.until("!document.querySelector('#rows').innerText.includes('pump')");
    page.open(&gateway.url("/view/plant-1%3Apump"));
    page.until_text("h1", "That did not work");
    check("error", Some("status of 404"));

    tab_to(&page, "header button");
    page.press("Enter");
    page.until_text("h1", "Log in");
    check("logged-out", None);
    page.open(&gateway.url("/view/site-1-with-a-name-of-some-length"));
    page.until_text("h1", "Log in");
}

#[test]
fn a_user_makes_a_tunnel_and_sees_its_device_by_the_keyboard_alone_small() {
    walk("the page on a small screen", SMALL);
}

#[test]
fn a_user_makes_a_tunnel_and_sees_its_device_by_the_keyboard_alone_large() {
    walk("the page on a large screen", LARGE);
}

#[test]
fn the_page_works_with_tls_and_without_scripts() {
    let Some(browser) = browser("the page with TLS") else { return };
    let gateway = Gateway::start(&["--api-tls"]);
    let page = browser.page(LARGE);
    gateway.log_in(&page);
    let cookies = page.call("Network.getCookies", serde_json::json!({}));
    let cookie = &cookies["cookies"][0];
    assert!(cookie["name"].as_str().unwrap().starts_with("__Host-"), "{cookies}");
    assert!(cookie["secure"] == true && cookie["httpOnly"] == true, "{cookies}");
    assert_eq!(cookie["sameSite"], "Strict");
    assert_eq!(page.evaluate("document.cookie"), "");
    page.call("Emulation.setScriptExecutionDisabled", serde_json::json!({"value": true}));
    page.click("#create-id");
    page.type_text("no-scripts");
    page.click(".create button");
    page.until_text("h1", "Tokens of no-scripts");
    page.click("header button");
    page.until_text("h1", "Log in");
    assert_eq!(page.troubles(), Vec::<String>::new());
}
