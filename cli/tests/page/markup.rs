//! Whatever strangers may choose is text on the page, never markup.

use aiot_tunnel_testkit::browser::BrowserPage;
use aiot_tunnel_testkit::services;
use serde_json::json;

use super::{browser, Gateway, LARGE};

const IMAGE: &str = "<img src=x onerror=\"window.hit=1\">";
/// An id has neither spaces nor slashes.
const IDS: [&str; 2] = ["<script>window.hit=1;", "\"'><b>bold<b>"];
const SCRIPT: &str = "\"'><script>window.hit=1</script>";

/// The page must show each text, and have no element that a text has made.
fn shows_only_text(page: &BrowserPage, texts: &[&str]) {
    for text in texts {
        page.until_text("body", text);
    }
    let found = page.evaluate("document.querySelectorAll('img, main script, [onerror], b').length");
    assert_eq!(found, 0, "{}", page.text("body"));
    assert_eq!(page.evaluate("window.hit ?? 0"), 0);
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn ids_names_and_errors_with_markup_are_text() {
    let Some(browser) = browser("markup on the page") else { return };
    let gateway = Gateway::start(&[]);
    let page = browser.page(LARGE);
    gateway.log_in(&page);
    let (device, access) = gateway.add(IDS[0]);
    page.click("#create-id");
    page.type_text(IDS[1]);
    page.click(".create button");
    page.until_text("h1", "Tokens of");
    shows_only_text(&page, &[IDS[1]]);
    page.open(&gateway.url("/"));
    shows_only_text(&page, &IDS);
    for id in IDS {
        page.open(&gateway.url(&format!("/view/{}", encoded(id))));
        shows_only_text(&page, &[id]);
        assert!(page.evaluate("document.title").as_str().unwrap().contains(id));
    }

    // Names of services, in the events of sessions that ended and of refused ones.
    let echo = services::echo("echo");
    let service = format!("<b>echo</b>={}", echo.target());
    let _agent = gateway.agent(IDS[0], &device, &[service]);
    page.open(&gateway.url(&format!("/view/{}", encoded(IDS[0]))));
    page.until_text("#facts", "online");
    let (_access, port) = gateway.access(IDS[0], &access, "<b>echo</b>");
    drop(super::connect(port));
    let (_other, port) = gateway.access(IDS[0], &access, IMAGE);
    drop(super::connect(port));
    page.until_text("#events", "A session of <b>echo</b>");
    page.until_text("#events", &format!("was refused for {IMAGE}"));
    shows_only_text(&page, &[]);

    // Addresses and queries.
    let query = format!("/?q={}&state={}&page={}", encoded(SCRIPT), encoded(IMAGE), encoded(IMAGE));
    page.open(&gateway.url(&query));
    shows_only_text(&page, &[]);
    assert_eq!(page.evaluate("document.getElementById('q').value"), SCRIPT);
    assert_eq!(page.troubles(), Vec::<String>::new());

    // Errors that repeat what was sent.
    for path in ["/view/", "/assets/", "/"] {
        page.open(&gateway.url(&format!("{path}{}", encoded(&format!("no-{IMAGE}")))));
        page.until("document.body");
        shows_only_text(&page, &[]);
    }
    for (field, value) in [("#create-id", IMAGE.to_owned()), ("#create-seconds", IMAGE.to_owned())]
    {
        page.open(&gateway.url("/"));
        page.evaluate("document.getElementById('create-expire').value = 'other'");
        let value = json!(value);
        page.evaluate(&format!("document.querySelector('{field}').value = {value}"));
        page.click(".create button");
        page.until_text("h1", "That did not work");
        shows_only_text(&page, &[]);
    }
    // Each of these is an error page, which the browser notes; nothing else went wrong.
    for trouble in page.troubles() {
        assert!(trouble.contains("status of 4"), "{trouble}");
    }
}

#[test]
fn markup_in_the_head_of_a_request_is_text() {
    let gateway = Gateway::start(&["--trusted-proxy", "127.0.0.1/32"]);
    let cookie = gateway.cookie();
    let host = format!("Host: {IMAGE}");
    let forwarded = format!("X-Forwarded-For: {IMAGE}");
    for lines in [[&*cookie, &host], [&*cookie, &forwarded]] {
        let answer = gateway.send("GET", "/", &lines, "");
        assert!(!answer.body.contains("<img"), "{}", answer.body);
        let answer = gateway.send("POST", "/login", &lines, "key=x");
        assert!(!answer.body.contains("<img"), "{}", answer.body);
        let answer = gateway.send("GET", "/", &[&cookie], "");
        assert!(!answer.body.contains("<img"), "{}", answer.body);
    }
}
