//! What Linux tells about a process under `/proc`. Nothing here starts or changes a process, except
//! [`reset_peak`].

use std::fs;
use std::path::Path;

fn field(file: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A line of `/proc/PID/status`: kibibytes, or a count. 0 once the process is gone.
pub fn status(process: u32, name: &str) -> u64 {
    field(Path::new(&format!("/proc/{process}/status")), name)
}

/// Resident and private memory, in KiB.
pub fn memory(process: u32) -> (u64, u64) {
    let rollup = format!("/proc/{process}/smaps_rollup");
    let of = |name| field(Path::new(&rollup), name);
    (of("Rss"), of("Private_Clean") + of("Private_Dirty"))
}

/// The most memory that was resident at once, in KiB.
pub fn peak(process: u32) -> u64 {
    status(process, "VmHWM")
}

/// From now on [`peak`] is the peak since now.
pub fn reset_peak(process: u32) {
    fs::write(format!("/proc/{process}/clear_refs"), "5").unwrap();
}

pub fn threads(process: u32) -> usize {
    entries(process, "task")
}

/// Open descriptors.
pub fn descriptors(process: u32) -> usize {
    entries(process, "fd")
}

/// 0 once the process is gone.
fn entries(process: u32, of: &str) -> usize {
    fs::read_dir(format!("/proc/{process}/{of}")).map_or(0, Iterator::count)
}

/// Seconds of processor time that the threads of a process have used. Threads that have ended are
/// not included.
pub fn cpu(process: u32) -> f64 {
    let nanos = tasks(process).filter_map(|task| fs::read_to_string(task.join("schedstat")).ok());
    nanos.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum::<u64>() as f64 / 1e9
}

/// Seconds of processor time that a process has used, with its threads that have ended, to the hundredth.
pub fn whole_cpu(process: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the program's name, which may have blanks.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    // User and system time, in ticks.
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// How often the threads of a process went to sleep on their own.
pub fn sleeps(process: u32) -> u64 {
    tasks(process).map(|task| field(&task.join("status"), "voluntary_ctxt_switches")).sum()
}

/// The folders of a process's threads.
pub fn tasks(process: u32) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}
