//! The terminal in the browser: a real sshd behind a real agent.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aiot_tunnel_testkit::browser::{Browser, BrowserPage, Screen};
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::ssh::{Ssh, LOGIN, PASSWORD};
use aiot_tunnel_testkit::streams::Door;
use aiot_tunnel_testkit::{skip, wait};
use openssl::hash::{hash, MessageDigest};
use serde_json::json;

use super::walk::{check, tab_to};
use super::{browser, Gateway, LARGE, SMALL};

const PASTE: usize = 1_000_000;
const DOWNLOAD: usize = 100_000_000;

/// A gateway, and a device whose sshd one reaches by the page.
struct Device {
    gateway: Gateway,
    agent: Program,
    access_token: String,
    _ssh: Ssh,
    browser: Browser,
}

impl Device {
    /// With one more service. `None`: this machine cannot run the test.
    fn start(test: &str, service: Option<&aiot_tunnel::Service>) -> Option<Self> {
        let browser = browser(test)?;
        let ssh = Ssh::with_password().map_err(|why| skip(test, why)).ok()?;
        let gateway = Gateway::start(&["--terminal"]);
        if gateway.page_says(&["built without the terminal"]) {
            skip(test, "the program was built without the terminal");
            return None;
        }
        let (device_token, access_token) = gateway.add("t1");
        let sshd = ssh.service("_SSH");
        let mut services = vec![format!("_SSH={}", sshd.target())];
        services.extend(service.map(|more| format!("{}={}", more.service_type(), more.target())));
        let agent = gateway.agent("t1", &device_token, &services);
        Some(Device { gateway, agent, access_token, _ssh: ssh, browser })
    }

    /// Logs in to the page and to the device.
    fn open(&self, screen: Screen) -> BrowserPage {
        let page = self.browser.page(screen);
        self.gateway.log_in(&page);
        page.open(&self.gateway.url("/view/t1"));
        page.until_text("#facts", "online");
        page.evaluate("document.getElementById('terminal-login').value = ''");
        page.click("#terminal-login");
        log_in(&page);
        page
    }
}

/// The lines on the screen. What the terminal has broken to its width is one line.
const SCREEN: &str = "(() => { const buffer = terminal.buffer.active; let text = '';\
    for (let row = 0; row < terminal.rows; row += 1) {\
    const line = buffer.getLine(buffer.baseY + row);\
    text += (line.isWrapped ? '' : '\\n') + line.translateToString(!buffer.getLine(\
    buffer.baseY + row + 1)?.isWrapped); } return text; })()";

/// Waits until the terminal shows a text.
fn shows(page: &BrowserPage, text: &str) {
    page.until("typeof terminal == 'object'");
    page.until(&format!("{SCREEN}.includes({})", json!(text)));
}

/// Types a line when the terminal shows a text.
pub fn answer(page: &BrowserPage, question: &str, line: &str) {
    shows(page, question);
    page.type_text(line);
    page.press("Enter");
}

/// Waits until the shell does. Programs throw away what was typed before they end.
pub fn at_prompt(page: &BrowserPage) {
    page.until(&format!("{SCREEN}.trimEnd().endsWith('$')"));
}

/// Runs a command. What it prints must be a text that the command line does not have.
pub fn run(page: &BrowserPage, command: &str, printed: &str) {
    at_prompt(page);
    page.type_text(command);
    page.press("Enter");
    shows(page, printed);
}

/// Logs in to a device whose host key is not known, from the field for the user on.
pub(super) fn log_in(page: &BrowserPage) {
    page.type_text(LOGIN);
    page.press("Enter");
    answer(page, "continue connecting", "yes");
    answer(page, "password:", PASSWORD);
    shows(page, "$ ");
}

