//! The tests' log, kept for `scripts/scan-logs`. If `AIOT_TUNNEL_TEST_LOGS` names a directory, every
//! line of every crate, at trace level, goes to a file of this process there. The secrets that the
//! tests use go to `secrets/`, so that the scan looks for what really was there.
//!
//! Two kinds of lines are left out. tungstenite's client and server, which no thread of the product
//! runs, log the request with its token and the bytes of each frame. And its frame codec logs five
//! lines for each frame, which never contain a payload: a test that sends 100,000 frames would wait
//! for them. Loggers for other purposes do not belong here.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Once, OnceLock};

use crate::{ACCESS_TOKEN, DEVICE_TOKEN};

fn directory() -> Option<PathBuf> {
    std::env::var_os("AIOT_TUNNEL_TEST_LOGS").filter(|name| !name.is_empty()).map(PathBuf::from)
}

/// The test program's name and this process's id.
fn file_name() -> String {
    let program = std::env::current_exe().unwrap();
    let program = program.file_name().unwrap().to_string_lossy().into_owned();
    format!("{program}-{}", std::process::id())
}

/// Keeps this process's log from now on, if a directory for it is named.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Some(directory) = directory() else { return };
        fs::create_dir_all(&directory).unwrap();
        let file = File::create(directory.join(format!("{}.log", file_name()))).unwrap();
        let logger = env_logger::Builder::new()
            .filter_level(log::LevelFilter::Trace)
            .target(env_logger::Target::Pipe(Box::new(file)))
            .build();
        let _ = KEPT.set(Product(logger));
        // Fails if a test has a logger of its own, which passes its lines on to `kept`.
        let _ = log::set_logger(&Kept);
        log::set_max_level(log::LevelFilter::Trace);
        note_secret(DEVICE_TOKEN.as_bytes());
        note_secret(ACCESS_TOKEN.as_bytes());
    });
}

static KEPT: OnceLock<Product> = OnceLock::new();

/// The logger that keeps lines, if they are kept.
pub fn kept() -> Option<&'static dyn log::Log> {
    KEPT.get().map(|kept| kept as &dyn log::Log)
}

struct Kept;

impl log::Log for Kept {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        kept().is_some_and(|kept| kept.enabled(metadata))
    }

    fn log(&self, record: &log::Record<'_>) {
        if let Some(kept) = kept() {
            kept.log(record);
        }
    }

    fn flush(&self) {}
}

struct Product(env_logger::Logger);

impl log::Log for Product {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let target = metadata.target();
        if target.starts_with("tungstenite::protocol::frame") {
            return false;
        }
        let thread = std::thread::current();
        let ours =
            |name: &str| ["aiot-", "gateway-", "access-"].iter().any(|p| name.starts_with(p));
        !target.starts_with("tungstenite") || thread.name().is_some_and(ours)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Notes a token or a private key (PEM) that this process uses.
pub fn note_secret(secret: &[u8]) {
    let Some(directory) = directory() else { return };
    let secrets = directory.join("secrets");
    fs::create_dir_all(&secrets).unwrap();
    let path = secrets.join(file_name());
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    // One write, so that threads do not mix their secrets.
    file.write_all(&[secret, b"\n"].concat()).unwrap();
}

/// Makes a program of this project log everything to a file that is scanned, if logs are kept.
/// Otherwise its log goes where the test's own log goes.
pub fn keep_of(command: &mut Command) -> &mut Command {
    match child_file() {
        Some(file) => command.env("RUST_LOG", "trace").stderr(file),
        None => command,
    }
}

/// Reads the log of a program of this project, for a test that examines it. If logs are kept, it is
/// kept as it arrives: a test that fails may never see its end.
pub fn tee(from: impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    tee_each(from, |part| all.extend_from_slice(part));
    all
}

/// The same, for a test that examines the log while it is written: each part as it arrives.
pub fn tee_each(mut from: impl Read, mut each: impl FnMut(&[u8])) {
    let mut file = child_file();
    let mut buffer = [0; 8192];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        each(&buffer[..length]);
        if let Some(file) = &mut file {
            file.write_all(&buffer[..length]).unwrap();
        }
    }
}

fn child_file() -> Option<File> {
    let directory = directory()?;
    fs::create_dir_all(&directory).unwrap();
    let name = format!("{}-child-{:08x}.log", file_name(), rand::random::<u32>());
    Some(File::create(directory.join(name)).unwrap())
}

/// Prints the log to standard error, as `RUST_LOG` says, in place of keeping it.
pub fn print() {
    let _ = env_logger::try_init();
}
