//! The audit log: one JSON object a line, for each session that ends and each client that is refused.
//!
//! A thread of its own writes it, so a slow or full disk holds up no session. Lines that it cannot take
//! are counted, and the count stands in the file as soon as it takes lines again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use aiot_tunnel::gateway::{AuditEvent, Refusal, Way};
use serde_json::{json, Value};

use crate::output::Lines;
use crate::Result;

static LINES: Lines = Lines::new(left_out);
static REOPEN: AtomicBool = AtomicBool::new(false);

/// How long the last lines may take at the end.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Most bytes of a text that a stranger has chosen.
const MAX_TEXT: usize = 200;

/// Opens the file and starts the thread.
pub(super) fn start(path: &Path) -> Result<()> {
    let file = open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    LINES.start("audit", Ok(Reopened { path: path.to_owned(), file, has_failed: false }));
    Ok(())
}

/// Opens the file again before the next line: it may have been renamed.
pub(super) fn reopen() {
    REOPEN.store(true, Ordering::Relaxed);
}

/// Waits until the last lines are written, or cannot be.
pub(super) fn finish() {
    LINES.flush(Instant::now() + LAST_LINES);
}

/// Queues a line.
pub(super) fn write(event: &AuditEvent<'_>) {
    if let Some(object) = object(event) {
        LINES.push(line(object));
    }
}

fn line(mut object: Value) -> Vec<u8> {
    object["time"] = humantime::format_rfc3339_millis(SystemTime::now()).to_string().into();
    let mut line = object.to_string().into_bytes();
    line.push(b'\n');
    line
}

fn left_out(count: u64) -> Vec<u8> {
    line(json!({"event": "left_out", "count": count, "why": "the file took no more"}))
}

fn object(event: &AuditEvent<'_>) -> Option<Value> {
    match event {
        AuditEvent::SessionEnded {
            tunnel,
            session,
            service,
            client,
            way,
            bytes_to_device,
            bytes_to_access,
            lasted,
            why,
            ..
        } => Some(json!({
            "event": "session",
            "tunnel": tunnel,
            "session": session,
            "service": service,
            "client": client,
            "way": way_name(*way),
            "bytes_to_device": bytes_to_device,
            "bytes_to_access": bytes_to_access,
            "seconds": (lasted.as_secs_f64() * 1000.0).round() / 1000.0,
            "why": why,
        })),
        AuditEvent::Refused { tunnel, service, client, way, reason, why, .. } => Some(json!({
            "event": "refusal",
            "tunnel": shortened(tunnel),
            "service": service.map(shortened),
            "client": client,
            "way": way_name(*way),
            "reason": reason_name(*reason),
            "why": why,
        })),
        AuditEvent::LeftOut(count) => {
            Some(json!({"event": "left_out", "count": count, "why": "too many refusals"}))
        }
        _ => None,
    }
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

fn way_name(way: Way) -> &'static str {
    match way {
        Way::Device => "device",
        Way::Published => "published",
        Way::Terminal => "terminal",
        _ => "access",
    }
}

fn reason_name(reason: Refusal) -> &'static str {
    match reason {
        Refusal::UnknownTunnel => "unknown_tunnel",
        Refusal::WrongToken => "wrong_token",
        Refusal::Expired => "expired",
        Refusal::Limit => "limit",
        Refusal::DeviceAway => "device_away",
        Refusal::Device => "refused_by_device",
        _ => "other",
    }
}

/// Opens the file to append to it. Only its owner may read a new one: it tells who did what.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The file, which is opened again when that was asked for.
struct Reopened {
    path: PathBuf,
    file: File,
    /// The last write has failed, and the log says so.
    has_failed: bool,
}

impl Write for Reopened {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if REOPEN.swap(false, Ordering::Relaxed) {
            match open(&self.path) {
                Ok(file) => self.file = file,
                Err(e) => {
                    let path = self.path.display();
                    log::warn!("audit log {path}: {e}; the old file is still used");
                }
            }
        }
        let written = self.file.write(bytes);
        if let (Err(e), false) = (&written, self.has_failed) {
            log::warn!("audit log {}: {e}; what it does not take is counted", self.path.display());
        }
        self.has_failed = written.is_err();
        written
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
