//! `aiot-tunnel gateway --legacy-tls`, and a client that knows nothing but RSA key exchange, as the
//! Link SDK's mbedTLS: here the program `openssl`.

use std::process::{Command, Stdio};

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::process::{program, Process};
use aiot_tunnel_testkit::skip;

/// Runs `openssl` in the folder: whether it succeeds, and what it prints.
fn openssl(folder: &Folder, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new("openssl");
    let output = command.args(arguments).current_dir(folder.path()).stdin(Stdio::null()).output();
    let output = output.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn a_client_with_static_rsa_suites_only_gets_in_with_legacy_tls_alone() {
    if Command::new("openssl").arg("version").output().is_err() {
        let test = "a_client_with_static_rsa_suites_only_gets_in_with_legacy_tls_alone";
        skip(test, format_args!("there is no openssl"));
        return;
    }
    let folder = Folder::new();
    let request = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout key.pem -out cert.pem";
    let (made, said) = openssl(&folder, &request.split(' ').collect::<Vec<_>>());
    assert!(made, "{said}");
    for legacy in [true, false] {
        let mut command = Command::new(program());
        command.args(["gateway", "--listen", "127.0.0.1:0", "--tunnel", "t1"]);
        command.args(["--cert", "cert.pem", "--key", "key.pem"]).current_dir(folder.path());
        command.env("AIOT_TUNNEL_DEVICE_TOKEN", "hush-d").env("AIOT_TUNNEL_ACCESS_TOKEN", "hush-a");
        if legacy {
            command.arg("--legacy-tls");
        }
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut gateway = Process::start(&mut command);
        let line = gateway.lines().next_line();
        let address = line.strip_prefix("listening on ").unwrap();
        for suite in ["AES128-SHA256", "AES256-SHA256", "AES128-GCM-SHA256", "AES256-GCM-SHA384"] {
            let client = ["s_client", "-tls1_2", "-cipher", suite, "-connect", address];
            let (connected, said) = openssl(&folder, &client);
            assert_eq!(connected, legacy, "{suite}, --legacy-tls {legacy}: {said}");
            if legacy {
                assert!(said.contains(&format!("Cipher is {suite}")), "{said}");
            }
        }
        // What a newer client gets does not change.
        let (connected, said) = openssl(&folder, &["s_client", "-tls1_2", "-connect", address]);
        assert!(connected && said.contains("Cipher is ECDHE-"), "{said}");
    }
}
