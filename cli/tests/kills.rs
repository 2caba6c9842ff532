//! One of the programs `gateway`, `agent` and `access` ends at a random moment, by SIGKILL or
//! SIGTERM, while clients and services exchange bytes through them: with pauses, half-closes, resets
//! and deaths of either end. At both ends of every session, an orderly end must be the end of
//! everything that the far end has sent. Afterwards the program is started again, and sessions work.
//!
//! `KILLS=200` runs more seeds than the default. `KILL_SEED=n` runs one seed.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use aiot_tunnel_testkit::kills::{self, Figures, BOUNDS, VICTIMS};

const KILLS: u64 = 10;
/// Seeds that run at the same time. They mostly wait.
const AT_ONCE: usize = 3;

#[test]
fn whoever_is_killed_no_end_mistakes_a_part_for_the_whole() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match (number("KILL_SEED"), number("KILLS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(KILLS),
    };
    let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
    let (failures, done) = (Mutex::new(Vec::new()), Mutex::new(Vec::<Figures>::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| loop {
                let seed = next.fetch_add(1, Ordering::SeqCst);
                if seed >= end {
                    break;
                }
                let result = catch_unwind(AssertUnwindSafe(|| kills::run(seed, BOUNDS)));
                match result.unwrap_or_else(|panic| Err(text(&*panic))) {
                    Ok(figures) => done.lock().unwrap().push(figures),
                    Err(wrong) => failures.lock().unwrap().push(format!(
                        "seed {seed}: {wrong}; again: KILL_SEED={seed} cargo test \
                         -p aiot-tunnel-cli --test kills -- --nocapture"
                    )),
                }
            });
        }
    });
    report(&done.into_inner().unwrap());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), failures.join("\n"));
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    panic.downcast_ref::<String>().cloned().or(text).unwrap_or_default()
}

fn report(all: &[Figures]) {
    for extensions in [true, false] {
        let of = all.iter().filter(|one| one.plan.kind.extensions == extensions);
        let sum = |count: fn(&Figures) -> u64| of.clone().map(count).sum::<u64>();
        println!(
            "extensions {extensions}: {} complete, {} left by an end, {} reported as lost",
            sum(|one| one.complete),
            sum(|one| one.left),
            sum(|one| one.reported)
        );
    }
    for victim in VICTIMS {
        for is_kill in [true, false] {
            let of = all.iter().filter(|o| o.plan.victim == victim && o.plan.is_kill == is_kill);
            let mut times: Vec<Duration> = of.map(|one| one.recovery).collect();
            times.sort();
            let signal = if is_kill { "SIGKILL" } else { "SIGTERM" };
            let (count, last) = (times.len(), times.last());
            println!("{victim:?} {signal}: {count} times, slowest recovery {last:?}");
        }
    }
}
