//! Local services on Unix sockets.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

use aiot_tunnel::{EventKind, Service};
use aiot_tunnel_testkit::cloud::Cloud;
use aiot_tunnel_testkit::frame::code;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use serde_json::json;

/// A socket's path in a directory of its own, which goes with it.
struct Socket(PathBuf);

impl Socket {
    fn new(test: &str) -> Self {
        let name = format!("unix service {test} {}", std::process::id());
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let path = directory.join("s");
        // A socket's path has at most 107 bytes; the build directory's may have more.
        let path = if path.as_os_str().len() > 100 {
            let directory =
                std::env::temp_dir().join(format!("aiot {test} {}", std::process::id()));
            directory.join("s")
        } else {
            path
        };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        Socket(path)
    }

    fn serve(&self, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Service {
        let listener = UnixListener::bind(&self.0).unwrap();
        thread::spawn(move || listener.incoming().flatten().for_each(serve));
        Service::unix("app", &self.0).unwrap()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

#[test]
fn a_service_on_a_unix_socket_gets_and_gives_every_byte() {
    let socket = Socket::new("echo");
    // Says what it got, once it has got all of it.
    let service = socket.serve(|mut stream| {
        let mut bytes = vec![0; 3_000_000];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(service));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    running.expect(EventKind::Connect, "t");
    assert_eq!(device.create("s", "app"), 0);
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    for payload in sent.chunks(4096) {
        device.data("s", payload);
    }
    assert!(device.receive_data("s", sent.len()) == sent);
    // It has closed its end: an orderly release.
    let (header, payload) = device.receive();
    assert_eq!((&header["frame_type"], code(&payload)), (&json!(3), 1));
}

#[test]
fn a_unix_socket_that_is_not_there_refuses_the_session_and_names_its_path() {
    let socket = Socket::new("absent");
    let cloud = Cloud::plain();
    let running = Running::start(plain().service(Service::unix("app", &socket.0).unwrap()));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    let mut device = cloud.accept();
    device.send(
        json!({"frame_type": 2, "session_id": "s", "frame_id": 7, "service_type": "app"}),
        b"",
    );
    let (header, payload) = device.receive();
    assert_eq!((&header["frame_id"], code(&payload)), (&json!(7), 2));
    let words = String::from_utf8_lossy(&payload);
    assert!(words.contains("unix:") && words.contains("No such file"), "{words}");
}
