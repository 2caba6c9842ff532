//! Gateways that share a store in Redis. A test without redis-server says so and passes; scripts/setup
//! installs it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::redis::{Redis, PASSWORD};
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::{gateways, logs, skip, wait};
use serde_json::{json, Value};

mod changes;
mod loss;
mod settings;

use super::{run, soon, Gateway, Tokens, SOON};

/// Longest time that a request takes while the store does not answer.
const BOUND: Duration = Duration::from_secs(6);

struct Fleet {
    redis: Redis,
    folder: Folder,
    gateways: Vec<Gateway>,
}

impl Fleet {
    /// `None`, with a message, where a program is missing.
    fn new(test: &str, count: usize, more: &[&str]) -> Option<Self> {
        Fleet::of(Redis::new(), test, count, more)
    }

    fn of(redis: Result<Redis, String>, test: &str, count: usize, more: &[&str]) -> Option<Self> {
        let redis = redis.map_err(|why| skip(test, why)).ok()?;
        let mut fleet = Fleet { redis, folder: key_folder(), gateways: Vec::new() };
        for _ in 0..count {
            let gateway = fleet.gateway(more);
            fleet.gateways.push(gateway);
        }
        Some(fleet)
    }

    fn options(&self) -> Vec<String> {
        let file = |name: &str| self.folder.file(name).display().to_string();
        let (key, password) = (file("store.key"), file("store.password"));
        let options = ["--plain", "--store", &self.redis.url(), "--store-key-file", &key];
        let options = [&options[..], &["--store-password-file", &password]].concat();
        options.into_iter().map(str::to_owned).collect()
    }

    /// One more gateway.
    fn gateway(&self, more: &[&str]) -> Gateway {
        let options = self.options();
        let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
        options.extend(more);
        Gateway::with(&options)
    }
}

/// A folder with the key of a store and Redis's password.
fn key_folder() -> Folder {
    let folder = Folder::new();
    let key = run(&["gen-token"], &[]);
    let key = String::from_utf8(key.stdout).unwrap();
    logs::note_secret(key.trim().as_bytes());
    folder.write_secret("store.key", key);
    folder.write_secret("store.password", format!("{PASSWORD}\n"));
    folder
}

fn connect(gateway: &Gateway, path: &str, token: &str) -> TunnelEnd<TcpStream> {
    gateways::connect(gateway.address, path, Some(token)).unwrap()
}

fn health(gateway: &Gateway) -> (u16, Value) {
    let answer = gateway.request("GET", "/healthz", None, None);
    (answer.status, serde_json::from_str(&answer.body).unwrap())
}

fn is_degraded(gateway: &Gateway) -> bool {
    health(gateway) == (200, json!({"status": "degraded", "store": "unreachable"}))
}

fn is_well(gateway: &Gateway) -> bool {
    health(gateway) == (200, json!({"status": "ok", "store": "ok"}))
}

/// The end goes on: it answers to a session that is asked for.
fn goes_on(access: &mut TunnelEnd<TcpStream>, device: &mut TunnelEnd<TcpStream>, number: u64) {
    access.send(json!({"frame_type": 2, "frame_id": number, "service_type": "s"}), b"");
    let (create, _) = device.receive();
    let session = create["session_id"].as_str().unwrap().to_owned();
    device.send(
        json!({"frame_type": 1, "frame_id": create["frame_id"], "session_id": session}),
        br#"{"code": 0}"#,
    );
    assert_eq!(access.receive().0["frame_type"], json!(1));
}
