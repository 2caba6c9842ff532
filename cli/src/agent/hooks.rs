//! Runs a program for each event: one at a time, in the order of the events, on a thread of its own.
//! A tunnel never waits for the program.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aiot_tunnel::{Event, EventKind, TunnelId};

use crate::input::{ACCESS_TOKEN, DEVICE_TOKEN};
use crate::Result;

/// Most events that wait for the program.
const MAX_WAITING: usize = 64;
/// Most tunnels that are remembered as failing. No event says that one was deleted.
const MAX_FAILING: usize = 1024;
/// A program that runs longer is killed.
const MAX_TIME: Duration = Duration::from_secs(30);
/// Time between two looks at a running program: at first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// What a program is told, as variables of its environment.
struct Call {
    event: &'static str,
    tunnel: TunnelId,
    time: SystemTime,
    error: Option<String>,
}

#[derive(Clone)]
pub(super) struct Hooks {
    calls: SyncSender<Call>,
    /// Tunnels whose last attempt has failed. Of a series of failures, only the first is an event.
    failing: Arc<Mutex<BTreeSet<TunnelId>>>,
}

impl Hooks {
    /// # Errors
    /// The thread cannot be created.
    pub(super) fn start(program: &Path) -> Result<Hooks> {
        let (sender, receiver) = sync_channel(MAX_WAITING);
        let program = program.to_owned();
        thread::Builder::new()
            .name("hooks".to_owned())
            .spawn(move || run_all(&program, &receiver))?;
        Ok(Hooks { calls: sender, failing: Arc::default() })
    }

    /// Does not block. An event for which there is no room is left out.
    pub(super) fn event(&self, event: &Event) {
        if event.kind != EventKind::Disconnect {
            self.failing().remove(&event.tunnel_id);
        }
        let name = match event.kind {
            EventKind::Connect => "connect",
            EventKind::Disconnect => "disconnect",
            EventKind::Expired => "expired",
            _ => return,
        };
        self.call(name, &event.tunnel_id, None);
    }

    /// An attempt to connect has failed. Does not block.
    pub(super) fn failed(&self, tunnel: &TunnelId, error: &str) {
        self.trouble("failed", tunnel, error);
    }

    /// The tunnel's token was refused, and will be tried again. Does not block.
    pub(super) fn token_refused(&self, tunnel: &TunnelId) {
        self.trouble("token_refused", tunnel, "the tunnel service refuses the token");
    }

    /// Of a series, only the first is an event.
    fn trouble(&self, event: &'static str, tunnel: &TunnelId, error: &str) {
        let mut failing = self.failing();
        if failing.len() >= MAX_FAILING {
            failing.clear();
        }
        let is_first = failing.insert(tunnel.clone());
        drop(failing);
        if is_first {
            self.call(event, tunnel, Some(error.to_owned()));
        }
    }

    fn failing(&self) -> MutexGuard<'_, BTreeSet<TunnelId>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, event: &'static str, tunnel: &TunnelId, error: Option<String>) {
        let call = Call { event, tunnel: tunnel.clone(), time: SystemTime::now(), error };
        if self.calls.try_send(call).is_err() {
            log::warn!(
                "on_event: {event} {tunnel}: left out, because {MAX_WAITING} earlier events still \
                 wait for the program"
            );
        }
    }
}

fn run_all(program: &Path, calls: &Receiver<Call>) {
    for call in calls {
        if let Err(why) = run(program, &call) {
            let what = format_args!("{} {}", call.event, call.tunnel);
            log::warn!("on_event: {}: {what}: {why}", program.display());
        }
    }
}

/// Runs the program and waits for its end.
fn run(program: &Path, call: &Call) -> std::result::Result<(), String> {
    let mut command = Command::new(program);
    for secret in [DEVICE_TOKEN, ACCESS_TOKEN] {
        command.env_remove(secret);
    }
    // Its output is the agent's log, not the lines of the events.
    command
        .env("AIOT_TUNNEL_EVENT", call.event)
        .env("AIOT_TUNNEL_ID", call.tunnel.as_str())
        .env("AIOT_TUNNEL_TIME", humantime::format_rfc3339_seconds(call.time).to_string())
        .env("AIOT_TUNNEL_ERROR", call.error.as_deref().unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let deadline = Instant::now() + MAX_TIME;
    let (mut look, most) = LOOKS;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(status.to_string()),
            Ok(None) if Instant::now() < deadline => thread::sleep(look),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("killed after {} s", MAX_TIME.as_secs()));
            }
            Err(e) => return Err(e.to_string()),
        }
        look = (look * 2).min(most);
    }
}
