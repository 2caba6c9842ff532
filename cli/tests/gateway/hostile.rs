//! Clients of the API that mean no good.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::random;
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use rand::RngExt;
use serde_json::json;

use super::Gateway;

const SEED: u64 = 17;

/// Sends bytes, closes the sending direction and reads everything. Empty if there is no answer.
fn exchange(gateway: &Gateway, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(gateway.api).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut answer = Vec::new();
    // The gateway may have answered and closed already.
    if stream.write_all(bytes).is_ok() {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn is_well(gateway: &Gateway) {
    assert_eq!(gateway.ask("GET", "/healthz", None), (200, json!({"status": "ok", "store": "ok"})));
}

#[test]
fn no_request_is_answered_with_5xx_or_ends_the_gateway() {
    let gateway = Gateway::start();
    gateway.add("t1");
    let key = &gateway.key;
    let seeds = [
        "GET /tunnels HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /tunnels HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: 29\r\n\r\n{\"id\": \"t2\", \"expire\": 86400}",
        "POST /tunnels/t1/rotate HTTP/1.1\r\nContent-Type: application/json\r\n\
         Content-Length: 18\r\n\r\n{\"side\": \"access\"}",
        "DELETE /tunnels/t1 HTTP/1.1\r\n\r\n",
    ];
    // Not changed: wrong keys would be slowed.
    let line = format!("Authorization: Bearer {key}\r\n").into_bytes();
    let tokens: [&[u8]; 14] = [
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b"\xff",
        b"%00",
        b"%",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"{\"a\":",
        b"[[[[[[[[[[[[[[[[[[[[",
        b"1e999",
        b" ",
    ];
    let mut random = random::part(SEED, 0);
    let mut below = move |end: usize| random.random_range(0..end);
    for _ in 0..1500 {
        let mut bytes = seeds[below(seeds.len())].as_bytes().to_vec();
        for _ in 0..1 + below(4) {
            let at = below(bytes.len() + 1);
            match below(4) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = below(256) as u8,
                2 => drop(bytes.splice(at..at, tokens[below(tokens.len())].iter().copied())),
                _ => {
                    let end = at + below(bytes.len() - at + 1);
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
        if let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
            bytes.splice(end + 2..end + 2, line.iter().copied());
        }
        let answer = exchange(&gateway, &bytes);
        let shown = || String::from_utf8_lossy(&bytes).replace(key.as_str(), "KEY");
        let text = String::from_utf8_lossy(&answer).into_owned();
        if !text.is_empty() {
            let status =
                text.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("{text}: {}", shown()));
            assert!(matches!(status.as_bytes()[0], b'1' | b'2' | b'4'), "{text}: {}", shown());
        }
        assert!(!text.contains(key.as_str()), "the key in an answer");
    }
    is_well(&gateway);
    let log = gateway.program.log();
    assert!(!log.contains(key.as_str()) && !log.contains("panicked"), "{log}");
}

#[test]
fn a_request_that_is_too_large_is_refused_with_the_reason() {
    let gateway = Gateway::start();
    let key = &gateway.key;
    let head = format!("GET /tunnels HTTP/1.1\r\nAuthorization: Bearer {key}\r\n");
    for (request, status) in [
        (format!("{head}X: {}\r\n\r\n", "x".repeat(20_000)), "431"),
        (format!("{head}{}\r\n", "X: y\r\n".repeat(100)), "431"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)), "431"),
        (format!("{head}Content-Length: 65537\r\n\r\n"), "413"),
        (format!("{head}Content-Length: {}\r\n\r\n", "9".repeat(100)), "400"),
        (format!("{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"), "400"),
        (format!("{head}Content-Length: +1\r\n\r\n"), "400"),
        // Two keys, of which one is right.
        (format!("{head}Authorization: Bearer other\r\n\r\n"), "401"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = String::from_utf8(exchange(&gateway, request.as_bytes())).unwrap();
        assert_eq!(answer.get(9..12), Some(status), "{answer}");
    }
    is_well(&gateway);
}

#[test]
fn whoever_guesses_the_key_is_slowed_and_told_so() {
    let gateway = Gateway::start();
    let guess = || gateway.request("GET", "/tunnels", Some("hush-a-guess-at-the-key"), None).status;
    // Mistyped keys are answered at once.
    (0..5).for_each(|_| assert_eq!(guess(), 401));
    let begun = Instant::now();
    (0..3).for_each(|_| assert_eq!(guess(), 401));
    assert!(begun.elapsed() >= Duration::from_secs(3));
    // Many at once do not guess faster.
    let (begun, looked_at) = (Instant::now(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| match guess() {
                401 => drop(looked_at.fetch_add(1, Ordering::Relaxed)),
                status => assert_eq!(status, 429),
            });
        }
    });
    let (seconds, looked_at) = (begun.elapsed().as_secs_f64(), looked_at.into_inner());
    assert!(looked_at > 0 && looked_at as f64 <= seconds + 1.0, "{looked_at} in {seconds} s");
    // The right key has its turn, too.
    let list = || gateway.request("GET", "/tunnels", Some(&gateway.key), None).status;
    wait::until("the right key is taken", || list() == 200);
    // Nobody needs a key, or a turn, to see that the gateway is well.
    is_well(&gateway);
    assert_eq!(gateway.program.log().matches("a wrong key").count(), 1);
}

#[test]
fn clients_that_say_nothing_or_little_hold_nobody_up() {
    let gateway = Gateway::start();
    // More than may be connected at once: some say nothing, some have begun.
    let idle: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = TcpStream::connect(gateway.api).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /tunnels HTTP/1.1\r\nX: ").unwrap();
            }
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(gateway.ask("GET", "/tunnels", None).0, 200);
    }
    // The youngest are still there, until their time is over.
    let mut last = idle.last().unwrap();
    last.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(last.read(&mut [0]).unwrap(), 0);
}

#[test]
fn one_who_sends_byte_by_byte_does_not_prolong_its_time() {
    let gateway = Gateway::start();
    let mut stream = TcpStream::connect(gateway.api).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut answer = [0; 12];
    let deadline = Instant::now() + TIMEOUT;
    let request = format!("GET /tunnels HTTP/1.1\r\nX: {}", "x".repeat(10_000));
    for byte in request.bytes() {
        assert!(Instant::now() < deadline, "it is still heard");
        // An error says that the gateway has closed.
        if stream.write_all(&[byte]).is_err() || stream.read_exact(&mut answer).is_ok() {
            break;
        }
    }
    is_well(&gateway);
}

#[test]
fn many_changes_at_once_all_count() {
    let gateway = Gateway::start();
    thread::scope(|scope| {
        for number in 0..16 {
            let gateway = &gateway;
            scope.spawn(move || {
                let id = format!("t{number}");
                gateway.add(&id);
                assert_eq!(gateway.ask("POST", &format!("/tunnels/{id}/rotate"), None).0, 200);
                // One of two that make the same tunnel is told so.
                assert_eq!(gateway.ask("POST", "/tunnels", Some(json!({ "id": id }))).0, 409);
                if number % 2 == 0 {
                    assert_eq!(gateway.ask("DELETE", &format!("/tunnels/{id}"), None).0, 204);
                }
            });
        }
    });
    let (_, all) = gateway.ask("GET", "/tunnels", None);
    assert_eq!(all["tunnels"].as_array().unwrap().len(), 8);
}
