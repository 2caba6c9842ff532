//! `gen-token` and `gen-cert`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::{logs, wait};

use super::{run, stdout, Gateway};

#[test]
fn a_token_is_new_each_time_and_its_file_is_its_owners() {
    let token = || {
        let token = stdout(&run(&["gen-token"], &[]));
        logs::note_secret(token.trim().as_bytes());
        token
    };
    let first = token();
    assert_ne!(first, token());
    assert_eq!(first.trim().len(), 43);
    let folder = Folder::new();
    let path = folder.file("api.key").display().to_string();
    assert_eq!(stdout(&run(&["gen-token", "--out", &path], &[])), "");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let content = fs::read(&path).unwrap();
    let again = run(&["gen-token", "--out", &path], &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists"), "{again:?}");
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[test]
fn a_gateway_and_an_agent_work_with_a_generated_certificate() {
    let folder = Folder::new();
    let out = folder.path().display().to_string();
    let generate = ["gen-cert", "--name", "gw.example", "--name", "127.0.0.1", "--out", &out];
    let said = stdout(&run(&generate, &[]));
    let file = |name: &str| folder.file(name).display().to_string();
    let (cert, key) = (file("server.pem"), file("server.key"));
    assert!(said.contains(&format!("--cert {cert} --key {key}")), "{said}");
    for (name, mode) in [("ca.key", 0o600), ("server.key", 0o600)] {
        let file = fs::metadata(folder.file(name)).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, mode, "{name}");
    }
    let (ca, key_of_ca) =
        (fs::read(folder.file("ca.pem")).unwrap(), fs::read(file("ca.key")).unwrap());
    logs::note_secret(&key_of_ca);
    logs::note_secret(&fs::read(&key).unwrap());
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let verified = openssl(&[
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        &file("ca.pem"),
        &cert,
    ]);
    assert!(verified.contains("OK"), "{verified}");
    let names = openssl(&["x509", "-noout", "-ext", "subjectAltName", "-in", &cert]);
    assert!(names.contains("DNS:gw.example") && names.contains("IP Address:127.0.0.1"), "{names}");

    let again = run(&generate, &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("server.pem exists"), "{again:?}");
    // A new certificate of the same CA.
    fs::remove_file(&cert).unwrap();
    fs::remove_file(&key).unwrap();
    stdout(&run(&generate, &[]));
    assert_eq!(fs::read(folder.file("ca.pem")).unwrap(), ca);

    let gateway = Gateway::in_folder(folder, &["--cert", &cert, "--key", &key]);
    let tokens = gateway.add("t1");
    let _agent = gateway.agent("t1", &tokens.device, "_SSH=127.0.0.1:22");
    wait::until("the device is online", || gateway.has_device("t1"));
}