fn a_user_works_in_a_terminal(test: &str, screen: Screen) {
    let Some(device) = Device::start(test, None) else { return };
    let page = device.browser.page(screen);
    device.gateway.log_in(&page);
    page.open(&device.gateway.url("/view/t1"));
    page.until_text("#facts", "online");
    tab_to(&page, "#terminal-login");
    page.press("Control+a");
    // The keys go to the terminal at once.
    log_in(&page);
    run(&page, "echo \"$((6 * 7))\"", "\n42");
    page.until("document.querySelector('.xterm-rows').innerText.includes('42')");
    run(&page, "printf 'caf\\303\\251 %s\\n' \"$TERM\"", "café xterm-256color");
    // The shell is not in front any more when this is printed.
    run(&page, "sh -c 'echo wai\"\"ts; exec sleep 1000'", "waits");
    page.press("Control+c");
    shows(&page, "^C\n$ ");
    run(&page, "ls -d --color=always /tmp /bin/ls /vmlin* 2>&1 | head -n 3; echo d''one", "done");
    check(&page, screen, "terminal", None);
    // The last row and column are inside the frame.
    let edges = "['bottom', 'right'].every(side => document.querySelector('.xterm-screen')\
        .getBoundingClientRect()[side] < place.getBoundingClientRect()[side])";
    page.until(edges);

    // Out of the terminal and back by the keyboard.
    page.press("Control+F6");
    page.until("document.activeElement.id == 'terminal-close'");
    page.evaluate("document.getElementById('terminal-reader').focus()");
    page.press(" ");
    page.until("document.activeElement.ariaLabel == 'Terminal input'");
    run(&page, "echo r''ead", "read");
    check(&page, screen, "terminal-reader", None);

    // The end of the shell.
    at_prompt(&page);
    page.type_text("exit 3\n");
    page.until_text("#terminal-state", "status 3");
    check(&page, screen, "terminal-ended", None);
    page.until("document.activeElement.id == 'terminal-again'");
    page.press("Enter");
    answer(&page, "password:", PASSWORD);
    shows(&page, "$ ");

    // A login that ends ends the terminal, and everything behind it.
    let beside = device.browser.page_beside(&page, LARGE);
    beside.open(&device.gateway.url("/"));
    beside.until_text("#counts", "sessions\n1");
    beside.click("header button");
    beside.until_text("h1", "Log in");
    page.until_text("#terminal-state", "login has ended");
    device.gateway.log_in(&beside);
    beside.until_text("#counts", "sessions\n0");
    assert_eq!(page.troubles(), Vec::<String>::new());
}

#[test]
fn a_user_works_in_a_terminal_small() {
    a_user_works_in_a_terminal("the terminal on a small screen", SMALL);
}

#[test]
fn a_user_works_in_a_terminal_large() {
    a_user_works_in_a_terminal("the terminal on a large screen", LARGE);
}

#[test]
fn a_long_paste_arrives_whole_and_programs_use_the_whole_screen() {
    let Some(device) = Device::start("programs in the terminal", None) else { return };
    let page = device.open(LARGE);

    // The size of the terminal is that of the window.
    let stty = |page: &BrowserPage| {
        let size = page.evaluate("terminal.rows + ' ' + terminal.cols");
        run(page, "clear; stty size", size.as_str().unwrap());
        size
    };
    let before = stty(&page);
    page.show_on(Screen { width: 700, height: 600, ..LARGE });
    page.until("terminal.cols < 100");
    assert_ne!(stty(&page), before);

    let text: String = (0..PASTE / 10).map(|number| format!("line{number:05}\r")).collect();
    let text = &text[..PASTE];
    let digest = hash(MessageDigest::sha256(), text.as_bytes()).unwrap();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let command = format!(
        "clear; stty raw -echo; echo r''eady; head -c {PASTE} | sha256sum | cut -c-40; stty sane"
    );
    run(&page, &command, "ready");
    page.paste(text);
    shows(&page, &digest[..40]);
    // The same with an echo, which comes back while the paste is on its way.
    let command = format!(
        "clear; stty raw; echo r''eady; head -c {PASTE} | sha256sum | cut -c-40; stty sane"
    );
    run(&page, &command, "ready");
    page.paste(text);
    shows(&page, &format!("line99999\r{}", &digest[..40]).replace('\r', "^M"));

    // Programs that draw the screen, before and after a resize.
    run(&page, "clear; top", "load average");
    page.screenshot("terminal-top");
    page.show_on(LARGE);
    page.until("terminal.cols > 100");
    shows(&page, "COMMAND");
    page.press("q");
    run(&page, "clear; echo b''ack", "back");
    match std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .any(|path| path.join("vi").exists())
    {
        false => skip("vi in the terminal", "there is no vi"),
        true => {
            run(&page, "vi letter", "\n~");
            page.type_text("iDear reader,\nthis is a letter.");
            page.press("Escape");
            shows(&page, "this is a letter.");
            page.type_text(":set number\n");
            shows(&page, "2 this is a letter.");
            page.screenshot("terminal-vi");
            page.type_text(":wq\n");
            // Back from the screen of vi.
            shows(&page, "vi letter\n$ ");
            run(&page, "clear; wc -l letter", "2 letter");
        }
    }
    page.screenshot("terminal-after");
    assert_eq!(page.troubles(), Vec::<String>::new());
}

