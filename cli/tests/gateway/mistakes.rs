//! Mistakes of one who runs a gateway for the first time. Each gives one line, with the cause and the
//! cure, and its own exit status.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::process::program;

use super::{run, Gateway};

/// Runs the program and checks its exit status and its only line on standard error.
#[track_caller]
fn fails(arguments: &[&str], status: i32, words: &[&str]) {
    let output = run(arguments, &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    // Warnings may stand before it.
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("aiot-tunnel: ")).collect();
    assert_eq!(lines.len(), 1, "{arguments:?}: {said}");
    for word in words {
        assert!(lines[0].contains(word), "{arguments:?}: {word:?} is not in: {said}");
    }
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let folder = Folder::new();
    let store = folder.file("tunnels.db").display().to_string();
    let key = folder.write_secret("api.key", "hush-key-of-this-gateway");
    let gateway = ["gateway", "--plain", "--store", &store];
    let cure = [&*taken, "another program uses the port", "choose another one"];
    fails(&[&gateway[..], &["--listen", &taken]].concat(), 19, &cure);
    let api = ["--listen", "127.0.0.1:0", "--api", &taken, "--api-key-file", &key];
    fails(&[&gateway[..], &api].concat(), 19, &cure);
    let not_here = ["--listen", "192.0.2.1:8443"];
    fails(&[&gateway[..], &not_here].concat(), 19, &["192.0.2.1", "address of this machine"]);
}

#[test]
fn a_certificate_that_cannot_be_used_is_named() {
    let folder = Folder::new();
    let [one, other] = [0; 2].map(|_| Authority::new().identity("localhost"));
    let cert = folder.write("server.pem", &one.certificate);
    let key = folder.write_secret("other.key", &other.key);
    let empty = folder.write("empty.pem", "");
    let store = folder.file("tunnels.db").display().to_string();
    let gateway = ["gateway", "--listen", "127.0.0.1:0", "--store", &store, "--cert"];
    let with = |cert: &str, key: &str, words: &[&str]| {
        fails(&[&gateway[..], &[cert, "--key", key]].concat(), 21, words);
    };
    with(&cert, &key, &[&cert, &key, "belongs to another certificate"]);
    with(&empty, &key, &[&empty, "PEM"]);
    with(&cert, &cert, &[&cert, "PEM"]);
    with("/nowhere.pem", &key, &["/nowhere.pem", "No such file"]);
}

#[test]
fn a_list_that_cannot_be_used_is_named_with_the_place() {
    let folder = Folder::new();
    let missing = ["gateway", "--plain", "--tunnels", "/nowhere/file"];
    fails(&missing, 22, &["/nowhere/file: No such file"]);
    for (text, words) in [
        ("[{\"id\": \"t1\", \"device_token\": \"hush\"\n", &["line 2", "--help"][..]),
        ("{}", &["line 1", "--help"]),
        ("[]", &["no tunnel"]),
    ] {
        let list = folder.write_secret("tunnels.json", text);
        let words = [&[&*list], words].concat();
        fails(&["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnels", &list], 22, &words);
    }
}

#[test]
fn a_store_that_cannot_be_used_is_named() {
    let folder = Folder::new();
    let other =
        folder.write_secret("other.db", "this is a file of another program, and a long one");
    let gateway = ["gateway", "--plain", "--listen", "127.0.0.1:0", "--store"];
    fails(&[&gateway[..], &[&other]].concat(), 23, &[&other]);
    let missing = ["/nowhere/tunnels.db", "its folder must exist"];
    fails(&[&gateway[..], &missing[..1]].concat(), 23, &missing);
    // As of a file or a folder that is only to be read. Nothing is read-only for root.
    let no_file = folder.path().display().to_string();
    fails(&[&gateway[..], &[&no_file]].concat(), 23, &[&no_file, "must be able to write"]);
    let running = Gateway::start();
    let store = running.folder.file("tunnels.db").display().to_string();
    fails(&[&gateway[..], &[&store]].concat(), 23, &[&store, "another gateway"]);
}

#[test]
fn a_check_finds_files_that_other_users_may_read() {
    let folder = Folder::new();
    let key = folder.write_secret("api.key", "hush-key-of-this-gateway");
    let store = folder.file("tunnels.db").display().to_string();
    let check = ["gateway", "--plain", "--check", "--store", &store, "--api", "127.0.0.1:0"];
    let check = [&check[..], &["--api-key-file", &key]].concat();
    assert!(run(&check, &[]).status.success());
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    fails(&check, 20, &["other users may read"]);
    let said = Command::new(program()).args(&check).output().unwrap().stderr;
    assert!(String::from_utf8(said).unwrap().contains(&format!("run: chmod 600 {key}")));
}

