//! The exported symbols and the layout of every public type, which compiled firmware relies on,
//! compared with the lists under `tests/abi/`. `docs/abi.md` says what may change and when.
#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};

use serde_json::Value;

/// The shared library, which `cargo test` does not build.
fn shared_library() -> String {
    let cargo = Command::new(env!("CARGO"))
        .args(["rustc", "--quiet", "--lib", "--crate-type", "cdylib", "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(cargo.status.success(), "cargo builds no shared library");
    let messages = String::from_utf8(cargo.stdout).unwrap();
    let mut messages = messages.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let file = messages.find_map(|message| {
        let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
        files.into_iter().find(|file| file.ends_with("libaiot_tunnel.so")).map(str::to_owned)
    });
    file.expect("cargo names the shared library")
}

/// The names that the library exports, as `name kind` lines in alphabetical order.
fn exported_symbols() -> String {
    let nm = Command::new("nm").args(["-D", "--defined-only", &shared_library()]).output().unwrap();
    assert!(nm.status.success(), "{}", String::from_utf8_lossy(&nm.stderr));
    let mut symbols: Vec<String> =
        String::from_utf8(nm.stdout).unwrap().lines().map(symbol).collect();
    symbols.sort();
    symbols.concat()
}

/// A line of nm, `<address> <letter> <name>`, as a `name kind` line.
fn symbol(line: &str) -> String {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let &[_, letter, name] = fields.as_slice() else { panic!("nm printed {line:?}") };
    let kind = match letter {
        "T" => "function",
        "B" | "D" => "object",
        _ => letter,
    };
    format!("{name} {kind}\n")
}

#[test]
fn exactly_the_listed_symbols_are_exported() {
    assert_eq!(exported_symbols(), include_str!("abi/symbols.txt"));
}

/// The two lists as they were at the first release of the C interface. Programs were compiled against
/// it, so these two files never change.
#[test]
fn what_programs_were_compiled_against_stays() {
    for (kept, now) in [
        (include_str!("abi/kept-symbols.txt"), include_str!("abi/symbols.txt")),
        (include_str!("abi/kept-layout.txt"), include_str!("abi/layout.txt")),
    ] {
        let gone: Vec<&str> =
            kept.lines().filter(|kept| !now.lines().any(|l| l == *kept)).collect();
        assert!(gone.is_empty(), "gone or changed: {gone:?}");
    }
}

#[cfg(target_pointer_width = "64")]
mod layout {
    use std::mem::{offset_of, size_of};

    use aiot_tunnel::capi::observe::*;
    use aiot_tunnel::capi::state::*;
    use aiot_tunnel::capi::sysdep::*;
    use aiot_tunnel::capi::tunnel::*;

    macro_rules! layout {
        ($($name:ident { $($field:ident),* })*) => {{
            let mut lines = String::new();
            $(
                lines += &format!("{} size {}\n", stringify!($name), size_of::<$name>());
                $(
                    let offset = offset_of!($name, $field);
                    let field = stringify!($field).trim_start_matches("r#");
                    lines += &format!("{}.{field} offset {offset}\n", stringify!($name));
                )*
            )*
            lines
        }};
    }

    #[test]
    fn every_public_type_has_the_listed_layout() {
        let layout = layout! {
            aiot_state_logcb_t {}
            aiot_sysdep_network_cred_option_t {}
            aiot_sysdep_network_cred_t {
                option, max_tls_fragment, sni_enabled, x509_server_cert, x509_server_cert_len,
                x509_client_cert, x509_client_cert_len, x509_client_privkey,
                x509_client_privkey_len, tls_extend_info
            }
            aiot_sysdep_portfile_t {
                core_sysdep_malloc, core_sysdep_free, core_sysdep_time, core_sysdep_sleep,
                core_sysdep_network_init, core_sysdep_network_setopt,
                core_sysdep_network_establish, core_sysdep_network_recv,
                core_sysdep_network_send, core_sysdep_network_deinit, core_sysdep_rand,
                core_sysdep_mutex_init, core_sysdep_mutex_lock, core_sysdep_mutex_unlock,
                core_sysdep_mutex_deinit
            }
            core_sysdep_addr_t { addr, port }
            core_sysdep_network_option_t {}
            core_sysdep_psk_t { psk_id, psk }
            core_sysdep_socket_type_t {}
            aiot_tunnel_connect_param_t { host, port, path, token }
            aiot_tunnel_event_handler_t {}
            aiot_tunnel_event_t { r#type, tunnel_id }
            aiot_tunnel_event_type {}
            aiot_tunnel_option_t {}
            aiot_tunnel_service_t { r#type, ip, port }
            aiot_tunnel_limit_t {}
            aiot_tunnel_listen_t { size, key, mode, has_owner, owner }
            aiot_tunnel_notice_handler_t {}
            aiot_tunnel_notice_t {
                size, r#type, code, dropped, bytes_from_cloud, bytes_to_cloud, text, tunnel_id,
                session_id, service_type
            }
            aiot_tunnel_notice_type_t {}
            aiot_tunnel_session_t {
                size, reserved, age_ms, bytes_from_cloud, bytes_to_cloud, session_id, service_type
            }
            aiot_tunnel_session_visitor_t {}
            aiot_tunnel_state_t {}
            aiot_tunnel_status_t {
                size, state, since_ms, retry_at_ms, attempts, sessions, port, reserved, tunnel_id,
                host, last_error
            }
            aiot_tunnel_status_visitor_t {}
        };
        assert_eq!(layout, include_str!("abi/layout.txt"));
    }
}