#[test]
fn a_terminal_answers_beside_a_download_in_the_same_tunnel() {
    let door = Door::new("bulk");
    let service = door.service();
    let Some(device) = Device::start("a terminal beside a download", Some(&service)) else {
        return;
    };
    // It sends more than this, until the terminal has answered.
    let (answered, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let enough = answered.clone();
    door.serve(move |mut stream| {
        let (block, mut sent) = (vec![7; 1 << 16], 0);
        while (sent < DOWNLOAD || !enough.load(Ordering::Relaxed))
            && stream.write_all(&block).is_ok()
        {
            sent += block.len();
        }
    });
    let page = device.open(LARGE);
    let (_access, port) = device.gateway.access("t1", &device.access_token, "bulk");
    let mut download = super::connect(port);
    let count = read.clone();
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = download.read(&mut buffer) {
            assert!(buffer[..length].iter().all(|byte| *byte == 7));
            count.fetch_add(length, Ordering::Relaxed);
        }
    });
    wait::until("the download has begun", || read.load(Ordering::Relaxed) > 1_000_000);
    for number in 0..5 {
        run(&page, &format!("echo a''nswer{number}"), &format!("answer{number}"));
    }
    assert!(!reader.is_finished(), "the download is over");
    answered.store(true, Ordering::Relaxed);
    wait::until_within("the end of the download", Duration::from_secs(120), || {
        reader.is_finished()
    });
    reader.join().unwrap();
    assert!(read.load(Ordering::Relaxed) >= DOWNLOAD);
    run(&page, "echo a''fter", "after");
    assert_eq!(page.troubles(), Vec::<String>::new());
    assert!(!device.agent.log().contains("PANIC"));
}

#[test]
fn a_terminal_opens_for_a_page_of_its_login_only() {
    let gateway = Gateway::start(&["--terminal"]);
    if gateway.page_says(&["built without the terminal"]) {
        return skip("terminals without a login", "the program was built without the terminal");
    }
    gateway.add("t1");
    let (cookie, other) = (gateway.cookie(), gateway.cookie());
    let (form_key, other_key) = (gateway.form_key(&cookie), gateway.form_key(&other));
    let ask = |path: &str, cookie: &str, key: &str, origin: &str| {
        let protocol = format!("Sec-WebSocket-Protocol: terminal, {key}");
        let origin = format!("Origin: {origin}");
        let lines = [
            cookie,
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            &protocol,
            &origin,
        ];
        gateway.send_head("GET", path, &lines)
    };
    let (own, path) = (gateway.url(""), "/terminal/t1?login=technician");
    assert_eq!(ask(path, &cookie, &form_key, &own), 101);
    assert_eq!(ask(path, "X-Cookie: none", &form_key, &own), 303);
    assert_eq!(ask(path, &format!("{cookie}x"), &form_key, &own), 303);
    for key in ["", "x", &other_key] {
        assert_eq!(ask(path, &cookie, key, &own), 403, "{key}");
    }
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        assert_eq!(ask(path, &cookie, &form_key, origin), 403, "{origin}");
    }
    // Nothing but a name reaches ssh.
    for name in ["", "-oProxyCommand=id", "a%20b", "a;id", "%24(id)", "a%0Ab", "-v", "x%00"] {
        let path = format!("/terminal/t1?login={name}");
        assert_eq!(ask(&path, &cookie, &form_key, &own), 400, "{name}");
        let page = gateway.send("GET", &format!("/view/t1/terminal?login={name}"), &[&cookie], "");
        assert_eq!(page.status, 400, "{name}");
    }
    for more in ["&login=root", "&command=id", "&port=1"] {
        let status = ask(&format!("{path}{more}"), &cookie, &form_key, &own);
        assert!(status == 400 || !more.contains("login"), "{more}: {status}");
    }
    assert_eq!(ask("/terminal/none?login=technician", &cookie, &form_key, &own), 404);
}
