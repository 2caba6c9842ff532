//! Follows a store that other gateways change, on a thread of its own: what they add, rotate and remove
//! takes effect here, too. When the store is lost, the thread connects again and compares everything.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::registry::Registry;
use crate::store::redis::{Changed, Server};
use crate::Result;

/// The least and the most time between two attempts to reach the store.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// How often everything is compared. Changes are told one by one; this finds what was not told, such as
/// what an operator has changed in the store.
const COMPARE: Duration = Duration::from_secs(30);
/// With very many tunnels, comparing takes a fiftieth of the time at most.
const COMPARE_SHARE: u32 = 50;
/// How often a wait is interrupted to see whether the registry is still there.
const LOOK: Duration = Duration::from_millis(500);

/// Starts the thread. It ends after the registry.
pub(crate) fn start(registry: &Arc<Registry>, server: Arc<Server>) -> std::io::Result<()> {
    let registry = Arc::downgrade(registry);
    let run = move || follow(&registry, &server);
    thread::Builder::new().name("store".into()).spawn(run).map(drop)
}

fn follow(registry: &Weak<Registry>, server: &Arc<Server>) {
    let mut gap = RETRY;
    loop {
        let begun = Instant::now();
        let Err(why) = follow_once(registry, server) else { return };
        if begun.elapsed() > RETRY_MOST {
            gap = RETRY;
        }
        let until = Instant::now() + gap.mul_f64(0.75 + 0.25 * rand::random::<f64>());
        gap = (2 * gap).min(RETRY_MOST);
        let Some(alive) = registry.upgrade() else { return };
        alive.store_is_lost(&why.to_string());
        drop(alive);
        loop {
            let Some(alive) = registry.upgrade() else { return };
            alive.end_grace();
            drop(alive);
            match until.saturating_duration_since(Instant::now()) {
                Duration::ZERO => break,
                left => thread::sleep(left.min(LOOK)),
            }
        }
    }
}

/// Follows until the store is lost. `Ok`: the registry is gone.
fn follow_once(registry: &Weak<Registry>, server: &Arc<Server>) -> Result<()> {
    // Changes from here on are not missed: everything is read afterwards.
    let mut changes = server.clone().changes()?;
    let connection = server.connection()?;
    let Some(alive) = registry.upgrade() else { return Ok(()) };
    let begun = Instant::now();
    alive.renew(connection)?;
    drop(alive);
    let mut compare = next_comparison(begun);
    loop {
        let changed = changes.next()?;
        let Some(alive) = registry.upgrade() else { return Ok(()) };
        if changed == Changed::Many || Instant::now() >= compare {
            let begun = Instant::now();
            alive.compare()?;
            compare = next_comparison(begun);
        } else if let Changed::Tunnels(ids) = changed {
            alive.refresh(&ids)?;
        }
    }
}

/// When to compare again, after a comparison that has begun at a time.
fn next_comparison(begun: Instant) -> Instant {
    let now = Instant::now();
    now + COMPARE.max(COMPARE_SHARE * (now - begun))
}
