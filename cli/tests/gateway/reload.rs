//! New files while the gateway runs: open sessions go on.

use std::fs;
use std::net::TcpStream;

use aiot_tunnel_testkit::certificates::{self, Authority};
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::path::Program;
use aiot_tunnel_testkit::{gateways, services, wait};
use serde_json::{json, Value};

use super::{certify, echoes, Gateway};

/// A list of tunnels, each with tokens that begin like its name.
fn list(tunnels: &[(&str, &str)]) -> String {
    let entry = |&(id, token): &(&str, &str)| {
        json!({
            "id": id,
            "device_token": format!("hush-device-{token}"),
            "access_token": format!("hush-access-{token}"),
        })
    };
    Value::from(tunnels.iter().map(entry).collect::<Vec<_>>()).to_string()
}

/// Puts a new file in the place of the old one, as editors do.
fn replace(folder: &Folder, name: &str, content: &[u8]) {
    folder.write_secret("new", content);
    fs::rename(folder.file("new"), folder.file(name)).unwrap();
}

fn gateway_with_list(content: &str) -> Gateway {
    let folder = Folder::new();
    let file = folder.write_secret("tunnels.json", content);
    Gateway::in_folder(folder, &["--plain", "--tunnels", &file])
}

#[test]
fn a_new_list_is_in_force_at_once_and_a_broken_one_is_not() {
    let gateway = gateway_with_list(&list(&[("t1", "1"), ("t2", "2"), ("t3", "3")]));
    let connect = |id: &str, token: &str| {
        let (path, token) = (format!("/tunnel/{id}/dest"), format!("hush-device-{token}"));
        gateways::connect(gateway.address, &path, Some(&token))
    };
    let mut devices: Vec<_> = [("t1", "1"), ("t2", "2"), ("t3", "3")]
        .map(|(id, token)| connect(id, token).unwrap())
        .into();
    // t1 stays, t2 has new tokens, t3 is gone, t4 is new. The file changes; nobody sends a signal.
    let new = list(&[("t1", "1"), ("t2", "two"), ("t4", "4")]);
    replace(&gateway.folder, "tunnels.json", new.as_bytes());
    assert_eq!(devices[1].receive_close(), Some(4001));
    assert_eq!(devices[2].receive_close(), Some(1001));
    gateway.program.expect_log("1 tunnel added, 1 changed, 1 removed");
    assert!(connect("t4", "4").is_ok());
    assert_eq!(connect("t2", "2").err(), Some(401));
    assert!(connect("t2", "two").is_ok());
    assert_eq!(connect("t3", "3").err(), Some(404));

    for (broken, why) in [
        ("[{\"id\": \"t1\", \"device_token\": \"hush-d", "line 1, column"),
        (&list(&[("t1", "1"), ("t1", "5")]), "entry 1 has the same id"),
    ] {
        replace(&gateway.folder, "tunnels.json", broken.as_bytes());
        gateway.program.expect_log(why);
        let log = gateway.program.log();
        let line = log.lines().find(|line| line.contains(why)).unwrap();
        assert!(line.contains("tunnels.json") && line.contains("the old list stays"), "{line}");
    }
    // An id of the store.
    gateway.add("t5");
    replace(&gateway.folder, "tunnels.json", list(&[("t5", "5")]).as_bytes());
    gateway.program.expect_log("is in the store, too");
    assert!(connect("t4", "4").is_ok());
    devices[0].ping(b"still here");
    assert!(gateway.has_device("t1"), "the one that stayed");
    let (_, shown) = gateway.ask("GET", "/tunnels/t1", None);
    assert_eq!(shown["source"], "list");
    for (method, path) in [("DELETE", "/tunnels/t1"), ("POST", "/tunnels/t1/rotate")] {
        let (status, answer) = gateway.ask(method, path, None);
        assert_eq!(status, 409);
        assert!(answer["error"].as_str().unwrap().contains("change it there"), "{answer}");
    }
    // An empty list takes all of them away, and leaves the store alone.
    replace(&gateway.folder, "tunnels.json", b"[]");
    gateway.program.expect_log("0 tunnels added, 0 changed, ");
    assert_eq!(connect("t1", "1").err(), Some(404));
    assert_eq!(gateway.ask("GET", "/tunnels/t5", None).0, 200);
    assert!(!gateway.program.log().contains("hush-"));
}

#[test]
fn a_list_that_stays_the_same_does_not_renew_an_expiry() {
    let entry =
        json!([{"id": "t1", "device_token": "hush-d", "access_token": "hush-a", "expire": 3600}]);
    let mut gateway = gateway_with_list(&entry.to_string());
    let expires = gateway.show("t1")["expires"].clone();
    assert!(expires.is_string());
    gateway.program.process.hang_up();
    gateway.program.expect_log("0 tunnels added, 0 changed, 0 removed");
    assert_eq!(gateway.show("t1")["expires"], expires);
}

