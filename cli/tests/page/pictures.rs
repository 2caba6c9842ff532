//! The README's pictures of the page and the terminal, of real programs at work. `scripts/pictures` runs it.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::browser::{Browser, BrowserPage, Screen};
use aiot_tunnel_testkit::ssh::Ssh;
use aiot_tunnel_testkit::streams::Door;

use super::terminal::{at_prompt, log_in, run};
use super::{connect, Gateway, LARGE};

/// The devices, and how many bytes each gets in a second at most.
const DEVICES: [(&str, usize); 4] = [
    ("depot-2-gate", 900),
    ("plant-1-pump", 40_000),
    ("plant-1-valve", 300),
    ("tower-7-mast", 150_000),
];
const OTHERS: [&str; 2] = ["plant-3-boiler", "test-bench"];
/// How long there is something to see in the charts.
const RUNS: Duration = Duration::from_secs(240);
const LOG: &str = "2026-11-27T03:14:02Z pump 1 started\n2026-11-27T03:14:05Z 2.1 bar\n\
    2026-11-27T03:19:05Z 2.2 bar\n2026-11-27T03:24:05Z 4.8 bar: valve 3 does not open\n";

/// The environment variable with the directory of the pictures.
const FOLDER: &str = "AIOT_TUNNEL_PICTURES";

/// Takes a picture of the page, light and dark.
fn take(page: &BrowserPage, name: &str) {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    for (dark, scheme) in [(true, "dark"), (false, "light")] {
        page.show_on(Screen { dark, ..LARGE });
        fs::write(folder.join(format!("{name}-{scheme}.png")), page.png()).unwrap();
    }
}

#[test]
#[ignore = "not a test: scripts/pictures runs it"]
fn pictures() {
    if std::env::var_os(FOLDER).is_none() {
        return;
    }
    let browser = Browser::start().unwrap();
    let gateway = Gateway::start(&["--terminal", "--public-url", "wss://gw.example:8443"]);
    let (ssh, door) = (Ssh::with_password().unwrap(), Door::new("load"));
    let (sshd, load) = (ssh.service("_SSH"), door.service());
    door.serve(|mut stream| {
        let mut buffer = [0; 60_000];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let _ = stream.write_all(&buffer[..length / 3]);
        }
    });
    let services = [format!("_SSH={}", sshd.target()), format!("load={}", load.target())];
    let stop = Arc::new(AtomicBool::new(false));
    let mut agents = Vec::new();
    let mut loads = Vec::new();
    for id in OTHERS {
        gateway.add(id);
    }
    let page = browser.page(LARGE);
    gateway.log_in(&page);
    for (id, most) in DEVICES {
        let (device, access) = gateway.add(id);
        agents.push(gateway.agent(id, &device, &services));
        page.open(&gateway.url(&format!("/view/{id}")));
        page.until_text("#facts", "online");
        let (program, port) = gateway.access(id, &access, "load");
        let stop = stop.clone();
        loads.push(thread::spawn(move || {
            let (_program, mut session, began) = (program, connect(port), Instant::now());
            session.set_nonblocking(true).unwrap();
            let mut bytes = vec![0; most + 1];
            while !stop.load(Ordering::Relaxed) {
                let wave = (began.elapsed().as_secs_f64() / 9.0).sin().mul_add(0.4, 0.6);
                let length = (most as f64 * wave * rand::random_range(0.7..1.0)) as usize + 1;
                let _ = session.write(&bytes[..length]);
                let _ = session.read(&mut bytes);
                thread::sleep(Duration::from_secs(1));
            }
        }));
    }
    // Not a condition: the charts show time.
    thread::sleep(RUNS);
    page.open(&gateway.url("/"));
    page.until_text("#rows", "tower-7-mast");
    take(&page, "page");
    page.open(&gateway.url("/view/plant-1-pump"));
    page.until_text("#facts", "online");

    fs::write(ssh.home().join("pump.log"), LOG).unwrap();
    fs::write(ssh.home().join("settings.toml"), "[pump]\nbar = 2.2\n").unwrap();
    fs::create_dir(ssh.home().join("bin")).unwrap();
    page.evaluate("document.getElementById('terminal-login').value = ''");
    page.click("#terminal-login");
    log_in(&page);
    let commands = [
        ("uname -sm", "Linux "),
        ("ls --color=always", "settings.toml"),
        ("tail -n 2 pump.log", "does not open"),
        ("grep --color=always -n bar settings.toml", "2:"),
    ];
    for (command, printed) in commands {
        run(&page, command, printed);
    }
    at_prompt(&page);
    take(&page, "terminal");
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.join().unwrap();
    }
}
