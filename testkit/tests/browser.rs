//! The browser of the tests does what a user's does, and reports what goes wrong in a page.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;

use aiot_tunnel_testkit::browser::{Browser, Screen};
use aiot_tunnel_testkit::skip;
use serde_json::json;

const PAGE: &str = "<!DOCTYPE html><html lang=en><title>t</title>\
    <meta name=viewport content='width=device-width, initial-scale=1'><main><h1>t</h1>\
    <label>Name <input id=name></label><button id=go type=button>Go</button>\
    <p id=said></p></main><img id=bad src=/missing>\
    <style>@media (prefers-color-scheme: dark) { body { color: rgb(1, 2, 3) } }</style>\
    <script src=/script></script></html>";
const SCRIPT: &str = "const field = document.getElementById('name');\
    go.onclick = () => said.textContent = field.value + '!';\
    document.body.addEventListener('paste', event =>\
    said.textContent = event.clipboardData.getData('text/plain').length);\
    field.onkeydown = event =>\
    document.title = [event.key, event.keyCode, event.ctrlKey].join(' ');";

/// A server of one page, which forbids scripts and styles in the text.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().and_then(Result::ok).unwrap_or_default();
            while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
            let (status, kind, body) = match first.split(' ').nth(1) {
                Some("/") => ("200 OK", "text/html", PAGE),
                Some("/script") => ("200 OK", "text/javascript", SCRIPT),
                // Asked for by itself.
                Some("/favicon.ico") => ("200 OK", "image/gif", ""),
                _ => ("404 Not Found", "text/plain", ""),
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
                 content-security-policy: default-src 'self'\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    format!("http://{address}/")
}

#[test]
fn the_browser_types_clicks_and_reports_what_goes_wrong() {
    let browser = match Browser::start() {
        Ok(browser) => browser,
        Err(why) => return skip("the browser", why),
    };
    let url = server();
    let page = browser.page(Screen { width: 375, height: 667, dark: false });
    page.open(&url);
    assert_eq!(page.evaluate("[innerWidth, innerHeight]"), json!([375, 667]));
    let troubles = page.troubles();
    assert!(troubles.iter().any(|text| text.contains("Content Security Policy")), "{troubles:?}");
    assert!(troubles.iter().any(|text| text.contains("404")), "{troubles:?}");
    page.press("Tab");
    page.type_text("aZ €5");
    assert_eq!(page.evaluate("document.getElementById('name').value"), "aZ €5");
    page.press("Control+a");
    page.until("document.title == 'a 65 true'");
    page.press("Tab");
    page.press("Enter");
    page.until_text("#said", "aZ €5!");
    page.press("Shift+Tab");
    page.press("Backspace");
    page.click("#go");
    page.until("said.textContent == '!'");
    page.click("#name");
    page.paste(&"x".repeat(1_000_000));
    page.until_text("#said", "1000000");
    assert_eq!(page.troubles(), Vec::<String>::new());
    match page.barriers() {
        Ok(found) => assert!(found.len() == 1 && found[0].contains("image-alt"), "{found:?}"),
        Err(why) => skip("axe-core", why),
    }

    page.evaluate("setTimeout(() => { alert('dialogue'); console.error('said'); absent() })");
    page.until("typeof axe");
    let troubles = page.troubles().concat();
    for text in ["dialogue", "said", "absent is not defined"] {
        assert!(troubles.contains(text), "{troubles}");
    }
    page.show_on(Screen { width: 1280, height: 800, dark: true });
    assert_eq!(page.evaluate("innerWidth"), 1280);
    assert!(page.png().starts_with(b"\x89PNG"));
    let other = browser.page(Screen { width: 1280, height: 800, dark: false });
    other.open(&url);
    page.evaluate("document.cookie = 'a=b'");
    assert_eq!(other.evaluate("document.cookie"), "");
    let beside = browser.page_beside(&page, Screen { width: 1280, height: 800, dark: false });
    beside.open(&url);
    assert_eq!(beside.evaluate("document.cookie"), "a=b");
}