#[test]
fn a_new_key_of_the_api_is_said_to_need_a_restart() {
    let mut gateway = Gateway::start();
    gateway.program.process.hang_up();
    gateway.program.expect_log("no setting has changed");
    assert!(!gateway.program.log().contains("restart"), "{}", gateway.program.log());
    replace(&gateway.folder, "api.key", b"hush-another-key-of-the-api");
    gateway.program.process.hang_up();
    gateway.program.expect_log("reload: api_key_file: ");
    gateway.program.expect_log("api.key has changed, which needs a restart of the gateway");
    assert_eq!(gateway.ask("GET", "/tunnels", None).0, 200, "the key of the start");
}

/// The CA that has certified the certificate of now, as a client of TLS sees it.
fn shows(address: std::net::SocketAddr, authority: &Authority) -> bool {
    let tcp = TcpStream::connect(address).unwrap();
    certificates::connector(&authority.pem()).connect("127.0.0.1", tcp).is_ok()
}

#[test]
fn a_new_certificate_is_shown_to_new_connections_and_open_sessions_go_on() {
    let folder = Folder::new();
    let (first, second) = (Authority::new(), Authority::new());
    certify(&folder, &first);
    let file = |name: &str| folder.file(name).display().to_string();
    let (cert, key) = (file("server.pem"), file("server.key"));
    let mut gateway = Gateway::in_folder(folder, &["--cert", &cert, "--key", &key]);
    let tokens = gateway.add("t1");
    let service = services::echo("echo");
    let _agent = gateway.agent("t1", &tokens.device, &format!("echo={}", service.target()));
    wait::until("the device is online", || gateway.has_device("t1"));
    let (_access, address) = gateway.access("t1", &tokens.access, "echo");
    let mut client = TcpStream::connect(address).unwrap();
    echoes(&mut client, "before");
    assert!(shows(gateway.address, &first));

    // On a signal, although the files are watched.
    certify(&gateway.folder, &second);
    gateway.program.process.hang_up();
    wait::until("the new certificate is shown", || shows(gateway.address, &second));
    assert!(!shows(gateway.address, &first));
    echoes(&mut client, "after");

    // A key that does not belong to it, and no key at all.
    for broken in [Authority::new().identity("127.0.0.1").key, b"hush-no-key".to_vec()] {
        let before = gateway.program.log().matches("the old certificate stays").count();
        replace(&gateway.folder, "server.key", &broken);
        gateway.program.process.hang_up();
        wait::until("the refusal is in the log", || {
            gateway.program.log().matches("the old certificate stays").count() > before
        });
        assert!(shows(gateway.address, &second));
    }
    echoes(&mut client, "at the end");
    assert!(!gateway.program.log().contains("hush-no-key"));
}

#[test]
fn the_api_has_the_certificate_of_now_too() {
    let folder = Folder::new();
    let (first, second) = (Authority::new(), Authority::new());
    certify(&folder, &first);
    let file = |name: &str| folder.file(name).display().to_string();
    let (cert, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let gateway = Gateway::in_folder(folder, &["--cert", &cert, "--key", &key, "--api-tls"]);
    let key_file = gateway.folder.file("api.key").display().to_string();
    let list = || {
        let url = format!("https://{}", gateway.api);
        super::run(
            &["tunnel", "list", "--api", &url, "--api-key-file", &key_file, "--ca", &ca],
            &[],
        )
    };
    assert!(list().status.success());
    gateway.folder.write("ca.pem", second.pem());
    let output = list();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("not trusted") && error.contains("--ca"), "{error}");
    certify(&gateway.folder, &second);
    wait::until("the API shows the new certificate", || list().status.success());
}

/// Without the API, as a gateway was before it had one.
#[test]
fn the_list_of_a_gateway_without_a_store_is_watched_too() {
    let folder = Folder::new();
    let file = folder.write_secret("tunnels.json", list(&[("t1", "1")]));
    let mut program =
        Program::start(&["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnels", &file]);
    let address = program.address();
    let connects = |id: &str, token: &str| {
        let (path, token) = (format!("/tunnel/{id}/dest"), format!("hush-device-{token}"));
        gateways::connect(address, &path, Some(&token)).is_ok()
    };
    assert!(connects("t1", "1") && !connects("t2", "2"));
    // Written in place.
    fs::write(&file, list(&[("t1", "1"), ("t2", "2")])).unwrap();
    wait::until("the new tunnel is there", || connects("t2", "2"));
    // A link in its place, as Kubernetes does it.
    folder.write_secret("other.json", list(&[("t3", "3")]));
    std::os::unix::fs::symlink("other.json", folder.file("link")).unwrap();
    fs::rename(folder.file("link"), &file).unwrap();
    wait::until("the link's file counts", || connects("t3", "3"));
    fs::write(folder.file("other.json"), list(&[("t4", "4")])).unwrap();
    wait::until("the link's file is watched", || connects("t4", "4"));
}
