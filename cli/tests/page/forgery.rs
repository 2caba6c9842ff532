//! Nobody sees or changes anything without a login, and no other site changes anything with it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;

use super::{browser, Gateway, LARGE};

const FORMS: [(&str, &str); 4] = [
    ("/create", "id=forged"),
    ("/view/kept/rotate", "side=both"),
    ("/view/kept/remove", "sure=yes"),
    ("/logout", ""),
];

/// Neither a forged tunnel nor a changed one.
fn nothing_has_changed(gateway: &Gateway, cookie: &str) {
    let list = gateway.send("GET", "/", &[cookie], "").body;
    assert!(list.contains(">kept<") && !list.contains("forged"), "{list}");
    let shown = gateway.send("GET", "/view/kept", &[cookie], "").body;
    assert!(shown.contains(">never<") && !shown.contains(">New tokens</dt>"), "{shown}");
}

#[test]
fn nothing_is_shown_and_nothing_changes_without_a_login() {
    let gateway = Gateway::start(&[]);
    gateway.add("kept");
    let cookie = gateway.cookie();
    let name = cookie.split('=').next().unwrap();
    let wrong = ["".to_owned(), format!("{name}="), format!("{name}=x"), format!("{cookie}x")];
    for line in &wrong {
        let lines: &[&str] = if line.is_empty() { &[] } else { &[line] };
        for path in
            ["/view/kept", "/view/none", "/view/kept/terminal", "/terminal/kept", "/?q=kept"]
        {
            let answer = gateway.send("GET", path, lines, "");
            assert!([200, 303, 401].contains(&answer.status), "{path}: {}", answer.status);
            assert!(!answer.body.contains("kept"), "{path}: {}", answer.body);
        }
        let live = [lines, &["x-live: 1"]].concat();
        assert_eq!(gateway.send("GET", "/", &live, "").status, 401);
        for (path, form) in FORMS {
            let answer = gateway.post(path, lines, form);
            assert_eq!(answer.status, 401, "{path}: {}", answer.body);
        }
        assert_eq!(gateway.send("GET", "/tunnels", lines, "").status, 401);
    }
    // A login is for the page; the API takes the key alone.
    assert_eq!(gateway.send("GET", "/tunnels", &[&cookie], "").status, 401);
    nothing_has_changed(&gateway, &cookie);
    let log = gateway.program.log();
    assert!(!log.contains(&gateway.key), "{log}");
}

#[test]
fn a_form_counts_only_from_a_page_of_this_login() {
    let gateway = Gateway::start(&[]);
    gateway.add("kept");
    let (cookie, other) = (gateway.cookie(), gateway.cookie());
    let (form_key, other_key) = (gateway.form_key(&cookie), gateway.form_key(&other));
    let kind = "Content-Type: application/x-www-form-urlencoded";
    let origin = format!("Origin: {}", gateway.url(""));
    for (path, form) in FORMS {
        for key in ["", "form_key=", "form_key=x", &format!("form_key={other_key}")] {
            let answer = gateway.post(path, &[&cookie], &format!("{form}&{key}"));
            assert_eq!(answer.status, 403, "{path} {key}: {}", answer.body);
        }
        let good = format!("{form}&form_key={form_key}");
        for lines in [
            vec![&*cookie, kind],
            vec![&cookie, kind, "Origin: null"],
            vec![&cookie, kind, "Origin: http://evil.example"],
            vec![&cookie, kind, "Origin: http://127.0.0.1:1"],
            vec![&cookie, kind, &origin, "Sec-Fetch-Site: cross-site"],
            vec![&cookie, kind, &origin, "Sec-Fetch-Site: same-site"],
            vec![&cookie, kind, &origin, "Sec-Fetch-Site: none"],
            vec![&cookie, kind, "Sec-Fetch-Site: same-origin", "Host: evil.example"],
        ] {
            let answer = gateway.send("POST", path, &lines, &good);
            // With the name of another host, there is no cookie of this login.
            assert!([401, 403].contains(&answer.status), "{path} {lines:?}: {}", answer.status);
        }
        // Nor is the key of a form taken from the address.
        let answer = gateway.post(&format!("{path}?form_key={form_key}"), &[&cookie], form);
        assert_eq!(answer.status, 403, "{path}");
        let answer = gateway.send("GET", &format!("{path}?{good}"), &[&cookie], "");
        assert!([303, 404, 405].contains(&answer.status), "{path}: {}", answer.status);
    }
    nothing_has_changed(&gateway, &cookie);
    // The same request in order is carried out.
    let answer =
        gateway.post("/view/kept/remove", &[&cookie], &format!("sure=yes&form_key={form_key}"));
    assert_eq!(answer.status, 303, "{}", answer.body);
    assert_eq!(gateway.send("GET", "/view/kept", &[&cookie], "").status, 404);
}

#[test]
fn each_page_forbids_what_it_does_not_need() {
    let gateway = Gateway::start(&[]);
    gateway.add("kept");
    let cookie = gateway.cookie();
    for (path, lines) in [
        ("/", vec![]),
        ("/", vec![&*cookie]),
        ("/view/kept", vec![&cookie]),
        ("/view/none", vec![&cookie]),
    ] {
        let answer = gateway.send("GET", path, &lines, "");
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        for part in
            ["script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"]
        {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}: {}", answer.head);
    }
    let answer = gateway.post("/login", &[], &format!("key={}", gateway.key));
    let cookie = answer.header("set-cookie");
    assert!(cookie.contains("; HttpOnly; SameSite=Strict; "), "{cookie}");
}

#[test]
fn a_page_of_another_site_changes_nothing() {
    let Some(browser) = browser("a forged form") else { return };
    let gateway = Gateway::start(&[]);
    gateway.add("kept");
    let page = browser.page(LARGE);
    gateway.log_in(&page);
    // Another port of this machine is the same site for cookies, another name is not.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = gateway.url("/create");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while lines.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
            let body = format!(
                "<!DOCTYPE html><title>evil</title><form method=post action=\"{target}\">\
                 <input name=id value=forged><button>Win</button></form>"
            );
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    for host in ["127.0.0.1", "localhost"] {
        page.open(&format!("http://{host}:{port}/"));
        page.click("button");
        page.until("document.title != 'evil' && document.readyState == 'complete'");
        assert!(!page.text("body").contains("Tokens"), "{}", page.text("body"));
    }
    page.open(&gateway.url("/"));
    page.until_text("#rows", "kept");
    assert!(!page.text("body").contains("forged"), "{}", page.text("body"));
}