#[test]
fn what_the_api_refuses_has_a_status_of_its_own() {
    let gateway = Gateway::start();
    gateway.add("t1");
    let url = gateway.url();
    let key = gateway.folder.file("api.key").display().to_string();
    let other = gateway.folder.write_secret("other.key", "hush-the-key-of-another-gateway");
    let ask = |words: &[&'static str], key: &str| -> Vec<String> {
        let more = ["--api", &url, "--api-key-file", key].map(str::to_owned);
        [&["tunnel"], words].concat().iter().map(|&word| word.to_owned()).chain(more).collect()
    };
    let fails = |arguments: Vec<String>, status, words: &[&str]| {
        fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), status, words);
    };
    fails(ask(&["list"], &other), 6, &["the API key is wrong", "--api-key-file"]);
    fails(ask(&["show", "nope"], &key), 8, &["there is no tunnel \"nope\""]);
    fails(ask(&["add", "t1"], &key), 15, &["\"t1\" exists"]);
    let none = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = ["tunnel", "list", "--api-key-file", &key, "--api", &format!("http://{none}")];
    fails(nobody.map(str::to_owned).to_vec(), 3, &["Connection refused", "does the gateway run"]);
    let secured = url.replace("http://", "https://");
    let wrong_scheme = ["tunnel", "list", "--api-key-file", &key, "--api", &secured];
    let plain = format!("write {url}");
    fails(wrong_scheme.map(str::to_owned).to_vec(), 4, &["gateway's API", "without TLS", &plain]);
}

#[test]
fn a_file_of_the_api_that_is_missing_is_a_wrong_argument() {
    let folder = Folder::new();
    let key = folder.write_secret("api.key", "hush-key-of-this-gateway");
    let list = ["tunnel", "list", "--api", "https://127.0.0.1:1", "--api-key-file"];
    let missing = ["--api-key-file: /nowhere/key: No such file", "check the name"];
    fails(&[&list[..], &["/nowhere/key"]].concat(), 2, &missing);
    let missing = ["--ca: /nowhere/ca.pem: No such file", "check the name"];
    fails(&[&list[..], &[&key, "--ca", "/nowhere/ca.pem"]].concat(), 2, &missing);
    let no_certificate = ["--ca: ", &key, "no certificate", "ca.pem of gen-cert"];
    fails(&[&list[..], &[&key, "--ca", &key]].concat(), 2, &no_certificate);
}

#[test]
fn urls_that_lead_nowhere_are_warned_of_at_the_start() {
    let folder = Folder::new();
    let key = folder.write_secret("api.key", "hush-key-of-this-gateway");
    let store = folder.file("tunnels.db").display().to_string();
    let check = ["gateway", "--plain", "--check", "--store", &store, "--api", "127.0.0.1:0"];
    let check = [&check[..], &["--api-key-file", &key, "--listen"]].concat();
    let warns = |more: &[&str]| {
        let output = run(&[&check[..], more].concat(), &[]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let mut lines = said.lines().filter(|line| line.contains("--public-url"));
        let line = lines.next().map(str::to_owned);
        assert_eq!(lines.next(), None, "{said}");
        line
    };
    for (address, port) in [("0.0.0.0:8443", 8443), ("[::]:9", 9)] {
        let line = warns(&[address]).expect(address);
        assert!(line.contains(&format!("connect to {address}, which is no machine's")), "{line}");
        assert!(line.ends_with(&format!("--public-url ws://NAME:{port}")), "{line}");
    }
    assert_eq!(warns(&["127.0.0.1:8443"]), None);
    assert_eq!(warns(&["0.0.0.0:8443", "--public-url", "ws://gw.example:8443"]), None);
}

#[test]
fn an_api_with_a_certificate_that_is_not_trusted_is_not_asked() {
    let folder = Folder::new();
    let (ours, other) = (Authority::new(), Authority::new());
    let leaf = ours.identity("localhost");
    let cert = folder.write("server.pem", &leaf.certificate);
    let server_key = folder.write_secret("server.key", &leaf.key);
    let wrong = folder.write("other.pem", other.pem());
    let right = folder.write("ours.pem", ours.pem());
    let gateway = Gateway::in_folder(folder, &["--cert", &cert, "--key", &server_key, "--api-tls"]);
    let url = format!("https://localhost:{}", gateway.api.port());
    let key = gateway.folder.file("api.key").display().to_string();
    let ask = ["tunnel", "list", "--api", &url, "--api-key-file", &key, "--ca"];
    fails(&[&ask[..], &[&wrong]].concat(), 4, &["not trusted", "--ca"]);
    assert!(run(&[&ask[..], &[&right]].concat(), &[]).status.success());
    let plain = url.replace("https://", "http://");
    let ask = ["tunnel", "list", "--api", &plain, "--api-key-file", &key];
    fails(&ask, 3, &["no HTTP answer", "--api-tls", &format!("write {url}")]);
}
